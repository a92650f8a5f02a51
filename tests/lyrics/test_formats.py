"""lyrics.formats: real-world files, round trips through every format, mistakes, and arbitrary bytes."""

import contextlib
import itertools
import json
import re
import time
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from config import UserError
from lyrics.formats import KINDS, kind_of, parse, read, write
from lyrics.formats.shared import JOINER
from lyrics.timing import Line, Lyrics, Part, Word

FILES = ROOT / "tests" / "lyrics" / "files"
STEP_S = {"json": 0, "jam": 0, "whisper": 0, "textgrid": 1e-6, "audacity": 1e-6, "vtt": 1e-3, "srt": 1e-3,
          "ttml": 1e-3, "lrc": 0.01, "ass": 0.01, "ultrastar": 0.01, "text": 0}
quick = settings(deadline=None, derandomize=True, max_examples=40, database=None,
                 suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
PAPER = "12-14: Paper@12-12.4 boats@12.4-12.8 are@12.8-13 sailing@13-14"
RAINY = "15.5-18: Down@15.5-15.9 the@15.9-16.1 rainy@16.1-16.8<rai@16.1 ny@16.4> street@17-18"
WILD = {
    "player.lrc": ["lrc | Paper Boats | The Examples", "12-?: Paper boats are sailing",
                   "15-17.5: Down the rainy street", "[Chorus] 19.5-?: Float away",
                   "65-?: Down the rainy street", "[Chorus] (b) 3604.75-?: float away"],
    "enhanced.lrc": ["lrc | Paper Boats | ", PAPER.replace("12-14:", "12-?:"), RAINY],
    "inline.lrc": ["lrc |  | ", PAPER.replace("12-14:", "12-?:"),
                   "15.5-?: Down@15.5-15.9 the@15.9-16.1 rainy@16.1-17 street@17-18"],
    "captions.vtt": ["vtt |  | ", PAPER, "15.5-18: Down the rainy street & home",
                     "[Chorus] (b) 20-22: float away"],
    "movie.srt": ["srt |  | ", "12-14: Paper boats are sailing", "15.5-18: Down the rainy street",
                  "[Chorus] 20-22: - I <3 boats"],
    "aegisub.ass": ["ass | Paper Boats | ",
                    "12-14: Paper@12-12.4 boats@12.4-12.8 are@12.8-13 sailing@13.5-14<sail@13.5 ing@14>",
                    "15.5-18: Down@15.5-15.9 the@15.9-16.1 rainy!@16.1-16.8<rai@16.1 ny!@16.4> "
                    "street,@17-17.6364 home@17.6364-18", "20-22: Float away"],
    "apple.ttml": ["ttml | Paper Boats | ", f"[Verse] {PAPER}", f"[Verse] {RAINY}",
                   "[Verse] (b) 18-19: drip@18-18.5 drip@18.5-19", "[Chorus] 20-22: Float away & home"],
    "party.txt": ["ultrastar | Paper Boats | The Examples",
                  "Paper@12-12.6<Pa@12 per@12.4> boats@12.6-13 are@13.2-13.4 "
                  "sai~ling@13.5-14.2<sai@13.5 ~@13.8 ling@14>", "(b) float@15-15.2 away@15.2-15.4"],
    "relative.txt": ["ultrastar | Paper Boats | ", "Paper@1-1.4 boats@1.5-1.9", "sail@2.2-2.6", "home@3-3.4"],
    "duet.txt": ["ultrastar | Paper Boats | ", "Paper@1-1.5", "boats@2-2.5", "home@3-3.5"],
    "aligned.TextGrid": ["textgrid |  | ", "red@12-12.4{ɹɛd}[ɹ@12 ɛ@12.1 d@12.3] boats@13-14"],
    "short.TextGrid": ["textgrid |  | ", "12-14: Paper boats are sailing", "away@14-18"],
    "labels.txt": ["audacity |  | ", "Paper@12-12.4 boats@12.4-12.8",
                   "[Chorus] 15.5-18: Down the rainy street", "[Chorus] home@20.5-?"],
    "openai.json": ["whisper |  | ",
                    "12-14: Paper@12-12.4 boats@12.4-12.8 10-year@13-14<10@13 -year@13.4>",
                    "15.5-18: Down the rainy street"],
    "whisperx.json": ["whisper |  | ", "12-14: Paper@12-12.4 boats@12.4-14 2"],
    "original.json": ["jam |  | ", "12-12.8: Paper@12-12.4 boats@12.4-12.8", "oh@14.5-15",
                      "15.5-18: Down@15.5-15.9 street.@15.9-18.2"],
    "list.json": ["json |  | ", "read@12-12.4{ɹɛd} boats@12.4-12.8 home"],
    "plain.txt": ["text |  | ", "[Verse 1] Paper boats are sailing", "[Verse 1] read{ɹɛd} lo~ve love~~",
                  "[Chorus] (b) float away", "[Chorus] home"]}


def sketch(lyrics: Lyrics) -> list[str]:
    """One row per line: [section] (b) if backing, start-end: word@start-end<syllables>{IPA}[phones]."""
    def spanned(thing):
        if thing.start is None:
            return ""
        return f"{thing.start:g}-" + ("?" if thing.end is None else f"{thing.end:g}")

    def parts(found, brackets):
        return brackets[0] + " ".join(f"{p.text}@{p.start:g}" for p in found) + brackets[1] if found else ""
    return [f"[{x.section}] " * bool(x.section) + "(b) " * x.backing + f"{spanned(x)}: " * bool(spanned(x))
            + " ".join(w.word + f"@{spanned(w)}" * bool(spanned(w)) + parts(w.syllables, "<>")
                       + f"{{{w.phoneme}}}" * bool(w.phoneme) + parts(w.phones, "[]") for w in x.words)
            for x in lyrics.lines]


def mistake(call, *args) -> str:
    """The error that a user sees: one line."""
    with pytest.raises(UserError) as caught:
        call(*args)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    return str(caught.value)


@pytest.mark.parametrize("name", WILD)
def test_wild_files(name):
    """Files as other programs write them: headers, tags, offsets, repeats, entities, syllables, pauses."""
    lyrics = read(FILES / name)
    kind = kind_of(FILES / name, (FILES / name).read_text(encoding="utf-8"))
    assert [f"{kind} | {lyrics.title} | {lyrics.artist}", *sketch(lyrics)] == WILD[name]


def test_every_sample_is_tested():
    assert sorted(WILD) == sorted(p.name for p in FILES.iterdir())
    assert {rows[0].split(" | ")[0] for rows in WILD.values()} == set(KINDS)


@pytest.mark.parametrize("name", WILD)
def test_line_ends_and_encodings(name, tmp_path):
    """Line ends of Windows and old Macs, byte order marks and Praat's UTF-16 give the same song."""
    text = (FILES / name).read_text(encoding="utf-8")
    lyrics, path = read(FILES / name), tmp_path / name
    for end, encoding in itertools.product(("\n", "\r\n", "\r"), ("utf-8", "utf-8-sig", "utf-16")):
        path.write_bytes(text.replace("\n", end).encode(encoding))
        assert read(path) == lyrics
        assert [line.number for line in read(path).lines] == [line.number for line in lyrics.lines]
    for end in ("\r\n", "\r"):
        assert parse("\ufeff" + text.replace("\n", end), kind_of(path, text), name) == lyrics


def test_line_numbers():
    """Catches line numbers that count what was read instead of the lines of the file."""
    for name, numbers in {"player.lrc": [9, 10, 13, 10, 14], "movie.srt": [2, 7, 11],
                          "plain.txt": [2, 4, 6, 7], "apple.ttml": [6, 7, 7, 11], "party.txt": [6, 14],
                          "captions.vtt": [11, 15, 19], "short.TextGrid": [18, 21]}.items():
        assert [line.number for line in read(FILES / name).lines] == numbers, name


# Round trips.

letters = st.sampled_from("abcXYZéß'’,.!?-&<>\"[]()#:*~=\\/|1234567890")
texts = st.text(letters, min_size=1, max_size=6).filter(lambda x: x[0] != "~" and x.strip("()"))
names = st.sampled_from(["", "Verse", "Chorus 2", "Verse: 1", "12:30", "a-->b <i> & \"c\""])
sounds = st.text(st.sampled_from("ɹɛdəloʊˈæ"), min_size=1, max_size=4)


@st.composite
def timed_words(draw, begin_ms):
    """A word that begins at begin_ms or later and lasts 40 ms or more, and its end."""
    start = begin_ms + draw(st.sampled_from([0, 0, 17, 333, 70000]))
    text, end = draw(texts), start + draw(st.integers(40, 900))
    phoneme, syllables, phones = draw(st.none() | sounds), (), ()
    if len(text) > 1 and draw(st.booleans()):
        middle, at = (start + end) // 2, draw(st.integers(1, len(text) - 1))
        syllables = (Part(text[:at], start / 1000, middle / 1000), Part(text[at:], middle / 1000, end / 1000))
    if phoneme and draw(st.booleans()):
        cuts = [(start + (end - start) * i / len(phoneme)) / 1000 for i in range(len(phoneme))] + [end / 1000]
        phones = tuple(Part(x, *span) for x, span in zip(phoneme, itertools.pairwise(cuts)))
    return Word(text, start / 1000, end / 1000, phoneme, phones, syllables), end


@st.composite
def songs(draw, untimed=True):
    """Songs with lines in order; with `untimed`, some lines have times but their words have none."""
    lines, at = [], draw(st.integers(0, 2000))
    for _ in range(draw(st.integers(1, 4))):
        section, backing, first = draw(names), draw(st.booleans()), at
        words = []
        for _ in range(draw(st.integers(1, 4))):
            word, at = draw(timed_words(at))
            words.append(word)
        if backing:
            words = [Word(re.sub("[()]", "", w.word), w.start, w.end, w.phoneme, w.phones) for w in words]
            assume(all(w.word and w.word[0] != "~" for w in words))
        end = at + draw(st.sampled_from([0, 0, 55, 500]))
        start, stop = first / 1000, draw(st.sampled_from([None, end / 1000]))
        if untimed and draw(st.integers(0, 3)) == 0:
            words, stop = [Word(w.word, phoneme=w.phoneme) for w in words], end / 1000
        voice = draw(st.sampled_from(["", "", "v1", "P2"]))
        lines.append(Line(tuple(words), start, stop, section, backing, voice))
        at = end + 20
    title, artist = draw(st.sampled_from(["", "A & <B>: c"])), draw(st.sampled_from(["", "Ö ]x"]))
    return Lyrics(tuple(lines), title, artist)


def near(a, b, step):
    return (a is None) == (b is None) and (a is None or abs(a - b) <= step / 2 + 1e-6)


def check_lines(kind, song, back):
    """Compare the lines of a song with those read back, to within the format's resolution."""
    carries, step = KINDS[kind].carries.split(), STEP_S[kind]
    assert [len(line.words) for line in back.lines] == [len(line.words) for line in song.lines]
    for line, read_line in zip(song.lines, back.lines):
        assert read_line.section == (line.section if "sections" in carries else "")
        assert read_line.backing == line.backing
        assert kind == "ultrastar" or read_line.voice == line.voice * ("voices" in carries)
        if kind not in ("text", "ultrastar"):
            first, last = line.words[0], line.words[-1]
            assert near(read_line.start, min(t for t in (line.start, first.start) if t is not None), step)
            end = max((t for t in (line.end, last.end) if t is not None), default=None)
            assert near(read_line.end, line.end if kind == "lrc" else end, step)


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(data=st.data())
def test_round_trip(kind, data):
    """Everything that a format carries is read back: words, times, syllables, phonemes, lines, sections."""
    song, (carries, step) = data.draw(songs(kind != "ultrastar")), (KINDS[kind].carries.split(), STEP_S[kind])
    back = parse(write(song, kind), kind, "song")
    alone = [line.words[0] for line in song.lines if len(line.words) == 1 and not line.words[0].timed]
    assert [w.word for w in back.words] == [w.word for w in song.words]
    assert back.title == song.title * ("title" in carries)
    assert back.artist == song.artist * ("artist" in carries)
    if "lines" in carries:
        check_lines(kind, song, back)
    for word, read_word in zip(song.words, back.words):
        if "words" in carries and (word.timed or kind != "audacity") and word not in alone:
            assert near(read_word.start, word.start, step) and near(read_word.end, word.end, step)
        assert read_word.phoneme == (word.phoneme if "phonemes" in carries else None)
        for name in ("syllables", "phones"):
            parts = getattr(word, name) if name in carries else ()
            read_parts = getattr(read_word, name)
            assert [p.text for p in read_parts] == [p.text for p in parts]
            assert all(near(a.start, b.start, step) and near(a.end, b.end, step)
                       for a, b in zip(parts, read_parts))


@pytest.mark.parametrize("kind", [k for k in KINDS if "words" in KINDS[k].carries.split()])
@quick
@given(st.lists(st.floats(0, 0.05), min_size=2, max_size=20))
def test_rounding_makes_no_overlap(kind, steps):
    """Words that touch, or are shorter than the format's resolution, must not overlap once rounded."""
    assume(kind not in ("jam", "textgrid") or min(steps) > 1e-5)         # no intervals without length
    times = list(itertools.accumulate(steps, initial=9.9949))
    words = [Word("la", a, b) for a, b in itertools.pairwise(times)]
    song = Lyrics(tuple(Line(tuple(part)) for part in (words[:3], words[3:]) if part))
    back = parse(write(song, kind), kind, "song").words
    assert len(back) == len(words)
    for a, b in itertools.pairwise(back):
        assert a.end is None or a.start <= a.end <= b.start


def test_syllables_that_make_an_arrow():
    """Each is harmless; together they look like the times of a cue."""
    word = Word("-->", 0.0, 0.4, syllables=(Part("-", 0.0, 0.2), Part("->", 0.2, 0.4)))
    song = Lyrics((Line((word,), start=0.0),))
    for kind in ("srt", "vtt"):
        assert [w.word for w in parse(write(song, kind), kind, "song").words] == ["-->"]


def test_conversion_of_line_times():
    """LRC has no ends: a line ends where the next begins, and the last after a time for its words."""
    lyrics = parse("[00:01.00]one two\n[00:03.00]three\n", "lrc", "a.lrc")
    assert sketch(parse(write(lyrics, "srt"), "srt", "a.srt")) == ["1-3: one two", "3-3.5: three"]
    words = parse("[00:01.00]<00:01.00>one <00:02.00>two\n[00:03.00]<00:03.00>three\n", "lrc", "a.lrc")
    assert sketch(parse(write(words, "ass"), "ass", "a")) == ["1-3: one@1-2 two@2-3", "3-3.5: three@3-3.5"]


def test_a_pause_ends_the_line_before():
    """Catches an empty stamp read as a line, or ending a line that begins with it or later."""
    lyrics = parse("[00:05.00]b\n[00:02.00]\n[00:01.00]a\n[00:05.00]\n[00:09.00]", "lrc", "x")
    assert sketch(lyrics) == ["1-2: a", "5-9: b"]


def test_held_syllables_belong_to_the_word_before():
    """A lone ~ is no word: nobody could pronounce it."""
    assert sketch(parse("lo ~ ve ~~ me", "text", "x")) == ["lo~ ve~~ me"]
    assert sketch(parse("#BPM:1500\n: 0 20 0 love \n: 20 30 0 ~ \n: 50 10 0 me", "ultrastar", "x")) == \
        ["love~@0-0.5<love@0 ~@0.2> me@0.5-0.6"]


def test_each_voice_of_a_relative_duet_counts_from_the_start():
    """Catches a second voice that starts where the first one ends."""
    text = "#BPM:1500\n#RELATIVE:YES\nP1\n: 100 50 0 a\n- 200\n: 0 50 0 b\nP 2\n: 150 50 0 c\nE\nrubbish"
    assert sketch(parse(text, "ultrastar", "x")) == ["a@1-1.5", "c@1.5-2", "b@2-2.5"]


def voiced(lyrics: Lyrics) -> list[str]:
    """As sketch, with the voice of each line in front."""
    return [f"{line.voice or '-'} {row}" for line, row in zip(lyrics.lines, sketch(lyrics))]


def test_notes_before_the_song():
    """Catches negative beats that are refused, or pressed together at 0."""
    early = parse(NOTES + ": -9 4 0 a\n: -5 4 0  b\n- -1\n: 11 4 0 c", "ultrastar", "x")
    assert sketch(early) == ["a@0-0.2 b@0.2-0.4", "c@1-1.2"]
    late = parse("#BPM:300\n#GAP:1000\n: -4 4 0 a", "ultrastar", "x")
    assert sketch(late) == ["a@0.8-1"]


def test_voices_of_a_duet():
    """Catches lines that lose their singer, or that both sing and are sung twice; and their way back."""
    text = "P1\n: 0 4 0 a\n- 5\n: 20 4 0 c\n- 25\nP2\n: 10 4 0 b\n- 15\n: 20 4 0 c\nP 3\n: 30 4 0 d\nE"
    duet = parse(NOTES + text, "ultrastar", "x")
    assert voiced(duet) == ["P1 a@0-0.2", "P2 b@0.5-0.7", "- c@1-1.2", "- d@1.5-1.7"]
    for kind in ("ultrastar", "lrc", "ttml", "jam"):
        back = parse(write(duet, kind), kind, "x")
        assert [line.voice for line in back.lines] == ["P1", "P2", "", ""], kind
    three = Lyrics(tuple(Line((Word("a", i, i + 1.0),), voice=f"v{i}") for i in (1, 2, 3)))
    assert mistake(write, three, "ultrastar") == "ultrastar: has two voices at most, not v1, v2, v3"


def test_agents_and_backing_of_lrc():
    """Catches v1: sung as a word, and [bg: ...] taken for a header."""
    text = ("[ti:x]\n[00:01.00]v1: <00:01.00>one <00:02.00>\n[bg: <00:02.00>ooh <00:02.50>ah <00:03.00>]\n"
            "[00:04.00] v2: two\n[00:06.00]three\n")
    assert voiced(parse(text, "lrc", "x")) == ["v1 1-?: one@1-2", "v1 (b) ooh@2-2.5 ah@2.5-3", "v2 4-?: two",
                                               "- 6-?: three"]
    plain = Lyrics((Line((Word("v1:"), Word("a")), 1.0),))
    assert parse(write(plain, "lrc"), "lrc", "x").lines[0].text == "v1: a"


def test_agents_and_backing_of_ttml():
    """Catches backing as a paragraph that is sung as lead, or after its lead; groups taken for a voice."""
    text = ('<tt xmlns:ttm="m"><head><ttm:agent type="group" xml:id="v9"/><ttm:agent xml:id="anna"/></head>'
            '<body><div ttm:agent="v2"><p begin="5s" end="6s">a b</p>'
            '<p begin="2s" end="4s" ttm:agent="v1"><span begin="2s" end="3s">c</span>'
            '<span ttm:role="x-bg"><span begin="1s" end="1.5s">(ooh)</span></span></p>'
            '<p begin="7s" end="8s" ttm:agent="v1" ttm:role="x-bg"><span begin="7s" end="8s">ah</span></p>'
            '<p begin="9s" end="10s" ttm:agent="v9">all of us</p><p begin="11s" ttm:agent="anna">me</p>'
            "</div></body></tt>")
    assert voiced(parse(text, "ttml", "x")) == [
        "v1 (b) ooh@1-1.5", "v1 2-4: c@2-3", "v2 5-6: a b", "v1 (b) 7-8: ah@7-8", "- 9-10: all of us",
        "v1 11-?: me"]


def test_karaoke_after_a_templater():
    """Catches the letters of effects sung as lines, and their source left out with other comments."""
    text = EVENTS.replace("Start,", "Start, End, Effect,", 1).replace("End, Effect, End,", "End, Effect,") + (
        "Comment: 0:00:00.00,0:00:01.00,template syl,!retime()!{\\k1}x\n"
        "Comment: 0:00:01.00,0:00:02.00,karaoke,{\\k50}pa{\\k50}per\n"
        "Dialogue: 0:00:01.00,0:00:02.00,fx,{\\t(1,2)}pa\nDialogue: 0:00:01.50,0:00:02.00,,per\n")
    assert sketch(parse(text, "ass", "x")) == ["1-2: paper@1-2<pa@1 per@1.5>"]
    alone = text.replace("Comment: 0:00:01", "Dialogue: 0:00:01").replace("fx", "")
    assert len(parse(alone, "ass", "x").lines) == 3


ROLLING = """WEBVTT

00:00:00.160 --> 00:00:02.470 align:start
\x20
hello<00:00:00.480><c> world</c>

00:00:02.470 --> 00:00:02.480
hello world
\x20

00:00:02.480 --> 00:00:05.110
hello world
hello<00:00:03.000><c> world</c>

00:00:05.110 --> 00:00:05.120
hello world
\x20

00:00:05.120 --> 00:00:07.000
hello world
[Music]
"""


def test_automatic_captions():
    """Catches rows sung once for each cue that shows them, and a cue that a blank line cuts in two."""
    assert sketch(parse(ROLLING, "vtt", "x")) == ["0.16-2.47: hello@0.16-0.48 world@0.48-2.47",
                                                 "2.48-5.11: hello@2.48-3 world@3-5.11"]
    srt = re.sub("<[^>]*>", "", ROLLING.replace(".", ",")).replace("WEBVTT", "").replace(" align:start", "")
    assert sketch(parse(srt, "srt", "x")) == ["0.16-2.47: hello world", "2.48-5.11: hello world"]
    blank = "1\n00:01.000 --> 00:02.000\na b\n\nc\n\n2\n\n00:03.000 --> 00:04.000\nd e\n"
    assert sketch(parse(blank, "srt", "x")) == ["1-2: a b c", "3-4: d e"]


def test_a_line_that_is_sung_again():
    """Catches a repeated line taken for a caption that rolls."""
    cues = [f"00:0{i}.000 --> 00:0{i + 1}.000\n{rows}" for i, rows in enumerate(
        ["la la", "la la", "la la\nand so", "on and on\nwe go", "la la"])]
    lines = [line.text for line in parse("\n\n".join(cues), "srt", "x").lines]
    assert lines == ["la la", "la la", "la la and so", "on and on we go", "la la"]


def test_one_word_for_each_cue_is_timed():
    """Catches words of captions for single words that a plan times anew."""
    cues = "1\n00:01.000 --> 00:01.400\nPaper\n\n2\n00:01.400 --> 00:02.000\nboats\n"
    assert sketch(parse(cues, "srt", "x")) == ["1-1.4: Paper@1-1.4", "1.4-2: boats@1.4-2"]


SONG = "#TITLE:{}\n#ARTIST:x\n{}#BPM:300\n#GAP:0\n: 0 4 0 {}\n: 4 4 0  {}\nE\n"
NORSE = ("Kjærlighet på første blikk", "går", "sjøen")


@pytest.mark.parametrize("encoding, tag, words", [
    ("cp1252", "", NORSE), ("cp865", "", NORSE), ("iso-8859-1", "", NORSE),
    ("cp1252", "", ("Don’t", "“you”", "Grüße")), ("cp865", "#ENCODING:CP865\n", ("x", "é", "ñ")),
    ("iso-8859-1", "#ENCODING:ISO-8859-1\n", ("x", "é", "ñ")),
    ("cp1250", "#encoding: CP1250\n", ("š", "ř", "ž")),
    ("utf-8", "#ENCODING:CP1252\n", NORSE), ("cp1252", "#ENCODING:auto\n", NORSE)])
def test_old_ultrastar_files(encoding, tag, words, tmp_path):
    """Catches files from before UTF-8 that are refused, or whose letters become others."""
    path = tmp_path / "song.txt"
    path.write_bytes(SONG.format(words[0], tag, *words[1:]).encode(encoding))
    song = read(path)
    assert (song.title, *(word.word for word in song.words)) == words


def test_encodings_that_are_refused(tmp_path):
    path = tmp_path / "song.txt"
    path.write_bytes(SONG.format("ü", "#ENCODING:rot13\n", "a", "b").encode("cp1252"))
    assert "#ENCODING:rot13; expected one of cp1252, cp865" in mistake(read, path)
    path.write_bytes(SONG.format("ü", "#ENCODING:UTF8\n", "a", "b").encode("cp1252"))
    assert "utf-8" in mistake(read, path)


def test_ultrastar_has_a_title_and_an_artist():
    """Catches files that games refuse for a lack of either."""
    song = Lyrics((Line((Word("a", 1.0, 2.0),)),))
    text = write(song, "ultrastar")
    assert text.startswith("#TITLE:Unknown\n#ARTIST:Unknown\n") and parse(text, "ultrastar", "x").title == ""
    assert write(Lyrics(song.lines, "A", "B"), "ultrastar").startswith("#TITLE:A\n#ARTIST:B\n")


@pytest.mark.parametrize("encoding", ["utf-16", "iso-8859-1", "utf-99"])
def test_an_xml_declaration_of_another_encoding(encoding):
    """The text is decoded already. Decoded a second time, é would become two letters."""
    text = f'<?xml version="1.0" encoding="{encoding}"?><tt><p begin="1s" end="2s">é</p></tt>'
    assert sketch(parse(text, "ttml", "x")) == ["1-2: é"]


def test_capitals_are_not_written_as_ipa():
    """Phonemes in capitals would be read back as ARPAbet: as another sound, or as a mistake."""
    song = Lyrics((Line((Word("a", 1.0, 2.0, "B"), Word("b", 2.0, 3.0, "Q"))),))
    assert sketch(parse(write(song, "lrc"), "lrc", "x")) == ["1-?: a@1-2 b@2-3"]


def test_a_pronunciation_needs_a_word_that_can_be_written():
    """Catches braces behind a word, or a syllable, of control characters alone: no reader would take them."""
    halves = (Part("a", 1.0, 1.5), Part("\0", 1.5, 2.0))
    song = Lyrics((Line((Word("\0", 0.5, 1.0, "ɛ"), Word("a\0", 1.0, 2.0, "ɛ", syllables=halves))),))
    assert [w.word for w in parse(write(song, "lrc"), "lrc", "x").words] == ["a"]


@pytest.mark.parametrize("kind", ["srt", "vtt", "ass", "ultrastar", "textgrid", "audacity"])
def test_untimed_words_are_refused(kind):
    """Catches subtitles at 0 s for a song without times."""
    text = mistake(write, parse("one two\nthree", "text", "song.txt"), kind)
    assert text.startswith(f'{kind}: "one two" has no time, which this format needs')


def test_words_at_the_same_time():
    """A tier of a TextGrid holds one word at a time."""
    lead, back = Line((Word("lead", 1.0, 3.0),)), Line((Word("back", 2.0, 4.0),), backing=True)
    text = mistake(write, Lyrics((lead, back)), "textgrid")
    assert text.startswith('textgrid: "back" has no length, or begins before')


def test_what_a_format_would_misread():
    """Words that look like stamps, tags, arrows or brackets of a format that has no escapes."""
    words = ["[00:01.00]", "<00:01.00>", "<i>x</i>", "-->", "\\N", "&amp;", "{\\k9}", "[Verse]", '"',
             "[ti:x]", "(a)"]
    for word, kind in itertools.product(words, KINDS):
        song = Lyrics((Line((Word(word, 1.0, 2.0), Word("x", 2.0, 3.0), Word(word, 3.0, 4.0))),
                       Line((Word(word, 5.0, 6.0),), 5.0, 6.0)))
        back = parse(write(song, kind), kind, "song")
        plain = word if kind in ("json", "jam") else word.replace("{", "(").replace("}", ")")
        assert [w.word for w in back.words] == [plain, "x", plain, plain], kind
        assert not any(line.backing or line.section for line in back.lines), kind
        assert JOINER not in back.words[0].word


@pytest.mark.parametrize("kind", KINDS)
def test_words_that_no_file_may_hold(kind):
    """Control characters in XML, half a surrogate in UTF-8, line ends inside a cue, times far too late."""
    song = Lyrics((Line((Word("a\0b\n\nc\ud800", 1.0, 359998.0),), 1.0, 359999.0),), "x\n[y]\ud800")
    text = write(song, kind)
    text.encode("utf-8")
    assert parse(text, kind, "song").words
    text = mistake(write, Lyrics((Line((Word("la", 1.0, 1e300),)),)), kind)
    assert text == f'{kind}: "la" ends at 1e+300 s; expected 100 hours at most'


# Mistakes.

NOTES = "#BPM:300\n#GAP:0\n"
EVENTS = "[Events]\nFormat: Start, End, Text\n"
GRID = '"ooTextFile"\n"TextGrid"\n0 1 <exists> 1\n"IntervalTier" "words" 0 1 1\n'
LAUGHS = '<!DOCTYPE tt [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><tt><p begin="1s">&b;</p></tt>'


@pytest.mark.parametrize("kind, text, fragment", [
    ("lrc", "[00:01.00]a\n[00:12:34]b", 'line 2: "[00:12:34]b": no time in it; expected mm:ss.xx'),
    ("lrc", "[ti:x]\n[0a:01.00]b", 'line 2: "[0a:01.00]b": no time'),
    ("lrc", "\n[00:01.00]a <00:0x.00>b", 'line 2: "<00:0x.00>b": no time'),
    ("lrc", "[00:01.00]<00:03.00>a<00:02.00>b", "line 1: end 2.00 s is before start 3.00 s"),
    ("lrc", "[ti:x]\n[offset:soon]", 'line 2: offset is "soon"; expected a number'),
    ("lrc", "[00:01.00]a {b}", "line 1: {b}: a pronunciation belongs to"),
    ("lrc", "[00:01.00]" * 2000 + "la " * 2000, "line 1: 2000 times 25999 letters"),
    ("vtt", "1\n00:01.000 --> 00:02.000\na", "line 1: expected WEBVTT"),
    ("vtt", "WEBVTT\n\n00:01.000 -> 00:02.000\na", "line 4: expected a cue"),
    ("vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\na <00:0x>b", "line 3: \"<00:0x>b\": no time"),
    ("vtt", "WEBVTT\n\n\n00:03.000 --> 00:02.000\na", "line 4: end 2.00 s is before start 3.00 s"),
    ("srt", "1\n00:00:01,000 --> 00:00:02,000\na\n2\n00:00:03,000 --> 00:00:04,000\nb",
     "line 5: a cue inside a cue; expected an empty line before it"),
    ("srt", "1\n0:0:0:1 --> 00:00:02,000\na", 'line 2: "0:0:0:1" is not a time; expected hh:mm:ss.fff'),
    ("srt", "hello", "line 1: expected a cue"),
    ("ass", EVENTS + "Dialogue: 0:00:01.00", "line 3: 1 fields; expected 3: start, end, text"),
    ("ass", EVENTS + "Dialogue: x,0:00:01.00,a", 'line 3: "x" is not a time'),
    ("ass", EVENTS + "Dialogue: 0:00:02.00,0:00:01.00,a", "line 3: end 1.00 s is before start 2.00 s"),
    ("ass", "[Events]\nFormat: Start, Text", 'line 2: "Start, Text": expected Start, End and Text'),
    ("ttml", "<tt>\n<p></tt>", "line 2, column 6: not XML: mismatched tag"),
    ("ttml", "", "line 1, column 1: not XML: no element found"),
    ("ttml", LAUGHS, "line 1: a DOCTYPE; expected none"),
    ("ttml", '<!DOCTYPE tt SYSTEM "file:///etc/passwd"><tt/>', "line 1: a DOCTYPE"),
    ("ttml", '<tt>\n<p begin="1f">a</p></tt>', 'line 2: "1f" is not a time'),
    ("ttml", '<tt>\n<p begin="2s" end="1s">a</p></tt>', "line 2: end 1.00 s is before start 2.00 s"),
    ("ttml", '<tt><p begin="9s">\n<span begin="1s" end="2s">a</span></p></tt>', "line 2: a span that ends"),
    ("ttml", "<tt><p>\n<p/></p></tt>", "line 2: a p inside a p"),
    ("ultrastar", "#TITLE:x\n: 0 4 0 a", 'line 2: ": 0 4 0 a"; expected #BPM:'),
    ("ultrastar", NOTES + ": 0 four 0 a", 'line 3: ": 0 four 0 a"; expected'),
    ("ultrastar", NOTES + "B 12 300", 'line 3: "B 12 300"; expected'),
    ("ultrastar", "#BPM:fast\n", 'line 1: #BPM is "fast"; expected a number'),
    ("ultrastar", "#BPM:0\n", "line 1: #BPM 0; expected 1 to"),
    ("textgrid", '"ooTextFile"\n"Pitch"', 'line 1: expected "ooTextFile" and "TextGrid"'),
    ("textgrid", GRID + '0 1', "line 5: the end of the file; expected a text in quotes"),
    ("textgrid", GRID + '0\n"x"', 'line 6: "x"; expected a number'),
    ("textgrid", GRID + '2 1 "x"', "line 5: end 1.00 s is before start 2.00 s"),
    ("textgrid", GRID.replace('"words"', '"phones"') + '0 1 "x"', "no interval tier of words"),
    ("textgrid", GRID.replace("1\n", "2\n", 1) + '0 1 "x"\n"IntervalTier" "phones" 0 1 1\n0 1\n"SS"',
     "line 8: SS is not ARPAbet"),
    ("audacity", "1\t2\ta\n1,5\tx\tb", 'line 2: end is "x"; expected a number'),
    ("audacity", "1\t2\ta\n3\t2\tb", "line 2: end 2.00 s is before start 3.00 s"),
    ("audacity", "1\t2\ta\n-1\t2\tb", "line 2: start is -1.0; expected seconds, 0 or more"),
    ("text", "a\nb {c}", "line 2: {c}: a pronunciation belongs"), ("text", "a{}", "line 1: {}: an empty"),
    ("json", "[\n1,]", "line 2, column 3: not JSON"), ("json", "[" * 100_000, "not JSON"),
    ("json", "{}", 'expected a JSON list of objects with "word"'),
    ("json", '[{"word": "a"}, 7]', 'word 2: expected {"word", "start", "end"}'),
    ("json", '[{"word": 7}]', 'word 1: "word" must be a text'), ("json", '[{}]', 'word 1 "": a word is \'\''),
    ("json", '[{"word": "a", "start": 2, "end": 1}]', 'word 1 "a": end 1.00 s is before start 2.00 s'),
    ("json", '[{"word": "a", "start": "2"}]', "word 1 \"a\": start is '2'; expected seconds"),
    ("json", '[{"word": "a", "start": true}]', 'word 1 "a": start is True; expected seconds'),
    ("json", '[{"word": "a", "start": 1' + "0" * 400 + "}]", 'word 1 "a": start is 1000'),
    ("json", '[{"word": "a", "start": NaN}]', 'word 1 "a": start is nan'),
    ("json", '[{"word": "a", "end": 1}]', 'word 1 "a": end 1.00 s without a start'),
    ("json", '[{"word": "a", "phoneme": 5}]', 'word 1 "a": phoneme is 5'),
    ("json", '[{"word": "a", "start": 1, "end": 2, "phones": [{"text": "x"}]}]',
     'word 1 "a", text 1: part "x" has no times'),
    ("jam", "[]", 'expected an object with "word"'), ("jam", '{"word": {}}', "expected a JSON list"),
    ("jam", '{"word": [], "segment": [{"segment": "a", "end": 1}]}', "segment 1: end 1.00 s without a start"),
    ("whisper", "[]", 'expected an object with "segments"'),
    ("whisper", '{"segments": [{"words": [{"word": "a", "end": 1}]}]}',
     'segment 1, word 1 "a": end 1.00 s without a start'),
    ("midi", "", "midi: unknown format; known: json, jam, whisper, lrc")])
def test_mistakes(kind, text, fragment):
    """Catches tracebacks, and errors without file, place, value and what would be accepted."""
    found = mistake(parse, text, kind, "song.x")
    assert fragment in found and (found.startswith("song.x: ") or kind == "midi")


def test_files_that_cannot_be_read(tmp_path):
    """Missing files, folders, other encodings, unknown endings."""
    assert "No such file" in mistake(read, tmp_path / "no.lrc")
    assert "Is a directory" in mistake(read, tmp_path)
    for name, content, fragment in [("a.lrc", b"\xe4", "byte 0: not UTF-8 text"),
                                    ("a.lrc", b"\xff\xfea", "byte 2: not UTF-16 text"),
                                    ("a.mp3", b"", "unknown ending; expected .json, .txt, .lrc"),
                                    ("a.json", b"{", "line 1, column 2: not JSON")]:
        (tmp_path / name).write_bytes(content)
        assert fragment in mistake(read, tmp_path / name)
    (tmp_path / "a.mp3").write_text("[00:01.00]a")
    assert read(tmp_path / "a.mp3", "lrc").lines[0].start == 1


def test_empty_files_are_songs_without_words():
    """An instrumental has no words."""
    for kind, text in {"lrc": "", "srt": "\n", "vtt": "WEBVTT", "ass": "", "ttml": "<tt/>", "text": "",
                       "ultrastar": "", "audacity": "", "json": "[]", "jam": '{"word": []}'}.items():
        assert parse(text, kind, "x") == Lyrics(())
    for kind in KINDS:
        assert parse(write(Lyrics(()), kind), kind, "x").words == ()


# Arbitrary texts and bytes.

FRAGMENTS = ["[00:01.00]", "<00:01.50>", "[offset:1]", "[", "]", "<", ">", "{", "}", "(", ")", "~", "\"",
             "\"\"", "\\", "{\\k20}", "{\\kt9}", "\\N", " --> ", "00:00:01.000 --> 00:00:02.000",
             "WEBVTT\n\n", "NOTE", "<c>", "&lt;", "&#9999999999;", "<p begin='1s'>", "</p>",
             "<span begin='9s' end='1s'>", "<br/>", "ttm:role='x-bg'", "<!DOCTYPE a>", "#BPM:300",
             "#RELATIVE:YES", "P1", ": 0 4 0 a", "- 3 4", "E", "\"IntervalTier\"", "<exists>", "1e308", "-1",
             "9" * 400, "null", "true", "[]", "{}", "\"word\": ", "\t", "\n", "\n\n", "\r", " ", "\x00",
             "\ufeff", "\u2028", "\x85", "\u2060", "\xa0", "1\t2\t", "la", "re{ɹ}", "Dialogue: ", "Format: ",
             "[Events]\n", "[Verse]", "\ud800"]
SAMPLES = [(name, kind.split(" | ")[0], (FILES / name).read_text(encoding="utf-8"))
           for name, (kind, *_) in WILD.items()]


@st.composite
def spoilt(draw):
    """A sample with parts cut, doubled or replaced by signs that mean something; or such signs alone."""
    _, kind, text = draw(st.sampled_from(SAMPLES))
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from(list(KINDS))), draw(st.sampled_from(["", text]))
    if draw(st.integers(0, 9)) == 0:
        return kind, "".join(draw(st.lists(st.sampled_from(FRAGMENTS), max_size=12)))
    for _ in range(draw(st.integers(1, 4))):
        a, b = sorted(draw(st.integers(0, len(text))) for _ in range(2))
        b = min(b, a + draw(st.sampled_from([0, 1, 5, 1000])))
        text = text[:a] + draw(st.sampled_from([*FRAGMENTS, "", text[a:b] * 2])) + text[b:]
    return kind, text


