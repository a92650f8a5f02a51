"""Every karaoke and timing format: read into lyrics.Lyrics, and written from it.

Read `Draft` and `sung` (how texts and times become lines and words), `spelt` and `pieces` (the reverse), then
the formats, each a reader and a writer, and at the end `KINDS`, their table, and `read`, `parse`, `write`.

Formats of free text share: a line `[Verse]` begins a section, a line `(like this)` is backing, `read{ɹɛd}`
gives a pronunciation. What a format would take for a sign of its own is written with an invisible word joiner
(U+2060) in it, which all readers drop. Blanks part words; several words under one stamp share its time by
their letters.
"""

import bisect
import codecs
import contextlib
import dataclasses
import functools
import html
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cli import json_of, read_text
from config import UserError
from lyrics import Line, Lyrics, Part, Word, check_span, ipa, words_in

JOINER = "\u2060"
LONGEST_S = 359_999            # as long as hh:mm:ss goes
WORD_S = 0.5                   # per word: what a line lasts that has no end and none behind it
SECTION = re.compile(r"\[([^\[\]]*)\]")
WORDLESS = re.compile(r"(?i)(intro|break|solo|outro|instrumental|interlude)\b")     # and a blank line
BACKING = re.compile(r"\([^()]*\)")
UNPRINTABLE = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")     # no XML may hold them
CLOCK = re.compile(r"(?:[0-9]{1,4}:){0,2}[0-9]{1,9}(?:[.,][0-9]{0,9})?")
NO_STAMP = re.compile(r"[<\[][0-9][^\[\]<> ]{0,5}:")       # what was meant to be one
PAUSES = {"", "sil", "sp", "spn", "<eps>", "<sil>", "<p:>", "_"}

Chunk = tuple[str, float | None, float | None]           # text, start, end
Span = tuple[int, str, float | None, float | None]       # number in its file, text, start, end


@dataclass
class Draft:
    """A song while it is read."""
    name: str
    title: str = ""
    artist: str = ""
    section: str = ""                                    # of the lines to come
    lines: list[Line] = field(default_factory=list)

    @contextlib.contextmanager
    def at(self, place: int | str) -> Iterator[None]:
        """Turn a ValueError inside into a UserError that says where: the file and a line, or a place."""
        try:
            yield
        except UserError:
            raise
        except ValueError as e:
            place = f"line {place}" if isinstance(place, int) else place[:80]
            raise UserError(f"{self.name}: {place}: {str(e)[:300]}") from None

    def add(self, number: int, chunks: Iterable[Chunk], start: float | None = None, end: float | None = None,
            backing: bool = False) -> bool:
        """Add a line unless it is empty; `[Verse]` begins a section. Returns: whether it was empty."""
        chunks = list(chunks)
        whole = "".join(text for text, _, _ in chunks).strip()
        if section := SECTION.fullmatch(whole):
            self.section = plainly(section[1])
            return False
        if BACKING.fullmatch(whole):
            backing, chunks = True, [(re.sub("[()]", "", text), *times) for text, *times in chunks]
        check_span(start, end)
        words = sung(chunks)
        if words:
            self.lines.append(Line(words, start, end, self.section, backing, number))
        return not words

    def sort(self) -> list[float]:
        """Put the lines in order of time; without a time they stay behind the line before. Returns: times."""
        times = [*itertools.accumulate(map(begin, self.lines), latest, initial=0.0)][1:]
        order = sorted(range(len(self.lines)), key=times.__getitem__)
        self.lines = [self.lines[i] for i in order]
        return [times[i] for i in order]


def sung(chunks: Iterable[Chunk]) -> tuple[Word, ...]:
    """The words of texts with times; texts without a blank between them are syllables. Raises: ValueError."""
    groups, joined = [], False
    for text, start, end in chunks:
        text = text.replace(JOINER, "")
        tokens = words_in(text)
        if tokens:
            check_span(start, end if start is not None else None)
        for i, (token, *times) in enumerate(shares(tokens, start, end)):
            if not groups or token.word.strip("~") and (i or not joined or text[0].isspace()):
                groups.append([])
            groups[-1].append((token, *times))
        if text:
            joined = bool(tokens) and not text[-1].isspace() and tokens[-1].phoneme is None
    return tuple(map(one_word, groups))


def shares(tokens: tuple[Word, ...], start: float | None, end: float | None) -> Iterable[tuple]:
    """Words under one stamp, each with its start and end; without an end only the first start is known."""
    if start is None or end is None:
        return [(token, None if i else start, None) for i, token in enumerate(tokens)]
    letters = list(itertools.accumulate(len(token.word) for token in tokens))
    bounds = [start, *(start + (end - start) * n / letters[-1] for n in letters[:-1]), end]
    return zip(tokens, bounds, bounds[1:])


def one_word(group: list[tuple[Word, float | None, float | None]]) -> Word:
    """A word of its syllables, start and end of each. Raises: ValueError."""
    timed = [times for _, *times in group if times[0] is not None]
    parts = ()
    if 1 < len(timed) == len(group) and None not in itertools.chain(*timed):
        parts = tuple(Part(token.word, *times) for token, *times in group)
    phoneme = next((token.phoneme for token, *_ in group if token.phoneme), None)
    return Word("".join(token.word for token, *_ in group), timed[0][0] if timed else None,
                timed[-1][1] if timed else None, phoneme, syllables=parts)


def begin(line: Line) -> float | None:
    """When a line begins: its own start, else its first word's."""
    return line.words[0].start if line.start is None and line.words else line.start


def latest(before: float | None, time: float | None) -> float | None:
    """A time or, where it is unknown, the one before."""
    return before if time is None else time


def seconds(text: str) -> float:
    """Read [[hh:]mm:]ss[.fff], with dot or comma. Raises: ValueError."""
    if not CLOCK.fullmatch(text):
        raise ValueError(f'"{text[:40]}" is no time; expected hh:mm:ss.fff')
    return round(sum(float(n) * 60 ** i for i, n in enumerate(text.replace(",", ".").split(":")[::-1])), 6)


def decimal(text: str, what: str) -> float:
    """Read a number with dot or comma. Raises: ValueError."""
    if not re.fullmatch(r"\s*[+-]?[0-9]{0,15}(?:[0-9][.,]?|[.,][0-9])[0-9]{0,15}\s*", text):
        raise ValueError(f'{what} is "{text[:40]}"; expected a number')
    return float(text.replace(",", "."))


