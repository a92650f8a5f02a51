"""Recordings with their lyrics -> shards to train on.

    python -m tools.prepare --songs songs --out shards --style female
    torchrun --nproc_per_node=8 -m tools.prepare --songs songs --out shards --preset jam-0.5

Read `main` (all shards, divided among the processes of torchrun), then `write_shard` (a shard and its
account appear whole or not at all) and `Converter.convert` (one song: words, latents, style). Beside the
shards stand ids.jsonl, report.json, and the files that `train.py --assets` takes.

Loudness: the latents of a sung codec are logarithms, which shift with the level (11 dB by their standard
deviation), and a model should sing at one level. For such a codec a recording is scaled until its words have
the RMS of the embedded model's own songs. All other codecs take recordings as loud as they are.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import re
import shutil
import sys
import tarfile
import time
from pathlib import Path

from support.cli import first, parse, run
from tools.settings import SHORTEST_S, PrepareConfig

if __name__ == "__main__":
    first(lambda: parse(PrepareConfig, __doc__, name="python -m tools.prepare"))

import torch
from torch import Tensor

from config import CODEC, PHONEMIZER, PRESETS, READ_ERRORS, SILENCE, SONG_ERRORS, STYLES, WEIGHTS, CodecConfig
from config import SampleConfig, UserError
from lyrics import formats
from lyrics.align import align, silent
from lyrics.check import pronounce
from lyrics.models import LISTENERS, SEPARATOR, AlignSettings
from lyrics.pronounce import reader
from phonemes import CELLS_PER_FRAME, SymbolTable
from style import READERS, Crop, encoder_of, named_styles, read_clip, read_vector, style_vector
from support import audio
from support.files import describe, find, make_folder, reading, replacing, write_json, write_text
from support.hub import ASSETS, choose_codec, encoder_folders, fetch, own_file, sha256
from support.processes import Processes
from tools.shards import BEYOND_S
from vae import make_codec

SUNG_RMS = 0.055               # of a sung codec's words, as baby/songs.py makes them
QUIETEST_RMS = 1e-4            # of words that can be heard: -80 dB
LYRICS = {kind.extension.lower() for kind in formats.KINDS.values()} | formats.ENDINGS.keys()
# A resampling filter that is flat up to 0.94 of the band and lets nothing above the band through.
FILTER = {"lowpass_filter_width": 64, "rolloff": 0.9475937167399596, "beta": 14.769656459379492,
          "resampling_method": "sinc_interp_kaiser"}
SHARD = re.compile(r"songs-(\d{6,})\.(tar|jsonl)")


@dataclasses.dataclass(frozen=True)
class Song:
    """A recording and the files beside it."""
    key: str                         # its name in shards
    recording: Path
    lyrics: Path | None
    style: Path | None
    fault: str                       # why it has to be rejected, if so
    inputs: dict[str, list[int]]     # its files: size in bytes, and time of the last change in nanoseconds


def find_songs(folder: Path) -> list[Song]:
    """The recordings in a folder and its subfolders, sorted by path; hidden ones are skipped.

    Raises: UserError if there is no recording.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file()
                   and not any(part.startswith(".") for part in path.relative_to(folder).parts))
    recordings = [path for path in files if path.suffix.lower() in audio.READABLE]
    if not recordings:
        raise UserError(f"--songs {folder}: no recordings ({', '.join(audio.READABLE)}) are there")
    beside, keys, songs = {}, {}, []
    for path in files:
        beside.setdefault(path.with_suffix(""), []).append(path)
    for path in recordings:
        base = path.with_suffix("")
        lyrics = [p for p in beside[base] if p.suffix.lower() in LYRICS]
        style_base = base.with_name(f"{base.name}.style")
        styles = [p for p in beside.get(style_base, ()) if p.suffix.lower() in READERS]
        key, fault = re.sub(r"[^\w-]", "_", str(base.relative_to(folder))), ""
        if keys.setdefault(key, path) != path:
            fault = f"its name in shards, {key}, is taken by {keys[key]}"
        elif not lyrics:
            fault = f"has no lyrics beside it: {base.name}{', '.join(sorted(LYRICS))}"
        elif len(lyrics) > 1 or len(styles) > 1:
            fault = f"has several lyrics or styles: {', '.join(p.name for p in lyrics + styles)}"
        inputs = {str(p.relative_to(folder)): [p.stat().st_size, p.stat().st_mtime_ns]
                  for p in [path, *lyrics, *styles]}
        songs.append(Song(key, path, next(iter(lyrics), None), next(iter(styles), None), fault, inputs))
    return songs


