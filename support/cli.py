"""Command lines made from settings classes, and how a user's mistake is reported.

Read `parse` (defaults, then --config, then flags), `settings_of` (what a settings class holds; the comments
after its fields are their help), `command` (scripts with several commands), `run` (what goes wrong outside of
the program is one line), `first` (which comes before imports that take seconds).
"""

import argparse
import contextlib
import dataclasses
import difflib
import gc
import inspect
import json
import math
import operator
import os
import re
import signal
import sys
import textwrap
import time
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path

from config import Settings, UserError
from support.files import one_line, read_json, read_yaml
from support.original import is_original, translate

PARENT = os.getppid()          # as this process began: torchrun, if that started it
# Settings that an account lacks whose song was sung before they existed.
BEFORE = {"solver": "euler", "sway": 0.0}
# Settings that an account may not say anything about.
NOT_OF_A_SONG = ("overwrite", "force", "best_of", "batch_infer_num", "manifest", "out_dir", "format", "edit")
# Settings that say what of a song is sung: of no interest to the next edit.
OF_AN_EDIT = ("span", "line", "variation", "lead", "from_", "to")
# Settings that let code run.
CODE = ("trust_vae", "data.pipe", "scorer")
NUMBERS = "numbers with commas between them"
TYPE_NAMES = {int: "whole number", float: "number", str: "text", Path: "path", bool: "true or false",
              tuple[str, ...]: "text", tuple[int, ...]: NUMBERS, tuple[float, ...]: NUMBERS,
              tuple[float, float]: NUMBERS}
# What torch says: of a GPU's memory, which ends with its own class or within another error, and of the CPU's.
NO_MEMORY = re.compile("OutOfMemoryError|out of memory|can't allocate memory")
NUMBER = re.compile(r"[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?")


