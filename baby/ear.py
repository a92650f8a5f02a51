"""The ear that evaluate.py hears the embedded model's songs with: a small phoneme recogniser.

    python baby/ear.py --shards 'baby/data/songs-{000000..000019}.tar' --out weights/baby/ear.safetensors

Read `Ear` (a wave becomes log probabilities of phonemes, frame by frame), `spoil` (what it is made robust
against), `train`. It learns from ground-truth songs only, never from the model's own, and hears 0.7 s around
each frame: too little to learn words by heart. Frames are the codec's mel frames: B songs, n frames.
"""

import argparse
import dataclasses
import sys
import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cli import replacing  # noqa: E402
from config import PRESETS, READ_ERRORS, UserError  # noqa: E402
from data import Shards  # noqa: E402
from lyrics import ARPABET  # noqa: E402
from phonemes import SymbolTable, sung_spans  # noqa: E402
from vae import MelCodec  # noqa: E402

CODEC = PRESETS["baby"].codec
RATE = CODEC.sample_rate_hz
PER_S = RATE * CODEC.fold / CODEC.hop            # 93.75 frames a second
WIDTH, DILATIONS = 160, (1, 2, 4, 8, 1)
LOUD_DB = 26.0                                   # 20 ms that are less far below the loudest ones are sung
CROP = 400                                       # frames of a training example
VOCODED, GRIFFIN_LIM_STEPS = 3, 32               # of so many songs, one goes through so short a Griffin-Lim


class Ear(nn.Module):
    """Mel frames (B, n, mels) -> log probabilities (B, n, classes) of silence, class 0, and of phonemes."""

    def __init__(self, phonemes: str):
        super().__init__()
        self.classes = ["", *phonemes]
        self.codec = MelCodec(CODEC)
        self.first = nn.Conv1d(CODEC.mels, WIDTH, 5, padding=2)
        self.layers = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, 5, padding=2 * d, dilation=d) for d in DILATIONS)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in DILATIONS)
        self.out = nn.Linear(WIDTH, len(self.classes))

    def features(self, mel: Tensor) -> Tensor:
        """What it makes of mel frames, before it decides: (B, n, WIDTH)."""
        x = self.first(mel.transpose(1, 2))
        for layer, norm in zip(self.layers, self.norms):
            x = x + layer(torch.relu(norm(x.transpose(1, 2)).transpose(1, 2)))
        return torch.relu(x).transpose(1, 2)

    def forward(self, mel: Tensor) -> Tensor:
        return self.out(self.features(mel)).log_softmax(-1)

    def mel(self, wave: Tensor) -> Tensor:
        """wave (N,) at RATE, as loud as you like -> mel frames (1, n, mels), n = 2 ceil(N / hop)."""
        return self.codec.encode(level(wave)[None, None]).reshape(1, -1, CODEC.mels)


def level(wave: Tensor) -> Tensor:
    """Sung parts of wave (N,) at RMS 0.1, as the training songs have it, so that loudness does not matter."""
    size = RATE // 50
    power = nn.functional.pad(wave, (0, -len(wave) % size)).view(-1, size).square().mean(1)
    return 0.1 * wave / power[power >= power.max() * 10 ** (-LOUD_DB / 10)].mean().sqrt().clamp_min(1e-6)


def load_ear(path: Path) -> Ear:
    """Read a trained ear. Raises: UserError if the file is missing, broken or something else."""
    try:
        with safe_open(path, "pt") as file:
            ear = Ear(file.metadata()["phonemes"])
            ear.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})
    except (*READ_ERRORS, SafetensorError) as e:
        raise UserError(f"{path}: not an ear's weights: {' '.join(str(e).split())[:120]}") from None
    return ear.eval().requires_grad_(False)


def truth(words: list[tuple[float, float, str]], frames: int, classes: list[str]) -> Tensor:
    """The class of every frame (n,), from the rule by which songs are sung."""
    target = torch.zeros(frames, dtype=torch.long)
    for start, end, phoneme in words:
        for c, a, b in sung_spans(phoneme, end - start):
            target[round((start + a) * PER_S):round((start + b) * PER_S)] = classes.index(c)
    return target


