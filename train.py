"""Flow-matching training: one loop for pretraining and fine-tuning, on one process or on many machines.

    python train.py --config baby-pretrain --data.shards shards --assets shards --out runs/mine
    torchrun --nproc_per_node=8 train.py --config pretrain --data.shards 'songs-{000000..000485}.tar'

Read `FlowObjective` (a batch's loss and its draws), `Trainer.step` (gradients, clipping, averaging),
`Trainer.save` and `resume`, then `fit` (the loop). data.py decides which songs come when,
support/checkpoint.py writes folders whole, support/log.py reports. Order, noise, flow times and drops are
functions of the seed and of the songs consumed: a killed run resumes where it stopped and, on a CPU, ends
with the same weights bit for bit.
"""

import copy
import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from config import AVERAGED, CODEC, CONFIG, PHONEMIZER, PRESETS, RECIPES, SILENCE, STYLES, WEIGHTS
from config import DataSettings, Preset, TrainConfig, UserError
from support.cli import first, parse, run

if __name__ == "__main__":
    first(lambda: parse(TrainConfig, __doc__, recipes=RECIPES))

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as sharded
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from data import Shards, load, to_batch
from model import DiT, drop, flops, flow_loss, load_weights
from phonemes import SymbolTable, load_phonemizer
from songs.checkpoint_samples import CheckpointSamples, listener
from support import checkpoint, log
from support.files import find, make_folder, reading
from support.hub import fetch, weights_in
from support.processes import Processes, autocast, pick_device
from support.stream import Batch, grouped, held_out_batches
from vae import silence_of

OPTIMIZER, STATE, RNG = "optimizer.pt", "state.json", "rng.pt"
# Added to a song's seed, so that training's draws are not those of its crop. torch's CPU generator takes the
# seed's lower 32 bits only.
SEED_OFFSET = 0x5EED_5EED
WHOLE = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True)
# Settings that make another run if they differ from the checkpoint's; the last four are train_dpo.py's.
DEFINING = ("preset", "max_frames", "lr", "warmup", "weight_decay", "clip", "ema", "drop_style", "drop_text",
            "drop_per_batch", "bf16", "fp16", "seed", "data.ids", "data.min_duration",
            "data.resample_duration", "data.from_start", "data.style_index", "data.replacement",
            "data.shuffle", "data.bucket", "data.window", "beta", "sft", "sft_weight", "vae_sampled")
BEFORE = {"fp16": False, "data.shuffle": True}   # what checkpoints had that do not name them

# Of a training step, for one song: forward, and twice as many backward.
training_flops = functools.cache(lambda config, frames: 3 * flops(config, frames))


def rate_at(step: int, cfg: TrainConfig) -> float:
    """Learning rate of a step: linear warm-up, then a linear fall to 0 over the last cfg.decay of steps."""
    falling = max(1.0, cfg.decay * (cfg.steps - cfg.warmup))
    return cfg.lr * min((step + 1) / max(1, cfg.warmup), 1.0, (cfg.steps - step) / falling)


