"""Songs in WebDataset shards -> the batch that the network reads.

Read `make_item` (one song: posterior, words, crop), `collate` (the batch dict), then `Shards` and `batches`
(order). A batch is a dict: latents (B, T, C), phonemes (B, 4T) ids, style (B, E), start_time, duration_abs,
duration_rel (B,). A song in a shard: KEY.latent.pt (2C, frames) means then standard deviations, KEY.style.pt
(E,) or (n, E), and KEY.json {"word": [{"start", "end", "phoneme"}, ...]} in seconds. Source: the published
JAM-0.5 data conversion.
"""

import glob
import io
import itertools
import json
import math
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from config import READ_ERRORS, Preset, UserError
from phonemes import CELLS_PER_FRAME, SymbolTable, phoneme_grid

LONGEST_S = 500                # duration_abs reaches 1 here
TAIL_FRAMES = 8                # padding behind the longest song of a trimmed batch, at least
MULTIPLE = 16                  # a trimmed batch's length is one of these


def window(frames: int, start: int, max_frames: int, hop: int,
           rate_hz: int) -> tuple[tuple[float, float], dict[str, float]]:
    """The part of a song that a crop of max_frames from `start` shows.

    Returns: its (start, end) in seconds; the scalars start_time (a fraction of the song), duration_abs (log
        scale, 1 at 500 s) and duration_rel (a fraction of max_frames).
    """
    a, b = start * hop / rate_hz, min(start + max_frames, frames) * hop / rate_hz
    scalars = {"start_time": start / frames, "duration_abs": math.log1p(b - a) / math.log1p(LONGEST_S),
               "duration_rel": (b - a) / (max_frames / (rate_hz / hop))}
    return (a, b), scalars


def conditions(words: list[tuple[float, float, str]], frames: int, start: int, preset: Preset,
               table: SymbolTable) -> tuple[dict, list]:
    """A song's phonemes (4 max_frames,) and scalars, and where phonemes.phoneme_grid placed its words."""
    codec, max_frames = preset.codec, preset.model.max_frames
    seen, scalars = window(frames, start, max_frames, codec.hop, codec.sample_rate_hz)
    cell_hz = CELLS_PER_FRAME * codec.sample_rate_hz / codec.hop
    row, placed = phoneme_grid(words, table, preset.filler, CELLS_PER_FRAME * max_frames, seen, cell_hz)
    return {"phonemes": torch.tensor(row), **scalars}, placed


def make_item(posterior: Tensor, style: Tensor, words: list[tuple[float, float, str]], start: int,
              noise: Tensor, preset: Preset, table: SymbolTable) -> dict:
    """One training song.

    Samples the whole posterior (2C, frames) with noise (frames, C), then crops from `start`.
    """
    mean, std = posterior.float().T.chunk(2, dim=-1)                                     # (frames, C) each
    latents = (mean + std * noise)[start:start + preset.model.max_frames]
    return {"latents": latents, "style": style.float(),
            **conditions(words, len(mean), start, preset, table)[0]}


