"""What the formats share: how texts and times become lines and words, and how lines become text again.

Read `Draft` and `words_from` (for readers), then `Row` and `rows` (for writers).

Formats of free text share a notation: a line `[Verse]` begins a section, a line `(like this)` is backing,
`[ad-lib: this]`, too, and
`read{ɹɛd}` gives a pronunciation. Where a word looks like a sign of the format, an invisible word joiner
(U+2060) is written into it, which all readers drop. Blanks separate words; several words under one stamp
share its time in proportion to their letters.
"""

import bisect
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from config import UserError
from lyrics.pronounce import words_in
from lyrics.timing import Line, Lyrics, Part, Word, check_span

JOINER = "\u2060"
LONGEST_S = 359_999            # the last time that hh:mm:ss can write
WORD_S = 0.5                   # assumed for each word of a last line without an end
AD_LIB_FRONT = r"\[\s*(?i:ad[- ]?libs?)\s*:"
AD_LIB = rf"{AD_LIB_FRONT}[^\[\]]*\]"
SECTION = re.compile(rf"(?!{AD_LIB})\[([^\[\]]*)\]")
BACKING = re.compile(rf"\([^()]*\)|{AD_LIB}")
WRAPPING = {"(": re.compile("[()]"), "[": re.compile(rf"{AD_LIB_FRONT}|\]")}      # of a backing line
NO_PARENTHESES = {ord("("): None, ord(")"): None}
UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")     # not allowed in XML
CLOCK = re.compile(r"(?:[0-9]{1,4}:){0,2}[0-9]{1,9}(?:[.,][0-9]{0,9})?")
NO_STAMP = re.compile(r"[<\[][0-9][^\[\]<> ]{0,5}:")       # a stamp with a mistake in it

Time = float | None                                        # seconds from the song's start
Escape = Callable[[str], str]                              # makes a text safe for a format
FileLines = Iterator[object]                               # of a file, as a writer yields them


class Piece(NamedTuple):
    """A text with its time: one or more syllables, words, or a label."""
    text: str
    start: Time = None
    end: Time = None
    number: int = 0            # its line in the file


# For readers

@dataclass
class Draft:
    """A song while it is read. A ValueError that a reader raises is reported with `name` and `place`."""
    name: str
    title: str = ""
    artist: str = ""
    section: str = ""                                    # of the lines to come
    voice: str = ""                                      # who sings them
    place: int | str = ""                                # what is being read: a line's number, or a name
    lines: list[Line] = field(default_factory=list)

    def numbered(self, text: str) -> Iterator[str]:
        """The lines of a text; while each is read, `place` is its number."""
        for self.place, line in enumerate(text.split("\n"), 1):
            yield line

    def add(self, pieces: Iterable[Piece], start: Time = None, end: Time = None, backing=False) -> bool:
        """Add a line, or begin a section if the text is `[Verse]`. Returns: whether it is empty."""
        pieces = list(pieces)
        whole = "".join(piece.text for piece in pieces).strip()
        if section := SECTION.fullmatch(whole):
            self.section = plainly(section[1])
            return False
        if BACKING.fullmatch(whole):
            backing = True
            pieces = [piece._replace(text=WRAPPING[whole[0]].sub("", piece.text)) for piece in pieces]
        check_span(start, end)
        words = words_from(pieces)
        if words:
            number = self.place if isinstance(self.place, int) else 0
            self.lines.append(Line(tuple(words), start, end, self.section, backing, self.voice, number))
        return not words

    def sort(self) -> list[float]:
        """Sort the lines by time; a line without one stays after the line before. Returns: the times."""
        times = [*itertools.accumulate(map(begin, self.lines), latest, initial=0.0)][1:]
        pairs = sorted(zip(times, self.lines), key=lambda pair: pair[0])
        self.lines = [line for _, line in pairs]
        return [time for time, _ in pairs]


