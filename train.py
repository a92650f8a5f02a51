"""Flow-matching training: one loop for pretraining and fine-tuning, on one process or on many machines.

    torchrun --nproc_per_node=8 train.py --config pretrain --data.shards 'songs-{000000..000485}.tar'

Read `FlowObjective` (a batch's loss and its draws), `Trainer.step` (gradients, clipping, averaging), `fit`
(the loop), then `Trainer.save` and `resume`. data.py says which songs come when, checkpoint.py how folders
appear whole, tracker.py what is told. Order, noise, flow times and drops are functions of the seed and of the
songs consumed: a killed run goes on where it stopped and, on a CPU, ends with the same weights bit for bit.
"""

import contextlib
import copy
import dataclasses
import functools
import glob
import itertools
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as sharded
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

import checkpoint
import tracker
from cli import find, parse, pick_device, preset_to_json, run
from config import (AVERAGED, CONFIG, PHONEMIZER, PRESETS, READ_ERRORS, RECIPES, SILENCE, STYLES, WEIGHTS,
                    DataSettings, Preset, TrainConfig, UserError)
from data import Batch, Shards, expand, in_place, load, together
from hub import fetch, weights_in
from model import DiT, drop, flow_loss, load_weights
from phonemes import SymbolTable, load_phonemizer
from processes import Processes
from vae import silence_of

OPTIMIZER, STATE, RNG = "optimizer.pt", "state.json", "rng.pt"
# Added to a song's seed, so that training's draws are not those of its crop. torch's CPU generator takes the
# seed's lower 32 bits only.
DRAWS = 0x5EED_5EED
WHOLE = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True)


def rate_at(step: int, cfg: TrainConfig) -> float:
    """Learning rate of a step: linear warm-up, then a linear fall to 0 over the last cfg.decay of steps."""
    falling = max(1.0, cfg.decay * (cfg.steps - cfg.warmup))
    return cfg.lr * min((step + 1) / max(1, cfg.warmup), 1.0, (cfg.steps - step) / falling)


