"""Flow-matching training: one loop for pretraining and fine-tuning.

    python train.py --data 'baby/data/songs-*.tar' --out runs/baby --steps 3000

Read `train` (the loop), `loss_of` (a step's draws), then `save` and `resume`. The folder --out receives
checkpoint.pt (everything needed to go on, exactly), model.safetensors and config.json (averaged weights,
ready for `sample.py --model`), and log.jsonl. Run the same command again and it goes on where it stopped:
data order, noise and flow times are functions of seed and step, so an interrupted run ends with the same
weights, bit for bit on a CPU.
"""

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cli import parse, pick_device, preset_to_json, replacing, run
from config import CONFIG, PHONEMIZER, PRESETS, READ_ERRORS, STYLES, WEIGHTS, Preset, TrainConfig, UserError
from data import Shards, batches, collate
from hub import fetch
from model import DiT, drop, flow_loss, load_weights
from phonemes import SymbolTable, load_phonemizer
from vae import silence_of

TIME_BINS = 4


def rate_at(step: int, cfg: TrainConfig) -> float:
    """Learning rate of a step: linear warm-up, then a linear fall to 0 over the last cfg.decay of steps."""
    falling = max(1.0, cfg.decay * (cfg.steps - cfg.warmup))
    return cfg.lr * min((step + 1) / max(1, cfg.warmup), 1.0, (cfg.steps - step) / falling)


def loss_of(model: torch.nn.Module, batch: dict[str, Tensor], cfg: TrainConfig, step: int,
            rank: int) -> tuple[Tensor, Tensor]:
    """A step's loss per song (B,) and its flow times (B,). All draws come from seed, step and rank.

    Flow times are logit-normal: sigmoid of a standard normal. Source: SD3's sampling, as in the original.
    Differs: the original drops conditions for the whole batch at once; here each song has its own draw.
    """
    rng = torch.Generator().manual_seed((cfg.seed * 1_000_003 + step) * 1024 + rank)
    songs, device = len(batch["style"]), batch["style"].device
    x0 = torch.randn(batch["latents"].shape, generator=rng).to(device)
    flow_time = torch.randn(songs, generator=rng).sigmoid().to(device)
    no_style = torch.rand(songs, generator=rng) < cfg.drop_style
    no_text = (torch.rand(songs, generator=rng) < cfg.drop_text) & no_style
    condition = model.condition(drop(batch["phonemes"], no_text.to(device)),
                                drop(batch["style"], no_style.to(device)),
                                batch["start_time"], batch["duration_abs"], batch["duration_rel"])
    return flow_loss(model, batch["latents"], x0, flow_time, condition), flow_time


class Log:
    """One aligned line and one JSON line for every cfg.log_every steps: means over those steps."""

    def __init__(self, path: Path, cfg: TrainConfig, first_step: int):
        self.path, self.cfg, self.last, self.since = path, cfg, first_step, time.monotonic()
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= first_step]
        # What a killed run did after its checkpoint is done again.
        path.write_text("".join(kept))
        self.losses: list[tuple[Tensor, Tensor]] = []
        self.norms: list[Tensor] = []

    def step(self, step: int, losses: Tensor, flow_time: Tensor, norm: Tensor) -> None:
        """Note step `step`; raise FloatingPointError if the loss is not finite."""
        self.losses.append((losses, flow_time))
        self.norms.append(norm)
        if step % self.cfg.log_every and step != self.cfg.steps:
            return
        losses, flow_time = (torch.cat(parts).cpu() for parts in zip(*self.losses))
        if not losses.isfinite().all():
            raise FloatingPointError(f"step {step}: the loss is {losses.mean().item()}")
        bins = [losses[(flow_time * TIME_BINS).long() == i] for i in range(TIME_BINS)]
        seconds = (time.monotonic() - self.since) / (step - self.last)
        row = {"step": step, "loss": round(losses.mean().item(), 5), "lr": rate_at(step - 1, self.cfg),
               "grad_norm": round(torch.stack(self.norms).mean().item(), 4),
               "seconds_per_step": round(seconds, 4),
               "loss_by_time": [round(b.mean().item(), 5) if len(b) else None for b in bins]}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        left = seconds * (self.cfg.steps - step) / 60
        print(f"step {step:7d} | loss {row['loss']:.4f} | lr {row['lr']:.2e} | "
              f"grad {row['grad_norm']:7.3f} | {seconds:.3f} s/step | {left:.0f} min left", flush=True)
        self.losses, self.norms, self.last, self.since = [], [], step, time.monotonic()


def save(folder: Path, model: DiT, ema: list[Tensor], optimizer: torch.optim.Optimizer, step: int,
         preset: Preset, cfg: TrainConfig) -> None:
    """Write checkpoint.pt, then the averaged weights for sampling. `resume` is its mirror image."""
    with replacing(folder / "checkpoint.pt") as path:
        torch.save({"step": step, "config": json.dumps(dataclasses.asdict(cfg), default=str),
                    "model": model.state_dict(), "ema": ema, "optimizer": optimizer.state_dict()}, path)
    names = [f"transformer.{name}" for name, _ in model.named_parameters()]
    with replacing(folder / WEIGHTS) as path:
        save_file({n: w.detach().cpu().contiguous() for n, w in zip(names, ema or model.parameters())}, path)
    with replacing(folder / CONFIG) as path:
        path.write_text(preset_to_json(preset, step=step))