class Setting(typing.NamedTuple):
    """One setting of a settings class."""
    kind: object              # its type: a key of TYPE_NAMES
    optional: bool            # whether it may be None
    default: object           # dataclasses.MISSING if it has to be given
    group: str                # title of its group in --help
    help: str


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError."""

    def error(self, message: str) -> typing.NoReturn:
        raise UserError(message)


def parse(cls: type, doc: str, argv: list[str] | None = None,
          recipes: Mapping[str, object] = types.MappingProxyType({}), name: str | None = None) -> typing.Any:
    """Build settings class `cls` from its defaults, --config files or recipes, and flags; the later wins.

    Args: doc, a module's docstring: help shows its first line, and its indented lines as examples; recipes,
        of which those of another class are left out; name of the command, if it is not the script's.
    Raises: UserError for an unknown or misspelt name (with the nearest) and for a value that is refused.
    """
    settings = settings_of(cls)
    recipes = {name: recipe for name, recipe in recipes.items() if type(recipe) is cls}
    sources = ", ".join([*recipes, "or a JSON or YAML file"] if recipes else ["a JSON or YAML file"])
    examples = [line.strip() for line in doc.splitlines() if line.startswith("    ")]
    epilog = "examples:\n" + textwrap.indent("\n".join(examples), "  ") if examples else None
    inputs = "".join(f" {name}" for name, s in settings.items() if s.default is dataclasses.MISSING)
    parser = Parser(prog=name, description=doc.partition("\n")[0], epilog=epilog, allow_abbrev=False,
                    usage=f"%(prog)s{inputs} [settings]",
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", metavar="FILE", default=argparse.SUPPRESS,
                        help=f"{sources} of these settings; repeat for more")

    # Its arguments, in groups; within a group, those of a derived class come before those of its base.
    groups = {title: parser.add_argument_group(title) if title else parser
              for title in dict.fromkeys(s.group for s in settings.values())}
    for field in sorted(settings, key=lambda field: field not in cls.__annotations__):
        kind, _, default, title, text = settings[field]
        text = text.replace("%", "%%")
        if default is dataclasses.MISSING:                   # positional: its name is its place
            parser.add_argument(field, help=text)
            continue
        if default not in (None, ()) and default is not False and "default:" not in text:
            text += f" (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"
        more = {tuple[str, ...]: {"action": "append"}, bool: {"nargs": "?", "const": "true"}}.get(kind, {})
        flags = ["-o", "--out"] if field == "out" else [flag_of(field)]
        value = "true|false" if kind is bool else TYPE_NAMES[kind].split()[0].upper()
        groups[title].add_argument(*flags, dest=field, default=argparse.SUPPRESS, help=text, metavar=value,
                                   **more)

    # The command line.
    known, unknown = parser.parse_known_args(argv)
    if unknown and not unknown[0].startswith("-"):
        hint = (f"did you mean --lyrics {unknown[0]}?" if "lyrics" in settings else
                "no setting before it; quote * and ?, or repeat the setting")
        raise UserError(f"{unknown[0]}: {hint}")
    if unknown:
        reject(unknown[0], [flag_of(name) for name in settings], "unknown setting")
    flags, values = vars(known), {}
    if "edit" in flags:                                      # as the song before, which --config overrides
        if Path(flags["edit"]).suffix != ".json" or not is_account(read_json(Path(flags["edit"]))):
            raise UserError(f"--edit {flags['edit']}: expected a song's account, the NAME.json beside it")
        values = {name: value for name, value in read_config(flags["edit"], settings, recipes).items()
                  if name not in OF_AN_EDIT}
    for source in flags.pop("config", []):
        values |= read_config(source, settings, recipes)
    return assemble(cls, values | typed(flags, settings, flag_of))


def settings_of(cls: type, prefix: str = "") -> dict[str, Setting]:
    """Every setting by its name; those of a nested settings class have its name before theirs: data.shards.

    Group and help are read from the source of `cls`; config.py explains how they are written.
    """
    found, kinds = {}, typing.get_type_hints(cls)
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        group, name = "", ""
        for line in source_of(base).splitlines():
            code, _, text = line.partition("#")
            field = re.match(r"    (\w+): ", code)
            if field and dataclasses.is_dataclass(kinds[field[1]]):
                found |= settings_of(kinds[field[1]], f"{prefix}{field[1]}.")
            elif field:
                name, kind = prefix + field[1], kinds[field[1]]
                options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
                found[name] = Setting(options[0], type(None) in options,
                                      cls.__dataclass_fields__[field[1]].default, group, text.strip())
            elif not code.strip() and text.startswith("   ") and name:
                found[name] = found[name]._replace(help=f"{found[name].help} {text.strip()}")
            elif not code.strip() and text:
                group, name = text.strip(), ""
    return found


def source_of(cls: type) -> str:
    """The source of a class. inspect.getsource would parse the whole module for each."""
    module = inspect.getsource(sys.modules[cls.__module__])
    block = rf"^( *)class {cls.__name__}\b.*?(?=^\1\S|\Z)"     # up to the next line that is indented as far
    return textwrap.dedent(re.search(block, module, re.DOTALL | re.MULTILINE)[0])


def assemble(cls: type, values: dict[str, object], prefix: str = "") -> typing.Any:
    """Build settings class `cls` from values by name, as in `settings_of`; the others keep their defaults."""
    made = {}
    for name, kind in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            made[name] = assemble(kind, values, f"{prefix}{name}.")
        elif prefix + name in values:
            made[name] = values[prefix + name]
    return cls(**made)


def read_config(source: str, settings: dict[str, Setting], recipes: Mapping[str, object]) -> dict:
    """The settings of a recipe, or in a JSON or YAML file. Raises: UserError."""
    if source in recipes:
        return {name: operator.attrgetter(name)(recipes[source]) for name in settings}
    path = Path(source)
    if recipes and not path.suffix and not path.exists():
        near = "".join(f"did you mean {name}? " for name in difflib.get_close_matches(source, recipes, 1))
        raise UserError(f"--config {source}: {near}expected {', '.join(recipes)}, or a JSON or YAML file")
    values = read_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected an object of settings")
    if is_account(values):
        if '"kind": "mel"' in json.dumps(values["request"]):
            raise UserError(f"{path}: the embedded model that sang this, through Griffin-Lim, is gone; "
                            f"today's sings its words in another voice: --lyrics {path}")
        if not isinstance(values["settings"], dict) or path.suffix != ".json":
            raise UserError(f"{path}: expected a song's account, NAME.json, with its settings")
        account = values
        # Words, sounds and style are those in the account itself, wherever their files are now.
        values = BEFORE | {name: value for name, value in values["settings"].items()
                           if value is not None and name not in (*CODE, *NOT_OF_A_SONG)} | {
            "lyrics": str(path), "style": [str(path)], "style_text": None, "lexicon": None,
            "ignore_style": False}
        values |= {"negative_style": str(path)} if "negative" in account else {}
    refuse_code(values, path)
    if is_original(values):
        published = recipes.get("dpo", recipes.get("pretrain"))
        base = {name: operator.attrgetter(name)(published) for name in settings} if published else {}
        return base | typed(translate(values, settings, path), settings, lambda name: f"{path}: {name}")
    return typed(values, settings, lambda name: f"{path}: {name}")


def is_account(values: object) -> bool:
    """Whether what a JSON file holds is the account of a song."""
    return isinstance(values, dict) and values.keys() >= {"settings", "request"}


def refuse_code(values: dict, path: Path) -> None:
    """Raise UserError for a setting that lets code run: files are data, and only a flag may say so."""
    for name, value in values.items():
        inner = {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {}
        for full, given in ({name: value} | inner).items():
            names = re.findall(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", str(given)) if full == "scorer" else []
            if names or full in CODE and full != "scorer" and given not in (False, None, "false"):
                raise UserError(f"{path}: {full} {given}: lets code run; only a flag may: {flag_of(full)}")


def typed(values: dict[str, object], settings: dict[str, Setting], place: Callable[[str], str]) -> dict:
    """Convert texts, or values of a file, to their settings' types. Raises: UserError, with the place."""
    flat, made = dict(values), {}
    for group in {name.partition(".")[0] for name in settings if "." in name}:
        if isinstance(flat.get(group), dict):                # {"data": {"pipe": x}} -> {"data.pipe": x}
            flat |= {f"{group}.{name}": value for name, value in flat.pop(group).items()}
    for name, value in flat.items():
        if name not in settings:
            reject(name, list(settings), place("unknown setting"))
        if not plain(value):
            raise UserError(f"{place(name)} {value}: holds a NUL, or half of a surrogate pair")
        try:
            made[name] = convert(value, settings[name])
        except (ValueError, KeyError, TypeError):
            expected = TYPE_NAMES[settings[name].kind]
            raise UserError(f"{place(name)} {value}: expected {expected}") from None
    return made


