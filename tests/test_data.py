"""data.py, support/stream.py, support/tars.py: the published conversion, corrupt shards, order and resume."""

import collections
import dataclasses
import functools
import http.server
import io
import itertools
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from types import SimpleNamespace

import golden as original
import pytest
import torch
from conftest import ROOT
from golden import SCALARS
from hypothesis import given, settings
from hypothesis import strategies as st

import data as data_module
from config import PRESETS, DataSettings, UserError
from data import MULTIPLE, TAIL_FRAMES, Shards, collate, conditions, crop_span, epochs, load, read_item
from data import to_batch, trimmed
from phonemes import NO_WORD, SymbolTable
from support import stream as streaming
from support import tars
from support.stream import Stream, assign_to_lanes, check_broken, keep_probabilities, seeded, shuffled
from support.tars import Fault, braces, expand, members, read_tar

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


def shard(path: Path, songs: dict[str, dict[str, object]], mode: str = "w", dot: str = ".") -> Path:
    with tarfile.open(path, mode) as tar:
        for key, parts in songs.items():
            for ending, value in parts.items():
                info = tarfile.TarInfo(f"{key}{dot}{ending}")
                info.size = len(packed(value))
                tar.addfile(info, io.BytesIO(packed(value)))
    return path


def settings_of(*shards: object, **changes) -> DataSettings:
    return DataSettings(tuple(map(str, shards)), **{"workers": 0, "max_broken": 1.0} | changes)


def strict(path: Path, **changes) -> Shards:
    return Shards(settings_of(path, **changes), PRESET, TABLE, strict=True)


# The original's conversion

def test_golden_collate(golden):
    """Softplus applied twice, noise drawn for the crop alone, a crop off by one, wrong padding."""
    want = golden("d_collate.safetensors")
    items = []
    for i, start in enumerate((0, 13)):
        mean, std = want[f"raw_latent_{i}"].T.chunk(2, dim=-1)
        items.append({"latent": (mean + std * want[f"noise_{i}"])[start:start + 48], "lrc": want["lrc"][i],
                      "prompt": want["prompt"][i], **{k: want[k][i].item() for k in SCALARS}})
    batch = original.collate(items, want["silence"], 48)
    assert (batch["latent"] - want["latent"]).abs().max() < 1e-6
    assert batch["lrc"].equal(want["lrc"]) and batch["prompt"].equal(want["prompt"])
    for scalar in SCALARS:
        assert batch[scalar].dtype == torch.float32 and torch.equal(batch[scalar], want[scalar])


def test_golden_item(golden):
    """Noise drawn for the crop alone, a crop off by one, phonemes or scalars of another crop."""
    want, preset = golden("d_collate.safetensors"), original.jam_preset(48, "average_sparse")
    words, table = [(0.1, 0.5, "abd")], SymbolTable("abd")          # found from the stored rows
    items = [data_module.make_item(want[f"raw_latent_{i}"], want["prompt"][i], words, start,
                                   want[f"noise_{i}"], preset, table) for i, start in enumerate([0, 13])]
    batch = collate(items, want["silence"], preset)
    assert (batch["latents"].transpose(1, 2) - want["latent"]).abs().max() < 1e-6
    assert torch.equal(batch["phonemes"], want["lrc"])
    for scalar in SCALARS:
        assert torch.equal(batch[scalar], want[scalar])


def test_golden_scalars(golden):
    """A rounded frame rate, a length without its crop, log of another base."""
    rows = golden("d_dataset.json")["scalars"]
    for row in rows:
        (a, b), got = crop_span(row["latent_frames"], row["start_frame"], row["max_frames"], 2048, 44100)
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


# Where shards are

def test_expand(tmp_path, monkeypatch):
    """Lost leading zeros, an end left out, unsorted or missing shards."""
    monkeypatch.chdir(tmp_path)
    for name in ("a-008.tar", "a-009.tar", "a-010.tar", "b-2-0.tar", "b-2-1.tar", "b-3-0.tar", "b-3-1.tar",
                 "a.txt", "[x]*.tar"):
        Path(name).touch()

    def found(*shards):
        return expand(shards, False)
    assert found("a-{008..010}.tar") == found("a-*.tar") == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert found("b-{2..3}-{0..1}.tar") == found("b-?-?.tar") == found("b-{2,3}-{0,1}.tar") == \
        ["b-2-0.tar", "b-2-1.tar", "b-3-0.tar", "b-3-1.tar"]
    assert found("b-{2..3}-*.tar") == found("b-*.tar") and found("a-008.tar") == ["a-008.tar"]
    assert found("b-2-1.tar", "a-008.tar") == ["b-2-1.tar", "a-008.tar"]
    assert found("[x]*.tar") == ["[x]*.tar"]
    assert len(found(".")) == 8 and found(str(tmp_path)) == sorted(map(str, tmp_path.glob("*.tar")))
    for pattern, missing in [("a-{008..011}.tar", "a-011.tar"), ("c-*.tar",) * 2, ("a-{8..9}.tar", "a-8.tar"),
                             ("a-008.tar/",) * 2]:
        assert mistake(expand, (pattern,), False) == f"{missing}: no such shard"
    (tmp_path / "empty").mkdir()
    for nothing in ((), ("",), ("a-{010..008}.tar",), ("empty",)):
        assert mistake(expand, nothing, False).endswith(("in --data.shards", "no such shard"))


