"""Text -> phonemes -> ids -> the grid of four cells per latent frame that the network reads.

Read `sung_spans` (how a word's time is shared among its sounds), then `phoneme_grid`, then `Phonemizer`.
T latent frames, L = 4T cells. Source: the published JAM-0.5 data conversion, checked by golden values.
"""

import functools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from config import READ_ERRORS, UserError
from spoken import APOSTROPHES, spoken

CELLS_PER_FRAME = 4
WORD_END = 0                          # of the phonemizer's special tokens (0..2) the only one on the grid
FILLER, NO_WORD = 62, 63              # inside a word but no phoneme here; outside of any word
PUNCTUATION = ".,?!:;"
VOWELS = frozenset("aeiouyøæɐɑɒɔəɛɜɝɚɪʊʌ")
DIPHTHONGS = frozenset(["aɪ", "aʊ", "eɪ", "oʊ", "ɔɪ"])
GLIDE_S = 0.12                        # how long the second half of a diphthong takes at most
# Seconds that a consonant takes in a word with room to spare; weak sounds are short, so that a phrase is
# heard to begin where its first word does.
CONSONANT_S = {"h": .05, "ð": .05, "b": .05, "d": .05, "ɡ": .05, "g": .05, "j": .06, "w": .06, "l": .06,
               "ɹ": .06, "r": .06, "v": .06, "k": .07, "p": .07, "t": .07, "m": .07, "n": .07, "ŋ": .08,
               "θ": .08, "f": .08, "z": .09, "ʒ": .09, "ʃ": .11, "s": .11}
AFFRICATES = {"tʃ": .11, "dʒ": .09}

LANG = "en_us"
# The library's three classes under its own and under the mirror's module name, then what the tokenizers of
# the public fork (the mirror's likely maker) drag along. All of them are read as inert _Records.
ALLOWED = re.compile(
    r"(dp|deep_phonemizer)\.preprocessing\.text\.(Preprocessor|LanguageTokenizer|SequenceTokenizer)"
    r"|nltk\.tokenize\.regexp\.RegexpTokenizer|nltk\.redos\.TimedPattern|re\._compile|re\.RegexFlag"
    r"|regex\._regex\.compile|regex\._regex_core\.RegexFlag|builtins\.object|copyreg\._reconstructor")
TABLE_FIELDS = ("languages", "lowercase", "char_repeats", "append_start_end", "pad_index", "token_to_idx",
                "special_tokens", "end_index", "idx_to_token", "vocab_size")
MAX_LETTERS = 100                      # longer is no word; the model ends at 5000 positions, several a letter


def sung_spans(phoneme: str, seconds: float) -> list[tuple[str, float, float]]:
    """Share a sung word's time among its sounds: consonants keep their length, the vowels share the rest.

    Args: phoneme, IPA characters (marks such as stress take no time); seconds, the word's length.
    Returns: (character, start, end) in seconds from the word's start, in order, without gaps.
    """
    sounds = [c for c in phoneme if c in VOWELS or c in CONSONANT_S]
    pairs = [a + b for a, b in zip(sounds, [*sounds[1:], ""])]
    glides = {i + 1 for i, pair in enumerate(pairs) if pair in DIPHTHONGS}
    length = [0.0 if c in VOWELS else CONSONANT_S[c] for c in sounds]
    for i, pair in enumerate(pairs):
        if pair in AFFRICATES:
            length[i:i + 2] = [0.4 * AFFRICATES[pair], 0.6 * AFFRICATES[pair]]
    nuclei = [i for i, c in enumerate(sounds) if c in VOWELS and i not in glides]
    room, consonants = (0.5 * seconds if nuclei else seconds), sum(length)
    if consonants and (consonants > room or not nuclei):
        length = [d * room / consonants for d in length]
    for i in nuclei:
        length[i] = (seconds - sum(d for j, d in enumerate(length) if sounds[j] not in VOWELS)) / len(nuclei)
    for i in glides:
        length[i] = min(GLIDE_S, 0.4 * length[i - 1])
        length[i - 1] -= length[i]
    spans, at = [], 0.0
    for c, d in zip(sounds, length):
        spans.append((c, at, at + d))
        at += d
    return spans


