"""What a training run tells: a line and its JSON, curves, a song at each checkpoint, and why it stopped.

Read `Tracker.tell` (a log row, the same on all processes), then `Listener`.
"""

import dataclasses
import functools
import importlib.util
import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

import formats
import karaoke
from audio import write_wave
from cli import replacing
from config import ModelConfig, Preset, TrainConfig, UserError
from data import Batch, Shards, collate
from hub import weights_in
from model import flops, load_model, sample, time_grid
from processes import Processes
from vae import make_codec

TIME_BINS = 4
LOG = "log.jsonl"
work_of = functools.cache(lambda config, frames: 3 * flops(config, frames))     # forward, and twice that back


def matmul_rate(device: torch.device, size: int = 8192) -> float:
    """Operations per second of bfloat16 matrix products on a device, as measured now."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(8):                                       # the first ones warm up
        torch.cuda.synchronize() if device.type == "cuda" else None
        began = time.perf_counter()
        a @ b
        torch.cuda.synchronize() if device.type == "cuda" else None
        best = max(best, 2 * size ** 3 / (time.perf_counter() - began))
    return best


class Tracker:
    """Gathers what steps did, and tells it: means over the steps since the last time, and over all ranks."""

    def __init__(self, cfg: TrainConfig, processes: Processes, device: torch.device, model: ModelConfig,
                 first_step: int):
        self.cfg, self.processes, self.model, self.path = cfg, processes, model, cfg.out / LOG
        self.rate = matmul_rate(device) * processes.world if device.type == "cuda" else None
        self.writer = self.run = None
        if processes.main:
            lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first_step]
            with replacing(self.path) as path:               # what came after the checkpoint is done again
                path.write_text("".join(kept))
            self.open(first_step)
        self.clear(first_step)

    def open(self, first_step: int) -> None:
        """Start TensorBoard's and Weights & Biases' files."""
        if self.cfg.tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            self.writer = SummaryWriter(str(self.cfg.out / "tensorboard"), purge_step=first_step + 1)
        if self.cfg.wandb:
            import wandb
            project, _, name = self.cfg.wandb.partition("/")
            settings = json.loads(json.dumps(dataclasses.asdict(self.cfg), default=str))
            self.run = wandb.init(project=project, name=name or None, id=name or None, resume="allow",
                                  mode=self.cfg.wandb_mode, dir=str(self.cfg.out), config=settings)

    def clear(self, step: int) -> None:
        """Begin anew; the clock runs from here, so that saving and singing do not count."""
        self.last, self.since, self.work = step, time.monotonic(), 0
        self.noted: list[tuple[int, dict[str, Tensor], list[str]]] = []
        self.broken = 0

    def note(self, step: int, outputs: dict[str, Tensor], batch: Batch) -> None:
        """Keep what a batch gave, (B,) values; name the songs that were passed over."""
        self.noted.append((step, {k: v.detach() for k, v in outputs.items()}, batch.ids))
        self.broken += len(batch.broken)
        for broken in batch.broken:
            print(f"warning: {broken}; passed over", file=sys.stderr, flush=True)
        if self.rate:
            self.work += len(batch.ids) * work_of(self.model, batch.tensors["latents"].shape[1])

    def tell(self, step: int, rate: float, norms: dict[str, Tensor]) -> None:
        """Log the means since the last time. Raises: UserError if a step's loss is none, or too high."""
        values = {k: torch.cat([outputs[k] for _, outputs, _ in self.noted]).cpu() for k in self.noted[0][1]}
        bins = (values.pop("flow_time") * TIME_BINS).long()
        loss, extras = values["loss"], sorted(values.keys() - {"loss"})
        bad = [number for number, outputs, _ in self.noted if not outputs["loss"].mean() <= self.cfg.max_loss]
        sums = [len(loss), loss.sum(), len(bad), self.work, self.broken, *(values[k].sum() for k in extras),
                *((bins == i).sum() for i in range(TIME_BINS)),
                *(loss[bins == i].sum() for i in range(TIME_BINS))]
        sums = self.processes.sum(torch.tensor([float(x) for x in sums], dtype=torch.float64)).tolist()
        if sums[2] or not norms["grad_norm"].isfinite():     # then the weights are spoilt, on all processes
            self.stop(step, bad if sums[2] else [step])
        songs, seconds = sums[0], time.monotonic() - self.since
        counts, losses = sums[5 + len(extras):][:TIME_BINS], sums[5 + len(extras) + TIME_BINS:]
        row = {"step": step, "loss": round(sums[1] / songs, 7), "lr": rate,
               **{name: float(f"{norm.item():.4g}") for name, norm in norms.items()},
               **{k: round(x / songs, 5) for k, x in zip(extras, sums[5:])},
               "songs_per_s": round(songs / seconds, 3),
               "seconds_per_step": round(seconds / (step - self.last), 4),
               **({"mfu": round(sums[3] / seconds / self.rate, 4)} if self.rate else {}),
               "loss_by_time": [round(x / n, 5) if n else None for x, n in zip(losses, counts)],
               "broken": int(sums[4])}
        self.row(row)

    def stop(self, step: int, bad: list[int]) -> None:
        """Leave the songs of the steps that went wrong, and end the run."""
        songs = [{"step": number, "ids": ids, "loss": outputs["loss"].tolist()}
                 for number, outputs, ids in self.noted if number in bad]
        if songs:
            with replacing(self.cfg.out / f"stopped-rank{self.processes.rank}.json") as file:
                file.write_text(json.dumps(songs, indent=1))
        raise UserError(f"{self.cfg.out}: up to step {step} a loss is not finite, or above --max-loss "
                        f"{self.cfg.max_loss}, or a gradient is not finite; the songs are in "
                        "stopped-rank*.json; not saved")

    def row(self, row: dict) -> None:
        """Tell a row: {"step", ...}. Validation losses come as rows of their own."""
        if not self.processes.main:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        step, numbers = row["step"], {k: v for k, v in row.items() if isinstance(v, (int, float))}
        bins = enumerate(row.get("loss_by_time", []))
        numbers |= {f"loss_by_time/{i}": v for i, v in bins if v is not None}
        for name, value in numbers.items():
            if self.writer and name != "step":
                self.writer.add_scalar(name, value, step)
        if self.writer:
            self.writer.flush()
        if self.run:
            self.run.log({k: v for k, v in numbers.items() if k != "step"}, step=step)
        print(self.line(row), flush=True)

    def line(self, row: dict) -> str:
        """The aligned line of a row."""
        parts = [f"step {row['step']:7d}/{self.cfg.steps}"]
        if "validation_loss" in row:
            return f"{parts[0]} | validation loss {row['validation_loss']:.4f}"
        left = int(row["seconds_per_step"] * (self.cfg.steps - row["step"]))
        parts += [f"loss {row['loss']:.4f}", f"lr {row['lr']:.2e}", f"grad {row['grad_norm']:7.3f}",
                  f"{row['songs_per_s']:7.2f} songs/s"]
        parts += [f"accuracy {100 * row['accuracy']:.0f} %"] if "accuracy" in row else []
        parts += [f"mfu {100 * row['mfu']:.1f} %"] if "mfu" in row else []
        parts += [f"{row['broken']} broken"] * bool(row["broken"])
        return " | ".join([*parts, f"left {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"])

    def close(self) -> None:
        """Finish the curves."""
        if self.writer:
            self.writer.close()
        if self.run:
            self.run.finish()


