"""The timing model of lyrics: songs of lines of words, seconds everywhere; what is wrong with one; commands.

    python lyrics.py plan song.txt -o plan.lrc        words get times (plan.py)
    python lyrics.py check plan.lrc                   what could go wrong in singing
    python lyrics.py convert plan.lrc plan.ass        any format to any (formats.py)
    python lyrics.py align song.mp3 song.txt -o song.lrc      times from a recording (align.py)

Read `Word`, `Line`, `Lyrics`, then `words_in` (a text's words and pronunciations), `pronounce`, `check`.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cli import command, find, read_text, replacing, run
from config import PRESETS, AlignConfig, CheckConfig, ConvertConfig, PlanConfig, UserError
from phonemes import CELLS_PER_FRAME, CONSONANT_S, DIPHTHONGS, PUNCTUATION, VOWELS, Phonemizer, SymbolTable
from phonemes import load_phonemizer, sung_spans

HELD = "~"                     # in a word: held for longer; as a syllable: the last one's vowel goes on
OVERLAP_S = 0.001              # what rounding in other people's files may overlap
LONGEST_GAP_S = 20.0
MOST_SYLLABLES_HZ = 7
SOUNDLESS = frozenset("ˈˌːˑ.‿ _")    # marks in IPA that may be absent from the model's symbols
# IPA of ARPAbet, as CMUdict writes it; other stress digits are left out.
ARPABET = dict(zip(
    ("AA AE AH AH0 AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z "
     "ZH").split(),
    "ɑ æ ʌ ə ɔ aʊ aɪ b tʃ d ð ɛ ɝ eɪ f ɡ h ɪ i dʒ k l m n ŋ oʊ ɔɪ p ɹ s ʃ t θ ʊ u v w j z ʒ".split()))
# A word, its pronunciation, the punctuation behind it; or a pronunciation without a word.
TOKEN = re.compile(r"((?:[^\s{]+|\{(?![^{}]*\}))+)(?:\{([^{}]*)\}([^\s\w{]*))?|\{([^{}]*)\}")
SUNG = re.compile(r"[\w&+@=#%$€£¢~]")             # what a word has something of; a dash alone is none


def check_time(value: object, what: str) -> None:
    """Raise ValueError unless value is a finite number of seconds, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{what} is {str(value)[:20]}; expected seconds, 0 or more")


def check_span(start: object, end: object) -> None:
    """Raise ValueError unless start and end are times, in this order; a start may stand alone."""
    if start is not None:
        check_time(start, "start")
    if end is not None:
        check_time(end, "end")
        if start is None:
            raise ValueError(f"end {end:.2f} s without a start")
        if end < start:
            raise ValueError(f"end {end:.2f} s is before start {start:.2f} s")


@dataclass(frozen=True)
class Part:
    """A syllable of a word (its letters, "~" for the last one's vowel held on) or a phone (its IPA)."""
    text: str
    start: float
    end: float

    def __post_init__(self):
        if not isinstance(self.text, str) or not self.text.strip():
            raise ValueError(f"a part's text is {self.text!r}; expected letters")
        check_span(self.start, self.end)
        if self.start is None or self.end is None:
            raise ValueError(f'part "{self.text}" has no times')


@dataclass(frozen=True)
class Word:
    """One sung word; seconds from the song's start. Raises: ValueError for what cannot be one."""
    word: str
    start: float | None = None         # None: to be planned
    end: float | None = None
    phoneme: str | None = None         # IPA; None: the phonemizer finds it
    phones: tuple[Part, ...] = ()      # the phoneme's sounds with their own times
    syllables: tuple[Part, ...] = ()   # the word's syllables with their own times

    def __post_init__(self):
        if not isinstance(self.word, str) or not self.word.strip():
            raise ValueError(f"a word is {self.word!r}; expected a text")
        if self.phoneme is not None and (not isinstance(self.phoneme, str) or not self.phoneme.strip()):
            raise ValueError(f"phoneme is {self.phoneme!r}; expected IPA")
        check_span(self.start, self.end)
        for parts in (self.phones, self.syllables):
            times = [t for part in parts for t in (part.start, part.end)]
            if times and (self.end is None or times != sorted(times)
                          or times[0] < self.start - 1e-6 or times[-1] > self.end + 1e-6):
                raise ValueError("its parts are not in order inside of it")

    @property
    def timed(self) -> bool:
        """Whether it has both times."""
        return self.end is not None


@dataclass(frozen=True)
class Line:
    """Words that are sung in one breath."""
    words: tuple[Word, ...]            # none: a pause, if it has times
    start: float | None = None         # of the line's stamp; its words may have times of their own
    end: float | None = None
    section: str = ""                  # Verse, Chorus, Intro...: as in [Verse]
    backing: bool = False              # sung behind the lead: (like this)
    number: int = field(default=0, compare=False)        # where it stands in its file; 0: nowhere

    def __post_init__(self):
        check_span(self.start, self.end)

    @property
    def text(self) -> str:
        """Its words, with blanks between them."""
        return " ".join(word.word for word in self.words)


