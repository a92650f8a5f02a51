"""A finished song for eyes and players: a page that sings it with its words lit, a picture of it, its tags.

Read `page` (its template is karaoke.html), then `picture`, then `tag`. Words are not trusted here: they come
from anyone's files, and pages are passed on.
"""

import base64
import hashlib
import html
import json
import math
import os
import re
import shutil
import unicodedata
import urllib.parse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor

from cli import replacing
from config import UserError
from lyrics import Lyrics, Word

TEMPLATE = Path(__file__).with_name("karaoke.html")
MEDIA = {".mp3": "audio/mpeg", ".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg"}
EMBED_BYTES = 8_000_000        # a larger song lies beside its page
PEAKS_PER_S = 40

# The picture's sizes in pixels.
WIDTH, MARGIN, BELOW = 1200, 40, 32        # of all; at its sides; below a row, for its seconds
LANE, LANES = 18, 3                        # height of a line of words; how many of them where words are close
BANDS, HEIGHT, SHADES = 96, 192, 224       # mel bands; of a row; colours of the sound, of 256
ROW_S, MOST_ROWS = 12.0, 24                # seconds of a row at most; a song of more rows has longer ones
RANGE_DB, QUIETEST_DB = 70.0, -60.0        # what it shows; its loudest at least, so that silence is black
HEAT = ((0, 0, 4), (35, 12, 75), (95, 19, 110), (165, 44, 96), (225, 84, 52), (250, 155, 30), (252, 250, 170))


def checked(lyrics: Lyrics) -> list[Word]:
    """All words by their starts. Raises: UserError if one has no times."""
    for i, word in enumerate(lyrics.words, 1):
        if not word.timed:
            raise UserError(f'word {i} "{word.word}": has no times; expected the words of a finished song')
    return sorted(lyrics.words, key=lambda word: word.start)


