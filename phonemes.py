"""Text -> phonemes -> ids -> the grid of four cells per latent frame that the network reads.

Read `sung_spans` (how a word's time is shared among its sounds), then `phoneme_grid`, then `Phonemizer` for
plain words; lyrics/pronounce.py reads words as people write them.
T latent frames, L = 4T cells. Source: the published JAM-0.5 data conversion, checked by golden values.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from support.files import reading
from support.phonemizer import LANG, read_checkpoint

CELLS_PER_FRAME = 4
WORD_END = 0                          # the only one of the phonemizer's special tokens (0..2) on the grid
FILLER, NO_WORD = 62, 63              # inside a word but no phoneme here; outside of any word
PUNCTUATION = ".,?!:;"
VOWELS = frozenset("aeiouyøæɐɑɒɔəɛɜɝɚɪʊʌ")
NUCLEUS = re.compile(f"aɪ|aʊ|eɪ|oʊ|ɔɪ|[{''.join(sorted(VOWELS))}]")        # of a syllable; a diphthong is one
GLIDE_S = 0.12                        # how long the second half of a diphthong takes at most
# Seconds that a consonant takes in a word with room to spare; weak sounds are short, so that a phrase is
# heard to begin where its first word does.
CONSONANT_S = {"h": .07, "ð": .07, "b": .07, "d": .07, "ɡ": .07, "g": .07, "j": .08, "w": .08, "l": .08,
               "ɹ": .08, "r": .08, "v": .08, "k": .1, "p": .1, "t": .1, "m": .08, "n": .08, "ŋ": .09,
               "θ": .11, "f": .11, "z": .1, "ʒ": .1, "ʃ": .12, "s": .12}
AFFRICATES = {"tʃ": .13, "dʒ": .11}
WEAK_VOWEL = 0.65                      # of another vowel's time, for a schwa
LATEST_S = 1e6                         # a word that is further from the song's start is a mistake
MAX_LETTERS = 100                      # of a word; the model has 5000 positions and takes several a letter


def sung_spans(phoneme: str, seconds: float) -> list[tuple[str, float, float]]:
    """Share a sung word's time among its sounds: consonants keep their length, the vowels share the rest.

    Args: phoneme, IPA characters (marks such as stress take no time); seconds, the word's length.
    Returns: (character, start, end) in seconds from the word's start, in order, without gaps.
    """
    sounds = "".join(c for c in phoneme if c in VOWELS or c in CONSONANT_S)
    length = [CONSONANT_S.get(c, 0.0) for c in sounds]
    for i in range(len(sounds)):
        if affricate := AFFRICATES.get(sounds[i:i + 2]):
            length[i:i + 2] = [0.4 * affricate, 0.6 * affricate]
    nuclei = [*NUCLEUS.finditer(sounds)]
    room, consonants = (0.5 * seconds if nuclei else seconds), sum(length)
    if consonants and (consonants > room or not nuclei):
        length = [d * room / consonants for d in length]
    shares = [WEAK_VOWEL if nucleus[0] == "ə" else 1.0 for nucleus in nuclei]
    rest = seconds - sum(length)
    for nucleus, share in zip(nuclei, shares):
        vowel = length[nucleus.start()] = rest * share / sum(shares)
        if len(nucleus[0]) == 2:
            glide = min(GLIDE_S, 0.4 * vowel)
            length[nucleus.start():nucleus.end()] = [vowel - glide, glide]
    ends = [*itertools.accumulate(length)]
    return list(zip(sounds, [0.0, *ends], ends))


class SymbolTable:
    """Phoneme characters <-> ids: the phonemizer's special tokens, its symbols in its order, punctuation."""

    def __init__(self, symbols: Sequence[str]):
        names = ["_", "<en_us>", "<end>", *symbols, *(p for p in PUNCTUATION if p not in symbols)]
        most = FILLER - len(names) + len(symbols)
        if len(symbols) > most:
            raise ValueError(f"{len(symbols)} phoneme symbols; {most} at most have an id")
        self.ids = {name: i for i, name in enumerate(names)}

    def encode(self, phoneme: str) -> list[int]:
        """Ids of an IPA string's characters, then a word end; unknown characters are left out."""
        return [self.ids[c] for c in phoneme.removesuffix("_") + "_" if c in self.ids]


