"""ASS: dialogue lines with {\\k20} in front of each syllable, its length in hundredths of a second."""

import re

from lyrics.formats.shared import Draft, FileLines, Piece, clock, guard, plainly, seconds, timed_rows
from lyrics.timing import Lyrics

FIELDS = "Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text"
ASS_HEAD = f"""[Script Info]
ScriptType: v4.00+
Title: {{}}
Original Script: {{}}

[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, SecondaryColour, Alignment, MarginL, MarginR, MarginV
Style: Default,Arial,20,&H00FFFFFF,&H000000FF,2,10,10,10

[Events]
Format: {FIELDS}"""
KARAOKE = re.compile(r"\\(k[tfo]?|K|p)([0-9]{1,9}(?:\.[0-9]{1,9})?)")


def read_ass(text: str, draft: Draft) -> None:
    """Dialogue lines in order of time; `write_ass` writes a section as `Comment: ...,section,Verse`.

    Where a templater has turned karaoke lines into comments and written dialogue lines of effects, those
    comments are the lines.
    """
    fields, part, head, events = FIELDS.lower().split(", "), "", {}, []
    for line in draft.numbered(text):
        key, _, value = line.partition(":")
        key, value = key.strip().lower(), value.strip()
        if line.startswith("["):
            part = line.strip().lower()
        elif part == "[script info]":
            head[key] = value
        elif part == "[events]" and key == "format":
            fields = [name.strip().lower() for name in value.split(",")]
            if not {"start", "end", "text"} <= set(fields):
                raise ValueError(f'"{value[:40]}": expected Start, End and Text among the fields')
        elif part == "[events]" and key in ("dialogue", "comment"):
            values = value.split(",", len(fields) - 1)
            if len(values) < len(fields):
                raise ValueError(f"{len(values)} fields; expected {len(fields)}: {', '.join(fields)}")
            event = {name: value.strip() for name, value in zip(fields[:-1], values)}
            events.append((draft.place, (key, event.get("effect", "").lower()), event, values[-1]))
    source = ("comment", "karaoke")
    templated = any(kind == source for _, kind, *_ in events)
    for draft.place, kind, event, words in events:
        if kind == source or kind[0] == "dialogue" and not templated:
            start, end = seconds(event["start"]), seconds(event["end"])
            draft.add(karaoke(words, start), start, end)
        elif kind[1] == "section":
            draft.section = plainly(words)
    draft.title, draft.artist = head.get("title", ""), head.get("original script", "")
    draft.sort()


def karaoke(text: str, start: float) -> list[Piece]:
    """The syllables of a line that begins at `start`; drawings are left out."""
    first, *parts = re.split(r"\{([^{}]*)\}", text)      # tags and the texts after them, in turn
    rows, end, drawing, sings = [([first], start, start)], start, False, False
    for tags, body in zip(parts[::2], parts[1::2]):
        for tag, value in KARAOKE.findall(tags):
            if tag == "p":
                drawing = float(value) > 0
            elif tag == "kt":
                end = start + float(value) / 100
            else:
                sings, begun, end = True, end, round(end + float(value) / 100, 6)
                rows.append(([], begun, end))
        if not drawing:
            rows[-1][0].append(body)
    return [Piece(re.sub(r"\\[Nnh]", " ", "".join(texts)), *(times if sings else ()))
            for texts, *times in rows]


def write_ass(lyrics: Lyrics) -> FileLines:
    """One style; sections are comments, which players do not show."""
    yield ASS_HEAD.format(plainly(lyrics.title), plainly(lyrics.artist))
    for row in timed_rows(lyrics, "ass", guard):
        last, text = round(row.start * 100), ""
        for gap, syllable, *times in row.syllables():
            start, end = (max(last, round(time * 100)) for time in times)
            pause = f"{{\\k{start - last}}}" if start > last else ""
            text += f"{gap}{pause}{{\\k{end - start}}}{syllable}"
            last = end
        times = ",".join(clock(time, 100)[1 if time < 36000 else 0:] for time in (row.start, row.end))
        if row.heading:
            yield f"Comment: 0,{times},Default,,0,0,0,section,{plainly(row.line.section)}"
        yield f"Dialogue: 0,{times},Default,,0,0,0,,{text or row.text()}"