def utf8(text: str) -> str:
    """A text that UTF-8 and tags can hold: JSON may hold half of a letter, and 0 ends a tag's text."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def shown(word: Word) -> str:
    """A word as it is read: without the signs that hold it."""
    return utf8(word.word.replace("~", "") or word.word)


def plain(lyrics: Lyrics) -> str:
    """The lyrics as people write them, a blank line and its name before each section."""
    text, section = [], ""
    for line in lyrics.lines:
        if line.section != section:
            section = line.section
            text += [""] * bool(text) + [f"[{utf8(section)}]"] * bool(section)
        if line.words:
            words = " ".join(map(shown, line.words))
            text.append(f"({words})" if line.backing else words)
    return "\n".join(text)


def peaks(wave: Tensor, rate_hz: int) -> list[int]:
    """The largest value of any channel of wave (W, N) in each 1/40 s, as percents of full scale."""
    level = wave.abs().amax(0).numpy()                                                        # (N,)
    first = np.arange(math.ceil(len(level) * PEAKS_PER_S / rate_hz)) * rate_hz // PEAKS_PER_S
    return np.rint(100 * np.maximum.reduceat(level, first).clip(0, 1)).astype(int).tolist()


def page(lyrics: Lyrics, audio: Path, title: str, wave: Tensor, rate_hz: int,
         name: Path | None = None) -> str:
    """One HTML file, in ASCII, that plays a song and lights its words; it loads nothing from elsewhere.

    Args: lyrics with times; audio, the song's file, and what it will be called (name): the page holds it if
        it has at most 8 MB, else it has to lie beside the page; wave (W, N) at rate_hz, what the file sounds
        like, N of 1 or more.
    Raises: UserError if a word has no times, or the file is missing or of an unknown kind.
    """
    checked(lyrics)
    name = name or audio
    kind = MEDIA.get(name.suffix.lower())
    if kind is None:
        raise UserError(f"{name}: unknown ending; expected {', '.join(MEDIA)}")
    try:
        if audio.stat().st_size <= EMBED_BYTES:
            source, allowed = f"data:{kind};base64,{base64.b64encode(audio.read_bytes()).decode()}", "data:"
        else:
            source, allowed = urllib.parse.quote(os.fsencode(name.name)), "'self' file:"
    except OSError as e:
        raise UserError(f"{audio}: {e.strerror}") from None
    lines = [{"section": utf8(line.section), "backing": line.backing,
              "words": [[shown(word), round(word.start, 3), round(word.end, 3)] for word in line.words]}
             for line in lyrics.lines]
    song = {"file": utf8(name.name), "duration": wave.shape[1] / rate_hz, "rate": PEAKS_PER_S,
            "peaks": peaks(wave, rate_hz), "lines": lines}
    text = TEMPLATE.read_text(encoding="ascii")
    own = {name: re.search(f"<{name}>(.*?)</{name}>", text, re.DOTALL)[1] for name in ("script", "style")}
    own = {name: base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
           for name, code in own.items()}
    values = {
        # The template's own script and style run, and no other.
        "policy": f"default-src 'none'; script-src 'sha256-{own['script']}'; style-src "
                  f"'sha256-{own['style']}'; media-src {allowed}; base-uri 'none'; form-action 'none'",
        "title": escaped(title), "artist": escaped(lyrics.artist), "audio": source,
        # "<" could end the script; in JSON of ASCII nothing else means anything to HTML.
        "song": json.dumps(song, separators=(",", ":")).replace("<", "\\u003c")}
    return re.sub(r"@(\w+)@", lambda name: values[name[1]], text)


def escaped(text: str) -> str:
    """A text as it stands in HTML or in a quoted attribute, in ASCII."""
    return html.escape(utf8(text)).encode("ascii", "xmlcharrefreplace").decode()


def spectrogram_db(wave: Tensor, rate_hz: int, per_s: float) -> Tensor:
    """Log-mel spectrogram of wave (W, N), `per_s` columns a second: (BANDS, columns), in dB.

    A low sine at full scale is at -6 to 0 dB, noise of one level rises towards the wide upper bands.
    """
    size = 1 << max(8, round(math.log2(rate_hz * 0.06)))                              # 2048 at 24 to 48 kHz
    window = torch.hann_window(size, dtype=torch.float64)
    filters = AF.melscale_fbanks(size // 2 + 1, 0.0, rate_hz / 2, BANDS, rate_hz).double()
    columns = max(1, round(wave.shape[1] / rate_hz * per_s))
    padded = F.pad(wave.mean(0).double(), (size // 2, size))
    first = (torch.arange(columns) * rate_hz / per_s).long().clamp_max(wave.shape[1])
    parts = []
    for some in first.split(512):                        # so that a long song takes no more memory
        frames = padded[some[:, None] + torch.arange(size)] * window                          # (512, size)
        parts.append(torch.fft.rfft(frames).abs() @ filters * 2 / size)                       # (512, BANDS)
    return 20 * torch.cat(parts).clamp_min(1e-9).log10().T


def lanes(spans: list[tuple[float, float]]) -> list[int | None]:
    """For each span, which come by their starts, the first lane that is free; None: all are taken."""
    ends, chosen = [-math.inf] * LANES, []
    for start, end in spans:
        lane = next((i for i, taken in enumerate(ends) if taken <= start), None)
        if lane is not None:
            ends[lane] = end
        chosen.append(lane)
    return chosen


def labels(words: list[tuple[Word, float, float]], font) -> list[tuple[str, float, float, int]]:
    """Texts above words, which come with x of their starts and ends: text, its x, the word's x, its lane."""
    made = []
    for word, start, end in words:
        text = "".join(c for c in unicodedata.normalize("NFKD", shown(word))
                       if c.isprintable() and not unicodedata.combining(c))
        width = font.getlength(text)
        made.append((text, min(max(start + 3, (start + end - width) / 2), WIDTH - width), start, width))
    chosen = lanes([(min(start, x), x + width + 4) for _, x, start, width in made])
    return [(text, min(x, start + 3) if lane else x, start, lane)
            for (text, x, start, _), lane in zip(made, chosen) if lane is not None]


