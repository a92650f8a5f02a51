"""lyrics/: what a timing may be, how words are pronounced, what the checker finds and where, the commands."""

import dataclasses
import math
import os
import subprocess
import sys

import pytest
from conftest import BABY, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from config import PHONEMIZER, UserError
from lyrics.__main__ import main
from lyrics.check import check, left_out, pronounce, tell
from lyrics.pronounce import ARPABET, Reader, ipa, phones_of, reader, syllables_in, words_in
from lyrics.timing import Line, Lyrics, Part, Word
from lyrics.voices import choose
from phonemes import SymbolTable
from support.cli import run

quick = settings(deadline=None, derandomize=True, max_examples=100, database=None)
CELL_HZ = 4 * 44100 / 2048


@pytest.fixture(scope="module")
def phonemizer():
    return reader(BABY / PHONEMIZER)


@pytest.fixture(scope="module")
def table(phonemizer):
    return SymbolTable(phonemizer.symbols)


def song(*words, number=0) -> Lyrics:
    return Lyrics((Line(tuple(words), number=number),))


# The model

@pytest.mark.parametrize("values", [
    {"word": ""}, {"word": " "}, {"word": 7}, {"start": -1}, {"start": math.nan}, {"start": "1"},
    {"start": True}, {"start": 10 ** 400, "end": 1}, {"start": 1, "end": math.inf}, {"start": 2, "end": 1},
    {"start": None, "end": 1},
    {"phoneme": ""}, {"phoneme": 3}, {"start": 1, "end": 2, "phones": (Part("a", 0.5, 1.5),)},
    {"start": 1, "end": 2, "phones": (Part("a", 1.5, 2), Part("b", 1, 1.5))},
    {"phones": (Part("a", 1, 2),)}, {"start": 0, "end": 1, "syllables": (Part("a", 0.5, 1.1),)}])
def test_what_cannot_be_a_word(values):
    """A time that is none reaches the grid, where it raises somewhere else or places a word anywhere."""
    with pytest.raises(ValueError):
        Word(**{"word": "love"} | values)


def test_words_and_lines():
    word = Word("love", 1, 1)                                # of no length: lint's business
    assert word.timed and not Word("love", 1).timed and not Word("love").timed
    line = Line((word, Word("me", 2, 3)), section="Verse", number=3)
    assert line.text == "love me" and line == dataclasses.replace(line, number=9)
    lyrics = Lyrics((line, Line(())))
    assert lyrics.words == line.words and lyrics.timed and not song(Word("a")).timed
    signs = Lyrics((Line(words_in("hello - my … ♪ you & I ~ -{naʊ}")),)).sung()
    assert signs.lines[0].text == "hello my you & I ~ -"
    with pytest.raises(dataclasses.FrozenInstanceError):
        word.start = 2
    with pytest.raises(ValueError, match="is before start"):
        Line((), 2, 1)
    with pytest.raises(ValueError, match="has no times"):
        Part("a", None, None)


def test_what_is_left_out_is_noted(tmp_path, capsys):
    """Emoji that end a song, or vanish without a word; a sign inside of a word that is dropped."""
    written = song(*words_in("🎵 love❤️ - love🎵ly ♪ 🔥fire🔥! … ok"), number=2)
    assert written.sung().lines[0].text == "love love🎵ly fire🔥! ok"
    assert [(p.where, p.text) for p in left_out(written)] == [
        ('line 2, word 1 "🎵"', "not sung"), ('line 2, word 2 "love❤️"', "sung as love"),
        ('line 2, word 5 "♪"', "not sung"), ('line 2, word 6 "🔥fire🔥!"', "sung as fire🔥!")]
    tell(tmp_path, written, song(Word("ooh"), number=9))
    assert capsys.readouterr().err == (
        f'note: {tmp_path}: left out: line 2, word 1 "🎵", and 3 more\n'
        f'note: {tmp_path}: words of other voices, not sung: line 9, word 1 "ooh"\n')