class Listener:
    """Sings one song of the shards with each checkpoint, beside what its recording is decoded to.

    Args: shards, of which the first song is taken that is whole; silence latent (C,).
    Raises: UserError for a decoder that does not fit, one of READ_ERRORS for words that cannot be shown.
    """

    def __init__(self, cfg: TrainConfig, preset: Preset, shards: Shards, silence: Tensor,
                 device: torch.device):
        self.folder, self.preset, self.device = cfg.out / "samples", preset, device
        self.codec = make_codec(preset.codec, cfg.vae, device)
        song, item = next((i, item) for i, item in enumerate(shards[i, 0] for i in range(len(shards)))
                          if not item["broken"])
        words = [{"word": word["phoneme"]} | word for word in json.loads(shards.read(song, "json"))["word"]]
        self.lyrics = formats.parse(json.dumps(words), "json", item["id"])
        self.frames = len(item["latents"])
        self.batch = collate([item], silence, preset)
        self.folder.mkdir(exist_ok=True)
        self.write("reference", self.batch["latents"])

    def write(self, name: str, latents: Tensor) -> None:
        wave = self.codec.decode(latents[:, :self.frames].float().cpu())[0]                # (W, N)
        rate_hz = self.preset.codec.sample_rate_hz
        path = self.folder / f"{name}.wav"
        with replacing(path) as temporary:
            write_wave(temporary, wave / wave.abs().max().clamp_min(1), rate_hz, path)
        karaoke.picture(self.folder / f"{name}.png", wave, rate_hz, self.lyrics)

    def sing(self, checkpoint: Path) -> None:
        """Write samples/step-N.wav and .png."""
        model = load_model(weights_in(checkpoint), self.preset.model, self.device)
        batch = {k: v.to(self.device) for k, v in self.batch.items()}
        noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(0))
        negative = torch.zeros(1, self.preset.model.cond_dim, device=self.device)
        self.write(checkpoint.name, sample(model, batch, noise.to(self.device), time_grid(self.preset.steps),
                                           self.preset.guidance, negative))


def check(cfg: TrainConfig) -> None:
    """Raise UserError for a tracker that is not installed, or settings that are none."""
    if cfg.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: is not installed: pip install tensorboard, or --tensorboard false")
    if cfg.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("--wandb: is not installed: pip install wandb")
    if cfg.wandb_mode not in ("online", "offline"):
        raise UserError(f"--wandb-mode {cfg.wandb_mode}: expected online or offline")
