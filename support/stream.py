"""Songs from sources that are read front to back, in an order that the seed alone decides, with exact resume.

Read `Stream`: shards in a random order, windows of songs that are shuffled, and the state from which reading
goes on after any song. `assign_to_lanes` hands the states to another number of reading processes. `Batch`,
`keep_probabilities`, `shuffled` and `count_broken` serve data.Shards, too, which reads local files in any
order.
"""

import functools
import itertools
import json
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from config import READ_ERRORS, DataSettings, TrainConfig, UserError
from support.files import read_text, reading
from support.processes import Processes
from support.tars import FORMS, Fault, describe_fault, read_tar, some

POOL = 16                      # buckets of songs that are sorted by length together


@dataclass
class Batch:
    """What training gets for one step of one process."""
    tensors: dict[str, Tensor]     # what data.collate makes
    seeds: list[int]               # of each song's draws
    ids: list[str]                 # "SHARD: KEY" of each song
    broken: list[Fault]            # songs skipped and not yet reported: "SHARD: song KEY: reason"
    place: dict                    # JSON: where this process's reading goes on after this batch

    def pin_memory(self) -> "Batch":
        """A copy that a GPU fetches while it and the process go on; torch's loader calls this."""
        return replace(self, tensors={name: tensor.pin_memory() for name, tensor in self.tensors.items()})


