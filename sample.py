"""Timed words -> a song: `python sample.py --lyrics FILE --style female --out song.wav`.

Read `sing_one`, then `Arranger` (words and style become what the network reads) and `Singer` (the network
turns noise into latents, vae.py turns latents into sound); `sing_many` does the same for a manifest, by
torchrun on as many processes as you like. hub.py finds the files, audio.py sets the loudness.
"""

import contextlib
import dataclasses
import functools
import gc
import json
import math
import os
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from audio import FORMATS, master, write_wave
from cli import find, parse, pick_device, replacing, run
from config import GUIDANCE_WEIGHTS, Guidance, Preset, SampleConfig, UserError
from data import collate, conditions
from hub import ModelFiles, doctor, encoder_folders, fetch, locate, sha256
from lyrics import Word, check_duration, place, pronounce, read
from manifest import Outputs, Processes, Report, Song, outputs_of, read_manifest, song_of
from model import load_model, sample, time_grid
from phonemes import CELLS_PER_FRAME, SymbolTable, load_phonemizer
from style import Crop, StyleEncoder, negative_vector, style_vector, weighted
from vae import make_codec

TAIL_S = 0.5                   # silence after the last word where no duration is given
LONGEST_NAME = 240             # bytes; file systems allow 255, temporary names take some
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Score:
    """A song as the network reads it."""
    song: Song
    words: list[Word]                # with phonemes
    batch: dict[str, Tensor]         # of one song; see data.py
    negative: Tensor                 # (1, E) negative style
    duration_s: float


class Arranger:
    """Makes scores of songs: reads and pronounces the words, finds the styles. Needs no network yet.

    Raises: UserError if the phonemizer or the negative style is missing or does not fit.
    """

    def __init__(self, files: ModelFiles, cfg: SampleConfig, device: torch.device):
        self.files, self.cfg, self.device, self.preset = files, cfg, device, files.preset
        self.phonemizer = load_phonemizer(files.phonemizer)
        self.table = SymbolTable(self.phonemizer.symbols)
        self.frame_hz = self.preset.codec.sample_rate_hz / self.preset.codec.hop
        self.longest_s = self.preset.model.max_frames / self.frame_hz
        self.negative = negative_vector(cfg.negative_style, self.preset.model.cond_dim,
                                        lambda: fetch("vocal", cfg.offline))

    @functools.cached_property
    def encoder(self) -> StyleEncoder:
        """MuQ-MuLan, loaded when the first style needs it. Raises: UserError if the model has none."""
        if self.preset.style_encoder == "none":
            raise UserError(f"--model {self.cfg.model}: takes no sound and no text as style; expected a "
                            f"style that it names, or a saved vector of {self.preset.model.cond_dim} numbers")
        return StyleEncoder(*encoder_folders(self.cfg), self.device)

    def score(self, song: Song) -> Score:
        """Make a score. Raises: UserError for anything wrong with words, style or duration."""
        words = read(song.lyrics)
        if not words and song.duration_s is None:
            raise UserError(f"{song.lyrics}: has no words; say how long the song is with --duration")
        duration_s = song.duration_s
        if duration_s is None:
            duration_s = max(words[-1].end, min(words[-1].end + TAIL_S, self.longest_s))
        check_duration(words, duration_s, self.longest_s, song.lyrics)
        return self.lay(song, pronounce(words, self.phonemizer, self.table, song.lyrics), duration_s)

    def lay(self, song: Song, words: list[Word], duration_s: float) -> Score:
        """Lay words, which have their phonemes, on the grid, and find the style. Raises: UserError."""
        style = self.negative[0] if self.cfg.ignore_style else style_vector(
            song.styles, song.texts, self.crop(song), self.files.styles, self.preset.model.cond_dim,
            lambda: self.encoder)
        frames = min(math.ceil(duration_s * self.frame_hz), self.preset.model.max_frames)
        spoken = [(w.start, w.end, w.phoneme) for w in words]
        item, placed = conditions(spoken, frames, 0, self.preset, self.table)
        warn_of_cuts(words, placed, song.lyrics)
        batch = collate([item | {"style": style, "frames": frames}], None, self.preset)
        return Score(song, words, batch, self.negative, duration_s)

    def crop(self, song: Song) -> Crop:
        """Which part of a sound file its style is taken from."""
        return Crop(self.cfg.style_start, self.cfg.num_style_secs,
                    song.seed if self.cfg.random_crop_style else None)


