"""bench.py: the bytes that it counts are those of the tensors that live."""

import torch

from bench import Peak, main


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


def test_table(capsys):
    """The stages of the README's table, of a model that computes in seconds."""
    main(["--preset", "baby", "--duration", "1", "--device", "cpu", "--dtype", "bfloat16"])
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "baby, bfloat16, cpu" and len(rows) == 6
    assert rows[1].startswith("network's weights") and rows[-1].startswith("at most, both loaded")
    assert float(rows[1].split()[-4]) == 0.01                # 5.3M weights of 2 bytes