def test_addresses_expand():
    """An address is no file: nothing to look up, and its ? is no pattern. Commands only run if they may."""
    assert expand(("http://h/{a,b}?x=1", "-", "https://h/*"), False) == \
        ["http://h/a?x=1", "http://h/b?x=1", "-", "https://h/*"]
    assert "--data.pipe" in mistake(expand, ("pipe:cat x",), False)
    assert expand(("pipe:cat {1..2} | awk '{print $1}'",), True) == \
        [f"pipe:cat {i} | awk '{{print $1}}'" for i in (1, 2)]


piece = st.one_of(st.sampled_from(["a", "-", ".", "}", "/"]),
                  st.lists(st.sampled_from(["x", "yy", ""]), min_size=2, max_size=3, unique=True),
                  st.tuples(st.integers(0, 12), st.integers(0, 3), st.integers(1, 4)))


@quick
@given(st.lists(piece, max_size=5))
def test_braces(pieces):
    """Names out of order, lost or doubled; braces of several digits."""
    text, choices = "", []
    for part in pieces:
        if isinstance(part, tuple):
            low, more, width = part
            text += f"{{{low:0{width}d}..{low + more}}}"
            choices.append([str(i).zfill(width) for i in range(low, low + more + 1)])
        else:
            text += part if isinstance(part, str) else "{" + ",".join(part) + "}"
            choices.append([part] if isinstance(part, str) else part)
    assert braces(text) == list(dict.fromkeys(map("".join, itertools.product(*choices))))
    assert braces("{a,{b,c}}{1}") == ["a{1}", "b{1}", "c{1}"]


# One song

def test_song_is_read(tmp_path):
    """Means and deviations swapped, one noise for all channels, crops or styles that are never drawn."""
    data = strict(shard(tmp_path / "s.tar", {
        "one": song(), "two": song(style_pt=STYLES[1].clone().requires_grad_())}))
    assert not data[1, 0]["style"].requires_grad         # no process could hand it on
    assert len(data) == 2 and json.loads(data.read(0, "json")) == {"word": WORDS}
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
    assert items[7]["id"] == f"{tmp_path}/s.tar: one" and items[7]["seed"] == 7 and items[7]["broken"] == []
    fixed = strict(tmp_path / "s.tar", from_start=True, style_index=2)
    assert {fixed[0, seed]["start_time"] for seed in range(20)} == {0.0}
    assert all(fixed[0, seed]["style"].equal(STYLES[2]) for seed in range(20))
    assert fixed[1, 0]["style"].equal(STYLES[1])                         # which is its only one


