"""A manifest's entries, and the report of what became of its songs.

A manifest is a JSON list of {"id", "lrc_path", "duration", "audio_path", "prompt_path"}, the published form:
lyrics, seconds, and the sound file or the text that the style is taken from. "seed" and "style" (a name, a
vector or a sound file) are optional, and so is "gt_latent", for songs/pairs.py. Paths are relative to the
manifest or to the working directory, whichever exists. Read `song_of` (an entry becomes a song), `Report`,
then `songs_in` (the songs of a folder, and what was asked of each), `differing`.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from config import SampleConfig, UserError
from lyrics import formats
from lyrics.voices import choose
from support.audio import READABLE
from support.cli import weighted
from support.files import make_folder, read_json, read_text, write_json
from support.processes import Processes

KEYS = ("id", "lrc_path", "duration", "audio_path", "prompt_path", "seed", "style", "gt_latent")
FOLDERS = ("generated", "generated_orig", "cfm_latents")     # songs, in full length, their latents
LONGEST_ID = 200               # bytes of a file's name, to which endings are added
LONGEST_S = 1e6                # a longer duration is a mistake
SAME_S = 0.01                  # times that differ by less are equal: files hold hundredths


def is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


# What an entry's values have to be; all others are texts. The type of True is bool, not int.
CHECKS = {
    "id": (lambda x: is_text(x) and x not in (".", "..") and "/" not in x and x.isprintable()
           and len(x.encode()) <= LONGEST_ID,
           f"a name for its files: printable letters without /, {LONGEST_ID} bytes at most"),
    "duration": (lambda x: x is None or type(x) in (int, float) and 0 < x < LONGEST_S, "seconds above 0"),
    "seed": (lambda x: type(x) is int and 0 <= x < 2 ** 63, f"0 to {2 ** 63 - 1}")}


@dataclasses.dataclass(frozen=True)
class Song:
    """What is asked for; paths as they are opened."""
    id: str
    lyrics: Path
    styles: tuple[str, ...]    # names, vectors and sound files, with weights
    texts: tuple[str, ...]     # descriptions, with weights
    duration_s: float | None   # None: as long as its words
    seed: int


def names_of(song_id: str, variants: int, best_of: int = 1) -> list[str]:
    """The names of a song's variants, NAME, NAME-2, NAME-3..., or of its takes, NAME-1, NAME-2..."""
    if best_of > 1:
        return [f"{song_id}-{i}" for i in range(1, best_of + 1)]
    return [song_id if i == 1 else f"{song_id}-{i}" for i in range(1, variants + 1)]


