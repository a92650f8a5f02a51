"""Times for words without any: a beat grid for plain text, the song's own pace between known times.

Read `plan`, then `size_of` (how much time a word needs), `layout` and `fit_run` (lines without any time,
on the grid, in beats), `own_pace` and `fill_line` (lines with a stamp, or with a timed word). Known times
never change. All times are seconds from the song's start.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from config import Settings, SingSettings, UserError, within
from lyrics.pronounce import DRAWN
from lyrics.timing import Line, Lyrics, Word
from lyrics.voices import answers
from phonemes import CONSONANT_S, NUCLEUS

# On the grid.
SYLLABLE_S = 0.3          # at a middling pace
SLOT = 0.5                # beats of a syllable at any tempo: a song never gets longer when the tempo rises
FASTEST = 8.0             # syllables a second, fast rap; beyond it consonants alone fill the time
SLOWER = 2.0              # how much `duration` may stretch a song; beyond that its end stays silent
TAIL_S = 0.5              # silence after the last word, as sample.py leaves by default
# Between known times. Only the ratios matter: the song's pace scales them all. Round values, in the middle of
# what two sung songs cannot tell apart: tests/lyrics/judge_plan.py.
VOWEL_S = 0.4             # a syllable's vowel beside phonemes.CONSONANT_S
WEAK = frozenset("əɪ")    # vowels of unstressed syllables...
WEAK_SHARE = 0.7          # ...are this much of a vowel
PHRASE_S = 0.2            # a word before a comma or a line's end is drawn out by half a vowel
HELD_S = 2 * VOWEL_S      # one "~", about a beat: two syllables' slots
BREATH_S = 0.2            # before the next line...
BREATH_SHARE = 0.25       # ...at most this much of the room up to it
PACKED = 0.3              # share of a song's singing in lines that lead right into the next one: its pace
SLOWEST_S = 0.8           # of a syllable, on average: a longer way to the next stamp is a pause
LONGEST = 4.0             # times its share that a word is held until the next one starts
SHORTEST_S = 0.02         # of a word: two of LRC's hundredths


@dataclass(frozen=True)
class PlanSettings(Settings):
    """How words without times are placed."""
    # beat grid
    bpm: float = within(SingSettings.bpm, 20, 400)  # beats a minute of lines without times, 20..400: half a
                                                #   beat a syllable, eight syllables a second at most
    beats_per_bar: int = within(4, 1, 16)       # beats of a bar, 1..16; a section starts on a bar, a line on
                                                #   half a bar (an odd number: on a beat)
    bars_per_line: float | None = within(None, 0.25, 64)  # bars of a line; default: what its syllables need
    duration: float | None = within(None, 1, 36000)  # fit the song into so many seconds; default: what
                                                #   --bpm makes
    start_s: float = within(0.5, 0, 3600)       # second at which the first bar starts
    gap_bars: float = within(2.0, 0, 64)        # bars of a section without words: [Intro], [Break], [Solo],
                                                #   [Outro]
    section_bars: float = within(0.0, 0, 64)    # bars of rest before a section, beyond what takes it to the
                                                #   next bar


class Size(NamedTuple):
    """How much time a word needs."""
    syllables: int
    weight: float             # seconds at a slow pace; only ratios matter
    holds: int                # beats that it is held on: one for each "~"


def size_of(word: Word, phonemizer: Callable[[str], str], last: bool = False) -> Size:
    """A word's size from its phonemes; if they have no vowel, that of a "la" for each group of vowel letters.

    A word that is drawn out, noooo, is held like one with a "~" for every two letters too many.

    Args: last, whether the word ends its line.
    """
    letters = word.word.replace("~", "")
    drawn = sum((len(run[0]) - 1) // 2 for run in DRAWN.finditer(letters))
    phoneme = word.phoneme or phonemizer(letters)
    if not NUCLEUS.search(phoneme):
        spelled = re.findall("[aeiouyà-öø-ÿ]+", re.sub(r"(?<=[^\W_aeiouy])e\W*$", "", letters.lower()))
        phoneme = "la" * max(1, len(spelled))
    vowels, holds = NUCLEUS.findall(phoneme), word.word.count("~") + min(drawn, 4)
    weight = sum(VOWEL_S * (WEAK_SHARE if vowel in WEAK else 1) for vowel in vowels)
    weight += sum(CONSONANT_S.get(c, 0) for c in phoneme) + HELD_S * holds
    return Size(len(vowels), weight + PHRASE_S * (last or letters.endswith(tuple(",.;:?!…"))), holds)


def name_of(line: Line) -> str:
    """How messages name a line."""
    return f"line {line.number}" if line.number else f'line "{line.text}"'


def round_up(beats: float, step: float) -> float:
    """Beats up to the next multiple of step."""
    return math.ceil(beats / step - 1e-9) * step


# Lines without any time: in beats, from the run's first bar on.

def layout(lines: Sequence[Line], sizes: Sequence[Sequence[Size]],
           settings: PlanSettings) -> tuple[list[list[float]], float]:
    """Place lines on the beat grid: a syllable takes a slot, a line's last word one or more on top.

    Returns: for each line its words' starts and its last word's end, in beats (for a pause, start and end);
        the shortest slot, in beats.
    Raises: UserError if a line needs more than its bars.
    """
    bar = float(settings.beats_per_bar)
    step = bar / 2 if bar % 2 == 0 else 1.0
    placed, at, sung, shortest = [], 0.0, 0.0, math.inf    # sung: the last word's end, 0 after a pause
    for i, (line, size) in enumerate(zip(lines, sizes)):
        # A heading or a blank line between two lines, or a chorus that is repeated, shows in their numbers.
        before = lines[i - 1] if i else line
        if line.section != before.section or not 0 <= line.number - before.number <= 1:
            at, sung = round_up(at, bar) + settings.section_bars * bar, 0.0
        if not line.words:
            placed.append([at, at + settings.gap_bars * bar])
            at = round_up(placed[-1][-1], bar)
            continue
        syllables, held = sum(s.syllables for s in size), sum(s.holds for s in size)
        slot, beats = SLOT, round_up((syllables + 2) * SLOT + held, step)
        if settings.bars_per_line and not line.backing:
            beats, slot = settings.bars_per_line * bar, 2 * SLOT
            while (syllables + 2) * slot + held > beats:   # 2: the last word drawn out, the breath
                slot /= 2
                if slot * 60 / settings.bpm * FASTEST < 1:
                    raise UserError(f"{name_of(line)}: {syllables} syllables do not fit into {beats:g} beats "
                                    f"at {settings.bpm:g} bpm; expected more bars per line, or fewer words")
        starts = [round_up(sung + SLOT / 2, 1.0) if line.backing and sung else at]
        for s in size:
            starts.append(starts[-1] + s.syllables * slot + s.holds)
        sung = starts[-1] = min(starts[-1] + max(slot, 1.0), starts[0] + beats - slot)
        placed.append(starts)
        at = max(at, round_up(sung + slot, step)) if line.backing else at + beats
        shortest = min(shortest, slot)
    return placed, shortest


def fit_run(lines: Sequence[Line], sizes: Sequence[Sequence[Size]], room: tuple[float, float], fill: bool,
            settings: PlanSettings) -> list[Line]:
    """Time lines on the grid: at bpm, or faster to end before room[1]; with fill slower, to end there.

    A tempo at which syllables would be faster than FASTEST is that at which they are as fast.

    Raises: UserError if they would have to be sung faster than FASTEST.
    """
    placed, slot = layout(lines, sizes, settings)
    start, beats = room[0], placed[-1][-1]
    usual = max(60 / settings.bpm, 1 / (slot * FASTEST))
    beat_s, needed = (room[1] - start) / beats, beats / slot / FASTEST + 0.005
    if beat_s * slot * FASTEST < 1 - 1e-9:
        names = f"{name_of(lines[0])} to {name_of(lines[-1])}" if len(lines) > 1 else name_of(lines[0])
        raise UserError(f"{names}: at {FASTEST:g} syllables a second, the fastest, expected " + (
            f"a duration of {start + needed + TAIL_S:.2f} s or more, not {settings.duration:g} s" if fill else
            f"{needed:.2f} s or more before the next known time, not {max(0.0, room[1] - start):.2f} s"))
    beat_s = min(beat_s, usual * (SLOWER if fill else 1))
    timed = []
    for line, grid in zip(lines, placed):
        times = [start + beat * beat_s for beat in grid]
        words = tuple(dataclasses.replace(w, start=a, end=b) for w, a, b in zip(line.words, times, times[1:]))
        timed.append(dataclasses.replace(line, words=words) if words else
                     dataclasses.replace(line, start=times[0], end=times[1]))
    return timed


# Lines with a time: a stamp, or a timed word.

def starts_of(line: Line) -> list[float | None]:
    """The known starts of a line's words; the line's own is the first word's."""
    starts = [word.start for word in line.words] or [None]
    return [line.start if starts[0] is None else starts[0], *starts[1:]]


