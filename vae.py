"""Latents <-> wave. Read after model.py; sample.py calls `decode`, baby/songs.py calls `encode`.

B songs, T latent frames, C latent channels, W wave channels, N = T * hop samples. A codec's latents are
frames-first, (B, T, C), as in the model; Oobleck's own are channels-first, (B, C, T). `make_codec` gives a
preset's codec. The embedded model's latents are a log-mel spectrogram, and Griffin-Lim finds the phases that
it lacks: `MelCodec`. JAM-0.5's are Stable Audio Open's: read `Oobleck`, the network, then `OobleckCodec`,
which runs it in chunks, then `load_oobleck`, which reads the published layouts of its weights.
"""

import itertools
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
import torchaudio.functional as AF
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations

from config import READ_ERRORS, CodecConfig, UserError

DILATIONS = (1, 3, 9)                  # of a level's residual units
CHUNK, OVERLAP = 128, 32               # latent frames decoded at once, as published with JAM
CPU_ROWS, DEVICE_ROWS = 1, 4           # chunks decoded at once
# Where a checkpoint has the autoencoder: alone, in Stable Audio Open, in a training run.
PREFIXES = ("", "pretransform.model.", "autoencoder.")
# A file's names of a weight's norm and direction: old, PyTorch's present ones (also ours), their product.
OURS, FOLDED = ("parametrizations.weight.original0", "parametrizations.weight.original1"), ("", "weight")
NORMS = (("weight_g", "weight_v"), OURS, FOLDED)


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
        """wave (B, 1, N) in [-1, 1] -> latents (B, ceil(N / hop), C), about zero mean and unit variance."""
        assert wave.dim() == 3 and wave.shape[1] == 1, wave.shape
        c = self.config
        wave = whole_frames(wave, c.hop)[:, 0]                                      # (B, T * hop)
        # Frame k is centred in its own hop, so that a latent frame shows just the samples it stands for.
        edge = (c.n_fft - self.mel_hop) // 2
        wave = nn.functional.pad(wave, (edge, c.n_fft - self.mel_hop - edge))
        spec = torch.stft(wave, c.n_fft, self.mel_hop, window=self.window, center=False,
                          return_complex=True).abs()
        mel = (spec.transpose(1, 2) @ self.filters).clamp_min(c.floor).log()        # (B, fold T, mels)
        return ((mel - c.log_mean) / c.log_std).reshape(len(wave), -1, c.fold * c.mels)

    def decode(self, latents: Tensor, progress: Callable = lambda songs: songs) -> Tensor:
        """latents (B, T, C) -> wave (B, 1, T * hop); progress wraps the list of songs, e.g. tqdm.

        Deterministic: a fixed seed draws the starting phases.
        """
        c = self.config
        mel = latents.float().reshape(len(latents), -1, c.mels) * c.log_std + c.log_mean
        mel = mel.exp() - c.floor                                                   # the floor is silence
        spec = (mel.clamp_min(0) @ self.inverse).clamp_min(0).transpose(1, 2)       # (B, n_fft/2 + 1, fold T)
        edge = (c.n_fft - self.mel_hop) // 2
        # griffinlim centres frame k on sample k * hop; ours sit edge samples further left: pad, then cut.
        pad = -(-c.n_fft // self.mel_hop)
        spec = nn.functional.pad(spec, (pad, pad))
        with torch.random.fork_rng(devices=[]):
            waves = []
            for song in progress(list(spec)):    # alone: a song's phases do not depend on its batch mates
                torch.default_generator.manual_seed(0)
                waves.append(AF.griffinlim(song, self.window, c.n_fft, self.mel_hop, c.n_fft, 1.0,
                                           c.griffin_lim_steps, 0.99, None, True))
        start = pad * self.mel_hop - c.n_fft // 2 + edge
        return torch.stack(waves)[:, None, start:start + latents.shape[1] * c.hop]


def whole_frames(wave: Tensor, hop: int) -> Tensor:
    """wave (B, W, N) with zeros at its end up to a multiple of hop."""
    return nn.functional.pad(wave, (0, -wave.shape[-1] % hop))


# Oobleck, the network

class Snake(nn.Module):
    """u + sin(a u)^2 / b, with log a and log b for each channel. Source: arXiv 2006.08195, BigVGAN's form."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1, channels, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, u: Tensor) -> Tensor:                  # (B, channels, n); one temporary tensor only
        return (u * self.alpha.exp()).sin_().square_().mul_(1 / (self.beta.exp() + 1e-9)).add_(u)


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).add_(x)


def conv(inner: int, outer: int, kernel: int, dilation: int = 1, bias: bool = True) -> nn.Module:
    """A convolution that keeps the length."""
    return weight_norm(nn.Conv1d(inner, outer, kernel, dilation=dilation, bias=bias,
                                 padding=dilation * (kernel // 2)))


def units(channels: int) -> list[nn.Module]:
    return [Residual(Snake(channels), conv(channels, channels, 7, d), Snake(channels),
                     conv(channels, channels, 1)) for d in DILATIONS]


class Oobleck(nn.Module):
    """Stable Audio Open's autoencoder: strided convolutions with weight norm, Snake, dilated residual units.

    Weight norm's dimension is 0 throughout, which is the input's in a transposed convolution. No tanh and no
    scale at the end. Source: arXiv 2407.14358; checked by golden values and against diffusers.
    """

    def __init__(self, config: CodecConfig):
        super().__init__()
        widths = [config.width * m for m in (1, *config.multiples)]
        down, up = [], []
        for stride, narrow, wide in zip(config.strides, widths[:-1], widths[1:], strict=True):
            shift = {"kernel_size": 2 * stride, "stride": stride, "padding": (stride + 1) // 2}
            down.append(nn.Sequential(*units(narrow), Snake(narrow),
                                      weight_norm(nn.Conv1d(narrow, wide, **shift))))
            widen = weight_norm(nn.ConvTranspose1d(wide, narrow, output_padding=stride % 2, **shift))
            up.insert(0, nn.Sequential(Snake(wide), widen, *units(narrow)))
        self.encoder = nn.Sequential(conv(config.wave_channels, widths[0], 7), *down, Snake(widths[-1]),
                                     conv(widths[-1], 2 * config.latent_dim, 3))
        self.decoder = nn.Sequential(conv(config.latent_dim, widths[-1], 7), *up, Snake(widths[0]),
                                     conv(widths[0], config.wave_channels, 7, bias=False))

    def encode(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """audio (B, W, T * hop) -> mean and standard deviation of the latents, each (B, C, T)."""
        return posterior(self.encoder(audio))

    def decode(self, latent: Tensor) -> Tensor:
        """latent (B, C, T) -> audio (B, W, T * hop)."""
        return self.decoder(latent)

    def fold(self) -> "Oobleck":
        """Multiply each weight's norm and direction, once for all; the network computes the same, faster."""
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
    """How a song of `total` frames is cut up: (start, end, first, last) of each chunk.

    Frames start:end are decoded together, and first:last of them are kept. Half of the overlap is thrown away
    at each inner edge. All chunks are of one length; the last one overlaps its neighbour by what that takes.
    """
    starts = [*range(0, total - chunk, chunk - overlap), max(total - chunk, 0)]
    first = [0, *(start + overlap // 2 for start in starts[1:])]
    return [(start, min(start + chunk, total), a, b)
            for start, a, b in zip(starts, first, [*first[1:], total])]


class OobleckCodec:
    """An autoencoder as a codec, in chunks: the memory on `device` does not depend on the song's length.

    Args: config; model with Oobleck's `encode` and `decode`, on device and in dtype; rows, chunks at once
        (default: one on a CPU, which gains nothing from more; JAM-0.5's takes 0.7 GiB in float32).
    """

    def __init__(self, config: CodecConfig, model: nn.Module, device: torch.device | str = "cpu",
                 dtype: torch.dtype = torch.float32, rows: int | None = None):
        self.config, self.model, self.device, self.dtype = config, model, torch.device(device), dtype
        self.rows = rows or (CPU_ROWS if self.device.type == "cpu" else DEVICE_ROWS)

    @property
    def reach(self) -> int:
        """How many frames away from a sample a latent still changes it, and a sample a latent."""
        unit = sum(3 * d for d in DILATIONS)
        low, high = -3, self.config.hop + 2                  # what frame 0 needs before the last convolution
        for stride in self.config.strides:
            pad = (stride + 1) // 2
            low, high = -((unit - low - pad + 2 * stride - 1) // stride), (high + unit + pad) // stride
        return max(-low, high) + 3

    @torch.no_grad()
    def in_chunks(self, run: Callable, x: Tensor, samples: tuple[int, int], progress: Callable) -> Tensor:
        """run over x (B, c, T * samples[0]) chunk by chunk -> (B, c', T * samples[1]), float32 on the CPU."""
        hop_in, hop_out = samples
        spans = chunks(x.shape[2] // hop_in, CHUNK, max(OVERLAP, 2 * self.reach))    # or the cuts are heard
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


# Oobleck, its weights

class Scripted(nn.Module):
    """A TorchScript autoencoder with Oobleck's methods. It computes in float32."""

    def __init__(self, script: torch.jit.ScriptModule):
        super().__init__()
        self.script = script

    def encode(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        with torch.jit.optimized_execution(False):           # it would change after its first runs
            return posterior(self.script.encode_export(audio.float()))

    def decode(self, latent: Tensor) -> Tensor:
        with torch.jit.optimized_execution(False):
            return self.script.decode_export(latent.float())


def key_map(model: Oobleck, layout: str) -> dict[str, str]:
    """Names in the "diffusers" or "stable-audio-tools" layout -> our names, of all of the model's tensors."""
    unit = ("snake1", "conv1", "snake2", "conv2")
    res = ("res_unit1", "res_unit2", "res_unit3")
    level = {"encoder": (*res, "snake1", "conv1"), "decoder": ("snake1", "conv_t1", *res)}
    blocks = (f"block.{i}" for i in range(len(model.decoder) - 3))
    top = ("conv1", *blocks, "snake1", "conv2")
    found = {}
    for name in model.state_dict():
        side, path, leaf = re.fullmatch(r"(\w+)((?:\.\d+)+)\.(.+)", name).groups()
        path = path[1:].split(".")
        if layout == "diffusers":
            parts = [names[int(i)] for names, i in zip((top, level[side], unit), path)]
        else:
            parts = [f"layers.{i}" for i in path]
        found[".".join((side, *parts, leaf))] = name
    return found


def file_maps(model: Oobleck, prefixes: Iterable[str]) -> Iterable[tuple[bool, str, dict[str, str]]]:
    """Every layout that a file may have: whether it is folded, its prefix, its names -> the model's then."""
    for layout, norms in itertools.product(("diffusers", "stable-audio-tools"), NORMS):
        table = {k.replace(OURS[0], norms[0]).replace(OURS[1], norms[1]): v
                 for k, v in key_map(model, layout).items()}
        if norms is FOLDED:
            table = {k: v.replace(OURS[1], FOLDED[1]) for k, v in table.items() if OURS[0] not in v}
        for prefix in prefixes:
            yield norms is FOLDED, prefix, {prefix + k: v for k, v in table.items()}


def fit(tensors: dict[str, Tensor], config: CodecConfig, place: str,
        prefixes: Sequence[str] = PREFIXES) -> Oobleck:
    """Build the network from tensors in any published layout; what lies outside of the prefix is left out.

    Raises: UserError, with `place`, that names tensors which are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        model = Oobleck(config)
    folded, prefix, names = max(file_maps(model, prefixes), key=lambda found: len(found[2].keys() & tensors))
    model = model.fold() if folded else model
    own = {name for name in tensors if name.startswith(prefix)}
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    state = {names[k]: tensors[k] for k in names if k in own}
    for name, value in state.items():
        if name.endswith(("alpha", "beta")) and value.dim() == 1:      # (C,) in stable-audio-tools
            state[name] = value[None, :, None]
    faults = {"missing": [k for k in names if k not in own], "unknown": sorted(own - names.keys()),
              "misshapen": [f"{k} {tuple(tensors[k].shape)}, expected {shapes[v]}" for k, v in names.items()
                            if v in state and state[v].shape != shapes[v]]}
    if any(faults.values()):
        raise UserError(f"{place}: not this autoencoder's weights: " + "; ".join(
            f"{len(found)} tensors {kind}: {', '.join(found[:3])}{', ...' * (len(found) > 3)}"
            for kind, found in faults.items() if found))
    if len(own) < len(tensors):
        print(f"{place}: {len(tensors) - len(own)} tensors outside of {prefix}* are ignored")
    model.load_state_dict(state, assign=True)
    return model


def is_script(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a PyTorch checkpoint, perhaps below `state_dict`."""
    if path.suffix == ".safetensors":
        return load_file(path)
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    saved = saved.get("state_dict", saved)
    return {k: v for k, v in saved.items() if isinstance(v, Tensor)}


def adopt(script: torch.jit.ScriptModule, config: CodecConfig, path: Path) -> nn.Module:
    """A scripted autoencoder as Oobleck, if its weights fit and compute the same; else as it is."""
    rng = torch.Generator().manual_seed(0)
    latent = torch.randn(1, config.latent_dim, 4, generator=rng)
    with torch.inference_mode():
        wanted = script.decode_export(latent)
    if wanted.shape != (1, config.wave_channels, 4 * config.hop):
        raise ValueError(f"4 frames decode to {tuple(wanted.shape)}")
    weights = script.state_dict()
    prefixes = {name[:name.rfind("decoder.")] for name in weights if "decoder." in name}
    try:
        model = fit(weights, config, str(path), sorted(prefixes) or [""])
        with torch.inference_mode():
            off = (model.decode(latent) - wanted).abs().max() / wanted.abs().max()
        if off < 1e-3:
            print(f"{path}: a TorchScript file; its weights are taken, its code is not needed")
            return model
        why = f"{path}: computes something else from the same weights, {off:.1e} apart"
    except UserError as e:
        why = e
    print(f"{why}; its TorchScript is run as it is")
    return Scripted(script)


def load_oobleck(path: Path, config: CodecConfig, device: torch.device | str = "cpu",
                 dtype: torch.dtype = torch.float32) -> nn.Module:
    """Read an autoencoder: diffusers' or stable-audio-tools' layout, any weight norm, or TorchScript.

    Returns: Oobleck, or Scripted (then in float32), ready to run, without gradients.
    Raises: UserError if the file is missing, broken, or another network's, with the tensors that tell.
    """
    try:
        if is_script(path):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
                model = adopt(torch.jit.load(path, map_location="cpu"), config, path)
        else:
            model = fit(read_tensors(path), config, str(path))
    except UserError:
        raise
    except (*READ_ERRORS, SafetensorError, zipfile.BadZipFile) as e:
        reason = ("neither safetensors, TorchScript nor a checkpoint of tensors"
                  if isinstance(e, pickle.UnpicklingError) else " ".join(str(e).split())[:120])
        raise UserError(f"{path}: not an autoencoder's weights: {reason}") from None
    dtype = torch.float32 if isinstance(model, Scripted) else dtype
    return model.eval().requires_grad_(False).to(device, dtype)


def make_codec(config: CodecConfig, path: Path | None = None, device: torch.device | str = "cpu",
               dtype: torch.dtype = torch.float32) -> MelCodec | OobleckCodec:
    """The codec that a preset names.

    Args: path, oobleck's weights; device and dtype that it computes in. mel has no weights and stays on the
        CPU, in float32.
    Raises: UserError for an unknown kind, or for weights that are missing or do not fit.
    """
    if config.kind == "mel":
        return MelCodec(config)
    if config.kind != "oobleck":
        raise UserError(f"codec {config.kind}: expected mel or oobleck")
    if path is None:
        raise UserError("codec oobleck: needs the file of its weights")
    model = load_oobleck(path, config, device, dtype)
    if isinstance(model, Scripted):
        return OobleckCodec(config, model, device)
    return OobleckCodec(config, model.fold(), device, dtype)


def silence_of(config: CodecConfig, published: Callable[[], Path]) -> Tensor:
    """The latent frame (C,) of digital silence: mel's is computed, oobleck's read from the `published` file.

    Raises: UserError if that file does not hold C finite numbers.
    """
    if config.kind == "mel":
        return MelCodec(config).silence
    path = published()
    try:
        frame = torch.load(path, map_location="cpu", weights_only=True).float().reshape(config.latent_dim)
        if not frame.isfinite().all():
            raise ValueError("not finite")
    except READ_ERRORS as e:
        raise UserError(f"{path}: not {config.latent_dim} numbers: {' '.join(str(e).split())[:80]}") from None
    return frame.clone()                                     # the published one is a view of something larger
