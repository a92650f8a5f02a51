"""What is in shards: list their songs, draw them, check them.

    python -m tools.shards inspect shards/songs-000000.tar --draw pictures
    python -m tools.shards validate shards

Read `read_songs`, then `inspect` and `validate`. What takes seconds to import is imported inside them.
"""

import collections
import io
import json
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from config import PHONEMIZER, PRESETS, READ_ERRORS, DataSettings, Preset, Settings, UserError, one_of, within
from support.cli import command, first, run

if __name__ == "__main__":
    first()

from lyrics.check import OVERLAP_S
from lyrics.pronounce import SOUNDLESS
from phonemes import SymbolTable, load_phonemizer
from support.files import make_folder
from support.tars import FORMS, describe_fault, expand, read_tar

BEYOND_S = 0.5                 # by which words may outlast their recording
FIRST_WORDS = 6                # of a song, are listed


@dataclass(frozen=True, kw_only=True)
class InspectConfig(Settings):
    """List the songs of a shard and draw the first of them."""
    shard: str                                  # a tar, or - for standard input
    songs: int = within(10, 0)                  # songs to list; 0: all
    draw: Path | None = None                    # folder for a picture of each listed song: latents, with
                                                #   the words above
    preset: str = one_of("baby", PRESETS)       # the model they are for: a name in config.PRESETS


@dataclass(frozen=True, kw_only=True)
class ValidateConfig(Settings):
    """Check every song of shards: parts, shapes, finite numbers, words, phonemes."""
    shards: str                                 # shards as in train.py: a pattern, a folder, an address
    ids: Path | None = None                     # JSONL of {"id", "duration"}, as --data.ids of train.py: are
                                                #   all of them there?
    preset: str = one_of("baby", PRESETS)       # the model they are for: a name in config.PRESETS
    phonemizer: Path | None = None              # a DeepPhonemizer checkpoint that knows the songs' phonemes;
                                                #   default: the model's own


def read_songs(shards: str, preset: Preset) -> Iterator[tuple[str, str, dict[str, bytes], tuple | None, str]]:
    """Place, key and files of each song, and what data.read_song makes of them, or why it cannot.

    Raises: UserError if there are none.
    """
    from data import read_song

    where = ""
    for source in expand((shards,), pipe=False):
        for key, files, faults in read_tar(source):
            where, song = f"{source}: song {key}", None
            try:
                song = None if faults else read_song(files, preset)
            except READ_ERRORS as e:
                faults = [describe_fault(where, e)]
            yield where, key, files, song, "".join(faults)
    if not where:
        raise UserError(f"{shards}: no song; {FORMS}")


def inspect(cfg: InspectConfig) -> None:
    """List the songs of a shard, and their totals; exits with code 1 if a song is corrupt."""
    import torch

    from songs.picture import draw_latents

    preset, totals = PRESETS[cfg.preset], collections.Counter()
    frame_hz = preset.codec.sample_rate_hz / preset.codec.hop
    if cfg.draw:
        make_folder(cfg.draw, "--draw")
    for _, key, files, song, fault in read_songs(cfg.shard, preset):
        if fault:
            totals["broken"] += 1
            print(f"broken: {fault}", file=sys.stderr)
            continue
        posterior, style, words = song
        totals.update(songs=1, frames=posterior.shape[1], words=len(words))
        if cfg.songs and totals["songs"] > cfg.songs:
            continue
        mean, std = posterior.chunk(2)
        dtype = torch.load(io.BytesIO(files["latent.pt"]), map_location="cpu", weights_only=True).dtype
        norms = ", ".join(f"{norm:.3f}" for norm in style.reshape(-1, style.shape[-1]).norm(dim=1))
        texts = [str(word.get("word", word["phoneme"])) for word in json.loads(files["json"])["word"]]
        listed = [f"{shown(a)}-{shown(b)} {text} {phoneme}" for text, (a, b, phoneme) in zip(texts, words)]
        listed[FIRST_WORDS:] = ["..."] if len(words) > FIRST_WORDS else []
        print(UserError(                                     # which makes everything printable
            f"{key}: {mean.shape[1]} frames, {mean.shape[1] / frame_hz:.2f} s; latents "
            f"{tuple(posterior.shape)} {str(dtype).removeprefix('torch.')}, mean {mean.mean():.3f}, std "
            f"{mean.std():.3f}, posterior std {std.mean():.3f}; style {tuple(style.shape)}, norm {norms}; "
            f"{len(words)} words: {'; '.join(listed)}"))
        if cfg.draw:
            draw_latents(cfg.draw / f"{key.replace('/', '_')}.png", mean, frame_hz,
                         [(text, start, end) for text, (start, end, _) in zip(texts, words)])
    print(f"{cfg.shard}: {totals['songs']} songs, {totals['frames'] / frame_hz:.1f} s, {totals['words']} "
          f"words; {totals['broken']} broken")
    if totals["broken"]:
        sys.exit(1)