def song_draws(seeds: list[int], latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noise like latents (B, T, C), logit-normal flow times (B,), and two uniform numbers (B, 2).

    Those of a song come from its own seed alone, whatever its batch mates or the number of processes.
    Source of the flow times: sigmoid of a standard normal, as in SD3 and in the original.
    """
    noise, times, uniform = [], [], []
    for seed, x in zip(seeds, latents, strict=True):
        rng = torch.Generator(x.device).manual_seed(seed + SEED_OFFSET)
        noise.append(torch.randn(x.shape, generator=rng, device=x.device))
        times.append(torch.randn((), generator=rng, device=x.device).sigmoid())
        uniform.append(torch.rand(2, generator=rng, device=x.device))
    return torch.stack(noise), torch.stack(times), torch.stack(uniform)


class FlowObjective(nn.Module):
    """The flow-matching loss of a batch: what DDP and FSDP wrap."""

    def __init__(self, model: DiT, cfg: TrainConfig):
        super().__init__()
        self.model, self.cfg = model, cfg

    def forward(self, batch: dict[str, Tensor], seeds: list[int]) -> dict[str, Tensor]:
        """Returns "loss" and "flow_time" (B,). Style is dropped at random; where it is, so is text.

        Differs: the original draws once for the whole batch; cfg.drop_per_batch does so.
        """
        x0, flow_time, uniform = song_draws(seeds, batch["latents"])
        if self.cfg.drop_per_batch:
            uniform = uniform[:1].expand_as(uniform)
        no_style = uniform[:, 0] < self.cfg.drop_style
        no_text = no_style & (uniform[:, 1] < self.cfg.drop_text)
        condition = self.model.condition(drop(batch["phonemes"], no_text), drop(batch["style"], no_style),
                                         batch["start_time"], batch["duration_abs"], batch["duration_rel"])
        return {"loss": flow_loss(self.model, batch["latents"], x0, flow_time, condition),
                "flow_time": flow_time}


class Trainer:
    """Model, averaged weights and optimizer: a process's copy or, with FSDP, its shard of them.

    Args: objective, which wraps the model in its loss; origin, the checksum of weights that a run needs
        when it resumes, or "".
    """

    def __init__(self, cfg: TrainConfig, model: DiT, objective: Callable[[DiT], nn.Module],
                 processes: Processes, device: torch.device, origin: str = ""):
        self.cfg, self.processes, self.device, self.origin = cfg, processes, device, origin
        self.done, self.place = 0, None          # steps; where this process's reading goes on
        self.model, self.objective = model, objective(model)
        model.gradient_checkpointing = cfg.gradient_checkpointing
        # A model of its own, so that FSDP shards and saves it as it does the model.
        self.ema = copy.deepcopy(model).requires_grad_(False) if cfg.ema else None
        # A thread writes the checkpoints, beside the steps; what it raises ends the run.
        self.writer, self.written = ThreadPoolExecutor(1), Future()
        self.written.set_result(None)
        if cfg.fsdp:
            mesh = torch.distributed.device_mesh.init_device_mesh(device.type, (processes.world,))
            # Weights are gathered in bfloat16, half the bytes; gradients are summed in float32. Inputs stay:
            # a song's times, lengths and latents would lose digits.
            policy = MixedPrecisionPolicy(torch.bfloat16 if cfg.bf16 else None, torch.float32,
                                          cast_forward_inputs=False)
            modules = [*model.transformer_blocks, self.objective]
            modules += [*self.ema.transformer_blocks, self.ema] if self.ema else []
            for module in modules:
                fully_shard(module, mesh=mesh, mp_policy=policy)
        elif processes.world > 1:
            self.objective = DistributedDataParallel(self.objective, gradient_as_bucket_view=True)
        if cfg.compile:
            for block in model.transformer_blocks:
                block.compile()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, cfg.lr, weight_decay=cfg.weight_decay, fused=True)
        # float16 has no small numbers: the loss is multiplied by a scale that falls when a gradient overflows
        # and rises while none does. Without --fp16 it does nothing.
        self.scaler = torch.amp.GradScaler(device.type, enabled=cfg.fp16)

    def compute(self, batch: Batch) -> dict[str, Tensor]:
        """The objective of a batch: "loss" (B,) and what else is logged."""
        tensors = {k: v.to(self.device, non_blocking=self.device.type == "cuda")
                   for k, v in batch.tensors.items()}
        with autocast(self.device, self.cfg):
            return self.objective(tensors, batch.seeds)

    def step(self, batches: list[Batch], measured: bool = False) -> tuple[list[dict], dict[str, Tensor]]:
        """One optimizer step over this process's batches. It never waits for a GPU, unless measured.

        Returns: what each batch gave; L2 norms of the gradient and, if measured, of the weights' change.
        """
        outputs = []
        for batch in batches:
            # Gradients are exchanged with the last batch alone; for DDP this is what its no_sync() sets.
            if self.cfg.fsdp:
                self.objective.set_requires_gradient_sync(batch is batches[-1])
            elif self.processes.world > 1:
                self.objective.require_backward_grad_sync = batch is batches[-1]
            outputs.append(self.compute(batch))
            self.scaler.scale(outputs[-1]["loss"].mean() / len(batches)).backward()
        self.scaler.unscale_(self.optimizer)
        self.optimizer.param_groups[0]["lr"] = rate_at(self.done, self.cfg)
        norms = {"grad_norm": local(nn.utils.clip_grad_norm_(self.parameters, self.cfg.clip), whole=True)}
        before = [local(p.detach()).clone() for p in self.parameters] if measured else []
        self.scaler.step(self.optimizer)         # which leaves out a step whose gradient overflowed
        self.scaler.update()
        self.optimizer.zero_grad()
        if measured:
            moved = sum(torch.stack([(local(p.detach()) - old).square().sum()
                                     for p, old in zip(self.parameters, before)]).cpu().double())
            norms["update_norm"] = (self.processes.sum(moved) if self.cfg.fsdp else moved).sqrt()
            if self.cfg.fp16:
                norms["loss_scale"] = torch.tensor(self.scaler.get_scale())
        self.done, self.place = self.done + 1, batches[-1].place
        if self.ema:                             # early on it follows closely, to forget its random start
            share = 1 - min(self.cfg.ema, (1 + self.done) / (10 + self.done))
            torch._foreach_lerp_([local(p) for p in self.ema.parameters()],
                                 [local(p.detach()) for p in self.model.parameters()], share)
        return outputs, norms

    @torch.no_grad()
    def validate(self, batches: list[tuple[Batch, int]]) -> float:
        """Mean loss over held-out batches, each with how many songs of it count. Their seeds stay."""
        losses = [self.compute(batch)["loss"][:count] for batch, count in batches]
        sums = [sum(loss.cpu().double().sum() for loss in losses), sum(map(len, losses))]
        total, songs = self.processes.sum(torch.tensor(sums, dtype=torch.float64)).tolist()
        return total / songs

    def save(self, preset: Preset) -> Path:
        """Begin to write the checkpoint of this step, beside the steps that follow; all processes take part.

        Returns: its folder, which is there once `written` has a result. `resume` is the mirror image.
        """
        self.written.result()                    # of the one before
        cfg, out = self.cfg, checkpoint.folder_of(self.cfg.out, self.done)
        weights, optimizer = sharded.get_state_dict(self.model, self.optimizer, options=WHOLE)
        files = {WEIGHTS: weights}
        if self.ema:
            files[AVERAGED] = sharded.get_model_state_dict(self.ema, options=WHOLE)
        rng = self.processes.gather(torch.get_rng_state())
        state = {"step": self.done, "places": self.processes.gather(self.place), "origin": self.origin,
                 "scaler": self.scaler.state_dict(), "config": dataclasses.asdict(cfg)}
        if self.device.type == "cpu" and self.processes.main:        # else these are copies already
            files, optimizer = copy.deepcopy((files, optimizer))

        def write() -> None:
            with checkpoint.writing(out) as folder:
                for name, tensors in files.items():
                    save_file({f"transformer.{k}": v.contiguous() for k, v in tensors.items()}, folder / name)
                torch.save(optimizer, folder / OPTIMIZER)
                torch.save(rng, folder / RNG)
                (folder / STATE).write_text(json.dumps(state, default=str, indent=1))
                (folder / CONFIG).write_text(checkpoint.preset_to_json(preset, step=self.done))
                for name in (PHONEMIZER, STYLES, SILENCE, CODEC):
                    if (folder_of_assets(cfg) / name).is_file():
                        shutil.copyfile(folder_of_assets(cfg) / name, folder / name)
            checkpoint.finish(cfg.out, out, cfg.keep)
        if self.processes.main:
            self.written = self.writer.submit(write)
        return out

    def resume(self, folder: Path) -> list[dict]:
        """Load a checkpoint. Returns: where every process's reading goes on.

        Raises: UserError if it cannot be read, or was made with other settings than these; only DEFINING ones
            have to agree.
        """
        with reading(folder, "not a checkpoint"):
            state = json.loads((folder / STATE).read_text())
            then, now = state["config"], json.loads(json.dumps(dataclasses.asdict(self.cfg), default=str))
            then, now = (made | {f"data.{k}": v for k, v in made["data"].items()} for made in (then, now))
            for name in DEFINING:
                if then.setdefault(name, BEFORE.get(name)) != now.get(name):
                    raise UserError(f"{folder}: was made with --{name.replace('_', '-')} {then[name]}, "
                                    f"not {now.get(name)}; use another --out")
            if state.get("origin", "") != self.origin:
                raise UserError(f"{folder}: began from other weights than --init-from {self.cfg.init_from} "
                                "has now; use another --out")
            optimizer, rng = (torch.load(folder / name, weights_only=True, map_location="cpu")
                              for name in (OPTIMIZER, RNG))
            sharded.set_state_dict(self.model, self.optimizer, model_state_dict=self.read(folder / WEIGHTS),
                                   optim_state_dict=optimizer, options=WHOLE)
            if self.ema:
                sharded.set_model_state_dict(self.ema, self.read(folder / AVERAGED), options=WHOLE)
            self.scaler.load_state_dict(state.get("scaler"))
            self.done, places = state["step"], state["places"]
        if len(rng) == self.processes.world:
            torch.set_rng_state(rng[self.processes.rank])
        return places

    @staticmethod
    def read(path: Path) -> dict[str, Tensor]:
        """A checkpoint's weights by the model's names."""
        return {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}


def local(tensor: Tensor, whole: bool = False) -> Tensor:
    """This process's shard of a tensor of FSDP, or the whole; other tensors as they are."""
    if not isinstance(tensor, torch.distributed.tensor.DTensor):
        return tensor
    return tensor.full_tensor() if whole else tensor.to_local()


def fit(trainer: Trainer, preset: Preset, stream: Iterator[Batch], held_out: list[tuple[Batch, int]],
        samples: CheckpointSamples | None) -> None:
    """Train until cfg.steps, or until the data end."""
    cfg, world = trainer.cfg, trainer.processes.world
    flops_of = functools.partial(training_flops, preset.model)
    logged = log.RunLog(cfg, trainer.processes, trainer.device, flops_of, trainer.done)
    if trainer.processes.main:
        print(f"{sum(p.numel() for p in trainer.parameters):,} parameters on {world} x {trainer.device.type},"
              f" {world * cfg.accumulate * cfg.batch} songs a step, from step {trainer.done}", flush=True)
    try:
        for batches, last in grouped(stream, cfg.accumulate) if trainer.done < cfg.steps else ():
            rate, step = rate_at(trainer.done, cfg), trainer.done + 1
            last = last or step == cfg.steps
            saving = last or step % cfg.save_every == 0
            reporting = saving or step % cfg.log_every == 0
            if trainer.written.done():                       # a failed write is told at once
                trainer.written.result()
            outputs, norms = trainer.step(batches, reporting)
            for batch, values in zip(batches, outputs):
                logged.note(step, values, batch)
            if reporting:
                logged.report(step, rate, norms)
            if held_out and (last or step % cfg.validate_every == 0):
                logged.write({"step": step, "validation_loss": round(trainer.validate(held_out), 5)})
            if saving:
                folder = trainer.save(preset)
                if samples:
                    trainer.written.result()
                    samples.sing(folder)
            if reporting:
                logged.clear(step)
            if last:
                break
    finally:                                                 # the last checkpoint, whatever ended the run
        trainer.written.result()
    logged.close()
    if not trainer.done:
        raise UserError(f"--data.shards {' '.join(cfg.data.shards)}: fewer songs than a step's "
                        f"{cfg.accumulate} batches of {cfg.batch}")


# What a run begins with; train_dpo.py uses it, too

def begin(cfg: TrainConfig, processes: Processes) -> tuple[torch.device, Preset, SymbolTable, Tensor]:
    """Check combinations of settings, make --out, keep other runs out of it, and load the assets.

    Returns: this process's device, the preset, the ids of phonemes, the silence frame (C,).
    """
    preset = PRESETS[cfg.preset]
    frames = cfg.max_frames or preset.model.max_frames
    if frames > preset.model.max_frames:
        raise UserError(f"--max-frames {frames}: expected 1 to {preset.model.max_frames}")
    if cfg.fsdp and (processes.world == 1 or cfg.fp16):
        raise UserError("--fsdp: shards a model over processes; start them with torchrun, without --fp16")
    if processes.world > 1 and ":" in cfg.device:
        raise UserError(f"--device {cfg.device}: processes would share it; expected auto, cuda or cpu")
    log.check(cfg)
    preset = dataclasses.replace(preset, model=dataclasses.replace(preset.model, max_frames=frames))
    device = pick_device(cfg.device, processes.local)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        # cuDNN tries its convolutions out at each new length, which pays where there are few.
        torch.backends.cudnn.benchmark = not preset.trim or cfg.max_frames is not None
    make_folder(cfg.out)
    processes.hold(cfg.out)
    if processes.main:
        checkpoint.sweep(cfg.out)
    processes.wait()
    phonemizer, silence = (folder_of_assets(cfg) / name for name in (PHONEMIZER, SILENCE))
    if cfg.assets and not phonemizer.is_file():
        raise UserError(f"{phonemizer}: no such file; --assets names its folder")
    table = SymbolTable(load_phonemizer(phonemizer if phonemizer.is_file() else fetch("phonemizer")).symbols)
    return device, preset, table, silence_of(preset.codec,
                                             lambda: silence if silence.is_file() else fetch("silence"))


def folder_of_assets(cfg: TrainConfig) -> Path:
    return cfg.assets or find(Path("weights", cfg.preset))


def initial_weights(cfg: TrainConfig) -> Path | None:
    """The file that --init-from means."""
    path = cfg.init_from and find(cfg.init_from)
    return weights_in(path) if path and path.is_dir() else path


def initial_model(cfg: TrainConfig, preset: Preset) -> DiT:
    """A model with random weights by the seed, or with those of --init-from. Raises: UserError."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        model = DiT(preset.model)
    if cfg.init_from:
        path = initial_weights(cfg)
        with reading(f"--init-from {cfg.init_from}"):
            load_weights(model, load_file(path), str(path))
    return model


# This script

def train(cfg: TrainConfig) -> None:
    """Train by flow matching."""
    processes = Processes(hours=1)                           # a process that hangs is given up, and restarted
    work(cfg, processes)
    processes.close()                                        # by now nothing is left that uses them


def work(cfg: TrainConfig, processes: Processes) -> None:
    """This process's part of training."""
    device, preset, table, silence = begin(cfg, processes)
    found = checkpoint.to_resume(cfg, processes)
    model = initial_model(dataclasses.replace(cfg, init_from=None) if found else cfg, preset).to(device)
    trainer = Trainer(cfg, model, functools.partial(FlowObjective, cfg=cfg), processes, device)
    places = trainer.resume(found) if found else None

    held_out = []
    validation = DataSettings(cfg.validation or cfg.data.shards, pipe=cfg.data.pipe, from_start=True,
                              style_index=0)
    if cfg.validation:
        make_batch = functools.partial(to_batch, silence=silence, preset=preset)
        shards = Shards(validation, preset, table, strict=True)
        held_out = held_out_batches(shards, cfg, make_batch, processes)

    decoder = cfg.vae or folder_of_assets(cfg) / CODEC
    sings = processes.main and cfg.listen
    samples = listener(cfg, validation, preset, table, silence, device, decoder) if sings else None
    share, pin = (processes.rank, processes.world), device.type == "cuda"
    stream = load(cfg.data, preset, table, silence, cfg.batch, cfg.seed, share, places, pin)
    fit(trainer, preset, stream, held_out, samples)


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    train(parse(TrainConfig, __doc__, argv, RECIPES))


if __name__ == "__main__":
    run(main)
