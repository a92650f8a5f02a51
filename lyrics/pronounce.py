"""Words to phonemes: the user's, those of the phonemizer's lexicon, or the phonemizer's own.

Read `Reader` (a word as people write it -> IPA), `say` (a word -> the same with phonemes that the model
knows), `phones_of` (times of syllables -> times of sounds). `words_in` reads the notation of free text:
`read{ɹɛd}` or `read{R EH1 D}` gives a word its pronunciation.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from config import Settings, UserError
from lyrics.spoken import APOSTROPHES, spoken
from lyrics.timing import HELD, Part, Word
from phonemes import CONSONANT_S, NUCLEUS, PUNCTUATION, VOWELS, Phonemizer, SymbolTable
from phonemes import load_phonemizer, look_up, sung_spans
from support.files import find, read_text

SOUNDLESS = frozenset("ˈˌːˑ.‿ _")    # marks in IPA that may be absent from the model's symbols
# IPA of ARPAbet, as CMUdict writes it; other stress digits are left out.
ARPABET = dict(zip(
    ("AA AE AH AH0 AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z "
     "ZH").split(),
    "ɑ æ ʌ ə ɔ aʊ aɪ b tʃ d ð ɛ ɝ eɪ f ɡ h ɪ i dʒ k l m n ŋ oʊ ɔɪ p ɹ s ʃ t θ ʊ u v w j z ʒ".split()))
# A word, its pronunciation, the punctuation after it; or a pronunciation without a word.
TOKEN = re.compile(r"((?:[^\s{]+|\{(?![^{}]*\}))+)(?:\{([^{}]*)\}([^\s\w{]*))?|\{([^{}]*)\}")
DRAWN = re.compile(r"([A-Za-z])\1\1+", re.IGNORECASE)       # a letter three times or more: noooo
AROUND = re.compile(r"^[^\w$€£#&@']+|[^\w%¢&']+$")           # punctuation around a word


@dataclass(frozen=True, kw_only=True)
class ReadSettings(Settings):
    """How words are pronounced."""
    # pronunciation
    phonemizer: Path = Path("weights/baby/phonemizer.pt")  # a DeepPhonemizer checkpoint
    lexicon: Path | None = None                 # pronunciations of your own: lines of a word and its IPA or
                                                #   ARPAbet


# Pronunciations as people write them

def ipa(text: str) -> str:
    """A pronunciation in IPA, from IPA or from ARPAbet (capitals with blanks between them).

    Raises: ValueError for invalid ARPAbet, and for an empty text.
    """
    sounds = text.split()
    if not sounds:
        raise ValueError("{}: an empty pronunciation; expected IPA or ARPAbet")
    if not re.fullmatch("[A-Z0-2 ]+", " ".join(sounds)):
        return "".join(sounds)
    unknown = [s for s in sounds if s.rstrip("012") not in ARPABET]
    if unknown:
        raise ValueError(f"{unknown[0]} is not ARPAbet; known: {' '.join(ARPABET)}")
    return "".join(ARPABET.get(s) or ARPABET[s.rstrip("012")] for s in sounds)


def words_in(text: str) -> tuple[Word, ...]:
    """The words of a text, without times, with the pronunciations that it gives.

    Raises: ValueError for a pronunciation without a word, or invalid ARPAbet.
    """
    words = []
    for word, phoneme, behind, alone in (token.groups() for token in TOKEN.finditer(text)):
        if alone is not None:
            raise ValueError(f"{{{alone}}}: a pronunciation belongs to a word's end, as in read{{ɹɛd}}")
        words.append(Word(word) if phoneme is None else Word(word + behind, phoneme=ipa(phoneme)))
    return tuple(words)


def read_lexicon(path: Path) -> dict[str, str]:
    """Pronunciations from lines of a word, a blank, and its IPA or ARPAbet; # starts a comment.

    Raises: UserError with the line of a mistake.
    """
    lexicon = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        word, *sounds = line.partition(" #")[0].split(None, 1) or [""]
        if word[:1] in ("", "#"):
            continue
        try:
            lexicon[word] = ipa("".join(sounds))
        except ValueError as e:
            raise UserError(f"{path}: line {number}: {word}: {e}") from None
    return lexicon


# From words to phonemes

class Reader:
    """Pronounces any word as people write it, with its punctuation, numbers and signs.

    Args: own, the user's pronunciations. They take precedence over all others, even for numbers and signs.
    Attributes: symbols, those of the phonemizer.
    """

    def __init__(self, phonemizer: Phonemizer, own: dict[str, str]):
        self.phonemizer, self.symbols = phonemizer, phonemizer.symbols
        self.own = {bare(word): phoneme for word, phoneme in own.items()}

    def __call__(self, word: str) -> str:
        """The IPA of a word as `spoken` takes it, or "" if anything in it cannot be read.

        No part of a word is left out silently.
        """
        if bare(word) in self.own:
            return self.own[bare(word)]
        parts = [self.shorter(part) for part in spoken(word)]
        said = [look_up(part, self.own) or self.phonemizer(part) for part in parts]
        return "".join(said) if all(said) else ""

    def knows(self, word: str) -> bool:
        """Whether all parts of a word are in a lexicon; other parts are guessed from their letters."""
        return bare(word) in self.own or all(self.listed(self.shorter(part)) for part in spoken(word))

    def listed(self, part: str) -> str:
        """The IPA of a part of a word in a lexicon, "" if it is in none."""
        return look_up(part, self.own) or look_up(part, self.phonemizer.lexicon)

    def shorter(self, part: str) -> str:
        """A part without the letters that draw it out: no for noooo, cool for coooool.

        Two letters stay of each run if a lexicon has the word so, else one; the other way round if the part
        ends in a vowel letter: so for sooo.
        """
        double, single = DRAWN.sub(r"\1\1", part), DRAWN.sub(r"\1", part)
        ways = [single, double, single] if part[-1:] in "aeiouy" else [double, single]
        return next(filter(self.listed, [part, *ways]), ways[-1])


def bare(word: str) -> str:
    """A word in lower case, without the punctuation around it."""
    return AROUND.sub("", word.translate(APOSTROPHES).lower())


def reader(path: Path, lexicon: Path | None = None) -> Reader:
    """A Reader from files: a phonemizer and, optionally, a lexicon. Raises: UserError."""
    return Reader(load_phonemizer(find(path)), read_lexicon(lexicon) if lexicon else {})


def spelling(word: Word, reader: Reader) -> str:
    """A word's ordinary spelling: love for lo~ve, and for the syllables lo- and ve."""
    text = word.word.replace(HELD, "")
    joined = text.replace("-", "")
    return joined if word.syllables and reader.knows(joined) else text


