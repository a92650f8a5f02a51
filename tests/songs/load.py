"""A manifest of a thousand short songs, sung at once, and sung by processes that are killed again and again.

    python tests/songs/load.py --songs 1000 --kills 20 --out runs/load

Prints songs an hour, memory as songs are made, and whether every file of the two runs is the same. A tiny
random model sings, so that the time is that of everything else.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from config import PRESETS  # noqa: E402
from conftest import small, write_model  # noqa: E402

WORDS = "hello world of night and day we sing go home love me now the sun is cold".split()


def write_manifest(folder: Path, songs: int) -> Path:
    entries, rng = [], random.Random(0)
    for i in range(songs):
        words = [{"word": rng.choice(WORDS), "start": k / 2, "end": k / 2 + 0.4} for k in range(5)]
        (folder / f"{i:04d}.json").write_text(json.dumps(words))
        entries.append({"id": f"{i:04d}", "lrc_path": f"{i:04d}.json", "duration": 3.0, "seed": i,
                        "style": rng.choice(["female", "male"])})
    path = folder / "manifest.json"
    path.write_text(json.dumps(entries))
    return path


def start(model: Path, manifest: Path, out: Path, processes: int) -> subprocess.Popen:
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"] if processes > 1 else []
    return subprocess.Popen(
        [sys.executable, *torchrun, "sample.py", "--model", model, "--manifest", manifest, "--out-dir", out,
         "--page", "false"], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=(out.parent / f"{out.name}.log").open("a"), start_new_session=True)


def resident_mib(process: int) -> float:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def made(out: Path) -> int:
    return len(list((out / "generated").glob("*.mp3.json")))


def contents(out: Path) -> dict[str, str]:
    """Checksums of songs and latents; of accounts, of what does not depend on time or place."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.glob("*/*")
             if path.suffix != ".json"}
    for path in out.glob("generated/*.json"):
        about = json.loads(path.read_text())
        found[str(path.relative_to(out))] = json.dumps([about["request"], about["word"]]).encode()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--songs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("runs/load"))
    args, rng = parser.parse_args(), random.Random(1)
    (args.out / "model").mkdir(parents=True)
    model = write_model(args.out / "model", small(PRESETS["baby"])).resolve()
    manifest = write_manifest(args.out, args.songs).resolve()

    # Undisturbed, by one process.
    whole, began, curve = args.out.resolve() / "whole", time.perf_counter(), []
    run = start(model, manifest, whole, 1)
    while run.poll() is None:
        time.sleep(1)
        if made(whole) >= (len(curve) + 1) * args.songs // 10 and run.poll() is None:
            curve.append((made(whole), round(resident_mib(run.pid))))
    seconds = time.perf_counter() - began
    print(f"{made(whole)} songs in {seconds:.0f} s, {3600 * made(whole) / seconds:.0f} songs an hour; songs "
          f"and resident MiB: {curve}", flush=True)

    # Killed at random moments: one process, or torchrun with two, or one of its two workers.
    cut, sung = args.out.resolve() / "cut", []
    for kill in range(args.kills):
        processes = 1 + kill % 2
        run = start(model, manifest, cut, processes)
        time.sleep(rng.uniform(3, 6 + 1.5 * seconds / args.kills))
        if run.poll() is None:
            os.kill(run.pid, signal.SIGKILL)                 # of torchrun: its workers end by themselves
        run.wait()
        sung.append(made(cut))
    while start(model, manifest, cut, 2).wait():
        pass
    print(f"killed {args.kills} times, after {sung} songs; then {made(cut)} songs", flush=True)
    print("every file is the same" if contents(whole) == contents(cut) else "files differ")
    print("left over:", [str(path) for path in cut.rglob("*.tmp")])
    report = json.loads((cut / "metadata.json").read_text())
    print("in metadata.json:", len({song["id"] for song in report}), "of", len(report))


if __name__ == "__main__":
    main()