def fitted(wave: Tensor, rate_hz: int, codec: CodecConfig, path: Path) -> Tensor:
    """wave (W, N) at the codec's rate and with its channels. Raises: UserError if it has too many of them."""
    if codec.wave_channels == 1:
        wave = wave.mean(0, keepdim=True)
    elif len(wave) not in (1, codec.wave_channels):
        raise UserError(f"{path}: has {len(wave)} channels; expected 1 or {codec.wave_channels}")
    import torchaudio.functional as AF

    return AF.resample(wave.expand(codec.wave_channels, -1), rate_hz, codec.sample_rate_hz, **FILTER)


class Converter:
    """Converts recordings and their lyrics to what data.py reads.

    Args: device of the codec and the style encoder; hears, whether the recording of some song is its style.
    Attributes: assets, the model's own files for `train.py --assets`; settings, a digest of everything but a
        song's files that its parts depend on.
    Raises: UserError for a file of the model that is missing or does not fit, and for an unknown style.
    """

    def __init__(self, cfg: PrepareConfig, device: torch.device, hears: bool):
        self.cfg, self.device, self.preset = cfg, device, PRESETS[cfg.preset]
        phonemizer = own_file(cfg.phonemizer, cfg.preset, PHONEMIZER) or fetch("phonemizer", cfg.offline)
        self.assets = {PHONEMIZER: phonemizer, STYLES: own_file(cfg.styles, cfg.preset, STYLES)}
        names = " or ".join([*sorted(named_styles(self.assets[STYLES])), "FILE"])
        self.encoder = functools.cache(lambda: encoder_of(
            cfg, self.preset, device, f"--preset {cfg.preset}",
            f"; give --style {names}, or a NAME.style.npy beside every recording"))
        if hears:                                            # a mistake is reported before all work
            self.encoder()
        codec = choose_codec(SampleConfig(model=cfg.preset, vae=cfg.vae), self.preset,
                             find(Path("weights", cfg.preset, WEIGHTS)))
        codec_file = fetch(codec, cfg.offline) if isinstance(codec, str) else codec
        self.codec = make_codec(self.preset.codec, codec_file, device, trust=cfg.trust_vae)
        if self.preset.codec.kind == "sung":
            self.assets[CODEC] = codec_file
        self.reader = reader(phonemizer, cfg.lexicon)
        self.table = SymbolTable(self.reader.symbols)
        self.one_style = style_vector(
            cfg.style, (), Crop(0.0, cfg.num_style_secs, None), self.assets[STYLES],
            self.preset.model.cond_dim, self.encoder) if cfg.style else None

        # Files count by their content, an aligner by whether it is available.
        files = [phonemizer, codec_file, cfg.lexicon]
        if hears:
            files.append(encoder_folders(cfg)[0] / ASSETS["mulan"].file)
        models = [LISTENERS[cfg.model], SEPARATOR] if cfg.separate else [LISTENERS[cfg.model]]
        aligns = not cfg.offline or all(source.path.is_file() for source in models)
        style = self.one_style.tolist() if cfg.style else [cfg.style_windows, cfg.num_style_secs]
        # The latents do not depend on the decoder.
        encoder = {k: v for k, v in dataclasses.asdict(self.preset.codec).items() if k != "decoder_width"}
        parts = [encoder, style, [file and sha256(file) for file in files],
                 [cfg.model, cfg.separate, aligns], cfg.longest, cfg.dtype, cfg.device]
        self.settings = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def silence(self) -> Tensor:
        """The latent frame (C,) of digital silence."""
        if self.preset.codec.kind == "sung":
            return self.codec.silence
        frames, codec = self.codec.reach, self.preset.codec  # the edges do not reach the middle one
        return self.codec.encode(torch.zeros(1, codec.wave_channels, (2 * frames + 1) * codec.hop))[0, frames]

    def convert(self, song: Song) -> tuple[float, dict[str, Tensor | dict]]:
        """A song's seconds, and its parts by their endings. Raises: UserError, or others of SONG_ERRORS."""
        cfg, codec, path = self.cfg, self.preset.codec, song.recording
        if song.fault:
            raise UserError(f"{path}: {song.fault}")

        # The recording.
        length_s = audio.length_s(path)
        if not SHORTEST_S <= length_s <= cfg.longest:
            raise UserError(f"{path}: is {length_s:.2f} s long; expected {SHORTEST_S:g} to {cfg.longest:g} s")
        wave, rate_hz = audio.read_wave(path)
        seconds = wave.shape[1] / rate_hz
        wave = fitted(wave, rate_hz, codec, path)
        if silent(wave):
            raise UserError(f"{path}: is silent")

        # Words with times and phonemes.
        lyrics = formats.read(song.lyrics).sung()
        if not lyrics.words:
            raise UserError(f"{song.lyrics}: has no words")
        if not lyrics.timed:
            lyrics = align(path, lyrics, AlignSettings(cfg.model, cfg.separate, device=str(self.device),
                                                       offline=cfg.offline))
        last_s = max(word.end for word in lyrics.words)
        if last_s > seconds + BEYOND_S:
            raise UserError(f"{song.lyrics}: its words end at {last_s:.2f} s, the recording at "
                            f"{seconds:.2f} s")
        cell_hz = CELLS_PER_FRAME * codec.sample_rate_hz / codec.hop
        words = pronounce(lyrics, self.reader, self.table, cell_hz, None, song.lyrics, warn=False).words

        # Latents: means, then standard deviations, (2C, frames). Those of a sung codec have none.
        if codec.kind == "sung":
            sung = torch.zeros(wave.shape[1], dtype=torch.bool)
            for word in words:
                sung[round(word.start * codec.sample_rate_hz):round(word.end * codec.sample_rate_hz)] = True
            rms = wave[:, sung].square().mean().sqrt()
            if not rms > QUIETEST_RMS:                       # NaN if all words are past the end
                raise UserError(f"{path}: is silent where its words are")
            means = self.codec.encode(wave[None] * (SUNG_RMS / rms))[0].T
            posterior = torch.cat([means, torch.zeros_like(means)])
        else:
            posterior = self.codec.posterior(wave[None])[0]

        parts = {"latent.pt": posterior.to(getattr(torch, cfg.dtype)), "style.pt": self.style(song, seconds),
                 "json": {"word": [{name: getattr(word, name) for name in ("word", "start", "end", "phoneme")}
                                   for word in words]}}
        for ending, value in parts.items():
            if isinstance(value, Tensor) and not value.isfinite().all():
                raise UserError(f"{path}: its {ending} is not finite in {value.dtype}")
        return seconds, parts

    def style(self, song: Song, seconds: float) -> Tensor:
        """A song's own style or that of all songs (E,), or the styles of n parts of its recording (n, E)."""
        if song.style:
            return read_vector(song.style, self.preset.model.cond_dim, str(song.style))
        if self.one_style is not None:
            return self.one_style
        room_s, count = max(0.0, seconds - self.cfg.num_style_secs), self.cfg.style_windows
        starts = sorted({room_s * (i + 0.5) / count for i in range(count)})
        return torch.stack([self.encoder().audio(read_clip(song.recording, Crop(
            start, self.cfg.num_style_secs, None))) for start in starts])


