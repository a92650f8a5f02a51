"""The tensors of a TorchScript file, without its code.

Such a file is a zip archive: data.pkl is a pickle of nested modules, data/ holds the numbers of their
tensors, and code/ the source of their methods. Calling a method runs it, and it can write files, for example.
Read `script_tensors`, which opens data.pkl and data/ only.
"""

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from config import UserError

DTYPES = {"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
          "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
          "BoolStorage": torch.bool}


class Part:
    """A module: its attributes, tensors and other parts among them."""

    def __setstate__(self, state: object) -> None:
        self.__dict__ = state if isinstance(state, dict) else {}         # others need the module's own code


def rebuild(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    """A tensor from its place in a storage (n,). Raises: RuntimeError if it reaches beyond."""
    return storage.as_strided(size, stride, offset)


class Reader(pickle.Unpickler):
    """Reads data.pkl. A pickle can call what it names: here that is a part, a tensor, a dict or a list."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, folder: str):
        super().__init__(archive.open(f"{folder}data.pkl"))
        self.path, self.archive, self.folder = path, archive, folder

    def find_class(self, module: str, name: str) -> object:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module.split(".")[0] == "__torch__":
            return Part
        if module == "torch.jit._pickle":                    # a list, and the type of its items
            return lambda value, *kind: value
        known = {"torch._utils._rebuild_tensor_v2": rebuild, "collections.OrderedDict": dict}
        if f"{module}.{name}" not in known:
            raise UserError(f"{self.path}: holds {module}.{name}, which is no tensor")
        return known[f"{module}.{name}"]

    def persistent_load(self, about: tuple) -> Tensor:
        _, dtype, key, *_ = about
        return torch.frombuffer(bytearray(self.archive.read(f"{self.folder}data/{key}")), dtype=dtype)


def named(part: Part, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a part and of those in it, by their names: encoder.conv1.weight."""
    for name, value in vars(part).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Part):
            yield from named(value, f"{prefix}{name}.")


def script_tensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a TorchScript file by their names; None for a file of another kind.

    Raises: UserError if it holds what is no part of a network; one of READ_ERRORS, or BadZipFile, if it is
        corrupt.
    """
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        constants = [name for name in archive.namelist() if name.endswith("/constants.pkl")]
        if not constants:                                    # of torch.save
            return None
        return dict(named(Reader(path, archive, constants[0].removesuffix("constants.pkl")).load()))
