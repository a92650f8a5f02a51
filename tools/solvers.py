"""The error of solvers against how often they call the network: numbers and plot of docs/solvers.md.

    python -m tools.solvers --out docs

Read `GRID` and `HEARD` (what is compared), `Singer.latents` (kept in --work: a run goes on where it ended),
`Singer.distances`, then `main`.
"""

import functools
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from config import PRESETS, SampleConfig, Settings, within
from evaluate import METRICS, measures
from model import flops
from sample import Model, Prompt, Prompts, frames_of, resolve
from songs.listeners import small_ear
from songs.manifest import Song
from support.audio import master
from support.cli import parse, run
from support.files import find, make_folder, read_text, replacing, write_text
from support.hub import locate
from support.processes import pick_device

LINES, BPM, FEW = 3, 130.0, 4                    # of a song; songs that are sung in whole windows, too
SINGERS = ("soprano", "alto", "tenor", "baritone")
NUMBERS = "## Numbers\n"                         # heading of the page's part that is written here
COLOURS = {"euler": "#777", "ab2": "#d70", "abm": "#06c"}
SHORT = 656                                      # frames that JAM-0.5 computes for a song of 30 s


class Case(NamedTuple):
    """A sampler. A point more than calls is on its grid."""
    solver: str
    calls: int
    sway: float = 0.0
    dtype: str = "float32"
    frames: str = "song"


EULER, FAST = Case("euler", 48), Case("abm", 12, -1.0)
REFERENCE, FINER = Case("abm", 128, -0.5), Case("abm", 192, -0.5)    # the finer one for the first song
WINDOW, BFLOAT16 = FAST._replace(frames="window"), FAST._replace(dtype="bfloat16")
HEARD = [                        # name, sampler, another that it is compared with, how many songs
    ("48 calls of euler", EULER, REFERENCE, None), ("15 calls of euler", Case("euler", 15), REFERENCE, None),
    ("fast: 12 calls of abm, sway -1", FAST, REFERENCE, None), ("reference", REFERENCE, REFERENCE, None),
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
    work: Path = Path("runs/solvers")           # folder that keeps their latents
    out: Path = Path("docs")                    # folder for solvers.md, whose part "Numbers" is written anew,
                                                #   and solvers.svg
    device: str = "auto"                        # auto (CUDA, then MPS, then CPU), or a torch device


class Singer:
    """Sings the songs by any sampler. Raises: UserError if the model or the lyrics do not fit."""

    def __init__(self, cfg: SolversConfig):
        self.cfg, self.device = cfg, pick_device(cfg.device)
        self.asked = SampleConfig(model=cfg.model, bpm=BPM, dtype="float32", device=cfg.device)
        self.files = locate(self.asked)
        self.asked = resolve(self.asked, self.files.preset, self.device)
        self.model = functools.cache(lambda dtype: Model(self.files, self.device, dtype))
        self.prompts = functools.cache(self.plan)

    def plan(self, frames: str) -> list[Prompt]:
        """The songs, with the planner's times, the singers in turn."""
        lines, made = read_text(find(self.cfg.lyrics)).splitlines(), []
        maker = Prompts(self.files, replace(self.asked, frames=frames), self.device)
        for k in range(self.cfg.songs):
            write_text(path := self.cfg.work / f"{k}.txt", "\n".join(lines[LINES * k:LINES * (k + 1)]))
            made.append(maker.make(Song("", path, (SINGERS[k % len(SINGERS)],), (), None, k)))
        return made

    def latents(self, case: Case, k: int) -> Tensor:
        """The own frames (T, C) of song k by a sampler: read, if they have been computed before."""
        path = self.cfg.work / f"{'-'.join(map(str, [*case, k]))}.safetensors"
        if not path.exists():
            asked = replace(self.asked, solver=case.solver, steps=case.calls + 1, sway=case.sway)
            prompt = self.prompts(case.frames)[k]
            made = self.model(case.dtype).latents(prompt, k, asked)[0]
            own = frames_of(prompt.duration_s, self.files.preset)
            with replacing(path) as temporary:
                save_file({"latents": made[:own].clone()}, temporary)
            print(path, flush=True)
        return load_file(path)["latents"]

    def heard(self, case: Case, few: int | None) -> list[dict]:
        """What the ear hears of the songs by a sampler."""
        made, codec, ear = [], self.model("float32").codec, small_ear()
        for k, prompt in enumerate(self.prompts(case.frames)[:few]):
            rate_hz, seconds = codec.config.sample_rate_hz, prompt.duration_s
            wave, _ = master(codec.decode(self.latents(case, k)[None])[0], rate_hz, round(seconds * rate_hz))
            words = [asdict(word) for word in prompt.lyrics.words]
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
    means = {case: errors[case].mean() for case in errors}
    counts, least, most = sorted({case.calls for case in means}), min(means.values()), max(means.values())

    def place(count: float, error: float) -> tuple[float, float]:
        return (round(60 + 540 * math.log(count / counts[0]) / math.log(counts[-1] / counts[0]), 1),
                round(20 + 360 * math.log(most / error) / math.log(most / least), 1))

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 680 430" font-family="sans-serif" '
             'font-size="13" text-anchor="middle"><rect width="100%" height="100%" fill="#fff"/>',
             '<text x="330" y="420">calls of the network</text><text x="30" y="14">error</text>',
             *(f'<text x="{place(count, least)[0]}" y="400">{count}</text>' for count in counts)]
    for error in (*(e for e in (0.01, 0.02, 0.05, 0.1, 0.2) if least < e < most), means[EULER]):
        x, y = place(counts[0], error)
        parts.append(f'<path d="M{x} {y}h540" stroke="#ccc"/><text x="30" y="{y + 4}">{error:.1%}</text>')
    for solver, sway in dict.fromkeys((case.solver, case.sway) for case in means):
        line = [place(case.calls, error) for case, error in means.items()
                if (case.solver, case.sway) == (solver, sway)]
        path, (x, y), colour = "L".join(f"{x} {y}" for x, y in line), line[-1], COLOURS[solver]
        parts += [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>',
                  *(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in line),
                  f'<text x="{x + 34}" y="{y + 4}">{solver}, {sway:g}</text>']
    return "\n".join([*parts, "</svg>\n"])


def main(argv: list[str] | None = None) -> None:
    """Compute what is missing, then write the numbers and the plot."""
    cfg = parse(SolversConfig, __doc__, argv, name="python -m tools.solvers")
    make_folder(cfg.work, "--work")
    make_folder(cfg.out)
    singer = Singer(cfg)
    errors = {case: singer.distances(case, REFERENCE) for case in GRID}
    finer, jam = singer.distances(REFERENCE, FINER, 1)[0], PRESETS["jam-0.5"].model
    page = cfg.out / "solvers.md"
    text = read_text(page).partition(NUMBERS)[0] if page.exists() else "# Solvers\n\n"
    write_text(page, text + "\n".join([
        NUMBERS, *table_of_errors(errors), "",
        f"The reference's own error, against {FINER.calls} calls, on one song: {finer:.2%}.", "",
        *table_of_songs(singer), "",
        f"A pass of JAM-0.5 over a song of 30 s is, with `--frames song` ({SHORT} frames), "
        f"{flops(jam, SHORT) / flops(jam, jam.max_frames):.1%} of the work with `--frames window`.", ""]))
    write_text(cfg.out / "solvers.svg", plot(errors))
    print(page.resolve())


if __name__ == "__main__":
    run(main)
