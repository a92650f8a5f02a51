"""Recordings with lyrics -> training shards, and what is in shards; data.py's commands.

    python data.py prepare --songs DIR --out shards --style female
    python data.py inspect shards/songs-000000.tar --draw pictures
    python data.py validate shards
    python data.py pairs --manifest prompts.json --out pairs

Read `find_songs`, then `Maker` (a recording's words, latents and style), `write_shard` (a shard appears
whole, or not at all), `prepare` (all shards, by torchrun on many processes); then `inspect`, `validate`.
`pairs` is in pairs.py.

Levels: latents of a mel codec are logarithms, which move with the level (12 dB by half of their deviation),
and a model is to sing at one level. There a recording is scaled until its words have the RMS of the embedded
model's own songs. All other codecs take recordings as loud as they are.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import re
import shutil
import sys
import tarfile
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torchaudio.functional as AF
from torch import Tensor

import audio
import formats
import karaoke
from align import LISTENERS, SEPARATOR, align, silent
from cli import command, find, pick_device, replacing
from config import PHONEMIZER, PRESETS, READ_ERRORS, SILENCE, STYLES, AlignSettings, CodecConfig
from config import InspectConfig, PairsConfig, PrepareConfig, Preset, SampleConfig, UserError, ValidateConfig
from data import expand, named, read_song, read_tar
from hub import ASSETS, choose_codec, encoder_folders, fetch, sha256
from lyrics import OVERLAP_S, SOUNDLESS, Lyrics, Word, check, pronounce, reader
from pairs import make_pairs
from phonemes import CELLS_PER_FRAME, SymbolTable, load_phonemizer
from processes import Processes
from style import READERS, Crop, StyleEncoder, named_styles, read_clip, read_vector, style_vector
from vae import make_codec

SHORTEST_S = 1.0
BEYOND_S = 0.5                 # by which words may outlast their recording
SUNG_RMS = 0.1                 # of a mel codec's words, as in baby/songs.py
QUIETEST_RMS = 1e-4            # of words that are there to be heard: -80 dB
FIRST_WORDS = 6                # of a song, are listed
PIXELS_PER_S = 90              # of a picture, about
LYRICS = {kind.extension.lower() for kind in formats.KINDS.values()} | formats.ENDINGS.keys()
DTYPES = {"float32": torch.float32, "float16": torch.float16}
# A resampling filter that is flat up to 0.94 of the band, and lets nothing from above it through.
FILTER = {"lowpass_filter_width": 64, "rolloff": 0.9475937167399596, "beta": 14.769656459379492,
          "resampling_method": "sinc_interp_kaiser"}
LEFTOVER = re.compile(r"\.\w[\w-]*\.(tar|jsonl?|pt|safetensors)\.\d+")       # of cli.replacing, when killed
# What a song may lead to: RuntimeError is a device without memory left.
SONG_ERRORS = (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError)


# Songs

@dataclass(frozen=True)
class Song:
    """A recording and what lies beside it."""
    key: str                         # its name in shards
    recording: Path
    lyrics: Path | None
    style: Path | None
    fault: str                       # why it cannot be taken, if so
    inputs: dict[str, list[int]]     # its files: bytes, and nanoseconds of the last change


def find_songs(folder: Path) -> list[Song]:
    """The recordings in a folder and all below it, by their paths; what is hidden is passed over.

    Raises: UserError if no recording is there.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file()
                   and not any(part.startswith(".") for part in path.relative_to(folder).parts))
    alike, keys, songs = collections.defaultdict(list), {}, []
    for path in files:
        alike[path.with_suffix("")].append(path)
    for path in files:
        if path.suffix.lower() not in audio.READABLE:
            continue
        base = path.with_suffix("")
        lyrics = [p for p in alike[base] if p.suffix.lower() in LYRICS]
        styles = [p for p in alike.get(base.with_name(f"{base.name}.style"), ())
                  if p.suffix.lower() in READERS]
        key = re.sub(r"[^\w-]", "_", str(base.relative_to(folder)))
        fault = ""
        if keys.setdefault(key, path) != path:
            fault = f"its name in shards, {key}, is taken by {keys[key]}"
        elif not lyrics:
            fault = f"has no lyrics beside it: {base.name}{', '.join(sorted(LYRICS))}"
        elif len(lyrics) + len(styles) > len(lyrics[:1] + styles[:1]):
            fault = f"has several lyrics or styles: {', '.join(p.name for p in lyrics + styles)}"
        used = [(str(p.relative_to(folder)), p.stat()) for p in [path, *lyrics, *styles]]
        songs.append(Song(key, path, *[(found or [None])[0] for found in (lyrics, styles)], fault,
                          {name: [about.st_size, about.st_mtime_ns] for name, about in used}))
    if not songs:
        raise UserError(f"--songs {folder}: no recordings ({', '.join(audio.READABLE)}) are there")
    return songs


