"""Words -> a song: `python sample.py --lyrics FILE --style female --out song.wav`.

Read `sing_one`, then `Arranger` (words and style become what the network reads) and `Singer` (the network
turns noise into latents, vae.py turns latents into sound); `sing_many` does the same for a manifest, by
torchrun on as many processes as you like. hub.py finds the files, audio.py sets the loudness.
"""

import contextlib
import dataclasses
import functools
import gc
import importlib.util
import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import formats
import karaoke
from audio import FORMATS, READABLE, master, write_wave
from cli import find, parse, pick_device, read_json, read_text, replacing, run
from config import GUIDANCE_WEIGHTS, EvaluateConfig, Guidance, PlanSettings, Preset, SampleConfig, UserError
from data import collate, conditions
from evaluate import scorer_of
from hub import ASSETS, ModelFiles, doctor, encoder_folders, fetch, locate, sha256
from lyrics import Lyrics, Word, check, pronounce, reader
from manifest import Outputs, Report, Song, outputs_of, read_manifest, song_of
from model import load_model, sample, time_grid
from phonemes import CELLS_PER_FRAME, SymbolTable
from plan import TAIL_S
from plan import plan as planned
from processes import Processes
from style import Crop, StyleEncoder, default_style, negative_vector, style_vector, weighted
from vae import make_codec

SHORTEST_S = 0.01              # song
LONGEST_NAME = 240             # bytes; file systems allow 255, temporary names take some
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Score:
    """A song as the network reads it."""
    song: Song
    lyrics: Lyrics                   # with times and phonemes
    plan: Lyrics | None              # with the times that they were given here, as it may be edited
    batch: dict[str, Tensor]         # of one song; see data.py
    negative: Tensor                 # (1, E) negative style
    duration_s: float

    @property
    def title(self) -> str:
        """What it is called: whatever its file's name will be, so that equal songs are equal files."""
        return self.lyrics.title or self.song.id or self.song.lyrics.stem.removesuffix(".plan")


class Arranger:
    """Makes scores of songs: reads and pronounces the words, finds the styles. Needs no network yet.

    Raises: UserError if the phonemizer or the negative style is missing or does not fit.
    """

    def __init__(self, files: ModelFiles, cfg: SampleConfig, device: torch.device):
        self.files, self.cfg, self.device, self.preset = files, cfg, device, files.preset
        self.phonemizer = reader(files.phonemizer, cfg.lexicon)
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
        given = formats.read(song.lyrics).sung()
        if not given.words and song.duration_s is None:
            raise UserError(f"{song.lyrics}: has no words; say how long the song is with --duration")
        timed = given
        if not given.timed:
            settings = PlanSettings(bpm=self.cfg.bpm, duration=song.duration_s)
            try:
                timed = planned(given, self.phonemizer, settings).changed(hundredths)
            except UserError as e:
                raise UserError(f"{song.lyrics}: {e}") from None
        last_s = max((word.end for word in timed.words), default=0.0)
        duration_s = song.duration_s
        if duration_s is None:
            duration_s = max(last_s, min(last_s + TAIL_S, self.longest_s))
        if not SHORTEST_S <= duration_s <= self.longest_s:
            advice = "" if given.timed else "; leave out lines, or raise --bpm"
            raise UserError(f"{song.lyrics}: a song of {duration_s:.2f} s; this model sings {SHORTEST_S} to "
                            f"{self.longest_s:.2f} s{advice}")
        self.lint(timed, duration_s, song.lyrics)
        lyrics = pronounce(timed, self.phonemizer, self.table, song.lyrics)
        return self.lay(song, lyrics, duration_s, plan=None if given.timed else timed)

    def lint(self, lyrics: Lyrics, duration_s: float, path: Path) -> None:
        """Print the warnings of lyrics.check. Raises: UserError for its errors."""
        problems = check(lyrics, self.phonemizer, self.table, CELLS_PER_FRAME * self.frame_hz, duration_s)
        for problem in problems:
            if problem.level == "warning":
                print(f"warning: {path}: {problem.where}: {problem.text}", file=sys.stderr)
        errors = [problem for problem in problems if problem.level == "error"]
        if errors:
            more = f"; and {len(errors) - 1} more: python lyrics.py check" if len(errors) > 1 else ""
            raise UserError(f"{path}: {errors[0].where}: {errors[0].text}{more}")

    def lay(self, song: Song, lyrics: Lyrics, duration_s: float, plan: Lyrics | None = None) -> Score:
        """Lay words, which have their phonemes, on the grid, and find the style. Raises: UserError."""
        style = self.negative[0] if self.cfg.ignore_style else style_vector(
            song.styles, song.texts, crop_of(self.cfg, song.seed), self.files.styles,
            self.preset.model.cond_dim, lambda: self.encoder)
        frames = frames_of(duration_s, self.preset)
        spoken = [(w.start, w.end, w.phoneme, [(p.text, p.start, p.end) for p in w.phones])
                  for w in lyrics.words]
        item, _ = conditions(spoken, frames, 0, self.preset, self.table)
        batch = collate([item | {"style": style, "frames": frames}], None, self.preset)
        return Score(song, lyrics, plan, batch, self.negative, duration_s)