def numbered(text: str) -> Iterable[tuple[int, str]]:
    """The lines of a text with their numbers."""
    return enumerate(text.split("\n"), 1)


def holders(spans: list[tuple[float, float]]) -> Callable[[float], int | None]:
    """A function from a time to the index of the span that holds it: of several, one that begins late."""
    order = sorted(range(len(spans)), key=spans.__getitem__)
    starts = [spans[i][0] for i in order]
    reach = list(itertools.accumulate(order, lambda a, b: b if spans[b][1] >= spans[a][1] else a))

    def find(time: float) -> int | None:
        k = bisect.bisect_right(starts, time) - 1
        return next((i for i in (order[k], reach[k]) if time <= spans[i][1]), None) if k >= 0 else None
    return find


def add_segments(draft: Draft, words: list[Word], segments: list[Span]) -> None:
    """Add segments as lines, each with the words whose middles it holds; if there are none, with its text's.

    Words that no segment holds are lines by themselves.
    """
    known = [i for i, segment in enumerate(segments) if segment[3] is not None]
    find, held, runs, key = holders([segments[i][2:] for i in known]), {}, [], None
    for word in words:
        before = key
        if word.start is not None:
            key = find(word.start if word.end is None else word.start / 2 + word.end / 2)
            key = None if key is None else known[key]
        if key is None and (before is not None or not runs):
            runs.append([])
        (runs[-1] if key is None else held.setdefault(key, [])).append(word)
    for i, (number, text, *times) in enumerate(segments):
        with draft.at(number or f"segment {i + 1}"):
            if i not in held:
                draft.add(number, [(text, None, None)], *times)
                continue
            backing = BACKING.fullmatch(text.strip()) is not None
            draft.lines.append(Line(tuple(held[i]), *times, draft.section, backing, number))
    draft.lines += [Line(tuple(run)) for run in runs]
    draft.sort()


def add_labels(draft: Draft, labels: Iterable[Span]) -> None:
    """Add labels: one of several words is a line; those of one word that follow each other are one."""
    run, first = [], 0
    for number, text, start, end in (*labels, (0, "()", None, None)):
        with draft.at(number):
            check_span(start, end)
            single = len(words_in(text)) < 2
            if single and not SECTION.fullmatch(text) and not BACKING.fullmatch(text):
                first = first if run else number
                run.append((f"{text} ", start, end))
                continue
            draft.add(first, run)
            run = []
            draft.add(number, [(text, start, end) if single else (text, None, None)], start, end)


# What writers share.

def plainly(text: str) -> str:
    """Text in one line, without the braces of a pronunciation."""
    return " ".join(UNPRINTABLE.sub(" ", text.replace(JOINER, "")).split()).translate({123: "(", 125: ")"})


def guard(text: str) -> str:
    """Text that holds nothing like a stamp, a tag or an arrow."""
    return re.sub(r"[<\[](?=[\w/])|--(?=>)|\\", lambda sign: sign[0] + JOINER, text)


def label(text: str) -> str:
    """Text that holds no brackets of a whole line."""
    return JOINER + text if text[:1] in ("[", "(") else text


def heading(section: str) -> str:
    """A section as a line of its own."""
    name = guard(plainly(section).translate({91: "(", 93: ")"}))
    return f"[{JOINER if ':' in name else ''}{name}]"


def spelt(line: Line, escape: Callable[[str], str] = str, brackets: bool = True) -> list[list[str]]:
    """The texts of each word's syllables, pronunciations behind them; with the brackets of backing."""
    rows, drop = [], "[()]" if line.backing else "(?!)"
    for word in line.words:
        whole, *parts = (re.sub(drop, "", plainly(x)) for x in (word.word, *(p.text for p in word.syllables)))
        row = [escape(part) for part in (parts if parts and "".join(parts) == whole else [whole])]
        phoneme = re.sub("[() ]", "", plainly(word.phoneme or ""))
        if phoneme and not re.fullmatch("[A-Z0-2]+", phoneme):      # it would be read as ARPAbet
            row[-1] += escape(f"{{{phoneme}}}")
        rows.append(row)
    whole = " ".join(map("".join, rows))
    if rows and line.backing and brackets:
        rows[0][0] = f"({rows[0][0]}"
        rows[-1][-1] += ")"
    elif whole[:1] in ("[", "("):
        rows[0][0] = JOINER + rows[0][0]
    return rows


def spelling(line: Line, escape: Callable[[str], str] = str, brackets: bool = True) -> str:
    """A line as text."""
    return " ".join(map("".join, spelt(line, escape, brackets)))


def pieces(line: Line, end: float | None, escape: Callable[[str], str] = str,
           brackets: bool = True) -> list[list[Chunk]]:
    """Texts and times of each word's syllables; none if a word has no start. Ends may be the next start."""
    if any(word.start is None for word in line.words):
        return []
    ends = [max(word.start, later.start) for word, later in itertools.pairwise(line.words)]
    rows = []
    for texts, word, later in zip(spelt(line, escape, brackets), line.words, [*ends, end]):
        parts = [(p.start, p.end) for p in word.syllables]
        whole = (word.start, later if word.end is None else word.end)
        rows.append([(text, *times) for text, times in zip(texts, parts if len(texts) > 1 else [whole])])
    return rows


def followed(lyrics: Lyrics) -> list[tuple[str, Line, float | None]]:
    """Each line with the heading that stands above it, or "", and with the next line's start, if known."""
    heads, section = [], ""
    for line in lyrics.lines:
        heads.append(heading(line.section) if line.words and line.section != section else "")
        section = line.section if line.words else section
    later = itertools.accumulate([None, *map(begin, lyrics.lines[:0:-1])], latest)
    return list(zip(heads, lyrics.lines, [*later][::-1]))


def span(line: Line, later: float | None) -> tuple[float | None, float | None]:
    """A line's start and end, widened to its words. An unknown end is the next line's start."""
    times = itertools.chain((line.start, line.end), *((word.start, word.end) for word in line.words))
    known = [time for time in times if time is not None]
    if not known:
        return None, None
    start, end = min(known), max(known)
    if line.end is None and line.words and line.words[-1].end is None:
        end = max(end, start + WORD_S * len(line.words) if later is None else later)
    return start, end


