"""config.py: the command line, checkpoint configs, files written whole, and rules for every module."""

import ast
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import config
from cli import parse, preset_from_json, preset_to_json, read_json, replacing, run, settings_of
from config import PRESETS, BenchConfig, CodecConfig, Guidance, ModelConfig, Preset, SampleConfig, TrainConfig
from config import AlignConfig, AlignSettings, CheckConfig, ConvertConfig, PlanConfig, PlanSettings
from config import DataSettings, DPOConfig, EvaluateConfig, InspectConfig, PairsConfig, PrepareConfig
from config import ReadSettings, SingSettings, UserError, ValidateConfig, argument, setting

MODULES = ["config", "cli", "audio", "hub", "manifest", "model", "vae", "spoken", "phonemes", "lyrics",
           "formats", "plan", "karaoke", "align", "style", "data", "prepare", "processes", "checkpoint",
           "tracker", "train", "train_dpo", "sample", "bench", "evaluate", "pairs"]
# Which names hold an object of a settings class; a read of such a name's attribute is a use of the setting.
HOLDERS = {SampleConfig: {"cfg"}, TrainConfig: {"cfg"}, BenchConfig: {"cfg"}, SingSettings: {"cfg"},
           PairsConfig: {"cfg"},
           DataSettings: {"data"}, ModelConfig: {"config", "model"}, CodecConfig: {"config", "codec", "c"},
           Guidance: {"guidance", "default"}, Preset: {"preset"}}
FILES = {SampleConfig: ["sample", "manifest"], SingSettings: ["sample", "hub", "manifest"],
         PairsConfig: ["pairs"], TrainConfig: ["train", "tracker"],
         BenchConfig: ["bench"], DataSettings: ["data"]}
for cls in (ReadSettings, PlanConfig, CheckConfig, ConvertConfig, AlignConfig):
    HOLDERS[cls], FILES[cls] = {"cfg"}, ["lyrics"]
HOLDERS[DPOConfig], FILES[DPOConfig] = {"cfg"}, ["train_dpo"]
HOLDERS[EvaluateConfig], FILES[EvaluateConfig] = {"cfg"}, ["evaluate", "hub"]
for cls in (PrepareConfig, InspectConfig, ValidateConfig):
    HOLDERS[cls], FILES[cls] = {"cfg"}, ["prepare", "hub"]
for cls in (PlanSettings, AlignSettings):
    HOLDERS[cls], FILES[cls] = {"settings"}, ["plan", "align"]


@dataclasses.dataclass(frozen=True)
class Settings:
    name: str = setting("x", "a text")
    count: int = setting(3, "a whole number")
    rate: float = setting(0.5, "a number")
    flag: bool = setting(True, "a choice")
    path: Path | None = setting(None, "a path")
    maybe: float | None = setting(1.5, "a number or none")
    mode: str | None = setting("dual", "a name; none is one")
    weights: tuple[float, ...] | None = setting((1.0,), "numbers")
    long_name: int = setting(1, "two words")
    names: tuple[str, ...] | None = setting(None, "texts, again and again")


