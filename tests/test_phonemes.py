"""phonemes.py: the published conversion's numbers, what the sung fill rule promises, hostile checkpoints."""

import json
import os
import re
import string
import subprocess
import sys
import types
import warnings
import zipfile

import golden as names
import pytest
import torch
from conftest import BABY, GOLDEN, ROOT
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import config
from config import PHONEMIZER, UserError
from lyrics.pronounce import reader
from lyrics.spoken import LETTERS
from phonemes import CONSONANT_S, FILLER, NO_WORD, VOWELS, WORD_END
from phonemes import SymbolTable, fill, fill_sung, load_phonemizer, phoneme_grid, sung_spans
from support.phonemizer import LANG

DATA = json.loads((GOLDEN / "d_dataset.json").read_text())
SYMBOLS = DATA["tokenizer"]["symbols"]
CASES = [(case, filler) for case in DATA["cases"] for filler in case["results"]]
CELL_S = 512 / 44100
MODULE, MIRROR_MODULE = b"dp.preprocessing.text\n", b"cdeep_phonemizer.preprocessing.text\n"

quick = settings(deadline=None, derandomize=True, max_examples=100, database=None)
ipa = st.text(st.sampled_from([*sorted(VOWELS), *CONSONANT_S, *"ˈˌː. ", "?"]), max_size=16)
anything = st.one_of(ipa, st.text(max_size=12))


@pytest.fixture(scope="module")
def phonemizer():
    return reader(BABY / PHONEMIZER)


@pytest.fixture(scope="module")
def table(phonemizer):
    return SymbolTable(phonemizer.symbols)


# The original's conversion

@pytest.mark.parametrize("case, filler", CASES, ids=lambda x: x["name"][:40] if isinstance(x, dict) else x)
def test_golden_grid(case, filler):
    """Off-by-one cells, lost word ends, wrong clamps at the crop; words without phonemes accepted."""
    known, want = case.get("phonemizer_table", {}), case["results"][filler]
    words = [w | {"phoneme": known[w["word"]]} if w["word"] in known else w for w in case["words"]]
    inputs = (words, SYMBOLS, case["max_frames"], case["latent_frames"], case["start_frame"], filler)
    if "error" in want:
        with pytest.raises((KeyError, ValueError)):
            names.grid(*inputs)
        return
    got = names.grid(*inputs)
    assert got["lrc"].tolist() == [i for i, count in want["lrc_rle"] for _ in range(count)]
    assert [list(span) for span in got["word_spans"]] == want["word_spans"]
    for scalar in names.SCALARS:
        assert got[scalar] == pytest.approx(want[scalar], abs=1e-12)


def test_golden_ids():
    """A shifted table gives every phoneme its neighbour's embedding."""
    assert SymbolTable(SYMBOLS).ids == DATA["tokenizer"]["token_to_id"]
    assert (DATA["tokenizer"]["pad_id"], DATA["tokenizer"]["no_phoneme_id"]) == (FILLER, NO_WORD)
    assert SymbolTable("a?;").ids == {"_": 0, "<en_us>": 1, "<end>": 2, "a": 3, "?": 4, ";": 5,
                                      ".": 6, ",": 7, "!": 8, ":": 9}                  # none twice
    with pytest.raises(ValueError, match="54 phoneme symbols; 53 at most"):
        SymbolTable([chr(0x4e00 + i) for i in range(54)])


@pytest.mark.parametrize("filler", [name for name in config.FILLERS if name != "sung"])
def test_golden_fillers(filler):
    """Leftover cells and too many ids, for every length: where the three rules are easy to get wrong."""
    wrong = [row for row in DATA["fillers"] if fill(filler, row["ids"], row["length"]) != row[filler]]
    assert len(DATA["fillers"]) > 100 and not wrong


# Singing

@quick
@given(anything, st.floats(0, 30))
def test_sung_spans_share_the_word(phoneme, seconds):
    """Gaps, overlaps, lost or swapped sounds, negative lengths, consonants that leave the vowel no time."""
    spans = sung_spans(phoneme, seconds)
    sounds = [c for c in phoneme if c in VOWELS or c in CONSONANT_S]
    assert [c for c, _, _ in spans] == sounds
    if not sounds:
        return
    starts, ends = [a for _, a, _ in spans], [b for _, _, b in spans]
    assert starts[0] == 0 and starts[1:] == ends[:-1]
    assert ends[-1] == pytest.approx(seconds, rel=1e-9, abs=1e-12)
    assert all(b - a >= -1e-12 for a, b in zip(starts, ends))
    if set(sounds) & VOWELS:
        assert sum(b - a for c, a, b in spans if c not in VOWELS) <= 0.5 * seconds + 1e-9