def own_file(given: Path | None, preset: str, name: str) -> Path | None:
    """The file that is given, else the one of this name that the model has; None: it has none here."""
    path = find(Path("weights", preset, name))
    return given or (path if path.is_file() else None)


def fitted(wave: Tensor, rate_hz: int, codec: CodecConfig, path: Path) -> Tensor:
    """wave (W, N) with the channels and the rate of a codec. Raises: UserError for channels too many."""
    if codec.wave_channels == 1:
        wave = wave.mean(0, keepdim=True)
    elif len(wave) == 1:
        wave = wave.expand(codec.wave_channels, -1)
    elif len(wave) != codec.wave_channels:
        raise UserError(f"{path}: has {len(wave)} channels; expected 1 or {codec.wave_channels}")
    return AF.resample(wave, rate_hz, codec.sample_rate_hz, **FILTER)


class Maker:
    """Makes the parts of songs, as data.py reads them.

    Args: hears, whether some song's style has to be heard. Attributes: settings, a digest of all but a song's
        files that decides how its parts come out.
    Raises: UserError for a file of the model that is missing or does not fit, or a style that is none.
    """

    def __init__(self, cfg: PrepareConfig, hears: bool, device: torch.device):
        self.cfg, self.device, self.preset = cfg, device, PRESETS[cfg.preset]
        self.width = self.preset.model.cond_dim
        self.phonemizer_file = own_file(cfg.phonemizer, cfg.preset, PHONEMIZER) or fetch(
            "phonemizer", cfg.offline)
        self.styles_file = own_file(cfg.styles, cfg.preset, STYLES)
        self.hears = hears and self.encoder is not None      # what is wrong with it is told before all work
        codec = choose_codec(SampleConfig(model=cfg.preset, vae=cfg.vae), self.preset)
        self.codec_file = fetch(codec, cfg.offline) if isinstance(codec, str) else codec
        self.codec = make_codec(self.preset.codec, self.codec_file, device)
        self.phonemizer = reader(self.phonemizer_file, cfg.lexicon)
        self.table = SymbolTable(self.phonemizer.symbols)
        self.one_style = style_vector(cfg.style, (), Crop(0.0, cfg.num_style_secs, None), self.styles_file,
                                      self.width, lambda: self.encoder) if cfg.style else None
        self.settings = self.digest()

    def digest(self) -> str:
        """Files count by what is in them, and an aligner by whether it is to be had."""
        cfg, files = self.cfg, [self.phonemizer_file, self.codec_file, self.cfg.lexicon]
        style = self.one_style.tolist() if cfg.style else [cfg.style_windows, cfg.num_style_secs]
        if self.hears:
            files.append(encoder_folders(cfg)[0] / ASSETS["mulan"].file)
        models = [LISTENERS[cfg.model], *[SEPARATOR] * cfg.separate]
        aligns = not cfg.offline or all(source.path.is_file() for source in models)
        parts = [dataclasses.asdict(self.preset.codec), style, [file and sha256(file) for file in files],
                 [cfg.model, cfg.separate, aligns], cfg.longest, cfg.dtype, cfg.device]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @functools.cached_property
    def encoder(self) -> StyleEncoder:
        """MuQ-MuLan, loaded when a style needs it. Raises: UserError if the model has none."""
        if self.preset.style_encoder == "none":
            names = ", ".join([*sorted(named_styles(self.styles_file)), "or a saved vector"])
            raise UserError(f"--preset {self.cfg.preset}: hears no styles; give --style ({names}), or a "
                            "NAME.style.npy beside every recording")
        return StyleEncoder(*encoder_folders(self.cfg), self.device)

    def silence(self) -> Tensor:
        """The latent frame (C,) of digital silence."""
        if self.preset.codec.kind == "mel":
            return self.codec.silence
        frames, c = self.codec.reach, self.preset.codec      # then its edges are out of sight
        return self.codec.encode(torch.zeros(1, c.wave_channels, (2 * frames + 1) * c.hop))[0, frames]

    def make(self, song: Song) -> tuple[float, dict[str, Tensor | dict]]:
        """A song's seconds, and its parts by their endings. Raises: UserError, or others of SONG_ERRORS."""
        path = song.recording
        if song.fault:
            raise UserError(f"{path}: {song.fault}")
        length_s = audio.length_s(path)
        if not SHORTEST_S <= length_s <= self.cfg.longest:
            raise UserError(f"{path}: is {length_s:.2f} s long; expected {SHORTEST_S:g} to "
                            f"{self.cfg.longest:g} s")
        wave, rate_hz = audio.read_wave(path)
        seconds = wave.shape[1] / rate_hz
        wave = fitted(wave, rate_hz, self.preset.codec, path)
        if silent(wave):
            raise UserError(f"{path}: is silent")
        words = self.words(song, seconds).words
        parts = {"latent.pt": self.posterior(wave, words, path), "style.pt": self.style(song, seconds),
                 "json": {"word": [{name: getattr(word, name) for name in ("word", "start", "end", "phoneme")}
                                   for word in words]}}
        for ending, value in parts.items():
            if isinstance(value, Tensor) and not value.isfinite().all():
                raise UserError(f"{path}: its {ending} is not finite in {value.dtype}")
        return seconds, parts

    def words(self, song: Song, seconds: float) -> Lyrics:
        """A song's lyrics with times and phonemes. Raises: UserError for what cannot be sung."""
        cfg, codec = self.cfg, self.preset.codec
        lyrics = formats.read(song.lyrics).sung()
        if not lyrics.words:
            raise UserError(f"{song.lyrics}: has no words")
        if not lyrics.timed:
            lyrics = align(song.recording, lyrics, AlignSettings(
                cfg.model, cfg.separate, device=str(self.device), offline=cfg.offline))
        last_s = max(word.end for word in lyrics.words)
        if last_s > seconds + BEYOND_S:
            raise UserError(f"{song.lyrics}: its words end at {last_s:.2f} s, the recording at "
                            f"{seconds:.2f} s")
        cell_hz = CELLS_PER_FRAME * codec.sample_rate_hz / codec.hop
        errors = [problem for problem in check(lyrics, self.phonemizer, self.table, cell_hz)
                  if problem.level == "error"]
        if errors:
            more = f"; and {len(errors) - 1} more: python lyrics.py check" if len(errors) > 1 else ""
            raise UserError(f"{song.lyrics}: {errors[0].where}: {errors[0].text}{more}")
        return pronounce(lyrics, self.phonemizer, self.table, song.lyrics)

    def posterior(self, wave: Tensor, words: tuple[Word, ...], path: Path) -> Tensor:
        """wave (W, N) -> (2C, frames): means, then standard deviations, which mel's latents have none of."""
        if self.preset.codec.kind != "mel":
            found = self.codec.posterior(wave[None])[0]
        else:
            sung, rate_hz = torch.zeros(wave.shape[1], dtype=torch.bool), self.preset.codec.sample_rate_hz
            for word in words:
                sung[round(word.start * rate_hz):round(word.end * rate_hz)] = True
            rms = wave[:, sung].square().mean().sqrt()
            if not rms > QUIETEST_RMS:                       # no number, if all words are behind the end
                raise UserError(f"{path}: is silent where its words are")
            latents = self.codec.encode(wave[None] * (SUNG_RMS / rms))[0].T                 # (C, frames)
            found = torch.cat([latents, torch.zeros_like(latents)])
        return found.to(DTYPES[self.cfg.dtype])

    def style(self, song: Song, seconds: float) -> Tensor:
        """(E,), or of parts of the recording (n, E), float32."""
        if song.style:
            return read_vector(song.style, self.width, str(song.style))
        if self.one_style is not None:
            return self.one_style
        room_s, count = max(0.0, seconds - self.cfg.num_style_secs), self.cfg.style_windows
        starts = sorted({room_s * (i + 0.5) / count for i in range(count)})
        return torch.stack([self.encoder.audio(read_clip(song.recording, Crop(
            start, self.cfg.num_style_secs, None))) for start in starts])


