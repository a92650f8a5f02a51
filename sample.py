"""Words -> a song that sings them at their times, in the style of a name, a recording or a text.

    python sample.py --lyrics examples/song.txt --style male --seed 7 --out my.mp3
    python sample.py --config my.mp3.json --out again.mp3
    torchrun --nproc_per_node=8 sample.py --manifest songs.json --out-dir outputs

A guided tour. Begin with `main`, below the two classes: it is the story of one song. `Prompts.make` turns
words into what the network reads, and `Model.sing` turns noise into sound. They call into four places:
lyrics/ (words get times and phonemes), style.py (a style becomes a vector), sampler.py (steps from noise to
latents) and vae.py (latents become sound). Then songs/ writes the files, chooses between takes, and sings
all songs of a manifest.
"""

import dataclasses
import functools
import gc
import importlib.util
import math
import os
import shutil
import sys
import time

from config import FAST, GUIDANCE_WEIGHTS, Guidance, Preset, SampleConfig, UserError
from support.cli import first, parse, run

if __name__ == "__main__":
    first(lambda: parse(SampleConfig, __doc__))

import torch
from torch import Tensor
from tqdm import tqdm

from data import windows
from lyrics.check import pronounce, tell
from lyrics.plan import TAIL_S, PlanSettings, hundredths, planned
from lyrics.pronounce import reader
from lyrics.timing import Lyrics
from lyrics.voices import choose
from model import load_model
from phonemes import CELLS_PER_FRAME, SymbolTable
from sampler import sample_windows, time_grid
from songs.files import check_account, check_outputs, check_plan, lyrics_in, outputs_of
from songs.manifest import LONGEST_S, Song
from songs.takes import between, chooser_of, jobs_of, sing_manifest, sing_takes
from songs.tunes import noise_of, repeated, repeats
from style import Crop, default_style, encoder_of, negative_vector, style_vector
from support.audio import master
from support.files import find
from support.hub import ModelFiles, doctor, fetch, locate
from support.processes import Processes, peak_memory, pick_device, pick_dtype
from vae import make_codec

SHORTEST_S = 0.01              # song


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A song as the network reads it."""
    song: Song                       # with its duration
    lyrics: Lyrics                   # with times and phonemes; of a part, from its own start on
    whole: Lyrics                    # of a part, those of the whole song
    others: Lyrics                   # the lines that other voices would sing
    plan: Lyrics | None              # of all, with the times that they were given here, if they had none
    windows: list[tuple[int, dict[str, Tensor]]]         # one, or several of a long song; see data.windows
    negative: Tensor                 # (1, E) negative style
    begin: int                       # sample of the song where a part begins; else 0
    duration_s: float                # of what is sung
    repeats: list[tuple[int, int, int]]          # which lines are sung on an earlier one's tune

    @property
    def title(self) -> str:
        """The song's title. It does not depend on the name of the output: equal songs are equal files."""
        return self.lyrics.title or self.song.id or self.song.lyrics.stem.removesuffix(".plan")


@dataclasses.dataclass(frozen=True)
class Take:
    """A song as it was sung."""
    latents: Tensor                  # (T, C)
    wave: Tensor                     # (W, N), as long as it was sampled
    seconds: dict[str, float]        # that each stage took


