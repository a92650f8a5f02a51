"""Every setting, size and unit in one place, and the command lines that are generated from them.

Read the dataclasses from top to bottom, then PRESETS; `parse` turns a dataclass into a command line.
A setting's value is taken from, in rising order: its default here, the model's preset, `--config FILE.json`,
its flag.
"""

import argparse
import contextlib
import dataclasses
import difflib
import json
import os
import pickle
import struct
import sys
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch


# Names that settings may have; phonemes.py and model.py say what they mean.
FILLERS = ("average_sparse", "average_repeat", "pad_right", "sung")
GUIDANCE_WEIGHTS = {"none": 0, "single": 1, "dual": 2, "dual_fix": 2}     # how many weights a mode takes

# What a model's folder holds.
WEIGHTS, CONFIG, STYLES, PHONEMIZER = (
    "model.safetensors", "config.json", "styles.safetensors", "phonemizer.pt")


# All that reading a broken or foreign file led to.
READ_ERRORS = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError,
               AssertionError, struct.error, pickle.UnpicklingError)


class UserError(ValueError):
    """A mistake in what the user gave: file, place, value and what would be accepted, in one line."""

    def __init__(self, text: str):
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text))


def setting(default: object, text: str) -> typing.Any:
    """A dataclass field with its unit, range and reason; `--help` prints the text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class ModelConfig:
    """The network's sizes; all of them are in a checkpoint, so none has a default."""
    dim: int                  # width of the blocks, a multiple of heads and of 16
    depth: int                # blocks; the first half of them gets the text fusion
    heads: int                # attention heads
    ff_mult: int              # feed-forward width / dim
    mel_dim: int              # latent channels
    text_num_embeds: int      # rows of the phoneme table, less one
    text_dim: int             # width of the text branch
    cond_dim: int             # width of style and scalars
    conv_layers: int          # ConvNeXt blocks of the text branch
    max_frames: int           # longest song, latent frames


@dataclass(frozen=True)
class CodecConfig:
    """Latents <-> wave. `hop` is samples per latent frame, for every kind."""
    kind: str                 # "mel": log-mel spectrogram and Griffin-Lim
    sample_rate_hz: int
    hop: int
    fold: int = 1             # mel frames side by side in one latent frame
    n_fft: int = 0
    window: int = 0           # samples of the Hann window, n_fft at most
    mels: int = 0
    floor: float = 0.0        # mel magnitudes below it are silence
    log_mean: float = 0.0     # of the log-mel values of the training songs, so that latents have mean 0
    log_std: float = 1.0      # likewise, so that latents have variance 1
    griffin_lim_steps: int = 0


@dataclass(frozen=True)
class Guidance:
    """How far conditions are exaggerated; see model.guide for the formulas and the neutral weights."""
    mode: str = "dual"                           # none, single, dual, dual_fix
    weights: tuple[float, ...] = (4.7, 2.6)      # (strength,) for single, (style, lyrics) for the dual modes
    range: tuple[float, float] = (0.05, 1.0)     # flow times between which guidance acts, ends included


@dataclass(frozen=True)
class Preset:
    """A whole model as it is used: what its weights cannot tell by themselves."""
    model: ModelConfig
    codec: CodecConfig
    filler: str               # how a word's phonemes fill its cells: one of FILLERS
    trim: bool                # sample only as many frames as the song has; else always max_frames
    guidance: Guidance
    steps: int                # grid points of the sampler; one more than its Euler steps


PRESETS = {
    # 5M parameters, made by baby/: sings a cappella, up to 20 s, from flite's two voices.
    "baby": Preset(
        ModelConfig(dim=256, depth=5, heads=4, ff_mult=3, mel_dim=160, text_num_embeds=64, text_dim=128,
                    cond_dim=128, conv_layers=2, max_frames=960),
        CodecConfig("mel", sample_rate_hz=24000, hop=512, fold=2, n_fft=2048, window=1024, mels=80,
                    floor=5e-3, log_mean=-1.5, log_std=2.3, griffin_lim_steps=80),
        filler="sung", trim=True, guidance=Guidance("dual", (1.0, 2.0), (0.0, 1.0)), steps=32),
}


