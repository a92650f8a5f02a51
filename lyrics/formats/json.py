"""JSON: a list of words; the original's words and segments; Whisper's segments with words."""

import dataclasses
import json
from collections.abc import Iterator

from lyrics.formats.shared import Draft, FileLines, Piece, add_segments, rows
from lyrics.timing import Line, Lyrics, Part, Word, check_span
from support.files import json_of

LAYOUT = {"ensure_ascii": False, "indent": 1}


def entries(content: object, key: str, draft: Draft) -> Iterator[tuple[dict, Piece]]:
    """The objects of a list, and the text and times of each; draft.place tells which. Raises: ValueError."""
    if not isinstance(content, list):
        raise ValueError(f'expected a JSON list of objects with "{key}"')
    outer = draft.place
    for i, entry in enumerate(content, 1):
        draft.place = f"{outer}, {key} {i}" if outer else f"{key} {i}"
        if not isinstance(entry, dict):
            raise ValueError(f'expected {{"{key}", "start", "end"}}')
        text = entry.get(key, entry.get("text", ""))
        if not isinstance(text, str):
            raise ValueError(f'"{key}" must be a text')
        if key == "word":
            draft.place += f' "{text[:40].strip()}"'
        times = entry.get("start"), entry.get("end")
        check_span(*times)
        yield entry, Piece(text, *(time if time is None else float(time) for time in times))
    draft.place = outer


def object_of(text: str, draft: Draft, expected: str) -> dict:
    """The object that a JSON text is. Raises: UserError, ValueError."""
    content = json_of(text, draft.name)
    if not isinstance(content, dict):
        raise ValueError(f"expected an object with {expected}")
    return content


def words_of(content: object, draft: Draft) -> list[Word]:
    """Words of a list {"word", "start", "end", "phoneme", "phones", "syllables"}. Raises: ValueError."""
    words = []
    for entry, (text, start, end, _) in entries(content, "word", draft):
        parts = {key: tuple(Part(*part[:3]) for _, part in entries(entry.get(key) or [], "text", draft))
                 for key in ("phones", "syllables")}
        words.append(Word(text, start, end, entry.get("phoneme") or None, **parts))
    return words


def word_json(word: Word) -> dict:
    """A word as an object that words_of reads; what it lacks is left out."""
    return {key: value for key, value in dataclasses.asdict(word).items() if value not in (None, ())}


def read_words(text: str, draft: Draft) -> None:
    """A list of words, all in one line."""
    if words := words_of(json_of(text, draft.name), draft):
        draft.lines.append(Line(tuple(words)))


def write_words(lyrics: Lyrics) -> FileLines:
    """A word in each row."""
    rows = ",\n ".join(json.dumps(word_json(word), ensure_ascii=False) for word in lyrics.words)
    yield f"[{rows}]"


def read_jam(text: str, draft: Draft) -> None:
    """{"word": [...], "segment": [...]}: the original's, whose segments are lines, and a song's account."""
    content = object_of(text, draft, '"word", a list of words')
    words = words_of(content.get("word"), draft)
    segments, voices = [], []
    for entry, piece in entries(content.get("segment") or [], "segment", draft):
        segments.append(piece)
        voices.append(entry.get("voice") or "")
    for key in ("title", "artist"):
        if isinstance(content.get(key), str):
            setattr(draft, key, content[key])
    add_segments(draft, words, segments, voices)


def write_jam(lyrics: Lyrics) -> FileLines:
    """Lines are segments; sections are segments without times; words without times only stand in segments."""
    words, segments = [], []
    for row in rows(lyrics):
        segments += [{"segment": heading} for heading in row.heading]
        if any(word.start is not None for word in row.line.words):
            words += map(word_json, row.line.words)
        times = {"start": row.start, "end": row.end} if row.start is not None else {}
        voice = {"voice": row.line.voice} if row.line.voice else {}
        segments.append({"segment": row.text()} | times | voice)
    content = {"title": lyrics.title, "artist": lyrics.artist, "word": words, "segment": segments}
    yield json.dumps(content, **LAYOUT)


def read_whisper(text: str, draft: Draft) -> None:
    """{"segments": [{"text", "words": [...]}]}: if words begin with blanks, one without is a syllable."""
    content = object_of(text, draft, '"segments"')
    for segment, (whole, *times, _) in entries(content.get("segments"), "segment", draft):
        pieces = [piece for _, piece in entries(segment.get("words") or [], "word", draft)]
        if not any(piece.text[:1].isspace() for piece in pieces):
            pieces = [piece._replace(text=f" {piece.text}") for piece in pieces]
        draft.add(pieces or [Piece(whole)], *times)


def write_whisper(lyrics: Lyrics) -> FileLines:
    """With a blank in front of each word, none in front of a further syllable."""
    segments = []
    for i, row in enumerate(rows(lyrics)):
        words = [{"word": text if j else f" {text}", "start": start, "end": end}
                 for word in row.words() for j, (text, start, end, _) in enumerate(word)]
        segments.append({"id": i, "start": row.start, "end": row.end, "text": f" {row.text()}",
                         "words": words})
    text = "".join(segment["text"] for segment in segments)
    yield json.dumps({"text": text, "segments": segments, "language": "en"}, **LAYOUT)