def read_manifest(path: Path, variants: int = 1, best_of: int = 1) -> list[tuple[str, object]]:
    """The entries of a manifest under their ids, not yet checked.

    Raises: UserError if it is no list, or two songs would have the same files.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{path}: expected a JSON list of songs, {{{', '.join(KEYS[:5])}}}")
    ids = [entry.get("id") if isinstance(entry, dict) else None for entry in entries]
    ids = [name if isinstance(name, str) and name else f"entry {i}" for i, name in enumerate(ids, 1)]
    taken: dict[str, int] = {}
    for i, song_id in enumerate(ids, 1):
        for name in dict.fromkeys([song_id, *names_of(song_id, variants, best_of)]):
            if taken.setdefault(name, i) != i:
                raise UserError(f'{path}: entry {taken[name]} and entry {i} would both be "{name}"; '
                                "give each song an id of its own")
    return list(zip(ids, entries))


def song_of(name: str, entry: object, cfg: SampleConfig) -> Song:
    """Check one entry; null counts as absent. Raises: UserError, naming the manifest."""
    if not isinstance(entry, dict):
        raise UserError(f"{cfg.manifest}: expected an object, not {str(entry)[:40]}")
    entry = {key: value for key, value in entry.items() if value is not None}
    unknown = sorted(entry.keys() - set(KEYS))
    if unknown:
        raise UserError(f"{cfg.manifest}: {unknown[0]} is unknown; known: {', '.join(KEYS)}")
    values = {"id": None, "lrc_path": None, "duration": cfg.duration, "seed": cfg.seed} | entry
    for key, value in values.items():
        fits, expected = CHECKS.get(key, (is_text, "a text"))
        if not fits(value):
            raise UserError(f'{cfg.manifest}: "{key}" is {repr(value)[:40]}; expected {expected}')
    lyrics = locate_beside(values["lrc_path"], cfg)
    return Song(name, lyrics, *style_of(entry, cfg), values["duration"], values["seed"])


def style_of(entry: dict, cfg: SampleConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """An entry's styles and texts; if it has none, those of the flags."""
    if cfg.ignore_style:
        return (), ()
    if cfg.use_prompt_style and "prompt_path" not in entry:
        raise UserError(f'{cfg.manifest}: has no "prompt_path"; --use-prompt-style needs it')
    if "style" in entry and not cfg.use_prompt_style:
        name, weight = weighted(entry["style"], lambda whole: find_beside(whole, cfg) is not None)
        return (f"{find_beside(name, cfg) or name}:{weight}",), ()
    if "audio_path" in entry and not cfg.use_prompt_style:
        return (f"{locate_beside(entry['audio_path'], cfg)}:1",), ()
    if "prompt_path" in entry:
        path = locate_beside(entry["prompt_path"], cfg)
        text = " ".join(read_text(path).split())
        if not text:
            raise UserError(f"{path}: has no text; expected a description of the style")
        return (), (f"{text}:1",)                            # a number at its end is no weight
    return cfg.style or (), cfg.style_text or ()


def find_beside(name: str, cfg: SampleConfig) -> Path | None:
    """A manifest's file, beside it or in the working directory, if there is one."""
    return next((path for path in (cfg.manifest.parent / name, Path(name)) if os.path.isfile(path)), None)


def locate_beside(name: str, cfg: SampleConfig) -> Path:
    """As `find_beside`. Raises: UserError if there is none."""
    path = find_beside(name, cfg)
    if path is None:
        raise UserError(f"{name}: no such file beside {cfg.manifest} or in the working directory")
    return path


class Report:
    """What became of each song: a line in the process's own file at once, one metadata.json at the end."""

    def __init__(self, folder: Path, processes: Processes):
        self.folder, self.processes = folder, processes

    def begin(self, cfg: SampleConfig) -> None:
        """Make the folders, delete the reports of an earlier run, write the settings of this one."""
        if self.processes.main:
            for name in FOLDERS:
                make_folder(self.folder / name, "--out-dir")
        self.processes.hold(self.folder)
        if self.processes.main:
            results = [self.folder / name for name in ("metadata.json", "generation_config.json")]
            if any(path.exists() and path.samefile(cfg.manifest) for path in results):
                raise UserError(f"--manifest {cfg.manifest}: would be overwritten; move it out of --out-dir")
            for old in [*self.folder.glob("metadata_process*.jsonl"), results[0]]:
                old.unlink(missing_ok=True)
            write_json(results[1], dataclasses.asdict(cfg))
        self.processes.wait()

    def add(self, name: str, status: str, jobs: Sequence[tuple] = (), error: str = "") -> None:
        """Note that a song is "made", was "finished" before, or "failed".

        Args: jobs, its requests and files; see songs/takes.py.
        """
        line = {"id": name, "status": status, "seeds": [request["seed"] for request, _ in jobs],
                "songs": [str(outputs.song.relative_to(self.folder)) for _, outputs in jobs], "error": error}
        path = self.folder / f"metadata_process{self.processes.rank}.jsonl"
        with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def merge(self, order: list[str]) -> list[dict]:
        """Wait for all processes; return their songs in the manifest's order, and write metadata.json."""
        self.processes.wait()
        lines = [line for path in self.folder.glob("metadata_process*.jsonl")        # an id may hold U+2028
                 for line in path.read_text(encoding="utf-8").split("\n") if line]
        made = {song["id"]: song for song in map(json.loads, lines)}
        songs = [made[name] for name in order if name in made]
        if self.processes.main:
            write_json(self.folder / "metadata.json", songs, ensure_ascii=False)
        self.processes.wait()
        return songs


