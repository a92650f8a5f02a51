"""Songs in WebDataset shards -> the batch that the network reads.

Read `make_item` (one song: posterior, words, crop), `collate` (the batch dict), `read_item` (a song's files),
`expand` (where shards are), then `Shards` (local files, in any order), `Stream` (all else, front to back) and
`load`, which picks one of them. A batch is a dict: latents (B, T, C), phonemes (B, 4T) ids, style (B, E),
start_time, duration_abs, duration_rel (B,). A song in a shard: KEY.latent.pt (2C, frames) means then standard
deviations, KEY.style.pt (E,) or (n, E), and KEY.json {"word": [{"start", "end", "phoneme"}, ...]} in seconds.
Source: the published JAM-0.5 data conversion.
"""

import array
import collections
import contextlib
import functools
import glob
import http.client
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from cli import read_text
from config import READ_ERRORS, DataSettings, Preset, UserError
from phonemes import CELLS_PER_FRAME, SymbolTable, phoneme_grid

ENDINGS = ("latent.pt", "style.pt", "json")
LONGEST_S = 500                # duration_abs reaches 1 here
TAIL_FRAMES = 8                # padding behind the longest song of a trimmed batch, at least
MULTIPLE = 16                  # a trimmed batch's length is one of these
POOL = 16                      # blocks of songs that are sorted by length together
RETRY_S = (1, 4)               # seconds before an address is tried again
TIMEOUT_S = 60
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz")
TAR_ERRORS = (*READ_ERRORS, tarfile.TarError, http.client.HTTPException, OverflowError)


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


@dataclass
class Batch:
    """What training gets for one step of one process."""
    tensors: dict[str, Tensor]     # what `collate` makes
    seeds: list[int]               # of each song's draws
    ids: list[str]                 # "SHARD: KEY" of each song
    broken: list[str]              # what was passed over, and for the first time: "SHARD: song KEY: reason"
    place: dict                    # JSON-able: where this process's reading goes on after this batch


def together(items: list[dict], silence: Tensor, preset: Preset, broken: tuple[str, ...] = (),
             place: dict | None = None) -> Batch:
    """A batch of items that have "id", "seed" and "broken", too."""
    return Batch(collate(items, silence, preset) if items else {}, [item["seed"] for item in items],
                 [item["id"] for item in items],
                 [*broken, *(name for item in items for name in item["broken"])], place or {})


# A song's files

def words_of(content: dict) -> list[tuple[float, float, str]]:
    """The words (start, end, phoneme) of a song's JSON. Raises: one of READ_ERRORS if it is another form."""
    words = []
    for i, word in enumerate(content["word"], 1):
        try:
            start, end, phoneme = word["start"], word["end"], word["phoneme"]
            valid = math.isfinite(start) and math.isfinite(end) and isinstance(phoneme, str)
        except (KeyError, TypeError, OverflowError):
            valid = False
        if not valid:
            raise ValueError(f"word {i}: expected start, end and phoneme")
        words.append((start, end, phoneme))
    return words


def read_song(parts: dict[str, bytes], preset: Preset) -> tuple[Tensor, Tensor, list]:
    """A song's posterior (2C, frames), style (E,) or (n, E), and words (start, end, phoneme), from the bytes
    of its files.

    Raises: one of READ_ERRORS if they are not that, or their numbers are not finite.
    """
    posterior, style = (torch.load(io.BytesIO(parts[ending]), map_location="cpu", weights_only=True)
                        .detach().float() for ending in ENDINGS[:2])
    channels, width = preset.model.mel_dim, preset.model.cond_dim
    if posterior.dim() != 2 or len(posterior) != 2 * channels or not posterior.shape[1]:
        raise ValueError(f"latent {tuple(posterior.shape)}; expected ({2 * channels}, frames), means then "
                         "standard deviations")
    if style.dim() not in (1, 2) or not len(style) or style.shape[-1] != width:
        raise ValueError(f"style {tuple(style.shape)}; expected ({width},) or (n, {width})")
    for name, numbers in (("latent", posterior), ("style", style)):
        if not numbers.isfinite().all():
            raise ValueError(f"{name}: infinite, or not a number")
    if posterior[channels:].min() < 0:
        raise ValueError("latent: a standard deviation below 0")
    return posterior, style, words_of(json.loads(parts["json"]))


