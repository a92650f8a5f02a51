"""The one place that maps the golden names of the original to this project's names.

Golden values: numbers computed with the published inference code of JAM-0.5 on a CPU in float32;
tests/golden/ holds them. Weights are made by a rule (`rule_weights`) or stored (compact).
"""

import dataclasses
import math
import zlib

import torch
from torch import Tensor, nn

from config import CodecConfig, DPOConfig, Guidance, ModelConfig, Preset
from data import collate as put_together
from data import conditions
from model import DiT, drop, flow_loss, load_weights
from phonemes import SymbolTable
from sampler import sample as sample_latents
from sampler import time_grid
from train_dpo import PreferenceObjective, frozen_losses
from vae import Oobleck, fit

SCALARS = ("start_time", "duration_abs", "duration_rel")
SIZES = [field.name for field in dataclasses.fields(ModelConfig)]


def error(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def make_model(config: dict, weights: dict[str, Tensor]) -> nn.Module:
    """Network of the golden configuration with weights under their published names, loaded strictly.

    The published code always has 32 heads and a conditioning width of 512, and not every golden file says so.
    """
    config = {"heads": 32, "cond_dim": 512} | config
    model = DiT(ModelConfig(**{name: config[name] for name in SIZES}))
    load_weights(model, weights)
    return model.eval()


def rule_weights(shapes: dict[str, tuple]) -> dict[str, Tensor]:
    """The golden weight rule: a generator for each tensor, seeded with the CRC of its name."""
    weights = {}
    for key, shape in shapes.items():
        w = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
        if key.endswith("text_embed.text_embed.weight"):
            weights[key] = 0.5 * w
        elif w.dim() == 1 and key.endswith(("layernorm.weight", ".norm.weight")):
            weights[key] = 1 + 0.02 * w
        else:
            weights[key] = 0.02 * w
    return weights


def condition(model: nn.Module, inputs: dict, drop_text: bool, drop_style: bool, audio: Tensor | None = None):
    songs = len(inputs["text"])
    return model.condition(drop(inputs["text"], torch.tensor([drop_text] * songs)),
                           drop(inputs["style_prompt"], torch.tensor([drop_style] * songs)),
                           *(inputs[k] for k in SCALARS), audio=audio)


@torch.no_grad()
def velocity(model: nn.Module, inputs: dict, drop_text: bool = False, drop_style: bool = False,
             drop_audio: bool = False) -> Tensor:
    audio = None if drop_audio else inputs["cond"]
    return model(inputs["x"], inputs["time"], condition(model, inputs, drop_text, drop_style, audio))


def sample(model: nn.Module, inputs: dict, steps: int, mode: str, weights: tuple, cfg_range: tuple | None,
           sway: float = 0.0) -> Tensor:
    """Latents after `steps` grid points; cfg_range None: guided at every flow time."""
    batch = {"phonemes": inputs["text"], "style": inputs["style_prompt"], **{k: inputs[k] for k in SCALARS}}
    guidance = Guidance(mode, tuple(weights), tuple(cfg_range or (0.0, 1.0)))
    return sample_latents(model, batch, inputs["y0"], time_grid(steps, sway), guidance,
                          inputs["negative_style"])


def train_loss(model: nn.Module, inputs: dict, drop_text: bool, drop_style: bool) -> Tensor:
    return flow_loss(model, inputs["x1"], inputs["x0"], inputs["time"],
                     condition(model, inputs, drop_text, drop_style)).mean()


def dpo(model: nn.Module, reference: nn.Module, inputs: dict, beta: float, sft: str) -> dict[str, Tensor]:
    """The preference loss of inputs as in e_dpo_inputs: loss, total, inside (B,), accuracy."""
    batch = {"latents": inputs["win"], "loser": inputs["lose"], "truth": inputs["gt"],
             "phonemes": inputs["text"], "style": inputs["style_prompt"], **{k: inputs[k] for k in SCALARS}}
    objective = PreferenceObjective(model, reference, DPOConfig(beta=beta, sft=sft))
    draws = inputs["x0"], inputs["time"]
    made = objective.losses(batch, *draws, frozen_losses(reference, batch, *draws))
    return {"loss": made["dpo_loss"].mean(), "total": made["loss"].mean(), "inside": made["inside"],
            "accuracy": made["accuracy"].mean()}


def jam_preset(max_frames: int, filler: str) -> Preset:
    """What the data conversion reads of JAM-0.5: its frame rate, its grid and a fill rule."""
    sizes = dict.fromkeys(SIZES, 0) | {"mel_dim": 64, "max_frames": max_frames}
    return Preset(ModelConfig(**sizes), CodecConfig("oobleck", sample_rate_hz=44100, hop=2048), filler, False,
                  Guidance(), "muq-mulan", "vocal", 50, False)


def grid(words: list[dict], symbols: list[str], max_frames: int, latent_frames: int, start_frame: int,
         filler: str) -> dict:
    """One song's phoneme ids and scalars. Raises: ValueError for a word without phonemes."""
    if any(w.get("phoneme") is None for w in words):
        raise ValueError("a word has no phonemes")
    spoken = [(w["start"], w["end"], w["phoneme"]) for w in words]
    found, placed = conditions(spoken, latent_frames, start_frame, jam_preset(max_frames, filler),
                               SymbolTable(symbols))
    return {"lrc": found.pop("phonemes"), **found, "word_spans": [p for p in placed if p[0] < p[1]]}


def collate(items: list[dict], silence: Tensor, max_frames: int) -> dict[str, Tensor]:
    """Songs that are drawn and cropped (latent (frames, C), lrc, prompt, scalars) as one padded batch."""
    ours = [{"latents": item["latent"], "phonemes": item["lrc"], "style": item["prompt"],
             **{k: item[k] for k in SCALARS}} for item in items]
    batch = put_together(ours, silence, jam_preset(max_frames, "average_sparse"))
    return {"latent": batch["latents"].transpose(1, 2), "lrc": batch["phonemes"], "prompt": batch["style"],
            **{k: batch[k] for k in SCALARS}}


def vae(config: dict, weights: dict[str, Tensor]) -> Oobleck:
    """Autoencoder of the golden configuration with weights under diffusers' names, loaded strictly."""
    strides = tuple(config["downsampling_ratios"])
    codec = CodecConfig("oobleck", config["sampling_rate"], math.prod(strides),
                        wave_channels=config["audio_channels"], latent_dim=config["decoder_input_channels"],
                        width=config["encoder_hidden_size"], strides=strides,
                        multiples=tuple(config["channel_multiples"]),
                        decoder_width=config.get("decoder_channels", 0))
    return fit(weights, codec, "golden").eval().requires_grad_(False)
