"""A song's noise, which decides its tune: the same noise, the same tune, even where a word is changed.

Read `noise_of`, then `repeats`: a line that comes again has the noise, and so the tune, of its first time.
"""

import re

import torch
from torch import Tensor

from config import ModelConfig
from lyrics.timing import Line, Lyrics

AHEAD_S = 0.1                  # a line's tune begins so much before its first word


def noise_of(seed: int, frames: int, sizes: ModelConfig) -> Tensor:
    """A song's noise (1, frames, C): of a longer song, the same rows and more."""
    rng, rows = torch.Generator().manual_seed(seed), sizes.max_frames
    blocks = [torch.randn(1, rows, sizes.mel_dim, generator=rng) for _ in range(0, frames, rows)]
    return torch.cat(blocks, 1)[:, :frames]


def repeats(lyrics: Lyrics, frame_hz: float) -> list[tuple[int, int, int]]:
    """Lines that are sung on the tune of an earlier one: (first frame, first frame of that one, frames).

    It is the earlier line with the same words, else the one at the same place of an earlier section of the
    same name: [Verse 2] has the tune of [Verse 1].
    """
    by_words: dict[tuple, Line] = {}
    by_place: dict[tuple, Line] = {}
    found, place, before = [], 0, None
    for line in (line for line in lyrics.lines if line.words):
        new = before is None or line.section != before.section or line.number > before.number + 1
        place, before = 0 if new else place + 1, line
        words = tuple(word.word.casefold().strip(".,;:?!") for word in line.words), line.backing
        spot = re.sub(r"[\W\d]+", "", line.section.casefold()), place, line.backing
        first = by_words.get(words) or (by_place.get(spot) if spot[0] else None)
        if first:
            begins = [max(0, round((each.words[0].start - AHEAD_S) * frame_hz)) for each in (line, first)]
            length = min(each.words[-1].end - each.words[0].start for each in (line, first)) + AHEAD_S
            found.append((*begins, round(length * frame_hz)))
        by_words.setdefault(words, line)
        by_place.setdefault(spot, line)
    return found


def repeated(noise: Tensor, lines: list[tuple[int, int, int]]) -> Tensor:
    """Noise (1, T, C) in which lines have the noise of those that they repeat."""
    noise = noise.clone()
    for to, source, frames in lines:
        frames = min(frames, noise.shape[1] - to, to - source)
        noise[:, to:to + max(0, frames)] = noise[:, source:source + max(0, frames)]
    return noise
