"""French as `phrases` needs it: numbers in words, agreement, elision, conjugation; English beside it.

Spelling before the reform of 1990: hyphens only below a hundred.
"""

from typing import NamedTuple


def words(text: str) -> list[str]:
    """Those between spaces."""
    return text.split()


VOWELS = "aeiouhéêèàâîôœ"  # h is mute in all words used here
_ENGLISH_UNITS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_ENGLISH_TENS = words("_ _ twenty thirty forty fifty sixty seventy eighty ninety")
_FRENCH_UNITS = words(
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept "
    "dix-huit dix-neuf"
)
_FRENCH_TENS = words("_ _ vingt trente quarante cinquante soixante soixante quatre-vingt quatre-vingt")
_FUTURE = ("ai", "as", "a", "ons", "ez", "ont")
AVOIR = ("ai", "as", "a", "avons", "avez", "ont")


class Noun(NamedTuple):
    """A noun in both languages, singular and plural."""

    english: str
    english_plural: str
    french: str
    french_plural: str
    feminine: bool


class Adjective(NamedTuple):
    """An adjective: French masculine, also before a vowel, feminine, plurals; before the noun or not."""

    english: str
    masculine: str
    before_vowel: str
    feminine: str
    masculine_plural: str
    feminine_plural: str
    before: bool

    def agree(self, feminine: bool, plural: bool, following: str = "") -> str:
        """Its form for a noun; `following` is the next word if that is the noun."""
        if plural:
            return self.feminine_plural if feminine else self.masculine_plural
        if feminine:
            return self.feminine
        return self.before_vowel if following and following[0] in VOWELS else self.masculine


class Verb(NamedTuple):
    """A transitive verb: English base, third person, past; French present, future stem, participle."""

    english: str
    third: str
    past: str
    present: tuple[str, ...]  # je tu il nous vous ils
    future: str
    participle: str

    def conjugate(self, tense: str, person: int, negated: bool) -> list[str]:
        """The French words, negation and its elision with them."""
        if tense == "past":
            forms = [AVOIR[person], self.participle]
        else:
            forms = [self.present[person] if tense == "present" else self.future + _FUTURE[person]]
        return [elided("ne", forms[0]), forms[0], "pas", *forms[1:]] if negated else forms

    def english_words(self, tense: str, third: bool, negated: bool) -> str:
        """The English words."""
        if tense == "future":
            return f"will {'not ' if negated else ''}{self.english}"
        if negated:
            return f"{'did' if tense == 'past' else 'does' if third else 'do'} not {self.english}"
        if tense == "past":
            return self.past
        return self.third if third else self.english


def elided(word: str, following: str) -> str:
    """le, la, de, ne, je lose their vowel before another: l', d', n', j'."""
    return word[:-1] + "'" if following[0] in VOWELS else word


def joined(words: list[str]) -> str:
    """A sentence: no space after an apostrophe, a capital in front, a full stop at the end."""
    text = " ".join(word for word in words if word).replace("' ", "'")
    return text[0].upper() + text[1:] + "."


def english_number(n: int) -> str:
    """0 to 999,999 in words."""
    if n < 20:
        return _ENGLISH_UNITS[n]
    if n < 100:
        tens, unit = divmod(n, 10)
        return _ENGLISH_TENS[tens] + (f"-{_ENGLISH_UNITS[unit]}" if unit else "")
    if n < 1000:
        hundreds, rest = divmod(n, 100)
        return f"{_ENGLISH_UNITS[hundreds]} hundred" + (f" and {english_number(rest)}" if rest else "")
    thousands, rest = divmod(n, 1000)
    link = " and " if 0 < rest < 100 else " "
    return f"{english_number(thousands)} thousand" + (link + english_number(rest) if rest else "")


def french_number(n: int, feminine: bool = False, last: bool = True) -> str:
    """0 to 999,999 in words; `last`: no other numeral follows, so that vingt and cent take their s."""
    if n >= 1000:
        thousands, rest = divmod(n, 1000)
        front = "" if thousands == 1 else french_number(thousands, last=False) + " "
        return f"{front}mille" + (f" {french_number(rest, feminine, last)}" if rest else "")
    hundreds, rest = divmod(n, 100)
    if not hundreds:
        return _below_hundred(n, feminine, last)
    front = "cent" if hundreds == 1 else f"{_FRENCH_UNITS[hundreds]} cent"
    if not rest:
        return front + ("s" if hundreds > 1 and last else "")
    return f"{front} {_below_hundred(rest, feminine, last)}"


def _below_hundred(n: int, feminine: bool, last: bool) -> str:
    if n < 20:
        return "une" if n == 1 and feminine else _FRENCH_UNITS[n]
    tens, unit = divmod(n, 10)
    if tens in (7, 9):
        unit += 10
    word = _FRENCH_TENS[tens]
    if n == 80:
        return word + ("s" if last else "")
    if not unit:
        return word
    spoken = "une" if unit == 1 and feminine else _FRENCH_UNITS[unit]
    return f"{word} et {spoken}" if unit in (1, 11) and tens < 8 else f"{word}-{spoken}"


def english_year(year: int) -> str:
    """1910 to 1999, as it is said."""
    return f"{english_number(year // 100)} {english_number(year % 100)}"
