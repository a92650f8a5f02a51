"""lyrics.py: what is read, and that every mistake in a file ends as one line that says where it is."""

import json

import pytest
from conftest import BABY
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config import PHONEMIZER, UserError
from lyrics import Word, check_duration, pronounce, read
from phonemes import SymbolTable, load_phonemizer

HELLO = {"word": "hello", "start": 0.5, "end": 0.9}
LOVE = {"word": "love", "start": 3.5, "end": 3.9}
quick = settings(deadline=None, derandomize=True, max_examples=100, database=None)


@pytest.fixture(scope="module")
def phonemizer():
    return load_phonemizer(BABY / PHONEMIZER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lyrics")


def mistake(call, *args) -> str:
    """The one line that a user sees."""
    with pytest.raises(UserError) as caught:
        call(*args)
    assert str(caught.value).isprintable()        # one line, and no terminal codes in it
    return str(caught.value)


@pytest.mark.parametrize("form", ["list", "object", "bom", "extra"])
def test_both_forms_are_read(form, tmp_path):
    """The original's object form, an editor's byte order mark, numbers without a point, unknown keys."""
    words = [HELLO | {"phoneme": "həloʊ"}, {"word": "you", "start": 1, "end": 2}]
    content = json.dumps({"list": words, "object": {"word": words, "title": "x"}, "bom": words,
                          "extra": [w | {"confidence": 0.5} for w in words]}[form])
    path = tmp_path / "song.json"
    path.write_text(content, encoding="utf-8-sig" if form == "bom" else "utf-8")
    assert read(path) == [Word("hello", 0.5, 0.9, "həloʊ"), Word("you", 1.0, 2.0)]


def test_words_that_touch_or_overlap_by_rounding_are_read(tmp_path):
    """Other programs round times: an overlap of up to a millisecond is none. No word at all is a song."""
    path = tmp_path / "song.json"
    spans = [(0.5, 0.9), (0.9, 1.3), (1.2995, 2)]
    path.write_text(json.dumps([{"word": "la", "start": start, "end": end} for start, end in spans]))
    assert len(read(path)) == 3
    path.write_text("[]")
    assert read(path) == []


@pytest.mark.parametrize("entry, fragment", [
    *((entry, "word 2: expected") for entry in ("love", None, [], 7)),
    ({}, 'word 2: has no "word"'), ({"start": 1, "end": 2}, 'word 2: has no "word"'),
    (LOVE | {"word": None}, 'word 2: has no "word"'), (LOVE | {"word": ""}, '"word" must be a text'),
    (LOVE | {"word": " "}, '"word" must be a text'), (LOVE | {"word": 7}, '"word" must be a text'),
    ({"word": "love", "end": 2}, 'word 2 "love": has no "start"'),
    (LOVE | {"end": None}, 'word 2 "love": has no "end"'),
    (LOVE | {"end": 3.2}, 'word 2 "love": end 3.20 s is before start 3.50 s'),
    (LOVE | {"end": 3.5}, 'word 2 "love": end 3.50 s is at start 3.50 s'),
    (LOVE | {"start": -1}, 'word 2 "love": start is -1; expected seconds, 0 or more'),
    (LOVE | {"start": float("nan")}, 'word 2 "love": start is nan'),
    (LOVE | {"end": float("inf")}, 'word 2 "love": end is inf'), (LOVE | {"end": "4"}, "end is '4'"),
    (LOVE | {"end": True}, "end is True"), (LOVE | {"end": [4]}, "end is [4]"),
    (LOVE | {"end": 10 ** 400}, 'word 2 "love": end is 1000'), (LOVE | {"phoneme": 5}, '"phoneme" is 5'),
    (LOVE | {"start": 0.7}, 'word 2 "love": start 0.70 s is before the end 0.90 s of word 1 "hello"'),
    (LOVE | {"start": 0, "end": 0.2}, 'start 0.00 s is before the end 0.90 s of word 1 "hello"'),
    (LOVE | {"word": "lo\nve", "end": 1}, "word 2 "), ("lo\nve", "word 2: expected"),
    (LOVE | {"word": "\x1b[31m\ud800", "end": 1}, "word 2 ")])
def test_bad_word(entry, fragment, tmp_path):
    """A traceback, or an error that does not say file, word number, word and value."""
    path = tmp_path / "song.json"
    path.write_text(json.dumps([HELLO, entry]))
    text = mistake(read, path)
    assert text.startswith(f"{path}: word 2") and fragment in text


@pytest.mark.parametrize("content, fragment", [
    (None, "No such file"), (b"", "line 1, column 1: not JSON"), (b"la la", "line 1, column 1: not JSON"),
    (b'[\n {"word": "a",}]', "line 2, column 15: not JSON"), (b"\xff\xfe[\0]\0", "byte 0: not UTF-8"),
    (b"{}", "expected a JSON list"), (b"7", "expected a JSON list"), (b'"la"', "expected a JSON list"),
    (b'{"word": "la"}', "expected a JSON list"), (b"[" * 100_000, "not JSON"),
    (b"[" + b"9" * 5000 + b"]", "not JSON")])
def test_bad_file(content, fragment, tmp_path):
    """A file that is missing, another format, or breaks the JSON reader's own limits."""
    path = tmp_path / "song.json"
    if content is not None:
        path.write_bytes(content)
    text = mistake(read, path)
    assert text.startswith(f"{path}: ") and fragment in text


def test_folder_instead_of_file(tmp_path):
    assert mistake(read, tmp_path) == f"{tmp_path}: Is a directory"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10 ** 400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["word", "start", "end", "phoneme", "x"]), inner, max_size=5), max_leaves=12)
