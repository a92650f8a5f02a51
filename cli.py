"""Command lines, settings files and checkpoint configs from the classes of config.py; files written whole.

Read `parse` (flags and --config), `preset_from_json` (a checkpoint's config), `replacing` (a file appears
whole or not at all), `run` (how a mistake ends).
"""

import argparse
import contextlib
import dataclasses
import difflib
import json
import math
import operator
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
import yaml

from config import FILLERS, GUIDANCE_WEIGHTS, Preset, UserError


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
        if codec.kind == "oobleck" and (codec.latent_dim, math.prod(codec.strides)) != (
                sizes.mel_dim, codec.hop):
            raise ValueError("codec: latent_dim is not the model's mel_dim, or strides do not make hop")
        if preset.filler not in FILLERS or preset.guidance.mode not in GUIDANCE_WEIGHTS or preset.steps < 2:
            raise ValueError("filler, guidance or steps: unknown")
        if preset.style_encoder not in ("muq-mulan", "none"):
            raise ValueError("style_encoder: expected muq-mulan or none")
    except (ValueError, TypeError, KeyError, AttributeError) as e:
        raise UserError(f"{path}: not a model's config: {e}") from None
    return preset


def build(cls: type, values: dict[str, object]) -> typing.Any:
    """Build a dataclass, and those inside it, from JSON values. Raises: ValueError for another type."""
    def fits(value: object, kind: object) -> bool:
        return type(value) is kind or (type(value), kind) == (int, float)
    kinds, made = typing.get_type_hints(cls), dict(values)
    for name, kind in kinds.items():
        value = values.get(name)
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            made[name] = build(kind, value)
        elif typing.get_origin(kind) is tuple and isinstance(value, list) and all(
                fits(x, typing.get_args(kind)[0]) for x in value):
            made[name] = tuple(map(typing.get_args(kind)[0], value))
        elif name in values and not fits(value, kind):
            raise ValueError(f"{name} is {value!r}; expected {describe(kind)}")
    return cls(**made)


def convert(value: object, kind: object) -> object:
    """Read one value of a field's annotated type from its text, or from a value of a settings file."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    text = str(value)
    if type(None) in options and (value is None or str not in options and text.lower() == "none"):
        return None
    kind = next(k for k in options if k is not type(None))
    if kind == tuple[str, ...]:                              # the flag again and again, or a list of texts
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in values):
            raise ValueError
        return tuple(values)
    if value is None or kind in (str, Path) and isinstance(value, bool):         # in YAML, no is a bool
        raise ValueError
    if typing.get_origin(kind) is tuple:
        return tuple(map(float, value if isinstance(value, list) and value else text.split(",")))
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    return kind(text)


def describe(kind: object) -> str:
    """A field's type in words, for errors and --help."""
    options = ([k for k in typing.get_args(kind) if k is not type(None)]
               if isinstance(kind, types.UnionType) else [kind])
    names = {int: "whole number", float: "number", str: "text", Path: "path", bool: "true or false",
             tuple[str, ...]: "text"}
    return names.get(options[0], "numbers with commas between them")