def trimmed(frames: int, preset: Preset) -> int:
    """Frames T that the network computes for a song of `frames`."""
    if not preset.trim:
        return preset.model.max_frames
    return min(-(-(frames + TAIL_FRAMES) // MULTIPLE) * MULTIPLE, preset.model.max_frames)


def collate(items: list[dict], silence: Tensor, preset: Preset) -> dict[str, Tensor]:
    """Stack songs; latents, where they are given, end in copies of the `silence` frame (C,)."""
    longest = max(item["frames"] if "frames" in item else len(item["latents"]) for item in items)
    frames = trimmed(longest, preset)
    batch = {k: torch.tensor([item[k] for item in items], dtype=torch.float32)
             for k in ("start_time", "duration_abs", "duration_rel")}
    batch["phonemes"] = torch.stack([item["phonemes"][:CELLS_PER_FRAME * frames] for item in items])
    batch["style"] = torch.stack([item["style"] for item in items])
    if "latents" in items[0]:
        batch["latents"] = torch.stack([torch.cat([x := item["latents"], silence.expand(frames - len(x), -1)])
                                        for item in items])
    return batch


def expand(pattern: str) -> list[Path]:
    """Files of a shard pattern: {000..012} counts with leading zeros, * and ? match names.

    Raises: UserError if a file is missing or nothing matches.
    """
    counts = [[f"{i:0{len(a)}d}" for i in range(int(a), int(b) + 1)]
              for a, b in re.findall(r"\{(\d+)\.\.(\d+)\}", pattern)]
    parts = re.split(r"\{\d+\.\.\d+\}", pattern)
    names = ["".join(x + y for x, y in zip(parts, [*choice, ""])) for choice in itertools.product(*counts)]
    paths = [Path(p) for name in names
             for p in (sorted(glob.glob(name)) if re.search(r"[*?]", name) else [name])]
    missing = [p for p in paths if not p.is_file()]
    if missing or not paths:
        raise UserError(f"{missing[0] if missing else pattern}: no such shard")
    return paths


@dataclass(frozen=True)
class Member:
    """Where one song's parts lie in its tar: name ending -> (offset, bytes)."""
    path: Path
    key: str
    parts: dict[str, tuple[int, int]]


class Shards(torch.utils.data.Dataset):
    """Songs by number, read straight from their place in the tars.

    An item is asked for as (song, seed of its draws).
    Differs: the original streams shards through a shuffle buffer. Random access makes the order a pure
    function of seed and step, so that a run goes on exactly where it stopped.
    """

    ENDINGS = ("latent.pt", "style.pt", "json")

    def __init__(self, pattern: str, preset: Preset, table: SymbolTable):
        self.preset, self.table = preset, table
        self.songs = [song for path in expand(pattern) for song in self.index(path)]

    @classmethod
    def index(cls, path: Path) -> list[Member]:
        """The songs of one shard. Raises: UserError if it is no tar or a song lacks a part."""
        found: dict[str, dict[str, tuple[int, int]]] = {}
        try:
            with tarfile.open(path, "r:") as tar:            # not compressed: songs are read in place
                for member in filter(tarfile.TarInfo.isfile, tar):
                    folder, slash, name = member.name.rpartition("/")
                    key, _, ending = name.partition(".")
                    found.setdefault(folder + slash + key, {})[ending] = (member.offset_data, member.size)
        except tarfile.TarError as e:
            raise UserError(f"{path}: not a tar file: {e}") from None
        for key, parts in found.items():
            for ending in cls.ENDINGS:
                if ending not in parts:
                    raise UserError(f"{path}: song {key}: no {key}.{ending}")
        return [Member(path, key, parts) for key, parts in found.items()]

    def __len__(self) -> int:
        return len(self.songs)

    def read(self, song: Member, ending: str) -> bytes:
        offset, size = song.parts[ending]
        with song.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def parts(self, song: Member) -> tuple[Tensor, Tensor, list[tuple[float, float, str]]]:
        """A song's posterior (2C, frames), style (E,) or (n, E), and words. Raises: one of READ_ERRORS."""
        posterior, style = (torch.load(io.BytesIO(self.read(song, ending)), weights_only=True)
                             for ending in self.ENDINGS[:2])
        rows, width = 2 * self.preset.model.mel_dim, self.preset.model.cond_dim
        if posterior.dim() != 2 or len(posterior) != rows or not posterior.shape[1]:
            raise ValueError(f"{len(posterior)} latent rows; expected {rows}, means then standard deviations")
        if not len(style) or style.dim() > 2 or style.shape[-1] != width:
            raise ValueError(f"style {tuple(style.shape)}; expected ({width},) or (n, {width})")
        words = []
        for i, word in enumerate(json.loads(self.read(song, "json"))["word"], 1):
            try:
                start, end, phoneme = word["start"], word["end"], word["phoneme"]
                valid = math.isfinite(start) and math.isfinite(end) and isinstance(phoneme, str)
            except (KeyError, TypeError, OverflowError):
                valid = False
            if not valid:
                raise ValueError(f"word {i}: expected start, end and phoneme")
            words.append((start, end, phoneme))
        return posterior, style, words

    def __getitem__(self, job: tuple[int, int]) -> dict:
        song, rng = self.songs[job[0]], torch.Generator().manual_seed(job[1])
        try:
            posterior, style, words = self.parts(song)
        except READ_ERRORS as e:
            reason = " ".join(str(e).split())[:200] or type(e).__name__
            raise UserError(f"{song.path}: song {song.key}: {reason}") from None
        channels, frames = posterior.shape
        if style.dim() == 2:
            style = style[torch.randint(len(style), (), generator=rng)]
        start = int(torch.randint(max(0, frames - self.preset.model.max_frames) + 1, (), generator=rng))
        noise = torch.randn(frames, channels // 2, generator=rng)
        return make_item(posterior, style, words, start, noise, self.preset, self.table)


def batches(shards: Shards, size: int, seed: int, first_step: int = 0, rank: int = 0,
            world: int = 1) -> Iterator[list[tuple[int, int]]]:
    """Endless batches of (song, seed) from step first_step on, a pure function of the arguments.

    Every epoch is a new permutation. Songs of a like length share a batch, so that little of it is padding;
    each of `world` ranks gets its own part of every step.
    """
    length = torch.tensor([song.parts["latent.pt"][1] for song in shards.songs])
    per_epoch = len(shards) // (size * world)
    if not per_epoch:
        raise UserError(f"{len(shards)} songs are fewer than a step's {size * world}")
    for epoch in itertools.count(first_step // per_epoch):
        rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        order = torch.randperm(len(shards), generator=rng)
        pools = [pool[length[pool].argsort(stable=True)] for pool in order.split(16 * size * world)]
        steps = torch.cat(pools)[:per_epoch * size * world].view(per_epoch, world, size)
        steps = steps[torch.randperm(per_epoch, generator=rng)]
        seeds = torch.randint(2 ** 62, steps.shape, generator=rng)
        for step in range(first_step % per_epoch if epoch == first_step // per_epoch else 0, per_epoch):
            yield list(zip(steps[step, rank].tolist(), seeds[step, rank].tolist()))
