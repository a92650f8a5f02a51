"""lyrics/plan.py: every word gets a time, known times stay, the grid is exact, mistakes are named."""

import dataclasses
import math

import pytest
from conftest import BABY, ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config import PHONEMIZER, UserError
from lyrics.pronounce import reader, words_in
from lyrics.timing import Line, Lyrics, Word
from phonemes import NUCLEUS
from lyrics.plan import FASTEST, TAIL_S, PlanSettings, own_pace, plan, size_of

DEFAULT = PlanSettings()
BEAT_S = 60 / DEFAULT.bpm


def la(word):
    """Pronounces a word as one "la" per two letters; cannot read q, knows no vowel in x."""
    return "" if "q" in word else "hm" if "x" in word else "la" * ((len(word) + 1) // 2)


def song(text):
    """Plain text as lyrics: [Section], (backing), and a time in front of a line or of a word: 1.5@word."""
    lines, section = [], ""
    for number, row in enumerate(text.splitlines(), 1):
        row = row.strip()
        if row.startswith("["):
            section = row[1:-1]
            if section in ("Intro", "Break", "Outro"):
                lines.append(Line((), section=section, number=number))
        elif row:
            stamp, _, rest = row.rpartition("| ")
            words = []
            for word in words_in(rest.strip("()")):
                times, _, letters = word.word.rpartition("@")
                times = [float(t) for t in times.split("-") if t]
                words.append(dataclasses.replace(word, word=letters, **dict(zip(("start", "end"), times))))
            times = [float(t) for t in stamp.split("-") if t]
            lines.append(Line(tuple(words), *times, section=section, backing=rest[0] == "(", number=number))
    return Lyrics(tuple(lines))


def timed(text, **kwargs):
    return plan(song(text), la, PlanSettings(**kwargs))


def starts(lyrics):
    return [word.start for word in lyrics.words]


@pytest.fixture(scope="module")
def phonemizer():
    return reader(BABY / PHONEMIZER)


def check(before, after):
    """All words timed, finite, in order, without overlap, otherwise as before; known times the same."""
    assert after.timed and len(before.lines) == len(after.lines)
    for old, new in zip(before.lines, after.lines):
        assert dataclasses.replace(new, words=old.words, start=old.start, end=old.end) == old
        assert (new.start, new.end) == (old.start, old.end) or not old.words and old.start is None
        for a, b in zip(old.words, new.words, strict=True):
            assert dataclasses.replace(b, start=a.start, end=a.end) == a
            assert a.start in (None, b.start) and a.end in (None, b.end)
    times = [t for word in after.words for t in (word.start, word.end)]
    assert times == sorted(times) and all(map(math.isfinite, times))
    assert all(word.end > word.start for word in after.words)


words = st.text("aehlotqx~,你", min_size=1, max_size=9).map(Word)
plain_lines = st.builds(
    Line, st.lists(words, max_size=7).map(tuple), section=st.sampled_from(["", "Verse", "Chorus"]),
    backing=st.booleans(), number=st.integers(0, 30))
anything = settings(deadline=None, derandomize=True, max_examples=120, database=None)


@anything
@given(st.lists(plain_lines, max_size=7), st.sampled_from([40, 67.3, 100, 133, 165]),
       st.integers(1, 7), st.floats(0.5, 9))
def test_any_plain_text(lines, bpm, beats, start_s):
    """A word without a time, an overlap, a rate that nobody sings, another plan the second time."""
    lyrics, how = Lyrics(tuple(lines)), PlanSettings(bpm=bpm, beats_per_bar=beats, start_s=start_s)
    after = plan(lyrics, la, how)
    check(lyrics, after)
    assert plan(lyrics, la, how) == after and plan(after, la, how) == after
    for word in after.words:
        assert size_of(word, la).syllables / (word.end - word.start) == pytest.approx(bpm / 30) or any(
            word is line.words[-1] for line in after.lines if line.words) or size_of(word, la).holds
    if after.words:
        assert min(starts(after)) >= start_s
        end = max(after.words[-1].end, after.lines[-1].end or 0)
        shorter = PlanSettings(bpm=bpm, beats_per_bar=beats, start_s=start_s,
                               duration=start_s + TAIL_S + 0.7 * (end - start_s))
        fits = plan(lyrics, la, shorter)
        check(lyrics, fits)
        assert fits.words[-1].end <= shorter.duration - TAIL_S + 1e-6


@st.composite
def partly_timed(draw):
    """A consistent song, of which some times are taken away: of lines, words, ends."""
    lines, at = [], draw(st.floats(0, 30))
    for _ in range(draw(st.integers(1, 5))):
        sung, first = [], at
        for word in draw(st.lists(words, min_size=0, max_size=5)):
            end = at + draw(st.floats(0.2, 3))
            known = draw(st.sampled_from([0, 0, 1, 2]))
            times = (at, end)[:known] + (None, None)[known:]
            sung.append(dataclasses.replace(word, start=times[0], end=times[1]))
            at = end + draw(st.sampled_from([0, 0.5]))
        known = draw(st.sampled_from([1, 1, 2]) if sung else st.sampled_from([0, 1]))
        lines.append(Line(tuple(sung), first if known else None, at if known == 2 else None))
        at += draw(st.floats(0.3, 8))
    return Lyrics(tuple(lines))


@anything
@given(partly_timed())
def test_any_times_that_are_known(lyrics):
    """A known time that moves, an overlap with it, a word that stays untimed, a second plan that differs."""
    after = plan(lyrics, la, DEFAULT)
    check(lyrics, after)
    assert plan(after, la, DEFAULT) == after == plan(lyrics, la, DEFAULT)
    for line in after.lines:
        if line.words and line.start is not None:
            assert line.words[0].start == line.start


def test_the_grid_is_exact():
    """Words off the beat: rounding that adds up over a song, a line that starts on no half bar."""
    after, eighth = timed("\n".join(["la lala la la"] * 40), bpm=97, start_s=0.25), 30 / 97
    for i, line in enumerate(after.lines):
        assert [*starts(Lyrics((line,))), line.words[-1].end] == pytest.approx(
            [0.25 + (8 * i + k) * eighth for k in (0, 1, 3, 4, 7)], abs=1e-9)


@pytest.mark.parametrize("bpm, rate", [(40, 1.33), (60, 2), (80, 2.67), (100, 3.33), (140, 4.67), (240, 8),
                                       (400, 8)])
def test_any_tempo_is_singable(bpm, rate):
    """Half a beat for every syllable at any tempo; no more syllables a second than fast rap has."""
    first, second = timed("la la la", bpm=bpm).words[:2]
    assert 1 / (second.start - first.start) == pytest.approx(rate, abs=0.01)


@anything
@given(st.lists(plain_lines, min_size=1, max_size=7).map(lambda lines: Lyrics(tuple(lines)))
       | partly_timed(), st.lists(st.floats(20, 400), min_size=2, max_size=2).map(sorted),
       st.sampled_from([None, 300.0]), st.integers(1, 7))
@example(Lyrics((Line(words_in("la la la la")),) * 20), [140.0, 149.0], None, 4)
def test_a_faster_song_is_never_longer(lyrics, tempi, duration, beats):
    """A syllable of half a beat at one tempo and of a whole one at the next: 61 s at 140 bpm, 102 at 149."""
    ends = []
    for bpm in tempi:
        after = plan(lyrics, la, PlanSettings(bpm=bpm, duration=duration, beats_per_bar=beats))
        ends.append([line.words[-1].end if line.words else line.end or 0.0 for line in after.lines])
    assert all(fast <= slow + 1e-9 for slow, fast in zip(*ends, strict=True))


def test_drawn_out_words_are_held(phonemizer):
    """noooo as short as no, or sung as another word; three digits taken for a letter that is held."""
    for drawn, word in (("noooo", "no"), ("Coooool!", "cool"), ("yeahhh", "yeah"), ("sooo", "so"),
                        ("looooove", "love"), ("babyyyy", "baby"), ("alllll", "all")):
        assert phonemizer(drawn) == phonemizer(word) and phonemizer.knows(drawn), drawn
        assert size_of(Word(drawn), phonemizer).weight > 1.5 * size_of(Word(word), phonemizer).weight
    assert size_of(Word("1000"), phonemizer).holds == size_of(Word("good"), phonemizer).holds == 0
    assert size_of(Word("a" * 99), la).holds == 4
    first, second, _ = plan(song("no noooo yes"), phonemizer, DEFAULT).words
    assert second.end - second.start == pytest.approx(first.end - first.start + BEAT_S)


def test_a_repeated_chorus_starts_on_a_bar():
    """The second of [Chorus x2] in the middle of a bar: its lines have the numbers of the first."""
    lines = song("[Chorus]\nla\nla\nla").lines
    after = plan(Lyrics(lines * 2), la, DEFAULT).lines
    assert after[3].words[0].start == pytest.approx(0.5 + 8 * BEAT_S)


def test_voices_that_sound_at_once_are_planned_apart():
    """Backing that squeezes the lead, or has no times in the files that are written."""
    lines = song("1-5| la la 4-5@la\nla\n6| la la").lines
    words = words_in("la la")
    apart = Line(words, 2.0, 4.5, backing=True)
    after = plan(Lyrics((lines[0], apart, lines[2])), la, DEFAULT)
    alone = plan(Lyrics((lines[0], lines[2])), la, DEFAULT)
    assert (after.lines[0], after.lines[2]) == alone.lines
    assert [after.lines[1].words[0].start, after.lines[1].words[1].end] == [2.0, 4.5]


def test_syllables_from_sounds_or_letters(phonemizer):
    """A diphthong or a silent e as two syllables; a crash, or no time, for a word that nobody can read."""
    assert NUCLEUS.findall("aɪ") == ["aɪ"] and NUCLEUS.findall("ɹiəlaɪz") == ["i", "ə", "aɪ"]
    assert not NUCLEUS.search("hm")
    counts = {"love": 1, "river": 2, "hello~~": 2, "lo~ve": 1, "hmm": 1, "~": 1, "你好": 1, "♪": 1,
              "sta♪re": 1, "ri♪ver": 2}
    assert {word: size_of(Word(word), phonemizer).syllables for word in counts} == counts
    assert size_of(Word("read", phoneme="ɹiəd"), la).syllables == 2
    assert size_of(Word("lo~ve~"), la).holds == 2
    assert size_of(Word("a", phoneme="ə"), la).weight < 0.8 * size_of(Word("a", phoneme="eɪ"), la).weight


def test_a_hold_is_a_beat():
    """The sign for a held word without effect, or of a syllable's length, on the grid and between stamps."""
    plain, held = timed("la la la la la la\nla"), timed("la la~ la la la la\nla")
    assert [w.end - w.start for w in held.words[:3]] == pytest.approx([0.3, 0.3 + BEAT_S, 0.3])
    assert held.words[6].start > plain.words[6].start
    first, second, *_ = timed("0| la la~ la la\n3| la").words
    assert second.end - second.start > 2 * (first.end - first.start)


def test_last_words_are_longer_and_lines_have_breaths():
    """A line that runs into the next one, a last word cut as short as the others."""
    for line, after in zip((made := timed("la la la\nla la la la la la\nla la")).lines, made.lines[1:]):
        *before, last = line.words
        assert last.end - last.start > 1.9 * (before[0].end - before[0].start)
        assert after.words[0].start - last.end > 0.29


def test_sections_start_on_a_bar_and_empty_ones_take_bars():
    """A chorus in the middle of a bar, also after a blank line, or a chorus like the one before; no break."""
    text = "[Intro]\n[Verse]\nla la\nla la\nla la\n[Chorus]\nla\n[Chorus]\nla\n\nla\n[Break]\n[Verse]\nla"
    bar, at = 4 * BEAT_S, 0.5
    assert [(line.start if not line.words else line.words[0].start) for line in timed(text).lines] == (
        pytest.approx([at + bar * k for k in (0, 2, 2.5, 3, 4, 5, 6, 7, 9)]))
    assert timed(text).lines[0].end == pytest.approx(at + 2 * bar)
    wide = timed(text, gap_bars=3, section_bars=1)
    assert [wide.lines[i].words[0].start for i in (1, 4)] == pytest.approx([at + 4 * bar, at + 7 * bar])


def test_backing_lines_answer_their_leads():
    """Backing sung at the same time as the lead, off the beat, or the next lead before it is over."""
    after = timed("la la la la la la la\n(la la)\nla la\n(la la la)\n(la)", bars_per_line=2)
    lead, backing, second, *_ = [line.words for line in after.lines]
    assert lead[-1].end < backing[0].start and backing[-1].end < second[0].start
    assert (backing[0].start - 0.5) / BEAT_S == pytest.approx(round((backing[0].start - 0.5) / BEAT_S))
    assert second[0].start == pytest.approx(0.5 + 8 * BEAT_S)


def test_bars_per_line():
    """Lines of another length than asked; syllables that neither spread out nor close up to fill them."""
    after = timed("la la la la la\nla la la la la la la la la la la\nla\nla", bars_per_line=2)
    assert [line.words[0].start for line in after.lines] == pytest.approx(
        [0.5 + 8 * BEAT_S * k for k in range(4)])
    assert after.words[1].start - after.words[0].start == pytest.approx(0.6)
    assert after.words[6].start - after.words[5].start == pytest.approx(0.3)
    with pytest.raises(UserError, match="line 1: 5 syllables do not fit into 2 beats at 200 bpm"):
        timed("la " * 5, bars_per_line=0.5, bpm=200)


def test_duration_fits_the_whole_song():
    """A song longer than asked, or stretched without end; an error that states too few seconds."""
    text = "la la la la la la\nla la la la la la\n[Break]\n[Chorus]\nla la la la la"
    usual = timed(text)
    for seconds in (8, 10, 14):
        after = timed(text, duration=seconds)
        assert after.words[-1].end == pytest.approx(seconds - TAIL_S)
        scale = (after.words[1].start - 0.5) / (usual.words[1].start - 0.5)
        assert starts(after) == pytest.approx([0.5 + scale * (t - 0.5) for t in starts(usual)])
    assert timed(text, duration=500).words[-1].end == pytest.approx(2 * usual.words[-1].end - 0.5)
    with pytest.raises(UserError, match="line 1 to line 5: .* or more, not 5 s") as caught:
        timed(text, duration=5)
    needed = float(str(caught.value).split("duration of ")[1].split(" s")[0])
    first, second = timed(text, duration=needed).words[:2]
    assert 0.98 * FASTEST < 1 / (second.start - first.start) <= FASTEST + 1e-6
    with pytest.raises(UserError, match="duration of"):
        timed(text, duration=needed - 0.02)
    with pytest.raises(UserError, match="last word ends at 9.00 s"):
        timed("8-9@la", duration=8)


def test_stamped_lines_are_sung_at_the_songs_pace():
    """A line drawn out over the break behind it, or run into the next; words of equal length."""
    text = "10| la lalala la\n12| la la lalala\n14| la lala la la\n16| la lala lala\n40| lala la lala"
    lines = [line.words for line in timed(text).lines]
    assert [words[0].start for words in lines] == [10, 12, 14, 16, 40]
    for words, following in zip(lines, [12, 14, 16, 18, 42]):
        assert following - 0.9 < words[-1].end <= following - 0.19
    first, second, third = lines[0]
    assert second.end - second.start > 1.5 * (first.end - first.start)
    assert third.end - third.start > 1.2 * (first.end - first.start)
    assert second.start == first.end and third.start == second.end
    comma, without = timed("0| la la, la la\n3| la").words, timed("0| la la la la\n3| la").words
    assert comma[1].end - comma[1].start > 1.2 * (without[1].end - without[1].start)


def test_tight_lines_leave_breath_and_room():
    """A line that runs into the next stamp, into words that come before a known one, or over the duration."""
    after = timed("10| la la la\n14| la la la\n14.8| la la la\n18| la la la\n22| la")
    assert after.lines[1].words[-1].end == pytest.approx(14.6)
    first, second, _ = timed("1| la la la la la la\nla la la la la la 5@la\n20-29| la la").lines
    assert second.words[0].start - first.words[-1].end > 0.1
    assert second.words[5].end - second.words[0].start > 0.9 * (first.words[-1].end - 1)
    assert timed("1| la la la la", duration=2).words[-1].end == pytest.approx(1.8)


def test_pace_without_evidence_is_singable():
    """One stamp, or two an hour apart: words of minutes, or division by nothing."""
    for text in ("5| la la la", "5| la la la\n3600| la la la"):
        first, second = timed(text).words[:2]
        assert 0.2 < second.start - first.start <= 0.8
    lines = song("1-2| la la\n9| la la").lines
    sizes = [[size_of(word, la) for word in line.words] for line in lines]
    assert own_pace(lines, sizes) == pytest.approx(1 / sum(s.weight for s in sizes[0]))


def test_known_ends_count():
    """An end of a subtitle that is passed over; an empty stamp, which ends a line, taken for nothing."""
    assert timed("10-11.5| la la la\n20| la").words[2].end == 11.5
    la_la = words_in("la la la")
    after = plan(Lyrics((Line(la_la, 10.0), Line((), 11.0), Line(la_la, 30.0))), la, DEFAULT)
    assert after.words[2].end <= 11 - 0.19 and after.words[3].start == 30


def test_between_known_words():
    """Times between known ones that ignore them or their ends; an end that leaves a gap to the next start."""
    after = timed("1-2@la la la 4@la 4.5@la la 6@la\n9| la")
    assert [(w.start, w.end) for w in after.words[:5]] == [
        (1, 2), (2, 3), (3, 4), (4, 4.5), (4.5, pytest.approx(5.25))]
    assert after.words[6].start == 6 and after.words[6].end < 9
    before, known, *_ = timed("la 5-6@la la").words
    assert 4 < before.start < 4.8 and before.end == 5 and known.start == 5
    tight = timed("1-2@la\nla la 2.3@la").words
    assert 2 < tight[1].start < tight[1].end == tight[2].start < tight[2].end == 2.3


def test_a_pause_inside_of_a_line_is_not_sung_through():
    """A word with a start only that is held over an instrumental until the next one starts."""
    first, second = timed("1@la 20@la").words
    assert 0.3 < first.end - first.start < 4 and second.start == 20


def test_lines_without_times_between_stamped_ones():
    """Plain lines before, between and behind stamped ones that overlap them, or push them."""
    after = timed("la la la\n10| la la\nla la la\nla la\n16| la la\nla la\n(la)")
    check(song("la la la\n10| la la\nla la la\nla la\n16| la la\nla la\n(la)"), after)
    assert after.lines[0].words[0].start == 0.5 and after.lines[1].words[0].start == 10
    assert after.lines[2].words[1].start - after.lines[2].words[0].start == pytest.approx(0.3, abs=0.05)
    assert after.lines[4].words[0].start == 16 and after.lines[6].words[0].start < 22
    with pytest.raises(UserError, match="line 2: .* before the next known time, not 0.[0-9]+ s"):
        timed("10| la\nla la la la la la la la la la\n11.5| la")


@pytest.mark.parametrize("text, fragment", [
    ("10| la la\n9| la", 'line 1: no room for "la la" between 10.00 s and 9.00 s'),
    ("10| la la\n10| la", 'line 1: no room for "la la" between 10.00 s and 10.00 s'),
    ("1| la 5@aha eh oh 4@la", 'line 1: no room for "aha eh oh" between 5.00 s and 4.00 s'),
    ("1| la 5@aha eh oh 5.03@la", "expected 0.06 s or more"), ("3-5| la 6@aha", 'no room for "aha"'),
    ("1-4@la\neh oh 4@la", 'line 2: no room for "eh oh" between 4.00 s'), ("5| eh 2@oh", 'no room for "eh"')])
def test_contradictions_name_line_and_words(text, fragment):
    """Words of no or negative length, or a traceback, where known times leave nothing in between."""
    with pytest.raises(UserError) as caught:
        timed(text)
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [{"bpm": 0}, {"bpm": math.nan}, {"beats_per_bar": 0}, {"bars_per_line": 0},
                                   {"duration": 0}, {"start_s": -1}, {"gap_bars": -1},
                                   {"section_bars": math.inf}])