def words_from(pieces: Iterable[Piece]) -> list[Word]:
    """The words of pieces; pieces without a blank between them are syllables. Raises: ValueError."""
    groups, joined = [], False
    for text, start, end, _ in pieces:
        text = text.replace(JOINER, "")
        words = words_in(text)
        times = [start, *[None] * len(words)]            # without an end only the first word's start is known
        if words and None not in (start, end):
            check_span(start, end)
            letters = [*itertools.accumulate(len(word.word) for word in words)]
            times = [start, *(start + (end - start) * n / letters[-1] for n in letters[:-1]), end]
        for i, word in enumerate(words):
            if not groups or word.word.strip("~") and (i or not joined or text[0].isspace()):
                groups.append([])
            groups[-1].append(Word(word.word, times[i], times[i + 1], word.phoneme))
        if text:
            joined = bool(words) and not text[-1].isspace() and words[-1].phoneme is None
    return list(map(joined_word, groups))


def joined_word(syllables: list[Word]) -> Word:
    """One word of several syllables. Raises: ValueError."""
    known = [part for part in syllables if part.start is not None] or syllables
    parts = tuple(Part(part.word, part.start, part.end) for part in syllables if part.timed)
    return Word("".join(part.word for part in syllables), known[0].start, known[-1].end,
                next((part.phoneme for part in syllables if part.phoneme), None),
                syllables=parts if 1 < len(parts) == len(syllables) else ())


def begin(line: Line) -> Time:
    """When a line begins: its own start, else its first word's."""
    return line.words[0].start if line.start is None and line.words else line.start


def latest(before: Time, time: Time) -> Time:
    """A time or, where it is unknown, the one before."""
    return before if time is None else time


def seconds(text: str) -> float:
    """Read [[hh:]mm:]ss[.fff], with dot or comma. Raises: ValueError."""
    if not CLOCK.fullmatch(text):
        raise ValueError(f'"{text[:40]}" is not a time; expected hh:mm:ss.fff')
    return round(sum(float(n) * 60 ** i for i, n in enumerate(text.replace(",", ".").split(":")[::-1])), 6)