def test_draws_come_from_the_seed_alone(tmp_path):
    """A run that goes on after a break must see the same crops and noise, whatever else was drawn."""
    path = shard(tmp_path / "s.tar", {"one": song()})
    data = strict(path)
    first, state = data[0, 5], torch.get_rng_state()
    torch.rand(3)
    again, other = data[0, 5], data[0, 6]
    assert all(torch.equal(first[k], again[k]) for k in ("latents", "style"))
    assert not torch.equal(first["latents"], other["latents"])
    torch.set_rng_state(state)
    take(reading(path), 2)
    take(reading(path, stream=True), 2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("prefix", ["./", "songs/", "./a.b/", "../", "/etc/"])
def test_tar_with_folders(prefix, tmp_path):
    """`tar cf x.tar .` writes a folder entry and names with ./ before them; nothing is ever unpacked."""
    path = shard(tmp_path / "s.tar", {f"{prefix}one": song()})
    with tarfile.open(path, "a") as tar:
        for name, kind in ((prefix, tarfile.DIRTYPE), (f"{prefix}two.json", tarfile.SYMTYPE),
                           (f"{prefix}.json", tarfile.REGTYPE), ("README", tarfile.REGTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    with tarfile.open(path) as tar:
        assert len(list(members(tar))) == 3 and not tar.members      # of a long stream they would pile up
    data = strict(path)
    assert len(data) == 1 and data[0, 0]["latents"].shape == (6, 2)
    assert take(reading(path, stream=True), 1)[0].ids == [f"{source(path)}: {prefix}one"] * 2


@pytest.mark.parametrize("prefix", ["", "./", "set/", "a.b/"])
def test_a_folder_for_each_song(prefix, tmp_path):
    """KEY/latent.pt, the form that the published README draws, is read as no song at all."""
    folders = shard(tmp_path / "s.tar", {f"{prefix}{key}": song() for key in ("one", "x.y")}, dot="/")
    flat = shard(tmp_path / "t.tar", {key: song() for key in ("one", "two")})
    data = strict(folders)
    assert data.keys == [f"{prefix}one", f"{prefix}x.y"]
    assert all(data[i, 5]["latents"].equal(strict(flat)[i, 5]["latents"]) for i in (0, 1))
    assert set(keys_of(take(reading(folders, stream=True), 2))) == {f"{prefix}one", f"{prefix}x.y"}
    names = tmp_path / "ids.jsonl"
    names.write_text('{"id": "x.y", "duration": 1}')
    for stream in (False, True):
        assert set(keys_of(take(reading(folders, stream=stream, ids=names), 2))) == {f"{prefix}x.y"}
    (tmp_path / ".s.tar.index").write_text("")
    shard(folders, {f"{prefix}one": song(json=None)}, dot="/")
    assert mistake(strict, folders) == f"{folders}: song {prefix}one: no {prefix}one.json"


def test_no_song(tmp_path):
    """Shards of another form, trained on or found faultless."""
    path = shard(tmp_path / "s.tar", {".": song()}, dot="/")
    shard(path, {"latent": {"pt": b"", "npy": b""}}, "a")
    for call in (lambda: strict(path), lambda: next(reading(path, stream=True))):
        text = mistake(call)
        assert "no song" in text and "KEY.latent.pt" in text and "KEY/latent.pt" in text


def starts_in(path: Path) -> list[int]:
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


@pytest.mark.parametrize("known", [False, True])
def test_a_truncated_shard_counts_what_it_lost(known, tmp_path, capsys):
    """Half of a shard that counts as one broken song, so that a run goes on with the other half."""
    path = shard(tmp_path / "s.tar", {f"k{i}": song() for i in range(9)})
    starts, whole = starts_in(path), path.read_bytes()
    if known:
        assert len(strict(path)) == 9                        # which leaves an index
    path.write_bytes(whole[:starts[13] + 700])               # amid the second file of k4
    lost = f"songs after byte {starts[13]} are lost" + ": 4 (k5, k6, k7, ...)" * known
    shards = Shards(settings_of(path), PRESET, TABLE)
    fault, partial = shards.broken
    assert fault.startswith(f"{path}: ") and fault.endswith(f"; {lost}") and "song k4: no" in partial
    assert (fault.songs, partial.songs) == (4 if known else 1, 1)
    assert pickle.loads(pickle.dumps(fault)).songs == fault.songs            # from a reading process
    *_, (_, _, [streamed]) = read_tar(str(path))
    assert streamed.endswith(f"; {lost}") and streamed.songs == fault.songs
    songs = "5 broken among 9" if known else "2 broken among 6"
    assert mistake(lambda: reading(path, max_broken=0.01)).startswith(songs)
    assert take(reading(path, max_broken=0.051), 1) and lost in capsys.readouterr().err
    path.write_bytes(whole[:starts[12]] + b"z" * 600 + whole[starts[12] + 600:])       # damaged amid
    [fault] = Shards(settings_of(path), PRESET, TABLE).broken
    assert fault.songs == (5 if known else 1) and f"songs after byte {starts[12]} are lost" in fault


# What is broken

class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


BROKEN = [
    ({"latent_pt": torch.zeros(3, 8)}, "latent (3, 8); expected (4, frames)"),
    ({"latent_pt": torch.zeros(8)}, ""), ({"latent_pt": [1.0]}, ""),
    ({"latent_pt": b"junk"}, ""), ({"latent_pt": Evil()}, ""), ({"style_pt": b""}, ""),
    ({"latent_pt": torch.zeros(4, 0)}, ""), ({"style_pt": torch.zeros(5)}, "4"),
    ({"latent_pt": torch.full((4, 8), torch.nan)}, "latent: has NaN"),
    ({"style_pt": torch.full((4,), torch.inf)}, "style: has infinite numbers"),
    ({"latent_pt": -torch.ones(4, 8)}, "a standard deviation below 0"),
    ({"style_pt": torch.zeros(0, 4)}, ""), ({"json": b"junk"}, ""), ({"json": []}, ""),
    ({"json": {}}, "word"), ({"json": {"word": 3}}, ""), ({"json": {"word": [*WORDS, 3]}}, "word 2"),
    ({"json": {"word": [*WORDS, {"start": 0.1, "end": 0.2}]}}, "word 2: expected start, end and phoneme"),
    ({"json": {"word": [*WORDS, WORDS[0] | {"phoneme": None}]}}, "word 2"),
    ({"json": {"word": [*WORDS, WORDS[0] | {"end": "late"}]}}, "word 2"),
    ({"json": {"word": [*WORDS, WORDS[0] | {"end": float("nan")}]}}, "word 2"),
    ({"json": {"word": [*WORDS, WORDS[0] | {"end": 1e308}]}}, "a word from 0 to 1e+308 s"),
    ({"json": {"word": [WORDS[0] | {"start": -1e308}]}}, "a word from -1e+308 to 0.1 s")]


@pytest.mark.parametrize("changes, fragment", BROKEN)
def test_broken_song(changes, fragment, tmp_path, monkeypatch):
    """The original skips such songs, which thins the data unseen; a bare KeyError names no song."""
    monkeypatch.chdir(tmp_path)
    path = shard(Path("s.tar"), {"one": song(**changes), "two": song()})
    text = mistake(strict(path).__getitem__, (0, 0))
    assert text.startswith("s.tar: song one: ") and fragment in text
    item, other = (Shards(settings_of(path), PRESET, TABLE)[i, 5] for i in (0, 1))
    assert item["broken"] == [text] and item["id"] == other["id"] == "s.tar: two" and other["broken"] == []
    assert item["latents"].equal(other["latents"])
    batch, after = take(reading(path, stream=True), 2)
    assert batch.broken == [text.replace("s.tar", source("s.tar"))]
    assert batch.ids == [f"{source(path)}: two"] * 2
    assert after.broken == [] and not Path("ran").exists()


@pytest.mark.parametrize("ending", ["latent_pt", "style_pt", "json"])
def test_missing_part(ending, tmp_path, capsys):
    """A song without its words would be trained as if nothing were sung."""
    path = shard(tmp_path / "s.tar", {"one": song(), "two": song(**{ending: None}), "three": song()})
    text = f"song two: no two.{ending.replace('_', '.')}"
    assert mistake(strict, path) == f"{path}: {text}"
    assert {id for batch in take(reading(path), 5) for id in batch.ids} == {f"{path}: one", f"{path}: three"}
    assert capsys.readouterr().err == f"warning: {path}: {text}\n"
    batches = take(reading(path, stream=True), 5)
    assert collections.Counter(id for b in batches for id in b.ids).keys() == {
        f"{source(path)}: one", f"{source(path)}: three"}
    assert sum((b.broken for b in batches), []) == [f"{source(path)}: {text}"]
    names = tmp_path / "ids.jsonl"
    names.write_text('{"id": "one", "duration": 1}')
    for stream in (False, True):                          # nobody asked for the broken one
        assert not any(b.broken for b in take(reading(path, stream=stream, ids=names), 5))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["empty", "garbage", "cut", "cut last", "cut header", "no end",
                                  "broken header"])
@pytest.mark.parametrize("stream", [False, True])
def test_broken_tar(kind, stream, tmp_path, capsys):
    """tarfile takes a header that is cut off or broken for the end: the songs behind it would go unmissed."""
    path = shard(tmp_path / "s.tar", {"one": song(), "two": song()})
    good = shard(tmp_path / "t.tar", {"x": song()})
    with tarfile.open(path) as tar:
        starts = [member.offset for member in tar]
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "garbage": b"la" * 999, "cut": whole[:starts[3] + 600],
                      "cut last": whole[:starts[5] + 520],
                      "cut header": whole[:starts[3] + 100], "no end": whole[:starts[3]],
                      "broken header": whole[:starts[3]] + b"z" * 999 + whole[starts[3] + 999:]}[kind])
    batches = take(reading(path, good, stream=stream), 8)
    warned = capsys.readouterr().err
    broken = [line.removeprefix("warning: ") for line in warned.splitlines()] + sum(
        (batch.broken for batch in batches), [])
    assert broken[0].startswith(f"{source(path) if stream else path}: ") and "Error" not in broken[0]
    keys = {id.rpartition(" ")[2] for batch in batches for id in batch.ids}
    assert keys == ({"x"} if kind in ("empty", "garbage") else {"one", "x"})
    if not stream:
        assert mistake(strict, path) == broken[0] and not any(batch.broken for batch in batches)
        if "one" not in keys:
            assert "no song" in mistake(reading, path)


