"""Latents <-> wave. Read after model.py; sample.py calls `decode`, baby/songs.py calls `encode`.

B songs, T latent frames, C latent channels, N samples. Latents are frames-first here, (B, T, C), as in the
model. The embedded model's latents are a log-mel spectrogram, and Griffin-Lim finds the phases that it lacks.
"""

import math

import torch
import torchaudio.functional as AF
from torch import Tensor

from config import CodecConfig, UserError


class MelCodec:
    """Log-mel spectrogram as latents: `fold` short mel frames, side by side, make one latent frame.

    Short frames keep consonants sharp and give Griffin-Lim its overlap; folding shortens the sequence.
    """

    def __init__(self, config: CodecConfig):
        self.config = config
        self.mel_hop = config.hop // config.fold
        self.window = torch.zeros(config.n_fft)
        edge = (config.n_fft - config.window) // 2
        self.window[edge:edge + config.window] = torch.hann_window(config.window)
        # (n_fft/2 + 1, mels)
        self.filters = AF.melscale_fbanks(config.n_fft // 2 + 1, 0.0, config.sample_rate_hz / 2, config.mels,
                                          config.sample_rate_hz)
        self.inverse = torch.linalg.pinv(self.filters)  # (mels, n_fft/2 + 1)

    @property
    def silence(self) -> Tensor:
        """The latent frame (C,) of digital silence."""
        c = self.config
        return torch.full((c.fold * c.mels,), (math.log(c.floor) - c.log_mean) / c.log_std)

    def encode(self, wave: Tensor) -> Tensor:
        """wave (B, N) in [-1, 1] -> latents (B, ceil(N / hop), C), about zero mean and unit variance."""
        c = self.config
        frames = -(-wave.shape[-1] // c.hop)
        wave = torch.nn.functional.pad(wave, (0, frames * c.hop - wave.shape[-1]))
        # Frame k is centred in its own hop, so that a latent frame shows just the samples it stands for.
        edge = (c.n_fft - self.mel_hop) // 2
        wave = torch.nn.functional.pad(wave, (edge, c.n_fft - self.mel_hop - edge))
        spec = torch.stft(wave, c.n_fft, self.mel_hop, window=self.window, center=False,
                          return_complex=True).abs()
        mel = (spec.transpose(1, 2) @ self.filters).clamp_min(c.floor).log()       # (B, fold T, mels)
        return ((mel - c.log_mean) / c.log_std).reshape(len(wave), frames, c.fold * c.mels)

    def decode(self, latents: Tensor) -> Tensor:
        """latents (B, T, C) -> wave (B, T * hop). Deterministic: a fixed seed draws the starting phases."""
        c = self.config
        mel = latents.float().reshape(len(latents), -1, c.mels) * c.log_std + c.log_mean
        mel = mel.exp() - c.floor                                                   # the floor is silence
        spec = (mel.clamp_min(0) @ self.inverse).clamp_min(0).transpose(1, 2)       # (B, n_fft/2 + 1, fold T)
        edge = (c.n_fft - self.mel_hop) // 2
        # griffinlim centres frame k on sample k * hop; ours sit edge samples further left: pad, then cut.
        pad = -(-c.n_fft // self.mel_hop)
        spec = torch.nn.functional.pad(spec, (pad, pad))
        with torch.random.fork_rng(devices=[]):
            waves = []
            for song in spec:            # one at a time: a song's phases do not depend on its batch mates
                torch.default_generator.manual_seed(0)
                waves.append(AF.griffinlim(song, self.window, c.n_fft, self.mel_hop, c.n_fft, 1.0,
                                           c.griffin_lim_steps, 0.99, None, True))
        start = pad * self.mel_hop - c.n_fft // 2 + edge
        return torch.stack(waves)[:, start:start + latents.shape[1] * c.hop]


def make_codec(config: CodecConfig) -> MelCodec:
    """The codec that a preset names. Raises: UserError for an unknown kind."""
    if config.kind != "mel":
        raise UserError(f"codec {config.kind}: expected mel")
    return MelCodec(config)
