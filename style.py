"""Style vectors: what a song should sound like, as (E,) numbers.

A name that the model ships, or a saved vector.
"""

import os
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from config import READ_ERRORS, STYLES, UserError


def only(tensors: dict[str, Tensor]) -> Tensor:
    """The one tensor of a file. Raises: ValueError if it holds several."""
    if len(tensors) != 1:
        raise ValueError(f"{len(tensors)} tensors ({', '.join(sorted(tensors))[:60]}); expected one")
    return next(iter(tensors.values()))


READERS = {".npy": lambda path: torch.from_numpy(np.load(path, allow_pickle=False)),
           ".pt": lambda path: torch.load(path, map_location="cpu", weights_only=True),
           ".safetensors": lambda path: only(load_file(path))}


def load_style(name: str, folder: Path, width: int) -> Tensor:
    """Find a style vector.

    Args: name of a style in folder/STYLES, or path of a .npy, .pt or .safetensors file; width E expected.
    Returns: (E,) float32.
    Raises: UserError if there is none, or it is not E finite numbers.
    """
    path, shipped = Path(name), folder / STYLES
    try:
        named = load_file(shipped) if shipped.is_file() else {}
    except (OSError, SafetensorError) as e:
        raise UserError(f"{shipped}: {e}") from None
    if name in named:
        style = named[name]
    elif path.suffix in READERS and os.path.isfile(path):
        try:
            style = READERS[path.suffix](path)
        except (*READ_ERRORS, SafetensorError) as e:
            raise UserError(f"{path}: not a style vector: {' '.join(str(e).split())[:120]}") from None
    else:
        raise UserError(f"--style {name}: unknown; expected {', '.join(sorted(named)) or 'a file'}"
                        f"{' or a file' * bool(named)} ({', '.join(READERS)})")
    if (not isinstance(style, Tensor) or style.is_complex() or style.numel() != width
            or not style.float().isfinite().all()):
        raise UserError(f"--style {name}: expected {width} finite numbers")
    return style.float().reshape(width)
