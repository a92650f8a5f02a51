"""LRC: [mm:ss.xx] in front of a line, <mm:ss.xx> in front of a word with a time of its own.

After a line's time its voice may stand, `v1:`; a line `[bg: ...]` is backing of the voice before it.
"""

import bisect
import dataclasses
import functools
import re

from lyrics.formats.shared import JOINER, Draft, FileLines, Piece, begin, clock, cut, decimal, guard, plainly
from lyrics.formats.shared import rows, seconds
from lyrics.timing import Lyrics

TIME = "(?:[0-9]{1,4}:[0-9]{1,2}:[0-9]{1,2}[.,][0-9]{1,9}|[0-9]{1,4}:[0-9]{1,2}(?:[.,][0-9]{0,9})?)"
FRONT = re.compile(rf"(?:\[{TIME}\]\s*)*")
STAMP = re.compile(rf"[<\[]({TIME})[>\]]")
HEADER = re.compile(r"\[([a-z]+|[A-Z][A-Za-z]|#):(.*)\]")
VOICE = re.compile(r"\s*([vP][0-9]{1,4}):\s*")
OFFSET = re.compile(r"^[ \t]*\[offset:([^\]\n]*)\]", re.MULTILINE | re.IGNORECASE)


def read_lrc(text: str, draft: Draft) -> None:
    """Lines in order of time; an empty one ends the line before. A positive offset [ms] makes all earlier."""
    offset, head, gaps = 0.0, {}, []
    if found := OFFSET.search(text):
        draft.place = text.count("\n", 0, found.start()) + 1
        offset = decimal(found[1], "offset") / 1000

    def time(stamp: str) -> float:
        return max(0.0, round(seconds(stamp) - offset, 6))

    for line in map(str.strip, draft.numbered(text)):
        header = HEADER.fullmatch(line)
        if header and header[1].lower() == "bg":
            draft.add(cut(header[2], STAMP, time, None, None), backing=True)
            continue
        if header:
            head[header[1].lower()] = header[2].strip()
            continue
        front = FRONT.match(line)[0]
        stamps = [time(stamp) for stamp in STAMP.findall(front)]
        voice, words = VOICE.match(line, len(front)), line[len(front):]
        draft.voice = ""
        if voice:
            draft.voice, words = voice[1], line[voice.end():]
        pieces = cut(words, STAMP, time, stamps[0] if stamps else None, None)
        stamps = stamps or [pieces[0].end]
        if len(stamps) > 1 and len(stamps) * len(line) > 1_000_000:
            raise ValueError(f"{len(stamps)} times {len(line)} letters; expected a million in all")
        for stamp in stamps:                             # a line that is repeated has several
            late = 0.0 if stamp is None else stamp - stamps[0]
            moved = [Piece(text, *(t if t is None else round(t + late, 6) for t in times))
                     for text, *times, _ in pieces]
            if draft.add(moved, stamp) and stamp is not None:
                gaps.append(stamp)
    draft.title, draft.artist = head.get("ti", ""), head.get("ar", "")
    times = draft.sort()
    for gap in sorted(gaps):
        i = bisect.bisect_left(times, gap) - 1
        if i >= 0 and draft.lines[i].start is not None and draft.lines[i].end is None:
            draft.lines[i] = dataclasses.replace(draft.lines[i], end=gap)


def write_lrc(lyrics: Lyrics) -> FileLines:
    """With word stamps where the words have times. An end is written unless the next line begins before."""
    stamp = functools.partial(clock, per_second=100, hours=False)
    head = {"ti": lyrics.title, "ar": lyrics.artist}
    yield from (f"[{key}:{plainly(text)}]" for key, text in head.items() if text)
    for row in rows(lyrics, guard, pauses=True):
        start, end = begin(row.line), row.line.end
        row = dataclasses.replace(row, end=end)          # not widened: what follows ends the last word
        yield from row.heading
        if row.line.words or start is not None:
            text = row.stamped(lambda time: f"<{stamp(time)}>")
            text = (f"{row.line.voice}: " if row.line.voice else JOINER * bool(VOICE.match(text))) + text
            yield text if start is None else f"[{stamp(start)}]{text}"
        if end is not None and (row.later is None or end <= row.later):
            yield f"[{stamp(end)}]"