def test_compressed_shards_are_streamed(tmp_path):
    """A song's place in a compressed tar is not its place in the file."""
    path = shard(tmp_path / "s.tar.gz", {"one": song()}, "w:gz")
    assert take(load_of(settings_of(path)), 1)[0].ids == [f"{path}: one"] * 2
    assert "not compressed" in mistake(strict, path)
    assert "not a tar" in mistake(strict, path.rename(tmp_path / "s.tar"))
    with pytest.raises(UserError, match="expected a file"):
        strict("http://localhost/s.tar")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
def test_too_many_broken(stream, workers, tmp_path):
    """A run on what is left of a broken data set, or one ended by a song met again and again."""
    songs = {f"{i:02}": song(json=b"junk") if i in (3, 8) else song() for i in range(12)}
    path = shard(tmp_path / "s.tar", songs)
    fine = take(reading(path, stream=stream, max_broken=0.02, workers=workers), 30)
    assert len(sum((batch.broken for batch in fine), [])) == 2
    with pytest.raises(UserError) as caught:
        take(reading(path, stream=stream, max_broken=0.01, workers=workers), 30)
    assert str(caught.value).startswith("2 broken among ") and str(caught.value).isprintable()
    assert "--data.max-broken 0.01" in str(caught.value) and "s.tar: song 0" in str(caught.value)
    path = shard(tmp_path / "none.tar", {f"{i}": song(json=b"junk") for i in range(3)})
    with pytest.raises(UserError, match="no song") as caught:          # as one line, also from a worker
        take(reading(path, stream=stream, workers=workers), 1)
    assert "Traceback" not in str(caught.value)


def test_too_many_broken_in_the_index(tmp_path):
    """Half of the songs without words, passed over before the first step."""
    path = shard(tmp_path / "s.tar", {f"{i}": song(json=None if i < 3 else {"word": []}) for i in range(9)})
    assert mistake(lambda: reading(path, max_broken=0.02)).startswith("3 broken among 9 songs")
    assert take(reading(path, max_broken=0.03), 1)
    check_broken([Fault("a")] * 3, 300, 0.01)
    assert "4 broken among 300" in mistake(check_broken, [Fault("a")] * 4, 300, 0.01)


# Order of local files

def load_of(data: DataSettings, batch=2, seed=0, rank=0, world=1, places=None):
    return load(data, PRESET, TABLE, torch.zeros(2), batch, seed, (rank, world), places)


def source(path: object) -> str:
    return f"pipe:cat {path}"


def reading(*paths, stream=False, batch=2, seed=0, rank=0, world=1, places=None, **changes):
    """Batches of these shards, read as files in any order, or front to back."""
    shards = map(source, paths) if stream else paths
    return load_of(settings_of(*shards, pipe=stream, **changes), batch, seed, rank, world, places)


def take(iterator, count: int) -> list:
    return [next(iterator) for _ in range(count)]


def songs_of(batches) -> list[tuple[str, int]]:
    return [song for batch in batches for song in zip(batch.ids, batch.seeds)]


