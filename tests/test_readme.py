"""README.md, docs/ and baby/README.md cannot drift: commands are parsed by their own settings, names exist.

Read `check_command`; the tests apply it to every command, then check flags, names, links, tables, the tree of
files and the example.
"""

import json
import re
import shlex
import subprocess
from importlib import util
from pkgutil import resolve_name

import pytest
from conftest import ROOT

from baby.codec import CodecSettings
from baby.ear import EarSettings
from baby.edits import EditSettings
from baby.joins import JoinSettings
from baby.judge import JudgeSettings
from baby.phonemizer import PhonemizerSettings
from baby.prompts import PromptSettings
from baby.songs import SongSettings
from config import RECIPES, DPOConfig, EvaluateConfig, SampleConfig, TrainConfig, UserError
from lyrics.__main__ import COMMANDS as LYRICS
from lyrics.formats import KINDS
from sample import main
from songs.pairs import PairsConfig
from studio.__main__ import StudioConfig
from support.cli import parse, settings_of
from support.hub import ASSETS
from tools.bench import BenchConfig
from tools.prepare import PrepareConfig
from tools.shards import COMMANDS as SHARDS
from tools.solvers import SolversConfig

TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
         for path in [ROOT / "README.md", ROOT / "baby/README.md", *sorted((ROOT / "docs").glob("*.md"))]}
README = TEXTS["README.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = {name: FENCE.findall(text) for name, text in TEXTS.items()}
PROSE = {name: FENCE.sub("", text) for name, text in TEXTS.items()}
INLINE = sorted({" ".join(code.split()) for text in PROSE.values()
                 for code in re.findall(r"`([^`]+)`", text)})
LINES = [line for blocks in BLOCKS.values() for _, block in blocks for line in block.splitlines()]
COMMANDS = sorted({line.removeprefix("time ") for line in [*LINES, *INLINE]
                   if re.match(r"(time )?(\.venv/bin/)?(python|torchrun|pip) ", line)})
# The settings of a script or module, by the command's name where it has several.
SETTINGS = {"sample.py": SampleConfig, "train.py": TrainConfig, "train_dpo.py": DPOConfig,
            "evaluate.py": EvaluateConfig, "songs.pairs": PairsConfig, "tools.bench": BenchConfig,
            "tools.prepare": PrepareConfig, "baby.codec": CodecSettings, "baby.ear": EarSettings,
            "baby.joins": JoinSettings, "baby.judge": JudgeSettings,
            "baby.phonemizer": PhonemizerSettings, "baby.prompts": PromptSettings, "baby.songs": SongSettings,
            "tools.solvers": SolversConfig, "studio": StudioConfig, "baby.edits": EditSettings,
            "lyrics": {name: cls for name, (cls, _) in LYRICS.items()},
            "tools.shards": {name: cls for name, (cls, _) in SHARDS.items()}}
TORCHRUN = {"--nproc_per_node", "--max-restarts"}
CARRIED = {"title": "title", "artist": "artist", "sections": "sections", "voices": "voices",
           "backing": "backing", "lines": "line", "words": "word", "syllables": "syllable", "phones": "phone",
           "phonemes": "phonemes"}


def source_of(script):
    """The text of a script, or of a module that `-m` runs."""
    if script.endswith(".py"):
        return (ROOT / script).read_text(encoding="utf-8")
    spec = util.find_spec(script)
    assert spec is not None, f"there is no module {script}"
    if spec.submodule_search_locations:
        spec = util.find_spec(f"{script}.__main__")
    return (ROOT / spec.origin).read_text(encoding="utf-8")


def flags_of(script):
    """All flags of a script or module."""
    known = SETTINGS[script]
    classes = known.values() if isinstance(known, dict) else [known]
    return {"--config", "--help"} | {"--" + name.rstrip("_").replace("_", "-") for cls in classes
                                     for name in settings_of(cls)}


def check_command(line):
    """Let the settings of a command's script parse its flags; nothing is run.

    Raises: UserError, OSError or AssertionError for what does not exist, or a value that is refused.
    """
    program, *words = shlex.split(line)
    program = program.removeprefix(".venv/bin/")
    if program == "torchrun":
        first = next(i for i, word in enumerate(words) if word == "-m" or not word.startswith("-"))
        assert {word.partition("=")[0] for word in words[:first]} <= TORCHRUN
        words = words[first:]
    if program == "pip" or words[:2] == ["-m", "pytest"]:
        assert all((ROOT / word).is_file() for word in words if word.endswith((".txt", ".py")))
        return
    assert program in ("python", "torchrun"), f"{program} is not known here"
    script, *args = words[words[0] == "-m":]
    assert source_of(script)
    settings, args = SETTINGS.get(script), [word for word in args if word != "--help"]
    if "--edit" in args:                                     # a song's account, which is not here
        del args[args.index("--edit"):args.index("--edit") + 2]
    if isinstance(settings, dict):
        assert args and args[0] in settings, f"{script} has no command {args[:1]}"
        settings, args = settings[args[0]], args[1:]
    if settings is None:
        assert not any(word.startswith("-") for word in args), f"{script} has no flags"
    else:
        parse(settings, "", args, {name: row for name, row in RECIPES.items() if type(row) is settings})


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line):
    check_command(line)


def test_commands_run_in_the_environment():
    """Those of the README and docs/ do not depend on an activated .venv."""
    texts = "\n".join(text for name, text in TEXTS.items() if name != "baby/README.md")
    assert not re.findall(r"^(?:python|torchrun|pip) .*|`(?:python|torchrun|pip) [^`]*`", texts, re.MULTILINE)


