"""Stand-ins for the published TorchScript autoencoder: small, random, with the same exported methods.

Read `Fitting`, whose weights Oobleck can adopt, then `Foreign`, which can only run as TorchScript.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from vae import Oobleck


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Silence TorchScript's warnings that it is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        yield


class Fitting(nn.Module):
    """An Oobleck, folded, traced part by part.

    gain scales the decoded wave: with any but 1 it computes something else than its weights say.
    """

    def __init__(self, model: Oobleck, frames: int = 8, gain: float = 1.0):
        super().__init__()
        model, self.gain = model.fold(), gain
        rng = torch.Generator().manual_seed(0)
        latent = torch.randn(1, model.decoder[0].in_channels, frames, generator=rng)
        audio = model.decode(latent)
        with without_warnings():
            self.encoder = torch.jit.trace(Layers(model.encoder), audio)
            self.decoder = torch.jit.trace(Layers(model.decoder), latent)

    @torch.jit.export
    def encode_export(self, audio: Tensor) -> Tensor:
        return self.encoder(audio)

    @torch.jit.export
    def decode_export(self, latents: Tensor) -> Tensor:
        return self.gain * self.decoder(latents)


class Layers(nn.Module):
    """Modules in sequence, nested ones too, under the name `layers` that stable-audio-tools uses."""

    def __init__(self, parts: nn.Sequential):
        super().__init__()
        self.residual = type(parts) is not nn.Sequential
        self.layers = nn.Sequential(*(Layers(p) if isinstance(p, nn.Sequential) else p for p in parts))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class Wrapped(nn.Module):
    """A Fitting whose tensors' names begin with `model.`."""

    def __init__(self, inner: Fitting):
        super().__init__()
        self.model = inner

    @torch.jit.export
    def encode_export(self, audio: Tensor) -> Tensor:
        return self.model.encode_export(audio)

    @torch.jit.export
    def decode_export(self, latents: Tensor) -> Tensor:
        return self.model.decode_export(latents)


class Foreign(nn.Module):
    """One convolution each way: means and raw second halves (B, 2C, T) out of audio (B, W, T * hop)."""

    def __init__(self, wave_channels: int, latent_dim: int, hop: int):
        super().__init__()
        self.down = nn.Conv1d(wave_channels, 2 * latent_dim, hop, hop)
        self.up = nn.ConvTranspose1d(latent_dim, wave_channels, hop, hop)

    @torch.jit.export
    def encode_export(self, audio: Tensor) -> Tensor:
        return self.down(audio)

    @torch.jit.export
    def decode_export(self, latents: Tensor) -> Tensor:
        return self.up(latents)


class Hostile(Foreign):
    """A Foreign that writes a file when it decodes."""

    def __init__(self, wave_channels: int, latent_dim: int, hop: int, path: str):
        super().__init__(wave_channels, latent_dim, hop)
        self.path = path

    @torch.jit.export
    def decode_export(self, latents: Tensor) -> Tensor:
        torch.save(latents, self.path)
        return self.up(latents)


def save_script(module: nn.Module, path: Path) -> None:
    """Write a TorchScript file."""
    with without_warnings():
        torch.jit.script(module).save(str(path))
