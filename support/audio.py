"""Sound files <-> waves, and the loudness of finished songs.

Read `read_wave`, then `master` (loudness and peaks) and `write_wave`. Waves are (W, N) float32: W channels, N
samples, 1.0 is full scale.
"""

import contextlib
import hashlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from config import UserError
from support.files import reading

FORMATS = {".wav": {"format": "WAV", "subtype": "PCM_16"}, ".flac": {"format": "FLAC", "subtype": "PCM_16"},
           ".ogg": {"format": "OGG", "subtype": "VORBIS"},
           ".mp3": {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.3}}
READABLE = (".mp3", ".wav", ".flac", ".ogg")
LEAD_S = 1.0                   # decoded before the part that is asked for; 0.1 would do
RATE_STEP_HZ = 25              # divides all usual rates; others would need resampling kernels of gigabytes
LOUDNESS_LUFS = -14.0
PEAK_DB = -1.0                 # true peak: of the wave between its samples, too
MOST_GAIN_DB = 30.0            # so that near silence stays near silence
SHORTEST_S = 0.4               # loudness is defined from this length on
BLOCK = 16                     # samples to which the limiter gives one gain
REACH = 16                     # blocks before and after a peak that are turned down with it


def declared_bytes(path: Path) -> float:
    """The size of a sound file according to its own headers; 0 if they do not say.

    libsndfile reads a truncated WAV or OGG without an error. An MP3 says its size only in a Xing (or Info)
    header. An OGG without its last page counts as infinitely long.
    """
    with path.open("rb") as file:
        head, length = file.read(10), file.seek(0, os.SEEK_END)
        start = 0
        if head[:4] == b"OggS":
            start = max(0, length - 65307)                   # the longest page
        if head[:3] == b"ID3":                               # its size is four digits of 7 bits
            start = 10 + sum(digit << 7 * (3 - i) for i, digit in enumerate(head[6:10]))
        file.seek(start)
        part = file.read(65307)
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return 8 + size if size < 0x7FFFF000 else 0          # larger: written to a pipe, size unknown
    if head[:4] == b"OggS":
        page = part[part.rfind(b"OggS"):]
        if len(page) < 27 or not page[5] & 4:                # not the stream's last page
            return math.inf
        return length - len(page) + 27 + page[26] + sum(page[27:27 + page[26]])
    frame = part[:256]
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if at < 0 or len(frame) < at + 16 or not frame[at + 7] & 2:
        return 0
    place = at + 8 + 4 * (frame[at + 7] & 1)                 # after the number of frames, if it is given
    return start + int.from_bytes(frame[place:place + 4], "big")


@contextlib.contextmanager
def opened(path: Path) -> Iterator:
    """Open a sound file, as a soundfile.SoundFile.

    Raises: UserError if it is corrupt or not a sound file, also for what fails to be read inside the block.
    """
    import soundfile

    if path.suffix.lower() not in READABLE:
        raise UserError(f"{path}: unknown ending; expected a sound file: {', '.join(READABLE)}")
    if not os.path.isfile(path):
        raise UserError(f"{path}: {'is a folder' if os.path.isdir(path) else 'there is no such file'}")
    try:
        if declared_bytes(path) > path.stat().st_size:
            raise UserError(f"{path}: its end is missing: the file was cut off")
        with soundfile.SoundFile(path) as file:
            if not file.frames:
                raise UserError(f"{path}: holds no sound")
            if file.samplerate % RATE_STEP_HZ:
                raise UserError(f"{path}: {file.samplerate} samples per second; expected a usual rate, such "
                                "as 44100 or 48000")
            if file.format == "FLAC":                        # its beginning can be read even if it was cut
                file.seek(file.frames - 1)
                file.read(1)
            yield file
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}") from None
    # libsndfile's own message misleads: it says that a corrupt MP3 does not exist.
    except soundfile.SoundFileError:
        raise UserError(f"{path}: corrupt, or not a sound file ({', '.join(READABLE)})") from None


def length_s(path: Path) -> float:
    """Length of a sound file in seconds; a guess from the first bit rate for an MP3 without a Xing header.

    Raises: UserError if it is missing, corrupt or not a sound file.
    """
    with opened(path) as file:
        return file.frames / file.samplerate


