"""support/cli.py: the command line, its help, settings files, and how mistakes end."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from config import DPOConfig, EvaluateConfig, SampleConfig, Settings, TrainConfig, UserError, one_of, within
from lyrics import __main__ as lyrics_commands
from songs.pairs import PairsConfig
from support.cli import flag_of, parse, run, settings_of
from tools.bench import BenchConfig
from tools.prepare import PrepareConfig
from tools.shards import InspectConfig, ValidateConfig


@dataclasses.dataclass(frozen=True)
class Some(Settings):
    name: str = "x"                             # a text
    count: int = 3                              # a whole number, which goes on
                                                #   in a second line
    # numbers
    rate: float = 0.5                           # 5 % of them
    flag: bool = True                           # a choice
    path: Path | None = None                    # a path
    maybe: float | None = 1.5                   # a number or none
    mode: str | None = "dual"                   # a name; none is one
    weights: tuple[float, ...] | None = (1.0,)  # numbers
    long_name: int = 1                          # two words
    names: tuple[str, ...] | None = None        # texts, again and again


def mistake(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert str(caught.value).isprintable()
    return str(caught.value)


def settings(*argv: str) -> Some:
    return parse(Some, "A test.", list(argv))


@pytest.fixture
def file(tmp_path):
    def write(content: object) -> Path:
        path = tmp_path / "given.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path
    return write


@dataclasses.dataclass(frozen=True, kw_only=True)
class More(Some):
    given: Path                                 # has to be given
    out: Path | None = None                     # has a short name


@dataclasses.dataclass(frozen=True)
class Inner(Settings):
    prefix = "inner."
    # inside
    names: tuple[str, ...] = ("x",)             # texts, again and again
    pipe: bool = False                          # a choice
    size: int = within(1, 0, 5)                 # up to 5


@dataclasses.dataclass(frozen=True)
class Outer(Settings):
    inner: Inner = Inner()
    count: int = 3                              # a whole number


SMALL = {"small": Outer(Inner(("a",), True), 1)}


# The command line

def test_positions_and_short_names():
    """A file that is given without a flag; a base's settings lost to those of a class built on it."""
    got = parse(More, "", ["a.txt", "-o", "b", "--count", "5"])
    assert got == More(given=Path("a.txt"), out=Path("b"), count=5)
    assert "arguments are required: given" in mistake(parse, More, "", [])
    assert "b: no setting before it" in mistake(parse, More, "", ["a", "b"])


def test_defaults():
    assert settings() == Some()


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
    assert got == dataclasses.replace(Some(), **{name: value})
    assert type(getattr(got, name)) is type(value)


def test_a_name_that_python_keeps_for_itself():
    """--from-, or --from that nobody reads."""
    assert parse(SampleConfig, "", ["--from", "2.5"]).from_ == 2.5
    assert "did you mean --from?" in mistake(parse, SampleConfig, "", ["--fromm", "2.5"])


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
    want = Some(**given | {"rate": 2.0, "weights": (1.0, 2.0), "path": Path("a")})
    path = file(given)
    assert settings("--config", str(path)) == want
    assert settings("--count", "9", "--config", str(path)) == dataclasses.replace(want, count=9)


def test_names_of_files_that_are_not_utf_8(file):
    """Bytes of a command line become single surrogates, which an account carries on."""
    odd = os.fsdecode(b"caf\xe9.mp3")
    assert settings("--config", str(file({"name": odd, "names": [odd]}))) == Some(name=odd, names=(odd,))
    assert settings("--path", odd).path == Path(odd)


