"""Lyrics in the formats of karaoke, subtitles and labels: `read` a file, `parse` a text, `write` a text.

    from lyrics import formats
    song = formats.read(Path("song.lrc"))
    text = formats.write(song, "ass")

KINDS is the table of formats. Each module holds the readers and writers of one family; start with shared.py,
then text.py. A reader fills a Draft; a writer iterates over rows and yields the lines of the file.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from config import UserError
from lyrics.formats import ass, cues, json, labels, lrc, text, textgrid, ttml, ultrastar
from lyrics.formats.shared import LONGEST_S, UNPRINTABLE, Draft, FileLines, span
from lyrics.timing import Line, Lyrics
from support.files import json_of, one_line, read_text


class Format(NamedTuple):
    """A format: what its files' names end in, how it is read and written, and what of a song it keeps."""
    extension: str
    reader: Callable[[str, Draft], None]
    writer: Callable[[Lyrics], FileLines]
    carries: str


TIMED = "backing lines words syllables phonemes"
KINDS = {
    "json": Format(".json", json.read_words, json.write_words, "words syllables phones phonemes"),
    "jam": Format(".json", json.read_jam, json.write_jam, f"title artist sections voices {TIMED} phones"),
    "whisper": Format(".json", json.read_whisper, json.write_whisper, TIMED),
    "lrc": Format(".lrc", lrc.read_lrc, lrc.write_lrc, f"title artist sections voices {TIMED}"),
    "vtt": Format(".vtt", cues.read_vtt, cues.write_vtt, f"sections {TIMED}"),
    "srt": Format(".srt", cues.read_srt, cues.write_srt, "sections backing lines phonemes"),
    "ass": Format(".ass", ass.read_ass, ass.write_ass,
                  "title artist sections backing lines words syllables"),
    "ttml": Format(".ttml", ttml.read_ttml, ttml.write_ttml, f"title sections voices {TIMED}"),
    "ultrastar": Format(".txt", ultrastar.read_ultrastar, ultrastar.write_ultrastar, f"title artist {TIMED}"),
    "textgrid": Format(".TextGrid", textgrid.read_textgrid, textgrid.write_textgrid,
                       "backing lines words phones phonemes"),
    "audacity": Format(".txt", labels.read_audacity, labels.write_audacity, "sections words phonemes"),
    "text": Format(".txt", text.read_plain, text.write_plain, "sections backing phonemes"),
}
ENDINGS = {".lrc": "lrc", ".vtt": "vtt", ".srt": "srt", ".ass": "ass", ".ssa": "ass", ".ttml": "ttml",
           ".xml": "ttml", ".textgrid": "textgrid"}


def kind_of(path: Path, content: str) -> str:
    """The format of a file: by its ending, and for `.json` and `.txt` by its contents. Raises: UserError."""
    ending = path.suffix.lower()
    if ending == ".txt":
        if re.search(r"^#BPM:", content, re.MULTILINE | re.IGNORECASE):
            return "ultrastar"
        return "audacity" if labels.LABEL.match(content) else "text"
    if ending == ".json":
        value = json_of(content, str(path))
        if isinstance(value, dict):
            return "whisper" if "segments" in value else "jam"
        return "json"
    if ending not in ENDINGS:
        raise UserError(f"{path}: unknown ending; expected .json, .txt, {', '.join(ENDINGS)}, or one of the "
                        f"formats by its name: {', '.join(KINDS)}")
    return ENDINGS[ending]


def kind_for(path: Path) -> str:
    """The format to write a file in: by its ending; .txt is plain text. Raises: UserError."""
    return {".json": "jam", ".txt": "text"}.get(path.suffix.lower()) or kind_of(path, "")


def format_of(kind: str) -> Format:
    """A row of KINDS. Raises: UserError if there is none."""
    if kind not in KINDS:
        raise UserError(f"{kind}: unknown format; known: {', '.join(KINDS)}")
    return KINDS[kind]


def read(path: Path, kind: str | None = None) -> Lyrics:
    """The lyrics in a file. Raises: UserError, as support.files.read_text, kind_of and parse."""
    try:
        content = read_text(path)
    except UserError as e:
        content = ultrastar_text(path)
        if content is None:
            raise e from None
    return parse(content, kind or kind_of(path, content), str(path))


def ultrastar_text(path: Path) -> str | None:
    """The text of an UltraStar file in an encoding of its time; None if it is none. Raises: UserError."""
    if not path.is_file() or path.suffix.lower() != ".txt":
        return None
    try:
        return ultrastar.older(path.read_bytes())
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: {one_line(e)}") from None


def parse(content: str, kind: str, name: str) -> Lyrics:
    """Lyrics of a text in a format of KINDS; name is the file's, for errors.

    Raises: UserError with the file and the line, or a word's number, for a mistake; for an unknown kind.
    """
    draft, reader = Draft(name), format_of(kind).reader
    try:
        reader(content.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"), draft)
    except UserError:
        raise
    except ValueError as e:
        place = f"line {draft.place}" if isinstance(draft.place, int) else draft.place[:80]
        raise UserError(": ".join(filter(None, [name, place, str(e)[:300]]))) from None
    return Lyrics(tuple(map(closed, draft.lines)), draft.title, draft.artist)


def closed(line: Line) -> Line:
    """A line whose last word, if it has a start alone, ends where the line ends."""
    last = line.words[-1] if line.words else None
    if not last or None in (line.end, last.start) or last.end is not None or last.start > line.end:
        return line
    return dataclasses.replace(line, words=(*line.words[:-1], dataclasses.replace(last, end=line.end)))


def write(lyrics: Lyrics, kind: str) -> str:
    """The text of a file. The words of a line are written with times if all of them have starts.

    Raises: UserError for lyrics that lack what the format needs, such as times, or last more than 100 hours.
    """
    for line in lyrics.lines:
        _, end = span(line, None)
        if end is not None and end > LONGEST_S:
            raise UserError(f'{kind}: "{line.text[:40]}" ends at {end:g} s; expected 100 hours at most')
    text = "".join(f"{line}\n" for line in format_of(kind).writer(lyrics))
    return UNPRINTABLE.sub(lambda c: c[0] if c[0] in "\n\t" else "\ufffd", text)
