"""data.py: the published conversion's numbers, shards good and bad, and the order of songs."""

import dataclasses
import io
import json
import os
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from golden import SCALARS, jam_preset
from hypothesis import given, settings
from hypothesis import strategies as st

from config import PRESETS, UserError
from data import MULTIPLE, TAIL_FRAMES, Member, Shards
from data import batches, collate, conditions, expand, make_item, trimmed, window
from phonemes import NO_WORD, SymbolTable

quick = settings(deadline=None, derandomize=True, max_examples=100, database=None)
BABY = PRESETS["baby"]
# Latents of 2 channels, at most 6 frames, styles of 4 numbers.
PRESET = dataclasses.replace(BABY, model=dataclasses.replace(BABY.model, mel_dim=2, max_frames=6, cond_dim=4))
TABLE = SymbolTable("abd")
FRAMES = 8
MEAN, STD = torch.arange(2.0 * FRAMES).view(2, FRAMES), torch.tensor([[0.5], [2.0]]).expand(2, FRAMES)
STYLES = torch.eye(4)[:3]
WORDS = [{"start": 0.0, "end": 0.1, "phoneme": "ab"}]


def mistake(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert str(caught.value).isprintable()
    return str(caught.value)


def packed(value: object) -> bytes:
    """A part of a song as its bytes: JSON, or torch.save for tensors."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, (dict, list)):
        return json.dumps(value).encode()
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def song(**changes) -> dict[str, object]:
    """A good song's parts by their endings; a part changed to None is left out."""
    parts = {"latent_pt": torch.cat([MEAN, STD]), "style_pt": STYLES, "json": {"word": WORDS}} | changes
    return {ending.replace("_", "."): value for ending, value in parts.items() if value is not None}


def shard(path: Path, songs: dict[str, dict[str, object]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for key, parts in songs.items():
            for ending, value in parts.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(packed(value))
                tar.addfile(info, io.BytesIO(packed(value)))
    return path


def shards(path: Path) -> Shards:
    return Shards(str(path), PRESET, TABLE)


# The original's conversion

def test_golden_collate(golden):
    """Softplus applied twice, noise drawn for the crop alone, a crop off by one, wrong padding."""
    want, preset = golden("d_collate.safetensors"), jam_preset(48, "average_sparse")
    words, table = [(0.1, 0.5, "abd")], SymbolTable("abd")          # found from the stored rows
    items = [make_item(want[f"raw_latent_{i}"], want["prompt"][i], words, start, want[f"noise_{i}"], preset,
                       table) for i, start in enumerate([0, 13])]
    batch = collate(items, want["silence"], preset)
    assert (batch["latents"].transpose(1, 2) - want["latent"]).abs().max() < 1e-6
    assert torch.equal(batch["phonemes"], want["lrc"]) and torch.equal(batch["style"], want["prompt"])
    for scalar in SCALARS:
        assert batch[scalar].dtype == torch.float32 and torch.equal(batch[scalar], want[scalar])


def test_golden_scalars(golden):
    """A rounded frame rate, a length without its crop, log of another base."""
    rows = golden("d_dataset.json")["scalars"]
    for row in rows:
        (a, b), got = window(row["latent_frames"], row["start_frame"], row["max_frames"], 2048, 44100)
        for scalar in SCALARS:
            assert got[scalar] == pytest.approx(row[scalar], abs=1e-12)
            assert torch.tensor(got[scalar], dtype=torch.float32).item() == row["float32"][scalar]
        assert a == row["start_frame"] * 2048 / 44100 < b
    assert len(rows) >= 18


# Lengths and batches

def test_trimmed():
    """No padding behind the last frame (a song needs some to end in), or far more than that."""
    longest = BABY.model.max_frames
    for frames in range(1, longest + 1):
        length = trimmed(frames, BABY)
        assert min(frames + TAIL_FRAMES, longest) <= length <= longest
        assert length == longest or length % MULTIPLE == 0 and length < frames + TAIL_FRAMES + MULTIPLE
        assert trimmed(frames, dataclasses.replace(BABY, trim=False)) == longest


def test_collate_trims_to_the_longest_song():
    """Cut songs, cells that do not match frames, or padding that is not silence."""
    preset = dataclasses.replace(PRESET, model=dataclasses.replace(PRESET.model, max_frames=100))
    items = [conditions([(0.0, 0.5, "ab")], frames, 0, preset, TABLE)[0]
             | {"style": STYLES[0], "latents": torch.ones(frames, 2)} for frames in (5, 20)]
    silence = torch.tensor([-3.0, -4.0])
    batch = collate(items, silence, preset)
    assert batch["latents"].shape == (2, 32, 2) and batch["phonemes"].shape == (2, 4 * 32)
    for latents, frames in zip(batch["latents"], (5, 20)):
        assert latents[:frames].eq(1).all() and torch.equal(latents[frames:], silence.expand(32 - frames, 2))
    alone = {k: v for k, v in items[0].items() if k != "latents"} | {"frames": 5}
    batch = collate([alone], silence, preset)
    assert "latents" not in batch and batch["phonemes"].shape == (1, 4 * 16)


# Files

def test_expand(tmp_path, monkeypatch):
    """Lost leading zeros, an end left out, unsorted or missing shards."""
    monkeypatch.chdir(tmp_path)
    for name in ("a-008.tar", "a-009.tar", "a-010.tar", "b-2-0.tar", "b-2-1.tar", "b-3-0.tar", "b-3-1.tar"):
        Path(name).touch()

    def found(pattern):
        return [str(path) for path in expand(pattern)]
    assert found("a-{008..010}.tar") == found("a-*.tar") == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert found("b-{2..3}-{0..1}.tar") == found("b-?-?.tar") == \
        ["b-2-0.tar", "b-2-1.tar", "b-3-0.tar", "b-3-1.tar"]
    assert found("b-{2..3}-*.tar") == found("b-*.tar") and found("a-008.tar") == ["a-008.tar"]
    assert mistake(expand, "a-{008..011}.tar") == "a-011.tar: no such shard"
    for pattern in ("c-*.tar", "a-{010..008}.tar", "a-{8..9}.tar", ".", ""):
        assert "no such shard" in mistake(expand, pattern)


def test_song_is_read(tmp_path):
    """Means and deviations swapped, one noise for all channels, crops or styles that are never drawn."""
    data = shards(shard(tmp_path / "s.tar", {"one": song(), "two": song(style_pt=STYLES[1])}))
    assert len(data) == 2
    items = [data[0, seed] for seed in range(300)]
    starts = [round(item["start_time"] * FRAMES) for item in items]
    assert set(starts) == {0, 1, 2}                                      # both ends included
    assert {tuple(item["style"].tolist()) for item in items} == {tuple(row.tolist()) for row in STYLES}
    assert torch.equal(data[1, 0]["style"], STYLES[1])
    for item, start in zip(items, starts):
        assert item["latents"].shape == (6, 2) and item["phonemes"].shape == (24,)
        assert item["duration_rel"] == pytest.approx(1)
        assert (item["phonemes"] != NO_WORD).sum() == 18 - 4 * start
    noise = torch.stack([x["latents"] - MEAN.T[start:start + 6] for x, start in zip(items, starts)])
    assert torch.allclose(noise.std((0, 1)), STD[:, 0], rtol=0.1)
    assert noise.mean().abs() < 0.1 and noise.unique().numel() > 0.99 * noise.numel()


def test_draws_come_from_the_seed_alone(tmp_path):
    """A run that goes on after a break must see the same crops and noise, whatever else was drawn."""
    data = shards(shard(tmp_path / "s.tar", {"one": song()}))
    first, state = data[0, 5], torch.get_rng_state()
    torch.rand(3)
    again, other = data[0, 5], data[0, 6]
    assert all(torch.equal(torch.as_tensor(first[k]), torch.as_tensor(again[k])) for k in first)
    assert not torch.equal(first["latents"], other["latents"])
    torch.set_rng_state(state)
    data[0, 7]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("prefix", ["./", "songs/", "./a.b/"])
def test_tar_with_folders(prefix, tmp_path):
    """`tar cf x.tar .` writes a folder entry and names with ./ before them."""
    path = shard(tmp_path / "s.tar", {f"{prefix}one": song()})
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo(prefix)
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    data = shards(path)
    assert len(data) == 1 and data[0, 0]["latents"].shape == (6, 2)


@pytest.mark.parametrize("ending", ["latent_pt", "style_pt", "json"])
def test_missing_part(ending, tmp_path):
    path = shard(tmp_path / "s.tar", {"one": song(), "two": song(**{ending: None})})
    name = ending.replace("_", ".")
    assert mistake(shards, path) == f"{path}: song two: no two.{name}"


@pytest.mark.parametrize("kind", ["empty", "garbage", "cut", "compressed"])
def test_not_a_tar(kind, tmp_path):
    """A download cut off, or a compressed tar: a song's place in it is not its place in the file."""
    path = shard(tmp_path / "s.tar", {"one": song()}, "w:gz" if kind == "compressed" else "w")
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "garbage": b"la" * 999, "cut": content[:1000]}.get(kind, content))
    assert mistake(shards, path).startswith(f"{path}: not a tar file")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("changes, fragment", [
    ({"latent_pt": torch.zeros(3, 8)}, "3 latent rows; expected 4"), ({"latent_pt": torch.zeros(8)}, ""),
    ({"latent_pt": b"junk"}, ""), ({"latent_pt": Evil()}, ""), ({"style_pt": b""}, ""),
    ({"latent_pt": torch.zeros(4, 0)}, ""), ({"style_pt": torch.zeros(5)}, "4"),
    ({"style_pt": torch.zeros(0, 4)}, ""), ({"json": b"junk"}, ""), ({"json": []}, ""),
    ({"json": {}}, "word"),     ({"json": {"word": 3}}, ""), ({"json": {"word": [*WORDS, 3]}}, "word 2"),
    ({"json": {"word": [*WORDS, {"start": 0.1, "end": 0.2}]}}, "word 2: expected start, end and phoneme"),
    ({"json": {"word": [*WORDS, WORDS[0] | {"phoneme": None}]}}, "word 2"),
    ({"json": {"word": [*WORDS, WORDS[0] | {"end": "late"}]}}, "word 2"),
    ({"json": {"word": [*WORDS, WORDS[0] | {"end": float("nan")}]}}, "word 2")])
def test_broken_song(changes, fragment, tmp_path, monkeypatch):
    """The original skips such songs, which thins the data unseen; a bare KeyError names no song."""
    monkeypatch.chdir(tmp_path)
    path = shard(tmp_path / "s.tar", {"one": song(**changes)})
    text = mistake(shards(path).__getitem__, (0, 0))
    assert text.startswith(f"{path}: song one: ") and fragment in text and not Path("ran").exists()


# Order

def fake(lengths: list[int]) -> SimpleNamespace:
    """All that `batches` looks at."""
    class Songs(list):
        songs = [Member(Path("x"), str(i), {"latent.pt": (0, n)}) for i, n in enumerate(lengths)]
    return Songs(lengths)


def take(iterator, count: int) -> list:
    return [next(iterator) for _ in range(count)]


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=50), st.integers(1, 4), st.integers(1, 3),
       st.integers(0, 9), st.integers(0, 40))