@dataclass(frozen=True)
class SampleConfig:
    """Sing timed words."""
    lyrics: Path = setting(Path("examples/hello.json"), "JSON list of {word, start, end[, phoneme]}; seconds")
    style: str = setting("female",
                         "a style that the model names (baby: female, male), or a .npy, .pt or .safetensors")
    duration: float | None = setting(None, "length in seconds; default: half a second after the last word")
    seed: int = setting(0, "same seed, same song")
    out: Path = setting(Path("song.wav"), "result; .wav, .flac, .ogg or .mp3")
    model: Path = setting(Path("weights/baby"), "folder with model.safetensors and config.json")
    steps: int | None = setting(None, "grid points of the sampler, 2 or more; default: the model's preset")
    guidance: str | None = setting(None, "none, single, dual or dual_fix; default: the model's preset")
    guidance_weights: tuple[float, ...] | None = setting(None, "style and lyrics, e.g. 1,2; or one strength")
    guidance_range: tuple[float, ...] | None = setting(
        None, "flow times between which guidance acts, e.g. 0,1")
    sway: float | None = setting(None, "-1..0: more steps near the noise")
    device: str = setting("auto", "auto (CUDA, then MPS, then CPU), or a torch device")


@dataclass(frozen=True)
class TrainConfig:
    """Train on WebDataset shards."""
    preset: str = setting("baby", "sizes of the model: a name in config.PRESETS")
    data: str = setting("baby/data/songs-*.tar", "shards; braces and * are expanded")
    assets: Path = setting(Path("weights/baby"),
                           "folder of phonemizer.pt and styles.safetensors, copied to --out")
    out: Path = setting(Path("runs/baby"), "folder of checkpoint and log; a checkpoint there is resumed")
    init: Path | None = setting(None, "start from these weights (safetensors) instead of a fresh model")
    steps: int = setting(3000, "optimizer steps in all")
    batch: int = setting(8, "songs per step")
    lr: float = setting(1e-3, "peak learning rate of AdamW")
    warmup: int = setting(200, "steps of linear warm-up")
    decay: float = setting(
        0.35, "share of the steps after warm-up, at the end, over which the rate falls to 0; 0..1")
    weight_decay: float = setting(0.01, "of AdamW")
    clip: float = setting(1.0, "gradient L2 norm above which it is scaled down")
    ema: float = setting(0.999, "decay of the averaged weights that are saved for sampling; 0 for none")
    drop_style: float = setting(0.1, "share of songs trained without style")
    drop_text: float = setting(0.5, "share of those trained without text, too")
    bf16: bool = setting(True, "matrix products in bfloat16")
    workers: int = setting(1, "processes that read data; 0: none")
    save_every: int = setting(500, "steps between checkpoints")
    log_every: int = setting(50, "steps between log lines")
    seed: int = setting(0, "of weights, order, crops and noise")
    device: str = setting("auto", "auto (CUDA, then MPS, then CPU), or a torch device")


def preset_to_json(preset: Preset, **more: object) -> str:
    """A preset as the text of a checkpoint's config.json."""
    return json.dumps(dataclasses.asdict(preset) | more, indent=1)


def preset_from_json(path: Path) -> Preset:
    """Rebuild a preset from a checkpoint's config.json.

    Raises: UserError if it is missing or not of that form.
    """
    values = read_json(path)
    try:
        preset = build(Preset, {k: v for k, v in values.items() if k != "step"})
        sizes, codec = preset.model, preset.codec
        if min(dataclasses.astuple(sizes)) < 1 or sizes.dim % sizes.heads or sizes.dim % 16:
            raise ValueError("model: sizes of 1 or more; dim a multiple of heads and of 16")
        if min(codec.sample_rate_hz, codec.hop, codec.fold) < 1 or codec.hop % codec.fold:
            raise ValueError("codec: rate, hop and fold of 1 or more; hop a multiple of fold")
        if codec.kind == "mel" and codec.fold * codec.mels != sizes.mel_dim:
            raise ValueError("codec: fold * mels is not the model's mel_dim")
        if preset.filler not in FILLERS or preset.guidance.mode not in GUIDANCE_WEIGHTS or preset.steps < 2:
            raise ValueError("filler, guidance or steps: unknown")
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise UserError(f"{path}: not a model's config: {e}") from None
    return preset


