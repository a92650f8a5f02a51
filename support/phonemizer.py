"""Checkpoint files of DeepPhonemizer, which are pickles, read without running anything in them.

Read `read_once`, then `unpickle` (which classes a file may name) and `read_table` (what its symbol tables
must hold).
"""

import functools
import re
import typing
import warnings
from pathlib import Path

LANG = "en_us"
# The library's three classes under its own and under the mirror's module name, then what the tokenizers of
# the public fork (probably the mirror's origin) refer to. All of them are read as inert Records.
ALLOWED = re.compile(
    r"(dp|deep_phonemizer)\.preprocessing\.text\.(Preprocessor|LanguageTokenizer|SequenceTokenizer)"
    r"|nltk\.tokenize\.regexp\.RegexpTokenizer|nltk\.redos\.TimedPattern|re\._compile|re\.RegexFlag"
    r"|regex\._regex\.compile|regex\._regex_core\.RegexFlag|builtins\.object|copyreg\._reconstructor")


class Record:
    """Stands in for every class that a checkpoint names: takes any arguments and does nothing."""

    def __init__(self, *args):
        pass


def read_checkpoint(path: Path) -> tuple:
    """A checkpoint's Predictor, on the CPU, and its lexicon; an unchanged file is read only once.

    Raises: any of READ_ERRORS if it is not a forward DeepPhonemizer; ImportError if the library is missing.
    """
    about = path.stat()
    return read_once(path.resolve(), about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=2)
def read_once(path: Path, size: int, changed_ns: int) -> tuple:
    """As `read_checkpoint`; size and time of change are the cache's keys."""
    import torch
    try:
        from dp.model.model import ForwardTransformer
        from dp.model.predictor import Predictor
        from dp.model.utils import PositionalEncoding
        from dp.preprocessing.text import Preprocessor, SequenceTokenizer
    except ImportError as error:
        raise ImportError("pronouncing words needs: pip install deep-phonemizer==0.0.19") from error
    checkpoint = unpickle(path)
    config = checkpoint["config"]["model"]
    if config["type"] != "transformer":
        raise ValueError(f"a model of type {config['type']!r}, not 'transformer'")

    # The symbol tables are the file's: a fork's config may not reproduce their order.
    weights = {key: value.float() for key, value in checkpoint["model"].items()}
    tokenizers = [SequenceTokenizer([], [], 1), SequenceTokenizer([], [], 1)]
    for tokenizer, side, layer in zip(tokenizers, ("text", "phoneme"), ("embedding", "fc_out")):
        fields = vars(vars(checkpoint["preprocessor"])[f"{side}_tokenizer"])
        read_table(tokenizer, fields, side, len(weights[f"{layer}.weight"]))

    # The embedded model's file leaves out this fixed table of sinusoids.
    weights.setdefault("pos_encoder.pe", PositionalEncoding(weights["embedding.weight"].shape[1]).pe)
    # Not on the meta device, where nn.Embedding would load torch's compiler, for 1 s.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="enable_nested_tensor")
        model = ForwardTransformer(*(tokenizer.vocab_size for tokenizer in tokenizers), **{
            name: config[name] for name in ("d_model", "d_fft", "layers", "dropout", "heads")})
    model.load_state_dict(weights, strict=True, assign=True)

    lexicon = (checkpoint.get("phoneme_dict") or {}).get(LANG, {})
    if isinstance(lexicon, str):                             # the embedded model's: word, IPA, word, IPA, ...
        parts = lexicon.split()                              # a fortieth of the time that a table takes
        lexicon = dict(zip(parts[::2], parts[1::2], strict=True))
    elif all(isinstance(text, str) for pair in lexicon.items() for text in pair):
        # Words are sorted, so that "polish" wins over "Polish".
        lexicon = {word.lower(): lexicon[word] for word in sorted(lexicon) if lexicon[word]}
    else:
        raise ValueError("its phoneme_dict is not a table of strings")
    return Predictor(model.eval(), Preprocessor(None, *tokenizers)), lexicon


def unpickle(path: Path) -> dict:
    """Read a checkpoint without running anything in it. Raises: ValueError for a class not in ALLOWED."""
    import torch
    from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

    names = get_unsafe_globals_in_checkpoint(path)               # reads the pickle's opcodes, runs nothing
    refused = sorted(name for name in names if not ALLOWED.fullmatch(name))
    if refused:
        raise ValueError(f"it names {', '.join(refused)}, which may run code")
    with safe_globals([(Record, name) for name in names]):
        return torch.load(path, map_location="cpu", weights_only=True)


def read_table(tokenizer: typing.Any, fields: dict, side: str, rows: int) -> None:
    """Fill the "text" or "phoneme" tokenizer with its fields in a checkpoint.

    Raises: ValueError or KeyError if one is missing, or if they do not fit each other and `rows` ids.
    """
    vars(tokenizer).update({name: fields[name] for name in vars(tokenizer)})
    tokens, ids = tokenizer.idx_to_token, tokenizer.token_to_idx
    if not tokenizer.vocab_size == len(ids) == len(tokens) == rows:
        raise ValueError(f"{len(tokens)} {side} symbols, but weights for {rows}")
    if sorted(tokens) != list(range(rows)) or {token: i for i, token in tokens.items()} != ids:
        raise ValueError(f"the two {side} symbol tables disagree")
    if LANG not in tokenizer.languages:
        raise ValueError(f"its languages are {tokenizer.languages}, without {LANG!r}")
