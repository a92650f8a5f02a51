"""How well finished songs sing what was asked of them, and when: `python evaluate.py FOLDER`.

Read `Recogniser` (what listens), `measures` (one song), `METRICS` (what is counted over songs), `summary`
(with intervals, or between two models), `scorer_of` (one number for a song, to choose by), then `main`.
Axes: W channels, N samples, T frames of the recogniser, C its classes, E width of an embedding.
"""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import json
import math
import os
import re
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio.functional as AF
from torch import Tensor

import align
import formats
from audio import READABLE, loudness_lufs, mono, read_wave
from baby.ear import PER_S, RATE, load_ear
from cli import find, parse, pick_device, read_json, replacing, run
from config import PHONEMIZER, READ_ERRORS, EvaluateConfig, SampleConfig, UserError
from hub import encoder_folders, sha256
from lyrics import HELD, Word
from manifest import FOLDERS, read_manifest, song_of
from phonemes import CONSONANT_S, VOWELS, load_phonemizer
from spoken import spoken
from style import RATE_HZ, SHORTEST_S, Crop, StyleEncoder, style_vector, weighted

EAR, TEMPLATE = Path("weights/baby/ear.safetensors"), Path(__file__).with_name("evaluate.html")
BLANK = 0
SWITCH = 4.0            # of the small ear; on its training songs 3 to 8 do about as well
OTHER = 3.0             # nats a frame that it costs to hear something beside the asked words
ABSENT = 2.0            # nats by which a missing word's sounds are less likely than what is heard there
MISSING_S = 1.0         # what counts as the error of a missing word
GRACE_S = 0.05          # before the first and after the last word, in which sound is no mistake
LOUD_DB, SILENT_DB, FULL_SCALE = -35.0, -60.0, 0.999
LEAST_LUFS = -70.0      # of silence; BS.1770 looks no lower
DRAWS = 1000            # of songs, for an interval
RANKED_S = 0.5          # a word that is later than this, or missing, counts so much in the score "timing"


# What listens

@dataclass(frozen=True)
class Recogniser:
    """A CTC model with all that is needed to compare what it hears with words. Class 0 is its blank."""
    name: str
    sha256: str
    labels: list[str]                                        # of its classes; align.BAR stands between words
    voice: Callable[[Tensor, int], tuple[Tensor, int]]       # wave (W, N), rate -> what it hears (N,), rate
    emissions: Callable[[Tensor, int], tuple[Tensor, float]]     # that -> log p (T, C), frames a second
    spell: Callable[[Word], str]                             # a word in its labels
    say: Callable[[str], str]                                # the IPA of labels between two bars
    switch: float                        # nats that it costs to hear something else than in the frame before
    embed: Callable[[Tensor, int], Tensor] | None = None     # wave (W, N), rate -> (pieces, E)


@functools.cache
def phonemizer():
    """The embedded model's, for words that come without phonemes."""
    return load_phonemizer(find(Path("weights/baby") / PHONEMIZER))


def sounds_of(word: Word) -> str:
    """A word's IPA without marks."""
    return "".join(c for c in word.phoneme or phonemizer()(word.word) if c in VOWELS or c in CONSONANT_S)


def small_ear(path: Path = EAR) -> Recogniser:
    """The embedded model's (baby/ear.py), which spells in IPA. Raises: UserError if it is broken."""
    ear = load_ear(find(path))

    def voice(wave: Tensor, rate_hz: int) -> tuple[Tensor, int]:
        return mono(wave, rate_hz, RATE), RATE

    def emissions(wave: Tensor, rate_hz: int) -> tuple[Tensor, float]:
        return ear(ear.mel(wave))[0], PER_S

    def embed(wave: Tensor, rate_hz: int) -> Tensor:
        features = ear.features(ear.mel(mono(wave, rate_hz, RATE)))[0]                    # (T, E)
        return torch.stack([piece.mean(0) for piece in features.split(round(PER_S))])     # of a second each

    return Recogniser("ear", sha256(find(path)), ear.classes, voice, emissions, sounds_of,
                      lambda heard: heard, SWITCH, embed)


