"""The timing model of lyrics: a song is lines of words, with times in seconds from the song's start.

Read `Word`, `Line`, then `Lyrics`. All are immutable and check their times when they are made. A word or a
line may lack times: lyrics/plan.py and lyrics/align.py give it some.
"""

import dataclasses
import itertools
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

HELD = "~"                     # in a word: hold its sound; as a syllable: hold the last one's vowel
VOICE = re.compile("(?:[vP][0-9]{1,4})?")
SUNG = re.compile(r"[\w&+@=#%$€£¢~]")             # a word has one of these; a lone dash has none


def check_span(start: object, end: object) -> None:
    """Raise ValueError unless start and end are times, in this order; a start may stand alone."""
    for what, time in (("start", start), ("end", end)):
        number = isinstance(time, (int, float)) and not isinstance(time, bool)
        if time is not None and not (number and 0 <= time <= sys.float_info.max):
            raise ValueError(f"{what} is {repr(time)[:20]}; expected seconds, 0 or more")
    if end is not None and start is None:
        raise ValueError(f"end {end:.2f} s without a start")
    if end is not None and end < start:
        raise ValueError(f"end {end:.2f} s is before start {start:.2f} s")


@dataclass(frozen=True)
class Part:
    """A syllable of a word (its letters, "~" for the last one's vowel held on) or a phone (its IPA)."""
    text: str
    start: float
    end: float

    def __post_init__(self):
        if not isinstance(self.text, str) or not self.text.strip():
            raise ValueError(f"a part's text is {self.text!r}; expected letters")
        check_span(self.start, self.end)
        if self.end is None:
            raise ValueError(f'part "{self.text}" has no times')


@dataclass(frozen=True)
class Word:
    """A sung word; times in seconds from the song's start. Raises: ValueError for impossible values."""
    word: str
    start: float | None = None         # None: to be planned
    end: float | None = None
    phoneme: str | None = None         # IPA; None: as the phonemizer reads it
    phones: tuple[Part, ...] = ()      # the phoneme's sounds with their own times
    syllables: tuple[Part, ...] = ()   # the word's syllables with their own times

    def __post_init__(self):
        if not isinstance(self.word, str) or not self.word.strip():
            raise ValueError(f"a word is {self.word!r}; expected a text")
        if self.phoneme is not None and (not isinstance(self.phoneme, str) or not self.phoneme.strip()):
            raise ValueError(f"phoneme is {self.phoneme!r}; expected IPA")
        check_span(self.start, self.end)
        for parts in (self.phones, self.syllables):
            times = [t for part in parts for t in (part.start, part.end)]
            if times and (self.end is None or times != sorted(times)
                          or times[0] < self.start - 1e-6 or times[-1] > self.end + 1e-6):
                raise ValueError("its parts are not in order within its times")

    @property
    def timed(self) -> bool:
        """Whether it has both times."""
        return self.end is not None


def sung_word(word: Word) -> Word | None:
    """A word without the emoji around it; None if nothing in it can be sung."""
    if not word.phoneme and not SUNG.search(word.word):
        return None
    drawn = [not is_emoji(c) for c in word.word]
    if all(drawn) or not any(drawn):
        return word
    return dataclasses.replace(word, word=word.word[drawn.index(True):len(drawn) - drawn[::-1].index(True)])


def is_emoji(c: str) -> bool:
    """Whether a character is a picture, or a sign that changes one."""
    return c in "\u200d\ufe0f" or "\U0001f3fb" <= c <= "\U0001f3ff" or (
        c >= "\u2600" and unicodedata.category(c) == "So")


@dataclass(frozen=True)
class Line:
    """Words that are sung in one breath."""
    words: tuple[Word, ...]            # none: a pause, if it has times
    start: float | None = None         # of the line's stamp; its words may have times of their own
    end: float | None = None
    section: str = ""                  # Verse, Chorus, Intro...: as in [Verse]
    backing: bool = False              # sung beside the lead: (like this)
    voice: str = ""                    # who sings it: v1, P2; "": everyone, or nobody says
    number: int = field(default=0, compare=False)        # its line number in the file; 0: none

    def __post_init__(self):
        check_span(self.start, self.end)
        if not isinstance(self.voice, str) or not VOICE.fullmatch(self.voice):
            raise ValueError(f"voice is {self.voice!r}; expected v or P and a number")

    @property
    def text(self) -> str:
        """Its words, with blanks between them."""
        return " ".join(word.word for word in self.words)


@dataclass(frozen=True)
class Lyrics:
    """A song's lines in the order they are sung."""
    lines: tuple[Line, ...]
    title: str = ""
    artist: str = ""

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all lines."""
        return tuple(word for line in self.lines for word in line.words)

    @property
    def timed(self) -> bool:
        """Whether every word has both times."""
        return all(word.timed for word in self.words)

    def places(self) -> Iterator[tuple[str, Line, Word]]:
        """How messages name each word, its line, and the word: line 3, word 7 "love".

        Words are counted from the song's start.
        """
        numbers = itertools.count(1)
        for line in self.lines:
            for word in line.words:
                place = f'word {next(numbers)} "{word.word}"'
                yield f"line {line.number}, {place}" if line.number else place, line, word

    def sung(self) -> "Lyrics":
        """The same song without what is no word: a lone dash or note, emoji before or after a word."""
        return dataclasses.replace(self, lines=tuple(dataclasses.replace(line, words=tuple(
            filter(None, map(sung_word, line.words)))) for line in self.lines))

    def only(self, chosen: Iterable[bool]) -> "Lyrics":
        """The same song without the lines for which `chosen` is false."""
        return dataclasses.replace(self, lines=tuple(itertools.compress(self.lines, chosen)))

    def with_words(self, words: Iterable[Word]) -> "Lyrics":
        """The same song with its words replaced, one for one."""
        rest = iter(words)
        return dataclasses.replace(self, lines=tuple(dataclasses.replace(line, words=tuple(
            itertools.islice(rest, len(line.words)))) for line in self.lines))

    def changed(self, change: Callable[[Word], Word]) -> "Lyrics":
        """The same song with `change` applied to each word."""
        return self.with_words(map(change, self.words))
