"""The speed of a machine, in minutes: sampling, decoding, training, and whether it computes what a CPU does.

Read `measured`, then `gpu` and `cpu`. On a GPU "plain" is the network as training has it, "ours" its form for
sampling (model.DiT.pad_heads), with the same random weights; they are measured in turn. The peak is the
measured rate of matrix products in bfloat16. `Peak` counts the bytes of living tensors on any device, and so
lets a CPU tell what a GPU will need. It does not see the scratch memory inside kernels; the count of CUDA's
allocator, which is used on a GPU, does.
"""

import contextlib
import copy
import functools
import gc
import platform
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from config import FAST, PRESETS, Guidance, Preset, TrainConfig, UserError
from data import collate, conditions, windows
from model import DiT, flops
from phonemes import CELLS_PER_FRAME, SymbolTable
from sample import frames_of
from sampler import PASSES, Velocity, guide, guided, sample, time_grid
from support.audio import master
from support.files import make_folder, write_json, write_text
from support.log import matmul_rate
from support.processes import Processes, pick_dtype
from support.stream import Batch
from sung import SungCodec, SungModel
from train import FlowObjective, Trainer, training_flops
from vae import DEVICE_ROWS, Oobleck, OobleckCodec

GIB = 1024 ** 3
MIDDLE = torch.tensor(0.5)       # flow time at which guidance acts
SAMPLERS = (50, "euler", 0.0), tuple(FAST[name] for name in ("steps", "solver", "sway"))


@dataclass(frozen=True)
class Sizes:
    """What is measured. The defaults take 8 minutes of an H100 at most."""
    preset: Preset = PRESETS["jam-0.5"]
    small: Preset = PRESETS["baby"]
    compiled: bool = False                                   # all but the plain network
    seconds: tuple[float, ...] = (30.0, 95.0, 232.0)         # of songs
    crops: tuple[int, ...] = (2000, 5000)                    # frames of four songs of a training step
    full_width: int = 1024                                   # frames of a CPU's step


