"""Trains the ear with which evaluate.py hears the embedded model's songs: a small phoneme recogniser.

    python -m baby.ear --out runs/ear.safetensors

The network is in songs/listeners.py. Read `truth` (the phoneme of every frame), `elsewhere` and `spoil` (what
the ear is made robust against), then `main`. The ear learns from true songs only, of all singers, half of
them through the codec; never from the model's own. It hears 0.7 s around each frame: too little to memorise
words.
Axes: B crops, N samples, n frames of the ear (sung.LogMel).
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from baby import songs
from config import CODEC as CODEC_FILE
from config import Settings, within
from phonemes import sung_spans
from songs.listeners import CODEC, EAR_HZ, PER_S, Ear, level
from support.cli import parse, run
from support.files import find, make_folder, replacing
from sung import LogMel, SungCodec, whole_frames
from vae import make_codec

CROP, BATCH = 256, 12                            # frames of a training example; examples of a batch
FIRST = 700_000                                  # number of the first song: nothing else learns from these
FASTEST = 1.1                                    # speed at which a song is played to the ear; slowest, 1 / it


@dataclass(frozen=True)
class EarSettings(Settings):
    out: Path = Path("weights/baby/ear.safetensors")         # weights
    assets: Path = Path("weights/baby")          # folder of the model, for its codec
    songs: int = within(400, 20)                 # how many it learns from
    steps: int = within(3200, 10)                # batches of 12 examples


def truth(words: list[dict], frames: int, classes: list[str]) -> Tensor:
    """The class of every frame (n,), by the rule that placed the sounds of the training songs."""
    target = torch.zeros(frames, dtype=torch.long)
    for word in words:
        for c, a, b in sung_spans(word["phoneme"], word["end"] - word["start"]):
            target[round((word["start"] + a) * PER_S):round((word["start"] + b) * PER_S)] = classes.index(c)
    return target


def make_song(number: int, codec: SungCodec, classes: list[str]) -> tuple[Tensor, Tensor]:
    """A song (N,), as float16, and its classes (n,).

    Eight songs, one of each style, are the voice's own sound; the next eight have been through the codec.
    """
    entry, parts, _, seconds = songs.song(number)
    if number // len(songs.SINGERS) % 2:
        wave = codec.decode(codec.pack(**songs.tracks_of(parts, seconds, codec))[None])[0, 0]
    else:
        wave = torch.from_numpy(songs.wave_of(parts, seconds, np.random.default_rng(number)))
    wave = whole_frames(level(wave), codec.config.hop)
    return wave.half(), truth(entry["word"], len(wave) // codec.short, classes)


def room(decay_s: float, level_db: float, rng: torch.Generator) -> Tensor:
    """An impulse response: the direct sound, then noise, level_db above it, that dies by 60 dB in decay_s."""
    tail = torch.randn(round(decay_s * EAR_HZ), generator=rng)
    tail *= 10 ** (-3 * torch.arange(len(tail)) / len(tail))
    tail[:EAR_HZ // 200] = 0                     # it comes 5 ms later
    tail *= 10 ** (level_db / 20) / tail.norm()
    tail[0] = 1
    return tail


def hiss(size: int, level_db: float, slope: float, rng: torch.Generator) -> Tensor:
    """Noise (size,), level_db above a sung RMS of 0.1, whose magnitudes fall with frequency ** slope."""
    spectrum = torch.view_as_complex(torch.randn(size // 2 + 1, 2, generator=rng))
    noise = torch.fft.irfft(spectrum * torch.arange(len(spectrum)).clamp_min(size // 200) ** -slope, size)
    return noise * 0.1 * 10 ** (level_db / 20) / noise.square().mean().sqrt()


def elsewhere(wave: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Sound (N,) at another speed and pitch, so that it takes `size` samples; often in a room, or with noise.

    A room's echo goes around: the end is heard in the beginning, as what was sung before.
    """
    def between(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=rng))
    spectrum = torch.fft.rfft(wave)
    if between(0, 1) < 0.4:
        echo = room(math.exp(between(-2, 0)), between(-20, 0), rng)
        spectrum *= torch.fft.rfft(echo[:len(wave)], len(wave))
    wave = level(torch.fft.irfft(spectrum, size))
    if between(0, 1) < 0.6:
        wave = wave + hiss(size, between(-45, -8), between(0, 1.2), rng)
    return wave


