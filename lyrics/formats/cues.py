"""SubRip (SRT) and WebVTT: cues, `hh:mm:ss.fff --> hh:mm:ss.fff` and then their text.

In WebVTT the text may have a stamp in front of each word.
"""

import functools
import html
import itertools
import re

from lyrics.formats.shared import SECTION, Draft, FileLines, Piece, clock, cut, guard, seconds
from lyrics.formats.shared import timed_rows
from lyrics.timing import Lyrics

CUE = re.compile(r"\s*([0-9:.,]+)\s*-->\s*([0-9:.,]+)(?:\s|$)")
STAMP = re.compile("<((?:[0-9]{1,4}:)?[0-9]{1,2}:[0-9]{1,2}[.,][0-9]{1,9})>")
TAG = re.compile(r"</?[a-zA-Z][^<>]*>|\{\\[^{}]*\}")
NO_CUE = re.compile(r"(WEBVTT|NOTE|STYLE|REGION)(\s|$)")


def read_srt(text: str, draft: Draft, vtt: bool = False) -> None:
    """A cue is a line, however many rows it is shown in."""
    def bare(row: str) -> str:
        return html.unescape(TAG.sub("", row)) if vtt else TAG.sub("", row)

    for blank, block in itertools.groupby(enumerate(text.split("\n"), 1), lambda row: not row[1].strip()):
        block = list(block)
        if blank or vtt and NO_CUE.match(block[0][1]) and not any("-->" in row for _, row in block):
            continue
        if "-->" not in block[0][1] and len(block) > 1:
            del block[0]                                 # a number or a name
        number = draft.place = block[0][0]
        if not (cue := CUE.match(block[0][1])):
            raise ValueError("expected a cue, hh:mm:ss.fff --> hh:mm:ss.fff and its text behind it")
        start, end, rows = seconds(cue[1]), seconds(cue[2]), []
        for draft.place, row in block[1:]:
            if "-->" in row:
                raise ValueError("a cue inside a cue; expected an empty line before it")
            if SECTION.fullmatch(bare(row).strip()):
                draft.add([Piece(bare(row))])
            else:
                rows.append(row)
        draft.place = number
        pieces = cut(" ".join(rows), STAMP, seconds, start, end)
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
        yield from (str(i), times, *row.heading, row.text(), "")


def write_vtt(lyrics: Lyrics) -> FileLines:
    """Cues with word stamps."""
    escape = functools.partial(html.escape, quote=False)
    yield "WEBVTT\n"
    for row in timed_rows(lyrics, "vtt", lambda text: escape(guard(text))):
        text = row.stamped(lambda time: f"<{clock(time)}>")
        yield from (f"{clock(row.start)} --> {clock(row.end)}", *map(escape, row.heading), text, "")
