"""A document: the words of a song with their times and singers, as the page edits it, in JSON.

Read `checked` (what a document may be), `lyrics_of` and `lines_of` (document <-> lyrics.timing.Lyrics), then
`report` (what will be sung, and what cannot be). studio/typed.py makes documents of texts.
"""

import itertools
import math
import re
from collections.abc import Callable, Collection

from config import Preset, UserError
from lyrics.check import check
from lyrics.formats.shared import UNPRINTABLE, plainly
from lyrics.plan import PlanSettings
from lyrics.pronounce import Reader, ipa, say
from lyrics.timing import Line, Lyrics, Word
from lyrics.voices import answers, names_of
from phonemes import CELLS_PER_FRAME, FILLER, WORD_END, SymbolTable, phoneme_grid

MOST_WORDS, MOST_LINES = 5000, 5000
LONGEST_S = 3600.0             # of a song
MOST_SUNG_S = 2 * LONGEST_S    # of all words together
LONGEST_TEXT = 300             # of a title, a section, a word or its sounds
MOST_SEED = 2 ** 53 - 1        # up to which JavaScript counts


# What a document may be

def number(low: float, high: float) -> Callable[[object], bool]:
    """Whether a value is a number from low to high."""
    return lambda value: type(value) in (int, float) and low <= value <= high


def is_text(value: object) -> bool:
    """Whether a value is a text of one line that any file can hold."""
    return isinstance(value, str) and len(value) <= LONGEST_TEXT and not UNPRINTABLE.search(value)


def is_bool(value: object) -> bool:
    """Whether a value is true or false."""
    return isinstance(value, bool)


def is_list(value: object) -> bool:
    """Whether a value is a list."""
    return isinstance(value, list)


def or_null(accepts: Callable[[object], bool]) -> Callable[[object], bool]:
    """The same, or null."""
    return lambda value: value is None or accepts(value)


def is_seed(value: object) -> bool:
    """Whether a value is a seed that a page can hold."""
    return type(value) is int and 0 <= value <= MOST_SEED


def is_take(value: object) -> bool:
    """Whether a value can be the name of a take."""
    return isinstance(value, str) and re.fullmatch("[0-9]{1,6}", value, re.ASCII) is not None


def is_span(value: object) -> bool:
    """Whether a value is a list of two times, in order."""
    within = number(0, LONGEST_S)
    return isinstance(value, list) and len(value) == 2 and all(map(within, value)) and value[0] < value[1]


TEXT = f"a text in one line of at most {LONGEST_TEXT} characters"
SONG = {"title": (is_text, TEXT), "artist": (is_text, TEXT),
        "style": (is_text, "one of the singers"),
        "seed": (is_seed, f"a whole number from 0 to {MOST_SEED}"),
        "bpm": (number(20, 400), "a number from 20 to 400"),
        "duration": (or_null(number(0.01, LONGEST_S)), f"null, or seconds up to {LONGEST_S:.0f}"),
        "take": (or_null(is_take), "null, or the number of a take as a text"),
        "lines": (lambda value: isinstance(value, list) and len(value) <= MOST_LINES,
                  f"a list of at most {MOST_LINES} lines")}
LINE = {"section": (lambda value: is_text(value) and not set("[]") & set(value), f"{TEXT}, without brackets"),
        "backing": (is_bool, "true or false"),
        "style": (or_null(is_text), "null, or one of the singers"),
        "words": (is_list, "a list of words")}
WORD = {"word": (lambda value: is_text(value) and value.strip() == value != "", f"{TEXT}, not empty"),
        "start": (number(0, LONGEST_S), f"seconds from 0 to {LONGEST_S:.0f}"),
        "end": (number(0, LONGEST_S), f"seconds from 0 to {LONGEST_S:.0f}"),
        "phoneme": (or_null(is_text), "null, or IPA or ARPAbet")}


def fields(value: object, known: dict[str, tuple[Callable, str]], place: str) -> dict:
    """An object whose fields are the `known` ones, in this order. Raises: UserError."""
    if not isinstance(value, dict) or value.keys() != known.keys():
        raise UserError(f"{place}: expected an object of {', '.join(known)}")
    for name, (accepts, expected) in known.items():
        if not accepts(value[name]):
            raise UserError(f"{place}: {name} {repr(value[name])[:40]}: expected {expected}")
    return {name: value[name] for name in known}


def checked(value: object, styles: Collection[str]) -> dict:
    """A document, from any value of JSON. Args: styles, the singers. Raises: UserError with the place."""
    document = fields(value, SONG, "document")
    document["lines"] = checked_lines(document["lines"])
    for place, style in (("document", document["style"]),
                         *((f"line {i}", line["style"]) for i, line in enumerate(document["lines"], 1))):
        if style is not None and style not in styles:
            raise UserError(f"{place}: style {style}: expected one of {', '.join(styles)}")
    return document


