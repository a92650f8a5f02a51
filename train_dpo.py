"""Preference alignment: from pairs of a better and a worse song, Diffusion-DPO for flow matching.

    torchrun --nproc_per_node=8 train_dpo.py --config dpo --init-from model.safetensors --pairs pairs.json

Read `preference` (the loss), `PreferenceObjective` (both songs of a pair at the same noise and flow time,
before the model that is trained and before a frozen one), then `Pairs`, then `losses_before` (the frozen
model's losses, worked out before the run). The loop, its checkpoints and its log are those of train.py.
Source: arXiv 2507.20880 and the published pairs format; pairs.py makes such pairs.
"""

import contextlib
import copy
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cli import parse, read_json, replacing, run
from config import PHONEMIZER, READ_ERRORS, RECIPES, SILENCE, DPOConfig, Preset, UserError
from data import Batch, collate, conditions, rounds, seeded, words_of
from hub import sha256
from model import DiT, flow_loss
from phonemes import SymbolTable
from processes import Processes
from train import STATE, Trainer, begin, fit, folder_of_assets, fresh_model, given_weights, held_out_batches
from train import song_draws, starting_point

SFT = ("none", "win", "gt")
REFERENCES = ("float32", "bfloat16", "precomputed")
KEPT_EVERY = 2000              # pairs; then the losses that were worked out before the run are written
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


Losses = dict[int, tuple[float, float]]      # of winner and loser, by the seed of their draws


