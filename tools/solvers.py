"""The error of solvers against how often they call the network: numbers and plot of docs/solvers.md.

    python -m tools.solvers --out docs

Read `GRID` and `HEARD` (what is compared), `Singer.latents` (kept in --work: a run goes on where it ended),
`Singer.distances`, then `main`.
"""

import functools
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from config import PRESETS, SampleConfig, Settings, UserError, within
from data import trimmed
from evaluate import METRICS, measures
from model import flops
from sample import Model, Prompt, Prompts, frames_of, resolve
from songs.listeners import small_ear
from songs.manifest import Song
from support.audio import master
from support.cli import parse, run
from support.files import find, make_folder, read_text, reading, replacing, write_text
from support.hub import locate
from support.processes import pick_device

LINES = 3                                        # of a song
SINGERS = ("soprano", "alto", "tenor", "baritone")
FEW = 4                                          # songs that are sung in whole windows, too
NUMBERS = "## Numbers\n"                         # heading of the page's part that is written here
COLOURS = {"euler": "#777", "ab2": "#d70", "abm": "#06c"}
SHORT_S = 30.0                                   # song of JAM-0.5 whose work is compared


class Case(NamedTuple):
    """A sampler. A point more than calls is on its grid."""
    solver: str
    calls: int
    sway: float = 0.0
    dtype: str = "float32"
    frames: str = "song"


EULER, FAST = Case("euler", 48), Case("abm", 12, -0.5)
REFERENCE, FINER = Case("abm", 128, -0.5), Case("abm", 384, -0.5)    # the finer one for the first song
WINDOW, BFLOAT16 = FAST._replace(frames="window"), FAST._replace(dtype="bfloat16")
HEARD = [                        # name, sampler, another that it is compared with, how many songs
    ("48 calls of euler", EULER, REFERENCE, None), ("15 calls of euler", Case("euler", 15), REFERENCE, None),
    ("fast: 12 calls of abm, sway -0.5", FAST, REFERENCE, None), ("reference", REFERENCE, REFERENCE, None),
    ("fast, in bfloat16", BFLOAT16, FAST, None), ("fast, on whole windows", WINDOW, FAST, FEW),
    ("fast, the same songs", FAST, REFERENCE, FEW)]
GRID = [Case(solver, calls, sway) for solver, sway, counts in (
    ("euler", 0.0, (8, 12, 15, 24, 31, 48)), ("euler", -0.5, (24,)),
    ("ab2", 0.0, (12,)), ("ab2", -0.5, (12, 16)), ("ab2", -1.0, (12,)),
    ("abm", 0.0, (12,)), ("abm", -0.5, (8, 10, 12, 14, 16, 24)), ("abm", -1.0, (8, 12))) for calls in counts]


@dataclass(frozen=True)
class SolversConfig(Settings):
    """Compare samplers on songs of a model."""
    model: str = "baby"                         # as for sample.py
    lyrics: Path = Path("baby/held_out.txt")    # three lines of it are a song
    songs: int = within(12, 1)                  # how many songs
    bpm: float = within(130.0, 20, 400)         # their beats per minute
    work: Path = Path("runs/solvers")           # folder that keeps their latents
    out: Path = Path("docs")                    # folder for solvers.md, whose part "Numbers" is written anew,
                                                #   and solvers.svg
    device: str = "auto"                        # auto (CUDA, then MPS, then CPU), or a torch device


class Singer:
    """Sings the songs by any sampler. Raises: UserError if the model or the lyrics do not fit."""

    def __init__(self, cfg: SolversConfig):
        self.cfg, self.device = cfg, pick_device(cfg.device)
        self.asked = SampleConfig(model=cfg.model, bpm=cfg.bpm, dtype="float32", device=cfg.device)
        self.files = locate(self.asked)
        self.asked = resolve(self.asked, self.files.preset, self.device)
        self.model = functools.cache(lambda dtype: Model(self.files, self.device, dtype))
        self.prompts = functools.cache(self.plan)

    def plan(self, frames: str) -> list[Prompt]:
        """The songs, with the planner's times, the singers in turn."""
        lines, made = read_text(find(self.cfg.lyrics)).splitlines(), []
        if len(lines) < LINES * self.cfg.songs:
            raise UserError(f"{self.cfg.lyrics}: {len(lines)} lines; expected {LINES} for each of --songs")
        maker = Prompts(self.files, replace(self.asked, frames=frames), self.device)
        with tempfile.TemporaryDirectory() as folder:
            for k in range(self.cfg.songs):
                path = Path(folder) / f"{k}.txt"
                write_text(path, "\n".join(lines[LINES * k:LINES * (k + 1)]))
                made.append(maker.make(Song("", path, (SINGERS[k % len(SINGERS)],), (), None, k)))
        return made

    def latents(self, case: Case, k: int) -> Tensor:
        """The own frames (T, C) of song k by a sampler: read, if they have been computed before."""
        path = self.cfg.work / f"{'-'.join(map(str, [*case, k]))}.safetensors"
        if not path.exists():
            asked = replace(self.asked, solver=case.solver, steps=case.calls + 1, sway=case.sway)
            prompt = self.prompts(case.frames)[k]
            made = self.model(case.dtype).latents(prompt, k, asked)[0]
            with replacing(path) as temporary:
                own = made[:frames_of(prompt.duration_s, self.files.preset)].clone()
                save_file({"latents": own}, temporary)
            print(path, flush=True)
        with reading(path):
            return load_file(path)["latents"]

    def heard(self, case: Case, few: int | None) -> list[dict]:
        """What the ear hears of the songs by a sampler."""
        made, codec, ear = [], self.model("float32").codec, small_ear()
        for k, prompt in enumerate(self.prompts(case.frames)[:few]):
            rate_hz, seconds = codec.config.sample_rate_hz, prompt.duration_s
            wave = master(codec.decode(self.latents(case, k)[None])[0], rate_hz, round(seconds * rate_hz))
            words = [{"word": w.word, "start": w.start, "end": w.end, "phoneme": w.phoneme}
                     for w in prompt.lyrics.words]
            made.append(measures(wave, rate_hz, {"word": words, "settings": {"duration": seconds}}, ear))
        return made

    def distances(self, case: Case, other: Case, few: int | None = None) -> np.ndarray:
        """How far the latents of each song are from another sampler's: L2 norm, relative to the other's."""
        pairs = [(self.latents(case, k), self.latents(other, k)) for k in range(self.cfg.songs)[:few]]
        return np.array([((a - b).norm() / b.norm()).item() for a, b in pairs])