def decimal(text: str, what: str) -> float:
    """Read a number with dot or comma. Raises: ValueError."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{0,15}(?:[0-9][.,]?|[.,][0-9])[0-9]{0,15}\s*", text):
        raise ValueError(f'{what} is "{text[:40]}"; expected a number')
    return float(text.replace(",", "."))


def cut(text: str, stamp: re.Pattern, read_time: Callable, start: Time, end: Time) -> list[Piece]:
    """Cut a line of text at its word stamps. Raises: ValueError for a stamp with a mistake in it."""
    texts = stamp.split(text)                            # between every two texts a time
    for part in texts[::2]:
        if wrong := NO_STAMP.search(part):
            raise ValueError(f'"{part[wrong.start():][:16]}": no time in it; expected mm:ss.xx')
    if len(texts) == 1:
        return [Piece(text)]
    times = [start, *map(read_time, texts[1::2]), end]
    return [Piece(*piece) for piece in zip(texts[::2], times, times[1:])]


def holders(parts: Iterable[Word | Piece], spans: list[Word | Piece]) -> Iterator[int | None]:
    """For each part the index of the span that holds its middle, or None.

    Where spans overlap, that is the last to begin or, if it has ended, the last to end. A span without an end
    holds nothing. A part without a start goes where the part before went.
    """
    order = [i for i, span in enumerate(spans) if span.end is not None]
    order.sort(key=lambda i: (spans[i].start, spans[i].end))
    starts, holder = [spans[i].start for i in order], None
    last_to_end = list(itertools.accumulate(order, lambda a, b: b if spans[b].end >= spans[a].end else a))
    for part in parts:
        if part.start is not None:
            middle = part.start if part.end is None else part.start / 2 + part.end / 2
            k = bisect.bisect_right(starts, middle) - 1
            begun = [order[k], last_to_end[k]] if k >= 0 else []
            holder = next((i for i in begun if middle <= spans[i].end), None)
        yield holder


def add_segments(draft: Draft, words: list[Word], segments: list[Piece], voices: Iterable[str] = ()) -> None:
    """Add segments as lines, each with the words whose middles it holds or, without any, those of its text.

    Each run of words that no segment holds becomes a line.
    """
    held, rest = [[] for _ in segments], []
    for holder, run in itertools.groupby(zip(holders(words, segments), words), key=lambda pair: pair[0]):
        run = tuple(word for _, word in run)
        if holder is None:
            rest.append(Line(run))
        else:
            held[holder] += run
    for i, ((text, start, end, number), draft.voice) in enumerate(
            itertools.zip_longest(segments, voices, fillvalue="")):
        draft.place = number or f"segment {i + 1}"
        if held[i]:
            backing = BACKING.fullmatch(text.strip()) is not None
            draft.lines.append(Line(tuple(held[i]), start, end, draft.section, backing, draft.voice, number))
        else:
            draft.add([Piece(text)], start, end)
    draft.lines += rest
    draft.sort()


def add_labels(draft: Draft, labels: Iterable[Piece]) -> None:
    """Add labels as lines: one of several words is a line, and so is a run of labels of one word."""
    run = []
    for label in (*labels, Piece("()")):                 # an empty line ends the last run
        draft.place = label.number
        single = len(words_in(label.text)) < 2
        if single and not SECTION.fullmatch(label.text) and not BACKING.fullmatch(label.text):
            run.append(label._replace(text=f"{label.text} "))
            continue
        if run:
            draft.place = run[0].number
            draft.add(run)
            run = []
        draft.place = label.number
        draft.add([label if single else Piece(label.text)], label.start, label.end)


# For writers

def plainly(text: str) -> str:
    """A text in one line, with parentheses for the braces of a pronunciation."""
    return " ".join(UNPRINTABLE.sub(" ", text.replace(JOINER, "")).split()).translate({123: "(", 125: ")"})


def guard(text: str) -> str:
    """A text with joiners wherever it looks like a stamp, a tag or an arrow."""
    return re.sub(r"[<\[](?=[\w/])|--(?=>)|\\", lambda sign: sign[0] + JOINER, text)


def guard_front(text: str) -> str:
    """A text with a joiner in front if it begins like a section or backing."""
    return JOINER + text if text.startswith(("[", "(")) else text


@dataclass(frozen=True)
class Row:
    """A line as writers need it."""
    line: Line
    heading: tuple[str, ...]                             # ("[Verse]",) where a section begins, else ()
    start: Time                                          # of the line and all its words
    end: Time                                            # where it is unknown, the next line's start
    later: Time                                          # when the next line begins, if that is known
    escape: Escape                                       # for every text
    brackets: bool                                       # whether they mark backing

    @property
    def timed(self) -> bool:
        """Whether all its words have starts."""
        return all(word.start is not None for word in self.line.words)

    def texts(self) -> list[list[str]]:
        """The syllables of each word, with pronunciations."""
        drop, words = NO_PARENTHESES if self.line.backing else {}, []
        for word in self.line.words:
            whole, *parts = (plainly(text).translate(drop)
                             for text in (word.word, *(part.text for part in word.syllables)))
            syllables = parts if parts and "".join(parts) == whole else [whole]
            words.append([self.escape(text) for text in syllables])
            phoneme = re.sub("[() ]", "", plainly(word.phoneme or ""))
            # Capitals would be read as ARPAbet, and braces after nothing as a mistake.
            if phoneme and syllables[-1] and not re.fullmatch("[A-Z0-2]+", phoneme):
                words[-1][-1] += self.escape(f"{{{phoneme}}}")
        if words and self.line.backing and self.brackets:
            words[0][0] = f"({words[0][0]}"
            words[-1][-1] += ")"
        elif words and "".join(words[0]).startswith(("[", "(")):
            words[0][0] = JOINER + words[0][0]
        return words

    def text(self) -> str:
        """The whole line."""
        return " ".join(map("".join, self.texts()))

    def words(self) -> list[list[Piece]]:
        """The syllables of each word with times; [] if not timed. An unknown end is the next word's start."""
        words, out = self.line.words, []
        if not self.timed:
            return []
        ends = [*(max(word.start, later.start) for word, later in itertools.pairwise(words)), self.end]
        for word, texts, end in zip(words, self.texts(), ends):
            whole = Piece(word.word, word.start, end if word.end is None else word.end)
            spans = word.syllables if len(texts) > 1 else [whole]
            out.append([Piece(text, span.start, span.end) for text, span in zip(texts, spans)])
        return out

    def syllables(self) -> Iterator[tuple[str, str, float, float]]:
        """All syllables of `words`: the blank in front of each or "", its text, its start and its end."""
        for i, word in enumerate(self.words()):
            for j, (text, start, end, _) in enumerate(word):
                yield " " if i and not j else "", text, start, end

    def stamped(self, stamp: Callable[[float], str]) -> str:
        """The line with a stamp before each syllable, and after each that does not touch the next."""
        out, last = [], ""
        for gap, text, start, end in self.syllables():
            out += gap, last if last != stamp(start) else "", stamp(start), text
            last = stamp(end) if end is not None else ""
        return "".join([*out, last]) or self.text()

    def labels(self) -> list[Piece]:
        """The words with times, for formats that know no syllables and no backing words."""
        return [Piece("".join(part.text for part in word), word[0].start, word[-1].end)
                for word in dataclasses.replace(self, escape=guard_front, brackets=False).words()]


