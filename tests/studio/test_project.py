"""Documents, typed texts, and the folder of a project, without a server."""

import copy
import dataclasses
import json

import pytest
import torch
from conftest import BABY
from hypothesis import given, settings
from hypothesis import strategies as st

from config import PHONEMIZER, PRESETS, UserError
from lyrics import formats
from lyrics.plan import FASTEST, size_of
from lyrics.pronounce import reader
from phonemes import SymbolTable
from studio import exchange
from studio.document import checked, empty, lines_of, lyrics_of, report
from studio.project import Project, Stale
from studio.typed import kind_of_text, with_lyrics
from support import files
from support.audio import mono, read_wave, write_wave

quick = settings(deadline=None, derandomize=True, max_examples=40, database=None)
STYLES = ["alto", "tenor"]
TEXT = "[Verse]\nGood morning sunny world\nAnd good night moon\nSleep well"


@pytest.fixture(scope="module")
def read():
    return reader(BABY / PHONEMIZER)


def typed(document: dict, text: str, read) -> dict:
    return checked(with_lyrics(document, formats.parse(text, kind_of_text(text), "text"), read), STYLES)


@pytest.fixture(scope="module")
def document(read):
    return typed(empty("alto"), TEXT, read)


def times(document: dict) -> list[tuple]:
    return [(word["word"], word["start"], word["end"])
            for line in document["lines"] for word in line["words"]]


# What a document may be

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)


@quick
@given(anything)
def test_what_is_no_document_is_refused(value):
    with pytest.raises(UserError):
        checked(value, STYLES)


@quick
@given(st.data(), anything)
def test_a_document_with_one_other_value_is_sung_or_refused(document, data, value):
    """Never an exception of another kind, nor a document that later fails, or that JSON changes."""
    document = copy.deepcopy(document)
    place = data.draw(st.sampled_from([document, document["lines"][0], document["lines"][0]["words"][1]]))
    place[data.draw(st.sampled_from(sorted(place)))] = value
    try:
        found = checked(document, STYLES)
    except UserError as e:
        assert str(e).startswith(("document: ", "line ")) and "\n" not in str(e)
        return
    assert json.loads(json.dumps(found, allow_nan=False).encode()) == found
    assert len(lyrics_of(found).lines) == len(found["lines"])


@pytest.mark.parametrize("change, error", [
    ({"start": 2.0, "end": 1.0}, 'line 1, word 1 "Good": end 1.00 s is before start 2.00 s'),
    ({"start": -1}, "line 1, word 1: start -1: expected seconds from 0 to 3600"),
    ({"end": True}, "line 1, word 1: end True: expected seconds from 0 to 3600"),
    ({"word": " "}, "line 1, word 1: word ' ': expected a text in one line"),
    ({"phoneme": "G XX D"}, 'line 1, word 1 "Good": XX is not ARPAbet; known: AA'),
    ({"extra": 1}, "line 1, word 1: expected an object of word, start, end, phoneme")])
def test_a_mistake_in_a_word_is_told_with_its_place(document, change, error):
    document = copy.deepcopy(document)
    document["lines"][0]["words"][0] |= change
    with pytest.raises(UserError) as e:
        checked(document, STYLES)
    assert str(e.value).startswith(error)


spans = st.lists(st.integers(0, 2000), min_size=2, max_size=12, unique=True).map(sorted)


@quick
@given(spans, st.text("abc'([~", min_size=1, max_size=3), st.sampled_from(["", "Verse", "Chorus 2"]))
def test_a_file_that_is_sung_has_the_words_and_lines_of_the_document(cuts, word, section):
    words = [{"word": word, "start": a / 100, "end": b / 100, "phoneme": "lɑ"}
             for a, b in zip(cuts, cuts[1:])]
    lines = [{"section": section, "backing": False, "style": None, "words": part}
             for part in (words[:3], words[3:]) if part]
    document = checked(empty("alto") | {"title": "A", "lines": lines}, STYLES)
    again = formats.parse(formats.write(lyrics_of(document), "jam"), "jam", "file")
    assert lines_of(again) == lines and again.title == "A"


