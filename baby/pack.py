"""Packs a training run as the files that are committed: weights in half precision, codec, config, log.

    python -m baby.pack runs/baby weights/baby

A run of train_dpo.py leaves its log as dpo_log.jsonl, beside that of the training before it.
"""

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from config import CODEC, CONFIG, PHONEMIZER, STYLES, WEIGHTS
from support.checkpoint import LAST
from support.cli import run
from support.files import make_folder, read_text, replacing
from support.hub import weights_in


def main(folder: Path, out: Path) -> None:
    """Pack the training run in `folder` into `out`."""
    make_folder(out, "")
    with replacing(out / WEIGHTS) as path:
        weights = load_file(weights_in(folder / LAST))
        save_file({name: weight.half() for name, weight in weights.items()}, path)
    log = "dpo_log.jsonl" if '"dpo_loss"' in read_text(folder / "log.jsonl") else "train_log.jsonl"
    beside = CONFIG, STYLES, PHONEMIZER, CODEC
    for name, target in [("log.jsonl", log), *((f"{LAST}/{n}", n) for n in beside)]:
        with replacing(out / target) as path:
            shutil.copyfile(folder / name, path)
    print(f"{out}: {sum(path.stat().st_size for path in out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    run(lambda: main(*map(Path, sys.argv[1:])))
