"""TTML: <p begin end><span begin end>word</span> ..., as Apple writes it."""

import functools
import html
import math
import re
from xml.parsers import expat

from lyrics.formats.shared import Draft, FileLines, Piece, Time, clock, plainly, rows, seconds
from lyrics.timing import VOICE, Lyrics, check_span

OFFSET = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)(h|ms|m|s)")
NO_TIMES = (None, None)
TTML_HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<tt xmlns="http://www.w3.org/ns/ttml" xmlns:ttm="http://www.w3.org/ns/ttml#metadata" \
xmlns:itunes="http://music.apple.com/lyric-ttml-internal" itunes:timing="{}">
<head><metadata><ttm:title>{}</ttm:title></metadata></head>
<body>"""


def read_ttml(text: str, draft: Draft) -> None:
    """Divisions with a song part are sections. No DOCTYPE, hence no entities that grow or read files."""
    reader = TtmlReader(draft)
    try:
        reader.parser.Parse(text.encode("utf-8", "replace"), True)
    except expat.ExpatError as e:
        draft.place = f"line {e.lineno}, column {e.offset + 1}"
        raise ValueError(f"not XML: {expat.ErrorString(e.code)}") from None
    draft.sort()
    draft.title = plainly("".join(reader.title))


class TtmlReader:
    """Handles an XML parser's events: a p becomes a line, and what it has in the role x-bg one of backing.

    The voice is the agent of the p, or of the division around it; an agent that is a group is everyone.
    """

    def __init__(self, draft: Draft):
        self.draft, self.title = draft, []
        self.elements = [("", NO_TIMES, None, "")]       # the open ones: tag, times, list of texts, agent
        self.groups, self.names = set(), {}              # agents that are several people; ours of odd ones
        # Of the open p, as lead and as backing: its times, and its texts, each (parts, times).
        self.lead = self.backing = None
        self.parser = expat.ParserCreate("utf-8")        # whatever encoding the file says it had
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self.doctype
        self.parser.StartElementHandler, self.parser.EndElementHandler = self.start, self.end
        self.parser.CharacterDataHandler = self.text

    def doctype(self, *_: object) -> None:
        """Refuse it. Raises: ValueError."""
        self.draft.place = self.parser.CurrentLineNumber
        raise ValueError("a DOCTYPE; expected none")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins. All times count from the song's start. Raises: ValueError."""
        self.draft.place = self.parser.CurrentLineNumber
        tag, given = tag.rpartition(":")[2], {name.rpartition(":")[2]: x for name, x in attributes.items()}
        _, times, texts, agent = self.elements[-1]
        agent = given.get("agent", agent)
        if tag == "agent" and given.get("type") == "group":
            self.groups.add(given.get("id"))
        own = span_of(given) if tag in ("p", "span") and "begin" in given else None
        times = own or times
        if tag == "div":
            self.draft.section = plainly(given.get("songPart") or given.get("song-part") or "")
        if tag == "p":
            if self.lead is not None:
                raise ValueError("a p inside a p")
            self.lead, self.backing, self.place = (own or NO_TIMES, []), (None, []), self.draft.place
            self.second = given.get("role") == "x-bg"
            times, texts = NO_TIMES, self.lead[1]
        elif self.lead and given.get("role") == "x-bg":
            self.backing = own, self.backing[1]
            times, texts = NO_TIMES, self.backing[1]
        elif self.lead and texts is self.lead[1] and own and own[1] and own[1] < (self.lead[0][0] or 0.0):
            raise ValueError("a span that ends before its p begins; expected times from the song's start")
        elif given.get("role") in ("x-translation", "x-roman"):
            texts = None
        if tag == "br":
            self.text(" ")
        self.elements.append((tag, times, texts, agent))

    def end(self, _: str) -> None:
        """An element ends. Raises: ValueError."""
        tag, *_, agent = self.elements.pop()
        if tag == "p":
            self.draft.place = self.place
            self.draft.voice = "" if agent in self.groups else agent
            if not VOICE.fullmatch(self.draft.voice):
                self.draft.voice = self.names.setdefault(agent, f"v{len(self.names) + 1}")
            for (span, texts), backing in ((self.lead, self.second), (self.backing, True)):
                pieces = [Piece("".join(parts), *times) for parts, times in texts]
                if span is None:                         # backing may begin before the lead
                    first = min((p.start for p in pieces if p.start is not None), default=math.inf)
                    span = self.lead[0] if first >= (self.lead[0][0] or 0.0) else NO_TIMES
                self.draft.add(pieces, *span, backing=backing)
            self.lead = None

    def text(self, text: str) -> None:
        """Text of the innermost element. What stands under one pair of times is one piece."""
        tag, times, texts, _ = self.elements[-1]
        if tag == "title":
            self.title.append(text)
        elif texts and texts[-1][1] is times:
            texts[-1][0].append(text)
        elif texts is not None:
            texts.append(([text], times))


def span_of(given: dict[str, str]) -> tuple[float, Time]:
    """Start and end of an element by its attributes begin, and end or dur. Raises: ValueError."""
    start, end = seconds_of(given["begin"]), None
    if "end" in given:
        end = seconds_of(given["end"])
    elif "dur" in given:
        end = round(start + seconds_of(given["dur"]), 6)
    check_span(start, end)
    return start, end


def seconds_of(text: str) -> float:
    """Read 12.5s, 1234ms, 12.5 or hh:mm:ss.fff. Raises: ValueError."""
    if offset := OFFSET.fullmatch(text):
        return round(float(offset[1]) * {"h": 3600, "m": 60, "s": 1, "ms": 0.001}[offset[2]], 6)
    return seconds(text)


def write_ttml(lyrics: Lyrics) -> FileLines:
    """A division for each section."""
    escape = functools.partial(html.escape, quote=False)
    yield TTML_HEAD.format("Word" if lyrics.timed else "Line", escape(plainly(lyrics.title)))
    close = ""
    for row in rows(lyrics, escape, brackets=False):
        if row.heading or not close:
            part = f' itunes:songPart="{html.escape(plainly(row.line.section))}"' if row.line.section else ""
            yield f"{close}<div{part}>"
            close = "</div>\n"
        text = "".join(f'{gap}<span begin="{clock(start)}" end="{clock(end)}">{text}</span>'
                       for gap, text, start, end in row.syllables()) or row.text()
        if row.line.backing:
            text = f'<span ttm:role="x-bg">{text}</span>'
        times = "" if row.start is None else f' begin="{clock(row.start)}" end="{clock(row.end)}"'
        agent = f' ttm:agent="{html.escape(plainly(row.line.voice))}"' if row.line.voice else ""
        yield f"<p{times}{agent}>{text}</p>"
    yield f"{close}</body></tt>"
