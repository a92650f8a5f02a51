"""The neural voice that sings the training songs: phones at given times and pitch -> spectra -> sound.

Read `opened` (how a text-to-speech network takes durations and pitch from outside), `Singer` (how one voice
becomes many), then `phrase`. Source: hibari-tts 0.2.1, Apache-2.0, whose wheel holds the weights of
one American voice, distilled from Kokoro-82M, Apache-2.0, too. Frames are 12.5 ms, spectra have 601 bins to
12 kHz.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lyrics.pronounce import ipa
from phonemes import VOWELS

RATE, HOP, N_FFT = 24000, 300, 1200
FRAME_S = HOP / RATE
UNIT_S = 2 * FRAME_S                 # durations are whole multiples of it
LEAD_S = 0.075                       # its sounds are heard so much before their frames (by an aligner)
# The voice's letters for our IPA: one for a diphthong or an affricate, two for a vowel before r.
LETTERS = {"eɪ": "A", "aɪ": "I", "oʊ": "O", "aʊ": "W", "ɔɪ": "Y", "tʃ": "ʧ", "dʒ": "ʤ", "ɝ": "ɜɹ", "ɚ": "əɹ"}
VOWEL_S, CONSONANT_MAX_S = 0.4, 0.12             # longest that a sound is spoken; the rest is stretched
VOICED = {*VOWELS, *"mnŋlɹwj"}                    # first letters of phones that are always voiced
# Spoken after a phrase, never heard.
MORE = [(" ", 1, False), ("h", 3, False), ("ˈ", 0, False), ("ʌ", 8, True), (".", 4, False)]
NEPER = np.log(10) / 20                           # a decibel in units of a log magnitude
VOWEL_SIGNS = {*VOWELS, *"AIOWY"}
FALL = 0.8                                        # nepers
HZ = np.linspace(0, RATE / 2, 601)


@dataclass(frozen=True)
class Singer:
    """How the one voice is changed."""
    formants: float                  # the spectrum is stretched along frequency by this
    octave: float                    # the pitch that is sung, over the pitch that the voice reads
    low: float                       # lowest note, MIDI
    breath_db: float = 0.0           # level of the noise in voiced sounds
    bright_db: float = 0.0           # level at 3 kHz and above against that at 300 Hz and below
    strength: float = 1.0            # of vibrato


class Part(NamedTuple):
    """A stretch of a song: a phrase, or a breath."""
    first: int                       # frame of the song
    spectra: list[np.ndarray]        # lh, theta, ln, lr, phi: (601, n) each
    hz: np.ndarray                   # (n,) 0 where unvoiced
    note: np.ndarray                 # (n,) MIDI, everywhere

    def sound(self, rng: np.random.Generator) -> np.ndarray:
        """The wave (n * HOP,), which begins at frame `first`."""
        from hibari import dsp
        return dsp.synth(*self.spectra, self.hz.astype(np.float32), rng)

    def power(self) -> tuple[np.ndarray, np.ndarray]:
        """Harmonic and noise power (601, n) at each bin, in a Hz.

        A harmonic's amplitude is its magnitude over N/4. Overlap-added noise has the power of its bins over
        the window's 1.5 N, spread over 12 kHz.
        """
        lh, _, ln, lr, _ = (np.minimum(a, 7.0) for a in self.spectra)
        voiced = self.hz > 0
        harmonic = np.exp(2 * lh) / (N_FFT / 4) ** 2 / (2 * np.where(voiced, self.hz, 1)) * voiced
        return harmonic, (2 * np.exp(2 * ln) + np.exp(2 * lr)) / (1.5 * N_FFT * RATE / 2)


@functools.cache
def opened():
    """The voice's network with durations (`dur`, one number of UNIT_S for each letter) and pitch (`pitch`, Hz
    in frames, 0 where unvoiced) as inputs, and its alphabet. Inside, letters become durations, these prosody,
    and that spectra.
    """
    import hibari
    import onnx
    import onnxruntime
    graph = onnx.load(Path(hibari.__file__).parent / "assets" / "hibari.onnx")
    number, value = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
    graph.graph.input.extend([value("dur", number, ["L"]), value("pitch", number, [1, "F"])])
    for node in graph.graph.node:
        for i, name in enumerate(node.input):
            if name == "/Clip_output_0":
                node.input[i] = "dur"
            if name == "f0" and node.op_type == "Relu":
                node.input[i] = "pitch"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
    return session, hibari.Hibari().vocab


def speak(signs: list[str], units: list[int], sung: list[bool],
          pitch: Callable) -> tuple[list[np.ndarray], np.ndarray]:
    """Speak signs for so many units each.

    Args: sung, whether a sign is voiced whatever the voice thinks, which lets the ends of phrases creak;
        pitch, from frames to Hz.
    Returns: the five spectra (601, n) and the voicing (n,); the signs begin with frame 2, after a silent
        unit.
    """
    session, alphabet = opened()
    total = 2 * (sum(units) + 1)
    hz = pitch(np.arange(total)).astype(np.float32)
    feed = {"ids": np.array([[0, *(alphabet[sign] for sign in signs), 0]], np.int64),
            "speed": np.ones(1, np.float32), "dur": np.array([1, *units, 1], np.float32),
            "pitch": np.pad(hz, (0, 2), mode="edge")[None]}
    voiced = session.run(["f0"], feed)[0][0] > 60            # its own opinion for these durations
    voiced[:total] |= np.repeat([False, *sung], 2 * np.array([1, *units]))
    feed["pitch"] = np.where(voiced, feed["pitch"], 0)
    return [x[0] for x in session.run(["lh", "theta", "ln", "lr", "phi"], feed)], voiced


@dataclass
class Sound:
    """A phone of a phrase, seconds in the song; without a phone, a pause."""
    phone: str                       # ARPAbet, vowels with their stress
    start: float
    end: float
    turn: float = 0.0                # of a diphthong, where its second half begins


def spoken(sounds: list[Sound]) -> tuple[list[tuple[str, int, bool]], list[tuple[float, float]]]:
    """Signs, each with its units and whether it is always voiced, and the time map: pairs of a second of the
    song and a frame of the voice.

    A held vowel is spoken no longer than speech has it, and its middle is stretched: left to itself, the
    voice falls silent. Its transitions keep their pace.
    """
    signs, knots, at = [], [], 2.0
    for sound in sounds:
        chars, length = ipa(sound.phone) if sound.phone else "", sound.end - sound.start
        if not chars:
            own, longest = "," if length > 0.12 else " ", 0.3
        else:
            own = LETTERS.get(chars, chars)
            longest = VOWEL_S if sound.phone[-1].isdigit() else CONSONANT_MAX_S
        if sound.phone[-1:] in ("1", "2"):
            signs.append(("ˈˌ"[int(sound.phone[-1]) - 1], 0, False))
        count = max(len(own), round(min(length, longest) / UNIT_S))
        share = [count] if len(own) == 1 else [count - max(1, round(0.3 * count)), max(1, round(0.3 * count))]
        signs += [(sign, units, bool(chars) and chars[0] in VOICED) for sign, units in zip(own, share)]
        frames = 2.0 * count
        knots.append((sound.start, at))
        if chars and sound.phone[-1].isdigit() and length > frames * FRAME_S:
            if sound.turn:
                hold = sound.start + min(0.2 * frames * FRAME_S, 0.3 * (sound.turn - sound.start))
                knots += [(hold, at + 0.2 * frames), (sound.turn, at + 0.45 * frames)]
            else:
                edge = 0.35 * frames
                knots += [(sound.start + edge * FRAME_S, at + edge),
                          (sound.end - edge * FRAME_S, at + frames - edge)]
        at += frames
    # MORE keeps the phrase from ending the utterance, where the voice creaks and fades.
    return [*signs, *MORE], [*knots, (sounds[-1].end, at), (sounds[-1].end + 0.1, at + 4)]


def phrase(sounds: list[Sound], note: Callable, level: Callable, singer: Singer) -> Part:
    """Sing sounds that follow each other without gaps.

    Args: note and level, from seconds of the song to MIDI notes and to nepers; singer.
    """
    signs, knots = spoken(sounds)
    seconds, frames = np.array(knots).T

    def read(at: np.ndarray) -> np.ndarray:
        return 440 * 2 ** ((note(np.interp(at, frames, seconds)) - 69) / 12) / singer.octave
    found, voiced = speak(*zip(*signs), read)
    first = round((sounds[0].start - UNIT_S) / FRAME_S)
    times = np.arange(first, round((sounds[-1].end + 0.15) / FRAME_S)) * FRAME_S - LEAD_S
    at = np.interp(times, [sounds[0].start - UNIT_S, *seconds], [0, *frames]).clip(0, len(voiced) - 1.001)
    at, swell = sustained(at, found[0], signs)
    low, part, near = at.astype(int), (at % 1).astype(np.float32), np.round(at).astype(int)
    lh, ln, lr = (stretch(a[:, low] * (1 - part) + a[:, low + 1] * part, singer.formants) + level(times)
                  + swell for a in (found[0], found[2], found[3]))
    lh = lh + NEPER * singer.bright_db * np.clip(np.log10(np.maximum(HZ, 1) / 300), 0, 1)[:, None]
    ln = ln + NEPER * singer.breath_db * voiced[near]
    fade = np.log(np.clip((sounds[-1].end + 0.04 - times) / 0.08, 1e-6, 1))           # nothing after the end
    spectra = [lh + fade, found[1][:, near], ln + fade, lr + fade, found[4][:, near]]
    hz = np.where(voiced[near], 440 * 2 ** ((note(times) - 69) / 12), 0)
    return Part(first, [a.astype(np.float32) for a in spectra], hz, note(times))


def sustained(at: np.ndarray, lh: np.ndarray, signs: list) -> tuple[np.ndarray, np.ndarray]:
    """Vowels that do not die away: where the voice's frames `at` (n,) are taken from, and a gain (n,) in
    nepers.

    A vowel ends where the voice has let it fall by FALL, and what is left of the fall is made up for.
    """
    at, gain = at.copy(), np.zeros(len(at))
    level = np.log(np.exp(2 * lh[5:60]).sum(0)) / 2
    ends = 2 + 2 * np.cumsum([units for _, units, _ in signs])
    for (sign, units, _), end in zip(signs, ends):
        start = end - 2 * units
        here = (at >= start) & (at < end)
        if sign not in VOWEL_SIGNS or not here.any():
            continue
        own = level[start:end]
        last = np.flatnonzero(own > own.max() - FALL)[-1] + 1
        at[here] = start + (at[here] - start) * last / (end - start)
        after = here & (at > start + own.argmax())
        gain[after] = 0.6 * (own.max() - np.interp(at[after], np.arange(start, end), own))
    return at, gain


def breath(start: float, end: float, level_db: float, note: float) -> Part:
    """Air drawn in, from start to end, seconds of the song; note, the first one of the next phrase."""
    first = round(start / FRAME_S)
    x = (np.arange(first, round(end / FRAME_S)) - first + 0.5) / max(1, round(end / FRAME_S) - first)
    swell = np.log(np.clip(np.sin(np.pi * x ** 1.5), 1e-3, 1))
    shape = -0.5 * (np.log2(np.maximum(HZ, 50) / 1800) / 1.1) ** 2
    ln = (shape[:, None] + swell + NEPER * level_db + 2.0).astype(np.float32)
    nothing = np.full_like(ln, -20)
    return Part(first, [nothing, 0 * ln, ln, nothing, 0 * ln], np.zeros(len(x)), np.full(len(x), note))


def stretch(a: np.ndarray, by: float) -> np.ndarray:
    """Stretch spectra (601, n) along frequency."""
    at = np.clip(np.arange(len(a)) / by, 0, len(a) - 1.001)
    low, part = at.astype(int), (at % 1)[:, None]
    return a[low] * (1 - part) + a[low + 1] * part
