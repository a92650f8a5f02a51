"""One song of the shards sung by every checkpoint of a training run, so that progress can be heard."""

import json
from pathlib import Path

import torch
from torch import Tensor

from config import Preset, TrainConfig
from data import Shards, collate
from lyrics import formats
from model import load_model
from sampler import sample, time_grid
from songs.picture import picture
from support.audio import write_wave
from support.files import make_folder, replacing
from support.hub import weights_in
from vae import make_codec


class CheckpointSamples:
    """Write what each checkpoint makes of one song, beside its recording as the decoder returns it.

    Args: shards, whose first readable song is taken; silence latent (C,); decoder, the file of its weights.
    Raises: UserError for a decoder that does not fit, one of READ_ERRORS for words that cannot be shown.
    """

    def __init__(self, cfg: TrainConfig, preset: Preset, shards: Shards, silence: Tensor,
                 device: torch.device, decoder: Path):
        self.folder, self.preset, self.device = cfg.out / "samples", preset, device
        self.bf16 = cfg.bf16 and not cfg.fp16 and device.type == "cuda"    # where it is fast
        self.codec = make_codec(preset.codec, decoder, device, trust=cfg.trust_vae)
        song = next(song for song in range(len(shards)) if not shards[song, 0]["broken"])
        item = shards[song, 0]
        words = [{"word": word["phoneme"]} | word for word in json.loads(shards.read(song, "json"))["word"]]
        self.lyrics = formats.parse(json.dumps(words), "json", item["id"])
        self.frames = len(item["latents"])
        self.batch = collate([item], silence, preset)
        make_folder(self.folder)
        self.write("reference", self.batch["latents"])

    def write(self, name: str, latents: Tensor) -> None:
        """Write samples/NAME.wav and .png of latents (1, T, C)."""
        wave = self.codec.decode(latents[:, :self.frames].float().cpu())[0]                # (W, N)
        rate_hz, path = self.preset.codec.sample_rate_hz, self.folder / f"{name}.wav"
        with replacing(path) as temporary:
            write_wave(temporary, wave / wave.abs().max().clamp_min(1), rate_hz, path)
        picture(path.with_suffix(".png"), wave, rate_hz, self.lyrics)

    def sing(self, checkpoint: Path) -> None:
        """Write the song of a checkpoint, a folder step-N, always from the same noise."""
        model = load_model(weights_in(checkpoint), self.preset.model, self.device)
        batch = {key: value.to(self.device) for key, value in self.batch.items()}
        noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(0))
        preset, negative = self.preset, torch.zeros(1, self.preset.model.cond_dim, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            latents = sample(model, batch, noise.to(self.device), time_grid(preset.steps, preset.sway),
                             preset.guidance, negative, preset.solver)
        self.write(checkpoint.name, latents)
