"""The embedded model's latents: what a singing voice does, and the networks between that and sound.

Read `Voice` (what latents say), `SungDecoder` (a voice -> spectra), `pulses` and `SungCodec.synth` (spectra
-> sound), then `SungCodec`. The decoder is a source-filter model: all harmonics of the pitch at equal
strength, shaped by one spectrum, plus noise, shaped by another. The encoder finds a voice in a recording.

Axes: B songs, T latent frames, n short frames, C latent channels, N = T * hop samples; M bands of the
envelope, R of the ratio of harmonics to noise, K bins of a spectrum.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from config import CodecConfig
from support.files import reading

NOTE_ORIGIN, NOTE_SCALE = 57.0, 8.0    # MIDI note and semitones of a pitch code's first number
NOTE_TURNS = (12.0, 4.0)               # semitones of a turn of its circles
NOTE_GAIN = 1.5                        # how much more the pitch weighs than other latents
NOTES = torch.arange(24.0, 96.0, 0.05)             # that a code is compared with
LOWEST, PITCHES_A_NOTE, PITCHES = 24.0, 2, 145     # the encoder's classes of pitch
RATIO_MAX = 3.0                        # nepers, of harmonics to noise
N_FFT = 1024                           # of the decoder's spectra
HARMONICS_HZ = 11000                   # highest harmonic
SPECTRA_AT_ONCE = 1024                 # short frames, 11 s


def note_code(note: Tensor) -> Tensor:
    """MIDI notes (...,) -> (..., 5): a line and two circles, so that small errors of a code are few cents."""
    circles = [math.sqrt(2) * f(2 * math.pi / turn * note)
               for turn in NOTE_TURNS for f in (torch.sin, torch.cos)]
    return NOTE_GAIN * torch.stack([(note - NOTE_ORIGIN) / NOTE_SCALE, *circles], -1)


class Voice(NamedTuple):
    """What latents say about a voice, n short frames."""
    envelope: Tensor                   # (B, n, M) log of the magnitude in each band
    ratio: Tensor                      # (B, n, R) nepers, harmonics to noise
    voiced: Tensor                     # (B, n) above 0 where there are harmonics
    note: Tensor                       # (B, n) MIDI

    @property
    def hz(self) -> Tensor:            # (B, n)
        return 440 * 2 ** ((self.note - 69) / 12)


class ConvNeXt(nn.Module):
    """A residual block over time, x (B, D, n)."""

    def __init__(self, dim: int):
        super().__init__()
        self.depthwise = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, 3 * dim), nn.Linear(3 * dim, dim)
        self.gain = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).transpose(1, 2))                                     # (B, n, D)
        return x + (self.gain * self.down(nn.functional.gelu(self.up(y)))).transpose(1, 2)


class LogMel:
    """A log-mel spectrogram of short frames, each centred in its hop; about zero mean and unit variance."""
    n_fft, window, mels, floor, mean, std = 2048, 1024, 80, 5e-3, -1.5, 2.3

    def __init__(self, config: CodecConfig):
        self.hop = config.hop // config.fold
        edge = (self.n_fft - self.window) // 2
        self.taper = nn.functional.pad(torch.hann_window(self.window), (edge, edge))
        self.filters = mel_filters(self.n_fft // 2 + 1, self.mels, config.sample_rate_hz)

    @property
    def silence(self) -> float:
        """The value of every band in digital silence."""
        return (math.log(self.floor) - self.mean) / self.std

    def __call__(self, wave: Tensor) -> Tensor:
        """wave (B, N), N a multiple of the short hop -> (B, n, mels)."""
        before = (self.n_fft - self.hop) // 2
        wave = nn.functional.pad(wave, (before, self.n_fft - self.hop - before))
        spec = torch.stft(wave, self.n_fft, self.hop, window=self.taper, center=False,
                          return_complex=True).abs()                                         # (B, bins, n)
        return ((spec.transpose(1, 2) @ self.filters).clamp_min(self.floor).log() - self.mean) / self.std


class SungEncoder(nn.Module):
    """A log-mel spectrogram -> the voice in it."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.config = config
        self.inward = nn.Conv1d(LogMel.mels, config.encoder_width, 7, padding=3)
        self.blocks = nn.Sequential(*(ConvNeXt(config.encoder_width) for _ in range(config.encoder_depth)))
        self.outward = nn.Linear(config.encoder_width, config.mels + config.ratios + 1 + PITCHES)

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """mel (B, n, mels) -> envelope, ratio and voicing as in latents (B, n, M + R + 1); pitch's logits
        (B, n, PITCHES).
        """
        x = self.blocks(self.inward(mel.transpose(1, 2))).transpose(1, 2)
        return self.outward(x).split([self.outward.out_features - PITCHES, PITCHES], 2)


