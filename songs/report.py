"""What evaluate.py shows: a table on the terminal (`table`) and a page to look for faults in (`report`)."""

import os
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from songs.page import fill

# The range of n songs holds the median of all songs with probability 1 - 2 ** (1 - n): of 5 songs with 94 %.
LEAST_SONGS = 6
COLUMNS = {"word_error_rate": "WER", "phoneme_error_rate": "PER", "missing": "missing", "onset_s": "onset s",
           "onset_90_s": "90 %", "within_50_ms": "<50 ms", "within_100_ms": "<100 ms", "offset_s": "end s"}


def table(rows: list[dict], totals: dict[str, dict[str, float]], formats: dict[str, str]) -> str:
    """A line for each song, then the totals with their intervals; `formats` says how to write each metric."""
    width = max([4, *(len(row["id"]) for row in rows)])
    lines = [f"{'song':{width}}  words" + "".join(f"{head:>9}" for head in COLUMNS.values())]
    for row in rows:
        cells = "  " + row["error"] if "error" in row else f"{len(row['words']):7}" + "".join(
            f"{formats[name].format(row[name]):>9}" for name in COLUMNS)
        lines.append(f"{row['id']:{width}}{cells}")
    good = [row for row in rows if "error" not in row]
    words = sum(len(row["words"]) for row in good)
    lines += ["", f"{len(good)} of {len(rows)} songs, {words} words"]
    return "\n".join(lines + listed(totals, formats))


def listed(totals: dict[str, dict[str, float]], formats: dict[str, str]) -> list[str]:
    """A line for each total, with its interval if it has one, and a line about these."""
    shown = {name: [formats[name].format(x) for x in total.values() if x is not None]
             for name, total in totals.items()}
    few = any(total["low"] is None for total in totals.values())
    told = f"too few songs for 95 % intervals, which need {LEAST_SONGS}" if few else "with 95 % intervals"
    return [*(f"  {name:20}{value:>9}   {' to '.join(ends)}".rstrip()
              for name, (value, *ends) in shown.items()), f"  {told}"]


def report(rows: list[dict], totals: dict[str, dict[str, float]], formats: dict[str, str],
           badness: Callable[[dict], float], folder: Path) -> str:
    """A page in `folder` that lists the worst song first, its words in their order, and plays each of them.

    It loads the songs from where they are, and nothing else. Args: rows as evaluate.py makes them; badness of
    a word, by which the page can order them, too; the rest as for `table`.
    """
    good = sorted((row for row in rows if "error" not in row), key=lambda row: -row["phoneme_error_rate"])
    songs = [{"id": row["id"], "heard": row["heard"],
              "file": urllib.parse.quote(os.path.relpath(row["file"], folder.resolve())),
              "numbers": [[name, text.format((row["scores"] | row)[name])] for name, text in formats.items()],
              "words": [word | {"badness": badness(word)} for word in row["words"]]} for row in good]
    errors = [f"{row['id']}: {row['error']}" for row in rows if "error" in row]
    return fill("report.html", {"songs": songs, "totals": listed(totals, formats), "errors": errors})