# Shards

class NoSongs(Exception):
    """All songs of a shard were rejected: there will be no tar."""


def account_of(shard: Path) -> Path:
    """The JSON lines beside a shard: what became of each of its songs."""
    return shard.with_suffix(".jsonl")


def accounts(shard: Path) -> list[dict]:
    """The lines of `account_of`."""
    return [json.loads(line) for line in account_of(shard).read_text(encoding="utf-8").splitlines()]


def finished(shard: Path, songs: list[Song], settings: str) -> bool:
    """Whether a shard was made of just these songs, files and settings."""
    try:
        lines = accounts(shard)
        made = [(line["id"], line["inputs"], line["settings"]) for line in lines]
        whole = shard.exists() == any(line["status"] == "made" for line in lines)
    except READ_ERRORS:
        return False
    return whole and made == [(song.key, song.inputs, settings) for song in songs]


def add(tar: tarfile.TarFile, name: str, value: Tensor | dict) -> None:
    """Append a member: a tensor by torch.save, a dict as JSON."""
    data = io.BytesIO()
    if isinstance(value, Tensor):
        torch.save(value.contiguous().clone(), data)
    else:
        data.write(json.dumps(value).encode())
    info = tarfile.TarInfo(name)
    info.size = data.tell()
    data.seek(0)
    tar.addfile(info, data)


