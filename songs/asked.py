"""What was asked for, checked and completed, before any work is done. Read `validate`, then `resolve`."""

import dataclasses
import importlib.util
import math
import os
import shutil

import torch

from config import FAST, GUIDANCE_WEIGHTS, Preset, SampleConfig, UserError
from support.processes import pick_dtype


def validate(cfg: SampleConfig) -> None:
    """Raise UserError for settings that do not go together, or libraries that are missing."""
    for library in ("mutagen", "PIL"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"{library} is not installed: pip install -r requirements.txt")
    if cfg.compile and shutil.which(os.environ.get("CXX", "c++")) is None:
        raise UserError("--compile true: needs a C++ compiler: g++, clang++, or what CXX names")
    most, manifest = max(cfg.batch_infer_num, cfg.best_of), cfg.manifest is not None
    if cfg.seed > 2 ** 63 - most:
        raise UserError(f"--seed {cfg.seed}: expected 0 to {2 ** 63 - most}, for {most} songs with their own")
    if cfg.best_of > 1 and cfg.batch_infer_num > 1:
        raise UserError(f"--best-of {cfg.best_of}: chooses one song; leave out --batch-infer-num")
    if cfg.random_crop_style and cfg.style_start:
        raise UserError(f"--random-crop-style begins anywhere; leave out --style-start {cfg.style_start}")
    if not cfg.out.name:
        raise UserError(f"--out {cfg.out}: expected a file's name")
    if manifest != (cfg.out_dir is not None):
        raise UserError("--manifest and --out-dir: one needs the other")
    if manifest and (cfg.lyrics, cfg.out) != (SampleConfig.lyrics, SampleConfig.out):
        raise UserError("--manifest names the lyrics, --out-dir the songs; leave out --lyrics and --out")
    if manifest and (cfg.from_, cfg.to) != (None, None):
        raise UserError("--from and --to: a part of one song; leave them out with --manifest")
    if cfg.edit and (manifest or (cfg.from_, cfg.to) != (None, None)):
        raise UserError(f"--edit {cfg.edit}: edits one whole song; leave out --manifest, --from and --to")
    if cfg.format and not manifest:
        raise UserError(f"--format {cfg.format}: needs --manifest; the ending of --out is one song's format")
    if cfg.use_prompt_style and not manifest:
        raise UserError("--use-prompt-style: needs --manifest; one song's style in words is --style-text")
    if cfg.ignore_style and (cfg.style or cfg.style_text or cfg.use_prompt_style):
        raise UserError("--ignore-style: sings without style; leave out the style that is given, too")


def resolve(cfg: SampleConfig, preset: Preset, device: torch.device) -> SampleConfig:
    """The settings, with the model's values where none were given, and the type that `auto` means here.

    Raises: UserError for guidance weights or a range that do not fit.
    """
    def given(value: object, default: object) -> object:
        return default if value is None else value

    mode = given(cfg.guidance, preset.guidance.mode)
    needed = GUIDANCE_WEIGHTS[mode]
    weights = given(cfg.guidance_weights, preset.guidance.weights if needed else ())
    bounds = given(cfg.guidance_range, preset.guidance.range)
    if len(weights) != needed or not all(map(math.isfinite, weights)):
        raise UserError(f"--guidance {mode} takes {needed} finite weights, not {weights}"
                        + "; these are the model's: give --guidance-weights" * (not cfg.guidance_weights))
    if len(bounds) != 2 or not bounds[0] <= bounds[1]:
        raise UserError(f"--guidance-range {bounds}: expected two flow times, the lower one first")
    sampler = FAST if cfg.fast else {name: getattr(preset, name) for name in FAST}
    return dataclasses.replace(
        cfg, **{name: given(getattr(cfg, name), value) for name, value in sampler.items()}, fast=False,
        threads=given(cfg.threads, torch.get_num_threads()), guidance=mode, guidance_range=bounds,
        guidance_weights=weights or None, negative_style=given(cfg.negative_style, preset.negative_style),
        frames=given(cfg.frames, "song" if preset.trim else "window"), dtype=pick_dtype(cfg.dtype, device),
        recogniser=given(cfg.recogniser, "ear" if preset.codec.kind == "sung" else "wav2vec2"))