class Singer:
    """Network and codec of a model.

    Args: device and type of the network's and the autoencoder's weights.
    Raises: UserError if a file is missing or does not fit.
    """

    def __init__(self, files: ModelFiles, device: torch.device, dtype: torch.dtype = torch.float32):
        self.device, self.preset = device, files.preset
        self.model = load_model(files.weights, self.preset.model, device, dtype)
        self.codec = make_codec(self.preset.codec, files.codec, device, dtype)

    def latents(self, score: Score, seed: int, cfg: SampleConfig, progress=lambda steps: steps) -> Tensor:
        """Sing one song's latents (1, T, C). Its noise comes from the CPU and its own seed, on any device."""
        rng = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, self.preset.model.max_frames, self.preset.model.mel_dim, generator=rng)
        noise = noise[:, :score.batch["phonemes"].shape[1] // CELLS_PER_FRAME].to(self.device)
        batch = {k: v.to(self.device) for k, v in score.batch.items()}
        guidance = Guidance(cfg.guidance, cfg.guidance_weights or (), cfg.guidance_range)
        return sample(self.model, batch, noise, time_grid(cfg.steps, cfg.sway), guidance,
                      score.negative.to(self.device), progress).cpu()


def check_output(path: Path, lyrics: Path) -> None:
    """Raise UserError, before any work is done, if the song could not be written to path."""
    about = Outputs(path).account
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--out {path}: unknown ending; expected {', '.join(FORMATS)}")
    if len(os.fsencode(about.name)) > LONGEST_NAME:
        raise UserError(f"--out {path}: a name of more than {LONGEST_NAME - len('.json')} bytes")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}")
    for file in (path, about):
        if file.is_dir():
            raise UserError(f"--out {path}: {file} is a folder")
        if file.exists() and file.samefile(lyrics):
            raise UserError(f"--out {path}: would overwrite the lyrics {lyrics}")
        if not os.access(path.parent, os.W_OK) or file.exists() and not os.access(file, os.W_OK):
            raise UserError(f"--out {path}: no permission to write")


def check(cfg: SampleConfig) -> None:
    """Raise UserError for settings that are out of their range or do not go together."""
    if not 0 <= cfg.seed < 2 ** 63 - max(cfg.batch_infer_num, 0):
        raise UserError(f"--seed {cfg.seed}: expected 0 to {2 ** 63 - 1}, of all variants")
    if cfg.batch_infer_num < 1:
        raise UserError(f"--batch-infer-num {cfg.batch_infer_num}: expected 1 or more variants")
    if not 0 < cfg.num_style_secs < math.inf:
        raise UserError(f"--num-style-secs {cfg.num_style_secs}: expected seconds above 0")
    if not 0 <= cfg.style_start < math.inf:
        raise UserError(f"--style-start {cfg.style_start}: expected seconds, 0 or more")
    if cfg.sway is not None and not -1 <= cfg.sway <= 0:
        raise UserError(f"--sway {cfg.sway}: expected -1 to 0")
    if cfg.dtype not in DTYPES:
        raise UserError(f"--dtype {cfg.dtype}: expected {' or '.join(DTYPES)}")
    if f".{cfg.format}" not in FORMATS:
        raise UserError(f"--format {cfg.format}: expected {', '.join(f[1:] for f in FORMATS)}")
    if (cfg.manifest is None) != (cfg.out_dir is None):
        raise UserError("--manifest and --out-dir: one needs the other")
    if cfg.use_prompt_style and cfg.manifest is None:
        raise UserError("--use-prompt-style: needs --manifest; one song's style in words is --style-text")
    if cfg.ignore_style and (cfg.style or cfg.style_text or cfg.use_prompt_style):
        raise UserError("--ignore-style: sings without style; leave out the style that is given, too")