def test_who_sings():
    """Backing that is left out though nobody sings beside it; a voice that sings over another."""
    def line(text, start, end, **how):
        return Line((Word(text, start, end),), **how)

    duet = Lyrics((line("a", 1.0, 2.0, voice="v1"), line("ooh", 1.5, 1.8, voice="v1", backing=True),
                   line("b", 2.0, 3.0, voice="v2"), line("ah", 2.5, 3.5, voice="v2", backing=True),
                   line("all", 4.0, 5.0), Line((), 5.0, 6.0)))
    for voice, words in {None: "a b all", "lead": "a all", "v1": "a all", "v2": "b all",
                         "backing": "ooh ah"}.items():
        sung, others = choose(duet, voice)
        assert [w.word for w in sung.words] == words.split(), voice
        assert sorted(w.word for w in (*sung.words, *others.words)) == sorted(w.word for w in duet.words)
    with pytest.raises(UserError, match="--voice P1: .*expected one of lead, backing, v1, v2"):
        choose(duet, "P1")
    with pytest.raises(UserError, match="expected one of lead$"):
        choose(song(Word("a")), "backing")
    plain = Lyrics((Line((Word("a"),)), Line((Word("b"),), backing=True)))
    assert choose(plain, None) == (plain, Lyrics(()))
    with pytest.raises(ValueError, match="voice is 'Ann'; expected v or P"):
        Line((), voice="Ann")


# Text

@pytest.mark.parametrize("text, words", [
    ("I read{ɹɛd} it", [("I", None), ("read", "ɹɛd"), ("it", None)]),
    ("read{R EH1 D}, (read{ɹɛd})!", [("read,", "ɹɛd"), ("(read)!", "ɹɛd")]),
    ("a{AH0}b{AY1 OW2}", [("a", "ə"), ("b", "aɪoʊ")]),
    ("lo~ve  you\tnow ", [("lo~ve", None), ("you", None), ("now", None)]), ("", []),
    ("a{ ɹ ɛ d }", [("a", "ɹɛd")]), ("x{ y", [("x{", None), ("y", None)]),
    ("x} y", [("x}", None), ("y", None)])])
def test_words_in(text, words):
    """A pronunciation cut at its blanks, or sung as a word of its own."""
    assert [(w.word, w.phoneme) for w in words_in(text)] == words


@pytest.mark.parametrize("text, fragment", [
    ("read {ɹɛd}", "belongs to a word's end"), ("read{}", "empty pronunciation"), ("a{ }", "empty"),
    ("a{R QQ}", "QQ is not ARPAbet; known: AA"), ("a{R2D2}", "R2D2 is not ARPAbet")])
def test_bad_pronunciation(text, fragment):
    with pytest.raises(ValueError, match=fragment):
        words_in(text)


@quick
@given(st.text(max_size=30) | st.text("{} aÉR1~", max_size=30))
def test_any_text(text):
    """Letters that are lost, another exception, or a blank inside a word."""
    try:
        words = words_in(text)
    except ValueError:
        return
    assert all(w.word == "".join(w.word.split()) for w in words)
    if not any(w.phoneme for w in words):
        assert "".join(w.word for w in words) == "".join(text.split())


def test_arpabet_is_ipa_that_the_model_knows(table):
    assert len(ARPABET) == 40 and all(set(ipa(sound)) <= set(table.ids) for sound in ARPABET)


# Pronunciation

def test_pronounce(phonemizer, table, tmp_path):
    """The given pronunciation counts, marks of stress are no sounds, a tilde is not spoken."""
    lyrics = song(Word("lo~ve~", 0, 1), Word("zzz", 1, 2, "lʌv"), Word("x", 2, 3, "ˈhə.loʊ"))
    said = pronounce(lyrics, phonemizer, table, CELL_HZ, None, tmp_path / "song.lrc")
    assert [w.phoneme for w in said.words] == ["lʌv", "lʌv", "ˈhə.loʊ"]
    assert [(w.word, w.start, w.end) for w in said.words] == [(w.word, w.start, w.end) for w in lyrics.words]


@pytest.mark.parametrize("word, phoneme, fragment", [
    ("love🎵ly", None, "cannot be read; spell it in English letters"), ("你好", None, "cannot be read"),
    ("...", None, "cannot be read"), ("x", "həXQ", "phoneme Q X is unknown; known: "),
    ("x", "ˈˌ", "cannot be read")])
