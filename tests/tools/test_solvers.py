"""tools/solvers.py: the tables and the plot of a tiny model, and a run that goes on where it was ended."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from tools import solvers
from tools.solvers import EULER, FAST, WINDOW, Case, main, table_of_errors


def test_best():
    """A bold sampler that errs more than 48 calls of Euler, or is not the cheapest."""
    errors = {EULER: (0.02, 0.04), FAST: (0.03, 0.03), Case("ab2", 12): (0.02, 0.03),
              Case("ab2", 8): (0.0, 0.07), Case("ab2", 16): (0.01, 0.01)}
    errors = {case: np.array(values) for case, values in errors.items()}
    rows = table_of_errors(errors)[2:]
    assert [row.count("**") for row in rows] == [0, 10, 0, 0, 0]
    assert rows[1] == "| **12** | **ab2** | **0** | **2.50%** | **3.00%** |"
    assert rows[-1].startswith("| 48 | euler")


@pytest.mark.slow
def test_page(tiny_folder, tmp_path, monkeypatch, capsys):
    """Prose that is overwritten, numbers that are computed again, a curve without points."""
    fine = Case("abm", 40, -0.5)
    monkeypatch.setattr(solvers, "GRID", [EULER, FAST, Case("euler", 8), Case("euler", 12)])
    monkeypatch.setattr(solvers, "REFERENCE", fine)
    monkeypatch.setattr(solvers, "FINER", Case("abm", 80, -0.5))
    monkeypatch.setattr(solvers, "HEARD", [("fast", FAST, fine, None), ("window", WINDOW, FAST, 1)])
    monkeypatch.setattr(solvers, "SINGERS", ("female", "male"))
    lyrics, page = tmp_path / "lyrics.txt", tmp_path / "solvers.md"
    lyrics.write_text("good morning\nto you\nmy friend\nhello\nhello\nhello\n")
    page.write_text("# Solvers\n\nProse.\n\n## Numbers\n\nold\n")
    args = ["--model", str(tiny_folder), "--lyrics", str(lyrics), "--work", str(tmp_path / "work"), "--out",
            str(tmp_path), "--device", "cpu", "--songs"]
    main([*args, "2"])
    text = page.read_text()
    assert text.startswith("# Solvers\n\nProse.\n\n## Numbers\n\n| calls |") and "old" not in text
    assert len(re.findall(r"^\| (?:\*\*)?\d", text, re.MULTILINE)) == 4
    heard = [row.split(" | ") for row in re.findall(r"^\| (?:fast|window) .*", text, re.MULTILINE)]
    assert [row[1] for row in heard] == ["2", "1"] and heard[1][2].startswith("fast: ")
    assert 0 < float(heard[1][2].split()[1].rstrip("%")) and "own error, against 80 calls" in text
    plot = ElementTree.fromstring((tmp_path / "solvers.svg").read_text())
    assert len(plot.findall("{*}circle")) == 4 and capsys.readouterr().out.count(".safetensors") == 2 * 5 + 2
    main([*args, "2"])
    assert ".safetensors" not in capsys.readouterr().out and page.read_text() == text
