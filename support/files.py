"""Text files read with good errors; files written whole or not at all; folders for one run at a time.

Read `reading` (a broken file becomes one line), `replacing` (a file appears whole), `hold`, `find`.
"""

import codecs
import contextlib
import fcntl
import glob
import json
import os
import socket
import tempfile
import time
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from config import READ_ERRORS, UserError

ROOT = Path(__file__).resolve().parents[1]
LOCK = ".lock"                 # in folders that one run at a time may write to
RANDOM = "????????"            # in the names of temporary files
HELD: dict[Path, int] = {}     # folders that this process holds, and their locks, open while it lives


def one_line(error: object, most: int = 120) -> str:
    """An error as one line of text, with its class where the text alone says nothing (KeyError)."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())[:most]
    name = type(error).__name__
    return f"{name}: {text}" if text and isinstance(error, LookupError) else text or name


def describe(error: Exception) -> str:
    """An error as one line: a user's mistake as it is, any other with its class."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text[:300]}"


@contextlib.contextmanager
def reading(place: object, problem: str = "", *more: type[Exception]) -> Iterator[None]:
    """Turn what reading a corrupt file raises, READ_ERRORS and `more`, into a UserError.

    Its text is "place: problem: reason"; a UserError inside passes as it is.
    """
    try:
        yield
    except UserError:
        raise
    except (*READ_ERRORS, SafetensorError, *more) as e:
        raise UserError(": ".join(filter(None, (str(place), problem, one_line(e))))) from None


def read_text(path: Path) -> str:
    """A text in UTF-8, with or without a byte order mark, or in UTF-16 with one; its lines end with \\n.

    Raises: UserError if the file is missing or is no such text.
    """
    try:
        content = path.read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: byte {e.start}: not {'UTF-16' if wide else 'UTF-8'} text") from None
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> typing.Any:
    """Read a JSON file. Raises: UserError if it is missing or unreadable, or not JSON."""
    return json_of(read_text(path), str(path))


def json_of(text: str, name: str) -> typing.Any:
    """The value of a JSON text. Raises: UserError, with file, line and column."""
    try:
        return json.loads(text)
    except (RecursionError, ValueError) as e:        # also nested too deep, a number of too many digits
        where = f"line {e.lineno}, column {e.colno}: " if isinstance(e, json.JSONDecodeError) else ""
        raise UserError(f"{name}: {where}not JSON: {getattr(e, 'msg', None) or one_line(e)}") from None


def read_yaml(path: Path) -> typing.Any:
    """Read a YAML file. Raises: UserError, with line and column, if it is not one."""
    import yaml

    text = read_text(path)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        mark = getattr(e, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path}: {where}not YAML: {getattr(e, 'problem', None) or one_line(e)}") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, an empty file, and rename it to `path` on success.

    Its name cannot be guessed. It is locked: a lock ends with its process, and so tells which temporary files
    of this path killed runs have left; they are removed.
    Raises: UserError if it cannot be written.
    """
    temporary = None
    try:
        sweep(path.parent.glob(f".{glob.escape(path.name)}.{RANDOM}.tmp"))
        handle, temporary = locked_beside(path)
        with open(handle, "rb"):
            yield temporary
            temporary.chmod(0o666 & ~umask())                # safetensors writes for its owner alone
            temporary.replace(path)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror or e}") from None
    finally:
        with contextlib.suppress(OSError):
            if temporary:
                temporary.unlink(missing_ok=True)


def locked_beside(path: Path) -> tuple[int, Path]:
    """A new, empty, locked file beside `path`: its descriptor and its name, .NAME.xxxxxxxx.tmp."""
    while True:
        handle, name = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:                                      # a file system without locks
            os.close(handle)
            os.unlink(name)
            raise
        if os.path.exists(name):                             # no `sweep` came before the lock
            return handle, Path(name)
        os.close(handle)


def sweep(temporary: Iterable[Path]) -> None:
    """Remove temporary files whose processes have ended."""
    for left in temporary:
        with contextlib.suppress(OSError):
            if left.is_file() and not left.is_symlink():
                with left.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def umask() -> int:
    """The rights that new files do not get."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def hold(folder: Path, main: bool = True, patience_s: float = 5.0) -> None:
    """Keep other runs out of a folder until this process ends, however it ends.

    The main process of a run comes first and must be alone; it removes temporary files that killed runs left.
    Its other processes join it afterwards. Processes of a run whose main process was killed keep the folder,
    too: they get patience_s to end.
    Raises: UserError, which says who holds it.
    """
    if folder.resolve() in HELD:
        return
    with reading(folder):
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    began = time.monotonic()
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, (fcntl.LOCK_EX if main else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            break
        if time.monotonic() - began > patience_s:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            raise UserError(f"{folder}: another run is at work here: {holder}")
        time.sleep(0.1)
    if main:
        os.truncate(handle, 0)
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}, since {when}\n".encode(), 0)
        fcntl.flock(handle, fcntl.LOCK_SH)
        sweep(folder.rglob(f".*.{RANDOM}.tmp"))
    HELD[folder.resolve()] = handle


def release() -> None:
    """Let go of the folders. A process made by fork does: it would keep them when its parent is gone."""
    for handle in HELD.values():
        os.close(handle)
    HELD.clear()


os.register_at_fork(after_in_child=release)


def write_text(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write a whole text file; letters that the encoding lacks are escaped. Raises: UserError."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding=encoding, errors="backslashreplace")


def write_json(path: Path, value: object, **how: object) -> None:
    """Write a whole JSON file; paths and the like become texts. Raises: UserError."""
    write_text(path, json.dumps(value, default=str, indent=1, **how))


def make_folder(path: Path, flag: str = "--out") -> None:
    """Make a folder and its parents. Raises: UserError, naming the flag."""
    with reading(f"{flag} {path}"):
        path.mkdir(parents=True, exist_ok=True)


def find(path: Path) -> Path:
    """A relative path as it is or, if nothing is there, inside this repository: for the defaults."""
    own = ROOT / path
    return own if not path.exists() and own.exists() else path
