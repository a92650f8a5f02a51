"""Plain text, whose words get their times from a plan."""

import dataclasses
import re

from lyrics.formats.shared import AD_LIB, SECTION, Draft, FileLines, Piece, rows
from lyrics.timing import Line, Lyrics

# Plain text: the names of sections that nobody sings, how often a section or a line is sung.
WORDLESS = re.compile(r"(?i)(intro|break|solo|outro|instrumental|interlude)\b")
TIMES = r"(?i:\s*[x×]\s*(1?[0-9])|\s*(1?[0-9])\s*[x×])\s*"
SECTION_TIMES, LINE_TIMES = re.compile(rf"\s\(?{TIMES}\)?$"), re.compile(rf"[(\[]{TIMES}[)\]]\s*$")


def counted(text: str, times: re.Pattern) -> tuple[str, int]:
    """A text without its "(x2)", and how often it is sung."""
    found = times.search(text)
    if not found or not text[:found.start()].strip():
        return text, 1
    return text[:found.start()], max(1, int(found[1] or found[2]))


def read_plain(text: str, draft: Draft) -> None:
    """Lines as they stand, those with (x2) twice, and sections with x2, too.

    A section without lines has those of the last one of its name; without such a one it is an empty line, for
    which a plan leaves room. A blank line, too, ends a section whose name says that nobody sings, such as
    [Intro].
    """
    sung: dict[str, list[Line]] = {}                     # the last sections of each name
    first, times, heading = 0, 1, 0                      # of the open one; number of one that has no line yet
    for row in draft.numbered(f"{text}\n[]"):            # a last heading: the end of the text ends a section
        line, often = counted(row, LINE_TIMES)
        section = SECTION.fullmatch(line.strip())
        if section or not line.strip() and WORDLESS.match(draft.section):
            name = draft.section.partition(":")[0].strip().casefold()
            if heading:
                again = [dataclasses.replace(line, section=draft.section) for line in sung.get(name, ())]
                draft.lines += again or [Line((), section=draft.section, number=heading)]
            own = draft.lines[first:]
            draft.lines += own * (times - 1)
            if name and own:
                sung[name] = own
            first, times, heading = len(draft.lines), 1, draft.place if section else 0
        if section:
            draft.add([Piece(line)])
            draft.section, times = counted(draft.section, SECTION_TIMES)
            times = max(times, often)
            continue
        before = len(draft.lines)
        for part in re.split(f"({AD_LIB})", line):
            draft.add([Piece(part)])
        if len(draft.lines) > before:
            draft.lines += draft.lines[before:] * (often - 1)
            heading = 0


def write_plain(lyrics: Lyrics) -> FileLines:
    """Lines as they stand, and an empty line before each section but the first line's."""
    gap = ""
    for row in rows(lyrics):
        for line in (*(gap + heading for heading in row.heading), row.text()):
            if line:
                yield line
                gap = "\n"