def wav2vec2(device: torch.device, separate: bool, offline: bool) -> Recogniser:
    """torchaudio's WAV2VEC2_ASR_BASE_960H, which spells in letters. Raises: as align.fetch."""
    source = align.LISTENERS["wav2vec2"]
    model = align.fetch(source, device, offline)

    def voice(wave: Tensor, rate_hz: int) -> tuple[Tensor, int]:
        if separate:
            wave, rate_hz = align.voice_of(wave, rate_hz, device, offline)
        wave = mono(wave, rate_hz, source.bundle.sample_rate)
        hiss = 1e-5 * torch.randn(len(wave), generator=torch.Generator().manual_seed(0))
        return wave + hiss, source.bundle.sample_rate        # which silence would be divided by

    def emissions(wave: Tensor, rate_hz: int) -> tuple[Tensor, float]:
        heard, per_s = align.emissions(wave, rate_hz, model, device)
        return heard.log_softmax(-1), per_s

    labels = [label.lower() for label in source.bundle.get_labels()]
    return Recogniser("wav2vec2", sha256(source.path), labels, voice, emissions,
                      lambda word: "".join(spoken(word.word.replace(HELD, ""))), phonemizer(), 0.0)


def recogniser_of(cfg: EvaluateConfig) -> Recogniser:
    """The one that --recogniser names. Raises: UserError for an unknown one."""
    makers = {"ear": small_ear,
              "wav2vec2": lambda: wav2vec2(pick_device(cfg.device), cfg.separate, cfg.offline)}
    if cfg.recogniser not in makers:
        raise UserError(f"--recogniser {cfg.recogniser}: expected {' or '.join(makers)}")
    return makers[cfg.recogniser]()


# One song

def measures(wave: Tensor, rate_hz: int, record: dict, recogniser: Recogniser) -> dict:
    """All that is measured of one song.

    Args: wave (W, N) at rate_hz; record, its account: "word" with times and, if they are known, phonemes; its
        duration in "settings".
    Returns: "words", what became of each that can be read; "heard"; word_errors of word_count, sound_errors
        of sound_count; what `sound_of` and `beside` find; a number for each of METRICS. All are finite.
    Raises: one of READ_ERRORS for an account that is none.
    """
    words = [Word(w["word"], w["start"], w["end"], w.get("phoneme") or None) for w in record["word"]]
    if not all(word.timed for word in words):
        raise ValueError("a word has no times; expected those that were asked for")
    words.sort(key=lambda word: word.start)
    voice, voice_hz = recogniser.voice(wave, rate_hz)
    log_p, per_s = recogniser.emissions(voice, voice_hz)                                  # (T, C)
    heard = "".join(recogniser.labels[i] for i in likeliest(log_p, recogniser.switch)).split(align.BAR)
    row = compared(words, heard, recogniser)
    labels = {label: i for i, label in enumerate(recogniser.labels) if i != BLANK}
    tokens = [[labels[c] for c in recogniser.spell(word) if c in labels] for word in words]
    size = max(1, int(voice_hz / per_s))
    power = F.pad(voice, (0, max(0, size - len(voice)))).unfold(0, size, size).square().mean(1)
    spans = align.hold(find_words(log_p, tokens, labels.get(align.BAR, BLANK)), power,
                       round(align.HOLD_S * per_s))
    row["words"] = [about | {"found": span and [round(span.start / per_s, 4), round(span.end / per_s, 4)]}
                    for about, span, own in zip(row["words"], spans, tokens) if own]
    length_s = wave.shape[1] / rate_hz
    wanted_s = record.get("settings", {}).get("duration") or length_s
    row |= {"length_error_s": abs(length_s - wanted_s)}
    row |= sound_of(wave, rate_hz) | beside(voice, voice_hz, words)
    return row | {name: metric.total(metric.values(row)) for name, metric in METRICS.items()}


