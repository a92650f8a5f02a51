"""Who sings: one voice sings one line at a time. Read `choose`, then `answers`.

The lead is the voice v1 or P1 where a file names its voices, and all that is not backing where it does not.
A line without a name in such a file is everyone's.
"""

import bisect
import itertools
import math

from config import UserError
from lyrics.timing import Line, Lyrics

TOUCHING_S = 0.001             # a smaller overlap comes from rounding


def choose(lyrics: Lyrics, voice: str | None) -> tuple[Lyrics, Lyrics]:
    """The lines that a voice sings, and the others.

    Args: voice, "lead", "backing" or a name that the file gives; None for the lead and what answers it.
    Raises: UserError if the song has no such voice.
    """
    names, backing = names_of(lyrics), any(line.backing for line in lyrics.lines)
    known = ["lead", *(["backing"] if backing else []), *names]
    if voice is not None and voice not in known:
        raise UserError(f"--voice {voice}: the lyrics have no such voice; expected one of {', '.join(known)}")
    if voice is None:
        sings = answers(lyrics)
    elif voice == "backing":
        sings = [line.backing for line in lyrics.lines]
    else:
        name = min(names, default="") if voice == "lead" else voice
        sings = [not line.backing and line.voice in ("", name) for line in lyrics.lines]
    return lyrics.only(sings), lyrics.only([not own for own in sings])


def names_of(lyrics: Lyrics) -> list[str]:
    """The names that lines give to their voices, the lead's first."""
    return sorted({line.voice for line in lyrics.lines if line.voice})


def answers(lyrics: Lyrics) -> list[bool]:
    """Of each line, whether it is the lead's, or sounds while the lead and the lines before are silent.

    What has no times yet can still be given such ones.
    """
    lead, spans = min(names_of(lyrics), default=""), [*map(extent, lyrics.lines)]
    sings = [not line.backing and line.voice in ("", lead) for line in lyrics.lines]
    taken = sorted(span for own, span in zip(sings, spans) if own and span)
    starts, ends = [start for start, _ in taken], [*itertools.accumulate((end for _, end in taken), max)]
    others, last = [i for i, own in enumerate(sings) if not own], -math.inf
    for i in sorted(others, key=lambda i: spans[i] or (math.inf, 0)):
        if spans[i]:
            start, end = spans[i]
            begun = bisect.bisect_left(starts, max(end, start + TOUCHING_S) - TOUCHING_S)
            if max(last, ends[begun - 1] if begun else last) > start + TOUCHING_S:
                continue
            last = end
        sings[i] = True
    return sings


def extent(line: Line) -> tuple[float, float] | None:
    """From when to when a line sounds, as far as it is known: its words' times, or else its own."""
    times = [time for word in line.words for time in (word.start, word.end) if time is not None]
    times = times or [time for time in (line.start, line.end) if time is not None]
    return (min(times), max(times)) if times else None