class Prompts:
    """Turns songs into prompts, before the model is loaded.

    Raises: UserError if the phonemizer or the negative style is missing or does not fit.
    """

    def __init__(self, files: ModelFiles, cfg: SampleConfig, device: torch.device):
        self.files, self.cfg, self.device = files, cfg, device
        self.preset = dataclasses.replace(files.preset, trim=cfg.frames == "song")
        self.reader = reader(files.phonemizer, cfg.lexicon)
        self.table = SymbolTable(self.reader.symbols)
        self.frame_hz = self.preset.codec.sample_rate_hz / self.preset.codec.hop
        self.negative = negative_vector(cfg.negative_style, self.preset.model.cond_dim,
                                        lambda: fetch("vocal", cfg.offline))
        self.encoder = functools.cache(lambda: encoder_of(cfg, self.preset, device, f"--model {cfg.model}"))

    def make(self, song: Song) -> Prompt:
        """Make a prompt. Raises: UserError for anything wrong with words, style or duration."""
        cfg, preset, path = self.cfg, self.preset, song.lyrics

        # Words, and their times: words without get some from the planner.
        written, again = lyrics_in(path, (cfg.from_, cfg.to) != (None, None))
        given = written.sung()
        if not given.words and song.duration_s is None:
            raise UserError(f"{path}: has no words; say how long the song is with --duration")
        timed = given if given.timed else planned(given, self.reader, PlanSettings(
            bpm=cfg.bpm, duration=song.duration_s), path).changed(hundredths)
        sung, others = choose(timed, cfg.voice)
        tell(path, written, others)

        # The song lasts as long as asked for, or a little longer than its words.
        window_s = preset.model.max_frames / self.frame_hz
        last_s = max((word.end for word in sung.words), default=0.0)
        duration_s = song.duration_s
        if duration_s is None:                               # a rest is not worth another window
            duration_s = min(last_s + TAIL_S, window_s if last_s <= window_s else math.inf)
        if not SHORTEST_S <= duration_s <= LONGEST_S:
            raise UserError(f"{path}: a song of {duration_s:.2f} s; "
                            f"expected {SHORTEST_S} to {LONGEST_S:.0f} s")
        begin_s, end_s = cfg.from_ or 0.0, duration_s if cfg.to is None else cfg.to
        if not 0 <= begin_s <= begin_s + SHORTEST_S <= end_s <= duration_s:
            raise UserError(f"--from {begin_s} --to {end_s}: expected seconds from 0 to {duration_s}, the "
                            f"song's end, with {SHORTEST_S} s or more between them")

        # Each word gets its phonemes; a word that cannot be sung ends the song here.
        lyrics = pronounce(sung, self.reader, self.table, CELLS_PER_FRAME * self.frame_hz, duration_s, path)

        # Names, sound files and texts become one style vector (E,).
        crop = Crop(cfg.style_start, cfg.num_style_secs, song.seed if cfg.random_crop_style else None)
        style = self.negative[0] if cfg.ignore_style else style_vector(
            song.styles, song.texts, crop, self.files.styles, preset.model.cond_dim, self.encoder)

        # Each window's batch: phonemes on the frame grid, where in the song and how long it is, its style.
        begin = round(begin_s * preset.codec.sample_rate_hz)
        part = begin // preset.codec.hop, frames_of(end_s, preset)
        words = [(w.start, w.end, w.phoneme, [*map(dataclasses.astuple, w.phones)]) for w in lyrics.words]
        found = windows(words, style, frames_of(duration_s, preset), part, preset, self.table)
        if again is None:
            again = repeats(lyrics, self.frame_hz) if preset.repeats else []
        part = lyrics if (begin_s, end_s) == (0, duration_s) else between(lyrics, begin_s, end_s)
        return Prompt(dataclasses.replace(song, duration_s=duration_s), part, lyrics, others,
                      None if given.timed else timed, found, self.negative, begin, end_s - begin_s, again)


def frames_of(duration_s: float, preset: Preset) -> int:
    """Latent frames of a song, without padding."""
    return math.ceil(duration_s * preset.codec.sample_rate_hz / preset.codec.hop)