@dataclass(frozen=True)
class Lyrics:
    """A song's lines in the order they are sung."""
    lines: tuple[Line, ...]
    title: str = ""
    artist: str = ""

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all lines."""
        return tuple(word for line in self.lines for word in line.words)

    @property
    def timed(self) -> bool:
        """Whether every word has both times."""
        return all(word.timed for word in self.words)

    def sung(self) -> "Lyrics":
        """The same song without signs that stand alone, such as a dash or a note: they are no words."""
        return dataclasses.replace(self, lines=tuple(dataclasses.replace(line, words=tuple(
            word for word in line.words if word.phoneme or SUNG.search(word.word))) for line in self.lines))

    def changed(self, change: Callable[[Word], Word]) -> "Lyrics":
        """The same song with each word changed."""
        return dataclasses.replace(self, lines=tuple(
            dataclasses.replace(line, words=tuple(map(change, line.words))) for line in self.lines))


def words_in(text: str) -> tuple[Word, ...]:
    """The words of a text, without times: `read{ɹɛd}` or `read{R EH1 D}` gives a pronunciation.
    Raises: ValueError for a pronunciation without a word, or ARPAbet that is none.
    """
    words = []
    for token in TOKEN.finditer(text):
        if token[4] is not None:
            raise ValueError(f"{{{token[4]}}}: a pronunciation belongs to a word's end, as in read{{ɹɛd}}")
        if token[2] is not None:
            words.append(Word(token[1] + token[3], phoneme=ipa(token[2])))
        else:
            words.append(Word(token[1]))
    return tuple(words)


def ipa(text: str) -> str:
    """A pronunciation in IPA, from IPA or from ARPAbet (capitals with blanks between them).

    Raises: ValueError for ARPAbet that is none, and for nothing.
    """
    sounds = text.split()
    if not sounds:
        raise ValueError("{}: an empty pronunciation; expected IPA or ARPAbet")
    if not re.fullmatch("[A-Z0-2 ]+", " ".join(sounds)):
        return "".join(sounds)
    unknown = [s for s in sounds if s.rstrip("012") not in ARPABET]
    if unknown:
        raise ValueError(f"{unknown[0]} is no ARPAbet; known: {' '.join(ARPABET)}")
    return "".join(ARPABET.get(s) or ARPABET[s.rstrip("012")] for s in sounds)


# Pronunciation

def spelling(word: Word, phonemizer: Phonemizer) -> str:
    """How a word is spelled where it is not sung: love for lo~ve, and for the syllables lo- and ve."""
    text = word.word.replace(HELD, "")
    joined = text.replace("-", "")
    return joined if word.syllables and phonemizer.knows(joined) else text


def say(word: Word, phonemizer: Phonemizer, table: SymbolTable) -> Word:
    """A word with phonemes that the model knows, and, where its syllables have times, with their phones.

    Raises: ValueError if it cannot be read.
    """
    phoneme = word.phoneme or phonemizer(spelling(word, phonemizer))
    if SOUNDLESS.union(PUNCTUATION).issuperset(phoneme):
        raise ValueError('cannot be read; spell it in English letters, or give its pronunciation: '
                         f"{word.word}{{ɹɛd}}")
    unknown = sorted(set(phoneme) - table.ids.keys() - SOUNDLESS)
    if unknown:
        raise ValueError(f"phoneme {' '.join(unknown)} is unknown; known: {' '.join(phonemizer.symbols)}")
    phones = word.phones or phones_of(phoneme, word.syllables)
    return dataclasses.replace(word, phoneme=phoneme, phones=phones)


def pronounce(lyrics: Lyrics, phonemizer: Phonemizer, table: SymbolTable, path: Path) -> Lyrics:
    """The same lyrics, each word with phonemes that the model knows.

    Raises: UserError, with line and word, for a word that cannot be read.
    """
    lines, number = [], 0
    for line in lyrics.lines:
        words = []
        for word in line.words:
            number += 1
            try:
                words.append(say(word, phonemizer, table))
            except ValueError as e:
                raise UserError(f"{path}: {place(line, number, word)}: {e}") from None
        lines.append(dataclasses.replace(line, words=tuple(words)))
    return dataclasses.replace(lyrics, lines=tuple(lines))


def syllables_in(phoneme: str) -> list[str]:
    """The syllables of an IPA string, one to a vowel or diphthong.

    Of the consonants between two vowels the latter's syllable takes the greater half: nɔɹ-θɝn, but hə-loʊ.
    """
    sounds = [c for c in phoneme if c in VOWELS or c in CONSONANT_S]
    pairs = [a + b for a, b in zip(sounds, sounds[1:])]
    nuclei = [i for i, c in enumerate(sounds)
              if c in VOWELS and not (i and pairs[i - 1] in DIPHTHONGS)]
    ends = [i + 2 if pairs[i:i + 1] and pairs[i] in DIPHTHONGS else i + 1 for i in nuclei]
    cuts = [end + (start - end) // 2 for end, start in zip(ends, nuclei[1:])]
    return ["".join(sounds[a:b]) for a, b in zip([0, *cuts], [*cuts, len(sounds)])]


def phones_of(phoneme: str, syllables: tuple[Part, ...]) -> tuple[Part, ...]:
    """The sounds of a word whose syllables have times, each syllable sung as a word of its own would be.

    Returns: () if the word has no such syllables, or their number is not that of its vowels.
    """
    spans: list[list[float]] = []
    for part in syllables:
        if part.text == HELD and spans:
            spans[-1][1] = part.end                          # the vowel before goes on
        else:
            spans.append([part.start, part.end])
    sung = syllables_in(phoneme)
    if len(sung) != len(spans):
        return ()
    return tuple(Part(c, start + a, start + b) for sounds, (start, end) in zip(sung, spans)
                 for c, a, b in sung_spans(sounds, end - start))


# Lint

@dataclass(frozen=True)
class Problem:
    """What cannot be sung (level error), may be sung badly (warning), or is to be known (note)."""
    level: str
    where: str
    text: str


def place(line: Line, number: int, word: Word) -> str:
    """How a message names a word: line 3, word 7 "love"; words count from the song's start."""
    return f'line {line.number}, ' * bool(line.number) + f'word {number} "{word.word}"'