def shown(lyrics: Lyrics, kind: str, all_words: bool = False) -> Iterator[tuple[str, Line, float, float]]:
    """Every line that has words: its heading or "", itself, its start and its end.

    Raises: UserError for a line without a time or, where all_words are to have one, such a word.
    """
    for head, line, later in followed(lyrics):
        start, end = span(line, later)
        if line.words and (start is None or all_words and any(word.start is None for word in line.words)):
            raise UserError(f'{kind}: "{line.text[:40]}" has no time, which this format needs; plan it first')
        if line.words:
            yield head, line, start, end


def ticks(time: float, per_second: int) -> int:
    """A time in whole parts of a second; what is in order or touches stays so."""
    return round(time * per_second)


def clock(time: float, per_second: int = 1000, hours: bool = True) -> str:
    """A time as hh:mm:ss.fff, as many digits as per_second has, or as mm:ss.fff."""
    whole, part = divmod(ticks(time, per_second), per_second)
    front = f"{whole // 3600:02}:{whole // 60 % 60:02}" if hours else f"{whole // 60:02}"
    return f"{front}:{whole % 60:02}.{part:0{len(str(per_second)) - 1}}"


def stamped(words: list[list[Chunk]], stamp: Callable[[float], str]) -> str:
    """A line with a stamp before each syllable, and behind each that does not touch the next."""
    out, last = [], None
    for i, row in enumerate(words):
        out += [" "] * bool(i)
        for text, start, end in row:
            if last is not None and stamp(last) != stamp(start):
                out.append(stamp(last))
            out += stamp(start), text
            last = end
    return "".join([*out, stamp(last)] if last is not None else out)


def cut(text: str, stamp: re.Pattern, read_time: Callable[[str], float], start: float | None,
        end: float | None) -> list[Chunk]:
    """Cut a line of text at its word stamps. Raises: ValueError for what was meant to be one."""
    texts = stamp.split(text)
    for wrong in filter(None, map(NO_STAMP.search, texts[::2])):
        raise ValueError(f'"{wrong.string[wrong.start():][:16]}": no time in it; expected mm:ss.xx')
    times = [start, *map(read_time, texts[1::2]), end]
    return list(zip(texts[::2], times, times[1:])) if len(texts) > 1 else [(text, None, None)]


# LRC: [mm:ss.xx] in front of lines, <mm:ss.xx> in front of words.

LRC_TIME = "(?:[0-9]{1,4}:[0-9]{1,2}:[0-9]{1,2}[.,][0-9]{1,9}|[0-9]{1,4}:[0-9]{1,2}(?:[.,][0-9]{0,9})?)"
LRC_FRONT = re.compile(rf"(?:\[{LRC_TIME}\]\s*)*")
LRC_STAMP = re.compile(rf"[<\[]({LRC_TIME})[>\]]")
LRC_HEADER = re.compile(r"\[([a-z]+|[A-Z][A-Za-z]|#):(.*)\]")
LRC_OFFSET = re.compile(r"^[ \t]*\[offset:([^\]\n]*)\]", re.MULTILINE | re.IGNORECASE)


def read_lrc(text: str, draft: Draft) -> None:
    """Lines in order of time; an empty one ends the line before. A positive offset [ms] makes all earlier."""
    offset, gaps = 0.0, []
    if found := LRC_OFFSET.search(text):
        with draft.at(text.count("\n", 0, found.start()) + 1):
            offset = decimal(found[1], "offset") / 1000

    def time(stamp: str) -> float:
        return max(0.0, round(seconds(stamp) - offset, 6))

    for number, line in numbered(text):
        line = line.strip()
        front = LRC_FRONT.match(line)[0]
        header = LRC_HEADER.fullmatch(line)
        if header and header[1].lower() in ("ti", "ar"):
            key = {"ti": "title", "ar": "artist"}[header[1].lower()]
            setattr(draft, key, header[2].strip())
        if header:
            continue
        with draft.at(number):
            stamps = [time(stamp) for stamp in LRC_STAMP.findall(front)]
            chunks = cut(line[len(front):], LRC_STAMP, time, stamps[0] if stamps else None, None)
            stamps = stamps or [chunks[0][2]]
            if len(stamps) > 1 and len(stamps) * len(line) > 1_000_000:
                raise ValueError(f"{len(stamps)} times {len(line)} letters; expected a million in all")
            for stamp in stamps:
                late = 0.0 if stamp is None else stamp - stamps[0]
                if draft.add(number, ((t, *(x if x is None else round(x + late, 6) for x in times))
                                      for t, *times in chunks), stamp) and stamp is not None:
                    gaps.append(stamp)
    times = draft.sort()
    for gap in sorted(gaps):
        i = bisect.bisect_left(times, gap) - 1
        if i >= 0 and draft.lines[i].start is not None and draft.lines[i].end is None:
            draft.lines[i] = dataclasses.replace(draft.lines[i], end=gap)


def write_lrc(lyrics: Lyrics) -> str:
    """With word stamps where the words have times."""
    stamp = functools.partial(clock, per_second=100, hours=False)
    out = [f"[{key}:{plainly(text)}]" for key, text in (("ti", lyrics.title), ("ar", lyrics.artist)) if text]
    for head, line, later in followed(lyrics):
        start, words = begin(line), pieces(line, line.end, guard)
        text = stamped(words, lambda time: f"<{stamp(time)}>") if words else spelling(line, guard)
        out += [head] * bool(head)
        if line.words or start is not None:
            out.append(text if start is None else f"[{stamp(start)}]{text}")
        if line.end is not None and (later is None or line.end <= later):
            out.append(f"[{stamp(line.end)}]")
    return "\n".join([*out, ""])


# WebVTT and SubRip: cues.

CUE = re.compile(r"\s*([0-9:.,]+)\s*-->\s*([0-9:.,]+)(?:\s|$)")
CUE_STAMP = re.compile("<((?:[0-9]{1,4}:)?[0-9]{1,2}:[0-9]{1,2}[.,][0-9]{1,9})>")
CUE_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|\{\\[^{}]*\}")
NO_CUE = re.compile(r"(WEBVTT|NOTE|STYLE|REGION)(\s|$)")