def test_sounds_are_those_of_the_grid(document, read):
    table = SymbolTable(read.symbols)
    for preset in (PRESETS["baby"], dataclasses.replace(PRESETS["baby"], filler="average_sparse")):
        found = report(document, read, table, preset)
        assert found["problems"] == [] and len(found["sounds"]) == 10
        for (_, start, end), sounds, phoneme in zip(times(document), found["sounds"], found["phonemes"]):
            assert "".join(text for text, *_ in sounds) == phoneme
            cuts = [time for _, *span in sounds for time in span]
            assert cuts == sorted(cuts) and abs(cuts[0] - start) < 0.006 and abs(cuts[-1] - end) < 0.012


# Typed texts

@pytest.mark.parametrize("text", [
    TEXT, TEXT.replace("morning", "evening"), TEXT.replace("moon", "moon,"), TEXT + "\nAnd more",
    "[Verse]\nGood morning sunny world", TEXT.replace("\nAnd", " and"), TEXT.replace("[Verse]\n", "")])
def test_words_that_stay_keep_their_times(document, read, text):
    before, after = times(document), times(typed(document, text, read))
    assert [time[1:] for time in after[:len(before)]] == [time[1:] for time in before[:len(after)]]
    assert [word for word, *_ in after] == text.replace("[Verse]", "").split()


def test_new_words_get_room_from_their_line_and_new_lines_from_the_song(document, read):
    before = times(document)
    after = times(typed(document, TEXT.replace("morning", "very early morning"), read))
    assert after[0][1] == before[0][1] and after[5][2] == before[3][2] and after[6:] == before[4:]
    after = times(typed(document, TEXT.replace("\nSleep", "\nThis is a line that is new\nSleep"), read))
    moved = after[-1][1] - before[-1][1]
    assert after[:8] == before[:8] and moved > 1 and moved / 0.6 == pytest.approx(round(moved / 0.6))
    after = times(typed(document, f"First of all\n{TEXT}", read))
    assert after[0][1] == 0.5 and after[3][1] > after[2][2] and len({
        round(new[1] - old[1], 2) for new, old in zip(after[3:], before)}) == 1


words = st.sampled_from("good morning sunny world and night river moon la".split())


@quick
@given(st.lists(st.lists(words, min_size=1, max_size=8), max_size=5),
       st.lists(st.lists(words, min_size=1, max_size=8), max_size=5))
def test_any_text_can_become_any_other(read, first, second):
    """Words stay in order, none is too fast to be sung, and none is lost."""
    texts = ["\n".join(map(" ".join, lines)) for lines in (first, second)]
    document = empty("alto")
    for text in texts:
        document = typed(document, text, read)
        found = times(document)
        assert [word for word, *_ in found] == text.split()
        assert all(a[2] <= b[1] + 0.001 for a, b in zip(found, found[1:]))
        assert all(end - start >= 0.5 * size_of(word, read).syllables / FASTEST
                   for word, (_, start, end) in zip(lyrics_of(document).words, found))


def test_singers_and_sounds_stay_with_their_words(document, read):
    document = copy.deepcopy(document)
    document["lines"][1]["style"] = "tenor"
    document["lines"][1]["words"][1]["phoneme"] = "ɡʊt"
    after = typed(document, f"Oh\n{TEXT}".replace("night", "day"), read)
    assert [line["style"] for line in after["lines"]] == [None, None, "tenor", None]
    assert [word["phoneme"] for word in after["lines"][2]["words"]] == [None, "ɡʊt", None, None]
    after = typed(document, TEXT.replace("good night", "good{ɡud} night"), read)
    assert after["lines"][1]["words"][1]["phoneme"] == "ɡud"


@pytest.mark.parametrize("kind", [kind for kind in formats.KINDS if kind not in ("json", "audacity")])
def test_a_pasted_file_is_known_by_its_contents(document, read, kind):
    text = formats.write(lyrics_of(document | {"title": "A", "artist": "B"}), kind)
    assert kind_of_text(text) == kind
    if "words" in formats.KINDS[kind].carries.split():
        assert [word[:2] for word in times(typed(empty("alto"), text, read))] == [
            word[:2] for word in times(document)]


# The folder

@pytest.fixture
def project(tmp_path):
    yield Project(tmp_path / "project", STYLES)
    files.release()


