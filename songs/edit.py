"""Which spans of a finished song are sung again: those that words changed, and what flags name.

Read `changes` (how the words of two songs differ), then `edited`, which turns a prompt into one of an edit,
and `stretches_of` (what the network sees at once). songs/splice.py sings it.
"""

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config import Preset, SampleConfig, UserError
from data import windows
from lyrics import formats
from lyrics.plan import PlanSettings
from lyrics.pronounce import Reader
from lyrics.revise import revised
from lyrics.timing import Line, Lyrics, Part, Word
from phonemes import CELLS_PER_FRAME, SymbolTable, sung_spans
from songs.before import Before
from songs.files import account_in
from songs.manifest import SAME_S, Song

SUNG_S = 0.06                  # sung again around words that change: sounds lean on their neighbours
FADE_S = 0.04                  # beyond it, old sound fades into new; the latents are the same there
CONTEXT_S = 5.0                # of kept song that the network sees on either side


class Stretch(NamedTuple):
    """Spans that the network sings at once, with kept song around them."""
    first: int                   # frames that the network sees
    end: int
    style: Tensor                # (E,)
    spans: list[tuple[int, int]]
    windows: list[tuple[int, dict[str, Tensor]]]

    @property
    def computed(self) -> int:
        """Frames that the network computes from the first one on."""
        last, batch = self.windows[-1]
        return last + batch["phonemes"].shape[1] // CELLS_PER_FRAME


class Edit(NamedTuple):
    """What of a song is sung again. Frames and seconds count from the new song's start."""
    before: Before
    lead: int                    # frames that are put in front of the song
    frames: int                  # of the song
    spans: list[tuple[int, int]]
    stretches: list[Stretch]
    moved: list[tuple[int, Tensor]]  # words at other times: first frame; the frames that they had (n,)
    variation: float             # 0: the tune of before; 1: that of the seed
    styled: bool                 # whether the spans have a style of their own
    words: list[str]             # what changed, for people


def changes(old: Lyrics, new: Lyrics) -> tuple[list[tuple], list[tuple], list[str]]:
    """How the words of two songs differ: in times, by more than SAME_S, or in sounds.

    Returns: spans in seconds, not in order; words whose times alone differ, before and now; a line about each
        change.
    """
    def alike(a: Word, b: Word) -> bool:
        def sounds(word: Word) -> list:
            return [word.phoneme, *(phone.text for phone in word.phones)]

        times = [(part.start, part.end) for word in (a, b) for part in (word, *word.phones)]
        half = len(times) // 2
        return sounds(a) == sounds(b) and all(
            abs(x - y) <= SAME_S for one, other in zip(times[:half], times[half:])
            for x, y in zip(one, other))

    rest, fresh = [*old.words], []
    for word in new.words:
        twin = next((other for other in rest if abs(other.start - word.start) <= SAME_S
                     and alike(other, word)), None)
        if twin:
            rest.remove(twin)
        else:
            fresh.append(word)
    spans, moved, told = [(word.start, word.end) for word in (*rest, *fresh)], [], []
    matches = difflib.SequenceMatcher(None, *([(word.word, word.phoneme) for word in words]
                                              for words in (rest, fresh)), autojunk=False)
    for kind, a, b, c, d in matches.get_opcodes():
        names = [" ".join(word.word for word in words) for words in (rest[a:b], fresh[c:d])]
        if kind != "equal":
            told.append({"replace": '"{1}" for "{0}"', "delete": 'without "{0}"',
                         "insert": 'with "{1}"'}[kind].format(*names))
            continue
        for was, now in zip(rest[a:b], fresh[c:d]):
            moved.append((was, now))
            more = now.end - now.start - (was.end - was.start)
            told.append(f'"{now.word}" {now.start - was.start:+.2f} s'
                        + f", {more:+.2f} s long" * (abs(more) > SAME_S))
    return spans, moved, told


def span_of(text: str, duration_s: float) -> tuple[float, float]:
    """The seconds that a --span names. Raises: UserError."""
    numbers = re.fullmatch(r"(\d+(?:\.\d*)?)-(\d+(?:\.\d*)?)", text)
    begin, end = map(float, numbers.groups()) if numbers else (1.0, 0.0)
    if not 0 <= begin < end <= duration_s + SAME_S:
        raise UserError(f"--span {text}: expected seconds of the song, such as 1.5-3.25, {duration_s:.2f} at "
                        "most")
    return begin, end


def line_of(number: int, lines: Sequence[Line]) -> tuple[float, float]:
    """The seconds of a line, counted from 1. Raises: UserError."""
    if not 1 <= number <= len(lines):
        raise UserError(f"--line {number}: the song has {len(lines)} lines")
    words = lines[number - 1].words
    return words[0].start, max(word.end for word in words)


