"""How much memory and time sampling and training take, with random weights.

    python -m tools.bench --dtype bfloat16
    python -m tools.bench --what train --steps 1 --gradient-checkpointing

Read `bench_sample` and `bench_train`; what they share with a suite, which measures a machine in minutes, is
in suite.py.

    python -m tools.bench --suite gpu --out runs/gpu
"""

import dataclasses
import math
from pathlib import Path

from config import PRESETS, Preset, Settings, TrainConfig, UserError, one_of, within
from support.cli import first, parse, run

if __name__ == "__main__":
    first()

import torch

from data import windows
from model import DiT
from phonemes import CELLS_PER_FRAME, SymbolTable
from sampler import sample_windows, time_grid
from support.log import matmul_rate
from support.processes import pick_device
from tools.suite import GIB, Sizes, codec_of, measure, measured, training
from train import training_flops


@dataclasses.dataclass(frozen=True)
class BenchConfig(Settings):
    """Measure a model with random weights."""
    what: str = one_of("sample", ("sample", "train"))        # sample: sing a song; train: optimizer steps
    suite: str | None = one_of(None, ("cpu", "gpu"))         # instead of one thing, all that matters of a
                                                #   machine's CPU or GPU, in the sizes that docs/speed.md has
    out: Path = Path("runs/bench")              # folder for the suite's numbers, NAME.json and NAME.md
    preset: str = one_of("jam-0.5", PRESETS)    # sizes of the model: a name in config.PRESETS
    duration: float | None = None               # seconds of the song; default: the longest that the model
                                                #   sings in one window
    steps: int = within(2, 1, 10 ** 6)          # grid points of the sampler, or optimizer steps, the first of
                                                #   which is not timed (1 on a CPU: count memory alone)
    batch: int = within(1, 1)                   # songs of an optimizer step
    gradient_checkpointing: bool = False        # compute the blocks twice, which saves memory
    compile: bool = False                       # torch.compile the blocks of optimizer steps, and those that
                                                #   the suite of a GPU samples with
    dtype: str = one_of("bfloat16", ("float32", "bfloat16"))  # float32 or bfloat16
    device: str = "auto"                        # auto (CUDA, then MPS, then CPU), or a torch device


def bench_sample(cfg: BenchConfig, preset: Preset, frames: int, device: torch.device) -> None:
    """Print what each stage of singing a song of `frames` takes."""
    network, codec = DiT(preset.model).requires_grad_(False), codec_of(preset, device)
    network.to(device, getattr(torch, cfg.dtype))
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
    settings = TrainConfig(preset=cfg.preset, batch=cfg.batch, bf16=cfg.dtype == "bfloat16",
                           fp16=cfg.dtype == "float16", ema=0.0, compile=cfg.compile,
                           gradient_checkpointing=cfg.gradient_checkpointing)
    most, seconds = training(settings, preset, frames, device, cfg.steps - 1)
    print(f"{f'a step of {cfg.batch} songs of {frames} frames, at most':45} {most / GIB:8.3f} GiB")
    if seconds:
        rate = matmul_rate(device, 8192 if device.type == "cuda" else 2048)
        share = cfg.batch * training_flops(preset.model, frames) / seconds / rate
        print(f"{'seconds a step':45} {seconds:8.3f}\n{'songs a second':45} {cfg.batch / seconds:8.3f}\n"
              f"{'bfloat16 matrix products':45} {rate / 1e12:8.3f} TFLOP/s\n"
              f"{'share of it that the step reaches (MFU)':45} {100 * share:8.1f} %")


def main(argv: list[str] | None = None) -> None:
    """Print a table of what sampling or training takes."""
    cfg = parse(BenchConfig, __doc__, argv, name="python -m tools.bench")
    preset, device = PRESETS[cfg.preset], pick_device("cpu" if cfg.suite == "cpu" else cfg.device)
    if cfg.suite:
        return measured(cfg.suite, cfg.out, device, Sizes(compiled=cfg.compile))
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