def reopened(project: Project) -> Project:
    files.release()
    return Project(project.folder, STYLES)


def test_a_project_is_reopened_as_it_was_left(project, document):
    assert project.change(document, 0) == 1
    with pytest.raises(Stale):
        project.change(empty("alto"), 0)
    with project.new_take() as (name, about):
        project.file(name, "wav").write_bytes(b"sound")
        about["note"] = "well sung"
    with pytest.raises(RuntimeError), project.new_take() as (failed, _):
        project.file(failed, "wav").write_bytes(b"sound")
        raise RuntimeError
    again = reopened(project)
    assert again.state() == project.state() and again.state()["document"] == document
    assert [take["note"] for take in again.takes.values()] == ["well sung"]
    assert sorted(path.name for path in (project.folder / "takes").iterdir()) == ["1.json", "1.wav"]
    again.remove("1")
    with reopened(again).new_take() as (name, _):
        assert name == "2"                                   # an undone document may show take 1


def test_what_a_killed_process_left_is_removed(project, document):
    project.change(document, 0)
    for path in ("takes/7.wav", "takes/7.wav.json", ".work-x/lyrics.json", ".project.json.abcdefgh.tmp",
                 "takes/notes.txt"):
        (project.folder / path).parent.mkdir(exist_ok=True)
        (project.folder / path).write_text("x")
    assert reopened(project).state()["document"] == document
    assert sorted(path.name for path in project.folder.rglob("*")) == [
        ".lock", "notes.txt", "project.json", "takes"]


@pytest.mark.parametrize("change", [
    {"id": "2"}, {"id": "../1"}, {"before": "1"}, {"duration": float("nan")}, {"lines": [1]},
    {"spans": [["x", 1]]}, {"kind": "x"}, {"more": 1}, None])
def test_a_corrupt_take_is_named(project, change):
    with project.new_take() as (name, _):
        project.file(name, "wav").write_bytes(b"sound")
    project.save()
    path = project.file(name, "json")
    path.write_text(json.dumps(json.loads(path.read_text()) | (change or {})))
    if change is None:
        project.file(name, "wav").unlink()
    with pytest.raises(UserError, match=f"^{path}: "):
        reopened(project)


def test_what_shows_a_take_that_is_gone_shows_none(project, document):
    with project.new_take() as (name, _):
        project.file(name, "wav").write_bytes(b"sound")
    with pytest.raises(UserError, match="take 9: there is no such take"):
        project.change(document | {"take": "9"}, 0)
    project.change(document | {"take": name}, 0)
    project.unlink(name)
    assert reopened(project).document["take"] is None


def test_a_long_recording_is_resampled_in_parts(project, tmp_path, monkeypatch):
    wave = torch.rand(2, 3 * 44100 + 777, generator=torch.Generator().manual_seed(0)) - 0.5
    write_wave(tmp_path / "a.wav", wave, 44100, tmp_path / "a.wav")
    monkeypatch.setattr(exchange, "PART_S", 1)
    name = exchange.recording(project, tmp_path / "a.wav", "a.wav", 24000, "")
    found, rate_hz = read_wave(project.file(name, "wav"))
    expected = mono(*read_wave(tmp_path / "a.wav"), 24000)
    assert rate_hz == 24000 and found.shape == (1, len(expected))
    assert torch.allclose(found[0], expected, atol=1e-4)
    monkeypatch.setattr(exchange, "MOST_SAMPLES", 100)
    with pytest.raises(UserError, match="a.wav: 3 s, 2 channels at 44100 Hz; expected 1200 s of stereo"):
        exchange.recording(project, tmp_path / "a.wav", "a.wav", 24000, "")


@pytest.mark.parametrize("name, text", [
    ("project.json", "{"), ("project.json", "[]"), ("project.json", '{"revision": 1, "document": {}}'),
    ("takes/1.json", "{"), ("takes/1.wav", "a sound that is not of a project")])
def test_a_folder_that_is_no_project_is_refused_and_left_alone(tmp_path, name, text):
    (tmp_path / "takes").mkdir()
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError):
        Project(tmp_path, STYLES)
    files.release()
    assert (tmp_path / name).read_text() == text