@pytest.mark.parametrize("ending", [".yaml", ".YML"])
def test_yaml(ending, tmp_path):
    """YAML's own types: yes and no are truth values, 1e-3 is a text, a list may be of texts."""
    path = tmp_path / f"given{ending}"
    path.write_text("# a song\ncount: 0\nflag: no\nrate: 1e-3\nmaybe: null\nweights: [1, 2.5]\nnames:\n"
                    "  - dream pop\n  - a.mp3:0.7\nmode: none\npath: a/b\n")
    assert settings("--config", str(path)) == Some(
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
    ({"weights": []}, ["expected numbers"]),
    ({"name": "a\0b"}, ["name a\\x00b: holds a NUL"]), ({"path": "\ud800"}, ["path \\ud800: holds a"]),
    ({"names": ["a", "b\0"]}, ["names", "NUL"]), ({"names": ["\udc00\ud800"]}, ["half of a surrogate pair"]),
    ({"a\0\ud800": 1}, ["unknown setting a\\x00\\ud800"]),
    ([1], ["given.json: expected an object of settings"]),
    ('{"count": 3,}', ["given.json: line 1, column 13: not JSON"])])
def test_mistakes_in_a_config_file(content, fragments, file):
    """nanoGPT accepts a misspelt key and a text for a number in a file."""
    text = mistake(settings, "--config", str(file(content)))
    assert all(fragment in text for fragment in fragments), text


@pytest.mark.parametrize("argv, text", [
    (["--most", "11"], "--most 11: expected 0 to 10"),
    (["--least", "nan"], "--least nan: expected 1 or more"),
    (["--least", "inf"], "--least inf: expected 1 or more"),
    (["--above", "0"], "--above 0.0: expected more than 0"),
    (["--above", "1e-300"], None), (["--kind", "c"], "--kind c: expected one of a, b"),
    (["--most", "0"], None), (["--kind", "b"], None)])
def test_ranges_and_choices(argv, text):
    """A range check that lets NaN through, or one for every setting and none for the next."""
    @dataclasses.dataclass(frozen=True)
    class Ranged(Settings):
        most: int = within(3, 0, 10)            # an end is inside
        least: float = within(2.0, 1)           # without an upper end
        above: float = within(1.0, 5e-324)      # more than 0
        kind: str | None = one_of("a", ("a", "b"))      # one of several, or none
    if text:
        assert mistake(parse, Ranged, "", argv) == text
    else:
        parse(Ranged, "", argv)
    assert mistake(parse, Outer, "", ["--inner.size", "9"]) == "--inner.size 9: expected 0 to 5"


def test_a_file_without_its_flag():
    """sample.py song.txt"""
    assert mistake(parse, SampleConfig, "", ["song.txt"]) == "song.txt: did you mean --lyrics song.txt?"


def test_help_is_read_from_comments(capsys):
    """A comment that is cut, or put to another setting; groups that are mixed up."""
    assert settings_of(Some)["count"][3:] == ("", "a whole number, which goes on in a second line")
    assert settings_of(More)["rate"][3:] == ("numbers", "5 % of them")
    assert settings_of(More)["out"].group == ""
    assert settings_of(Outer)["inner.pipe"] == (bool, False, False, "inside", "a choice")
    with pytest.raises(SystemExit):
        parse(More, "What it does.\n\n    python it.py x\n\nMore.", ["--help"])
    text = capsys.readouterr().out
    assert "What it does." in text and "examples:\n  python it.py x" in text and "More." not in text
    assert text.index("numbers:") < text.index("--rate") and "5 % of them (default: 0.5)" in text
    assert "-o PATH, --out PATH" in text and "None" not in text and "given [settings]" in text


CLASSES = [SampleConfig, TrainConfig, DPOConfig, EvaluateConfig, PairsConfig, BenchConfig, PrepareConfig,
           InspectConfig, ValidateConfig, *(cls for cls, _ in lyrics_commands.COMMANDS.values())]