def checked_lines(lines: list) -> list[dict]:
    """Lines of a document, from any list of JSON; their singers may be others. Raises: UserError."""
    lines, count, sung_s = [fields(line, LINE, f"line {i}") for i, line in enumerate(lines, 1)], 0, 0.0
    for i, line in enumerate(lines, 1):
        for k, word in enumerate(line["words"]):
            count += 1
            place = f"line {i}, word {count}"
            word = fields(word, WORD, place)
            try:
                word_of(word)
            except ValueError as e:
                raise UserError(f'{place} "{word["word"]}": {e}') from None
            line["words"][k], sung_s = word, sung_s + word["end"] - word["start"]
    if count > MOST_WORDS:
        raise UserError(f"document: more than {MOST_WORDS} words")
    if sung_s > MOST_SUNG_S:
        raise UserError(f"document: its words last more than {MOST_SUNG_S:.0f} s together")
    return lines


def empty(style: str) -> dict:
    """The document of a new project."""
    return {"title": "", "artist": "", "style": style, "seed": 0, "bpm": PlanSettings.bpm, "duration": None,
            "take": None, "lines": []}


# Document <-> lyrics

def word_of(word: dict) -> Word:
    """A word of a document. Raises: ValueError for times out of order, or sounds that are not ARPAbet."""
    return Word(**word | {"phoneme": None if word["phoneme"] is None else ipa(word["phoneme"])})


def lyrics_of(document: dict) -> Lyrics:
    """The lyrics of a document, all with times; its lines are numbered from 1."""
    lines = [Line(tuple(map(word_of, line["words"])), None, None, line["section"], line["backing"], number=i)
             for i, line in enumerate(document["lines"], 1)]
    return Lyrics(tuple(lines), document["title"], document["artist"])


def lines_of(lyrics: Lyrics) -> list[dict]:
    """Lines of a document, for the song's singer; those of other voices than the first are backing."""
    lead = min(names_of(lyrics), default="")
    return [{"section": plainly(line.section), "backing": line.backing or line.voice not in ("", lead),
             "style": None, "words": [
                 {"word": plainly(word.word), "start": round(word.start, 2), "end": round(word.end, 2),
                  "phoneme": word.phoneme} for word in line.words]} for line in lyrics.lines]


# What will be sung

def report(document: dict, reader: Reader, table: SymbolTable, preset: Preset) -> dict:
    """Problems of a document, and of each word its phonemes and when the network reads each of its sounds."""
    cell_hz = CELLS_PER_FRAME * preset.codec.sample_rate_hz / preset.codec.hop
    lyrics = lyrics_of(document)
    sings = answers(lyrics)
    problems, _ = check(lyrics.only(sings), reader, table, cell_hz, document["duration"])
    sung = {line.number for line in lyrics.only(sings).lines}
    places = [(where, line.number in sung) for where, line, _ in lyrics.places()]
    names = dict(zip((where for where, *_ in lyrics.only(sings).places()),
                     (where for where, own in places if own)))
    found = [{"level": level, "where": names.get(where, where), "text": text}
             for level, where, text in problems]
    found += [{"level": "note", "where": f"line {line.number}", "text": "not sung: another line sounds here"}
              for line in lyrics.lines if line.words and line.number not in sung]
    phonemes, sounds = [], []
    for word in lyrics.words:
        try:
            said = say(word, reader, table)
        except ValueError:                                   # is among the problems
            phonemes.append("")
            sounds.append([])
            continue
        phonemes.append(said.phoneme)
        sounds.append(sounds_of(said, table, preset.filler, cell_hz))
    return {"problems": found, "sounds": sounds, "phonemes": phonemes}


def sounds_of(word: Word, table: SymbolTable, filler: str, cell_hz: float) -> list[list]:
    """The sounds of a word as the network reads them: [IPA, start, end] in seconds of the song."""
    names = {token: name for name, token in table.ids.items()}
    first, last = (math.floor(time * cell_hz) for time in (word.start, word.end))
    row, _ = phoneme_grid([(word.start, word.end, word.phoneme)], table, filler, last - first,
                          (first / cell_hz, last / cell_hz), cell_hz)
    sounds: list[list] = []
    for token, run in itertools.groupby(enumerate(row), key=lambda cell: cell[1]):
        cells = [cell for cell, _ in run]
        start, end = (round((first + cell) / cell_hz, 3) for cell in (cells[0], cells[-1] + 1))
        if token == FILLER and sounds:
            sounds[-1][2] = end
        elif token in names and token != WORD_END:
            sounds.append([names[token], start, end])
    return sounds
