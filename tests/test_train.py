"""train.py: an interrupted run must end as if it had not been, and a run must learn."""

import dataclasses
import functools
import io
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import tarfile
import time

import pytest
import torch
from conftest import BABY, ROOT
from safetensors.torch import load_file

import config
from cli import preset_to_json
from config import CONFIG, WEIGHTS, TrainConfig, UserError
from data import Shards, collate
from phonemes import SymbolTable
from train import one_thread, rate_at, train


@pytest.fixture(scope="module")
def shard(tmp_path_factory, tiny_preset):
    """Twelve songs of unlike lengths; the style decides the latents."""
    path, rng = tmp_path_factory.mktemp("data") / "songs-0.tar", torch.Generator().manual_seed(0)
    voice = torch.randn(16, 1, generator=rng)
    with tarfile.open(path, "w") as tar:
        for i in range(12):
            frames = 30 + 7 * i
            latents = (1, -1)[i % 2] * voice + 0.1 * torch.randn(16, frames, generator=rng)
            style = torch.eye(2, 16)[i % 2].clone()
            words = {"word": [{"start": 0.1, "end": 0.5, "phoneme": "həloʊ"}]}
            for ending, value in [("latent.pt", torch.cat([latents, torch.zeros_like(latents)])),
                                  ("style.pt", style), ("json", words)]:
                data = io.BytesIO()
                torch.save(value, data) if ending != "json" else data.write(json.dumps(value).encode())
                info = tarfile.TarInfo(f"{i:03d}.{ending}")
                info.size = data.tell()
                data.seek(0)
                tar.addfile(info, data)
    return path


@pytest.fixture
def cfg(shard, tmp_path, tiny_preset, monkeypatch):
    monkeypatch.setitem(config.PRESETS, "tiny", tiny_preset)
    return TrainConfig(preset="tiny", data=str(shard), assets=BABY, out=tmp_path / "run", steps=4, batch=3,
                       lr=1e-3, warmup=1, bf16=False, workers=0, save_every=2, log_every=1, device="cpu")


def test_rate():
    """A schedule that never warms up, or that never reaches zero, spoils runs of days."""
    cfg = TrainConfig(lr=1.0, warmup=10, steps=110, decay=0.5)
    rates = [rate_at(step, cfg) for step in range(110)]
    assert rates[0] == 0.1 and rates[9] == rates[60] == 1.0
    assert rates[-1] == pytest.approx(1 / 50) and rate_at(110, cfg) == 0
    assert all(b <= a for a, b in zip(rates[10:], rates[11:], strict=False))
    published = TrainConfig(lr=1.0, warmup=10, steps=110, decay=1.0)     # JAM: linear to zero after warm-up
    assert rate_at(60, published) == pytest.approx(0.5)


def test_two_and_two_steps_are_four(cfg, tmp_path):
    """A lost optimizer state, data position or noise seed changes the weights after a resume."""
    halves = dataclasses.replace(cfg, out=tmp_path / "halves")
    # Constant rate, so that 2 of 4 steps have the same.
    train(dataclasses.replace(halves, steps=2, decay=0.0))
    train(dataclasses.replace(halves, decay=0.0))
    whole = dataclasses.replace(cfg, out=tmp_path / "whole", decay=0.0)
    train(whole)
    for folder in (halves.out, whole.out):
        assert {"checkpoint.pt", "log.jsonl", WEIGHTS, CONFIG} <= {p.name for p in folder.iterdir()}
    one, two = (torch.load(f / "checkpoint.pt", weights_only=True) for f in (halves.out, whole.out))
    assert one["step"] == two["step"] == 4
    for a, b in zip(one["ema"], two["ema"], strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(one["model"][k], two["model"][k]) for k in two["model"])
    assert not any(p.name.startswith(".") for p in whole.out.iterdir())


