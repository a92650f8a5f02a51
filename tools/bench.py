"""How much memory and time sampling and training take, with random weights.

    python -m tools.bench --dtype bfloat16
    python -m tools.bench --what train --steps 1 --gradient-checkpointing

Read `bench_sample` and `bench_train`. `Peak` counts the bytes of living tensors on any device, and so lets a
CPU tell what a GPU will need. It does not see the scratch memory inside kernels; the count of CUDA's
allocator, which is used on a GPU, does.
"""

import dataclasses
import functools
import math
import time
import weakref
from collections.abc import Callable

from config import PRESETS, Preset, Settings, TrainConfig, UserError, one_of, within
from support.cli import first, parse, run

if __name__ == "__main__":
    first()

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data import collate, conditions, windows
from model import DiT
from phonemes import CELLS_PER_FRAME, SymbolTable
from sampler import sample_windows, time_grid
from support.log import matmul_rate
from support.processes import Processes, pick_device
from support.stream import Batch
from train import FlowObjective, Trainer, training_flops
from sung import SungCodec, SungModel
from vae import DEVICE_ROWS, Oobleck, OobleckCodec

GIB = 1024 ** 3


@dataclasses.dataclass(frozen=True)
class BenchConfig(Settings):
    """Measure a model with random weights."""
    what: str = one_of("sample", ("sample", "train"))        # sample: sing a song; train: optimizer steps
    preset: str = one_of("jam-0.5", PRESETS)    # sizes of the model: a name in config.PRESETS
    duration: float | None = None               # seconds of the song; default: the longest that the model
                                                #   sings in one window
    steps: int = within(2, 1, 10 ** 6)          # grid points of the sampler, or optimizer steps, the first of
                                                #   which is not timed (1 on a CPU: count memory alone)
    batch: int = within(1, 1)                   # songs of an optimizer step
    gradient_checkpointing: bool = False        # compute the blocks twice, which saves memory
    compile: bool = False                       # torch.compile the blocks of optimizer steps
    dtype: str = one_of("bfloat16", ("float32", "bfloat16"))  # float32 or bfloat16
    device: str = "auto"                        # auto (CUDA, then MPS, then CPU), or a torch device


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


def song_of(preset: Preset, frames: int) -> dict:
    """A song without words, in a random style, as data.collate takes it."""
    item, _ = conditions([], frames, 0, preset, SymbolTable("a"))
    return item | {"style": torch.randn(preset.model.cond_dim), "frames": frames}


def bench_sample(cfg: BenchConfig, preset: Preset, frames: int, device: torch.device) -> None:
    """Print what each stage of singing a song of `frames` takes."""
    # The network, and the codec, which stays in float32, as sample.py loads them.
    network = DiT(preset.model).requires_grad_(False).to(device, getattr(torch, cfg.dtype))
    if preset.codec.kind == "sung":
        codec = SungCodec(preset.codec, SungModel(preset.codec).requires_grad_(False))
    else:
        oobleck = Oobleck(preset.codec).fold().requires_grad_(False).to(device)
        codec = OobleckCodec(preset.codec, oobleck, device, rows=DEVICE_ROWS)              # as a GPU does it
    network_bytes, codec_bytes = (sum(p.nbytes for p in m.parameters()) for m in (network, codec.model))

    # Steps that are all guided, then the sound.
    found = windows([], torch.randn(preset.model.cond_dim), frames, (0, frames), preset, SymbolTable("a"))
    found = [(first, {k: v.to(device) for k, v in batch.items()}) for first, batch in found]
    sampled = found[-1][0] + found[-1][1]["phonemes"].shape[1] // CELLS_PER_FRAME
    noise = torch.randn(1, sampled, preset.model.mel_dim, device=device)
    negative = torch.zeros(1, preset.model.cond_dim, device=device)
    guidance = dataclasses.replace(preset.guidance, range=(0.0, 1.0))
    steps_bytes, steps_s = measure(
        lambda: sample_windows(network, found, noise, time_grid(cfg.steps), guidance, negative), device)
    decode_bytes, decode_s = measure(lambda: codec.decode(noise.float().cpu()), device)

    for name, size, seconds in (
            ("network's weights", network_bytes, 0.0), ("codec's weights", codec_bytes, 0.0),
            (f"sampling, per guided step of {sampled} frames", steps_bytes, steps_s / (cfg.steps - 1)),
            (f"decoding {frames} frames", decode_bytes, decode_s)):
        print(f"{name:45} {size / GIB:8.3f} GiB {seconds:8.2f} s")
    most = network_bytes + codec_bytes + max(steps_bytes, decode_bytes)
    print(f"{'at most, both loaded':45} {most / GIB:8.3f} GiB")


