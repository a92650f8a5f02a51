"""Style vectors: what a song should sound like, as (E,) numbers.

Read `style_vector`, which blends named styles, saved vectors, sound files and words; then `StyleEncoder`,
which turns sound and words into vectors; then `negative_vector`.
"""

import difflib
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from config import EvaluateConfig, Preset, SingSettings, UserError
from support import audio
from support.cli import weighted
from support.files import read_json, reading
from support.hub import encoder_folders
from support.mulan import RATE_HZ, build_mulan, load_mulan, load_tokenizer, same_randomness

SHORTEST_S = 0.1              # of a sound; the encoder fails under 0.05
LONGEST_PROMPT = 300          # characters; JAM cuts there
LEAST_BLEND = 1e-4            # of the parts' norm; below it, a blend is nothing but rounding errors


def only(tensors: dict[str, Tensor]) -> Tensor:
    """The one tensor of a file. Raises: ValueError if it holds none or several."""
    if len(tensors) != 1:
        raise ValueError(f"{len(tensors)} tensors ({', '.join(sorted(tensors))[:60]}); expected one")
    return next(iter(tensors.values()))


# A memory-mapped array cannot claim more than its file holds; pickles are refused.
READERS = {".npy": lambda path: torch.from_numpy(np.array(np.load(path, mmap_mode="r", allow_pickle=False))),
           ".pt": lambda path: torch.load(path, map_location="cpu", weights_only=True),
           ".safetensors": lambda path: only(load_file(path)),
           ".json": lambda path: torch.tensor(read_json(path)["style"])}         # a song's account


@dataclass(frozen=True)
class Crop:
    """The part of a sound file that its style is taken from."""
    start_s: float
    seconds: float            # less if the file ends before
    seed: int | None          # begin anywhere instead: seed and length of the file decide where


def style_vector(names: tuple[str, ...], texts: tuple[str, ...], crop: Crop, shipped: Path | None, width: int,
                 encoder: "Callable[[], StyleEncoder]") -> Tensor:
    """The style that --style and --style-text describe.

    Args: names, each NAME[:WEIGHT]: a style that the model names, else a saved vector, else a sound file;
        texts, each PROMPT[:WEIGHT]; crop of the sound files; shipped, the file of the model's named styles,
        None if it names none; width E of the model's styles; encoder, which is called once, and only if
        there is a sound file or a text.
    Returns: (E,) float32. One part alone is unchanged, whatever its weight. Several are summed with their
        weights, and the sum is scaled to the weighted mean of their norms. Without any part it is the
        model's alphabetically first named style.
    Raises: UserError for a part that is unknown, corrupt, too short or of another width, and for a blend
        whose parts cancel out; and what the encoder raises.
    """
    # Files are read before the encoder is loaded, so that a mistake shows at once.
    named, parts = named_styles(shipped), []
    for text in names or (() if texts else default_style(shipped)):
        name, weight = weighted(text, lambda whole: named_as(whole, named) in named or os.path.isfile(whole))
        parts.append((f"--style {name}", weight, *find_style(name, named, crop, width)))
    for text in texts:
        prompt, weight = weighted(text)
        # Bytes of a command line that are not UTF-8 become surrogates, which no tokenizer takes.
        if not prompt.strip() or prompt.encode(errors="ignore").decode() != prompt:
            raise UserError(f"--style-text {text!r}: no text; expected PROMPT or PROMPT:WEIGHT")
        parts.append((f"--style-text {prompt[:40]}", weight, "text", prompt))

    encoded = [place for place, _, kind, _ in parts if kind != "vector"]
    built = encoder() if encoded else None                   # freed when this function returns
    if built and built.width != width:
        known = ", ".join(sorted(named)) or "no names"
        raise UserError(f"{encoded[0]}: sound and words become {built.width} numbers, but this model's styles"
                        f" are {width}; it knows {known}, and saved vectors of {width}")
    vectors = []
    for place, _, kind, value in parts:
        vector = value if kind == "vector" else built.audio(value) if kind == "sound" else built.text(value)
        if not vector.isfinite().all():
            raise UserError(f"{place}: the style encoder's numbers are not finite: corrupt weights, or too "
                            "loud a sound")
        vectors.append(vector)
    return blend(vectors, [weight for _, weight, _, _ in parts])


