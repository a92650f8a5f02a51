"""Sing the spans of an edit, and leave the rest of the song as it is, to the bit.

Read `sing_again`, then `sing_stretch` (latents outside are put back at each step: sampler.keeping) and
`spliced` (the new sound fades into the old one).

Axes: T latent frames, C latent channels, W wave channels, N samples, n frames of a codec's pitch.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from config import Preset, SampleConfig
from songs.before import LOSSLESS
from songs.edit import FADE_S, Edit, Stretch, joined
from songs.files import Outputs
from songs.tunes import noise_of, repeated
from support.audio import limited

FOR_GOOD, MOVED = 2.0, 0.2     # flow times until which frames are kept: all but spans; words that moved
LEAD_SEED = 0x4C454144         # what tells the noise of frames that are put in front from a song's own


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
    end, last = stretch.first + stretch.computed, prompt.edit.frames
    here = slice(stretch.first, end)
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
    sung = model.sampled(prompt, stretch.windows, noise[:, here], cfg, bar, (old, until[:, None]))
    for span in spans:
        new = sung[:, span.start - stretch.first:span.stop - stretch.first]
        latents[:, span] = new[:, :latents.shape[1] - span.start]


def spliced(codec, latents: Tensor, hz: Tensor, edit: Edit, samples: int) -> tuple[Tensor, Tensor]:
    """The song's wave (W, samples): outside of the spans that of before, to the bit; and its pitch (1, n).

    Args: latents (1, T, C); hz (1, n), pitch of the song before.
    """
    hop, rate_hz = codec.config.hop, codec.config.sample_rate_hz
    gain, *means = edit.before.account["level"]
    wave, fade, now = kept(edit, hop, samples), round(FADE_S * rate_hz), hz
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


def kept(edit: Edit, hop: int, samples: int) -> Tensor:
    """The wave of the song before where it lies in the new one (W, samples); silence before and after it."""
    old, start = edit.before.wave, edit.lead * hop
    return torch.nn.functional.pad(old, (start, max(0, samples - start - old.shape[1])))[:, :samples]


def report(edit: Edit, wave: Tensor, preset: Preset) -> dict:
    """How much changed where, for the account: seconds that differ, and the largest difference outside."""
    hop, rate_hz = preset.codec.hop, preset.codec.sample_rate_hz
    fade, spans = round(FADE_S * rate_hz), []
    difference = (wave - kept(edit, hop, wave.shape[1])).abs().amax(0)                        # (N,)
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
