"""The speed of a machine, in minutes: sampling, decoding, training, and whether it computes what a CPU does.

Read `measured`, then `gpu` and `cpu`. "Plain" is the network as training has it, "ours" its form for sampling
(model.DiT.fuse), with the same random weights; they are measured in turn. Peak is the measured rate of matrix
products in bfloat16.
"""

import copy
import functools
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from config import FAST, PRESETS, Guidance, Preset, TrainConfig, UserError
from data import windows
from model import DiT, flops
from phonemes import SymbolTable
from sample import frames_of
from sampler import PASSES, Velocity, guide, guided, sample, time_grid
from support.audio import master
from support.files import make_folder, write_json, write_text
from support.log import matmul_rate
from support.processes import pick_dtype
from tools.measuring import GIB, codec_of, in_turn, measure, training, training_step
from train import training_flops

MIDDLE = torch.tensor(0.5)       # flow time at which guidance acts
HEADS = {"what": "what", "dtype": "type", "plain_s": "plain, s", "ours_s": "ours, s",
         "peak_share": "share of peak", "memory_gib": "memory, GiB", "plain_error": "plain, error",
         "ours_error": "ours, error", "tflops": "TFLOP/s"}
SAMPLERS = {"50 points of Euler": {"steps": 50, "solver": "euler", "sway": 0.0}, "--fast": FAST}


@dataclass(frozen=True)
class Sizes:
    """What is measured. The defaults take 8 minutes of an H100 at most."""
    preset: Preset = PRESETS["jam-0.5"]
    small: Preset = PRESETS["baby"]
    matrix: int = 8192
    seconds: tuple[float, ...] = (30.0, 95.0, 232.0)         # of songs
    compared: int = 512                                      # frames of a velocity
    batch: int = 4                                           # songs of a step of training
    crops: tuple[int, ...] = (2000, 5000)                    # their frames
    full_width: int = 1024                                   # frames of a CPU's step; then, of `small`:
    frames: tuple[int, ...] = (480, 960)
    small_batch: int = 8
    small_crop: int = 320


class Report:
    """Rows of numbers, written as they come: a run that is ended leaves what it has measured."""

    def __init__(self, name: str, out: Path, device: torch.device):
        self.name, self.out, self.rows = name, out, []
        machine = f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()})"
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else (
            f"{machine}, {torch.get_num_threads()} threads")
        self.machine = f"{machine}, torch {torch.__version__}, Python {sys.version.split()[0]}"
        print(self.machine, flush=True)

    def add(self, what: str, dtype: str, **values: float) -> None:
        """Add a row. Args: values by the names in HEADS."""
        self.rows.append({"what": what, "dtype": dtype, **values})
        print(self.line(self.rows[-1], self.rows[-1]), flush=True)
        heads = [head for head in HEADS if any(head in row for row in self.rows)]
        write_json(self.out / f"{self.name}.json", {"machine": self.machine, "rows": self.rows})
        write_text(self.out / f"{self.name}.md", "\n".join([
            f"{self.machine}\n", self.line(HEADS, heads), "|---" * len(heads) + "|",
            *(self.line(row, heads) for row in self.rows), ""]))

    @staticmethod
    def line(row: dict, heads: list[str]) -> str:
        """A row of a table in Markdown."""
        cells = [row.get(head, "") for head in heads]
        return f"| {' | '.join(f'{x:.4g}' if isinstance(x, float) else str(x) for x in cells)} |"


