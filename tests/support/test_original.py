"""support/original.py: settings files of the published code, as each command reads them."""

import re
from pathlib import Path

import pytest
from conftest import ROOT

from config import PRESETS, RECIPES, DPOConfig, SampleConfig, TrainConfig, UserError
from support.cli import parse, settings_of
from support.original import ANYWHERE, FIXED, IGNORED, SINGING, TRAINING

INFER = """
seed: 42
evaluation:
  checkpoint_path: jam.safetensors
  test_set_path: inputs/input.json
  output_dir: outputs
  batch_size: 4
  batch_infer_num: 2
  use_prompt_style: true
  random_crop_style: true
  num_style_secs: 20
  ignore_style: false
  negative_style_prompt: public/vocal.npy
  vae_type: stable_audio
  mixed_precision: fp16
model:
  cfm: {max_frames: 5000, no_edit: true, steps: 32, dual_cfg: [3, 2], cfg_range: [0.1, 1]}
  dit: {dim: 1408, depth: 16, heads: 20, mel_dim: 64}
"""
PRETRAIN = """
model:
  cfm: {max_frames: 2000, steps: 50, style_drop_prob: 0.2, text_drop_prob: 0.4}
  dit: {dim: 1408, dropout: 0.1}
data:
  shards: "songs-{000000..000485}.tar"
  ids: songs.jsonl
  resample_duration: 150
  shuffle: false
  batch_size: 3
  num_workers: 16
training:
  max_steps: 1000
  learning_rate: 7.5e-5
  warmup_steps: 10
  gradient_accumulation_steps: 2
  max_grad_norm: 10
  use_ema: true
  ema_decay: 0.99
  mixed_precision: fp16
  gradient_checkpointing: true
  output_dir: out
  save_every: 100
  seed: 7
wandb: {project: jam, name: first, mode: offline, entity: us}
evaluation: {output_dir: elsewhere, seed: 3}
"""
DPO = """
data: {shards: [a.json, b.json], vae_sampled: true}
training: {checkpoint_path: start.safetensors, beta: 500, sft: win, mixed_precision: no}
wandb: {project: jam, mode: disabled}
"""


def read(cls, text: str, folder: Path, *argv: str):
    path = folder / "given.yaml"
    path.write_text(text)
    return parse(cls, "", ["--config", str(path), *argv], RECIPES)