class PreferenceObjective(nn.Module):
    """The DPO loss of a batch of pairs, perhaps with flow matching on winners or ground truth."""

    def __init__(self, model: DiT, reference: DiT | Losses, cfg: DPOConfig):
        super().__init__()
        self.model, self.cfg = model, cfg
        self.frozen = [reference]                    # in a list, so that it is not trained, shared out, saved

    def forward(self, batch: dict[str, Tensor], seeds: list[int]) -> dict[str, Tensor]:
        """Returns: what train.py logs, each (B,). Nothing is dropped."""
        x0, flow_time, _ = song_draws(seeds, batch["latents"])
        if isinstance(self.frozen[0], dict):
            known = torch.tensor([self.frozen[0][seed] for seed in seeds], device=x0.device)      # (B, 2)
            return self.losses(batch, x0, flow_time, known.unbind(1))
        return self.losses(batch, x0, flow_time, frozen_losses(self.frozen[0], batch, x0, flow_time))

    def losses(self, batch: dict[str, Tensor], x0: Tensor, flow_time: Tensor,
               reference: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """As `forward`; reference, the frozen model's losses of winners and losers, (B,) each."""
        pair = [batch["latents"], batch["loser"]]
        songs = [*pair, batch["truth"]] if self.cfg.sft == "gt" else pair
        policy = losses_of(self.model, songs, batch, x0, flow_time)
        loss, inside = preference(policy[:2], reference, self.cfg.beta)
        kept = {"none": torch.zeros_like(loss), "win": policy[0], "gt": policy[-1]}[self.cfg.sft]
        return {"loss": loss + self.cfg.sft_weight * kept, "dpo_loss": loss, "inside": inside,
                "accuracy": (inside > 0).float(), "policy_loss": (policy[0] + policy[1]) / 2,
                "reference_loss": (reference[0] + reference[1]) / 2, "flow_time": flow_time}


@torch.no_grad()
def frozen_losses(reference: DiT, batch: dict[str, Tensor], x0: Tensor,
                  flow_time: Tensor) -> tuple[Tensor, ...]:
    """The flow losses (B,) of winners and of losers before the model that stays."""
    return losses_of(reference, [batch["latents"], batch["loser"]], batch, x0, flow_time)


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
            if not isinstance(entries, list):
                raise UserError(f"{path}: expected a JSON list of {{{', '.join(KEYS)}}}")
            if not entries:
                raise UserError(f"{path}: has no pairs; data.py pairs finds more with a lower --margin")
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
            content = json.loads(files["transcription"].read_text(encoding="utf-8"))
            words = [(*word, [(p["text"], p["start"], p["end"]) for p in about.get("phones", ())])
                     for word, about in zip(words_of(content), content["word"])]
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


def jobs_of(pairs: Pairs, cfg: DPOConfig, share: tuple[int, int],
            places: list[dict] | None) -> Iterator[tuple[list, dict]]:
    """The items of each batch of one training process, without end, and the place after it."""
    place = places[0] if places else {"epoch": 0, "songs": 0}
    return rounds(functools.partial(pairs.order, cfg.seed), cfg.batch, *share, place)


def losses_before(model: DiT, batches: Iterable[tuple[list[int], Callable[[], Batch]]], made_of: str,
                  path: Path, cfg: DPOConfig) -> Losses:
    """The losses of `model`, which is about to be trained, for batches, each its seeds and how it is read.

    They are kept in a file with a digest of what they are made of, so that a run that goes on does not begin
    again. Raises: UserError if it cannot be written.
    """
    losses = {}
    with contextlib.suppress(*READ_ERRORS):                  # there is none, or it is broken
        stored = torch.load(path, weights_only=True)
        losses = stored["losses"] if stored["made_of"] == made_of else {}
    saved, device = len(losses), next(model.parameters()).device

    def save() -> None:
        try:
            with replacing(path) as temporary:
                torch.save({"made_of": made_of, "losses": losses}, temporary)
        except RuntimeError as e:                            # torch's, of a full disk
            raise UserError(f"{path}: cannot be written: {' '.join(str(e).split())[:120]}") from None

    for seeds, read in batches:
        if all(seed in losses for seed in seeds):
            continue
        tensors = {k: v.to(device) for k, v in read().tensors.items()}
        x0, flow_time, _ = song_draws(seeds, tensors["latents"])
        with torch.autocast(device.type, torch.bfloat16, enabled=cfg.bf16):
            found = torch.stack(frozen_losses(model, tensors, x0, flow_time), 1).tolist()
        losses |= dict(zip(seeds, map(tuple, found)))
        if len(losses) - saved >= KEPT_EVERY:
            save()
            saved = len(losses)
            print(f"{path}: losses of {saved} pairs", flush=True)
    save()
    return losses


def precomputed(cfg: DPOConfig, model: DiT, sets: list[Pairs], read: Callable[[list], Batch],
                held_out: list[tuple[Batch, int]], found: Path | None, share: tuple[int, int]) -> Losses:
    """The losses of the model, as it begins, for all that this process is going to see of `sets`."""
    state = read_json(found / STATE) if found else {"step": 0, "places": None}
    count = max(0, cfg.steps - state["step"]) * cfg.accumulate
    jobs = (jobs for jobs, _ in itertools.islice(jobs_of(sets[0], cfg, share, state["places"]), count))
    batches = itertools.chain(((batch.seeds, lambda batch=batch: batch) for batch, _ in held_out),
                              (([seed for _, seed in some], functools.partial(read, some)) for some in jobs))
    weights, assets = given_weights(cfg), folder_of_assets(cfg)
    files = [file for some in sets for _, own in some.pairs for file in own.values()]
    of = [sha256(weights), [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files],
          [sha256(file) for file in (assets / PHONEMIZER, assets / SILENCE) if file.is_file()],
          share, cfg.batch, cfg.vae_sampled, cfg.sft, cfg.bf16, cfg.preset, cfg.max_frames, cfg.seed]
    made_of = hashlib.sha256(json.dumps(of).encode()).hexdigest()
    return losses_before(model, batches, made_of, cfg.out / f"reference-rank{share[0]}.pt", cfg)


def check(cfg: DPOConfig) -> None:
    """Raise UserError for a setting out of its range."""
    if cfg.sft not in SFT:
        raise UserError(f"--sft {cfg.sft}: expected one of {', '.join(SFT)}")
    if cfg.reference not in REFERENCES:
        raise UserError(f"--reference {cfg.reference}: expected one of {', '.join(REFERENCES)}")
    if not cfg.beta > 0 or not cfg.sft_weight >= 0:
        raise UserError(f"--beta {cfg.beta}, --sft-weight {cfg.sft_weight}: expected above 0, 0 or more")
    if cfg.init_from is None:
        raise UserError("--init-from: expected the weights that are to be aligned, or their folder")


def work(cfg: DPOConfig, processes: Processes) -> None:
    """This process's part of training."""
    check(cfg)
    device, preset, table, silence = begin(cfg, processes)
    sets, held_out = [Pairs(cfg, preset, table)], []
    put_together = functools.partial(together, silence=silence, preset=preset)
    if cfg.validation:
        sets.append(Pairs(dataclasses.replace(cfg, pairs=cfg.validation), preset, table))
        held_out = held_out_batches(sets[1], cfg, put_together, processes)
    found, share = starting_point(cfg, processes), (processes.rank, processes.world)

    def read(jobs: list) -> Batch:
        return put_together([sets[0][job] for job in jobs])

    model = fresh_model(cfg, preset).to(device)
    if cfg.reference == "precomputed":
        reference = precomputed(cfg, model, sets, read, held_out, found, share)
    else:
        reference = copy.deepcopy(model).requires_grad_(False).to(getattr(torch, cfg.reference))
    trainer = Trainer(cfg, model, functools.partial(PreferenceObjective, reference=reference, cfg=cfg),
                      processes, device, sha256(given_weights(cfg)))
    places = trainer.resume(found) if found else None
    stream = (dataclasses.replace(read(jobs), place=after)
              for jobs, after in jobs_of(sets[0], cfg, share, places))
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