def check_any(kind, text):
    """Expect lyrics that can be written and read back in every format, or one line that names the file."""
    try:
        lyrics = parse(text, kind, "song.x")
    except UserError as e:
        assert str(e).startswith("song.x: ") and str(e).isprintable() and len(str(e)) < 600
        return False
    assert isinstance(lyrics, Lyrics)
    for other in KINDS:
        try:
            written = write(lyrics, other)
        except UserError as e:
            assert str(e).startswith(f"{other}: ")
            continue
        written.encode("utf-8")
        parse(written, other, "song.x")
    return True


@settings(quick, max_examples=500)
@given(spoilt())
def test_anything_is_read_or_explained(case):
    """Catches TypeErrors and the like deep in a reader, and files that cannot be read back."""
    check_any(*case)


@quick
@given(st.binary(max_size=60), st.sampled_from(list(KINDS)))
def test_any_bytes_are_read_or_explained(tmp_path_factory, content, kind):
    path = tmp_path_factory.getbasetemp() / "song.bin"
    path.write_bytes(content)
    try:
        read(path, kind)
    except UserError as e:
        assert str(e).startswith(f"{path}: ") and str(e).isprintable()


@pytest.mark.slow
@settings(quick, max_examples=20_000)
@given(spoilt())
def test_anything_is_read_or_explained_at_length(case):
    """As above, with forty times as many cases."""
    check_any(*case)