def frames_of(duration_s: float, preset: Preset) -> int:
    """Latent frames of a song, without those that pad it."""
    return min(math.ceil(duration_s * preset.codec.sample_rate_hz / preset.codec.hop),
               preset.model.max_frames)


def hundredths(word: Word) -> Word:
    """A word at times that a plan's file can hold, so that the file sings the same song."""
    start, end = round(word.start, 2), round(word.end, 2)
    return word if (start, end) == (word.start, word.end) else dataclasses.replace(
        word, start=start, end=end, phones=(), syllables=())


class Singer:
    """Network and codec of a model.

    Args: device of both; dtype of the network. Sound is computed in float32: in bfloat16 it gets noisy.
    Raises: UserError if a file is missing or does not fit.
    """

    def __init__(self, files: ModelFiles, device: torch.device, dtype: torch.dtype = torch.float32):
        self.device, self.preset = device, files.preset
        self.model = load_model(files.weights, self.preset.model, device, dtype)
        self.codec = make_codec(self.preset.codec, files.codec, device)

    def latents(self, score: Score, seed: int, cfg: SampleConfig, progress=lambda steps: steps) -> Tensor:
        """Sing one song's latents (1, T, C). Its noise comes from the CPU and its own seed, on any device."""
        rng = torch.Generator().manual_seed(seed)
        noise = torch.randn(1, self.preset.model.max_frames, self.preset.model.mel_dim, generator=rng)
        noise = noise[:, :score.batch["phonemes"].shape[1] // CELLS_PER_FRAME].to(self.device)
        batch = {k: v.to(self.device) for k, v in score.batch.items()}
        guidance = Guidance(cfg.guidance, cfg.guidance_weights or (), cfg.guidance_range)
        return sample(self.model, batch, noise, time_grid(cfg.steps, cfg.sway), guidance,
                      score.negative.to(self.device), progress).cpu()


def check_output(path: Path, inputs: list[Path]) -> None:
    """Raise UserError, before any work is done, if a song cannot be written to path, or is an input."""
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"--out {path}: unknown ending; expected {', '.join(FORMATS)}")
    about, page, picture = Outputs(path).account, Outputs(path).page, Outputs(path).picture
    if len(os.fsencode(about.name)) > LONGEST_NAME:
        raise UserError(f"--out {path}: a name of more than {LONGEST_NAME - len('.json')} bytes")
    if not path.parent.is_dir():
        raise UserError(f"--out {path}: there is no folder {path.parent}")
    for file in (path, about, page, picture, Outputs(path).plan):
        if file.is_dir():
            raise UserError(f"--out {path}: {file} is a folder")
        for used in inputs if file != Outputs(path).plan else ():        # a plan may be the lyrics
            if file.exists() and os.path.exists(used) and file.samefile(used):
                raise UserError(f"--out {path}: would overwrite {used}")
        if not os.access(path.parent, os.W_OK) or file.exists() and not os.access(file, os.W_OK):
            raise UserError(f"--out {path}: no permission to write")


def crop_of(cfg: SampleConfig, seed: int) -> Crop:
    """Which part of a sound file a style is taken from. Raises: UserError for a part that cannot be."""
    return Crop(cfg.style_start, cfg.num_style_secs, seed if cfg.random_crop_style else None)


