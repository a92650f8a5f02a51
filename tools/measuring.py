"""What bench.py and suite.py share: the count of memory, the clock, and random models to measure.

Read `Peak`: it counts the bytes of living tensors on any device, and so lets a CPU tell what a GPU will
need. It does not see the scratch memory inside kernels; the count of CUDA's allocator, which is used on a
GPU, does.
"""

import contextlib
import dataclasses
import functools
import gc
import time
import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from config import Preset, TrainConfig
from data import collate, conditions
from model import DiT
from phonemes import SymbolTable
from support.processes import Processes
from support.stream import Batch
from sung import SungCodec, SungModel
from train import FlowObjective, Trainer
from vae import DEVICE_ROWS, Oobleck, OobleckCodec

GIB = 1024 ** 3


class Peak(TorchDispatchMode):
    """Counts the bytes of the living tensors that were made in its block: `now`, and at most (`most`)."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self.known:
                self.known.add(id(storage))
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, id(storage), storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def measure(work: Callable[[], object], device: torch.device) -> tuple[int, float]:
    """The most bytes that `work` takes, its result included, beyond those in use before; and its seconds."""
    gc.collect()                                 # what goes amid the work would count as less
    began = time.perf_counter()
    if device.type != "cuda":
        with Peak() as peak:
            work()
        return peak.most, time.perf_counter() - began
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before, began = torch.cuda.memory_allocated(device), time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before, time.perf_counter() - began


def in_turn(works: dict[str, Callable[[], object]], device: torch.device, rounds: int = 3,
            warm: int = 1) -> dict[str, float]:
    """The least seconds of each work over some rounds, after some that warm up.

    The works take turns, so that a machine that is busy for a while is slow to all of them.
    """
    wait = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    seconds = {name: [] for name in works}
    for _ in range(warm + rounds):
        for name, work in works.items():
            wait()
            began = time.perf_counter()
            work()
            wait()
            seconds[name].append(time.perf_counter() - began)
    return {name: min(taken[warm:]) for name, taken in seconds.items()}


def codec_of(preset: Preset, device: torch.device) -> SungCodec | OobleckCodec:
    """A random codec, which stays in float32, as sample.py loads it."""
    if preset.codec.kind == "sung":
        return SungCodec(preset.codec, SungModel(preset.codec).requires_grad_(False))
    oobleck = Oobleck(preset.codec).fold().requires_grad_(False).to(device)
    return OobleckCodec(preset.codec, oobleck, device, rows=DEVICE_ROWS)     # as a GPU does it


def training_step(cfg: TrainConfig, preset: Preset, frames: int, device: torch.device
                  ) -> Callable[[], Tensor]:
    """A new model's optimizer step over cfg.batch songs of `frames`, which returns the gradient's norm.

    The songs have no words and a random style.
    """
    preset = dataclasses.replace(preset, trim=False,
                                 model=dataclasses.replace(preset.model, max_frames=frames))
    with device:
        model = DiT(preset.model)
    trainer = Trainer(cfg, model, functools.partial(FlowObjective, cfg=cfg), Processes(), device)
    item, _ = conditions([], frames, 0, preset, SymbolTable("a"))
    item |= {"style": torch.randn(preset.model.cond_dim),
             "latents": torch.randn(frames, preset.model.mel_dim)}
    songs = collate([item] * cfg.batch, item["latents"][0], preset)
    batch = Batch(songs, list(range(cfg.batch)), [], [], {})
    return lambda: trainer.step([batch])[1]["grad_norm"]


def training(cfg: TrainConfig, preset: Preset, frames: int, device: torch.device, rounds: int
             ) -> tuple[int, float | None]:
    """The bytes that training takes, and the seconds of a step, the least of some rounds; of none, None."""
    def two_steps() -> None:                                 # the first makes the optimizer's state
        step = training_step(cfg, preset, frames, device)
        step()
        step()

    # On a CPU the memory is counted with tensors that hold nothing.
    with FakeTensorMode() if device.type == "cpu" else contextlib.nullcontext():
        most, _ = measure(two_steps, device)
    if not rounds:
        return most, None
    return most, in_turn({"": training_step(cfg, preset, frames, device)}, device, rounds)[""]
