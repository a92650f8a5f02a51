"""songs/tunes.py: lines that come again keep their tune; a changed word leaves the tune alone."""

import json

import pytest
import torch
from conftest import BABY

from config import SampleConfig
from lyrics import formats
from lyrics.timing import Lyrics
from sample import Model, Prompts, resolve
from songs.manifest import Song
from songs.tunes import repeated, repeats
from support.hub import locate

TEXT = """[Verse 1]
The night is cold
The river runs

[Chorus]
Stay with me

[Verse 2]
A light is on
The river runs

[Chorus]
Stay with me
"""


def timed(text: str) -> Lyrics:
    """Lyrics whose words are half a second long, and whose lines begin every four seconds."""
    lyrics, lines = formats.parse(text, "text", "song"), []
    for i, line in enumerate(lyrics.lines):
        words = tuple(word.__class__(word.word, 4.0 * i + k / 2, 4.0 * i + k / 2 + 0.5)
                      for k, word in enumerate(line.words))
        lines.append(line.__class__(words, section=line.section, number=line.number))
    return Lyrics(tuple(lines))


def test_lines_take_the_tune_of_the_same_words_or_the_same_place():
    """A chorus on a second tune, a second verse on its own, or a verse on the chorus's."""
    # lines 0, 1 | 2 | 3, 4 | 5 begin in frames 0, 40 | 80 | 120, 160 | 200, less one ahead
    found = repeats(timed(TEXT), 10)
    assert [to for to, _, _ in found] == [119, 159, 199]
    assert [source for _, source, _ in found] == [0, 39, 79]
    assert repeats(timed("one line\nanother\na third"), 10) == []


def test_noise_is_copied_and_nothing_else():
    noise = torch.randn(1, 30, 3, generator=torch.Generator().manual_seed(0))
    again = repeated(noise, [(20, 5, 8)])
    assert torch.equal(again[:, 20:28], noise[:, 5:13])
    rest = torch.ones(30, dtype=torch.bool)
    rest[20:28] = False
    assert torch.equal(again[:, rest], noise[:, rest])
    assert torch.equal(repeated(noise, [(28, 5, 8)])[:, 28:], noise[:, 5:7])         # the song ends there
    assert torch.equal(repeated(noise, [(3, 1, 8)])[:, 3:5], noise[:, 1:3])           # never from itself


@pytest.mark.slow
def test_the_tune_stays_when_a_word_is_changed(tmp_path):
    """Changing a word gives another melody; or another seed gives the same."""
    def sung(words: str, seed: int = 0):
        path = tmp_path / "words.json"
        path.write_text(json.dumps([{"word": word, "start": 0.4 + 0.5 * i, "end": 0.9 + 0.5 * i}
                                    for i, word in enumerate(words.split())]))
        cfg = SampleConfig(model=str(BABY), style=("alto",), steps=12)
        files = locate(cfg)
        cfg = resolve(cfg, files.preset, torch.device("cpu"))
        prompt = Prompts(files, cfg, torch.device("cpu")).make(Song("", path, ("alto",), (), None, seed))
        model = Model(files, torch.device("cpu"))
        return model.codec.unpack(model.latents(prompt, seed, cfg))
    before, after = sung("hold me when the night is long"), sung("hold me when the day is long")
    other = sung("hold me when the night is long", 1)
    voiced = (before.voiced > 0) & (after.voiced > 0)
    assert voiced.sum() > 100
    assert (before.note - after.note)[voiced].abs().median() < 0.5
    both = (before.voiced > 0) & (other.voiced > 0)
    assert (before.note - other.note)[both].abs().median() > 1
