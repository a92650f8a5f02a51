"""UltraStar: notes in beats, `: start length pitch text`, and `- beat` between lines."""

import codecs
import dataclasses
import re

from config import UserError
from lyrics.formats.shared import Draft, FileLines, Piece, decimal, plainly, timed_rows
from lyrics.timing import Lyrics

NOTE = re.compile(r"([:*FRG])\s*(-?[0-9]{1,9})\s+([0-9]{1,9})\s+-?[0-9]{1,9}(?: (.*))?", re.DOTALL)
BREAK = re.compile(r"-\s*(-?[0-9]{1,9})(?:\s+(-?[0-9]{1,9}))?\s*")
BEATS = 100                    # a second, as written
UNKNOWN = "Unknown"            # written for a title or artist that is not known: games refuse files without
# ü å Å ø Ø in CP865, which CP1252 has no letters for; and CP1252's letters. ISO-8859-1 is a part of CP1252.
NORDIC, WESTERN = re.compile(rb"[\x81\x86\x8f\x9b\x9d]"), re.compile(rb"[\xc0-\xff]")
ENCODINGS = ("cp1252", "cp865", "cp437", "cp850", "cp1250", "cp1251", "iso8859-1", "iso8859-2", "iso8859-15",
             "utf-8")


def older(content: bytes) -> str | None:
    """The text of an UltraStar file that is not UTF-8: in the encoding that it names, else CP1252 or CP865.

    Returns: None if this is no such file. Raises: ValueError for an encoding that is unknown or wrong.
    """
    if not re.search(rb"(?mi)^#BPM:", content):
        return None
    named = re.search(rb"(?mi)^#ENCODING:[ \t]*([\w-]+)", content)
    if named and named[1].lower() != b"auto":
        name = named[1].decode("ascii", "replace")
        try:
            known = codecs.lookup(name).name
        except LookupError:
            known = ""
        if known not in ENCODINGS:
            raise ValueError(f"#ENCODING:{name[:40]}; expected one of {', '.join(ENCODINGS)}")
        return content.decode(known)
    return content.decode("cp865" if NORDIC.search(content) and not WESTERN.search(content) else "cp1252")


def read_ultrastar(text: str, draft: Draft) -> None:
    """A duet's voices P1 and P2 are merged in order of time; a line that both have is everyone's.

    If notes lie before the song's start, all are moved so that the first one starts there.
    """
    head, notes, base, lines = {"gap": 0.0, "relative": "no"}, [], 0, []

    def end_line() -> None:
        if notes:
            lines.append((draft.voice, [*notes]))
            notes.clear()

    for line in draft.numbered(text):
        if line.startswith("#"):
            key, _, value = line[1:].partition(":")
            key = key.strip().lower()
            head[key] = decimal(value, f"#{key.upper()}") if key in ("bpm", "gap") else value.strip()
            if key == "bpm" and not 1 <= head["bpm"] <= 1e6:
                raise ValueError(f"#BPM {value[:20]}; expected 1 to a million quarters of beats a minute")
        elif "bpm" in head and (note := NOTE.fullmatch(line)):
            first = base + int(note[2])
            beats = (first, first + int(note[3]))
            times = [round(head["gap"] / 1000 + beat * 15 / head["bpm"], 6) for beat in beats]
            notes.append(Piece(note[4] or "", *times, draft.place))
        elif pause := BREAK.fullmatch(line):
            end_line()
            if head["relative"].lower() == "yes":
                base += int(pause[2] or pause[1])
        elif re.fullmatch(r"P\s*[1-3]\s*", line):        # another voice; 3: both
            end_line()
            draft.voice, base = line.replace(" ", "").strip().replace("P3", ""), 0
        elif line.strip() == "E":
            break
        elif line.strip():
            raise ValueError(f'"{line[:40]}"; expected #BPM:..., then notes like ": 12 4 60 text"')
    end_line()
    early = min((note.start for _, line in lines for note in line), default=0.0)
    for draft.voice, line in lines:
        draft.place = line[0].number
        draft.add(note._replace(start=round(note.start - min(0.0, early), 6),
                                end=round(note.end - min(0.0, early), 6)) for note in line)
    draft.title, draft.artist = (head.get(key, "").removeprefix(UNKNOWN) for key in ("title", "artist"))
    draft.sort()
    same = {}                                            # the voices of each line
    for line in draft.lines:
        same.setdefault(dataclasses.replace(line, voice=""), (line, set()))[1].add(line.voice)
    draft.lines = [line if len(voices) < 2 else dataclasses.replace(line, voice="")
                   for line, voices in same.values()]


def write_ultrastar(lyrics: Lyrics) -> FileLines:
    """With hundredths of a second as beats; the pitches are all 0. Two voices have a part each."""
    title, artist = (plainly(text) or UNKNOWN for text in (lyrics.title, lyrics.artist))
    yield f"#TITLE:{title}\n#ARTIST:{artist}\n#BPM:{15 * BEATS}\n#GAP:0"
    rows = [*timed_rows(lyrics, "ultrastar", all_words=True)]
    names = sorted({row.line.voice for row in rows} - {""})
    if len(names) > 2:
        raise UserError(f"ultrastar: has two voices at most, not {', '.join(names)}")
    for number, name in enumerate(names or [""], 1):
        if names:
            yield f"P{number}"
        last = None
        for row in rows:
            if row.line.voice not in ("", name):
                continue
            if last is not None:
                yield f"- {last}"
            for gap, text, *times in row.syllables():
                start, last = (round(time * BEATS) for time in times)
                yield f": {start} {last - start} 0 {gap}{text}"
    yield "E"