def song_draws(seeds: list[int], latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Noise like latents (B, T, C), logit-normal flow times (B,), and two uniform numbers (B, 2).

    Each song's come from its own seed: they do not depend on batch mates or on the number of processes.
    Source of the flow times: sigmoid of a standard normal, as in SD3 and in the original.
    """
    noise, times, uniform = [], [], []
    for seed, x in zip(seeds, latents, strict=True):
        rng = torch.Generator(x.device).manual_seed(seed + DRAWS)
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
        """Returns: "loss" and "flow_time" (B,). Style is dropped by chance; where it is, text by chance, too.

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
    """Model, averaged weights and optimizer, on this process its copy or, with FSDP, its share.

    Args: origin, the checksum of weights that a run needs when it goes on, too; "": it needs none.
    """

    def __init__(self, cfg: TrainConfig, model: DiT, objective: Callable[[DiT], nn.Module],
                 processes: Processes, device: torch.device, origin: str = ""):
        self.cfg, self.processes, self.device, self.origin = cfg, processes, device, origin
        self.done, self.place = 0, None          # steps; where this process's reading goes on
        self.model = model
        model.gradient_checkpointing = cfg.gradient_checkpointing
        # A model of its own, so that it is shared out and saved as the model is.
        self.ema = copy.deepcopy(model).requires_grad_(False) if cfg.ema else None
        self.objective = objective(model)
        if cfg.fsdp:
            mesh = torch.distributed.device_mesh.init_device_mesh(device.type, (processes.world,))
            for each, root in ((self.model, self.objective), *[(self.ema, self.ema)] * bool(self.ema)):
                for block in each.transformer_blocks:
                    fully_shard(block, mesh=mesh)
                fully_shard(root, mesh=mesh)
        elif processes.world > 1:
            self.objective = DistributedDataParallel(self.objective, gradient_as_bucket_view=True)
        if cfg.compile:
            for block in self.model.transformer_blocks:
                block.compile()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, cfg.lr, weight_decay=cfg.weight_decay, fused=True)

    def compute(self, batch: Batch) -> dict[str, Tensor]:
        """What the objective says of a batch."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cfg.bf16):
            return self.objective({k: v.to(self.device) for k, v in batch.tensors.items()}, batch.seeds)

    def synchronized(self, last: bool) -> contextlib.AbstractContextManager:
        """Gradients are exchanged with the last batch of a step alone."""
        if self.cfg.fsdp:
            self.objective.set_requires_gradient_sync(last)
        elif self.processes.world > 1 and not last:
            return self.objective.no_sync()
        return contextlib.nullcontext()

    def step(self, batches: list[Batch], measured: bool = False) -> tuple[list[dict], dict[str, Tensor]]:
        """One optimizer step over this process's batches.

        Returns: what each batch gave; L2 norms of the gradient and, if measured, of how the weights moved.
        """
        outputs = []
        for i, batch in enumerate(batches, 1):
            with self.synchronized(i == len(batches)):
                outputs.append(self.compute(batch))
                (outputs[-1]["loss"].mean() / len(batches)).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.done, self.cfg)
        norms = {"grad_norm": local(nn.utils.clip_grad_norm_(self.parameters, self.cfg.clip), whole=True)}
        before = [local(p.detach()).clone() for p in self.parameters] if measured else []
        self.optimizer.step()
        self.optimizer.zero_grad()
        if measured:
            moved = sum((local(p.detach()) - old).square().sum().cpu().double()
                        for p, old in zip(self.parameters, before))
            norms["update_norm"] = (self.processes.sum(moved) if self.cfg.fsdp else moved).sqrt()
        del before
        self.done, self.place = self.done + 1, batches[-1].place
        if self.ema:
            # the average forgets its random start: early on it follows closely
            share = 1 - min(self.cfg.ema, (1 + self.done) / (10 + self.done))
            torch._foreach_lerp_([local(p) for p in self.ema.parameters()],
                                 [local(p.detach()) for p in self.model.parameters()], share)
        return outputs, norms

    @torch.no_grad()
    def validate(self, batches: list[tuple[Batch, int]]) -> float:
        """Mean loss over held-out batches; of each, so many songs count. Their seeds never change."""
        sums = torch.zeros(2, dtype=torch.float64)
        for batch, count in batches:
            sums += torch.tensor([self.compute(batch)["loss"][:count].cpu().double().sum(), count])
        total, songs = self.processes.sum(sums).tolist()
        return total / songs

    def save(self, preset: Preset) -> Path:
        """Write the checkpoint of this step; all processes take part. `resume` is its mirror image."""
        cfg, out = self.cfg, checkpoint.folder_of(self.cfg.out, self.done)
        weights, optimizer = sharded.get_state_dict(self.model, self.optimizer, options=WHOLE)
        averaged = sharded.get_model_state_dict(self.ema, options=WHOLE) if self.ema else {}
        rng = self.processes.gather(torch.get_rng_state())
        state = {"step": self.done, "places": self.processes.gather(self.place), "origin": self.origin,
                 "config": dataclasses.asdict(cfg)}
        if self.processes.main:
            with checkpoint.writing(out) as folder:
                for name, tensors in ((WEIGHTS, weights), *[(AVERAGED, averaged)] * bool(averaged)):
                    save_file({f"transformer.{k}": v.contiguous() for k, v in tensors.items()}, folder / name)
                torch.save(optimizer, folder / OPTIMIZER)
                torch.save(rng, folder / RNG)
                (folder / STATE).write_text(json.dumps(state, default=str, indent=1))
                (folder / CONFIG).write_text(preset_to_json(preset, step=self.done))
                for name in (PHONEMIZER, STYLES, SILENCE):
                    if (folder_of_assets(cfg) / name).is_file():
                        shutil.copyfile(folder_of_assets(cfg) / name, folder / name)
            checkpoint.finish(cfg.out, out, cfg.keep)
        self.processes.wait()
        return out

    def resume(self, folder: Path) -> list[dict]:
        """Go on from a checkpoint. Returns: where every process's reading goes on.

        Raises: UserError if it cannot be read, or was made with other settings; those that only say how far,
            where, on which shards and on how many processes may differ.
        """
        try:
            state = json.loads((folder / STATE).read_text())
            done, places = state["step"], state["places"]
            self.compare(state["config"], folder)
            if state.get("origin", "") != self.origin:
                raise UserError(f"{folder}: began from other weights than --init-from {self.cfg.init_from} "
                                "has now; use another --out")
            optimizer, rng = (torch.load(folder / name, weights_only=True, map_location="cpu")
                              for name in (OPTIMIZER, RNG))
            weights = [load_file(folder / name) for name in (WEIGHTS, *[AVERAGED] * bool(self.ema))]
            weights = [{k.removeprefix("transformer."): v for k, v in tensors.items()} for tensors in weights]
            sharded.set_state_dict(self.model, self.optimizer, model_state_dict=weights[0],
                                   optim_state_dict=optimizer, options=WHOLE)
            if self.ema:
                sharded.set_model_state_dict(self.ema, weights[1], options=WHOLE)
        except UserError:
            raise
        except (*READ_ERRORS, SafetensorError) as e:
            raise UserError(f"{folder}: not a checkpoint: {' '.join(str(e).split())[:120]}") from None
        self.done = done
        if len(rng) == self.processes.world:
            torch.set_rng_state(rng[self.processes.rank])
        return places

    def compare(self, then: dict, folder: Path) -> None:
        """Raise UserError if a checkpoint's settings would make this another run."""
        now = json.loads(json.dumps(dataclasses.asdict(self.cfg), default=str))
        then, now = ({**made, **{f"data.{name}": value for name, value in made["data"].items()}}
                     for made in (then, now))
        for name in ("preset", "max_frames", "lr", "warmup", "weight_decay", "clip", "ema", "drop_style",
                     "drop_text", "drop_per_batch", "bf16", "seed", "data.ids", "data.min_duration",
                     "data.resample_duration", "data.from_start", "data.style_index", "data.replacement",
                     "data.bucket", "data.window", "beta", "sft", "sft_weight", "vae_sampled"):
            if then.get(name) != now.get(name):              # the last four are those of train_dpo.py
                raise UserError(f"{folder}: was made with --{name.replace('_', '-')} {then.get(name)}, "
                                f"not {now.get(name)}; use another --out")


