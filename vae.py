"""Latents <-> wave: sample.py decodes, tools/prepare.py encodes.

`make_codec` returns the codec that a preset names. The embedded model's is in sung.py. JAM-0.5's latents are
those of Stable Audio Open: read `Oobleck`, the network, then `OobleckCodec`, which runs it in chunks, then
`load_oobleck`, which reads the published layouts of its weights.

Axes: B songs, T latent frames, C latent channels, W wave channels, N = T * hop samples. A codec's latents are
frames-first, (B, T, C), as in the model; Oobleck's own are channels-first, (B, C, T).
"""

import itertools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from config import CodecConfig, UserError
from sung import SungCodec, load_sung, whole_frames
from support.files import reading
from support.torchscript import script_tensors

DILATIONS = (1, 3, 9)                  # of a level's residual units
CHUNK, OVERLAP = 128, 32               # latent frames decoded at once, as published with JAM
CPU_ROWS, DEVICE_ROWS = 1, 4           # chunks decoded at once
# What precedes the autoencoder's names in a file: alone, in Stable Audio Open, in a training run.
PREFIXES = ("", "pretransform.model.", "autoencoder.")
# PyTorch's names of a weight's norm and direction -> those in a file: the old ones, or the same.
NORMS = ({"parametrizations.weight.original0": "weight_g",
          "parametrizations.weight.original1": "weight_v"}, {})


# Oobleck, the network

class Snake(nn.Module):
    """u + sin(a u)^2 / b, with log a and log b for each channel. Source: arXiv 2006.08195, BigVGAN's form."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1, channels, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, u: Tensor) -> Tensor:                  # (B, channels, n), one temporary tensor
        return (u * self.alpha.exp()).sin_().square_().mul_(1 / (self.beta.exp() + 1e-9)).add_(u)


class Residual(nn.Sequential):
    """x plus the output of the layers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).add_(x)