class Model:
    """A network and its codec.

    Args: device of both; dtype of the network, and whether to compile its blocks. Sound is computed in
        float32: in bfloat16 it gets noisy.
    Raises: UserError if a file is missing or does not fit.
    """

    def __init__(self, files: ModelFiles, device: torch.device, dtype: str = "float32",
                 compile: bool = False):
        self.device, self.preset = device, files.preset
        self.network = load_model(files.weights, self.preset.model, device, getattr(torch, dtype))
        for block in self.network.transformer_blocks if compile else ():
            block.compile(dynamic=True)          # once for all lengths
        self.codec = make_codec(self.preset.codec, files.codec, device, trust=files.trust_vae)

    def latents(self, prompt: Prompt, seed: int, cfg: SampleConfig, progress=lambda steps: steps) -> Tensor:
        """A song's latents (1, T, C), on the CPU."""
        # The noise comes from the CPU and from the song's own seed: it is the same on any device.
        first, (last, batch) = prompt.begin // self.preset.codec.hop, prompt.windows[-1]
        end = first + last + batch["phonemes"].shape[1] // CELLS_PER_FRAME
        noise = repeated(noise_of(seed, end, self.preset.model), prompt.repeats)[:, first:].to(self.device)
        # Steps lead from noise to latents.
        found = [(start, {k: v.to(self.device) for k, v in batch.items()}) for start, batch in prompt.windows]
        guidance = Guidance(cfg.guidance, cfg.guidance_weights or (), cfg.guidance_range)
        return sample_windows(self.network, found, noise, time_grid(cfg.steps, cfg.sway), guidance,
                              prompt.negative.to(self.device), cfg.solver, progress).cpu()

    def sing(self, prompt: Prompt, seed: int, cfg: SampleConfig, bars: bool) -> Take:
        """Sing a prompt: noise, steps, sound, loudness. Args: bars, whether to show progress."""
        began, rate_hz = time.perf_counter(), self.preset.codec.sample_rate_hz
        latents = self.latents(prompt, seed, cfg, functools.partial(
            tqdm, desc="sampling", unit="step", disable=not bars))
        sampled = time.perf_counter()
        wave = self.codec.decode(latents, functools.partial(
            tqdm, desc="decoding", unit="part", disable=not bars))[0]                     # (W, N)
        wave = wave[:, prompt.begin % self.preset.codec.hop:]                             # amid a frame
        wave = master(wave, rate_hz, round(prompt.duration_s * rate_hz))
        return Take(latents[0], wave, {"sample": sampled - began, "decode": time.perf_counter() - sampled})


def main(argv: list[str] | None = None) -> None:
    """Sing one song; with --manifest, many."""
    began = time.perf_counter()
    cfg = parse(SampleConfig, __doc__, argv)
    validate(cfg)
    if cfg.doctor:
        sys.exit(0 if doctor(cfg) else 1)
    processes = Processes()
    if cfg.manifest:
        songs = sing_manifest(cfg, processes, (Prompts, Model, resolve))
        processes.close()
        if any(song["status"] == "failed" for song in songs):
            sys.exit(1)
        return
    if processes.world > 1:
        raise UserError("several processes make the songs of a --manifest; one song needs one")

    # What is asked for, and where it goes: a mistake is found before any work is done.
    song = Song("", find(cfg.lyrics), cfg.style or (), cfg.style_text or (), cfg.duration, cfg.seed)
    check_outputs(song, cfg)
    device, files = pick_device(cfg.device), locate(cfg)
    cfg = resolve(cfg, files.preset, device)
    torch.set_num_threads(cfg.threads)
    if not song.styles and not song.texts and not cfg.ignore_style:
        song = dataclasses.replace(song, styles=default_style(files.styles))
    scorer = chooser_of(cfg, device) if cfg.best_of > 1 else None

    # Words, times, phonemes, style. The style encoder is gone before the network comes.
    jobs = jobs_of(song, files, cfg)
    check_account(song, jobs[0][0], cfg.force)
    prompt = Prompts(files, cfg, device).make(song)
    gc.collect()
    for outputs in outputs_of(song, cfg):
        check_plan(outputs, prompt.plan, song.lyrics)

    # Noise, steps, sound, files: once for each variant or take.
    model = Model(files, device, cfg.dtype, cfg.compile)
    names = ", ".join([*song.styles, *song.texts]) or "ignored"
    print(f"seed {cfg.seed}, style {names}, {len(prompt.lyrics.words)} words in {prompt.duration_s:.2f} s, "
          f"on {device}")
    load_s = time.perf_counter() - began
    for request, outputs, stages in sing_takes(model, prompt, jobs, cfg, scorer):
        if scorer:
            print(f"the best of {cfg.best_of}: seed {request['seed']}")
        else:
            stages = {"load": load_s} | stages
            print(", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items())
                  + f"; {sum(stages.values()) / prompt.duration_s:.2f} s per second of song; "
                  + peak_memory(device))
        print(outputs.song.resolve())


