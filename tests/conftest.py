"""Shared fixtures: golden files, and a tiny random model in a folder as sample.py takes it."""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "lyrics")]

from support.checkpoint import preset_to_json  # noqa: E402
from config import CODEC, CONFIG, PHONEMIZER, PRESETS, STYLES, WEIGHTS, Preset  # noqa: E402
from golden import make_model, rule_weights  # noqa: E402
from model import DiT  # noqa: E402
from support import files, processes  # noqa: E402
from sung import SungModel  # noqa: E402

BABY = ROOT / "weights" / "baby"
GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)          # the same sums on every machine, and no fight over cores


@pytest.fixture(scope="session")
def golden():
    """Read a golden file by name: tensors of a .safetensors, content of a .json."""
    def read(name: str):
        path = GOLDEN / name
        return load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())
    return read


@pytest.fixture(scope="session")
def meta(golden):
    """What is known of the original at a tiny size."""
    return golden("tiny_meta.json")


@pytest.fixture(scope="session")
def weights(meta):
    return rule_weights({k: v["shape"] for k, v in meta["weight_checks"].items()})


@pytest.fixture(scope="session")
def model(meta, weights):
    return make_model(meta["config"], weights)


def small(preset: Preset) -> Preset:
    """The embedded model's preset with networks that compute in milliseconds."""
    sizes = dataclasses.replace(preset.model, dim=32, depth=2, heads=2, mel_dim=27, text_dim=16, cond_dim=16,
                                conv_layers=1, max_frames=960)
    codec = dataclasses.replace(preset.codec, mels=8, ratios=2, encoder_width=8, encoder_depth=1,
                                decoder_width=8, decoder_depth=1)
    return dataclasses.replace(preset, model=sizes, codec=codec, steps=3)


def write_model(folder: Path, preset: Preset) -> Path:
    """Fill a folder with a model of random weights, the real phonemizer and two styles."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, codec = DiT(preset.model), SungModel(preset.codec)
    save_file({f"transformer.{k}": v for k, v in model.state_dict().items()}, folder / WEIGHTS)
    save_file(codec.state_dict(), folder / CODEC)
    save_file(dict(zip(("female", "male"), torch.eye(2, 16).unbind(), strict=True)), folder / STYLES)
    (folder / CONFIG).write_text(preset_to_json(preset))
    (folder / PHONEMIZER).symlink_to(BABY / PHONEMIZER)
    return folder


@pytest.fixture(scope="session")
def tiny_preset():
    return small(PRESETS["baby"])


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tiny_preset):
    return write_model(tmp_path_factory.mktemp("tiny"), tiny_preset)


HOLDS = """
import os, pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from support.files import hold
hold(pathlib.Path(sys.argv[2]))
child = os.fork()              # as a process that reads songs
if child:
    print(child, flush=True)
time.sleep(600)
"""


@pytest.fixture
def held(monkeypatch):
    """held(folder): for a while, another run has it; this process gives it no time to end.

    Killed, it leaves the folder at once, even if a process that it forked lives on.
    """
    @contextlib.contextmanager
    def other(folder: Path):
        files.release()
        with monkeypatch.context() as patch:
            patch.setattr(processes, "hold", functools.partial(files.hold, patience_s=0))
            with subprocess.Popen([sys.executable, "-c", HOLDS, ROOT, folder], stdout=subprocess.PIPE) as run:
                child = int(run.stdout.readline())
                try:
                    yield f"{folder}: another run is at work here: process {run.pid} on "
                    run.kill()
                    run.wait()
                    with (folder / files.LOCK).open() as lock:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                finally:
                    run.kill()
                    os.kill(child, signal.SIGKILL)
    return other
