"""train.py, support/checkpoint.py, support/log.py: killed runs end with equal bits; many ranks act as one."""

import contextlib
import dataclasses
import faulthandler
import fcntl
import functools
import io
import itertools
import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import types
from pathlib import Path

import pytest
import torch
from conftest import BABY, ROOT
from safetensors.torch import load_file

import config
import sample
import train as module
from config import AVERAGED, CODEC, CONFIG, PRESETS, RECIPES, STYLES, WEIGHTS, DataSettings, TrainConfig
from config import UserError
from model import DiT
from songs import checkpoint_samples as samples
from support import checkpoint, log, processes
from support.cli import parse
from support.files import LOCK, hold, release
from support.hub import sha256
from support.processes import Processes
from train import FlowObjective, Trainer, grouped, rate_at, song_draws, train

CLEAN = multiprocessing.get_context("forkserver")            # a mere fork has the locks of our threads
CLEAN.set_forkserver_preload(["train"])
STARTED = []                                                 # of a test; one that fails may leave them


def tensors(value: object) -> bytes:
    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()


@pytest.fixture(scope="module")
def shard(tmp_path_factory, tiny_preset):
    """Twelve songs of unlike lengths; the style decides the latents."""
    path, rng = tmp_path_factory.mktemp("data") / "songs-0.tar", torch.Generator().manual_seed(0)
    voice = torch.randn(tiny_preset.model.mel_dim, 1, generator=rng)
    with tarfile.open(path, "w") as tar:
        for i in range(12):
            frames = 30 + 7 * i
            latents = (1, -1)[i % 2] * voice + 0.1 * torch.randn(len(voice), frames, generator=rng)
            words = {"word": [{"word": "hello", "start": 0.1, "end": 0.5, "phoneme": "həloʊ"}]}
            for ending, data in [("latent.pt", tensors(torch.cat([latents, torch.zeros_like(latents)]))),
                                 ("style.pt", tensors(torch.eye(2, 16)[i % 2].clone())),
                                 ("json", json.dumps(words).encode())]:
                info = tarfile.TarInfo(f"{i:03d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def cfg(shard, tmp_path, tiny_preset, tiny_folder, monkeypatch):
    """A run of moments. All songs are padded to one length, so that batch mates do not matter."""
    monkeypatch.setitem(config.PRESETS, "tiny", dataclasses.replace(
        tiny_preset, trim=False, model=dataclasses.replace(tiny_preset.model, max_frames=112)))
    return TrainConfig(preset="tiny", data=DataSettings((str(shard),), workers=0), assets=tiny_folder,
                       steps=4, batch=3, out=tmp_path / "run", lr=1e-3, warmup=1, decay=0.0, bf16=False,
                       save_every=2, log_every=1, keep=0, listen=False, tensorboard=False, device="cpu")


@pytest.fixture(autouse=True)
def stopped():
    yield
    while STARTED:
        STARTED.pop().kill()


def start(cfg: TrainConfig, world: int = 1, work=train) -> list:
    """A run in processes of its own, as torchrun would start it. This one lets go of its folders."""
    release()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [CLEAN.Process(target=rank, args=(i, world, port, cfg, config.PRESETS["tiny"], work))
               for i in range(world)]
    for process in started:
        process.start()
    STARTED.extend(started)
    return started


def rank(number: int, world: int, port: int, cfg: TrainConfig, preset, work) -> None:
    """One of these processes; what it says goes to a file beside its run."""
    processes.PARENT = os.getppid()                          # not the process that imported it
    os.environ.update({"TORCHELASTIC_RUN_ID": "x", "RANK": str(number), "LOCAL_RANK": str(number),
                       "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    torch.set_num_threads(1)
    config.PRESETS["tiny"] = preset
    with open(f"{cfg.out}.{number}.txt", "a") as said, contextlib.redirect_stdout(said), \
            contextlib.redirect_stderr(said):
        faulthandler.dump_traceback_later(90, file=said)    # a rank that waits for ever says where
        try:
            work(cfg)
        except UserError as e:
            print(f"error: {e}")
            sys.exit(2)


def run(cfg: TrainConfig, world: int = 1) -> None:
    started = start(cfg, world)
    for process in started:
        process.join(120)
    said = "".join(path.read_text() for path in sorted(cfg.out.parent.glob(f"{cfg.out.name}.*.txt")))
    assert [process.exitcode for process in started] == [0] * world, said


def rows(cfg: TrainConfig) -> list[dict]:
    return [json.loads(line) for line in (cfg.out / "log.jsonl").read_text().splitlines()]


def losses(cfg: TrainConfig) -> list[float]:
    return [row["loss"] for row in rows(cfg) if "loss" in row]


def same(a: object, b: object) -> bool:
    """Whether two checkpoints' contents are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def equal(one: Path, two: Path) -> bool:
    """Weights, averages, optimizer, RNG and data position of two checkpoints."""
    places = [json.loads((folder / "state.json").read_text()) for folder in (one, two)]
    return all(same(load_file(one / name), load_file(two / name)) for name in (WEIGHTS, AVERAGED)) and all(
        same(*(torch.load(folder / name, weights_only=True) for folder in (one, two)))
        for name in ("optimizer.pt", "rng.pt")) and all(
        places[0][name] == places[1][name] for name in ("step", "places"))


# The schedule and the draws

def test_rate():
    """A schedule that never warms up, or that never reaches zero, spoils runs of days."""
    cfg = TrainConfig(lr=1.0, warmup=10, steps=110, decay=0.5)
    rates = [rate_at(step, cfg) for step in range(110)]
    assert rates[0] == 0.1 and rates[9] == rates[60] == 1.0
    assert rates[-1] == pytest.approx(1 / 50) and rate_at(110, cfg) == 0
    assert all(b <= a for a, b in zip(rates[10:], rates[11:], strict=False))
    published = TrainConfig(lr=1.0, warmup=10, steps=110, decay=1.0)     # JAM: linear to zero after warm-up
    assert rate_at(60, published) == pytest.approx(0.5)


def test_published_recipes():
    """Recipes that drift from the published templates."""
    pretrain, sft = RECIPES["pretrain"], RECIPES["sft"]
    for recipe in (pretrain, sft):
        assert (recipe.lr, recipe.warmup, recipe.steps, recipe.clip) == (7.5e-5, 10_000, 750_000, 10)
        assert (recipe.batch, recipe.accumulate, recipe.decay, recipe.ema) == (4, 1, 1.0, 0)
        assert (recipe.drop_style, recipe.drop_text, recipe.weight_decay) == (0.1, 0.5, 0.01)
        assert recipe.save_every == 10_000 and recipe.log_every == 50 and recipe.data.replacement
    assert (pretrain.max_frames, pretrain.gradient_checkpointing) == (2000, False)
    assert (sft.max_frames, sft.gradient_checkpointing) == (None, True)
    assert PRESETS["jam-0.5"].model.max_frames == 5000
    dpo = RECIPES["dpo"]
    assert (dpo.lr, dpo.warmup, dpo.steps, dpo.batch, dpo.accumulate) == (5e-7, 1000, 20_000, 1, 4)
    assert (dpo.clip, dpo.save_every, dpo.log_every, dpo.gradient_checkpointing) == (10, 100, 8, True)
    assert pretrain.bf16 and sft.bf16 and not dpo.bf16
    got = parse(TrainConfig, "", ["--config", "pretrain", "--data.shards", "a.tar", "--lr", "1"], RECIPES)
    data = dataclasses.replace(pretrain.data, shards=("a.tar",))
    assert got == dataclasses.replace(pretrain, lr=1.0, data=data)


def test_draws_are_a_songs_own():
    """Noise that depends on batch mates differs between one rank and two; equal noise for two songs."""
    latents = torch.zeros(3, 40, 16)
    noise, times, uniform = song_draws([5, 6, 7], latents)
    alone = song_draws([6], latents[:1])
    for many, one in zip((noise, times, uniform), alone):
        assert torch.equal(many[1:2], one) and not torch.equal(many[0], many[1])
    crop = torch.randn(40, 16, generator=torch.Generator().manual_seed(6))
    assert not torch.equal(crop, noise[1])                   # the posterior's noise has the seed itself
    many = song_draws(list(range(20_000)), torch.zeros(20_000, 1, 1))
    normal = many[1].logit()                                 # logit-normal times
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    assert abs(many[0].mean()) < 0.03 and abs(many[0].std() - 1) < 0.03


class Ear(torch.nn.Module):
    """Stands in for the network, and counts what it is told."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def condition(self, phonemes, style, *scalars):
        self.heard += list(zip((style != 0).any(1).tolist(), (phonemes != 0).any(1).tolist()))

    def forward(self, x, time, condition):
        return x


@pytest.mark.parametrize("per_batch", [False, True])
def test_shares_of_dropped_conditions(per_batch):
    """90 % nothing, 5 % style alone, 5 % style and text; text never alone; per song, or for a whole batch."""
    ear = Ear()
    objective = FlowObjective(ear, TrainConfig(drop_per_batch=per_batch))
    batch = {"latents": torch.zeros(4, 1, 1), "phonemes": torch.ones(4, 4), "style": torch.ones(4, 2)}
    batch |= dict.fromkeys(("start_time", "duration_abs", "duration_rel"))
    for i in range(1500):
        objective(batch, list(range(4 * i, 4 * i + 4)))
    share = {kind: ear.heard.count(kind) / len(ear.heard) for kind in set(ear.heard)}
    assert share.keys() == {(True, True), (False, True), (False, False)}
    assert abs(share[True, True] - 0.9) < 0.02 and abs(share[False, False] - 0.05) < 0.012
    mixed = any(len(set(ear.heard[i:i + 4])) > 1 for i in range(0, 6000, 4))
    assert mixed != per_batch


def test_groups_of_a_stream_that_ends():
    """Standard input ends: the last whole step has to be known as such, to be saved."""
    assert list(grouped(iter("abcdefg"), 3)) == [(["a", "b", "c"], False), (["d", "e", "f"], True)]
    assert list(grouped(iter("ab"), 3)) == []


# Going on

@pytest.mark.parametrize("k", [1, 2, 3])
def test_k_steps_and_the_rest_are_all(cfg, tmp_path, k):
    """A lost optimizer state, average, data position or noise seed changes the weights after a resume."""
    parts = dataclasses.replace(cfg, out=tmp_path / "parts", accumulate=2, validation=cfg.data.shards,
                                validate_every=2, validation_songs=5)
    train(dataclasses.replace(parts, steps=k))
    train(parts)
    whole = dataclasses.replace(parts, out=tmp_path / "whole")
    train(whole)
    assert equal(parts.out / "last", whole.out / "last")
    assert losses(parts) == losses(whole) and len(losses(whole)) == 4
    assert [row["validation_loss"] for row in rows(parts) if "validation_loss" in row][-1] == \
        [row["validation_loss"] for row in rows(whole) if "validation_loss" in row][-1]
    assert not [p for p in whole.out.iterdir() if p.name.startswith(".") and p.name != LOCK]


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on(cfg, tmp_path, world):
    """SIGKILL at any moment: the checkpoint on disk is whole and the run ends with the same bits."""
    kills(cfg, tmp_path, world, 1)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_twenty_kills(cfg, tmp_path, world):
    """As above, twenty times in one run, at random moments."""
    done = kills(cfg, tmp_path, world, 20)
    print(f"{world} ranks, killed in steps {done}")


def kills(cfg: TrainConfig, tmp_path: Path, world: int, times: int) -> list[int]:
    """Kill all ranks of a run at random moments and start it again; compare it with one left alone."""
    rng = random.Random(world)
    killed = dataclasses.replace(cfg, out=tmp_path / "killed", save_every=1, keep=2, batch=2)
    reached = []
    for _ in range(times):
        target = (reached[-1] if reached else 0) + 1         # at least one step more than the last time
        started = start(dataclasses.replace(killed, steps=10 ** 6), world)
        deadline = time.monotonic() + 60
        while not (killed.out / "last").exists() or newest(killed.out) < target:
            assert all(p.is_alive() for p in started) and time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))                     # amid a step, a save, a deletion
        for process in started:
            os.kill(process.pid, signal.SIGKILL)
        for process in started:
            process.join()
        reached.append(newest(killed.out))
    steps = reached[-1] + 2
    run(dataclasses.replace(killed, steps=steps), world)
    calm = dataclasses.replace(killed, out=tmp_path / "calm", steps=steps)
    run(calm, world)
    assert equal(killed.out / f"step-{steps:06d}", calm.out / f"step-{steps:06d}")
    assert [row["step"] for row in rows(killed)] == list(range(1, steps + 1))
    assert losses(killed) == losses(calm)
    assert len(checkpoint.existing(killed.out)) == 2
    assert not [p for p in killed.out.iterdir() if p.name.startswith(".") and p.name != LOCK]
    return reached


def newest(out: Path) -> int:
    """The step of the newest checkpoint's name, whole or not."""
    return max((int(path.name[5:]) for path in out.glob("step-*")), default=0)


@pytest.mark.parametrize("fsdp", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_ranks_are_one_of_double_batch(cfg, tmp_path, fsdp):
    """Ranks that see equal songs, gradients summed instead of averaged, losses of one rank in the log."""
    cfg = dataclasses.replace(cfg, validation=cfg.data.shards, validate_every=4, validation_songs=5)
    two = dataclasses.replace(cfg, out=tmp_path / "two", fsdp=fsdp)
    run(two, 2)
    one = dataclasses.replace(cfg, out=tmp_path / "one", batch=6)
    train(one)
    parts = dataclasses.replace(cfg, out=tmp_path / "parts", accumulate=2)
    train(parts)
    for other in (two, parts):
        for a, b in zip(rows(one), rows(other), strict=True):
            for name in {"loss", "validation_loss", "grad_norm"} & a.keys():
                assert a[name] == pytest.approx(b[name], abs=1e-5 if "loss" in name else 1e-3), name
    weights = [load_file(c.out / "last" / AVERAGED) for c in (one, two, parts)]
    assert all(torch.allclose(w[k], weights[0][k], atol=1e-5) for w in weights for k in w)


@pytest.mark.slow
def test_two_ranks_in_bfloat16(cfg, tmp_path):
    """FSDP that casts times or lengths, or sums gradients, in bfloat16; weights that are saved in it."""
    cfg = dataclasses.replace(cfg, bf16=True, steps=8, accumulate=2)
    two = dataclasses.replace(cfg, out=tmp_path / "two", fsdp=True)
    run(two, 2)
    one = dataclasses.replace(cfg, out=tmp_path / "one", batch=6)
    train(one)
    assert losses(two) == pytest.approx(losses(one), rel=0.01)
    weights = [load_file(c.out / "last" / WEIGHTS) for c in (one, two)]
    assert all(w.dtype == torch.float32 for w in weights[1].values())
    start = module.initial_model(cfg, config.PRESETS["tiny"]).proj_out.weight.detach()
    moved = [w["transformer.proj_out.weight"] - start for w in weights]
    assert torch.nn.functional.cosine_similarity(*(m.flatten() for m in moved), 0) > 0.95


def test_other_numbers_of_ranks_go_on(cfg, tmp_path):
    """Songs lost or repeated, or an optimizer that cannot be put together, when machines come or go."""
    two = dataclasses.replace(cfg, steps=2, fsdp=True)
    run(two, 2)
    train(dataclasses.replace(cfg, batch=6))                 # shared out by FSDP before, now alone
    whole = dataclasses.replace(cfg, out=tmp_path / "whole", batch=6)
    train(whole)
    assert losses(cfg) == pytest.approx(losses(whole), abs=1e-5)


@pytest.mark.slow
def test_shares_of_fsdp_go_on(cfg, tmp_path):
    """Shared-out weights, averages or optimizer states that come back as another process's."""
    cfg = dataclasses.replace(cfg, fsdp=True, accumulate=2)
    run(dataclasses.replace(cfg, steps=2), 2)
    run(cfg, 2)
    whole = dataclasses.replace(cfg, out=tmp_path / "whole")
    run(whole, 2)
    assert losses(cfg) == losses(whole)
    for name in (WEIGHTS, AVERAGED):
        assert same(load_file(cfg.out / "last" / name), load_file(whole.out / "last" / name))


@pytest.mark.slow
def test_torchrun_starts_again(cfg, tmp_path, tiny_preset):
    """A rank that dies: torchrun starts all of them anew, and they go on from the checkpoint."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import os, pathlib, pickle, sys
sys.path.insert(0, {str(ROOT)!r})
import config, train
config.PRESETS["tiny"] = pickle.loads({__import__("pickle").dumps(config.PRESETS["tiny"])!r})
again = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
cfg = pickle.loads(pathlib.Path({str(tmp_path / "cfg")!r}).read_bytes())
save = train.Trainer.save
def dying(self, preset):
    if self.done == 4 and not again and self.processes.rank == 1:
        os._exit(9)
    return save(self, preset)
train.Trainer.save = dying
train.train(cfg)
""")
    (tmp_path / "cfg").write_bytes(__import__("pickle").dumps(dataclasses.replace(cfg, steps=6)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run([*torchrun, "--max-restarts=1", str(script)], capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    whole = dataclasses.replace(cfg, out=tmp_path / "whole", steps=6)
    run(whole, 2)
    assert done.stdout.count("from step") == 2 and losses(cfg) == losses(whole)
    for name in (WEIGHTS, AVERAGED):
        assert same(load_file(cfg.out / "last" / name), load_file(whole.out / "last" / name))


# One run at a time

@pytest.mark.slow
def test_a_folder_is_one_runs(cfg):
    """Two runs that write one log; a lock that outlives its run."""
    cfg = dataclasses.replace(cfg, steps=2)
    first, = start(dataclasses.replace(cfg, steps=10 ** 6, save_every=10 ** 6))
    while not (cfg.out / "log.jsonl").exists() or not rows(cfg):
        assert first.is_alive()
        time.sleep(0.01)
    left = cfg.out / ".step-000001.99"                       # what the second would sweep
    left.mkdir()
    second, = start(dataclasses.replace(cfg, out=cfg.out / ".." / "run"))
    second.join()
    said = Path(f"{cfg.out}.0.txt").read_text()
    assert second.exitcode == 2 and first.is_alive() and left.exists()
    assert f"another run is at work here: process {first.pid} on {socket.gethostname()}, since " in said
    first.kill()
    first.join()
    with (cfg.out / LOCK).open() as lock:                    # at once
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    run(cfg)
    assert [row["step"] for row in rows(cfg)] == [1, 2]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_torchrun_that_is_killed_takes_its_workers_along(cfg, tmp_path, world):
    """Processes that train on when nobody waits for them, and keep the folder."""
    (tmp_path / "script.py").write_text(f"""
import pathlib, pickle, sys
sys.path.insert(0, {str(ROOT)!r})
import config, train
config.PRESETS["tiny"], cfg = pickle.loads(pathlib.Path({str(tmp_path / "given")!r}).read_bytes())
train.train(cfg)
""")
    forever = dataclasses.replace(cfg, steps=10 ** 6, save_every=1, keep=2)
    (tmp_path / "given").write_bytes(pickle.dumps((config.PRESETS["tiny"], forever)))
    torchrun = subprocess.Popen([*TORCHRUN, f"--nproc_per_node={world}", str(tmp_path / "script.py")])
    while not (cfg.out / "last").exists():
        assert torchrun.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text()
    workers = [int(pid) for pid in children.split()]
    torchrun.kill()
    torchrun.wait()
    release()
    hold(cfg.out)                                            # waits for seconds, not longer
    done = newest(cfg.out)
    deadline = time.monotonic() + 10
    while any(running(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(workers) == world and newest(cfg.out) == done
    run(dataclasses.replace(forever, steps=done + 1), world)


@pytest.mark.slow
def test_torchrun_that_is_killed_early(tmp_path):
    """A process that is still importing torch, and takes the one that inherits it for torchrun."""
    script, begun = tmp_path / "script.py", tmp_path / "begun"
    script.write_text(f"""
import os, pathlib, sys, time
sys.path.insert(0, {str(ROOT)!r})
from support.cli import PARENT
pathlib.Path({str(begun)!r}).write_text(str(os.getpid()))
while os.getppid() == PARENT:
    time.sleep(0.05)
from support.processes import Processes
Processes()
time.sleep(600)
""")
    torchrun = subprocess.Popen(["sh", "-c", f"{sys.executable} {script}; true"],
                                env=os.environ | {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "1"})
    while not begun.exists() or not begun.read_text():
        time.sleep(0.05)
    torchrun.kill()
    torchrun.wait()
    pid, deadline = int(begun.read_text()), time.monotonic() + 120
    try:
        while running(pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def running(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.parametrize("flags, fragment", [
    (["--lr", "-1"], "--lr -1.0: expected 0"),
    pytest.param(["--data.shards", "no.tar"], "no.tar: no such shard", marks=pytest.mark.slow),
    pytest.param(["--assets", "no"], "phonemizer.pt: no such file", marks=pytest.mark.slow)])
def test_a_mistake_ends_torchrun(tmp_path, flags, fragment):
    """The same message from every process, again after each restart."""
    flags = [*flags, "--out", str(tmp_path / "run"), "--device", "cpu", "--tensorboard", "false"]
    torchrun = [*TORCHRUN, "--nproc_per_node=2", "--max-restarts=3", str(ROOT / "train.py")]
    done = subprocess.run([*torchrun, *flags], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0 and fragment in done.stderr
    assert [line[:7] for line in done.stderr.splitlines()].count("error: ") == 1
    assert "Error:" not in done.stderr.replace("ChildFailedError:", "") and "restart" not in done.stderr


# Checkpoints

def test_a_half_written_checkpoint_is_passed_over(cfg, capsys):
    """A copy cut off, a file lost: the run goes on from the one before, and says so."""
    train(cfg)
    for break_it in (lambda folder: (folder / "optimizer.pt").write_bytes(b"short"),
                     lambda folder: (folder / AVERAGED).unlink(),
                     lambda folder: (folder / checkpoint.CONTENTS).unlink()):
        break_it(cfg.out / "step-000004")
        capsys.readouterr()
        train(cfg)
        assert "step-000004: is not whole: " in capsys.readouterr().err
        assert not checkpoint.fault(cfg.out / "step-000004")


@pytest.mark.parametrize("name", [WEIGHTS, "optimizer.pt", "rng.pt", "state.json", checkpoint.CONTENTS])
def test_a_flipped_byte_is_passed_over(cfg, tmp_path, name, capsys):
    """A disk that changes a bit: the run goes on with other weights, or with an error at each start."""
    train(dataclasses.replace(cfg, keep=1, save_every=1, steps=3))
    shutil.copytree(cfg.out, tmp_path / "old", symlinks=True)
    train(dataclasses.replace(cfg, keep=2, save_every=1))
    kept = {path.name: path.stat() for path in (cfg.out / "step-000004").iterdir()}
    content = bytearray((cfg.out / "step-000004" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (cfg.out / "step-000004" / name).write_bytes(content)
    os.utime(cfg.out / "step-000004" / name, ns=(kept[name].st_mtime_ns,) * 2)
    capsys.readouterr()
    train(dataclasses.replace(cfg, keep=1, save_every=1))
    said = capsys.readouterr()
    assert "step-000004: is not whole: " in said.err and "from step 3" in said.out
    assert not checkpoint.fault(cfg.out / "step-000004")
    train(dataclasses.replace(cfg, out=tmp_path / "old", save_every=1))
    assert equal(cfg.out / "last", tmp_path / "old" / "last")


def test_a_broken_newer_checkpoint_does_not_count(tmp_path):
    """The only whole checkpoint is deleted, since newer ones are there, which are broken."""
    for step in (2, 3, 4):
        checkpoint.folder_of(tmp_path, step).mkdir()
    checkpoint.finish(tmp_path, checkpoint.folder_of(tmp_path, 3), 1)
    assert [path.name for path in checkpoint.existing(tmp_path)] == ["step-000003", "step-000004"]


def test_no_checkpoint_is_whole(cfg):
    """A new run over an old one whose checkpoints have all suffered."""
    train(dataclasses.replace(cfg, steps=2))
    (cfg.out / "last" / "rng.pt").write_bytes(b"")
    with pytest.raises(UserError, match="none of its checkpoints is whole; delete them"):
        train(cfg)
    with pytest.raises(UserError, match="no whole checkpoint; .*rng.pt: is not of its full length"):
        train(dataclasses.replace(cfg, out=cfg.out / "new", resume=str(cfg.out / "last")))


def test_a_checkpoint_of_an_earlier_version(cfg, capsys):
    """Sizes alone, as they were noted once."""
    train(dataclasses.replace(cfg, steps=2))
    path = cfg.out / "last" / checkpoint.CONTENTS
    contents = json.loads(path.read_text())
    path.write_text(json.dumps({name: about["bytes"] for name, about in contents.items()}))
    train(cfg)
    assert "from step 2" in capsys.readouterr().out


def test_a_broken_log_does_not_stop_a_run(cfg, capsys):
    """A disk that was full, or a power cut: lines that are no JSON, no rows, or no text."""
    train(dataclasses.replace(cfg, steps=2))
    path, line = cfg.out / "log.jsonl", '{"step": 1, "loss": 1.0}\n'
    path.write_bytes(b"\0" * 99 + b"\n" + line.encode() + b'{"step": 2, "lo\n5\n{"step": "x"}\n\xff\n{"st')
    train(cfg)
    assert [row["step"] for row in rows(cfg)] == [1, 3, 4]
    said = capsys.readouterr().err
    assert all(f"log.jsonl: line {number}: " in said for number in (1, 3, 4, 5, 6)) and "line 7" not in said


def test_what_a_killed_save_leaves_is_swept(cfg):
    """Gigabytes of hidden folders, or a link that cannot be made because one of its name is there."""
    train(dataclasses.replace(cfg, steps=2))
    (cfg.out / ".step-000004.99").mkdir()
    (cfg.out / ".step-000004.99" / WEIGHTS).write_text("half")
    (cfg.out / f".last.{os.getpid()}").symlink_to("nowhere")
    train(cfg)
    assert sorted(p.name for p in cfg.out.iterdir()) == [LOCK, "last", "log.jsonl", "step-000002",
                                                           "step-000004"]


def test_keep_and_last(cfg):
    """Old checkpoints that fill the disk; a link that leads to none or to an old one."""
    train(dataclasses.replace(cfg, steps=6, save_every=1, keep=2))
    assert [p.name for p in checkpoint.existing(cfg.out)] == ["step-000005", "step-000006"]
    assert (cfg.out / "last").resolve().name == "step-000006"
    state = json.loads((cfg.out / "last" / "state.json").read_text())
    assert state["step"] == 6 and state["config"]["data"]["shards"] == list(cfg.data.shards)


def test_a_full_disk(cfg):
    """A write that fails must leave the checkpoint before it, and one line that says which."""
    train(dataclasses.replace(cfg, steps=2))
    process, = start(cfg, work=limited)
    process.join()
    said = Path(f"{cfg.out}.0.txt").read_text()
    assert process.exitcode == 2 and "step-000004: cannot be written: " in said
    assert said.rstrip().endswith("step-000002 is whole") and said.count("\nerror: ") == 1
    assert [p.name for p in checkpoint.existing(cfg.out)] == ["step-000002"]
    assert not [p for p in cfg.out.iterdir() if p.name.startswith(".step")]
    train(cfg)
    assert (cfg.out / "last").resolve().name == "step-000004"


def test_checkpoints_are_written_beside_the_steps(cfg, tmp_path, monkeypatch):
    """A write that training waits for, or one that writes down the steps which come meanwhile."""
    train(dataclasses.replace(cfg, out=tmp_path / "calm"))
    stepped, writing, note = threading.Event(), checkpoint.writing, log.RunLog.note

    def noted(self, step, *about):
        note(self, step, *about)
        if step == 3:
            stepped.set()
    monkeypatch.setattr(log.RunLog, "note", noted)
    monkeypatch.setattr(checkpoint, "writing", lambda path: stepped.wait(20) and writing(path))
    train(cfg)
    assert equal(cfg.out / "step-000002", tmp_path / "calm" / "step-000002")
    assert equal(cfg.out / "last", tmp_path / "calm" / "last")


def test_an_error_waits_for_the_checkpoint(cfg, monkeypatch):
    """A run that ends amid a write, and leaves none; a write that failed, told only at the next one."""
    writing, note = checkpoint.writing, log.RunLog.note

    def noted(self, step, *about):
        if step == 3:
            raise UserError("ended")
        note(self, step, *about)
    monkeypatch.setattr(checkpoint, "writing", lambda path: time.sleep(0.3) or writing(path))
    with monkeypatch.context() as patch, pytest.raises(UserError, match="ended"):
        patch.setattr(log.RunLog, "note", noted)
        train(cfg)
    assert not checkpoint.fault(cfg.out / "last")

    def failing(path):
        raise UserError(f"{path}: no space")
    monkeypatch.setattr(checkpoint, "writing", failing)
    with pytest.raises(UserError, match="step-000003: no space"):
        train(dataclasses.replace(cfg, save_every=3, steps=10 ** 6))


def limited(cfg: TrainConfig) -> None:
    """A run on a disk where no file can have more than 100 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    train(cfg)


@pytest.mark.parametrize("content", [b"", b"PK", b"not a checkpoint"])
def test_a_broken_checkpoint_is_named(cfg, content):
    """Whole in length but not in content: going on from nothing would be a new run over an old one."""
    train(dataclasses.replace(cfg, steps=2))
    (cfg.out / "last" / "optimizer.pt").write_bytes(content)
    sizes = {p.name: p.stat().st_size for p in (cfg.out / "last").iterdir() if p.name != checkpoint.CONTENTS}
    (cfg.out / "last" / checkpoint.CONTENTS).write_text(json.dumps(sizes))
    with pytest.raises(UserError, match="step-000002: not a checkpoint: "):
        train(cfg)


@pytest.mark.parametrize("change, fragment", [
    ({"seed": 1}, "was made with --seed 0, not 1"), ({"ema": 0.0}, "was made with --ema 0.999, not 0.0"),
    ({"resume": "none"}, "step-000002 is there; use another --out"),
    ({"data": DataSettings(("x.tar",), bucket=2)}, "was made with --data.bucket 1, not 2"),
    ({"resume": "no/such"}, "--resume no/such: no whole checkpoint")])
def test_what_does_not_resume(cfg, change, fragment):
    """Going on with other settings would silently be another run."""
    train(dataclasses.replace(cfg, steps=2))
    with pytest.raises(UserError, match=".") as caught:
        train(dataclasses.replace(cfg, **change))
    assert fragment in str(caught.value)


def test_checkpoints_from_before_a_setting(cfg):
    """A run that cannot go on since the code has learnt more; or that goes on with what it then was not."""
    train(dataclasses.replace(cfg, steps=2))
    file = cfg.out / "last" / "state.json"
    state = json.loads(file.read_text())
    del state["config"]["fp16"], state["config"]["data"]["shuffle"], state["scaler"]
    file.write_text(json.dumps(state))

    def resume(cfg: TrainConfig) -> list[dict]:
        model = module.initial_model(cfg, config.PRESETS["tiny"])
        wrapped = functools.partial(FlowObjective, cfg=cfg)
        return Trainer(cfg, model, wrapped, Processes(), torch.device("cpu")).resume(cfg.out / "last")
    assert resume(cfg) == state["places"]
    for change in ({"fp16": True}, {"data": dataclasses.replace(cfg.data, shuffle=False)}):
        with pytest.raises(UserError, match="was made with --(fp16 False, not True|data.shuffle True, not)"):
            resume(dataclasses.replace(cfg, **change))


def test_resume_from_a_named_checkpoint(cfg, tmp_path):
    """A branch of a run: another folder, the same past."""
    train(cfg)
    branch = dataclasses.replace(cfg, out=tmp_path / "branch", resume=str(cfg.out / "step-000002"))
    train(branch)
    assert equal(cfg.out / "last", branch.out / "last")
    assert [row["step"] for row in rows(branch)] == [3, 4]
    train(dataclasses.replace(branch, steps=5))              # the same command again: from its own newest
    assert [row["step"] for row in rows(branch)] == [3, 4, 5]
    with pytest.raises(UserError, match="step-000004 is newer; use another --out"):
        train(dataclasses.replace(cfg, resume=str(cfg.out / "step-000002")))
    kept = shutil.copytree(cfg.out / "step-000002", tmp_path / "kept" / "best")      # no run's own name
    train(dataclasses.replace(cfg, out=kept.parent, resume=str(kept)))
    assert equal(cfg.out / "last", kept.parent / "last")


def test_ranks_with_folders_of_their_own(cfg, tmp_path):
    """Ranks that go on from different checkpoints would average two models without a word."""
    train(dataclasses.replace(cfg, steps=2))
    started = start(cfg, 2, apart)
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [2, 2]
    assert "processes see different checkpoints" in Path(f"{cfg.out}.0.txt").read_text()


def apart(cfg: TrainConfig) -> None:
    """Rank 1 looks for checkpoints elsewhere."""
    train(dataclasses.replace(cfg, out=cfg.out.with_name("other")) if os.environ["RANK"] == "1" else cfg)


# What it does

def test_it_learns(cfg):
    """A sign error in the velocity or unconnected conditions would leave the loss where it was."""
    train(dataclasses.replace(cfg, steps=120, lr=5e-3, batch=6, log_every=40, save_every=120))
    found = rows(cfg)
    assert [row["step"] for row in found] == [40, 80, 120]
    assert found[-1]["loss"] < 0.5 * found[0]["loss"]
    assert len(found[0]["loss_by_time"]) == 4 and found[0]["lr"] == 5e-3 and found[0]["songs_per_s"] > 0


def test_initial_weights(cfg, tmp_path):
    """--init-from with nothing to learn gives the same weights back."""
    train(cfg)
    weights = cfg.out / "last" / WEIGHTS
    train(dataclasses.replace(cfg, out=tmp_path / "next", init_from=weights, lr=0.0, steps=1))
    one, two = (load_file(folder / "last" / WEIGHTS) for folder in (cfg.out, tmp_path / "next"))
    assert same(one, two)


def test_gradient_checkpointing_changes_nothing(cfg, tmp_path):
    """Blocks computed twice must give the same gradients; and it must be in effect."""
    twice = dataclasses.replace(cfg, out=tmp_path / "twice", gradient_checkpointing=True)
    train(cfg)
    train(twice)
    assert equal(cfg.out / "last", twice.out / "last")
    model, calls = DiT(config.PRESETS["tiny"].model), []
    objective = functools.partial(FlowObjective, cfg=twice)
    trainer = Trainer(twice, model, objective, module.Processes(), torch.device("cpu"))
    block = model.transformer_blocks[0]
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    _, *assets = module.begin(cfg, module.Processes())       # preset, phonemes' ids, silence
    batch = next(module.load(cfg.data, *assets, cfg.batch, 0))
    trainer.step([batch])
    assert len(calls) == 2


def test_a_step_waits_for_no_gpu(cfg, monkeypatch):
    """A value that is read back amid a step: the GPU runs dry. The meta device has no values to be read."""
    _, *assets = module.begin(cfg, module.Processes())
    stream = module.load(cfg.data, *assets, cfg.batch, 0)
    batches, generator = [next(stream), next(stream)], types.SimpleNamespace(manual_seed=lambda seed: None)
    monkeypatch.setattr(torch, "Generator", lambda device: generator)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    with torch.device("meta") as device:
        model = DiT(config.PRESETS["tiny"].model)
    trainer = Trainer(cfg, model, functools.partial(FlowObjective, cfg=cfg), module.Processes(), device)
    trainer.optimizer = torch.optim.SGD(trainer.parameters)              # fused AdamW has no meta kernel
    logged = log.RunLog(cfg, trainer.processes, torch.device("cpu"), None, 0)
    for step in (1, 2):
        outputs, norms = trainer.step(batches)
        for batch, values in zip(batches, outputs):
            logged.note(step, values, batch)
    assert norms["grad_norm"].is_meta and len(logged.noted) == 4
    with pytest.raises(NotImplementedError, match="meta"):   # a report reads
        logged.report(2, 0.0, norms)


@pytest.mark.slow
def test_compiled(cfg, tmp_path):
    """torch.compile that changes names in the checkpoint, or values."""
    train(cfg)
    train(dataclasses.replace(cfg, out=tmp_path / "compiled", compile=True))
    one, two = (load_file(folder / "last" / WEIGHTS) for folder in (cfg.out, tmp_path / "compiled"))
    assert one.keys() == two.keys() and all(torch.allclose(one[k], two[k], atol=1e-4) for k in one)


def overflowing(monkeypatch, calls: set[int]) -> None:
    """Make the gradients of these steps overflow."""
    numbers, scale = itertools.count(1), torch.amp.GradScaler.scale
    monkeypatch.setattr(torch.amp.GradScaler, "scale", lambda self, loss: scale(self, loss) * (
        torch.inf if next(numbers) in calls else 1))


def test_float16(cfg, tmp_path, monkeypatch):
    """Gradients that stay scaled; one that overflows and spoils the weights; a scale lost at a break."""
    train(dataclasses.replace(cfg, out=tmp_path / "exact", steps=1))
    cfg, types, loss = dataclasses.replace(cfg, fp16=True), [], module.flow_loss
    monkeypatch.setattr(module, "flow_loss", lambda *args: (
        types.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))), loss(*args))[1])
    whole = dataclasses.replace(cfg, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        overflowing(patch, {2})
        train(whole)
    exact, (first, skipped, third, _) = rows(dataclasses.replace(cfg, out=tmp_path / "exact"))[0], rows(whole)
    assert set(types) == {(True, torch.float16)}
    assert first["loss"] == pytest.approx(exact["loss"], rel=0.01)
    assert first["grad_norm"] == pytest.approx(exact["grad_norm"], rel=0.02)
    assert (skipped["grad_norm"], skipped["update_norm"]) == (None, 0)
    assert (first["loss_scale"], skipped["loss_scale"]) == (65540, 32770) and third["update_norm"] > 0
    with monkeypatch.context() as patch:
        overflowing(patch, {2})
        train(dataclasses.replace(cfg, steps=2))
    train(cfg)
    assert equal(cfg.out / "last", whole.out / "last")
    scales = [json.loads((c.out / "last" / "state.json").read_text())["scaler"] for c in (cfg, whole)]
    assert scales[0] == scales[1] and scales[0]["scale"] == 32768


def test_float16_that_always_overflows(cfg, monkeypatch):
    """A run that leaves out every step, for days."""
    monkeypatch.setattr(log, "SMALLEST_SCALE", 2.0 ** 14)
    overflowing(monkeypatch, set(range(99)))
    with pytest.raises(UserError, match="up to step 3 .* a gradient is not finite"):
        train(dataclasses.replace(cfg, fp16=True, steps=9, save_every=9))


def test_a_loss_that_explodes(cfg, monkeypatch):
    """A NaN that is averaged into all weights and saved over the last good ones."""
    train(dataclasses.replace(cfg, steps=2))
    forward = FlowObjective.forward

    def poisoned(self, batch, seeds):
        made = forward(self, batch, seeds)
        return made | {"loss": made["loss"] * (float("nan") if self.training else 1)}
    monkeypatch.setattr(FlowObjective, "forward", poisoned)
    with pytest.raises(UserError, match="up to step 3 a loss is not finite, or above --max-loss 100.0"):
        train(cfg)
    stopped = json.loads((cfg.out / "stopped-rank0.json").read_text())
    assert [entry["step"] for entry in stopped] == [3] and len(stopped[0]["ids"]) == 3
    assert "songs-0.tar" in stopped[0]["ids"][0]
    assert [p.name for p in checkpoint.existing(cfg.out)] == ["step-000002"]
    monkeypatch.setattr(FlowObjective, "forward", forward)
    with pytest.raises(UserError, match="above --max-loss 0.01"):
        train(dataclasses.replace(cfg, max_loss=0.01))


def test_a_gradient_that_is_none(cfg, monkeypatch):
    """A finite loss with a NaN gradient, at a step that is saved: each restart would go on from NaN."""
    forward = FlowObjective.forward

    def poisoned(self, batch, seeds):
        made = forward(self, batch, seeds)
        made["loss"].register_hook(lambda gradient: gradient * float("nan"))
        return made
    train(dataclasses.replace(cfg, steps=1, save_every=1))
    monkeypatch.setattr(FlowObjective, "forward", poisoned)
    with pytest.raises(UserError, match="up to step 2 .*a gradient is not finite"):
        train(dataclasses.replace(cfg, steps=2))
    assert [p.name for p in checkpoint.existing(cfg.out)] == ["step-000001"]
    assert json.loads((cfg.out / "stopped-rank0.json").read_text())[0]["step"] == 2


def test_curves_and_songs(cfg, tmp_path, monkeypatch):
    """TensorBoard's file, Weights & Biases' calls (a stand-in), a song and a picture at each checkpoint."""
    told = []
    fake = types.ModuleType("wandb")
    fake.__spec__ = types.SimpleNamespace()
    fake.init = lambda **settings: told.append(settings) or types.SimpleNamespace(
        log=lambda row, step: told.append((step, row)), finish=lambda: told.append("finished"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    cfg = dataclasses.replace(cfg, listen=True, tensorboard=True, wandb="jam/first", wandb_mode="offline")
    train(cfg)
    assert (told[0]["project"], told[0]["name"], told[0]["mode"]) == ("jam", "first", "offline")
    assert [entry[0] for entry in told[1:-1]] == [1, 2, 3, 4] and told[-1] == "finished"
    assert {"loss", "lr", "grad_norm", "songs_per_s"} <= told[1][1].keys()
    samples = {path.name for path in (cfg.out / "samples").iterdir()}
    assert samples == {f"{name}.{ending}" for name in ("reference", "step-000002", "step-000004")
                       for ending in ("wav", "png")}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(cfg.out / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(cfg), abs=1e-5)


def test_a_checkpoint_sings(cfg, tmp_path, tiny_folder):
    """Folders that sample.py cannot take, or sing with the weights that were not averaged."""
    train(cfg)
    out = tmp_path / "song.wav"
    lyrics = tmp_path / "a.json"
    lyrics.write_text(json.dumps([{"word": "hello", "start": 0.2, "end": 0.9}]))
    sample.main(["--model", str(cfg.out / "last"), "--lyrics", str(lyrics), "--out", str(out)])
    account = json.loads((tmp_path / "song.wav.json").read_text())
    files = account["request"]["sha256"]
    assert files["weights"] == sha256(cfg.out / "last" / AVERAGED)
    assert files["codec"] == sha256(tiny_folder / CODEC) and files["styles"] == sha256(tiny_folder / STYLES)
    assert (cfg.out / "last" / CONFIG).is_file() and set(load_file(cfg.out / "last" / WEIGHTS)) == {
        f"transformer.{name}" for name, _ in DiT(config.PRESETS["tiny"].model).named_parameters()}


@pytest.mark.parametrize("words, picture", [
    ([{"start": 0.5, "end": 0.1, "phoneme": "a", "word": "late"}], False), ([], True),
    ([{"start": 0.1, "end": 0.5, "phoneme": "həloʊ"}], True)])
def test_a_run_does_not_end_for_want_of_a_song(cfg, tmp_path, shard, words, picture, capsys):
    """Words that training takes but that cannot be shown; a first song that is broken; streams."""
    other = tmp_path / "other.tar"
    with tarfile.open(shard) as old, tarfile.open(other, "w") as new:
        for member in old:
            data = old.extractfile(member).read()
            data = b"{" if member.name == "000.json" else data
            data = json.dumps({"word": words}).encode() if member.name == "001.json" else data
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    train(dataclasses.replace(cfg, data=DataSettings((str(other),), workers=0, max_broken=0.5), listen=True,
                              steps=1))
    assert (cfg.out / "samples" / "step-000001.png").exists() == picture
    assert ("come without a song" in capsys.readouterr().out) != picture


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), KeyError("x"),
                                   OSError(28, "No space left on device"), UserError("a.wav: not finite")])
@pytest.mark.parametrize("owner, name, at", [(samples, "load_model", "step-000001: comes"), (
    samples.CheckpointSamples, "write", "checkpoints come")])
def test_a_song_that_fails_does_not_end_a_run(cfg, error, owner, name, at, monkeypatch, capsys):
    """A full disk, a full GPU, a decoder that fails: days of training lost for a song."""
    def failing(*args):
        raise error
    monkeypatch.setattr(owner, name, failing)
    train(dataclasses.replace(cfg, listen=True, steps=1))
    said = "".join(capsys.readouterr())
    assert f"{at} without a song: " in said or f"{at} come without a song: " in said
    assert checkpoint.newest(cfg.out).name == "step-000001"


def test_a_folder_of_samples_that_is_gone(cfg, monkeypatch, capsys):
    """Unwritable amid a run: the song is lost, the run is not."""
    sing = samples.CheckpointSamples.sing

    def gone(self, path):
        shutil.rmtree(self.folder, ignore_errors=True)
        sing(self, path)
    monkeypatch.setattr(samples.CheckpointSamples, "sing", gone)
    train(dataclasses.replace(cfg, listen=True))
    assert capsys.readouterr().err.count("comes without a song: ") == 2 and newest(cfg.out) == 4


@pytest.mark.parametrize("change, fragment", [
    ({"lr": -1.0}, "--lr -1.0: expected 0"), ({"clip": float("nan")}, "--clip nan: expected"),
    ({"preset": "none"}, "--preset none: expected one of"), ({"log_every": 0}, "--log-every 0: expected 1"),
    ({"data": DataSettings(("no/such.tar",))}, "no/such.tar"), ({"ema": 1.5}, "--ema 1.5: expected 0 to 1"),
    ({"out": BABY / CONFIG}, "File exists"), ({"assets": ROOT}, "phonemizer.pt: no such file"),
    ({"init_from": BABY / CONFIG}, str(BABY / CONFIG)), ({"max_frames": 9999}, "--max-frames 9999: expecte"),
    ({"fsdp": True}, "start them with torchrun"), ({"wandb": "a/b"}, "--wandb: is not installed: pip inst"),
    ({"wandb_mode": "loud"}, "--wandb-mode loud: expected one of online")])
def test_mistakes(cfg, change, fragment):
    with pytest.raises(UserError, match=".") as caught:
        train(dataclasses.replace(cfg, **change))
    assert fragment in str(caught.value) and "\n" not in str(caught.value)


def test_command_line(tmp_path):
    """A mistake is one line and exit code 2, also of a recipe's name."""
    done = subprocess.run([sys.executable, ROOT / "train.py", "--config", "pretain"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == ("error: --config pretain: did you mean pretrain? expected pretrain, sft, "
                           "baby-pretrain, baby-sft, or a JSON or YAML file\n")