def reason_of(song: Song, error: Exception) -> str:
    """Why a song was rejected: one line that begins with one of its files."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    reason = kind + " ".join(str(error).split())[:300]
    if not reason.startswith(str(song.recording.with_suffix(""))):
        reason = f"{song.recording}: {reason}"
    return str(UserError(reason))


def write_shard(shard: Path, songs: list[Song], maker: Maker) -> None:
    """Make a shard and its account; rejected songs are named on stderr.

    Whenever the process is killed, no tar is there without its account, nor with another's.
    """
    lines = []
    with contextlib.suppress(NoSongs), replacing(shard) as temporary:
        with tarfile.open(temporary, "w") as tar:
            for song in songs:
                began, seconds, reason = time.perf_counter(), None, ""
                try:
                    seconds, parts = maker.make(song)
                except SONG_ERRORS as e:
                    reason = reason_of(song, e)
                    print(f"rejected: {reason}", file=sys.stderr, flush=True)
                else:
                    for ending, value in parts.items():
                        add(tar, f"{song.key}.{ending}", value)
                    print(f"{song.key}: {seconds:.1f} s of song in {time.perf_counter() - began:.1f} s",
                          flush=True)
                lines.append({"id": song.key, "duration": seconds and round(seconds, 3),
                              "status": "rejected" if reason else "made", "reason": reason,
                              "inputs": song.inputs, "settings": maker.settings})
        shard.unlink(missing_ok=True)
        with replacing(account_of(shard)) as path:
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        if all(line["reason"] for line in lines):
            raise NoSongs


def tidy(out: Path, count: int) -> None:
    """Make the folder; drop what a killed run began, and shards from `count` on, which an earlier run had.

    Raises: UserError if it cannot, or if shards of another origin are there, which would be lost.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = sorted(out.iterdir(), reverse=True)          # a tar before its account
        for path in files:
            number = re.fullmatch(r"songs-(\d{6,})\.(tar|jsonl)", path.name)
            if number and number[2] == "tar" and account_of(path) not in files:
                raise UserError(f"--out {out}: {path.name} was not made by this command; name another folder")
            if number and int(number[1]) >= count or LEFTOVER.fullmatch(path.name):
                path.unlink()
    except OSError as e:
        raise UserError(f"--out {out}: {e.strerror}") from None


