"""Trains the embedded model's codec (sung.SungCodec): its decoder and, beside it, its encoder.

    python -m baby.codec --out weights/baby
    python -m baby.codec --out weights/baby --model weights/baby --steps 8000

The second line goes on with latents as a network makes them: sung songs are to sound as good as coded ones.
Read `make_song` (a training song's latents and sound), `spoil` and `sung_again` (latents with a network's
errors), `distance` (how far two sounds are apart), `Losses`, then `main`. An interrupted run continues where
it stopped.
"""

import math
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from baby import songs
from config import CODEC, PHONEMIZER, Settings, within
from data import windows
from model import load_model
from phonemes import CELLS_PER_FRAME, SymbolTable, load_phonemizer
from sampler import guided, integrate, time_grid
from support.cli import parse, run
from support.files import find, make_folder, replacing
from support.hub import weights_in
from sung import LOWEST, N_FFT, PITCHES, PITCHES_A_NOTE, SungCodec, SungModel

RESOLUTIONS = ((256, 64), (512, 128), (1024, 256), (2048, 512))     # window and hop of the compared spectra
FRAMES = 48                                      # latent frames of a crop, about a second
EDGE = 2                                         # of its latent frames lack neighbours
FIRST = 900_000                                  # number of the first song: the network learns from others
HELD_OUT = 8                                     # songs
AGAIN_FROM, AGAIN_STEPS, AGAIN_EVERY = 0.35, 13, 4       # flow time, grid; one song of so many is sung again


@dataclass(frozen=True)
class CodecSettings(Settings):
    """How the codec is trained."""
    out: Path = Path("weights/baby")             # folder of the codec
    work: Path = Path("runs/codec")              # folder of the songs and of the checkpoint
    songs: int = within(240, 16)                 # training songs
    steps: int = within(6000, 1)                 # of so many crops:
    batch: int = within(12, 1)                   # crops
    lr: float = within(1.5e-3, 0)                # peak learning rate
    model: Path | None = None                   # folder of a model: half of the crops are latents as it
                                                #   makes them


def make_song(number: int) -> tuple[Tensor, Tensor]:
    """The latents (T, C) and the sound (N,) of training song `number`."""
    torch.set_num_threads(1)
    codec = SungCodec(songs.PRESET.codec)
    _, parts, _, seconds = songs.song(number)
    latents = codec.pack(**songs.tracks_of(parts, seconds, codec))
    seconds = len(latents) * codec.config.hop / songs.RATE
    wave = songs.wave_of(parts, seconds, np.random.default_rng(number))
    return latents.half(), torch.from_numpy(wave).half()


def spoil(latents: Tensor, rng: torch.Generator) -> Tensor:
    """Latents (B, T, C) with errors like a network's: noise, and blur over time."""
    def uniform() -> Tensor:
        return torch.rand(len(latents), 1, 1, generator=rng)
    blur = 0.25 * uniform() * (uniform() < 0.4)
    around = torch.stack([latents.roll(1, 1), latents.roll(-1, 1)]).mean(0)
    noise = torch.randn(latents.shape, generator=rng) * 0.2 * uniform() ** 2
    noise[..., -5:] *= 0.3                       # of the pitch: a wrong one is no error of the sound
    return latents + blur * (around - latents) + noise


def distance(made: Tensor, true: Tensor) -> Tensor:
    """How far the spectra of sounds (B, N) are apart: error of magnitudes, relative, and of logarithms."""
    total = torch.zeros(())
    for size, hop in RESOLUTIONS:
        a, b = (torch.stft(x, size, hop, window=torch.hann_window(size), return_complex=True).abs()
                for x in (made, true))
        total = total + ((a - b).norm(dim=(1, 2)) / (b.norm(dim=(1, 2)) + 1e-3)).mean()
        total = total + (a.clamp_min(1e-4).log() - b.clamp_min(1e-4).log()).abs().mean()
    return total / len(RESOLUTIONS)


