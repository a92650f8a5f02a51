"""Preference alignment: from pairs of a better and a worse song, Diffusion-DPO for flow matching.

    torchrun --nproc_per_node=8 train_dpo.py --config dpo --init-from model.safetensors --pairs pairs.json

Read `preference` (the loss), `PreferenceObjective` (both songs of a pair at the same noise and flow time,
before the model that is trained and before a frozen one), then `Pairs`. The loop, its checkpoints and its log
are those of train.py. Source: arXiv 2507.20880 and the published pairs format.
"""

import copy
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cli import parse, read_json, run
from config import READ_ERRORS, RECIPES, DPOConfig, Preset, UserError
from data import Batch, collate, conditions, rounds, seeded, words_of
from model import DiT, flow_loss
from phonemes import SymbolTable
from processes import Processes
from train import Trainer, begin, fit, fresh_model, held_out_batches, song_draws, starting_point

SFT = ("none", "win", "gt")
KEYS = ("win_latent", "loss_latent", "transcription", "style", "gt_latent")


def preference(policy: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor],
               beta: float) -> tuple[Tensor, Tensor]:
    """The DPO loss of each pair (B,), and its argument: above 0 where the winner is preferred.

    Args: policy and reference, each the flow losses (B,) of winner and loser, in float32: beta multiplies
        a difference of four of them.
    """
    inside = -beta / 2 * ((policy[0] - policy[1]) - (reference[0] - reference[1]))
    return F.softplus(-inside), inside


def losses_of(model: DiT, songs: list[Tensor], batch: dict[str, Tensor], x0: Tensor,
              flow_time: Tensor) -> tuple[Tensor, ...]:
    """Flow losses (B,) of several songs (B, T, C) that share words, style, noise and time, in one pass."""
    many = len(songs)
    row = torch.arange(len(x0), device=x0.device).repeat(many)
    condition = model.condition(batch["phonemes"], batch["style"].repeat(many, 1), batch["start_time"],
                                batch["duration_abs"], batch["duration_rel"], row=row)
    loss = flow_loss(model, torch.cat(songs), x0.repeat(many, 1, 1), flow_time.repeat(many), condition)
    return loss.split(len(x0))


class PreferenceObjective(nn.Module):
    """The DPO loss of a batch of pairs, perhaps with flow matching on winners or ground truth."""

    def __init__(self, model: DiT, reference: DiT, cfg: DPOConfig):
        super().__init__()
        self.model, self.cfg = model, cfg
        self.frozen = [reference]                    # in a list, so that it is not trained, shared out, saved

    def forward(self, batch: dict[str, Tensor], seeds: list[int]) -> dict[str, Tensor]:
        """Returns: what train.py logs, each (B,). Nothing is dropped."""
        x0, flow_time, _ = song_draws(seeds, batch["latents"])
        return self.losses(batch, x0, flow_time)

    def losses(self, batch: dict[str, Tensor], x0: Tensor, flow_time: Tensor) -> dict[str, Tensor]:
        pair = [batch["latents"], batch["loser"]]
        songs = [*pair, batch["truth"]] if self.cfg.sft == "gt" else pair
        policy = losses_of(self.model, songs, batch, x0, flow_time)
        with torch.no_grad():
            reference = losses_of(self.frozen[0], pair, batch, x0, flow_time)
        loss, inside = preference(policy[:2], reference, self.cfg.beta)
        kept = {"none": torch.zeros_like(loss), "win": policy[0], "gt": policy[-1]}[self.cfg.sft]
        return {"loss": loss + self.cfg.sft_weight * kept, "dpo_loss": loss, "inside": inside,
                "accuracy": (inside > 0).float(), "policy_loss": (policy[0] + policy[1]) / 2,
                "reference_loss": (reference[0] + reference[1]) / 2, "flow_time": flow_time}