def read_cues(text: str, draft: Draft, vtt: bool = False) -> None:
    """A cue is a line, however many rows it is shown in."""
    def bare(row: str) -> str:
        row = CUE_TAG.sub("", row)
        return html.unescape(row) if vtt else row
    if vtt and not NO_CUE.match(text):
        raise UserError(f'{draft.name}: line 1: expected WEBVTT, not "{text[:20]}"')
    for blank, block in itertools.groupby(numbered(text), lambda row: not row[1].strip()):
        block = list(block)
        if blank or vtt and NO_CUE.match(block[0][1]) and not any("-->" in row for _, row in block):
            continue
        first = 0 if "-->" in block[0][1] else min(1, len(block) - 1)        # behind a number or a name
        with draft.at(block[first][0]):
            cue = CUE.match(block[first][1])
            if not cue:
                raise ValueError("expected a cue, hh:mm:ss.fff --> hh:mm:ss.fff and its text behind it")
            start, end, rows = seconds(cue[1]), seconds(cue[2]), []
        for number, row in block[first + 1:]:
            with draft.at(number):
                if "-->" in row:
                    raise ValueError("a cue inside of a cue; expected an empty line before it")
                if SECTION.fullmatch(bare(row).strip()):
                    draft.add(number, [(bare(row), None, None)])
                else:
                    rows.append(row)
        with draft.at(block[first][0]):
            chunks = cut(" ".join(rows), CUE_STAMP, seconds, start, end)
            draft.add(block[first][0], ((bare(part), *times) for part, *times in chunks), start, end)


def write_cues(lyrics: Lyrics, vtt: bool = False) -> str:
    """WebVTT with word stamps, SubRip without."""
    def escape(part: str) -> str:
        return html.escape(guard(part), quote=False) if vtt else guard(part)
    out = ["WEBVTT\n\n"] * vtt
    for i, (head, line, start, end) in enumerate(shown(lyrics, "vtt" if vtt else "srt"), 1):
        words = pieces(line, end, escape) if vtt else []
        text = stamped(words, lambda time: f"<{clock(time)}>") if words else spelling(line, escape)
        times = f"{clock(start)} --> {clock(end)}"
        out.append(f"{times}\n" if vtt else f"{i}\n{times}\n".replace(".", ","))
        out.append(f"{html.escape(head, quote=False) if vtt else head}\n" * bool(head) + f"{text}\n\n")
    return "".join(out)


# ASS: {\k20} in front of each syllable, its length in centiseconds.

ASS_FIELDS = "Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text"
ASS_HEAD = f"""[Script Info]
ScriptType: v4.00+
Title: {{}}
Original Script: {{}}

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, Alignment, MarginL, MarginR, MarginV
Style: Default,Arial,20,&H00FFFFFF,&H000000FF,2,10,10,10

[Events]
Format: {ASS_FIELDS}
"""
ASS_TAG = re.compile(r"\\(k[tfo]?|K|p)([0-9]{1,9}(?:\.[0-9]{1,9})?)")


def karaoke(text: str, start: float) -> list[Chunk]:
    """The syllables of a line that starts then; drawings are left out. Raises: ValueError."""
    first, *parts = re.split(r"\{([^{}]*)\}", text)
    rows, end, drawing, sings = [([first], start, start)], start, False, False
    for block, body in zip(parts[::2], parts[1::2]):
        for tag, value in ASS_TAG.findall(block):
            if tag == "p":
                drawing = float(value) > 0
            elif tag == "kt":
                end = start + float(value) / 100
            else:
                sings, begun, end = True, end, round(end + float(value) / 100, 6)
                rows.append(([], begun, end))
        if not drawing:
            rows[-1][0].append(body)
    return [(re.sub(r"\\[Nnh]", " ", "".join(texts)), *(times if sings else (None, None)))
            for texts, *times in rows]


def read_ass(text: str, draft: Draft) -> None:
    """Dialogue lines in order of time; `Comment: ...,section,Verse` is what write_ass makes of sections."""
    fields, part = ASS_FIELDS.lower().split(", "), ""
    for number, line in numbered(text):
        key, _, value = line.partition(":")
        key, value = key.strip().lower(), value.strip()
        if line.startswith("["):
            part = line.strip().lower()
        elif key in ("title", "original script") and part == "[script info]":
            setattr(draft, "title" if key == "title" else "artist", value)
        elif part == "[events]" and key in ("format", "dialogue", "comment"):
            with draft.at(number):
                if key == "format":
                    fields = [name.strip().lower() for name in value.split(",")]
                    if not {"start", "end", "text"} <= set(fields):
                        raise ValueError(f'"{value[:40]}": expected Start, End and Text among the fields')
                    continue
                values = value.split(",", len(fields) - 1)
                if len(values) < len(fields):
                    raise ValueError(f"{len(values)} fields; expected {len(fields)}: {', '.join(fields)}")
                event = dict(zip(fields, values))
                if key == "dialogue":
                    start, end = seconds(event["start"].strip()), seconds(event["end"].strip())
                    draft.add(number, karaoke(event["text"], start), start, end)
                elif event.get("effect") == "section":
                    draft.section = plainly(event["text"])
    draft.sort()


def write_ass(lyrics: Lyrics) -> str:
    """One style; players show the sections nowhere."""
    out = [ASS_HEAD.format(plainly(lyrics.title), plainly(lyrics.artist))]
    for head, line, start, end in shown(lyrics, "ass"):
        last, text = ticks(start, 100), []
        for i, row in enumerate(pieces(line, end, guard)):
            text += [" "] * bool(i)
            for part, *times in row:
                a, b = (max(last, ticks(time, 100)) for time in times)
                text += [f"{{\\k{a - last}}}"] * (a > last)
                text.append(f"{{\\k{b - a}}}{part}")
                last = b
        when = ",".join(clock(time, 100)[1 if time < 36000 else 0:] for time in (start, end))
        if head:
            out.append(f"Comment: 0,{when},Default,,0,0,0,section,{plainly(line.section)}\n")
        out.append(f"Dialogue: 0,{when},Default,,0,0,0,,{''.join(text) or spelling(line, guard)}\n")
    return "".join(out)


# TTML: <p begin end><span begin end>word</span> ..., as Apple writes it.

