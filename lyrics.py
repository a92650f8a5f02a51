"""Timed words: read them, check them. sample.py's first step.

A lyrics file is a JSON list [{"word": "hello", "start": 0.5, "end": 0.9}, ...], times in seconds, or an
object with such a list under "word" (the original's files). "phoneme" may give a word's IPA; else the
phonemizer finds it.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from cli import read_json
from config import UserError
from phonemes import PUNCTUATION, Phonemizer, SymbolTable

SHORTEST_S = 0.01              # song
OVERLAP_S = 0.001              # what rounding in other people's files may overlap
SOUNDLESS = frozenset("ˈˌːˑ.‿ _")    # marks in IPA that may be absent from the model's symbols


@dataclass(frozen=True)
class Word:
    """One sung word; seconds from the song's start."""
    word: str
    start: float
    end: float
    phoneme: str | None = None


def place(path: Path, number: int, text: object) -> str:
    """How an error names a word: FILE: word 7 "love"."""
    return f'{path}: word {number} "{text}"'


def read_word(entry: object, path: Path, number: int) -> Word:
    """One entry of the list, checked by itself. Raises: UserError."""
    if not isinstance(entry, dict):
        raise UserError(f'{path}: word {number}: expected {{"word", "start", "end"}}, not {str(entry)[:40]}')
    text = entry.get("word")
    for key in ("word", "start", "end"):
        if entry.get(key) is None:
            raise UserError(f'{place(path, number, text)}: has no "{key}"' if text else
                            f'{path}: word {number}: has no "{key}"')
    where = place(path, number, text)
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{where}: "word" must be a text')
    for key in ("start", "end"):
        value = entry[key]
        if (isinstance(value, bool) or not isinstance(value, (int, float))
                or not 0 <= value <= sys.float_info.max):
            raise UserError(f"{where}: {key} is {value!r}; expected seconds, 0 or more")
    phoneme = entry.get("phoneme")
    if phoneme is not None and not isinstance(phoneme, str):
        raise UserError(f'{where}: "phoneme" is {phoneme!r}; expected IPA text')
    start, end = float(entry["start"]), float(entry["end"])
    if end <= start:
        raise UserError(f"{where}: end {end:.2f} s is {'before' if end < start else 'at'} "
                        f"start {start:.2f} s")
    return Word(text, start, end, phoneme or None)


def read(path: Path) -> list[Word]:
    """Read timed words in the order they are sung.

    Raises: UserError, with the word's number, for anything that is not a list of well-timed words.
    """
    content = read_json(path)
    entries = content.get("word") if isinstance(content, dict) else content
    if not isinstance(entries, list):
        raise UserError(f'{path}: expected a JSON list of words, or an object with such a list under "word"')
    words = [read_word(entry, path, i) for i, entry in enumerate(entries, 1)]
    for i, (before, word) in enumerate(zip(words, words[1:]), 2):
        if word.start < before.end - OVERLAP_S:
            raise UserError(f"{place(path, i, word.word)}: start {word.start:.2f} s is before the end "
                            f'{before.end:.2f} s of word {i - 1} "{before.word}"')
    return words


def check_duration(words: list[Word], duration_s: float, longest_s: float, path: Path) -> None:
    """Raise UserError if the song is too long for the model or a word lies past its end."""
    if not SHORTEST_S <= duration_s <= longest_s:
        raise UserError(f"{path}: a song of {duration_s:.2f} s; "
                        f"this model sings {SHORTEST_S} to {longest_s:.2f} s")
    for i, word in enumerate(words, 1):
        if word.end > duration_s + OVERLAP_S:
            raise UserError(f"{place(path, i, word.word)}: end {word.end:.2f} s is past the duration "
                            f"{duration_s:.2f} s")


def pronounce(words: list[Word], phonemizer: Phonemizer, table: SymbolTable, path: Path) -> list[Word]:
    """The same words, each with phonemes that the model knows.

    Raises: UserError for a word that cannot be read.
    """
    spoken = []
    for i, word in enumerate(words, 1):
        phoneme = word.phoneme or phonemizer(word.word)
        if SOUNDLESS.union(PUNCTUATION).issuperset(phoneme):
            raise UserError(f"{place(path, i, word.word)}: cannot be read; spell it in English letters, or "
                            'give its "phoneme" in IPA')
        unknown = sorted(set(phoneme) - table.ids.keys() - SOUNDLESS)
        if unknown:
            raise UserError(f"{place(path, i, word.word)}: phoneme {' '.join(unknown)} is unknown; known: "
                            f"{' '.join(phonemizer.symbols)}")
        spoken.append(dataclasses.replace(word, phoneme=phoneme))
    return spoken
