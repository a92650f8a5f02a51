"""What a training run reports: an aligned line, a JSON row in log.jsonl, curves for TensorBoard and wandb.

Read `RunLog.note` (what a batch gave), then `RunLog.report`: means over the steps since the last report and
over all processes. Only it waits for a GPU. A loss or gradient that is not finite ends the run, at the next
report, which each checkpoint has before it; the songs are written down.
"""

import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from config import READ_ERRORS, TrainConfig, UserError
from support.files import one_line, write_json, write_text
from support.processes import Processes
from support.stream import Batch

TIME_BINS = 4                  # equal ranges of flow time, each with a mean loss of its own
LOG = "log.jsonl"
SMALLEST_SCALE = 2.0 ** -20    # of a float16 loss; below it, the scale is not why gradients overflow


def matmul_rate(device: torch.device, size: int = 8192) -> float:
    """Operations per second of bfloat16 matrix products on a device, measured now."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    wait, seconds = torch.cuda.synchronize if device.type == "cuda" else lambda: None, []
    for _ in range(8):                                       # the first ones warm up
        wait()
        began = time.perf_counter()
        a @ b
        wait()
        seconds.append(time.perf_counter() - began)
    return 2 * size ** 3 / min(seconds)


def rows_until(path: Path, step: int) -> list[str]:
    """The lines of a log up to a step, after which all is done again.

    Warns of broken ones, which are left out. A last one without an end is of a run that was killed.
    """
    rows = []
    lines = path.read_bytes().decode(errors="replace").split("\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            if json.loads(line)["step"] <= step:
                rows.append(f"{line}\n")
        except READ_ERRORS as e:
            print(f"warning: {path}: line {number}: {one_line(e)}; left out", file=sys.stderr, flush=True)
    return rows


class RunLog:
    """Collects what steps give and reports it."""

    def __init__(self, cfg: TrainConfig, processes: Processes, device: torch.device,
                 flops_of: Callable[[int], int], first_step: int):
        self.cfg, self.processes, self.flops_of, self.path = cfg, processes, flops_of, cfg.out / LOG
        self.rate = matmul_rate(device) * processes.world if device.type == "cuda" else None
        self.writer = self.run = None
        if processes.main:
            write_text(self.path, "".join(rows_until(self.path, first_step)))
        if processes.main and cfg.tensorboard:
            from torch.utils.tensorboard import SummaryWriter
            self.writer = SummaryWriter(str(cfg.out / "tensorboard"), purge_step=first_step + 1)
        if processes.main and cfg.wandb:
            import wandb
            project, _, name = cfg.wandb.partition("/")
            settings = json.loads(json.dumps(dataclasses.asdict(cfg), default=str))
            self.run = wandb.init(project=project, name=name or None, id=name or None, resume="allow",
                                  mode=cfg.wandb_mode, dir=str(cfg.out), config=settings)
        self.clear(first_step)

    def clear(self, step: int) -> None:
        """Start anew; the clock runs from here, so that saving and sampling do not count."""
        self.last, self.since, self.work, self.broken = step, time.monotonic(), 0, 0
        self.noted: list[tuple[int, dict[str, Tensor], list[str]]] = []

    def note(self, step: int, outputs: dict[str, Tensor], batch: Batch) -> None:
        """Keep what a batch gave, (B,) values; name the songs that were skipped for it."""
        self.noted.append((step, {k: v.detach() for k, v in outputs.items()}, batch.ids))
        self.broken += len(batch.broken)
        for broken in batch.broken:
            print(f"warning: {broken}; skipped", file=sys.stderr, flush=True)
        if self.rate:
            self.work += len(batch.ids) * self.flops_of(batch.tensors["latents"].shape[1])

    def report(self, step: int, rate: float, norms: dict[str, Tensor]) -> None:
        """Log means since the last report. Raises: UserError for a loss or gradient that ends the run."""
        values = {k: torch.cat([outputs[k] for _, outputs, _ in self.noted]).cpu() for k in self.noted[0][1]}
        bins = (values.pop("flow_time") * TIME_BINS).long()
        loss, extras, sizes = values.pop("loss"), sorted(values), [len(ids) for *_, ids in self.noted]
        # Of a preference, which --beta multiplies, the flow losses that it compares count.
        flow = values.get("policy_loss", loss)
        bad = [number for (number, *_), part, whole in zip(self.noted, flow.split(sizes), loss.split(sizes))
               if not (part.mean() <= self.cfg.max_loss and whole.isfinite().all())]
        sums = [len(loss), loss.sum(), len(bad), self.work, self.broken,
                *((bins == i).sum() for i in range(TIME_BINS)),
                *(loss[bins == i].sum() for i in range(TIME_BINS)), *(values[k].sum() for k in extras)]
        sums = self.processes.sum(torch.tensor([float(x) for x in sums], dtype=torch.float64)).tolist()
        songs, total, failed, work, broken, *sums = sums
        # The weights are spoilt, on all processes; but a scaled gradient that overflows is left out.
        if failed or not norms["grad_norm"].isfinite() and norms.get("loss_scale", 0) < SMALLEST_SCALE:
            self.stop(step, bad if failed else [step])
        seconds, counts, losses = time.monotonic() - self.since, sums[:TIME_BINS], sums[TIME_BINS:]
        self.write({"step": step, "loss": round(total / songs, 7), "lr": rate,
                    **{name: float(f"{norm.item():.4g}") if norm.isfinite() else None     # as JSON wants it
                       for name, norm in norms.items()},
                    **{k: round(x / songs, 5) for k, x in zip(extras, losses[TIME_BINS:])},
                    "songs_per_s": round(songs / seconds, 3),
                    "seconds_per_step": round(seconds / (step - self.last), 4),
                    **({"mfu": round(work / seconds / self.rate, 4)} if self.rate else {}),
                    "loss_by_time": [round(x / n, 5) if n else None for x, n in zip(losses, counts)],
                    "broken": int(broken)})

    def stop(self, step: int, bad: list[int]) -> None:
        """Write down the songs of steps that went wrong, and end the run. Raises: UserError."""
        songs = [{"step": number, "ids": ids, "loss": outputs["loss"].tolist()}
                 for number, outputs, ids in self.noted if number in bad]
        if songs:
            write_json(self.cfg.out / f"stopped-rank{self.processes.rank}.json", songs)
        raise UserError(f"{self.cfg.out}: up to step {step} a loss is not finite, or above --max-loss "
                        f"{self.cfg.max_loss}, or a gradient is not finite; the songs are in "
                        "stopped-rank*.json; not saved")

    def write(self, row: dict) -> None:
        """Write a row, {"step", ...}, everywhere. A validation loss is a row of its own."""
        if not self.processes.main:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        numbers = {k: v for k, v in row.items() if k != "step" and isinstance(v, (int, float))}
        bins = enumerate(row.get("loss_by_time", []))
        numbers |= {f"loss_by_time/{i}": loss for i, loss in bins if loss is not None}
        if self.writer:
            for name, value in numbers.items():
                self.writer.add_scalar(name, value, row["step"])
            self.writer.flush()
        if self.run:
            self.run.log(numbers, step=row["step"])
        print(self.line(row), flush=True)

    def line(self, row: dict) -> str:
        """The aligned line of a row."""
        step = f"step {row['step']:7d}/{self.cfg.steps}"
        if "validation_loss" in row:
            return f"{step} | validation loss {row['validation_loss']:.4f}"
        left = int(row["seconds_per_step"] * (self.cfg.steps - row["step"]))
        norm = "skipped" if row["grad_norm"] is None else f"{row['grad_norm']:7.3f}"
        parts = [f"{step} | loss {row['loss']:.4f} | lr {row['lr']:.2e} | grad {norm}",
                 f"{row['songs_per_s']:7.2f} songs/s"]
        parts += [f"accuracy {100 * row['accuracy']:.0f} %"] if "accuracy" in row else []
        parts += [f"mfu {100 * row['mfu']:.1f} %"] if "mfu" in row else []
        parts += [f"{row['broken']} broken"] if row["broken"] else []
        return " | ".join([*parts, f"left {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"])

    def close(self) -> None:
        """Finish the curves."""
        if self.writer:
            self.writer.close()
        if self.run:
            self.run.finish()


def check(cfg: TrainConfig) -> None:
    """Raises: UserError if TensorBoard or wandb is asked for and not installed."""
    if cfg.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError("--tensorboard: is not installed: pip install tensorboard, or --tensorboard false")
    if cfg.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("--wandb: is not installed: pip install wandb")