def validate(cfg: SampleConfig) -> None:
    """Raise UserError for settings that do not go together, or libraries that are missing."""
    for library in ("mutagen", "PIL"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"{library} is not installed: pip install -r requirements.txt")
    if cfg.compile and shutil.which(os.environ.get("CXX", "c++")) is None:
        raise UserError("--compile true: needs a C++ compiler: g++, clang++, or what CXX names")
    most, manifest = max(cfg.batch_infer_num, cfg.best_of), cfg.manifest is not None
    if cfg.seed > 2 ** 63 - most:
        raise UserError(f"--seed {cfg.seed}: expected 0 to {2 ** 63 - most}, for {most} songs with their own")
    if cfg.best_of > 1 and cfg.batch_infer_num > 1:
        raise UserError(f"--best-of {cfg.best_of}: chooses one song; leave out --batch-infer-num")
    if cfg.random_crop_style and cfg.style_start:
        raise UserError(f"--random-crop-style begins anywhere; leave out --style-start {cfg.style_start}")
    if not cfg.out.name:
        raise UserError(f"--out {cfg.out}: expected a file's name")
    if manifest != (cfg.out_dir is not None):
        raise UserError("--manifest and --out-dir: one needs the other")
    if manifest and (cfg.lyrics, cfg.out) != (SampleConfig.lyrics, SampleConfig.out):
        raise UserError("--manifest names the lyrics, --out-dir the songs; leave out --lyrics and --out")
    if manifest and (cfg.from_, cfg.to) != (None, None):
        raise UserError("--from and --to: a part of one song; leave them out with --manifest")
    if cfg.format and not manifest:
        raise UserError(f"--format {cfg.format}: needs --manifest; the ending of --out is one song's format")
    if cfg.use_prompt_style and not manifest:
        raise UserError("--use-prompt-style: needs --manifest; one song's style in words is --style-text")
    if cfg.ignore_style and (cfg.style or cfg.style_text or cfg.use_prompt_style):
        raise UserError("--ignore-style: sings without style; leave out the style that is given, too")


def resolve(cfg: SampleConfig, preset: Preset, device: torch.device) -> SampleConfig:
    """The settings, with the model's values where none were given, and the type that `auto` means here.

    Raises: UserError for guidance weights or a range that do not fit.
    """
    def given(value: object, default: object) -> object:
        return default if value is None else value

    mode = given(cfg.guidance, preset.guidance.mode)
    needed = GUIDANCE_WEIGHTS[mode]
    weights = given(cfg.guidance_weights, preset.guidance.weights if needed else ())
    bounds = given(cfg.guidance_range, preset.guidance.range)
    if len(weights) != needed or not all(map(math.isfinite, weights)):
        raise UserError(f"--guidance {mode} takes {needed} finite weights, not {weights}"
                        + "; these are the model's: give --guidance-weights" * (not cfg.guidance_weights))
    if len(bounds) != 2 or not bounds[0] <= bounds[1]:
        raise UserError(f"--guidance-range {bounds}: expected two flow times, the lower one first")
    sampler = FAST if cfg.fast else {name: getattr(preset, name) for name in FAST}
    return dataclasses.replace(
        cfg, **{name: given(getattr(cfg, name), value) for name, value in sampler.items()}, fast=False,
        threads=given(cfg.threads, torch.get_num_threads()), guidance=mode, guidance_range=bounds,
        guidance_weights=weights or None, negative_style=given(cfg.negative_style, preset.negative_style),
        frames=given(cfg.frames, "song" if preset.trim else "window"), dtype=pick_dtype(cfg.dtype, device),
        recogniser=given(cfg.recogniser, "ear" if preset.codec.kind == "sung" else "wav2vec2"))


if __name__ == "__main__":
    run(main)