def mistake(cls, text: str, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(cls, text, folder)
    assert str(caught.value).isprintable()
    return str(caught.value).removeprefix(f"{folder}/")


def test_singing(tmp_path, capsys):
    """A name of theirs that is refused, or that sets something else; the seed that their code never reads."""
    got = read(SampleConfig, INFER, tmp_path)
    assert got == SampleConfig(
        model="jam.safetensors", manifest=Path("inputs/input.json"), out_dir=Path("outputs"), seed=42,
        batch_infer_num=2, use_prompt_style=True, random_crop_style=True, num_style_secs=20.0,
        negative_style="vocal", vae="stable-audio", dtype="float16", steps=32, guidance="dual",
        guidance_weights=(3.0, 2.0), guidance_range=(0.1, 1.0))
    assert capsys.readouterr() == ("", f"note: {tmp_path}/given.yaml: without meaning here: evaluation."
                                   "batch_size, model.cfm.max_frames, model.cfm.no_edit, model.dit.heads\n")
    assert read(SampleConfig, INFER, tmp_path, "--seed", "1", "--vae", "x").vae == "x"
    assert read(SampleConfig, "evaluation: {seed: 3}", tmp_path) == SampleConfig(model="jam-0.5", seed=3)
    (tmp_path / "vocal.npy").touch()
    own = read(SampleConfig, f"evaluation: {{negative_style_prompt: {tmp_path}/vocal.npy}}", tmp_path)
    assert own.negative_style == f"{tmp_path}/vocal.npy"


@pytest.mark.parametrize("given, mode, weights", [
    ("dual_cfg: [3, 2], fix_dual_cfg: true", "dual_fix", (3.0, 2.0)), ("cfg_strength: 4", "single", (4.0,)),
    ("fix_dual_cfg: true", "dual_fix", None), ("cfg_strength: 0", "none", None),
    ("dual_cfg: null, cfg_strength: 2", "single", (2.0,)), ("steps: 9", None, None)])
def test_guidance(given, mode, weights, tmp_path):
    """Weights of one mode in another."""
    got = read(SampleConfig, f"evaluation: {{{given}}}", tmp_path)
    assert (got.guidance, got.guidance_weights) == (mode, weights)


def test_training(tmp_path, capsys):
    """What a template leaves out is the published recipe's, not the embedded model's."""
    got, recipe = read(TrainConfig, PRETRAIN, tmp_path), RECIPES["pretrain"]
    assert (got.preset, got.max_frames, got.steps, got.batch, got.accumulate) == ("jam-0.5", 2000, 1000, 3, 2)
    assert (got.lr, got.warmup, got.clip, got.ema, got.seed) == (7.5e-5, 10, 10.0, 0.99, 7)
    assert (got.fp16, got.bf16, got.gradient_checkpointing, got.out) == (True, False, True, Path("out"))
    assert (got.drop_style, got.drop_text, got.save_every) == (0.2, 0.4, 100)
    assert (got.wandb, got.wandb_mode) == ("jam/first", "offline")
    data = got.data
    assert (data.shards, data.ids) == (("songs-{000000..000485}.tar",), Path("songs.jsonl"))
    assert (data.shuffle, data.replacement, data.resample_duration, data.workers) == (False, False, 150.0, 16)
    assert (got.decay, got.log_every) == (recipe.decay, recipe.log_every) and recipe.decay == 1
    assert capsys.readouterr().err == (
        f"note: {tmp_path}/given.yaml: without meaning here: model.cfm.steps, model.dit.dropout, "
        "wandb.entity, evaluation.output_dir, evaluation.seed\n")
    assert read(TrainConfig, "training: {use_ema: false, ema_decay: 0.9}", tmp_path).ema == 0
    assert read(TrainConfig, "training: {mixed_precision: bf16}", tmp_path).bf16


def test_preference(tmp_path):
    """Pairs taken for shards; `no`, which YAML reads as false."""
    got = read(DPOConfig, DPO, tmp_path)
    assert (got.pairs, got.vae_sampled, got.beta, got.sft) == (("a.json", "b.json"), True, 500.0, "win")
    assert (got.init_from, got.bf16, got.fp16, got.wandb) == (Path("start.safetensors"), False, False, None)
    assert (got.lr, got.accumulate, got.preset) == (5e-7, 4, "jam-0.5")


@pytest.mark.parametrize("cls, text, want", [
    (TrainConfig, "training: {lr: 1, lrr: 2, deep: {er: null}}",
     "given.yaml: unknown: training.lrr, training.deep.er; docs/"),
    (SampleConfig, "evaluation: {}\nextra: 1", "given.yaml: unknown: extra; docs/"),
    (SampleConfig, "model: {name: x}", "given.yaml: unknown: model.name; docs/"),
    (TrainConfig, "model: {dit: {dim: 512}}", "given.yaml: model.dit.dim 512: expected 1408, as in jam-0.5"),
    (TrainConfig, "training: {mixed_precision: fp8}", "given.yaml: mixed_precision fp8: expected fp16, bf16"),
    (TrainConfig, "training: {learning_rate: fast}", "given.yaml: lr fast: expected number")])
def test_mistakes(cls, text, want, tmp_path):
    """A name that is passed over, or an error that does not say where."""
    assert mistake(cls, text, tmp_path).startswith(want)


def test_our_own_files_stay_ours(tmp_path):
    """A group of our settings taken for a file of theirs."""
    assert read(TrainConfig, "data: {window: 3}\nlr: 1", tmp_path) == parse(
        TrainConfig, "", ["--data.window", "3", "--lr", "1"])
    assert read(SampleConfig, "model: jam-0.5", tmp_path).model == "jam-0.5"


def test_names():
    """A name that leads nowhere, or that docs/ do not tell of."""
    known = settings_of(SampleConfig).keys() | settings_of(DPOConfig).keys()
    tables = [ANYWHERE, SINGING, *TRAINING.values()]
    assert {ours for table in tables for names in table.values() for ours in names} <= known
    assert PRESETS["jam-0.5"].model.dim == FIXED["dim"]
    text = "".join((ROOT / "docs" / name).read_text() for name in ("jam-0.5.md", "training.md"))
    told = set(re.findall(r"`(?:evaluation\.)?(\w+)`", text))
    assert {name for table in (*tables, FIXED, IGNORED) for name in table} <= told
