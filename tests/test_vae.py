"""vae.py: where a latent frame stands in time, and that a voice survives the way there and back."""

import dataclasses
import math

import pytest
import torch

from config import PRESETS, UserError
from vae import make_codec

CONFIG = PRESETS["baby"].codec
RATE, HOP = CONFIG.sample_rate_hz, CONFIG.hop
PITCH_HZ = 220


@pytest.fixture(scope="module")
def codec():
    return make_codec(CONFIG)


def vowel(frames: int) -> torch.Tensor:
    """(1, frames * HOP): harmonics of a wavering pitch under two formants, like a sung vowel."""
    t = torch.arange(frames * HOP) / RATE
    phase = torch.cumsum(2 * math.pi * PITCH_HZ / RATE * (1 + 0.01 * torch.sin(2 * math.pi * 5.5 * t)), 0)
    k = torch.arange(1.0, 40)[:, None]
    hz = k * PITCH_HZ
    formants = torch.exp(-((hz - 700) / 300) ** 2) + 0.6 * torch.exp(-((hz - 1200) / 400) ** 2)
    wave = ((0.05 + formants) / k * torch.sin(k * phase)).sum(0)
    return 0.5 * wave[None] / wave.abs().max()


def log_mel(codec, latents):
    return latents * CONFIG.log_std + CONFIG.log_mean


@pytest.mark.parametrize("samples, frames", [(1, 1), (HOP, 1), (HOP + 1, 2), (10 * HOP, 10)])
def test_shapes(samples, frames, codec):
    """A song that loses its last frame, or whose latents do not fit the network."""
    latents = codec.encode(vowel(10)[:, :samples])
    assert latents.shape == (1, frames, PRESETS["baby"].model.mel_dim) and latents.dtype == torch.float32
    assert codec.decode(latents).shape == (1, frames * HOP)


@pytest.mark.parametrize("k", [1, 7, 18])
def test_click_is_seen_in_its_own_frame(k, codec):
    """Latents that lag or lead the sound by a hop: words would start early or late."""
    wave = torch.zeros(1, 20 * HOP)
    wave[0, k * HOP + HOP // 2] = 1
    seen = (codec.encode(wave) - codec.silence).mean(2)[0]
    reach = math.ceil(CONFIG.window / 2 / HOP)
    assert seen.argmax() == k
    assert all(seen[i].abs() < 1e-6 for i in range(20) if abs(i - k) > reach)
    assert seen[k - 1].item() == pytest.approx(seen[k + 1].item(), rel=1e-3)    # in the middle of it


def test_tone_stays_where_it_was(codec):
    """An onset moved by the padding of either direction, or smeared over neighbouring frames."""
    wave = torch.zeros(1, 40 * HOP)
    wave[:, 15 * HOP:25 * HOP] = vowel(10)
    latents = codec.encode(wave)
    loud = (latents - codec.silence).amax(2)[0] > 1e-3
    assert loud.nonzero().flatten().tolist() == list(range(14, 26))
    level = codec.decode(latents).view(40, HOP).pow(2).mean(1).sqrt()
    assert level[15:25].min() > 0.8 * level[16:24].mean()
    assert level[[14, 25]].max() < 0.3 * level[16:24].mean()
    assert level[:13].max() < 1e-3 * level.max() and level[27:].max() < 1e-3 * level.max()


def test_vowel_survives(codec):
    """A wrong gain, mel scale, floor or fold order; a hum or whisper instead of the note."""
    wave = vowel(48)
    latents = codec.encode(wave)
    again = codec.decode(latents)
    off = (log_mel(codec, codec.encode(again)) - log_mel(codec, latents))[:, 2:-2].abs()
    # measured: median 0.09, mean 0.38 (natural log); half the gain would give 0.69 and 0.71
    assert off.median() < 0.15 and off.mean() < 0.5
    part = again[0, 8 * HOP:24 * HOP]
    likeness = torch.fft.irfft(torch.fft.rfft(part, 2 * len(part)).abs() ** 2)
    shortest = RATE // 400
    period = shortest + likeness[shortest:RATE // 120].argmax().item()
    assert RATE / period == pytest.approx(PITCH_HZ, rel=0.03)


def test_silence_is_silent(codec):
    """Noise between phrases, or padding frames that the network learns as a sound."""
    assert codec.silence.shape == (PRESETS["baby"].model.mel_dim,)
    assert torch.allclose(codec.encode(torch.zeros(2, 5 * HOP)), codec.silence.expand(2, 5, -1), atol=1e-6)
    assert codec.decode(codec.silence.expand(1, 30, -1)).abs().max() < 1e-6


def test_decode_is_deterministic_and_keeps_the_global_state(codec):
    """The same seed would sing another song; or decoding would change what is drawn after it."""
    latents = codec.encode(vowel(6))
    before = torch.get_rng_state()
    first = codec.decode(latents)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(codec.decode(latents), first)


def test_song_is_unchanged_by_its_batch_mates(codec):
    """Starting phases drawn for the batch: the second song would sound unlike the same song alone."""
    latents = codec.encode(torch.cat([vowel(6).flip(1), vowel(6)]))
    both = codec.decode(latents)
    for i in range(2):
        assert (codec.decode(latents[i:i + 1]) - both[i:i + 1]).abs().max() < 1e-4


def test_unknown_codec():
    with pytest.raises(UserError, match="codec wav: expected mel"):
        make_codec(dataclasses.replace(CONFIG, kind="wav"))