def pitch_of(logits: Tensor, voiced: Tensor) -> Tensor:
    """MIDI notes (n,) from a song's logits (n, PITCHES): the mean around the likeliest; interpolated between
    the frames that are voiced (n,).
    """
    best, bins = logits.argmax(-1, keepdim=True), torch.arange(PITCHES)
    near = logits.softmax(-1) * ((bins - best).abs() <= 2)
    note = LOWEST + ((near * bins).sum(-1) / near.sum(-1)) / PITCHES_A_NOTE
    known = voiced.nonzero()[:, 0]
    if not len(known):
        return torch.full_like(note, NOTE_ORIGIN)
    return torch.from_numpy(np.interp(np.arange(len(note)), known.numpy(), note[known].numpy())).float()


class SungDecoder(nn.Module):
    """A voice -> spectra of its harmonics and of its noise, as corrections of those that its bands imply."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        dim, depth = config.decoder_width, config.decoder_depth
        self.config, self.reach = config, 3 + 3 * depth + 4      # frames that a frame depends on, each way
        inner = config.mels + config.ratios + 1 + 5
        self.inward = nn.Conv1d(inner, dim, 7, padding=3)
        self.blocks = nn.Sequential(*(ConvNeXt(dim) for _ in range(depth)))
        self.outward = nn.Linear(dim, 3 * (N_FFT // 2 + 1))
        nn.init.zeros_(self.outward.weight)
        nn.init.zeros_(self.outward.bias)
        with torch.device("cpu"):                            # no file holds them
            bands = mel_filters(N_FFT // 2 + 1, config.mels, config.sample_rate_hz)          # (K, M)
            width, places = bands.sum(0), torch.arange(len(bands))
            centres = (bands * places[:, None]).sum(0) / width
            self.register_buffer("width", width.log() / 2, persistent=False)
            self.register_buffer("from_bands", between(centres, len(bands)), persistent=False)       # (M, K)
            centres = centres.unflatten(0, (config.ratios, -1)).mean(1)
            self.register_buffer("from_ratios", between(centres, len(bands)), persistent=False)      # (R, K)

    def forward(self, v: Voice) -> tuple[Tensor, Tensor, Tensor]:
        """Log magnitude and phase of the harmonics, log magnitude of the noise, each (B, n, K)."""
        c = self.config
        x = torch.cat([(v.envelope - c.log_mean) / c.log_std, v.ratio / RATIO_MAX, v.voiced[..., None],
                       note_code(v.note)], -1)
        x = self.blocks(self.inward(x.transpose(1, 2))).transpose(1, 2)
        harmonic, phase, noise = self.outward(x).chunk(3, -1)
        density, ratio = (v.envelope - self.width) @ self.from_bands, v.ratio @ self.from_ratios
        share = nn.functional.logsigmoid(torch.stack([2 * ratio, -2 * ratio])) / 2
        harmonic = harmonic + density + share[0] + (2 * v.hz[..., None]).log() / 2 + math.log(N_FFT / 4)
        noise = noise + density + share[1] + math.log(c.sample_rate_hz / 2 * 1.5 * N_FFT / 2) / 2
        return harmonic.clamp_max(7), math.pi * phase.tanh(), noise.clamp_max(7)


def mel_filters(bins: int, bands: int, rate_hz: int) -> Tensor:
    """Filters (bins, bands) from a spectrum's bins to mel bands."""
    import torchaudio.functional as AF

    return AF.melscale_fbanks(bins, 0.0, rate_hz / 2, bands, rate_hz)


