"""New words for a song that has times: words that stay keep theirs, new ones get some.

Read `revised` (which words stay), then `with_room` (what gives way where new words have no room).
"""

import dataclasses
import difflib
import itertools
import math
from pathlib import Path

from lyrics.plan import (FASTEST, PlanSettings, Size, ends_of, first_time, hundredths, plan, planned,
                         round_up, size_of, starts_of)
from lyrics.pronounce import Reader, bare, spelling
from lyrics.timing import Line, Lyrics, Word
from lyrics.voices import answers


def revised(old: Lyrics, given: Lyrics, reader: Reader, settings: PlanSettings,
            path: Path) -> tuple[Lyrics, list[int]]:
    """The given words, all with times.

    A word that stays keeps its times and sounds. One that is replaced by one word leaves it its times; other
    words replaced by others share their time. The rest is planned around them. But words of which any have
    times have these alone.
    Args: path of the given words, for messages.
    Returns: the lyrics; for each word the place of the old one that it stands for, or stands before.
    Raises: UserError if words have no room.
    """
    def whole(word: Word) -> Word:
        return dataclasses.replace(word, word=spelling(word, reader) if word.syllables else word.word,
                                   phones=(), syllables=())

    new = given.sung().changed(whole)
    before, words, places = old.words, list(new.words), [0] * len(new.words)
    alike = difflib.SequenceMatcher(None, *([bare(word.word) or word.word for word in each]
                                            for each in (before, words)), autojunk=False)
    own_times = any(map(first_time, new.lines))
    for change, a, b, c, d in alike.get_opcodes():
        places[c:d] = range(a, b) if b - a == d - c else [a] * (d - c)
        for i, j in zip(range(a, b), range(c, d)):
            kept = {}
            if not own_times and (b - a == d - c or j == c):
                kept = {"start": before[i].start, "end": before[i].end if b - a == d - c else None}
            if change == "equal" and words[j].phoneme is None:
                kept["phoneme"] = before[i].phoneme
            words[j] = dataclasses.replace(words[j], **kept)
    known = new.with_words(words)
    roomy = known if own_times else with_room(known, reader, settings)
    return planned(roomy, reader, settings, path).changed(hundredths), places


# Room for new words

def with_room(lyrics: Lyrics, reader: Reader, settings: PlanSettings) -> Lyrics:
    """Lyrics in which words without times have room.

    Where they have too little in their line, all words of the line share its time. Where that is too little,
    too, or new lines do not fit, all that comes later moves back by whole beats.
    """
    beat_s, clock, moved = 60 / settings.bpm, 0.0, 0.0       # clock: where the last line ends
    lines, together = list(lyrics.lines), answers(lyrics)
    for i, line in enumerate(lines):
        lines[i] = line = later(line, moved)
        new = first_time(line) is None
        if not together[i] or new and i and first_time(lines[i - 1]) is None:
            continue                                         # another voice's, or of the run of lines before
        following = itertools.compress(lines[i + 1:], together[i + 1:])
        ahead = next((found[1] + moved for found in map(first_time, following) if found), math.inf)
        if new:                                              # at its tempo, a beat before and after it
            run = [line, *itertools.takewhile(lambda line: first_time(line) is None, lines[i + 1:])]
            words = plan(Lyrics(tuple(run)), reader, settings).words
            end = clock + words[-1].end - settings.start_s + 2 * beat_s if words else clock
        else:
            lines[i], end = squeezed(line, [size_of(word, reader) for word in line.words], clock, ahead)
        moved += round_up(max(0.0, end - ahead), beat_s)
        clock = max(clock, end)
    return dataclasses.replace(lyrics, lines=tuple(lines))


def later(line: Line, seconds: float) -> Line:
    """A line whose known times are later."""
    def moved(part: Word | Line) -> dict:
        return {name: time if time is None else time + seconds
                for name, time in (("start", part.start), ("end", part.end))}

    words = tuple(dataclasses.replace(word, **moved(word)) for word in line.words)
    return dataclasses.replace(line, words=words, **moved(line))


def squeezed(line: Line, sizes: list[Size], clock: float, ahead: float) -> tuple[Line, float]:
    """A line in which no word is too fast, and where it ends.

    Args: sizes of its words; clock, where the line before ends; ahead, where the next one starts.
    """
    count, least = len(line.words), [size.syllables / FASTEST for size in sizes]
    cuts = [start if start is not None else end
            for start, end in zip([*starts_of(line), None], [None, *ends_of(line)])]
    known = [k for k, cut in enumerate(cuts) if cut is not None]
    start, end = cuts[known[0]], cuts[known[-1]]
    spans = itertools.pairwise([(0, clock)] * (known[0] > 0) + [(k, cuts[k]) for k in known]
                               + [(count, ahead)] * (known[-1] < count))
    if all(b - a == 1 and line.words[a].timed or to - since >= sum(least[a:b])
           for (a, since), (b, to) in spans):
        return line, end
    if end - start < sum(least):                             # at the pace that it had
        new = {k for k, word in enumerate(line.words) if word.start is None}
        end = start + max(sum(least), (end - start) * sum(least) / max(
            least[0], sum(least[k] for k in range(count) if k not in new)))
    words = (dataclasses.replace(word, start=None, end=None) for word in line.words)
    return dataclasses.replace(line, words=tuple(words), start=start, end=end), end