def keep_probabilities(data: DataSettings) -> dict[str, float] | None:
    """The probability with which an epoch has each song of --data.ids; None: every epoch has all songs.

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
        expected = 'expected {"id": name, "duration": seconds}'
        with reading(f"{data.ids}: line {i}: {line[:60]}; {expected}", "", OverflowError):
            row = json.loads(line)
            key, seconds = row["id"], float(row["duration"])
            if not isinstance(key, (str, int)) or not 0 <= seconds < math.inf:
                raise ValueError("another type or range")
        if seconds > data.min_duration:
            share = 1.0 if data.resample_duration is None else seconds / max(data.resample_duration, 1e-9)
            found[str(key)] = min(1.0, share ** 1.2)
    return found


def keep_probability(kept: dict[str, float] | None, key: str) -> float:
    """The probability that `keep_probabilities` has for a key of a tar; folders in the key do not count."""
    return 1.0 if kept is None else kept.get(key.rpartition("/")[2], 0.0)


def not_as_asked(data: DataSettings, keys: Collection[str], kept: Collection[str],
                 twice: Collection[str]) -> list[str]:
    """What a user should hear of: wanted songs that are in no shard, and keys of several songs.

    Args: keys in the shards; kept, those that --data.ids wants; twice, keys that occurred again.
    """
    here = {key.rpartition("/")[2] for key in keys}
    absent = [key for key in kept if key not in here]
    return [f"{data.ids}: in no shard: {some(absent)}"] * bool(absent) + [
        f"{' '.join(data.shards)}: keys that occur more than once: {some(twice)}"] * bool(twice)


def seeded(*numbers: int) -> torch.Generator:
    """A generator whose seed is made of all numbers."""
    return torch.Generator().manual_seed(functools.reduce(lambda a, b: a * 1_000_003 + b, numbers) % 2 ** 63)


def shuffled(lengths: Tensor, bucket: int, rng: torch.Generator, shuffle: bool = True) -> Tensor:
    """A random order of songs; `bucket` neighbours have similar lengths, which saves padding.

    Without `shuffle`, the order in which they are.
    """
    order = torch.randperm(len(lengths), generator=rng) if shuffle else torch.arange(len(lengths))
    if bucket <= 1:
        return order
    pools = [pool[lengths[pool].argsort(stable=True)] for pool in order.split(POOL * bucket)]
    buckets = torch.cat(pools).split(bucket)
    return torch.cat([buckets[i] for i in torch.randperm(len(buckets), generator=rng)])


class Window(NamedTuple):
    """Songs of a shard that are shuffled together."""
    lane: dict                               # the lane's state, in which the shard is the first of `todo`
    before: int                              # songs of the shard that came before
    songs: list[tuple[str, dict[str, bytes]]]        # keys and parts
    broken: list[Fault]                      # what was found broken meanwhile


@dataclass(eq=False)
class Stream(IterableDataset):
    """Batches of songs from any sources, which are read front to back.

    The seed defines one endless sequence of shards, which are numbered. Each reading process is a lane. Its
    state is JSON: it first reads `todo`, shards begun [number, songs given], then every stride-th shard from
    `next` on.
    """
    sources: list[str]
    data: DataSettings
    seed: int
    batch: int
    lanes: list[dict]                        # states of this training process's lanes
    item: Callable[[dict, int], dict]        # parts and seed -> a training song
    to_batch: Callable[..., Batch]           # items, place= -> their batch

    def __post_init__(self):
        self.kept = keep_probabilities(self.data)
        self.once = "-" in self.sources      # standard input cannot be read again

    def source(self, number: int) -> str:
        """The source of a shard of the endless sequence."""
        count = len(self.sources)
        rng = seeded(self.seed, number // count)
        order = (range(count) if self.once else torch.randint(count, (count,), generator=rng)
                 if self.data.replacement else torch.randperm(count, generator=rng) if self.data.shuffle
                 else range(count))
        return self.sources[order[number % count]]

    def windows(self, lane: dict) -> Iterator[Window | None]:
        """Yield a lane's windows, and None after each song read, so that others can be given meanwhile."""
        while lane["todo"] or not self.once or lane["next"] < len(self.sources):
            if not lane["todo"]:
                lane = lane | {"todo": [[lane["next"], 0]], "next": lane["next"] + lane["stride"]}
            (number, _), *todo = lane["todo"]
            before, songs, broken = 0, [], []
            for key, parts, faults in read_tar(self.source(number)):
                if key and not keep_probability(self.kept, key):
                    continue
                broken += faults
                songs += [] if faults else [(key, parts)]
                yield None
                if len(songs) >= self.data.window:
                    yield Window(lane, before, songs, broken)
                    before, songs, broken = before + len(songs), [], []
            yield Window(lane, before, songs, broken)
            lane = lane | {"todo": todo}

    def items(self, window: Window) -> Iterator[tuple[dict, dict]]:
        """Yield a window's items in shuffled order, each with the lane's state after it.

        A broken song has an item without "id", which says only what is "broken".
        """
        lane, before, songs, broken = window
        (number, given), *todo = lane["todo"]
        source, rng = self.source(number), seeded(self.seed, number, before)
        lengths = torch.tensor([len(parts["latent.pt"]) for _, parts in songs])
        order = shuffled(lengths, self.data.bucket, rng, self.data.shuffle)
        seeds = torch.randint(2 ** 62, order.shape, generator=rng)
        draws = torch.rand(order.shape, generator=rng)
        if broken:
            yield {"broken": broken}, lane | {"todo": [[number, max(given, before)], *todo]}
        drawn = zip(order.tolist(), seeds.tolist(), draws.tolist())
        for place, (i, seed, draw) in enumerate(drawn, before + 1):
            (key, parts), songs[i] = songs[i], None          # frees its bytes
            if place <= given or draw >= keep_probability(self.kept, key):
                continue
            try:
                item = self.item(parts, seed) | {"id": f"{source}: {key}", "seed": seed, "broken": []}
            except READ_ERRORS as e:
                item = {"broken": [describe_fault(f"{source}: song {key}", e)]}
            yield item, lane | {"todo": [[number, place], *todo]}

    def lane_items(self, lane: dict) -> Iterator[tuple[dict, dict]]:
        """As `items`, for all windows of a lane."""
        windows, waiting, barren = self.windows(lane), [], 0
        for found in windows:
            waiting += [found] if found else []
            while waiting:
                barren += 1
                for item, state in self.items(waiting.pop(0)):
                    # one song is read for each that is given, so that no batch waits for a whole window
                    waiting += filter(None, itertools.islice(windows, 1))
                    barren = 0 if "id" in item else barren
                    yield item, state
                if barren > 10 * len(self.sources):
                    raise UserError(f"{self.sources[0]}: no song in it nor in {barren} others, or none that "
                                    f"--data.ids wants; {FORMS}")

    def __iter__(self) -> Iterator[Batch]:
        worker, items = get_worker_info(), []
        for item, state in self.lane_items(self.lanes[worker.id if worker else 0]):
            items.append(item)
            songs = sum("id" in item for item in items)
            if songs in (0, self.batch):                     # a batch without songs reports what is broken
                yield self.to_batch(items, place=state)
                items = []
        if items:
            yield self.to_batch(items, place=state)