TTML_TIME = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(h|ms|m|s)")
TTML_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<tt xmlns="http://www.w3.org/ns/ttml" xmlns:ttm="http://www.w3.org/ns/ttml#metadata" \
xmlns:itunes="http://music.apple.com/lyric-ttml-internal" itunes:timing="{}">
<head><metadata><ttm:title>{}</ttm:title></metadata></head>
<body>
"""


class Ttml:
    """What an XML parser calls: elements and texts to lines. All times count from the song's start."""

    def __init__(self, draft: Draft, parser: object):
        self.draft, self.parser = draft, parser
        self.stack = [("", (None, None), None)]        # tags, the times and the rows that their texts go to
        self.lead, self.title = None, []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins. Raises: ValueError."""
        tag, given = tag.rpartition(":")[2], {name.rpartition(":")[2]: x for name, x in attributes.items()}
        _, times, rows = self.stack[-1]
        if tag == "div":
            self.draft.section = plainly(given.get("songPart") or given.get("song-part") or "")
        if tag in ("p", "span") and "begin" in given:
            begun = ttml_seconds(given["begin"])
            end = ttml_seconds(given["end"]) if "end" in given else (
                round(begun + ttml_seconds(given["dur"]), 6) if "dur" in given else None)
            check_span(begun, end)
            times = (begun, end)
        if tag == "p":
            if self.lead is not None:
                raise ValueError("a p inside of a p")
            self.lead, self.backing = [], []
            self.p = self.bg = (self.parser.CurrentLineNumber, *(times if "begin" in given else (None, None)))
            times, rows = (None, None), self.lead
        elif self.lead is not None and "begin" in given and self.p[1] and times[1] and times[1] < self.p[1]:
            raise ValueError("a span that ends before its p begins; expected times from the song's start")
        elif self.lead is not None and given.get("role") == "x-bg":
            self.bg = (self.p[0], *times) if "begin" in given else self.p
            times, rows = (None, None), self.backing
        elif given.get("role") in ("x-translation", "x-roman"):
            rows = None
        if tag == "br":
            self.text(" ")
        self.stack.append((tag, times, rows))

    def end(self, tag: str) -> None:
        """An element ends. Raises: ValueError."""
        tag, *_ = self.stack.pop()
        if tag == "p":
            lines, self.lead = ((self.p, self.lead, False), (self.bg, self.backing, True)), None
            for (number, *times), rows, backing in lines:
                self.draft.add(number, (("".join(texts), *when) for texts, when in rows), *times, backing)

    def text(self, text: str) -> None:
        """Text of the innermost element."""
        tag, times, rows = self.stack[-1]
        if tag == "title":
            self.title.append(text)
        elif rows and rows[-1][1] is times:
            rows[-1][0].append(text)
        elif rows is not None:
            rows.append(([text], times))


def ttml_seconds(text: str) -> float:
    """Read 12.5s, 1234ms, 12.5 or hh:mm:ss.fff. Raises: ValueError."""
    if offset := TTML_TIME.fullmatch(text):
        return round(float(offset[1]) * {"h": 3600, "m": 60, "s": 1, "ms": 0.001}[offset[2]], 6)
    return seconds(text)


def read_ttml(text: str, draft: Draft) -> None:
    """Divisions with a song part are sections. No DOCTYPE, hence no entities that grow or read files."""
    from xml.parsers import expat
    parser = expat.ParserCreate("utf-8")             # whatever the file says that it was
    parser.buffer_text = True
    reader = Ttml(draft, parser)

    def refuse(*_: object) -> None:
        raise ValueError("a DOCTYPE; expected none")
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = reader.text, refuse
    try:
        parser.Parse(text.encode("utf-8", "replace"), True)
    except expat.ExpatError as e:
        place = f"line {e.lineno}, column {e.offset + 1}"
        raise UserError(f"{draft.name}: {place}: not XML: {expat.ErrorString(e.code)}") from None
    except ValueError as e:
        raise UserError(f"{draft.name}: line {parser.CurrentLineNumber}: {str(e)[:300]}") from None
    draft.title = plainly("".join(reader.title))


def write_ttml(lyrics: Lyrics) -> str:
    """A division for each section."""
    escape = functools.partial(html.escape, quote=False)
    timed, out = "Word" if lyrics.timed else "Line", []
    for head, line, later in followed(lyrics):
        if not line.words:
            continue
        if head or not out:
            part = f' itunes:songPart="{html.escape(plainly(line.section))}"' if line.section else ""
            out.append("</div>\n" * bool(out) + f"<div{part}>\n")
        (start, end), spans = span(line, later), []
        for row in pieces(line, end, escape, brackets=False):
            spans.append("".join(f'<span begin="{clock(a)}" end="{clock(b)}">{t}</span>' for t, a, b in row))
        text = " ".join(spans) or spelling(line, escape, brackets=False)
        text = f'<span ttm:role="x-bg">{text}</span>' if line.backing else text
        times = "" if start is None else f' begin="{clock(start)}" end="{clock(end)}"'
        out.append(f"<p{times}>{text}</p>\n")
    out.append("</div>\n" * bool(out) + "</body></tt>\n")
    return TTML_HEAD.format(timed, escape(plainly(lyrics.title))) + "".join(out)


# UltraStar: notes in beats, ": start length pitch text".

NOTE = re.compile(r"([:*FRG])\s*(-?[0-9]{1,9})\s+([0-9]{1,9})\s+-?[0-9]{1,9}(?: (.*))?", re.DOTALL)
BREAK = re.compile(r"-\s*(-?[0-9]{1,9})(?:\s+(-?[0-9]{1,9}))?\s*")
BEATS = 100                    # a second, as written


def read_ultrastar(text: str, draft: Draft) -> None:
    """A duet's voices are merged in order of time; a line that both have is sung once."""
    head, rows, base, first = {"gap": 0.0, "relative": "no"}, [], 0, 0

    def flush() -> None:
        with draft.at(first):
            draft.add(first, rows)
        rows.clear()
    for number, line in numbered(text):
        note, pause = NOTE.fullmatch(line), BREAK.fullmatch(line)
        with draft.at(number):
            if line.startswith("#"):
                key, _, value = line[1:].partition(":")
                key = key.strip().lower()
                head[key] = decimal(value, f"#{key.upper()}") if key in ("bpm", "gap") else value.strip()
                if key == "bpm" and not 1 <= head["bpm"] <= 1e6:
                    raise ValueError(f"#BPM {value[:20]}; expected 1 to a million quarters of beats a minute")
            elif note and "bpm" in head:
                at, length = (int(note[i]) for i in (2, 3))
                start, end = (round(head["gap"] / 1000 + beat * 15 / head["bpm"], 6)
                              for beat in (base + at, base + at + length))
                check_span(start, end)
                first = first if rows else number
                rows.append((note[4] or "", start, end))
            elif pause:
                flush()
                if head["relative"].lower() == "yes":
                    base += int(pause[2] or pause[1])
            elif re.fullmatch(r"P\s*[1-3]\s*", line):
                flush()
                base = 0
            elif line.strip() == "E":
                break
            elif line.strip():
                raise ValueError(f'"{line[:40]}"; expected #BPM:..., then notes like ": 12 4 60 text"')
    flush()
    draft.title, draft.artist = head.get("title", ""), head.get("artist", "")
    draft.sort()
    draft.lines = list(dict.fromkeys(draft.lines))