def read_item(parts: dict[str, bytes], seed: int, data: DataSettings, preset: Preset,
              table: SymbolTable) -> dict:
    """A training song from the bytes of its files; style, crop and noise come from the seed alone.

    Raises: as `read_song`.
    """
    posterior, style, words = read_song(parts, preset)
    rng, (channels, frames) = torch.Generator().manual_seed(seed), posterior.shape
    if style.dim() == 2:
        drawn = torch.randint(len(style), (), generator=rng) if data.style_index is None else data.style_index
        style = style[drawn]
    last = 0 if data.from_start else max(0, frames - preset.model.max_frames)
    start = int(torch.randint(last + 1, (), generator=rng))
    noise = torch.randn(frames, channels // 2, generator=rng)
    return make_item(posterior, style, words, start, noise, preset, table)


def named(where: str, why: object) -> str:
    """What is broken and why, in one printable line."""
    return str(UserError(f"{where}: {' '.join(str(why).split())[:200] or type(why).__name__}"))


class Header(tarfile.TarInfo):
    """A member's header. tarfile takes a broken one, or none, for the end of the tar; here it is an error."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as e:
            raise tarfile.ReadError(f"not a tar, or cut off: byte {tar.offset}: {e}") from None


def members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, ending and header of each file that is part of a song; the name ends at its first dot."""
    for member in iter(tar.next, None):
        tar.members.clear()                                  # tarfile would keep all of them
        folder, slash, name = member.name.rpartition("/")
        key, _, ending = name.partition(".")
        if member.isreg() and key and ending.lower() in ENDINGS:
            yield folder + slash + key, ending.lower(), member


def missing(source: str, key: str, parts: Collection[str]) -> list[str]:
    """Names the first part that a song lacks, if it lacks one."""
    return [named(f"{source}: song {key}", f"no {key}.{ending}") for ending in ENDINGS
            if ending not in parts][:1]


# Where shards are

def braces(text: str) -> list[str]:
    """The names that {000..012} and {a,b} stand for; the first brace's choices vary slowest."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", text)
    if not found:
        return [text]
    low, high, names = found.groups()
    choices = (names.split(",") if names is not None
               else [f"{i:0{len(low)}d}" for i in range(int(low), int(high) + 1)])
    expanded = [name for c in choices for name in braces(text[:found.start()] + c + text[found.end():])]
    return list(dict.fromkeys(expanded))                     # {a,{b,c}} meets a twice


def is_file(source: str) -> bool:
    """Whether a source can be read from anywhere in it."""
    return source != "-" and not source.startswith(("http://", "https://", "pipe:"))


def in_place(source: str) -> bool:
    """Whether its songs are read by random access, not front to back."""
    return is_file(source) and not source.endswith(COMPRESSED)


def expand(shards: tuple[str, ...], pipe: bool) -> list[str]:
    """Sources in order: files, http(s) addresses, - (standard input), pipe:COMMAND.

    Raises: UserError if there are none, a file is missing, or a command is not allowed to run.
    """
    sources = []
    for name in itertools.chain.from_iterable(map(braces, shards)):
        if name.startswith("pipe:") and not pipe:
            raise UserError(f"{name}: a command; --data.pipe true lets it run")
        found = [name]
        if is_file(name) and os.path.isdir(name):
            found = sorted(glob.glob(os.path.join(glob.escape(name), "*.tar")))
        elif is_file(name) and re.search(r"[*?]", name):
            found = sorted(glob.glob(name.replace("[", "[[]")))
        for source in found or [name]:
            if is_file(source) and not os.path.isfile(source):
                raise UserError(f"{source}: no such shard")
        sources += found
    if not sources:
        raise UserError(f"{' '.join(shards) or 'no shards'}: expected some in --data.shards")
    return sources


def chances(data: DataSettings) -> dict[str, float] | None:
    """With which probability an epoch has each song of --data.ids; None: all songs are wanted.

    Raises: UserError, with the line, if the list cannot be read.
    """
    if data.ids is None:
        if data.min_duration or data.resample_duration is not None:
            raise UserError("--data.min-duration and --data.resample-duration: durations are in --data.ids")
        return None
    found = {}
    for i, line in enumerate(read_text(data.ids).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            key, seconds = row["id"], float(row["duration"])
            if not isinstance(key, (str, int)) or not 0 <= seconds < math.inf:
                raise ValueError
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            raise UserError(f'{data.ids}: line {i}: {line[:60]}; expected {{"id": name, "duration": seconds}}'
                            ) from None
        if seconds > data.min_duration:
            share = 1.0 if data.resample_duration is None else seconds / max(data.resample_duration, 1e-9)
            found[str(key)] = min(1.0, share ** 1.2)
    return found


def chance_of(wanted: dict[str, float] | None, key: str) -> float:
    """The probability that `chances` has for a key of a tar; folders in it do not count."""
    return 1.0 if wanted is None else wanted.get(key.rpartition("/")[2], 0.0)


# Local files, in any order

def seeded(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(functools.reduce(lambda a, b: a * 1_000_003 + b, numbers) % 2 ** 63)


def mixed(lengths: Tensor, bucket: int, rng: torch.Generator) -> Tensor:
    """A random order of songs; neighbours in a block of `bucket` have like lengths, to save padding."""
    order = torch.randperm(len(lengths), generator=rng)
    if bucket <= 1:
        return order
    pools = [pool[lengths[pool].argsort(stable=True)] for pool in order.split(POOL * bucket)]
    blocks = torch.cat(pools).split(bucket)
    return torch.cat([blocks[i] for i in torch.randperm(len(blocks), generator=rng)])


class Shards(Dataset):
    """Songs of local tars by number, read straight from their place in them.

    An item is asked for as (song, seed of its draws), and tells its id, its seed and the broken songs that
    were passed over for it; `strict` raises UserError instead. `broken` is what was so when it was indexed.
    Differs: the original streams shards through a shuffle buffer. Random access makes the order a pure
    function of the seed, so that a run goes on exactly where it stopped.
    """

    def __init__(self, data: DataSettings, preset: Preset, table: SymbolTable, strict: bool = False):
        self.data, self.strict, self.broken = data, strict, []
        self.item = functools.partial(read_item, data=data, preset=preset, table=table)
        self.sources = expand(data.shards, data.pipe)
        self.keys, numbers, ends, keep = [], array.array("q"), [0], array.array("f")
        wanted = chances(data)
        for shard, source in enumerate(self.sources):
            for key, parts in self.index(source).items():
                chance, lacks = chance_of(wanted, key), missing(source, key, parts)
                if chance and not lacks:
                    self.keys.append(key)
                    keep.append(chance)
                    numbers.extend([shard, *(x for ending in ENDINGS for x in parts[ending])])
                self.broken += lacks if chance else []
            ends.append(len(self.keys))
        if strict and self.broken:
            raise UserError(self.broken[0])
        if sum(keep) < 0.01:                                 # songs an epoch: nearly all would be empty
            raise UserError(f"{self.broken[0]}: no song left" if self.broken else
                            f"{' '.join(data.shards)}: no song, or none that --data.ids wants")
        # of each song: its shard, then offset and bytes of its parts
        self.places = torch.tensor(numbers).view(-1, 1 + 2 * len(ENDINGS))
        self.ends, self.keep = torch.tensor(ends), torch.tensor(keep)

    def index(self, source: str) -> dict[str, dict[str, tuple[int, int]]]:
        """Key -> ending -> (offset, bytes) of a shard's songs."""
        if not in_place(source):
            raise UserError(f"{source}: expected a file, not compressed: its songs are read in any order")
        found = {}
        try:
            size = os.path.getsize(source)
            with tarfile.open(source, "r:", tarinfo=Header) as tar:
                for key, ending, member in members(tar):
                    if member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"cut off: it ends amid {member.name}")
                    found.setdefault(key, {})[ending] = (member.offset_data, member.size)
        except TAR_ERRORS as e:
            self.broken.append(named(source, e))
        return found

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, song: int, ending: str) -> bytes:
        """One of a song's files."""
        shard, *places = self.places[song].tolist()
        part = 2 * ENDINGS.index(ending)
        with open(self.sources[shard], "rb") as file:
            file.seek(places[part])
            return file.read(places[part + 1])

    def __getitem__(self, job: tuple[int, int]) -> dict:
        (first, seed), broken = job, []
        for song in range(first, first + len(self)):
            song %= len(self)
            source, key = self.sources[self.places[song, 0]], self.keys[song]
            try:
                item = self.item({ending: self.read(song, ending) for ending in ENDINGS}, seed)
                return item | {"id": f"{source}: {key}", "seed": seed, "broken": broken}
            except READ_ERRORS as e:
                broken.append(named(f"{source}: song {key}", e))
                if self.strict:
                    raise UserError(broken[0]) from None
        raise UserError(f"no song can be read; {broken[0]}")

    def order(self, seed: int, epoch: int) -> Tensor:
        """The songs of an epoch and the seeds of their draws (n, 2), a pure function of the arguments."""
        rng, songs = seeded(seed, epoch), torch.arange(len(self))
        if self.data.replacement:
            drawn = torch.randint(len(self.sources), (len(self.sources),), generator=rng)
            songs = torch.cat([songs[self.ends[i]:self.ends[i + 1]] for i in drawn])
        if self.data.resample_duration is not None:
            songs = songs[torch.rand(len(songs), generator=rng) < self.keep[songs]]
        lengths = self.places[songs, 2]                      # bytes of the latents
        songs = songs[mixed(lengths, self.data.bucket, rng)]
        return torch.stack([songs, torch.randint(2 ** 62, songs.shape, generator=rng)], 1)