def heard_songs(pattern: str, ear: Ear) -> list[tuple[Tensor, Tensor]]:
    """The shards' songs as mel frames (n, mels) with their classes (n,); some after a Griffin-Lim."""
    vocoder = MelCodec(dataclasses.replace(CODEC, griffin_lim_steps=GRIFFIN_LIM_STEPS))
    shards, songs = Shards(pattern, PRESETS["baby"], SymbolTable(ear.classes[1:])), []
    for i, song in enumerate(shards.songs):
        posterior, _, words = shards.parts(song)
        latents = posterior[:PRESETS["baby"].model.mel_dim].float().T[None]           # (1, T, C)
        mel = latents.reshape(1, -1, CODEC.mels)
        if i % VOCODED == 0:
            mel = ear.mel(vocoder.decode(latents)[0, 0])
        songs.append((mel[0], truth(words, mel.shape[1], ear.classes)))
    return songs


def spoil(mel: Tensor, rng: torch.Generator) -> Tensor:
    """Mel frames (B, n, mels) louder or softer, of another colour, larger or smaller mouth, with noise."""
    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)
    size, mels = len(mel), CODEC.mels
    power = mel * CODEC.log_std + CODEC.log_mean                                     # log of magnitudes
    colour = nn.functional.interpolate(0.4 * draw(size, 1, 5), mels, mode="linear", align_corners=True)
    band = torch.arange(mels) + (1.2 * draw(size, 1)).clamp(-2.5, 2.5) * torch.linspace(0.3, 1, mels)
    band = band.clamp(0, mels - 1.001)[:, None]                                              # (B, 1, mels)
    low, part = band.long().expand_as(mel), band % 1
    power = (1 - part) * power.gather(2, low) + part * power.gather(2, low + 1)
    power = power + colour + 0.4 * draw(size, 1, 1)
    hiss = -4.5 + 1.5 * draw(size, 1, 1) + nn.functional.interpolate(draw(size, 1, 5), mels, mode="linear")
    noise = hiss.exp() * draw(*mel.shape).abs() * (torch.rand(size, 1, 1, generator=rng) < 0.6)
    power = (power.exp() - CODEC.floor + noise).clamp_min(CODEC.floor).log() + 0.1 * draw(*mel.shape)
    return (power.clamp_min(torch.tensor(CODEC.floor).log()) - CODEC.log_mean) / CODEC.log_std


def train(pattern: str, out: Path, steps: int) -> None:
    """Train on the shards' songs; the last twentieth of them is held out for what is printed."""
    torch.manual_seed(0)
    ear, rng = Ear("".join(sorted(set("".join(ARPABET.values()))))), torch.Generator().manual_seed(0)
    began = time.time()
    songs = heard_songs(pattern, ear)
    print(f"{len(songs)} songs in {time.time() - began:.0f} s", flush=True)
    held, songs = songs[-len(songs) // 20:], songs[:-len(songs) // 20]
    songs = [song for song in songs if len(song[0]) > CROP]
    optimizer = torch.optim.AdamW(ear.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(1, steps + 1):
        picks = [songs[i] for i in torch.randint(len(songs), (16,), generator=rng)]
        starts = [int(torch.randint(len(mel) - CROP, (), generator=rng)) for mel, _ in picks]
        mel = torch.stack([mel[a:a + CROP] for (mel, _), a in zip(picks, starts)])
        target = torch.stack([row[a:a + CROP] for (_, row), a in zip(picks, starts)])
        mel[0], target[0] = ear.codec.silence[:CODEC.mels], 0              # noise alone is no singing
        loss = nn.functional.nll_loss(ear(spoil(mel, rng)).flatten(0, 1), target.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(ear.parameters(), 1.0)
        optimizer.step(), optimizer.zero_grad(), schedule.step()
        if step % 100 == 0:
            with torch.no_grad():
                right = torch.cat([(ear(mel[None])[0].argmax(-1) == row)[row > 0] for mel, row in held])
            print(f"step {step}, {time.time() - began:.0f} s: loss {loss.item():.3f}, frames of sung sounds "
                  f"heard right {right.float().mean():.3f}", flush=True)
    with replacing(out) as path:
        save_file({name: value.half() for name, value in ear.state_dict().items()}, path,
                  {"phonemes": "".join(ear.classes[1:])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--shards", default="baby/data/songs-{000000..000019}.tar")
    parser.add_argument("--out", type=Path, default=Path("weights/baby/ear.safetensors"))
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    train(args.shards, args.out, args.steps)


if __name__ == "__main__":
    main()
