"""A corpus that a grammar makes: English sentences and their French, no two English ones alike.

Synthetic: numbers in words, dates, times of day, prices, and plain sentences with determiners, adjectives
before and after the noun, agreement, elision, negation and three tenses. The French keeps the rules of
grammar; the sentences need not make much sense.
"""

import hashlib
import random
from collections.abc import Callable
from typing import NamedTuple

from metalearn.rng import seed_of
from tasks import lexicon
from tasks.config import PhrasesOptions
from tasks.french import (
    VOWELS,
    Adjective,
    Noun,
    elided,
    english_number,
    english_year,
    french_number,
    joined,
)
from tasks.translation import Corpus, Part, Sentences
from tasks.word_pieces import WordPieces

Pair = tuple[list[str], list[str]]  # the words of both languages
POSSESSIVES = {  # English: French masculine (or before a vowel), feminine, plural
    "my": ("mon", "ma", "mes"),
    "his": ("son", "sa", "ses"),
    "our": ("notre", "notre", "nos"),
    "your": ("votre", "votre", "vos"),
    "their": ("leur", "leur", "leurs"),
}


class Phrase(NamedTuple):
    """A noun with all that belongs to it."""

    english: list[str]
    french: list[str]
    feminine: bool
    plural: bool


def read(options: PhrasesOptions) -> Corpus:
    """The corpus, always the same one, in splits that share no sentence; pieces are learned from training."""
    sizes = {"train": options.train_pairs, "valid": options.valid_pairs, "test": options.test_pairs}
    pairs = make_pairs(sum(sizes.values()))
    texts, start = {}, 0
    for split, size in sizes.items():
        texts[split] = pairs[start : start + size]
        start += size
    pieces = WordPieces.learn(
        (text for pair in texts["train"] for text in pair), options.pieces, options.coverage
    )
    parts = {}
    for split, chosen in texts.items():
        source, target = (Sentences.of(pieces.encode(side)) for side in zip(*chosen, strict=True))
        parts[split] = Part(source, target)
    return Corpus(
        parts=parts,
        references={split: [french for _, french in texts[split]] for split in ("valid", "test")},
        pieces=pieces,
        source="metalearn's own grammar of English and French (tasks/phrases.py): synthetic",
        licence="that of metalearn",
        provenance="embedded: made by a grammar, with a fixed key",
        digest=hashlib.sha256("\n".join(f"{a}\t{b}" for a, b in pairs).encode()).hexdigest(),
        comparable=False,
    )


def make_pairs(count: int) -> list[tuple[str, str]]:
    """So many pairs of different English sentences, in an order without meaning."""
    rng, found = random.Random(seed_of("phrases", 2)), {}
    while len(found) < count:
        kind = rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
        english, french = (joined(words) for words in kind(rng))
        found.setdefault(english, french)
    return list(found.items())


def noun_phrase(rng: random.Random, noun: Noun, adjectives: list[Adjective], negated: bool = False) -> Phrase:
    """A determiner, the noun and perhaps an adjective; `negated`: the object of a verb that is."""
    kind = rng.choice(["the", "the", "a", "this", *POSSESSIVES, "number"])
    plural = kind == "number" or rng.random() < 0.35
    number = rng.randint(2, 20) if kind == "number" else 0
    adjective = rng.choice(adjectives) if rng.random() < 0.5 else None
    name = noun.english_plural if plural else noun.english
    english = [adjective.english, name] if adjective else [name]
    french = [noun.french_plural if plural else noun.french]
    before = adjective is not None and adjective.before
    if adjective:
        form = adjective.agree(noun.feminine, plural, french[0] if before else "")
        french = [form, *french] if before else [*french, form]
    if kind == "number":
        return Phrase(
            [english_number(number), *english], [french_number(number), *french], noun.feminine, True
        )
    determiner = _english_determiner(kind, plural, negated, english[0])
    article = _french_determiner(
        kind, noun.feminine, plural, french[0], partitive=negated or (plural and before)
    )
    return Phrase([determiner, *english], [article, *french], noun.feminine, plural)


