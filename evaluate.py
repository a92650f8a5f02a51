"""How well finished songs sing the words that were asked for, and when.

    python evaluate.py song.mp3
    python evaluate.py outputs
    python evaluate.py outputs --against others --scorer phonemes:1,timing:2

Read `measures` (one song, with a recogniser of songs/listeners.py), `METRICS` (what is averaged over songs),
`summary` (with intervals, or between two models), `scorer_of` (a song's score, to choose by), then `main`.
Axes: W channels, N samples, T frames of the recogniser, C its classes, E width of an embedding.
"""

import dataclasses
import itertools
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from config import READ_ERRORS, EvaluateConfig, SingSettings, UserError
from support.cli import first, parse, run, weighted

if __name__ == "__main__":
    first(lambda: parse(EvaluateConfig, __doc__))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lyrics import align
from lyrics.timing import Word
from songs.listeners import Recogniser, find_words, letters_of, likeliest, misheard, outside_scorer
from songs.listeners import recogniser_of, sounds_of
from songs.manifest import differing, length_of, songs_in
from songs.report import LEAST_SONGS, listed, report, table
from support.audio import loudness_lufs, read_wave
from support.files import describe, make_folder, reading, write_json, write_text

GRACE_S = 0.05          # of sound before the first and after the last word is no mistake
LOUD_DB, SILENT_DB, FULL_SCALE = -35.0, -60.0, 0.999      # relative to the voice's loudest parts; absolute
LEAST_LUFS = -70.0      # of silence; BS.1770 looks no lower
MISSING_S = 1.0         # what counts as the error of a missing word
RANKED_S = 0.5          # largest onset error in the score "timing", and that of a missing word
DRAWS = 1000            # of songs, for an interval


# One song