def named_styles(path: Path | None) -> dict[str, Tensor]:
    """The styles in a model's file, by name; {} for None. Raises: UserError if it cannot be read."""
    with reading(path):
        return load_file(path) if path else {}


def named_as(name: str, named: dict[str, Tensor]) -> str:
    """The model's own spelling of a name if exactly one of its names differs in case only; else `name`."""
    alike = [known for known in named if known.casefold() == name.casefold()]
    return alike[0] if len(alike) == 1 else name


def default_style(shipped: Path | None) -> tuple[str]:
    """The alphabetically first style that a model names. Raises: UserError if it names none."""
    named = named_styles(shipped)
    if not named:
        raise UserError("this model names no styles; give --style FILE or --style-text PROMPT")
    return (min(named),)


def find_style(name: str, named: dict[str, Tensor], crop: Crop, width: int) -> tuple[str, Tensor]:
    """What --style NAME is: "vector" and (width,), or "sound" and its wave (N,). Raises: UserError."""
    place, path = f"--style {name}", Path(name)
    source = named.get(named_as(name, named), path)
    if source is not path or path.suffix.lower() in READERS and os.path.isfile(path):
        return "vector", read_vector(source, width, place)
    if path.suffix.lower() in audio.READABLE and os.path.isfile(path):
        return "sound", read_clip(path, crop)
    tried = name.casefold(), name.casefold().rpartition(":")[0]          # a weight may be what is wrong
    near = sum((difflib.get_close_matches(text, [style.casefold() for style in named], 1)
                for text in tried), [])[:1]
    hint = "".join(f"did you mean {style}? " for style in named if style.casefold() in near)
    raise UserError(f"{place}: no such style or file; {hint}expected {', '.join([*sorted(named), ''])}a sound"
                    f" file ({', '.join(audio.READABLE)}) or a saved vector ({', '.join(READERS)}), with "
                    ":WEIGHT above 0 or without")


def read_vector(source: Tensor | Path, width: int, place: str) -> Tensor:
    """A vector, or the one saved in a file, as (width,) float32.

    Raises: UserError, naming place, if that is not `width` finite numbers.
    """
    with reading(place, f"expected {width} finite numbers"):
        style = READERS[source.suffix.lower()](source) if isinstance(source, Path) else source
        if style.numel() != width:
            raise ValueError(f"found {style.numel()}")
        if style.is_complex() or not style.float().isfinite().all():
            raise ValueError("found " + ("complex ones" if style.is_complex() else
                                         "NaN" if style.isnan().any() else "infinite ones"))
        return style.detach().float().reshape(width)


def read_clip(path: Path, crop: Crop) -> Tensor:
    """The part of a sound file that a style is taken from: (N,) at RATE_HZ. Raises: UserError."""
    start_s = crop.start_s
    if crop.seed is not None:
        rng = torch.Generator().manual_seed(crop.seed)
        room_s = max(0.0, audio.length_s(path) - crop.seconds)
        start_s = room_s * torch.rand((), generator=rng, dtype=torch.float64).item()
    wave = audio.mono(*audio.read_wave(path, start_s, crop.seconds), RATE_HZ)
    if len(wave) < SHORTEST_S * RATE_HZ:
        raise UserError(f"{path}: {len(wave) / RATE_HZ:.3f} s from {start_s:.2f} s on; a style needs "
                        f"{SHORTEST_S} s of sound or more")
    return wave


def blend(vectors: list[Tensor], weights: list[float]) -> Tensor:
    """Weighted sum of (E,) vectors, scaled to the weighted mean of their norms; a single one is unchanged.

    Raises: UserError if the sum is nearly 0.
    """
    if len(vectors) == 1:
        return vectors[0]
    share = torch.tensor(weights, dtype=torch.float64)
    share = share / share.max()                              # first, so that the sum stays finite
    share = share / share.sum()
    each = torch.stack(vectors).double()                     # (n, E)
    total, norm = share @ each, share @ each.norm(dim=1)     # (E,), ()
    if not total.norm() > LEAST_BLEND * norm:
        raise UserError("--style, --style-text: the parts of this blend cancel out; change their weights")
    return (total * (norm / total.norm())).float()