def validate(cfg: SampleConfig) -> None:
    """Raise UserError for settings that are out of their range or do not go together."""
    if not 0 <= cfg.seed < 2 ** 63 - max(cfg.batch_infer_num, cfg.best_of, 0):
        raise UserError(f"--seed {cfg.seed}: expected 0 to {2 ** 63 - 1}, of all variants")
    if cfg.batch_infer_num < 1:
        raise UserError(f"--batch-infer-num {cfg.batch_infer_num}: expected 1 or more variants")
    if cfg.best_of < 1 or cfg.best_of > 1 < cfg.batch_infer_num:
        raise UserError(f"--best-of {cfg.best_of}: expected 1 or more candidates, and no --batch-infer-num")
    crop_of(cfg, cfg.seed)
    if cfg.sway is not None and not -1 <= cfg.sway <= 0:
        raise UserError(f"--sway {cfg.sway}: expected -1 to 0")
    for library in ("mutagen", "PIL"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"{library} is not installed: pip install -r requirements.txt")
    if cfg.dtype not in DTYPES:
        raise UserError(f"--dtype {cfg.dtype}: expected {' or '.join(DTYPES)}")
    if cfg.format is not None and (cfg.manifest is None or f".{cfg.format}" not in FORMATS):
        raise UserError(f"--format {cfg.format}: expected {', '.join(f[1:] for f in FORMATS)} and --manifest")
    if (cfg.manifest is None) != (cfg.out_dir is None):
        raise UserError("--manifest and --out-dir: one needs the other")
    if not cfg.out.name:
        raise UserError(f"--out {cfg.out}: expected a file's name")
    if cfg.manifest and (cfg.lyrics, cfg.out) != (SampleConfig.lyrics, SampleConfig.out):
        raise UserError("--manifest names the lyrics, --out-dir the songs; leave out --lyrics and --out")
    if cfg.use_prompt_style and cfg.manifest is None:
        raise UserError("--use-prompt-style: needs --manifest; one song's style in words is --style-text")
    if cfg.ignore_style and (cfg.style or cfg.style_text or cfg.use_prompt_style):
        raise UserError("--ignore-style: sings without style; leave out the style that is given, too")


def resolve(cfg: SampleConfig, preset: Preset) -> SampleConfig:
    """The settings with the model's values where none were given.

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
    recogniser = cfg.recogniser or ("ear" if preset.codec.kind == "mel" else "wav2vec2")
    return dataclasses.replace(cfg, steps=steps, guidance=mode, guidance_weights=weights or None,
                               guidance_range=bounds, negative_style=negative, recogniser=recogniser)


def request_of(song: Song, variant: int, files: ModelFiles, cfg: SampleConfig) -> dict:
    """All that decides how a variant of a song sounds, as JSON: equal requests make equal songs.

    Files count by what is in them, not by their names.
    """
    settings = ["bpm", "steps", "guidance", "guidance_weights", "guidance_range", "sway", "ignore_style",
                "dtype"]
    parts = {"lyrics": song.lyrics, "lexicon": cfg.lexicon, "weights": files.weights,
             "phonemizer": files.phonemizer, "codec": files.codec, "styles": files.styles}
    styles = [weighted(name, os.path.isfile) for name in song.styles]
    sound = any(Path(name).suffix.lower() in READABLE for name, _ in styles)
    if sound:
        settings += ["num_style_secs", "style_start", "random_crop_style"]
    if (sound or song.texts) and files.preset.style_encoder != "none":
        parts["style_encoder"] = encoder_folders(cfg)[0] / ASSETS["mulan"].file
    def content(name: str) -> str:
        return sha256(Path(name)) if os.path.isfile(name) else name
    # What of the preset is not among the settings.
    preset = dataclasses.replace(files.preset, guidance=None, steps=0, negative_style="")
    return {"seed": song.seed + variant, "duration": song.duration_s,
            "style": [[content(name), weight] for name, weight in styles], "style_text": song.texts,
            "negative_style": content(cfg.negative_style),
            **{name: getattr(cfg, name) for name in settings}, "preset": dataclasses.asdict(preset),
            "sha256": {part: sha256(path) for part, path in parts.items() if path}}


def keep_edits(outputs: Outputs, plan: str | None) -> None:
    """Raise UserError if a plan would be written over one that was changed since it was made."""
    if plan is None or not outputs.plan.exists():
        return
    try:
        made = read_json(outputs.account).get("plan")
    except (UserError, AttributeError):                      # no account, or none of ours
        made = None
    if read_text(outputs.plan) not in (plan, made):
        raise UserError(f"{outputs.plan}: was changed; sing it with --lyrics {outputs.plan}, or move it away")


def sidecar(score: Score, request: dict, cfg: SampleConfig, outputs: Outputs, **more: object) -> str:
    """The account of a song: everything needed to remake it; `--lyrics` and `--config` take it, too."""
    song = score.song
    settings = dataclasses.replace(
        cfg, lyrics=song.lyrics, style=song.styles or None, style_text=song.texts or None,
        duration=score.duration_s, seed=request["seed"], out=outputs.song, batch_infer_num=1, best_of=1,
        manifest=None, out_dir=None, format=None, use_prompt_style=False)
    lyrics = dataclasses.replace(score.lyrics, title=score.title)
    plain = lyrics.changed(lambda word: dataclasses.replace(word, phoneme=None))         # easier to read
    return json.dumps(json.loads(formats.write(plain, "jam")) | {
        "word": [formats.word_json(word) for word in lyrics.words],
        "id": song.id, "request": request, "settings": dataclasses.asdict(settings),
        "style": score.batch["style"][0].tolist(),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__}, **more,
    }, default=str, ensure_ascii=False, indent=1)


@dataclass(frozen=True)
class Performance:
    """What was sung."""
    latents: Tensor                  # (T, C)
    wave: Tensor                     # (W, N), as long as it was sampled
    seconds: dict[str, float]        # that each stage took


def perform(singer: Singer, score: Score, seed: int, cfg: SampleConfig, bars: bool) -> Performance:
    """Sing one variant of a song."""
    def bar(name, unit):
        return lambda steps: tqdm(steps, name, unit=unit, disable=not bars)
    rate_hz, began = singer.preset.codec.sample_rate_hz, time.perf_counter()
    latents = singer.latents(score, seed, cfg, bar("sampling", "step"))
    sampled = time.perf_counter()
    samples = round(score.duration_s * rate_hz)
    wave = master(singer.codec.decode(latents, bar("decoding", "part"))[0], rate_hz, samples)      # (W, N)
    return Performance(latents[0], wave,
                       {"sample": sampled - began, "decode": time.perf_counter() - sampled})


def plan_of(score: Score) -> str | None:
    """The plan's file, of a song that was planned here."""
    return formats.write(score.plan, "lrc") if score.plan else None