def write_ultrastar(lyrics: Lyrics) -> str:
    """With hundredths of a second as beats; the pitches are all 0."""
    out = [f"#TITLE:{plainly(lyrics.title)}", f"#ARTIST:{plainly(lyrics.artist)}",
           f"#BPM:{15 * BEATS}", "#GAP:0"]
    last = None
    for _, line, _, end in shown(lyrics, "ultrastar", all_words=True):
        out += [f"- {last}"] * (last is not None)
        for i, row in enumerate(pieces(line, end)):
            for j, (text, *times) in enumerate(row):
                start, last = (ticks(time, BEATS) for time in times)
                out.append(f": {start} {last - start} 0 {' ' * (i > 0 and j == 0)}{text}")
    return "\n".join([*out, "E", ""])


# Praat TextGrid: tiers of intervals.

PRAAT = re.compile(r'"([^"]*(?:""[^"]*)*)"'
                   r'|(?<!\S)(-?[0-9]{1,15}(?:\.[0-9]{1,30})?(?:[eE][-+]?[0-9]{1,3})?)(?!\S)'
                   r'|(?<!\S)![^\n]*|[^\s"]+')


def praat_values(text: str) -> Iterator[tuple[int, str | float]]:
    """The texts and numbers of a Praat file with their lines; in its long form all else is comment."""
    line, last = 1, 0
    for token in PRAAT.finditer(text):
        line, last = line + text.count("\n", last, token.start()), token.start()
        if token.lastindex:
            yield line, token[1].replace('""', '"') if token.lastindex == 1 else float(token[2])


def read_tiers(text: str, draft: Draft) -> list[tuple[str, list[Span]]]:
    """The interval tiers: names, and what is no pause. Raises: UserError."""
    values, line = praat_values(text), 1

    def take(kind: type) -> str | float:
        nonlocal line
        line, value = next(values, (line, None))
        with draft.at(line):
            if not isinstance(value, kind):
                found = "the end of the file" if value is None else f'"{str(value)[:40]}"'
                raise ValueError(f"{found}; expected a {'text in quotes' if kind is str else 'number'}")
        return value
    if (take(str), take(str)) not in itertools.product(("ooTextFile", "ooTextFile short"), ("TextGrid",)):
        raise UserError(f'{draft.name}: line 1: expected "ooTextFile" and "TextGrid"')
    take(float), take(float)
    tiers = []
    for _ in range(int(min(take(float), 1e6))):
        kind, name, spans = take(str), take(str), []
        take(float), take(float)
        for _ in range(int(min(take(float), 1e9))):
            times = take(float), take(float) if kind == "IntervalTier" else None
            label = take(str)
            if label.strip().lower() not in PAUSES:
                with draft.at(line):
                    check_span(*times)
                spans.append((line, label.strip(), *times))
        if kind == "IntervalTier":
            tiers.append((name.strip().lower(), spans))
    return tiers


def read_textgrid(text: str, draft: Draft) -> None:
    """Words of the tier "words" or else of the first, their phones and lines of tiers of such names."""
    tiers = read_tiers(text, draft)

    def named(*endings: str) -> list[Span] | None:
        return next((spans for name, spans in tiers if name.endswith(endings)), None)
    phones = named("phone", "phones", "phoneme", "phonemes")
    lines = named("line", "lines", "segments", "sentences", "phrases", "utterances")
    words = named("word", "words")
    if words is None:
        words = next((spans for _, spans in tiers if spans is not phones and spans is not lines), None)
    if words is None and lines is None:
        raise UserError(f"{draft.name}: no interval tier of words")
    if lines is None:
        add_labels(draft, words)
    else:
        found = []
        for number, label, *times in words or ():
            with draft.at(number):
                found += sung([(label, *times)])
        add_segments(draft, found, lines)
    rows, held = [list(line.words) for line in draft.lines], {}
    timed = [(row, j) for row in rows for j, word in enumerate(row) if word.timed]
    find = holders([(row[j].start, row[j].end) for row, j in timed])
    for number, label, *times in phones or ():
        with draft.at(number):
            part, key = Part(ipa(label), *times), find(sum(times) / 2)
            if key is not None:
                held.setdefault(key, (number, []))[1].append(part)
    for key, (number, parts) in held.items():
        with draft.at(number):
            row, j = timed[key]
            phoneme = "".join(part.text for part in parts)
            row[j] = dataclasses.replace(row[j], phoneme=phoneme, phones=tuple(parts))
    draft.lines = [dataclasses.replace(line, words=tuple(row)) for line, row in zip(draft.lines, rows)]


def write_textgrid(lyrics: Lyrics) -> str:
    """Tiers lines, words and, if there are any, phones. Raises: UserError for words at the same time."""
    rows, tiers = list(shown(lyrics, "textgrid")), {"lines": [], "words": [], "phones": []}
    longest = max((end for *_, end in rows), default=0.0)
    for (_, line, start, end), later in zip(rows, [*(start for *_, start, _ in rows[1:]), longest]):
        tiers["lines"].append((spelling(line), start, max(start, min(end, later))))
        for word, row in zip(line.words, pieces(line, end, label, brackets=False)):
            text = "".join(text for text, _, _ in row)
            tiers["words"].append((text, row[0][1], row[-1][2]))
            tiers["phones"] += [(plainly(p.text), p.start, p.end) for p in word.phones]
    names = [name for name, spans in tiers.items() if spans or name != "phones"]
    out = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", 0, longest, "<exists>", len(names)]
    for name in names:
        spans, last = [], 0.0
        for text, start, end in tiers[name]:
            if start < last or end <= start:
                raise UserError(f'textgrid: "{text[:40]}" has no length, or begins before the last one ends')
            spans += [("", last, start)] * (start > last) + [(text, start, end)]
            last = end
        spans += [("", last, longest)] * (last < longest)
        out += ['"IntervalTier"', f'"{name}"', 0, longest, len(spans)]
        for text, start, end in spans:
            out += [round(start, 6), round(end, 6), '"{}"'.format(text.replace('"', '""'))]
    return "\n".join(map(str, [*out, ""]))


