"""A page that plays a finished song and lights its words as they are sung.

Read `page`, then `fill` (its template is page.html). Nothing here trusts the words: they come from anyone's
files, and people pass pages on.
"""

import base64
import hashlib
import html
import json
import math
import os
import re
import urllib.parse
from pathlib import Path

import numpy as np
from torch import Tensor

from config import UserError
from lyrics.timing import HELD, Lyrics, Word
from support.files import reading

MEDIA = {".mp3": "audio/mpeg", ".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg"}
EMBED_BYTES = 8_000_000        # a larger song lies beside its page
PEAKS_PER_S = 40


# Words as pages, pictures and tags show them

def checked(lyrics: Lyrics) -> list[Word]:
    """All words, sorted by their starts. Raises: UserError if one has no times."""
    for i, word in enumerate(lyrics.words, 1):
        if not word.timed:
            raise UserError(f'word {i} "{word.word}": has no times; expected the words of a finished song')
    return sorted(lyrics.words, key=lambda word: word.start)


def utf8(text: str) -> str:
    """A text that UTF-8 and tags can hold: JSON may hold half a surrogate pair, and NUL ends a tag's text."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def shown(word: Word) -> str:
    """A word without the signs that say how long it is held."""
    return utf8(word.word.replace(HELD, "") or word.word)


# The page


def page(lyrics: Lyrics, audio: Path, title: str, wave: Tensor, rate_hz: int,
         name: Path | None = None) -> str:
    """One HTML file, in ASCII, that plays a song and lights its words. It loads nothing from elsewhere.

    Args: lyrics with times; audio, the song's file, and what it will be called (name): up to 8 MB the page
        holds it, a larger file has to lie beside the page; wave (W, N) at rate_hz, the file's sound, N of 1
        or more.
    Raises: UserError if a word has no times, or the file is missing or of an unknown kind.
    """
    checked(lyrics)
    name = name or audio
    kind = MEDIA.get(name.suffix.lower())
    if kind is None:
        raise UserError(f"{name}: unknown ending; expected {', '.join(MEDIA)}")
    with reading(audio):
        source, media = urllib.parse.quote(os.fsencode(name.name)), "'self' file:"
        if audio.stat().st_size <= EMBED_BYTES:
            source, media = f"data:{kind};base64,{base64.b64encode(audio.read_bytes()).decode()}", "data:"
    lines = [{"section": utf8(line.section), "backing": line.backing,
              "words": [[shown(word), round(word.start, 3), round(word.end, 3)] for word in line.words]}
             for line in lyrics.lines]
    song = {"file": utf8(name.name), "duration": wave.shape[1] / rate_hz, "rate": PEAKS_PER_S,
            "peaks": peaks(wave, rate_hz), "lines": lines}
    title, artist = (html.escape(utf8(text)).encode("ascii", "xmlcharrefreplace").decode()
                     for text in (title, lyrics.artist))
    return fill("page.html", song, title=title, artist=artist, audio=source, media=media)


def peaks(wave: Tensor, rate_hz: int, per_s: int = PEAKS_PER_S) -> list[int]:
    """The largest value of any channel of wave (W, N) in each 1/per_s s, as percents of full scale."""
    level = wave.abs().amax(0).numpy()                                                        # (N,)
    first = np.arange(math.ceil(len(level) * per_s / rate_hz)) * rate_hz // per_s
    return np.rint(100 * np.maximum.reduceat(level, first).clip(0, 1)).astype(int).tolist()


def fill(template: str, data: object, **values: str) -> str:
    """Fill in the @names@ of a template beside this file: @data@ as JSON for its script, @timeline@ as the
    code of timeline.js, the others, which must be HTML, as given.

    Its Content-Security-Policy names the template's own script and style by their hashes; no other runs.
    """
    folder = Path(__file__).parent
    shared = re.sub("^export ", "", (folder / "timeline.js").read_text(encoding="ascii"), flags=re.MULTILINE)
    text = (folder / template).read_text(encoding="ascii").replace("@timeline@", shared)
    for tag in ("script", "style"):
        code = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        values[tag] = f"sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}"
    # "<" could end the script; in JSON of ASCII nothing else means anything to HTML.
    values["data"] = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return re.sub(r"@(\w+)@", lambda name: values[name[1]], text)