def ends_of(line: Line) -> list[float | None]:
    """The known ends of a line's words; the line's own is the last word's."""
    ends = [word.end for word in line.words] or [None]
    return [*ends[:-1], line.end if ends[-1] is None else ends[-1]]


def first_time(line: Line) -> tuple[int, float] | None:
    """The first known time of a line and how many words stand before it."""
    return next(((k, t) for k, t in enumerate(starts_of(line)) if t is not None), None)


def next_time(lines: Sequence[Line], weights: Sequence[Sequence[float]], i: int) -> tuple[float, float]:
    """The next known time after line i (inf: none) and the weight of the words in between."""
    between = 0.0
    for line, weight in zip(lines[i + 1:], weights[i + 1:]):
        if (first := first_time(line)) is not None:
            return first[1], between + sum(weight[:first[0]])
        between += sum(weight)
    return math.inf, between


def own_pace(lines: Sequence[Line], sizes: Sequence[Sequence[Size]]) -> float:
    """Seconds of this song per weight, from its lines' known times.

    Where ends are known, it is the median of these lines. Stamps alone give the longest that a line can be:
    the quickest PACKED of the singing is taken at face value, the rest for lines with a pause after them.
    """
    weights = [[s.weight for s in size] for size in sizes]
    total, syllables = sum(map(sum, weights)), sum(s.syllables for size in sizes for s in size)
    real, stamped = [], []                                 # (seconds per weight, weight)
    for i, line in enumerate(lines):
        first = first_time(line)
        if first is None or not line.words:
            continue
        own, end = sum(weights[i][first[0]:]), ends_of(line)[-1]
        ahead, between = next_time(lines, weights, i)
        if end is not None:
            real.append(((end - first[1]) / own, own))
        elif ahead < math.inf:
            stamped.append(((ahead - first[1] - BREATH_S) / (own + between), own + between))
    usual, left = syllables / total, (0.5 if real else PACKED) * sum(w for _, w in real or stamped)
    for pace, weight in sorted(real or stamped):
        left -= weight
        if left <= 0:
            return min(max(pace, usual / FASTEST), usual * SLOWEST_S)
    return usual * SYLLABLE_S