def check_settings(cfg: PrepareConfig) -> None:
    """Raise UserError for settings that are out of their range."""
    for name, known in (("preset", PRESETS), ("dtype", DTYPES), ("model", LISTENERS)):
        if getattr(cfg, name) not in known:
            raise UserError(f"--{name} {getattr(cfg, name)}: expected one of {', '.join(known)}")
    for name, low, high in (("songs_per_shard", 1, math.inf), ("style_windows", 1, math.inf),
                            ("longest", SHORTEST_S, math.inf), ("max_rejected", 0, 1)):
        if not low <= getattr(cfg, name) <= high:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: expected {low} to {high}")
    Crop(0.0, cfg.num_style_secs, None)


def prepare(cfg: PrepareConfig) -> None:
    """python data.py prepare: shards of songs, by all processes; exit code 1 if too many are rejected."""
    check_settings(cfg)
    songs, processes = find_songs(cfg.songs), Processes()
    hears = not cfg.style and any(not song.style and not song.fault for song in songs)
    device = pick_device(cfg.device, processes.local)
    if device.type == "cpu":      # sums depend on the number of threads; songs must not on that of processes
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))     # torchrun sets 1, too
    if processes.local == 0:
        maker = Maker(cfg, hears, device)                    # one process of each machine downloads
    processes.wait()
    if processes.local:
        maker = Maker(cfg, hears, device)
    shards = [(cfg.out / f"songs-{i:06d}.tar", songs[first:first + cfg.songs_per_shard])
              for i, first in enumerate(range(0, len(songs), cfg.songs_per_shard))]
    if processes.main:
        tidy(cfg.out, len(shards))
    processes.wait()
    for shard, part in shards[processes.rank::processes.world]:
        if finished(shard, part, maker.settings):
            print(f"{shard.name}: {len(part)} songs, finished before", flush=True)
        else:
            write_shard(shard, part, maker)
    processes.wait()
    lines = [line for shard, _ in shards for line in accounts(shard)]
    made = [line for line in lines if line["status"] == "made"]
    if processes.main:
        write_lists(cfg, maker, lines)
        print(f"{cfg.out}: {len(made)} songs of {sum(line['duration'] for line in made):.0f} s in "
              f"{len(shards)} shards; {len(lines) - len(made)} rejected, see report.json")
    processes.close()
    if not made:
        raise UserError(f"--songs {cfg.songs}: all {len(lines)} songs were rejected; why: "
                        f"{cfg.out / 'report.json'}")
    if len(lines) - len(made) > cfg.max_rejected * len(lines):
        sys.exit(1)


def write_lists(cfg: PrepareConfig, maker: Maker, lines: list[dict]) -> None:
    """Write what belongs to all shards: ids.jsonl, report.json, and the assets that train.py takes."""
    made, rejected = ([line for line in lines if line["status"] == status] for status in ("made", "rejected"))
    with replacing(cfg.out / "ids.jsonl") as path:
        path.write_text("".join(json.dumps({"id": line["id"], "duration": line["duration"]}) + "\n"
                                for line in made))
    report = {"made": len(made), "rejected": len(rejected),
              "seconds": round(sum(line["duration"] for line in made), 3),
              "reasons": {next(iter(line["inputs"])): line["reason"] for line in rejected},
              "settings": dataclasses.asdict(cfg)}
    with replacing(cfg.out / "report.json") as path:
        path.write_text(json.dumps(report, default=str, indent=1))
    with replacing(cfg.out / SILENCE) as path:
        torch.save(maker.silence().clone(), path)
    styles = named_styles(maker.styles_file)
    for name, file in ((PHONEMIZER, maker.phonemizer_file), (STYLES, maker.styles_file if styles else None)):
        target = cfg.out / name
        if file and not (target.exists() and target.samefile(file)):
            with replacing(target) as path:
                shutil.copyfile(file, path)


