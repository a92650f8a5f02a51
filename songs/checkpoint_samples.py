"""One song of the shards sung by every checkpoint of a training run, so that progress can be heard."""

import dataclasses
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from config import DataSettings, Preset, TrainConfig, UserError
from data import Shards, collate
from lyrics import formats
from model import load_model
from phonemes import SymbolTable
from sampler import sample, time_grid
from songs.picture import picture
from support.audio import write_wave
from support.files import describe, make_folder, replacing
from support.hub import weights_in
from support.tars import expand
from vae import make_codec


def listener(cfg: TrainConfig, data: DataSettings, preset: Preset, table: SymbolTable, silence: Tensor,
             device: torch.device, decoder: Path) -> "CheckpointSamples | None":
    """What sings at each checkpoint; None, and a line that says why, if nothing can.

    Args: data, whose first shard is taken: the others need not be indexed; the others as for the class.
    """
    try:
        if not decoder.is_file():
            raise UserError(f"no --vae, no {decoder}")
        shards = Shards(dataclasses.replace(data, shards=(expand(data.shards, data.pipe)[0],)), preset, table)
        return CheckpointSamples(cfg, preset, shards, silence, device, decoder)
    except Exception as e:                                   # whatever it is, training does not need the song
        print(f"checkpoints come without a song: {describe(e)}", flush=True)
        return None


class CheckpointSamples:
    """Write what each checkpoint makes of one song, beside its recording as the decoder returns it.

    Args: shards, whose first readable song is taken; silence latent (C,); decoder, the file of its weights.
    Raises: UserError for a decoder that does not fit, and others for words that cannot be shown.
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
        """Write the song of a checkpoint, step-N. What prevents it is a warning, as in `listener`."""
        try:
            self.write(checkpoint.name, self.latents(checkpoint))
        except Exception as e:
            print(f"warning: {checkpoint}: comes without a song: {describe(e)}", file=sys.stderr, flush=True)

    def latents(self, checkpoint: Path) -> Tensor:
        """The song (1, T, C) of a checkpoint, always from the same noise."""
        model = load_model(weights_in(checkpoint), self.preset.model, self.device)
        batch = {key: value.to(self.device) for key, value in self.batch.items()}
        noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(0))
        preset, negative = self.preset, torch.zeros(1, self.preset.model.cond_dim, device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return sample(model, batch, noise.to(self.device), time_grid(preset.steps, preset.sway),
                          preset.guidance, negative, preset.solver)