def measures(wave: Tensor, rate_hz: int, record: dict, recogniser: Recogniser) -> dict:
    """Measure one song.

    Args: wave (W, N) at rate_hz; record, its account: "word" with times and, if they are known, phonemes; its
        duration in "settings".
    Returns: "words", what became of each that can be read; "heard", with the recogniser's word breaks or, if
        it has none, those of the asked words; word_errors of word_count, sound_errors of sound_count; what
        `sound_of` and `outside_words` find; a number for each of METRICS, all finite.
    Raises: one of READ_ERRORS for a record that is not an account.
    """
    words = [Word(w["word"], w["start"], w["end"], w.get("phoneme") or None) for w in record["word"]]
    if not all(word.timed for word in words):
        raise ValueError("a word has no times; expected those that were asked for")
    words.sort(key=lambda word: word.start)
    voice, voice_hz, log_p, per_s = recogniser.hear(wave, rate_hz)                        # log_p (T, C)
    heard = "".join(recogniser.labels[i] for i in likeliest(log_p, recogniser.switch)).split(align.BAR)

    # Errors of sounds, in IPA. The same sound twice in a row counts once: a singer does not repeat it.
    asked = [(c, i) for i, word in enumerate(words) for c in sounds_of(word)]
    asked = [next(run) for _, run in itertools.groupby(asked, key=lambda sound: sound[0])]
    said = re.sub(r"(.)\1+", r"\1", "".join(recogniser.say(text) for text in heard if text))
    errors, places = misheard([c for c, _ in asked], said)
    about = [{"word": w.word, "start": w.start, "end": w.end, "sounds": 0, "errors": 0, "heard": ""}
             for w in words]
    for (_, i), wrong, place in zip(asked, errors[1:], places[1:]):
        about[i]["sounds"] += 1
        about[i]["errors"] += wrong
        about[i]["heard"] += place

    # Errors of words. Without bars, sounds are not grouped into words: a word with a wrong sound is wrong,
    # and extra sounds in one place are as many words as asked ones have so many sounds.
    word_errors, word_count = (sum(word[key] > 0 for word in about) for key in ("errors", "sounds"))
    extra = [errors[0], *(word["errors"] - word["sounds"] for word in about)]
    word_errors += sum(max(0, sounds) * word_count // max(1, len(asked)) for sounds in extra)
    if align.BAR in recogniser.labels:
        written = [text for word in words for text in letters_of(word)]
        import torchaudio.functional as AF

        word_errors, word_count = AF.edit_distance(written, [text for text in heard if text]), len(written)
    else:
        heard = [places[0], *(word["heard"] for word in about)]

    # Where the words are.
    labels = {label: i for i, label in enumerate(recogniser.labels) if i != align.BLANK}
    tokens = [[labels[c] for c in recogniser.spell(word) if c in labels] for word in words]
    size = max(1, int(voice_hz / per_s))
    power = F.pad(voice, (0, max(0, size - len(voice)))).unfold(0, size, size).square().mean(1)
    spans = align.hold(find_words(log_p, tokens, labels.get(align.BAR, align.BLANK)), power,
                       round(align.HOLD_S * per_s))
    about = [word | {"found": span and [round(span.start / per_s, 4), round(span.end / per_s, 4)]}
             for word, span, own in zip(about, spans, tokens) if own]

    length_s = wave.shape[1] / rate_hz
    wanted_s = length_of(record) or length_s
    row = {"words": about, "heard": " ".join(filter(None, heard)),
           "word_errors": word_errors, "word_count": word_count, "sound_errors": sum(errors),
           "sound_count": len(asked), "length_error_s": abs(length_s - wanted_s),
           **sound_of(wave, rate_hz), **outside_words(voice, voice_hz, words)}
    return row | {name: metric.total(metric.values(row)) for name, metric in METRICS.items()}


def sound_of(wave: Tensor, rate_hz: int) -> dict[str, float]:
    """Loudness; the shares of samples at full scale, of silent blocks, of power outside the middle."""
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


def outside_words(voice: Tensor, rate_hz: int, words: list[Word]) -> dict[str, float]:
    """Seconds of voice before the first and after the last word, where it is louder than LOUD_DB allows."""
    power = blocks(voice[None], rate_hz)
    loud = power > max(power.quantile(0.95).item() * 10 ** (LOUD_DB / 10), 10 ** (SILENT_DB / 10))
    if not words:
        return {"before_s": 0.0, "after_s": 0.0}
    first, last = words[0].start - GRACE_S, max(word.end for word in words) + GRACE_S
    return {"before_s": loud[:max(0, int(100 * first))].sum().item() / 100,
            "after_s": loud[math.ceil(100 * last):].sum().item() / 100}


# Many songs

class Metric(NamedTuple):
    """A song's values, the statistic of the values of any number of songs, and its format."""
    values: Callable[[dict], list]
    statistic: Callable[[Sequence], float]
    shown: str

    def total(self, values: Sequence) -> float:
        """The statistic; 0 for no values at all."""
        return float(self.statistic(values)) if len(values) else 0.0


def ratio(pairs: Sequence[tuple[int, int]]) -> float:
    """The error rate of pairs (errors, count); of a count of 0, the number of errors."""
    errors, count = np.sum(pairs, 0)
    return errors / max(1, count)


def ninth_decile(values: Sequence[float]) -> float:
    return np.quantile(values, 0.9)


def off_s(word: dict, side: int = 0) -> float:
    """The error in s of a word's start (side 0) or end (1); MISSING_S if the word is missing."""
    return abs(word["found"][side] - word[("start", "end")[side]]) if word["found"] else MISSING_S


def each(value: Callable[[dict], float]) -> Callable[[dict], list[float]]:
    """A function from a song to a value of each of its words."""
    return lambda row: [value(word) for word in row["words"]]


METRICS = {
    "word_error_rate": Metric(lambda row: [(row["word_errors"], row["word_count"])], ratio, "{:.1%}"),
    "phoneme_error_rate": Metric(lambda row: [(row["sound_errors"], row["sound_count"])], ratio, "{:.1%}"),
    "missing": Metric(each(lambda word: word["found"] is None), np.mean, "{:.1%}"),
    "onset_s": Metric(each(off_s), np.median, "{:.3f}"),
    "onset_90_s": Metric(each(off_s), ninth_decile, "{:.3f}"),
    "within_50_ms": Metric(each(lambda word: off_s(word) <= 0.05), np.mean, "{:.1%}"),
    "within_100_ms": Metric(each(lambda word: off_s(word) <= 0.1), np.mean, "{:.1%}"),
    "late_s": Metric(lambda row: [w["found"][0] - w["start"] for w in row["words"] if w["found"]],
                     np.median, "{:+.3f}"),
    "offset_s": Metric(each(lambda word: off_s(word, 1)), np.median, "{:.3f}"),
    "offset_90_s": Metric(each(lambda word: off_s(word, 1)), ninth_decile, "{:.3f}"),
    **{name: Metric(lambda row, name=name: [row[name]], np.mean, shown) for name, shown in (
        ("before_s", "{:.2f}"), ("after_s", "{:.2f}"), ("length_error_s", "{:.2f}"), ("clipped", "{:.2%}"),
        ("loudness_lufs", "{:.1f}"), ("silent", "{:.1%}"), ("stereo_width", "{:.2f}"))}}


def metrics_of(rows: list[dict]) -> dict[str, Metric]:
    """METRICS, and one for each of the scores that the songs have."""
    return METRICS | {name: Metric(lambda row, name=name: [row["scores"][name]], np.mean, "{:.3f}")
                      for name in (rows[0]["scores"] if rows else ())}


def summary(rows: list[dict], others: list[dict] = (), seed: int = 0) -> dict[str, dict[str, float]]:
    """For each metric its value over all songs, and the value's 95 % interval, by bootstrap over songs.

    Fewer than LEAST_SONGS songs have no interval: low and high are None.
    Args: rows as `evaluated` makes them, without failed ones; others, rows of the same songs in the same
        order: then the values are differences, rows less others, and each draw takes the same songs of both.
    """
    if not rows:
        return {}
    rng, made = torch.Generator().manual_seed(seed), {}
    draws = [range(len(rows)), *torch.randint(len(rows), (DRAWS, len(rows)), generator=rng).tolist()]

    def totals(metric: Metric, side: list[dict]) -> np.ndarray:
        values = [np.array(metric.values(row), float) for row in side]
        return np.array([metric.total(np.concatenate([values[i] for i in songs])) for songs in draws])

    for name, metric in metrics_of(rows).items():
        value, *drawn = totals(metric, rows) - (totals(metric, others) if others else 0)
        low, high = np.quantile(drawn, (0.025, 0.975)).tolist() if len(rows) >= LEAST_SONGS else (None, None)
        made[name] = {"value": float(value), "low": low, "high": high}
    return made


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Frechet distance between two sets of embeddings (n, E), as normal distributions."""
    import torchaudio.functional as AF

    sides = [x for set_of in (ours.double(), theirs.double())
             for x in (set_of.mean(0), torch.cov(set_of.T, correction=0))]
    return AF.frechet_distance(*sides).item()


# A song's score, to choose by

HEARD = {"phonemes": lambda row: 1 - row["phoneme_error_rate"],
         "timing": lambda row: -np.mean([min(off_s(word), RANKED_S) for word in row["words"]] or [0.0])}


def scorer_of(text: str, cfg: EvaluateConfig | SingSettings, recogniser: Recogniser | None = None
              ) -> Callable[[Path, dict], float]:
    """A function from a song's file and its account to a number; higher is better.

    Args: text, NAME[:WEIGHT], or several with commas, which are summed: phonemes, 1 less the phoneme error
        rate; timing, less the mean over words of the onset error in s, half a second at most and for a
        missing word; style, the cosine of MuQ-MuLan's vectors of song and style; audiobox, the mean of
        audiobox_aesthetics' four axes; songeval, that of SongEval's five; or MODULE:FUNCTION, your own.
    Raises: UserError for an unknown name, and for one whose library is not installed; so does the function
        for a song that it cannot read, and for a number that is not finite.
    """
    parts = [weighted(part.strip()) for part in text.split(",")]
    by_ear = [name for name, _ in parts if name in HEARD]
    if by_ear and recogniser is None:
        recogniser = recogniser_of(cfg)
    outside = {name: outside_scorer(name, cfg) for name, _ in parts if name not in HEARD}

    def score(path: Path, record: dict) -> float:
        with reading(path, f"--scorer {text}"):
            row = measures(*read_wave(path), record, recogniser) if by_ear else {}
            value = sum(weight * float(HEARD[name](row) if name in HEARD else outside[name](path, record))
                        for name, weight in parts)
        if not math.isfinite(value):
            raise UserError(f"{path}: --scorer {text} is {value}; expected a finite number")
        return value

    return score


# The command

def evaluated(place: Path, cfg: EvaluateConfig, recogniser: Recogniser, scorers: dict[str, Callable]
              ) -> tuple[list[dict], dict[str, tuple[dict, dict, Tensor | None]]]:
    """A row for each song of a folder, or for one song; a failed one has "error".

    Returns: the rows; of each that did not fail, by its id, row, account and embeddings (pieces, E).
    Raises: UserError if there are no songs.
    """
    rows, found = [], {}
    for name, path, read in songs_in(place, cfg.manifest):
        row = {"id": name, "file": str(path.resolve())}
        try:
            record = read()
            wave, rate_hz = read_wave(path)
            row |= measures(wave, rate_hz, record, recogniser)
            row["scores"] = {text: score(path, record) for text, score in scorers.items()}
            found[name] = row, record, recogniser.embed and recogniser.embed(wave, rate_hz)
        except READ_ERRORS as e:
            row["error"] = describe(e) if isinstance(e, UserError) else f"{path}: {describe(e)}"
            print(f"error: {row['error']}", file=sys.stderr, flush=True)
        rows.append(row)
    if not rows:
        raise UserError(f"{place}: holds no songs with accounts (NAME.mp3 and NAME.mp3.json); expected what "
                        "sample.py wrote, or --manifest")
    return rows, found


def compared(ours: dict, theirs: dict, cfg: EvaluateConfig) -> dict:
    """Compare the songs that were asked for the same words, times and duration; list the others.

    Args: ours and theirs, by id, as `evaluated` returns them.
    Returns: "against", differences; "left_out", why each of the others is; "frechet_distance", if the
        recogniser embeds.
    """
    why = {name: differing(ours[name][1], theirs[name][1]) if name in ours and name in theirs else
           f"not measured in {cfg.against if name in ours else cfg.songs}" for name in ours | theirs}
    left_out = {name: reason for name, reason in why.items() if reason}
    (rows, _, own), (others, _, other) = ([[side[name][i] for name in why if name not in left_out]
                                           for i in range(3)] for side in (ours, theirs))
    made = {"against": summary(rows, others, cfg.seed), "left_out": left_out}
    print(f"\n{len(rows)} songs of both, less those of {cfg.against}")
    formats = {name: metric.shown for name, metric in metrics_of(rows).items()}
    print("\n".join(listed(made["against"], formats)
                    + [f"  left out: {name}: {reason}" for name, reason in left_out.items()]))
    if rows and own[0] is not None:
        made["frechet_distance"] = distance(torch.cat(own), torch.cat(other))
        print(f"\nFrechet distance to {cfg.against}: {made['frechet_distance']:.3f}")
    return made


def badness(word: dict) -> float:
    """The share of a word's wrong sounds, and its onset error in units of 0.1 s."""
    return word["errors"] / max(1, word["sounds"]) + 10 * off_s(word)


def main(argv: list[str] | None = None) -> None:
    """Evaluate a folder's songs, or one."""
    cfg = parse(EvaluateConfig, __doc__, argv)
    for flag, place in (("", cfg.songs), ("--against ", cfg.against)):
        if place and not place.exists():                     # told before all songs are listened to
            raise UserError(f"{flag}{place}: there is no such folder or song")
    recogniser = recogniser_of(cfg)
    scorers = {text: scorer_of(text, cfg, recogniser) for text in cfg.scorer or ()}
    rows, ours = evaluated(cfg.songs, cfg, recogniser, scorers)
    good, others = [row for row in rows if "error" not in row], []
    totals, formats = summary(good, seed=cfg.seed), {name: m.shown for name, m in metrics_of(good).items()}
    print(table(rows, totals, formats))
    made = {"settings": dataclasses.asdict(cfg), "recogniser": {"name": recogniser.name,
            "sha256": recogniser.sha256}, "total": totals}
    if cfg.against:
        others, theirs = evaluated(cfg.against, cfg, recogniser, scorers)
        made |= compared(ours, theirs, cfg)
    out, prefix = cfg.out or cfg.songs, ""
    if cfg.songs.is_file():                                  # beside it, and not in place of its folder's
        out, prefix = cfg.out or cfg.songs.parent, f"{cfg.songs.name}."
    make_folder(out)
    write_json(out / f"{prefix}evaluation.json", made | {"songs": rows}, allow_nan=False)
    page = out / f"{prefix}report.html"
    write_text(page, report(rows, totals, formats, badness, out), "ascii")
    print(f"\n{page.resolve()}")
    if any("error" in row for row in rows + others):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