def resolve(cfg: SampleConfig, preset: Preset) -> SampleConfig:
    """The settings with the preset's values where none were given.

    Raises: UserError for a number of steps, a guidance mode, weight or range that is none.
    """
    default = preset.guidance
    steps = preset.steps if cfg.steps is None else cfg.steps
    if steps < 2:
        raise UserError(f"--steps {steps}: expected 2 or more grid points")
    mode = default.mode if cfg.guidance is None else cfg.guidance
    if mode not in GUIDANCE_WEIGHTS:
        raise UserError(f"--guidance {mode}: expected one of {', '.join(GUIDANCE_WEIGHTS)}")
    needed = GUIDANCE_WEIGHTS[mode]
    weights = cfg.guidance_weights if cfg.guidance_weights is not None else default.weights if needed else ()
    bounds = default.range if cfg.guidance_range is None else cfg.guidance_range
    if len(weights) != needed or not all(map(math.isfinite, weights)):
        raise UserError(f"--guidance {mode} takes {needed} finite weights, not {weights}")
    if len(bounds) != 2 or not bounds[0] <= bounds[1]:
        raise UserError(f"--guidance-range {bounds}: expected two flow times, the lower one first")
    negative = preset.negative_style if cfg.negative_style is None else cfg.negative_style
    return dataclasses.replace(cfg, steps=steps, guidance=mode, guidance_weights=weights or None,
                               guidance_range=bounds, negative_style=negative)


def warn_of_cuts(words: list[Word], placed: list[tuple[int, int, list[int]]], path: Path) -> None:
    """Warn of each word that is too short for all of its phonemes."""
    for i, (word, (first, end, ids)) in enumerate(zip(words, placed, strict=True), 1):
        if end - first < len(ids) - 1:                       # all but the word end
            print(f"warning: {place(path, i, word.word)}: {len(ids) - 1} phonemes ({word.phoneme}) in "
                  f"{end - first} cells; the last ones are left out", file=sys.stderr)


def request_of(song: Song, variant: int, files: ModelFiles, cfg: SampleConfig) -> dict:
    """All that decides how a variant of a song sounds, as JSON: equal requests make equal songs.

    Files count by what is in them, not by their names.
    """
    settings = ("steps", "guidance", "guidance_weights", "guidance_range", "sway", "num_style_secs",
                "style_start", "random_crop_style", "ignore_style", "dtype")
    parts = {"lyrics": song.lyrics, "weights": files.weights, "phonemizer": files.phonemizer,
             "codec": files.codec, "styles": files.styles}
    styles = [weighted(name, os.path.isfile) for name in song.styles]
    return {"seed": song.seed + variant, "duration": song.duration_s,
            "style": [[sha256(Path(name)) if os.path.isfile(name) else name, weight]
                      for name, weight in styles],
            "style_text": song.texts, "negative_style": sha256(Path(cfg.negative_style)) if os.path.isfile(
                cfg.negative_style) else cfg.negative_style,
            **{name: getattr(cfg, name) for name in settings},
            "sha256": {part: sha256(path) for part, path in parts.items() if path}}


def sidecar(score: Score, request: dict, cfg: SampleConfig, preset: Preset,
            seconds: dict[str, float]) -> str:
    """The account of a song: everything needed to remake it; `--lyrics` takes it, too."""
    return json.dumps({
        "request": request, "settings": dataclasses.asdict(cfg), "duration": score.duration_s,
        "word": [dataclasses.asdict(word) for word in score.words],
        "style": [round(x, 7) for x in score.batch["style"][0].tolist()],
        "preset": dataclasses.asdict(preset),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }, default=str, ensure_ascii=False, indent=1)


def sing(singer: Singer, score: Score, request: dict, cfg: SampleConfig, outputs: Outputs,
         bars: bool) -> dict[str, float]:
    """Sing one variant of a song and write its files, all or none. Returns the seconds of each stage."""
    def bar(name, unit):
        return lambda steps: tqdm(steps, name, unit=unit, disable=not bars)
    rate_hz, began = singer.preset.codec.sample_rate_hz, time.perf_counter()
    latents = singer.latents(score, request["seed"], cfg, bar("sampling", "step"))
    sampled = time.perf_counter()
    samples = round(score.duration_s * rate_hz)
    wave = master(singer.codec.decode(latents, bar("decoding", "part"))[0], rate_hz, samples)      # (W, N)
    seconds = {"sample": sampled - began, "decode": time.perf_counter() - sampled}
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(replacing(outputs.account))
        path.write_text(sidecar(score, request, cfg, singer.preset, seconds), encoding="utf-8",
                        errors="backslashreplace")
        if outputs.latents:
            torch.save(latents[0].clone(), stack.enter_context(replacing(outputs.latents)))
        if outputs.original:
            write_wave(outputs.original, wave, rate_hz)
        write_wave(outputs.song, wave[:, :samples], rate_hz)
    return seconds