def read_wave(path: Path, start_s: float = 0.0, seconds: float = math.inf) -> tuple[Tensor, int]:
    """Read a sound file, or up to `seconds` of it from start_s on.

    Args: path of an MP3, WAV, FLAC or OGG; start_s 0 or more; seconds more than 0.
    Returns: wave (W, N) float32, at its own rate; that rate in Hz. MP3 and float WAV may exceed 1.0.
    Raises: UserError if the file is missing, corrupt, cut off or not sound, has samples that are not finite,
        or ends before start_s.
    """
    with opened(path) as file:
        rate_hz, frames = file.samplerate, file.frames
        length = frames / rate_hz
        if not 0 <= start_s < length:
            raise UserError(f"{path}: cannot begin at {start_s:.2f} s; expected 0 to {length:.2f} s, its end")
        if not seconds > 0:
            raise UserError(f"{path}: cannot read {seconds} s; expected more than 0")
        first = min(round(start_s * rate_hz), frames - 1)
        wanted = min(frames - first, max(1, round(min(seconds, length) * rate_hz)))
        # An MP3's frames need earlier ones: after a seek, the first ones are silent or wrong.
        lead = min(first, round(LEAD_S * rate_hz))
        file.seek(first - lead)
        samples = file.read(lead + wanted, dtype="float32", always_2d=True)[lead:]
        # The length of an MP3 without a Xing header is a guess: fewer samples are no sign of corruption.
        guessed = file.format == "MP3" and not declared_bytes(path)
    if not len(samples) or len(samples) < wanted and not guessed:
        raise UserError(f"{path}: corrupt: {len(samples)} of {wanted} samples could be read from "
                        f"{start_s:.2f} s on")
    wave = torch.from_numpy(np.ascontiguousarray(samples.T))                        # (N, W) -> (W, N)
    if not wave.isfinite().all():
        raise UserError(f"{path}: has samples that are not finite")
    return wave, rate_hz


def mono(wave: Tensor, rate_hz: int, wanted_hz: int) -> Tensor:
    """Mean of the channels at another rate: (W, N) -> (N * wanted_hz / rate_hz, rounded up,).

    The filter is torchaudio's default, as users of MuQ-MuLan take it; it is weak above 10 kHz at 24 kHz.
    """
    import torchaudio.functional as AF

    return AF.resample(wave.mean(0), rate_hz, wanted_hz)


def loudness_lufs(wave: Tensor, rate_hz: int) -> float | None:
    """Integrated loudness of wave (W, N) by ITU-R BS.1770; None for silence.

    Clips under 0.4 s are repeated. torchaudio's filters clip above 1.0: the wave is measured with a peak of
    1/4 or less.
    """
    import torchaudio.functional as AF

    if not wave.shape[1]:
        return None
    wave = wave.double().repeat(1, math.ceil(SHORTEST_S * rate_hz / wave.shape[1]))
    scale = max(1.0, 4 * wave.abs().max().item())
    value = AF.loudness(wave / scale, rate_hz).item() + 20 * math.log10(scale)
    return value if math.isfinite(value) else None