class Losses:
    """The losses of a batch of crops: latents (B, T, C) and their sound (B, N)."""

    def __init__(self, codec: SungCodec):
        self.codec = codec

    def decoder(self, latents: Tensor, wave: Tensor, rng: torch.Generator) -> Tensor:
        """How far the decoded latents are from the sound."""
        codec, v = self.codec, self.codec.unpack(latents)
        noise = torch.view_as_complex(torch.randn(*v.note.shape, N_FFT // 2 + 1, 2, generator=rng))
        phase = torch.rand(len(latents), generator=rng).double()
        made = codec.overlap_add(codec.synth(v, phase, noise))
        cut, side = EDGE * codec.config.hop, (N_FFT - codec.short) // 2
        return distance(made[:, side + cut:-side - cut], wave[:, cut:-cut])

    def encoder(self, latents: Tensor, wave: Tensor, rng: torch.Generator) -> Tensor:
        """How far the encoded sound, at another level and with some noise, is from the latents."""
        codec, v = self.codec, self.codec.unpack(latents)
        level = (0.3 * torch.randn(len(wave), 1, generator=rng)).exp()
        hiss = 1e-2 * torch.rand(len(wave), 1, generator=rng) ** 4
        wave = level * wave + hiss * torch.randn(wave.shape, generator=rng)
        short, logits = codec.model.encoder(codec.mel(wave))
        target = latents[..., :-5].reshape(short.shape)                              # (B, n, M + R + 1)
        loud = level[..., None].log() / codec.config.log_std
        loud = loud * (torch.arange(short.shape[2]) < codec.config.mels)
        error = (short - target - loud).abs()[:, 2 * EDGE:-2 * EDGE].mean()
        pitch = ((v.note - LOWEST) * PITCHES_A_NOTE).round().long().clamp(0, PITCHES - 1)
        wrong = nn.functional.cross_entropy(logits[v.voiced > 0], pitch[v.voiced > 0])
        return error + 0.2 * wrong


def crops(made: list[tuple[Tensor, Tensor]], count: int, hop: int,
          rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random crops of songs: latents (count, FRAMES, C) and sound (count, FRAMES * hop)."""
    found = []
    for i in torch.randint(len(made), (count,), generator=rng).tolist():
        latents, wave = made[i]
        a = int(torch.randint(len(latents) - FRAMES + 1, (), generator=rng))
        found.append((latents[a:a + FRAMES].float(), wave[a * hop:(a + FRAMES) * hop].float()))
    latents, wave = map(torch.stack, zip(*found))
    return latents, wave


@torch.no_grad()
def sung_again(folder: Path, made: dict[int, tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Songs, by number, with the latents (T, C) that a model makes of them, and their sound (N,).

    Noise is added to the true latents until it hides most of what they say, and the model takes it away. The
    pitch stays the true one, which the sound has.
    """
    preset, table = songs.PRESET, SymbolTable(load_phonemizer(folder / PHONEMIZER).symbols)
    model, found = load_model(weights_in(folder), preset.model, torch.device("cpu")), []
    grid, silence = AGAIN_FROM + (1 - AGAIN_FROM) * time_grid(AGAIN_STEPS), SungCodec(preset.codec).silence
    for number, (latents, wave) in tqdm(made.items(), desc="sung again", unit="song"):
        entry, _, style, _ = songs.song(number)
        words = [(word["start"], word["end"], word["phoneme"]) for word in entry["word"]]
        (_, batch), = windows(words, style, len(latents), (0, len(latents)), preset, table)
        rest = batch["phonemes"].shape[1] // CELLS_PER_FRAME - len(latents)
        clean = torch.cat([latents.float(), silence.expand(rest, -1)])[None]
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(number))
        velocity = guided(model, batch, preset.guidance, torch.zeros(1, preset.model.cond_dim))
        x = integrate(velocity, (1 - AGAIN_FROM) * noise + AGAIN_FROM * clean, grid, preset.guidance)
        x = x[0, :len(latents)]
        found.append((torch.cat([x[:, :-5].half(), latents[:, -5:]], 1), wave))
    return found


def training_songs(cfg: CodecSettings) -> tuple[list, list]:
    """Training and held-out songs, made once; with a model, half of the former are sung again by it."""
    numbers, cache = range(FIRST, FIRST + cfg.songs), cfg.work / f"songs-{cfg.songs}.pt"
    if not cache.is_file():
        with multiprocessing.Pool() as pool, replacing(cache) as path:
            torch.save(list(pool.imap(make_song, numbers)), path)
    made = dict(zip(numbers, torch.load(cache, weights_only=True)))
    held_out, again = [made.pop(number) for number in numbers[:HELD_OUT]], []
    if cfg.model:
        cache = cfg.work / f"again-{cfg.songs}.pt"
        if not cache.is_file():
            with replacing(cache) as path:
                torch.save(sung_again(find(cfg.model), dict([*made.items()][::AGAIN_EVERY])), path)
        again = torch.load(cache, weights_only=True) * AGAIN_EVERY
    return [song for song in [*made.values(), *again] if len(song[0]) >= FRAMES], held_out


def main(cfg: CodecSettings) -> None:
    make_folder(cfg.out)
    make_folder(cfg.work)
    torch.manual_seed(0)
    codec = SungCodec(songs.PRESET.codec, SungModel(songs.PRESET.codec))
    state, begun = cfg.work / "state.pt", 0
    optimizer = torch.optim.AdamW(codec.model.parameters(), cfg.lr, betas=(0.8, 0.99), weight_decay=0.01)
    if state.is_file():
        saved = torch.load(state, weights_only=True)
        codec.model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begun = saved["step"]
    made, held_out = training_songs(cfg)
    losses, began = Losses(codec), time.time()
    size = sum(p.numel() for p in codec.model.parameters())
    print(f"{size:,} parameters, {len(made)} songs, from step {begun}", flush=True)
    for step in range(begun + 1, cfg.steps + 1):
        rng = torch.Generator().manual_seed(step)
        optimizer.param_groups[0]["lr"] = cfg.lr * min(1, step / 200) * (
            0.505 + 0.495 * math.cos(math.pi * step / cfg.steps))
        latents, wave = crops(made, cfg.batch, codec.config.hop, rng)
        sound, heard = losses.decoder(spoil(latents, rng), wave, rng), losses.encoder(latents, wave, rng)
        (sound + heard).backward()
        nn.utils.clip_grad_norm_(codec.model.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step}, {time.time() - began:.0f} s: decoder {sound.item():.4f}, "
                  f"encoder {heard.item():.4f}", flush=True)
        if step % 500 == 0 or step == cfg.steps:
            apart = [distance(codec.decode(latents.float()[None])[:, 0], wave.float()[None]).item()
                     for latents, wave in held_out]
            print(f"step {step}: held-out songs {np.mean(apart):.4f}", flush=True)
            with replacing(state) as path:
                torch.save({"model": codec.model.state_dict(), "optimizer": optimizer.state_dict(),
                            "step": step}, path)
            with replacing(cfg.out / CODEC) as path:
                save_file({k: v.half().contiguous() for k, v in codec.model.state_dict().items()}, path)


if __name__ == "__main__":
    run(lambda: main(parse(CodecSettings, __doc__)))
