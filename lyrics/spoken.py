"""Tokens of a lyrics file as they are read aloud: numbers, money, signs and abbreviations in English words.

Read `spoken`, then PIECE, the grammar of a token, then `read_piece`, the words of each kind of piece. The
library inflect spells numbers; pronounce.py pronounces the words.
"""

import functools
import re
import unicodedata

APOSTROPHES = str.maketrans(dict.fromkeys("‘’‛ʼʹ′´`＇", "'"))      # before NFKD, which splits ´
FLAT = str.maketrans(dict.fromkeys("‐‒–—―", "–") | {"−": "-", "⁄": "/", "ß": "ss", "æ": "ae", "œ": "oe",
                     "ø": "o", "ł": "l", "đ": "d", "ð": "th", "þ": "th", "ı": "i"})   # no decomposition
FRACTIONS = "¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
SILENT = "~♩♪♫♬"                       # what may surround a word like punctuation
DIGITS = "zero one two three four five six seven eight nine".split()
MAX_DIGITS = 15                        # longer numbers (of phones, of cards) are read digit by digit
LETTERS = dict(zip("abcdefghijklmnopqrstuvwxyz", (
    "ay bee see dee ee eff gee aitch eye jay kay ell em en oh pee cue ar ess tee you vee double-you ex why "
    "zee").split()))
SHORT = {"mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "jr": "junior", "sr": "senior",
         "vs": "versus", "etc": "et cetera", "ft": "featuring", "feat": "featuring", "st": "saint"}
SIGNS = {"&": "and", "+": "plus", "@": "at", "=": "equals", "-": "minus", "#": "number", "no.": "number",
         "<3": "love"}
UNITS = {"$": ("dollar", "dollars", "cent", "cents"), "€": ("euro", "euros", "cent", "cents"),
         "£": ("pound", "pounds", "penny", "pence"), "¢": ("cent", "cents"), "%": ("percent", "percent"),
         "°": ("degree", "degrees"), "°c": ("degree celsius", "degrees celsius"),
         "°f": ("degree fahrenheit", "degrees fahrenheit")}
# The pieces that a token is cut into; the first alternative that fits wins.
PIECE = re.compile(r"""
  (?P<time> (?P<hour>[01]?\d|2[0-4]) : (?: 00(?=[ap]\.?m) | (?P<minute>[0-5]\d) ) (?!\d) )
| (?P<fraction> (?<!/) (?P<top>\d{1,3}) / (?P<bottom>\d{1,3}) (?![\d/]) )
| (?P<sign> [&+@=] | <3(?!\d) | (?:\#|no\.)(?=\d) | (?<![^ ,:])-(?=[$£€]?\.?\d) )   # a minus is in front
| (?P<number> (?P<unit>[$£€])? (?=\d|(?<![a-z'.])\.\d)
    (?P<whole>\d{1,3}(?:,\d{3})+(?!\d)|\d+)? (?:\.(?P<digits>\d+))?
    (?(unit) (?![a-z\d]) | (?P<tail>(?:st|nd|rd|th|'?s|°[cf]?)(?![a-z\d])|[$£€¢%])? ) )
| (?P<degrees> °[cf]?(?![a-z\d]) )
| (?P<letters> (?<=\d)[ap]\.?m(?![a-z\d])\.? | [a-z](?:\.[a-z])+(?![a-z\d'])\.? )      # 3p.m., U.S.A.
| (?P<short> (?<!\d)(?:mrs?|ms|dr|[js]r|vs|etc|ft)(?![a-z\d'])\.? | (?:st|feat)\.(?!\.) )
| (?P<word> '?[a-z](?:[a-z']*[a-z])?'? )                                # 'cause, runnin'
| (?P<between> \A[ ,:./–-]*[ ,:] | [ ,:][ ,:./–-]*\Z | [-–./]+ | ' )""", re.VERBOSE)


def plain(text: str) -> str:
    """Text as a-z, digits and the signs of PIECE; a blank for other punctuation, NUL for the unreadable."""
    out, after_letter = [""], False
    for c in text.translate(APOSTROPHES):
        kind = unicodedata.category(c)
        if kind == "Cf" or kind == "Mn" and after_letter:    # an accent; on = such a mark makes ≠
            continue
        after_letter = c.isalpha()
        # A compatible form may say something else: 2 for ², tm for ™.
        same = kind not in ("So", "Sk", "Nl", "No") or c in FRACTIONS + "°"
        flat = unicodedata.normalize("NFKD", c).lower() if same else ""
        if after_letter:
            flat = "".join(k for k in flat if unicodedata.category(k) != "Mn")
        flat = flat.translate(FLAT)
        if c in FRACTIONS:                                   # 1½ is 1&1/2
            flat = f"&{flat}'" if out[-1][-1:].isdigit() else f"{flat}'"
        silent = kind[0] == "P" or c.isspace() or c in SILENT
        out.append(flat if re.fullmatch(r"[a-z0-9'&+@=#%$£€¢°<.,:/–-]+", flat) else " " if silent else "\0")
    return re.sub(r"\$(?=[a-z])", "s", "".join(out))         # A$AP, $hort