def crop(wave: Tensor, target: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """An example from a song (N,) and its classes (n,): sound (CROP * hop,), classes (CROP,)."""
    hop, speed = len(wave) // len(target), FASTEST ** float(2 * torch.rand((), generator=rng) - 1)
    frames = round(CROP * speed)
    start = int(torch.randint(len(target) - frames + 1, (), generator=rng))
    at = ((torch.arange(CROP) + 0.5) * frames / CROP).long()
    return elsewhere(wave[start * hop:(start + frames) * hop].float(), CROP * hop, rng), target[start + at]


def spoil(mel: Tensor, rng: torch.Generator) -> Tensor:
    """Mel frames (B, n, mels) at another level, with another timbre and vocal tract length."""
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)
    size, mels, floor = len(mel), LogMel.mels, LogMel.floor
    power = mel * LogMel.std + LogMel.mean                                           # log of magnitudes
    timbre = nn.functional.interpolate(0.4 * draw(size, 1, 5), mels, mode="linear", align_corners=True)
    band = torch.arange(mels) + (0.6 * draw(size, 1)).clamp(-1.5, 1.5) * torch.linspace(0.3, 1, mels)
    band = band.clamp(0, mels - 1.001)[:, None]                                              # (B, 1, mels)
    low, part = band.long().expand_as(mel), band % 1
    power = (1 - part) * power.gather(2, low) + part * power.gather(2, low + 1)
    power = power + timbre + 0.4 * draw(size, 1, 1) + 0.1 * draw(*mel.shape)
    return ((power.exp() - floor).clamp_min(floor).log() - LogMel.mean) / LogMel.std


def main(cfg: EarSettings) -> None:
    """Make songs and train on them; the last twentieth is held out for the printed accuracy."""
    make_folder(cfg.out.parent)
    torch.manual_seed(0)
    ear, rng, began = Ear(songs.PHONEMES), torch.Generator().manual_seed(0), time.time()
    codec = make_codec(CODEC, find(cfg.assets / CODEC_FILE))
    made = [make_song(FIRST + i, codec, ear.classes) for i in range(cfg.songs)]
    print(f"{len(made)} songs in {time.time() - began:.0f} s", flush=True)
    held, made = made[-len(made) // 20:], made[:-len(made) // 20]
    held = [(ear.spectrogram(wave.float()[None]), target) for wave, target in held]
    made = [song for song in made if len(song[1]) > FASTEST * CROP + 1]
    optimizer = torch.optim.AdamW(ear.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=cfg.steps)
    for step in range(1, cfg.steps + 1):
        examples = [crop(*made[i], rng) for i in torch.randint(len(made), (BATCH,), generator=rng)]
        wave, target = map(torch.stack, zip(*examples))
        wave[0], target[0] = hiss(wave.shape[1], -60 * float(torch.rand((), generator=rng)), 0.5, rng), 0
        loss = nn.functional.nll_loss(ear(spoil(ear.spectrogram(wave), rng)).flatten(0, 1), target.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(ear.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == cfg.steps:
            with torch.no_grad():
                right = torch.cat([(ear(mel)[0].argmax(-1) == target)[target > 0] for mel, target in held])
            print(f"step {step}, {time.time() - began:.0f} s: loss {loss.item():.3f}, frames of sung sounds "
                  f"heard right {right.float().mean():.3f}", flush=True)
            with replacing(cfg.out) as path:
                save_file({name: value.half() for name, value in ear.state_dict().items()}, path,
                          {"phonemes": "".join(ear.classes[1:])})


if __name__ == "__main__":
    run(lambda: main(parse(EarSettings, __doc__)))
