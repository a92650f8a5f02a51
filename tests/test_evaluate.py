"""evaluate.py measures what it says: on songs whose faults are known, with a stand-in that hears perfectly.

And with the shipped ear, on two ground-truth songs (tests/sung.safetensors: latents, and their words).
"""

import contextlib
import dataclasses
import importlib
import json
import re
from pathlib import Path

import pytest
import soundfile
import test_align
import torch
import torchaudio
import torchaudio.functional as AF
from browser import browsing, find_browser
from conftest import BABY
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from test_align import Bundle, spell

import evaluate
import style
from baby import ear as ear_module
from baby.ear import truth
from config import PRESETS, EvaluateConfig, UserError
from evaluate import METRICS, badness, distance, main, measures, scorer_of, summary
from lyrics import align
from phonemes import sung_spans
from songs import listeners
from songs.listeners import Ear, Recogniser, find_words, level, likeliest, load_ear, misheard, recogniser_of
from songs.listeners import small_ear, wav2vec2
from songs.report import report, table
from sung import whole_frames
from vae import make_codec

CFG = EvaluateConfig(songs=Path())

RATE, PER_S = 1000, 100                  # of the stand-in: a frame is ten samples
SOUNDS = ["", *"həloʊwɝdsæt"]


def listener(labels=SOUNDS, **changes):
    """It hears classes where waves have their number, in tenths, and nothing else."""
    def hear(wave, rate_hz):
        voice = wave.mean(0)
        frames = voice[:len(voice) // 10 * 10].view(-1, 10).mean(1)
        ids = (10 * frames).round().long().clamp(0, len(labels) - 1)
        log_p = torch.nn.functional.one_hot(ids, len(labels)).float().mul(8).log_softmax(-1)
        return voice, rate_hz, log_p, PER_S
    own = Recogniser("stand-in", "0", labels, hear, lambda word: word.phoneme, lambda heard: heard, 0.0,
                     lambda wave, rate_hz: wave.mean().view(1, 1))
    return dataclasses.replace(own, **changes)


def song(words, seconds=4.0, late_s=0.0):
    """A wave (1, N) of (phoneme, start, end), sung so much later than its account (the record) says."""
    wave = torch.zeros(round(seconds * RATE))
    for phoneme, start, end in words:
        for c, a, b in sung_spans(phoneme, end - start):
            a, b = (round(PER_S * (start + t + late_s)) * 10 for t in (a, b))
            wave[a:b] = SOUNDS.index(c) / 10
    words = [{"word": word, "start": start, "end": end, "phoneme": word} for word, start, end in words]
    return wave[None], {"word": words, "settings": {"duration": seconds}}


def at_rate(made):
    """The first arguments of `measures`, of what `song` returns."""
    return made[0], RATE, made[1]


HELLO = [("həloʊ", 0.5, 1.1), ("wɝld", 1.1, 1.7), ("sæt", 2.2, 2.6)]


def finite(value):
    """Whether all numbers of a JSON value are."""
    json.dumps(value, allow_nan=False)
    return True


texts = st.text("abc", max_size=12)


@settings(deadline=None, derandomize=True, max_examples=100, database=None)
@given(texts, texts)
def test_errors_at_each_place_sum_up_to_the_edit_distance(asked, heard):
    """A wrong distance is a wrong error rate; torchaudio's is the reference."""
    errors, places = misheard(asked, heard)
    assert "".join(places) == heard and len(places) == len(errors)
    assert len(errors) == len(asked) + 1 and min(errors) >= 0
    assert sum(errors) == AF.edit_distance(asked, heard)


def test_a_perfect_song_has_no_errors():
    """Any error here is the measure's own."""
    wave, record = song(HELLO)
    row = measures(wave, RATE, record | {"word": record["word"][::-1]}, listener())
    assert (row["word_error_rate"], row["phoneme_error_rate"], row["missing"]) == (0, 0, 0)
    assert row["onset_90_s"] <= 0.01 and row["offset_90_s"] <= 0.01 and row["within_50_ms"] == 1
    assert row["before_s"] == row["after_s"] == row["length_error_s"] == 0
    assert [word["word"] for word in row["words"]] == [word for word, _, _ in HELLO]


@pytest.mark.parametrize("late_s", (0.2, -0.2))
def test_late_songs_are_said_to_be_late(late_s):
    """Timing that followed the asked times, not the heard ones, would call every song punctual."""
    wave, record = song(HELLO, late_s=late_s)
    row = measures(wave, RATE, record, listener())
    assert row["onset_s"] == pytest.approx(0.2, abs=0.011) == row["offset_s"]
    assert row["late_s"] == pytest.approx(late_s, abs=0.011)
    assert row["within_100_ms"] == 0 and row["phoneme_error_rate"] == 0 == row["missing"]
    assert row["before_s"] == pytest.approx(0.15 * (late_s < 0), abs=0.011)       # less 0.05 s of grace
    assert row["after_s"] == pytest.approx(0.15 * (late_s > 0), abs=0.011)


def test_wrong_words_are_errors_and_missing():
    """The asked words must not be read into a song that sings others."""
    wave, record = song(HELLO)
    record["word"][1]["phoneme"] = "tʊt"
    row = measures(wave, RATE, record, listener())
    assert row["word_error_rate"] == pytest.approx(1 / 3)
    assert row["sound_errors"] == 4 and row["words"][1]["errors"] == 4 and row["words"][1]["found"] is None
    assert row["words"][0]["found"] and row["words"][2]["found"]


def test_a_word_cut_out_is_missing_and_its_neighbours_are_not():
    """Forced alignment finds every word somewhere; the measure has to know better."""
    wave, record = song(HELLO)
    wave[:, 1100:1700] = 0
    row = measures(wave, RATE, record, listener())
    assert [word["found"] is None for word in row["words"]] == [False, True, False]
    assert row["missing"] == pytest.approx(1 / 3) and row["within_100_ms"] == pytest.approx(2 / 3)
    assert row["words"][2]["found"] == pytest.approx([2.2, 2.6], abs=0.011)


def test_what_is_sung_beside_the_words_does_not_move_them():
    """Sounds that nobody asked for count as errors, not as bad timing."""
    wave, record = song(HELLO)
    extra, _ = song([("wʊ", 1.8, 2.0), ("dʊ", 2.9, 3.4)])
    row = measures(wave + extra, RATE, record, listener())
    assert row["onset_90_s"] <= 0.011 and row["missing"] == 0
    assert row["sound_errors"] == 4 and row["after_s"] == pytest.approx(0.5, abs=0.011)


def test_what_nobody_asked_for_costs():
    """A song that is sung twice, or with words before, between and behind its own, passed for a good one."""
    words = [("həloʊ", 3.0, 3.6), ("wɝld", 3.6, 4.2), ("sæt", 5.2, 5.6)]
    wave, record = song(words, 9.0)
    for shift_s in (-2.8, 2.8):
        again, _ = song([(word, start + shift_s, end + shift_s) for word, start, end in words], 9.0)
        row = measures(wave + again, RATE, record, listener())
        assert row["phoneme_error_rate"] == 1 and row["word_error_rate"] >= 1 and row["missing"] == 0
    for start in (0.5, 4.4, 7.0):
        extra, _ = song([("wɝld", start, start + 0.6)], 9.0)
        row = measures(wave + extra, RATE, record, listener())
        assert row["sound_errors"] == 4 and row["word_errors"] >= 1, start
    assert measures(wave, RATE, song([], 9.0)[1], listener())["sound_errors"] == 12


def test_doubled_sounds_count_once():
    """Who sings "this song" sings one s: a recogniser that hears one is right."""
    for start in (1.0, 1.1):
        wave, record = song([("tæs", 0.5, 1.0), ("sæt", start, 1.6)])
        row = measures(wave, RATE, record, listener())
        assert row["sound_errors"] == 0 and row["sound_count"] == 5 and row["missing"] == 0


def scores(*parts):
    """Log probabilities (T, 4) of blank, bar, a, b: each part is (frames, the four)."""
    return torch.cat([torch.tensor([own], dtype=torch.float32).repeat(n, 1) for n, own in parts])


def test_other_sounds_and_bars_do_not_stretch_words():
    """A word whose sound is a little like what is sung before it would begin too early."""
    for before in ([-8, -9, -4, 0], [-8, 0, -2, -9]):        # another sound; a bar
        log_p = scores((10, before), (10, [-8, -9, 0, -9]), (5, [0, -9, -9, -9]))
        span, = find_words(log_p, [[2]], 1)
        assert (span.start, span.end) == (10, 20)


def test_flicker_is_not_heard():
    """One frame that is a little more like another sound is no sound; a clear one is."""
    held, other = [-9, -9, 0, -3], [-9, -9, -3, 0]
    log_p = scores((10, held), (1, other), (10, held))
    assert (likeliest(log_p, 4.0), likeliest(log_p, 0.0)) == ([2], [2, 3, 2])
    assert likeliest(scores((10, held), (4, other), (10, held)), 4.0) == [2, 3, 2]


def test_letters_give_words_and_their_sounds():
    """With bars, words are compared as words, in the same spelling; sounds through the phonemizer."""
    letters = ["-", "|", *"acehorstw"]
    said = {"two": "tu", "cats": "kæts", "hats": "hæts"}
    ear = listener(letters, say=said.__getitem__,
                   spell=lambda word: {"2": "tw-o", "Cats!": "cats"}[word.word])
    record = {"word": [{"word": "2", "start": 0.1, "end": 0.4, "phoneme": "tu"},
                       {"word": "Cats!", "start": 0.5, "end": 0.9, "phoneme": "kæts"}]}

    def heard(text):
        wave = torch.cat([torch.full((100,), letters.index(c) / 10) for c in text])
        return measures(wave[None], RATE, record, ear)

    row = heard("-two|cats-")
    assert (row["word_errors"], row["word_count"], row["sound_errors"], row["heard"]) == (0, 2, 0, "two cats")
    row = heard("-two|hats|hats-")
    assert (row["word_errors"], row["sound_errors"], row["sound_count"]) == (2, 5, 6)


@pytest.mark.parametrize("wave", [
    torch.zeros(2, 24000), torch.zeros(1, 1200), torch.randn(1, 1200, generator=torch.Generator()),
    torch.ones(2, 24000), torch.randn(2, 72000, generator=torch.Generator()).clamp(-1, 1)], ids=(
        "silence", "short silence", "0.05 s", "constant", "noise"))
@pytest.mark.parametrize("words", (HELLO, []), ids=("words", "instrumental"))
def test_all_numbers_are_finite(wave, words):
    """One NaN makes every mean NaN, and JSON unreadable."""
    record = song(words)[1]
    row = measures(wave, 24000, record, small_ear())
    assert finite(row) and METRICS.keys() <= row.keys()
    assert finite(summary([row | {"scores": {}}]))
    if words:
        assert row["missing"] > 0.5 and row["phoneme_error_rate"] > 0.5 and row["onset_s"] > 0.3


def test_sound_is_measured():
    """Clipping, silence, width and loudness of waves for which they are known."""
    rng = torch.Generator().manual_seed(0)
    t = torch.arange(48000) / 24000
    sine = 0.5 * torch.sin(2 * torch.pi * 997 * t)
    found = evaluate.sound_of(torch.stack([sine, sine]), 24000)
    assert found["stereo_width"] == pytest.approx(0, abs=1e-6) and found["clipped"] == found["silent"] == 0
    assert found["loudness_lufs"] == pytest.approx(-6.0, abs=0.2)        # BS.1770: both channels at -6 dBFS
    assert evaluate.sound_of(torch.stack([sine, -sine]), 24000)["stereo_width"] == pytest.approx(1)
    noise = torch.randn(2, 48000, generator=rng)
    assert evaluate.sound_of(0.1 * noise, 24000)["stereo_width"] == pytest.approx(0.5, abs=0.02)
    clipped = evaluate.sound_of((4 * sine[None]).clamp(-1, 1), 24000)["clipped"]
    assert clipped == pytest.approx(2 / 3, abs=0.01)         # above half of its height, a sine is so long
    half = torch.cat([sine, 0 * sine])[None]
    assert evaluate.sound_of(half, 24000)["silent"] == pytest.approx(0.5, abs=0.01)


def rows_of(lateness):
    """Rows of songs that are so late."""
    made = []
    for i, late_s in enumerate(lateness):
        wave, record = song(HELLO, late_s=late_s)
        made.append(measures(wave, RATE, record, listener()) | {"id": str(i), "scores": {"mine": late_s}})
    return made


def test_intervals_hold_the_value_and_differences_are_paired(monkeypatch):
    """Two models on the same songs: an unpaired interval would hide a small steady difference."""
    monkeypatch.setattr(evaluate, "DRAWS", 100)
    lateness = [0, 0.1, 0.2, 0.3, 0.1, 0.2]
    rows, later = rows_of(lateness), rows_of([late_s + 0.02 for late_s in lateness])
    found = summary(rows, seed=1)
    assert found == summary(rows, seed=1)
    for name in ("late_s", "mine", "onset_s"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
    assert found["late_s"]["high"] - found["late_s"]["low"] > 0.1
    paired = summary(later, rows, seed=1)["mine"]
    assert paired == pytest.approx({"value": 0.02, "low": 0.02, "high": 0.02})


def test_few_songs_have_no_interval():
    """Two songs drawn anew are often one of them twice: their interval looked narrow, or of width zero."""
    rows = rows_of([0.1] * 6)
    assert summary(rows[:5])["mine"] == {"value": pytest.approx(0.1), "low": None, "high": None}
    assert summary(rows)["mine"]["low"] == pytest.approx(0.1)
    for count, told in ((5, True), (6, False)):
        found = summary(rows[:count])
        text = table(rows[:count], found, dict.fromkeys(found, "{:.2f}"))
        assert ("too few songs for 95 % intervals, which need 6" in text, " to " in text) == (told, not told)


def test_frechet_distance_of_known_distributions():
    """Of equal sets 0; of shifted ones the square of the shift; of single songs finite."""
    ours = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    assert distance(ours, ours) == pytest.approx(0, abs=1e-6)
    assert distance(ours, ours + torch.tensor([3.0, 0, 4])) == pytest.approx(25, rel=1e-4)
    assert distance(ours[:1], ours[:1] + 1) == pytest.approx(3, rel=1e-4)


# With the shipped ear

@pytest.fixture(scope="module")
def sung():
    """Two true songs through the codec: for each voice the wave (1, N) and its record."""
    codec, made = make_codec(PRESETS["baby"].codec, BABY / "codec.safetensors"), {}
    with safe_open(Path(__file__).with_name("sung.safetensors"), "pt") as file:
        for voice in file.keys():
            wave = codec.decode(file.get_tensor(voice).float()[None])[0]
            record = json.loads(file.metadata()[voice])
            made[voice] = wave[:, :round(record["settings"]["duration"] * 24000)], record
    return made


@pytest.fixture
def folder(sung, tmp_path):
    """The songs as sample.py writes them, one of them in generated/."""
    for voice, place in (("female", tmp_path), ("male", tmp_path / "generated")):
        wave, record = sung[voice]
        place.mkdir(exist_ok=True)
        soundfile.write(place / f"{voice}.wav", (0.5 * wave[0] / wave.abs().max()).numpy(), 24000)
        (place / f"{voice}.wav.json").write_text(json.dumps(record))
    return tmp_path


@pytest.mark.parametrize("voice", ("female", "male"))
def test_the_ear_hears_ground_truth(sung, voice):
    """Times within 40 ms and all words but one, at most, on songs that are right; 200 ms on late ones."""
    wave, record = sung[voice]
    row = measures(wave, 24000, record, small_ear())
    assert row["onset_s"] < 0.04 and row["offset_s"] < 0.04
    assert round(row["missing"] * row["word_count"]) <= 1 and row["phoneme_error_rate"] < 0.3
    quiet = measures(0.01 * wave, 24000, record, small_ear())
    assert quiet["phoneme_error_rate"] == row["phoneme_error_rate"]      # loudness is no diction
    late = {"word": [w | {"start": w["start"] - 0.2, "end": w["end"] - 0.2} for w in record["word"]]}
    assert measures(wave, 24000, late, small_ear())["late_s"] == pytest.approx(0.2, abs=0.03)


def test_the_ear_does_not_confirm_what_was_asked(sung):
    """As a reward it must tell the words of another song from those that are sung."""
    row = measures(sung["female"][0], 24000, sung["male"][1], small_ear())
    assert row["phoneme_error_rate"] > 0.6 and row["word_error_rate"] > 0.9 and row["missing"] > 0.5
    wave, record = sung["female"]
    once, twice = (measures(torch.cat([wave] * n, 1), 24000, record, small_ear()) for n in (1, 2))
    assert twice["phoneme_error_rate"] > once["phoneme_error_rate"] + 0.7
    assert twice["word_error_rate"] >= 1 > 0.7 > once["word_error_rate"]


def test_the_command(folder, sung, tmp_path, capsys, monkeypatch):
    """Table, JSON and page, of all songs that can be read; those that cannot are named, exit code 1."""
    monkeypatch.setattr(evaluate, "DRAWS", 100)
    name = "</script><b>"
    (folder / "x.wav").write_bytes(b"RIFF")
    (folder / "x.wav.json").write_text("{}")
    record = sung["female"][1] | {"word": [w | {"word": name} for w in sung["female"][1]["word"]]}
    (folder / "female.wav.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit) as end:
        main([str(folder), "-o", str(tmp_path / "out"), "--scorer", "phonemes:1,timing:2", "--against",
              str(folder)])
    assert end.value.code == 1
    shown = capsys.readouterr()
    assert "x.wav" in shown.err and "2 of 3 songs, 13 words" in shown.out and "onset_s" in shown.out
    made = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [("error" in row, row["id"]) for row in made["songs"]] == [
        (False, "female"), (False, "male"), (True, "x")]
    assert made["total"]["phoneme_error_rate"]["value"] < 0.3 and made["recogniser"]["name"] == "ear"
    assert set(map(tuple, map(dict.values, made["against"].values()))) == {(0, None, None)}
    assert made["frechet_distance"] == pytest.approx(0, abs=1e-3)
    page = (tmp_path / "out" / "report.html").read_text()
    data = re.search('type="application/json" id="data">(.*?)</script>', page)[1]
    songs = json.loads(data)["songs"]
    assert {song["file"] for song in songs} == {"../female.wav", "../generated/male.wav"}
    assert name not in page and {w["word"] for s in songs for w in s["words"]} > {name}
    assert page.count("sha256-") == 2 and "@" not in page.split("<style>")[0]


def page_of(rows, folder):
    """The page of rows that `measures` made, whose sound is folder/a.wav, and what it holds."""
    rows = [row | {"id": str(i), "file": str(folder / "a.wav"), "scores": {}} for i, row in enumerate(rows)]
    formats = {name: metric.shown for name, metric in METRICS.items()}
    text = report(rows, summary(rows), formats, badness, folder)
    return text, json.loads(re.search('id="data">(.*?)</script>', text)[1])


def test_songs_and_words_of_the_page():
    """The worst song stands first; words out of order say nothing, nor do sounds in one string."""
    good = measures(*at_rate(song(HELLO)), listener())
    wave, record = song([("sæt", 0.5, 1.0), ("həloʊwɝld", 1.2, 2.4), ("sæd", 2.5, 3.0)])
    record["word"][1]["phoneme"] = "həloʊwɝlt"
    bad = measures(*at_rate((wave, record)), listener())
    _, data = page_of([good, bad], Path("/"))
    assert [song["id"] for song in data["songs"]] == ["1", "0"]
    assert data["songs"][0]["heard"] == "sæt həloʊwɝld sæd"
    words = data["songs"][0]["words"]
    assert [word["heard"] for word in words] == ["sæt", "həloʊwɝld", "sæd"]
    assert [word["word"] for word in words] == ["sæt", "həloʊwɝld", "sæd"]
    assert max(words, key=lambda word: word["badness"])["word"] == "həloʊwɝld"
    assert "too few songs for 95 % intervals" in data["totals"][-1]
    extra = measures(*at_rate((wave + song([("oʊ", 0.1, 0.3)])[0], record)), listener())
    assert extra["heard"] == "oʊ sæt həloʊwɝld sæd"


@pytest.fixture(scope="module")
def browser():
    """A real browser, where there is one."""
    if find_browser() is None:
        pytest.skip("no chromium or chrome on this machine: the page is not tried in a browser")
    with browsing() as started:
        yield started


def test_the_page_on_a_phone_and_on_a_screen(browser, tmp_path):
    """Letters below each other, words beyond the edge, a player squeezed until it had no button to play."""
    soundfile.write(tmp_path / "a.wav", torch.zeros(8000).numpy(), 8000)
    row = measures(*at_rate(song(HELLO)), listener())
    row |= {"heard": "həloʊ " * 400, "words": 40 * row["words"] + [row["words"][0] | {
        "word": "o" * 90, "heard": "ʊ" * 90, "errors": 5}]}
    (tmp_path / "report.html").write_text(page_of([row] * 6, tmp_path)[0])
    seen = "h1, h2, p, pre, dt, dd, .words button, audio"
    for width, phone in ((390, True), (1280, False)):
        browser.open((tmp_path / "report.html").as_uri(), width, 800, phone=phone)
        fits = (f"(e, box = e.getBoundingClientRect()) => box.right <= {width} && box.width > 8 && "
                "e.scrollWidth <= e.clientWidth + 1")
        assert browser.value(f"[...document.querySelectorAll('{seen}')].every(e => ({fits})(e))")
        assert browser.value(f"document.documentElement.scrollWidth <= {width}")
        assert browser.value("document.querySelector('.words button').getBoundingClientRect().width") > 40
        assert browser.value("document.querySelector('audio').getBoundingClientRect().width") > 250
        browser.click("document.querySelector('audio')", 0.08)           # where its button is
        browser.wait("!document.querySelector('audio').paused || document.querySelector('audio').ended")
    assert not browser.errors


def test_the_page_shows_the_worst_words_first_if_asked(browser, tmp_path):
    """Who looks for faults wants them first; who reads wants the song."""
    soundfile.write(tmp_path / "a.wav", torch.zeros(8000).numpy(), 8000)
    row = measures(*at_rate(song(HELLO)), listener())
    row["words"] = [word | {"errors": errors} for word, errors in zip(row["words"], (0, 1, 3))]
    (tmp_path / "report.html").write_text(page_of([row], tmp_path)[0])
    browser.open((tmp_path / "report.html").as_uri())
    words = "[...document.querySelectorAll('.words button')].map(b => b.textContent.split(' ')[0]).join(' ')"
    for shown in ("həloʊ wɝld sæt", "sæt wɝld həloʊ", "həloʊ wɝld sæt"):
        assert browser.value(words) == shown
        browser.click("document.querySelector('#worst')")
    assert browser.value("[...document.querySelectorAll('button.bad')].length") == 2


def test_the_page_plays_words(browser, folder):
    """In a real browser: a click on a word plays it where it was found, and stops behind it."""
    main([str(folder)])
    row = next(row for row in json.loads((folder / "evaluation.json").read_text())["songs"])
    browser.open((folder / "report.html").as_uri())
    audio = f"[...document.querySelectorAll('audio')].find(a => a.src.includes('{row['id']}.wav'))"
    word = row["words"][3]
    browser.value(f"window.heard = []; {audio}.addEventListener('timeupdate', e => heard.push("
                  "e.target.currentTime))")
    browser.click(f"[...{audio}.closest('article').querySelectorAll('button')].find(b => "
                  f"b.textContent.startsWith('{word['word']} '))")
    browser.wait(f"heard.length && {audio}.paused")
    heard = browser.value("heard")
    assert heard[0] == pytest.approx(word["found"][0] - 0.1, abs=0.3)
    assert heard[-1] == pytest.approx(word["found"][1] + 0.1, abs=0.4)
    assert browser.value("document.querySelectorAll('article').length") == 2 and not browser.errors


def test_a_manifest_and_its_audio(folder, sung, tmp_path):
    """Songs without accounts are measured by what their manifest asks for."""
    record = sung["female"][1]
    (folder / "female.wav.json").unlink()
    (folder / "words.json").write_text(json.dumps(record["word"]))
    (folder / "male.txt").write_text(" ".join(word["word"] for word in sung["male"][1]["word"]))
    entries = [{"id": "female", "lrc_path": "words.json", "duration": 4.71},
               {"id": "male", "lrc_path": "male.txt"}, {"id": "lost", "lrc_path": "words.json"}]
    (folder / "input.json").write_text(json.dumps(entries))
    with pytest.raises(SystemExit):
        main([str(folder), "--manifest", str(folder / "input.json"), "-o", str(tmp_path / "out")])
    female, male, lost = json.loads((tmp_path / "out" / "evaluation.json").read_text())["songs"]
    assert female["phoneme_error_rate"] < 0.3 and female["length_error_s"] == pytest.approx(1, abs=0.01)
    assert male["phoneme_error_rate"] < 0.3              # by its account, which has the planned times, too
    assert "no such file" in lost["error"]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a song for the stand-in, which then listens, and its account; returns the song's path."""
    ear = listener(hear=lambda wave, rate_hz: listener().hear(2 * wave, rate_hz),
                   embed=lambda wave, rate_hz: wave.view(-1, 2)[:1000])
    monkeypatch.setattr(evaluate, "recogniser_of", lambda cfg: ear)
    monkeypatch.setattr(evaluate, "DRAWS", 20)

    def write(name, words=HELLO, seconds=4.0, late_s=0.0, asked=None):
        path, (wave, record) = tmp_path / name, song(words, seconds, late_s)
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, wave[0].numpy() / 2, RATE, subtype="FLOAT")
        Path(f"{path}.json").write_text(json.dumps(song(*asked)[1] if asked else record))
        return path
    return write


def told(out, *args):
    """What evaluation.json says of a run of the command, whose exit code may be 1."""
    with contextlib.suppress(SystemExit):
        main([*map(str, args)])
    return json.loads(out.read_text())


def test_only_songs_that_were_asked_for_the_same_are_compared(written, tmp_path, capsys):
    """Easier words, later times or a shorter song in one of two folders made its model the better one."""
    hello, later = HELLO[0], [(word, start + 0.5, end + 0.5) for word, start, end in HELLO]
    for folder, late_s in (("a", 0.1), ("b", 0.0)):
        written(f"{folder}/same.wav", late_s=late_s)
        written(f"{folder}/rounded.wav", [("sæt", 1.0 + late_s / 20, 2.0)], late_s=late_s)
    for name, words, seconds in (("words", [hello, ("wɝd", 1.1, 1.7), HELLO[2]], 4.0), ("length", HELLO, 5.0),
                                 ("fewer", [hello], 4.0), ("times", later, 4.0)):
        written(f"a/{name}.wav", words, seconds)
        written(f"b/{name}.wav")
    written("a/mine.wav")
    written("b/theirs.wav")
    (tmp_path / "b/theirs.wav").write_bytes(b"RIFF")
    made = told(tmp_path / "a/evaluation.json", tmp_path / "a", "--against", tmp_path / "b")
    assert made["left_out"] == {
        "words": 'word 2 is "wɝd", not "wɝld"', "times": 'start of word 1 "həloʊ" is 1.0 s, not 0.5 s',
        "fewer": "has 1 words, not 3", "length": "lasts 5.0 s, not 4.0 s",
        "mine": f"not measured in {tmp_path / 'b'}"}
    assert made["against"]["late_s"]["value"] == pytest.approx(0.1, abs=0.011)
    assert made["frechet_distance"] == pytest.approx(0, abs=1e-3)
    said = capsys.readouterr().out
    assert f"2 songs of both, less those of {tmp_path / 'b'}\n" in said and said.count("too few songs") == 1
    assert f"left out: mine: not measured in {tmp_path / 'b'}" in said


def test_one_song(written, tmp_path):
    """A song's own file was no folder of songs; its result must not take the place of its folder's."""
    path, other = written("a/one.wav", late_s=0.1), written("b/one.wav")
    written("a/two.wav")
    made = told(tmp_path / "a/one.wav.evaluation.json", path, "--against", other)
    assert [row["id"] for row in made["songs"]] == ["one"] and (tmp_path / "a/one.wav.report.html").is_file()
    assert made["against"]["late_s"]["value"] == pytest.approx(0.1, abs=0.011)
    (tmp_path / "words.json").write_text(json.dumps(song(HELLO)[1]["word"]))
    (tmp_path / "input.json").write_text(json.dumps([{"id": name, "lrc_path": "words.json"} for name in
                                                     ("one", "two")]))
    Path(f"{path}.json").unlink()
    made = told(tmp_path / "a/one.wav.evaluation.json", path, "--manifest", tmp_path / "input.json")
    assert [(row["id"], row["missing"]) for row in made["songs"]] == [("one", 0)]
    made = told(tmp_path / "a/evaluation.json", tmp_path / "a")
    assert [row["id"] for row in made["songs"]] == ["two"]


def test_an_account_that_contradicts_its_manifest(written, tmp_path):
    """Which of the two a song was measured by was not told: a manifest's words went unread."""
    (tmp_path / "words.json").write_text(json.dumps(song(HELLO)[1]["word"]))
    (tmp_path / "words.txt").write_text("həloʊ wɝld\nsæt\n")
    asked = {"good": (HELLO,), "words": (HELLO[:2],), "times": ([*HELLO[:2], ("sæt", 2.2, 2.7)],),
             "length": (HELLO, 3.0), "planned": ([(word, start + 1, end + 1) for word, start, end in HELLO],),
             "other": ([*HELLO[:2], ("tæs", 2.2, 2.6)],)}
    entries = [{"id": name, "lrc_path": "words.txt" if name in ("planned", "other") else "words.json",
                "duration": 4.0} for name in asked]
    for name, own in asked.items():
        written(f"{name}.wav", asked=own)
    (tmp_path / "input.json").write_text(json.dumps(entries))
    rows = told(tmp_path / "evaluation.json", tmp_path, "--manifest", tmp_path / "input.json")["songs"]
    errors = {row["id"]: row["error"] for row in rows if "error" in row}
    assert errors == {name: f"{tmp_path / name}.wav.json: contradicts {tmp_path / 'input.json'}: {fault}"
                      for name, fault in {
        "words": "has 2 words, not 3", "times": 'end of word 3 "sæt" is 2.7 s, not 2.6 s',
        "length": "lasts 3.0 s, not 4.0 s", "other": 'word 3 is "tæs", not "sæt"'}.items()}


@pytest.mark.parametrize("args, text", [
    ([], "holds no songs with accounts"), (["--recogniser", "nose"], "expected one of ear, wav2vec2"),
    (["--scorer", "taste"], "expected phonemes, timing, style"), (["--scorer", "nowhere:f"], "nowhere"),
    (["--scorer", "json:taste"], "taste"), (["--scorer", "songeval"], "songeval"),
    (["--against", "nowhere"], "--against nowhere: there is no such folder or song")])
def test_mistakes_are_told_in_one_line(tmp_path, args, text):
    """A mistake should end at once, with what would be accepted."""
    with pytest.raises(UserError, match=text) as caught:
        main([str(tmp_path), *args])
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"nowhere\.wav: there is no such folder or song"):
        main([str(tmp_path / "nowhere.wav")])


# Scorers

def test_scores_rank_songs(tmp_path):
    """Higher is better, for each of them and for their sum; else the worst of many songs is chosen."""
    def written(name, late_s, words=HELLO):
        wave, record = song(words, late_s=late_s)
        soundfile.write(tmp_path / name, wave[0].numpy() / 2, RATE, subtype="FLOAT")
        return tmp_path / name, song(HELLO)[1]
    ear = listener()
    halved = dataclasses.replace(ear, hear=lambda wave, rate_hz: ear.hear(2 * wave, rate_hz))
    good, late = written("good.wav", 0), written("late.wav", 0.3)
    lost = written("lost.wav", 0, HELLO[:1])
    for name, songs in (("phonemes", (good, lost)), ("timing", (good, late, lost)),
                        ("phonemes:1,timing:2", (good, late, lost))):
        scores = [scorer_of(name, CFG, recogniser=halved)(*each) for each in songs]
        assert scores == sorted(scores, reverse=True) and len(set(scores)) == len(scores)
    assert scorer_of("timing", CFG, recogniser=halved)(*late) == pytest.approx(-0.3, abs=0.011)
    assert scorer_of("timing", CFG, recogniser=halved)(*lost) == pytest.approx(-1 / 3, abs=0.011)
    both = scorer_of("phonemes:1,timing:2", CFG, recogniser=halved)(*late)
    assert both == pytest.approx(1 - 0.6, abs=0.03)


def test_a_scorer_of_ones_own(tmp_path, monkeypatch):
    """MODULE:FUNCTION gets the file and the account; a number that is none must not choose a song."""
    (tmp_path / "taste.py").write_text("def good(path, record): return len(path.name) + record['x']\n"
                                       "def bad(path, record): return float('nan')\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    assert scorer_of("taste:good", CFG)(Path("abc"), {"x": 2}) == 5
    assert scorer_of("taste:good:2,taste:good", CFG)(Path("abc"), {"x": 2}) == 15
    with pytest.raises(ValueError, match="finite"):
        scorer_of("taste:bad", CFG)(Path("abc"), {})


def test_style_is_the_cosine_to_what_was_asked(folder, monkeypatch):
    """The asked style is the account's vector, or, for a model of other styles, the reference file's."""
    class Encoder:
        width = 2

        def __init__(self, *args):
            pass

        def audio(self, wave):
            return torch.tensor([3.0, 4.0])

    monkeypatch.setattr(style, "StyleEncoder", Encoder)
    monkeypatch.setattr(style, "encoder_folders", lambda cfg: ())
    score, path = scorer_of("style", CFG), folder / "female.wav"
    assert score(path, {"style": [3.0, 4.0]}) == pytest.approx(1)
    assert score(path, {"style": [4.0, -3.0]}) == pytest.approx(0, abs=1e-6)
    assert score(path, {"style": [1.0] * 5, "settings": {"style": [str(path)]}}) == pytest.approx(1)


# wav2vec2, whose place a stand-in takes: tones are letters

def test_wav2vec2_hears_words(monkeypatch, tmp_path):
    """Letters, bars and 50 frames a second of torchaudio's models, and their silence."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    bundle = Bundle("-|ETAONIHSRDLUMWCFGYPBVK'XJQZ")
    source = align.LISTENERS["wav2vec2"]
    monkeypatch.setattr(torchaudio.pipelines, source.name, bundle)
    source.path.parent.mkdir(parents=True)
    source.path.write_bytes(b"weights")
    sounds = {"help": "hɛlp", "Help,": "hɛlp", "world": "wɝld"}
    monkeypatch.setattr(listeners, "phonemizer", lambda: lambda word: sounds.get(word, ""))
    cfg = EvaluateConfig(songs=tmp_path, recogniser="wav2vec2", offline=True, device="cpu")
    ear = wav2vec2(cfg)
    monkeypatch.setattr(test_align, "GAP_S", 0.0)            # it hears a bar behind each tone that ends
    wave, times = spell([("help", 0.5), ("world", 2.0)], 4.0, held=0.5)
    record = {"word": [{"word": word, "start": start, "end": end}
                       for word, (start, end) in zip(("Help,", "world"), times)]}
    row = measures(wave[None], 16000, record, ear)
    assert row["heard"].split() == ["help", "world"] and (row["word_errors"], row["word_count"]) == (0, 2)
    assert row["sound_errors"] == 0 and row["onset_s"] < 0.05 and row["missing"] == 0
    bundle.peaky = True                                      # hears the attack of held letters only
    assert measures(wave[None], 16000, record, ear)["offset_s"] < 0.1
    assert finite(measures(torch.zeros(1, 16000), 16000, record, ear))
    assert recogniser_of(cfg).sha256 == ear.sha256


# The ear itself

def test_truth_of_frames():
    """Sounds a frame off would teach the ear late words."""
    ear = Ear("həloʊ")
    rows = truth([{"start": 0.5, "end": 1.1, "phoneme": "həloʊ"}], 188, ear.classes)
    at = (rows > 0).nonzero()[:, 0]
    assert (at[0], at[-1] + 1) == (round(0.5 * 93.75), round(1.1 * 93.75))
    assert rows.unique_consecutive().tolist() == [0, 1, 2, 3, 4, 5, 0]


def test_rooms_and_noise_are_as_loud_as_they_say():
    """A room without an echo, or noise that nobody hears, would make the ear's task easier than we say."""
    rng = torch.Generator().manual_seed(0)
    echo = ear_module.room(1.0, -6.0, rng)
    assert echo[0] == 1 and not echo[1:120].any() and echo[1:].norm() == pytest.approx(0.5, abs=0.01)
    assert 40 < 20 * (echo[240:2640].norm() / echo[-2400:].norm()).log10() < 60
    for slope in (0.0, 1.0):
        noise = ear_module.hiss(24000, -20.0, slope, rng)
        assert noise.std() == pytest.approx(0.01, rel=0.01)
    size = noise.stft(512, return_complex=True, window=torch.hann_window(512)).abs().mean(1)
    assert size[20:40].mean() > 4 * size[200:220].mean()


def test_another_speed_moves_sounds_and_classes_alike(monkeypatch):
    """An ear that learns from classes beside their sounds hears words too early or too late."""
    monkeypatch.setattr(ear_module, "room", lambda *args: torch.ones(1))
    monkeypatch.setattr(ear_module, "hiss", lambda size, *args: torch.zeros(size))
    rng, hop = torch.Generator().manual_seed(0), 256
    target = (torch.arange(800) // 37 % 2).long()
    wave = torch.randn(800 * hop, generator=rng) * target.repeat_interleave(hop)
    for _ in range(20):
        sound, classes = ear_module.crop(wave, target, rng)
        assert len(sound) == len(classes) * hop == ear_module.CROP * hop
        loud = (sound.view(-1, hop).square().mean(1) > 0.3 * sound.square().mean()).long()
        assert (loud != classes).sum() <= (classes[1:] != classes[:-1]).sum()    # at a border a frame is both


def test_level():
    """Long pauses must not make singing louder, and silence must stay finite."""
    tone = torch.sin(torch.arange(24000) / 10)
    paused = level(torch.cat([3 * tone, torch.zeros(72000)]))
    assert torch.allclose(paused[:24000], level(0.01 * tone), atol=1e-3)
    assert level(torch.zeros(100)).abs().max() == 0


def test_a_broken_ear(tmp_path):
    """Somebody else's file is a mistake to be told, not a traceback."""
    for content in (b"", b"x" * 100, (BABY / "styles.safetensors").read_bytes()):
        (tmp_path / "ear.safetensors").write_bytes(content)
        with pytest.raises(UserError, match="ear.safetensors"):
            load_ear(tmp_path / "ear.safetensors")


def test_the_ear_learns(monkeypatch, tmp_path, sung):
    """The recipe runs, and its loss falls: on two small songs, for some steps."""
    shipped, made = load_ear(BABY / "ear.safetensors"), []
    for wave, record in sung.values():
        wave = whole_frames(level(wave[0]), 512)
        made.append((wave, truth(record["word"], len(wave) // 256, shipped.classes)))
    losses, nll = [], torch.nn.functional.nll_loss
    monkeypatch.setattr(ear_module, "make_song", lambda number, codec, classes: made[number % 2])
    monkeypatch.setattr(ear_module, "CROP", 100)
    monkeypatch.setattr(torch.nn.functional, "nll_loss", lambda *a: losses.append(nll(*a)) or losses[-1])
    ear_module.main(ear_module.EarSettings(tmp_path / "ear.safetensors", BABY, 20, 16))
    assert losses[-1] < 0.8 * losses[0]
    assert load_ear(tmp_path / "ear.safetensors").classes == shipped.classes
