"""Preference alignment: from pairs of a better and a worse song, Diffusion-DPO for flow matching.

    python train_dpo.py --config baby-dpo --init-from runs/mine/last --pairs pairs/round-1/pairs.json
    torchrun --nproc_per_node=8 train_dpo.py --config dpo --init-from model.safetensors --pairs pairs.json

Read `preference` (the loss), `PreferenceObjective` (both songs of a pair at the same noise and flow time, in
the model that is trained and in a frozen reference), then `Pairs`, then `precomputed` (the reference's
losses, computed before the run). The loop, its checkpoints and its log are those of train.py.
Source: arXiv 2507.20880 and the published format of pairs; songs/pairs.py makes such pairs.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

from config import PHONEMIZER, READ_ERRORS, RECIPES, SILENCE, DataSettings, DPOConfig, Preset, UserError
from support.cli import first, parse, run

if __name__ == "__main__":
    first(lambda: parse(DPOConfig, __doc__, recipes=RECIPES))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import check_finite, collate, conditions, epochs, read_in_order, words_of
from model import DiT, flow_loss
from phonemes import SymbolTable
from support.checkpoint import to_resume
from support.files import read_json, reading, replacing
from support.hub import sha256
from support.processes import Processes, autocast
from support.stream import Batch, held_out_batches, seeded
from train import STATE, Trainer, begin, fit, folder_of_assets, initial_model, initial_weights, song_draws

SAVE_EVERY = 2000              # pairs between writes of precomputed losses
DATA = ("workers", "style_index", "from_start")        # of --data, what pairs have a use for
KEYS = ("win_latent", "loss_latent", "transcription", "style", "gt_latent")


def preference(policy: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor],
               beta: float) -> tuple[Tensor, Tensor]:
    """The DPO loss of each pair (B,), and its argument (B,): above 0 where the winner is preferred.

    Args: policy and reference, each the flow losses (B,) of winner and loser, in float32, because beta
        multiplies a difference of four of them.
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


Losses = dict[int, tuple[float, float]]      # a reference's, of winner and loser, by the seed of their draws