def rows(lyrics: Lyrics, escape: Escape = str, brackets: bool = True, pauses: bool = False) -> Iterator[Row]:
    """The lines that have words and, with `pauses`, those that have none."""
    later = [*itertools.accumulate([None, *map(begin, lyrics.lines[:0:-1])], latest)][::-1]
    section = ""
    for line, next_start in zip(lyrics.lines, later):
        heading = ()
        if line.words and line.section != section:
            section = line.section
            name = guard(plainly(section).translate({91: "(", 93: ")"}))
            heading = (f"[{JOINER if ':' in name else ''}{name}]",)
        if line.words or pauses:
            yield Row(line, heading, *span(line, next_start), next_start, escape, brackets)


def timed_rows(lyrics: Lyrics, kind: str, escape: Escape = str, all_words: bool = False) -> Iterator[Row]:
    """The lines that have words. Raises: UserError for one without a time or, with all_words, such a word."""
    for row in rows(lyrics, escape):
        if row.start is None or all_words and not row.timed:
            text = row.line.text[:40]
            raise UserError(f'{kind}: "{text}" has no time, which this format needs; plan it first')
        yield row


def span(line: Line, later: Time) -> tuple[Time, Time]:
    """A line's start and end, widened to its words. An unknown end is `later`, the next line's start."""
    times = itertools.chain((line.start, line.end), *((word.start, word.end) for word in line.words))
    known = [time for time in times if time is not None]
    if not known:
        return None, None
    start, end = min(known), max(known)
    if line.end is None and line.words and line.words[-1].end is None:
        end = max(end, start + WORD_S * len(line.words) if later is None else later)
    return start, end


def clock(time: float, per_second: int = 1000, hours: bool = True) -> str:
    """A time as hh:mm:ss.fff, as many digits as per_second has, or as mm:ss.fff."""
    whole, part = divmod(round(time * per_second), per_second)
    front = f"{whole // 3600:02}:{whole // 60 % 60:02}" if hours else f"{whole // 60:02}"
    return f"{front}:{whole % 60:02}.{part:0{len(str(per_second)) - 1}}"
