"""UltraStar: notes in beats, `: start length pitch text`, and `- beat` between lines."""

import re

from lyrics.formats.shared import Draft, FileLines, Piece, decimal, plainly, timed_rows
from lyrics.timing import Lyrics, check_span

NOTE = re.compile(r"([:*FRG])\s*(-?[0-9]{1,9})\s+([0-9]{1,9})\s+-?[0-9]{1,9}(?: (.*))?", re.DOTALL)
BREAK = re.compile(r"-\s*(-?[0-9]{1,9})(?:\s+(-?[0-9]{1,9}))?\s*")
BEATS = 100                    # a second, as written


def read_ultrastar(text: str, draft: Draft) -> None:
    """A duet's voices are merged in order of time; a line that both have is sung once."""
    head, notes, base = {"gap": 0.0, "relative": "no"}, [], 0

    def end_line() -> None:
        if notes:
            draft.place = notes[0].number
            draft.add(notes)
            notes.clear()

    for line in draft.numbered(text):
        if line.startswith("#"):
            key, _, value = line[1:].partition(":")
            key = key.strip().lower()
            head[key] = decimal(value, f"#{key.upper()}") if key in ("bpm", "gap") else value.strip()
            if key == "bpm" and not 1 <= head["bpm"] <= 1e6:
                raise ValueError(f"#BPM {value[:20]}; expected 1 to a million quarters of beats a minute")
        elif "bpm" in head and (note := NOTE.fullmatch(line)):
            first = base + int(note[2])
            beats = (first, first + int(note[3]))
            times = [round(head["gap"] / 1000 + beat * 15 / head["bpm"], 6) for beat in beats]
            check_span(*times)
            notes.append(Piece(note[4] or "", *times, draft.place))
        elif pause := BREAK.fullmatch(line):
            end_line()
            if head["relative"].lower() == "yes":
                base += int(pause[2] or pause[1])
        elif re.fullmatch(r"P\s*[1-3]\s*", line):        # another voice
            end_line()
            base = 0
        elif line.strip() == "E":
            break
        elif line.strip():
            raise ValueError(f'"{line[:40]}"; expected #BPM:..., then notes like ": 12 4 60 text"')
    end_line()
    draft.title, draft.artist = head.get("title", ""), head.get("artist", "")
    draft.sort()
    draft.lines = list(dict.fromkeys(draft.lines))


def write_ultrastar(lyrics: Lyrics) -> FileLines:
    """With hundredths of a second as beats; the pitches are all 0."""
    yield f"#TITLE:{plainly(lyrics.title)}\n#ARTIST:{plainly(lyrics.artist)}\n#BPM:{15 * BEATS}\n#GAP:0"
    last = None
    for row in timed_rows(lyrics, "ultrastar", all_words=True):
        if last is not None:
            yield f"- {last}"
        for gap, text, *times in row.syllables():
            start, last = (round(time * BEATS) for time in times)
            yield f": {start} {last - start} 0 {gap}{text}"
    yield "E"
