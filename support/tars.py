"""Tars of songs, in the WebDataset form: where they are, and the songs in them.

Read `expand` (patterns to sources), `indexed` (where a file's songs lie), `read_tar` (a source's songs, front
to back), then `opened` (files, http(s) addresses, commands, standard input). A song is KEY.latent.pt,
KEY.style.pt and KEY.json in a row, or latent.pt, style.pt and json in a folder KEY. A corrupt tar, or a song
that lacks a part, is reported in one line and does not end the reading.
"""

import contextlib
import glob
import http.client
import itertools
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import urllib.request
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from config import READ_ERRORS, UserError
from support.files import one_line, write_text

ENDINGS = ("latent.pt", "style.pt", "json")
FORMS = "a song is KEY.latent.pt, KEY.style.pt and KEY.json, or KEY/latent.pt, KEY/style.pt and KEY/json"
FIRST = 3                      # names of many are told
RETRY_S = (1, 4)               # seconds before an address is tried again
TIMEOUT_S = 60
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz")
LAYOUT = 2                     # of indexes; those of other numbers are made anew
TAR_ERRORS = (*READ_ERRORS, tarfile.TarError, http.client.HTTPException, OverflowError)


class Fault(str):
    """What is broken, in one printable line; `songs`, how many it costs, as far as that is known."""
    songs = 1


def describe_fault(where: str, why: object, more: str = "", songs: int = 1) -> Fault:
    """What is broken and why, and what else there is to say."""
    fault = Fault(UserError(f"{where}: {one_line(why, 200)}{more}"))
    fault.songs = songs
    return fault


def some(names: Collection[str]) -> str:
    """How many there are, and the first of them."""
    more = ", ..." if len(names) > FIRST else ""
    return f"{len(names)} ({', '.join(itertools.islice(names, FIRST))}{more})"


class Header(tarfile.TarInfo):
    """A member's header. A corrupt or missing one is an error; tarfile takes it for the end of the tar."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as e:
            raise tarfile.ReadError(f"not a tar, or cut off: byte {tar.offset}: {e}") from None


def members(tar: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Key, ending and header of each file that belongs to a song.

    The key ends at the name's first dot. A file whose whole name is an ending belongs to its folder's song.
    """
    for member in iter(tar.next, None):
        tar.members.clear()                                  # tarfile would keep all of them
        folder, slash, name = member.name.rpartition("/")
        key, _, ending = name.partition(".")
        if name.lower() in ENDINGS and folder.rpartition("/")[2].strip("."):
            folder, slash, key, ending = "", "", folder, name
        if member.isreg() and key and ending.lower() in ENDINGS:
            yield folder + slash + key, ending.lower(), member


def missing_part(source: str, key: str, parts: Collection[str]) -> list[str]:
    """Describes the first part that a song lacks, if it lacks one."""
    return [describe_fault(f"{source}: song {key}", f"no {key}.{ending}") for ending in ENDINGS
            if ending not in parts][:1]


# Where shards are