def test_a_word_that_cannot_be_sung(word, phoneme, fragment, phonemizer, table, tmp_path):
    """One line with file, line of the file, number of the word, and the word."""
    lyrics = Lyrics((Line((Word("hello", 0, 1),), number=1), Line((Word(word, 1, 2, phoneme),), number=3)))
    with pytest.raises(UserError) as caught:
        pronounce(lyrics, phonemizer, table, CELL_HZ, None, tmp_path / "song.lrc")
    assert str(caught.value).startswith(f'{tmp_path}/song.lrc: line 3, word 2 "{word}": ')
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("phoneme, syllables", [
    ("lʌv", ["lʌv"]), ("həloʊ", ["hə", "loʊ"]), ("nɔɹθɝn", ["nɔɹ", "θɝn"]),
    ("ˈbjutɪfəl", ["bju", "tɪ", "fəl"]),
    ("ɛkstɹə", ["ɛks", "tɹə"]), ("kɹieɪt", ["kɹi", "eɪt"]), ("m", []), ("", []), ("aʊɝ", ["aʊ", "ɝ"])])
def test_syllables(phoneme, syllables):
    """A diphthong as two syllables, or consonants on the wrong side of a stamp."""
    found = syllables_in(phoneme)
    assert found == syllables or not syllables and len(found) == 1


def test_phones_of_syllables():
    """Each syllable is sung within its own times; a held vowel goes on; another number of them is none."""
    parts = (Part("hel", 1.0, 1.5), Part("lo", 1.5, 2.0), Part("~", 2.0, 3.0))
    phones = phones_of("həloʊ", parts)
    assert "".join(p.text for p in phones) == "həloʊ"
    assert phones[0].start == 1.0 and phones[1].end == pytest.approx(1.5) and phones[2].start == 1.5
    assert phones[-1].end == pytest.approx(3.0)
    assert phones_of("lʌv", parts) == () and phones_of("lʌv", ()) == ()


def test_syllables_with_hyphens_are_one_word(phonemizer, table, tmp_path):
    """lo-ve with two stamps, sung as lo, then vee."""
    parts = (Part("beau-", 0, 1), Part("ti-", 1, 2), Part("ful", 2, 3))
    lyrics = song(Word("beau-ti-ful", 0, 3, syllables=parts), Word("rock-hello", 3, 4))
    said = pronounce(lyrics, phonemizer, table, CELL_HZ, None, tmp_path / "song.lrc").words
    assert said[0].phoneme == phonemizer("beautiful") and said[1].phoneme == phonemizer("rock-hello")
    assert not problems(phonemizer, table, *lyrics.words, level="note")


def test_lexicon(phonemizer, tmp_path):
    """Tabs between word and sounds; words that are otherwise rewritten before they are looked up."""
    path = tmp_path / "words.txt"
    path.write_text("READ\tR EH1 D\nBeyoncé  bijɒnseɪ\ndon’t doʊn\nR&B ɑɹ\n24 tuː #  mine\n# 7 x\n",
                    encoding="utf-8")
    mine = reader(BABY / PHONEMIZER, path)
    for word, phoneme in [("read,", "ɹɛd"), ("BEYONCÉ!", "bijɒnseɪ"), ("don't", "doʊn"), ("“R&B”", "ɑɹ"),
                          ("24", "tuː"), ("read-read", "ɹɛdɹɛd")]:
        assert mine(word) == phoneme and mine.knows(word), word


# Lint

def problems(phonemizer, table, *words, duration=None, level=None):
    found, _ = check(song(*words, number=4), phonemizer, table, CELL_HZ, duration)
    return [(p.where, p.text) for p in found if level in (None, p.level)]


def test_a_good_song_has_no_problems(phonemizer, table):
    assert problems(phonemizer, table, Word("hello", 0.5, 1), Word("world", 1, 2), duration=10) == []


@pytest.mark.parametrize("words, duration, fragment", [
    ([Word("a", 0, 1), Word("love", 0.5, 2)], None,
     'line 4, word 2 "love": start 0.50 s is before the end 1.00 s of line 4, word 1 "a"'),
    ([Word("a", 0, 5), Word("b", 1, 2), Word("love", 3, 6)], None,
     'word 3 "love": start 3.00 s is before the end 5.00 s of line 4, word 2 "b"'),
    ([Word("love", 1, 1)], None, 'line 4, word 1 "love": end 1.00 s is at its start'),
    ([Word("love", 1, 3)], 2, 'word 1 "love": end 3.00 s is past the duration 2.00 s'),
    ([Word("love", 1)], None, "has no times; `python -m lyrics plan`"),
    ([Word("你", 0, 1)], None, "cannot be read")])
def test_errors(words, duration, fragment, phonemizer, table):
    found = problems(phonemizer, table, *words, duration=duration, level="error")
    assert any(fragment in f"{where}: {text}" for where, text in found), found


