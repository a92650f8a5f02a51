"""Sing a part of a finished song again, and leave the rest as it is, to the bit.

Read `Before` (a finished song), `edit_of` (which spans of it are sung again: where `changes` finds that words
differ, and what --span and --line name), `sing_again` (latents outside are kept at every step, see
sampler.keeping), then `spliced` (the new sound fades into the old one). An edit's account holds those of all
songs that it comes from: `before_of` makes them again if need be.

Axes: T latent frames, C latent channels, W wave channels, N samples, n frames of a codec's pitch.
"""

import dataclasses
import difflib
import json
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config import Guidance, Preset, SampleConfig, UserError
from data import windows
from lyrics import formats
from lyrics.plan import PlanSettings
from lyrics.pronounce import Reader
from lyrics.revise import revised
from lyrics.timing import Line, Lyrics, Part, Word
from phonemes import CELLS_PER_FRAME, SymbolTable, sung_spans
from sampler import sample_windows, time_grid
from songs.files import Outputs, account_in, digest, identity, latents_of, own_of, seal
from songs.manifest import SAME_S, Song
from songs.tunes import noise_of, repeated
from support.audio import fingerprint, limited, read_wave
from support.cli import parse
from support.files import write_json

SUNG_S = 0.06                  # sung again around words that change: sounds lean on their neighbours
FADE_S = 0.04                  # beyond it, old sound fades into new; the latents are the same there
FOR_GOOD, MOVED = 2.0, 0.2     # flow times until which frames are kept: all but spans; words that moved
CONTEXT_S = 5.0                # of kept song that the network sees on either side
LOSSLESS = (".wav", ".flac")
LEAD_SEED = 0x4C454144         # what tells the noise of frames that are put in front from a song's own

class Before(NamedTuple):
    """A finished song that is to be edited."""
    account: dict
    latents: Tensor              # (T, C)
    hz: Tensor                   # (n,) pitch with which the codec sang; (0,) if it needs none
    wave: Tensor                 # (W, N) as its file holds it

    @property
    def chain(self) -> list[dict]:
        """The accounts of all songs that led to this one, itself last."""
        return [*self.account.get("chain", []), own_of(self.account)]


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


# The song as it is

def before_of(song: Song, cfg: SampleConfig, sing: Callable[[SampleConfig], Path]) -> Before | None:
    """The song that --edit names, or that the edit was made from whose account is to be sung again.

    What no file holds, `sing` makes again from accounts. None if nothing is edited.
    Raises: UserError if --edit is no account, or one of a part.
    """
    again = account_in(song.lyrics) or {}
    remakes = cfg.edit is None and song.styles == (str(song.lyrics),) and again.keys() & {"edit", "chain"}
    if cfg.edit is None and not remakes:
        if cfg.span or cfg.line or cfg.lead or cfg.variation is not None:
            raise UserError("--line, --span, --variation and --lead need --edit, which names the song")
        return None
    with tempfile.TemporaryDirectory() as folder:
        if remakes:
            verify(song.lyrics, again)
            return saved(remade(again["chain"], cfg, Path(folder), sing))
        account = account_in(cfg.edit)
        if account is None:
            raise UserError(f"--edit {cfg.edit}: expected a song's account, the NAME.json beside it")
        if "whole" in account:
            raise UserError(f"--edit {cfg.edit}: is a part of a song (--from, --to); expected a whole one")
        verify(cfg.edit, account)
        found, path = saved(cfg.edit), cfg.edit.with_suffix("")
        if "seal" in account and path.is_file() and fingerprint(path) != account["sound"]:
            raise UserError(f"{path}: was changed since it was sung; if you move it away, the song is sung "
                            "again as its account says")
        if found is None:                                    # its latents are gone: the same again
            made = saved(remade([*account.get("chain", []), account], cfg, Path(folder), sing))
            wave = read_wave(path)[0] if path.suffix.lower() in LOSSLESS and path.is_file() else made.wave
            if wave.shape != made.wave.shape:
                raise UserError(f"{path}: is not the song that its account {cfg.edit} sings")
            own = account if "seal" in account else made.account       # which has what older ones lack
            found = made._replace(account=own, wave=wave)
        return found


