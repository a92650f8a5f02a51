"""What an edit does to a song: is the new part sung as well as a whole song, is the rest kept, do joins show?

    python -m baby.edits --out runs/edits

Songs of three lines of baby/held_out.txt, the eight styles in turn; each is edited once in every one of KINDS
(`asked`). Beside each edit, the same words are sung as a whole song on the same seed. `main` prints what is
measured in the edit's spans, at their edges, and outside. Axes: N samples, n short frames of the codec.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from baby import songs
from baby.joins import flux_db
from baby.judge import ASSETS, HEARING_HZ, misheard_phones
from baby.prompts import timed
from config import PHONEMIZER, SampleConfig, Settings, within
from evaluate import measures, off_s, ratio
from lyrics import formats
from lyrics.pronounce import reader
from lyrics.timing import Line, Lyrics, Word
from sample import sing_song
from songs.listeners import EAR_HZ, Recogniser, small_ear
from support.audio import mono, read_wave
from support.cli import parse, run
from support.files import find, make_folder, read_json, read_text, write_text
from sung import SungCodec

KINDS = ("word replaced", "word moved", "word lengthened", "word deleted", "line replaced", "style changed")
MOVES_S = (0.05, 0.1, 0.2, 0.4)
SHORTEST_S = 0.1                                 # what is left of a neighbour
NEAR_S = 0.05                                    # of an edge of a span
FRAME_S = songs.PRESET.codec.hop / songs.PRESET.codec.fold / songs.RATE


@dataclass(frozen=True)
class EditSettings(Settings):
    out: Path = Path("runs/edits")              # folder
    songs: int = within(24, 1, 40)              # each is edited in six ways


def song_of(number: int, say) -> Lyrics:
    """The words of a song, timed without a beat."""
    lines = read_text(find(Path("baby/held_out.txt"))).splitlines()[3 * number:3 * number + 3]
    rng, found, at = np.random.default_rng(number), [], 0.0
    for line in lines:
        words = [Word(**word) for word in timed([line], rng, say)]
        found.append(Line(tuple(replace(w, start=w.start + at, end=w.end + at) for w in words)))
        at = found[-1].words[-1].end
    return Lyrics(tuple(found))


def asked(kind: str, lyrics: Lyrics, number: int, say) -> tuple[Lyrics, list[str], str]:
    """An edit of a song: the new words, more flags for sample.py, and the style of what is sung again."""
    rng, style = np.random.default_rng([KINDS.index(kind), number]), [*songs.SINGERS][number % 8]
    others = read_text(find(Path("baby/held_out.txt"))).splitlines()
    others = others[3 * number + 3:] + others[:3 * number]
    at = int(rng.integers(3))
    line = lyrics.lines[at]
    place = int(rng.integers(1, len(line.words) - 1))
    before, word, after = line.words[place - 1:place + 2]
    if kind == "style changed":
        style = [*songs.SINGERS][(number + 3) % 8]
        return lyrics, ["--style", style, "--line", str(at + 1)], style
    if kind == "line replaced":
        texts = others[number].split()
        edges = np.linspace(line.words[0].start, line.words[-1].end, len(texts) + 1).round(2).tolist()
        words = [Word(text, *times, say(text)) for text, times in zip(texts, itertools.pairwise(edges))]
    elif kind == "word replaced":
        text = rng.choice([other for other in " ".join(others).split()
                           if say(other) != word.phoneme and abs(len(other) - len(word.word)) < 3])
        word = replace(word, word=str(text), phoneme=say(text))
        words = [*line.words[:place], word, *line.words[place + 1:]]
    elif kind == "word deleted":
        words = [*line.words[:place], *line.words[place + 1:]]
    else:
        by = MOVES_S[number % 4]
        if kind == "word moved":
            by *= -1 if number // 4 % 2 else 1
            by = float(np.clip(by, before.start + SHORTEST_S - word.start, after.end - SHORTEST_S - word.end))
            word = replace(word, start=round(word.start + by, 2), end=round(word.end + by, 2))
        else:
            word = replace(word, end=round(min(word.end + by, after.end - SHORTEST_S), 2))
        words = [*line.words[:place - 1], replace(before, end=min(before.end, word.start)), word,
                 replace(after, start=max(after.start, word.end)), *line.words[place + 2:]]
    return Lyrics((*lyrics.lines[:at], replace(line, words=tuple(words)), *lyrics.lines[at + 1:])), [], style


def sing(out: Path, lyrics: Lyrics, flags: list[str]) -> Path:
    """Sing words into NAME.wav; its path."""
    write_text(out.with_suffix(".lyrics.json"), formats.write(lyrics, "jam"))
    cfg = parse(SampleConfig, "", ["--lyrics", str(out.with_suffix(".lyrics.json")), "--out", str(out),
                                   "--page=false", "--overwrite=true", *flags])
    return sing_song(cfg, lambda steps, **about: steps).with_suffix("")


def notes_of(song: Path, words: list[Word]) -> np.ndarray:
    """The middle note of each word of a song, MIDI; not a number if it has no pitch."""
    latents = load_file(f"{song}.safetensors")["latents"][None]
    voice, found = SungCodec(songs.PRESET.codec).unpack(latents), []
    for word in words:
        here = slice(round(word.start / FRAME_S), round(word.end / FRAME_S))
        note = voice.note[0, here][voice.voiced[0, here] > 0]
        found.append(note.median().item() if len(note) else np.nan)
    return np.array(found)


def measured(song: Path, spans: list[tuple[float, float]], ear: Recogniser) -> dict[str, list]:
    """A song's words within `spans`: errors of sounds by two judges, (wrong, asked), and of onsets in s; its
    flux in dB and steps of pitch in semitones near the spans' edges, and elsewhere.
    """
    record, (wave, rate_hz) = read_json(Path(f"{song}.json")), read_wave(song)
    voice, whole_s = mono(wave, rate_hz, EAR_HZ), wave.shape[1] / rate_hz
    words = [word for word in measures(voice[None], EAR_HZ, record, ear)["words"]
             if any(a < (word["start"] + word["end"]) / 2 < b for a, b in spans)]
    found = {"sounds": [(word["errors"], word["sounds"]) for word in words],
             "onsets": [off_s(word) for word in words], "phones": []}
    voice = mono(wave, rate_hz, HEARING_HZ)
    for a, b in spans if words else ():
        own = [word for word in record["word"] if a < (word["start"] + word["end"]) / 2 < b]
        piece = voice[round(a * HEARING_HZ):round(b * HEARING_HZ)]
        found["phones"].append(misheard_phones(piece, {"word": own}))
    tensors = load_file(f"{song}.safetensors")
    voiced = SungCodec(songs.PRESET.codec).unpack(tensors["latents"][None]).voiced[0] > 0
    step = 12 * tensors["hz"].log2().diff().abs()
    step = step.masked_fill(~(voiced[1:] & voiced[:-1]), torch.nan).numpy()
    edges = np.array([t for span in spans for t in span if 0.1 < t < whole_s - 0.1])
    for name, values in (("flux", flux_db(mono(wave, rate_hz, EAR_HZ))), ("pitch", step)):
        at = (1 + np.arange(len(values))) * FRAME_S
        near = (abs(at[:, None] - edges) < NEAR_S).any(1)
        inside = np.any([(a - NEAR_S < at) & (at < b + NEAR_S) for a, b in spans], 0)
        found[f"{name} at joins"] = values[near].tolist()
        found[f"{name} elsewhere"] = values[~inside].tolist()
    return found


def main(cfg: EditSettings) -> None:
    make_folder(cfg.out)
    say, ear = reader(find(ASSETS / PHONEMIZER)), small_ear()
    edited, whole = ({kind: defaultdict(list) for kind in KINDS} for _ in range(2))
    kept = {kind: {"edit": [], "whole": []} for kind in KINDS}
    for number, kind in itertools.product(range(cfg.songs), KINDS):
        lyrics, style = song_of(number, say), ["--style", [*songs.SINGERS][number % 8], "--seed", str(number)]
        before = sing(cfg.out / f"{number}.wav", lyrics, style)
        new, flags, own = asked(kind, lyrics, number, say)
        name = f"{number}-{kind.replace(' ', '-')}"
        edit = sing(cfg.out / f"{name}.wav", new, ["--edit", f"{before}.json", *flags])
        other = sing(cfg.out / f"{name}-whole.wav", new, ["--style", own, "--seed", str(number)])
        about = read_json(Path(f"{edit}.json"))["edit"]
        for song, rows in ((edit, edited), (other, whole)):
            for key, values in measured(song, about["spans"], ear).items():
                rows[kind][key] += values
        edited[kind]["outside"].append(outside(before, edit, about["spans"]))
        edited[kind]["seconds"].append(sum(b - a for a, b in about["spans"]))
        if kind in ("word moved", "word lengthened"):
            changed = [w != v for w, v in zip(new.words, lyrics.words)]
            for key, song in (("edit", edit), ("whole", other)):
                off = abs(notes_of(song, new.words) - notes_of(before, lyrics.words))[changed]
                kept[kind][key] += off[~np.isnan(off)].tolist()
    show(edited, whole, kept)


def outside(before: Path, edit: Path, spans: list[tuple[float, float]]) -> int:
    """The largest difference outside of the spans, in steps of 16 bits."""
    (old, rate_hz), (new, _) = read_wave(before), read_wave(edit)
    difference = (32768 * (new - old)).abs()[0]
    for a, b in spans:
        difference[round(a * rate_hz):round(b * rate_hz)] = 0
    return int(difference.max())


def show(edited: dict, whole: dict, kept: dict) -> None:
    """Print the tables of docs/editing.md."""
    def both(rows: tuple[dict, dict], key: str, value: Callable, text: str) -> str:
        return " / ".join(text.format(value(row[key])) if len(row[key]) else "-" for row in rows)

    total = [{key: [x for kind in KINDS for x in rows[kind][key]] for key in rows[KINDS[0]]}
             for rows in (edited, whole)]
    print("| edits, each / sung whole | number | sung again | words | phoneme errors | phone errors, "
          "pocketsphinx | onsets within 50 ms | outside, at most |\n|---|---|---|---|---|---|---|---|")
    for name, rows in [*((kind, (edited[kind], whole[kind])) for kind in KINDS), ("all", total)]:
        own = rows[0]
        print(f"| {name} | {len(own['seconds'])} | {np.mean(own['seconds']):.2f} s | {len(own['onsets'])} | "
              + " | ".join([both(rows, "sounds", ratio, "{:.1%}"), both(rows, "phones", ratio, "{:.1%}"),
                            both(rows, "onsets", lambda x: np.mean(np.array(x) <= 0.05), "{:.1%}")])
              + f" | {max(own['outside'])} |")
    print("\n| | at joins | there, sung whole | elsewhere |\n|---|---|---|---|")
    for name, text in (("flux", "{:.2f}, {:.2f} dB"), ("pitch", "{:.3f}, {:.3f} semitones")):
        cells = [total[0][f"{name} at joins"], total[1][f"{name} at joins"], total[0][f"{name} elsewhere"]]
        print(f"| {name}, mean and 99 % | " + " | ".join(
            text.format(np.nanmean(cell), np.nanquantile(cell, 0.99)) for cell in cells) + " |")
    print("\n| note of words whose times changed | same within half a semitone | median difference |\n"
          "|---|---|---|")
    for kind, key in itertools.product(("word moved", "word lengthened"), ("edit", "whole")):
        off = np.array(kept[kind][key])
        print(f"| {kind}, {key} | {np.mean(off <= 0.5):.0%} of {len(off)} | {np.median(off):.2f} semitones |")


if __name__ == "__main__":
    run(lambda: main(parse(EditSettings, __doc__)))