@pytest.mark.parametrize("words, duration, fragment", [
    ([Word("a", 0, 1), Word("love", 21.5, 22)], None, 'word 2 "love": 20.5 s without words before it'),
    ([Word("love", 0, 1)], 22, "end: 21.0 s without words at the end"),
    ([Word("strengths", 1, 1.05)], None, "cells; the last ones are left out"),
    ([Word("love", 0, 2, syllables=(Part("lo", 0, 1), Part("ve", 1, 2)))], None, "its 2 syllables are not"),
    ([Word("la", i / 9, i / 9 + 0.1) for i in range(20)], None, "9 syllables from 0.00 to 0.99 s; 8 a")])
def test_warnings(words, duration, fragment, phonemizer, table):
    found = problems(phonemizer, table, *words, duration=duration, level="warning")
    assert any(fragment in f"{where}: {text}" for where, text in found), found
    assert not problems(phonemizer, table, *words, duration=duration, level="error")


def test_singable_speed_is_no_problem(phonemizer, table):
    """Eight syllables a second are sung; one warning, not twenty, for a stretch of more."""
    fine = [Word("la", i / 8, (i + 1) / 8 - 0.01) for i in range(40)]
    assert not problems(phonemizer, table, *fine, level="warning")
    fast = [Word("la", i / 10, (i + 1) / 10 - 0.01) for i in range(10)]
    assert len(problems(phonemizer, table, *fast, level="warning")) == 1


def test_unknown_words_are_noted(phonemizer, table):
    """What the phonemizer made of a word, so that its user can correct it."""
    [(where, text)] = problems(phonemizer, table, Word("zorbling", 0, 1), Word("hello", 1, 2), level="note")
    assert where == 'line 4, word 1 "zorbling"' and text.startswith("not in the lexicon, read as z")


def test_a_lexicon_of_ones_own(phonemizer):
    """A word that the user taught, sung as before; another reader that knows it, too."""
    assert phonemizer("hello") == "həloʊ" and phonemizer.knows("Hello!") and not phonemizer.knows("zorbling")
    mine = Reader(phonemizer.phonemizer, {"hello": "hɛloʊ", "zorbling": "zɔɹ"})
    assert mine("Hello!") == "hɛloʊ" and mine.knows("zorbling") and mine("rock-zorbling").endswith("zɔɹ")
    assert phonemizer("hello") == "həloʊ"


def test_pronounce_reports_problems(phonemizer, table, capsys):
    """Warnings that nobody sees; an error without its file, or without a word of the others."""
    words = Word("hello", 0, 1), Word("love", 25, 26)
    pronounce(song(*words), phonemizer, table, CELL_HZ, None, "a.lrc")
    assert capsys.readouterr().err.startswith('warning: a.lrc: word 2 "love": 24.0 s without words before it')
    pronounce(song(*words), phonemizer, table, CELL_HZ, None, "a.lrc", warn=False)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError) as caught:
        pronounce(song(*words), phonemizer, table, CELL_HZ, 0.5, "a.lrc")
    assert str(caught.value) == ('a.lrc: word 1 "hello": end 1.00 s is past the duration 0.50 s; and 1 more: '
                                 "python -m lyrics check")


# The commands

@pytest.fixture
def command(capsys, monkeypatch):
    """`python -m lyrics` as its users call it. Returns: what it prints, and its errors."""
    monkeypatch.chdir(ROOT)

    def call(*args, code=0):
        ended = 0
        try:
            run(lambda: main([str(arg) for arg in args]))
        except SystemExit as end:
            ended = end.code
        out, err = capsys.readouterr()
        assert ended == code, err
        return out, err
    return call


def test_as_a_program(tmp_path):
    """Imported twice, as a program and by its own formats, its words would be of two classes."""
    args = ["convert", ROOT / "examples" / "hello.json", tmp_path / "a.lrc"]
    done = subprocess.run([sys.executable, "-m", "lyrics", *args], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "a.lrc").read_text().startswith("[00:00.50]<00:00.50>hello ")