class Parser(argparse.ArgumentParser):
    """argparse whose errors end as every other mistake does."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(message)


def settings_of(cls: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, object]]:
    """Name, field and type of every setting; those of a class inside have their group before: data.shards."""
    kinds = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(kinds[f.name]):
            yield from settings_of(kinds[f.name], f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, f, kinds[f.name]


def assemble(cls: type, values: dict[str, object], prefix: str = "") -> typing.Any:
    """The dataclass that `settings_of` took apart; what has no value keeps its default."""
    made = {}
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            made[name] = assemble(kind, values, f"{prefix}{name}.")
        elif prefix + name in values:
            made[name] = values[prefix + name]
    return cls(**made)


def flat(values: dict, names: Iterable[str]) -> dict[str, object]:
    """The groups of a settings file as one level: {"data": {"pipe": x}} -> {"data.pipe": x}."""
    groups = {name.split(".")[0] for name in names if "." in name}
    return {key: x for name, value in values.items() for key, x in (
        {f"{name}.{inner}": x for inner, x in value.items()} if name in groups and isinstance(value, dict)
        else {name: value}).items()}


def parse(cls: type, doc: str, argv: list[str] | None = None,
          recipes: Mapping[str, object] = types.MappingProxyType({})) -> typing.Any:
    """Build dataclass `cls` from its defaults, --config files or `recipes`, and flags; the later wins.

    Raises: UserError for an unknown or misspelt name (with the nearest) and for a value of the wrong type.
    """
    kinds = {name: kind for name, _, kind in settings_of(cls)}
    parser = Parser(description=doc, allow_abbrev=False,
                    formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    names = f"{', '.join(recipes)}, or a " if recipes else ""
    parser.add_argument("--config", action="append", metavar="FILE", default=argparse.SUPPRESS,
                        help=f"{names}JSON or YAML file of these settings; again for more")
    for name, f, kind in settings_of(cls):
        if f.default is dataclasses.MISSING:                 # positional: its name is its place
            parser.add_argument(name, help=f.metadata["help"])
            continue
        many = {"action": "append"} if kind in (tuple[str, ...] | None, tuple[str, ...]) else {}
        bare = {"nargs": "?", "const": "true"} if kind is bool else {}
        flags = filter(None, [f.metadata["short"], "--" + name.replace("_", "-")])
        parser.add_argument(*flags, dest=name, default=argparse.SUPPRESS, **many, **bare,
                            metavar=describe(kind).split()[0].upper(),
                            help=f"{f.metadata['help']} (default: {f.default})")
    known, unknown = parser.parse_known_args(argv)
    if unknown and not unknown[0].startswith("-"):
        raise UserError(f"{unknown[0]}: no setting before it; quote * and ?, or name the setting again")
    if unknown:
        reject(unknown[0], ["--" + name.replace("_", "-") for name in kinds])
    flags, values = vars(known), {}
    for source in flags.pop("config", []):
        values |= read_config(source, kinds, recipes)
    values |= typed(flags, kinds, lambda name: f"--{name.replace('_', '-')}")
    return assemble(cls, values)


def command(script: str, doc: str, commands: dict[str, tuple[type, Callable]],
            argv: list[str] | None = None) -> None:
    """Run one of a script's commands, each a settings class and what to do with its settings."""
    args = sys.argv[1:] if argv is None else argv
    if args and args[0] in ("-h", "--help"):
        print(doc)
    elif not args or args[0] not in commands:
        raise UserError(f"{script} {' '.join(args[:1])}: expected {', '.join(commands)}, and then --help")
    else:
        cls, work = commands[args[0]]
        work(parse(cls, cls.__doc__, args[1:]))


def typed(values: dict[str, object], kinds: dict[str, object], place: Callable[[str], str]) -> dict:
    """Texts, or values of a file, as the types of their settings. Raises: UserError, with the place."""
    made = {}
    for name, text in values.items():
        try:
            made[name] = convert(text, kinds[name])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{place(name)} {text}: expected {describe(kinds[name])}") from None
    return made


def reject(name: str, known: list[str], where: str = "") -> typing.NoReturn:
    near = difflib.get_close_matches(name.split("=")[0], known, 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
    raise UserError(f"{where}unknown setting {name}{hint}")


def read_config(source: str, kinds: dict[str, object], recipes: Mapping[str, object]) -> dict[str, object]:
    """The settings of a recipe, or in a JSON or YAML file. Raises: UserError."""
    if source in recipes:
        return {name: operator.attrgetter(name)(recipes[source]) for name in kinds}
    path = Path(source)
    if recipes and not path.suffix and not path.exists():
        raise UserError(f"--config {source}: expected {', '.join(recipes)}, or a JSON or YAML file")
    values = read_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected an object of settings")
    if values.keys() >= {"settings", "request"}:             # the account of a song
        values = values["settings"]
    values = flat(values, kinds)
    for name in values:
        if name not in kinds:
            reject(str(name), list(kinds), f"{path}: ")
    return typed(values, kinds, lambda name: f"{path}: {name}")


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without BOM. Raises: UserError if it is missing or something else."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: byte {e.start}: not UTF-8 text") from None
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None


def read_json(path: Path) -> typing.Any:
    """Read a JSON file. Raises: UserError if it is missing or unreadable, or not JSON."""
    return json_of(read_text(path), str(path))


def json_of(text: str, name: str) -> typing.Any:
    """The value of a JSON text. Raises: UserError, with file, line and column."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise UserError(f"{name}: line {e.lineno}, column {e.colno}: not JSON: {e.msg}") from None
    except (RecursionError, ValueError) as e:        # nested too deep, a number of too many digits
        raise UserError(f"{name}: not JSON: {str(e)[:60]}") from None


def read_yaml(path: Path) -> typing.Any:
    """Read a YAML file. Raises: UserError, with line and column, if it is not one."""
    text = read_text(path)
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path}: {where}not YAML: {getattr(e, 'problem', None) or e}") from None
    except (RecursionError, ValueError) as e:
        raise UserError(f"{path}: not YAML: {str(e)[:60]}") from None


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


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that --device asks for; of several GPUs that of the process's rank on its machine.

    Raises: UserError if it is none, or is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
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