def check(lyrics: Lyrics, phonemizer: Phonemizer, table: SymbolTable, cell_hz: float,
          duration_s: float | None = None) -> list[Problem]:
    """All that is wrong with timed lyrics, in the order of the song.

    Args: cell_hz, cells of the phoneme grid a second; duration_s of the song, None for its last word's end.
    """
    problems, said = [], []
    numbered = [(line, word) for line in lyrics.lines for word in line.words]
    last_end, before = 0.0, ""
    untimed = sum(not word.timed for _, word in numbered)
    for number, (line, word) in enumerate(numbered, 1):
        where = place(line, number, word)
        def found(level, text, where=where):
            problems.append(Problem(level, where, text))
        if not word.timed:
            if untimed:
                found("error", f"has no times{f', as {untimed - 1} more' * (untimed > 1)}; `python lyrics.py "
                               "plan` gives them some")
            untimed = 0                                      # told once
            try:
                say(word, phonemizer, table)
            except ValueError as e:
                found("error", str(e))
            continue
        if word.start < last_end - OVERLAP_S:
            found("error", f"start {word.start:.2f} s is before the end {last_end:.2f} s of {before}; one "
                           "voice sings one word at a time")
        if word.end <= word.start:
            found("error", f"end {word.end:.2f} s is at its start")
        if duration_s is not None and word.end > duration_s + OVERLAP_S:
            found("error", f"end {word.end:.2f} s is past the duration {duration_s:.2f} s")
        if word.start - last_end > LONGEST_GAP_S:
            found("warning", f"{word.start - last_end:.1f} s without words before it; singers fill long "
                             "gaps with words of their own")
        try:
            word = say(word, phonemizer, table)
            said.append((where, word))
        except ValueError as e:
            found("error", str(e))
        else:
            check_sounds(word, phonemizer, table, cell_hz, found)
        last_end, before = max(last_end, word.end), f'word {number} "{word.word}"'
    if duration_s is not None and duration_s - last_end > LONGEST_GAP_S:
        problems.append(Problem("warning", "end", f"{duration_s - last_end:.1f} s without words at the end"))
    return problems + check_rate(said)


def check_sounds(word: Word, phonemizer: Phonemizer, table: SymbolTable, cell_hz: float,
                 found: Callable[[str, str], None]) -> None:
    """Report what is to be known of a word's phonemes."""
    cells = math.floor(word.end * cell_hz) - math.floor(word.start * cell_hz)
    sounds = len(table.encode(word.phoneme)) - 1             # all but the word end
    if cells < sounds:
        found("warning", f"{sounds} phonemes ({word.phoneme}) in {cells} cells; the last ones are left out")
    if word.syllables and not word.phones:
        found("warning", f"its {len(word.syllables)} syllables are not those of {word.phoneme}; only the "
                         "word's own times are used")
    if not phonemizer.knows(spelling(word, phonemizer)):
        found("note", f"not in the lexicon, read as {word.phoneme}")


