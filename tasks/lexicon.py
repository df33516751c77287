"""The words of `phrases`, English and French."""

from tasks.french import Adjective, Noun, Verb, words


def _nouns(table: str, feminine: bool) -> list[Noun]:
    """Lines of `english french`, or with their plurals `english,plural french,plural`."""
    found = []
    for line in table.strip().splitlines():
        english, french = (side.strip().split(",") for side in line.split("|"))
        plural = english[1] if len(english) > 1 else english[0] + "s"
        plurals = french[1] if len(french) > 1 else french[0] + "s"
        found.append(Noun(english[0], plural, french[0], plurals, feminine))
    return found


PERSONS = _nouns(
    """friend | ami
    teacher | professeur
    neighbour | voisin
    boy | garçon
    man,men | homme
    child,children | enfant
    brother | frère
    uncle | oncle""",
    False,
) + _nouns(
    """girl | fille
    woman,women | femme
    sister | sœur
    aunt | tante
    queen | reine
    singer | chanteuse""",
    True,
)
ANIMALS = _nouns(
    """cat | chat
    dog | chien
    horse | cheval,chevaux
    bird | oiseau,oiseaux
    donkey | âne""",
    False,
) + _nouns("cow | vache\nmouse,mice | souris,souris\nhen | poule", True)
THINGS = _nouns(
    """hat | chapeau,chapeaux
    coat | manteau,manteaux
    bag | sac
    tree | arbre
    knife,knives | couteau,couteaux
    boat | bateau,bateaux
    painting | tableau,tableaux
    alarm clock | réveil
    umbrella | parapluie
    bed | lit""",
    False,
) + _nouns(
    """house | maison
    car | voiture
    table | table
    chair | chaise
    lamp | lampe
    shirt | chemise
    bottle | bouteille
    island | île
    key | clé
    flower | fleur
    star | étoile
    watch,watches | montre""",
    True,
)
FOODS = _nouns("cake | gâteau,gâteaux\negg | œuf\ncheese | fromage\napricot | abricot", False) + _nouns(
    "apple | pomme\npear | poire\norange | orange\nsoup | soupe", True
)
READINGS = _nouns("book | livre\nnewspaper | journal,journaux\npoem | poème", False) + _nouns(
    "letter | lettre\nstory,stories | histoire", True
)
BUILDINGS = _nouns(
    "bridge | pont\nhotel | hôtel\nshop | magasin\ngarden | jardin\ncastle | château,châteaux", False
)
BUILDINGS += _nouns("church,churches | église\nschool | école\nstation | gare\nkitchen | cuisine", True)


def _adjectives(table: str, before: bool) -> list[Adjective]:
    """Lines of `english masculine feminine`, with the form before a vowel and the masculine plural if odd."""
    found = []
    for line in table.strip().splitlines():
        english, masculine, feminine, *odd = line.split()
        plural = odd[1] if len(odd) > 1 else masculine if masculine[-1] in "sx" else masculine + "s"
        vowel = odd[0] if odd else masculine
        found.append(Adjective(english, masculine, vowel, feminine, plural, feminine + "s", before))
    return found


QUALITIES = _adjectives(
    """big grand grande
    small petit petite
    beautiful beau belle bel beaux
    new nouveau nouvelle nouvel nouveaux
    old vieux vieille vieil vieux
    good bon bonne
    pretty joli jolie
    bad mauvais mauvaise""",
    True,
)
COLOURS = _adjectives(
    """white blanc blanche
    black noir noire
    green vert verte
    blue bleu bleue
    red rouge rouge
    yellow jaune jaune
    grey gris grise""",
    False,
)
STATES = _adjectives(
    """expensive cher chère
    strange étrange étrange
    heavy lourd lourde
    clean propre propre
    round rond ronde""",
    False,
)
MOODS = _adjectives(
    """happy heureux heureuse
    tired fatigué fatiguée
    kind gentil gentille
    rich riche riche
    famous célèbre célèbre""",
    False,
)


