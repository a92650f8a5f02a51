"""Words -> a song that sings them at their times, in the style of a name, a recording or a text.

    python sample.py --lyrics examples/song.txt --style male --seed 7 --out my.mp3
    python sample.py --config my.mp3.json --out again.mp3
    python sample.py --edit my.mp3.json --lyrics new.txt --out new.mp3
    torchrun --nproc_per_node=8 sample.py --manifest songs.json --out-dir outputs

A guided tour. Begin with `sing_song`, at the end: it is the story of one song. `Prompts.make` turns
words into what the network reads, and `Model.sing` turns noise into sound. They call into four places:
lyrics/ (words get times and phonemes), style.py (a style becomes a vector), sampler.py (steps from noise to
latents) and vae.py (latents become sound). Then songs/ writes the files, chooses between takes, sings all
songs of a manifest, and sings a part of a finished song again.
"""

import dataclasses
import functools
import gc
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

from config import Guidance, Preset, SampleConfig, UserError
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
from songs.asked import resolve, validate
from songs.before import Before, before_of
from songs.edit import Edit, carried, continued, edited
from songs.files import check_account, check_outputs, check_plan, lyrics_in, outputs_of
from songs.manifest import LONGEST_S, Song
from songs.splice import sing_again, told
from songs.takes import between, chooser_of, jobs_of, sing_manifest, sing_takes
from songs.tunes import noise_of, repeated, repeats
from style import Crop, default_style, encoder_of, negative_vector, style_vector
from support.audio import master
from support.files import find
from support.hub import ModelFiles, doctor, fetch, locate
from support.processes import Processes, peak_memory, pick_device
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
    style: Tensor                    # (E,)
    windows: list[tuple[int, dict[str, Tensor]]]         # one, or several of a long song; see data.windows
    negative: Tensor                 # (1, E) negative style
    begin: int                       # sample of the song where a part begins; else 0
    duration_s: float                # of what is sung
    repeats: list[tuple[int, int, int]]          # which lines are sung on an earlier one's tune
    edit: Edit | None = None         # what is sung again of a song that is kept

    @property
    def title(self) -> str:
        """The song's title. It does not depend on the name of the output: equal songs are equal files."""
        return self.lyrics.title or self.song.id or self.song.lyrics.stem.removesuffix(".plan")