def song(preset: Preset, frames: int, device: torch.device) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A song of random phonemes, as sampler.guided takes it, its noise and a negative style, on a device."""
    rng, sizes = torch.Generator().manual_seed(0), preset.model
    style = torch.randn(sizes.cond_dim, generator=rng)
    (_, batch), = windows([], style, frames, (0, frames), replace(preset, trim=True), SymbolTable("a"))
    batch["phonemes"].random_(0, sizes.text_num_embeds, generator=rng)
    noise = torch.randn(1, batch["phonemes"].shape[1] // 4, sizes.mel_dim, generator=rng)
    negative = torch.zeros(1, sizes.cond_dim, device=device)
    return {k: v.to(device) for k, v in batch.items()}, noise.to(device), negative


def forms_of(network: DiT, device: torch.device, dtype: str) -> dict[str, DiT]:
    """A network on a device, in a type: as training has it, and in its form for sampling."""
    plain = copy.deepcopy(network).to(device, getattr(torch, dtype))
    return {"plain": plain, "ours": copy.deepcopy(plain).fuse().requires_grad_(False)}


def steps_of(forms: dict[str, DiT], batch: dict[str, Tensor], noise: Tensor, negative: Tensor,
             guidance: Guidance) -> dict[str, Callable[[], Tensor]]:
    """A guided step by each form. The condition is computed here."""
    return {form: functools.partial(guided(model, batch, guidance, negative), noise, MIDDLE)
            for form, model in forms.items()}


def named(values: dict[str, float], unit: str, more: float = 0.0) -> dict[str, float]:
    """Names of a report's columns, for values by form."""
    return {f"{form}_{unit}": value + more for form, value in values.items()}


def gpu(report: Report, device: torch.device, sizes: Sizes) -> None:
    """The network of JAM-0.5: the same numbers as on the CPU, songs, and steps of training."""
    preset, rate = sizes.preset, matmul_rate(device, sizes.matrix)
    report.add("matrix products: the peak", "bfloat16", tflops=rate / 1e12)
    network = DiT(preset.model).requires_grad_(False)
    compare(report, network, device, sizes)
    sounds = {seconds: sound(report, preset, seconds, device) for seconds in sizes.seconds}
    for dtype in ("bfloat16", "float32"):
        forms = forms_of(network, device, dtype)
        for seconds, sound_s in sounds.items():
            sing(report, preset, forms, frames_of(seconds, preset), f" {seconds:g} s of song", sound_s, rate)
        del forms                                            # the next ones count their memory alone
        if dtype == "bfloat16":
            for frames in sizes.crops:
                train(report, preset, frames, device, sizes.batch, rate)


def compare(report: Report, network: DiT, device: torch.device, sizes: Sizes) -> None:
    """How far the device's guided velocities are from those of the plain network on the CPU, in float32."""
    def velocity(model: DiT, device: torch.device) -> Tensor:
        batch, noise, negative = song(sizes.preset, sizes.compared, device)
        return guided(model, batch, sizes.preset.guidance, negative)(noise, MIDDLE).cpu()

    truth = velocity(network, torch.device("cpu"))
    for dtype in ("float32", "bfloat16"):
        errors = {form: ((velocity(model, device) - truth).norm() / truth.norm()).item()
                  for form, model in forms_of(network, device, dtype).items()}
        report.add(f"velocity of {sizes.compared} frames, relative to the CPU's in float32", dtype,
                   **named(errors, "error"))


def sound(report: Report, preset: Preset, seconds: float, device: torch.device) -> float:
    """Seconds from latents to a song of so many seconds, its loudness included, which is the CPU's work."""
    codec, rate_hz = codec_of(preset, device), preset.codec.sample_rate_hz
    latents = torch.randn(1, frames_of(seconds, preset), preset.model.mel_dim)

    def finish() -> None:
        master(codec.decode(latents)[0], rate_hz, round(seconds * rate_hz))

    memory, _ = measure(finish, device)
    taken = in_turn({"": finish}, device, 2, 0)[""]
    report.add(f"decoding {seconds:g} s of song", "float32", ours_s=taken, memory_gib=memory / GIB)
    return taken


def sing(report: Report, preset: Preset, forms: dict[str, DiT], frames: int, what: str, sound_s: float,
         rate: float) -> None:
    """A guided step, and samplers, of a song of `frames`; with sound_s they make whole songs."""
    weight = forms["ours"].proj_out.weight
    device, dtype = weight.device, str(weight.dtype).removeprefix("torch.")
    batch, noise, negative = song(preset, frames, device)
    taken = in_turn(steps_of(forms, batch, noise, negative, preset.guidance), device)
    work = len(PASSES[preset.guidance.mode]) * flops(preset.model, noise.shape[1])
    memory, _ = measure(
        lambda: guided(forms["ours"], batch, preset.guidance, negative)(noise, MIDDLE), device)
    report.add(f"guided step of {noise.shape[1]} frames,{what}", dtype, **named(taken, "s"),
               peak_share=work / taken["ours"] / rate, memory_gib=memory / GIB)
    for name, sampler in SAMPLERS.items():
        grid = time_grid(sampler["steps"], sampler["sway"])
        works = {form: functools.partial(sample, model, batch, noise, grid, preset.guidance, negative,
                                         sampler["solver"]) for form, model in forms.items()}
        taken = in_turn(works, device, 1, 0)
        report.add(f"sampling, {name},{what}", dtype, **named(taken, "s"))
        report.add(f"whole song, {name},{what}", dtype, **named(taken, "s", sound_s))