def sing_one(cfg: SampleConfig, began: float) -> None:
    """Make one song, and its variants."""
    song = Song("", find(cfg.lyrics), cfg.style or (), cfg.style_text or (), cfg.duration, cfg.seed)
    for outputs in outputs_of(song, cfg):
        check_output(outputs.song, song.lyrics)
    device, files = pick_device(cfg.device), locate(cfg)
    cfg = resolve(cfg, files.preset)
    score = Arranger(files, cfg, device).score(song)         # the style encoder is gone with its arranger
    gc.collect()
    singer = Singer(files, device, DTYPES[cfg.dtype])
    names = ", ".join([*song.styles, *song.texts]) or ("ignored" if cfg.ignore_style else "the model's first")
    print(f"seed {cfg.seed}, style {names}, {len(score.words)} words in {score.duration_s:.2f} s, "
          f"on {device}")
    load_s = time.perf_counter() - began
    for i, outputs in enumerate(outputs_of(song, cfg)):
        seconds = {"load": load_s} | sing(singer, score, request_of(song, i, files, cfg), cfg, outputs, True)
        total = sum(seconds.values())
        print(", ".join(f"{name} {value:.1f} s" for name, value in seconds.items())
              + f"; {total / score.duration_s:.2f} s per second of song; {peak_gib(device)}")
        print(outputs.song.resolve())


def peak_gib(device: torch.device) -> str:
    """The most memory that this process has had, in words."""
    units_per_gib = 1024 ** 2 if sys.platform != "darwin" else 1024 ** 3
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_per_gib:.2f} GiB of memory at most"
    if device.type == "cuda":
        text += f", {torch.cuda.max_memory_allocated(device) / 1024 ** 3:.2f} GiB of the GPU's"
    return text


@contextlib.contextmanager
def reported(name: str, report: Report):
    """What goes wrong with one song is told with its id; the others are made nevertheless."""
    try:
        yield
    except (UserError, OSError, RuntimeError) as e:          # RuntimeError: a device without memory left
        text = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
        print(f'error: song "{name}": {text}', file=sys.stderr, flush=True)
        report.add(name, "failed", error=text)


def sing_many(cfg: SampleConfig) -> bool:
    """Make a manifest's songs, this process its share of them. Returns whether all are there now."""
    processes = Processes()
    device, files = pick_device(cfg.device, processes.local), locate(cfg)
    if device.type == "cpu":      # sums depend on the number of threads; songs must not on that of processes
        torch.set_num_threads(1)
    cfg, report, pending = resolve(cfg, files.preset), Report(cfg.out_dir, processes), []
    entries = read_manifest(cfg.manifest, cfg.batch_infer_num)
    report.begin(cfg)
    for i, (name, entry) in enumerate(entries):              # every process looks at all: they have to agree
        mine = i % processes.world == processes.rank
        with reported(name, report) if mine else contextlib.suppress(UserError, OSError):
            song = song_of(name, entry, cfg)
            jobs = [(request_of(song, k, files, cfg), o) for k, o in enumerate(outputs_of(song, cfg))]
            if not all(outputs.made(request) for request, outputs in jobs):
                pending.append((song, jobs))
            elif mine:
                report.add(name, "finished", jobs)
    processes.wait()
    arranger, scores = Arranger(files, cfg, device), []
    for song, jobs in pending[processes.rank::processes.world]:
        with reported(song.id, report):
            scores.append((arranger.score(song), jobs))
    del arranger                                             # and with it the style encoder
    gc.collect()
    singer = Singer(files, device, DTYPES[cfg.dtype]) if scores else None
    for score, jobs in scores:
        with reported(score.song.id, report):
            for request, outputs in jobs:
                seconds = sing(singer, score, request, cfg, outputs, processes.world == 1)
                print(f"{score.song.id}: {score.duration_s:.1f} s of song in {sum(seconds.values()):.1f} s: "
                      f"{outputs.song.resolve()}", flush=True)
            report.add(score.song.id, "made", jobs)
    songs = report.merge([name for name, _ in entries])
    processes.close()
    return all(song["status"] != "failed" for song in songs)


def main(argv: list[str] | None = None) -> None:
    """Make one song, or a manifest's."""
    began = time.perf_counter()
    cfg = parse(SampleConfig, __doc__.splitlines()[0], argv)
    if cfg.doctor:
        sys.exit(0 if doctor(cfg) else 1)
    check(cfg)
    if cfg.manifest is None:
        sing_one(cfg, began)
    elif not sing_many(cfg):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