def local(tensor: Tensor, whole: bool = False) -> Tensor:
    """This process's part of a tensor that FSDP shares out, or the whole; others as they are."""
    if not isinstance(tensor, torch.distributed.tensor.DTensor):
        return tensor
    return tensor.full_tensor() if whole else tensor.to_local()


def grouped(stream: Iterator[Batch], size: int) -> Iterator[tuple[list[Batch], bool]]:
    """The batches of each step, and whether they are the last: standard input ends."""
    group = list(itertools.islice(stream, size))
    while len(group) == size:
        following = list(itertools.islice(stream, size))
        yield group, len(following) < size
        group = following


def fit(trainer: Trainer, preset: Preset, stream: Iterator[Batch], held_out: list[tuple[Batch, int]],
        listener: tracker.Listener | None) -> None:
    """Train until cfg.steps, or until the data end."""
    cfg = trainer.cfg
    log = tracker.Tracker(cfg, trainer.processes, trainer.device, preset.model, trainer.done)
    if trainer.processes.main:
        print(f"{sum(p.numel() for p in trainer.parameters):,} parameters on {trainer.processes.world} x "
              f"{trainer.device.type}, {trainer.processes.world * cfg.accumulate * cfg.batch} songs a step, "
              f"from step {trainer.done}", flush=True)
    for batches, last in grouped(stream, cfg.accumulate) if trainer.done < cfg.steps else ():
        rate, step = rate_at(trainer.done, cfg), trainer.done + 1
        last = last or step == cfg.steps
        telling = last or step % cfg.log_every == 0 or step % cfg.save_every == 0
        outputs, norms = trainer.step(batches, telling)
        for batch, values in zip(batches, outputs):
            log.note(step, values, batch)
        if telling:
            log.tell(step, rate, norms)
        if held_out and (last or step % cfg.validate_every == 0):
            log.row({"step": step, "validation_loss": round(trainer.validate(held_out), 5)})
        if last or step % cfg.save_every == 0:
            folder = trainer.save(preset)
            if listener:
                listener.sing(folder)
        if telling:
            log.clear(step)
        if last:
            break
    log.close()
    if not trainer.done:
        raise UserError(f"--data.shards {' '.join(cfg.data.shards)}: fewer songs than a step's "
                        f"{cfg.accumulate} batches of {cfg.batch}")