def train(report: Report, preset: Preset, frames: int, device: torch.device, batch: int, rate: float) -> None:
    """A step of training with gradient checkpointing, in bfloat16."""
    cfg = TrainConfig(batch=batch, ema=0.0, gradient_checkpointing=True)
    memory, taken = training(cfg, preset, frames, device, rounds=3)
    share = batch * training_flops(preset.model, frames) / taken / rate
    report.add(f"training step, {batch} songs of {frames} frames", "bfloat16", ours_s=taken, peak_share=share,
               memory_gib=memory / GIB)


def as_published(model: DiT, batch: dict[str, Tensor], guidance: Guidance, negative: Tensor) -> Velocity:
    """The guided velocity as the original computes it: one pass after the other, each with its condition."""
    def velocity(x: Tensor, time: Tensor) -> Tensor:
        v = []
        for text, own in PASSES[guidance.mode]:
            condition = model.condition(**batch | {"phonemes": batch["phonemes"] * text,
                                                   "style": batch["style"] if own else negative})
            v.append(model(x, time, condition))
        return guide(guidance.mode, guidance.weights, v)
    return velocity


def cpu(report: Report, device: torch.device, sizes: Sizes) -> None:
    """A guided step of JAM-0.5 as published, and as sample.py does it; then steps of the embedded model."""
    dtype, guidance = pick_dtype("auto", device), sizes.preset.guidance
    batch, noise, negative = song(sizes.preset, sizes.full_width, device)
    network = DiT(sizes.preset.model).requires_grad_(False)
    published = as_published(network, batch, guidance, negative)
    ours = guided(forms_of(network, device, dtype)["ours"], batch, guidance, negative)
    taken = in_turn({"plain": functools.partial(published, noise, MIDDLE),
                     "ours": functools.partial(ours, noise, MIDDLE)}, device)
    report.add(f"guided step of {noise.shape[1]} frames of JAM-0.5; plain: as published, in float32", dtype,
               **named(taken, "s"))
    small = DiT(sizes.small.model).requires_grad_(False)
    for dtype in ("float32", "bfloat16"):
        for frames in sizes.frames:
            batch, noise, negative = song(sizes.small, frames, device)
            forms = forms_of(small, device, dtype)
            taken = in_turn(steps_of(forms, batch, noise, negative, sizes.small.guidance), device)
            report.add(f"guided step of {noise.shape[1]} frames of the embedded model", dtype,
                       **named(taken, "s"))
    cfg = TrainConfig(batch=sizes.small_batch)
    steps = {dtype: training_step(replace(cfg, bf16=dtype == "bfloat16"), sizes.small, sizes.small_crop,
                                  device) for dtype in ("float32", "bfloat16")}
    for dtype, seconds in in_turn(steps, device).items():
        report.add(f"training step of the embedded model, {cfg.batch} songs of {sizes.small_crop} frames",
                   dtype, ours_s=seconds)


def measured(name: str, out: Path, device: torch.device) -> None:
    """Measure a suite, "gpu" or "cpu", and write its numbers. Raises: UserError if there is no GPU."""
    if name == "gpu" and device.type != "cuda":
        raise UserError(f"--suite gpu: expected --device cuda, not {device}; without a GPU use --suite cpu")
    make_folder(out)
    torch.manual_seed(0)
    {"gpu": gpu, "cpu": cpu}[name](Report(name, out, device), device, Sizes())
    print((out / f"{name}.md").resolve())