# Shards: songs-000000.tar, and beside it its account, songs-000000.jsonl: what became of each of its songs.

class NoSongs(Exception):
    """All songs of a shard were rejected: it gets an account, but no tar."""


def read_account(shard: Path) -> list[dict]:
    """The rows of a shard's account, one for each song."""
    return [json.loads(line) for line in shard.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]


def is_finished(shard: Path, songs: list[Song], settings: str) -> bool:
    """Whether a shard was made of exactly these songs, files and settings."""
    with contextlib.suppress(*READ_ERRORS):
        rows = read_account(shard)
        found = [(row["id"], row["inputs"], row["settings"]) for row in rows]
        whole = shard.exists() == any(row["status"] == "made" for row in rows)
        return whole and found == [(song.key, song.inputs, settings) for song in songs]
    return False


def add(tar: tarfile.TarFile, name: str, value: Tensor | dict) -> None:
    """Append a file to a tar: a tensor by torch.save, a dict as JSON."""
    data = io.BytesIO()
    if isinstance(value, Tensor):
        torch.save(value.contiguous().clone(), data)
    else:
        data.write(json.dumps(value).encode())
    info = tarfile.TarInfo(name)
    info.size = data.tell()
    data.seek(0)
    tar.addfile(info, data)


def write_shard(shard: Path, songs: list[Song], converter: Converter) -> None:
    """Make a shard and its account; rejected songs are named on stderr.

    Whenever the process is killed, there is no tar without its account, nor with that of an earlier tar.
    """
    rows = []
    with contextlib.suppress(NoSongs), replacing(shard) as temporary:
        with tarfile.open(temporary, "w") as tar:
            for song in songs:
                began = time.perf_counter()
                row = {"id": song.key, "duration": None, "status": "rejected", "reason": "",
                       "inputs": song.inputs, "settings": converter.settings}
                try:
                    seconds, parts = converter.convert(song)
                except SONG_ERRORS as e:
                    reason = describe(e)                     # which may not say whose fault it is
                    if not reason.startswith(str(song.recording.with_suffix(""))):
                        reason = f"{song.recording}: {reason}"
                    row["reason"] = str(UserError(reason))
                    print(f"rejected: {row['reason']}", file=sys.stderr, flush=True)
                else:
                    row |= {"duration": round(seconds, 3), "status": "made"}
                    for ending, value in parts.items():
                        add(tar, f"{song.key}.{ending}", value)
                    print(f"{song.key}: {seconds:.1f} s of song in {time.perf_counter() - began:.1f} s",
                          flush=True)
                rows.append(row)

        # The old tar goes first, then its account; the new tar comes last, when `replacing` ends.
        shard.unlink(missing_ok=True)
        write_text(shard.with_suffix(".jsonl"), "".join(json.dumps(row) + "\n" for row in rows))
        if all(row["status"] == "rejected" for row in rows):
            raise NoSongs


