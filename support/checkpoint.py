"""Checkpoints: folders step-000500/ that are complete or absent; `last`, a link to the newest; config.json.

Read `writing` (how a folder appears), `newest` (which one a run resumes from), `finish` (what happens to the
older ones). train.py decides what is in them. If the process ends at any moment, the previous one stays.
`preset_to_json` and `preset_from_json` write and read the config.json of a model.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from config import FILLERS, GUIDANCE_WEIGHTS, READ_ERRORS, CodecConfig, Preset, TrainConfig, UserError
from support.cli import assemble, settings_of, typed
from support.files import one_line, read_json, reading, umask
from support.processes import Processes

CONTENTS = "files.json"        # bytes and checksum of every other file; written last
LAST = "last"
# A sung codec's: a quarter and half of its spectra's samples, sung.N_FFT.
SHORT_HOP, MOST_BANDS = 256, 512


def folder_of(out: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` steps."""
    return out / f"step-{step:06d}"


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of files, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary folder to write to, flush it to the disk and rename it to `path` on success.

    Raises: UserError if it cannot be written (a full disk, a folder that is gone).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        contents = {file.name: {"bytes": file.stat().st_size, "crc32": crc32(file)}
                    for file in sorted(temporary.iterdir())}
        (temporary / CONTENTS).write_text(json.dumps(contents, indent=1))
        for file in [*temporary.iterdir(), temporary]:       # safetensors lets only the owner read
            file.chmod((0o777 if file == temporary else 0o666) & ~umask())
            sync(file)
        if path.exists():                                    # a run resumed from an older one
            discard(path)
        temporary.rename(path)
        sync(path.parent)
    except (OSError, RuntimeError, SafetensorError) as e:    # torch's and safetensors' errors of writing
        previous = newest(path.parent, read=False)
        kept = f"; {previous} is whole" if previous else ""
        raise UserError(f"{path}: cannot be written: {one_line(e)}{kept}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard(path: Path) -> None:
    """Delete a checkpoint; it is renamed first, so that a part of it never passes for the whole."""
    gone = path.with_name(f".{path.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def crc32(path: Path) -> int:
    """The checksum of a file: 2.5 GB a second, where SHA-256 takes 1.7."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(2 ** 20):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def fault(path: Path, read: bool = True) -> str:
    """Which file of a checkpoint is not as it was written, and why; "" if all are.

    Args: read, whether their contents count, not only their lengths. An earlier version noted only these.
    """
    name = CONTENTS
    try:
        contents = json.loads((path / name).read_text())
        for name, about in contents.items():
            known = about if isinstance(about, dict) else {"bytes": about}
            if (path / name).stat().st_size != known["bytes"]:
                return f"{name}: is not of its full length"
            if read and "crc32" in known and crc32(path / name) != known["crc32"]:
                return f"{name}: its contents have changed"
        return "" if contents else f"{name}: is empty"
    except READ_ERRORS as e:
        return f"{name}: {one_line(e)}"


def existing(out: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    found = [path for path in out.glob("step-*") if path.name[5:].isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def newest(out: Path, read: bool = True) -> Path | None:
    """The newest whole checkpoint; warns of newer ones, which are skipped. Args: as for `fault`."""
    for path in reversed(existing(out)):
        if not (why := fault(path, read)):
            return path
        print(f"warning: {path}: is not whole: {why}; skipped", file=sys.stderr, flush=True)
    return None


def finish(out: Path, path: Path, keep: int) -> None:
    """Point `last` to a checkpoint just written; of it and older ones keep the newest `keep` (0: all).

    Newer ones are there if they were not whole when the run resumed; they do not count.
    """
    link = out / f".{LAST}.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    link.replace(out / LAST)
    known = existing(out)
    for old in known[:known.index(path) + 1][:-keep] if keep else []:
        discard(old)


def sweep(out: Path) -> None:
    """Remove the temporary folders and links that killed runs left."""
    for left in [*out.glob(".step-*"), *out.glob(f".{LAST}.*")]:
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def to_resume(cfg: TrainConfig, processes: Processes) -> Path | None:
    """The checkpoint that --resume means: a named one while --out has none of its own.

    Raises: UserError if it is missing, not the newest or not wanted, or if processes see different ones.
    """
    seen = [path.name for path in existing(cfg.out)]
    if any(other != seen for other in processes.gather(seen)):
        raise UserError(f"--out {cfg.out}: processes see different checkpoints; expected a folder of all")
    # One process reads them to their ends, for all.
    found = processes.gather(newest(cfg.out) if processes.main else None)[0]
    if seen and not found:
        raise UserError(f"{cfg.out}: none of its checkpoints is whole; delete them to begin anew")
    if cfg.resume == "none" and found:
        raise UserError(f"--resume none: {found} is there; use another --out")
    if cfg.resume not in ("auto", "none"):
        named = Path(cfg.resume)
        if why := processes.gather(fault(named) if processes.main else "")[0]:
            raise UserError(f"--resume {cfg.resume}: no whole checkpoint; expected auto, none or its folder; "
                            f"{why}")
        if found and named.resolve().parent == cfg.out.resolve() and named.resolve() != found.resolve():
            raise UserError(f"--resume {cfg.resume}: {found} is newer; use another --out")
        found = found or named
    return found


# A model's config.json

def sounds(codec: CodecConfig) -> bool:
    """Whether sung.SungCodec can be built and makes sound."""
    return (codec.hop == SHORT_HOP * codec.fold and codec.wave_channels == 1
            and 2 <= codec.ratios <= codec.mels <= MOST_BANDS and codec.mels % codec.ratios == 0
            and 0 < codec.floor < math.inf and 0 < codec.log_std < math.inf and math.isfinite(codec.log_mean)
            and min(codec.encoder_width, codec.encoder_depth, codec.decoder_width, codec.decoder_depth) >= 1)


def preset_to_json(preset: Preset, **more: object) -> str:
    """The text of a model's config.json; `more` are further keys, such as a checkpoint's step."""
    return json.dumps(dataclasses.asdict(preset) | more, indent=1)


def preset_from_json(path: Path) -> Preset:
    """Rebuild a preset from a model's config.json. Raises: UserError if it is missing or not of that form."""
    values = read_json(path)
    with reading(path, "not a model's config"):
        if missing := {field.name for field in dataclasses.fields(Preset)} - values.keys():
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
        if values["codec"]["kind"] == "mel":
            raise UserError(f"{path}: an earlier embedded model, whose sound Griffin-Lim made; this "
                            "version no longer sings with it: use the embedded one, or the version that made "
                            "it")
        values = {name: value for name, value in values.items() if name != "step"}
        preset = assemble(Preset, typed(values, settings_of(Preset), lambda name: f"{path}: {name}"))
        sizes, codec = preset.model, preset.codec
        channels = {"sung": codec.fold * (codec.mels + codec.ratios + 1) + 5, "oobleck": codec.latent_dim}
        for fits, expected in (
                (min(dataclasses.astuple(sizes)) >= 1 and sizes.dim % (2 * sizes.heads)
                 == sizes.dim % 16 == sizes.text_dim % 2 == 0,
                 "model: sizes of 1 or more; dim a multiple of 2 * heads and of 16; text_dim even"),
                (min(codec.sample_rate_hz, codec.hop, codec.fold) >= 1 and codec.hop % codec.fold == 0,
                 "codec: rate, hop and fold of 1 or more; hop a multiple of fold"),
                (channels.get(codec.kind) == sizes.mel_dim,
                 "codec: kind sung with fold * (mels + ratios + 1) + 5, or oobleck with latent_dim, equal to "
                 "model's mel_dim"),
                (codec.kind == "sung" or math.prod(codec.strides) == codec.hop,
                 "codec: strides whose product is hop"),
                (codec.kind != "sung" or sounds(codec),
                 f"codec of kind sung: hop {SHORT_HOP} * fold; one wave channel; ratios of 2 or more; mels a"
                 f" multiple of ratios, {MOST_BANDS} at most; floor and log_std above 0; widths and depths of"
                 " 1 or more"),
                (preset.filler in FILLERS, f"filler: one of {', '.join(FILLERS)}"),
                (preset.guidance.mode in GUIDANCE_WEIGHTS and preset.steps >= 2,
                 f"guidance: mode one of {', '.join(GUIDANCE_WEIGHTS)}; steps of 2 or more"),
                (preset.style_encoder in ("muq-mulan", "none"), "style_encoder: muq-mulan or none")):
            if not fits:
                raise UserError(f"{path}: not a model's config: expected {expected}")
    return preset