@pytest.mark.parametrize("phoneme, want", [
    ("lʌv", [.08, .84, .08]), ("ˈlʌv.", [.08, .84, .08]), ("baɪ", [.07, .81, .12]), ("ɪɛ", [.5, .5]),
    ("əbʌ", [.65 / 1.65 * .93, .07, .93 / 1.65]), ("ə", [1.0]), ("tʃu", [.052, .078, .87]),
    ("sss", [1 / 3] * 3), ("stɹɛsts", [d * .5 / .64 for d in (.12, .1, .08, .64, .12, .1, .12)])])
def test_sung_rule(phoneme, want):
    """Consonants stretched like vowels, long glides, a schwa held, or affricates sung as two consonants."""
    got = [b - a for _, a, b in sung_spans(phoneme, 1.0)]
    assert got == pytest.approx(want, abs=1e-9)


def test_every_symbol_of_the_model_is_sung(phonemizer):
    """A symbol without a rule would vanish from every sung word."""
    assert set(phonemizer.symbols) <= VOWELS | CONSONANT_S.keys()


@quick
@given(phoneme=anything, more=st.integers(-3, 6) | st.integers(0, 400), cell_s=st.sampled_from([CELL_S, 1]))
@example("ʌststsst", 1, CELL_S)
@example("ststsstʌ", 1, CELL_S)
def test_fill_sung(table, phoneme, more, cell_s):
    """Rows of a wrong length, sounds squeezed out although there is room, a missing word end, foreign ids."""
    ids = table.encode(phoneme)
    cells = max(len(ids) + more, 1)
    row = fill_sung(phoneme, table, cells, cell_s)
    sounds = [table.ids[c] for c in phoneme if c in table.ids and (c in VOWELS or c in CONSONANT_S)]
    assert len(row) == cells
    if not sounds:
        return
    assert set(row) <= {*ids, FILLER}
    if cells > len(sounds):
        assert row[-1] == WORD_END or len(ids) > len(sounds) + 1
    if cells > len(ids):
        runs = [i for k, i in enumerate(row) if k == 0 or row[k - 1] != i]
        merged = [i for k, i in enumerate([*sounds, WORD_END]) if k == 0 or sounds[k - 1] != i]
        assert runs == merged and row.count(WORD_END) == 1


@quick
@given(start=st.floats(0, 4), length=st.floats(0.05, 3), crop=st.integers(0, 40), phoneme=ipa)
def test_sung_word_is_cut_not_squeezed(table, start, length, crop, phoneme):
    """A word at a crop's edge laid out unlike in the whole song: sound and phonemes would not meet."""
    frame_s, frames, words = 512 / 24000, 40, [(start, start + length, phoneme)]
    # Right on a cell's border rounding decides, and differs with the crop.
    assume(all(abs(t * 187.5 - round(t * 187.5)) > 1e-6 for t in (start, start + length)))

    def lay(first, count):
        window = (first * frame_s, (first + count) * frame_s)
        return phoneme_grid(words, table, "sung", 4 * count, window, 4 * 24000 / 512)[0]

    whole, part = lay(0, 400), lay(crop, frames)
    assert part == whole[4 * crop:4 * (crop + frames)]


# Pronunciation

@pytest.mark.slow
def test_numbers_and_letters_are_sung(phonemizer):
    """A number with a part unsaid; a letter of a code read as the article, as a sound or by a wrong name."""
    assert phonemizer("24") == phonemizer("twenty") + phonemizer("four")
    assert phonemizer("1" * 500) == phonemizer("one") * 500
    for letter in set(LETTERS) - {"a"}:
        assert phonemizer(f"{letter}1") == phonemizer(letter) + phonemizer("one")
    assert phonemizer("a1") == "eɪwʌn" and phonemizer("A") == "ə"


def test_pronounces(phonemizer):
    """Words of the lexicon and others, however they are written; a sound that the model has no id for."""
    assert phonemizer("love") == "lʌv" and phonemizer("hello") == "həloʊ"
    for same in ("Hello", "HELLO!", " hello ", "“hello”", "héllo"):
        assert phonemizer(same) == phonemizer("hello")
    assert phonemizer("don’t") == phonemizer("don't") == "doʊnt"
    assert phonemizer("love-hello") == phonemizer("love") + phonemizer("hello")
    made_up = phonemizer("zorbling")
    assert "zorbling" not in phonemizer.phonemizer.lexicon and set(made_up) & VOWELS and made_up[0] == "z"