def tidy(out: Path, count: int) -> None:
    """Delete the shards from `count` on of an earlier run.

    Raises: UserError if that fails, or if there are shards of another origin, which would be lost.
    """
    with reading(f"--out {out}"):
        files = sorted(out.iterdir(), reverse=True)          # a tar before its account
        for path in files:
            number = SHARD.fullmatch(path.name)
            if number and number[2] == "tar" and path.with_suffix(".jsonl") not in files:
                raise UserError(f"--out {out}: {path.name} was not made by this command; name another folder")
            if number and int(number[1]) >= count:
                path.unlink()


def main(argv: list[str] | None = None) -> None:
    """Make the shards of all songs, together with the other processes of torchrun.

    Exits with code 1 if too many songs are rejected. Raises: UserError for a mistake, or if all are rejected.
    """
    cfg = parse(PrepareConfig, __doc__, argv, name="python -m tools.prepare")
    songs, processes = find_songs(cfg.songs), Processes()
    hears = not cfg.style and any(not song.style and not song.fault for song in songs)
    device = processes.device(cfg.device)
    converter = processes.one_first(lambda: Converter(cfg, device, hears))

    # Each process makes its share of the shards.
    shards = [(cfg.out / f"songs-{i:06d}.tar", songs[first:first + cfg.songs_per_shard])
              for i, first in enumerate(range(0, len(songs), cfg.songs_per_shard))]
    make_folder(cfg.out)
    processes.hold(cfg.out)
    if processes.main:
        tidy(cfg.out, len(shards))
    processes.wait()
    for shard, part in shards[processes.rank::processes.world]:
        if is_finished(shard, part, converter.settings):
            print(f"{shard.name}: {len(part)} songs, finished before", flush=True)
        else:
            write_shard(shard, part, converter)
    processes.wait()

    # What belongs to all shards: ids.jsonl and report.json, from their accounts, and the assets for train.py.
    rows = [row for shard, _ in shards for row in read_account(shard)]
    made, rejected = ([row for row in rows if row["status"] == status] for status in ("made", "rejected"))
    if processes.main:
        seconds = sum(row["duration"] for row in made)
        ids = [json.dumps({key: row[key] for key in ("id", "duration")}) + "\n" for row in made]
        write_text(cfg.out / "ids.jsonl", "".join(ids))
        write_json(cfg.out / "report.json", {
            "made": len(made), "rejected": len(rejected), "seconds": round(seconds, 3),
            "reasons": {next(iter(row["inputs"])): row["reason"] for row in rejected},
            "settings": dataclasses.asdict(cfg)})
        with replacing(cfg.out / SILENCE) as path, path.open("wb") as file:
            torch.save(converter.silence().clone(), file)    # which would write a path's name into it
        for name, file in converter.assets.items():
            if file:                                         # which may be the target itself
                with replacing(cfg.out / name) as path:
                    shutil.copyfile(file, path)
        print(f"{cfg.out}: {len(made)} songs of {seconds:.0f} s in {len(shards)} shards; {len(rejected)} "
              "rejected, see report.json")
    processes.close()
    if not made:
        raise UserError(f"--songs {cfg.songs}: all {len(rows)} songs were rejected; why: "
                        f"{cfg.out / 'report.json'}")
    if len(rejected) > cfg.max_rejected * len(rows):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