def between(knots: Tensor, count: int) -> Tensor:
    """The matrix (len(knots), count) that interpolates values at `knots` linearly at 0, 1, ..., count - 1."""
    eye, at = torch.eye(len(knots)), torch.arange(count).float()
    high = torch.searchsorted(knots.contiguous(), at).clamp(1, len(knots) - 1)
    part = ((at - knots[high - 1]) / (knots[high] - knots[high - 1])).clamp(0, 1)[:, None]
    return (eye[high - 1] * (1 - part) + eye[high] * part).T


def pulses(hz: Tensor, voiced: Tensor, phase: Tensor, hop: int, rate: int) -> Tensor:
    """All harmonics of a pitch (B, n), in Hz, at unit amplitude, where voiced (B, n) -> (B, n * hop).

    Args: phase (B,), turns before the first sample. Here
    sum cos(h p), h = 1..H, is sin((H + 1/2) p) / (2 sin(p/2)) - 1/2.
    """
    f = nn.functional.interpolate(hz[:, None], scale_factor=hop, mode="linear")[:, 0]
    turns = (f.double() / rate).cumsum(1) + phase[:, None]
    p = 2 * math.pi * (turns - turns.floor()).float()
    harmonics, low = (HARMONICS_HZ / f).floor() + 0.5, 2 * (p / 2).sin()
    near = low.abs() < 2e-3
    wave = torch.where(near, harmonics, (harmonics * p).sin() / torch.where(near, 1.0, low)) - 0.5
    return wave * voiced.repeat_interleave(hop, 1)


def turns_before(hz: Tensor, hop: int, rate: int) -> Tensor:
    """The phase (B, n), in turns, with which `pulses` has to begin at each frame of a pitch (B, n).

    It holds its first pitch until the middle of that frame, and the phases are to agree from there on.
    """
    f = hz.double()
    middle = nn.functional.pad((f[:, 1:] + f[:, :-1]).cumsum(1), (1, 0)) + f[:, :1]
    return hop / rate / 2 * (middle - f)


