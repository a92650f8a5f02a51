"""The folder of a project. A killed process leaves it as it was after the last whole change.

    project.json         the document and its revision, which counts its changes
    takes/3.json         a take: its name, words, singer...; it comes last, and without it there is no take
    takes/3.wav          its sound
    takes/3.wav.json     its account, from which it can be sung again, and what else sample.py writes beside
                         a song; a recording has none

Read `Project`.
"""

import contextlib
import copy
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from config import UserError
from studio.document import (LONGEST_S, checked, checked_lines, empty, fields, is_bool, is_list, is_seed,
                             is_take, is_text, number, or_null)
from support.files import hold, make_folder, read_json, reading, write_json

WORK = ".work-"                # temporary folders, which a killed process leaves
seconds, whole = number(0, 2 * LONGEST_S), number(0, 2 ** 64)
# What is known of a take: its singer and lines as they were in the document, the spans that an edit sang. Of
# each the value of a new take, and what it may be in a file.
TAKE = {"id": ("", is_take), "name": ("", is_text), "before": (None, or_null(is_take)), "seed": (0, whole),
        "kind": ("song", lambda value: value in ("song", "edit", "recording")), "style": ("", is_text),
        "made": ("", is_text), "duration": (0.0, seconds), "starred": (False, is_bool), "note": ("", is_text),
        "lines": ([], is_list), "spans": ([], lambda value: is_list(value) and all(
            is_list(span) and len(span) == 2 and all(map(seconds, span)) for span in value))}
PROJECT = {"revision": (0, is_seed), "last": (0, number(0, 999_999)), "document": (None, lambda value: True)}


class Stale(Exception):
    """Another page has changed the document since."""


class Project:
    """A project, held by this process alone. Its methods can be called from any thread.

    Args: folder, made if it is not there; styles, the singers that its document may name.
    Raises: UserError if another process holds it, or its files are not of a project.
    """

    def __init__(self, folder: Path, styles: Collection[str]):
        self.folder, self.styles, self.lock = folder, styles, threading.RLock()
        make_folder(folder / "takes", "--project")
        hold(folder, patience_s=0)
        with reading(folder):
            for left in folder.glob(f"{WORK}*"):
                shutil.rmtree(left)
        if not self.path.exists() and any((folder / "takes").iterdir()):
            raise UserError(f"{folder}: has takes but no {self.path.name}, so it is no project")
        new = blank(PROJECT) | {"document": empty(min(styles))}
        found = object_in(self.path, PROJECT) if self.path.exists() else new
        try:
            self.document = checked(found["document"], styles)
        except UserError as e:
            raise UserError(f"{self.path}: {e}") from None
        self.takes = {path.stem: self.take_in(path) for path in (folder / "takes").glob("*.json")
                      if is_take(path.stem)}
        if self.document["take"] not in self.takes:          # someone has removed its files
            self.document["take"] = None
        for path in (folder / "takes").glob("*.wav*"):
            name = path.name.partition(".")[0]
            if is_take(name) and name not in self.takes and path.is_file():
                path.unlink()                                # of a take that was not finished
        self.revision, self.last = found["revision"], max(map(int, [*self.takes, found["last"]]))

    def take_in(self, path: Path) -> dict:
        """The take that a file tells of. Raises: UserError if it is corrupt, or its sound is missing."""
        take = object_in(path, TAKE)
        try:
            take["lines"] = checked_lines(take["lines"])
        except UserError as e:
            raise UserError(f"{path}: {e}") from None
        earlier = int(take["before"] or 0) < int(path.stem)
        if take["id"] != path.stem or not earlier or not self.file(path.stem, "wav").is_file():
            raise UserError(f"{path}: expected take {path.stem}, and its sound beside it; remove this file "
                            "if the take is not needed")
        return take

    @property
    def path(self) -> Path:
        """The file of the document."""
        return self.folder / "project.json"

    def save(self) -> None:
        """Write project.json."""
        write_json(self.path, {"revision": self.revision, "last": self.last, "document": self.document},
                   ensure_ascii=False)

    def change(self, document: dict, revision: object) -> int:
        """Replace the document by another, checked one. Returns: its revision.

        Raises: Stale if `revision` is not that of the document that is replaced; UserError.
        """
        with self.lock:
            if revision != self.revision:
                raise Stale
            if document["take"] not in (None, *self.takes):
                raise UserError(f"document: take {document['take']}: there is no such take")
            before = self.revision, self.document
            self.revision, self.document = self.revision + 1, document
            try:
                self.save()
            except UserError:
                self.revision, self.document = before
                raise
            return self.revision

    # Takes

    def file(self, name: str, ending: str) -> Path:
        """A file of a take: json, wav, wav.json..."""
        return self.folder / "takes" / f"{name}.{ending}"

    @contextlib.contextmanager
    def work(self) -> Iterator[Path]:
        """A temporary folder in the project, for what is not finished."""
        with tempfile.TemporaryDirectory(prefix=WORK, dir=self.folder) as folder:
            yield Path(folder)

    @contextlib.contextmanager
    def new_take(self) -> Iterator[tuple[str, dict]]:
        """Yield the name of a take, whose files are to be written, and a dict for what is to be known of it.

        The take is there when the block has ended; if it fails, nothing is.
        """
        with self.lock:
            self.last += 1
            name = str(self.last)
        about = blank(TAKE) | {"id": name, "name": f"Take {name}", "made": time.strftime("%Y-%m-%dT%H:%M:%S")}
        try:
            yield name, about
            write_json(self.file(name, "json"), about, ensure_ascii=False)
            with self.lock:
                self.takes[name] = about
        except BaseException:
            self.unlink(name)
            with self.lock:
                self.last -= self.last == int(name)          # the next one takes its number
            raise

    def unlink(self, name: str) -> None:
        """Remove the files of a take, the one without which there is none first."""
        self.file(name, "json").unlink(missing_ok=True)
        for path in (self.folder / "takes").glob(f"{name}.*"):
            path.unlink(missing_ok=True)

    def describe(self, name: str, about: dict) -> None:
        """Change what is known of a take: its name, whether it is starred."""
        with self.lock:
            take = self.takes[name] | about
            write_json(self.file(name, "json"), take, ensure_ascii=False)
            self.takes[name] = take

    def remove(self, name: str) -> None:
        """Remove a take. Its number is not used again: an undone document may name it."""
        with self.lock:
            self.save()
            self.unlink(name)
            del self.takes[name]

    def state(self) -> dict:
        """The document, its revision, the takes."""
        with self.lock:
            return copy.deepcopy({"document": self.document, "revision": self.revision, "takes": [
                self.takes[name] for name in sorted(self.takes, key=int)]})


def blank(known: dict[str, tuple[object, Callable]]) -> dict:
    """The values of a new object."""
    return {name: copy.copy(value) for name, (value, _) in known.items()}


def object_in(path: Path, known: dict[str, tuple[object, Callable]]) -> dict:
    """The object in a JSON file. Raises: UserError if it is not as `known` describes it."""
    return fields(read_json(path), {name: (accepts, "it as the studio wrote it")
                                    for name, (_, accepts) in known.items()}, str(path))