def mistake(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert str(caught.value).isprintable()
    return str(caught.value)


def settings(*argv: str) -> Settings:
    return parse(Settings, "A test.", list(argv))


@pytest.fixture
def file(tmp_path):
    def write(content: object) -> Path:
        path = tmp_path / "given.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path
    return write


@dataclasses.dataclass(frozen=True, kw_only=True)
class More(Settings):
    given: Path = argument("has to be given")
    out: Path | None = setting(None, "has a short name", "-o")


# The command line

def test_positions_and_short_names():
    """A file that is given without a flag; a base's settings lost to those of a class built on it."""
    got = parse(More, "", ["a.txt", "-o", "b", "--count", "5"])
    assert got == More(given=Path("a.txt"), out=Path("b"), count=5)
    assert "arguments are required: given" in mistake(parse, More, "", [])
    assert "b: no setting before it" in mistake(parse, More, "", ["a", "b"])


def test_defaults():
    assert settings() == Settings()


@pytest.mark.parametrize("argv, name, value", [
    (["--count", "0"], "count", 0), (["--count=-7"], "count", -7), (["--rate", "2"], "rate", 2.0),
    (["--rate", "0"], "rate", 0.0), (["--rate", "1e-3"], "rate", 0.001), (["--flag", "false"], "flag", False),
    (["--flag", "True"], "flag", True), (["--maybe", "none"], "maybe", None),
    (["--maybe", "0"], "maybe", 0.0), (["--long-name", "5"], "long_name", 5),
    (["--weights", "1,2.5"], "weights", (1.0, 2.5)), (["--weights=-1,0"], "weights", (-1.0, 0.0)),
    (["--weights", "none"], "weights", None), (["--path", "a/b"], "path", Path("a/b")),
    (["--path", "none"], "path", None), (["--name", "none"], "name", "none"),
    (["--names", "a,b:0.5", "--names", "none"], "names", ("a,b:0.5", "none")),
    (["--names", "a"], "names", ("a",)), (["--flag"], "flag", True), (["--flag=false"], "flag", False),
    (["--name", "a=b"], "name", "a=b"), (["--mode", "none"], "mode", "none")])
def test_values(argv, name, value):
    """0, False and None lost to a default; a whole number kept as int where a float is due."""
    got = settings(*argv)
    assert got == dataclasses.replace(Settings(), **{name: value})
    assert type(getattr(got, name)) is type(value)


def test_guidance_none_can_be_asked_for():
    """`none` is a guidance mode, not the absence of the setting."""
    assert parse(SampleConfig, "", ["--guidance", "none"]).guidance == "none"


@pytest.mark.parametrize("argv, fragments", [
    (["--cuont", "3"], ["unknown setting --cuont", "did you mean --count?"]),
    (["--longname=3"], ["did you mean --long-name?"]), (["--long_name", "3"], ["did you mean --long-name?"]),
    (["--coun", "3"], ["did you mean --count?"]), (["--zzz"], ["unknown setting --zzz", "--name, --count"]),
    (["word"], ["word: no setting before it"]), (["--count"], ["--count", "expected one argument"]),
    (["--count", "1.5"], ["--count 1.5: expected whole number"]),
    (["--count", "none"], ["expected whole number"]),
    (["--rate", "fast"], ["--rate fast: expected number"]), (["--flag", "yes"], ["expected true or false"]),
    (["--weights", "1;2"], ["--weights 1;2: expected numbers with commas"]),
    (["--maybe", ""], ["expected number"]),
    (["--config", "/no/file.json"], ["/no/file.json: No such file"])])
def test_mistakes_on_the_command_line(argv, fragments):
    """A typo silently ignored, or an error that does not help."""
    text = mistake(settings, *argv)
    assert all(fragment in text for fragment in fragments), text


def test_config_file(file):
    """Order: defaults < file < flag; every JSON type arrives as the setting's own."""
    given = {"count": 0, "rate": 2, "flag": False, "maybe": None, "weights": [1, 2], "path": "a",
             "mode": None}
    want = Settings(**given | {"rate": 2.0, "weights": (1.0, 2.0), "path": Path("a")})
    path = file(given)
    assert settings("--config", str(path)) == want
    assert settings("--count", "9", "--config", str(path)) == dataclasses.replace(want, count=9)


@pytest.mark.parametrize("ending", [".yaml", ".YML"])
def test_yaml(ending, tmp_path):
    """YAML's own types: yes and no are truth values, 1e-3 is a text, a list may be of texts."""
    path = tmp_path / f"given{ending}"
    path.write_text("# a song\ncount: 0\nflag: no\nrate: 1e-3\nmaybe: null\nweights: [1, 2.5]\nnames:\n"
                    "  - dream pop\n  - a.mp3:0.7\nmode: none\npath: a/b\n")
    assert settings("--config", str(path)) == Settings(
        count=0, flag=False, rate=0.001, maybe=None, weights=(1.0, 2.5), names=("dream pop", "a.mp3:0.7"),
        mode="none", path=Path("a/b"))


@pytest.mark.parametrize("content, fragments", [
    ("count: [", ["given.yaml: line 1, column 9: not YAML"]), ("a: b: c", ["line 1, column 5: not YAML"]),
    ("- 1", ["expected an object"]), ("!!python/object/apply:os.system [ls]", ["not YAML"]), ("", ["object"]),
    ("1: 2", ["unknown setting 1"]), ("weights: [[1]]", ["expected numbers"]), ("\0", ["not YAML"])])
def test_mistakes_in_yaml(content, fragments, tmp_path):
    """A YAML file that runs commands, or an error that names no place."""
    path = tmp_path / "given.yaml"
    path.write_text(content)
    text = mistake(settings, "--config", str(path))
    assert all(fragment in text for fragment in fragments), text


@pytest.mark.parametrize("content, fragments", [
    ({"cuont": 3}, ["given.json", "cuont", "did you mean count?"]),
    ({"count": "x"}, ["count", "expected whole number"]), ({"name": None}, ["name", "expected text"]),
    ({"count": 1.5}, ["expected whole number"]), ({"flag": 1}, ["expected true or false"]),
    ({"rate": {"a": 1}}, ["expected number"]), ({"rate": None}, ["expected number"]),
    ({"weights": []}, ["expected numbers"]), ([1], ["given.json: expected an object of settings"]),
    ('{"count": 3,}', ["given.json: line 1, column 13: not JSON"])])
def test_mistakes_in_a_config_file(content, fragments, file):
    """nanoGPT accepts a misspelt key and a text for a number in a file."""
    text = mistake(settings, "--config", str(file(content)))
    assert all(fragment in text for fragment in fragments), text


@pytest.mark.parametrize("cls", [SampleConfig, TrainConfig, DPOConfig, BenchConfig, PlanConfig, CheckConfig,
                                 ConvertConfig, AlignConfig, PrepareConfig, InspectConfig, ValidateConfig,
                                 EvaluateConfig])
def test_help_names_every_setting(cls, capsys, monkeypatch):
    """Help that drifts from the settings, or dies on a percent sign."""
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit) as caught:
        parse(cls, "A test.", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    for name, f, _ in settings_of(cls):
        if f.default is dataclasses.MISSING:
            assert name in text
        else:
            assert "--" + name.replace("_", "-") in text and f"(default: {f.default})" in text


def test_run_ends_with_one_line_and_code_2(capsys):
    """A user's mistake must not end in a traceback; ours must."""
    def fail(error):
        raise error
    with pytest.raises(SystemExit) as caught:
        run(lambda: fail(UserError("song.json: word 7\nis odd")))
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == ""
    assert err.startswith("error: song.json: word 7") and err.count("\n") == 1
    with pytest.raises(ZeroDivisionError):
        run(lambda: fail(ZeroDivisionError()))


# Checkpoint configs

@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_its_file(name, file):
    """A field that is forgotten, or a tuple that comes back as a list."""
    path = file(preset_to_json(PRESETS[name], step=7))
    assert preset_from_json(path) == PRESETS[name] and read_json(path)["step"] == 7


def broken(change):
    values = json.loads(preset_to_json(PRESETS["baby"]))
    change(values)
    return values


@pytest.mark.parametrize("content", [
    "", "{}", "[]", "7", "null", '{"guidance": {}}', broken(lambda v: v.pop("steps")),
    broken(lambda v: v["model"].pop("dim")), broken(lambda v: v["model"].update(width=3)),
    broken(lambda v: v.update(codec=None)), broken(lambda v: v.update(guidance=[1])),
    broken(lambda v: v["guidance"].update(scale=3)), broken(lambda v: v["codec"].update(kind="oobleck")),
    broken(lambda v: v["codec"].update(strides=[1.5])), broken(lambda v: v.pop("negative_style"))], ids=str)
def test_broken_preset(content, file):
    """A checkpoint folder with a foreign or older config.json."""
    path = file(content)
    assert mistake(preset_from_json, path).startswith(f"{path}: ")


def test_missing_preset(tmp_path):
    path = tmp_path / "config.json"
    assert mistake(preset_from_json, path) == f"{path}: No such file or directory"


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 5000, b"\xff"])
def test_read_json_has_no_other_errors(content, tmp_path):
    """The JSON reader's limits raise RecursionError and plain ValueError."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert mistake(read_json, path).startswith(f"{path}: ")


# Writing

def test_replacing_writes_whole_files(tmp_path):
    """A half-written file in place of a good one, or leftovers beside it."""
    path = tmp_path / "song.wav"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == path.parent
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["no/song.wav", "file/song.wav", "folder", "n" * 250 + ".wav"])
def test_replacing_explains_what_it_cannot_write(name, tmp_path):
    """No folder, a file for a folder, a folder for a file, a name that the temporary's is too long for."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()

    def write():
        with replacing(tmp_path / name) as temporary:
            temporary.write_text("new")
    assert mistake(write).startswith(f"{tmp_path / name}: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


# Groups of settings, and recipes

@dataclasses.dataclass(frozen=True)
class Inner:
    names: tuple[str, ...] = setting(("x",), "texts, again and again")
    pipe: bool = setting(False, "a choice")


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    count: int = setting(3, "a whole number")


SMALL = {"small": Outer(Inner(("a",), True), 1)}


@pytest.mark.parametrize("argv, want", [
    ([], Outer()), (["--config", "small"], SMALL["small"]),
    (["--inner.names", "a", "--inner.names", "b,c"], Outer(Inner(("a", "b,c")))),
    (["--config", "small", "--count", "5", "--inner.pipe", "no"], None),
    (["--config", "small", "--count", "5", "--inner.pipe", "false"], Outer(Inner(("a",), False), 5)),
    (["--config", "small", "--config", "FILE"], Outer(Inner(("f",), True), 7))])
def test_groups_and_recipes(argv, want, file):
    """A flag that resets its group's other settings; a file that does not win over the recipe before it."""
    path = str(file({"inner": {"names": ["f"]}, "count": 7}))
    argv = [path if word == "FILE" else word for word in argv]
    if want is None:
        assert mistake(parse, Outer, "", argv, SMALL) == "--inner.pipe no: expected true or false"
    else:
        assert parse(Outer, "", argv, SMALL) == want


@pytest.mark.parametrize("content, text", [({"inner": {"nmaes": []}}, "did you mean inner.names?"),
                                           ({"inner": 3}, "unknown setting inner"),
                                           ({"inner": {"names": [3]}}, "inner.names [3]: expected text")])
def test_mistakes_in_groups(content, text, file):
    assert text in mistake(parse, Outer, "", ["--config", str(file(content))], SMALL)
    assert mistake(parse, Outer, "", ["--config", "smal"], SMALL) == \
        "--config smal: expected small, or a JSON or YAML file"


# The whole house

def reads(name: str) -> set[tuple[str, str]]:
    """(holder, attribute) of every attribute that a module reads: `self.cfg.seed` gives ("cfg", "seed")."""
    nodes = ast.walk(ast.parse((ROOT / f"{name}.py").read_text()))
    return {(getattr(node.value, "attr", getattr(node.value, "id", "")), node.attr) for node in nodes
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


@pytest.mark.parametrize("cls", HOLDERS)
def test_no_dead_settings(cls):
    """The original's heads, dropout and seed can be set and change nothing."""
    files = FILES.get(cls, [name for name in MODULES if name != "config"])
    used = {attribute for name in files for holder, attribute in reads(name) if holder in HOLDERS[cls]}
    assert set(cls.__annotations__) - used == set()          # its own, not those of its base


def test_every_settings_class_is_scanned():
    """A new dataclass in config.py would escape the scan above."""
    classes = {c for c in vars(config).values() if isinstance(c, type) and dataclasses.is_dataclass(c)}
    assert classes == set(HOLDERS)


IMPORT_ALL = f"""
import os, random, sys
import numpy, torch
sys.path.insert(0, {str(ROOT)!r})
def state():
    return (torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
            dict(os.environ), torch.get_num_threads(), torch.get_num_interop_threads(),
            torch.is_grad_enabled(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled())
before = state()
for name in {MODULES!r}:
    __import__(name)
    assert state() == before, name
"""


def test_imports_are_silent_and_pure(tmp_path):
    """An import that prints, writes, draws random numbers, or changes its importer's threads."""
    env = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1",
           "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", IMPORT_ALL]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