def write(sung: Performance, score: Score, request: dict, cfg: SampleConfig, outputs: Outputs,
          **more: object) -> None:
    """Write a song's files, all or none; `more` goes into its account."""
    rate_hz, plan = request["preset"]["codec"]["sample_rate_hz"], plan_of(score)
    seconds = {name: round(value, 2) for name, value in sung.seconds.items()}
    with contextlib.ExitStack() as stack:                    # the account appears last: then all is there
        path = stack.enter_context(replacing(outputs.account))
        path.write_text(sidecar(score, request, cfg, outputs, plan=plan, seconds=seconds, **more),
                        encoding="utf-8", errors="backslashreplace")
        if outputs.latents:
            torch.save(sung.latents.clone(), stack.enter_context(replacing(outputs.latents)))
        if outputs.original:
            write_wave(stack.enter_context(replacing(outputs.original)), sung.wave, rate_hz, outputs.original)
        path, wave = stack.enter_context(replacing(outputs.song)), sung.wave[
            :, :round(score.duration_s * rate_hz)]
        write_wave(path, wave, rate_hz, outputs.song)
        karaoke.tag(path, score.lyrics, score.title, seed=request["seed"], model=Path(cfg.model).name,
                    name=outputs.song)
        if cfg.page:
            text = karaoke.page(score.lyrics, path, score.title, wave, rate_hz, outputs.song)
            stack.enter_context(replacing(outputs.page)).write_text(text, encoding="ascii")
            karaoke.picture(stack.enter_context(replacing(outputs.picture)), wave, rate_hz, score.lyrics)
        if plan:
            stack.enter_context(replacing(outputs.plan)).write_text(plan, encoding="utf-8")
        outputs.account.unlink(missing_ok=True)              # from here on the old files are replaced


def sing(singer: Singer, score: Score, request: dict, cfg: SampleConfig, outputs: Outputs, bars: bool,
         **more: object) -> Performance:
    """Sing one variant of a song and write its files; `more` goes into its account."""
    keep_edits(outputs, plan_of(score))
    sung = perform(singer, score, request["seed"], cfg, bars)
    write(sung, score, request, cfg, outputs, **more)
    return sung