# Bytes and seconds

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


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of work."""
    wait = functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def measure(work: Callable[[], object], device: torch.device) -> tuple[int, float]:
    """The most bytes that `work` takes, its result included, beyond those in use before; and its seconds."""
    gc.collect()                                 # what goes amid the work would count as less
    if device.type != "cuda":
        with Peak() as peak:
            seconds = timed(work, device)
        return peak.most, seconds
    torch.cuda.reset_peak_memory_stats(device)
    before, seconds = torch.cuda.memory_allocated(device), timed(work, device)
    return torch.cuda.max_memory_allocated(device) - before, seconds


def in_turn(works: dict[str, Callable[[], object]], device: torch.device, rounds: int = 3,
            warm: int = 1) -> dict[str, float]:
    """The least seconds of each work over some rounds, after some that warm up.

    The works take turns, so that a machine that is busy for a while is slow to all of them.
    """
    taken = [{name: timed(work, device) for name, work in works.items()} for _ in range(warm + rounds)]
    return {name: min(each[name] for each in taken[warm:]) for name in works}


# Random models

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
    preset = replace(preset, trim=False, model=replace(preset.model, max_frames=frames))
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
    step = training_step(cfg, preset, frames, device) if rounds else None
    return most, in_turn({"": step}, device, rounds)[""] if rounds else None


def song(preset: Preset, frames: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A song of random phonemes, as sampler.guided takes it, its noise and a negative style, on a device."""
    rng, sizes = torch.Generator().manual_seed(0), preset.model
    style = torch.randn(sizes.cond_dim, generator=rng)
    (_, batch), = windows([], style, frames, (0, frames), replace(preset, trim=True), SymbolTable("a"))
    batch["phonemes"].random_(0, sizes.text_num_embeds, generator=rng)
    noise = torch.randn(1, batch["phonemes"].shape[1] // CELLS_PER_FRAME, sizes.mel_dim, generator=rng)
    negative = torch.zeros(1, sizes.cond_dim, device=device)
    return {k: v.to(device) for k, v in batch.items()}, noise.to(device), negative


def as_published(model: DiT, batch: dict[str, Tensor], guidance: Guidance, negative: Tensor) -> Velocity:
    """The guided velocity as the original computes it: one pass after the other, each with its condition."""
    def velocity(x: Tensor, time: Tensor) -> Tensor:
        conditions = (model.condition(**batch | {"phonemes": batch["phonemes"] * text,
                                                 "style": batch["style"] if own else negative})
                      for text, own in PASSES[guidance.mode])
        return guide(guidance.mode, guidance.weights, [model(x, time, condition) for condition in conditions])
    return velocity


# Suites

class Report:
    """Rows of numbers, written as they come: a run that is ended leaves what it has measured.

    Args: path, of the files without their endings.
    """

    def __init__(self, path: Path, device: torch.device):
        name = platform.machine() if device.type == "cpu" else torch.cuda.get_device_name(device)
        self.path, self.device, self.rows = path, device, []
        self.machine = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"

    def add(self, what: str, dtype: str, unit: str = "s", forms: dict[str, float] | None = None,
            **values: float) -> None:
        """Add a row. Args: forms, values in the unit by "plain" and "ours"; other values by their names."""
        values |= {f"{form}_{unit}": value for form, value in (forms or {}).items()}
        self.rows.append({"what": what, "dtype": dtype, **values})
        heads = dict.fromkeys(head for row in self.rows for head in row)
        cells = [heads, ["---"] * len(heads), *([row.get(head, "") for head in heads] for row in self.rows)]
        lines = [" | ".join(f"{x:.4g}" if isinstance(x, float) else x for x in row) for row in cells]
        print(lines[-1], flush=True)
        write_json(self.path.with_suffix(".json"), {"machine": self.machine, "rows": self.rows})
        write_text(self.path.with_suffix(".md"), "\n".join(
            [self.machine, "", *(f"| {line} |" for line in lines), ""]))


def forms_of(network: DiT, device: torch.device, dtype: str, compiled: bool = False) -> dict[str, DiT]:
    """A network on a device, in a type: as training has it, and as sample.py has it on a GPU."""
    plain = copy.deepcopy(network).to(device, getattr(torch, dtype))
    ours = copy.deepcopy(plain).pad_heads()
    for block in ours.transformer_blocks if compiled else ():
        block.compile(dynamic=True)
    return {"plain": plain, "ours": ours}


def gpu(report: Report, sizes: Sizes) -> None:
    """The network of JAM-0.5: the same numbers as on the CPU, songs, and steps of training."""
    preset, device = sizes.preset, report.device
    rate = matmul_rate(device, 8192 if device.type == "cuda" else 64)
    report.add("matrix products: the peak", "bfloat16", tflops=rate / 1e12)
    network = DiT(preset.model).requires_grad_(False)
    compare(report, network, sizes)
    sounds = {seconds: sound(report, preset, seconds) for seconds in sizes.seconds}
    for dtype in ("bfloat16", "float32"):
        forms = forms_of(network, device, dtype, sizes.compiled)
        for seconds, sound_s in sounds.items():
            sing(report, preset, forms, dtype, seconds, sound_s, rate)
        del forms                                            # the next ones count their memory alone
        for frames in sizes.crops if dtype == "bfloat16" else ():
            cfg = TrainConfig(batch=4, ema=0.0, gradient_checkpointing=True, compile=sizes.compiled)
            memory, taken = training(cfg, preset, frames, device, rounds=3)
            report.add(f"training step, {cfg.batch} songs of {frames} frames", dtype, ours_s=taken,
                       peak_share=cfg.batch * training_flops(preset.model, frames) / taken / rate,
                       memory_gib=memory / GIB)


def compare(report: Report, network: DiT, sizes: Sizes) -> None:
    """How far the device's guided velocities are from those of the plain network on the CPU, in float32."""
    def velocity(model: DiT, device: torch.device) -> Tensor:
        batch, noise, negative = song(sizes.preset, 512, device)
        return guided(model, batch, sizes.preset.guidance, negative)(noise, MIDDLE).cpu()

    truth = velocity(network, torch.device("cpu"))
    for dtype in ("float32", "bfloat16"):
        errors = {form: ((velocity(model, report.device) - truth).norm() / truth.norm()).item()
                  for form, model in forms_of(network, report.device, dtype, sizes.compiled).items()}
        report.add("velocity of 512 frames, from the CPU's in float32", dtype, "error", errors)


def sound(report: Report, preset: Preset, seconds: float) -> float:
    """Seconds from latents to a song of so many seconds, its loudness included, which is the CPU's work."""
    codec, rate_hz = codec_of(preset, report.device), preset.codec.sample_rate_hz
    latents = torch.randn(1, frames_of(seconds, preset), preset.model.mel_dim)
    codec.decode(latents)                        # warms up
    memory, taken = measure(lambda: master(codec.decode(latents)[0], rate_hz, round(seconds * rate_hz)),
                            report.device)
    report.add(f"decoding {seconds:g} s of song", "float32", ours_s=taken, memory_gib=memory / GIB)
    return taken


def sing(report: Report, preset: Preset, forms: dict[str, DiT], dtype: str, seconds: float, sound_s: float,
         rate: float) -> None:
    """A guided step, and samplers; whole songs with the seconds that their sound takes."""
    device, guidance = report.device, preset.guidance
    batch, noise, negative = song(preset, frames_of(seconds, preset), device)
    steps = {form: functools.partial(guided(model, batch, guidance, negative), noise, MIDDLE)
             for form, model in forms.items()}
    taken, (memory, _) = in_turn(steps, device), measure(steps["ours"], device)
    work = len(PASSES[guidance.mode]) * flops(preset.model, noise.shape[1])
    report.add(f"guided step of {noise.shape[1]} frames, {seconds:g} s of song", dtype, "s", taken,
               peak_share=work / taken["ours"] / rate, memory_gib=memory / GIB)
    for steps, solver, sway in SAMPLERS:
        grid, name = time_grid(steps, sway), f"{seconds:g} s, {steps} points of {solver}"
        works = {form: functools.partial(sample, model, batch, noise, grid, guidance, negative, solver)
                 for form, model in forms.items()}
        taken = in_turn(works, device, rounds=1, warm=0)
        report.add(f"sampling {name}", dtype, "s", taken)
        report.add(f"song of {name}", dtype, "s", {form: own + sound_s for form, own in taken.items()})


def cpu(report: Report, sizes: Sizes) -> None:
    """A guided step of JAM-0.5 as published, and as sample.py does it; then steps of the embedded model."""
    def step_of(network: DiT, dtype: str, guidance: Guidance) -> Callable[[], Tensor]:
        network = copy.deepcopy(network).to(getattr(torch, dtype))
        return functools.partial(guided(network, batch, guidance, negative), noise, MIDDLE)

    batch, noise, negative = song(sizes.preset, sizes.full_width, report.device)
    dtype, guidance = pick_dtype("auto", report.device), sizes.preset.guidance
    network = DiT(sizes.preset.model).requires_grad_(False)
    plain = functools.partial(as_published(network, batch, guidance, negative), noise, MIDDLE)
    works = {"plain": plain, "ours": step_of(network, dtype, guidance)}
    report.add(f"guided step of {noise.shape[1]} frames of JAM-0.5; plain: as published, in float32", dtype,
               "s", in_turn(works, report.device, rounds=2, warm=0))

    works, small = {}, DiT(sizes.small.model).requires_grad_(False)
    for dtype in ("float32", "bfloat16"):
        for frames in (472, 952):                            # 480 and 960 with what is added for their end
            batch, noise, negative = song(sizes.small, frames, report.device)
            works[f"guided step of {noise.shape[1]} frames of the embedded model", dtype] = step_of(
                small, dtype, sizes.small.guidance)
        works["training step of the embedded model, 8 songs of 320 frames", dtype] = training_step(
            TrainConfig(batch=8, bf16=dtype == "bfloat16"), sizes.small, 320, report.device)
    for (what, dtype), seconds in in_turn(works, report.device).items():
        report.add(what, dtype, ours_s=seconds)


def measured(name: str, out: Path, device: torch.device, sizes: Sizes) -> None:
    """Measure a suite, "gpu" or "cpu", and write its numbers. Raises: UserError if there is no GPU."""
    if name == "gpu" and device.type != "cuda":
        raise UserError(f"--suite gpu: expected --device cuda, not {device}; without a GPU use --suite cpu")
    make_folder(out)
    torch.manual_seed(0)
    {"gpu": gpu, "cpu": cpu}[name](Report(out / name, device), sizes)
    print((out / f"{name}.md").resolve())