likely_words = st.lists(st.fixed_dictionaries(
    {"word": st.text(max_size=4) | json_values, "start": st.floats(0, 9) | json_values,
     "end": st.floats(0, 9) | json_values}, optional={"phoneme": json_values}), max_size=4)


def check_reads_or_explains(path):
    try:
        words = read(path)
    except UserError as e:
        assert str(e).startswith(f"{path}: ") and "\n" not in str(e)
        return
    assert all(0 <= w.start < w.end < float("inf") and w.word.strip() for w in words)
    assert all(b.start >= a.end - 0.0011 for a, b in zip(words, words[1:]))


@quick
@given(json_values | likely_words)
def test_any_json_is_read_or_explained(folder, value):
    """Anything but valid words or a UserError: TypeErrors and OverflowErrors deep in the checks."""
    path = folder / "song.json"
    path.write_text(json.dumps(value))
    check_reads_or_explains(path)


@quick
@given(st.binary(max_size=30))
@example(b"\xef\xbb\xbf[]")
@example(b"\xed\xa0\x80")
@example(b"[1e999]")
def test_any_bytes_are_read_or_explained(folder, content):
    path = folder / "song.bin"
    path.write_bytes(content)
    check_reads_or_explains(path)


def test_pronounce(phonemizer, tmp_path):
    """Given phonemes win over the phonemizer; times stay; a number is a word as any other."""
    words = [Word("hello", 0.5, 0.9), Word("Хей", 1.0, 1.5, "ˈheɪ"), Word("24", 2.0, 3.0)]
    spoken = pronounce(words, phonemizer, SymbolTable(phonemizer.symbols), tmp_path)
    assert spoken == [Word("hello", 0.5, 0.9, phonemizer("hello")), words[1],
                      Word("24", 2.0, 3.0, phonemizer("twenty") + phonemizer("four"))]


@pytest.mark.parametrize("word, phoneme, fragment", [
    ("#love", None, 'word 2 "#love": cannot be read; spell it in English letters, or give its "phoneme"'),
    ("love🎵ly", None, 'word 2 "love🎵ly": cannot be read'), ("你好", None, 'word 2 "你好": cannot be read'),
    ("...", None, 'word 2 "...": cannot be read'),
    ("x", "həXQ", 'word 2 "x": phoneme Q X is unknown; known: a b'),
    *(("x", silent, 'word 2 "x": ') for silent in ("ˈ", "_", " ", "?")), ("a\nb", None, "word 2 ")])
def test_word_without_sound(word, phoneme, fragment, phonemizer, tmp_path):
    """A word that would be silence in the song must be refused before it is sung."""
    words = [Word("hello", 0.5, 0.9), Word(word, 1.0, 1.5, phoneme)]
    text = mistake(pronounce, words, phonemizer, SymbolTable(phonemizer.symbols), tmp_path / "f.json")
    assert text.startswith(f"{tmp_path / 'f.json'}: word 2 ") and fragment in text


def test_check_duration(tmp_path):
    """Words past the song's end would be cut silently; a song longer than the model's would crash in it."""
    words, path = [Word("hello", 0.5, 0.9), Word("love", 3.5, 3.9)], tmp_path / "song.json"
    check_duration(words, 3.9, 20.0, path)
    check_duration([], 20.0, 20.0, path)
    assert mistake(check_duration, words, 3.6, 20.0, path) == \
        f'{path}: word 2 "love": end 3.90 s is past the duration 3.60 s'
    for seconds in (20.01, 0.0, -1.0, float("nan"), float("inf")):
        text = mistake(check_duration, [], seconds, 20.0, path)
        assert f"a song of {seconds:.2f} s; this model sings" in text