def table_of_errors(errors: dict[Case, np.ndarray]) -> list[str]:
    """A row for each sampler. The cheapest that errs no more than 48 calls of Euler is bold."""
    lines = ["| calls | solver | sway | error, mean | largest |", "|---" * 5 + "|"]
    ranked = sorted(errors, key=lambda case: (case.calls, errors[case].mean()))
    best = next(case for case in ranked if errors[case].mean() <= errors[EULER].mean())
    for case in ranked:
        bold, own = "**" * (case == best), errors[case]
        cells = (case.calls, case.solver, f"{case.sway:g}", f"{own.mean():.2%}", f"{own.max():.2%}")
        lines.append(f"| {' | '.join(f'{bold}{cell}{bold}' for cell in cells)} |")
    return lines


def table_of_songs(singer: Singer) -> list[str]:
    """What the ear hears of the samplers' songs, and how far their latents are from those of another."""
    lines = ["| sampler | songs | distance from | phoneme errors | onsets within 50 ms |", "|---" * 5 + "|"]
    for name, case, other, few in HEARD:
        heard, away = singer.heard(case, few), singer.distances(case, other, few).mean()
        values = [METRICS[key].total([v for row in heard for v in METRICS[key].values(row)])
                  for key in ("phoneme_error_rate", "within_50_ms")]
        other = "the reference" if other == REFERENCE else "fast"
        lines.append(f"| {name} | {len(heard)} | {other}: {away:.2%} | {values[0]:.1%} | {values[1]:.1%} |")
    return lines


def plot(errors: dict[Case, np.ndarray]) -> str:
    """The table of errors as an SVG: calls and mean error, both on logarithmic axes."""
    wide, high, left, top = 560, 360, 60, 20
    means = {case: value.mean() for case, value in errors.items()}
    counts, least, most = sorted({case.calls for case in means}), min(means.values()), max(means.values())

    def place(count: float, error: float) -> tuple[float, float]:
        return (round(left + wide * math.log(count / counts[0]) / math.log(counts[-1] / counts[0]), 1),
                round(top + high * math.log(most / error) / math.log(most / least), 1))

    def text(x: float, y: float, words: object, anchor: str) -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + wide + 80} {top + high + 50}" '
             'font-family="sans-serif" font-size="13">', '<rect width="100%" height="100%" fill="#fff"/>',
             text(left + wide / 2, top + high + 42, "calls of the network", "middle"),
             text(left, top - 6, "error", "end")]
    for count in counts:
        x, y = place(count, least)
        parts += [f'<path d="M{x} {top}V{y}" stroke="#ddd"/>', text(x, y + 18, count, "middle")]
    for error in (e for e in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if least <= e <= most):
        x, y = place(counts[0], error)
        parts += [f'<path d="M{x} {y}h{wide}" stroke="#ddd"/>',
                  text(x - 8, y + 4, f"{100 * error:g} %", "end")]
    x, y = place(counts[0], means[EULER])
    parts.append(f'<path d="M{x} {y}h{wide}" stroke="#c00"/>')
    for solver, sway in dict.fromkeys((case.solver, case.sway) for case in means):
        line = [place(case.calls, error) for case, error in means.items()
                if (case.solver, case.sway) == (solver, sway)]
        path, colour = "L".join(f"{x} {y}" for x, y in line), COLOURS[solver]
        parts += [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
                  *(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in line),
                  text(line[-1][0] + 6, line[-1][1] + 4, f"{solver}, {sway:g}", "start")]
    return "\n".join([*parts, "</svg>\n"])


def main(argv: list[str] | None = None) -> None:
    """Compute what is missing, then write the numbers and the plot."""
    cfg = parse(SolversConfig, __doc__, argv, name="python -m tools.solvers")
    make_folder(cfg.work, "--work")
    make_folder(cfg.out)
    singer = Singer(cfg)
    errors = {case: singer.distances(case, REFERENCE) for case in GRID}
    finer, jam = singer.distances(REFERENCE, FINER, 1)[0], PRESETS["jam-0.5"]
    short = trimmed(frames_of(SHORT_S, jam), replace(jam, trim=True))
    share = flops(jam.model, short) / flops(jam.model, jam.model.max_frames)
    page = cfg.out / "solvers.md"
    text = read_text(page).partition(NUMBERS)[0] if page.exists() else "# Solvers\n\n"
    write_text(page, text + "\n".join([
        NUMBERS, *table_of_errors(errors), "",
        f"The reference's own error, against {FINER.calls} calls, on the first song: {finer:.2%}.", "",
        *table_of_songs(singer), "",
        f"Work of a pass of JAM-0.5 for a song of {SHORT_S:g} s: with `--frames song` ({short} frames) "
        f"{share:.1%} of that with `--frames window` ({jam.model.max_frames}).", ""]))
    write_text(cfg.out / "solvers.svg", plot(errors))
    print(page.resolve())


if __name__ == "__main__":
    run(main)
