"""Prompts to align the embedded model with: random words that it knows, timed as in baby.judge.

    python -m baby.prompts --out runs/align
    python -m songs.pairs --manifest runs/align/manifest.json --out runs/align/pairs --candidates 6

Words come faster than in its training songs, and off the beat, so its songs of one prompt differ more. A
prompt is a single line, so that a score says as much as possible about what was sung. Nothing is synthesised
here: the model sings the prompts itself, several times. Read `timed`, then `main`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from baby.songs import SINGERS, vocabulary
from config import Settings
from lyrics.pronounce import reader
from support.cli import parse, run
from support.files import make_folder, write_json, write_text


@dataclass(frozen=True)
class PromptSettings(Settings):
    out: Path = Path("runs/align")              # folder
    songs: int = 120                            # how many
    first: int = 0                              # number of the first; each round of alignment has its own
    phonemizer: Path = Path("weights/baby/phonemizer.pt")   # a DeepPhonemizer checkpoint


def timed(lines: list[str], rng: np.random.Generator, pronounce: Callable[[str], str]) -> list[dict]:
    """Time the words of lines by a rule that the model does not know: length by letters and chance, no beat.

    Returns: words as a lyrics file has them. Lines are 0.5 to 1 s apart.
    """
    words, at = [], 0.4
    for line in lines:
        for text in line.split():
            seconds = max(0.14, (0.12 + 0.055 * len(text)) * float(rng.uniform(0.75, 1.6)))
            words.append({"word": text, "start": round(at, 2), "end": round(at + seconds, 2),
                          "phoneme": pronounce(text)})
            at = round(at + seconds + (rng.random() < 0.25) * float(rng.uniform(0.03, 0.12)), 2)
        at += float(rng.uniform(0.5, 1.0))
    return words


def write_prompt(folder: Path, name: str, words: list[dict], style: str) -> dict:
    """Write a song's words as NAME.json. Returns: its entry in a manifest."""
    write_text(folder / f"{name}.json", json.dumps(words))
    return {"id": name, "lrc_path": f"{name}.json", "duration": words[-1]["end"] + 0.5, "style": style}


def main(cfg: PromptSettings) -> None:
    make_folder(cfg.out)
    pronounce, (known, chances), manifest = reader(cfg.phonemizer), vocabulary(), []
    for i in range(cfg.first, cfg.first + cfg.songs):
        rng = np.random.default_rng([1, i])                  # baby.judge seeds with one number
        line = " ".join(rng.choice(known, rng.integers(4, 9), p=chances))
        words = timed([line], rng, pronounce)
        manifest.append(write_prompt(cfg.out, f"{i:04d}", words, [*SINGERS][i % len(SINGERS)]))
    write_json(cfg.out / "manifest.json", manifest)


if __name__ == "__main__":
    run(lambda: main(parse(PromptSettings, __doc__)))