# Audacity: start, end and text with tabs between them.

LABEL = re.compile(r"\s*[0-9]+(?:[.,][0-9]+)?\t\s*[0-9]+(?:[.,][0-9]+)?(?:\t|$)", re.MULTILINE)


def read_audacity(text: str, draft: Draft) -> None:
    """Labels of one word each, or of lines; a point's word has no end."""
    labels = []
    for number, line in numbered(text):
        if line.strip() and not line.startswith("\\"):           # frequencies
            with draft.at(number):
                start, end, label = (*line.split("\t", 2), "", "")[:3]
                start, end = decimal(start, "start"), decimal(end, "end")
                check_span(start, end)
            if label.strip():
                labels.append((number, label.strip(), start, end if end > start else None))
    add_labels(draft, labels)


def write_audacity(lyrics: Lyrics) -> str:
    """A label for each word that has a start, for a line without such words, and a point for a section."""
    out = []
    for head, line, *times in shown(lyrics, "audacity"):
        rows = [("".join(text for text, _, _ in row), row[0][1], row[-1][2])
                for row in pieces(line, times[1], label, brackets=False)] or [(spelling(line), *times)]
        for text, start, end in [(head, times[0], times[0])] * bool(head) + rows:
            out.append(f"{start:.6f}\t{end:.6f}\t{text}\n")
    return "".join(out)


# JSON: a list of words; the original's words and segments; Whisper's segments with words.

def entries(content: object, key: str, draft: Draft) -> Iterator[tuple[str, dict]]:
    """The objects of a list, each with its place. Raises: UserError if it is something else."""
    if not isinstance(content, list):
        raise UserError(f'{draft.name}: expected a JSON list of objects with "{key}"')
    for i, entry in enumerate(content, 1):
        if not isinstance(entry, dict):
            raise UserError(f'{draft.name}: {key} {i}: expected {{"{key}", "start", "end"}}')
        text = entry.get(key, entry.get("text", ""))
        if not isinstance(text, str):
            raise UserError(f'{draft.name}: {key} {i}: "{key}" must be a text')
        yield f'{key} {i} "{text[:40].strip()}"' if key == "word" else f"{key} {i}", entry | {key: text}


def times_of(entry: dict) -> tuple[float | None, float | None]:
    """Start and end of an object; either may be missing. Raises: ValueError."""
    times = []
    for key in ("start", "end"):
        value = entry.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            shown = f"{value[:20]!r}" if isinstance(value, str) else "no number"
            raise ValueError(f"{key} is {shown}; expected seconds, 0 or more")
        times.append(None if value is None else float(value) if abs(value) < 1e308 else math.inf)
    check_span(*times)
    return tuple(times)


def json_words(content: object, draft: Draft) -> list[Word]:
    """Words of a list {"word", "start", "end", "phoneme", "phones", "syllables"}. Raises: UserError."""
    words = []
    for place, entry in entries(content, "word", draft):
        with draft.at(place):
            parts = {key: tuple(Part(part["text"], *times_of(part)) for _, part in
                                entries(entry.get(key) or [], "text", draft))
                     for key in ("phones", "syllables")}
            words.append(Word(entry["word"], *times_of(entry), entry.get("phoneme") or None, **parts))
    return words


def word_json(word: Word) -> dict:
    """A word as an object that json_words reads; what it lacks is left out."""
    return {key: value for key, value in dataclasses.asdict(word).items() if value not in (None, ())}


def read_json(text: str, draft: Draft) -> None:
    """A list of words, all in one line."""
    words = json_words(json_of(text, draft.name), draft)
    draft.lines = [Line(tuple(words))] * bool(words)


def write_json(lyrics: Lyrics) -> str:
    """A word in each row."""
    rows = ",\n ".join(json.dumps(word_json(word), ensure_ascii=False) for word in lyrics.words)
    return f"[{rows}]\n"


def read_jam(text: str, draft: Draft) -> None:
    """{"word": [...], "segment": [...]}: the original's, whose segments are lines, and a song's account."""
    content = json_of(text, draft.name)
    if not isinstance(content, dict):
        raise UserError(f'{draft.name}: expected an object with "word", a list of words')
    words, segments = json_words(content.get("word"), draft), []
    for place, entry in entries(content.get("segment") or [], "segment", draft):
        with draft.at(place):
            segments.append((0, entry["segment"], *times_of(entry)))
    for key in ("title", "artist"):
        if isinstance(content.get(key), str):
            setattr(draft, key, content[key])
    add_segments(draft, words, segments)


def write_jam(lyrics: Lyrics) -> str:
    """Lines are segments; sections are segments without times; words without times only stand in segments."""
    words, segments = [], []
    for head, line, later in followed(lyrics):
        segments += [{"segment": head}] * bool(head)
        if line.words:
            if any(word.start is not None for word in line.words):
                words += map(word_json, line.words)
            times = zip(("start", "end"), span(line, later))
            segments.append({"segment": spelling(line)} | {k: t for k, t in times if t is not None})
    return json.dumps({"title": lyrics.title, "artist": lyrics.artist, "word": words, "segment": segments},
                      ensure_ascii=False, indent=1) + "\n"


def read_whisper(text: str, draft: Draft) -> None:
    """{"segments": [{"text", "words": [...]}]}: if words begin with blanks, one without is a syllable."""
    content = json_of(text, draft.name)
    if not isinstance(content, dict):
        raise UserError(f'{draft.name}: expected an object with "segments"')
    for place, segment in entries(content.get("segments"), "segment", draft):
        chunks = []
        for where, word in entries(segment.get("words") or [], "word", draft):
            with draft.at(f"{place}, {where}"):
                chunks.append((word["word"], *times_of(word)))
                Word("a", *chunks[-1][1:])
        spaced = any(chunk[0][:1].isspace() for chunk in chunks)
        with draft.at(place):
            draft.add(0, [(text if spaced else f" {text}", *times) for text, *times in chunks]
                      or [(segment["segment"], None, None)], *times_of(segment))


