"""tools/suite.py: the whole of both suites at tiny sizes, on a CPU; what is compared is the same."""

import dataclasses
import json

import pytest
import torch

from config import PRESETS, UserError
from model import DiT
from sampler import guided
from tools import suite
from tools.bench import main
from tools.suite import MIDDLE, Report, Sizes, as_published, cpu, gpu, in_turn, song

CPU = torch.device("cpu")


@pytest.fixture
def sizes(tiny_preset):
    """Networks and songs that compute in milliseconds; the codec of JAM-0.5 is as narrow."""
    jam = PRESETS["jam-0.5"]
    codec = dataclasses.replace(jam.codec, latent_dim=27, width=2, decoder_width=2)
    preset = dataclasses.replace(jam, model=tiny_preset.model, codec=codec)
    return Sizes(preset, tiny_preset, seconds=(1.0,), crops=(32,), full_width=32)


@pytest.mark.parametrize("run, count", [
    pytest.param(gpu, 1 + 2 + 1 + 2 * 5 + 1, marks=pytest.mark.slow), (cpu, 1 + 2 * 3)])
def test_suites(run, count, sizes, tmp_path, capsys):
    """A suite that stops amid a machine's time, or a column that stays empty."""
    run(Report(tmp_path / "all", CPU), sizes)
    made = json.loads((tmp_path / "all.json").read_text())
    assert "1 threads, torch 2" in made["machine"]
    assert len(made["rows"]) == len(capsys.readouterr().out.splitlines()) == count
    for row in made["rows"]:
        assert len(row) > 2
        assert all(value > 0 for key, value in row.items() if key.endswith(("_s", "_share", "_gib")))
    lines = (tmp_path / "all.md").read_text().splitlines()
    assert len(lines) == 4 + count and len({line.count("|") for line in lines[2:]}) == 1
    if run is gpu:
        errors, songs = made["rows"][1:3], made["rows"][4:9]
        assert errors[0]["plain_error"] == 0 and errors[0]["ours_error"] < 1e-5
        assert 1e-4 < errors[1]["ours_error"] < 0.1
        assert [row["what"] for row in songs[3:]] == [
            "sampling 1 s, 13 points of abm", "song of 1 s, 13 points of abm"]
        assert songs[4]["ours_s"] > songs[3]["ours_s"] and songs[4]["dtype"] == "bfloat16"


def test_published_step(sizes):
    """A comparison of two different things: both are the same velocity."""
    torch.manual_seed(0)
    network = DiT(sizes.preset.model).requires_grad_(False)
    batch, noise, negative = song(sizes.preset, 40, CPU)
    guidance = sizes.preset.guidance
    ours = guided(network, batch, guidance, negative)(noise, MIDDLE)
    torch.testing.assert_close(as_published(network, batch, guidance, negative)(noise, MIDDLE), ours)


def test_turns():
    """Works that are measured one after the other, so that a busy moment hits one of them alone."""
    turns = []
    taken = in_turn({name: lambda name=name: turns.append(name) for name in "ab"}, CPU, rounds=2)
    assert turns == ["a", "b"] * 3 and taken.keys() == {"a", "b"}


def test_a_gpu_is_needed(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--suite gpu: expected --device cuda, not cpu"):
        main(["--suite", "gpu", "--device", "cpu", "--out", str(tmp_path)])
    monkeypatch.setattr(suite, "cpu", lambda report, sizes: report.add("a", "float32", ours_s=1.5))
    main(["--suite", "cpu", "--out", str(tmp_path / "new")])
    assert json.loads((tmp_path / "new" / "cpu.json").read_text())["rows"][0]["ours_s"] == 1.5
