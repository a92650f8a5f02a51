"""tools/bench.py: the bytes that it counts are those of the tensors that live."""

import pytest
import torch

from tools.bench import main
from tools.suite import Peak


def test_peak():
    """A tensor that is counted twice, or still counted when it is gone."""
    with Peak() as peak:
        a = torch.zeros(1000)                                # 4000 bytes
        b = a + 1
        c = b[10:]                                           # a view takes nothing
        del b, c
        a = a * 2                                            # for a moment there are two
    assert peak.most == 8000 and peak.now == 4000
    del a
    assert peak.now == 0


@pytest.mark.slow
def test_training(capsys):
    """Memory that is counted without computing, and a share of the matrix rate that cannot be above 1."""
    args = ["--what", "train", "--preset", "baby", "--duration", "1", "--device", "cpu", "--dtype", "float32"]
    main([*args, "--steps", "1"])
    counted = capsys.readouterr().out.splitlines()
    assert counted[0] == "baby, float32, cpu" and counted[1].startswith("a step of 1 songs of 47 frames")
    weights = 6_221_975 * 4 / 2 ** 30                        # and gradients, and two moments: four times that
    assert 4 * weights < float(counted[1].split()[-2]) < 6 * weights
    main([*args, "--batch", "2"])
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 6 and 0 < float(rows[-1].split()[-2]) < 100
    assert float(rows[3].split()[-1]) == pytest.approx(2 / float(rows[2].split()[-1]), rel=0.01)


def test_table(capsys):
    """The stages of the README's table, of a model that computes in seconds."""
    main(["--preset", "baby", "--duration", "1", "--device", "cpu", "--dtype", "bfloat16"])
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "baby, bfloat16, cpu" and len(rows) == 6
    assert rows[1].startswith("network's weights") and rows[-1].startswith("at most, both loaded")
    assert float(rows[1].split()[-4]) == 0.012               # 6.2M weights of 2 bytes
    assert float(rows[2].split()[-4]) == 0.01                # 2.7M of 4 bytes
