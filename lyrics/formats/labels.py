"""Audacity labels: start, end and text with tabs between them."""

import re

from lyrics.formats.shared import Draft, FileLines, Piece, add_labels, decimal, timed_rows
from lyrics.timing import Lyrics, check_span

LABEL = re.compile(r"\s*[0-9]+(?:[.,][0-9]+)?\t\s*[0-9]+(?:[.,][0-9]+)?(?:\t|$)", re.MULTILINE)


def read_audacity(text: str, draft: Draft) -> None:
    """Labels of one word each, or of lines; a point's word has no end."""
    labels = []
    for line in draft.numbered(text):
        if line.strip() and not line.startswith("\\"):           # frequencies
            start, end, label = (*line.split("\t", 2), "", "")[:3]
            start, end = decimal(start, "start"), decimal(end, "end")
            check_span(start, end)
            if label.strip():
                labels.append(Piece(label.strip(), start, end if end > start else None, draft.place))
    add_labels(draft, labels)


def write_audacity(lyrics: Lyrics) -> FileLines:
    """A label for each word, for a line whose words have no times, and a point for a section."""
    for row in timed_rows(lyrics, "audacity"):
        headings = [Piece(heading, row.start, row.start) for heading in row.heading]
        for text, start, end, _ in headings + (row.labels() or [Piece(row.text(), row.start, row.end)]):
            yield f"{start:.6f}\t{end:.6f}\t{text}"
