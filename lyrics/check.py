"""Problems of timed lyrics, and the phonemes that their words are sung with.

Read `check` (the problems of a song, in order), then `check_rate` and `pronounce`.
"""

import math
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from config import UserError
from lyrics.plan import FASTEST
from lyrics.pronounce import Reader, say, spelling, syllables_in
from lyrics.timing import Lyrics, Word, sung_word
from phonemes import SymbolTable

OVERLAP_S = 0.001              # a smaller overlap comes from rounding in other programs' files
LONGEST_GAP_S = 20.0
LEVELS = ("error", "warning", "note")


class Problem(NamedTuple):
    """What cannot be sung (level error), may be sung badly (warning), or is worth knowing (note)."""
    level: str
    where: str
    text: str


def check(lyrics: Lyrics, reader: Reader, table: SymbolTable, cell_hz: float,
          duration_s: float | None = None) -> tuple[list[Problem], list[Word]]:
    """Pronounce timed lyrics and find their problems.

    Args: cell_hz, cells of the phoneme grid per second; duration_s of the song, None for its last word's end.
    Returns: the problems in the order of the song, those of speed last; the words with their phonemes, except
        those that lack a time or a pronunciation.
    """
    said, problems, last_end, before = [], [], 0.0, ""
    untimed = sum(not word.timed for word in lyrics.words)

    def add(level: str, text: str) -> None:
        problems.append(Problem(level, where, text))

    for where, _, word in lyrics.places():
        # Its times. Words without any are reported once.
        if word.timed:
            if word.start < last_end - OVERLAP_S:
                add("error", f"start {word.start:.2f} s is before the end {last_end:.2f} s of {before}; one "
                    "voice sings one word at a time")
            if word.end <= word.start:
                add("error", f"end {word.end:.2f} s is at its start")
            if duration_s is not None and word.end > duration_s + OVERLAP_S:
                add("error", f"end {word.end:.2f} s is past the duration {duration_s:.2f} s")
            if word.start - last_end > LONGEST_GAP_S:
                add("warning", f"{word.start - last_end:.1f} s without words before it; singers fill long "
                    "gaps with words of their own")
            last_end, before = max(last_end, word.end), where
        elif untimed:
            more = f", as {untimed - 1} more" if untimed > 1 else ""
            add("error", f"has no times{more}; `python -m lyrics plan` gives them some")
            untimed = 0

        # Its sounds.
        try:
            word = say(word, reader, table)
        except ValueError as e:
            add("error", str(e))
            continue
        if not word.timed:
            continue
        said.append((where, word))
        cells = math.floor(word.end * cell_hz) - math.floor(word.start * cell_hz)
        sounds = len(table.encode(word.phoneme)) - 1         # all but the word end
        if cells < sounds:
            add("warning", f"{sounds} phonemes ({word.phoneme}) in {cells} cells; the last ones are left out")
        if word.syllables and not word.phones:
            add("warning", f"its {len(word.syllables)} syllables are not those of {word.phoneme}; only the "
                "word's own times are used")
        if not reader.knows(spelling(word, reader)):
            add("note", f"not in the lexicon, read as {word.phoneme}")

    where = "end"
    if duration_s is not None and duration_s - last_end > LONGEST_GAP_S:
        add("warning", f"{duration_s - last_end:.1f} s without words at the end")
    return [*problems, *check_rate(said)], [word for _, word in said]


def left_out(lyrics: Lyrics) -> list[Problem]:
    """Note the emoji and signs that `Lyrics.sung` leaves out; punctuation by itself is nothing to sing."""
    return [Problem("note", where, "not sung" if sung is None else f"sung as {sung.word}")
            for where, _, word in lyrics.places() if (sung := sung_word(word)) != word
            and any(unicodedata.category(c)[0] != "P" for c in word.word)]


def tell(path: Path, lyrics: Lyrics, others: Lyrics) -> None:
    """Print a line on stderr for what `left_out` finds, and one for lines of other voices."""
    signs = left_out(lyrics)
    for found, what in ((signs, "left out"), ([*others.places()], "words of other voices, not sung")):
        if found:
            more = f", and {len(found) - 1} more" if len(found) > 1 else ""
            print(f"note: {path}: {what}: {found[0].where if found is signs else found[0][0]}{more}",
                  file=sys.stderr)


def check_rate(said: list[tuple[str, Word]]) -> Iterator[Problem]:
    """Warn once for each stretch that has more syllables a second than can be sung.

    Args: said, words with their phonemes, and how messages name them.
    """
    first, count, quiet_until = 0, 0, -math.inf
    sizes = [len(syllables_in(word.phoneme)) for _, word in said]
    for i, (_, word) in enumerate(said):
        count += sizes[i]
        while said[first][1].start <= word.start - 1.0 + OVERLAP_S:
            count -= sizes[first]
            first += 1
        where, begin = said[first][0], said[first][1].start
        if count > FASTEST * max(1.0, word.end - begin):
            if word.start > quiet_until:
                yield Problem("warning", where, f"{count} syllables from {begin:.2f} to {word.end:.2f} s; "
                              f"{FASTEST:g} a second can be sung")
            quiet_until = word.end + 1.0


def pronounce(lyrics: Lyrics, reader: Reader, table: SymbolTable, cell_hz: float,
              duration_s: float | None, path: Path, warn: bool = True) -> Lyrics:
    """Pronounce timed lyrics, and print the warnings of `check` on stderr if `warn` is true.

    Args: as `check`; path, the lyrics' file, for messages.
    Returns: the same lyrics, each word with phonemes that the model knows.
    Raises: UserError for the first error.
    """
    problems, words = check(lyrics, reader, table, cell_hz, duration_s)
    for problem in problems:
        if problem.level == "warning" and warn:
            print(f"warning: {path}: {problem.where}: {problem.text}", file=sys.stderr)
    errors = [problem for problem in problems if problem.level == "error"]
    if errors:
        more = f"; and {len(errors) - 1} more: python -m lyrics check" if len(errors) > 1 else ""
        raise UserError(f"{path}: {errors[0].where}: {errors[0].text}{more}")
    return lyrics.with_words(words)