def verify(path: Path, account: dict) -> None:
    """Raise UserError if an account, or one of its chain, is not as it was written.

    One from before accounts were sealed has no chain; its song is sung again.
    """
    chain, before = account.get("chain", []), None
    good = isinstance(chain, list) and all(isinstance(each, dict) for each in chain)
    for each in [*chain, account] if good else ():
        older = not chain and "seal" not in each and each.get("digest") in (None, digest(each))
        good = good and (older or each.get("seal") == seal(each)) and ("edit" in each) == bool(before)
        good = good and (not before or each["request"]["edit"]["before"] == identity(before))
        before = each
    if not good:
        raise UserError(f"{path}: was changed since it was sung; flags and --lyrics change a song")


def saved(path: Path) -> Before | None:
    """The song beside an account, if its files are there and are those of the account."""
    account, song = account_in(path), path.with_suffix("")
    tensors = latents_of(path, account) if "seal" in account else None
    if tensors is None or not song.is_file():
        return None
    latents = tensors["latents"]
    return Before(account, latents, tensors.get("hz", latents.new_zeros(0)), read_wave(song)[0])


def remade(chain: list[dict], cfg: SampleConfig, folder: Path,
           sing: Callable[[SampleConfig], Path]) -> Path:
    """Sing the songs of a chain one after another; the account of the last."""
    own = {"model": cfg.model, "vae": cfg.vae, "phonemizer": cfg.phonemizer, "device": cfg.device,
           "threads": cfg.threads, "offline": cfg.offline, "style-encoder": cfg.style_encoder,
           "force": cfg.force}
    flags = [f"--{name}={value}" for name, value in own.items() if value is not None]
    before = []
    for i, account in enumerate(chain):
        write_json(folder / f"{i}.json", {key: value for key, value in account.items() if key != "chain"})
        ending = Path(str(account["settings"].get("out", SampleConfig.out))).suffix
        out = folder / f"{i}-sung{ending}"
        sing(parse(SampleConfig, "", [*before, "--config", str(folder / f"{i}.json"), "--out", str(out),
                                      "--page=false", *flags]))
        before = ["--edit", f"{out}.json"]
    return Path(f"{out}.json")


