"""Pairs of a better and a worse song, to align a model with, from the songs that it sings itself.

    python data.py pairs --manifest prompts.json --model runs/mine/last --out pairs
    python train_dpo.py --config baby-dpo --init-from runs/mine/last --pairs pairs/round-1/pairs.json

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
from sample import SONG_ERRORS, choosing, frames_of, resolve, sing_many, validate

SEEDS = 1000                   # of a round, which is the most candidates that it may have
MADE = ("scores.json", "pairs.json")


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


def tensor_of(path: Path) -> Tensor:
    """A saved tensor. Raises: UserError if it is none."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True).detach()
    except READ_ERRORS as e:
        raise UserError(f"{path}: {' '.join(str(e).split())[:120] or type(e).__name__}") from None


def truth_of(path: Path, frames: int, preset: Preset) -> Tensor:
    """The posterior (2C, frames) of a true song. Raises: UserError if it is not that."""
    posterior, channels = tensor_of(path), 2 * preset.model.mel_dim
    shape = tuple(posterior.shape)
    if shape[:1] != (channels,) or len(shape) != 2 or abs(shape[1] - frames) > 1:
        raise UserError(f"{path}: {shape}; expected ({channels}, {frames}), as long as the song")
    return posterior


def pair_of(song: Song, truth: Path | None, preset: Preset, scorer: Callable[[Path, dict], float],
            margin: float, cfg: SampleConfig) -> tuple[dict[int, float], dict | None]:
    """A prompt's scores by seed, and its pair, whose files it writes."""
    outputs = outputs_of(song, cfg)
    records = [read_json(each.account) for each in outputs]
    scores = [scorer(each.song, record) for each, record in zip(outputs, records)]
    by_seed = {record["request"]["seed"]: score for record, score in zip(records, scores)}
    chosen = choose(scores, margin)
    if chosen is None:
        return by_seed, None
    record, frames = records[0], frames_of(records[0]["settings"]["duration"], preset)
    if truth:
        posterior = truth_of(truth, frames, preset)
        frames = min(frames, posterior.shape[1])             # which may be one less
    pair = {"id": song.id, "win_latent": f"pairs/{song.id}.win.pt", "loss_latent": f"pairs/{song.id}.loss.pt",
            "transcription": f"pairs/{song.id}.json", "style": f"pairs/{song.id}.style.pt"}
    with contextlib.ExitStack() as stack:
        def at(name: str) -> Path:
            return stack.enter_context(replacing(cfg.out_dir / name))
        for key, i in zip(("win_latent", "loss_latent"), chosen):
            torch.save(tensor_of(outputs[i].latents)[:frames].clone(), at(pair[key]))     # (frames, C)
        torch.save(torch.tensor(record["style"]), at(pair["style"]))
        at(pair["transcription"]).write_text(json.dumps({"word": record["word"]}))
        if truth:
            pair["gt_latent"] = f"pairs/{song.id}.gt.pt"
            torch.save(posterior[:, :frames].clone(), at(pair["gt_latent"]))
    seeds = list(by_seed)
    return by_seed, pair | {"win_seed": seeds[chosen[0]], "win_score": scores[chosen[0]],
                            "loss_seed": seeds[chosen[1]], "loss_score": scores[chosen[1]]}


def begin(cfg: PairsConfig, asked: SampleConfig, processes: Processes) -> tuple[Preset, Callable, dict]:
    """The model's preset, the scorer, and each prompt's true song, if it has one; all that can be told before
    anything is sung. The pairs of an earlier run are gone then.

    Raises: UserError.
    """
    for name, least, most in (("candidates", 2, SEEDS), ("round", 1, 2 ** 32), ("margin", 0, math.inf)):
        if not least <= getattr(cfg, name) <= most:
            raise UserError(f"--{name} {getattr(cfg, name)}: expected {least} to {most}")
    validate(dataclasses.replace(asked, seed=cfg.seed + (cfg.round - 1) * SEEDS))
    truths = {name: locate_beside(entry["gt_latent"], asked)
              for name, entry in read_manifest(cfg.manifest, cfg.candidates)
              if isinstance(entry, dict) and isinstance(entry.get("gt_latent"), str)}

    def listen() -> tuple[Preset, Callable]:
        preset = locate(asked).preset
        return preset, choosing(resolve(asked, preset), pick_device(cfg.device, processes.local))

    if processes.local == 0:
        preset, scorer = listen()                            # one process of each machine downloads
    if processes.main:
        for name in MADE:
            (asked.out_dir / name).unlink(missing_ok=True)
    processes.wait()
    if processes.local:
        preset, scorer = listen()
    return preset, scorer, truths


def make_pairs(cfg: PairsConfig) -> None:
    """python data.py pairs: sing, score, pair; exit code 1 if a prompt could not be sung or scored."""
    asked, processes, rows = asked_for(cfg), Processes(), []
    preset, scorer, truths = begin(cfg, asked, processes)
    sung = sing_many(asked, processes, first=(cfg.round - 1) * SEEDS)
    entries = dict(read_manifest(cfg.manifest, cfg.candidates))
    with contextlib.suppress(OSError):                       # told when a pair is written
        (asked.out_dir / "pairs").mkdir(exist_ok=True)
    for about in [song for song in sung if song["status"] != "failed"][processes.rank::processes.world]:
        name = about["id"]
        try:
            song = song_of(name, entries[name], asked)
            scores, pair = pair_of(song, truths.get(name), preset, scorer, cfg.margin, asked)
        except SONG_ERRORS as e:
            text = e if isinstance(e, UserError) else f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
            print(UserError(f'error: song "{name}": {text}'), file=sys.stderr, flush=True)
            continue
        rows.append((name, scores, pair))
        shown = ", ".join(f"{score:.3f}" for score in scores.values())
        print(f"{name}: {shown}{'' if pair else '; no pair'}", flush=True)
    order, rows = list(entries), [row for part in processes.gather(rows) for row in part]
    rows.sort(key=lambda row: order.index(row[0]))
    pairs = [pair for *_, pair in rows if pair]
    if processes.main:
        settings, scores = dataclasses.asdict(cfg), {name: scores for name, scores, _ in rows}
        for name, content in zip(MADE, ({"settings": settings, "scores": scores}, pairs)):
            with replacing(asked.out_dir / name) as path:
                path.write_text(json.dumps(content, default=str, indent=1))
        print(f"{told(rows, pairs)}: {asked.out_dir / MADE[1]}")
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
