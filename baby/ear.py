"""Trains the ear with which evaluate.py hears the embedded model's songs: a small phoneme recogniser.

    python -m baby.ear --shards 'baby/data/songs-{000000..000019}.tar' --out weights/baby/ear.safetensors

The network is in songs/listeners.py. Read `truth` (the phoneme of every frame), `spoil` (what the ear is made
robust against), then `main`. The ear learns from ground-truth songs only, never from the model's own, and
hears 0.7 s around each frame: too little to memorise words. Axes: B songs, n mel frames of the codec.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from baby.songs import PHONEMES
from config import PRESETS, Settings
from data import read_song
from phonemes import sung_spans
from songs.listeners import CODEC, PER_S, Ear
from support.cli import parse, run
from support.files import replacing
from support.tars import expand, read_tar
from vae import MelCodec

CROP, BATCH = 400, 16                            # frames of a training example; examples of a batch
VOCODED, GRIFFIN_LIM_STEPS = 3, 32               # one song of so many passes through so short a Griffin-Lim


@dataclass(frozen=True)
class EarSettings(Settings):
    shards: str = "baby/data/songs-{000000..000019}.tar"     # training songs
    out: Path = Path("weights/baby/ear.safetensors")         # weights
    steps: int = 3000                                        # batches of 16 examples


def truth(words: list[tuple[float, float, str]], frames: int, classes: list[str]) -> Tensor:
    """The class of every frame (n,), by the rule that placed the sounds of the training songs."""
    target = torch.zeros(frames, dtype=torch.long)
    for start, end, phoneme in words:
        for c, a, b in sung_spans(phoneme, end - start):
            target[round((start + a) * PER_S):round((start + b) * PER_S)] = classes.index(c)
    return target


def read_songs(shards: str, ear: Ear) -> list[tuple[Tensor, Tensor]]:
    """The shards' songs as mel frames (n, mels) with their classes (n,); some after a Griffin-Lim."""
    vocoder, songs = MelCodec(dataclasses.replace(CODEC, griffin_lim_steps=GRIFFIN_LIM_STEPS)), []
    for source in expand((shards,), False):
        for _, parts, _ in read_tar(source):
            posterior, _, words = read_song(parts, PRESETS["baby"])
            latents = posterior[:len(posterior) // 2].T[None]                          # (1, T, C)
            mel = latents.reshape(1, -1, CODEC.mels)
            if len(songs) % VOCODED == 0:
                mel = ear.mel(vocoder.decode(latents)[0, 0])
            songs.append((mel[0], truth(words, mel.shape[1], ear.classes)))
    return songs


def spoil(mel: Tensor, rng: torch.Generator) -> Tensor:
    """Mel frames (B, n, mels) at another level, with another timbre, vocal tract length, and noise."""
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)
    size, mels = len(mel), CODEC.mels
    power = mel * CODEC.log_std + CODEC.log_mean                                     # log of magnitudes
    timbre = nn.functional.interpolate(0.4 * draw(size, 1, 5), mels, mode="linear", align_corners=True)
    band = torch.arange(mels) + (1.2 * draw(size, 1)).clamp(-2.5, 2.5) * torch.linspace(0.3, 1, mels)
    band = band.clamp(0, mels - 1.001)[:, None]                                              # (B, 1, mels)
    low, part = band.long().expand_as(mel), band % 1
    power = (1 - part) * power.gather(2, low) + part * power.gather(2, low + 1)
    power = power + timbre + 0.4 * draw(size, 1, 1)
    hiss = -4.5 + 1.5 * draw(size, 1, 1) + nn.functional.interpolate(draw(size, 1, 5), mels, mode="linear")
    noise = hiss.exp() * draw(*mel.shape).abs() * (torch.rand(size, 1, 1, generator=rng) < 0.6)
    power = (power.exp() - CODEC.floor + noise).clamp_min(CODEC.floor).log() + 0.1 * draw(*mel.shape)
    return (power.clamp_min(torch.tensor(CODEC.floor).log()) - CODEC.log_mean) / CODEC.log_std


def main(cfg: EarSettings) -> None:
    """Train on the shards' songs; the last twentieth of them is held out for the printed accuracy."""
    torch.manual_seed(0)
    ear, rng = Ear(PHONEMES), torch.Generator().manual_seed(0)
    began = time.time()
    songs = read_songs(cfg.shards, ear)
    print(f"{len(songs)} songs in {time.time() - began:.0f} s", flush=True)
    held, songs = songs[-len(songs) // 20:], songs[:-len(songs) // 20]
    songs = [song for song in songs if len(song[0]) > CROP]
    optimizer = torch.optim.AdamW(ear.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=cfg.steps)
    for step in range(1, cfg.steps + 1):
        picks = [songs[i] for i in torch.randint(len(songs), (BATCH,), generator=rng)]
        starts = [int(torch.randint(len(mel) - CROP, (), generator=rng)) for mel, _ in picks]
        mel, target = (torch.stack([song[i][a:a + CROP] for song, a in zip(picks, starts)]) for i in (0, 1))
        mel[0], target[0] = ear.codec.silence[:CODEC.mels], 0              # noise alone is no singing
        loss = nn.functional.nll_loss(ear(spoil(mel, rng)).flatten(0, 1), target.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(ear.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            with torch.no_grad():
                right = torch.cat([(ear(mel[None])[0].argmax(-1) == row)[row > 0] for mel, row in held])
            print(f"step {step}, {time.time() - began:.0f} s: loss {loss.item():.3f}, frames of sung sounds "
                  f"heard right {right.float().mean():.3f}", flush=True)
    with replacing(cfg.out) as path:
        save_file({name: value.half() for name, value in ear.state_dict().items()}, path,
                  {"phonemes": "".join(ear.classes[1:])})


if __name__ == "__main__":
    run(lambda: main(parse(EarSettings, __doc__)))