# What is sung again

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
    found, moved, words = changes(words_of(before, lead / frame_hz), prompt.lyrics)
    lines = [line for line in prompt.lyrics.lines if line.words]
    found += [span_of(text, prompt.duration_s) for text in cfg.span or ()]
    found += [line_of(number, lines) for number in cfg.line or ()]
    if cfg.variation is not None and not found:
        found = [(0.0, prompt.duration_s)]
    gap = math.ceil(2 * FADE_S * frame_hz)
    spans = joined([(max(0, round((a - SUNG_S) * frame_hz)), min(frames, round((b + SUNG_S) * frame_hz)))
                    for a, b in found] + [(0, lead)] * (lead > 0) + [(known, frames)] * (frames > known),
                   gap)
    if not spans:
        raise UserError(f"--edit {cfg.edit}: nothing differs from it; change --lyrics, or say what to sing "
                        "again with --line, --span or --variation")
    seed = before.account["request"]["seed"]
    if cfg.variation is not None and cfg.seed <= seed < cfg.seed + max(cfg.batch_infer_num, cfg.best_of):
        raise UserError(f"--variation {cfg.variation}: leads to the tune of another --seed than {seed}")
    moved = [(round(now.start * frame_hz), frames_before(was, now, frame_hz, preset.filler) - lead)
             for was, now in moved]
    spans = spans if styled else cut_by_style(spans, chain, lead, gap)
    styles = [prompt.style if styled else style_at(chain, (a + b) // 2 - lead) for a, b in spans]
    rows = [(w.start, w.end, w.phoneme, [*map(dataclasses.astuple, w.phones)]) for w in prompt.lyrics.words]
    stretches = [part._replace(windows=windows(rows, part.style, frames, (part.first, part.end), preset,
                                               table))
                 for part in stretches_of(spans, styles, frames, preset)]
    edit = Edit(before, lead, frames, spans, stretches, moved,
                1.0 if cfg.variation is None else cfg.variation, styled, words)
    return dataclasses.replace(prompt, edit=edit, repeats=chain[0]["repeats"],
                               style=prompt.style if styled else torch.tensor(chain[0]["style"]))


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


# Singing it

def noise_after(chain: Sequence[dict], edit: Edit, seed: int, frames: int, preset: Preset) -> Tensor:
    """The noise (1, frames, C) of an edited song: that of before, but where the edit changes it."""
    first, sizes = chain[0], preset.model
    noise = repeated(noise_of(first["request"]["seed"], frames, sizes), first["repeats"])
    steps = [(account["edit"], account["request"]["seed"]) for account in chain[1:]]
    steps.append((noted(edit), seed))
    before = first["request"]["seed"]
    for number, (change, seed) in enumerate(steps):
        if change["lead"]:
            fresh = noise_of(before ^ LEAD_SEED ^ number, change["lead"], sizes)
            noise = torch.cat([fresh, noise], 1)[:, :frames]
        if seed != before:                                   # independent: the sphere's arc between the two
            other, angle = noise_of(seed, frames, sizes), math.pi / 2 * change["variation"]
            for a, b in change["frames"]:
                noise[:, a:b] = math.cos(angle) * noise[:, a:b] + math.sin(angle) * other[:, a:b]
        before = seed
    return noise


def noted(edit: Edit) -> dict:
    """An edit as its account has it."""
    return {"lead": edit.lead, "frames": edit.spans, "variation": edit.variation, "styled": edit.styled,
            "words": edit.words}


@torch.no_grad()
def sing_again(model, prompt, seed: int, cfg: SampleConfig,
               bar: Callable) -> tuple[Tensor, Tensor, Tensor, dict]:
    """Sing the spans of an edit.

    Args: model and prompt as in sample.py; bar wraps the list of steps, as tqdm does.
    Returns: latents (T, C), the codec's pitch (n,) and wave (W, N) of the whole song; more for its account.
    """
    edit, before = prompt.edit, prompt.edit.before
    known = edit.lead + len(before.latents)
    if seed != before.account["request"]["seed"]:            # another tune, for words that moved, too
        prompt = dataclasses.replace(prompt, edit=edit._replace(moved=[]))
    latents = before.latents.new_zeros(1, max(known, edit.frames), before.latents.shape[1])
    latents[0, edit.lead:known] = before.latents
    frames = max([latents.shape[1], *(part.first + part.computed for part in edit.stretches)])
    noise = noise_after(before.chain, edit, seed, frames, model.preset)
    for stretch in edit.stretches:
        sing_stretch(model, prompt, stretch, known, latents, noise, cfg, bar)
    hz = before.hz[None] if len(before.hz) else model.codec.pitch(before.latents[None])
    samples = round(prompt.duration_s * model.preset.codec.sample_rate_hz)
    wave, hz = spliced(model.codec, latents, hz, edit, samples)
    about = {"edit": report(edit, wave, model.preset), "chain": before.chain,
             "level": before.account["level"]}
    return latents[0], hz[0], wave, about


def sing_stretch(model, prompt, stretch: Stretch, known: int, latents: Tensor, noise: Tensor,
                 cfg: SampleConfig, bar: Callable) -> None:
    """Sing the spans of a stretch into latents (1, T, C), of which the first `known` frames are a song's.

    Args: noise (1, frames, C) of the whole song; the rest as for `sing_again`.
    """
    device, end = model.device, stretch.first + stretch.computed
    here, last = slice(stretch.first, end), prompt.edit.frames
    kept = torch.arange(stretch.first, end) < (known if stretch.end == last else stretch.end)
    until = torch.where(kept, FOR_GOOD, 0.0)
    # What follows the song's end, the network's padding, is sung with it.
    spans = [slice(a, end if b == last else b) for a, b in stretch.spans]
    for span in spans:
        until[span.start - stretch.first:span.stop - stretch.first] = 0
    old = latents.new_zeros(1, stretch.computed, latents.shape[2])
    old[:, :latents.shape[1] - stretch.first] = latents[:, here]
    # Words at other times begin as they were, drawn out or shortened, and so keep their tune.
    for now, rows in prompt.edit.moved:
        if any(a <= now and now + len(rows) <= b for a, b in stretch.spans):
            own = slice(now - stretch.first, now - stretch.first + len(rows))
            old[0, own], until[own] = prompt.edit.before.latents[rows], MOVED
    found = [(start, {k: v.to(device) for k, v in batch.items()}) for start, batch in stretch.windows]
    sung = sample_windows(
        model.network, found, noise[:, here].to(device), time_grid(cfg.steps, cfg.sway),
        Guidance(cfg.guidance, cfg.guidance_weights or (), cfg.guidance_range), prompt.negative.to(device),
        cfg.solver, lambda steps: bar(steps, desc="sampling", unit="step"),
        (old.to(device), until[:, None].to(device))).cpu()
    for span in spans:
        new = sung[:, span.start - stretch.first:span.stop - stretch.first]
        latents[:, span] = new[:, :latents.shape[1] - span.start]


def spliced(codec, latents: Tensor, hz: Tensor, edit: Edit, samples: int) -> tuple[Tensor, Tensor]:
    """The song's wave (W, samples): outside of the spans that of before, to the bit; and its pitch (1, n).

    Args: latents (1, T, C); hz (1, n), pitch of the song before.
    """
    hop, rate_hz = codec.config.hop, codec.config.sample_rate_hz
    gain, *means = edit.before.account["level"]
    wave = torch.zeros(len(edit.before.wave), samples)
    start = edit.lead * hop
    old = edit.before.wave[:, :samples - start]
    wave[:, start:start + old.shape[1]] = old
    fade, now = round(FADE_S * rate_hz), hz
    around = math.ceil(fade / hop)
    for a, b in edit.spans:
        first, end = max(0, a - around), min(latents.shape[1], b + around)
        new, now = codec.decode_again(latents, (first, end), edit.spans, hz, edit.lead)
        new = limited((new[0].double() - torch.tensor(means).double()[:, None]) * gain)
        # 0 where the old sound stays, 1 in the span, a ramp between.
        at = torch.arange(first * hop, end * hop)
        rise = (at - a * hop) / fade + 1 if a else torch.ones(len(at))
        fall = (b * hop - at) / fade + 1 if b < edit.frames else torch.ones(len(at))
        share = torch.minimum(rise, fall).clamp(0, 1)
        here = slice(first * hop, min(end * hop, samples))
        length = here.stop - here.start
        wave[:, here] = (1 - share[:length]) * wave[:, here] + share[:length] * new[:, :length].float()
    return wave, now


def report(edit: Edit, wave: Tensor, preset: Preset) -> dict:
    """How much changed where, for the account: seconds that differ, and the largest difference outside."""
    hop, rate_hz = preset.codec.hop, preset.codec.sample_rate_hz
    fade, start = round(FADE_S * rate_hz), edit.lead * hop
    old = torch.zeros_like(wave)
    part = edit.before.wave[:, :wave.shape[1] - start]
    old[:, start:start + part.shape[1]] = part
    difference, spans = (wave - old).abs().amax(0), []
    for a, b in edit.spans:
        first = max(0, a * hop - fade) if a else 0
        end = b * hop + fade if b < edit.frames else wave.shape[1]
        spans.append((first / rate_hz, min(end, wave.shape[1]) / rate_hz))
        difference[first:end] = 0
    return noted(edit) | {"spans": joined(spans, 0), "outside": difference.max().item()}


def told(outputs: Outputs) -> str:
    """The report, for people."""
    edit, song = outputs.recorded("edit"), outputs.song
    spans = ", ".join(f"{a:.2f} to {b:.2f} s" for a, b in edit["spans"])
    about = f" ({'; '.join(edit['words'])})" if edit["words"] else ""
    outside = ("identical" if not edit["outside"] else f"up to {edit['outside']:.1e} apart"
               ) if song.suffix.lower() in LOSSLESS else f"the same, encoded again as {song.suffix}"
    return f"sung again: {spans}{about}; outside: {outside}"