# Finished songs

def songs_in(place: Path, manifest: Path | None) -> Iterator[tuple[str, Path, Callable[[], dict]]]:
    """A song, or the songs of a folder: id, sound file, and a function that reads what was asked of it.

    The takes of sample.py --best-of do not count: the best one is there under the song's own name.
    """
    places = [folder for folder in (place, place / FOLDERS[0]) if folder.is_dir()]
    if manifest is None:
        for account in sorted(path for folder in places for path in folder.glob("*.json")):
            if Path(account.stem).suffix.lower() not in READABLE:
                continue
            with contextlib.suppress(UserError, AttributeError):  # a song with a corrupt account is listed
                if read_json(account).keys() & {"candidate_of", "unfinished"}:
                    continue
            yield Path(account.stem).stem, account.with_suffix(""), functools.partial(read_json, account)
        if place.is_file():
            yield place.stem, place, functools.partial(read_json, place.with_name(place.name + ".json"))
        return
    for name, entry in read_manifest(manifest, 1):
        if not place.is_file() or place.stem == name:
            path = place if place.is_file() else next(
                (path for folder in places for ending in READABLE
                 if (path := folder / f"{name}{ending}").is_file()), place / f"{name}.mp3")
            yield name, path, functools.partial(asked, name, entry, manifest, Path(f"{path}.json"))


def asked(name: str, entry: object, manifest: Path, account: Path) -> dict:
    """A song's account or, if there is none, what a manifest's entry asks for, in the same form.

    Raises: UserError, also if the two ask for different songs.
    """
    song = song_of(name, entry, SampleConfig(manifest=manifest))
    record = read_json(account) if account.is_file() else {}
    words = choose(formats.read(song.lyrics).sung(), record.get("settings", {}).get("voice"))[0].words
    wanted = {"word": [formats.json.word_json(word) for word in words],
              "settings": {"duration": song.duration_s, "style": song.styles, "style_text": song.texts}}
    if record:
        fault = differing(record, wanted)
        if fault:
            raise UserError(f"{account}: contradicts {manifest}: {fault}")
        return record
    if not all(word.timed for word in words):
        raise UserError(f"{song.lyrics}: has words without times; expected the times that were asked for")
    return wanted


def differing(record: dict, other: dict) -> str:
    """How the song that an account asks for differs from another account's, in words; "" if it does not.

    Times may be SAME_S apart; one that only one of them has is no difference.
    """
    def apart(*pair: float | None) -> bool:
        return None not in pair and not abs(pair[0] - pair[1]) <= SAME_S

    words, others = record["word"], other["word"]
    if len(words) != len(others):
        return f"has {len(words)} words, not {len(others)}"
    for i, (word, wanted) in enumerate(zip(words, others), 1):
        if word["word"] != wanted["word"]:
            return f'word {i} is "{word["word"]}", not "{wanted["word"]}"'
        for side in ("start", "end"):
            if apart(word.get(side), wanted.get(side)):
                return f'{side} of word {i} "{word["word"]}" is {word[side]} s, not {wanted[side]} s'
    seconds = length_of(record), length_of(other)
    return "lasts {} s, not {} s".format(*seconds) if apart(*seconds) else ""


def length_of(record: dict) -> float | None:
    """The seconds that an account asks for, if it does."""
    settings = record.get("settings", {})
    end_s = settings.get("to") or settings.get("duration")
    return end_s - (settings.get("from_") or 0) if end_s else None
