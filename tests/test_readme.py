"""The README is executed: its commands, its flags, its table of files, its example."""

import json
import re
import shlex
import subprocess

import pytest
from conftest import ROOT

from cli import settings_of
from config import BenchConfig, DPOConfig, EvaluateConfig, SampleConfig, TrainConfig
from lyrics import COMMANDS as COMMANDS_OF_LYRICS
from prepare import COMMANDS as COMMANDS_OF_DATA
from sample import main

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [shlex.split(line) for kind, block in BLOCKS for line in block.splitlines()
            if line.startswith(".venv/bin/")]


def flags_of(script):
    """The flags that a script knows."""
    classes = {"sample.py": [SampleConfig], "train.py": [TrainConfig],
               "train_dpo.py": [DPOConfig], "bench.py": [BenchConfig],
               "evaluate.py": [EvaluateConfig],
               "lyrics.py": [config for config, _ in COMMANDS_OF_LYRICS.values()],
               "data.py": [config for config, _ in COMMANDS_OF_DATA.values()]}
    if script in classes:
        names = [name for config in classes[script] for name, *_ in settings_of(config)]
        return {"--" + name.replace("_", "-") for name in names} | {"--config", "--help"}
    return set(re.findall(r'add_argument\("(--[\w-]+)"', (ROOT / script).read_text(encoding="utf-8")))


def test_there_are_commands():
    assert len(COMMANDS) >= 5 and any("sample.py" in c for c in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_name_files_and_flags_that_exist(command):
    if command[0].endswith("pip"):
        assert (ROOT / command[-1]).is_file()
        return
    script = next(i for i, word in enumerate(command) if word.endswith(".py"))        # torchrun has its own
    assert (ROOT / command[script]).is_file()
    assert {word for word in command[script:] if word.startswith("--")} <= flags_of(command[script])


def test_flags_in_prose_exist():
    named = set(re.findall(r"`(--[\w.-]+)", README))
    scripts = ("sample.py", "train.py", "train_dpo.py", "bench.py", "lyrics.py", "data.py", "evaluate.py")
    assert named and named <= set().union({"--max-restarts"}, *map(flags_of, scripts))


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([\w-]+)", README, re.MULTILINE)) <= targets


def test_table_of_files_is_the_tree():
    listed = set(re.findall(r"^\| `([\w./]+)` \|", README, re.MULTILINE))
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode or "README.md" not in done.stdout.splitlines():
        pytest.skip("not a git checkout")
    tracked = {name if "/" not in name else name.split("/")[0] + "/" for name in done.stdout.splitlines()}
    tracked = {name for name in tracked if name.endswith((".py", "/")) and not name.startswith(".")}
    assert {name for name in listed if name.count("/") < 1 or name in tracked} == (tracked - {"weights/"})
    assert all((ROOT / name).exists() for name in listed)


def test_the_example_and_its_mistake(tiny_folder, tmp_path, monkeypatch):
    """The JSON that the README shows sings, and the error that it shows is the error."""
    words = json.loads(next(block for kind, block in BLOCKS if kind == "json"))
    monkeypatch.chdir(tmp_path)
    command = next(c for c in COMMANDS if "my.json" in c)[2:]
    (tmp_path / "my.json").write_text(json.dumps(words))
    main([*command, "--model", str(tiny_folder)])
    assert (tmp_path / "my.flac").exists() and (tmp_path / "my.flac.json").exists()
    assert (tmp_path / "my.html").exists() and (tmp_path / "my.png").exists()
    words[1]["end"] = 0.9
    (tmp_path / "my.json").write_text(json.dumps(words))
    with pytest.raises(ValueError) as caught:
        main([*command, "--model", str(tiny_folder)])
    assert f"error: {caught.value}\n" in README


def test_links_lead_to_files_and_headings():
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    headings = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-")
                for line in re.findall(r"^#+ (.*)", README, re.MULTILINE)}
    assert links and all(link[1:] in headings if link[0] == "#" else (ROOT / link.split("#")[0]).is_file()
                         for link in links)