def negative_vector(name: str, width: int, vocal: Callable[[], Path]) -> Tensor:
    """The style that guidance leads away from.

    Args: name "zeros", "vocal" (the vector published with JAM, whose path vocal() returns), or a saved
        vector; width E of the model's styles.
    Returns: (1, E) float32, rounded to float16 as JAM does.
    Raises: UserError for an unknown name, and for a file that is not E numbers within float16's range.
    """
    if name == "zeros":
        return torch.zeros(1, width)
    place = f"--negative-style {name}"
    path = vocal() if name == "vocal" else Path(name)
    if path.suffix.lower() not in READERS or not os.path.isfile(path):
        raise UserError(f"{place}: no such file; expected zeros, vocal or a saved vector "
                        f"({', '.join(READERS)})")
    with reading(place, "not the account of a song with a negative style of its own"):
        source = torch.tensor(read_json(path)["negative"]) if path.suffix.lower() == ".json" else path
    rounded = read_vector(source, width, place).half().float()
    if not rounded.isfinite().all():
        raise UserError(f"{place}: expected numbers of 65504 at most")
    return rounded[None]                                     # (E,) -> (1, E)


class StyleEncoder:
    """MuQ-MuLan, which maps sound and words to one space, in float32.

    Args: three folders with files as on the hub: mulan (OpenMuQ/MuQ-MuLan-large: config.json,
        pytorch_model.bin), muq (OpenMuQ/MuQ-large-msd-iter: config.json), xlmr (FacebookAI/xlm-roberta-base:
        config.json, tokenizer.json); device.
    Attributes: width E of its vectors.
    Raises: UserError if a file is missing, corrupt or another model's; ImportError if muq is not installed.
    Source: muq 0.1.0. Differs: its from_pretrained loads 2.4 GB that are then overwritten, of whichever
        revision the hub has today, and accepts files that lack weights.
    """

    def __init__(self, mulan: Path, muq: Path, xlmr: Path, device: torch.device | str = "cpu"):
        with same_randomness(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)   # muq's weight_norm
            model = build_mulan(mulan / "config.json", muq / "config.json", xlmr / "config.json")
        load_mulan(model, mulan / "pytorch_model.bin")
        model.mulan.text._tokenizer = load_tokenizer(xlmr / "tokenizer.json", model.mulan.text.model.config)
        self.device, self.width = torch.device(device), model.config.mulan.dim_latent
        self.model = model.eval().requires_grad_(False).float().to(self.device)

    @torch.no_grad()
    def audio(self, wave: Tensor) -> Tensor:
        """Style of sound.

        Args: wave (N,), mono, 24 kHz, 0.1 s or more.
        Returns: (E,) float32 on the CPU: the mean of the unit vectors of its 10 s clips. For more than 10 s
            its norm is therefore below 1, as in JAM. muq fills up the last clip with the wave's beginning.
        """
        assert wave.ndim == 1 and len(wave) >= SHORTEST_S * RATE_HZ, wave.shape
        with same_randomness():                              # muq draws numbers that it does not use
            return self.model(wavs=wave.float().to(self.device)[None])[0].cpu()      # (1, E) -> (E,)

    @torch.no_grad()
    def text(self, prompt: str) -> Tensor:
        """Style in words: (E,) float32 on the CPU, norm 1.

        One prompt at a time: muq's text network averages over padding, so that others in a batch would change
        the result. Prompts are cut at 300 characters, with a warning.
        """
        if len(prompt) > LONGEST_PROMPT:
            print(f"warning: --style-text {prompt[:40]!r}...: {len(prompt)} characters; the first "
                  f"{LONGEST_PROMPT} are used", file=sys.stderr)
        return self.model(texts=[prompt[:LONGEST_PROMPT]])[0].cpu()                  # (1, E) -> (E,)


def encoder_of(cfg: SingSettings | EvaluateConfig, preset: Preset | None, device: torch.device,
               place: str = "this model", advice: str = "") -> StyleEncoder:
    """Load the style encoder that belongs to a model.

    Args: cfg, settings with style_encoder and offline; preset of the model, None for any that has one; place
        and advice, what the error for a model without one begins and ends with.
    Raises: UserError if the model has no style encoder, or a file is missing and cannot be fetched; and as
        StyleEncoder.
    """
    if preset and preset.style_encoder == "none":
        raise UserError(f"{place} takes no sound and no text as style; expected a style that it names, or a "
                        f"saved vector ({', '.join(READERS)}) of {preset.model.cond_dim} numbers{advice}")
    return StyleEncoder(*encoder_folders(cfg), device)