def test_too_long_a_word_is_refused(phonemizer):
    """A word beyond the model's positions: an IndexError in it, or minutes of work."""
    assert phonemizer("ab" * 51) == phonemizer("love-" + "ab" * 51) == ""


@quick
@given(word=st.one_of(st.text(max_size=8), st.text("abcÉ'’-. ", max_size=8)))
def test_any_text_is_pronounced_in_known_symbols(phonemizer, word):
    """A crash or foreign symbol for an odd word."""
    assert set(phonemizer(word)) <= set(phonemizer.symbols)


# Checkpoints

def rewrite(path, change, source=BABY / PHONEMIZER):
    """Copy a checkpoint with the bytes of its pickle changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("data.pkl") else content)
    return path


class RegexpTokenizer:
    """Stands for a class of nltk that a fork's tokenizers hold."""
    __module__ = "nltk.tokenize.regexp"

    def __init__(self):
        self._regexp, self._flags = re.compile("a|b"), re.UNICODE | re.DOTALL


def stand_in(path, monkeypatch, layout, symbols, entries=None):
    """Save a tiny checkpoint made by the library. layout: library, mirror (renamed modules), fork.

    Returns: the library's own predictor of the same model.
    """
    from dp.model.model import ForwardTransformer
    from dp.model.predictor import Predictor
    from dp.preprocessing.text import Preprocessor
    preprocessing = {"languages": [LANG], "text_symbols": string.ascii_letters, "phoneme_symbols": symbols,
                     "char_repeats": 2, "lowercase": True}
    config = {"preprocessing": preprocessing, "model": {
        "type": "transformer", "d_model": 16, "d_fft": 16, "layers": 1, "dropout": 0.1, "heads": 2}}
    preprocessor = Preprocessor.from_config(config)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = ForwardTransformer.from_config(config).eval()
    if layout == "fork":                # more attributes of other classes, and a config in another order
        preprocessing["phoneme_symbols"] = sorted(symbols)
        for tokenizer in (preprocessor.text_tokenizer, preprocessor.phoneme_tokenizer):
            tokenizer.tokenizer = RegexpTokenizer()
    with monkeypatch.context() as context:
        for name in ("nltk", "nltk.tokenize", RegexpTokenizer.__module__):
            context.setitem(sys.modules, name, types.SimpleNamespace(RegexpTokenizer=RegexpTokenizer))
        torch.save({"preprocessor": preprocessor, "config": config, "model": model.state_dict(), "step": 7,
                    "phoneme_dict": entries and {LANG: entries}, "optimizer": {"state": {}}}, path)
    if layout != "library":
        path.rename(path.with_suffix(".dp"))
        rewrite(path, lambda content: content.replace(b"c" + MODULE, MIRROR_MODULE), path.with_suffix(".dp"))
    return Predictor(model, preprocessor)


@pytest.mark.parametrize("layout", ["library", "mirror", "fork"])
def test_layouts(layout, tmp_path, monkeypatch):
    """The official size of the table in each of the known layouts: other ids, another model's words."""
    predictor = stand_in(tmp_path / "p.pt", monkeypatch, layout, SYMBOLS[::-1])
    classes = torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "p.pt")
    assert all(name.startswith("dp.") for name in classes) == (layout == "library")
    assert ({"re._compile", "nltk.tokenize.regexp.RegexpTokenizer"} <= set(classes)) == (layout == "fork")
    state = torch.get_rng_state()
    phonemizer = load_phonemizer(tmp_path / "p.pt")
    assert torch.equal(torch.get_rng_state(), state) and "nltk.tokenize.regexp" not in sys.modules
    assert phonemizer.symbols == SYMBOLS[::-1] and len(SYMBOLS) == 53
    assert len(SymbolTable(phonemizer.symbols).ids) == 62
    said = [phonemizer(word) for word in ("hello", "zorbling", "vexomatic")]
    assert said == [p.phonemes for p in predictor(["hello", "zorbling", "vexomatic"], LANG, batch_size=1)]
    assert all(said) and len(set(said)) > 1