class Pairs(torch.utils.data.Dataset):
    """Pairs of the published form, lists of {win_latent, loss_latent, transcription, style[, gt_latent]}.

    Paths are beside the file or in the working directory. Latents are generated ones (frames, C), or, with
    --vae-sampled, posteriors (2C, frames) to be drawn from; gt_latent is always a posterior. An item is asked
    for as (pair, seed of its draws).
    Raises: UserError, naming the pair, for a missing file, another length or other channels.
    """

    def __init__(self, cfg: DPOConfig, preset: Preset, table: SymbolTable):
        self.cfg, self.preset, self.table, self.pairs = cfg, preset, table, []
        for path in map(Path, cfg.pairs):
            entries = read_json(path)
            if not isinstance(entries, list) or not entries:
                raise UserError(f"{path}: expected a JSON list of {{{', '.join(KEYS)}}}")
            self.pairs += [(f"{path}: pair {i}", self.located(f"{path}: pair {i}", path, entry))
                           for i, entry in enumerate(entries, 1)]
        if not self.pairs:
            raise UserError("--pairs: expected a JSON file")

    def located(self, where: str, path: Path, entry: object) -> dict[str, Path]:
        """The files of a pair."""
        files = {}
        for key in KEYS[:4 + (self.cfg.sft == "gt")]:
            name = entry.get(key) if isinstance(entry, dict) else None
            if not isinstance(name, str):
                raise UserError(f"{where}: {key} is {name!r}; expected a path")
            files[key] = next((p for p in (path.parent / name, Path(name)) if p.is_file()), None)
            if files[key] is None:
                raise UserError(f"{where}: {key} {name}: no such file")
        return files

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, job: tuple[int, int]) -> dict:
        (where, files), rng = self.pairs[job[0]], torch.Generator().manual_seed(job[1])
        try:
            latents = {key: self.latents(files[key], key == "gt_latent" or self.cfg.vae_sampled, rng)
                       for key in files if key.endswith("latent")}
            style = torch.load(files["style"], map_location="cpu", weights_only=True).detach().float()
            style = style[0] if style.dim() == 2 else style
            if style.shape != (self.preset.model.cond_dim,):
                raise ValueError(f"style {tuple(style.shape)}; expected ({self.preset.model.cond_dim},)")
            words = words_of(json.loads(files["transcription"].read_text(encoding="utf-8")))
            frames = {len(x) for x in latents.values()}
            if len(frames) > 1:
                raise ValueError(f"lengths {', '.join(f'{k} {len(x)}' for k, x in latents.items())} frames; "
                                 "expected equal ones")
        except READ_ERRORS as e:
            raise UserError(f"{where}: {' '.join(str(e).split())[:200] or type(e).__name__}") from None
        (frames,), most = frames, self.preset.model.max_frames
        start = int(torch.randint(max(0, frames - most) + 1, (), generator=rng))
        made = {"win_latent": "latents", "loss_latent": "loser", "gt_latent": "truth"}
        return {made[key]: x[start:start + most] for key, x in latents.items()} | {
            "style": style, "id": where, "seed": job[1],
            **conditions(words, frames, start, self.preset, self.table)[0]}

    def latents(self, path: Path, posterior: bool, rng: torch.Generator) -> Tensor:
        """(frames, C) as stored, or drawn from a stored posterior. Raises: ValueError for another shape."""
        x, channels = torch.load(path, map_location="cpu", weights_only=True).detach().float(), \
            self.preset.model.mel_dim
        if x.dim() != 2 or not x.isfinite().all() or x.shape[not posterior] != channels * (1 + posterior):
            wanted = f"({2 * channels}, frames)" if posterior else f"(frames, {channels})"
            raise ValueError(f"{path.name}: {tuple(x.shape)}; expected {wanted}, finite")
        if not posterior:
            return x
        mean, std = x.T.chunk(2, dim=-1)
        return mean + std * torch.randn(mean.shape, generator=rng)

    def order(self, seed: int, epoch: int) -> Tensor:
        """The pairs of an epoch and the seeds of their draws (n, 2)."""
        rng = seeded(seed, epoch)
        pairs = torch.randperm(len(self), generator=rng)
        return torch.stack([pairs, torch.randint(2 ** 62, pairs.shape, generator=rng)], 1)


def together(items: list[dict], silence: Tensor, preset: Preset) -> Batch:
    """A batch of pairs: winners are the latents."""
    tensors = collate(items, silence, preset)
    for name in {"loser", "truth"} & items[0].keys():
        others = [item | {"latents": item[name]} for item in items]
        tensors[name] = collate(others, silence, preset)["latents"]
    return Batch(tensors, [item["seed"] for item in items], [item["id"] for item in items], [], {})


def batches_of(pairs: Pairs, cfg: DPOConfig, put_together, share: tuple[int, int],
               places: list[dict] | None) -> Iterator[Batch]:
    """Endless batches for one training process, in an order that is a function of the seed."""
    place = places[0] if places else {"epoch": 0, "songs": 0}
    for jobs, after in rounds(functools.partial(pairs.order, cfg.seed), cfg.batch, *share, place):
        yield dataclasses.replace(put_together([pairs[job] for job in jobs]), place=after)


def check(cfg: DPOConfig) -> None:
    """Raise UserError for a setting out of its range."""
    if cfg.sft not in SFT:
        raise UserError(f"--sft {cfg.sft}: expected one of {', '.join(SFT)}")
    if cfg.reference_dtype not in ("float32", "bfloat16"):
        raise UserError(f"--reference-dtype {cfg.reference_dtype}: expected float32 or bfloat16")
    if not cfg.beta > 0 or not cfg.sft_weight >= 0:
        raise UserError(f"--beta {cfg.beta}, --sft-weight {cfg.sft_weight}: expected above 0, 0 or more")
    if cfg.init_from is None:
        raise UserError("--init-from: expected the weights that are to be aligned (.safetensors)")


def work(cfg: DPOConfig, processes: Processes) -> None:
    """This process's part of training."""
    check(cfg)
    device, preset, table, silence = begin(cfg, processes)
    pairs = Pairs(cfg, preset, table)
    found = starting_point(cfg, processes)
    model = fresh_model(cfg, preset).to(device)
    reference = copy.deepcopy(model).requires_grad_(False).to(getattr(torch, cfg.reference_dtype))
    trainer = Trainer(cfg, model, functools.partial(PreferenceObjective, reference=reference, cfg=cfg),
                      processes, device)
    places = trainer.resume(found) if found else None
    put_together = functools.partial(together, silence=silence, preset=preset)
    held_out = []
    if cfg.validation:
        held = Pairs(dataclasses.replace(cfg, pairs=cfg.validation), preset, table)
        held_out = held_out_batches(held, cfg, put_together, processes)
    stream = batches_of(pairs, cfg, put_together, (processes.rank, processes.world), places)
    fit(trainer, preset, stream, held_out, None)


def main(argv: list[str] | None = None) -> None:
    """Align as the command line says."""
    recipes = {name: recipe for name, recipe in RECIPES.items() if isinstance(recipe, DPOConfig)}
    cfg = parse(DPOConfig, __doc__.splitlines()[0], argv, recipes)
    processes = Processes(hours=1)
    work(cfg, processes)
    processes.close()


if __name__ == "__main__":
    run(main)
