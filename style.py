"""Style vectors: what a song should sound like, as (E,) numbers.

Read `style_vector`, which blends named styles, saved vectors, sound files and words; then `StyleEncoder`,
which turns sound and words into vectors; then `negative_vector`.
"""

import contextlib
import functools
import math
import os
import random
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import audio
from cli import read_json
from config import READ_ERRORS, UserError

RATE_HZ = 24000               # of the sound that MuQ-MuLan hears
SHORTEST_S = 0.1              # it fails under 0.05
LONGEST_PROMPT = 300          # characters; JAM cuts there
LEAST_BLEND = 1e-4            # of the parts' norm: under it, a blend is the rounding errors of its parts
NUMBER = re.compile(r"[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?")
# Tensors of MuQ-MuLan's file that only its training uses; these may be missing, or be anything.
UNUSED = ("mulan.audio.aggregator.", "mulan.audio.model.model.cls_token",
          "mulan.audio.model.model.conformer.pos_conv_embed.", "mulan.audio.model.model.linear.",
          "mulan.audio.model.model.rvq.", "mulan.contrast.", "mulan.text.model.embeddings.position_ids",
          "mulan.text.model.pooler.")
NEEDS = "the style encoder needs: pip install muq==0.1.0 transformers==5.15.1 torchvision==0.26.0"


def only(tensors: dict[str, Tensor]) -> Tensor:
    """The one tensor of a file. Raises: ValueError if it holds several."""
    if len(tensors) != 1:
        raise ValueError(f"{len(tensors)} tensors ({', '.join(sorted(tensors))[:60]}); expected one")
    return next(iter(tensors.values()))


# A mapped array cannot claim more than its file holds, and is no pickle.
READERS = {".npy": lambda path: torch.from_numpy(np.array(np.load(path, mmap_mode="r", allow_pickle=False))),
           ".pt": lambda path: torch.load(path, map_location="cpu", weights_only=True),
           ".safetensors": lambda path: only(load_file(path))}


@dataclass(frozen=True)
class Crop:
    """Which part of a sound file its style is taken from. Raises: UserError for a part that cannot be."""
    start_s: float
    seconds: float            # less where the file ends before
    seed: int | None          # begin anywhere instead: a function of the seed and the file's length

    def __post_init__(self):
        if not 0 <= self.start_s < math.inf:
            raise UserError(f"--style-start {self.start_s}: expected 0 or more seconds")
        if not SHORTEST_S <= self.seconds < math.inf:
            raise UserError(f"--num-style-secs {self.seconds}: expected {SHORTEST_S} or more")
        if self.seed is not None and self.start_s:
            raise UserError(f"--random-crop-style begins anywhere; leave out --style-start {self.start_s}")


def style_vector(names: tuple[str, ...], texts: tuple[str, ...], crop: Crop, shipped: Path | None, width: int,
                 encoder: "Callable[[], StyleEncoder]") -> Tensor:
    """The style that --style and --style-text describe.

    Args: names, each NAME[:WEIGHT]: a style that the model names, else a saved vector, else a sound file;
        texts, each PROMPT[:WEIGHT]; crop of the sound files; shipped, the file of the model's named styles,
        None if it names none; width E of the model's styles; encoder, which is called once, and only if
        there is a sound file or a text.
    Returns: (E,) float32. One part alone is unchanged, whatever its weight. Several are summed with their
        weights, and the sum is scaled to the weighted mean of their norms. Nothing at all is the model's
        first named style, by the alphabet.
    Raises: UserError for a part that is unknown, broken, too short or of another width, and for a blend
        whose parts cancel out. What the encoder raises.
    """
    named = named_styles(shipped)
    if not names and not texts:
        names = default_style(shipped)
    parts, weights = [], []
    for text in names:
        name, weight = weighted(text, lambda whole: whole in named or os.path.isfile(whole))
        parts.append((f"--style {name}", find_style(name, named, crop, width)))
        weights.append(weight)
    for text in texts:
        prompt, weight = weighted(text)
        # Bytes of a command line that are no UTF-8 come as half characters, which no tokenizer takes.
        if not prompt.strip() or prompt.encode(errors="ignore").decode() != prompt:
            raise UserError(f"--style-text {text!r}: no text; expected PROMPT or PROMPT:WEIGHT")
        parts.append((f"--style-text {prompt[:40]}", lambda encode, prompt=prompt: encode().text(prompt)))
        weights.append(weight)

    @functools.cache                                         # it is gone when this function is left
    def encode() -> StyleEncoder:
        built = encoder()
        if built.width != width:
            raise UserError(f"{parts[0][0]}: sound and words become {built.width} numbers, but this model's "
                            f"styles are {width}; it knows {', '.join(sorted(named)) or 'no names'}, and "
                            f"saved vectors of {width}")
        return built

    vectors = []
    for place, make in parts:
        vectors.append(make(encode))
        if not vectors[-1].isfinite().all():
            raise UserError(f"{place}: the style encoder's numbers are not finite: broken weights, or too "
                            "loud a sound")
    return blend(vectors, weights)


