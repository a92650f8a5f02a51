"""Prompts to align the embedded model with: random words that it knows, at times as judge.py draws them.

    python baby/prompts.py --out runs/align
    python data.py pairs --manifest runs/align/manifest.json --out runs/align/pairs --candidates 6

Words come faster than in its training songs, and off the beat: there is more to choose between its songs.
A prompt is one line, so that a score says as much as it can of what was sung. No sound is made: the model
sings them itself, again and again.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from baby.judge import timed  # noqa: E402
from baby.songs import FLITE, ROOT, vocabulary  # noqa: E402
from formats import word_json  # noqa: E402
from phonemes import load_phonemizer  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/align"), help="folder")
    parser.add_argument("--songs", type=int, default=120, help="how many")
    parser.add_argument("--first", type=int, default=0, help="number of the first; each round has its own")
    parser.add_argument("--phonemizer", type=Path, default=ROOT / "weights/baby/phonemizer.pt")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    phonemizer, (known, _, chances), manifest = load_phonemizer(args.phonemizer), vocabulary(), []
    for i in range(args.first, args.first + args.songs):
        rng = np.random.default_rng([1, i])                  # judge.py's are of one number
        line = " ".join(rng.choice(known, rng.integers(4, 9), p=chances))
        words, name = timed([line], rng, phonemizer), f"{i:04d}"
        (args.out / f"{name}.json").write_text(json.dumps([word_json(word) for word in words]))
        manifest.append({"id": name, "lrc_path": f"{name}.json", "duration": words[-1].end + 0.5,
                         "style": list(FLITE)[i % 2]})
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=1))


if __name__ == "__main__":
    main()
