"""style.py, support/mulan.py and the reading of sound files: names, files, sound and words become vectors.

Read `Ears` first: it takes the encoder's place where the numbers do not matter. standin_style.py is a tiny
random MuQ-MuLan for the tests where they do.
"""

import gc
import json
import math
import os
import shutil
import subprocess
import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import standin_style
import torch
from conftest import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from config import PRESETS, STYLES, SampleConfig, UserError
from style import Crop, StyleEncoder, blend, encoder_of, negative_vector, style_vector
from support import audio
from support.cli import parse, weighted
from support.mulan import UNUSED

WIDTH = 4
VECTOR = torch.tensor([1.0, -2.0, 0.5, 0.0])
FIRST = Crop(start_s=0.0, seconds=30.0, seed=None)
FUZZ = settings(deadline=None, derandomize=True, max_examples=100, database=None)
RATE = 48000


class Ears:
    """Takes the encoder's place: keeps what it was given, counts how often it was built."""

    def __init__(self, width=WIDTH, value=1.0):
        self.width, self.value, self.built, self.heard, self.read = width, value, 0, [], []

    def __call__(self):
        self.built += 1
        return self

    def audio(self, wave):
        self.heard.append(wave)
        return torch.full((self.width,), self.value)

    def text(self, prompt):
        self.read.append(prompt)
        return torch.full((self.width,), self.value)


def none():
    raise AssertionError("the encoder is not needed here")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    path = tmp_path_factory.mktemp("styles") / STYLES
    save_file({"male": VECTOR.half(), "female": -VECTOR, "a:2": (VECTOR + 1).half()}, path)
    return path


def style(names=(), texts=(), crop=FIRST, shipped=None, width=WIDTH, encoder=none):
    return style_vector(names, texts, crop, shipped, width, encoder)


