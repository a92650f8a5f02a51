"""Judge lyrics/plan.py against real singing, by hand: `python tests/lyrics/judge_plan.py SONG.json ...`.

Each file holds a song's words and true times, {"word": [{"word", "start", "end"}], "segment": [{"end"}]}.
The planner gets what an LRC file would say, the start of each line; a line ends where a segment does, or
before a pause of over a second. Printed: how far word onsets are off, for all words and without the first
ones of lines, which are given. The last part chooses the constants anew on the other songs, to see how much
they are fitted to these.
"""

import itertools
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from lyrics import plan  # noqa: E402
from lyrics.pronounce import reader  # noqa: E402
from lyrics.timing import Line, Lyrics, Word  # noqa: E402

PAUSE_S = 1.0
GRID = {"VOWEL_S": (0.3, 0.4, 0.6), "WEAK_SHARE": (0.7, 1.0), "PHRASE_S": (0.0, 0.2, 0.4),
        "PACKED": (0.2, 0.3, 0.4, 0.5)}


def read(path: Path) -> list[list[dict]]:
    """The words of a file's lines."""
    song = json.loads(path.read_text(encoding="utf-8"))
    ends, lines = [segment["end"] for segment in song["segment"]], [[]]
    for word in song["word"]:
        if lines[-1] and (word["start"] - lines[-1][-1]["end"] > PAUSE_S or any(
                lines[-1][-1]["end"] <= end <= word["start"] for end in ends)):
            lines.append([])
        lines[-1].append(word)
    return lines


def planned(lines: list[list[dict]], phonemizer) -> list[list[float]]:
    """The planner's onsets, from the lines' starts alone."""
    lyrics = Lyrics(tuple(Line(tuple(Word(w["word"]) for w in line), line[0]["start"]) for line in lines))
    timed = plan.plan(lyrics, phonemizer, plan.PlanSettings())
    return [[word.start for word in line.words] for line in timed.lines]


def even(lines: list[list[dict]], true_end: bool) -> list[list[float]]:
    """Onsets at equal distances up to the next line, or up to the true end (the last line: always)."""
    stops = [line[-1]["end"] for line in lines]
    if not true_end:
        stops[:-1] = [line[0]["start"] for line in lines[1:]]
    return [[line[0]["start"] + (stop - line[0]["start"]) * k / len(line) for k in range(len(line))]
            for line, stop in zip(lines, stops)]


def errors(lines: list[list[dict]], onsets: list[list[float]], first: bool) -> list[float]:
    """Absolute errors in seconds; first: with the lines' first words."""
    return [abs(word["start"] - time) for line, times in zip(lines, onsets)
            for word, time in list(zip(line, times))[not first:]]


def numbers(off: list[float]) -> str:
    """Median and 90th percentile."""
    return f"{statistics.median(off):.3f} s, {statistics.quantiles(off, n=10, method='inclusive')[-1]:.3f} s"


def main() -> None:
    phonemizer = reader(ROOT / "weights/baby/phonemizer.pt")
    songs = {Path(name).stem: read(Path(name)) for name in sys.argv[1:]}
    if not songs:
        sys.exit(__doc__)
    ways = {"plan": lambda x: planned(x, phonemizer), "even, to the next line": lambda x: even(x, False),
            "even, to the true end": lambda x: even(x, True)}
    print("median and 90 % of the onsets' absolute errors: without lines' first words | with them")
    for way, place in ways.items():
        off = {name: [errors(lines, place(lines), first) for first in (False, True)]
               for name, lines in songs.items()}
        off["all"] = [sum(both, []) for both in zip(*off.values())]
        for name, both in off.items():
            words = " | ".join(str(len(e)) for e in both)
            print(f"{way:24}{name[:32]:34}{' | '.join(map(numbers, both))}   {words} words")
    if len(songs) < 2:
        return
    scores = []                                # for each choice of constants: each song's errors
    for values in itertools.product(*GRID.values()):
        for name, value in zip(GRID, values):
            setattr(plan, name, value)
        scores.append((values, [errors(x, planned(x, phonemizer), False) for x in songs.values()]))
    print(f"constants {', '.join(GRID)}: chosen by the mean error on the other songs")
    for i, name in enumerate(songs):
        values, off = min(scores, key=lambda s: sum(sum(e) / len(e) for k, e in enumerate(s[1]) if k != i))
        print(f"{name[:32]:34}{values}   {numbers(off[i])}")
    medians = [[statistics.median(off[i]) for _, off in scores] for i in range(len(songs))]
    print("medians of all", len(scores), "choices:", "; ".join(
        f"{name[:32]} {min(m):.3f} to {max(m):.3f} s, middle {statistics.median(m):.3f}"
        for name, m in zip(songs, medians)))


if __name__ == "__main__":
    main()