def rounds(order: Callable[[int], Tensor], batch: int, rank: int, world: int,
           place: dict) -> Iterator[tuple[list[list[int]], dict]]:
    """Endless batches of (song, seed) for one of `world` processes, and the place after each of them.

    All processes together take batch * world songs of the epoch at once, so that the songs of a run do not
    depend on how many processes share them; what an epoch lacks comes from the next one.
    """
    epoch, done = place["epoch"], place["songs"]
    jobs, size = order(epoch), batch * world
    while True:
        taken = jobs[done:done + size].tolist()
        done += len(taken)
        while len(taken) < size:
            epoch, jobs = epoch + 1, order(epoch + 1)
            done = min(size - len(taken), len(jobs))
            taken += jobs[:done].tolist()
        yield taken[rank * batch:(rank + 1) * batch], {"epoch": epoch, "songs": done}


# All else, front to back

@contextlib.contextmanager
def opened(source: str) -> Iterator[BinaryIO]:
    """A source's bytes. Raises: OSError, or HTTPException, if they cannot be had, or a command failed."""
    if source == "-":
        yield sys.stdin.buffer
    elif source.startswith("pipe:"):
        process = subprocess.Popen(source.removeprefix("pipe:"), shell=True, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE)
        try:
            with process.stdout as file:
                yield file
                while file.read(1 << 20):                    # closed too early, it would fail
                    pass
            if process.wait():
                raise OSError(f"the command ended with exit code {process.returncode}")
        finally:
            process.kill()
            process.wait()
    elif is_file(source):
        with open(source, "rb") as file:
            yield file
    else:
        for pause_s in (*RETRY_S, None):
            try:
                response = urllib.request.urlopen(source, timeout=TIMEOUT_S)
                break
            except (OSError, http.client.HTTPException):
                if pause_s is None:
                    raise
                time.sleep(pause_s)
        with response:
            yield response


