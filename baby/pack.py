"""Training run -> the files that are committed: weights in half precision, config, log.

    python baby/pack.py runs/baby weights/baby

A run of train_dpo.py leaves its log as dpo_log.jsonl, beside that of the training before it.
"""

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from checkpoint import LAST  # noqa: E402
from cli import replacing  # noqa: E402
from config import CONFIG, PHONEMIZER, STYLES, WEIGHTS  # noqa: E402
from hub import weights_in  # noqa: E402


def main() -> None:
    run, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / WEIGHTS) as path:
        weights = load_file(weights_in(run / LAST))
        save_file({name: weight.half() for name, weight in weights.items()}, path)
    log = "dpo_log.jsonl" if '"dpo_loss"' in (run / "log.jsonl").read_text() else "train_log.jsonl"
    for name, target in [("log.jsonl", log), *((f"{LAST}/{n}", n) for n in (CONFIG, STYLES, PHONEMIZER))]:
        with replacing(out / target) as path:
            shutil.copyfile(run / name, path)
    print(f"{out}: {sum(p.stat().st_size for p in out.iterdir()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