class SymbolTable:
    """Phoneme characters <-> ids: the phonemizer's special tokens, its symbols in its order, punctuation."""

    def __init__(self, symbols: Sequence[str]):
        names = ["_", "<en_us>", "<end>", *symbols, *(p for p in PUNCTUATION if p not in symbols)]
        if len(names) > FILLER:
            raise ValueError(f"{len(symbols)} phoneme symbols; "
                             f"{FILLER - len(names) + len(symbols)} at most have an id")
        self.ids = {name: i for i, name in enumerate(names)}

    def encode(self, phoneme: str) -> list[int]:
        """Ids of an IPA string, character by character, with a word end behind; unknown ones are left out."""
        return [self.ids[c] for c in phoneme.removesuffix("_") + "_" if c in self.ids]


def average_sparse(ids: list[int], cells: int) -> list[int]:
    """Ids at equal distances, FILLER between them and in the rest at the end. JAM-0.5 was trained on it."""
    span = cells // len(ids)
    row = [FILLER] * cells
    row[:span * len(ids):span] = ids
    return row


def average_repeat(ids: list[int], cells: int) -> list[int]:
    """Each id repeated equally often, the first ones once more."""
    each, more = divmod(cells, len(ids))
    return [i for k, i in enumerate(ids) for _ in range(each + (k < more))]


def pad_right(ids: list[int], cells: int) -> list[int]:
    """Ids first, FILLER after them."""
    return ids + [FILLER] * (cells - len(ids))


FILL_RULES = {"average_sparse": average_sparse, "average_repeat": average_repeat, "pad_right": pad_right}


def fill(filler: str, ids: list[int], cells: int) -> list[int]:
    """A word's ids in `cells` cells by one of FILL_RULES; of too many ids the first ones."""
    if not ids:
        return [FILLER] * max(cells, 0)
    return ids[:max(cells, 0)] if len(ids) >= cells else FILL_RULES[filler](ids, cells)


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


def fill_phones(phones: Iterable[tuple[str, float, float]], table: SymbolTable, filler: str, cells: int,
                cell_of: Callable[[float], int]) -> list[int]:
    """A word's cells where its sounds have times of their own: each begins in its very cell.

    Args: phones (IPA, start, end); one of several characters, such as a diphthong, shares its time among
        them. cell_of, the cell of a time, 0 at the word's start. "sung" repeats an id until its end, with
        the other rules FILLER follows it.
    """
    row = [FILLER] * cells
    for text, start, end in phones:
        ids = [table.ids[c] for c in text if c in table.ids]
        for k, token in enumerate(ids):
            a, b = (cell_of(start + (end - start) * x / len(ids)) for x in (k, k + 1))
            a = min(max(a, 0), cells - 1)
            b = min(max(b, a + 1), cells) if filler == "sung" else a + 1
            row[a:b] = [token] * (b - a)
    if row[-1] == FILLER or filler == "sung" and row[-2:-1] == row[-1:]:         # there is room for it
        row[-1] = WORD_END
    return row


def phoneme_grid(words: Iterable[tuple], table: SymbolTable, filler: str, cells: int,
                 window_s: tuple[float, float],
                 cell_hz: float) -> tuple[list[int], list[tuple[int, int, list[int]]]]:
    """Lay words on the grid of the latent frames in window_s.

    Args: words (start, end, phoneme[, phones]), seconds in the song, phones as in `fill_phones`; cells, of
        the padded grid; window_s, the song's part that is seen; cell_hz, cells a second.
    Returns: ids, one per cell; and for each word (first cell, end cell, ids), to see what found no room.
    Differs: "sung" cuts a word at the window's edge; the original's rules squeeze it all into what is left.
    """
    row, placed = [NO_WORD] * cells, []
    for start, end, phoneme, *phones in words:
        if not (end > window_s[0] and start < window_s[1]):
            placed.append((0, 0, []))
            continue
        first, last = (math.floor((t - window_s[0]) * cell_hz) for t in (start, end))
        a, b = (min(max(cell, 0), cells) for cell in (first, last))
        ids = table.encode(phoneme) if phoneme else []
        if a < b and phones and phones[0]:
            row[a:b] = fill_phones(phones[0], table, filler, last - first, lambda t, first=first: math.floor(
                (t - window_s[0]) * cell_hz) - first)[a - first:b - first]
        elif a < b and phoneme and filler == "sung":
            row[a:b] = fill_sung(phoneme, table, last - first, 1 / cell_hz)[a - first:b - first]
        elif a < b and phoneme:
            row[a:b] = fill(filler, ids, b - a)
        placed.append((a, max(a, b), ids))
    return row, placed