def write_whisper(lyrics: Lyrics) -> str:
    """With a blank in front of each word, none in front of a further syllable."""
    segments = []
    for _, line, later in followed(lyrics):
        start, end = span(line, later)
        rows = [{"word": " " * (j == 0) + text, "start": a, "end": b} for row in pieces(line, end)
                for j, (text, a, b) in enumerate(row)]
        segments += [{"id": len(segments), "start": start, "end": end, "text": f" {spelling(line)}",
                      "words": rows}] * bool(line.words)
    text = "".join(segment["text"] for segment in segments)
    content = {"text": text, "segments": segments, "language": "en"}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


# Plain text.

def read_plain(text: str, draft: Draft) -> None:
    """Lines as they stand; a section without any is an empty line, for which a plan leaves room."""
    heading = 0                                          # the number of one that has no line yet
    def leave_room():
        if heading:
            draft.lines.append(Line((), section=draft.section, number=heading))
    for number, line in numbered(text):
        with draft.at(number):
            if SECTION.fullmatch(line.strip()) or not line.strip() and WORDLESS.match(draft.section):
                leave_room()
                heading = number if line.strip() else 0
            lines = len(draft.lines)
            draft.add(number, [(line, None, None)])
            heading = 0 if len(draft.lines) > lines else heading
    leave_room()


def write_plain(lyrics: Lyrics) -> str:
    """An empty line in front of each section."""
    rows = [(head, spelling(line)) for head, line, _ in followed(lyrics) if line.words or head]
    text = "".join(f"\n{head}\n" * bool(head) + f"{text}\n" * bool(text) for head, text in rows)
    return text.removeprefix("\n")


class Format(NamedTuple):
    """A format: what its files' names end in, how it is read and written, and what of a song it keeps."""
    extension: str
    reader: Callable[[str, Draft], None]
    writer: Callable[[Lyrics], str]
    carries: str


KINDS = {
    "json": Format(".json", read_json, write_json, "words syllables phones phonemes"),
    "jam": Format(".json", read_jam, write_jam,
                  "title artist sections backing lines words syllables phones phonemes"),
    "whisper": Format(".json", read_whisper, write_whisper, "backing lines words syllables phonemes"),
    "lrc": Format(".lrc", read_lrc, write_lrc,
                  "title artist sections backing lines words syllables phonemes"),
    "vtt": Format(".vtt", functools.partial(read_cues, vtt=True), functools.partial(write_cues, vtt=True),
                  "sections backing lines words syllables phonemes"),
    "srt": Format(".srt", read_cues, write_cues, "sections backing lines phonemes"),
    "ass": Format(".ass", read_ass, write_ass, "title artist sections backing lines words syllables"),
    "ttml": Format(".ttml", read_ttml, write_ttml, "title sections backing lines words syllables phonemes"),
    "ultrastar": Format(".txt", read_ultrastar, write_ultrastar,
                        "title artist backing lines words syllables phonemes"),
    "textgrid": Format(".TextGrid", read_textgrid, write_textgrid, "backing lines words phones phonemes"),
    "audacity": Format(".txt", read_audacity, write_audacity, "sections words phonemes"),
    "text": Format(".txt", read_plain, write_plain, "sections backing phonemes"),
}
ENDINGS = {".lrc": "lrc", ".vtt": "vtt", ".srt": "srt", ".ass": "ass", ".ssa": "ass", ".ttml": "ttml",
           ".xml": "ttml", ".textgrid": "textgrid"}


def kind_of(path: Path, text: str) -> str:
    """Which format a file has: by its ending, `.json` and `.txt` by their contents. Raises: UserError."""
    ending = path.suffix.lower()
    if ending == ".txt":
        if re.search(r"^#BPM:", text, re.MULTILINE | re.IGNORECASE):
            return "ultrastar"
        return "audacity" if LABEL.match(text) else "text"
    if ending == ".json":
        content = json_of(text, str(path))
        if isinstance(content, dict):
            return "whisper" if "segments" in content else "jam"
        return "json"
    if ending not in ENDINGS:
        raise UserError(f"{path}: unknown ending; expected .json, .txt, {', '.join(ENDINGS)}, or one of the "
                        f"formats by its name: {', '.join(KINDS)}")
    return ENDINGS[ending]


def kind_for(path: Path) -> str:
    """Which format a file is to be written in: by its ending; .txt is plain text. Raises: UserError."""
    return {".json": "jam", ".txt": "text"}.get(path.suffix.lower()) or kind_of(path, "")


def parse(text: str, kind: str, name: str) -> Lyrics:
    """Lyrics of a text in a format of KINDS; name is the file's, for errors.

    Raises: UserError with the file and the line, or a word's number, for a mistake; for an unknown kind.
    """
    draft = Draft(name)
    format_of(kind).reader(text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"), draft)
    return Lyrics(tuple(map(closed, draft.lines)), draft.title, draft.artist)


def closed(line: Line) -> Line:
    """A line whose last word, if it has a start alone, ends where the line ends."""
    last = line.words[-1] if line.words else None
    if not last or None in (line.end, last.start) or last.end is not None or last.start > line.end:
        return line
    return dataclasses.replace(line, words=(*line.words[:-1], dataclasses.replace(last, end=line.end)))


def format_of(kind: str) -> Format:
    """A row of KINDS. Raises: UserError if there is none."""
    if kind not in KINDS:
        raise UserError(f"{kind}: unknown format; known: {', '.join(KINDS)}")
    return KINDS[kind]


def read(path: Path, kind: str | None = None) -> Lyrics:
    """Lyrics of a file in UTF-8 or, with its mark at the beginning, UTF-16. Raises: UserError, as parse."""
    try:
        with path.open("rb") as file:
            wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        text = path.read_text(encoding="utf-16") if wide else read_text(path)
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: byte {e.start}: not UTF-16 text") from None
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None
    return parse(text, kind or kind_of(path, text), str(path))


def write(lyrics: Lyrics, kind: str) -> str:
    """The text of a file. The words of a line are written with times if all of them have starts.

    Raises: UserError for lyrics that lack what the format needs, such as times, or last more than 100 hours.
    """
    for line in lyrics.lines:
        _, end = span(line, None)
        if end is not None and end > LONGEST_S:
            raise UserError(f'{kind}: "{line.text[:40]}" ends at {end:g} s; expected 100 hours at most')
    return UNPRINTABLE.sub(lambda c: c[0] if c[0] in "\n\t" else "\ufffd", format_of(kind).writer(lyrics))