def bench_train(cfg: BenchConfig, preset: Preset, frames: int, device: torch.device) -> None:
    """Print what optimizer steps over --batch songs of `frames` take."""
    settings = TrainConfig(preset=cfg.preset, batch=cfg.batch, bf16=cfg.dtype == "bfloat16", ema=0.0,
                           gradient_checkpointing=cfg.gradient_checkpointing, compile=cfg.compile)
    preset = dataclasses.replace(preset, trim=False,
                                 model=dataclasses.replace(preset.model, max_frames=frames))

    def training() -> Callable[[], Tensor]:
        """A new model's optimizer step, which returns the gradient's norm."""
        with device:
            model = DiT(preset.model)
        objective = functools.partial(FlowObjective, cfg=settings)
        trainer = Trainer(settings, model, objective, Processes(), device)
        latents = torch.randn(frames, preset.model.mel_dim)
        songs = [song_of(preset, frames) | {"latents": latents}] * cfg.batch
        batch = Batch(collate(songs, latents[0], preset), list(range(cfg.batch)), [], [], {})
        return lambda: trainer.step([batch])[1]["grad_norm"]

    # On a CPU the memory is counted with tensors that hold nothing.
    if device.type == "cpu":
        with FakeTensorMode(), Peak() as peak:
            step = training()
            for _ in range(2):                               # the first makes the optimizer's state
                step()
        most = peak.most
    if cfg.steps > 1:
        step = training()
        step().item()
        began = time.perf_counter()
        for _ in range(cfg.steps - 1):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            most = torch.cuda.max_memory_allocated(device)
        seconds = (time.perf_counter() - began) / (cfg.steps - 1)

    print(f"{f'a step of {cfg.batch} songs of {frames} frames, at most':45} {most / GIB:8.3f} GiB")
    if cfg.steps > 1:
        rate = matmul_rate(device, 8192 if device.type == "cuda" else 2048)
        share = cfg.batch * training_flops(preset.model, frames) / seconds / rate
        print(f"{'seconds a step':45} {seconds:8.3f}\n{'songs a second':45} {cfg.batch / seconds:8.3f}\n"
              f"{'bfloat16 matrix products':45} {rate / 1e12:8.3f} TFLOP/s\n"
              f"{'share of it that the step reaches (MFU)':45} {100 * share:8.1f} %")


def main(argv: list[str] | None = None) -> None:
    """Print a table of what sampling or training takes."""
    cfg = parse(BenchConfig, __doc__, argv, name="python -m tools.bench")
    preset, device = PRESETS[cfg.preset], pick_device(cfg.device)
    if cfg.steps < 2 and (cfg.what == "sample" or device.type != "cpu"):
        raise UserError(f"--steps {cfg.steps}: expected 2 or more")
    frame_hz = preset.codec.sample_rate_hz / preset.codec.hop
    longest_s = preset.model.max_frames / frame_hz
    duration_s = longest_s if cfg.duration is None else cfg.duration
    if not 0 < duration_s < math.inf or cfg.what == "train" and duration_s > longest_s:
        raise UserError(f"--duration {duration_s}: expected seconds, {longest_s:.1f} at most to train")
    torch.manual_seed(0)
    print(f"{cfg.preset}, {cfg.dtype}, {device}")
    frames = math.ceil(round(duration_s * frame_hz, 3))
    (bench_sample if cfg.what == "sample" else bench_train)(cfg, preset, frames, device)


if __name__ == "__main__":
    run(main)
