"""sung.py: a voice survives encoding and decoding, and is sung when, as loud and as high as latents say."""

import dataclasses
import functools
import math

import pytest
import torch
from conftest import BABY, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import sung
from config import CODEC, PRESETS, UserError
from support.audio import mono, read_wave
from sung import LogMel, SungCodec, SungModel, pulses, turns_before
from tools.suite import Peak
from vae import make_codec

CONFIG = PRESETS["baby"].codec
RATE, HOP, SHORT = CONFIG.sample_rate_hz, CONFIG.hop, CONFIG.hop // CONFIG.fold
PITCH_HZ = 220
quick = settings(max_examples=50, deadline=None)


def vowel(frames: int) -> torch.Tensor:
    """(1, 1, frames * HOP): harmonics of a wavering pitch under two formants, like a sung vowel."""
    t = torch.arange(frames * HOP) / RATE
    phase = torch.cumsum(2 * math.pi * PITCH_HZ / RATE * (1 + 0.01 * torch.sin(2 * math.pi * 5.5 * t)), 0)
    k = torch.arange(1.0, 40)[:, None]
    hz = k * PITCH_HZ
    formants = torch.exp(-((hz - 700) / 300) ** 2) + 0.6 * torch.exp(-((hz - 1200) / 400) ** 2)
    wave = ((0.05 + formants) / k * torch.sin(k * phase)).sum(0)
    return 0.2 * wave[None, None] / wave.abs().max()


def song(notes: torch.Tensor, seed: int = 0, loud: slice = slice(None), harmonic: bool = True) -> dict:
    """What latents are made of: powers (n, M) of harmonics, or of noise, in the `loud` frames; notes (n,)."""
    shape = torch.rand(CONFIG.mels, generator=torch.Generator().manual_seed(seed)) * 1e-5
    powers = torch.zeros(len(notes), CONFIG.mels)
    powers[loud] = shape
    parts = (powers, powers * 1e-3) if harmonic else (powers * 1e-3, powers)
    return dict(zip(("harmonic", "noise"), parts), note=notes, voiced=powers.sum(1) > 0)


def slide(frames: int) -> torch.Tensor:
    """(n,) MIDI notes that sweep over two octaves, twice a second."""
    return 57 + 12 * torch.sin(torch.arange(frames) * 4 * math.pi * SHORT / RATE)


def level(wave: torch.Tensor) -> torch.Tensor:
    """RMS of the short frames of wave (1, 1, N)."""
    return wave.view(-1, SHORT).square().mean(1).sqrt()