def _regular(english: str, third: str, past: str, stem: str) -> Verb:
    """A verb in -er."""
    present = tuple(stem + ending for ending in ("e", "es", "e", "ons", "ez", "ent"))
    return Verb(english, third, past, present, stem + "er", stem + "é")


def _irregular(english: str, present: str, future: str, participle: str) -> Verb:
    base, third, past = english.split(",")
    return Verb(base, third, past, tuple(present.split()), future, participle)


_SEE = _irregular("see,sees,saw", "vois vois voit voyons voyez voient", "verr", "vu")
_WAIT = _irregular(
    "wait for,waits for,waited for",
    "attends attends attend attendons attendez attendent",
    "attendr",
    "attendu",
)
_HEAR = _irregular(
    "hear,hears,heard", "entends entends entend entendons entendez entendent", "entendr", "entendu"
)
_BUY = _irregular("buy,buys,bought", "achète achètes achète achetons achetez achètent", "achèter", "acheté")
_TAKE = _irregular("take,takes,took", "prends prends prend prenons prenez prennent", "prendr", "pris")
_SELL = _irregular("sell,sells,sold", "vends vends vend vendons vendez vendent", "vendr", "vendu")
_READ = _irregular("read,reads,read", "lis lis lit lisons lisez lisent", "lir", "lu")
_EAT = _irregular("eat,eats,ate", "mange manges mange mangeons mangez mangent", "manger", "mangé")
_LOOK_FOR = _regular("look for", "looks for", "looked for", "cherch")
_FIND = _regular("find", "finds", "found", "trouv")
_DRAW = _regular("draw", "draws", "drew", "dessin")
_LIKE = _regular("like", "likes", "liked", "aim")
_CARRY = _regular("carry", "carries", "carried", "port")

_OF_ALL = [_SEE, _LOOK_FOR, _FIND, _DRAW, _LIKE]
ACTIONS: list[tuple[list[Verb], list[Noun]]] = [  # verbs, and what they may be done to
    ([*_OF_ALL, _WAIT, _HEAR], PERSONS),
    ([*_OF_ALL, _HEAR, _BUY, _SELL], ANIMALS),
    ([*_OF_ALL, _BUY, _SELL, _TAKE, _CARRY], [noun for noun in THINGS if noun.english != "island"]),
    ([*_OF_ALL, _BUY, _SELL, _TAKE, _EAT], FOODS),
    ([_SEE, _FIND, _LIKE, _BUY, _READ, _READ], READINGS),
    ([*_OF_ALL, _BUY, _SELL], BUILDINGS),
]
PRONOUNS = [  # English, French, person
    ("I", "je", 0),
    ("he", "il", 2),
    ("she", "elle", 2),
    ("we", "nous", 3),
    ("you", "vous", 4),
    ("they", "ils", 5),
]
MONTHS = list(
    zip(
        words("January February March April May June July August September October November December"),
        words("janvier février mars avril mai juin juillet août septembre octobre novembre décembre"),
        strict=True,
    )
)
DAYS = list(
    zip(
        words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
        words("lundi mardi mercredi jeudi vendredi samedi dimanche"),
        strict=True,
    )
)
ORDINALS = words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth twenty-first twenty-second twenty-third "
    "twenty-fourth twenty-fifth twenty-sixth twenty-seventh twenty-eighth"
)
WHEN = {
    "present": [("every day", "tous les jours"), ("today", "aujourd'hui"), ("in the evening", "le soir")],
    "future": [("tomorrow", "demain"), ("next week", "la semaine prochaine"), ("soon", "bientôt")],
    "past": [("yesterday", "hier"), ("last week", "la semaine dernière"), ("this morning", "ce matin")],
}
PLACES = [  # English, French before an article that does not melt into it
    ("in", "dans"),
    ("in front of", "devant"),
    ("behind", "derrière"),
]