def test_a_killed_run_goes_on(cfg, tiny_preset, tmp_path):
    """SIGKILL at any moment: the checkpoint on disk is whole and the run ends with the same weights."""
    cfg = dataclasses.replace(cfg, log_every=1, save_every=1, decay=0.0)
    endless = dataclasses.asdict(dataclasses.replace(cfg, steps=10 ** 6))
    (tmp_path / CONFIG).write_text(preset_to_json(tiny_preset))
    code = f"""
import dataclasses, pathlib, torch, cli, config, train
torch.set_num_threads(1)
config.PRESETS["tiny"] = cli.preset_from_json(pathlib.Path({str(tmp_path / CONFIG)!r}))
train.train(config.TrainConfig(**{endless!r}))
""".replace("PosixPath", "pathlib.Path")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (cfg.out / "checkpoint.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)                                          # somewhere amid its next steps
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    steps = torch.load(cfg.out / "checkpoint.pt", weights_only=True)["step"] + 3
    train(dataclasses.replace(cfg, steps=steps))
    train(dataclasses.replace(cfg, steps=steps, out=tmp_path / "calm"))
    rows = [json.loads(line)["step"] for line in (cfg.out / "log.jsonl").read_text().splitlines()]
    assert rows == list(range(1, steps + 1))
    calm, killed = (load_file(tmp_path / folder / WEIGHTS) for folder in ("calm", "run"))
    assert all(torch.equal(calm[k], killed[k]) for k in calm)


def test_it_learns(cfg):
    """A sign error in the velocity or unconnected conditions would leave the loss where it was."""
    train(dataclasses.replace(cfg, steps=150, lr=5e-3, batch=6, log_every=50, save_every=150))
    rows = [json.loads(line) for line in (cfg.out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [50, 100, 150]
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert len(rows[0]["loss_by_time"]) == 4 and rows[0]["lr"] == 5e-3


def test_initial_weights(cfg, tmp_path):
    """--init with no steps left to learn gives the same weights back."""
    train(cfg)
    train(dataclasses.replace(cfg, out=tmp_path / "next", init=cfg.out / WEIGHTS, lr=0.0, steps=1))
    one, two = (load_file(folder / WEIGHTS) for folder in (cfg.out, tmp_path / "next"))
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize("change, fragment", [({"preset": "none"}, "--preset none: expected one of"),
                                              ({"data": "no/such.tar"}, "no/such.tar: no such shard"),
                                              ({"batch": 13}, "12 songs are fewer"),
                                              ({"log_every": 0}, "--log-every 0: expected 1 or more"),
                                              ({"ema": 1.5}, "--ema 1.5: expected 0 to 1"),
                                              ({"out": BABY / CONFIG}, "File exists"),
                                              ({"assets": ROOT}, "phonemizer.pt: no such file"),
                                              ({"init": BABY / CONFIG}, str(BABY / CONFIG))])
def test_mistakes(cfg, change, fragment):
    with pytest.raises(UserError, match=".") as caught:
        train(dataclasses.replace(cfg, **change))
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


def test_readers_can_be_spawned(cfg, tiny_preset):
    """Where processes start anew (macOS, Python 3.14), all that a reading process gets must be picklable."""
    shards = Shards(cfg.data, tiny_preset, SymbolTable("abd"))
    parts = shards, functools.partial(collate, silence=torch.zeros(16), preset=tiny_preset), one_thread
    again, put_together, _ = pickle.loads(pickle.dumps(parts))
    assert put_together([again[0, 1]])["latents"].equal(put_together([shards[0, 1]])["latents"])


@pytest.mark.parametrize("content", [b"", b"PK", b"not a checkpoint"])
def test_a_broken_checkpoint_is_named(cfg, content):
    """Going on from nothing in its place would be a new run over an old one."""
    cfg.out.mkdir()
    (cfg.out / "checkpoint.pt").write_bytes(content)
    with pytest.raises(UserError, match="checkpoint.pt: not a checkpoint: "):
        train(cfg)


def test_other_settings_do_not_resume(cfg):
    """Going on with another batch size would silently be another run."""
    train(cfg)
    with pytest.raises(UserError, match="was made with --batch 3, not 4"):
        train(dataclasses.replace(cfg, batch=4, steps=6))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_song_is_named(cfg, shard, tmp_path, workers):
    """The original prints and skips such songs; from a reading process the error must still be one line."""
    broken = tmp_path / "broken.tar"
    broken.write_bytes(shard.read_bytes().replace(b'"phoneme"', b'"phonem_"'))
    with pytest.raises(UserError) as caught:
        train(dataclasses.replace(cfg, data=str(broken), workers=workers))
    assert re.fullmatch(r".*broken\.tar: song \d+: word 1: expected start, end and phoneme",
                        str(caught.value))