def test_order_of_songs(lengths, size, world, seed, skip):
    """Resuming that replays or skips songs, ranks that share songs, a song twice in an epoch."""
    data, epoch = fake(lengths), len(lengths) // (size * world)
    if not epoch:
        assert f"{len(lengths)} songs are fewer" in mistake(next, batches(data, size, seed, 0, 0, world))
        return
    count = 2 * epoch + 1
    ranks = [take(batches(data, size, seed, 0, rank, world), skip + count) for rank in range(world)]
    one = take(batches(data, size * world, seed), skip + count)
    for rank in range(world):
        assert take(batches(data, size, seed, skip, rank, world), count) == ranks[rank][skip:]
    for step in range(skip + count):
        together = [job for rank in ranks for job in rank[step]]
        assert [len(rank[step]) for rank in ranks] == [size] * world
        assert sorted(together) == sorted(one[step])
    songs = [[i for i, _ in batch] for batch in one]
    for first in range(0, skip + count, epoch):
        seen = sum(songs[first:first + epoch], [])
        assert len(seen) == len(set(seen)) and set(seen) <= set(range(len(lengths)))
    seeds = [s for batch in one for _, s in batch]
    assert len(seeds) == len(set(seeds))


def test_epochs_and_seeds_differ():
    """The same order in every epoch, or for every seed."""
    data = fake([5] * 64)
    first, second, other = (take(batches(data, 4, *start), 16) for start in [(0, 0), (0, 16), (1, 0)])
    for a, b in [(first, second), (first, other)]:
        assert [[i for i, _ in batch] for batch in a] != [[i for i, _ in batch] for batch in b]
        assert sorted(i for batch in a for i, _ in batch) == list(range(64))


def test_like_lengths_share_a_batch():
    """Padding that costs as much as the songs."""
    lengths = torch.randint(100, 1000, (128,), generator=torch.Generator().manual_seed(0)).tolist()
    plan = take(batches(fake(lengths), 8, 0), 16)
    spread = [max(lengths[i] for i, _ in b) - min(lengths[i] for i, _ in b) for b in plan]
    assert sum(spread) / len(spread) < 120               # about 700 in random batches
    middles = torch.tensor([[float(lengths[i]) for i, _ in b] for b in plan]).mean(1)
    assert torch.corrcoef(torch.stack([middles, torch.arange(16.0)]))[0, 1].abs() < 0.5    # not short to long
