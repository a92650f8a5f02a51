"""Praat's TextGrid: tiers of intervals, here for lines, words and phones."""

import dataclasses
import itertools
import re
from collections.abc import Iterator

from config import UserError
from lyrics.formats.shared import Draft, FileLines, Piece, add_labels, add_segments, holders, plainly
from lyrics.formats.shared import timed_rows, words_from
from lyrics.pronounce import ipa
from lyrics.timing import Lyrics, Part, check_span

PAUSES = {"", "sil", "sp", "spn", "<eps>", "<sil>", "<p:>", "_"}
LINES = ("line", "lines", "segments", "sentences", "phrases", "utterances")      # how tiers' names end
WORDS = ("word", "words")
PHONES = ("phone", "phones", "phoneme", "phonemes")
# A text in quotes; a number by itself; a comment, or anything else.
VALUE = re.compile(r'"([^"]*(?:""[^"]*)*)"'
                   r'|(?<!\S)(-?[0-9]{1,15}(?:\.[0-9]{1,30})?(?:[eE][-+]?[0-9]{1,3})?)(?!\S)'
                   r'|(?<!\S)![^\n]*|[^\s"]+')


def values_of(text: str) -> Iterator[tuple[int, str | float]]:
    """The texts and numbers of a Praat file with their lines; in its long form all else is comment."""
    line, last = 1, 0
    for token in VALUE.finditer(text):
        line, last = line + text.count("\n", last, token.start()), token.start()
        if token.lastindex:
            yield line, token[1].replace('""', '"') if token.lastindex == 1 else float(token[2])


def tiers_of(text: str, draft: Draft) -> list[tuple[str, list[Piece]]]:
    """The interval tiers: names, and what is no pause. Raises: ValueError."""
    values, tiers = values_of(text), []
    draft.place = 1

    def take(kind: type) -> str | float:
        draft.place, value = next(values, (draft.place, None))
        if not isinstance(value, kind):
            found = "the end of the file" if value is None else f'"{str(value)[:40]}"'
            raise ValueError(f"{found}; expected a {'text in quotes' if kind is str else 'number'}")
        return value

    if (take(str), take(str)) not in itertools.product(("ooTextFile", "ooTextFile short"), ("TextGrid",)):
        draft.place = 1
        raise ValueError('expected "ooTextFile" and "TextGrid"')
    take(float), take(float)                             # from when to when
    for _ in range(int(min(take(float), 1e6))):
        kind, name, pieces = take(str), take(str), []
        take(float), take(float)
        for _ in range(int(min(take(float), 1e9))):
            times = take(float), take(float) if kind == "IntervalTier" else None
            label = take(str).strip()
            if label.lower() not in PAUSES:
                check_span(*times)
                pieces.append(Piece(label, *times, draft.place))
        if kind == "IntervalTier":
            tiers.append((name.strip().lower(), pieces))
    return tiers


def read_textgrid(text: str, draft: Draft) -> None:
    """Words of the tier "words" or else of the first, their phones and lines of tiers of such names."""
    tiers = tiers_of(text, draft)
    lines, words, phones = (next((pieces for name, pieces in tiers if name.endswith(endings)), None)
                            for endings in (LINES, WORDS, PHONES))
    if words is None:
        words = next((pieces for _, pieces in tiers if pieces is not phones and pieces is not lines), None)
    if words is None and lines is None:
        draft.place = ""
        raise ValueError("no interval tier of words")
    if lines is None:
        add_labels(draft, words)
    else:
        found = []
        for piece in words or ():
            draft.place = piece.number
            found += words_from([piece])
        add_segments(draft, found, lines)
    add_phones(draft, phones or [])


def add_phones(draft: Draft, phones: list[Piece]) -> None:
    """Give each word the phones whose middles it holds."""
    words = [word for line in draft.lines for word in line.words]
    held = {}                                            # by a word's index: its first phone's line, and all
    for i, (label, start, end, number) in zip(holders(phones, words), phones):
        draft.place = number
        held.setdefault(i, (number, []))[1].append(Part(ipa(label), start, end))
    held.pop(None, None)                                 # phones in no word
    for i, (number, parts) in held.items():
        draft.place = number
        phoneme = "".join(part.text for part in parts)
        words[i] = dataclasses.replace(words[i], phoneme=phoneme, phones=tuple(parts))
    draft.lines = [*Lyrics(tuple(draft.lines)).with_words(words).lines]


def write_textgrid(lyrics: Lyrics) -> FileLines:
    """Tiers lines, words and, if there are any, phones. Raises: UserError for words at the same time."""
    rows = list(timed_rows(lyrics, "textgrid"))
    longest = max((row.end for row in rows), default=0.0)
    tiers = {"lines": [], "words": [], "phones": []}
    for row, later in zip(rows, [*(row.start for row in rows[1:]), longest]):
        tiers["lines"].append(Piece(row.text(), row.start, max(row.start, min(row.end, later))))
        tiers["words"] += row.labels()
        tiers["phones"] += [Piece(plainly(part.text), part.start, part.end)
                            for word in (row.line.words if row.timed else ()) for part in word.phones]
    tiers = {name: pieces for name, pieces in tiers.items() if pieces or name != "phones"}
    yield 'File type = "ooTextFile"\nObject class = "TextGrid"\n'
    yield from (0, longest, "<exists>", len(tiers))
    for name, pieces in tiers.items():
        intervals, last = [], 0.0
        for text, start, end, _ in pieces:
            if start < last or end <= start:
                raise UserError(f'textgrid: "{text[:40]}" has no length, or begins before the last one ends')
            if start > last:
                intervals.append(("", last, start))
            intervals.append((text, start, end))
            last = end
        if last < longest:
            intervals.append(("", last, longest))
        yield from ('"IntervalTier"', f'"{name}"', 0, longest, len(intervals))
        for text, start, end in intervals:
            yield from (round(start, 6), round(end, 6), '"{}"'.format(text.replace('"', '""')))