def fill(filler: str, ids: list[int], cells: int) -> list[int]:
    """Lay a word's ids in `cells` cells; of too many ids, the first ones.

    Args: filler, "average_sparse" (ids at equal distances, FILLER between them and in the rest at the end;
        JAM-0.5 was trained with it), "average_repeat" (each id equally often, the first ones once more) or
        "pad_right" (ids first, FILLER after them).
    """
    row = [FILLER] * max(cells, 0)
    if not ids or len(ids) >= cells:
        return (ids + row)[:len(row)]
    if filler == "average_repeat":
        each, more = divmod(cells, len(ids))
        return [i for k, i in enumerate(ids) for _ in range(each + (k < more))]
    step = {"average_sparse": cells // len(ids), "pad_right": 1}[filler]
    row[:step * len(ids):step] = ids
    return row


def fill_sung(phoneme: str, table: SymbolTable, cells: int, cell_s: float) -> list[int]:
    """A word's cells by `sung_spans`.

    Each id over its whole span, one cell at least; the word end in the last cell.
    """
    spans = [(table.ids[c], end) for c, _, end in sung_spans(phoneme, (cells - 1) * cell_s) if c in table.ids]
    if len(spans) + 1 >= cells or not spans:
        return fill("pad_right", table.encode(phoneme), cells)
    row: list[int] = []
    for i, (token, end) in enumerate(spans):
        last = min(max(round(end / cell_s), len(row) + 1), cells - (len(spans) - i))
        row += [token] * (last - len(row))
    return row + [row[-1]] * (cells - 1 - len(row)) + [WORD_END]


def fill_phones(phones: Iterable[tuple[str, float, float]], table: SymbolTable, filler: str,
                word: tuple[int, int], cell_of: Callable[[float], int]) -> list[int]:
    """Lay a word's phonemes where they have times of their own: each begins in the cell of its start.

    Args: phones (IPA, start, end); several characters, such as a diphthong, share their phone's time;
        filler, "sung" repeats each id until its end, the other rules put FILLER after it; word, its first
        and its end cell; cell_of, the cell of a time.
    """
    cells = word[1] - word[0]
    row = [FILLER] * cells
    for text, start, end in phones:
        ids = [table.ids[c] for c in text if c in table.ids]
        for k, token in enumerate(ids):
            a, b = (cell_of(start + (end - start) * x / len(ids)) - word[0] for x in (k, k + 1))
            a = min(max(a, 0), cells - 1)
            b = min(max(b, a + 1), cells) if filler == "sung" else a + 1
            row[a:b] = [token] * (b - a)
    if row[-1] == FILLER or filler == "sung" and row[-2:-1] == row[-1:]:         # there is room for it
        row[-1] = WORD_END
    return row


def phoneme_grid(words: Iterable[tuple], table: SymbolTable, filler: str, cells: int,
                 window_s: tuple[float, float], cell_hz: float) -> tuple[list[int], list[tuple]]:
    """Lay words on the grid of the latent frames in window_s.

    Args: words (start, end, phoneme[, phones]), seconds in the song, phones as in `fill_phones`; filler, one
        of config.FILLERS; cells of the padded grid; window_s, the part of the song on the grid; cell_hz,
        cells per second.
    Returns: ids, one per cell; and for each word (first cell, end cell, ids), which shows what did not fit.
    Differs: "sung" cuts a word at the window's edge; the original's rules squeeze the whole word into what is
        left of it.
    Raises: ValueError for a word of more than LATEST_S, whose cell would be no number.
    """
    def cell_of(time_s: float) -> int:
        return math.floor((time_s - window_s[0]) * cell_hz)
    row, placed = [NO_WORD] * cells, []
    for start, end, phoneme, *phones in words:
        if not max(abs(start), abs(end)) <= LATEST_S:
            raise ValueError(f"a word from {start:g} to {end:g} s")
        if not (end > window_s[0] and start < window_s[1]):
            placed.append((0, 0, []))
            continue
        first, last = word = cell_of(start), cell_of(end)
        a, b = (min(max(cell, 0), cells) for cell in word)
        ids = table.encode(phoneme) if phoneme else []
        if a < b and phones and phones[0]:
            row[a:b] = fill_phones(phones[0], table, filler, word, cell_of)[a - first:b - first]
        elif a < b and phoneme and filler == "sung":
            row[a:b] = fill_sung(phoneme, table, last - first, 1 / cell_hz)[a - first:b - first]
        elif a < b and phoneme:
            row[a:b] = fill(filler, ids, b - a)
        placed.append((a, max(a, b), ids))
    return row, placed


class Phonemizer:
    """Pronounces plain words, from the checkpoint's lexicon first, else with its model.

    Attributes:
        symbols: the phoneme symbols in the checkpoint's order, without pad, language and end tokens.
        lexicon: words, in lower case, with their IPA.
    """

    def __init__(self, predictor, lexicon: dict[str, str]):
        table, letters = predictor.phoneme_tokenizer, predictor.text_tokenizer
        self.symbols = [table.idx_to_token[i] for i in range(table.vocab_size)
                        if table.idx_to_token[i] not in table.special_tokens]
        self.lexicon = lexicon
        self._letters = set(letters.token_to_idx) - letters.special_tokens
        self._predictor, self._cache = predictor, {}

    def __call__(self, word: str) -> str:
        """The IPA, in `symbols`, of a word of a-z and apostrophes; "" for one that is too long."""
        if word not in self._cache:
            letters, said = word.replace("'", ""), look_up(word, self.lexicon)
            if not said and len(letters) <= MAX_LETTERS and self._letters.issuperset(letters):
                # One word per call: padding beside a longer batch mate can change a prediction.
                said = self._predictor([letters], LANG)[0].phonemes
            self._cache[word] = said
        return self._cache[word]


def look_up(word: str, lexicon: dict[str, str]) -> str:
    """A word's IPA in a lexicon that may lack its apostrophes; "" if it has none."""
    spellings = (word, word.rstrip("'"), word.strip("'"), word.replace("'", ""))
    return next((lexicon[s] for s in spellings if s in lexicon), "")


def load_phonemizer(path: str | Path) -> Phonemizer:
    """Load a forward DeepPhonemizer checkpoint: ours, the library's, or the mirror with renamed modules.

    Nothing in the file is executed, and the global random state is left alone.

    Args:
        path: .pt file with the keys preprocessor, config, model and, optionally, phoneme_dict.
    Returns:
        Phonemizer on the CPU in float32.
    Raises:
        UserError: the file is missing, unreadable, names anything but the expected classes, its tables do
            not fit its weights, or it has more symbols than a SymbolTable takes.
        ImportError: deep-phonemizer is not installed.
    """
    with reading(path, "not a usable DeepPhonemizer checkpoint"):
        phonemizer = Phonemizer(*read_checkpoint(Path(path)))
        SymbolTable(phonemizer.symbols)                          # refuses too many
        return phonemizer