def test_official_lexicon(tmp_path, monkeypatch):
    """Entries as the library makes them: with capitals, without apostrophes, some of them empty."""
    entries = {"Polish": "poʊlɪʃ", "polish": "pɑlɪʃ", "Paris": "pæɹɪs", "dont": "doʊnt", "empty": "", "": "a"}
    predictor = stand_in(tmp_path / "p.pt", monkeypatch, "library", SYMBOLS, entries)
    phonemizer = reader(tmp_path / "p.pt")
    assert [phonemizer(w) for w in ("Polish", "paris", "Don't")] == ["pɑlɪʃ", "pæɹɪs", "doʊnt"]
    assert phonemizer("empty") == predictor(["empty"], LANG)[0].phonemes != ""
    stand_in(tmp_path / "bad.pt", monkeypatch, "library", SYMBOLS, {"love": ["l", "ʌ", "v"]})
    with pytest.raises(UserError, match="its phoneme_dict is not a table of strings"):
        load_phonemizer(tmp_path / "bad.pt")
    stand_in(tmp_path / "text.pt", monkeypatch, "library", SYMBOLS, "don't\tdoʊnt\nlove\tlʌv")
    assert load_phonemizer(tmp_path / "text.pt").lexicon == {"don't": "doʊnt", "love": "lʌv"}
    stand_in(tmp_path / "cut.pt", monkeypatch, "library", SYMBOLS, "love\tlʌv\nlost")
    with pytest.raises(UserError, match="not a usable DeepPhonemizer checkpoint"):
        load_phonemizer(tmp_path / "cut.pt")


def test_symbols_that_are_punctuation(tmp_path, monkeypatch):
    """Punctuation in the checkpoint's symbols getting a second id, or moved behind the others."""
    stand_in(tmp_path / "p.pt", monkeypatch, "mirror", ["a", ".", "b", "!", "c"])
    ids = SymbolTable(load_phonemizer(tmp_path / "p.pt").symbols).ids
    assert list(ids) == ["_", "<en_us>", "<end>", "a", ".", "b", "!", "c", ",", "?", ":", ";"]
    assert list(ids.values()) == list(range(12))


@pytest.mark.parametrize("more, most", [("☉", 53), (".☉", 54)])
def test_too_many_symbols(more, most, tmp_path, monkeypatch):
    """An id that is the grid's FILLER or NO_WORD; a traceback instead of a line that names the file."""
    stand_in(tmp_path / "p.pt", monkeypatch, "library", [*SYMBOLS, *more[:-1]])
    assert len(SymbolTable(load_phonemizer(tmp_path / "p.pt").symbols).ids) == 62
    stand_in(tmp_path / "p.pt", monkeypatch, "library", [*SYMBOLS, *more])
    with pytest.raises(UserError, match=f"{most + 1} phoneme symbols; {most} at most") as caught:
        load_phonemizer(tmp_path / "p.pt")
    assert str(caught.value).startswith(f"{tmp_path / 'p.pt'}: ") and "\n" not in str(caught.value)