def conv(inner: int, outer: int, kernel: int, dilation: int = 1, bias: bool = True) -> nn.Module:
    """A convolution that keeps the length."""
    return weight_norm(nn.Conv1d(inner, outer, kernel, dilation=dilation, bias=bias,
                                 padding=dilation * (kernel // 2)))


def units(channels: int) -> list[nn.Module]:
    """The residual units of a level."""
    return [Residual(Snake(channels), conv(channels, channels, 7, d), Snake(channels),
                     conv(channels, channels, 1)) for d in DILATIONS]


class Oobleck(nn.Module):
    """Stable Audio Open's autoencoder: strided convolutions with weight norm, Snake, dilated residual units.

    Weight norm's dimension is 0 throughout, which is the input's in a transposed convolution. No tanh and no
    scale at the end. Source: arXiv 2407.14358; checked by golden values and against diffusers.
    """

    def __init__(self, config: CodecConfig):
        super().__init__()
        # channels of each level, the outermost first
        inward, outward = ([width * m for m in (1, *config.multiples)]
                           for width in (config.width, config.decoder_width or config.width))
        down = [nn.Sequential(*units(narrow), Snake(narrow),
                              weight_norm(nn.Conv1d(narrow, wide, 2 * stride, stride, (stride + 1) // 2)))
                for stride, narrow, wide in zip(config.strides, inward[:-1], inward[1:], strict=True)]
        up = [nn.Sequential(Snake(wide),
                            weight_norm(nn.ConvTranspose1d(wide, narrow, 2 * stride, stride,
                                                           (stride + 1) // 2, output_padding=stride % 2)),
                            *units(narrow))
              for stride, narrow, wide in zip(config.strides, outward[:-1], outward[1:], strict=True)]
        self.encoder = nn.Sequential(conv(config.wave_channels, inward[0], 7), *down, Snake(inward[-1]),
                                     conv(inward[-1], 2 * config.latent_dim, 3))
        self.decoder = nn.Sequential(conv(config.latent_dim, outward[-1], 7), *up[::-1], Snake(outward[0]),
                                     conv(outward[0], config.wave_channels, 7, bias=False))

    def encode(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """audio (B, W, T * hop) -> mean and standard deviation of the latents, each (B, C, T)."""
        return posterior(self.encoder(audio))

    def decode(self, latent: Tensor) -> Tensor:
        """latent (B, C, T) -> audio (B, W, T * hop)."""
        return self.decoder(latent)

    def fold(self) -> "Oobleck":
        """Replace each weight's norm and direction by their product: the same function, computed faster."""
        for module in self.modules():
            if is_parametrized(module):
                remove_parametrizations(module, "weight")
        return self


def posterior(raw: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder's output (B, 2C, T) -> mean and standard deviation, each (B, C, T)."""
    mean, scale = raw.chunk(2, 1)
    return mean, nn.functional.softplus(scale) + 1e-4


# Oobleck, in chunks

def chunks(total: int, chunk: int = CHUNK, overlap: int = OVERLAP) -> list[tuple[int, int, int, int]]:
    """Cut a song of `total` frames into chunks: (start, end, first, last) of each.

    Frames start:end are decoded together; first:last of them are kept. Half of the overlap is discarded at
    each inner edge. All chunks have the same length, so the last one overlaps its neighbour by more.
    """
    starts = [*range(0, total - chunk, chunk - overlap), max(total - chunk, 0)]
    first = [0, *(start + overlap // 2 for start in starts[1:])]
    return [(start, min(start + chunk, total), a, b)
            for start, a, b in zip(starts, first, [*first[1:], total])]


class OobleckCodec:
    """An autoencoder as a codec. It runs in chunks: memory on `device` does not grow with the song.

    Args: config; model, with Oobleck's `encode` and `decode`, on device and in dtype; rows, chunks at once
        (default: one on a CPU, which gains nothing from more; one of JAM-0.5 takes 0.7 GiB in float32).
    """

    def __init__(self, config: CodecConfig, model: nn.Module, device: torch.device | str = "cpu",
                 dtype: torch.dtype = torch.float32, rows: int | None = None):
        self.config, self.model, self.device, self.dtype = config, model, torch.device(device), dtype
        self.rows = rows or (CPU_ROWS if self.device.type == "cpu" else DEVICE_ROWS)

    @property
    def reach(self) -> int:
        """The farthest, in frames, that a latent influences samples, and a sample latents."""
        unit = sum(3 * d for d in DILATIONS)
        low, high = -3, self.config.hop + 2                  # what frame 0 needs before the last convolution
        for stride in self.config.strides:
            pad = (stride + 1) // 2
            low, high = -((unit - low - pad + 2 * stride - 1) // stride), (high + unit + pad) // stride
        return max(-low, high) + 3

    @torch.no_grad()
    def in_chunks(self, run: Callable, x: Tensor, samples: tuple[int, int], progress: Callable) -> Tensor:
        """run(x (B, c, T * samples[0])), chunk by chunk -> (B, c', T * samples[1]), float32 on the CPU."""
        hop_in, hop_out = samples
        spans = chunks(x.shape[2] // hop_in, CHUNK, max(OVERLAP, 2 * self.reach))    # less would be audible
        jobs, out = list(itertools.product(range(len(x)), spans)), None
        for batch in progress([jobs[i:i + self.rows] for i in range(0, len(jobs), self.rows)]):
            part = torch.stack([x[song, :, start * hop_in:end * hop_in] for song, (start, end, *_) in batch])
            done = run(part.to(self.device, self.dtype)).float().cpu()
            if out is None:
                out = torch.empty(len(x), done.shape[1], x.shape[2] // hop_in * hop_out)
            for (song, (start, _, first, last)), row in zip(batch, done):
                out[song, :, first * hop_out:last * hop_out] = row[:, (first - start) * hop_out:
                                                                   (last - start) * hop_out]
        return out

    def posterior(self, wave: Tensor, progress: Callable = lambda batches: batches) -> Tensor:
        """wave (B, W, N) in [-1, 1] -> (B, 2C, ceil(N / hop)): means, then standard deviations, as in shards.

        progress wraps the list of batches of chunks, e.g. tqdm.
        """
        hop = self.config.hop
        return self.in_chunks(lambda x: torch.cat(self.model.encode(x), 1), whole_frames(wave, hop), (hop, 1),
                              progress)

    def encode(self, wave: Tensor) -> Tensor:
        """wave (B, W, N) in [-1, 1] -> latents (B, ceil(N / hop), C), the posterior's means."""
        return self.posterior(wave)[:, :self.config.latent_dim].transpose(1, 2)

    def decode(self, latents: Tensor, progress: Callable = lambda batches: batches) -> Tensor:
        """latents (B, T, C) -> wave (B, W, T * hop); progress wraps the list of batches of chunks."""
        return self.in_chunks(self.model.decode, latents.transpose(1, 2), (1, self.config.hop), progress)

    def pitch(self, latents: Tensor) -> Tensor:
        """Nothing (B, 0): a frame's sound does not depend on how the song began; see SungCodec."""
        return latents.new_zeros(len(latents), 0)

    def decode_again(self, latents: Tensor, part: tuple[int, int], spans: list[tuple[int, int]], hz: Tensor,
                     lead: int = 0) -> tuple[Tensor, Tensor]:
        """The wave (B, W, n * hop) of n frames, `part`, and `hz`; SungCodec's needs the rest."""
        low, high = max(0, part[0] - self.reach), min(latents.shape[1], part[1] + self.reach)
        wave = self.decode(latents[:, low:high])
        return wave[..., (part[0] - low) * self.config.hop:(part[1] - low) * self.config.hop], hz


# Oobleck, its weights

class Scripted(nn.Module):
    """A TorchScript autoencoder with Oobleck's methods. It computes in float32."""

    def __init__(self, script: torch.jit.ScriptModule):
        super().__init__()
        self.script = script

    @torch.jit.optimized_execution(False)                    # optimised, it changes after its first runs
    def encode(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        return posterior(self.script.encode_export(audio.float()))

    @torch.jit.optimized_execution(False)
    def decode(self, latent: Tensor) -> Tensor:
        return self.script.decode_export(latent.float())


def layouts(model: Oobleck, prefixes: Iterable[str] = ("",)) -> Iterator[tuple[str, dict[str, str]]]:
    """Every published layout of the model's weights: its prefix, and a map from a file's names to ours.

    The first layouts are those of diffusers, the others those of stable-audio-tools.
    """
    residual = ("res_unit1", "res_unit2", "res_unit3")
    top = ("conv1", *(f"block.{i}" for i in range(len(model.decoder) - 3)), "snake1", "conv2")
    level = {"encoder": (*residual, "snake1", "conv1"), "decoder": ("snake1", "conv_t1", *residual)}
    unit = ("snake1", "conv1", "snake2", "conv2")
    for diffusers, norms, prefix in itertools.product((True, False), NORMS, prefixes):
        names = {}
        for ours in model.state_dict():
            side, path, leaf = re.fullmatch(r"(\w+)((?:\.\d+)+)\.(.+)", ours).groups()
            path = path[1:].split(".")
            parts = ([row[int(i)] for row, i in zip((top, level[side], unit), path)] if diffusers else
                     [f"layers.{i}" for i in path])
            names[".".join((prefix + side, *parts, norms.get(leaf, leaf)))] = ours
        yield prefix, names


def fit(tensors: dict[str, Tensor], config: CodecConfig, place: str,
        prefixes: Sequence[str] = PREFIXES) -> Oobleck:
    """Build the network from tensors in any published layout; those outside of its prefix are ignored.

    Raises: UserError, with `place`, that names tensors that are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        models = Oobleck(config), Oobleck(config).fold()     # weight norm in two tensors, or in one
    model, prefix, names = max(((model, *layout) for model in models for layout in layouts(model, prefixes)),
                               key=lambda found: len(found[2].keys() & tensors))
    own = {name for name in tensors if name.startswith(prefix)}
    state = {ours: tensors[name] for name, ours in names.items() if name in own}
    for ours, value in state.items():
        if ours.endswith(("alpha", "beta")) and value.dim() == 1:      # (C,) in stable-audio-tools
            state[ours] = value[None, :, None]
    shapes = {ours: tuple(value.shape) for ours, value in model.state_dict().items()}
    faults = {"missing": [name for name in names if name not in own], "unknown": sorted(own - names.keys()),
              "misshapen": [f"{name} {tuple(tensors[name].shape)}, expected {shapes[ours]}" for name, ours
                            in names.items() if name in own and state[ours].shape != shapes[ours]]}
    if any(faults.values()):
        raise UserError(f"{place}: not this autoencoder's weights: " + "; ".join(
            f"{len(found)} tensors {kind}: {', '.join(found[:3])}{', ...' * (len(found) > 3)}"
            for kind, found in faults.items() if found))
    if len(own) < len(tensors):
        print(f"{place}: {len(tensors) - len(own)} tensors outside of {prefix}* are ignored")
    model.load_state_dict(state, assign=True)
    return model


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a PyTorch checkpoint, perhaps below `state_dict`."""
    if path.suffix == ".safetensors":
        return load_file(path)
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    saved = saved.get("state_dict", saved)
    return {k: v for k, v in saved.items() if isinstance(v, Tensor)}


def adopt(tensors: dict[str, Tensor], config: CodecConfig, path: Path, trust: bool) -> Oobleck | Scripted:
    """Oobleck with a TorchScript file's tensors, if they fit and, as far as known, compute the same.

    Only with `trust` does the file's code run: to compare, and as the decoder if its tensors do not do.
    Raises: UserError if its code is needed and not trusted; ValueError if it does not decode latents of the
        config's sizes.
    """
    prefixes = {name[:name.rfind("decoder.")] for name in tensors if "decoder." in name}
    try:
        model = fit(tensors, config, str(path), sorted(prefixes) or [""])
    except UserError as e:
        if not trust:
            raise UserError(f"{e}; its own code would be needed, which --trust-vae runs, for a file that you "
                            "trust") from None
        model, fault = None, e
    if not trust:
        print(f"{path}: a TorchScript file; its weights are taken, its code is not run")
        return model
    latent = torch.randn(1, config.latent_dim, 4, generator=torch.Generator().manual_seed(0))
    script = torch.jit.load(path, map_location="cpu")
    with torch.inference_mode():
        wanted = script.decode_export(latent)
        if wanted.shape != (1, config.wave_channels, 4 * config.hop):
            raise ValueError(f"4 frames decode to {tuple(wanted.shape)}")
        if model:
            off = (model.decode(latent) - wanted).abs().max() / wanted.abs().max()
            if off < 1e-3:
                print(f"{path}: a TorchScript file; its weights are taken, and compute what its code does")
                return model
            fault = f"{path}: computes something else from the same weights, {off:.1e} apart"
    print(f"{fault}; its TorchScript is run as it is")
    return Scripted(script)


def load_oobleck(path: Path, config: CodecConfig, device: torch.device | str = "cpu",
                 dtype: torch.dtype = torch.float32, trust: bool = False) -> Oobleck | Scripted:
    """Read an autoencoder: diffusers' or stable-audio-tools' layout, any weight norm, or TorchScript.

    Args: trust, whether a TorchScript file's code may run.
    Returns: a folded Oobleck, or Scripted (then in float32), ready to run, without gradients.
    Raises: UserError if the file is missing, corrupt, or another network's, with the tensors that tell.
    """
    with reading(path, "not an autoencoder's weights (safetensors, TorchScript or a checkpoint of tensors)",
                 zipfile.BadZipFile), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        try:
            scripted = script_tensors(path)
        except UserError:                        # a script with other things than tensors, or a corrupt file
            if not trust:
                raise
            scripted = {}
        model = (fit(read_tensors(path), config, str(path)) if scripted is None else
                 adopt(scripted, config, path, trust))
    model.eval().requires_grad_(False)
    return model.to(device) if isinstance(model, Scripted) else model.to(device, dtype).fold()


def make_codec(config: CodecConfig, path: Path | None = None, device: torch.device | str = "cpu",
               dtype: torch.dtype = torch.float32, trust: bool = False) -> SungCodec | OobleckCodec:
    """Build the codec that a preset names.

    Args: path, the file of its weights; device and dtype of oobleck, and whether its file's code may run.
        sung stays on the CPU, in float32.
    Raises: UserError for an unknown kind, or for weights that are missing or do not fit.
    """
    if config.kind not in ("sung", "oobleck"):
        raise UserError(f"codec {config.kind}: expected sung or oobleck")
    if path is None:
        raise UserError(f"codec {config.kind}: needs the file of its weights")
    if config.kind == "sung":
        return SungCodec(config, load_sung(path, config))
    model = load_oobleck(path, config, device, dtype, trust)
    return OobleckCodec(config, model, device, torch.float32 if isinstance(model, Scripted) else dtype)


def silence_of(config: CodecConfig, published: Callable[[], Path]) -> Tensor:
    """The latent frame (C,) of digital silence: sung's is computed, oobleck's read from the `published` file.

    Raises: UserError if that file does not hold C finite numbers.
    """
    if config.kind == "sung":
        return SungCodec(config).silence
    path = published()
    with reading(path, f"not {config.latent_dim} numbers"):
        frame = torch.load(path, map_location="cpu", weights_only=True).float().reshape(config.latent_dim)
        if not frame.isfinite().all():
            raise ValueError("not finite")
    return frame.clone()                                     # the published one is a view of something larger