def resume(folder: Path, model: DiT, ema: list[Tensor], optimizer: torch.optim.Optimizer,
           cfg: TrainConfig) -> int:
    """Restore what `save` wrote, if it is there; returns the number of steps already done.

    Raises: UserError if it cannot be read, or was made with other settings; those that only say how far,
        where and on which shards may differ.
    """
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        then = json.loads(state["config"])
    except READ_ERRORS as e:
        raise UserError(f"{path}: not a checkpoint: {' '.join(str(e).split())[:120]}") from None
    now = json.loads(json.dumps(dataclasses.asdict(cfg), default=str))
    free = {"steps", "decay", "save_every", "log_every", "workers", "device", "out", "data", "assets"}
    for name in then.keys() - free:
        if then[name] != now.get(name):
            raise UserError(f"{path}: was made with --{name.replace('_', '-')} {then[name]}, "
                            f"not {now.get(name)}; use another --out")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for mine, saved in zip(ema, state["ema"], strict=True):
        mine.copy_(saved)
    return state["step"]


def start_from(model: DiT, path: Path) -> None:
    """Load --init weights."""
    try:
        load_weights(model, load_file(path), str(path))
    except (OSError, SafetensorError) as e:
        raise UserError(f"{path}: {e}") from None


def guarded(stream: Iterator[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """The same batches; a reading process's UserError, which comes with a traceback, as its last line."""
    while True:
        try:
            yield next(stream)
        except UserError as e:
            raise UserError(str(e).split("UserError: ")[-1].removesuffix("\\n")) from None


def one_thread(worker: int) -> None:
    """What a reading process does first: it must not take the network's cores."""
    torch.set_num_threads(1)


def loader(cfg: TrainConfig, preset: Preset, step: int, rank: int, world: int) -> Iterator[dict[str, Tensor]]:
    """Endless batches on the CPU, from step `step` on."""
    shards = Shards(cfg.data, preset, SymbolTable(load_phonemizer(cfg.assets / PHONEMIZER).symbols))
    silence = silence_of(preset.codec, lambda: fetch("silence"))
    put_together = functools.partial(collate, silence=silence, preset=preset)
    return guarded(iter(torch.utils.data.DataLoader(
        shards, batch_sampler=batches(shards, cfg.batch, cfg.seed, step, rank, world),
        collate_fn=put_together, num_workers=cfg.workers,
        worker_init_fn=one_thread)))


def check(cfg: TrainConfig) -> None:
    """Raise UserError for a setting out of its range."""
    if cfg.preset not in PRESETS:
        raise UserError(f"--preset {cfg.preset}: expected one of {', '.join(PRESETS)}")
    least_of = {"batch": 1, "steps": 1, "save_every": 1, "log_every": 1, "workers": 0, "seed": 0}
    for name, least in least_of.items():
        if getattr(cfg, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: expected {least} or more")
    for name in ("ema", "decay", "drop_style", "drop_text"):
        if not 0 <= getattr(cfg, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: expected 0 to 1")


def copy_assets(cfg: TrainConfig) -> None:
    """Make --out a whole model's folder. Raises: UserError if an asset is missing."""
    try:
        cfg.out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--out {cfg.out}: {e.strerror}") from None
    for name in (PHONEMIZER, STYLES):
        if not (cfg.assets / name).is_file():
            raise UserError(f"{cfg.assets / name}: no such file; --assets names its folder")
        if cfg.assets.resolve() != cfg.out.resolve():
            with replacing(cfg.out / name) as path:
                shutil.copyfile(cfg.assets / name, path)


def train(cfg: TrainConfig) -> None:
    """Train until cfg.steps."""
    rank, world = 0, 1                       # this process's part of every batch
    check(cfg)
    preset, device = PRESETS[cfg.preset], pick_device(cfg.device)
    copy_assets(cfg)
    with torch.random.fork_rng():
        torch.manual_seed(cfg.seed)
        model = DiT(preset.model)
    if cfg.init:
        start_from(model, cfg.init)
    model.to(device)
    parameters = list(model.parameters())
    ema = [p.detach().clone() for p in parameters] if cfg.ema else []
    optimizer = torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay)
    first = resume(cfg.out, model, ema, optimizer, cfg)
    print(f"{sum(p.numel() for p in parameters):,} parameters on {device}, from step {first}", flush=True)
    stream, log = loader(cfg, preset, first, rank, world), Log(cfg.out / "log.jsonl", cfg, first)
    for step in range(first + 1, cfg.steps + 1):
        batch = {k: v.to(device) for k, v in next(stream).items()}
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step - 1, cfg)
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.bf16):
            losses, flow_time = loss_of(model, batch, cfg, step, rank)
        losses.mean().backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.clip)
        optimizer.step()
        optimizer.zero_grad()
        if ema:
            # the average forgets its random start: early on it follows closely
            share = 1 - min(cfg.ema, (1 + step) / (10 + step))
            torch._foreach_lerp_(ema, [p.detach() for p in parameters], share)
        log.step(step, losses.detach(), flow_time, norm)
        if step % cfg.save_every == 0 or step == cfg.steps:
            if not losses.isfinite().all():
                raise FloatingPointError(f"step {step}: the loss is {losses.mean().item()}; not saved")
            save(cfg.out, model, ema, optimizer, step, preset, cfg)


if __name__ == "__main__":
    run(lambda: train(parse(TrainConfig, __doc__.splitlines()[0])))