class PreferenceObjective(nn.Module):
    """The DPO loss of a batch of pairs and, with --sft, flow matching on winners or ground truth."""

    def __init__(self, model: DiT, reference: DiT | Losses, cfg: DPOConfig):
        super().__init__()
        self.model, self.cfg = model, cfg
        self.frozen = [reference]                    # in a list: not to be trained, sharded or saved

    def forward(self, batch: dict[str, Tensor], seeds: list[int]) -> dict[str, Tensor]:
        """Returns what train.py logs, each (B,). No condition is dropped."""
        x0, flow_time, _ = song_draws(seeds, batch["latents"])
        frozen = self.frozen[0]
        if isinstance(frozen, dict):
            known = torch.tensor([frozen[seed] for seed in seeds], pin_memory=x0.is_cuda)
            reference = known.to(x0.device, non_blocking=x0.is_cuda).unbind(1)
        else:
            reference = frozen_losses(frozen, batch, x0, flow_time)
        return self.losses(batch, x0, flow_time, reference)

    def losses(self, batch: dict[str, Tensor], x0: Tensor, flow_time: Tensor,
               reference: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """As `forward`, for given draws; reference, the frozen model's losses of winners and losers (B,)."""
        policy = losses_of(self.model, [batch["latents"], batch["loser"]], batch, x0, flow_time)
        loss, inside = preference(policy, reference, self.cfg.beta)
        sft = policy[0] if self.cfg.sft == "win" else torch.zeros_like(loss)
        if self.cfg.sft == "gt":             # apart: the pair's losses in a batch of three round otherwise
            sft, = losses_of(self.model, [batch["truth"]], batch, x0, flow_time)
        return {"loss": loss + self.cfg.sft_weight * sft, "dpo_loss": loss, "inside": inside,
                "accuracy": (inside > 0).float(), "policy_loss": (policy[0] + policy[1]) / 2,
                "reference_loss": (reference[0] + reference[1]) / 2, "flow_time": flow_time}


@torch.no_grad()
def frozen_losses(reference: DiT, batch: dict[str, Tensor], x0: Tensor,
                  flow_time: Tensor) -> tuple[Tensor, ...]:
    """The flow losses (B,) of winners and of losers in the frozen model."""
    return losses_of(reference, [batch["latents"], batch["loser"]], batch, x0, flow_time)


class Pairs(torch.utils.data.Dataset):
    """Pairs of the published form, lists of {win_latent, loss_latent, transcription, style[, gt_latent]}.

    Paths are relative to the file or to the working directory. Latents are generated ones (frames, C) or,
    with --vae-sampled, posteriors (2C, frames) to draw from; gt_latent is always a posterior. An item is
    asked for as (pair, seed of its draws).
    Raises: UserError, naming the pair, for a missing file, unequal lengths or another number of channels.
    """

    def __init__(self, cfg: DPOConfig, preset: Preset, table: SymbolTable):
        self.cfg, self.preset, self.table, self.pairs = cfg, preset, table, []
        for path in map(Path, cfg.pairs):
            entries = read_json(path)
            if not isinstance(entries, list):
                raise UserError(f"{path}: expected a JSON list of {{{', '.join(KEYS)}}}")
            if not entries:
                raise UserError(f"{path}: has no pairs; songs.pairs finds more with a lower --margin")
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
        with reading(where):
            latents = {key: self.latents(files[key], key == "gt_latent" or self.cfg.vae_sampled, rng)
                       for key in files if key.endswith("latent")}
            style = torch.load(files["style"], map_location="cpu", weights_only=True).detach().float()
            width = self.preset.model.cond_dim
            if style.dim() not in (1, 2) or not len(style) or style.shape[-1] != width:
                raise ValueError(f"style {tuple(style.shape)}; expected ({width},) or (n, {width})")
            check_finite(f"style {files['style'].name}", style)
            if style.dim() == 2:
                index = self.cfg.data.style_index
                style = style[torch.randint(len(style), (), generator=rng) if index is None else index]
            content = json.loads(files["transcription"].read_text(encoding="utf-8"))
            words = [(*word, [(p["text"], p["start"], p["end"]) for p in about.get("phones", ())])
                     for word, about in zip(words_of(content), content["word"])]
            frames, *others = (len(x) for x in latents.values())
            if set(others) != {frames}:
                raise ValueError(f"lengths {', '.join(f'{k} {len(x)}' for k, x in latents.items())} frames; "
                                 "expected equal ones")
        most = self.preset.model.max_frames
        last = 0 if self.cfg.data.from_start else max(0, frames - most)
        start = int(torch.randint(last + 1, (), generator=rng))
        names = {"win_latent": "latents", "loss_latent": "loser", "gt_latent": "truth"}
        return {names[key]: x[start:start + most] for key, x in latents.items()} | {
            "style": style, "id": where, "seed": job[1],
            **conditions(words, frames, start, self.preset, self.table)[0]}

    def latents(self, path: Path, posterior: bool, rng: torch.Generator) -> Tensor:
        """(frames, C) as stored, or drawn from a stored posterior. Raises: ValueError for another shape."""
        x = torch.load(path, map_location="cpu", weights_only=True).detach().float()
        channels = self.preset.model.mel_dim
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


def to_batch(items: list[dict], silence: Tensor, preset: Preset) -> Batch:
    """A batch of pairs; its "latents" are the winners."""
    tensors = collate(items, silence, preset)
    for name in {"loser", "truth"} & items[0].keys():
        others = [item | {"latents": item[name]} for item in items]
        tensors[name] = collate(others, silence, preset)["latents"]
    return Batch(tensors, [item["seed"] for item in items], [item["id"] for item in items], [], {})


def precomputed(cfg: DPOConfig, model: DiT, sets: list[Pairs], make_batch: Callable[[list[dict]], Batch],
                held_out: list[tuple[Batch, int]], found: Path | None, share: tuple[int, int]) -> Losses:
    """The losses of `model`, not yet trained, for all pairs that this process is going to see.

    They are kept in a file with a digest of what they depend on, so that a resumed run does not compute them
    again. Raises: UserError if it cannot be written.
    """
    files = [file for pairs in sets for _, own in pairs.pairs for file in own.values()]
    assets = [folder_of_assets(cfg) / name for name in (PHONEMIZER, SILENCE)]
    depends = [sha256(initial_weights(cfg)),
               [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files],
               [sha256(file) for file in assets if file.is_file()],
               share, cfg.batch, cfg.vae_sampled, cfg.sft, cfg.bf16, cfg.fp16, cfg.preset, cfg.max_frames,
               cfg.seed]
    digest = hashlib.sha256(json.dumps(depends).encode()).hexdigest()
    path, device, losses = cfg.out / f"reference-rank{share[0]}.pt", next(model.parameters()).device, {}
    with contextlib.suppress(*READ_ERRORS):                  # there is no file, or a corrupt one
        stored = torch.load(path, weights_only=True)
        losses = stored["losses"] if stored["made_of"] == digest else {}
    saved = len(losses)

    def save() -> None:
        with reading(path, "cannot be written"), replacing(path) as temporary:
            torch.save({"made_of": digest, "losses": losses}, temporary)

    # Batches whose losses are not known, the held-out ones first.
    state = read_json(found / STATE) if found else {"step": 0, "places": None}
    count = max(0, cfg.steps - state["step"]) * cfg.accumulate
    upcoming = epochs(functools.partial(sets[0].order, cfg.seed), cfg.batch, share, state["places"])
    jobs = [(some, place) for some, place in itertools.islice(upcoming, count)
            if not losses.keys() >= {seed for _, seed in some}]
    batches = (batch for batch, _ in held_out if not losses.keys() >= set(batch.seeds))
    more = read_in_order(sets[0], iter(jobs), make_batch, cfg.data) if jobs else ()
    for batch in itertools.chain(batches, more):
        tensors = {k: v.to(device) for k, v in batch.tensors.items()}
        x0, flow_time, _ = song_draws(batch.seeds, tensors["latents"])
        with autocast(device, cfg):
            computed = torch.stack(frozen_losses(model, tensors, x0, flow_time), 1).tolist()
        losses |= dict(zip(batch.seeds, map(tuple, computed)))
        if len(losses) - saved >= SAVE_EVERY:
            save()
            saved = len(losses)
            print(f"{path}: losses of {saved} pairs", flush=True)
    save()
    return losses


def work(cfg: DPOConfig, processes: Processes) -> None:
    """This process's part of training."""
    if cfg.init_from is None:
        raise UserError("--init-from: expected the weights that are to be aligned, or their folder")
    for field in dataclasses.fields(DataSettings):
        if field.name not in DATA and getattr(cfg.data, field.name) != field.default:
            raise UserError(f"--data.{field.name.replace('_', '-')}: has no use: songs come from --pairs")
    if cfg.bf16 and cfg.fsdp:
        raise UserError("--bf16 --fsdp: the model would have weights in bfloat16, its reference in float32")
    device, preset, table, silence = begin(cfg, processes)
    sets, held_out = [Pairs(cfg, preset, table)], []
    make_batch = functools.partial(to_batch, silence=silence, preset=preset)
    if cfg.validation:
        sets.append(Pairs(dataclasses.replace(cfg, pairs=cfg.validation), preset, table))
        held_out = held_out_batches(sets[1], cfg, make_batch, processes)
    found, share = to_resume(cfg, processes), (processes.rank, processes.world)
    model = initial_model(cfg, preset).to(device)
    if cfg.reference == "precomputed":
        reference = precomputed(cfg, model, sets, make_batch, held_out, found, share)
    else:
        reference = copy.deepcopy(model).requires_grad_(False)
    trainer = Trainer(cfg, model, functools.partial(PreferenceObjective, reference=reference, cfg=cfg),
                      processes, device, sha256(initial_weights(cfg)))
    places = trainer.resume(found) if found else None
    jobs = epochs(functools.partial(sets[0].order, cfg.seed), cfg.batch, share, places)
    stream = read_in_order(sets[0], jobs, make_batch, cfg.data, device.type == "cuda")
    fit(trainer, preset, stream, held_out, None)


def main(argv: list[str] | None = None) -> None:
    """Align as the command line says."""
    cfg = parse(DPOConfig, __doc__, argv, RECIPES)
    processes = Processes(hours=1)
    work(cfg, processes)
    processes.close()


if __name__ == "__main__":
    run(main)
