"""How fast songs are read: python tests/tools/data_speed.py [songs]

Makes shards of songs of JAM's size (latents (128, 5000) float32, styles (4, 512), 400 words) in a temporary
folder, then prints songs a second of one process with one thread for the same work, from bytes to training
items, by data.py's two ways and by the webdataset library, if that can be imported. Files are in the memory's
cache, so a disk's time is not in it.
"""

import dataclasses
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from config import PRESETS, DataSettings  # noqa: E402
from data import Shards, load, read_item  # noqa: E402
from phonemes import SymbolTable  # noqa: E402
from support.tars import ENDINGS, read_tar  # noqa: E402
from tools.prepare import add  # noqa: E402

PRESET, TABLE = PRESETS["jam-0.5"], SymbolTable("abdefhijklmnopstuvwz")
PER_SHARD = 50


def make_shards(folder: Path, songs: int, frames: int) -> list[str]:
    """Shards of `songs` songs in all."""
    rng, paths = torch.Generator().manual_seed(0), []
    words = [{"start": i * .5, "end": i * .5 + .4, "phoneme": "həloʊ"} for i in range(400)]
    latents = torch.rand(2 * PRESET.model.mel_dim, frames, generator=rng)
    style = torch.rand(4, PRESET.model.cond_dim, generator=rng)
    for first in range(0, songs, PER_SHARD):
        paths.append(str(folder / f"songs-{first:06}.tar"))
        with tarfile.open(paths[-1], "w") as tar:
            for i in range(first, min(first + PER_SHARD, songs)):
                for ending, value in zip(ENDINGS, (latents, style, {"word": words})):
                    add(tar, f"{i:06}.{ending}", value)
    return paths


def measure(name: str, songs: Iterator, count: int) -> None:
    start = time.perf_counter()
    done = sum(1 for _, _ in zip(range(count), songs))
    seconds = time.perf_counter() - start
    print(f"{name:44} {done / seconds:9.1f} songs/s", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    songs = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as name:
        paths = make_shards(Path(name), songs, PRESET.model.max_frames)
        data = DataSettings(tuple(paths), workers=0, window=PER_SHARD)
        piped = dataclasses.replace(data, shards=tuple(f"pipe:cat {path}" for path in paths), pipe=True)
        silence = torch.zeros(PRESET.model.mel_dim)
        shards = Shards(data, PRESET, TABLE)
        measure("index", (key for _ in range(1) for key in Shards(data, PRESET, TABLE).keys), songs)

        def items(parts):
            return read_item(parts, 0, data, PRESET, TABLE)
        batches = load(piped, PRESET, TABLE, silence, 1, 0)
        for _ in range(2):
            measure("random access: items", (shards[i, 0] for i in range(songs)), songs)
            measure("front to back, files: items",
                    (items(p) for x in paths for _, p, _ in read_tar(x)), songs)
            measure("front to back, pipe:cat: items",
                    (items(p) for x in piped.shards for _, p, _ in read_tar(x)), songs)
            measure("front to back, pipe:cat: shuffled batches", batches, songs)
            measure("front to back, files: bytes only", (p for x in paths for p in read_tar(x)), songs)
            try:
                import webdataset
            except ImportError:
                print("no webdataset to compare with")
                continue
            foreign = webdataset.WebDataset(paths, shardshuffle=False)
            measure("webdataset: items", (items(sample) for sample in foreign), songs)
            measure("webdataset: bytes only", iter(foreign), songs)


if __name__ == "__main__":
    main()