def latest_end(start: float, stop: float, own: float, other: float) -> float:
    """Where words that begin at start must end so that `other` and a breath fit in before stop, too."""
    if stop == math.inf:
        return stop
    room = (stop - start) * own / (own + other)
    return start + room - min(BREATH_S, BREATH_SHARE * max(room, 0.0))


def fill_line(line: Line, weights: Sequence[float], pace: float, room: tuple[float, float],
              between: float) -> Line:
    """Time the words of a line of which at least one time is known.

    Words between two known times share the time between them, by their weights; the others take `pace`, or
    less where the line's neighbours leave less room.

    Args: weights, of the words; pace, seconds per weight; room, end of the words before and next known time;
        between, weight of the words that have to fit in before that, too.
    Raises: UserError naming the words that have no room.
    """
    starts, ends, n = starts_of(line), ends_of(line), len(line.words)
    # Where word k starts, or else the one before it ends; at n, where the line ends. None: not known.
    cuts = [s if s is not None else e for s, e in zip([*starts, None], [None, *ends])]
    known = [k for k in range(n + 1) if cuts[k] is not None]
    if cuts[0] is None:
        own, to = sum(weights[:known[0]]), cuts[known[0]]
        breath = min(BREATH_S, BREATH_SHARE * max(to - room[0], 0.0)) if room[0] else 0.0
        cuts[0], known = max(room[0] + breath, to - pace * own), [0, *known]
    if cuts[n] is None:
        own, at = sum(weights[known[-1]:]), cuts[known[-1]]
        cuts[n], known = min(latest_end(at, room[1], own, between), at + pace * own), [*known, n]
    words: list[Word] = []
    for a, b in zip(known, known[1:]):
        if b == a + 1 and line.words[a].timed:
            words.append(line.words[a])
            continue
        if cuts[b] - cuts[a] < SHORTEST_S * (b - a):
            said = " ".join(word.word for word in line.words[a:b])
            raise UserError(f'{name_of(line)}: no room for "{said}" between {cuts[a]:.2f} s and '
                            f"{cuts[b]:.2f} s; expected {SHORTEST_S * (b - a):.2f} s or more, times in the "
                            "order of words")
        seconds = (cuts[b] - cuts[a]) / sum(weights[a:b])
        times = [cuts[a] + seconds * sum(weights[a:k]) for k in range(a, b)] + [cuts[b]]
        for k, start, end in zip(range(a, b), times, times[1:]):
            if ends[k] is None:                            # a pause inside a line is not sung through
                end = min(end, start + LONGEST * pace * weights[k])
            words.append(dataclasses.replace(line.words[k], start=start, end=end))
    return dataclasses.replace(line, words=tuple(words))


