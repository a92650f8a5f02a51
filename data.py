"""Songs in WebDataset shards -> the batch that the network reads.

Read `make_item` (one song: posterior, words, crop), `collate` (the batch dict), `windows` (a song to sing),
`read_item` (a song's files), then `Shards` (local files, in any order), `epochs` (which songs come when) and
`load`, which streams what is not local: see support/stream.py. support/tars.py says where shards may be. A
batch is a dict: latents (B, T, C), phonemes (B, 4T) ids, style (B, E), start_time, duration_abs, duration_rel
(B,). A song in a shard: KEY.latent.pt (2C, frames) means then standard deviations, KEY.style.pt (E,) or
(n, E), and KEY.json {"word": [{"start", "end", "phoneme"}, ...]} in seconds; or the same in a folder KEY.
Source: the published JAM-0.5 data conversion.
"""

import array
import functools
import io
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from config import READ_ERRORS, DataSettings, Preset, UserError
from phonemes import CELLS_PER_FRAME, NO_WORD, SymbolTable, phoneme_grid
from support.stream import Batch, Stream, assign_to_lanes, check_broken, count_broken, in_turn
from support.stream import keep_probabilities, keep_probability, not_as_asked, seeded, shuffled
from support.tars import ENDINGS, FORMS, describe_fault, expand, indexed, missing_part, seekable

LONGEST_S = 500                # duration_abs reaches 1 here
TAIL_FRAMES = 8                # padding after the longest song of a trimmed batch, at least
MULTIPLE = 16                  # a trimmed batch's length is one of these
SHARED = 1 / 8                 # of a window's frames, at least, are its neighbour's, too


def crop_span(frames: int, start: int, max_frames: int, hop: int, rate_hz: int,
              end: int | None = None) -> tuple[tuple[float, float], dict[str, float]]:
    """The part of a song that a crop of max_frames from `start` covers; it may have to end earlier, at `end`.

    Returns: its (start, end) in seconds; the scalars start_time (a fraction of the song), duration_abs (log
        scale, 1 at 500 s) and duration_rel (a fraction of max_frames).
    """
    a, b = start * hop / rate_hz, min(start + max_frames, frames if end is None else end) * hop / rate_hz
    scalars = {"start_time": start / frames, "duration_abs": math.log1p(b - a) / math.log1p(LONGEST_S),
               "duration_rel": (b - a) / (max_frames / (rate_hz / hop))}
    return (a, b), scalars


def conditions(words: list[tuple[float, float, str]], frames: int, start: int, preset: Preset,
               table: SymbolTable, end: int | None = None) -> tuple[dict, list]:
    """A crop's phonemes (4 max_frames,) and scalars, and where phonemes.phoneme_grid placed its words.

    Args: words of the song and its frames; start of the crop; end, a frame where it ends at the latest.
    """
    codec, max_frames = preset.codec, preset.model.max_frames
    span, scalars = crop_span(frames, start, max_frames, codec.hop, codec.sample_rate_hz, end)
    cell_hz, cells = CELLS_PER_FRAME * codec.sample_rate_hz / codec.hop, CELLS_PER_FRAME * max_frames
    kept = cells if end is None else min(cells, CELLS_PER_FRAME * (end - start))
    row, placed = phoneme_grid(words, table, preset.filler, kept, span, cell_hz)
    return {"phonemes": torch.tensor(row + [NO_WORD] * (cells - kept)), **scalars}, placed


