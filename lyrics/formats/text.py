"""Plain text, whose words get their times from a plan."""

import re

from lyrics.formats.shared import SECTION, Draft, FileLines, Piece, rows
from lyrics.timing import Line, Lyrics

# Plain text: the names of sections that nobody sings.
WORDLESS = re.compile(r"(?i)(intro|break|solo|outro|instrumental|interlude)\b")


def read_plain(text: str, draft: Draft) -> None:
    """Lines as they stand. A section without any is an empty line, for which a plan leaves room.

    A blank line, too, ends a section whose name says that nobody sings, such as [Intro].
    """
    heading = 0                                          # the number of one that has no line yet
    for line in draft.numbered(f"{text}\n[]"):           # a last heading: the end of the text ends a section
        section = SECTION.fullmatch(line.strip())
        if section or not line.strip() and WORDLESS.match(draft.section):
            if heading:
                draft.lines.append(Line((), section=draft.section, number=heading))
            heading = draft.place if section else 0
        if not draft.add([Piece(line)]) and not section:
            heading = 0


def write_plain(lyrics: Lyrics) -> FileLines:
    """Lines as they stand, and an empty line before each section but the first line's."""
    gap = ""
    for row in rows(lyrics):
        for line in (*(gap + heading for heading in row.heading), row.text()):
            if line:
                yield line
                gap = "\n"
