"""Tags in a song's own file: title, lyrics with times, seed, and that it is AI-generated. Read `tag`."""

import shutil
from pathlib import Path

from config import UserError
from lyrics.timing import Lyrics
from songs.page import checked, shown, utf8
from support.files import reading, replacing


def tag(path: Path, lyrics: Lyrics, title: str, *, seed: int, model: str, comment: str = "",
        name: Path | None = None) -> None:
    """Write a finished song's tags into its file; its samples stay as they are.

    Title, artist, lyrics, seed, model, comment, and that it is AI-generated. An MP3 gets ID3v2.4, with the
    words' times (SYLT: milliseconds; a line break stands before the word that follows it); a WAV the
    same in a chunk "id3 "; FLAC and OGG get Vorbis comments. Earlier tags are removed. Equal files and
    texts make equal files.

    Args: path of an MP3, WAV, FLAC or OGG; lyrics with times; name, what the file will be called.
    Raises: UserError if a word has no times, or the file is missing, corrupt or of another kind.
    """
    from mutagen import MutagenError, flac, id3, mp3, oggvorbis, wave

    checked(lyrics)
    kinds = {".mp3": mp3.MP3, ".wav": wave.WAVE, ".flac": flac.FLAC, ".ogg": oggvorbis.OggVorbis}
    kind = (name or path).suffix.lower()
    if kind not in kinds:
        raise UserError(f"{name or path}: unknown ending; expected {', '.join(kinds)}")
    texts = {"TITLE": title, "ARTIST": lyrics.artist, "LYRICS": plain(lyrics), "SEED": str(seed),
             "MODEL": model, "COMMENT": comment, "AI_GENERATED": "true"}
    texts = {name: utf8(text) for name, text in texts.items() if text}
    # Source: id3.org, ID3v2.4.0, native frames. Lyrics and comments have a language and a description.
    frames = {"TITLE": (id3.TIT2,), "ARTIST": (id3.TPE1,), "LYRICS": (id3.USLT, "eng", ""),
              "COMMENT": (id3.COMM, "eng", "")}
    timed = sorted(((round(1000 * word.start), " " if i else "\n", shown(word)) for line in lyrics.lines
                    for i, word in enumerate(line.words)), key=lambda entry: entry[0])

    with replacing(path) as temporary:
        shutil.copyfile(path, temporary)
        with reading(path, "cannot be tagged", MutagenError):
            file = kinds[kind](temporary)
            if file.tags is None:
                file.add_tags()
            file.tags.clear()
            if kind in (".flac", ".ogg"):
                file.tags.update(texts)
            else:
                for field, text in texts.items():
                    frame, *about = frames.get(field, (id3.TXXX, field))
                    file.tags.add(frame(id3.Encoding.UTF8, *about, text))
                if timed:                                    # 2: milliseconds; 1: lyrics
                    file.tags.add(id3.SYLT(id3.Encoding.UTF8, "eng", 2, 1, "", [
                        ((gap if i else "") + text, ms) for i, (ms, gap, text) in enumerate(timed)]))
            file.save(temporary, padding=lambda info: 0)
            if kind == ".ogg":
                number_pages(temporary, seed)


def number_pages(path: Path, serial: int) -> None:
    """Give an OGG's stream a serial number; the encoder draws one, and equal songs would be unequal files."""
    from mutagen.ogg import OggPage

    with path.open("r+b") as file:
        size = path.stat().st_size
        while file.tell() < size:
            start, page = file.tell(), OggPage(file)
            page.serial = serial % 2 ** 32
            file.seek(start)
            file.write(page.write())


def plain(lyrics: Lyrics) -> str:
    """The lyrics as people write them; a blank line and its name precede each section."""
    text, section = [], ""
    for line in lyrics.lines:
        if line.section != section:
            section = line.section
            text += ([""] if text else []) + ([f"[{utf8(section)}]"] if section else [])
        if line.words:
            words = " ".join(map(shown, line.words))
            text.append(f"({words})" if line.backing else words)
    return "\n".join(text)