def plain(value: object) -> bool:
    """Whether a text, or each text of a list, can be the name of a file; those of a command line can."""
    texts = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    with contextlib.suppress(UnicodeEncodeError):
        return b"\0" not in texts.encode(errors="surrogateescape")
    return False


def convert(value: object, setting: Setting) -> object:
    """The value of a setting, from its text or from a value of a settings file.

    Raises: ValueError, KeyError or TypeError if it is not of the setting's type.
    """
    kind, text = setting.kind, str(value)
    if setting.optional and (value is None or kind is not str and text.lower() == "none"):
        return None
    if kind == tuple[str, ...]:                              # the flag again and again, or a list of texts
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in values):
            raise ValueError
        return tuple(values)
    if value is None or kind in (str, Path) and isinstance(value, bool):         # in YAML, no is a bool
        raise ValueError
    if typing.get_origin(kind) is tuple:
        listed = isinstance(value, list) and (value or setting.default == ())
        return tuple(map(typing.get_args(kind)[0], map(str, value) if listed else text.split(",")))
    if kind is bool:
        return {"true": True, "false": False}[text.lower()]
    return kind(text)


def flag_of(name: str) -> str:
    """A setting's flag; from_, whose name Python keeps for itself, gives --from."""
    return f"--{name.rstrip('_').replace('_', '-')}"