def read_tar(source: str) -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """Key and parts of each song in turn, or what is broken: a song without a part, or the rest."""
    song, parts, broken = "", {}, []
    try:
        with opened(source) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=Header) as tar:
            for key, ending, member in members(tar):
                if parts and key != song:
                    yield song, parts, missing(source, song, parts)
                    parts = {}
                song, parts[ending] = key, tar.extractfile(member).read()
    except TAR_ERRORS as e:
        broken = [named(source, e)]
    if parts:
        yield song, parts, missing(source, song, parts)
    if broken:
        yield "", {}, broken


@dataclass
class Window:
    """Songs of a shard that are shuffled together."""
    number: int                              # the shard's place in the endless sequence of shards
    passed: int                              # songs of the shard that were given before a break
    lane: dict                               # the lane's state when the shard is through
    first: int                               # songs of the shard before these
    songs: list[tuple[str, dict[str, bytes]]]
    broken: list[str]                        # met while they were read

    def state(self, place: int) -> dict:
        """The lane's state when `place` songs of the shard have been given."""
        return self.lane | {"todo": [[self.number, place], *self.lane["todo"]]}


@dataclass(eq=False)
class Stream(IterableDataset):
    """Batches of songs from any sources, which are read front to back.

    There is one endless sequence of shards. Each reading process is a lane, which takes the `todo` of its
    state, shards begun [number, songs given], and then every stride-th shard from `next` on.
    """
    sources: list[str]
    data: DataSettings
    seed: int
    batch: int
    lanes: list[dict]                        # states of this training process's lanes
    item: Callable[[dict, int], dict]        # `read_item`, and
    together: Callable[..., Batch]           # `together`, with their settings

    def __post_init__(self):
        self.wanted = chances(self.data)
        self.once = "-" in self.sources      # standard input cannot be read again

    def source(self, number: int) -> str:
        """The source of a shard of the endless sequence."""
        count = len(self.sources)
        rng = seeded(self.seed, number // count)
        order = (range(count) if self.once else torch.randint(count, (count,), generator=rng)
                 if self.data.replacement else torch.randperm(count, generator=rng))
        return self.sources[order[number % count]]

    def windows(self, lane: dict) -> Iterator[Window | None]:
        """A lane's windows, and None after each song read that does not complete one."""
        todo, following, stride = lane["todo"], lane["next"], lane["stride"]
        while todo or not self.once or following < len(self.sources):
            if not todo:
                todo, following = [[following, 0]], following + stride
            (number, passed), *todo = todo
            window = Window(number, passed, {"todo": todo, "next": following, "stride": stride}, 0, [], [])
            for key, parts, broken in read_tar(self.source(number)):
                if key and not chance_of(self.wanted, key):
                    continue
                window.broken += broken
                window.songs += [] if broken else [(key, parts)]
                full = len(window.songs) >= self.data.window
                yield window if full else None
                if full:
                    window = replace(window, first=window.first + len(window.songs), songs=[], broken=[])
            yield window

    def given(self, window: Window) -> Iterator[tuple[dict | None, list[str], int]]:
        """Of each song in the window's order: its item, or None; what is broken; songs given so far."""
        rng, songs = seeded(self.seed, window.number, window.first), window.songs
        source = self.source(window.number)
        order = mixed(torch.tensor([len(parts["latent.pt"]) for _, parts in songs]), self.data.bucket, rng)
        seeds = torch.randint(2 ** 62, order.shape, generator=rng)
        luck = torch.rand(order.shape, generator=rng)
        if window.broken:
            yield None, window.broken, max(window.passed, window.first)
        for place, (i, seed, drawn) in enumerate(zip(order.tolist(), seeds.tolist(), luck.tolist()),
                                                 window.first + 1):
            (key, parts), songs[i] = songs[i], None          # its bytes are needed no more
            if place <= window.passed or drawn >= chance_of(self.wanted, key):
                continue
            try:
                item = self.item(parts, seed) | {"id": f"{source}: {key}", "seed": seed, "broken": []}
                yield item, [], place
            except READ_ERRORS as e:
                yield None, [named(f"{source}: song {key}", e)], place

    def songs(self, lane: dict) -> Iterator[tuple[dict | None, list[str], dict]]:
        """As `given`, for all windows of a lane, and with the lane's state after each song."""
        reading, waiting, barren = self.windows(lane), collections.deque(), 0
        for found in reading:
            waiting.extend([found] if found else [])
            while waiting:
                window, barren = waiting.popleft(), barren + 1
                for item, broken, place in self.given(window):
                    # one song is read for each that is given, so that no batch waits for a whole window
                    waiting.extend(filter(None, itertools.islice(reading, 1)))
                    barren = 0 if item else barren
                    yield item, broken, window.state(place)
                if barren > 10 * len(self.sources):
                    raise UserError(f"{self.sources[0]}: no song in it nor in {barren} others, or none that "
                                    "--data.ids wants")

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        items, broken, place = [], [], self.lanes[worker.id if worker else 0]
        for item, found, after in self.songs(place):
            items, broken, place = items + [item] * bool(item), broken + found, after
            if len(items) == self.batch or broken and not items:     # an empty one tells what is broken
                yield self.together(items, broken=broken, place=place)
                items, broken = [], []
        if items:
            yield self.together(items, broken=broken, place=place)


def deal(places: list[dict], lanes: int) -> list[dict]:
    """The states of `lanes` lanes that go on where those in `places` stopped: nothing is lost or repeated."""
    then = [lane for place in places for lane in place["lanes"]]
    if len(then) == lanes:
        return then
    # behind `top` none has read; before it, some have read less of their share than others
    top = max((lane["next"] for lane in then), default=0)
    todo = sorted(shard for lane in then for shard in [
        *lane["todo"], *([number, 0] for number in range(lane["next"], top, lane["stride"]))])
    return [{"todo": todo[i::lanes], "next": top + i, "stride": lanes} for i in range(lanes)]


def in_turn(batches: Iterator[Batch], lanes: list[dict]) -> Iterator[Batch]:
    """The batches of lanes that take turns; a place has all of them, the one whose turn is next first."""
    for batch in batches:
        lanes = [*lanes[1:], batch.place]
        yield replace(batch, place={"lanes": lanes})


# What training reads

def one_thread(worker: int) -> None:
    """What a reading process does first: it must not take the network's cores."""
    torch.set_num_threads(1)


def limit(broken: Collection[str], songs: int, share: float) -> None:
    """Raise UserError if more than a share of the songs is broken; the first 100 are taken for 100."""
    if len(broken) > share * max(songs, 100):
        raise UserError(f"{len(broken)} broken among {songs} songs, more than --data.max-broken {share} "
                        f"allows; one of them: {next(iter(broken))}")


def counted(batches: Iterator[Batch], share: float) -> Iterator[Batch]:
    """The same batches, each with what is newly found broken; errors of reading processes are one line."""
    songs, met, new = 0, {}, []
    while True:
        try:
            batch = next(batches, None)
        except UserError as e:                               # with a traceback before and a \\n behind it
            text = str(e.with_traceback(None))               # which would keep the loader from ending
            raise UserError(text.split("UserError: ")[-1].removesuffix("\\n")) from None
        except (RuntimeError, OSError, EOFError) as e:       # the last two amid a batch of its
            if isinstance(e, RuntimeError) and not str(e).startswith("DataLoader worker"):
                raise
            raise UserError(named("a process that reads songs died", e)) from None
        if batch is None:
            break
        songs += len(batch.ids)
        new += [name for name in dict.fromkeys(batch.broken) if name not in met]
        met.update(dict.fromkeys(batch.broken))
        limit(met, songs, share)
        if batch.ids:
            yield replace(batch, broken=new)
            new = []
    if not songs:
        raise UserError(f"no song left{'; ' + next(iter(met)) if met else ''}")


def load(data: DataSettings, preset: Preset, table: SymbolTable, silence: Tensor, batch: int, seed: int,
         share: tuple[int, int] = (0, 1), places: list[dict] | None = None) -> Iterator[Batch]:
    """Batches for one training process, without end (but of standard input).

    Args: share, its rank and how many there are; silence (C,), which songs are padded with; batch, songs of
        each; places, the last Batch.place of every rank, to go on from: with the same settings, exactly as
        if there had been no break.
    Raises: UserError, also while it is read, if there are no songs or too many broken ones.
    """
    rank, world = share
    sources = expand(data.shards, data.pipe)
    put_together = functools.partial(together, silence=silence, preset=preset)
    local = all(map(in_place, sources))
    if places and ("lanes" in places[0]) == local:
        raise UserError(f"{sources[0]}: the run that goes on had {'streams' if local else 'local files'}; "
                        "expected the same in --data.shards")
    # a generator of its own: the loader draws from the global one else
    options = dict(num_workers=data.workers, worker_init_fn=one_thread, generator=torch.Generator())
    if local:
        shards = Shards(data, preset, table)
        for name in shards.broken if rank == 0 else ():
            print(f"warning: {name}", file=sys.stderr)
        limit(shards.broken, len(shards) + len(shards.broken), data.max_broken)
        plan, again = itertools.tee(rounds(functools.partial(shards.order, seed), batch, rank, world,
                                           places[0] if places else {"epoch": 0, "songs": 0}))
        loader = iter(DataLoader(shards, batch_sampler=(jobs for jobs, _ in plan), collate_fn=put_together,
                                 **options))
        return counted((replace(made, place=place) for made, (_, place) in zip(loader, again)),
                       data.max_broken)
    readers = max(1, data.workers)
    if "-" in sources:
        if readers * world > 1:
            raise UserError("-: one process reads standard input; expected --data.workers 0 or 1 and one "
                            "training process")
        options["num_workers"] = 0                           # another process has not this standard input
    lanes = deal(places or [], readers * world)[rank * readers:(rank + 1) * readers]
    stream = Stream(sources, data, seed, batch, lanes,
                    functools.partial(read_item, data=data, preset=preset, table=table), put_together)
    return counted(in_turn(iter(DataLoader(stream, batch_size=None, **options)), lanes), data.max_broken)


if __name__ == "__main__":
    from cli import run
    from prepare import main
    run(main)