def words_of(before: Before, lead_s: float) -> Lyrics:
    """The words of the song before, `lead_s` later."""
    words = {key: before.account.get(key) for key in ("word", "segment")}
    return later(formats.parse(json.dumps(words), "jam", "the song before"), lead_s)


def later(lyrics: Lyrics, seconds: float) -> Lyrics:
    """Lyrics whose times are `seconds` later."""
    def moved(part: Line | Word | Part) -> Line | Word | Part:
        inner = {name: tuple(map(moved, value)) for name, value in vars(part).items()
                 if name in ("words", "phones", "syllables")}
        times = {name: None if time is None else time + seconds for name, time in
                 (("start", part.start), ("end", part.end))}
        return dataclasses.replace(part, **inner, **times)
    return dataclasses.replace(lyrics, lines=tuple(map(moved, lyrics.lines)))


def style_at(chain: Sequence[dict], frame: int) -> Tensor:
    """The style (E,) with which a frame was sung; the newest edit that styled it says so."""
    for account in reversed(chain[1:]):
        edit = account["edit"]
        if edit["styled"] and any(a <= frame < b for a, b in edit["frames"]):
            return torch.tensor(account["style"])
        frame -= edit["lead"]
    return torch.tensor(chain[0]["style"])


def cut_by_style(spans: Iterable[tuple[int, int]], chain: Sequence[dict], lead: int,
                 least: int) -> list[tuple[int, int]]:
    """Spans, cut where a part with a style of its own begins or ends; no piece is shorter than `least`."""
    edges, found = set(), []
    for account in reversed(chain[1:]):
        edit = account["edit"]
        if edit["styled"]:
            edges |= {edge + lead for span in edit["frames"] for edge in span}
        lead += edit["lead"]
    for a, b in spans:
        for edge in sorted(edges):
            if a + least <= edge <= b - least:
                found.append((a, edge))
                a = edge
        found.append((a, b))
    return found


def carried(given: Lyrics, before: Before, cfg: SampleConfig, frame_hz: float, reader: Reader) -> Lyrics:
    """The words of an edit: those of the song before, `cfg.lead` later, or others; these take its times where
    they have none.
    """
    lead_s = lead_of(cfg, frame_hz) / frame_hz
    if cfg.edit is not None and cfg.lyrics == cfg.edit:
        return later(given, lead_s)
    return given if given.timed else revised(words_of(before, lead_s), given, reader,
                                             PlanSettings(bpm=cfg.bpm), cfg.lyrics)[0]


def continued(song: Song, before: Before, cfg: SampleConfig, preset: Preset) -> Song:
    """An edit's song: it lasts as long as the song before, and --lead, unless asked otherwise."""
    duration_s = before.account["settings"]["duration"]
    frame_hz = preset.codec.sample_rate_hz / preset.codec.hop
    if song.duration_s != duration_s:
        return song
    return dataclasses.replace(song, duration_s=duration_s + lead_of(cfg, frame_hz) / frame_hz)


