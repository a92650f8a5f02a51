"""Pictures of sound over time, with the sung words above.

Read `picture` (a song's spectrogram) and `draw_latents`, then `draw`.
"""

import io
import math
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lyrics.timing import Lyrics
from songs.page import checked, shown
from support.files import replacing
from sung import mel_filters

# Sizes in pixels.
WIDTH, MARGIN, BELOW = 1200, 40, 32        # of the picture; at its sides; below a row, for the seconds
INNER = WIDTH - 2 * MARGIN                 # of the sound
LANE, LANES = 18, 3                        # height of a line of words; how many of them where words are close
BANDS, HEIGHT, SHADES = 96, 192, 224       # mel bands; of a row; colours of the sound, of 256
ROW_S, MOST_ROWS = 12.0, 24                # a row's seconds at most; a song of more rows has longer ones
RANGE_DB, QUIETEST_DB = 70.0, -60.0        # shown; of the loudest at least, so that silence is black
HEAT = ((0, 0, 4), (35, 12, 75), (95, 19, 110), (165, 44, 96), (225, 84, 52), (250, 155, 30), (252, 250, 170))


def picture(path: Path, wave: Tensor, rate_hz: int, lyrics: Lyrics) -> None:
    """Draw a song's log-mel spectrogram with its words above and their bounds in it, as a PNG.

    Args: path to write; wave (W, N) at rate_hz, N of 1 or more; lyrics with times. Equal songs: equal files.
    Raises: UserError if a word has no times, or the file cannot be written.
    """
    words = [(shown(word), word.start, word.end) for word in checked(lyrics)]
    draw(path, wave.shape[1] / rate_hz, lambda per_s: levels_of(wave, rate_hz, per_s), words)