def weighted(text: str, known: Callable[[str], bool] = lambda whole: False) -> tuple[str, float]:
    """Split NAME[:WEIGHT] at its last colon, if a plain, finite number above 0 follows it at once.

    What is `known` as a whole has weight 1, and so has all that has no such number.
    """
    name, colon, number = text.rpartition(":")
    if colon and not known(text) and NUMBER.fullmatch(number) and 0 < float(number) < math.inf:
        return name, float(number)
    return text, 1.0


def named_styles(path: Path | None) -> dict[str, Tensor]:
    """The styles in a model's file, by name; {} for None. Raises: UserError if it cannot be read."""
    try:
        return load_file(path) if path else {}
    except (OSError, SafetensorError) as e:
        raise UserError(f"{path}: {e}") from None


def default_style(shipped: Path | None) -> tuple[str]:
    """The first style that a model names, by the alphabet. Raises: UserError if it names none."""
    named = named_styles(shipped)
    if not named:
        raise UserError("this model names no styles; give --style FILE or --style-text PROMPT")
    return (min(named),)


def find_style(name: str, named: dict[str, Tensor], crop: Crop, width: int) -> Callable[[Callable], Tensor]:
    """What --style NAME is, as a function of the callable that builds the encoder.

    Files are read here, so that a mistake costs no loading. Raises: UserError.
    """
    place, path = f"--style {name}", Path(name)
    if name in named:
        vector = checked(lambda: named[name], width, place)
    elif path.suffix.lower() in READERS and os.path.isfile(path):
        vector = read_vector(path, width, place)
    elif path.suffix.lower() in audio.READABLE and os.path.isfile(path):
        wave = read_clip(path, crop)
        return lambda encode: encode().audio(wave)
    else:
        raise UserError(f"{place}: no such style or file; expected {', '.join([*sorted(named), ''])}a sound "
                        f"file ({', '.join(audio.READABLE)}) or a saved vector ({', '.join(READERS)}), with "
                        ":WEIGHT above 0 or without")
    return lambda encode: vector


def checked(read: Callable[[], Any], width: int, place: str) -> Tensor:
    """What `read` finds, as (width,) float32. Raises: UserError if that is not `width` finite numbers."""
    try:
        style = read()
        if (isinstance(style, Tensor) and style.layout is torch.strided and not style.is_complex()
                and style.numel() == width):
            style = style.detach().float().reshape(width)
            if style.isfinite().all():
                return style
    except (*READ_ERRORS, SafetensorError) as e:
        raise UserError(f"{place}: not a style vector: {' '.join(str(e).split())[:120]}") from None
    found = f", found {style.numel()}" if isinstance(style, Tensor) and style.numel() != width else ""
    raise UserError(f"{place}: expected {width} finite numbers{found}")


