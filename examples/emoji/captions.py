"""A label made into plain English: articles, plurals, and a few wordings to choose from by seed."""

from __future__ import annotations

import hashlib
import re

HAIR = {"blond hair": "blond hair", "beard": "a beard", "bald": "a bald head"}
HAIR |= {f"{c} hair": f"{c} hair" for c in ("red", "curly", "white")}

PLURALS = frozenset(
    """glasses sunglasses goggles jeans socks gloves shorts briefs skis chopsticks grapes cherries peanuts beans pancakes
    scissors chains maracas bubbles clothes beads shoes lungs eyes footprints books boots bags sparkles fireworks dolls
    hearts droplets houses bars hands fries mugs glass-es notes knobs blueberries tracks springs stairs hands tears fists
    stars chick-s cards paperclips sports-shoes swords crackers people men women busts notes sandals-s letters numbers
    symbols frames tones binoculars headphones gears dices coupons lockers sneakers servers settings skates batteries
    contacts documents comments cameras phones plans statistics workflows doctors ingredients slippers arrows coins eggs
    cups trees flags crutches tickets prints flowers pens""".split()
)
MASS = frozenset(
    """bread bacon rice sushi spaghetti popcorn butter salt broccoli garlic ginger corn sake custard ice dango oden fondue
    mate fog fire wood soap yarn thread coral lipstick dna money confetti camping tennis badminton lacrosse bowling
    baseball-game water milk shrimp-s tea food wedding-s karate luggage rain snow lightning knitting hockey pong
    information construction recycling arts mail e-mail zzz aries taurus gemini cancer leo virgo libra scorpio
    sagittarius capricorn aquarius pisces ophiuchus wireless infinity plus minus multiply divide copyright registered
    om shuffle cinema customs claim control trash nothing cooking falafel toast lacrosse pizza-dough edamame tofu
    snowflakes-s herb-s""".split()
)
WHOLE_WITHOUT_ARTICLE = frozenset(
    """thumbs up|thumbs down|crossed fingers|pinched fingers|hundred points|performing arts|left luggage|horse racing
    |paw prints|baggage claim|passport control|skull and crossbones|fork and knife|fork and knife with plate
    |hammer and pick|hammer and wrench|bow and arrow|nut and bolt|couch and lamp|potable water|non-potable water
    |yin yang|no entry|no smoking|no littering|no bicycles|no pedestrians|no mobile phones|no one under eighteen
    |dashing away|rolling on the floor laughing|children crossing|snow-capped mountain-s|palms up together|mountains
    |carp streamer-s|night with stars|peace|low battery-s|litter in bin sign-s|cricket game-s|breast-feeding
    |Santa Claus|Mrs. Claus|Mx Claus|Statue of Liberty-s|mount fuji|ping pong|sheaf of rice-s|white water
    |pouring liquid|star-struck|trade mark-s|leafy green-s|folded hands|raising hands|clapping hands""".replace(
        "\n", ""
    ).split("|")
)
WITH_THE = frozenset({"statue of liberty", "milky way", "kaaba", "tokyo tower", "sun", "world"})


def tidy(label: str) -> str:
    """The label without colons, brackets and typographic quotes: `person: blond hair` -> `person with blond hair`."""
    text = label.replace("’", "'").replace("“", "").replace("”", "").strip()
    head, _, tail = text.partition(": ")
    if tail and head == "keycap":
        text = f"keycap {dict({'#': 'hash', '*': 'asterisk'}).get(tail, tail)}"
    elif tail in HAIR:
        text = f"{head} with {HAIR[tail]}"
    elif tail.startswith("facing"):
        text = f"{head} {tail}"
    elif tail and head in ("family", "kiss", "couple with heart"):
        parts = [f"a {p}" for p in tail.split(", ")]
        joined = ", ".join(parts[:-1]) + " and " + parts[-1]
        text = f"{'couple with a heart' if head.startswith('couple') else head} of {joined}"
    elif tail:
        text = f"{head} {tail}"
    return re.sub(r"\s*\((.*?)\)", r" for \1", text)


def _head(text: str) -> str:
    """The noun that decides between singular and plural: the last word before a preposition."""
    return re.split(r" (?:with|of|in|on|at|behind|for|and|pointing|showing|facing|without|but|under) ", text)[
        0
    ].split()[-1]


def is_plural(label: str) -> bool:
    """True for labels that name several things or come in pairs."""
    return _head(tidy(label)).lower() in PLURALS


def with_article(label: str) -> str:
    """`apple` -> `an apple`, `cherries` -> `cherries`, `sun` -> `the sun`."""
    text = tidy(label)
    head = _head(text).lower()
    if text.lower() in WITH_THE:
        return f"the {text}"
    if text in WHOLE_WITHOUT_ARTICLE or head in PLURALS or head in MASS:
        return text
    if re.match(r"(Japanese dolls|input )", text):
        return text
    return f"{article(text)} {text}"


def article(text: str) -> str:
    """`a` or `an` by the sound of the first word, near enough for the labels at hand."""
    word = text.split()[0]
    if re.match(r"(?i)(eu|uni|use|ufo|one|once|u-|ewe)", word):
        return "a"
    if re.match(r"(?i)(hour|honest)", word) or re.match(r"(ATM|SOS|NG|OK|UV|X-|x-|e-)", word):
        return "an"
    if word in ("8",) or word.startswith("eight"):
        return "an"
    return "an" if word[0].lower() in "aeiou" else "a"


TEMPLATES = ("{a}", "{bare}", "an icon of {a}", "a picture of {a}", "a drawing of {a}", "an emoji of {a}")
# The plain wording comes up most often, as it is what people type.
SHARES = (5, 3, 2, 2, 1, 1)


def wordings(label: str) -> tuple[str, ...]:
    """All wordings of a label, in the order of TEMPLATES."""
    return tuple(t.format(a=with_article(label), bare=tidy(label)) for t in TEMPLATES)


def caption(label: str, key: str) -> str:
    """One wording, chosen by the sha256 of `key` (such as collection and concept): the same on every machine."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % sum(SHARES)
    for text, share in zip(wordings(label), SHARES):
        if number < share:
            return text
        number -= share
    raise AssertionError("shares do not add up")