def _english_determiner(kind: str, plural: bool, negated: bool, following: str) -> str:
    if kind == "a":
        return ("any" if negated else "some") if plural else "an" if following[0] in "aeiou" else "a"
    return "these" if kind == "this" and plural else kind


def _french_determiner(kind: str, feminine: bool, plural: bool, following: str, partitive: bool) -> str:
    """`partitive`: un, une and des become de."""
    vowel = following[0] in VOWELS
    if kind == "a":
        if partitive:
            return elided("de", following)
        return "des" if plural else "une" if feminine else "un"
    if kind == "the":
        return "les" if plural else elided("la" if feminine else "le", following)
    if kind == "this":
        return "ces" if plural else "cette" if feminine else "cet" if vowel else "ce"
    masculine, female, many = POSSESSIVES[kind]
    return many if plural else female if feminine and not vowel else masculine


def _subject(rng: random.Random) -> tuple[list[str], list[str], int]:
    """Words of both languages, and the person of the verb."""
    if rng.random() < 0.5:
        english, french, person = rng.choice(lexicon.PRONOUNS)
        return [english], [french], person
    phrase = noun_phrase(rng, rng.choice(lexicon.PERSONS), lexicon.QUALITIES + lexicon.MOODS)
    return phrase.english, phrase.french, 5 if phrase.plural else 2


def _action(rng: random.Random) -> Pair:
    """The old teacher does not buy any apples."""
    verbs, objects = rng.choice(lexicon.ACTIONS)
    verb, tense, negated = rng.choice(verbs), rng.choice(["present", "future", "past"]), rng.random() < 0.3
    english, french, person = _subject(rng)
    noun = rng.choice(objects)
    adjectives = lexicon.QUALITIES + (lexicon.COLOURS + lexicon.STATES if noun in lexicon.THINGS else [])
    thing = noun_phrase(rng, noun, adjectives, negated)
    acts = verb.conjugate(tense, person, negated)
    if french == ["je"]:
        french = [elided("je", acts[0])]
    when = rng.choice(lexicon.WHEN[tense]) if rng.random() < 0.5 else ("", "")
    told = [*english, verb.english_words(tense, person == 2, negated), *thing.english, when[0]]
    return told, [*french, *acts, *thing.french, when[1]]


def _state(rng: random.Random) -> Pair:
    """The white house is not new."""
    things, adjectives = rng.choice(
        [
            (lexicon.PERSONS, lexicon.MOODS),
            (lexicon.THINGS, lexicon.COLOURS + lexicon.STATES),
            (lexicon.BUILDINGS, lexicon.QUALITIES[:5]),
        ]
    )
    subject = noun_phrase(rng, rng.choice(things), lexicon.QUALITIES)
    adjective, negated = rng.choice(adjectives), rng.random() < 0.3
    english, french = rng.choice(
        [
            (("is", "are"), ("est", "sont")),
            (("was", "were"), ("était", "étaient")),
            (("will be",) * 2, ("sera", "seront")),
        ]
    )
    is_, est = english[subject.plural], french[subject.plural]
    said = is_.replace("will", "will not") if "will" in is_ else f"{is_} not"
    state = adjective.agree(subject.feminine, subject.plural)
    words = [elided("ne", est), est, "pas"] if negated else [est]
    return [*subject.english, said if negated else is_, adjective.english], [*subject.french, *words, state]


def _place(rng: random.Random) -> Pair:
    """There are twenty-one chairs behind the new station."""
    noun, number = rng.choice(lexicon.THINGS + lexicon.ANIMALS), rng.randint(2, 999)
    where, ou = rng.choice(lexicon.PLACES)
    place = noun_phrase(rng, rng.choice(lexicon.BUILDINGS[1:]), lexicon.QUALITIES)
    english = ["there are", english_number(number), noun.english_plural, where, *place.english]
    return english, ["il y a", french_number(number, noun.feminine), noun.french_plural, ou, *place.french]


