"""Many songs: a manifest's entries, where their files go, and what became of them.

A manifest is a JSON list of {"id", "lrc_path", "duration", "audio_path", "prompt_path"}, the published form:
lyrics, seconds, and the sound file or the text that the style is taken from. "seed" and "style" (a name, a
vector or a sound file) may be given as well, and "gt_latent", which pairs.py hands on. Paths are relative to
the manifest or to the working directory, whichever exists. Read `song_of`, then `Outputs`, then `Report`;
sample.py makes the songs.
"""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path

from cli import read_json, read_text, replacing
from config import SampleConfig, UserError
from processes import Processes
from style import weighted

KEYS = ("id", "lrc_path", "duration", "audio_path", "prompt_path", "seed", "style", "gt_latent")
FOLDERS = ("generated", "generated_orig", "cfm_latents")     # songs, in full length, their latents
LONGEST_ID = 200               # bytes of a file's name, to which endings are added
LONGEST_S = 1e6                # of a song that is worth a number


@dataclass(frozen=True)
class Song:
    """What is asked for; paths as they are opened."""
    id: str
    lyrics: Path
    styles: tuple[str, ...]    # names, vectors and sound files, with weights
    texts: tuple[str, ...]     # descriptions, with weights
    duration_s: float | None   # None: as long as its words
    seed: int