Jobs = list[tuple[dict, Outputs]]    # the variants or the candidates of a song: requests and files


def jobs_of(song: Song, files: ModelFiles, cfg: SampleConfig, first: int = 0) -> Jobs:
    """What is sung for a song; its variants count from `first`."""
    return [(request_of(song, first + i, files, cfg), outputs)
            for i, outputs in enumerate(outputs_of(song, cfg, candidates=True))]


def choosing(cfg: SampleConfig, device: torch.device) -> Callable[[Path, dict], float]:
    """The scorer that chooses between songs. Raises: UserError if it cannot be had."""
    if device.type == "cuda":
        torch.cuda.set_device(device)                        # for scorers that take the current one
    return scorer_of(cfg.scorer, EvaluateConfig(
        songs=Path(), recogniser=cfg.recogniser, separate=cfg.separate, style_encoder=cfg.style_encoder,
        device=str(device), offline=cfg.offline))


def judge_of(cfg: SampleConfig) -> list:
    """What decides how candidates are scored."""
    return [cfg.scorer, cfg.recogniser, cfg.separate]


def sing_best(singer: Singer, score: Score, jobs: Jobs, cfg: SampleConfig, scorer: Callable,
              bars: bool) -> tuple[dict, Outputs]:
    """Sing the candidates that are not there, score all; the best one gets the song's own name, too.

    Of equal ones the first is the best. Returns: its request and files.
    """
    [best], scores, leader = outputs_of(score.song, cfg), {}, None
    keep_edits(best, plan_of(score))
    bare, quick = dataclasses.replace(score, plan=None), dataclasses.replace(cfg, page=False)
    for request, outputs in jobs:
        sung = None
        if not outputs.made(request, False):
            sung = sing(singer, bare, request, quick, outputs, bars, candidate_of=best.song.name)
        value = scores[request["seed"]] = scorer(outputs.song, read_json(outputs.account))
        print(f"{outputs.song}: {cfg.scorer} {value:.4f}", flush=True)
        if leader is None or value > leader[0]:
            leader = value, request, sung
    _, request, sung = leader
    sung = sung or perform(singer, score, request["seed"], cfg, bars)        # of an earlier run
    write(sung, score, request, cfg, best, best_of={"by": judge_of(cfg), "scores": scores})
    return request, best


def finished(song: Song, jobs: Jobs, cfg: SampleConfig) -> Jobs | None:
    """What was asked for, if all of it is there; of candidates the one that was chosen."""
    if cfg.best_of == 1:
        return jobs if all(outputs.made(request, cfg.page) for request, outputs in jobs) else None
    [best] = outputs_of(song, cfg)
    if not all(outputs.made(request, False) for request, outputs in jobs):
        return None
    chosen = next(((request, best) for request, _ in jobs if best.made(request, cfg.page)), None)
    how = chosen and read_json(best.account).get("best_of")
    asked = judge_of(cfg), [str(request["seed"]) for request, _ in jobs]
    return [chosen] if how and (how["by"], [*how["scores"]]) == asked else None


def sing_one(cfg: SampleConfig, began: float) -> None:
    """Make one song, and its variants."""
    if Processes().world > 1:
        raise UserError("several processes make the songs of a --manifest; one song needs one")
    song = Song("", find(cfg.lyrics), cfg.style or (), cfg.style_text or (), cfg.duration, cfg.seed)
    inputs = [song.lyrics, *(Path(weighted(name, os.path.isfile)[0]) for name in song.styles)]
    for outputs in dict.fromkeys([*outputs_of(song, cfg), *outputs_of(song, cfg, candidates=True)]):
        check_output(outputs.song, [*inputs, Path(cfg.negative_style or ""), Path(cfg.lexicon or "")])
    device, files = pick_device(cfg.device), locate(cfg)
    cfg = resolve(cfg, files.preset)
    if not song.styles and not song.texts and not cfg.ignore_style:
        song = dataclasses.replace(song, styles=default_style(files.styles))
    scorer = choosing(cfg, device) if cfg.best_of > 1 else None
    score = Arranger(files, cfg, device).score(song)         # the style encoder is gone with its arranger
    gc.collect()
    for outputs in outputs_of(song, cfg):
        if score.plan and outputs.plan.exists() and outputs.plan.samefile(song.lyrics):
            raise UserError(f"--out {outputs.song}: its plan would overwrite the lyrics {song.lyrics}")
    singer = Singer(files, device, DTYPES[cfg.dtype])
    names = ", ".join([*song.styles, *song.texts]) or "ignored"
    print(f"seed {cfg.seed}, style {names}, {len(score.lyrics.words)} words in {score.duration_s:.2f} s, "
          f"on {device}")
    load_s, jobs = time.perf_counter() - began, jobs_of(song, files, cfg)
    if scorer:
        request, outputs = sing_best(singer, score, jobs, cfg, scorer, True)
        print(f"the best of {cfg.best_of}: seed {request['seed']}\n{outputs.song.resolve()}")
        return
    for request, outputs in jobs:
        seconds = {"load": load_s} | sing(singer, score, request, cfg, outputs, True).seconds
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


