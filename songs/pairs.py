"""Pairs of a better and a worse song: a model sings them itself and is then aligned with them.

    python -m songs.pairs --manifest prompts.json --model runs/mine/last --out pairs
    python train_dpo.py --config baby-dpo --init-from runs/mine/last --pairs pairs/round-1/pairs.json

Each prompt is sung several times (songs/takes.py, which continues where it was stopped) and each song gets a
score (evaluate.py); the best and the worst become a pair in the published form. Read `choose`, `pair_of`,
then `make_pairs`. Source: the loop of arXiv 2507.20880, which sings, scores, pairs, trains, and repeats.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import BinaryIO

import torch
from torch import Tensor

from config import Preset, SampleConfig, SingSettings, UserError, within
from sample import Model, Prompts, frames_of
from songs.asked import resolve, validate
from songs.files import outputs_of
from songs.manifest import Song, locate_beside, read_manifest, song_of
from songs.takes import chooser_of, reported, sing_manifest
from support.cli import parse, run
from support.files import make_folder, read_json, reading, replacing, write_json
from support.hub import locate
from support.processes import Processes, pick_device

SEEDS = 1000                   # of a round: the most candidates that it can have
MADE = ("scores.json", "pairs.json")


@dataclasses.dataclass(frozen=True)
class PairsConfig(SingSettings):
    """Let a model sing each prompt several times, and pair its best song with its worst."""
    # pairs
    manifest: Path = Path("prompts.json")       # prompts: a manifest as sample.py takes it; an entry may
                                                #   have gt_latent, the posterior of a true song
    out: Path = Path("pairs")                   # folder; train_dpo.py takes its round-N/pairs.json
    round: int = within(1, 1, 2 ** 32)          # number of the round; each has seeds of its own
    candidates: int = within(4, 2, SEEDS)       # songs of each prompt, 2 to 1000
    margin: float = within(0.0, 0)              # skip prompts whose scores differ by no more than this


def choose(scores: list[float], margin: float) -> tuple[int, int] | None:
    """The indices of the best and the worst song; ties go to the first.

    Returns: None if they differ by no more than the margin.
    """
    best, worst = (scores.index(some) for some in (max(scores), min(scores)))
    return (best, worst) if scores[best] - scores[worst] > margin else None


def tensor_of(path: Path) -> Tensor:
    """A saved tensor. Raises: UserError if the file holds none."""
    with reading(path):
        return torch.load(path, map_location="cpu", weights_only=True).detach()


def pair_of(song: Song, truth: Path | None, preset: Preset, scorer: Callable[[Path, dict], float],
            margin: float, cfg: SampleConfig) -> tuple[dict[int, float], dict | None]:
    """Score a prompt's songs and write its pair. Returns: scores by seed; the pair, or None.

    Args: truth, the file of a true song's posterior (2C, frames).
    Raises: UserError for a posterior of another shape.
    """
    outputs = outputs_of(song, cfg)
    records = [read_json(each.account) for each in outputs]
    scores = [scorer(each.song, record) for each, record in zip(outputs, records)]
    seeds = [record["request"]["seed"] for record in records]
    chosen, by_seed = choose(scores, margin), dict(zip(seeds, scores))
    if chosen is None:
        return by_seed, None
    record, frames = records[0], frames_of(records[0]["settings"]["duration"], preset)
    if truth:
        posterior, channels = tensor_of(truth), 2 * preset.model.mel_dim
        shape = tuple(posterior.shape)
        if len(shape) != 2 or shape[0] != channels or abs(shape[1] - frames) > 1:
            raise UserError(f"{truth}: {shape}; expected ({channels}, {frames}), as long as the song")
        frames = min(frames, shape[1])
    pair = {"id": song.id}
    with contextlib.ExitStack() as stack:
        def at(key: str, ending: str) -> BinaryIO:           # torch.save would write a path's name into it
            pair[key] = f"pairs/{song.id}.{ending}"
            path = stack.enter_context(replacing(cfg.out_dir / pair[key]))
            return stack.enter_context(path.open("wb"))

        for name, i in zip(("win", "loss"), chosen):
            latents = tensor_of(outputs[i].latents)[:frames].clone()                      # (frames, C)
            torch.save(latents, at(f"{name}_latent", f"{name}.pt"))
        at("transcription", "json").write(json.dumps({"word": record["word"]}).encode())
        torch.save(torch.tensor(record["style"]), at("style", "style.pt"))
        if truth:
            torch.save(posterior[:, :frames].clone(), at("gt_latent", "gt.pt"))
    for name, i in zip(("win", "loss"), chosen):
        pair |= {f"{name}_seed": seeds[i], f"{name}_score": scores[i]}
    return by_seed, pair


def make_pairs(cfg: PairsConfig) -> None:
    """Sing, score and pair; exit code 1 if a prompt could not be sung or scored."""
    common = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(SingSettings)}
    asked = SampleConfig(**common, manifest=cfg.manifest, out_dir=cfg.out / f"round-{cfg.round}",
                         batch_infer_num=cfg.candidates, format="flac", page=False)
    first, processes, rows = (cfg.round - 1) * SEEDS, Processes(), {}

    # Mistakes are found before anything is sung; then an earlier run's pairs are gone.
    validate(dataclasses.replace(asked, seed=cfg.seed + first))
    entries = dict(read_manifest(cfg.manifest, cfg.candidates))
    truths = {name: locate_beside(entry["gt_latent"], asked) for name, entry in entries.items()
              if isinstance(entry, dict) and isinstance(entry.get("gt_latent"), str)}
    preset = processes.one_first(lambda: locate(asked)).preset
    device = pick_device(cfg.device, processes.local)
    scorer = processes.one_first(lambda: chooser_of(resolve(asked, preset, device), device))
    make_folder(cfg.out)
    processes.hold(cfg.out)
    if processes.main:
        for name in MADE:
            (asked.out_dir / name).unlink(missing_ok=True)
    processes.wait()

    sung = sing_manifest(asked, processes, (Prompts, Model), first)
    make_folder(asked.out_dir / "pairs")
    names = [song["id"] for song in sung if song["status"] != "failed"]
    for name in names[processes.rank::processes.world]:
        with reported(name):
            rows[name] = scores, pair = pair_of(song_of(name, entries[name], asked), truths.get(name), preset,
                                                scorer, cfg.margin, asked)
            shown = ", ".join(f"{score:.3f}" for score in scores.values())
            print(f"{name}: {shown}{'' if pair else '; no pair'}", flush=True)
    made = {name: row for part in processes.gather(rows) for name, row in part.items()}
    scores = {name: made[name][0] for name in entries if name in made}
    pairs = [made[name][1] for name in scores if made[name][1]]
    if processes.main:
        write_json(asked.out_dir / MADE[0], {"settings": dataclasses.asdict(cfg), "scores": scores})
        write_json(asked.out_dir / MADE[1], pairs)
        values = [score for by_seed in scores.values() for score in by_seed.values()]
        text = f"{len(pairs)} pairs of {len(scores)} prompts, {len(values)} songs"
        if pairs:
            best, worst = (mean(pair[f"{name}_score"] for pair in pairs) for name in ("win", "loss"))
            text += f"; mean score {mean(values):.3f}, of winners {best:.3f}, of losers {worst:.3f}"
        print(f"{text}: {asked.out_dir / MADE[1]}")
    processes.close()
    if len(scores) < len(entries):
        sys.exit(1)


if __name__ == "__main__":
    run(lambda: make_pairs(parse(PairsConfig, __doc__, name="python -m songs.pairs")))