class SungModel(nn.Module):
    """The networks of a SungCodec."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.encoder, self.decoder = SungEncoder(config), SungDecoder(config)


class SungCodec:
    """A singing voice as latents. Two short frames (envelope, ratio, voicing) and a pitch make one frame.

    It runs on the CPU, in float32. Args: config; model, None if only `pack`, `unpack`, `silence` are needed.
    """

    def __init__(self, config: CodecConfig, model: SungModel | None = None):
        self.config, self.model, self.mel = config, model, LogMel(config)
        self.short = config.hop // config.fold           # samples of a short frame
        self.window = torch.hann_window(N_FFT)

    @property
    def silence(self) -> Tensor:
        """The latent frame (C,) of digital silence."""
        fold, nothing = self.config.fold, torch.zeros(self.config.fold, self.config.mels)
        return self.pack(nothing, nothing + 1e-12, torch.full((fold,), NOTE_ORIGIN), torch.zeros(fold))[0]

    @torch.no_grad()
    def encode(self, wave: Tensor) -> Tensor:
        """wave (B, 1, N) in [-1, 1] -> latents (B, ceil(N / hop), C), about zero mean and unit variance."""
        assert wave.dim() == 3 and wave.shape[1] == 1, wave.shape
        short, logits = self.model.encoder(self.mel(whole_frames(wave, self.config.hop)[:, 0]))
        note = torch.stack([pitch_of(*song) for song in zip(logits, short[..., -1] > 0)])        # (B, n)
        return self.fold(short, note)

    def fold(self, short: Tensor, note: Tensor) -> Tensor:
        """Short frames (B, n, M + R + 1) and their pitch (B, n) -> latents (B, T, C)."""
        code = note_code(note.unflatten(1, (-1, self.config.fold)).mean(2))                      # (B, T, 5)
        return torch.cat([short.reshape(*code.shape[:2], -1), code], 2)

    def pack(self, harmonic: Tensor, noise: Tensor, note: Tensor, voiced: Tensor) -> Tensor:
        """Powers (n, M), pitch and voicing (n,) of short frames -> latents (T, C), n = fold T."""
        c = self.config
        harmonic, noise, note = (torch.as_tensor(x, dtype=torch.float32) for x in (harmonic, noise, note))
        envelope = ((harmonic + noise + c.floor ** 2).log() / 2 - c.log_mean) / c.log_std
        total = [x.unflatten(1, (c.ratios, -1)).sum(-1) + c.floor ** 2 / 100 for x in (harmonic, noise)]
        ratio = ((total[0] / total[1]).log() / 2).clamp(-RATIO_MAX, RATIO_MAX) / RATIO_MAX
        voiced = torch.as_tensor(voiced).float()[:, None] * 2 - 1
        return self.fold(torch.cat([envelope, ratio, voiced], 1)[None], note[None])[0]

    def unpack(self, latents: Tensor) -> Voice:
        """Latents (B, T, C) -> what they say."""
        c = self.config
        short, code = latents.float().split([latents.shape[2] - 5, 5], 2)
        short = short.unflatten(2, (c.fold, -1)).flatten(1, 2)                      # (B, n, M + R + 1)
        envelope, ratio, voiced = short.split([c.mels, c.ratios, 1], 2)
        codes = note_code(NOTES)                                                    # (notes, 5)
        note = torch.cat([NOTES[(codes.square().sum(1) - 2 * part @ codes.T).argmin(-1)]     # (B, t, notes)
                          for part in code.split(SPECTRA_AT_ONCE, 1)], 1)
        note = nn.functional.interpolate(note[:, None], scale_factor=c.fold, mode="linear")[:, 0]
        return Voice(envelope * c.log_std + c.log_mean, RATIO_MAX * ratio, voiced[..., 0], note)

    def synth(self, v: Voice, phase: Tensor, noise: Tensor) -> Tensor:
        """A voice -> frames of sound (B, n, N_FFT), windowed, to be overlap-added.

        Args: phase (B,), turns before the first frame; noise (B, n, K), complex.
        """
        harmonic, angle, hiss = self.model.decoder(v)
        source = pulses(v.hz, v.voiced > 0, phase, self.short, self.config.sample_rate_hz)
        side = (N_FFT - self.short) // 2                     # a frame is centred in its hop
        source = torch.stft(nn.functional.pad(source, (side, side)), N_FFT, self.short, window=self.window,
                            center=False, return_complex=True).transpose(1, 2) / (N_FFT / 4)      # (B, n, K)
        spectrum = source * torch.polar(harmonic.exp(), angle) + noise * hiss.exp()
        return torch.fft.irfft(spectrum, N_FFT) * self.window / 1.5

    def overlap_add(self, frames: Tensor) -> Tensor:
        """Frames (B, n, N_FFT) -> sound (B, (n - 1) * short + N_FFT), `side` samples longer than its hops."""
        length = (frames.shape[1] - 1) * self.short + N_FFT
        sound = nn.functional.fold(frames.transpose(1, 2), (1, length), (1, N_FFT), stride=(1, self.short))
        return sound[:, 0, 0]                                # (B, 1, 1, N) -> (B, N)

    @torch.no_grad()
    def decode(self, latents: Tensor, progress: Callable = lambda parts: parts) -> Tensor:
        """latents (B, T, C) -> wave (B, 1, T * hop); progress wraps the list of parts, e.g. tqdm.

        Deterministic: its noise is drawn with a fixed seed. Memory beyond the song's own does not grow with
        it.
        """
        return self.render(self.unpack(latents), (0, latents.shape[1]), progress)

    def render(self, v: Voice, part: tuple[int, int], progress: Callable = lambda parts: parts) -> Tensor:
        """The wave (B, 1, n * hop) of n latent frames, `part`, of a voice."""
        frames, reach, edge = v.note.shape[1], self.model.decoder.reach, N_FFT // self.short
        first, end = (frame * self.config.fold for frame in part)
        low, high = max(0, first - edge), min(frames, end + edge)
        turns = turns_before(v.hz, self.short, self.config.sample_rate_hz)
        wave = torch.zeros(len(v.note), (high - low - 1) * self.short + N_FFT)
        rng = torch.Generator().manual_seed(0)
        for block in progress(range(0, frames, SPECTRA_AT_ONCE)):
            noise = torch.randn(1, min(SPECTRA_AT_ONCE, frames - block), N_FFT // 2 + 1, 2,
                                generator=rng)                                       # the same for each song
            a, b = max(block, low), min(block + noise.shape[1], high)
            if a >= b:
                continue
            before, after = max(0, a - reach), min(frames, b + reach)
            noise = torch.view_as_complex(nn.functional.pad(
                noise[:, a - block:b - block], (0, 0, 0, 0, a - before, after - b)))
            sound = self.synth(Voice(*(x[:, before:after] for x in v)), turns[:, before], noise)
            sound = self.overlap_add(sound[:, a - before:b - before])
            wave[:, (a - low) * self.short:(a - low) * self.short + sound.shape[1]] += sound
        side = (N_FFT - self.short) // 2 + (first - low) * self.short
        return wave[:, None, side:side + (end - first) * self.short]

    def pitch(self, latents: Tensor) -> Tensor:
        """The pitch (B, n), in Hz, that `decode` gives latents (B, T, C)."""
        return self.unpack(latents).hz

    @torch.no_grad()
    def decode_again(self, latents: Tensor, part: tuple[int, int], spans: list[tuple[int, int]], hz: Tensor,
                     lead: int = 0) -> tuple[Tensor, Tensor]:
        """The wave (B, 1, n * hop) of n frames, `part`, of a song that was sung again in `spans`.

        Elsewhere it is in phase with the song before: within a span the pitch is raised or lowered by as
        little as makes up for less than half a period.
        Args: latents (B, T, C), which begin `lead` frames before those of the song before; part and spans,
            first frames and ends; hz (B, n), the song's pitch before.
        Returns: the wave; the pitch of the whole song, which is `hz` of the next time.
        """
        v, fold, rate = self.unpack(latents), self.config.fold, self.config.sample_rate_hz
        turns, now, lead = turns_before(hz, self.short, rate), v.hz, fold * lead
        old = torch.ones(now.shape[1], dtype=torch.bool)
        for first, end in spans:
            old[fold * first:fold * end] = False
        length = min(now.shape[1] - lead, hz.shape[1])
        same = old[lead:lead + length]
        now[:, lead:lead + length][:, same] = hz[:, :length][:, same]
        for first, end in ((fold * first, fold * end) for first, end in spans):
            if lead <= end < lead + length:
                late = turns[:, end - lead] - turns_before(now, self.short, rate)[:, end]
                missing = ((late - late.round()) * rate / self.short).float()
                shape = torch.hann_window(end - first + 2, periodic=False)[1:-1]     # no step at the edges
                now[:, first:end] += missing[:, None] * shape / shape.sum()
        v = v._replace(note=69 + 12 * (now / 440).log2())
        return self.render(v, part), now


def whole_frames(wave: Tensor, hop: int) -> Tensor:
    """Pad wave (..., N) with zeros to a multiple of hop."""
    return nn.functional.pad(wave, (0, -wave.shape[-1] % hop))


def load_sung(path: Path, config: CodecConfig) -> SungModel:
    """The embedded model's codec from its file, ready to run, without gradients.

    Raises: UserError if it cannot be read, does not fit, or has numbers that are not finite.
    """
    with reading(path, "not this codec's weights"):
        with torch.device("meta"):                           # no memory before the shapes are known to fit
            model = SungModel(config)
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        given, own = ({name: tuple(tensor.shape) for name, tensor in part.items()}
                      for part in (tensors, model.state_dict()))
        for name in own | given:
            if given.get(name) != own.get(name):
                raise ValueError(f"{name} {given.get(name, 'is missing')}, expected {own.get(name, 'none')}")
        model.load_state_dict(tensors, assign=True)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.isfinite().all():
                raise ValueError(f"{name} is not finite")
    return model.eval().requires_grad_(False)