def validate(cfg: ValidateConfig) -> None:
    """Print a line for each problem in shards, and notes; exits with code 1 if there are problems."""
    from support.hub import fetch, own_file
    from support.stream import keep_probabilities, not_as_asked

    preset, first_of, counts = PRESETS[cfg.preset], {}, collections.Counter()
    asked = DataSettings((cfg.shards,), ids=cfg.ids)
    kept = keep_probabilities(asked) or ()
    phonemizer = own_file(cfg.phonemizer, cfg.preset, PHONEMIZER) or fetch("phonemizer")
    known = SymbolTable(load_phonemizer(phonemizer).symbols).ids.keys() | SOUNDLESS
    for where, key, _, song, fault in read_songs(cfg.shards, preset):
        found = [("problem", fault)] if fault else []
        if song:
            posterior, _, words = song
            seconds = posterior.shape[1] * preset.codec.hop / preset.codec.sample_rate_hz
            found = [(kind, describe_fault(where, text)) for kind, text in check_words(words, seconds, known)]
            if first_of.setdefault(key, where) is not where:
                found.append(("problem", describe_fault(where, f"its name is that of {first_of[key]}")))
        for kind, text in found:
            print(f"{kind}: {text}")
            counts[kind] += 1
    for text in not_as_asked(asked, first_of, kept, ()):
        print(f"problem: {text}")
        counts["problem"] += 1
    print(f"{cfg.shards}: {len(first_of)} songs, {counts['problem']} problems, {counts['note']} notes")
    if counts["problem"]:
        sys.exit(1)


def shown(seconds: float) -> str:
    """Hundredths of seconds; 1e+308 rather than its 309 digits."""
    return f"{seconds:.2f}" if abs(seconds) < 1e6 else f"{seconds:g}"


def check_words(words: list[tuple[float, float, str]], seconds: float,
                known: Collection[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with a song's words: problems, which training cannot use, and notes, as (kind, text)."""
    latest = 0.0
    for i, (start, end, phoneme) in enumerate(words, 1):
        unknown = " ".join(sorted(set(phoneme) - known))
        if not 0 <= start < end:
            yield "problem", f"word {i}: from {shown(start)} to {shown(end)} s"
        if end > seconds + BEYOND_S:
            yield "problem", f"word {i}: ends at {shown(end)} s, the song at {seconds:.2f} s"
        if not phoneme or unknown:
            yield "problem", f"word {i}: phonemes {phoneme!r}; unknown: {unknown or 'there are none'}"
        if start < latest - OVERLAP_S:
            yield "note", f"word {i}: starts at {start:.2f} s, before {latest:.2f} s, where others end"
        latest = max(latest, end)


COMMANDS = {"inspect": (InspectConfig, inspect), "validate": (ValidateConfig, validate)}


def main(argv: list[str] | None = None) -> None:
    """Run one of COMMANDS."""
    command("tools.shards", __doc__, COMMANDS, argv)


if __name__ == "__main__":
    run(main)