def assign_to_lanes(places: list[dict], lanes: int) -> list[dict]:
    """States of `lanes` lanes that go on where those in `places` stopped: no song is lost or repeated."""
    then = [lane for place in places for lane in place["lanes"]]
    if len(then) == lanes:
        return then
    # No lane has begun a shard from `top` on; before it, some have begun fewer of theirs than others.
    top = max((lane["next"] for lane in then), default=0)
    todo = sorted(shard for lane in then for shard in [
        *lane["todo"], *([number, 0] for number in range(lane["next"], top, lane["stride"]))])
    return [{"todo": todo[i::lanes], "next": top + i, "stride": lanes} for i in range(lanes)]


def in_turn(batches: Iterator[Batch], lanes: list[dict]) -> Iterator[Batch]:
    """Batches of lanes that take turns, each with the states of all lanes, that of the next turn first."""
    for batch in batches:
        lanes = [*lanes[1:], batch.place]
        yield replace(batch, place={"lanes": lanes})


def check_broken(broken: Collection[Fault], songs: int, share: float) -> None:
    """Raises: UserError if more than a share of the songs is broken; fewer than 100 count as 100."""
    count = sum(fault.songs for fault in broken)
    if count > share * max(songs, 100):
        raise UserError(f"{count} broken among {songs} songs, more than --data.max-broken {share} "
                        f"allows; one of them: {next(iter(broken))}")


def count_broken(batches: Iterator[Batch], share: float) -> Iterator[Batch]:
    """Yield the batches, each with the broken songs not yet reported. Raises: UserError for too many."""
    songs, known, new = 0, {}, []
    try:
        for batch in batches:
            songs += len(batch.ids)
            new += [fault for fault in dict.fromkeys(batch.broken) if fault not in known]
            known.update(dict.fromkeys(batch.broken))
            check_broken(known, songs, share)
            if batch.ids:
                yield replace(batch, broken=new)
                new = []
    except UserError as e:                                   # a reading process puts its traceback before it,
        text = str(e.with_traceback(None))                   # which keeps the loader alive, and \\n after it
        raise UserError(text.split("UserError: ")[-1].removesuffix("\\n")) from None
    except (RuntimeError, OSError, EOFError) as e:           # the last two while it hands on a batch
        if isinstance(e, RuntimeError) and not str(e).startswith("DataLoader worker"):
            raise
        raise UserError(describe_fault("a process that reads songs died", e)) from None
    if not songs:
        raise UserError(f"no song left{'; ' + next(iter(known)) if known else ''}")


def held_out_batches(songs: Dataset, cfg: TrainConfig, make_batch: Callable[[list[dict]], Batch],
                     processes: Processes) -> list[tuple[Batch, int]]:
    """This process's share of the first validation songs, each batch with how many of its songs count.

    All processes get equally many batches, since with FSDP they compute together; the last ones are filled up
    with copies of the last song.
    """
    count, size = min(cfg.validation_songs, len(songs)), cfg.batch * processes.world
    batches = []
    for start in range(processes.rank * cfg.batch, math.ceil(count / size) * size, size):
        numbers = [min(i, count - 1) for i in range(start, start + cfg.batch)]
        batch = make_batch([songs[i, i] for i in numbers])
        batches.append((batch, min(max(count - start, 0), cfg.batch)))
    return batches


def grouped(stream: Iterator[Batch], size: int) -> Iterator[tuple[list[Batch], bool]]:
    """The batches of each step, and whether they are the last: standard input ends."""
    group = list(itertools.islice(stream, size))
    while len(group) == size:
        following = list(itertools.islice(stream, size))
        yield group, len(following) < size
        group = following