def test_bad_settings(value):
    """A division by zero deep inside, or a plan of nonsense, instead of the setting's name and range."""
    flag = f"--{next(iter(value))}".replace("_", "-")
    with pytest.raises(UserError, match=f"^{flag} .*: expected"):
        PlanSettings(**value)


def test_nothing_to_plan():
    """A song without words, or with all times: changed, or a division by nothing."""
    for lyrics in (Lyrics(()), Lyrics((Line((), section="Intro"),)), song("1-2@la 2-3@la\n4-5@la")):
        assert plan(lyrics, la, DEFAULT) == lyrics


def test_the_example(phonemizer):
    """The example's times change unseen, or it becomes longer than the embedded model sings."""
    lyrics = song((ROOT / "examples/song.txt").read_text(encoding="utf-8"))
    after = plan(lyrics, phonemizer, DEFAULT)
    check(lyrics, after)
    assert [(w.word, w.start, w.end) for w in after.words[:7]] == [
        (word, pytest.approx(start), pytest.approx(end)) for word, start, end in (
            ("The", 0.5, 0.8), ("night", 0.8, 1.1), ("is", 1.1, 1.4), ("cold", 1.4, 1.7), ("and", 1.7, 2.0),
            ("clear", 2.0, 2.6), ("I", 2.9, 3.2))]
    assert after.lines[3].words[0].start == pytest.approx(0.5 + 3 * 4 * BEAT_S)
    assert {line.section for line in lyrics.lines} == {"Verse", "Chorus"} and after.lines[4].backing
    assert after.words[-1].end == pytest.approx(17.0)
    assert all(phonemizer(word.word.replace("~", "")) for word in lyrics.words)
