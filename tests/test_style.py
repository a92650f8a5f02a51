"""style.py: names and files, and that a file which is no style vector is refused, whatever it holds."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from config import STYLES, UserError
from style import load_style

WIDTH = 4
VECTOR = torch.tensor([1.0, -2.0, 0.5, 0.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("styles")
    save_file({"male": VECTOR.half(), "female": -VECTOR}, path / STYLES)
    return path


def mistake(*args) -> str:
    with pytest.raises(UserError) as caught:
        load_style(*args)
    assert str(caught.value).isprintable()
    return str(caught.value)


def write(path, content):
    """Save content as the path's ending says."""
    if path.suffix == ".npy":
        with path.open("wb") as file:
            np.save(file, content, allow_pickle=True)
    elif path.suffix == ".pt":
        torch.save(content, path)
    else:
        save_file(content, path)
    return str(path)


@pytest.mark.parametrize("name, sign", [("male", 1), ("female", -1)])
def test_named(name, sign, folder):
    """The wrong voice, or half precision that the network's float32 layers refuse."""
    got = load_style(name, folder, WIDTH)
    assert got.dtype == torch.float32 and torch.equal(got, sign * VECTOR)


@pytest.mark.parametrize("ending, content", [
    (".npy", VECTOR.numpy()), (".npy", VECTOR.numpy().astype("f8")), (".npy", VECTOR.numpy()[None]),
    (".pt", VECTOR), (".pt", VECTOR[None].bfloat16()), (".safetensors", {"style": VECTOR})])
def test_file(ending, content, folder, tmp_path):
    """The original's vectors are (1, E), numpy's are float64; a model without own styles takes files."""
    path = write(tmp_path / f"style{ending}", content)
    for place in (folder, tmp_path):
        got = load_style(path, place, WIDTH)
        assert got.dtype == torch.float32 and torch.equal(got, VECTOR)


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("ending, content", [
    (".npy", np.ones(5)), (".npy", np.array([1, 2, 3, np.nan])), (".npy", np.array(["a"] * 4)), (".npy", b""),
    (".npy", b"junk"), (".npy", np.array(1.0)), (".npy", np.ones(4, complex)),
    (".pt", VECTOR[:3]), (".pt", {"a": VECTOR}), (".pt", VECTOR.log()), (".pt", "text"), (".pt", b""),
    (".pt", b"\x80\x02J"), (".pt", b"PK\x03\x04junk"),
    (".safetensors", {}), (".safetensors", {"style": VECTOR[:0]}), (".safetensors", b"junk"),
    (".safetensors", b"")])
def test_bad_file(ending, content, folder, tmp_path):
    """Wrong width, NaN, another type or garbage: noise in the voice, or a traceback."""
    path = tmp_path / f"style{ending}"
    path.write_bytes(content) if isinstance(content, bytes) else write(path, content)
    assert str(path) in mistake(str(path), folder, WIDTH)


def test_archive_named_npy(folder, tmp_path):
    """np.savez under another name is an archive, not an array."""
    with (tmp_path / "style.npy").open("wb") as file:
        np.savez(file, style=VECTOR.numpy())
    assert "style.npy" in mistake(str(tmp_path / "style.npy"), folder, WIDTH)


@pytest.mark.parametrize("ending", [".npy", ".pt"])
def test_hostile_file_is_refused(ending, folder, tmp_path):
    """A style sent by a stranger must not run commands: an object array and a pickle."""
    mark = tmp_path / "ran"
    evil = Evil(f"touch {mark}")
    path = write(tmp_path / f"style{ending}", np.array([evil] * 4, object) if ending == ".npy" else evil)
    assert path in mistake(path, folder, WIDTH)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["robot", "", "no.pt", "Female", "folder.npy", "x" * 999 + ".npy", "a.txt"])
def test_unknown_name_lists_what_is_known(name, folder, tmp_path, monkeypatch):
    """A typo needs the list of names; so does a folder, or a name that no file can have."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npy").mkdir()
    text = mistake(name, folder, WIDTH)
    assert f"--style {name}: unknown" in text and "female, male or a file (.npy, .pt, .safetensors)" in text


def test_broken_styles_of_the_model(tmp_path):
    """A model folder that was cut off in a download."""
    (tmp_path / STYLES).write_bytes(b"junk")
    assert STYLES in mistake("female", tmp_path, WIDTH)


@settings(deadline=None, derandomize=True, max_examples=100, database=None)
@given(st.binary(max_size=40), st.sampled_from([".npy", ".pt", ".safetensors"]), st.booleans())
def test_any_bytes_are_refused(tmp_path_factory, folder, content, ending, magic):
    """Damaged files reach many different exceptions of the readers."""
    path = tmp_path_factory.getbasetemp() / f"fuzz{ending}"
    start = {".npy": b"\x93NUMPY\x01\x00", ".pt": b"\x80\x02", ".safetensors": b"\x10" + bytes(7)}[ending]
    path.write_bytes(start * magic + content)
    mistake(str(path), folder, WIDTH)