# What is in shards

def preset_of(name: str) -> Preset:
    if name not in PRESETS:
        raise UserError(f"--preset {name}: expected one of {', '.join(PRESETS)}")
    return PRESETS[name]


def songs_in(shards: str, preset: Preset) -> Iterator[tuple[str, dict[str, bytes], tuple | None, str]]:
    """Of each song: where it is and the bytes of its files; what data.py reads of them, or why it cannot."""
    for source in expand((shards,), pipe=False):
        for key, files, faults in read_tar(source):
            where, song = f"{source}: song {key}", None
            try:
                song = None if faults else read_song(files, preset)
            except READ_ERRORS as e:
                faults = [named(where, e)]
            yield where, files, song, "".join(faults)


def inspect(cfg: InspectConfig) -> None:
    """python data.py inspect: what each song is, and what all are; exit code 1 if one is broken."""
    preset, totals = preset_of(cfg.preset), collections.Counter()
    frame_hz = preset.codec.sample_rate_hz / preset.codec.hop
    for where, files, song, fault in songs_in(cfg.shard, preset):
        if fault:
            totals["broken"] += 1
            print(f"broken: {fault}", file=sys.stderr)
            continue
        posterior, style, words = song
        totals.update(songs=1, frames=posterior.shape[1], words=len(words))
        if cfg.songs and totals["songs"] > cfg.songs:
            continue
        key = where.rpartition(": song ")[2]
        texts = [str(word.get("word", word["phoneme"])) for word in json.loads(files["json"])["word"]]
        listed = [f"{a:.2f}-{b:.2f} {text} {phoneme}" for text, (a, b, phoneme) in zip(texts, words)]
        listed[FIRST_WORDS:] = ["..."] * (len(words) > FIRST_WORDS)
        print(UserError(f"{key}: {described(files, posterior, style, frame_hz)}; {len(words)} words: "
                        + "; ".join(listed)))                # in printable letters
        if cfg.draw:
            with contextlib.suppress(OSError):               # told when a picture is written
                cfg.draw.mkdir(parents=True, exist_ok=True)
            draw(cfg.draw / f"{key.replace('/', '_')}.png", posterior.chunk(2)[0], frame_hz,
                 [(text, start, end) for text, (start, end, _) in zip(texts, words)])
    print(f"{cfg.shard}: {totals['songs']} songs, {totals['frames'] / frame_hz:.1f} s, {totals['words']} "
          f"words; {totals['broken']} broken")
    if totals["broken"]:
        sys.exit(1)


def described(files: dict[str, bytes], posterior: Tensor, style: Tensor, frame_hz: float) -> str:
    """A song's sizes and statistics."""
    mean, std = posterior.chunk(2)
    kind = torch.load(io.BytesIO(files["latent.pt"]), map_location="cpu", weights_only=True).dtype
    norms = ", ".join(f"{norm:.3f}" for norm in style.reshape(-1, style.shape[-1]).norm(dim=1))
    return (f"{mean.shape[1]} frames, {mean.shape[1] / frame_hz:.2f} s; latents {tuple(posterior.shape)} "
            f"{str(kind).removeprefix('torch.')}, mean {mean.mean():.3f}, std {mean.std():.3f}, posterior "
            f"std {std.mean():.3f}; style {tuple(style.shape)}, norm {norms}")