def keys_of(batches) -> list[str]:
    return [id.rpartition(" ")[2] for batch in batches for id in batch.ids]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """37 songs of unlike lengths in five shards, of which one is small."""
    folder, paths, number = tmp_path_factory.mktemp("shards"), [], itertools.count()
    for i, count in enumerate((9, 2, 7, 11, 8)):
        parts = {f"{(n := next(number)):02}": song(latent_pt=torch.ones(4, 3 + 5 * n % 11), json={"word": []})
                 for _ in range(count)}
        paths.append(shard(folder / f"s-{i}.tar", parts))
    return paths


def fake_order(count: int, seed: int):
    def order(epoch):
        rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        return torch.stack([torch.randperm(count, generator=rng),
                            torch.randint(2 ** 62, (count,), generator=rng)], 1)
    return order


@quick
@given(st.integers(1, 50), st.integers(1, 7), st.integers(1, 4), st.integers(0, 40), st.integers(0, 9))
def test_epochs(count, batch, world, skip, seed):
    """Resuming that replays or skips songs, ranks that share songs, songs lost at an epoch's end."""
    order, start = fake_order(count, seed), {"epoch": 0, "songs": 0}
    ranks = [take(epochs(order, batch, (rank, world), [start]), skip + 5) for rank in range(world)]
    whole = take(epochs(order, 1, (0, 1)), (skip + 5) * batch * world)
    together = [tuple(job) for step in zip(*ranks) for jobs, _ in step for job in jobs]
    assert together == [tuple(jobs[0]) for jobs, _ in whole]
    place = json.loads(json.dumps(ranks[0][skip - 1][1])) if skip else start
    for rank in range(world):
        assert take(epochs(order, batch, (rank, world), [place]), 5) == ranks[rank][skip:]
    for epoch in range(len(together) // count):
        assert sorted(i for i, _ in together[epoch * count:(epoch + 1) * count]) == list(range(count))


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=50), st.integers(1, 9), st.integers(0, 9))
def test_shuffled(lengths, bucket, seed):
    """A bucket that loses or doubles songs, or leaves them sorted."""
    lengths, rng = torch.tensor(lengths), torch.Generator().manual_seed(seed)
    assert shuffled(lengths, bucket, rng).sort()[0].tolist() == list(range(len(lengths)))