def edited(prompt, before: Before, cfg: SampleConfig, preset: Preset, table: SymbolTable):
    """A prompt that sings again what of `before` differs.

    Args: prompt, a sample.Prompt, of the new words. Raises: UserError if that is nothing, or cannot be.
    """
    frame_hz, chain = preset.codec.sample_rate_hz / preset.codec.hop, before.chain
    lead, song, account = lead_of(cfg, frame_hz), prompt.song, account_in(prompt.song.lyrics)
    styled = song.styles != (str(cfg.edit),)
    if account and song.styles == (str(song.lyrics),) and song.lyrics != cfg.edit:       # sung again
        styled = account.get("edit", {}).get("styled", False)
    frames, known = (math.ceil(samples / preset.codec.hop) for samples in
                     (round(prompt.duration_s * preset.codec.sample_rate_hz), before.wave.shape[1]))
    known += lead
    if frames < known:
        raise UserError(f"--duration {prompt.duration_s:.2f}: an edit may be longer than its song, not "
                        f"shorter; expected {known / frame_hz:.2f} or more")
    changed, moved, words = changes(words_of(before, lead / frame_hz), prompt.lyrics)
    spans = spans_of(prompt, changed, cfg, (lead, known, frames), frame_hz)
    seed = before.account["request"]["seed"]
    if cfg.variation is not None and cfg.seed <= seed < cfg.seed + max(cfg.batch_infer_num, cfg.best_of):
        raise UserError(f"--variation {cfg.variation}: leads to the tune of another --seed than {seed}")
    moved = [(round(now.start * frame_hz), frames_before(was, now, frame_hz, preset.filler) - lead)
             for was, now in moved]
    spans = spans if styled else cut_by_style(spans, chain, lead, apart(frame_hz))
    styles = [prompt.style if styled else style_at(chain, (a + b) // 2 - lead) for a, b in spans]
    rows = [(w.start, w.end, w.phoneme, [*map(dataclasses.astuple, w.phones)]) for w in prompt.lyrics.words]
    stretches = [part._replace(windows=windows(rows, part.style, frames, (part.first, part.end), preset,
                                               table))
                 for part in stretches_of(spans, styles, frames, preset)]
    edit = Edit(before, lead, frames, spans, stretches, moved,
                1.0 if cfg.variation is None else cfg.variation, styled, words)
    return dataclasses.replace(prompt, edit=edit, repeats=chain[0]["repeats"],
                               style=prompt.style if styled else torch.tensor(chain[0]["style"]))


def spans_of(prompt, changed: list[tuple[float, float]], cfg: SampleConfig, edges: tuple[int, int, int],
             frame_hz: float) -> list[tuple[int, int]]:
    """The spans that are sung again, first frames and ends.

    Args: changed, seconds where words differ; edges, the frames where the song before begins and ends, and
        where the new one ends. Raises: UserError if there is none.
    """
    (lead, known, frames), lines = edges, [line for line in prompt.lyrics.lines if line.words]
    seconds = [*changed, *(span_of(text, prompt.duration_s) for text in cfg.span or ()),
               *(line_of(number, lines) for number in cfg.line or ())]
    if cfg.variation is not None and not seconds:
        seconds = [(0.0, prompt.duration_s)]
    spans = [(max(0, round((a - SUNG_S) * frame_hz)), min(frames, round((b + SUNG_S) * frame_hz)))
             for a, b in seconds]
    spans += [(0, lead)] * (lead > 0) + [(known, frames)] * (frames > known)
    if not spans:
        raise UserError(f"--edit {cfg.edit}: nothing differs from it; change --lyrics, or say what to sing "
                        "again with --line, --span or --variation")
    return joined(spans, apart(frame_hz))


def apart(frame_hz: float) -> int:
    """Frames between two spans that do not fade into each other."""
    return math.ceil(2 * FADE_S * frame_hz)


def frames_before(was: Word, now: Word, frame_hz: float, filler: str) -> Tensor:
    """For each frame (n,) of a word, where the word was in the same part of the same sound."""
    def bounds(word: Word) -> list[float]:
        if word.phones:
            return [*(phone.start for phone in word.phones), word.phones[-1].end]
        sounds = sung_spans(word.phoneme, word.end - word.start) if filler == "sung" else []
        return [word.start, *(word.start + end for _, _, end in sounds[:-1]), word.end]

    first, end, sounds = round(now.start * frame_hz), round(now.end * frame_hz), (bounds(now), bounds(was))
    if len(sounds[0]) != len(sounds[1]):                     # only one of them has times of its sounds
        sounds = (now.start, now.end), (was.start, was.end)
    at = np.interp((np.arange(first, end) + 0.5) / frame_hz, *sounds) * frame_hz
    first, end = round(was.start * frame_hz), round(was.end * frame_hz)
    return torch.from_numpy(at).long().clamp(first, max(first, end - 1))


def lead_of(cfg: SampleConfig, frame_hz: float) -> int:
    """Frames that --lead puts in front of a song."""
    return round(cfg.lead * frame_hz)


def joined(spans: Iterable[tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    """Spans in order; those that are less than `gap` apart are one."""
    found: list[tuple[float, float]] = []
    for a, b in sorted(spans):
        if found and a < found[-1][1] + gap:
            found[-1] = found[-1][0], max(b, found[-1][1])
        else:
            found.append((a, b))
    return found


def stretches_of(spans: Sequence[tuple[int, int]], styles: Sequence[Tensor], frames: int,
                 preset: Preset) -> list[Stretch]:
    """What the network sees at once: spans that are near each other and have one style, and their context.

    Where the network computes whole windows anyway, the context fills one.
    """
    most = preset.model.max_frames
    context = round(CONTEXT_S * preset.codec.sample_rate_hz / preset.codec.hop)
    found: list[Stretch] = []
    for (a, b), style in zip(spans, styles):
        first, end = max(0, a - context), min(frames, b + context)
        if not preset.trim:                                  # with the spans amid it, if the song is longer
            first = min(first, max(0, min((a + b - most) // 2, frames - most)))
            end = min(frames, max(end, first + most))
        last = found[-1] if found else None
        inside = last is not None and min(frames, b + context) <= last.end
        near = last is not None and first < last.end and torch.equal(last.style, style)
        if near and (inside or end - last.first <= most):
            found[-1] = last._replace(end=last.end if inside else end, spans=[*last.spans, (a, b)])
        else:
            found.append(Stretch(first, end, style, [(a, b)], []))
    return found