def read_vector(path: Path, width: int, place: str) -> Tensor:
    """A saved vector, (width,) float32. Raises: UserError, naming place, if the file holds none."""
    return checked(lambda: READERS[path.suffix.lower()](path), width, place)


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
    """Weighted sum of (E,) vectors, scaled to the weighted mean of their norms; one alone as it is.

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
    """What guidance leads away from.

    Args: name "zeros", "vocal" (then vocal() is the path of the vector published with JAM), or a saved
        vector; width E of the model's styles.
    Returns: (1, E) float32, of values that float16 has: JAM rounds them so.
    Raises: UserError for a name that is unknown, and for a file that is not E numbers within float16's range.
    """
    if name == "zeros":
        return torch.zeros(1, width)
    place = f"--negative-style {name}"
    path = vocal() if name == "vocal" else Path(name)
    if path.suffix.lower() not in READERS or not os.path.isfile(path):
        raise UserError(f"{place}: no such file; expected zeros, vocal or a saved vector "
                        f"({', '.join(READERS)})")
    rounded = read_vector(path, width, place).half().float()
    if not rounded.isfinite().all():
        raise UserError(f"{place}: expected numbers of 65504 at most")
    return rounded[None]                                     # (E,) -> (1, E)


@contextlib.contextmanager
def same_randomness() -> Iterator[None]:
    """Give torch's and Python's random states back as they were: muq seeds them, and draws."""
    state = random.getstate()
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count()))):
        try:
            yield
        finally:
            random.setstate(state)


class StyleEncoder:
    """MuQ-MuLan, which puts sound and words into one space, in float32.

    Args: three folders with files as the hub has them: mulan (OpenMuQ/MuQ-MuLan-large: config.json,
        pytorch_model.bin), muq (OpenMuQ/MuQ-large-msd-iter: config.json), xlmr (FacebookAI/xlm-roberta-base:
        config.json, tokenizer.json); device.
    Attributes: width E of its vectors.
    Raises: UserError if a file is missing, broken or another model's; ImportError if muq is not installed.
    Source: muq 0.1.0. Differs: its from_pretrained loads 2.4 GB that are then overwritten, from whatever the
        hub has today, and takes files that lack weights.
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
        Returns: (E,) float32 on the CPU: the mean of the unit vectors of its 10 s clips. Its norm is
            therefore below 1 for more than 10 s, which JAM leaves so. muq fills the last clip up with the
            wave's beginning.
        """
        assert wave.ndim == 1 and len(wave) >= SHORTEST_S * RATE_HZ, wave.shape
        with same_randomness():                              # it draws numbers, and leaves them unused
            return self.model(wavs=wave.float().to(self.device)[None])[0].cpu()      # (1, E) -> (E,)

    @torch.no_grad()
    def text(self, prompt: str) -> Tensor:
        """Style in words: (E,) float32 on the CPU, norm 1.

        One prompt at a time, because muq's text network averages over padding: its batch mates would change
        it. What is beyond 300 characters is left out, with a warning.
        """
        if len(prompt) > LONGEST_PROMPT:
            print(f"warning: --style-text {prompt[:40]!r}...: {len(prompt)} characters; the first "
                  f"{LONGEST_PROMPT} are used", file=sys.stderr)
        return self.model(texts=[prompt[:LONGEST_PROMPT]])[0].cpu()                  # (1, E) -> (E,)


def build_mulan(mulan: Path, muq: Path, xlmr: Path) -> nn.Module:
    """MuQ-MuLan with random weights, from its three configs. Raises: UserError for a foreign one."""
    try:
        from huggingface_hub.errors import StrictDataclassError
        from muq import MuQ, MuQConfig, MuQMuLan
        from muq.muq_mulan.models.audio import AudioSpectrogramTransformerPretrained
        from muq.muq_mulan.models.text import TextTransformerPretrained
        from transformers import XLMRobertaConfig, XLMRobertaModel
    except ModuleNotFoundError as e:
        raise ImportError(f"{e}; {NEEDS}") from e

    def build(path: Path, make: Callable[[dict], nn.Module]) -> nn.Module:
        values = read_json(path)
        try:
            return make(values)
        except (*READ_ERRORS, ArithmeticError, StrictDataclassError) as e:
            raise UserError(f"{path}: not a config of MuQ-MuLan's parts: {type(e).__name__}: "
                            f"{' '.join(str(e).split())[:120]}") from None

    hears = build(muq, lambda values: MuQ(MuQConfig(**values)))
    reads = build(xlmr, lambda values: XLMRobertaModel(XLMRobertaConfig.from_dict(values)))
    # muq would load these two from the hub, by the names in its config.
    with (mock.patch.object(AudioSpectrogramTransformerPretrained, "_init_pretrained_model",
                            lambda self, name: setattr(self, "model", hears)),
          mock.patch.object(TextTransformerPretrained, "_init_pretrained_model", lambda self: reads)):
        model = build(mulan, MuQMuLan)
    if model.sr != RATE_HZ:
        raise UserError(f"{mulan}: mulan.sr is {model.sr}; expected {RATE_HZ}")
    return model


def load_mulan(model: nn.Module, path: Path) -> None:
    """Load MuQ-MuLan's weights, mapped from the file.

    Raises: UserError if the file is broken, or lacks a tensor that is used, has one too many or of another
        shape.
    """
    try:
        given = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except READ_ERRORS as e:
        raise UserError(f"{path}: cannot be read as weights: {' '.join(str(e).split())[:120]}") from None
    if not isinstance(given, dict) or not all(isinstance(v, Tensor) for v in given.values()):
        raise UserError(f"{path}: not weights; expected tensors by name")
    given = {k: v for k, v in given.items() if not str(k).startswith(UNUSED)}
    wanted = {k: v for k, v in model.state_dict().items() if not k.startswith(UNUSED)}
    wrong = [f"lacks {k}" for k in wanted if k not in given] + [f"has {k}" for k in given if k not in wanted]
    for k in wanted.keys() & given.keys():
        if given[k].shape != wanted[k].shape or given[k].is_floating_point() != wanted[k].is_floating_point():
            wrong.append(f"has {k} {tuple(given[k].shape)} {given[k].dtype}, not {tuple(wanted[k].shape)}")
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(f"{path}: does not fit MuQ-MuLan: {min(wrong)}{more}")
    model.load_state_dict(given, strict=False, assign=True)


def load_tokenizer(path: Path, sizes: Any) -> Callable[..., Any]:
    """XLM-R's tokenizer as muq calls it: texts -> ids. transformers' own would rebuild the file's rules.

    Args: tokenizer.json; sizes, XLM-R's config. Raises: UserError if the file is broken or does not fit it.
    """
    from tokenizers import Tokenizer
    from transformers import BatchEncoding

    read_json(path)                                          # what is wrong with a file that is no JSON
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:
        if type(e) is not Exception:                         # tokenizers has no class of its own
            raise
        raise UserError(f"{path}: not a tokenizer: {' '.join(str(e).split())[:120]}") from None
    if tokenizer.get_vocab_size() > sizes.vocab_size or tokenizer.token_to_id("<s>") != sizes.bos_token_id:
        raise UserError(f"{path}: not XLM-R's tokenizer: {tokenizer.get_vocab_size()} tokens, <s> is "
                        f"{tokenizer.token_to_id('<s>')}; expected {sizes.vocab_size}, {sizes.bos_token_id}")
    tokenizer.enable_truncation(sizes.max_position_embeddings - sizes.pad_token_id - 1)      # 512 of 514
    tokenizer.no_padding()

    def tokenize(texts: list[str], **ignored: object) -> Any:
        ids = torch.tensor([tokenizer.encode(text).ids for text in texts])           # (1, tokens)
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    return tokenize
