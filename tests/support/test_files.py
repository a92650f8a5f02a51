"""support/files.py: text files with good errors, files written whole. And presets in their files."""

import json
import math

import pytest

from config import PRESETS, UserError
from support.checkpoint import preset_from_json, preset_to_json
from support.files import one_line, read_json, read_text, reading, replacing, write_json


def mistake(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.fixture
def file(tmp_path):
    def write(content: object):
        path = tmp_path / "given.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path
    return write


def test_reading_tells_the_file_and_the_reason():
    """A traceback of a broken file; an error of the user's that is wrapped again; ours that is hidden."""
    def fails(error):
        with reading("a.pt", "not weights"):
            raise error
    assert mistake(fails, KeyError("x")) == "a.pt: not weights: KeyError: 'x'"
    assert mistake(fails, EOFError()) == "a.pt: not weights: EOFError"
    assert mistake(fails, UserError("b: other")) == "b: other"
    with pytest.raises(ZeroDivisionError):
        fails(ZeroDivisionError())
    assert one_line("a\n  b" * 100, 5) == "a ba "


def test_write_json(tmp_path):
    write_json(tmp_path / "x.json", {"path": tmp_path, "half": "\ud800"}, ensure_ascii=False)
    assert read_json(tmp_path / "x.json") == {"path": str(tmp_path), "half": "\ud800"}


# Presets

@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_its_file(name, file):
    """A field that is forgotten, or a tuple that comes back as a list."""
    path = file(preset_to_json(PRESETS[name], step=7))
    assert preset_from_json(path) == PRESETS[name] and read_json(path)["step"] == 7


def broken(change):
    values = json.loads(preset_to_json(PRESETS["baby"]))
    change(values)
    return values


@pytest.mark.parametrize("content", [
    "", "{}", "[]", "7", "null", '{"guidance": {}}', broken(lambda v: v.pop("steps")),
    broken(lambda v: v["model"].pop("dim")), broken(lambda v: v["model"].update(width=3)),
    broken(lambda v: v.update(codec=None)), broken(lambda v: v.update(guidance=[1])),
    broken(lambda v: v["guidance"].update(scale=3)), broken(lambda v: v["codec"].update(kind="oobleck")),
    broken(lambda v: v["codec"].update(strides=[1.5])), broken(lambda v: v.pop("negative_style"))], ids=str)
def test_broken_preset(content, file):
    """A checkpoint folder with a foreign or older config.json."""
    path = file(content)
    assert mistake(preset_from_json, path).startswith(f"{path}: ")


@pytest.mark.parametrize("change", [
    {"fold": 1}, {"fold": 4}, {"hop": 1024}, {"wave_channels": 2}, {"ratios": 0}, {"ratios": 1},
    {"ratios": 7}, {"ratios": -8}, {"mels": 0}, {"mels": -64}, {"mels": 1024}, {"floor": 0.0},
    {"floor": -1.0}, {"floor": math.nan}, {"log_std": 0.0}, {"log_std": math.inf}, {"log_mean": math.nan},
    {"encoder_width": 0}, {"encoder_depth": 0}, {"decoder_width": 0}, {"decoder_depth": -1},
    {"sample_rate_hz": 0}], ids=str)
def test_broken_codec(change, file):
    """Sizes that fit each other, of a codec that cannot be built, or that sings NaN or at another level."""
    def spoil(values):
        codec = values["codec"]
        codec.update(change)
        values["model"]["mel_dim"] = max(1, codec["fold"] * (codec["mels"] + codec["ratios"] + 1) + 5)
    path = file(broken(spoil))
    text = mistake(preset_from_json, path)
    assert text.startswith(f"{path}: not a model's config: expected codec")
    assert text.endswith((" of 1 or more", "a multiple of fold", "equal to model's mel_dim"))        # not cut


def test_older_codec(file):
    """A model of an earlier version: a list of what does not fit, and no word of what to do."""
    path = file(broken(lambda v: v["codec"].update(kind="mel", griffin_lim_steps=80)))
    assert "no longer sings with it: use the embedded one" in mistake(preset_from_json, path)


def test_missing_preset(tmp_path):
    path = tmp_path / "config.json"
    assert mistake(preset_from_json, path) == f"{path}: No such file or directory"


# Reading and writing

@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_read_text(encoding, end, tmp_path):
    """A byte order mark as a letter, UTF-16 refused, the line ends of another system."""
    path = tmp_path / "song.txt"
    path.write_bytes(f"é{end}{end}b{end}".encode(encoding))
    assert read_text(path) == "é\n\nb\n"


@pytest.mark.parametrize("content, problem", [
    (b"a\xe4", "byte 1: not UTF-8 text"), (b"\xff\xfea", "byte 2: not UTF-16 text"),
    (b"\xfe\xff\xd8\x00", "byte 2: not UTF-16 text")])
def test_read_text_names_the_byte(content, problem, tmp_path):
    path = tmp_path / "song.txt"
    path.write_bytes(content)
    assert mistake(read_text, path) == f"{path}: {problem}"

@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 5000, b"\xff"])
def test_read_json_has_no_other_errors(content, tmp_path):
    """The JSON reader's limits raise RecursionError and plain ValueError."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert mistake(read_json, path).startswith(f"{path}: ")


def test_replacing_writes_whole_files(tmp_path):
    """A half-written file in place of a good one, or leftovers beside it."""
    path = tmp_path / "song.wav"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == path.parent
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["no/song.wav", "file/song.wav", "folder", "n" * 250 + ".wav"])
def test_replacing_explains_what_it_cannot_write(name, tmp_path):
    """No folder, a file for a folder, a folder for a file, a name that the temporary's is too long for."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()

    def write():
        with replacing(tmp_path / name) as temporary:
            temporary.write_text("new")
    assert mistake(write).startswith(f"{tmp_path / name}: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
