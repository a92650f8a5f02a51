"""Checkpoints as folders that are whole or not there: step-000500/, and `last`, a link to the newest.

Read `writing` (how a folder appears), `newest` (which one a run goes on from), `finish` (what happens to the
older ones). train.py says what is in them. Whatever ends the process, at any moment, the previous one stays.
"""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from config import UserError

CONTENTS = "files.json"        # bytes of every other file; written last
LAST = "last"


def folder_of(out: Path, step: int) -> Path:
    return out / f"step-{step:06d}"


def sync(path: Path) -> None:
    """Have a file or a folder on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """A temporary folder to write to, which becomes `path` when the block ends well.

    Raises: UserError if it cannot be written (a full disk, a folder that is gone).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        sizes = {file.name: file.stat().st_size for file in sorted(temporary.iterdir())}
        (temporary / CONTENTS).write_text(json.dumps(sizes, indent=1))
        for file in [*temporary.iterdir(), temporary]:
            file.chmod(0o755 if file == temporary else 0o644)        # safetensors writes for its owner alone
            sync(file)
        if path.exists():                                    # a run that went back writes it again
            discard(path)
        temporary.rename(path)
        sync(path.parent)
    except (OSError, RuntimeError, SafetensorError) as e:    # torch's and safetensors' errors of writing
        reason = getattr(e, "strerror", None) or " ".join(str(e).split())[:120]
        before = newest(path.parent)
        kept = f"; {before} is whole" if before else ""
        raise UserError(f"{path}: cannot be written: {reason}{kept}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard(path: Path) -> None:
    """Delete a checkpoint; under its own name it is never there in part."""
    gone = path.with_name(f".{path.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def whole(path: Path) -> bool:
    """Whether every file of a checkpoint is there in its full length."""
    try:
        sizes = json.loads((path / CONTENTS).read_text())
        return bool(sizes) and all((path / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def existing(out: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    found = [path for path in out.glob("step-*") if path.name[5:].isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def newest(out: Path) -> Path | None:
    """The newest whole checkpoint; others are told of, and passed over."""
    for path in reversed(existing(out)):
        if whole(path):
            return path
        print(f"warning: {path}: is not whole; passed over", file=sys.stderr)
    return None


def finish(out: Path, path: Path, keep: int) -> None:
    """Let `last` lead to a checkpoint just written, and delete all but the newest `keep` (0: none)."""
    link = out / f".{LAST}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    link.replace(out / LAST)
    for old in existing(out)[:-keep] if keep else []:
        discard(old)


def sweep(out: Path) -> None:
    """Remove what killed runs left of folders that they were writing or deleting."""
    for left in [*out.glob(".step-*"), *out.glob(f".{LAST}.*")]:
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