def check(cfg: TrainConfig, processes: Processes) -> None:
    """Raise UserError for a setting out of its range."""
    if cfg.preset not in PRESETS:
        raise UserError(f"--preset {cfg.preset}: expected one of {', '.join(PRESETS)}")
    least_of = {"batch": 1, "accumulate": 1, "steps": 1, "save_every": 1, "log_every": 1, "validate_every": 1,
                "validation_songs": 1, "warmup": 0, "keep": 0, "seed": 0, "lr": 0, "weight_decay": 0,
                "clip": 1e-9, "max_loss": 0}
    for name, least in least_of.items():
        if not least <= getattr(cfg, name) < 2 ** 62:        # no number is not either
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: expected {least} or more")
    for name in ("ema", "decay", "drop_style", "drop_text"):
        if not 0 <= getattr(cfg, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: expected 0 to 1")
    longest = PRESETS[cfg.preset].model.max_frames
    if cfg.max_frames is not None and not 1 <= cfg.max_frames <= longest:
        raise UserError(f"--max-frames {cfg.max_frames}: expected 1 to {longest}")
    if cfg.fsdp and processes.world == 1:
        raise UserError("--fsdp: shares out a model over processes; start them with torchrun")
    if processes.world > 1 and ":" in cfg.device:
        raise UserError(f"--device {cfg.device}: processes would share it; expected auto, cuda or cpu")
    tracker.check(cfg)


def preset_of(cfg: TrainConfig) -> Preset:
    """The preset that is trained, perhaps on shorter songs."""
    preset = PRESETS[cfg.preset]
    frames = preset.model.max_frames if cfg.max_frames is None else cfg.max_frames
    return dataclasses.replace(preset, model=dataclasses.replace(preset.model, max_frames=frames))


def folder_of_assets(cfg: TrainConfig) -> Path:
    return find(Path("weights", cfg.preset)) if cfg.assets is None else cfg.assets


def assets_of(cfg: TrainConfig, preset: Preset) -> tuple[SymbolTable, Tensor]:
    """The phonemes' ids and the silence frame (C,), from --assets or from where they are published."""
    path, silence = (folder_of_assets(cfg) / name for name in (PHONEMIZER, SILENCE))
    if not path.is_file() and cfg.assets is not None:
        raise UserError(f"{path}: no such file; --assets names its folder")
    table = SymbolTable(load_phonemizer(path if path.is_file() else fetch("phonemizer")).symbols)
    return table, silence_of(preset.codec, lambda: silence if silence.is_file() else fetch("silence"))


def given_weights(cfg: TrainConfig) -> Path | None:
    """The file that --init-from means."""
    path = cfg.init_from and find(cfg.init_from)
    return weights_in(path) if path and path.is_dir() else path


def fresh_model(cfg: TrainConfig, preset: Preset) -> DiT:
    """A model with random weights by the seed, or with those of --init-from. Raises: UserError."""
    given = given_weights(cfg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        model = DiT(preset.model)
    if given:
        try:
            load_weights(model, load_file(given), str(given))
        except (OSError, SafetensorError) as e:
            raise UserError(f"--init-from {cfg.init_from}: {e}") from None
    return model


def starting_point(cfg: TrainConfig, processes: Processes) -> Path | None:
    """The checkpoint that --resume means: a named one while --out has none of its own.

    Raises: UserError if there is none, or one too many, or if processes see different ones.
    """
    found = checkpoint.newest(cfg.out)
    if cfg.resume == "none" and found:
        raise UserError(f"--resume none: {found} is there; use another --out")
    if cfg.resume not in ("auto", "none"):
        named = Path(cfg.resume)
        if not checkpoint.whole(named):
            raise UserError(f"--resume {cfg.resume}: no whole checkpoint; expected auto, none or its folder")
        if named.resolve().parent == cfg.out.resolve() and named.resolve() != found.resolve():
            raise UserError(f"--resume {cfg.resume}: {found} is newer; use another --out")
        found = found or named
    if len(set(processes.gather(found and found.name))) > 1:
        raise UserError(f"--out {cfg.out}: processes see different checkpoints; expected a folder of all")
    return found


def held_out_batches(shards: Dataset, cfg: TrainConfig, put_together: Callable[[list[dict]], Batch],
                     processes: Processes) -> list[tuple[Batch, int]]:
    """This process's part of the first validation songs, each batch with how many of it count.

    All processes get equally many batches: with FSDP they compute together. The surplus does not count.
    """
    songs = min(cfg.validation_songs, len(shards))
    starts = range(processes.rank * cfg.batch, math.ceil(songs / (cfg.batch * processes.world))
                   * cfg.batch * processes.world, cfg.batch * processes.world)
    made = []
    for start in starts:
        items = [shards[i, i] for i in (min(i, songs - 1) for i in range(start, start + cfg.batch))]
        made.append((put_together(items), min(max(songs - start, 0), cfg.batch)))
    return made


def listener_of(cfg: TrainConfig, preset: Preset, data: DataSettings, table: SymbolTable, silence: Tensor,
                device: torch.device) -> tracker.Listener | None:
    """Who sings at each checkpoint, if anybody can; a run does not end for want of a song."""
    if not cfg.listen:
        return None
    if preset.codec.kind != "mel" and cfg.vae is None:
        print("no --vae: checkpoints come without a song", flush=True)
        return None
    first = expand(data.shards, cfg.data.pipe)[0]            # one shard: the others need not be indexed
    try:
        if not in_place(first):
            raise UserError(f"{first} is streamed; --validation shards may be files")
        shards = Shards(dataclasses.replace(data, shards=(glob.escape(first),)), preset, table)
        return tracker.Listener(cfg, preset, shards, silence, device)
    except READ_ERRORS as e:
        print(f"checkpoints come without a song: {' '.join(str(e).split())[:200]}", flush=True)
        return None


def train(cfg: TrainConfig) -> None:
    """Train by flow matching."""
    processes = Processes(hours=1)                           # one that hangs is given up, and restarted
    work(cfg, processes)
    processes.close()                                        # nothing is left that exchanges gradients


def begin(cfg: TrainConfig, processes: Processes) -> tuple[torch.device, Preset, SymbolTable, Tensor]:
    """Check the settings, make --out; this process's device, the preset, phonemes' ids, silence (C,)."""
    check(cfg, processes)
    device, preset = pick_device(cfg.device, processes.local), preset_of(cfg)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        cfg.out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--out {cfg.out}: {e.strerror}") from None
    if processes.main:
        checkpoint.sweep(cfg.out)
    processes.wait()
    return device, preset, *assets_of(cfg, preset)


def work(cfg: TrainConfig, processes: Processes) -> None:
    """This process's part of training."""
    device, preset, table, silence = begin(cfg, processes)
    objective = functools.partial(FlowObjective, cfg=cfg)
    found = starting_point(cfg, processes)
    fresh = fresh_model(dataclasses.replace(cfg, init_from=None) if found else cfg, preset)
    trainer = Trainer(cfg, fresh.to(device), objective, processes, device)
    places = trainer.resume(found) if found else None
    held_out, listener = [], None
    validation = DataSettings(cfg.validation or cfg.data.shards, from_start=True, style_index=0)
    if cfg.validation:
        shards = Shards(validation, preset, table, strict=True)
        put_together = functools.partial(together, silence=silence, preset=preset)
        held_out = held_out_batches(shards, cfg, put_together, processes)
    if processes.main:
        listener = listener_of(cfg, preset, validation, table, silence, device)
    share = (processes.rank, processes.world)
    stream = load(cfg.data, preset, table, silence, cfg.batch, cfg.seed, share, places)
    fit(trainer, preset, stream, held_out, listener)


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    recipes = {name: recipe for name, recipe in RECIPES.items() if type(recipe) is TrainConfig}
    train(parse(TrainConfig, __doc__.splitlines()[0], argv, recipes))


if __name__ == "__main__":
    run(main)