def check_rate(said: list[tuple[str, Word]]) -> list[Problem]:
    """Report where more syllables are asked for in a second than can be sung, once for each such stretch."""
    problems, first, count, quiet_until = [], 0, 0, -math.inf
    sizes = [len(syllables_in(word.phoneme)) for _, word in said]
    for i, (_, word) in enumerate(said):
        count += sizes[i]
        while said[first][1].start <= word.start - 1.0 + OVERLAP_S:
            count -= sizes[first]
            first += 1
        begin = said[first][1].start
        if count > MOST_SYLLABLES_HZ * max(1.0, word.end - begin):
            if word.start > quiet_until:
                problems.append(Problem("warning", said[first][0], f"{count} syllables from {begin:.2f} to "
                                        f"{word.end:.2f} s; {MOST_SYLLABLES_HZ} a second can be sung"))
            quiet_until = word.end + 1.0
    return problems


# Commands

def read_lexicon(path: Path) -> dict[str, str]:
    """Pronunciations from lines of a word, a blank, and its IPA or ARPAbet; # begins a comment.

    Raises: UserError with the line of a mistake.
    """
    lexicon = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        word, *sounds = line.partition(" #")[0].split(None, 1)[:2] or [""]
        if not word or word.startswith("#"):
            continue
        try:
            lexicon[word] = ipa(*sounds or [""])
        except ValueError as e:
            raise UserError(f"{path}: line {number}: {word}: {e}") from None
    return lexicon


def reader(path: Path, lexicon: Path | None) -> Phonemizer:
    """A phonemizer that knows the words of a lexicon, too."""
    phonemizer = load_phonemizer(find(path))
    phonemizer.learn(read_lexicon(lexicon) if lexicon else {})
    return phonemizer


def save(lyrics: Lyrics, path: Path | None, kind: str | None, source: Path | None = None) -> None:
    """Write lyrics to path, in the format of its ending unless kind names one; to the terminal for None.

    Raises: UserError if it is the `source` of new times, or would not keep them.
    """
    import formats                                           # which imports this module
    if path is None:
        print(formats.write(lyrics, kind or "lrc"), end="")
        return
    kind = kind or formats.kind_for(path)
    if source and path.exists() and path.samefile(source):
        raise UserError(f"--out {path}: would overwrite its own lyrics")
    if source and "words" not in formats.format_of(kind).carries.split():
        raise UserError(f"--out {path}: {kind} keeps no times of words; expected one of " + ", ".join(
            name for name, row in formats.KINDS.items() if "words" in row.carries.split()) + " (--to)")
    text = formats.write(lyrics, kind)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def plan_command(cfg: PlanConfig) -> None:
    """python lyrics.py plan"""
    import formats
    from plan import plan
    lyrics = formats.read(cfg.input).sung()
    try:
        save(plan(lyrics, reader(cfg.phonemizer, cfg.lexicon), cfg), cfg.out, cfg.to, cfg.input)
    except UserError as e:
        raise UserError(f"{cfg.input}: {e}") from None


def check_command(cfg: CheckConfig) -> None:
    """python lyrics.py check: exit code 1 if there are errors."""
    import formats
    if cfg.preset not in PRESETS:
        raise UserError(f"--preset {cfg.preset}: expected one of {', '.join(PRESETS)}")
    phonemizer, codec = reader(cfg.phonemizer, cfg.lexicon), PRESETS[cfg.preset].codec
    problems = check(formats.read(cfg.input).sung(), phonemizer, SymbolTable(phonemizer.symbols),
                     CELLS_PER_FRAME * codec.sample_rate_hz / codec.hop, cfg.duration)
    for level in ("error", "warning", "note"):
        for problem in problems:
            if problem.level == level:
                print(f"{level}: {cfg.input}: {problem.where}: {problem.text}")
    counts = [sum(p.level == level for p in problems) for level in ("error", "warning", "note")]
    print("{} errors, {} warnings, {} notes".format(*counts))
    if counts[0]:
        sys.exit(1)


def convert_command(cfg: ConvertConfig) -> None:
    """python lyrics.py convert"""
    import formats
    save(formats.read(cfg.input), cfg.output, cfg.to)


def align_command(cfg: AlignConfig) -> None:
    """python lyrics.py align"""
    import formats
    from align import align
    save(align(cfg.audio, formats.read(cfg.input).sung(), cfg), cfg.out, cfg.to, cfg.input)


COMMANDS = {"plan": (PlanConfig, plan_command), "check": (CheckConfig, check_command),
            "convert": (ConvertConfig, convert_command), "align": (AlignConfig, align_command)}


def main(argv: list[str] | None = None) -> None:
    """Run one of COMMANDS."""
    command("lyrics.py", __doc__, COMMANDS, argv)


if __name__ == "__main__":
    import lyrics                                            # the one that other modules know
    run(lyrics.main)