@pytest.fixture(scope="module")
def codec():
    """An untrained codec: it sounds as the bands of latents imply."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SungCodec(CONFIG, SungModel(CONFIG).eval().requires_grad_(False))


@pytest.fixture(scope="module")
def clear():
    """A codec whose decoder looks as far as it can and makes no noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SungModel(CONFIG).eval().requires_grad_(False)
        torch.nn.init.normal_(model.decoder.outward.weight, std=0.03)
    for block in model.decoder.blocks:
        block.gain.fill_(1)
    model.decoder.outward.bias[-(sung.N_FFT // 2 + 1):] = -40
    return SungCodec(CONFIG, model)


@pytest.fixture(scope="module")
def shipped():
    return make_codec(CONFIG, BABY / CODEC)


# A voice's numbers

@quick
@given(st.floats(24, 95), st.lists(st.floats(-0.15, 0.15), min_size=5, max_size=5))
def test_pitch_code(codec, note, errors):
    """A note that is moved by its code, or that a small error moves to another octave."""
    latents = codec.pack(**song(torch.full((4,), note)))[None]
    assert (codec.unpack(latents).note - note).abs().max() < 0.03
    latents[..., -5:] += torch.tensor(errors)
    assert (codec.unpack(latents).note - note).abs().max() < 0.13


@quick
@given(st.integers(0, 2 ** 32), st.floats(-12, 0), st.floats(-12, 0))
def test_pack_and_unpack(codec, seed, harmonic, noise):
    """Bands in another order, logarithms of something else, the two frames of a latent frame exchanged."""
    draw = functools.partial(torch.rand, generator=torch.Generator().manual_seed(seed))
    powers = [draw(6, CONFIG.mels) * 10 ** exponent for exponent in (harmonic, noise)]
    voiced = draw(6) < 0.5
    latents = codec.pack(*powers, torch.full((6,), 60.0), voiced)
    assert latents.shape == (3, PRESETS["baby"].model.mel_dim)
    v = codec.unpack(latents[None])
    total = (sum(powers) + CONFIG.floor ** 2).log() / 2
    assert torch.allclose(v.envelope[0], total, atol=1e-4) and torch.equal(v.voiced[0] > 0, voiced)
    bands = [power.unflatten(1, (CONFIG.ratios, -1)).sum(2) + CONFIG.floor ** 2 / 100 for power in powers]
    assert torch.allclose(v.ratio[0], ((bands[0] / bands[1]).log() / 2).clamp(-3, 3), atol=1e-4)


def test_notes_are_interpolated(codec):
    """A staircase instead of a slide: every 21 ms another pitch."""
    notes = torch.linspace(50, 54, 40)
    assert (codec.unpack(codec.pack(**song(notes))[None]).note[0, 1:-1] - notes[1:-1]).abs().max() < 0.04


def test_pitch_of_logits():
    """The mean of two far guesses; pauses that pull the pitch somewhere; a song without any voice."""
    logits = torch.full((6, sung.PITCHES), -20.0)
    logits[0, 40], logits[1, [60, 61]], logits[1, 100] = 0.0, 0.0, -1.0
    logits[2:5, 7], logits[5, 70] = 5.0, 0.0
    voiced = torch.tensor([True, True, False, False, False, True])
    note = sung.pitch_of(logits, voiced)
    want = sung.LOWEST + torch.tensor([40, 60.5, 62.875, 65.25, 67.625, 70]) / sung.PITCHES_A_NOTE
    assert torch.allclose(note, want, atol=1e-3)
    assert sung.pitch_of(logits, ~voiced & voiced).tolist() == [sung.NOTE_ORIGIN] * 6


def test_between():
    """Bands read at the wrong frequencies; values beyond the outer ones."""
    matrix = sung.between(torch.tensor([1.0, 3.0, 7.0]), 9)
    want = [5, 5, 4, 3, 3.5, 4, 4.5, 5, 5]
    assert torch.allclose(torch.tensor([5.0, 3.0, 5.0]) @ matrix, torch.tensor(want))


# A voice's sound

@pytest.mark.parametrize("hz, harmonics", [(240, 45), (100, 110), (1200, 9)])
def test_pulses(hz, harmonics):
    """Harmonics that are missing, louder than the others or above the highest; a sound without voice."""
    f, voiced = torch.full((1, 100), float(hz)), torch.ones(1, 100)
    wave = pulses(f, voiced, torch.zeros(1), 240, 24000)
    peaks = (torch.fft.rfft(wave[0]).abs() / 12000)[hz::hz]
    assert torch.allclose(peaks[:harmonics], torch.ones(harmonics), atol=0.01)
    spectrum = torch.fft.rfft(wave[0]).abs() / 12000
    spectrum[hz:harmonics * hz + 1:hz] = 0
    assert spectrum.max() < 0.01
    voiced[0, 50:] = 0
    assert not pulses(f, voiced, torch.zeros(1), 240, 24000)[0, 50 * 240:].any()


def test_a_pitch_goes_on_where_a_part_begins():
    """Another phase at the cut between two parts, of a pitch that moves: a click."""
    hz = 440 * 2 ** ((slide(200)[None] - 69) / 12)
    turns, voiced = turns_before(hz, SHORT, RATE), torch.ones(1, 200)
    whole = pulses(hz, voiced, torch.zeros(1), SHORT, RATE)
    for at in (1, 7, 60, 133):
        rest = pulses(hz[:, at:], voiced[:, at:], turns[:, at], SHORT, RATE)
        off = (rest - whole[:, at * SHORT:])[:, SHORT:].abs()
        assert off.max() < 1e-3 * whole.max()


@pytest.mark.parametrize("samples, frames", [(1, 1), (HOP, 1), (HOP + 1, 2), (10 * HOP, 10)])
def test_shapes(samples, frames, codec):
    """A song that loses its last frame, or whose latents do not fit the network."""
    latents = codec.encode(vowel(10)[..., :samples])
    assert latents.shape == (1, frames, PRESETS["baby"].model.mel_dim) and latents.dtype == torch.float32
    assert codec.decode(latents).shape == (1, 1, frames * HOP)


@pytest.mark.parametrize("harmonic", [True, False])
def test_sound_is_where_and_as_loud_as_latents_say(codec, harmonic):
    """An onset moved by a frame, harmonics or noise at another level, sound in pauses."""
    made = song(torch.full((80,), 57.0), loud=slice(30, 50), harmonic=harmonic)
    found = level(codec.decode(codec.pack(**made)[None]))
    power = (made["harmonic"] + made["noise"])[40].sum() * RATE / sung.N_FFT          # bins of so many Hz
    assert found[32:48].square().mean().item() == pytest.approx(power.item(), rel=0.15)
    assert found[30] > 0.4 * found[40] and found[49] > 0.4 * found[40]
    assert found[[28, 51]].max() < 0.3 * found[40]
    assert found[:26].max() < 0.1 * found[40] and found[54:].max() < 0.1 * found[40]


@pytest.mark.parametrize("note", [45.0, 57.0, 76.0])
def test_sung_notes(codec, note):
    """A voice on another note, an octave off, or hoarse."""
    wave = codec.decode(codec.pack(**song(torch.full((100,), note)))[None])[0, 0]
    power = torch.fft.rfft(wave * torch.hann_window(len(wave)), 8 * len(wave)).abs().square()
    bin_hz, hz = RATE / 8 / len(wave), 440 * 2 ** ((note - 69) / 12)
    near = power[round(0.8 * hz / bin_hz):round(1.2 * hz / bin_hz)]
    assert (near.argmax() + round(0.8 * hz / bin_hz)) * bin_hz == pytest.approx(hz, rel=0.004)
    off = (torch.arange(len(power)) * bin_hz / hz + 0.5) % 1 - 0.5             # from the nearest harmonic
    assert power[off.abs() < 0.2].sum() > 0.97 * power.sum()


def test_decode_is_deterministic_and_keeps_the_global_state(codec):
    """The same seed would sing another song; or decoding would change what is drawn after it."""
    latents = codec.pack(**song(slide(40)))[None]
    before = torch.get_rng_state()
    first = codec.decode(latents)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(5)
    assert torch.equal(codec.decode(latents), first)


def test_song_is_unchanged_by_its_batch_mates(codec):
    """Noise drawn for the batch: the second song would sound unlike the same song alone."""
    latents = torch.stack([codec.pack(**song(notes)) for notes in (slide(40).flip(0), slide(40))])
    both = codec.decode(latents)
    for i in range(2):
        assert (codec.decode(latents[i:i + 1]) - both[i:i + 1]).abs().max() < 1e-4


@pytest.mark.parametrize("part", [5, 37, 64])
def test_parts_are_not_heard(clear, part, monkeypatch):
    """Cuts between the parts that are decoded at once: frames without neighbours, a phase that jumps."""
    latents, parts = clear.pack(**song(slide(150)))[None], []
    whole = clear.decode(latents)
    monkeypatch.setattr(sung, "SPECTRA_AT_ONCE", part)
    cut = clear.decode(latents, lambda found: parts.extend(found) or found)
    assert len(parts) == -(-150 // part) and (cut - whole).abs().max() < 2e-4 * whole.abs().max()


@pytest.mark.parametrize("lead", [0, 4])
def test_a_part_that_is_decoded_again_is_in_phase(clear, lead):
    """After a span of another pitch, harmonics that are out of step with the song before would be heard."""
    notes = torch.full((160,), 60.3)
    old = clear.pack(**song(notes))[None]
    changed = torch.cat([torch.full((2 * lead,), 62.0), notes])
    changed[2 * lead + 60:2 * lead + 80] = 61.1              # frames 30 to 40 of the song before
    new, before = clear.pack(**song(changed))[None], clear.decode(old)
    spans = [(0, lead)] * (lead > 0) + [(lead + 30, lead + 40)]
    after, hz = clear.decode_again(new, (lead + 50, lead + 60), spans, clear.pitch(old), lead)
    there = before[..., 50 * HOP:60 * HOP]
    assert (after - there).abs().max() < 2e-3 * there.abs().max()
    out_of_step = clear.decode(new)[..., (lead + 50) * HOP:(lead + 60) * HOP]
    assert (out_of_step - there).abs().max() > 0.1 * there.abs().max()
    shift = 12 * (hz / clear.pitch(new)).log2().abs()
    assert shift.max() < 0.5 and shift[:, 2 * lead + 100:].max() < 1e-3
    same, _ = clear.decode_again(old, (20, 30), [(40, 50)], clear.pitch(old))
    assert (same - before[..., 20 * HOP:30 * HOP]).abs().max() < 1e-4 * before.abs().max()


def test_reach_of_the_decoder(clear):
    """Parts computed with fewer neighbours than a frame depends on, or with many more."""
    decoder, v = clear.model.decoder, clear.unpack(clear.pack(**song(slide(150)))[None])
    made = decoder(v)
    v.envelope[:, 75] += 1
    moved = sum((a - b).abs().amax((0, 2)) for a, b in zip(made, decoder(v))).nonzero().flatten()
    assert (moved - 75).abs().max() == decoder.reach - 4     # the rest is for overlapping frames


def test_memory(monkeypatch):
    """A long song that needs more than twice its own latents and sound."""
    config = dataclasses.replace(CONFIG, decoder_width=8, decoder_depth=1)
    codec = SungCodec(config, SungModel(config).requires_grad_(False))

    def most(frames: int) -> int:
        latents = codec.silence.expand(1, frames, -1).contiguous()
        with Peak() as peak:
            codec.decode(latents)
        return peak.most
    monkeypatch.setattr(sung, "SPECTRA_AT_ONCE", 64)
    assert (most(2048) - most(512)) / 1536 < 2 * 4 * (PRESETS["baby"].model.mel_dim + HOP)          # bytes


def test_size():
    """Weights that a repository cannot hold; a file that is larger than it says."""
    assert sum(p.numel() for p in SungModel(CONFIG).parameters()) <= 3_000_000
    assert (BABY / CODEC).stat().st_size < 6_000_000


# The spectrogram of the encoder and of the ear

@pytest.mark.parametrize("k", [2, 7, 18])
def test_click_is_seen_in_its_own_frame(k):
    """Frames that lag or lead the sound by a hop: words would start early or late."""
    spectrogram, wave = LogMel(CONFIG), torch.zeros(1, 20 * SHORT)
    wave[0, k * SHORT + SHORT // 2] = 1
    seen = (spectrogram(wave)[0] - spectrogram.silence).mean(1)
    reach = math.ceil(spectrogram.window / 2 / SHORT)
    assert seen.shape == (20,) and seen.argmax() == k
    assert all(seen[i].abs() < 1e-6 for i in range(20) if abs(i - k) > reach)
    assert seen[k - 1].item() == pytest.approx(seen[k + 1].item(), rel=1e-3)    # in the middle of it


# What is shipped

def test_silence_is_silent(shipped):
    """Noise between phrases, or padding frames that the network learns as a sound."""
    assert shipped.silence.shape == (PRESETS["baby"].model.mel_dim,)
    assert level(shipped.decode(shipped.silence.expand(1, 60, -1))).max() < 2e-4     # 48 dB below a song
    assert level(shipped.decode(shipped.encode(torch.zeros(1, 1, 30 * HOP)))).max() < 1e-3


def test_a_sung_song_survives(shipped):
    """A wrong gain, scale, floor or fold order; a hum or whisper instead of the notes."""
    wave = mono(*read_wave(ROOT / "examples" / "hello.mp3"), RATE)[None, None, :200 * HOP]
    latents = shipped.encode(wave)
    again = shipped.decode(latents)
    v, heard = shipped.unpack(latents), shipped.unpack(shipped.encode(again))
    voiced = (v.voiced > 0) & (heard.voiced > 0)
    assert 0.5 < (v.voiced > 0).float().mean() and voiced.sum() > 0.95 * (v.voiced > 0).sum()
    assert (heard.note - v.note)[voiced].abs().median() < 0.25                               # semitones
    assert (heard.envelope - v.envelope)[voiced].abs().mean() < 0.3                          # nepers
    both = [level(x).mean().item() for x in (wave, again)]
    assert both[1] == pytest.approx(both[0], rel=0.2)


# Its file

def test_files(tmp_path, codec):
    """A traceback, or a song of NaN, for a file that is missing, corrupt or another model's."""
    tensors = codec.model.state_dict()
    path, first = tmp_path / CODEC, "encoder.inward.weight"
    save_file({name: tensor.half() for name, tensor in tensors.items()}, path)
    loaded = make_codec(CONFIG, path).model
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded.state_dict()[first], tensors[first].half().float())
    wrong = {f"{first} is missing, expected (144, 80, 7)": {k: v for k, v in tensors.items() if k != first},
             f"{first} (3,), expected (144, 80, 7)": tensors | {first: torch.zeros(3)},
             "x (2,), expected none": tensors | {"x": torch.zeros(2)},
             f"{first} is not finite": tensors | {first: tensors[first] / 0}}
    for reason, content in wrong.items():
        save_file(content, path)
        with pytest.raises(UserError) as caught:
            make_codec(CONFIG, path)
        assert str(caught.value) == f"{path}: not this codec's weights: {reason}"
    for content in (b"", b"junk" * 99, (BABY / CODEC).read_bytes()[:-200]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{CODEC}: not this codec's weights: "):
            make_codec(CONFIG, path)
    with pytest.raises(UserError, match="none.safetensors: not this codec's weights: No such file"):
        make_codec(CONFIG, tmp_path / "none.safetensors")


@pytest.mark.filterwarnings("ignore:At least one mel filterbank:UserWarning")
def test_bands_that_are_too_narrow(tmp_path):
    """A config that passes, with bands between which no frequency lies: they divide by 0."""
    narrow = dataclasses.replace(CONFIG, mels=512, encoder_width=8, encoder_depth=1, decoder_width=8,
                                 decoder_depth=1)
    save_file(SungModel(narrow).state_dict(), tmp_path / CODEC)
    with pytest.raises(UserError, match="decoder.width is not finite"):
        make_codec(narrow, tmp_path / CODEC)