def likeliest(log_p: Tensor, switch: float) -> list[int]:
    """The classes of the likeliest path through log_p (T, C), each run of one once, without blanks.

    Going from one class to another costs `switch`: of a network that names each frame by itself, this takes
    the flicker; 0 is CTC's greedy path.
    """
    best, came = log_p[0], []
    for frame in log_p[1:]:
        top, other = best.max(0)
        stays = best >= top - switch
        came.append(torch.where(stays, torch.arange(len(best)), other))
        best = torch.where(stays, best, top - switch) + frame
    path = [int(best.argmax())]
    for last in reversed(came):
        path.append(int(last[path[-1]]))
    return [i for i in torch.tensor(path[::-1]).unique_consecutive().tolist() if i != BLANK]


def compared(words: list[Word], heard: list[str], recogniser: Recogniser) -> dict:
    """Errors of what was heard: a list of words, or, of a recogniser without bars, one text of sounds.

    Sounds are IPA on both sides; the same one twice in a row counts once, for who sings does not repeat it.
    """
    asked = [(c, i) for i, word in enumerate(words) for c in sounds_of(word)]
    asked = [(c, i) for k, (c, i) in enumerate(asked) if not k or asked[k - 1][0] != c]
    said = re.sub(r"(.)\1+", r"\1", "".join(recogniser.say(text) for text in heard if text))
    places = misheard([c for c, _ in asked], said)
    about = [{"word": w.word, "start": w.start, "end": w.end, "sounds": 0, "errors": 0} for w in words]
    for (_, i), errors in zip(asked, places[1:]):
        about[i]["sounds"] += 1
        about[i]["errors"] += errors
    word_count = sum(word["sounds"] > 0 for word in about)
    wrong = sum(word["errors"] > 0 for word in about)
    if align.BAR in recogniser.labels:                       # it hears words itself
        written = [text for word in words for text in spoken(word.word.replace(HELD, ""))]
        word_count, wrong = len(written), AF.edit_distance(written, [text for text in heard if text])
    return {"words": about, "heard": " ".join(heard), "word_errors": wrong, "word_count": word_count,
            "sound_errors": sum(places), "sound_count": len(asked)}