def mistake(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    assert str(caught.value).isprintable()
    return str(caught.value)


def write(path, content):
    """Save content as the path's ending says."""
    if path.suffix == ".npy":
        with path.open("wb") as file:
            np.save(file, content, allow_pickle=True)
    elif path.suffix == ".pt":
        torch.save(content, path)
    elif path.suffix == ".safetensors":
        save_file(content, path)
    else:
        soundfile.write(path, *content)
    return str(path)


# Named styles and saved vectors

@pytest.mark.parametrize("name, expected", [
    ("male", VECTOR), ("female", -VECTOR), ("male:0.3", VECTOR), ("a:2", VECTOR + 1), ("a:2:5", VECTOR + 1)])
def test_named(name, expected, shipped):
    """The wrong voice, a name torn at its colon, or half precision that the float32 layers refuse."""
    got = style((name,), shipped=shipped)
    assert got.dtype == torch.float32 and torch.equal(got, expected)


def test_first_named_style_is_the_default(shipped):
    """Without any flag: the first in the file's order, which depends on how it was written."""
    assert torch.equal(style(shipped=shipped), VECTOR + 1)
    assert "--style FILE or --style-text PROMPT" in mistake(style)


@pytest.mark.parametrize("ending, content", [
    (".npy", VECTOR.numpy()), (".npy", VECTOR.numpy().astype("f8")), (".npy", VECTOR.numpy()[None]),
    (".pt", VECTOR), (".pt", VECTOR[None].bfloat16()), (".pt", torch.nn.Parameter(VECTOR)),
    (".safetensors", {"style": VECTOR})])
def test_file(ending, content, shipped, tmp_path):
    """JAM's vectors are (1, E), numpy's are float64; a model without named styles takes files."""
    path = write(tmp_path / f"style{ending}", content)
    for file in (shipped, None):
        got = style((path,), shipped=file)
        assert got.dtype == torch.float32 and not got.requires_grad and torch.equal(got, VECTOR)


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("ending, content", [
    (".npy", np.ones(5)), (".npy", np.array([1, 2, 3, np.nan])), (".npy", np.array(["a"] * 4)), (".npy", b""),
    (".npy", b"junk"), (".npy", np.array(1.0)), (".npy", np.ones(4, complex)), (".npy", np.full(4, 1e39)),
    (".pt", VECTOR[:3]), (".pt", {"a": VECTOR}), (".pt", VECTOR.log()), (".pt", "text"), (".pt", b""),
    (".pt", b"\x80\x02J"), (".pt", b"PK\x03\x04junk"), (".pt", VECTOR.to_sparse()),
    (".safetensors", {}), (".safetensors", {"style": VECTOR[:0]}), (".safetensors", b"junk"),
    (".safetensors", b""), (".safetensors", {"a": VECTOR, "b": -VECTOR})])
@pytest.mark.filterwarnings("ignore:Sparse invariant")
def test_bad_file(ending, content, shipped, tmp_path):
    """Wrong width, NaN, another type or garbage: noise in the voice, or a traceback."""
    path = tmp_path / f"style{ending}"
    path.write_bytes(content) if isinstance(content, bytes) else write(path, content)
    assert str(path) in mistake(style, (str(path),), shipped=shipped)
    assert str(path) in mistake(negative_vector, str(path), WIDTH, none)


def test_array_that_claims_more_than_it_holds(tmp_path):
    """A header of 70 bytes that asks for a petabyte: MemoryError, or a machine that swaps."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (10 ** 15,)}
    with (tmp_path / "style.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    assert "style.npy" in mistake(style, (str(tmp_path / "style.npy"),))


def test_archive_named_npy(tmp_path):
    """np.savez under another name is an archive, not an array."""
    with (tmp_path / "style.npy").open("wb") as file:
        np.savez(file, style=VECTOR.numpy())
    assert "style.npy" in mistake(style, (str(tmp_path / "style.npy"),))


@pytest.mark.parametrize("ending", [".npy", ".pt"])
def test_hostile_file_is_refused(ending, shipped, tmp_path):
    """A style sent by a stranger must not run commands: an object array and a pickle."""
    mark = tmp_path / "ran"
    evil = Evil(f"touch {mark}")
    path = write(tmp_path / f"style{ending}", np.array([evil] * 4, object) if ending == ".npy" else evil)
    assert path in mistake(style, (path,), shipped=shipped)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["robot", "", "no.pt", "no.mp3", "folder.npy", "folder.wav", ":2", "a.txt",
                                  "x" * 999 + ".npy", "male:0", "male:-1", "male:nan", "male:1e999"])
def test_unknown_name_lists_what_is_known(name, shipped, tmp_path, monkeypatch):
    """A typo needs the list of names; so does a folder, a name that no file can have, or a bad weight."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "a.txt").write_text("text")
    text = mistake(style, (name,), shipped=shipped)
    assert f"--style {'' if name == ':2' else name}: no such style or file" in text
    assert "a:2, female, male, a sound file (.mp3, .wav, .flac, .ogg) or a saved vector (.npy, .pt, " in text


@pytest.mark.parametrize("name, expected", [
    ("Female", -VECTOR), ("MALE:0.3", VECTOR), ("A:2", VECTOR + 1), ("A:2:5", VECTOR + 1)])
def test_case_of_a_name(name, expected, shipped):
    """A name at the beginning of a sentence; a colon in it must not become a weight."""
    assert torch.equal(style((name,), shipped=shipped), expected)


def test_names_that_differ_in_case_alone(tmp_path):
    """Of two names that fit as well, the wrong one is sung without a word."""
    save_file({"rock": VECTOR, "Rock": -VECTOR}, tmp_path / STYLES)
    assert torch.equal(style(("Rock",), shipped=tmp_path / STYLES), -VECTOR)
    assert torch.equal(style(("rock",), shipped=tmp_path / STYLES), VECTOR)
    assert "--style ROCK: no such style" in mistake(style, ("ROCK",), shipped=tmp_path / STYLES)


@pytest.mark.parametrize("name, near", [
    ("femal", "female"), ("FEMALES", "female"), ("mael", "male"), ("male:x", "male"),
    ("male:-0.12345", "male"), ("femal:0,5", "female")])
def test_misspelt_name_suggests_the_nearest(name, near, shipped):
    """A list of twenty names to search for a missing letter."""
    text = mistake(style, (name,), shipped=shipped)
    assert f"--style {name}: no such style or file; did you mean {near}? expected a:2, female, male" in text
    assert "did you mean" not in mistake(style, ("robot",), shipped=shipped)


def test_broken_styles_of_the_model(tmp_path):
    """A model folder that was cut off in a download."""
    assert STYLES in mistake(style, ("female",), shipped=tmp_path / STYLES)
    (tmp_path / STYLES).write_bytes(b"junk")
    assert STYLES in mistake(style, ("female",), shipped=tmp_path / STYLES)


@FUZZ
@given(st.binary(max_size=40), st.sampled_from([".npy", ".pt", ".safetensors"]), st.booleans())
def test_any_bytes_are_refused(tmp_path_factory, shipped, content, ending, magic):
    """Damaged files reach many different exceptions of the readers."""
    path = tmp_path_factory.getbasetemp() / f"fuzz{ending}"
    start = {".npy": b"\x93NUMPY\x01\x00", ".pt": b"\x80\x02", ".safetensors": b"\x10" + bytes(7)}[ending]
    path.write_bytes(start * magic + content)
    mistake(style, (str(path),), shipped=shipped)


# Weights and blends

@FUZZ
@example("12:30 in the night", 1.0)
@example("a:", 2.5)
@given(st.text(max_size=20), st.floats(min_value=1e-300, max_value=1e300))
def test_weight_is_what_follows_the_last_colon(name, weight):
    """A name with colons of its own torn apart, or a number read otherwise than it was written."""
    assert weighted(f"{name}:{weight!r}") == (name, weight)
    assert weighted(f"{name}:{weight!r}", lambda whole: True) == (f"{name}:{weight!r}", 1.0)


@FUZZ
@given(st.text(max_size=20))
@example("tempo: 120")
@example("a.mp3:0")
@example("a.mp3:-1")
@example("a.mp3:inf")
@example("a.mp3:1_0")
@example("a.mp3:\u0661")
@example("5")
@example("a:1e999")
def test_without_a_weight_the_whole_is_the_name(text):
    """A prompt that loses its end: only a plain number above 0, at once after a colon, is a weight."""
    name, weight = weighted(text)
    if name == text:
        assert weight == 1.0
    else:
        assert text.startswith(name + ":") and 0 < weight == float(text[len(name) + 1:]) < math.inf
    assert (name == text) or not set(text[len(name) + 1:]) - set("0123456789.eE+-")


def test_file_with_a_colon_wins(tmp_path, monkeypatch):
    """A file that is called style:2.npy or vector:2 is not file `vector` with weight 2."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "style:2.npy", VECTOR.numpy())
    assert torch.equal(style(("style:2.npy",)), VECTOR)
    assert torch.equal(style(("style:2.npy:3",)), VECTOR)
    (tmp_path / "male:2").write_text("no style")
    assert "--style male:2: no such style" in mistake(style, ("male:2",))


def unit(*values):
    return torch.nn.functional.normalize(torch.tensor(values), dim=0)


@pytest.mark.parametrize("weights", [(1, 1), (0.7, 0.3), (1e300, 1e300), (1e-300, 3e-300), (1e-300, 1e300)])
def test_blend_of_unit_vectors_is_one(weights):
    """A blend that is shorter than its parts weakens the style; huge weights overflow to NaN."""
    a, b = unit(1.0, 2.0, 0.0, 0.0), unit(0.0, -1.0, 3.0, 1.0)
    got = blend([a, b], list(weights))
    truth = weights[0] / max(weights) * a + weights[1] / max(weights) * b
    assert got.dtype == torch.float32 and got.norm().item() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(got, torch.nn.functional.normalize(truth, dim=0))


def test_blend_has_the_mean_norm(shipped, tmp_path):
    """Weights that are swapped, lost, or act on direction alone: one part of norm 3, one of norm 1."""
    path = write(tmp_path / "v.npy", np.array([0, 0, 3, 0.0]))
    other = write(tmp_path / "w.pt", torch.tensor([0, 1.0, 0, 0]))
    got = style((f"{path}:3", other))
    assert torch.allclose(got, 2.5 * unit(0.0, 1.0, 9.0, 0.0))
    assert torch.allclose(got, style((f"{other}:0.5", f"{path}:1.5")))
    assert torch.allclose(style((path, path, path)), torch.tensor([0, 0, 3.0, 0]))


def test_blend_that_cancels_out(shipped, tmp_path):
    """Opposite styles: a division by nothing, or rounding errors scaled up to a style."""
    assert "cancel" in mistake(style, ("male", "female"), shipped=shipped)
    assert torch.isfinite(style(("male:2", "female"), shipped=shipped)).all()
    path = write(tmp_path / "zeros.npy", np.zeros(4))
    assert "cancel" in mistake(style, (path, path))


# Sound files

def sound(rate_hz=RATE, seconds=2.0, channels=2):
    """(samples, channels): a chord whose pitch rises, so that every moment sounds unlike the others."""
    t = np.arange(round(rate_hz * seconds)) / rate_hz
    left = 0.3 * np.sin(2 * np.pi * (200 + 100 * t) * t)
    right = 0.2 * np.sin(2 * np.pi * (500 + 50 * t) * t)
    return np.stack([left, right], 1) if channels == 2 else (left + right) / 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same sound in every format; clip.wav is 2 s, 48 kHz, stereo."""
    path = tmp_path_factory.mktemp("sound")
    for ending in audio.READABLE:
        write(path / f"clip{ending}", (sound(), RATE))
        write(path / f"mono{ending}", (sound(22050, channels=1), 22050))
    return path


@pytest.mark.parametrize("ending", audio.READABLE)
@pytest.mark.parametrize("name", ["clip", "mono"])
def test_formats_agree(ending, name, folder):
    """A format that is read late, at the wrong speed, with one channel only or twice as loud."""
    wave, rate_hz = audio.read_wave(folder / f"{name}{ending}")
    assert wave.dtype == torch.float32 and len(wave) == (2 if name == "clip" else 1)
    assert (wave.shape[1], rate_hz) == ((2 * RATE, RATE) if name == "clip" else (44100, 22050))
    assert audio.length_s(folder / f"{name}{ending}") == 2.0
    got = audio.mono(wave, rate_hz, 24000)
    assert got.shape == (48000,)
    truth = torch.from_numpy(sound(24000, channels=1)).float()
    inside = slice(1000, -1000)                              # codecs and filters smear the ends
    assert (got - truth)[inside].abs().max() < {".wav": 1e-3, ".flac": 1e-3}.get(ending, 0.03)
    assert (got - truth)[inside].pow(2).mean().sqrt() < 0.01


@pytest.mark.parametrize("ending", audio.READABLE)
def test_part_of_a_file(ending, folder):
    """A window that lies elsewhere than asked for, or a seek in an MP3 that is a guess."""
    path = folder / f"clip{ending}"
    whole = audio.read_wave(path)[0]
    part = audio.read_wave(path, 0.5, 0.25)[0]
    assert part.shape == (2, RATE // 4)
    assert torch.allclose(part, whole[:, RATE // 2:RATE // 2 + RATE // 4], atol=1e-4)
    assert audio.read_wave(path, 1.5, 9)[0].shape == (2, RATE // 2)
    assert audio.read_wave(path, 1.5, math.inf)[0].shape == (2, RATE // 2)


@pytest.mark.parametrize("start_s, seconds", [(2.0, 1), (-0.1, 1), (math.nan, 1), (math.inf, 1), (0, 0),
                                              (0, -1), (0, math.nan)])
def test_part_that_cannot_be(start_s, seconds, folder):
    """An empty wave, which fails far away from here."""
    assert "clip.wav: cannot" in mistake(audio.read_wave, folder / "clip.wav", start_s, seconds)


@pytest.mark.parametrize("ending", audio.READABLE)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_cut_file(ending, share, folder, tmp_path):
    """An interrupted download that reads as a shorter song, even where the part asked for is still there."""
    content = (folder / f"clip{ending}").read_bytes()
    path = tmp_path / f"cut{ending}"
    path.write_bytes(content[:int(share * len(content))])
    for read in (audio.read_wave, audio.length_s, lambda path: audio.read_wave(path, 0, 0.1)):
        assert str(path) in mistake(read, path)


def test_ogg_cut_between_pages(folder, tmp_path):
    """Whole pages, but not the last one: nothing looks broken."""
    content = (folder / "clip.ogg").read_bytes()
    path = tmp_path / "cut.ogg"
    path.write_bytes(content[:content.rindex(b"OggS")])
    assert "cut off" in mistake(audio.read_wave, path)


def test_mp3_behind_a_tag(folder, tmp_path):
    """A cover before the sound hides that the file was cut; a tag behind it is no damage."""
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 2, 5]) + bytes(2 * 128 + 5)
    content = tag + (folder / "clip.mp3").read_bytes()
    path = tmp_path / "tag.mp3"
    path.write_bytes(content + b"TAG" + bytes(125))
    assert audio.read_wave(path)[0].shape == (2, 2 * RATE)
    path.write_bytes(content[:-100])
    assert "cut off" in mistake(audio.read_wave, path)


def test_mp3_without_its_length(tmp_path):
    """Old MP3s have no Xing header: that their length is a guess is no reason to refuse them."""
    path = tmp_path / "old.mp3"
    soundfile.write(path, sound(44100), 44100, format="MP3", bitrate_mode="CONSTANT", compression_level=0)
    content = path.read_bytes()
    second = content.index(content[:3], 4)                   # the first frame holds the header alone
    path.write_bytes(content[second:])
    wave, _ = audio.read_wave(path)
    assert abs(wave.shape[1] / 44100 - 2.0) < 0.1


@pytest.mark.parametrize("name, content, expected", [
    ("gone.mp3", None, "no such file"), ("a\0b.wav", None, "no such file"), ("folder.wav", None, "a folder"),
    ("a.m4a", b"", "expected a sound file: .mp3, .wav, .flac, .ogg"), ("a.mp3", b"text" * 999, "corrupt"),
    ("a.wav", b"", "corrupt"), ("a.flac", b"fLaC", "corrupt"), ("a.ogg", b"OggS", "cut off"),
    ("none.wav", (np.zeros((0, 2)), RATE), "no sound"), ("odd.wav", (sound(44101), 44101), "usual rate"),
    ("nan.wav", (np.array([0, np.nan]), RATE, "FLOAT"), "not finite"),
    ("inf.wav", (np.array([0, np.inf]), RATE, "FLOAT"), "not finite")])
def test_what_is_no_sound(name, content, expected, tmp_path):
    """libsndfile says of a broken MP3 that it does not exist, and takes NaN for sound."""
    path = tmp_path / name
    if name == "folder.wav":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content) if isinstance(content, bytes) else write(path, content)
    text = mistake(audio.read_wave, path)
    assert text.startswith(ascii(str(path))[1:-1]) and expected in text


@FUZZ
@given(st.binary(max_size=80), st.sampled_from([b"", b"RIFF", b"OggS", b"fLaC", b"ID3", b"\xff\xfb\x94D"]),
       st.sampled_from(audio.READABLE))
def test_any_bytes_are_no_sound(tmp_path_factory, content, start, ending):
    """Damaged headers: an index error in our own reading of them."""
    path = tmp_path_factory.getbasetemp() / f"fuzz{ending}"
    path.write_bytes(start + content)
    mistake(audio.read_wave, path)


# Styles from sound

def heard(folder, crop, name="clip.wav"):
    """What the encoder is given."""
    ears = Ears()
    style((str(folder / name),), crop=crop, encoder=ears)
    return ears.heard[0]


def test_window(folder):
    """The first seconds where others were asked for, or the whole song, which costs minutes."""
    whole = heard(folder, FIRST)
    assert whole.shape == (48000,) and whole.dtype == torch.float32
    first, later = (heard(folder, Crop(start_s, 0.5, None)) for start_s in (0.0, 1.0))
    assert first.shape == later.shape == (12000,)
    inside = slice(100, -100)                                # the filter sees silence beyond the ends
    assert torch.allclose(first[inside], whole[:12000][inside], atol=1e-4)
    assert torch.allclose(later[inside], whole[24000:36000][inside], atol=1e-4)
    assert heard(folder, Crop(1.5, 1.0, None)).shape == (12000,)


def test_random_window(folder):
    """A song that differs from run to run, windows that hang over the end, or always the same one."""
    windows = [heard(folder, Crop(0.0, 0.5, seed)) for seed in range(5)]
    assert all(w.shape == (12000,) for w in windows)
    assert torch.equal(windows[3], heard(folder, Crop(0.0, 0.5, 3)))
    assert len({w[6000].item() for w in windows}) == 5
    assert torch.equal(heard(folder, Crop(0.0, 9.0, 1)), heard(folder, FIRST))
    state = torch.random.get_rng_state()
    heard(folder, Crop(0.0, 0.5, 3))
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("flags", [
    ("--style-start", "-1.0"), ("--style-start", "nan"), ("--num-style-secs", "0.05"),
    ("--num-style-secs", "nan"), ("--num-style-secs", "inf")])
def test_crop_that_cannot_be(flags):
    """A mistake that would show after the encoder's minute of loading, or not at all."""
    assert " ".join(flags) in mistake(parse, SampleConfig, "", [*flags])


def test_random_crop_with_a_start():
    """Two flags of which one would be ignored without a word."""
    from sample import validate
    cfg = parse(SampleConfig, "", ["--random-crop-style", "--style-start", "1"])
    assert "--random-crop-style" in mistake(validate, cfg) and "--style-start 1.0" in mistake(validate, cfg)


def test_short_clip(folder, tmp_path):
    """muq fails under 0.05 s with a word about padding; the encoder is not even built."""
    write(tmp_path / "short.wav", (sound(seconds=0.09), RATE))
    assert "0.090 s from 0.00 s on" in mistake(style, (str(tmp_path / "short.wav"),))
    assert "clip.wav: 0.050 s from 1.95 s on" in mistake(style, (str(folder / "clip.wav"),),
                                                         crop=replace(FIRST, start_s=1.95))
    write(tmp_path / "ok.wav", (sound(seconds=0.1), RATE))
    style((str(tmp_path / "ok.wav"),), encoder=Ears())


def test_encoder_is_built_once_and_only_if_needed(folder, shipped):
    """Two and a half gigabytes loaded for a named style, or again for each part."""
    ears = Ears()
    style(("male", "female:0.1"), shipped=shipped, encoder=ears)
    assert not ears.built
    style((str(folder / "clip.wav"), str(folder / "clip.mp3:2")), ("rock", "pop:0.5"), encoder=ears)
    assert ears.built == 1 and len(ears.heard) == 2 and ears.read == ["rock", "pop"]


def test_encoder_of_another_width(folder, shipped):
    """A style of 512 numbers for a model of 4: the error must say what this model does take."""
    for names, texts in (((str(folder / "clip.wav"),), ()), ((), ("rock",))):
        text = mistake(style, names, texts, shipped=shipped, encoder=Ears(512))
        assert "512 numbers, but this model's styles are 4; it knows a:2, female, male" in text


@pytest.mark.parametrize("texts", [("",), (":2",), (" :0.5",), ("rock", "\n"), ("caf\udce9",)])
def test_no_words(texts):
    """An empty prompt gives a style, but nobody's; half a character stops the tokenizer."""
    assert "--style-text" in mistake(style, texts=texts)


def test_numbers_that_are_not_finite(tmp_path):
    """Broken weights would sing noise for minutes before anyone hears it; a NaN is told as one."""
    for value, found in ((math.nan, "NaN"), (math.inf, "infinite ones"), (1j, "complex ones")):
        path = write(tmp_path / "v.npy", np.full(WIDTH, value))
        assert f"expected {WIDTH} finite numbers: found {found}" in mistake(style, (str(path),))
    assert "--style-text rock" in mistake(style, texts=("rock:2", "pop"), encoder=Ears(value=math.nan))


# Negative style

def test_negative_style(tmp_path):
    """JAM's negative style has float16's precision; without it the songs differ from the published ones."""
    vector = torch.linspace(-1, 1, WIDTH) / 3
    path = tmp_path / "vocal.npy"
    write(path, vector[None].numpy())
    assert torch.equal(negative_vector("zeros", WIDTH, none), torch.zeros(1, WIDTH))
    for name in ("vocal", str(path)):
        got = negative_vector(name, WIDTH, lambda: path)
        assert got.shape == (1, WIDTH) and got.dtype == torch.float32
        assert torch.equal(got[0], vector.half().float()) and not torch.equal(got[0], vector)
    assert "--negative-style vocal: expected 8 finite numbers: found 4" in mistake(
        negative_vector, "vocal", 8, lambda: path)
    assert "zeros, vocal or a saved" in mistake(negative_vector, "female", WIDTH, none)
    assert "65504" in mistake(negative_vector, write(tmp_path / "big.npy", np.full(4, 7e4)), WIDTH, none)


# MuQ-MuLan

@pytest.fixture(scope="session")
def standin(tmp_path_factory):
    return standin_style.build(tmp_path_factory.mktemp("mulan"))


def load(folder):
    return StyleEncoder(*(folder / name for name in standin_style.FOLDERS))


@pytest.fixture(scope="module")
def encoder(standin):
    return load(standin)


@pytest.fixture(scope="module")
def muq(standin):
    return standin_style.reference(standin)


def tone(hz, seconds):
    return 0.5 * torch.sin(2 * math.pi * hz * torch.arange(round(24000 * seconds)) / 24000)


def test_sound_is_heard_as_muq_hears_it(encoder, muq):
    """A version of transformers on which muq imports, builds and then fails at the first sound."""
    for wave in (tone(300, 0.1), tone(300, 3), torch.cat([tone(300, 10), tone(2000, 2)])):
        got = encoder.audio(wave)
        assert got.shape == (512,) and got.dtype == torch.float32
        with torch.no_grad():
            assert torch.allclose(got, muq(wavs=wave[None])[0], atol=1e-6)
    assert not torch.allclose(encoder.audio(tone(300, 3)), encoder.audio(tone(2000, 3)), atol=1e-2)


def test_mean_of_clips_is_left_as_it_is(encoder):
    """A style brought back to norm 1 is not what JAM was given: it takes the mean of 10 s clips."""
    low, high = tone(300, 10), tone(2000, 10)
    got = encoder.audio(torch.cat([low, high]))
    assert got.norm() < 0.99
    assert torch.allclose(got, (encoder.audio(low) + encoder.audio(high)) / 2, atol=1e-6)


def test_words_are_read_as_muq_reads_them(encoder, muq):
    """Tokens of another tokenizer, or lost rules of this one: here, that capitals are small letters."""
    got = encoder.text("a sad piano song")
    assert got.shape == (512,) and got.dtype == torch.float32
    assert torch.equal(got, encoder.text("A SAD piano song"))
    assert not torch.allclose(got, encoder.text("loud drums"), atol=1e-2)
    with torch.no_grad():
        assert torch.allclose(got, muq(texts=["a sad piano song"])[0], atol=1e-6)
        beside = muq(texts=["a sad piano song", "x" * 100])[0]
    assert not torch.allclose(got, beside, atol=1e-3)        # why there is no batch


def test_long_prompt(encoder, capsys):
    """A prompt file with a whole review in it: cut as JAM cuts it, and said so."""
    long = "a sad song " * 40
    got = encoder.text(long)
    assert "warning" in capsys.readouterr().err
    assert torch.equal(got, encoder.text(long[:300])) and not torch.equal(got, encoder.text(long[:299]))
    assert not capsys.readouterr().err
    expands = "\ufdfa" * 300                                 # 18 letters each, as the tokenizer sees them
    assert encoder.text(expands).isfinite().all()


def test_only_training_uses_what_may_be_missing(standin, encoder, tmp_path):
    """A list of tolerated tensors that holds one which does matter: random numbers in every style."""
    folder = shutil.copytree(standin, tmp_path / "mulan")
    path = folder / standin_style.FOLDERS[0] / "pytorch_model.bin"
    weights = torch.load(path, weights_only=True)
    for spoil in (lambda v: v * math.nan if v.is_floating_point() else v, lambda v: v[None], None):
        kept = {k: spoil(v) if k.startswith(UNUSED) else v for k, v in weights.items()
                if spoil or not k.startswith(UNUSED)}
        torch.save(kept, path)
        got = load(folder)
        assert torch.equal(got.audio(tone(300, 1)), encoder.audio(tone(300, 1)))
        assert torch.equal(got.text("rock"), encoder.text("rock"))
    assert len(kept) < len(weights)


@pytest.mark.parametrize("change, expected", [
    (lambda w: w.pop("mulan.audio.proj.bias"), "mulan.audio.proj.bias: missing"),
    (lambda w: w.update({"extra.weight": torch.ones(2)}), "extra.weight: (2,) float; expected none"),
    (lambda w: w.update({"mulan.text_to_latents.bias": torch.ones(7)}), "mulan.text_to_latents.bias: (7"),
    (lambda w: w.update({"mulan.audio.proj.bias": torch.ones(32, dtype=torch.int64)}), "torch.int64"),
    (lambda w: w.update({"mulan.audio.proj.bias": "text"}), "not weights"),
    (lambda w: w.update({3: torch.ones(2)}), "such as 3: (2,)"),
    (lambda w: w.clear(), "tensors that differ: 151, ")])
def test_weights_must_fit(change, expected, standin, tmp_path):
    """muq's own loading takes a file without weights, and then every style is random."""
    folder = shutil.copytree(standin, tmp_path / "mulan")
    path = folder / standin_style.FOLDERS[0] / "pytorch_model.bin"
    weights = dict(torch.load(path, weights_only=True))
    change(weights)
    torch.save(weights, path)
    text = mistake(load, folder)
    assert str(path) in text and expected in text


WEIGHTS = "MuQ-MuLan-large/pytorch_model.bin"
CONFIGS = ("MuQ-MuLan-large/config.json", "MuQ-large-msd-iter/config.json", "xlm-roberta-base/config.json")
TOKENIZER = "xlm-roberta-base/tokenizer.json"


@pytest.mark.parametrize("name, content", [
    *((name, content) for name in (*CONFIGS, TOKENIZER, WEIGHTS) for content in (None, b"", b"junk", b"[1]")),
    *((name, b'{"hidden_size": "wide"}') for name in CONFIGS), (TOKENIZER, b"{}"),
    (WEIGHTS, b"\x80\x02J"), (WEIGHTS, b"PK\x03\x04")])
def test_broken_file_is_named(name, content, standin, tmp_path):
    """A cut download or a file of something else: a traceback out of five libraries."""
    folder = shutil.copytree(standin, tmp_path / "mulan")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert str(folder / name) in mistake(load, folder)


@pytest.mark.parametrize("change", [{"sr": 16000}, {"sr": None}, {"dim_latent": "512"}])
def test_config_of_another_kind(change, standin, tmp_path):
    """A MuLan that hears another rate would hear everything at the wrong speed."""
    folder = shutil.copytree(standin, tmp_path / "mulan")
    path = folder / standin_style.FOLDERS[0] / "config.json"
    config = json.loads(path.read_text())
    config["mulan"] |= change
    path.write_text(json.dumps(config))
    assert str(path) in mistake(load, folder)


def test_tokenizer_of_another_model(standin, tmp_path):
    """Ids beyond the table, or another word's: an index error at some prompts, nonsense at the rest."""
    folder = shutil.copytree(standin, tmp_path / "mulan")
    path = folder / standin_style.FOLDERS[2] / "tokenizer.json"
    rules = json.loads(path.read_text())
    rules["model"]["vocab"] += [[f"more{i}", -1.0] for i in range(9)]
    path.write_text(json.dumps(rules))
    assert str(path) in mistake(load, folder)


def test_encoder_of_a_model(standin, encoder):
    """A model without an encoder: the error must say what it takes as style; another: its encoder."""
    cfg = SampleConfig(style_encoder=standin)
    text = mistake(encoder_of, cfg, PRESETS["baby"], "cpu", "--model baby")
    assert text.startswith("--model baby takes no sound and no text as style; expected a style that it names")
    assert "saved vector (.npy, .pt, .safetensors, .json) of 128 numbers" in text
    for preset in (PRESETS["jam-0.5"], None):
        assert torch.equal(encoder_of(cfg, preset, "cpu").text("rock"), encoder.text("rock"))
    cfg = SampleConfig(style_encoder=standin / "gone")
    assert f"--style-encoder {standin / 'gone'}: there is no" in mistake(encoder_of, cfg, None, "cpu")


def test_encoder_can_be_freed(standin):
    """Three gigabytes that stay while the song is sung."""
    built = []

    def make():
        encoder = load(standin)
        built.append(weakref.ref(encoder.model))
        return encoder

    style(texts=("rock",), width=512, encoder=make)
    gc.collect()
    assert built[0]() is None


CHILD = """
import random, socket, sys, torch
from pathlib import Path
def refuse(*args): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
import style
assert not {"muq", "transformers"} & set(sys.modules)
torch.manual_seed(5); random.seed(5)
states = torch.random.get_rng_state(), random.getstate()
encoder = style.StyleEncoder(*map(Path, sys.argv[1:]))
encoder.audio(torch.zeros(24000)), encoder.text("rock")
assert torch.equal(states[0], torch.random.get_rng_state()) and states[1] == random.getstate()
"""


@pytest.mark.slow
def test_first_load_is_silent_and_leaves_randomness_alone(standin):
    """muq seeds torch and Python, prints to stdout and asks the hub; importing it must wait until needed."""
    folders = [str(standin / name) for name in standin_style.FOLDERS]
    done = subprocess.run([sys.executable, "-c", CHILD, *folders], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_muq(standin, monkeypatch):
    """An optional library: its name and how to get it, not a traceback out of an import."""
    monkeypatch.setitem(sys.modules, "muq", None)
    with pytest.raises(ImportError, match="pip install muq==0.1.0"):
        load(standin)