@pytest.mark.parametrize("wrong", [
    "python sample.py --sed 1", "python sample.py --dtype float64", "python train.py --config pretrian",
    "python bench.py", "python -m lyrics sing a.txt", "python -m lyrics convert a.lrc",
    "python -m tools.shard validate shards", "python -m tools.prepare --song recordings",
    "torchrun --nproc=8 train.py", "python -m baby.judge --output runs", "python -m pytest tests/test_no.py"])
def test_wrong_commands_would_be_found(wrong):
    with pytest.raises((UserError, AssertionError, OSError)):
        check_command(".venv/bin/" + wrong)


def test_flags_exist():
    """Those in prose, tables and listings, too."""
    known = TORCHRUN.union(*map(flags_of, SETTINGS))
    for name, text in TEXTS.items():
        assert set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text)) <= known, name


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for text in TEXTS.values():
        assert set(re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)) <= targets


def test_first_screen():
    """What it is, how it sounds, two commands and what they print, in 40 of at most 190 lines."""
    first = "\n".join(README.splitlines()[:40])
    assert len(README.splitlines()) <= 190
    assert all(needed in first for needed in (
        "examples/hello.mp3", "\nmake song\n", "\nmake test\n", "seed 0, style alto", ".../song.wav"))


def test_tree_is_the_repository():
    """It lists the .py files and the folders at the root, each once and in one line."""
    block = next(block for _, block in BLOCKS["README.md"] if block.startswith(".\n"))
    entries = re.findall(r"^[├└]── (\S+) +\S.{10,}$", block, re.MULTILINE)
    assert len(entries) == len(block.splitlines()) - 1 == len(set(entries))
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or "README.md" not in done.stdout.splitlines():
        pytest.skip("not a git checkout")
    tracked = {name.split("/")[0] + "/" * ("/" in name) for name in done.stdout.splitlines()
               if (ROOT / name).exists()}
    assert set(entries) == {name for name in tracked if name.endswith((".py", "/")) and name[0] != "."}


def test_names_exist():
    """Functions in the diagram and in prose, tests, and files."""
    roots = [path.stem for path in ROOT.glob("*.py")] + "support lyrics songs tools studio baby".split()
    dotted = re.compile(rf"(?<![\w./-])(?:{'|'.join(roots)})(?:\.[A-Za-z_]\w*)+(?![\w/])")
    diagram = next(block for _, block in BLOCKS["README.md"] if "──>" in block)
    names = set(dotted.findall(diagram)).union(*(dotted.findall(code) for code in INLINE if " " not in code))
    names = {name for name in names if not (ROOT / name).is_file()}
    assert len(names) >= 8
    for name in names:
        resolve_name(name)
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for code in INLINE:
        if re.fullmatch(r"test_\w+", code):
            assert f"def {code}(" in tests, code
        elif re.fullmatch(r"(tests|weights|examples|baby|docs)/[\w./-]+", code):
            assert (ROOT / code).exists(), code


def headings(path):
    """The anchors that GitHub gives a file's headings."""
    found = re.findall(r"^#+ (.*)", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in found}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files_and_headings(name):
    source = ROOT / name
    links = re.findall(r"\]\((?!http)([^)]+)\)", source.read_text(encoding="utf-8"))
    assert links
    for link in links:
        file, _, anchor = link.partition("#")
        target = source.parent / file if file else source
        assert target.exists(), link
        assert not anchor or anchor in headings(target), link


def test_every_page_is_linked():
    assert all(f"]({name})" in README or name == "README.md" for name in TEXTS)


def test_table_of_formats():
    """docs/lyrics.md tells of each format what it keeps."""
    rows = dict(re.findall(r"^\| `(\w+)`: [^|]* \| ([^|]*) \|$", TEXTS["docs/lyrics.md"], re.MULTILINE))
    assert rows.keys() == KINDS.keys()
    for name, row in rows.items():
        told = {kind for kind, word in CARRIED.items() if re.search(rf"\b{word}\b", row)}
        assert told == set(KINDS[name].carries.split()), name


def test_table_of_downloads():
    """docs/jam-0.5.md names the source of each download, and its flag."""
    text = TEXTS["docs/jam-0.5.md"]
    for name, asset in ASSETS.items():
        source = asset.repo.removeprefix("https://github.com/").partition("/raw/")[0]
        row = next((line for line in text.splitlines() if f"`{source}`" in line), None)
        assert row and asset.flag in row, name


def test_the_example_and_its_mistake(tiny_folder, tmp_path, monkeypatch):
    """The JSON that the README shows sings, and the error that it shows is the error."""
    words = json.loads(next(block for kind, block in BLOCKS["README.md"] if kind == "json"))
    monkeypatch.chdir(tmp_path)
    command = shlex.split(next(line for line in COMMANDS if "my.json" in line))[2:]
    (tmp_path / "my.json").write_text(json.dumps(words))
    main([*command, "--model", str(tiny_folder)])
    assert (tmp_path / "my.flac").exists() and (tmp_path / "my.flac.json").exists()
    assert (tmp_path / "my.html").exists() and (tmp_path / "my.png").exists()
    words[1]["end"] = 0.9
    (tmp_path / "my.json").write_text(json.dumps(words))
    with pytest.raises(ValueError) as caught:
        main([*command, "--model", str(tiny_folder)])
    assert f"`error: {caught.value}`" in README