def misheard(asked: Sequence[str], heard: Sequence[str]) -> list[int]:
    """Errors at the start and behind it at each of `asked` (n + 1,), by the shortest edit; they sum up to it.

    What was heard too much counts where it follows.
    """
    cost = np.zeros((len(asked) + 1, len(heard) + 1), int)
    cost[0], cost[:, 0] = np.arange(len(heard) + 1), np.arange(len(asked) + 1)
    for i, a in enumerate(asked, 1):
        for j, b in enumerate(heard, 1):
            cost[i, j] = min(cost[i - 1, j - 1] + (a != b), cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    errors, i, j = [0] * (len(asked) + 1), len(asked), len(heard)
    while i or j:
        if i and j and asked[i - 1] == heard[j - 1]:
            i, j = i - 1, j - 1
            continue
        errors[i] += 1
        if j and cost[i, j] == cost[i, j - 1] + 1:           # first, so that it counts where all is wrong
            j -= 1
        elif j and i and cost[i, j] == cost[i - 1, j - 1] + 1:
            i, j = i - 1, j - 1
        else:
            i -= 1
    return errors


def find_words(log_p: Tensor, tokens: list[list[int]], bar: int) -> list[align.Span | None]:
    """Where words, each a list of classes, are in log_p (T, C); None for those that are not there.

    All sounds are laid on the likeliest path (CTC). What is sung beside them, or instead, costs OTHER a
    frame. A word is missing if its sounds are by ABSENT less likely, on average, than what is likeliest
    there: it is left out, and the others are laid again, for it may have taken its neighbours' place; of
    neighbours the less likely one is left out first. `bar`, the class between words, is as good as a blank.
    """
    best, spans = log_p.amax(-1), [None] * len(tokens)                                    # (T,)
    flat = [(token, i) for i, own in enumerate(tokens) for token in own]
    if not flat or len(flat) + sum(a == b for (a, _), (b, _) in zip(flat, flat[1:])) > len(log_p):
        return spans
    lenient = log_p.clone()
    lenient[:, BLANK] = log_p[:, BLANK].maximum(log_p[:, bar]).maximum(best - OTHER)
    path, scores = AF.forced_align(lenient[None], torch.tensor([[token for token, _ in flat]]), blank=BLANK)
    runs = {}
    for letter, (_, i) in zip(AF.merge_tokens(path[0], scores[0] - best, BLANK), flat, strict=True):
        runs.setdefault(i, []).append(letter)
    margins = [sum(letter.score for letter in own) / len(own) for own in runs.values()]
    gone = {i for k, i in enumerate(runs) if margins[k] <= min(-ABSENT, *margins[max(0, k - 1):k + 2])}
    if gone:
        return find_words(log_p, [[] if i in gone else own for i, own in enumerate(tokens)], bar)
    for margin, (i, own) in zip(margins, runs.items()):
        spans[i] = align.Span(own[0].start, own[-1].end, margin)
    return spans


def sound_of(wave: Tensor, rate_hz: int) -> dict[str, float]:
    """Loudness; shares of samples at full scale, of silent 10 ms, of power that is not in the middle."""
    loudness, total = loudness_lufs(wave, rate_hz), wave.square().sum().item()
    middle = len(wave) * wave.mean(0).square().sum().item()
    quiet = blocks(wave, rate_hz).clamp_min(1e-12).log10() * 10 < SILENT_DB
    return {"loudness_lufs": max(LEAST_LUFS if loudness is None else loudness, LEAST_LUFS),
            "clipped": (wave.abs() >= FULL_SCALE).double().mean().item(),
            "silent": quiet.double().mean().item(),
            "stereo_width": max(0.0, 1 - middle / total) if total else 0.0}


def blocks(wave: Tensor, rate_hz: int) -> Tensor:
    """Mean power of each 10 ms of wave (W, N)."""
    size = max(1, rate_hz // 100)
    return F.pad(wave, (0, -wave.shape[1] % size)).unfold(1, size, size).square().mean((0, 2))


def beside(voice: Tensor, rate_hz: int, words: list[Word]) -> dict[str, float]:
    """Seconds of sound before the first and after the last word: at LOUD_DB to the voice's loudest parts."""
    power = blocks(voice[None], rate_hz)
    loud = power > max(power.quantile(0.95).item() * 10 ** (LOUD_DB / 10), 10 ** (SILENT_DB / 10))
    if not words:
        return {"before_s": 0.0, "after_s": 0.0}
    first, last = words[0].start - GRACE_S, max(word.end for word in words) + GRACE_S
    return {"before_s": loud[:max(0, int(100 * first))].sum().item() / 100,
            "after_s": loud[math.ceil(100 * last):].sum().item() / 100}


# Many songs

class Metric(NamedTuple):
    """What is counted: a song's values, and the number that values of any songs make."""
    values: Callable[[dict], list]
    total: Callable[[Sequence], float]
    shown: str                           # as a format


def ratio(pairs: Sequence[tuple[int, int]]) -> float:
    """Of pairs (wrong, all), the share that is wrong; what is wrong where nothing was asked counts as one."""
    wrong, whole = np.sum(pairs, 0)
    return float(wrong / max(1, whole))


def total(how: Callable, *args: float) -> Callable[[Sequence], float]:
    """A number that is 0 for no values at all."""
    return lambda values: float(how(values, *args)) if len(values) else 0.0


def off_s(word: dict, side: int = 0) -> float:
    """By how much a word begins (side 0) or ends (1) beside the asked time; MISSING_S if it is missing."""
    return abs(word["found"][side] - word[("start", "end")[side]]) if word["found"] else MISSING_S


def onsets(row: dict) -> list[float]:
    return [off_s(word) for word in row["words"]]


def offsets(row: dict) -> list[float]:
    return [off_s(word, 1) for word in row["words"]]


METRICS = {
    "word_error_rate": Metric(lambda row: [(row["word_errors"], row["word_count"])], ratio, "{:.1%}"),
    "phoneme_error_rate": Metric(lambda row: [(row["sound_errors"], row["sound_count"])], ratio, "{:.1%}"),
    "missing": Metric(lambda row: [word["found"] is None for word in row["words"]], total(np.mean), "{:.1%}"),
    "onset_s": Metric(onsets, total(np.median), "{:.3f}"),
    "onset_90_s": Metric(onsets, total(np.quantile, 0.9), "{:.3f}"),
    "within_50_ms": Metric(lambda row: [e <= 0.05 for e in onsets(row)], total(np.mean), "{:.1%}"),
    "within_100_ms": Metric(lambda row: [e <= 0.1 for e in onsets(row)], total(np.mean), "{:.1%}"),
    "late_s": Metric(lambda row: [w["found"][0] - w["start"] for w in row["words"] if w["found"]],
                     total(np.median), "{:+.3f}"),
    "offset_s": Metric(offsets, total(np.median), "{:.3f}"),
    "offset_90_s": Metric(offsets, total(np.quantile, 0.9), "{:.3f}"),
    **{name: Metric(lambda row, name=name: [row[name]], total(np.mean), shown) for name, shown in (
        ("before_s", "{:.2f}"), ("after_s", "{:.2f}"), ("length_error_s", "{:.2f}"), ("clipped", "{:.2%}"),
        ("loudness_lufs", "{:.1f}"), ("silent", "{:.1%}"), ("stereo_width", "{:.2f}"))},
}


def metrics_of(rows: list[dict]) -> dict[str, Metric]:
    """METRICS, and one for each of the scores that the songs have."""
    return METRICS | {name: Metric(lambda row, name=name: [row["scores"][name]], total(np.mean), "{:.3f}")
                      for name in (rows[0]["scores"] if rows else ())}


def summary(rows: list[dict], others: list[dict] = (), seed: int = 0) -> dict[str, dict[str, float]]:
    """For each metric its value over all songs, and the 95 % interval of it, by drawing songs anew.

    Args: rows as `evaluated` makes them, without failed ones; others, rows of the same songs in the same
        order: then the values are differences, rows less others, and each draw takes the same songs of both.
    """
    rng, made = torch.Generator().manual_seed(seed), {}
    draws = torch.randint(max(1, len(rows)), (DRAWS, len(rows)), generator=rng).tolist()
    for name, metric in metrics_of(rows).items() if rows else ():
        sides = [[np.array(metric.values(row), float) for row in side] for side in (rows, others) if side]
        drawn = [value_of(metric, sides, songs) for songs in draws]
        made[name] = {"value": value_of(metric, sides, range(len(rows))),
                      "low": float(np.quantile(drawn, 0.025)), "high": float(np.quantile(drawn, 0.975))}
    return made


def value_of(metric: Metric, sides: list[list[np.ndarray]], songs: Sequence[int]) -> float:
    """A metric over some songs, or, of two sides, the difference."""
    first, *second = (metric.total(np.concatenate([side[i] for i in songs])) for side in sides)
    return first - sum(second)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Frechet distance between two sets of embeddings (n, E), as normal distributions."""
    sides = [x for set_of in (ours.double(), theirs.double())
             for x in (set_of.mean(0), torch.cov(set_of.T, correction=0))]
    return AF.frechet_distance(*sides).item()


def table(rows: list[dict], totals: dict[str, dict[str, float]]) -> str:
    """A line for each song, then the totals with their intervals."""
    shown = {"word_error_rate": "WER", "phoneme_error_rate": "PER", "missing": "missing",
             "onset_s": "onset s", "onset_90_s": "90 %", "within_50_ms": "<50 ms",
             "within_100_ms": "<100 ms", "offset_s": "end s"}
    width = max([4, *(len(row["id"]) for row in rows)])
    lines = [f"{'song':{width}}  words" + "".join(f"{head:>9}" for head in shown.values())]
    for row in rows:
        cells = "  " + row["error"] if "error" in row else f"{len(row['words']):7}" + "".join(
            f"{METRICS[name].shown.format(row[name]):>9}" for name in shown)
        lines.append(f"{row['id']:{width}}{cells}")
    good = [row for row in rows if "error" not in row]
    words = sum(len(row["words"]) for row in good)
    lines += ["", f"{len(good)} of {len(rows)} songs, {words} words; behind each total its 95 % interval"]
    return "\n".join(lines + listed(totals, good))


def listed(totals: dict[str, dict[str, float]], rows: list[dict]) -> list[str]:
    """A line for each total."""
    shown = {name: metric.shown.format for name, metric in metrics_of(rows).items()}
    return [f"  {name:20}{shown[name](t['value']):>9}   {shown[name](t['low'])} to {shown[name](t['high'])}"
            for name, t in totals.items()]


# One number for a song, to choose by

def scorer_of(text: str, cfg: EvaluateConfig | None = None, recogniser: Recogniser | None = None
              ) -> Callable[[Path, dict], float]:
    """A function from a song's file and its account to a number; higher is better.

    Args: text, NAME[:WEIGHT], or several with commas, which are summed: phonemes, 1 less the phoneme error
        rate; timing, less the mean over words of the onset error in s, half a second at most and for a
        missing word; style, the cosine of MuQ-MuLan's vectors of song and style; audiobox, the mean of
        audiobox_aesthetics' four axes; songeval, that of SongEval's five; or MODULE:FUNCTION, your own.
    Raises: UserError for an unknown name, and for one whose library is not installed; so does the function
        for a song that it cannot read, and for a number that is not finite.
    """
    cfg = cfg or EvaluateConfig(songs=Path())
    parts = [weighted(part.strip()) for part in text.split(",")]
    heard = {name: HEARD[name] for name, _ in parts if name in HEARD}
    if heard and recogniser is None:
        recogniser = recogniser_of(cfg)
    own = {name: outside_scorer(name, cfg) for name, _ in parts if name not in HEARD}

    def score(path: Path, record: dict) -> float:
        try:
            row = measures(*read_wave(path), record, recogniser) if heard else {}
            value = sum(weight * float(heard[name](row) if name in heard else own[name](path, record))
                        for name, weight in parts)
        except UserError:
            raise
        except READ_ERRORS as e:
            raise UserError(f"{path}: --scorer {text}: {type(e).__name__}: "
                            f"{' '.join(str(e).split())[:200]}") from None
        if not math.isfinite(value):
            raise UserError(f"{path}: --scorer {text} is {value}; expected a finite number")
        return value

    return score


HEARD = {"phonemes": lambda row: 1 - row["phoneme_error_rate"],
         "timing": lambda row: -total(np.mean)([min(e, RANKED_S) for e in onsets(row)])}


def outside_scorer(name: str, cfg: EvaluateConfig) -> Callable[[Path, dict], float]:
    """A scorer that is not made from `measures`. Raises: UserError."""
    try:
        if name == "style":
            return style_scorer(cfg)
        if name == "audiobox":
            predictor = importlib.import_module("audiobox_aesthetics.infer").initialize_predictor()
            return lambda path, record: np.mean([*predictor.forward([{"path": str(path)}])[0].values()])
        if name == "songeval":
            songeval = importlib.import_module("songeval")
            return lambda path, record: np.mean([*songeval.evaluate_song(str(path)).values()])
        module, colon, function = name.partition(":")
        if colon:
            sys.path.append(os.getcwd())                     # where it may lie
            own = getattr(importlib.import_module(module), function)
            if callable(own):
                return own
            raise UserError(f"--scorer {name}: is {own!r}; expected a function")
    except UserError:
        raise
    except Exception as e:                                   # of anybody's module
        raise UserError(f"--scorer {name}: {type(e).__name__}: {' '.join(str(e).split())[:200]}") from None
    known = ", ".join([*HEARD, "style", "audiobox", "songeval"])
    raise UserError(f"--scorer {name}: expected {known} or MODULE:FUNCTION")


def style_scorer(cfg: EvaluateConfig) -> Callable[[Path, dict], float]:
    """The cosine between MuQ-MuLan's vector of a song and the style that it was asked to have."""
    places = encoder_folders(SampleConfig(style_encoder=cfg.style_encoder, offline=cfg.offline))
    encoder = StyleEncoder(*places, pick_device(cfg.device))

    def score(path: Path, record: dict) -> float:
        wave = mono(*read_wave(path), RATE_HZ)
        wave = F.pad(wave, (0, max(0, math.ceil(SHORTEST_S * RATE_HZ) - len(wave))))
        wanted, settings = torch.tensor(record.get("style", [])), record.get("settings", {})
        if wanted.shape != (encoder.width,):                 # no account, or a model with other styles
            wanted = style_vector(tuple(settings.get("style") or ()), tuple(settings.get("style_text") or ()),
                                  Crop(0.0, SampleConfig.num_style_secs, None), None, encoder.width,
                                  lambda: encoder)
        return F.cosine_similarity(encoder.audio(wave), wanted, 0).item()

    return score


# The command

def songs_in(folder: Path, manifest: Path | None) -> Iterator[tuple[str, Path, Callable[[], dict]]]:
    """The songs of a folder: id, sound file, and a function that reads what was asked of it.

    Candidates of sample.py --best-of are none: the best of them is there under the song's own name.
    """
    places = [place for place in (folder, folder / FOLDERS[0]) if place.is_dir()]
    if manifest is None:
        for account in sorted(path for place in places for path in place.glob("*.json")):
            if Path(account.stem).suffix.lower() in READABLE and not is_candidate(account):
                yield Path(account.stem).stem, account.with_suffix(""), functools.partial(read_json, account)
        return
    for name, entry in read_manifest(manifest, 1):
        path = next((path for place in places for ending in READABLE
                     if (path := place / f"{name}{ending}").is_file()), folder / f"{name}.mp3")
        account = path.with_name(path.name + ".json")
        yield name, path, (functools.partial(read_json, account) if account.is_file() else
                           functools.partial(asked, name, entry, manifest))


def is_candidate(account: Path) -> bool:
    with contextlib.suppress(UserError, TypeError):          # what is broken is told of as a song
        return "candidate_of" in read_json(account)
    return False


def asked(name: str, entry: object, manifest: Path) -> dict:
    """What a manifest's entry asks for, in the form of an account. Raises: UserError."""
    song = song_of(name, entry, SampleConfig(manifest=manifest))
    words = formats.read(song.lyrics).sung().words
    if not all(word.timed for word in words):
        raise UserError(f"{song.lyrics}: has words without times; expected the times that were asked for")
    return {"word": [formats.word_json(word) for word in words],
            "settings": {"duration": song.duration_s, "style": song.styles, "style_text": song.texts}}


def evaluated(folder: Path, cfg: EvaluateConfig, recogniser: Recogniser, scorers: dict[str, Callable]
              ) -> tuple[list[dict], Tensor]:
    """A row for each song of a folder, and the embeddings (n, E) of all. What fails is a row with "error".

    Raises: UserError if the folder has no songs.
    """
    rows, embeddings = [], []
    for name, path, read in songs_in(folder, cfg.manifest):
        row = {"id": name, "file": str(path.resolve())}
        try:
            record = read()
            wave, rate_hz = read_wave(path)
            row |= measures(wave, rate_hz, record, recogniser)
            row["scores"] = {text: score(path, record) for text, score in scorers.items()}
            if recogniser.embed:
                embeddings.append(recogniser.embed(wave, rate_hz))
        except READ_ERRORS as e:
            text = str(e) if isinstance(e, UserError) else f"{path}: {type(e).__name__}: {e}"
            row["error"] = " ".join(text.split())[:300]
            print(f"error: {row['error']}", file=sys.stderr, flush=True)
        rows.append(row)
    if not rows:
        raise UserError(f"{folder}: holds no songs with accounts (NAME.mp3 and NAME.mp3.json); expected what "
                        "sample.py wrote, or --manifest")
    return rows, torch.cat([torch.zeros(0, 1), *embeddings][bool(embeddings):])


def report(rows: list[dict], totals: dict[str, dict[str, float]], folder: Path) -> str:
    """A page in `folder` with a row for each song, worst first, its words worst first; each can be played.

    It loads the songs from where they lie, and nothing else.
    """
    good = sorted((row for row in rows if "error" not in row), key=lambda row: -row["phoneme_error_rate"])
    shown = {name: metric.shown.format for name, metric in metrics_of(good).items()}
    # A word's badness: the share of its wrong sounds, and its onset error in units of 0.1 s.
    songs = [{"id": row["id"], "heard": row["heard"],
              "file": urllib.parse.quote(os.path.relpath(row["file"], folder.resolve())),
              "numbers": [[name, show(row[name] if name in row else row["scores"][name])]
                          for name, show in shown.items()],
              "words": sorted(row["words"], key=lambda word: -word["errors"] / max(1, word["sounds"])
                             - 10 * off_s(word))} for row in good]
    values = {"songs": songs, "totals": listed(totals, good),
              "errors": [f"{row['id']}: {row['error']}" for row in rows if "error" in row]}
    text = TEMPLATE.read_text(encoding="ascii")
    policy = "default-src 'none'; media-src 'self' file:; base-uri 'none'; form-action 'none'"
    for tag in ("script", "style"):                          # the template's own run, and no others
        code = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1].encode()
        policy += f"; {tag}-src 'sha256-{base64.b64encode(hashlib.sha256(code).digest()).decode()}'"
    # "<" could end the script; in JSON of ASCII nothing else means anything to HTML.
    data = json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")
    return text.replace("@policy@", policy).replace("@songs@", data)


def main(argv: list[str] | None = None) -> None:
    """Evaluate a folder's songs."""
    cfg = parse(EvaluateConfig, __doc__.splitlines()[0], argv)
    recogniser = recogniser_of(cfg)
    scorers = {text: scorer_of(text, cfg, recogniser) for text in cfg.scorer or ()}
    rows, embeddings = evaluated(cfg.songs, cfg, recogniser, scorers)
    good = [row for row in rows if "error" not in row]
    totals = summary(good, seed=cfg.seed)
    print(table(rows, totals))
    made = {"settings": dataclasses.asdict(cfg), "recogniser": {"name": recogniser.name,
            "sha256": recogniser.sha256}, "total": totals}
    failed = len(good) < len(rows)
    if cfg.against:
        others, theirs = evaluated(cfg.against, cfg, recogniser, scorers)
        failed |= any("error" in row for row in others)
        other = {row["id"]: row for row in others if "error" not in row}
        both = [row for row in good if row["id"] in other]
        made["against"] = summary(both, [other[row["id"]] for row in both], cfg.seed)
        print("\n".join([f"\n{len(both)} songs of both, less those of {cfg.against}",
                         *listed(made["against"], good)]))
        if len(embeddings) and len(theirs):
            made["frechet_distance"] = distance(embeddings, theirs)
            print(f"\nFrechet distance to {cfg.against}: {made['frechet_distance']:.3f}")
    out = cfg.out or cfg.songs
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"--out {out}: {e.strerror}") from None
    with replacing(out / "evaluation.json") as path:
        path.write_text(json.dumps(made | {"songs": rows}, default=str, indent=1, allow_nan=False))
    with replacing(out / "report.html") as path:
        path.write_text(report(rows, totals, out), encoding="ascii")
    print(f"\n{(out / 'report.html').resolve()}")
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run(main)