def build(cls: type, values: dict[str, object]) -> typing.Any:
    """Build a dataclass, and those inside it, from JSON values. Raises: ValueError for another type."""
    kinds, made = typing.get_type_hints(cls), dict(values)
    for name, kind in kinds.items():
        value = values.get(name)
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            made[name] = build(kind, value)
        elif typing.get_origin(kind) is tuple and isinstance(value, list):
            made[name] = tuple(float(x) for x in value)
        elif name in values and type(value) is not kind and (type(value), kind) != (int, float):
            raise ValueError(f"{name} is {value!r}; expected {describe(kind)}")
    return cls(**made)


def convert(value: object, kind: object) -> object:
    """Read one value of a field's annotated type from its text, or from a value of a JSON file."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    text = str(value)
    if type(None) in options and (value is None or str not in options and text.lower() == "none"):
        return None
    if value is None:
        raise ValueError
    kind = next(k for k in options if k is not type(None))
    if typing.get_origin(kind) is tuple:
        return tuple(float(part) for part in text.split(","))
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    return kind(text)


def describe(kind: object) -> str:
    """A field's type in words, for errors and --help."""
    options = ([k for k in typing.get_args(kind) if k is not type(None)]
               if isinstance(kind, types.UnionType) else [kind])
    names = {int: "whole number", float: "number", str: "text", Path: "path", bool: "true or false"}
    return names.get(options[0], "numbers with commas between them")


class Parser(argparse.ArgumentParser):
    """argparse whose errors end as every other mistake does."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(message)


def parse(cls: type, doc: str, argv: list[str] | None = None) -> typing.Any:
    """Build dataclass `cls` from its defaults, a --config file and flags.

    Raises: UserError for an unknown or misspelt name (with the nearest) and for a value of the wrong type.
    """
    kinds = typing.get_type_hints(cls)
    parser = Parser(description=doc, allow_abbrev=False,
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--config", type=Path, metavar="FILE", help="JSON object with any of these settings")
    for f in dataclasses.fields(cls):
        parser.add_argument("--" + f.name.replace("_", "-"),
                            metavar=describe(kinds[f.name]).split()[0].upper(), default=argparse.SUPPRESS,
                            help=f"{f.metadata['help']} (default: {f.default})")
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        reject(unknown[0], ["--" + name.replace("_", "-") for name in kinds])
    flags = vars(known)
    path = flags.pop("config")
    values = read_config(path, kinds) | flags
    for name, text in values.items():
        try:
            values[name] = convert(text, kinds[name])
        except (ValueError, KeyError):
            where = f"--{name.replace('_', '-')}" if name in flags else f"{path}: {name}"
            raise UserError(f"{where} {text}: expected {describe(kinds[name])}") from None
    return cls(**values)


def reject(name: str, known: list[str], where: str = "") -> typing.NoReturn:
    near = difflib.get_close_matches(name.split("=")[0], known, 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
    raise UserError(f"{where}unknown setting {name}{hint}")


def read_config(path: Path | None, kinds: dict[str, object]) -> dict[str, object]:
    """The settings in a JSON file: {} for None."""
    if path is None:
        return {}
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object of settings")
    for name, value in values.items():
        if name not in kinds:
            reject(name, list(kinds), f"{path}: ")
        if isinstance(value, list):
            values[name] = ",".join(map(str, value))
    return values


def read_json(path: Path) -> typing.Any:
    """Read a JSON file.

    Raises: UserError if it is missing or unreadable, or with line and column if it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as e:
        raise UserError(f"{path}: line {e.lineno}, column {e.colno}: not JSON: {e.msg}") from None
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: byte {e.start}: not UTF-8 text") from None
    except (RecursionError, ValueError) as e:        # nested too deep, a number of too many digits
        raise UserError(f"{path}: not JSON: {str(e)[:60]}") from None
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which becomes `path` when the block ends well.

    Raises: UserError if it cannot.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.chmod(0o644)                               # safetensors writes for its owner alone
        temporary.replace(path)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def find(path: Path) -> Path:
    """A relative path as it is, or, where there is nothing, inside of this repository: for the defaults."""
    own = Path(__file__).resolve().parent / path
    return own if not path.exists() and own.exists() else path


def pick_device(name: str) -> torch.device:
    """The device that --device asks for. Raises: UserError if it is none, or is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        if torch.device(name).type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("expected auto, cpu, cuda or mps")
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as e:
        raise UserError(f"--device {name}: {str(e).splitlines()[0][:120]}") from None


def run(main: Callable[[], None]) -> None:
    """Call main; a user's mistake ends as one line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):                  # a terminal may not know the letters of a path
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