def reject(name: object, known: list[str], problem: str) -> typing.NoReturn:
    """Raise a UserError that suggests the nearest known name, or else lists all of them."""
    near = difflib.get_close_matches(str(name).split("=")[0], known, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    raise UserError(f"{problem} {name}; {hint}")


def weighted(text: str, known: Callable[[str], bool] = lambda whole: False) -> tuple[str, float]:
    """Split NAME[:WEIGHT] at its last colon if a plain, finite number above 0 follows it.

    A text that is `known` as a whole has weight 1, and so has one without such a number.
    """
    name, colon, number = text.rpartition(":")
    if colon and not known(text) and NUMBER.fullmatch(number) and 0 < float(number) < math.inf:
        return name, float(number)
    return text, 1.0


def command(script: str, doc: str, commands: dict[str, tuple[type[Settings], Callable]],
            argv: list[str] | None = None) -> None:
    """Run one of a script's commands, each a settings class and a function that takes its settings."""
    args, name = sys.argv[1:] if argv is None else argv, f"python -m {script}"
    examples = [line for line in doc.splitlines() if line.startswith("    ")]
    if args and args[0] in ("-h", "--help"):
        print(f"usage: {name} COMMAND [settings]\n\n{doc.splitlines()[0]}\n\ncommands (each has --help):")
        for command, (cls, _) in commands.items():
            print(textwrap.fill(f"  {command:10}{cls.__doc__}", subsequent_indent=" " * 12))
        print("\nexamples:", *(line[2:] for line in examples), sep="\n")
    elif not args or args[0] not in commands:
        given = f"{args[0]}: no such command" if args else "no command"
        raise UserError(f"{name}: {given}; expected {', '.join(commands)}, or --help")
    else:
        cls, work = commands[args[0]]
        own = [line for line in examples if f" {args[0]} " in line]
        work(parse(cls, "\n".join([cls.__doc__, *own]), args[1:], name=f"{name} {args[0]}"))


def first(read: Callable[[], object] = lambda: None) -> None:
    """Answer --help and mistakes in the flags: `read` reads the command line, and a script's main does again.

    It stands above the imports that take seconds, such as torch's. Ctrl-C ends these without a word. A
    --config is left to main: it may be a pipe, which can be read only once.
    """
    if not any(arg.startswith("--config") for arg in sys.argv):
        run(read)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:        # nohup ignores it: so do we
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()             # until `run`: nothing that imports make is garbage, and looking takes 0.3 s


def run(main: Callable[[], object]) -> None:
    """Call main. What goes wrong outside of this program ends as one line on stderr.

    A user's mistake has exit code 2; what the system refuses (OSError), and memory that ends, 1. Ctrl-C and a
    closed pipe (`| head`) end without a word, with a shell's codes for them. All else is our own mistake, and
    has a traceback. A user's mistake ends torchrun, too, which would start all processes again,
    --max-restarts times, to the same mistake.
    """
    gc.freeze()              # what was imported stays: each look through it, also the last, takes 0.1 s
    gc.enable()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):                  # a terminal may not know the letters of a path
        stream.reconfigure(errors="backslashreplace")
    try:
        try:
            main()
        finally:
            sys.stdout.flush()                               # which may fail, too
    except UserError as e:
        started = "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() == PARENT
        if started:                      # the first one speaks, and ends those whose turn has not come
            time.sleep(int(os.environ["LOCAL_RANK"]))
        print(f"error: {e}", file=sys.stderr, flush=True)
        if started:
            sys.stdout.flush()
            os.kill(PARENT, signal.SIGTERM)
            time.sleep(60)               # until it ends all processes: a lost one would be told by the others
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as e:
        with contextlib.suppress(OSError):                   # else Python tries to write the rest
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(e, BrokenPipeError):
            sys.exit(141)
        place = "" if e.filename is None else f"{e.filename}: "
        print(f"error: {UserError(place + one_line(e))}", file=sys.stderr)
        sys.exit(1)
    except (MemoryError, RuntimeError) as e:
        if not isinstance(e, MemoryError) and not NO_MEMORY.search(f"{type(e).__name__} {e}"):
            raise
        print(f"error: no memory is left: {UserError(one_line(e, 150))}", file=sys.stderr)
        sys.exit(1)