@dataclasses.dataclass(frozen=True)
class Take:
    """A song as it was sung."""
    latents: Tensor                  # (T, C)
    hz: Tensor                       # (n,) the codec's pitch, if it needs one
    wave: Tensor                     # (W, N), as long as it was sampled
    seconds: dict[str, float]        # that each stage took
    about: dict                      # for the account


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

    def make(self, song: Song, before: Before | None = None) -> Prompt:
        """Make a prompt, of an edit if there is a song before.

        Raises: UserError for anything wrong with words, style or duration.
        """
        cfg, preset, path = self.cfg, self.preset, song.lyrics

        # Words, and their times: words without get some from the planner.
        written, again = lyrics_in(path, (cfg.from_, cfg.to) != (None, None))
        given = written.sung() if before is None else carried(
            written.sung(), before, cfg, self.frame_hz, self.reader)
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
        prompt = Prompt(dataclasses.replace(song, duration_s=duration_s), part, lyrics, others,
                        None if given.timed else timed, style, found, self.negative, begin, end_s - begin_s,
                        again)
        return prompt if before is None else edited(prompt, before, cfg, preset, self.table)


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

    def latents(self, prompt: Prompt, seed: int, cfg: SampleConfig, bar: Callable = tqdm) -> Tensor:
        """A song's latents (1, T, C), on the CPU."""
        # The noise comes from the CPU and from the song's own seed: it is the same on any device.
        first, (last, batch) = prompt.begin // self.preset.codec.hop, prompt.windows[-1]
        end = first + last + batch["phonemes"].shape[1] // CELLS_PER_FRAME
        noise = repeated(noise_of(seed, end, self.preset.model), prompt.repeats)[:, first:]
        return self.sampled(prompt, prompt.windows, noise, cfg, bar)

    def sampled(self, prompt: Prompt, windows: list[tuple[int, dict[str, Tensor]]], noise: Tensor,
                cfg: SampleConfig, bar: Callable, keep: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Steps lead from noise (1, T, C) to latents (1, T, C), on the CPU. Args: as for `sample_windows`."""
        found = [(start, {k: v.to(self.device) for k, v in batch.items()}) for start, batch in windows]
        guidance = Guidance(cfg.guidance, cfg.guidance_weights or (), cfg.guidance_range)
        return sample_windows(
            self.network, found, noise.to(self.device), time_grid(cfg.steps, cfg.sway), guidance,
            prompt.negative.to(self.device), cfg.solver, functools.partial(bar, desc="sampling", unit="step"),
            keep and tuple(tensor.to(self.device) for tensor in keep)).cpu()

    def sing(self, prompt: Prompt, seed: int, cfg: SampleConfig, bar: Callable) -> Take:
        """Sing a prompt: noise, steps, sound, loudness. Args: bar, which wraps the steps as tqdm does."""
        began, rate_hz = time.perf_counter(), self.preset.codec.sample_rate_hz
        if prompt.edit is not None:
            latents, hz, wave, about = sing_again(self, prompt, seed, cfg, bar)
            return Take(latents, hz, wave, {"sing": time.perf_counter() - began}, about)
        latents = self.latents(prompt, seed, cfg, bar)
        sampled = time.perf_counter()
        wave = self.codec.decode(latents, functools.partial(bar, desc="decoding", unit="part"))[0]    # (W, N)
        wave = wave[:, prompt.begin % self.preset.codec.hop:]                             # amid a frame
        wave, level = master(wave, rate_hz, round(prompt.duration_s * rate_hz))
        seconds = {"sample": sampled - began, "decode": time.perf_counter() - sampled}
        return Take(latents[0], self.codec.pitch(latents)[0], wave, seconds, {"level": level})


def main(argv: list[str] | None = None) -> None:
    """Sing one song; with --manifest, many."""
    cfg = parse(SampleConfig, __doc__, argv)
    validate(cfg)
    if cfg.doctor:
        sys.exit(0 if doctor(cfg) else 1)
    processes = Processes()
    if cfg.manifest:
        songs = sing_manifest(cfg, processes, (Prompts, Model))
        processes.close()
        if any(song["status"] == "failed" for song in songs):
            sys.exit(1)
        return
    if processes.world > 1:
        raise UserError("several processes make the songs of a --manifest; one song needs one")
    sing_song(cfg)


def sing_song(cfg: SampleConfig, bar: Callable = tqdm, load: Callable | None = None,
              say: Callable[[object], None] = print) -> Path:
    """Sing one song, an edit of one, variants or the best of several takes; the account of the last.

    Args: bar, which wraps lists of steps as tqdm does; load, which makes a Model; say, which is given lines
        about the song.
    Raises: UserError for a mistake, before any work is done if it can be told.
    """
    # What is asked for, and where it goes.
    began = time.perf_counter()
    song = Song("", find(cfg.lyrics), cfg.style or (), cfg.style_text or (), cfg.duration, cfg.seed)
    check_outputs(song, cfg)
    device, files = pick_device(cfg.device), locate(cfg)
    cfg = resolve(cfg, files.preset, device)
    torch.set_num_threads(cfg.threads)
    if not song.styles and not song.texts and not cfg.ignore_style:
        song = dataclasses.replace(song, styles=default_style(files.styles))
    before = before_of(song, cfg, lambda cfg: sing_song(cfg, bar, load, lambda line: None))
    if before is not None:
        song = continued(song, before, cfg, files.preset)
    scorer = chooser_of(cfg, device) if cfg.best_of > 1 else None

    # Words, times, phonemes, style. The style encoder is gone before the network comes.
    jobs = jobs_of(song, files, cfg, before=before and before.account)
    check_account(song, jobs[0][0], cfg)
    prompt = Prompts(files, cfg, device).make(song, before)
    gc.collect()
    for outputs in outputs_of(song, cfg):
        check_plan(outputs, prompt.plan, song.lyrics)

    # Noise, steps, sound, files: once for each variant or take.
    model = (load or Model)(files, device, cfg.dtype, cfg.compile)
    names = ", ".join([*song.styles, *song.texts]) or "ignored"
    say(f"seed {cfg.seed}, style {names}, {len(prompt.lyrics.words)} words in {prompt.duration_s:.2f} s, "
        f"on {device}")
    load_s = time.perf_counter() - began
    for request, outputs, stages in sing_takes(model, prompt, jobs, cfg, scorer, bar):
        if scorer:
            say(f"the best of {cfg.best_of}: seed {request['seed']}")
        else:
            stages = {"load": load_s} | stages
            say(", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items())
                + f"; {sum(stages.values()) / prompt.duration_s:.2f} s per second of song; "
                + peak_memory(device))
        if prompt.edit is not None:
            say(told(outputs))
        say(outputs.song.resolve())
    return outputs.account


if __name__ == "__main__":
    run(main)