def plan(lyrics: Lyrics, phonemizer: Callable[[str], str], settings: PlanSettings) -> Lyrics:
    """Give every word a start and an end; known ones stay as they are.

    Lines of other voices that sound while the lead sings are timed by themselves.

    Args: phonemizer, a word's IPA, "" for one that it cannot read; settings, of lines without any time.
    Returns: the same lines and words; words that had no times do not overlap. Sections without words among
        lines without times get times, too.
    Raises: UserError if words do not fit between known times, into their bars, or into the duration.
    """
    if not lyrics.words:
        return lyrics
    together = answers(lyrics)
    lines = list(lyrics.only(together).lines)
    sizes = [[size_of(word, phonemizer, k == len(line.words)) for k, word in enumerate(line.words, 1)]
             for line in lines]
    weights = [[s.weight for s in size] for size in sizes]
    pace, clock, i = own_pace(lines, sizes), 0.0, 0
    end_s = settings.duration or math.inf
    while i < len(lines):
        j = i + 1
        if first_time(lines[i]) is not None:
            ahead, between = next_time(lines, weights, i)
            if not all(word.timed for word in lines[i].words):
                lines[i] = fill_line(lines[i], weights[i], pace, (clock, min(ahead, end_s)), between)
        else:
            while j < len(lines) and first_time(lines[j]) is None:
                j += 1
            if any(line.words for line in lines[i:j]):
                own = sum(map(sum, weights[i:j]))
                ahead, between = next_time(lines, weights, i)
                start = settings.start_s
                if clock:
                    start = clock + min(60 / settings.bpm, BREATH_SHARE * (ahead - clock))
                until = latest_end(start, ahead, own, between - own + sum(weights[i]))
                fill = ahead == math.inf and end_s < math.inf
                lines[i:j] = fit_run(lines[i:j], sizes[i:j], (start, end_s - TAIL_S if fill else until), fill,
                                     settings)
        times = [t for line in lines[i:j] for t in (line.start, *ends_of(line)) if t is not None]
        clock, i = max([clock, *times]), j
    if clock > end_s:
        raise UserError(f"the last word ends at {clock:.2f} s; expected a duration of that or more, "
                        f"not {end_s:.2f} s")
    rest, done = iter(lines), []
    for line, with_others in zip(lyrics.lines, together):
        if not with_others and not all(word.timed for word in line.words):
            size = [size_of(word, phonemizer, k == len(line.words)) for k, word in enumerate(line.words, 1)]
            line = fill_line(line, [s.weight for s in size], pace, (0.0, math.inf), 0.0)
        done.append(next(rest) if with_others else line)
    return dataclasses.replace(lyrics, lines=tuple(done))


def planned(lyrics: Lyrics, phonemizer: Callable[[str], str], settings: PlanSettings, path: Path) -> Lyrics:
    """As `plan`; its errors name the file that the lyrics are from."""
    try:
        return plan(lyrics, phonemizer, settings)
    except UserError as e:
        raise UserError(f"{path}: {e}") from None


def hundredths(word: Word) -> Word:
    """A word at times that a plan's file can hold, so that the file sings the same song."""
    start, end = round(word.start, 2), round(word.end, 2)
    return word if (start, end) == (word.start, word.end) else dataclasses.replace(
        word, start=start, end=end, phones=(), syllables=())