def draw(path: Path, latents: Tensor, frame_hz: float, words: list[tuple[str, float, float]]) -> None:
    """Draw latents (C, frames) over time as a PNG, low ones dark, with words (text, start, end) above."""
    from PIL import Image, ImageDraw, ImageFont
    font = ImageFont.load_default(13)                        # Pillow's own: the same on every machine
    wide, high = max(1, round(PIXELS_PER_S / frame_hz)), max(1, round(karaoke.HEIGHT / len(latents)))
    shades = ((latents - latents.mean()) / (6 * latents.std() + 1e-9) + 0.5).clamp(0, 1)
    colours = karaoke.heat()[shades.flip(0).mul(karaoke.SHADES - 1).byte().numpy()]    # (C, frames, 3)
    texts = ["".join(filter(str.isprintable, text)) for text, *_ in words]
    spans = [[min(max(t * frame_hz, 0), latents.shape[1]) * wide for t in times] for _, *times in words]
    above = karaoke.LANE * karaoke.LANES
    image = Image.new("RGB", (latents.shape[1] * wide, above + len(latents) * high), "white")
    sound = Image.fromarray(colours).resize((image.width, image.height - above), Image.Resampling.NEAREST)
    image.paste(sound, (0, above))
    pen = ImageDraw.Draw(image)
    for (start, end), text, lane in zip(spans, texts, karaoke.lanes(
            [(start, start + font.getlength(text) + 8) for (start, _), text in zip(spans, texts)])):
        for x in (start, end):
            pen.line((x, above, x, image.height), "white")
        if lane is not None:
            pen.line((start, above - (lane + 1) * karaoke.LANE, start, above - 1), "silver")
            pen.text((start + 3, above - lane * karaoke.LANE - 4), text, "black", font, "ls")
    with replacing(path) as temporary:
        image.save(temporary, "PNG")


def validate(cfg: ValidateConfig) -> None:
    """python data.py validate: a line for each problem; exit code 1 if there are more than notes."""
    preset, seen, problems, notes = preset_of(cfg.preset), {}, 0, 0
    phonemizer = own_file(cfg.phonemizer, cfg.preset, PHONEMIZER) or fetch("phonemizer")
    known = SymbolTable(load_phonemizer(phonemizer).symbols).ids.keys() | SOUNDLESS
    for where, _, song, fault in songs_in(cfg.shards, preset):
        faults, overlaps = [fault] if fault else [], []
        if song:
            seconds = song[0].shape[1] * preset.codec.hop / preset.codec.sample_rate_hz
            wrong, overlaps = wrong_words(song[2], seconds, known)
            before = seen.setdefault(where.rpartition(": song ")[2], where)
            wrong += [f"its name is that of {before}"] if before is not where else []
            faults = [named(where, text) for text in wrong]
        for kind, texts in (("problem", faults), ("note", [named(where, text) for text in overlaps])):
            for text in texts:
                print(f"{kind}: {text}")
        problems, notes = problems + len(faults), notes + len(overlaps)
    print(f"{cfg.shards}: {len(seen)} songs, {problems} problems, {notes} notes")
    if problems:
        sys.exit(1)


def wrong_words(words: list[tuple[float, float, str]], seconds: float,
                known: Collection[str]) -> tuple[list[str], list[str]]:
    """What of a song's words cannot be trained on, and which of them overlap."""
    wrong, overlaps, latest = [], [], 0.0
    for i, (start, end, phoneme) in enumerate(words, 1):
        place, unknown = f"word {i}: ", sorted(set(phoneme) - known)
        if not 0 <= start < end:
            wrong.append(f"{place}from {start:.2f} to {end:.2f} s")
        if end > seconds + BEYOND_S:
            wrong.append(f"{place}ends at {end:.2f} s, the song at {seconds:.2f} s")
        if not phoneme or unknown:
            wrong.append(f"{place}phonemes {phoneme!r}; unknown: {' '.join(unknown) or 'there are none'}")
        if start < latest - OVERLAP_S:
            overlaps.append(f"{place}starts at {start:.2f} s, before {latest:.2f} s, where others end")
        latest = max(latest, end)
    return wrong, overlaps


COMMANDS = {"prepare": (PrepareConfig, prepare), "inspect": (InspectConfig, inspect),
            "validate": (ValidateConfig, validate), "pairs": (PairsConfig, make_pairs)}


def main(argv: list[str] | None = None) -> None:
    """Run one of COMMANDS."""
    command("data.py", __doc__, COMMANDS, argv)