def test_mirror_layout(tmp_path, phonemizer):
    """The mirror's file names its classes deep_phonemizer.*: the library's own loader cannot read it."""
    path = rewrite(tmp_path / "mirror.pt", lambda pickle: pickle.replace(b"c" + MODULE, MIRROR_MODULE))
    classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    assert len(classes) == 3 and all(name.startswith("deep_phonemizer.") for name in classes)
    mirror = load_phonemizer(path)
    assert mirror.symbols == phonemizer.symbols and mirror.lexicon == phonemizer.phonemizer.lexicon
    for word in ("hello", "zorbling", "vexomatic", "quandiferous"):
        assert mirror(word) == phonemizer(word) != ""


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_checkpoint_is_refused(zipped, tmp_path):
    """A pickle that names os.system must not run it."""
    path, mark = tmp_path / "evil.pt", tmp_path / "ran"
    torch.save({"model": {}, "config": Evil(f"touch {mark}")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="not a usable DeepPhonemizer checkpoint") as caught:
        load_phonemizer(path)
    assert not mark.exists() and "\n" not in str(caught.value)
    assert "system" in str(caught.value) or not zipped


@pytest.mark.parametrize("content", [b"", b"garbage" * 50, b"PK\x03\x04" + b"\0" * 99, "cut", "half", None])
def test_broken_checkpoint(content, tmp_path):
    """A traceback for a file that is missing, garbage or cut off in a download."""
    path, whole = tmp_path / "p.pt", (BABY / PHONEMIZER).read_bytes()
    if content is not None:
        path.write_bytes({"cut": whole[:-100], "half": whole[:len(whole) // 2]}.get(content, content))
    with pytest.raises(UserError) as caught:
        load_phonemizer(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [
    lambda c: [], lambda c: {}, lambda c: c | {"config": {"model": {"type": "autoreg_transformer"}}},
    lambda c: c | {"model": {}}, lambda c: c | {"preprocessor": None},
    lambda c: c | {"model": {"embedding.weight": 3}}])
def test_foreign_checkpoint(change, tmp_path):
    """A checkpoint of something else: KeyError or AttributeError instead of one line."""
    path = tmp_path / "other.pt"
    sizes = {"type": "transformer", "d_model": 8, "d_fft": 8, "layers": 1, "dropout": 0.0, "heads": 1}
    weights = {"embedding.weight": torch.zeros(3, 8), "fc_out.weight": torch.zeros(3, 8)}
    torch.save(change({"config": {"model": sizes}, "model": weights, "preprocessor": {}}), path)
    with pytest.raises(UserError, match="not a usable DeepPhonemizer checkpoint"):
        load_phonemizer(path)


@settings(quick, max_examples=150)
@given(content=st.binary(max_size=40), protocol=st.booleans())
def test_any_pickle_is_refused_in_one_line(tmp_path_factory, content, protocol):
    """Damaged pickle bytes reach many different exceptions of the unpickler."""
    folder = tmp_path_factory.getbasetemp()
    if not (folder / "small.pt").exists():
        torch.save({}, folder / "small.pt")
    start = b"\x80\x02" * protocol
    path = rewrite(folder / "fuzz.pt", lambda _: start + content, folder / "small.pt")
    with pytest.raises(UserError):
        load_phonemizer(path)


def test_libraries_are_imported_late():
    """Reading data or running a model must not need deep-phonemizer, nor a song without numbers inflect."""
    code = ("import sys, phonemes, lyrics.spoken; lyrics.spoken.spoken('Mr-X'); "
            "sys.exit(len({'dp', 'inflect'} & {*sys.modules}))")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_names_of_fill_rules():
    """A name that no rule has must not pass for one of them: config.py lists those that phonemes.py knows."""
    assert len(config.FILLERS) == 4
    with pytest.raises(KeyError):
        fill("unknown", [5], 4)


# Sounds with times of their own

PHONES = [("h", 1.0, 1.05), ("ə", 1.05, 1.5), ("l", 1.5, 1.6), ("oʊ", 1.6, 2.0)]


def grid_of(table, filler, phones, word=(1.0, 2.0), window=(0.0, 4.0), cells=400):
    row, _ = phoneme_grid([(*word, "həloʊ", phones)], table, filler, cells, window, 100)
    return row


def test_phones_begin_in_their_own_cells(table):
    """Times that the user gave, moved by a rule that spreads sounds evenly."""
    row = grid_of(table, "average_sparse", PHONES)
    ids = table.ids
    assert {i: token for i, token in enumerate(row) if token not in (FILLER, NO_WORD)} == {
        100: ids["h"], 105: ids["ə"], 150: ids["l"], 160: ids["o"], 180: ids["ʊ"], 199: WORD_END}
    assert row[99] == row[200] == NO_WORD and row[101] == FILLER
    sung = grid_of(table, "sung", PHONES)
    assert sung[100:105] == [ids["h"]] * 5 and sung[105:150] == [ids["ə"]] * 45
    assert sung[180:199] == [ids["ʊ"]] * 19 and sung[199] == WORD_END


def test_phones_are_cut_by_the_window(table):
    """A crop whose cells are not those of the whole song."""
    for filler in ("average_sparse", "sung"):
        whole = grid_of(table, filler, PHONES)
        assert grid_of(table, filler, PHONES, window=(1.25, 1.75), cells=50) == whole[125:175]


@quick
@given(st.lists(st.floats(0.5, 2.5), min_size=8, max_size=8), st.sampled_from(["average_sparse", "sung"]))
def test_any_phones_stay_in_their_word(table, times, filler):
    """Sounds before the word, after it, or of no length: other words' cells, or an index that is none."""
    spans = [tuple(sorted(times[i:i + 2])) for i in range(0, 8, 2)]
    row = grid_of(table, filler, [(text, *span) for text, span in zip(("h", "ə", "l", "oʊ"), spans)])
    assert len(row) == 400 and set(row[:100] + row[200:]) == {NO_WORD} and NO_WORD not in row[100:200]


def test_own_times_change_nothing_else(table):
    """The published rule for words without times of their own."""
    plain = phoneme_grid([(1.0, 2.0, "həloʊ")], table, "average_sparse", 400, (0.0, 4.0), 100)
    assert plain == phoneme_grid([(1.0, 2.0, "həloʊ", [])], table, "average_sparse", 400, (0.0, 4.0), 100)
