"""A typed or pasted text becomes a document: words that stay keep their times and singers.

Read `with_lyrics`; lyrics/revise.py decides which words stay.
"""

import itertools
import re
from pathlib import Path

from config import UserError
from lyrics import formats
from lyrics.plan import PlanSettings
from lyrics.pronounce import Reader
from lyrics.revise import revised
from lyrics.timing import Lyrics
from studio.document import MOST_WORDS, lines_of, lyrics_of

# How texts in a format with times begin, or what they hold; the others are told apart by formats.kind_of.
SIGNS = {"ass": r"\A\s*\[Script Info\]", "vtt": r"\AWEBVTT", "ttml": r"\A\s*<(\?xml|tt)\b",
         "textgrid": r'\A\s*File type\s*=\s*"ooTextFile"', "srt": r"\A\s*\d+\s*\n\s*[\d:,.]+\s*-->",
         "lrc": r"^\[\d+:\d\d"}


def kind_of_text(text: str) -> str:
    """The format of a text without a file's name. Raises: UserError for JSON with a mistake."""
    if re.match(r'\s*(\{\s*"|\[\s*\{)', text):
        return formats.kind_of(Path("text.json"), text)
    found = (kind for kind, sign in SIGNS.items() if re.search(sign, text, re.MULTILINE))
    return next(found, None) or formats.kind_of(Path("text.txt"), text)


def with_lyrics(document: dict, new: Lyrics, reader: Reader) -> dict:
    """A document with other lyrics: see `revised`. A line's singer is that of its first word with one.

    Raises: UserError for too many words, and if words have no room.
    """
    if len(new.words) > MOST_WORDS:
        raise UserError(f"text: {len(new.words)} words; expected {MOST_WORDS} at most")
    singers = [*(line["style"] for line in document["lines"] for _ in line["words"]), None]
    timed, places = revised(lyrics_of(document), new, reader, PlanSettings(bpm=document["bpm"]), Path("text"))
    lines, rest = lines_of(timed), iter(places)
    for line in lines:
        own = (singers[place] for place in itertools.islice(rest, len(line["words"])))
        line["style"] = next(filter(None, [*own]), None)
    return document | {"title": new.title or document["title"], "artist": new.artist or document["artist"],
                       "lines": lines}