def test_order_is_the_published_weights_order():
    """The baby's weights were made with this order; another one is another model."""
    lengths = torch.randint(100, 1000, (160,), generator=torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(5 * 1_000_003 + 2)
    order = torch.randperm(160, generator=rng)
    pools = [pool[lengths[pool].argsort(stable=True)] for pool in order.split(128)]
    blocks = torch.cat(pools).view(20, 8)[torch.randperm(20, generator=rng)]
    assert shuffled(lengths, 8, seeded(5, 2)).equal(blocks.flatten())
    assert shuffled(lengths, 1, seeded(5, 2)).equal(order)


def test_like_lengths_share_a_batch():
    """Padding that costs as much as the songs."""
    lengths = torch.randint(100, 1000, (130,), generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(0)
    blocks = [b for b in lengths[shuffled(lengths, 8, rng)].split(8)]
    assert sorted(map(len, blocks))[:2] in ([2, 8], [8, 8])
    spread = [(b.max() - b.min()).item() for b in lengths[shuffled(lengths[:128], 8, rng)].split(8)]
    assert sum(spread) / len(spread) < 120               # about 700 in random batches
    middles = torch.stack([b.float().mean() for b in lengths[shuffled(lengths[:128], 8, rng)].split(8)])
    assert torch.corrcoef(torch.stack([middles, torch.arange(16.0)]))[0, 1].abs() < 0.5    # not short to long


def same(a, b) -> bool:
    return (a.ids, a.seeds, a.place) == (b.ids, b.seeds, b.place) and all(
        torch.equal(a.tensors[k], b.tensors[k]) for k in a.tensors | b.tensors)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stream", [False, True])
def test_resume_is_exact(stream, workers, paths):
    """A place that runs ahead with the reading processes, or a window shuffled anew after a break."""
    start = functools.partial(reading, *paths, stream=stream, batch=3, bucket=2, window=4, workers=workers)
    whole = take(start(), 40)                             # more than three epochs
    for step in (1, 4, 13, 26) if not workers else (5, 17):
        place = json.loads(json.dumps(whole[step - 1].place))
        assert all(map(same, take(start(places=[place]), 40 - step), whole[step:]))
    again = take(start(seed=1), 13)
    assert keys_of(again) != keys_of(whole[:13]) != keys_of(whole[13:26])


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_share_an_epoch(workers, paths):
    """Two ranks must see the songs, and the draws, of one process with batches of twice the size."""
    one = take(reading(*paths, batch=6), 13)
    two = [take(reading(*paths, batch=3, rank=rank, world=2, workers=workers), 13) for rank in (0, 1)]
    assert [songs_of([whole]) for whole in one] == [songs_of(pair) for pair in zip(*two)]
    assert sorted(keys_of(one)[:37]) == [f"{i:02}" for i in range(37)]
    assert all(a.place == b.place == c.place for a, b, c in zip(one, *two))
    places = [one[4].place] * 2
    more = [take(reading(*paths, batch=2, rank=rank, world=3, places=places), 8) for rank in range(3)]
    assert [songs_of(step) for step in zip(*more)] == [songs_of([whole]) for whole in one[5:]]


def test_epochs_differ(paths):
    """The same order in every epoch, or seeds that repeat."""
    songs = songs_of(take(reading(*paths, batch=1), 74))
    assert [id for id, _ in songs[:37]] != [id for id, _ in songs[37:]]
    assert {id for id, _ in songs[:37]} == {id for id, _ in songs[37:]} and len({s for _, s in songs}) == 74


def test_replacement(paths):
    """Shards drawn once each are no draw; a drawn shard must come with all its songs."""
    shards = Shards(settings_of(*paths, replacement=True), PRESET, TABLE)
    drawn = [collections.Counter(shards.order(0, epoch)[:, 0].tolist()) for epoch in range(60)]
    for epoch in drawn:
        times = [{epoch[i] for i in range(a, b)} for a, b in itertools.pairwise((0, 9, 11, 18, 29, 37))]
        assert all(len(t) == 1 for t in times) and sum(map(max, times)) == 5
    mean = [sum(epoch[i] for epoch in drawn) / 60 for i in (0, 9, 11, 18, 29)]
    assert all(0.6 < m < 1.4 for m in mean) and max(drawn[0].values()) > 1
    streamed = keys_of(take(reading(*paths, stream=True, replacement=True, batch=1), 300))
    assert len(set(streamed)) == 37 and max(collections.Counter(streamed[:37]).values()) > 1


@pytest.mark.parametrize("stream, workers", [(False, 0), (False, 2), (True, 0)])
def test_no_shuffle(stream, workers, paths):
    """Songs that are shuffled though nobody wanted it: in a window, by shards, or by length."""
    batches = reading(*paths, stream=stream, batch=1, shuffle=False, window=4, workers=workers)
    assert keys_of(take(batches, 74)) == [f"{i:02}" for i in range(37)] * 2
    drawn = keys_of(take(reading(*paths, stream=stream, batch=1, shuffle=False, replacement=True), 60))
    runs = [b == f"{int(a) + 1:02}" for a, b in itertools.pairwise(drawn)]
    assert 0.7 < sum(runs) / len(runs) < 1                   # whole shards, drawn
    assert "--data.bucket 2: reorders" in mistake(lambda: reading(*paths, shuffle=False, bucket=2))


# The index beside a shard

def index_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.index")


def test_an_index_is_kept(tmp_path, monkeypatch):
    """A tar read through at each start; an index of another tar, or a corrupt one, taken as it is."""
    path = shard(tmp_path / "s.tar", {f"é{i}": song() for i in range(3)})
    first, kept, read = strict(path), index_of(path).read_text(), []
    monkeypatch.setattr(tars, "members", lambda tar: read.append(tar) or members(tar))
    again = strict(path)
    assert not read and again.keys == first.keys and again.places.equal(first.places)
    assert again[2, 1]["latents"].equal(first[2, 1]["latents"])
    for content in ("", "[1", kept[:-9], kept.replace("style.pt", "style.px"), kept.replace("1", "2", 1)):
        index_of(path).write_text(content)
        read.clear()
        assert strict(path).places.equal(first.places) and len(read) == 1
        assert index_of(path).read_text() == kept
    index_of(path).write_bytes(b"\xff\n\xff")
    assert strict(path).places.equal(first.places)
    os.utime(path, ns=(1, 1))                                # same size, another time
    read.clear()
    assert strict(path).places.equal(first.places) and read
    shard(path, {"new": song()}, "a")
    assert strict(path).keys == [*first.keys, "new"]


def test_a_corrupt_shard_gets_no_index(tmp_path):
    """A download that goes on later, and is never looked at again."""
    path = shard(tmp_path / "s.tar", {f"{i}": song() for i in range(3)})
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    broken = Shards(settings_of(path), PRESET, TABLE).broken
    assert broken and not index_of(path).exists()
    path.write_bytes(whole)
    assert len(strict(path)) == 3 and index_of(path).exists()


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch, capsys):
    """Shards on a read-only disk end a run that reads only. (The tests' user may write anywhere.)"""
    path = shard(tmp_path / "s.tar", {"one": song()})

    def full(self, *args, **kwargs):
        raise OSError(30, "Read-only file system")
    monkeypatch.setattr(Path, "write_text", full)
    assert len(strict(path)) == 1 and [p.name for p in tmp_path.iterdir()] == ["s.tar"]
    assert capsys.readouterr() == ("", "")


def test_batches_for_a_gpu_are_pinned(paths, monkeypatch):
    """A loader that does not know how to pin our batches, and silently leaves them."""
    batch, pinned = next(reading(*paths)), []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    copy = torch.utils.data._utils.pin_memory.pin_memory(batch)
    assert same(copy, batch) and len(pinned) == len(batch.tensors)
    assert all(copy.tensors[name] is not batch.tensors[name] for name in batch.tensors)


# Lists of songs

@pytest.mark.parametrize("stream", [False, True])
def test_ids(stream, paths, tmp_path):
    """Songs that are not on the list; min_duration that takes its own bound; no new draw in each epoch."""
    names = tmp_path / "ids.jsonl"
    names.write_text("".join(json.dumps({"id": f"{i:02}", "duration": 10 * i}) + "\n\n" for i in range(20)))
    some = reading(*paths, stream=stream, batch=1, ids=names)
    assert sorted(set(keys_of(take(some, 60)))) == [f"{i:02}" for i in range(1, 20)]
    some = reading(*paths, stream=stream, batch=1, ids=names, min_duration=150.0)
    assert sorted(set(keys_of(take(some, 24)))) == ["16", "17", "18", "19"]
    assert keep_probabilities(settings_of(ids=names, resample_duration=100.0, min_duration=15.0)) == {
        f"{i:02}": min(1.0, (i / 10) ** 1.2) for i in range(2, 20)}
    some = reading(*paths, stream=stream, batch=1, ids=names, resample_duration=100.0, min_duration=15.0)
    count = collections.Counter(keys_of(take(some, 400)))
    epochs = sum(count[f"{i:02}"] for i in range(10, 20)) / 10
    for i in range(2, 10):
        chance = (i / 10) ** 1.2
        assert abs(count[f"{i:02}"] - epochs * chance) < 4 * (epochs * chance * (1 - chance)) ** 0.5
    assert all(abs(count[f"{i:02}"] - epochs) <= 2 for i in range(10, 20))


def test_ids_that_no_shard_has_and_keys_that_occur_twice(tmp_path, capsys):
    """A list of another data set, of which a tenth is found; a song that is trained on twice."""
    one = shard(tmp_path / "one.tar", {"a": song(), "x/b": song(), "c": song()})
    shard(one, {"c": song()}, "a")
    two = shard(tmp_path / "two.tar", {"a": song(), "b": song(), "d": song()})
    names = tmp_path / "ids.jsonl"
    names.write_text("".join(json.dumps({"id": key, "duration": 9 - i}) + "\n"
                             for i, key in enumerate(("a", "b", "e", "f", "g", "h", "short"))))
    twice = f"warning: {one} {two}: keys that occur more than once: 2 (c, a)\n"
    absent = f"warning: {names}: in no shard: 4 (e, f, g, ...)\n"
    for _ in range(2):                                       # the second time from the indexes
        take(reading(one, two), 1)
        assert capsys.readouterr().err == twice
        take(reading(one, two, ids=names, min_duration=3.5), 1)
        assert capsys.readouterr().err == absent + twice
    take(reading(two, rank=1, world=2, ids=names), 1)
    take(reading(two), 1)
    assert capsys.readouterr().err == ""


def test_bad_ids(paths, tmp_path):
    """A list read halfway, or a rule about durations that are not known."""
    names = tmp_path / "ids.jsonl"
    for line in ("{", "3", '{"id": "a"}', '{"id": "a", "duration": "x"}', '{"id": "a", "duration": NaN}',
                 '{"id": [], "duration": 1}', '{"id": "a", "duration": -1}'):
        names.write_text('{"id": "a", "duration": 1}\n' + line)
        assert mistake(lambda: reading(*paths, ids=names)).startswith(f"{names}: line 2: {line}; expected")
    names.write_text('{"id": "nobody", "duration": 1}')
    assert "no song" in mistake(lambda: reading(*paths, ids=names))
    assert "no song" in mistake(lambda: next(reading(*paths, stream=True, ids=names)))
    for rule in ({"min_duration": 1.0}, {"resample_duration": 1.0}):
        assert "--data.ids" in mistake(lambda rule=rule: reading(*paths, **rule))
    assert "no such" in mistake(lambda: reading(*paths, ids=tmp_path / "none")).lower()


# Streams

@pytest.mark.parametrize("workers", [0, 2])
def test_lanes_share_the_shards(workers, paths):
    """Reading processes of one rank, or ranks, that give the same songs."""
    ranks = [take(reading(*paths, stream=True, batch=1, rank=r, world=2, workers=workers, window=4), 30)
             for r in (0, 1)]
    seeds = [seed for rank in ranks for _, seed in songs_of(rank)]
    assert len(set(seeds)) == 60 and max(collections.Counter(keys_of(sum(ranks, []))).values()) <= 4
    alone = keys_of(take(reading(*paths, stream=True, batch=1), 74))
    assert sorted(alone[:37]) == sorted(alone[37:]) == [f"{i:02}" for i in range(37)]
    assert alone[:37] != alone[37:]


def up_to(top: int, batches) -> list:
    """The batches of one lane that come before shard number `top` of the endless sequence."""
    return list(itertools.takewhile(lambda batch: batch.place["lanes"][0]["todo"][0][0] < top, batches))


@pytest.mark.parametrize("steps", [1, 5, 8])
@pytest.mark.parametrize("before, after", [(1, 2), (2, 1), (3, 2), (2, 3)])
def test_streams_change_hands(before, after, steps, paths):
    """Songs lost or given twice where the number of processes changes."""
    start = functools.partial(reading, *paths, stream=True, batch=1, window=4)
    # some ranks are ahead of others by a song
    ranks = [take(start(rank=r, world=before), steps + r % 2) for r in range(before)]
    places = json.loads(json.dumps([rank[-1].place for rank in ranks]))
    top = min(lane["next"] for lane in assign_to_lanes(places, after)) + 4
    for r in range(after):
        ranks.append(up_to(top, start(rank=r, world=after, places=places)))
    assert sorted(songs_of(sum(ranks, []))) == sorted(songs_of(up_to(top, start())))


def test_streams_need_no_whole_window(paths, monkeypatch):
    """A batch that waits for a whole window of songs, while others are done training."""
    reads, read_tar = [], streaming.read_tar
    monkeypatch.setattr(streaming, "read_tar",
                        lambda source: (reads.append(0) or found for found in read_tar(source)))
    counts = []
    for _ in zip(reading(*paths, stream=True, batch=1, window=4), range(60)):
        counts.append(len(reads))
    steps = [b - a for a, b in itertools.pairwise(counts)]
    assert max(steps) <= 3 and counts[0] <= 6             # without reading ahead, 4 at once


def test_an_address(paths, tmp_path, monkeypatch, capsys):
    """An address that fails at first, is missing, or whose shard breaks off."""
    monkeypatch.setattr(tars, "RETRY_S", (0.0,))
    calls = collections.Counter()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            calls[self.path] += 1
            content = (paths[0].parent / self.path[1:]).read_bytes() if "s-" in self.path else b""
            self.send_response(200 if content and calls[self.path] > 1 else 503)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:len(content) // 2 // 512 * 512] if "s-3" in self.path else content)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        batches = take(load_of(settings_of(f"{address}/{{s-0,s-3,none}}.tar"), batch=1), 28)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    keys = set(keys_of(batches))
    assert {f"{i:02}" for i in range(9)} < keys and 1 < len([k for k in keys if 18 <= int(k) < 29]) < 11
    first, *others = sorted(name for batch in batches for name in batch.broken)
    assert first.startswith(f"{address}/none.tar: HTTP Error 503") and calls["/none.tar"] >= 2
    assert "cut off" in others[0] and ": song" not in others[0]  # it ends between two files of a song
    assert len(others) == 2 and all(name.startswith(f"{address}/s-3.tar: ") for name in others)


@pytest.mark.slow
def test_standard_input(paths, monkeypatch):
    """`cat x.tar | train.py`: each song once, then the end; a reading process has another standard input."""
    code = """
import json
from test_data import load_of, settings_of, keys_of
for batch in load_of(settings_of("-", workers=1), batch=4):
    print(json.dumps([keys_of([batch]), batch.place]))
"""
    folders = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, "-c", code], input=paths[0].read_bytes(), check=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": folders})
    whole = [json.loads(line) for line in done.stdout.splitlines()]
    assert [len(keys) for keys, _ in whole] == [4, 4, 1]
    assert sorted(sum((keys for keys, _ in whole), [])) == [f"{i:02}" for i in range(9)]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(paths[0].read_bytes())))
    rest = load_of(settings_of("-"), batch=4, places=[whole[0][1]])
    assert [[keys_of([batch]), batch.place] for batch in rest] == whole[1:]
    for more in ({"workers": 2}, {"world": 2}):
        assert "-: one process reads standard input" in mistake(lambda more=more: load_of(
            settings_of("-", workers=more.get("workers", 0)), world=more.get("world", 1)))