def window_starts(frames: int, length: int) -> list[int]:
    """First frames of the windows of `length` frames in which a song of `frames` is sung.

    They are as few as can be, spread evenly, and the last one ends with the song. A song that is no longer
    than a window has one.
    """
    rest = max(0, frames - length)
    count = -(-rest // (length - int(SHARED * length)))
    return [0, *(i * rest // count for i in range(1, count + 1))]


def windows(words: list[tuple[float, float, str]], style: Tensor, frames: int, part: tuple[int, int],
            preset: Preset, table: SymbolTable) -> list[tuple[int, dict[str, Tensor]]]:
    """The windows in which a song is sung: first frames, from the part's start on, and batches of one song.

    Each is conditioned as a training crop of the whole song.
    Args: words as for `conditions`; style (E,); frames of the song; part, the frames of it that are sung.
    """
    (start, end), length, found = part, preset.model.max_frames, []
    for first in window_starts(end - start, length):
        item, _ = conditions(words, frames, start + first, preset, table, end)
        item |= {"style": style, "frames": min(end - start, length)}
        found.append((first, collate([item], None, preset)))
    return found


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
    lengths = [item["frames"] if "frames" in item else len(item["latents"]) for item in items]
    frames = trimmed(max(lengths), preset)
    batch = {k: torch.tensor([item[k] for item in items], dtype=torch.float32)
             for k in ("start_time", "duration_abs", "duration_rel")}
    batch["phonemes"] = torch.stack([item["phonemes"][:CELLS_PER_FRAME * frames] for item in items])
    batch["style"] = torch.stack([item["style"] for item in items])
    if "latents" in items[0]:
        batch["latents"] = torch.stack([torch.cat([x := item["latents"], silence.expand(frames - len(x), -1)])
                                        for item in items])
    return batch


def to_batch(items: list[dict], silence: Tensor, preset: Preset, place: dict | None = None) -> Batch:
    """A batch of items that also have "id", "seed" and "broken"; those of broken songs have only "broken"."""
    songs = [item for item in items if "id" in item]
    return Batch(collate(songs, silence, preset) if songs else {}, [song["seed"] for song in songs],
                 [song["id"] for song in songs], [fault for item in items for fault in item["broken"]],
                 place or {})


# A song's files

def words_of(content: dict) -> list[tuple[float, float, str]]:
    """The words (start, end, phoneme) of a song's JSON. Raises: one of READ_ERRORS for another form."""
    words, entries = [], content["word"]
    try:
        for word in entries:
            start, end, phoneme = word["start"], word["end"], word["phoneme"]
            if not (math.isfinite(start) and math.isfinite(end) and isinstance(phoneme, str)):
                raise ValueError
            words.append((start, end, phoneme))
    except (LookupError, TypeError, ValueError, OverflowError):
        raise ValueError(f"word {len(words) + 1}: expected start, end and phoneme") from None
    return words


def check_finite(name: str, numbers: Tensor) -> None:
    """Raise ValueError for NaN or infinite numbers."""
    if not numbers.isfinite().all():
        raise ValueError(f"{name}: has {'NaN' if numbers.isnan().any() else 'infinite numbers'}")


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
        check_finite(name, numbers)
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


class Shards(Dataset):
    """Songs of local tars by number, read straight from their place in them.

    An item is asked for as (song, seed of its draws). It has the song's id, its seed and the broken songs
    that were skipped for it; with `strict`, a broken song raises UserError. `broken`: what the index lacks;
    `notes`: what else a user should hear.
    Differs: the original streams shards through a shuffle buffer. Random access makes the order a pure
    function of the seed, so that a run resumes exactly where it stopped.
    """

    def __init__(self, data: DataSettings, preset: Preset, table: SymbolTable, strict: bool = False):
        self.data, self.strict, self.broken = data, strict, []
        self.item = functools.partial(read_item, data=data, preset=preset, table=table)
        self.sources = expand(data.shards, data.pipe)
        self.keys, numbers, ends, keep = [], array.array("q"), [0], array.array("f")
        kept, names, again = keep_probabilities(data), set(), {}
        for shard, source in enumerate(self.sources):
            if not seekable(source):
                raise UserError(f"{source}: expected a file, not compressed: its songs are read in any order")
            found, twice, faults = indexed(source)
            self.broken += faults
            again |= dict.fromkeys([*twice, *(key for key in found if key in names)])
            names |= found.keys()
            for key, parts in found.items():
                probability, faults = keep_probability(kept, key), missing_part(source, key, parts)
                if probability and not faults:
                    self.keys.append(key)
                    keep.append(probability)
                    numbers.extend([shard, *(x for ending in ENDINGS for x in parts[ending])])
                self.broken += faults if probability else []
            ends.append(len(self.keys))
        self.notes = not_as_asked(data, names, kept or (), again)
        if strict and self.broken:
            raise UserError(self.broken[0])
        if sum(keep) < 0.01:                                 # songs an epoch: nearly all would be empty
            raise UserError(f"{self.broken[0]}: no song left" if self.broken else
                            f"{' '.join(data.shards)}: no song, or none that --data.ids wants; {FORMS}")
        # of each song: its shard, then offset and bytes of its parts
        self.places = torch.tensor(numbers).view(-1, 1 + 2 * len(ENDINGS))
        self.ends, self.keep = torch.tensor(ends), torch.tensor(keep)

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
                broken.append(describe_fault(f"{source}: song {key}", e))
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
        songs = songs[shuffled(lengths, self.data.bucket, rng, self.data.shuffle)]
        return torch.stack([songs, torch.randint(2 ** 62, songs.shape, generator=rng)], 1)


def epochs(order: Callable[[int], Tensor], batch: int, share: tuple[int, int],
           places: list[dict] | None = None) -> Iterator[tuple[list[list[int]], dict]]:
    """Endless batches of (song, seed) for one training process, and the place after each of them.

    A step takes the next batch * world songs of the epoch, so that the songs of a run do not depend on how
    many processes share them; what an epoch lacks for its last step comes from the next epoch.
    Args: order, of an epoch (n, 2); share and places as in `load`.
    """
    rank, world = share
    epoch, done = (places[0]["epoch"], places[0]["songs"]) if places else (0, 0)
    jobs, size = order(epoch), batch * world
    while True:
        taken = jobs[done:done + size].tolist()
        done += len(taken)
        while len(taken) < size:
            epoch, jobs = epoch + 1, order(epoch + 1)
            done = min(size - len(taken), len(jobs))
            taken += jobs[:done].tolist()
        yield taken[rank * batch:(rank + 1) * batch], {"epoch": epoch, "songs": done}


# What training reads

def one_thread(worker: int) -> None:
    """Runs first in a reading process, which must not take the network's cores."""
    torch.set_num_threads(1)


def loader(songs: Dataset, data: DataSettings, pin: bool, **how: object) -> Iterator[Batch]:
    """What a DataLoader yields. It has a generator of its own: it draws from the global one otherwise."""
    return iter(DataLoader(songs, num_workers=data.workers, worker_init_fn=one_thread, pin_memory=pin,
                           generator=torch.Generator(), **how))


def read_in_order(songs: Dataset, jobs: Iterator[tuple[list, dict]], make_batch: Callable[..., Batch],
                  data: DataSettings, pin: bool = False) -> Iterator[Batch]:
    """The batches of jobs that `epochs` yields, each with its place. Args, Raises: as for `load`."""
    # The loader runs ahead of what it yields; the second copy stays in step, and says where to resume.
    ahead, in_step = itertools.tee(jobs)
    made = loader(songs, data, pin, batch_sampler=(some for some, _ in ahead), collate_fn=make_batch)
    return count_broken((replace(batch, place=place) for batch, (_, place) in zip(made, in_step)),
                        data.max_broken)


def load(data: DataSettings, preset: Preset, table: SymbolTable, silence: Tensor, batch: int, seed: int,
         share: tuple[int, int] = (0, 1), places: list[dict] | None = None,
         pin: bool = False) -> Iterator[Batch]:
    """Batches for one training process, without end (except from standard input).

    Args: silence (C,), which songs are padded with; batch, songs of each; share, the process's rank and how
        many there are; places, the last Batch.place of every rank, to resume from: with the same settings,
        exactly as if there had been no break; pin, whether a GPU is to fetch them (Batch.pin_memory).
    Raises: UserError, also while it is read, if there are no songs or too many broken ones.
    """
    rank, world = share
    if data.bucket > 1 and not data.shuffle:
        raise UserError(f"--data.bucket {data.bucket}: reorders songs; expected 1 with --data.shuffle false")
    sources = expand(data.shards, data.pipe)
    make_batch = functools.partial(to_batch, silence=silence, preset=preset)
    local = all(map(seekable, sources))
    if places and ("lanes" in places[0]) == local:
        raise UserError(f"{sources[0]}: the run to resume had {'streams' if local else 'local files'}; "
                        "expected the same in --data.shards")
    if local:
        shards = Shards(data, preset, table)
        for text in (*shards.broken, *shards.notes) if rank == 0 else ():
            print(f"warning: {text}", file=sys.stderr)
        lost = sum(fault.songs for fault in shards.broken)
        check_broken(shards.broken, len(shards) + lost, data.max_broken)
        jobs = epochs(functools.partial(shards.order, seed), batch, share, places)
        return read_in_order(shards, jobs, make_batch, data, pin)
    readers = max(1, data.workers)
    if "-" in sources:
        if readers * world > 1:
            raise UserError("-: one process reads standard input; expected --data.workers 0 or 1 and one "
                            "training process")
        data = replace(data, workers=0)                      # a reading process has another standard input
    lanes = assign_to_lanes(places or [], readers * world)[rank * readers:(rank + 1) * readers]
    stream = Stream(sources, data, seed, batch, lanes,
                    functools.partial(read_item, data=data, preset=preset, table=table), make_batch)
    return count_broken(in_turn(loader(stream, data, pin, batch_size=None), lanes), data.max_broken)
