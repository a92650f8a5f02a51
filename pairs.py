"""Pairs of a better and a worse song, to align a model with, from the songs that it sings itself.

    python data.py pairs --manifest prompts.json --model runs/mine/last --out pairs
    python train_dpo.py --pairs pairs/round-1/pairs.json --init-from runs/mine/last

Each prompt is sung several times (sample.py, which goes on where it was stopped), each song gets a score
(evaluate.py), the best and the worst become a pair in the published form. Read `choose`, then `make_pairs`.
Source: the loop of arXiv 2507.20880, which sings, scores, pairs, trains, and begins again.
"""

import contextlib
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cli import pick_device, read_json, replacing
from config import READ_ERRORS, PairsConfig, Preset, SampleConfig, SingSettings, UserError
from hub import locate
from manifest import Song, outputs_of, read_manifest, song_of
from manifest import locate as locate_beside
from processes import Processes
from sample import choosing, frames_of, resolve, sing_many, validate


def choose(scores: list[float], margin: float) -> tuple[int, int] | None:
    """Which of the songs is the best, and which the worst; of equal ones the first.

    None: they differ by no more than the margin.
    """
    best, worst = (scores.index(some) for some in (max(scores), min(scores)))
    return (best, worst) if scores[best] - scores[worst] > margin else None


def asked_for(cfg: PairsConfig) -> SampleConfig:
    """The same as settings of sample.py."""
    common = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(SingSettings)}
    return SampleConfig(**common, manifest=cfg.manifest, out_dir=cfg.out / f"round-{cfg.round}",
                        batch_infer_num=cfg.candidates, format="flac", page=False)


def truth_of(song: Song, entry: dict, frames: int, preset: Preset, cfg: SampleConfig) -> Tensor | None:
    """The posterior (2C, frames) of an entry's gt_latent. Raises: UserError if it is not that."""
    if entry.get("gt_latent") is None:
        return None
    path, channels = locate_beside(entry["gt_latent"], cfg), 2 * preset.model.mel_dim
    try:
        posterior = torch.load(path, map_location="cpu", weights_only=True)
        shape = tuple(posterior.shape)
    except READ_ERRORS as e:
        raise UserError(f"{path}: {' '.join(str(e).split())[:120]}") from None
    if shape[:1] != (channels,) or len(shape) != 2 or abs(shape[1] - frames) > 1:
        raise UserError(f"{path}: {shape}; expected ({channels}, {frames}), as long as the song")
    return posterior


def pair_of(song: Song, entry: dict, preset: Preset, scorer: Callable[[Path, dict], float], margin: float,
            cfg: SampleConfig) -> tuple[dict[int, float], dict | None]:
    """A prompt's scores by seed, and its pair, whose files it writes."""
    outputs = outputs_of(song, cfg)
    records = [read_json(each.account) for each in outputs]
    scores = [scorer(each.song, record) for each, record in zip(outputs, records)]
    by_seed = {record["request"]["seed"]: score for record, score in zip(records, scores)}
    chosen = choose(scores, margin)
    if chosen is None:
        return by_seed, None
    record, frames = records[0], frames_of(records[0]["settings"]["duration"], preset)
    truth = truth_of(song, entry, frames, preset, cfg)
    if truth is not None:
        frames = min(frames, truth.shape[1])
    pair = {"id": song.id, "win_latent": f"pairs/{song.id}.win.pt", "loss_latent": f"pairs/{song.id}.loss.pt",
            "transcription": f"pairs/{song.id}.json", "style": f"pairs/{song.id}.style.pt"}
    with contextlib.ExitStack() as stack:
        def at(name: str) -> Path:
            return stack.enter_context(replacing(cfg.out_dir / name))
        for key, i in zip(("win_latent", "loss_latent"), chosen):
            latents = torch.load(outputs[i].latents, weights_only=True)                       # (T, C)
            torch.save(latents[:frames].clone(), at(pair[key]))
        torch.save(torch.tensor(record["style"]), at(pair["style"]))
        at(pair["transcription"]).write_text(json.dumps({"word": record["word"]}))
        if truth is not None:
            pair["gt_latent"] = f"pairs/{song.id}.gt.pt"
            torch.save(truth[:, :frames].clone(), at(pair["gt_latent"]))
    seeds = list(by_seed)
    return by_seed, pair | {"win_seed": seeds[chosen[0]], "win_score": scores[chosen[0]],
                            "loss_seed": seeds[chosen[1]], "loss_score": scores[chosen[1]]}


def make_pairs(cfg: PairsConfig) -> None:
    """python data.py pairs: sing, score, pair; exit code 1 if a prompt could not be sung or scored."""
    asked, processes = asked_for(cfg), Processes()
    for name, least in (("candidates", 2), ("round", 1), ("margin", 0)):
        if not least <= getattr(cfg, name) < math.inf:
            raise UserError(f"--{name} {getattr(cfg, name)}: expected {least} or more")
    validate(dataclasses.replace(asked, seed=cfg.seed + (cfg.round - 1) * cfg.candidates))
    entries = dict(read_manifest(cfg.manifest, cfg.candidates))
    def listen() -> tuple[Preset, Callable]:
        preset = locate(asked).preset
        return preset, choosing(resolve(asked, preset), pick_device(cfg.device, processes.local))

    if processes.local == 0:
        preset, scorer = listen()                            # one process of each machine downloads
    processes.wait()
    if processes.local:
        preset, scorer = listen()
    sung, rows = sing_many(asked, processes, first=(cfg.round - 1) * cfg.candidates), []
    with contextlib.suppress(OSError):                       # told when a pair is written
        (asked.out_dir / "pairs").mkdir(exist_ok=True)
    for about in [song for song in sung if song["status"] != "failed"][processes.rank::processes.world]:
        name, entry = about["id"], entries[about["id"]]
        try:
            scores, pair = pair_of(song_of(name, entry, asked), entry, preset, scorer, cfg.margin, asked)
            rows.append((name, scores, pair))
            print(f"{name}: {', '.join(f'{score:.3f}' for score in scores.values())}"
                  + ("" if pair else "; no pair"), flush=True)
        except UserError as e:
            print(f'error: song "{name}": {e}', file=sys.stderr, flush=True)
    order, rows = list(entries), [row for part in processes.gather(rows) for row in part]
    rows.sort(key=lambda row: order.index(row[0]))
    pairs = [pair for *_, pair in rows if pair]
    if processes.main:
        with replacing(asked.out_dir / "scores.json") as path:
            path.write_text(json.dumps({"settings": dataclasses.asdict(cfg), "scores": {
                name: scores for name, scores, _ in rows}}, default=str, indent=1))
        with replacing(asked.out_dir / "pairs.json") as path:
            path.write_text(json.dumps(pairs, indent=1))
        print(told(rows, pairs) + f": {asked.out_dir / 'pairs.json'}")
    processes.close()
    if len(rows) < len(entries):
        sys.exit(1)


def told(rows: list[tuple], pairs: list[dict]) -> str:
    """What came of the prompts, in words."""
    scores = [score for _, by_seed, _ in rows for score in by_seed.values()]
    text = f"{len(pairs)} pairs of {len(rows)} prompts, {len(scores)} songs"
    if pairs:
        best, worst = (statistics.mean(pair[name] for pair in pairs) for name in ("win_score", "loss_score"))
        text += f"; mean score {statistics.mean(scores):.3f}, of winners {best:.3f}, of losers {worst:.3f}"
    return text