@pytest.mark.parametrize("cls", CLASSES)
def test_help_names_every_setting(cls, capsys, monkeypatch):
    """Help that drifts from the settings, or dies on a percent sign; a setting without a word."""
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit) as caught:
        parse(cls, "A test.", ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0 and "(default: None)" not in text
    for name, (_, _, default, group, about) in settings_of(cls).items():
        assert about and about in text and group in text
        assert (name if default is dataclasses.MISSING else flag_of(name)) in text
        hidden = default in (None, False, dataclasses.MISSING) or isinstance(default, tuple)
        if not hidden and "default:" not in about:
            assert f"(default: {default})" in text


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


@pytest.mark.parametrize("error, text", [
    (OSError(36, "File name too long", "x\n"), "x\\n: File name too long"),
    (OSError(28, "No space left on device"), "No space left on device"),
    (MemoryError(), "no memory is left: MemoryError"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nSee"),
     "no memory is left: CUDA out of memory. Tried to allocate 20 GiB. See"),
    (RuntimeError("CUDA error: out of memory\nCompile"), "no memory is left: CUDA error: out of memory Com"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "no memory is left: Default")])
def test_what_the_machine_refuses_is_one_line_and_code_1(error, text, capsys):
    """A traceback for a full disk or GPU; a RuntimeError of our own that passes for one of these."""
    def fail(error):
        raise error
    with pytest.raises(SystemExit) as caught:
        run(lambda: fail(error))
    out, err = capsys.readouterr()
    assert caught.value.code == 1 and out == ""
    assert err.startswith(f"error: {text}") and err.count("\n") == 1
    with pytest.raises(RuntimeError):
        run(lambda: fail(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


PRINTS = "from support.cli import run; run(lambda: print('x' * {}))"


@pytest.mark.parametrize("count", [10, 100_000])
@pytest.mark.parametrize("command, code, error", [
    ("{} | true; exit ${{PIPESTATUS[0]}}", 141, ""),         # the reader has gone before the first word
    ("{} > /dev/full", 1, "error: No space left on device\n")])
def test_output_that_nobody_takes(command, code, error, count):
    """`| head` with a traceback, or "Exception ignored" after the end; output lost with exit code 0."""
    line = command.format(f"(sleep 0.3; exec {sys.executable} -c \"{PRINTS.format(count)}\")")
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, error)


INTERRUPTED = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)"


@pytest.mark.parametrize("script", ["sample.py", "evaluate.py x", "-m tools.prepare", "-m tools.bench",
                                    "-m lyrics plan examples/song.txt", "-m tools.shards validate x"])
def test_ctrl_c_while_starting(script, tmp_path):
    """A traceback through the imports, which take seconds; the key is pressed when torch's begins."""
    (tmp_path / "torch.py").write_text(INTERRUPTED)
    done = subprocess.run([sys.executable, *script.split()], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(tmp_path)}, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) in ((-2, "", ""), (130, "", ""))


# Groups of settings, and recipes

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
        "--config smal: did you mean small? expected small, or a JSON or YAML file"


@pytest.mark.parametrize("content, name", [
    ({"trust_vae": True}, "trust_vae"), ({"scorer": "evil:run"}, "scorer"), ({"scorer": "a.b:c:2"}, "scorer"),
    ({"data": {"pipe": True}}, "data.pipe"), ({"data.pipe": "true"}, "data.pipe")])
def test_files_do_not_let_code_run(tmp_path, content, name):
    """A settings file from a stranger that imports a module or starts a command."""
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"x.json: {name} .*: lets code run; only a flag may: --"):
        parse(TrainConfig if "data" in name else SampleConfig, "", ["--config", str(tmp_path / "x.json")])


def test_an_account_of_a_model_that_is_gone(tmp_path):
    """Another song, in another voice, where the same one was asked for."""
    path = tmp_path / "old.wav.json"
    path.write_text(json.dumps({"settings": {"seed": 3}, "request": {"preset": {"codec": {"kind": "mel"}}}}))
    with pytest.raises(UserError, match="old.wav.json: the embedded model that sang this, .* is gone"):
        parse(SampleConfig, "", ["--config", str(path)])