def test_commands(paths):
    """A command that fails after its last byte (a download that broke off) counts as broken; one that has
    more to say after the tar's end does not."""
    text = mistake(load_of, settings_of("pipe:cat x"))
    assert "--data.pipe" in text
    good, bad = f"pipe:cat {paths[1]}; head -c 999999 /dev/zero", f"pipe:cat {paths[2]}; exit 3"
    batches = take(load_of(settings_of(good, bad, pipe=True), batch=1), 18)
    assert set(keys_of(batches)) == {f"{i:02}" for i in (9, 10, *range(11, 18))}
    assert sum((batch.broken for batch in batches), []) == [f"{bad}: the command ended with exit code 3"]
    assert "no song" in mistake(lambda: next(load_of(settings_of("pipe:false", pipe=True))))
    failing = settings_of("pipe:exit {1..3}", pipe=True, max_broken=0.01)      # told before a batch is full
    assert "2 broken among 0 songs" in mistake(lambda: next(load_of(failing)))


def test_places_of_another_kind(paths):
    """A checkpoint of a streamed run cannot say where local files go on."""
    for stream in (False, True):
        places = [next(reading(*paths, stream=stream)).place]
        assert "expected the same" in mistake(
            lambda stream=stream, places=places: reading(*paths, stream=not stream, places=places))


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_killed_reader(paths):
    """A process that the machine ends for its memory: a page of traceback, or a run that waits forever.

    In a process of its own, for torch tells of the dead again, wherever the main thread then is.
    """
    child = os.fork()
    if not child:
        told = ""
        try:
            batches = reading(*paths, workers=1)
            next(batches)
            multiprocessing.active_children()[0].kill()
            take(batches, 100)
        except (UserError, RuntimeError) as e:
            told = str(e)
        finally:                                             # the second, if it was told before `take`
            os._exit(0 if told.startswith(("a process that reads songs died: ", "DataLoader worker")) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_readers_can_be_spawned(paths):
    """Where processes start anew (macOS, Python 3.14), all that a reading process gets must be picklable."""
    make_batch = functools.partial(to_batch, silence=torch.zeros(2), preset=PRESET)
    stream = Stream([str(paths[0])], settings_of(paths[0]), 0, 2, assign_to_lanes([], 1), functools.partial(
        read_item, data=settings_of(paths[0]), preset=PRESET, table=TABLE), make_batch)
    parts = Shards(settings_of(paths[0]), PRESET, TABLE), stream, make_batch, data_module.one_thread
    shards, again, _, _ = pickle.loads(pickle.dumps(parts))
    assert next(iter(again)).ids == next(iter(stream)).ids
    assert shards[1, 2]["latents"].equal(parts[0][1, 2]["latents"])