def say(word: Word, reader: Reader, table: SymbolTable) -> Word:
    """A word with phonemes that the model knows and, if its syllables have times, with their phones.

    Raises: ValueError if it cannot be read.
    """
    phoneme = word.phoneme or reader(spelling(word, reader))
    if SOUNDLESS.union(PUNCTUATION).issuperset(phoneme):
        raise ValueError('cannot be read; spell it in English letters, or give its pronunciation: '
                         f"{word.word}{{ɹɛd}}")
    unknown = sorted(set(phoneme) - table.ids.keys() - SOUNDLESS)
    if unknown:
        raise ValueError(f"phoneme {' '.join(unknown)} is unknown; known: {' '.join(reader.symbols)}")
    phones = word.phones or phones_of(phoneme, word.syllables)
    return dataclasses.replace(word, phoneme=phoneme, phones=phones)


# Syllables

def syllables_in(phoneme: str) -> list[str]:
    """The syllables of an IPA string, one for each vowel or diphthong.

    The second of two syllables gets the larger half of the consonants between them: nɔɹ-θɝn, but hə-loʊ.
    """
    sounds = "".join(c for c in phoneme if c in VOWELS or c in CONSONANT_S)
    nuclei = [*NUCLEUS.finditer(sounds)]
    cuts = [a.end() + (b.start() - a.end()) // 2 for a, b in zip(nuclei, nuclei[1:])]
    return [sounds[a:b] for a, b in zip([0, *cuts], [*cuts, len(sounds)])]


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
