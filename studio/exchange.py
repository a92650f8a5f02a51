"""Files that come in (lyrics, recordings) and go out (a take's sound, words, page and account).

Read `words_in` and `recording`, then `exported`.
"""

import re
import shutil
from pathlib import Path

import torch

from config import UserError
from lyrics import formats
from lyrics.formats.shared import Draft, Piece
from lyrics.timing import Lyrics
from songs.page import page
from songs.tags import tag
from studio.document import lyrics_of
from studio.project import Project
from studio.typed import SIGNS
from support.audio import mono, opened, read_wave, write_wave
from support.files import reading, replacing

WORDS = {"lrc": ".lrc", "ass": ".ass", "ultrastar": ".txt", "textgrid": ".TextGrid"}
SOUNDS = ("wav", "mp3", "flac", "ogg")
EXPORTS = (*SOUNDS, *WORDS, "page", "account")
LONGEST_S, MOST_SAMPLES = 1200.0, 1200 * 48_000 * 2                 # of a recording, all channels together
PART_S = 60                    # of it that is resampled at once
MOST_TAGGED = 1 << 20          # letters of lyrics in tags


# In

def words_in(path: Path) -> Lyrics | None:
    """The timed words in the tags of a sound file: ID3's SYLT, or lyrics in the LRC format; None without any.

    Raises: UserError if its tags are corrupt.
    """
    from mutagen import File, MutagenError

    with reading(path, "its tags cannot be read", MutagenError):
        tags = getattr(File(path), "tags", None) or {}
        id3 = hasattr(tags, "getall")
        for frame in tags.getall("SYLT") if id3 else ():
            if frame.format == 2:                            # milliseconds
                return lyrics_in_sylt(frame.text, path)
        texts = [frame.text for frame in tags.getall("USLT")] if id3 else [
            text for name in ("lyrics", "syncedlyrics", "unsyncedlyrics") for text in tags.get(name, ())]
    text = next((text for text in texts if re.search(SIGNS["lrc"], text, re.MULTILINE)), None)
    if text and len(text) > MOST_TAGGED:
        raise UserError(f"{path}: its tags hold {len(text)} letters; expected {MOST_TAGGED} at most")
    return formats.parse(text, "lrc", f"{path}: its tags") if text else None


def lyrics_in_sylt(entries: list[tuple[str, int]], path: Path) -> Lyrics:
    """Lyrics of the texts and milliseconds of SYLT, in which a line break stands before the text after it."""
    draft, line = Draft(f"{path}: its tags"), []
    for text, ms in entries:
        if text.startswith("\n") and line:
            draft.add(line)
            line = []
        line.append(Piece(text.replace("\n", " "), ms / 1000))
    draft.add(line)
    return Lyrics(tuple(draft.lines))


def recording(project: Project, path: Path, name: str, rate_hz: int, note: str) -> str:
    """Make a take of a sound file. Args: rate_hz of the take, which is mono; its note. Returns: its name."""
    with opened(path) as file:
        if file.frames > LONGEST_S * file.samplerate or file.frames * file.channels > MOST_SAMPLES:
            raise UserError(f"{path}: {file.frames / file.samplerate:.0f} s, {file.channels} channels at "
                            f"{file.samplerate} Hz; expected {LONGEST_S:.0f} s of stereo at 48000 Hz at most")
    wave, own_hz = read_wave(path)
    wave = wave.mean(0, keepdim=True)
    wave = torch.cat([                                       # each part a second earlier, and to one after it
        mono(wave[:, max(0, a - own_hz):a + (PART_S + 1) * own_hz], own_hz, rate_hz)[rate_hz * (a > 0):][
            :PART_S * rate_hz] for a in range(0, wave.shape[1], PART_S * own_hz)])[None]
    with project.new_take() as (take, about):
        with replacing(project.file(take, "wav")) as temporary:
            write_wave(temporary, wave / wave.abs().max().clamp_min(1), rate_hz, project.file(take, "wav"))
        about |= {"name": name, "kind": "recording", "note": note, "duration": wave.shape[1] / rate_hz}
    return take


# Out

def exported(project: Project, kind: str, take: dict, model: str, work: Path) -> Path:
    """A file of a take: one of EXPORTS, in the folder `work`, under the name that it is to be saved as.

    Raises: UserError for an account of a recording, or words that the format cannot hold.
    """
    document, sound = project.document, project.file(take["id"], "wav")
    title = document["title"] or take["name"]
    lyrics = lyrics_of(document | {"title": title, "lines": take["lines"] or document["lines"]})
    stem = " - ".join(filter(None, (lyrics.artist, title)))
    stem = re.sub(r"[^\w .,()'-]", "_", stem)[:50].strip(" .") or "song"
    if kind == "account":
        if take["kind"] == "recording":
            raise UserError(f"take {take['id']}: a recording has no account")
        return Path(shutil.copyfile(project.file(take["id"], "wav.json"), work / f"{stem}.wav.json"))
    if kind in WORDS:
        path = work / f"{stem}{WORDS[kind]}"
        path.write_text(formats.write(lyrics, kind), encoding="utf-8")
        return path
    path = work / f"{stem}.{'mp3' if kind == 'page' else kind}"
    wave, rate_hz = read_wave(sound)
    write_wave(path, wave, rate_hz, path)
    if take["kind"] != "recording":                          # whose maker is not known
        tag(path, lyrics, title, seed=take["seed"], model=model)
    if kind == "page":
        text = page(lyrics, path, title, wave, rate_hz)
        path = work / f"{stem}.html"
        path.write_text(text, encoding="ascii")
    return path