# What one song may lead to: RuntimeError is a device without memory left.
SONG_ERRORS = (ValueError, OSError, RuntimeError, ArithmeticError)


@contextlib.contextmanager
def reported(name: str, report: Report):
    """What goes wrong with one song is told with its id; the others are made nevertheless."""
    try:
        yield
    except SONG_ERRORS as e:
        text = str(e) if isinstance(e, UserError) else f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"
        print("error:", UserError(f'song "{name}": {text}'), file=sys.stderr, flush=True)       # one line
        report.add(name, "failed", error=text)


def sing_many(cfg: SampleConfig, processes: Processes, first: int = 0) -> list[dict]:
    """Make a manifest's songs, this process its share of them. Returns: what became of each.

    Args: first, from which a song's variants count.
    """
    if processes.local == 0:
        locate(cfg)                                          # one process of each machine downloads
    processes.wait()
    device, files = pick_device(cfg.device, processes.local), locate(cfg)
    if device.type == "cpu":      # sums depend on the number of threads; songs must not on that of processes
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))     # torchrun sets 1, too
    cfg, report, pending = resolve(cfg, files.preset), Report(cfg.out_dir, processes), []
    entries = read_manifest(cfg.manifest, cfg.batch_infer_num, cfg.best_of)
    report.begin(cfg)
    for i, (name, entry) in enumerate(entries):              # every process looks at all: they have to agree
        mine = i % processes.world == processes.rank
        with reported(name, report) if mine else contextlib.suppress(*SONG_ERRORS):
            song = song_of(name, entry, cfg)
            jobs = jobs_of(song, files, cfg, first)
            there = finished(song, jobs, cfg)
            if there is None:
                pending.append((song, jobs))
            elif mine:
                report.add(name, "finished", there)
    processes.wait()
    arranger, scores = Arranger(files, cfg, device), []
    for song, jobs in pending[processes.rank::processes.world]:
        with reported(song.id, report):
            scores.append((arranger.score(song), jobs))
    del arranger                                             # and with it the style encoder
    gc.collect()
    singer = Singer(files, device, DTYPES[cfg.dtype]) if scores else None
    scorer = choosing(cfg, device) if scores and cfg.best_of > 1 else None
    for score, jobs in scores:
        with reported(score.song.id, report):
            began, bars = time.perf_counter(), processes.world == 1
            if scorer:
                jobs = [sing_best(singer, score, jobs, cfg, scorer, bars)]
            else:
                for request, outputs in jobs:
                    if not outputs.made(request, cfg.page):
                        sing(singer, score, request, cfg, outputs, bars)
            more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
            print(f"{score.song.id}: {len(jobs)} x {score.duration_s:.1f} s of song in "
                  f"{time.perf_counter() - began:.1f} s: {jobs[0][1].song.resolve()}{more}", flush=True)
            report.add(score.song.id, "made", jobs)
    return report.merge([name for name, _ in entries])


def main(argv: list[str] | None = None) -> None:
    """Make one song, or a manifest's."""
    began = time.perf_counter()
    cfg = parse(SampleConfig, __doc__.splitlines()[0], argv)
    validate(cfg)
    if cfg.doctor:
        sys.exit(0 if doctor(cfg) else 1)
    if cfg.manifest is None:
        sing_one(cfg, began)
        return
    processes = Processes()
    songs = sing_many(cfg, processes)
    processes.close()
    if any(song["status"] == "failed" for song in songs):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
