"""YAML files of the published code as our settings: `evaluation`, `model`, `data`, `training`, `wandb`.

Read `SINGING` and `TRAINING` (their names and ours), then `translate`. A name counts by its section and its
last part, however deep it stands. docs/jam-0.5.md and docs/training.md have the table.
"""

import os
import sys
from collections.abc import Collection
from pathlib import Path

from config import PRESETS, UserError

JAM = "jam-0.5"


def table(text: str) -> dict[str, list[str]]:
    """Pairs theirs=ours; a name alone is ours, too. Of two of ours, that of train_dpo.py comes first."""
    pairs = (pair.partition("=") for pair in text.split())
    return {theirs: (ours or theirs).split("|") for theirs, _, ours in pairs}


ANYWHERE = table("seed max_frames mixed_precision=dtype|fp16")
# What sample.py reads in every section but those of training.
SINGING = table("""
    checkpoint_path=model test_set_path=manifest output_dir=out_dir vae_type=vae batch_infer_num steps
    dual_cfg=guidance_weights cfg_strength=guidance_weights fix_dual_cfg=guidance cfg_range=guidance_range
    sway_sampling_coef=sway negative_style_prompt=negative_style ignore_style use_prompt_style num_style_secs
    random_crop_style""")
# What training reads in each section.
TRAINING = {
    "data": table("""
        shards=pairs|data.shards train_path=pairs|data.shards ids=data.ids min_duration=data.min_duration
        resample_duration=data.resample_duration from_start=data.from_start style_index=data.style_index
        shuffle=data.shuffle shuffle_buffer=data.window replacement=data.replacement vae_sampled
        resampled=data.replacement num_workers=data.workers batch_size=batch"""),
    "training": table("""
        checkpoint_path=init_from pretrained_path=init_from output_dir=out max_steps=steps batch_size=batch
        gradient_accumulation_steps=accumulate learning_rate=lr lr warmup_steps=warmup weight_decay
        num_warmup_updates=warmup max_grad_norm=clip use_ema=ema ema_decay=ema gradient_checkpointing
        save_steps=save_every save_every log_steps=log_every log_every beta sft sft_weight vae_sampled"""),
    "wandb": table("project=wandb name=wandb mode=wandb_mode"),
    "model": table("style_drop_prob=drop_style text_drop_prob=drop_text"),
}
# What is what it is: another value is another model.
FIXED = {name: getattr(PRESETS[JAM].model, name) for name in (
    "dim", "depth", "ff_mult", "mel_dim", "text_num_embeds", "text_dim", "cond_dim", "conv_layers")} | {
    "sampling_rate": 44100, "downsample_rate": 2048, "lrc_upsample_factor": 4, "use_implicit_duration": True,
    "long_skip_connection": False}
# Without effect in the published code, or here.
IGNORED = """heads dim_head dropout odeint_options cond_drop_prob audio_drop_prob sigma vocab_char_map no_edit
    batch_size num_samples silence_latent_path phonemizer_path entity tags""".split()
# In YAML, no is false.
PRECISIONS = {"fp16": "float16", "bf16": "bfloat16", "no": "float32", "False": "float32"}


def leaves(values: dict, place: str = "") -> list[tuple[str, object]]:
    """Every name with those above it, training.lr, and its value."""
    return [leaf for name, value in values.items() for leaf in (
        leaves(value, f"{place}{name}.") if isinstance(value, dict) else [(f"{place}{name}", value)])]


def is_original(values: dict) -> bool:
    """Whether the values of a file are those of the published code; `data` alone is a group of ours."""
    return any(isinstance(values.get(name), dict) for name in ("evaluation", "model", "training", "wandb"))


def translate(values: dict, settings: Collection[str], path: Path) -> dict[str, object]:
    """The settings that such a file means, of those that a command has; a note names what means nothing.

    Raises: UserError for names that are not known, and for sizes of another model.
    """
    singing, given, made, unknown, ignored = "manifest" in settings, {}, {}, [], []
    foreign = ("training", "wandb") if singing else ("evaluation",)
    for place, value in leaves(values):
        section, name = place.partition(".")[0], place.rpartition(".")[2]
        names = ANYWHERE | (SINGING if singing else TRAINING.get(section, {}))
        own = next((ours for ours in names.get(name, ())
                    if ours in settings and section not in foreign), None)
        if name in FIXED:
            if value not in (None, FIXED[name]):
                raise UserError(f"{path}: {place} {value}: expected {FIXED[name]}, as in {JAM}")
        elif own and value is not None:
            given[name] = made[own] = value
        elif not own:
            known = {*ANYWHERE, *SINGING, *TRAINING.get(section, ()), *IGNORED}
            (ignored if name in known else unknown).append(place)
    if unknown:
        raise UserError(f"{path}: unknown: {', '.join(unknown)}; docs/jam-0.5.md and docs/training.md list "
                        "the published code's names that are understood")
    if ignored and os.environ.get("RANK", "0") == "0":       # torchrun's other processes would repeat it
        print(f"note: {path}: without meaning here: {', '.join(ignored)}", file=sys.stderr)
    made.setdefault("model" if singing else "preset", JAM)
    return made | reshaped(given, made, path)


def reshaped(given: dict[str, object], made: dict[str, object], path: Path) -> dict[str, object]:
    """The settings of ours whose values are not theirs. Args: given, by their names; made, by ours."""
    more = {}
    if "cfg_strength" in given and "dual_cfg" not in given:
        single = given["cfg_strength"]
        more |= {"guidance": "single" if single else "none", "guidance_weights": [single] if single else None}
    elif given.keys() & {"dual_cfg", "fix_dual_cfg"}:
        more["guidance"] = "dual_fix" if given.get("fix_dual_cfg") else "dual"
    if "mixed_precision" in given:
        dtype = PRECISIONS.get(str(given["mixed_precision"]))
        if dtype is None:
            raise UserError(f"{path}: mixed_precision {given['mixed_precision']}: expected fp16, bf16 or no")
        more |= {"dtype": dtype} if "dtype" in made else {
            "fp16": dtype == "float16", "bf16": dtype == "bfloat16"}
    if "vae_type" in given:
        more["vae"] = str(given["vae_type"]).replace("_", "-")
    negative = Path(str(given.get("negative_style_prompt")))
    if negative.name == "vocal.npy" and not negative.is_file():
        more["negative_style"] = "vocal"                     # the published one, which is fetched
    if "use_ema" in given:
        more["ema"] = given.get("ema_decay", 0.999) if given["use_ema"] else 0.0
    if given.get("shuffle") is False:
        more["data.replacement"] = False
    if given.keys() & {"project", "name", "mode"}:
        run = "/".join(str(given[name]) for name in ("project", "name") if name in given)
        off = {"wandb": None, "wandb_mode": "offline"}
        more |= off if given.get("mode") == "disabled" else {"wandb": run}
    return more
