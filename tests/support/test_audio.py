"""support/audio.py: loudness and peaks of finished songs. tests/test_style.py reads sound files."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio.functional as AF

from config import UserError
from support.audio import BLOCK, FORMATS, limit, loudness_lufs, master, true_peaks, write_wave

RATE = 24000


def true_peak_db(wave):
    spectrum = np.fft.rfft(wave)
    return 20 * np.log10(np.abs(np.fft.irfft(spectrum, 8 * wave.shape[-1]) * 8).max())


@pytest.mark.parametrize("name", ["noise", "quiet", "loud", "bursts", "tone"])
def test_loudness_and_peaks(name):
    """-14 LUFS, true peaks held down: a plain gain would clip bursts.

    (Their worst, noise up to Nyquist: -0.7 dB.)
    """
    rng = torch.Generator().manual_seed(0)
    wave = 0.1 * torch.randn(3 * RATE, generator=rng)
    wave = {"noise": wave, "quiet": wave * 0.1, "loud": wave * 30,
            "bursts": wave * (1 + 20 * (torch.arange(len(wave)) % 6000 < 20)),
            "tone": torch.sin(torch.arange(3 * RATE) * 2 * torch.pi * 997 / RATE)}[name]
    out, _ = master(wave[None], RATE, len(wave))
    assert loudness_lufs(out, RATE) == pytest.approx(-14, abs=0.1)
    assert true_peak_db(out.numpy()) < -0.5 and out.shape == (1, len(wave))


def test_stereo_image_stays():
    """The original divides each channel by its own peak: a singer on the left moves to the middle."""
    rng = torch.Generator().manual_seed(0)
    wave = 0.1 * torch.randn(2, 3 * RATE, generator=rng) * torch.tensor([[1.0], [0.25]]) + 0.01
    out, _ = master(wave, RATE, wave.shape[1])
    left, right = out.square().mean(1).sqrt()
    assert (right / left).item() == pytest.approx(0.25, rel=0.02)
    assert out.mean(1).abs().max() < 1e-4                    # no offset is left
    assert loudness_lufs(out, RATE) == pytest.approx(-14, abs=0.1)


def test_loudness_is_that_of_the_song():
    """What the model makes after the song's end would set the song's loudness."""
    rng = torch.Generator().manual_seed(0)
    wave = 0.05 * torch.randn(1, 3 * RATE, generator=rng)
    loud_end = torch.cat([wave, 10 * wave], 1)
    out, _ = master(loud_end, RATE, 3 * RATE)
    assert loudness_lufs(out[:, :3 * RATE], RATE) == pytest.approx(-14, abs=0.1)


def test_loudness_of_a_known_tone():
    """BS.1770: a 997 Hz sine at full scale in one channel is -3.01 LKFS; torchaudio alone reads 0.23 low."""
    tone = torch.sin(torch.arange(3 * RATE) * 2 * torch.pi * 997 / RATE)[None]
    assert loudness_lufs(tone, RATE) == pytest.approx(-3.01, abs=0.08)
    assert loudness_lufs(tone.repeat(2, 1), RATE) == pytest.approx(0.0, abs=0.08)


@pytest.mark.parametrize("samples", [1, 100, 2000, 9599, 9600, RATE])
def test_short_clips_and_silence_are_finite(samples):
    """Loudness is undefined under 0.4 s and for silence; the original divides by it."""
    assert not master(torch.zeros(2, samples), RATE, samples)[0].any()
    noise = torch.randn(2, samples, generator=torch.Generator().manual_seed(0))
    out, _ = master(0.01 * noise, RATE, samples)
    assert out.isfinite().all() and out.shape == (2, samples) and out.abs().max() <= 0.9
    assert loudness_lufs(torch.zeros(1, 0), RATE) is None


def test_what_is_nearly_silent_stays_so():
    """An instrumental's residual noise must not be blown up to the loudness of a song."""
    noise = 1e-3 * torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    assert loudness_lufs(master(noise, RATE, RATE)[0], RATE) < -25


def test_limiter_leaves_quiet_parts_alone():
    wave = torch.zeros(1, 4000)
    wave[0, 2000] = 2.0
    wave[0, 100] = 0.5
    out = limit(wave, true_peaks(wave), 0.8)
    assert out[0, 100] == 0.5 and out.abs().max() <= 0.8 + 1e-5


@pytest.mark.parametrize("samples", [1, 15, 16, 17, 65536, 65537, 200_000])
def test_true_peaks_do_not_depend_on_the_parts(samples):
    """The interpolation's edges inside of a long song would be peaks of their own."""
    wave = torch.randn(2, samples, generator=torch.Generator().manual_seed(0)).double()
    fine = AF.resample(wave, 1, 8, lowpass_filter_width=64)[:, :8 * samples].abs()
    fine = fine.view(2, samples, 8).amax(2).maximum(wave.abs()).amax(0)
    fine = torch.nn.functional.pad(fine, (0, -samples % BLOCK)).view(-1, BLOCK).amax(1)
    peaks = true_peaks(wave)
    assert peaks.shape == fine.shape and (peaks - fine).min() > -1e-9
    assert (peaks - fine)[:-1].sum() < 1e-9                  # the last one sees a little beyond the end


@pytest.mark.parametrize("ending", FORMATS)
def test_a_disk_that_is_full(ending, capfd):
    """libsndfile's calls print a traceback each, 29 lines, before the error; or a song that lacks its end."""
    wave = 0.1 * torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError) as caught:
        write_wave(Path("/dev/full"), wave, RATE, Path("song").with_suffix(ending))
    assert str(caught.value) == f"song{ending}: cannot be written: No space left on device"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_song_that_is_no_sound(value, tmp_path):
    """Blamed on guidance alone, though a style's numbers were too large."""
    with pytest.raises(UserError, match="song.wav: .* not finite: the numbers of its style or of --guidance"):
        write_wave(tmp_path / "x", torch.full((1, 9), value), RATE, Path("song.wav"))