@functools.cache
def inflect_engine():
    """The library that spells numbers. Its import takes 2 s, so only songs with numbers pay for it."""
    import inflect
    return inflect.engine()


def number(whole: str, digits: str = "") -> list[str]:
    """Words of "1,024" and the digits after its point; "007" and long ones digit by digit."""
    whole = whole.replace(",", "")
    if 1 < len(whole) <= MAX_DIGITS and whole[0] != "0":
        words = re.findall("[a-z]+", inflect_engine().number_to_words(whole, andword=""))
    else:
        words = [DIGITS[int(d)] for d in whole]
    return [*words, *(["point"] if digits else []), *(DIGITS[int(d)] for d in digits)]


def two_digits(digits: str, none: str) -> list[str]:
    """Minutes, or years of a century: 05 is "oh five", 00 what `none` says."""
    return [none] if digits == "00" else ["oh", *number(digits[1])] if digits[0] == "0" else number(digits)


def with_ending(words: list[str], tail: str) -> list[str]:
    """The last word of a number as a plural (tail s) or an ordinal (any other)."""
    *first, last = words
    if tail.endswith("s"):
        return [*first, last[:-1] + "ies" if last[-1] == "y" else last + ("es" if last[-1] == "x" else "s")]
    return [*first, inflect_engine().ordinal(last)]


def quantity(unit: str, whole: str, digits: str, tail: str) -> list[str]:
    """A number with what is attached to it: 1990s, 22nd, 50%, $3.50 (three dollars and fifty cents)."""
    if unit or tail in UNITS:
        one, many, *small = UNITS[unit or tail]
        if len(digits) != 2 or not small:
            return [*number(whole, digits), *(many if digits or whole != "1" else one).split()]
        cents = [*number(digits.lstrip("0")), small[digits != "01"]] if digits != "00" else []
        whole = whole or "0"
        units = [*number(whole), one if whole == "1" else many] if whole != "0" or not cents else []
        return [*units, *(["and"] if units and cents else []), *cents]
    words = number(whole, digits)
    year = len(whole) == 4 and ("1100" <= whole < "2000" or "2010" <= whole < "2100")
    if year and not digits and tail in ("", "s", "'s"):
        words = [*number(whole[:2]), *two_digits(whole[2:], "hundred")]
    return with_ending(words, tail) if tail else words


def fraction(top: int, bottom: int) -> list[str]:
    """3/4: three quarters; but 24/7, 9/11: the two numbers."""
    if not (0 < top < bottom and (bottom <= 10 or top == 1)):
        return [*number(str(top)), *number(str(bottom))]
    part = {2: ["half"], 4: ["quarter"]}.get(bottom) or with_ending(number(str(bottom)), "th")
    return [*number(str(top)), *(part if top == 1 else with_ending(part, "s"))]


def read_piece(piece: re.Match) -> list[str]:
    """The words of one PIECE."""
    kind, text = piece.lastgroup, piece[0]
    if kind == "time":
        minutes = two_digits(piece["minute"], "o'clock") if piece["minute"] else []
        return [*number(str(int(piece["hour"]))), *minutes]
    if kind == "fraction":
        return fraction(int(piece["top"]), int(piece["bottom"]))
    if kind == "number":
        return quantity(*(piece[group] or "" for group in ("unit", "whole", "digits", "tail")))
    if kind == "degrees":
        return UNITS[text][1].split()
    if kind == "sign":
        return [SIGNS[text]]
    if kind == "short":
        return SHORT[text.rstrip(".")].split()
    if kind == "between":
        return []
    letters = re.findall("[a-z]", text)
    beside = piece.string[max(0, piece.start() - 1):piece.start()] + piece.string[piece.end():piece.end() + 1]
    code = re.search(r"[\d&+]", beside) and (len(letters) == 1 or not set(letters) & set("aeiouy"))
    if kind == "letters" or code:                            # a.m., mp3, B2B, R&B; but 4ever
        return "-".join(LETTERS[c] for c in letters).split("-")
    return [text]


def spoken(text: str) -> list[str]:
    """Write one token of a lyrics file as it is sung: numbers, signs and abbreviations as words.

    Args: text, a word with everything attached to it: "Don't!", "'80s", "$3.50", "7:05", "R&B", "Mr.". Case,
        accents, quotes and punctuation around it do not matter; hyphens, dashes, dots, slashes divide it.
    Returns: words of a-z and apostrophes in reading order; [] if anything in it cannot be read (another
        script, an emoji, a sign without a word, a blank inside), or if it is empty.
    """
    letters, words, at = plain(text), [], 0
    while at < len(letters):
        piece = PIECE.match(letters, at)
        if not piece:
            return []
        words += read_piece(piece)
        at = piece.end()
    return words