def true_peaks(wave: Tensor) -> Tensor:
    """The largest value, of any channel, in and between BLOCK samples of wave (W, N): (ceil(N / BLOCK),).

    Interpolates to eight values a sample, part by part, so that long songs need no more memory than short.
    """
    import torchaudio.functional as AF

    edge = 128                               # more samples than the interpolation looks at
    part = 4096 * BLOCK
    samples = wave.shape[1]
    padded = F.pad(wave, (edge, edge + -samples % part))
    peaks = []
    for piece in padded.unfold(1, part + 2 * edge, part).unbind(1):                    # (W, part + 2 edge)
        fine = AF.resample(piece, 1, 8, lowpass_filter_width=64)[:, 8 * edge:8 * (edge + part)]
        exact = piece[:, edge:edge + part].abs().view(len(wave), -1, BLOCK).amax((0, 2))
        peaks.append(fine.abs().view(len(wave), -1, 8 * BLOCK).amax((0, 2)).maximum(exact))
    return torch.cat(peaks)[:-(-samples // BLOCK)]


def limit(wave: Tensor, peaks: Tensor, ceiling: float) -> Tensor:
    """Turn wave (W, N) down around each of its `true_peaks`, so that none is above `ceiling`.

    All channels get the same gain, which keeps the stereo image.
    """
    gain = (ceiling / peaks.clamp_min(1e-9)).clamp_max(1.0)[None, None]
    if gain.min() == 1:
        return wave
    # The smallest gain within reach, smoothed by two boxes that together reach one block less far.
    gain = -F.max_pool1d(F.pad(-gain, (REACH + 1, REACH + 1), value=-1.0), 2 * REACH + 3, 1)
    for _ in range(2):
        gain = F.avg_pool1d(F.pad(gain, (REACH // 2, REACH // 2), mode="replicate"), REACH + 1, 1)
    return wave * F.interpolate(gain, scale_factor=BLOCK, mode="linear")[0, :, :wave.shape[1]]


def limited(wave: Tensor) -> Tensor:
    """A wave (W, N) without true peaks above -1 dB."""
    ceiling = 10 ** (PEAK_DB / 20)
    return limit(wave, true_peaks(wave), ceiling).clamp(-ceiling, ceiling)


def master(wave: Tensor, rate_hz: int, samples: int) -> tuple[Tensor, list[float]]:
    """Bring wave (W, N) to -14 LUFS with true peaks at -1 dB at most; silence stays silence.

    Loudness and mean are measured over the first `samples`: what follows is not part of the song.
    Returns: the wave; the gain that it got before its peaks were limited, then what was subtracted from each
        channel.
    Differs: the original divides each channel by its peak, which moves the stereo image, and may clip.
    """
    ceiling = 10 ** (PEAK_DB / 20)
    means = wave[:, :samples].double().mean(1)
    wave = wave.double() - means[:, None]
    peaks, now, gain_db = true_peaks(wave), loudness_lufs(wave[:, :samples], rate_hz), 0.0
    for _ in range(6):                                       # limiting lowers the loudness: raise the gain
        if now is not None:
            gain_db = min(gain_db + LOUDNESS_LUFS - now, MOST_GAIN_DB)
        scale = 10 ** (gain_db / 20)
        out = limit(wave * scale, peaks * scale, ceiling)
        if now is None or peaks.max() * scale <= ceiling:    # silent, or nothing was limited
            break
        now = loudness_lufs(out[:, :samples], rate_hz)
        if now is None or abs(now - LOUDNESS_LUFS) < 0.05 or gain_db == MOST_GAIN_DB and now < LOUDNESS_LUFS:
            break
    return out.clamp(-ceiling, ceiling).float(), [scale, *means.tolist()]


def fingerprint(sound: Path | io.BytesIO) -> list:
    """A sound file's rate in Hz, channels, samples and, if it is lossless, their checksum; no tags.

    Raises: UserError if it cannot be read.
    """
    import soundfile

    with reading(sound, "cannot be read", soundfile.SoundFileError), soundfile.SoundFile(sound) as file:
        exact = file.format in ("WAV", "FLAC")               # decoders of the others may differ
        checksum = hashlib.sha256(file.read(dtype="int16").tobytes()).hexdigest() if exact else None
        return [file.samplerate, file.channels, file.frames, checksum]


def write_wave(path: Path, wave: Tensor, rate_hz: int, name: Path) -> list:
    """Write wave (W, N) to path, a temporary file, in the format of its final name's ending (see FORMATS).

    Returns: the `fingerprint` of what was written.
    Raises: UserError if samples are not finite or the file cannot be written.
    """
    import soundfile

    # A NaN aborts the process inside the MP3 encoder.
    if not wave.isfinite().all():
        raise UserError(f"{name}: the song has samples that are not finite: the numbers of its style or of "
                        "--guidance-weights are too large, or the model's weights are spoilt")
    # Not into the file: libsndfile goes on when a disk is full, and each error of its calls is printed.
    sound = io.BytesIO()
    with reading(name, "cannot be written", soundfile.SoundFileError):
        soundfile.write(sound, wave.T.numpy(), rate_hz, **FORMATS[name.suffix.lower()])
        path.write_bytes(sound.getbuffer())
        sound.seek(0)
        return fingerprint(sound)