LONG = ["a", "[", "<", "{", "(", '"', "~", "&", "\\", "-->", "[00:01.00]", "<00:01.00>", "<1", "{\\k",
        "{\\i1}", "<a", "&#9", "<p>", "</p>", "- ", "-1", " ", "\n[", "[{", "}{", ")(", "\u2060"]


@pytest.mark.slow                      # it measures time
@pytest.mark.parametrize("kind", KINDS)
def test_long_lines_take_linear_time(kind):
    """Catches quadratic regular expressions: 40,000 letters would take them tens of seconds."""
    fronts = {"vtt": "WEBVTT\n\n00:01.000 --> 00:02.000\n", "srt": "00:01.000 --> 00:02.000\n",
              "ass": EVENTS + "Dialogue: 0:00:01.00,0:00:02.00,", "ttml": "<tt><p>", "lrc": "[00:01.00]",
              "ultrastar": NOTES + ": 0 4 0 ", "textgrid": GRID + "0 1 ", "audacity": "1\t2\t"}
    for unit in LONG:
        start = time.process_time()
        with contextlib.suppress(UserError):
            parse(fronts.get(kind, "") + unit * (40_000 // len(unit)), kind, "x")
        assert time.process_time() - start < 3, unit


def test_the_table_says_what_there_is():
    """What a format writes is recognised as that format by its ending and contents."""
    for kind, form in KINDS.items():
        assert Path(f"x{form.extension}").suffix and callable(form.reader) and callable(form.writer)
        written = write(read(FILES / "original.json"), kind)
        assert kind_of(Path(f"x{form.extension}"), written) == kind
    account = {"request": {}, "word": [{"word": "a", "start": 1, "end": 2, "phones": [], "syllables": []}]}
    assert sketch(parse(json.dumps(account), kind_of(Path("a.json"), json.dumps(account)), "x")) == ["a@1-2"]


@pytest.mark.parametrize("text, sections", [
    ("[Intro]\n\nhello\n", [("Intro", 0), ("Intro", 1)]), ("[Verse]\n\nhello\n", [("Verse", 1)]),
    ("[Break 2]\n[Verse]\nhello\n[Outro]\n", [("Break 2", 0), ("Verse", 1), ("Outro", 0)]),
    ("[Solo]\nhello\n\nyou\n", [("Solo", 1), ("Solo", 1)])])
def test_sections_without_words(text, sections):
    """Catches a break that is asked for but lost, and a gap behind each heading with a blank line."""
    assert [(line.section, len(line.words)) for line in parse(text, "text", "a.txt").lines] == sections


@pytest.mark.parametrize("text, lines", [
    ("[Chorus]\na\n(b)\n[Verse]\nc\n[Chorus]\n\n[Chorus x2]", "a|(b)|c|a|(b)|a|(b)|a|(b)"),
    ("[Chorus (x2)]\na\n[Verse]\nb\n[chorus: Ann]\n", "a|a|b|a"), ("[Chorus] (x2)\na", "a|a"),
    ("a (x2)\n(b) [2x]\nc x2\n(x2)", "a|a|(b)|(b)|c x2|(x2)"), ("[Verse]\na\n[Verse 2]\n[Chorus]", "a||"),
    ("a [ad-lib: yeah, hey] b\n[Ad-libs: ooh]", "a|(yeah, hey)|b|(ooh)")])
def test_repeats_and_ad_libs(text, lines):
    """Catches a chorus without words that is a pause, x2 as a word, an ad-lib that is a section."""
    found = parse(text, "text", "x")
    assert "|".join(f"({line.text})" if line.backing else line.text for line in found.lines) == lines
    assert not any("x" in line.section or "lib" in line.section for line in found.lines)


def test_ad_libs_of_timed_lines():
    found = parse("[00:01.00][ad-lib: <00:01.50>yeah]\n[00:03.00]a", "lrc", "x")
    assert sketch(found) == ["(b) 1-?: yeah@1.5-?", "3-?: a"]
