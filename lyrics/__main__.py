"""Time, check and convert lyrics.

    python -m lyrics plan song.txt -o plan.lrc
    python -m lyrics check plan.lrc
    python -m lyrics convert plan.lrc plan.ass
    python -m lyrics align song.mp3 song.txt -o song.lrc

`plan` gives words their times, `check` lists what could go wrong in singing, `convert` writes any format as
any other, `align` takes the times from a recording. `python -m lyrics plan --help` lists the settings.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from config import PRESETS, Settings, UserError, one_of
from support.cli import command, first, run

if __name__ == "__main__":
    first()

from lyrics import formats
from lyrics.check import LEVELS, check, left_out, tell
from lyrics.models import AlignSettings
from lyrics.plan import PlanSettings, planned
from lyrics.pronounce import ReadSettings, reader
from lyrics.timing import Lyrics
from lyrics.voices import choose
from phonemes import CELLS_PER_FRAME, SymbolTable
from support.files import write_text


@dataclass(frozen=True, kw_only=True)
class PlanConfig(PlanSettings, ReadSettings):
    """Give words their times: plain text on a beat grid, lines with times word by word, gaps filled."""
    input: Path                                 # lyrics in any format; plain text may have [Verse],
                                                #   (backing) and blank lines
    out: Path | None = None                     # where the plan goes; default: the terminal, as LRC
    to: str | None = None                       # its format, by name; default: by the ending of --out


@dataclass(frozen=True, kw_only=True)
class CheckConfig(ReadSettings):
    """List what of timed lyrics cannot be sung (errors), may be sung badly (warnings), is guessed (notes)."""
    input: Path                                 # lyrics in any format
    duration: float | None = None               # seconds of the song; default: up to its last word
    preset: str = one_of("baby", PRESETS)       # the model that is to sing it: a name in config.PRESETS
    voice: str | None = None                    # check what it sings: lead, backing, or a name in the file;
                                                #   default: the lead and what answers it


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Settings):
    """Write lyrics in another format."""
    input: Path                                 # lyrics in any format
    output: Path                                # where they go
    to: str | None = None                       # format by name (ultrastar, audacity, json...); default: by
                                                #   the ending


@dataclass(frozen=True, kw_only=True)
class AlignConfig(AlignSettings):
    """Find the times at which a recording sings the words of its lyrics."""
    audio: Path                                 # the recording: .mp3, .wav, .flac or .ogg
    input: Path                                 # its lyrics in any format, with times or without
    out: Path | None = None                     # where the timed lyrics go; default: the terminal, as LRC
    to: str | None = None                       # their format, by name; default: by the ending of --out


def plan_command(cfg: PlanConfig) -> None:
    """python -m lyrics plan"""
    lyrics = formats.read(cfg.input)
    tell(cfg.input, lyrics, Lyrics(()))
    save(planned(lyrics.sung(), reader(cfg.phonemizer, cfg.lexicon), cfg, cfg.input), cfg)


def check_command(cfg: CheckConfig) -> None:
    """python -m lyrics check: exit code 1 if there are errors."""
    phonemizer, codec = reader(cfg.phonemizer, cfg.lexicon), PRESETS[cfg.preset].codec
    lyrics = formats.read(cfg.input)
    sung, _ = choose(lyrics.sung(), cfg.voice)
    problems, _ = check(sung, phonemizer, SymbolTable(phonemizer.symbols),
                        CELLS_PER_FRAME * codec.sample_rate_hz / codec.hop, cfg.duration)
    problems += left_out(lyrics)
    for problem in sorted(problems, key=lambda problem: LEVELS.index(problem.level)):
        print(f"{problem.level}: {cfg.input}: {problem.where}: {problem.text}")
    levels = [problem.level for problem in problems]
    print(", ".join(f"{levels.count(level)} {level}s" for level in LEVELS))
    if "error" in levels:
        sys.exit(1)


def convert_command(cfg: ConvertConfig) -> None:
    """python -m lyrics convert"""
    kind = cfg.to or formats.kind_for(cfg.output)
    if cfg.output.exists() and cfg.output.samefile(cfg.input):
        raise UserError(f"{cfg.output}: would overwrite its own lyrics")
    write_text(cfg.output, formats.write(named(formats.read(cfg.input), kind, cfg.input), kind))


def align_command(cfg: AlignConfig) -> None:
    """python -m lyrics align"""
    from lyrics.align import align

    save(align(cfg.audio, formats.read(cfg.input).sung(), cfg), cfg)


def save(lyrics: Lyrics, cfg: PlanConfig | AlignConfig) -> None:
    """Write lyrics with new times to --out, or to the terminal.

    Raises: UserError if this would overwrite their own file, or its format does not keep the times.
    """
    kind = cfg.to or (formats.kind_for(cfg.out) if cfg.out else "lrc")
    text = formats.write(named(lyrics, kind, cfg.input), kind)
    if cfg.out is None:
        print(text, end="")
        return
    if cfg.out.exists() and cfg.out.samefile(cfg.input):
        raise UserError(f"--out {cfg.out}: would overwrite its own lyrics")
    keep = [name for name, row in formats.KINDS.items() if "words" in row.carries.split()]
    if kind not in keep:
        raise UserError(f"--out {cfg.out}: {kind} keeps no times of words; expected one of "
                        f"{', '.join(keep)} (--to)")
    write_text(cfg.out, text)


def named(lyrics: Lyrics, kind: str, source: Path) -> Lyrics:
    """Lyrics for UltraStar, which needs a title and an artist: by default those of "Artist - Title.txt"."""
    if kind != "ultrastar":
        return lyrics
    artist, _, title = source.stem.rpartition(" - ")
    return replace(lyrics, title=lyrics.title or title, artist=lyrics.artist or artist)


COMMANDS = {"plan": (PlanConfig, plan_command), "check": (CheckConfig, check_command),
            "convert": (ConvertConfig, convert_command), "align": (AlignConfig, align_command)}


def main(argv: list[str] | None = None) -> None:
    """Run one of COMMANDS."""
    command("lyrics", __doc__, COMMANDS, argv)


if __name__ == "__main__":
    run(main)