def strip(wave: Tensor, rate_hz: int, per_s: float) -> bytes:
    """The spectrogram of wave (W, N) as a PNG without axes: `per_s` columns a second, a row for each band."""
    from PIL import Image

    colours = palette()
    image = Image.fromarray(shades(levels_of(wave, rate_hz, per_s)), "P")
    image.putpalette(colours.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def levels_of(wave: Tensor, rate_hz: int, per_s: float) -> Tensor:
    """How loud each band of wave (W, N) is: (BANDS, columns), low bands first, 0 dark to 1 light."""
    sound = spectrogram_db(wave, rate_hz, per_s)
    return (sound - max(sound.max().item(), QUIETEST_DB)) / RANGE_DB + 1


def palette() -> np.ndarray:
    """The colours of the sound, dark to light (SHADES, 3)."""
    return np.stack([np.interp(np.linspace(0, 1, SHADES), np.linspace(0, 1, len(HEAT)), channel)
                     for channel in zip(*HEAT)], 1).astype(np.uint8)


def shades(found: Tensor) -> np.ndarray:
    """Levels (bands, columns), low bands first, as numbers of colours, low bands below."""
    return found.clamp(0, 1).flip(0).mul(SHADES - 1).byte().numpy()


def spectrogram_db(wave: Tensor, rate_hz: int, per_s: float) -> Tensor:
    """Log-mel spectrogram of wave (W, N), `per_s` columns a second: (BANDS, columns), in dB.

    A low sine at full scale is at -6 to 0 dB; noise of one level rises towards the wide upper bands.
    """
    size = 1 << max(8, round(math.log2(rate_hz * 0.06)))                              # 2048 at 24 to 48 kHz
    window = torch.hann_window(size, dtype=torch.float64)
    filters = mel_filters(size // 2 + 1, BANDS, rate_hz).double()
    columns = max(1, round(wave.shape[1] / rate_hz * per_s))
    padded = F.pad(wave.mean(0).double(), (size // 2, size))
    first = (torch.arange(columns) * rate_hz / per_s).long().clamp_max(wave.shape[1])
    parts = []
    for some in first.split(512):                        # so that a long song takes no more memory
        frames = padded[some[:, None] + torch.arange(size)] * window                          # (512, size)
        parts.append(torch.fft.rfft(frames).abs() @ filters * 2 / size)                       # (512, BANDS)
    return 20 * torch.cat(parts).clamp_min(1e-9).log10().T


def draw_latents(path: Path, latents: Tensor, frame_hz: float, words: list[tuple[str, float, float]]) -> None:
    """Draw latents (C, frames) over time as a PNG, low ones dark, with words (text, start, end) above."""
    levels = (latents - latents.mean()) / (6 * latents.std() + 1e-9) + 0.5
    channels = torch.arange(HEIGHT) * len(levels) // HEIGHT
    length_s = latents.shape[1] / frame_hz

    def nearest(per_s: float) -> Tensor:                     # (C, frames) -> (HEIGHT, columns), not smoothed
        frames = (torch.arange(round(length_s * per_s)) * frame_hz / per_s).long()
        return levels[channels[:, None], frames.clamp_max(latents.shape[1] - 1)]

    draw(path, length_s, nearest, sorted(words, key=lambda word: word[1]))


def draw(path: Path, length_s: float, levels: Callable[[float], Tensor],
         words: list[tuple[str, float, float]]) -> None:
    """Draw levels over time with words above them and the words' bounds in them, as a PNG.

    There are at most 24 rows of 12 s; a longer song has longer rows, so that a picture is 1200 pixels wide
    and at most 6,692 high. Words stand in up to three lanes; a word without room is left out.
    Letters are ASCII: accents are dropped, other letters are boxes.

    Args: levels, a function from columns a second to (bands, columns), low bands first, 0 dark to 1 light;
        words (text, start, end), by their starts.
    Raises: UserError if the file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(13)                        # Pillow's own: the same on every machine
    rows = min(MOST_ROWS, max(1, math.ceil(length_s / ROW_S)))
    row_s = length_s / rows
    per_s = INNER / row_s
    step = next((step for step in (1, 2, 5, 10, 30, 60, 300, 600) if step * per_s > 50), 3600)
    texts = [labels([(text, *(MARGIN + t * per_s - row * INNER for t in times)) for text, *times in words
                     if int(times[0] / row_s) == row], font) for row in range(rows)]
    above = LANE * max((lane + 1 for row in texts for *_, lane in row), default=0)
    colours, found = palette(), shades(levels(per_s))                                     # (bands, columns)

    image = Image.new("RGB", (WIDTH, MARGIN // 2 + rows * (above + HEIGHT + BELOW)), "white")
    pen = ImageDraw.Draw(image)
    for row in range(rows):
        y = MARGIN // 2 + row * (above + HEIGHT + BELOW) + above
        part = Image.fromarray(colours[found[:, row * INNER:(row + 1) * INNER]])         # (bands, INNER, 3)
        image.paste(part.resize((part.width, HEIGHT), Image.Resampling.BILINEAR), (MARGIN, y))
        for x in (MARGIN + t * per_s - row * INNER for _, *times in words for t in times):
            if MARGIN <= x <= MARGIN + INNER:
                pen.line((x, y, x, y + HEIGHT), "white")
        for *_, start, lane in texts[row]:
            pen.line((start, y - lane * LANE - 15, start, y - 1), "silver")
        for text, x, _, lane in texts[row]:                  # with a white edge, above the lines
            pen.text((x, y - lane * LANE - 5), text, "black", font, "ls", stroke_width=2, stroke_fill="white")
        begin = row * row_s
        for second in range(math.ceil(begin / step) * step, math.floor(begin + row_s + 1e-6) + 1, step):
            x = MARGIN + (second - begin) * per_s
            pen.line((x, y + HEIGHT, x, y + HEIGHT + 4), "black")
            pen.text((x, y + HEIGHT + 5), f"{second // 60}:{second % 60:02}", "black", font, anchor="ma")

    greys = np.linspace(0, 255, 256 - SHADES).astype(np.uint8).repeat(3)                # of the letters
    table = Image.new("P", (1, 1))                           # one byte a pixel instead of three
    table.putpalette(colours.tobytes() + greys.tobytes())
    with replacing(path) as temporary:
        image.quantize(palette=table, dither=Image.Dither.NONE).save(temporary, "PNG")


def labels(words: list[tuple[str, float, float]], font) -> list[tuple[str, float, float, int]]:
    """Place texts above words, which come with x of their starts and ends, each in the first free lane.

    Returns: text, its x, the word's x, its lane; words that find every lane taken are left out.
    """
    made, ends = [], [-math.inf] * LANES
    for text, start, end in words:
        text = "".join(c for c in unicodedata.normalize("NFKD", text)
                       if c.isprintable() and not unicodedata.combining(c))
        width = font.getlength(text)
        x = min(max(start + 3, (start + end - width) / 2), WIDTH - width)
        lane = next((i for i, taken in enumerate(ends) if taken <= min(start, x)), None)
        if lane is not None:
            ends[lane] = x + width + 4
            made.append((text, min(x, start + 3) if lane else x, start, lane))
    return made
