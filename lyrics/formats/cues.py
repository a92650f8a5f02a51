"""SubRip (SRT) and WebVTT: cues, `hh:mm:ss.fff --> hh:mm:ss.fff` and then their text.

In WebVTT the text may have a stamp in front of each word.
"""

import functools
import html
import itertools
import re
from collections.abc import Callable
from typing import NamedTuple

from lyrics.formats.shared import SECTION, Draft, FileLines, Piece, clock, cut, guard, seconds
from lyrics.formats.shared import timed_rows
from lyrics.timing import Lyrics

CUE = re.compile(r"\s*([0-9:.,]+)\s*-->\s*([0-9:.,]+)(?:\s|$)")
STAMP = re.compile("<((?:[0-9]{1,4}:)?[0-9]{1,2}:[0-9]{1,2}[.,][0-9]{1,9})>")
TAG = re.compile(r"</?[a-zA-Z][^<>]*>|\{\\[^{}]*\}")
NO_CUE = re.compile(r"(WEBVTT|NOTE|STYLE|REGION)(\s|$)")


class Cue(NamedTuple):
    """A cue: its line in the file, its times, and its rows with theirs."""
    number: int
    start: float
    end: float
    rows: list[tuple[int, str]]


def cues_of(text: str, draft: Draft, vtt: bool) -> list[Cue]:
    """The cues of a file; a block without a time behind one is its continuation. Raises: ValueError."""
    cues = []
    for blank, block in itertools.groupby(enumerate(text.split("\n"), 1), lambda row: not row[1].strip()):
        block = list(block)
        timed = any("->" in row for _, row in block)
        if blank or vtt and NO_CUE.match(block[0][1]) and not timed:
            continue
        if cues and not timed:
            if len(block) > 1 or block[0][1].strip() != str(len(cues) + 1):      # the next one's number
                cues[-1].rows.extend(block)
            continue
        if "-->" not in block[0][1] and len(block) > 1:
            del block[0]                                 # a number or a name
        draft.place = block[0][0]
        if not (cue := CUE.match(block[0][1])):
            raise ValueError("expected a cue, hh:mm:ss.fff --> hh:mm:ss.fff and its text behind it")
        cues.append(Cue(block[0][0], seconds(cue[1]), seconds(cue[2]), block[1:]))
        for draft.place, row in block[1:]:
            if "-->" in row:
                raise ValueError("a cue inside a cue; expected an empty line before it")
    return cues


def unrolled(cues: list[Cue], plain: Callable[[str], str]) -> list[Cue]:
    """The cues without the rows of the one before that automatic captions still show above a new row.

    Captions roll if most cues of several rows begin with the last row of the cue before, and if this is so
    twice, or a cue of a few hundredths of a second does nothing else. In others a repeated row is sung again.
    """
    shown, rolls, rows = [], 0, 0
    cues = [cue._replace(rows=[row for row in cue.rows if plain(row[1])]) for cue in cues]
    texts = [[plain(row) for _, row in cue.rows] for cue in cues]
    for before, now in itertools.pairwise(texts):
        rows += bool(before and len(now) > 1)
        rolls += bool(before and len(now) > 1 and before[-1] == now[0])
    flashes = any(now and cue.end - cue.start < 0.05 and before[-len(now):] == now
                  for before, now, cue in zip(texts, texts[1:], cues[1:]))
    if 2 * rolls <= rows or rolls < 2 and not flashes:
        return cues
    for before, now, cue in zip([[], *texts], texts, cues):
        again = max(k for k in range(len(now) + 1) if not k or before[-k:] == now[:k])
        shown.append(cue._replace(rows=cue.rows[again:]))
    return shown


def read_srt(text: str, draft: Draft, vtt: bool = False) -> None:
    """A cue is a line, however many rows it is shown in. Where most cues have one word, they time it."""
    def bare(row: str) -> str:
        return html.unescape(TAG.sub("", row)) if vtt else TAG.sub("", row)

    cues = unrolled(cues_of(text, draft, vtt), lambda row: bare(STAMP.sub("", row)).strip())
    single = [len(cue.rows) == 1 and len(bare(cue.rows[0][1]).split()) == 1 for cue in cues]
    most = 2 * sum(single) > len(cues)
    for (number, start, end, shown), alone in zip(cues, single):
        rows = []
        for draft.place, row in shown:
            if SECTION.fullmatch(bare(row).strip()):
                draft.add([Piece(bare(row))])
            else:
                rows.append(row)
        draft.place = number
        pieces = cut(" ".join(rows), STAMP, seconds, start, end)
        if alone and most and len(pieces) == 1:
            pieces = [pieces[0]._replace(start=start, end=end)]
        draft.add([piece._replace(text=bare(piece.text)) for piece in pieces], start, end)


def read_vtt(text: str, draft: Draft) -> None:
    """As read_srt; blocks of comments and styles are left out."""
    if not NO_CUE.match(text):
        draft.place = 1
        raise ValueError(f'expected WEBVTT, not "{text[:20]}"')
    read_srt(text, draft, vtt=True)


def write_srt(lyrics: Lyrics) -> FileLines:
    """Numbered cues, a line each."""
    for i, row in enumerate(timed_rows(lyrics, "srt", guard), 1):
        times = f"{clock(row.start)} --> {clock(row.end)}".replace(".", ",")
        yield from (str(i), times, *row.heading, guard(row.text()), "")        # syllables may make an arrow


def write_vtt(lyrics: Lyrics) -> FileLines:
    """Cues with word stamps."""
    escape = functools.partial(html.escape, quote=False)
    yield "WEBVTT\n"
    for row in timed_rows(lyrics, "vtt", lambda text: escape(guard(text))):
        text = row.stamped(lambda time: f"<{clock(time)}>")
        yield from (f"{clock(row.start)} --> {clock(row.end)}", *map(escape, row.heading), text, "")