def test_plan_check_convert(tmp_path, command):
    """The chain of the README: a text, its plan, a lint, another format."""
    text = tmp_path / "song.txt"
    text.write_text("[Verse]\nthe night is read{R EH1 D}\nI zorble you\n", encoding="utf-8")
    command("plan", text, "-o", tmp_path / "plan.lrc", "--bpm", "90")
    timed = (tmp_path / "plan.lrc").read_text(encoding="utf-8")
    assert timed.startswith("[Verse]\n[00:00.50]<00:00.50>the ") and "read{ɹɛd}" in timed
    out, _ = command("check", tmp_path / "plan.lrc")
    assert "note: " in out and '"zorble": not in the lexicon, read as z' in out
    assert out.endswith("0 errors, 0 warnings, 1 notes\n")
    (tmp_path / "words.txt").write_text("# mine\nzorble Z AO1 R B AH0 L\nnight naɪt # as always\n")
    out, _ = command("check", tmp_path / "plan.lrc", "--lexicon", tmp_path / "words.txt")
    assert out == "0 errors, 0 warnings, 0 notes\n"
    command("convert", tmp_path / "plan.lrc", tmp_path / "plan.ass")
    assert "{\\k" in (tmp_path / "plan.ass").read_text(encoding="utf-8")
    command("convert", tmp_path / "plan.ass", tmp_path / "plan.txt", "--to", "ultrastar")
    party = (tmp_path / "plan.txt").read_text(encoding="utf-8")
    assert party.startswith("#TITLE:plan\n#ARTIST:Unknown\n#BPM:")
    (tmp_path / "plan.lrc").rename(tmp_path / "The Band - A Song.lrc")
    command("convert", tmp_path / "The Band - A Song.lrc", tmp_path / "a.txt", "--to", "ultrastar")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8").startswith("#TITLE:A Song\n#ARTIST:The Band\n")


@pytest.mark.parametrize("args, fragment", [
    ([], "error: python -m lyrics: no command; expected plan, check, convert, align, or --help"),
    (["sing"], "error: python -m lyrics: sing: no such command; expected plan"),
    (["plan"], "arguments are required: input"), (["plan", "none.txt"], "error: none.txt: No such file"),
    (["plan", "examples/song.txt", "-o", "none/plan.lrc"], "error: none/plan.lrc: No such file"),
    (["convert", "README.md", "a.lrc"], "error: README.md: unknown ending; expected .json, .txt"),
    (["convert", "examples/song.txt", "/tmp/a.doc"], "error: /tmp/a.doc: unknown ending"),
    (["plan", "examples/song.txt", "--bpm", "5"], "--bpm 5.0: expected 20 to 400"),
    (["plan", "examples/song.txt", "--bmp", "5"], "did you mean --bpm?"),
    (["check", "examples/song.txt", "--preset", "x"], "--preset x: expected one of baby"),
    (["check", "examples/song.txt", "--lexicon", "LICENSE"], "error: LICENSE: line 20: OUT: OF is not")])
def test_mistakes_are_one_line(args, fragment, command):
    _, err = command(*args, code=2)
    assert fragment in err and err.count("\n") == 1


def test_who_is_checked(tmp_path, command):
    """Two voices at once as an error, though each can be sung; what is dropped, without a note."""
    duet = tmp_path / "duet.lrc"
    duet.write_text("[00:01.00]v1: <00:01.00>hello 🎵 <00:02.00>\n[bg: <00:01.50>love <00:03.00>]\n",
                    encoding="utf-8")
    out, _ = command("check", duet)
    assert out == f'note: {duet}: line 1, word 2 "🎵": not sung\n0 errors, 0 warnings, 1 notes\n'
    assert "0 errors" in command("check", duet, "--voice", "backing")[0]
    assert "expected one of lead, backing, v1" in command("check", duet, "--voice", "v2", code=2)[1]
    command("plan", duet, "-o", tmp_path / "plan.lrc")
    assert "love" in (tmp_path / "plan.lrc").read_text()


def test_check_fails_with_errors(command):
    """A script that goes on singing what cannot be sung."""
    out, _ = command("check", "examples/song.txt", code=1)
    assert 'line 2, word 1 "The": has no times, as 30 more; `python -m lyrics plan`' in out
    assert out.count("error: ") == 1                         # not one for each word


def test_new_times_are_kept(tmp_path, command):
    """A plan written into a format without times, or over the text that it was made of."""
    text = tmp_path / "song.txt"
    text.write_text("la la la\n")
    for out, fragment in (("plan.txt", "text keeps no times of words; expected one of json"),
                          ("song.txt", "own lyrics"), ("plan.srt", "srt keeps no times")):
        _, err = command("plan", text, "-o", tmp_path / out, code=2)
        assert fragment in err and text.read_text() == "la la la\n"
    command("plan", text, "-o", tmp_path / "labels.txt", "--to", "audacity")