def _price(rng: random.Random) -> Pair:
    """This red hat costs forty euros and fifty cents."""
    thing = noun_phrase(rng, rng.choice(lexicon.THINGS), lexicon.QUALITIES + lexicon.COLOURS)
    euros, cents = rng.randint(2, 300), rng.choice([0, 0, *range(5, 100, 5)])
    english = [*thing.english, "cost" if thing.plural else "costs", english_number(euros), "euros"]
    french = [*thing.french, "coûtent" if thing.plural else "coûte", french_number(euros), "euros"]
    if not cents:
        return english, french
    return [*english, "and", english_number(cents), "cents"], [
        *french,
        "et",
        french_number(cents),
        "centimes",
    ]


def _date(rng: random.Random) -> Pair:
    """Today is Monday the third of March; she was born on the third of March nineteen eighty-seven."""
    day, (month, mois) = rng.randint(1, 28), rng.choice(lexicon.MONTHS)
    english = ["the", lexicon.ORDINALS[day - 1], "of", month]
    french = ["premier" if day == 1 else french_number(day), mois]
    if rng.random() < 0.3:
        weekday, jour = rng.choice(lexicon.DAYS)
        return ["today is", weekday, *english], ["nous sommes le", jour, *french]
    year = rng.randint(1910, 1999)
    born, ne = rng.choice([("he was born on", "il est né le"), ("she was born on", "elle est née le")])
    spoken = french_number(year, last=False)  # a year is a rank, in which vingt and cent stay without s
    return [born, *english, english_year(year)], [ne, *french, spoken]


def _time(rng: random.Random) -> Pair:
    """It is twenty-five to four in the morning; the train leaves at half past nine in the evening."""
    english, french = rng.choice(
        [
            ("it is", "il est"),
            ("the train leaves at", "le train part à"),
            ("the boat arrives at", "le bateau arrive à"),
            ("the shop closes at", "le magasin ferme à"),
            ("our school opens at", "notre école ouvre à"),
        ]
    )
    hour, minutes = rng.randint(1, 12), rng.randrange(0, 60, 5)
    part = rng.choice(
        [
            ("in the morning", "du matin"),
            ("in the afternoon", "de l'après-midi"),
            ("in the evening", "du soir"),
        ]
    )
    spoken, heure = clock(hour, minutes)
    noon = (hour + (minutes > 30)) in (12,)
    return [english, spoken, "" if noon else part[0]], [french, heure, "" if noon else part[1]]


def clock(hour: int, minutes: int) -> tuple[str, str]:
    """A time of day in steps of five minutes in both languages; twelve is noon."""
    past = minutes <= 30
    hour = hour if past else hour % 12 + 1
    name = "noon" if hour == 12 else english_number(hour)
    nom = "midi" if hour == 12 else f"{french_number(hour, feminine=True)} heure{'s' * (hour > 1)}"
    rest = minutes if past else 60 - minutes
    if not rest:
        return (name if hour == 12 else f"{name} o'clock"), nom
    if rest == 30:
        return f"half past {name}", f"{nom} et demi{'' if hour == 12 else 'e'}"
    spoken = "a quarter" if rest == 15 else english_number(rest)
    if past:
        return f"{spoken} past {name}", f"{nom} {'et quart' if rest == 15 else french_number(rest)}"
    return f"{spoken} to {name}", f"{nom} moins {'le quart' if rest == 15 else french_number(rest)}"


def _inhabitants(rng: random.Random) -> Pair:
    """The town has two thousand three hundred and eighty inhabitants."""
    number = rng.randint(101, 9999)
    name, nom = rng.choice(
        [("the town", "la ville"), ("this village", "ce village"), ("the island", "l'île")]
    )
    return [name, "has", english_number(number), "inhabitants"], [
        nom,
        "compte",
        french_number(number),
        "habitants",
    ]


KINDS: dict[Callable[[random.Random], Pair], float] = {  # by their shares of the corpus
    _action: 8,
    _state: 4,
    _place: 2,
    _price: 2,
    _date: 2,
    _time: 1,
    _inhabitants: 1,
}