def names_of(song_id: str, variants: int, best_of: int = 1) -> list[str]:
    """What the files of a song's variants are called: NAME, NAME-2, NAME-3...; of candidates NAME-1..."""
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
    """One entry, checked; null is as good as nothing. Raises: UserError, naming the manifest."""
    where = str(cfg.manifest)
    if not isinstance(entry, dict):
        raise UserError(f"{where}: expected an object, not {str(entry)[:40]}")
    entry = {key: value for key, value in entry.items() if value is not None}
    unknown = sorted(entry.keys() - set(KEYS))
    if unknown:
        raise UserError(f"{where}: {unknown[0]} is unknown; known: {', '.join(KEYS)}")
    for key in ("id", "lrc_path", "audio_path", "prompt_path", "style", "gt_latent"):
        value = entry.get(key)
        if key in ("id", "lrc_path") and value is None or value is not None and (
                not isinstance(value, str) or not value):
            raise UserError(f'{where}: "{key}" is {value!r}; expected a text')
    if name in (".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > LONGEST_ID:
        raise UserError(f"{where}: the id names its files: printable letters without /, {LONGEST_ID} bytes "
                        "at most")
    duration, seed = entry.get("duration", cfg.duration), entry.get("seed", cfg.seed)
    if duration is not None and (isinstance(duration, bool) or not isinstance(duration, (int, float))
                                 or not 0 < duration < LONGEST_S):
        raise UserError(f"{where}: duration is {str(duration)[:20]!r}; expected seconds above 0")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2 ** 63:
        raise UserError(f"{where}: seed is {seed!r}; expected 0 to {2 ** 63 - 1}")
    styles, texts = style_of(entry, cfg, where)
    return Song(name, locate(entry["lrc_path"], cfg), styles, texts, duration, seed)


def style_of(entry: dict, cfg: SampleConfig, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """An entry's styles and texts; where it has none, those of the flags."""
    if cfg.ignore_style:
        return (), ()
    if cfg.use_prompt_style and "prompt_path" not in entry:
        raise UserError(f'{where}: has no "prompt_path"; --use-prompt-style needs it')
    if "style" in entry and not cfg.use_prompt_style:
        name, weight = weighted(entry["style"], lambda whole: find_beside(whole, cfg) is not None)
        return (f"{find_beside(name, cfg) or name}:{weight}",), ()
    if "audio_path" in entry and not cfg.use_prompt_style:
        return (f"{locate(entry['audio_path'], cfg)}:1",), ()
    if "prompt_path" in entry:
        path = locate(entry["prompt_path"], cfg)
        text = " ".join(read_text(path).split())
        if not text:
            raise UserError(f"{path}: has no text; expected a description of the style")
        return (), (f"{text}:1",)                            # a number at its end is no weight
    return cfg.style or (), cfg.style_text or ()


def find_beside(name: str, cfg: SampleConfig) -> Path | None:
    """A manifest's file, beside it or in the working directory, if there is one."""
    return next((path for path in (cfg.manifest.parent / name, Path(name)) if os.path.isfile(path)), None)


def locate(name: str, cfg: SampleConfig) -> Path:
    """As `find_beside`. Raises: UserError if there is none."""
    path = find_beside(name, cfg)
    if path is None:
        raise UserError(f"{name}: no such file beside {cfg.manifest} or in the working directory")
    return path


@dataclass(frozen=True)
class Outputs:
    """Where a song's files go. A song without a manifest has neither `original` nor `latents`."""
    song: Path
    original: Path | None = None         # as long as it was sampled
    latents: Path | None = None          # (T, C) float32

    @property
    def account(self) -> Path:
        """The JSON beside the song: all that is needed to make it again."""
        return self.song.with_name(self.song.name + ".json")

    @property
    def page(self) -> Path:
        """The song to hear and read."""
        return self.song.with_suffix(".html")

    @property
    def picture(self) -> Path:
        """Its spectrogram."""
        return self.song.with_suffix(".png")

    @property
    def plan(self) -> Path:
        """The times that were given to lyrics without."""
        return self.song.with_suffix(".plan.lrc")

    def made(self, request: dict, page: bool) -> bool:
        """Whether all files are there, page and picture if asked for, made from this very request."""
        files = [self.song, self.original, self.latents, self.account, *[self.page, self.picture] * page]
        if not all(p.is_file() for p in files if p):
            return False
        try:
            return read_json(self.account).get("request") == json.loads(json.dumps(request))
        except (UserError, AttributeError):                  # somebody else's file: make it anew
            return False


def outputs_of(song: Song, cfg: SampleConfig, candidates: bool = False) -> list[Outputs]:
    """The files of each variant, or of each candidate."""
    best_of = cfg.best_of if candidates else 1
    if cfg.out_dir is None:
        return [Outputs(cfg.out.with_name(name + cfg.out.suffix))
                for name in names_of(cfg.out.stem, cfg.batch_infer_num, best_of)]
    songs, originals, latents = (cfg.out_dir / name for name in FOLDERS)
    ending = cfg.format or "mp3"
    return [Outputs(songs / f"{name}.{ending}", originals / f"{name}.{ending}", latents / f"{name}.pt")
            for name in names_of(song.id, cfg.batch_infer_num, best_of)]


class Report:
    """What became of each song: a line per song and process at once, one metadata.json at the end."""

    def __init__(self, folder: Path, processes: Processes):
        self.folder, self.processes = folder, processes
        self.path = self.part(processes.rank)

    def part(self, rank: int) -> Path:
        return self.folder / f"metadata_process{rank}.jsonl"

    def begin(self, cfg: SampleConfig) -> None:
        """Make the folders, drop what an earlier run reported, say how this one is made."""
        if self.processes.rank == 0:
            try:
                for name in FOLDERS:
                    (self.folder / name).mkdir(parents=True, exist_ok=True)
                for old in [*self.folder.glob("metadata_process*.jsonl"), self.folder / "metadata.json"]:
                    old.unlink(missing_ok=True)
            except OSError as e:
                raise UserError(f"--out-dir {self.folder}: {e.strerror}") from None
            with replacing(self.folder / "generation_config.json") as path:
                path.write_text(json.dumps(dataclasses.asdict(cfg), default=str, indent=1))
        self.processes.wait()

    def add(self, name: str, status: str, jobs: list[tuple[dict, Outputs]] = (), error: str = "") -> None:
        """Note that a song is "made", was "finished" before, or "failed"; jobs are its requests and files."""
        line = {"id": name, "status": status, "seeds": [request["seed"] for request, _ in jobs],
                "songs": [str(outputs.song.relative_to(self.folder)) for _, outputs in jobs], "error": error}
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def merge(self, order: list[str]) -> list[dict]:
        """Wait for all; then the songs of all processes in the manifest's order, written as metadata.json."""
        self.processes.wait()
        lines = [line for rank in range(self.processes.world) if self.part(rank).exists()
                 for line in self.part(rank).read_text(encoding="utf-8").splitlines()]
        songs = sorted(map(json.loads, lines), key=lambda song: order.index(song["id"]))
        if self.processes.rank == 0:
            with replacing(self.folder / "metadata.json") as path:
                path.write_text(json.dumps(songs, ensure_ascii=False, indent=1), encoding="utf-8",
                                errors="backslashreplace")
        self.processes.wait()
        return songs
