"""How much memory and time a model takes, with random weights: `python bench.py --what train`.

Read `bench_sample` and `bench_train`; `Peak` counts the bytes of living tensors, on any device, and so lets a
CPU tell what a GPU will need. What the kernels themselves borrow for a moment is not in it, except on CUDA,
where the allocator's own count is taken.
"""

import dataclasses
import functools
import math
import time
import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cli import parse, pick_device, run
from config import PRESETS, BenchConfig, CodecConfig, Preset, TrainConfig, UserError
from data import Batch, collate, conditions
from model import DiT, sample, time_grid
from phonemes import SymbolTable
from processes import Processes
from sample import DTYPES
from tracker import matmul_rate, work_of
from train import FlowObjective, Trainer
from vae import DEVICE_ROWS, MelCodec, Oobleck, OobleckCodec

GIB = 1024 ** 3


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside of its block and still alive: now, and at most."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in self.known:
                storage = tensor.untyped_storage()
                self.known.add(id(storage))
                self.now += storage.nbytes()
                weakref.finalize(storage, self.gone, id(storage), storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def measure(work: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Seconds and bytes at most that `work` takes, its result included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before, began = torch.cuda.memory_allocated(device), time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return time.perf_counter() - began, torch.cuda.max_memory_allocated(device) - before
    began = time.perf_counter()
    with Peak() as peak:
        work()
    return time.perf_counter() - began, peak.most


def random_codec(config: CodecConfig, device: torch.device) -> tuple[MelCodec | OobleckCodec, int]:
    """A codec with random weights, in float32 as Singer has it, and how many bytes these take."""
    if config.kind == "mel":
        return MelCodec(config), 0
    model = Oobleck(config).fold().requires_grad_(False).to(device)
    codec = OobleckCodec(config, model, device, rows=DEVICE_ROWS)       # as a GPU does it
    return codec, sum(p.nbytes for p in model.parameters())


def bench_sample(cfg: BenchConfig, preset: Preset, frames: int, device: torch.device) -> None:
    """Print what each stage of singing a song of `frames` takes."""
    model = DiT(preset.model).requires_grad_(False).to(device, DTYPES[cfg.dtype])
    codec, codec_bytes = random_codec(preset.codec, device)
    item, _ = conditions([], frames, 0, preset, SymbolTable("a"))
    item |= {"style": torch.randn(preset.model.cond_dim), "frames": frames}
    batch = {k: v.to(device) for k, v in collate([item], None, preset).items()}
    noise = torch.randn(1, batch["phonemes"].shape[1] // 4, preset.model.mel_dim, device=device)
    rows = {"network's weights": (0.0, sum(p.nbytes for p in model.parameters())),
            "codec's weights": (0.0, codec_bytes)}
    negative = torch.zeros(1, preset.model.cond_dim, device=device)
    everywhere = dataclasses.replace(preset.guidance, range=(0.0, 1.0))      # guided from the first step on
    seconds, peak = measure(lambda: sample(model, batch, noise, time_grid(cfg.steps), everywhere, negative),
                            device)
    rows[f"sampling, per guided step of {noise.shape[1]} frames"] = (seconds / (cfg.steps - 1), peak)
    seconds, peak = measure(lambda: codec.decode(noise.float().cpu()), device)
    rows[f"decoding {frames} frames"] = (seconds, peak)
    held = rows["network's weights"][1] + rows["codec's weights"][1]
    for name, (seconds, size) in rows.items():
        print(f"{name:45} {size / GIB:8.3f} GiB {seconds:8.2f} s")
    most = held + max(size for name, (_, size) in rows.items() if "weights" not in name)
    print(f"{'at most, both loaded':45} {most / GIB:8.3f} GiB")


def training(cfg: BenchConfig, preset: Preset, frames: int, device: torch.device) -> Callable[[], Tensor]:
    """An optimizer step over --batch songs of `frames`; it returns the gradient's norm."""
    settings = TrainConfig(preset=cfg.preset, batch=cfg.batch, bf16=cfg.dtype == "bfloat16", ema=0.0,
                           gradient_checkpointing=cfg.gradient_checkpointing, compile=cfg.compile)
    preset = dataclasses.replace(preset, trim=False,
                                 model=dataclasses.replace(preset.model, max_frames=frames))
    model = DiT(preset.model) if device.type == "cpu" else DiT(preset.model).to(device)
    trainer = Trainer(settings, model, functools.partial(FlowObjective, cfg=settings), Processes(), device)
    item, _ = conditions([], frames, 0, preset, SymbolTable("a"))
    latents = torch.randn(frames, preset.model.mel_dim)
    item |= {"style": torch.randn(preset.model.cond_dim), "latents": latents}
    batch = Batch(collate([item] * cfg.batch, latents[0], preset), list(range(cfg.batch)), [], [], {})
    return lambda: trainer.step([batch])[1]["grad_norm"]


def bench_train(cfg: BenchConfig, preset: Preset, frames: int, device: torch.device) -> None:
    """Print what optimizer steps take: on a CPU the memory is counted on tensors that hold nothing."""
    if device.type == "cpu":
        with FakeTensorMode(), Peak() as peak:
            step = training(cfg, preset, frames, device)
            step(), step()                                   # the first makes the optimizer's state
        most = peak.most
    print(f"{f'a step of {cfg.batch} songs of {frames} frames, at most':45} ", end="", flush=True)
    if cfg.steps < 2:
        print(f"{most / GIB:8.3f} GiB")
        return
    step = training(cfg, preset, frames, device)
    step().item()
    began = time.perf_counter()
    for _ in range(cfg.steps - 1):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        most = torch.cuda.max_memory_allocated(device)
    seconds = (time.perf_counter() - began) / (cfg.steps - 1)
    rate = matmul_rate(device, 8192 if device.type == "cuda" else 2048)
    work = cfg.batch * work_of(preset.model, frames)
    print(f"{most / GIB:8.3f} GiB\n"
          f"{'seconds a step':45} {seconds:8.3f}\n{'songs a second':45} {cfg.batch / seconds:8.3f}\n"
          f"{'bfloat16 matrix products':45} {rate / 1e12:8.3f} TFLOP/s\n"
          f"{'share of it that the step reaches (MFU)':45} {100 * work / seconds / rate:8.1f} %")


def main(argv: list[str] | None = None) -> None:
    """Print a table of what sampling or training takes."""
    cfg = parse(BenchConfig, __doc__.splitlines()[0], argv)
    if cfg.preset not in PRESETS or cfg.dtype not in DTYPES or cfg.what not in ("sample", "train"):
        raise UserError(f"--what, --preset, --dtype: expected sample or train, {' or '.join(PRESETS)}, "
                        f"{' or '.join(DTYPES)}")
    preset, device = PRESETS[cfg.preset], pick_device(cfg.device)
    counting = cfg.what == "train" and device.type == "cpu"  # memory alone
    if cfg.steps < 2 - counting or cfg.batch < 1:
        raise UserError(f"--steps {cfg.steps}, --batch {cfg.batch}: expected 2 or more, 1 or more")
    frame_hz = preset.codec.sample_rate_hz / preset.codec.hop
    longest_s = preset.model.max_frames / frame_hz
    duration_s = longest_s if cfg.duration is None else cfg.duration
    if not 0 < duration_s <= longest_s:
        raise UserError(f"--duration {duration_s}: expected seconds, {longest_s:.1f} at most")
    torch.manual_seed(0)
    print(f"{cfg.preset}, {cfg.dtype}, {device}")
    frames = math.ceil(round(duration_s * frame_hz, 3))
    (bench_sample if cfg.what == "sample" else bench_train)(cfg, preset, frames, device)


if __name__ == "__main__":
    run(main)