def picture(path: Path, wave: Tensor, rate_hz: int, lyrics: Lyrics) -> None:
    """Draw a song's log-mel spectrogram with its words above and their bounds in it, as a PNG.

    Rows of up to 12 s below each other; beyond 24 of them they get longer instead: it is 1200 pixels wide and
    at most 6,692 high. Words stand in up to three lanes; one without room stays without its text. Letters are
    ASCII's: accents are left out, others are boxes.

    Args: path to write; wave (W, N) at rate_hz, N of 1 or more; lyrics with times. Equal songs, equal files.
    Raises: UserError if a word has no times, or the file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    words, length = checked(lyrics), wave.shape[1] / rate_hz
    font = ImageFont.load_default(13)                        # Pillow's own: the same on every machine
    rows = min(MOST_ROWS, max(1, math.ceil(length / ROW_S)))
    row_s, inner = length / rows, WIDTH - 2 * MARGIN
    per_s = inner / row_s                                                              # pixels a second
    texts = [labels([(w, MARGIN + w.start * per_s - row * inner, MARGIN + w.end * per_s - row * inner)
                     for w in words if int(w.start / row_s) == row], font) for row in range(rows)]
    above = LANE * max((lane + 1 for row in texts for *_, lane in row), default=0)

    sound = spectrogram_db(wave, rate_hz, per_s)
    shades = ((sound - max(sound.max().item(), QUIETEST_DB)) / RANGE_DB + 1).clamp(0, 1)
    shades = shades.flip(0).mul(SHADES - 1).byte().numpy()                             # (BANDS, columns)
    colours = heat()
    image = Image.new("RGB", (WIDTH, MARGIN // 2 + rows * (above + HEIGHT + BELOW)), "white")
    draw = ImageDraw.Draw(image)
    for row in range(rows):
        y = MARGIN // 2 + row * (above + HEIGHT + BELOW) + above
        part = Image.fromarray(colours[shades[:, row * inner:(row + 1) * inner]])         # (BANDS, inner, 3)
        image.paste(part.resize((part.width, HEIGHT), Image.Resampling.BILINEAR), (MARGIN, y))
        for x in (MARGIN + t * per_s - row * inner for w in words for t in (w.start, w.end)):
            if MARGIN <= x <= MARGIN + inner:
                draw.line((x, y, x, y + HEIGHT), "white")
        for *_, start, lane in texts[row]:
            draw.line((start, y - lane * LANE - 15, start, y - 1), "silver")
        for text, x, _, lane in texts[row]:                  # with a white edge, above the lines
            draw.text((x, y - lane * LANE - 5), text, "black", font, "ls", stroke_width=2,
                      stroke_fill="white")
        draw_seconds(draw, font, row * row_s, row_s, y + HEIGHT)
    greys = np.linspace(0, 255, 256 - SHADES).astype(np.uint8).repeat(3)                # of the letters
    palette = Image.new("P", (1, 1))                         # one byte a pixel instead of three
    palette.putpalette(colours.tobytes() + greys.tobytes())
    with replacing(path) as temporary:
        image.quantize(palette=palette, dither=Image.Dither.NONE).save(temporary, "PNG")


def heat() -> np.ndarray:
    """The colours of the sound, from quiet to loud: (SHADES, 3) bytes."""
    given, wanted = np.linspace(0, 1, len(HEAT)), np.linspace(0, 1, SHADES)
    return np.stack([np.interp(wanted, given, channel) for channel in zip(*HEAT)], 1).astype(np.uint8)


def draw_seconds(draw, font, begin: float, row_s: float, y: int) -> None:
    """Write round times below a row that begins at `begin`."""
    per_s = (WIDTH - 2 * MARGIN) / row_s
    step = next((step for step in (1, 2, 5, 10, 30, 60, 300, 600) if step * per_s > 50), 3600)
    for second in range(math.ceil(begin / step) * step, math.floor(begin + row_s + 1e-6) + 1, step):
        x = MARGIN + (second - begin) * per_s
        draw.line((x, y, x, y + 4), "black")
        draw.text((x, y + 5), f"{second // 60}:{second % 60:02}", "black", font, anchor="ma")


def tag(path: Path, lyrics: Lyrics, title: str, *, seed: int, model: str, comment: str = "",
        name: Path | None = None) -> None:
    """Write into a finished song's file what it is; its samples stay as they are.

    Title, artist, lyrics, seed, model, comment, and that it is AI-generated. An MP3 gets ID3v2.4, in it the
    words' times, too (SYLT: milliseconds; a line break stands before the word that follows it); a WAV the
    same in a chunk "id3 "; FLAC and OGG get Vorbis comments. Tags that were there are gone. Equal files and
    texts make equal files.

    Args: path of an MP3, WAV, FLAC or OGG; lyrics with times; name, what the file will be called.
    Raises: UserError if a word has no times, or the file is missing, broken or of another kind.
    """
    try:
        import mutagen
        from mutagen.flac import FLAC
        from mutagen.mp3 import MP3
        from mutagen.oggvorbis import OggVorbis
        from mutagen.wave import WAVE
    except ImportError:
        raise UserError("tags need mutagen: pip install mutagen") from None

    checked(lyrics)
    kind = (name or path).suffix.lower()
    if kind not in MEDIA:
        raise UserError(f"{name or path}: unknown ending; expected {', '.join(MEDIA)}")
    texts = {"TITLE": title, "ARTIST": lyrics.artist, "LYRICS": plain(lyrics), "SEED": str(seed),
             "MODEL": model, "COMMENT": comment, "AI_GENERATED": "true"}
    texts = {name: utf8(text) for name, text in texts.items() if text}
    with replacing(path) as temporary:
        shutil.copyfile(path, temporary)
        try:
            file = {".mp3": MP3, ".wav": WAVE, ".flac": FLAC, ".ogg": OggVorbis}[kind](temporary)
            if file.tags is None:
                file.add_tags()
            file.tags.clear()
            if kind in (".mp3", ".wav"):
                add_frames(file.tags, texts, lyrics)
            else:
                file.tags.update(texts)
            file.save(temporary, padding=lambda info: 0)
        except mutagen.MutagenError as e:
            raise UserError(f"{path}: cannot be tagged: {e}") from None


def add_frames(tags, texts: dict[str, str], lyrics: Lyrics) -> None:
    """Put texts, and the words' times, into ID3 tags. Source: id3.org, ID3v2.4.0, native frames."""
    from mutagen.id3 import COMM, SYLT, TIT2, TPE1, TXXX, USLT, Encoding

    plain_frames, with_language = {"TITLE": TIT2, "ARTIST": TPE1}, {"LYRICS": USLT, "COMMENT": COMM}
    for name, text in texts.items():
        if name in plain_frames:
            tags.add(plain_frames[name](Encoding.UTF8, text))
        elif name in with_language:
            tags.add(with_language[name](Encoding.UTF8, "eng", "", text))
        else:
            tags.add(TXXX(Encoding.UTF8, name, text))
    timed = sorted(((round(1000 * word.start), " " if i else "\n", word) for line in lyrics.lines
                    for i, word in enumerate(line.words)), key=lambda entry: entry[0])
    if timed:
        tags.add(SYLT(Encoding.UTF8, "eng", 2, 1, "", [                # 2: milliseconds; 1: lyrics
            ((gap if i else "") + shown(word), ms) for i, (ms, gap, word) in enumerate(timed)]))