class _Record:
    """Stands for every class named in a checkpoint: takes any arguments and does nothing."""

    def __init__(self, *args):
        pass


def _unpickle(path: str | Path) -> dict:
    """Reads a checkpoint without running anything in it. Raises: ValueError for a class not in ALLOWED."""
    names = get_unsafe_globals_in_checkpoint(path)               # reads the pickle's opcodes, runs nothing
    refused = sorted(name for name in names if not ALLOWED.fullmatch(name))
    if refused:
        raise ValueError(f"it asks for {', '.join(refused)}")
    with safe_globals([(_Record, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_table(checkpoint: dict, side: str, rows: int) -> dict:
    """Returns the fields of the "text" or "phoneme" tokenizer in a checkpoint, checked for `rows` ids."""
    fields = vars(vars(checkpoint["preprocessor"])[f"{side}_tokenizer"])
    table = {name: fields[name] for name in TABLE_FIELDS}
    tokens = table["idx_to_token"]
    if not table["vocab_size"] == len(table["token_to_idx"]) == len(tokens) == rows:
        raise ValueError(f"{len(tokens)} {side} symbols, but weights for {rows}")
    if sorted(tokens) != list(range(rows)) or {t: i for i, t in tokens.items()} != table["token_to_idx"]:
        raise ValueError(f"the two {side} symbol tables disagree")
    if LANG not in table["languages"]:
        raise ValueError(f"it speaks {table['languages']}, not {LANG!r}")
    return table


def _read_lexicon(checkpoint: dict) -> dict[str, str]:
    """Returns a checkpoint's words, in lower case, with their IPA; {} if it has none."""
    lexicon = (checkpoint.get("phoneme_dict") or {}).get(LANG, {})
    if not all(isinstance(text, str) for pair in lexicon.items() for text in pair):
        raise ValueError("its phoneme_dict is not a table of strings")
    # Sorted, so that of "Polish" and "polish" the latter counts.
    return {word.lower(): lexicon[word] for word in sorted(lexicon) if lexicon[word]}


def _read_model(checkpoint: dict) -> tuple:
    """Builds the arguments of a Phonemizer. Raises: any of READ_ERRORS if it is no forward DeepPhonemizer."""
    from dp.model.model import ForwardTransformer
    from dp.model.predictor import Predictor
    from dp.model.utils import PositionalEncoding
    from dp.preprocessing.text import Preprocessor, SequenceTokenizer
    config = checkpoint["config"]["model"]
    if config["type"] != "transformer":
        raise ValueError(f"a model of type {config['type']!r}, not 'transformer'")
    weights = {key: value.float() for key, value in checkpoint["model"].items()}
    tables = [_read_table(checkpoint, "text", weights["embedding.weight"].shape[0]),
              _read_table(checkpoint, "phoneme", weights["fc_out.weight"].shape[0])]
    # Our file leaves this fixed table of sinusoids out.
    weights.setdefault("pos_encoder.pe", PositionalEncoding(weights["embedding.weight"].shape[1]).pe)
    with warnings.catch_warnings(), torch.device("meta"):        # meta: no random numbers drawn for weights
        warnings.filterwarnings("ignore", message="enable_nested_tensor")
        model = ForwardTransformer(*(table["vocab_size"] for table in tables), **{
            name: config[name] for name in ("d_model", "d_fft", "layers", "dropout", "heads")})
    model.load_state_dict(weights, strict=True, assign=True)
    tokenizers = [SequenceTokenizer([], [], 1), SequenceTokenizer([], [], 1)]
    for tokenizer, table in zip(tokenizers, tables):
        vars(tokenizer).update(table)  # the file's tables: a fork's config may not reproduce their order
    return Predictor(model.eval(), Preprocessor(None, *tokenizers)), _read_lexicon(checkpoint)


@functools.lru_cache(maxsize=2)
def _read(path: str, size: int, changed_ns: int) -> tuple:
    """As `_read_model`, once while a file is the same: size and time of change are only the cache's."""
    return _read_model(_unpickle(path))


def load_phonemizer(path: str | Path) -> "Phonemizer":
    """Loads a forward DeepPhonemizer checkpoint: ours, the library's, or the mirror with renamed modules.

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
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file, expected a DeepPhonemizer checkpoint (.pt)")
    try:
        about = Path(path).stat()
        phonemizer = Phonemizer(*_read(str(Path(path).resolve()), about.st_size, about.st_mtime_ns))
        SymbolTable(phonemizer.symbols)                          # refuses too many
    except ImportError as error:
        raise ImportError("pronouncing words needs: pip install deep-phonemizer==0.0.19") from error
    except READ_ERRORS as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"{path}: not a usable DeepPhonemizer checkpoint: {reason}") from error
    return phonemizer


class Phonemizer:
    """Pronounces one word at a time, from the lexicon first, else with the model.

    Attributes:
        symbols: the phoneme symbols in the checkpoint's order, without pad, language and end tokens.
    """

    def __init__(self, predictor, lexicon: dict[str, str]):
        table = predictor.phoneme_tokenizer
        self.symbols = [table.idx_to_token[i] for i in range(table.vocab_size)
                        if table.idx_to_token[i] not in table.special_tokens]
        self._letters = set(predictor.text_tokenizer.token_to_idx) - predictor.text_tokenizer.special_tokens
        self._predictor, self._lexicon, self._cache = predictor, lexicon, {}
        self._own: dict[str, str] = {}                           # what the user taught

    def __call__(self, word: str) -> str:
        """Returns the IPA of one word.

        Args:
            word: as `spoken` takes it.
        Returns:
            IPA of `symbols`, or "" if anything of it cannot be read or there is nothing: nothing is left
            out of a word silently.
        """
        if self._bare(word) in self._own:
            return self._own[self._bare(word)]
        said = [self._pronounce(part) for part in spoken(word)]
        return "".join(said) if all(said) else ""

    def learn(self, lexicon: dict[str, str]) -> None:
        """Add words with their IPA; they win over all that is known, also of numbers and signs."""
        self._cache.clear()
        self._own |= {self._bare(word): phoneme for word, phoneme in lexicon.items()}

    @staticmethod
    def _bare(word: str) -> str:
        """A word without case and without the punctuation around it."""
        return re.sub(r"^[^\w$€£#&@']+|[^\w%¢&']+$", "", word.translate(APOSTROPHES).lower())

    def knows(self, word: str) -> bool:
        """Whether the lexicon has all parts of a word; others are guessed from their letters."""
        return self._bare(word) in self._own or all(self._entry(part) for part in spoken(word))

    def _entry(self, word: str) -> str:
        """The lexicon's IPA of a part, "" if it has none."""
        spellings = (word, word.rstrip("'"), word.strip("'"), word.replace("'", ""))
        return next((table[s] for table in (self._own, self._lexicon) for s in spellings if s in table), "")

    def _pronounce(self, word: str) -> str:
        if word not in self._cache:
            bare = word.replace("'", "")
            if self._entry(word):
                self._cache[word] = self._entry(word)
            elif len(bare) > MAX_LETTERS or not self._letters.issuperset(bare):
                self._cache[word] = ""
            else:  # one word per call: padding beside a longer batch mate can change a prediction
                self._cache[word] = self._predictor([bare], LANG)[0].phonemes
        return self._cache[word]
