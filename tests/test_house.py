"""The house: which rooms there are, what imports what, how large everything is, that importing does nothing.

The code is read (ast), not run, except in the last test.
"""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
from conftest import ROOT

# In reading order.
METHOD = "config model sampler phonemes style sung vae data sample train train_dpo evaluate".split()
ROOMS = "lyrics songs support tools studio baby".split()
FILES = [ROOT / f"{name}.py" for name in METHOD] + [
    path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
           for path in FILES}
# What a module or a room may import of the project, besides itself.
PURE = {"config", "model", "sampler", "phonemes", "sung", "vae", "data", "support"}
ARROWS = {"config": set(), "support": {"config"}, "lyrics": {"config", "phonemes", "support"},
          "model": PURE, "sampler": PURE, "phonemes": PURE, "sung": PURE, "vae": PURE, "data": PURE}
# Code lines of a root module, of sample.py, of the root; of everything, and of that without its imports,
# which are the price of rooms; lines of a function.
LONGEST_FILE, LONGEST_SAMPLE, LONGEST_METHOD, LONGEST_ALL, IMPORTS_ASIDE = 300, 220, 2550, 11600, 10400
LONGEST_FUNCTION = 60


def code_lines(path: Path, imports: bool = True) -> int:
    """Lines that hold code: neither blank, nor comments, nor docstrings, nor, if so asked, imports."""
    text, lines = path.read_text(encoding="utf-8"), set()
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
              tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and not imports:
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def imports(path: Path) -> set[str]:
    """The project's modules that a file imports, inside functions, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inside}
    return found & MODULES.keys()


def room_of(module: str) -> str:
    return module.split(".")[0]


def test_the_root_is_the_method():
    assert sorted(path.stem for path in ROOT.glob("*.py")) == sorted(METHOD)
    assert all((ROOT / room / "__init__.py").is_file() for room in ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_arrows_go_one_way(module):
    """A method that knows of the product, a helper that knows of the method, a product that needs baby/, or
    anything but the studio that needs the studio."""
    imported = {room_of(name) for name in imports(MODULES[module])} - {room_of(module)}
    assert imported <= ARROWS.get(room_of(module), set(METHOD) | set(ROOMS) - {"baby", "studio"})


def test_there_is_no_circle():
    """Modules are taken away while one is left that imports none of the others; a circle stays."""
    left = {module: imports(path) - {module} for module, path in MODULES.items()}
    while free := [module for module, needs in left.items() if not needs & left.keys()]:
        for module in free:
            del left[module]
    assert not left, left


def test_every_file_is_read_in_one_sitting():
    sizes = {module: code_lines(path) for module, path in MODULES.items()}
    method = {module: sizes[module] for module in METHOD}
    assert max(method.values()) <= LONGEST_FILE, method
    assert sizes["sample"] <= LONGEST_SAMPLE
    assert sum(method.values()) <= LONGEST_METHOD, method
    assert sum(sizes.values()) <= LONGEST_ALL
    assert sum(code_lines(path, imports=False) for path in FILES) <= IMPORTS_ASIDE


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short_and_modules_say_what_they_answer(module):
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < LONGEST_FUNCTION, node.name
            assert len(node.args.args) + len(node.args.kwonlyargs) <= 9, node.name      # self and eight


def test_counting():
    """A count that docstrings, comments or strings of several lines fool."""
    path = Path(__file__)
    assert code_lines(ROOT / "lyrics" / "__init__.py") == 0 and 60 < code_lines(path) < 130
    assert code_lines(path) - code_lines(path, imports=False) == 8
    assert imports(ROOT / "sample.py") >= {"config", "model", "lyrics.plan", "songs.takes"}


IMPORT = """
import os, random, sys
import numpy, torch
sys.path.insert(0, {root!r})
def state():
    return (torch.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
            dict(os.environ), torch.get_num_threads(), torch.get_num_interop_threads(),
            torch.is_grad_enabled(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled())
before = state()
loads = []
torch.load = torch.jit.load = lambda *args, **kwargs: loads.append(args)
for name in {names!r}:
    __import__(name)
    assert state() == before, name
    assert not loads and not {rare!r} & sys.modules.keys(), name
"""
# Libraries that are imported where they are used, since not every command uses them, or that come late.
RARE = {"transformers", "muq", "torchaudio", "torchvision", "soundfile", "mutagen", "PIL", "dp", "inflect",
        "yaml", "huggingface_hub"}


def test_importing_does_nothing(tmp_path):
    """An import that prints, writes, loads a model or its library, draws numbers, or changes threads."""
    names = [name for name in MODULES if room_of(name) != "baby"]
    env = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1",
           "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", IMPORT.format(root=str(ROOT), names=names, rare=RARE)],
                          cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


SCRIPTS = ["sample.py", "train.py", "train_dpo.py", "evaluate.py", "-m lyrics", "-m lyrics align",
           "-m tools.prepare", "-m tools.shards inspect", "-m studio"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_line_is_read_before_torch_is_imported(script):
    """--help, or a misspelt setting, that takes as long as importing torch."""
    for flag, code in (("--help", 0), ("--hlep", 2)):
        done = subprocess.run([sys.executable, "-X", "importtime", *script.split(), flag], cwd=ROOT,
                              capture_output=True, text=True)
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert done.returncode == code and {"config", "argparse"} <= imported
        assert not {"torch", "numpy"} & imported