def braces(text: str) -> list[str]:
    """The names that {000..012} and {a,b} stand for; the first brace's choices vary slowest."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", text)
    if not found:
        return [text]
    low, high, names = found.groups()
    choices = (names.split(",") if names is not None
               else [f"{i:0{len(low)}d}" for i in range(int(low), int(high) + 1)])
    expanded = [name for c in choices for name in braces(text[:found.start()] + c + text[found.end():])]
    return list(dict.fromkeys(expanded))                     # {a,{b,c}} gives a twice


def is_file(source: str) -> bool:
    """Whether a source is a local file."""
    return source != "-" and not source.startswith(("http://", "https://", "pipe:"))


def seekable(source: str) -> bool:
    """Whether songs can be read in any order, not only front to back."""
    return is_file(source) and not source.endswith(COMPRESSED)


def expand(shards: tuple[str, ...], pipe: bool) -> list[str]:
    """Sources in order: files, http(s) addresses, - (standard input), pipe:COMMAND.

    Raises: UserError if there are none, a file is missing, or a command is not allowed to run.
    """
    sources = []
    for name in [name for text in shards for name in braces(text)]:
        if name.startswith("pipe:") and not pipe:
            raise UserError(f"{name}: a command; --data.pipe true lets it run")
        found = [name]
        if is_file(name):                                    # only * and ? are special, not [
            folder = os.path.isdir(name)
            pattern = os.path.join(glob.escape(name), "*.tar") if folder else name.replace("[", "[[]")
            found = sorted(glob.glob(pattern)) or found
        for source in found:
            if is_file(source) and not os.path.isfile(source):
                raise UserError(f"{source}: no such shard")
        sources += found
    if not sources:
        raise UserError(f"{' '.join(shards) or 'no shards'}: expected some in --data.shards")
    return sources


# In any order

Songs = dict[str, dict[str, tuple[int, int]]]        # key -> ending -> (offset, bytes)


def index_of(source: str) -> Path:
    """Where `indexed` keeps what a file holds."""
    return Path(source).with_name(f".{Path(source).name}.index")


def read_index(source: str) -> tuple[list[int], Songs, list[str]]:
    """What a file's index was made of, the file's songs then, and the keys that it had twice; or nothing."""
    with contextlib.suppress(*READ_ERRORS):
        head, text = index_of(source).read_text().split("\n")
        layout, *made_of, checksum = json.loads(head)
        if (layout, checksum) == (LAYOUT, zlib.crc32(text.encode())):
            return made_of, *json.loads(text)
    return [], {}, []


def cut_off(source: str, why: object, end: int) -> Fault:
    """The fault of a tar that cannot be read after byte `end`.

    An index of the file as it once was tells which songs lay there.
    """
    songs = read_index(source)[1] if is_file(source) else {}
    lost = [key for key, parts in songs.items() if min(parts.values())[0] > end]
    told = f"; songs after byte {end} are lost{': ' + some(lost) if lost else ''}" if end or lost else ""
    return describe_fault(source, why, told, max(1, len(lost)))


def indexed(source: str) -> tuple[Songs, list[str], list[str]]:
    """A file's songs; the keys that occur twice, of which the later songs count; its fault, if it is corrupt.

    What a whole file holds is written beside it, to .NAME.index, and read there as long as the file has the
    same size and time of change. A corrupt index is made anew; a folder that cannot be written to silently
    goes without.
    """
    found, twice, end = {}, {}, 0
    try:
        about = os.stat(source)
        made_of = [about.st_size, about.st_mtime_ns]
        then, *kept = read_index(source)
        if then == made_of:
            return *kept, []
        with tarfile.open(source, "r:", tarinfo=Header) as tar:
            for key, ending, member in members(tar):
                if member.offset_data + member.size > about.st_size:
                    raise tarfile.ReadError(f"cut off: it ends amid {member.name}")
                if ending in found.setdefault(key, {}):
                    twice[key] = None
                found[key][ending] = (member.offset_data, member.size)
                end = tar.offset
    except TAR_ERRORS as e:
        return found, [*twice], [cut_off(source, e, end)]
    text = json.dumps([found, [*twice]])
    with contextlib.suppress(UserError):
        write_text(index_of(source), f"{json.dumps([LAYOUT, *made_of, zlib.crc32(text.encode())])}\n{text}")
    return found, [*twice], []


# Front to back

@contextlib.contextmanager
def opened(source: str) -> Iterator[BinaryIO]:
    """Open a source. Raises: OSError or HTTPException if it cannot be read, or if a command failed."""
    if source == "-":
        yield sys.stdin.buffer
    elif source.startswith("pipe:"):
        # The command is no process of torchrun's, as its settings would say.
        env = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
        with subprocess.Popen(source.removeprefix("pipe:"), shell=True, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, env=env) as process:
            try:
                yield process.stdout
                while process.stdout.read(1 << 20):          # a command whose pipe is closed early would fail
                    pass
                if process.wait():
                    raise OSError(f"the command ended with exit code {process.returncode}")
            finally:
                process.kill()
    elif is_file(source):
        with open(source, "rb") as file:
            yield file
    else:
        for pause_s in (*RETRY_S, None):
            try:
                response = urllib.request.urlopen(source, timeout=TIMEOUT_S)
                break
            except (OSError, http.client.HTTPException):
                if pause_s is None:
                    raise
                time.sleep(pause_s)
        with response:
            yield response


def read_tar(source: str) -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """Yield key, parts and faults of each song in turn; last, if the tar is corrupt, ("", {}, [fault])."""
    song, parts, faults, end = "", {}, [], 0
    try:
        with opened(source) as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=Header) as tar:
            for key, ending, member in members(tar):
                if parts and key != song:
                    yield song, parts, missing_part(source, song, parts)
                    parts = {}
                song, parts[ending] = key, tar.extractfile(member).read()
                end = tar.offset
            end = 0                                          # nothing is lost by what comes after the tar
    except TAR_ERRORS as e:
        faults = [cut_off(source, e, end)]
    if parts:
        yield song, parts, missing_part(source, song, parts)
    if faults:
        yield "", {}, faults
