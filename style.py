"""Style vectors: what a song should sound like, as (E,) numbers. A name that the model ships, or a saved vector."""

import pickle
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from config import STYLES, UserError

READERS = {".npy": lambda path: torch.from_numpy(np.load(path, allow_pickle=False)),
           ".pt": lambda path: torch.load(path, map_location="cpu", weights_only=True),
           ".safetensors": lambda path: next(iter(load_file(path).values()))}


def load_style(name: str, folder: Path, width: int) -> Tensor:
    """Find a style vector.

    Args: name of a style in folder/STYLES, or path of a .npy, .pt or .safetensors file; width E expected.
    Returns: (E,) float32.
    Raises: UserError if there is none, or it is not E finite numbers.
    """
    named = load_file(folder / STYLES) if (folder / STYLES).is_file() else {}
    path = Path(name)
    if name in named:
        style = named[name]
    elif path.suffix in READERS and path.is_file():
        try:
            style = READERS[path.suffix](path)
        except (OSError, ValueError, RuntimeError, EOFError, StopIteration, SafetensorError, pickle.UnpicklingError) as e:
            raise UserError(f"{path}: not a style vector: {' '.join(str(e).split())[:120]}") from None
    else:
        raise UserError(f"--style {name}: unknown; expected {', '.join(sorted(named)) or 'a file'}"
                        f"{' or a file' * bool(named)} ({', '.join(READERS)})")
    if not isinstance(style, Tensor) or style.numel() != width or not style.float().isfinite().all():
        raise UserError(f"--style {name}: expected {width} finite numbers")
    return style.float().reshape(width)
