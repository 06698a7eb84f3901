"""A label made into plain English: articles, plurals, and a few wordings to choose from by seed."""

from __future__ import annotations

import hashlib
import re

HAIR = {"blond hair": "blond hair", "beard": "a beard", "bald": "a bald head"}
HAIR |= {f"{c} hair": f"{c} hair" for c in ("red", "curly", "white")}

PLURALS = frozenset(
    ["glasses", "sunglasses", "goggles", "jeans", "socks", "gloves", "shorts", "briefs", "skis", "chopsticks", "grapes", "cherries", "peanuts", "beans", "pancakes", "scissors", "chains", "maracas", "bubbles", "clothes", "beads", "shoes", "lungs", "eyes", "footprints", "books", "boots", "bags", "sparkles", "fireworks", "dolls", "hearts", "droplets", "houses", "bars", "hands", "fries", "mugs", "glass-es", "notes", "knobs", "blueberries", "tracks", "springs", "stairs", "hands", "tears", "fists", "stars", "chick-s", "cards", "paperclips", "sports-shoes", "swords", "crackers", "people", "men", "women", "busts", "notes", "sandals-s", "letters", "numbers", "symbols", "frames", "tones", "binoculars", "headphones", "gears", "dices", "coupons", "lockers", "sneakers", "servers", "settings", "skates", "batteries", "contacts", "documents", "comments", "cameras", "phones", "plans", "statistics", "workflows", "doctors", "ingredients", "slippers", "arrows", "coins", "eggs", "cups", "trees", "flags", "crutches", "tickets", "prints", "flowers", "pens"]
)
MASS = frozenset(
    ["bread", "bacon", "rice", "sushi", "spaghetti", "popcorn", "butter", "salt", "broccoli", "garlic", "ginger", "corn", "sake", "custard", "ice", "dango", "oden", "fondue", "mate", "fog", "fire", "wood", "soap", "yarn", "thread", "coral", "lipstick", "dna", "money", "confetti", "camping", "tennis", "badminton", "lacrosse", "bowling", "baseball-game", "water", "milk", "shrimp-s", "tea", "food", "wedding-s", "karate", "luggage", "rain", "snow", "lightning", "knitting", "hockey", "pong", "information", "construction", "recycling", "arts", "mail", "e-mail", "zzz", "aries", "taurus", "gemini", "cancer", "leo", "virgo", "libra", "scorpio", "sagittarius", "capricorn", "aquarius", "pisces", "ophiuchus", "wireless", "infinity", "plus", "minus", "multiply", "divide", "copyright", "registered", "om", "shuffle", "polish", "cinema", "customs", "claim", "control", "trash", "nothing", "cooking", "falafel", "toast", "lacrosse", "pizza-dough", "edamame", "tofu", "snowflakes-s", "herb-s"]
)
WHOLE_WITHOUT_ARTICLE = frozenset(
    phrase.strip()
    for phrase in ["thumbs up", "thumbs down", "crossed fingers", "pinched fingers", "hundred points", "left luggage", "horse racing\n    ", "paw prints", "baggage claim", "passport control", "skull and crossbones", "fork and knife", "hammer and pick", "hammer and wrench\n    ", "bow and arrow", "nut and bolt", "potable water", "non-potable water", "yin yang", "no entry", "no smoking", "no littering", "no bicycles\n    ", "no pedestrians", "no mobile phones", "no one under eighteen", "dashing away", "rolling on the floor laughing", "night with stars\n    ", "palms up together", "Santa Claus", "Mrs. Claus", "Mx Claus", "mount fuji", "ping pong", "pouring liquid", "star-struck", "folded hands\n    ", "raising hands", "clapping hands", "building construction", "flower playing cards", "breast-feeding", "no idea", "no video\n    ", "in transit", "meat on bone", "sign language", "lentils"]
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
        parts = [f"{article(p)} {p}" for p in tail.split(", ")]
        joined = ", ".join(parts[:-1]) + " and " + parts[-1]
        text = f"{'couple with a heart' if head.startswith('couple') else head} of {joined}"
    elif tail:
        text = f"{head} {tail}"
    elif re.search(r"o'clock$|-thirty$", text):
        text = f"clock showing {text}"
    return re.sub(r"\s*\((.*?)\)", r" for \1", text)


def _head(text: str) -> str:
    """The noun that decides between singular and plural: the last word before a preposition or a participle."""
    joints = "with|of|in|on|at|behind|for|and|pointing|showing|facing|without|but|under"
    words = re.split(rf" (?:{joints}) ", text)[0].split()
    for number, word in enumerate(words[1:], 1):
        if word.endswith("ing"):
            return words[number - 1]
    return words[-1]


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


IRREGULAR = {
    **{w: w for w in ["fish", "sheep", "deer", "moose", "bison", "squid", "shrimp", "series", "blowfish", "jellyfish"]},
    **dict(
        mouse="mice", goose="geese", foot="feet", tooth="teeth", leaf="leaves", knife="knives", wolf="wolves"
    ),
    **dict(
        scarf="scarves",
        die="dice",
        ox="oxen",
        person="people",
        man="men",
        snowman="snowmen",
        woman="women",
        child="children",
    ),
    **dict(
        tomato="tomatoes", potato="potatoes", mango="mangoes", volcano="volcanoes", hero="heroes", elf="elves"
    ),
    **dict(
        torpedo="torpedoes", loaf="loaves", shelf="shelves", calf="calves", mosquito="mosquitoes", ewe="ewes"
    ),
}


def plural(label: str) -> str:
    """`apple` -> `apples`, `slice of bread` -> `slices of bread`, `mouse` -> `mice`."""
    match = re.match(r"(.*?)( (?:with|of|in|on|without) .*)?$", tidy(label))
    assert match is not None
    front, tail = match[1], match[2] or ""
    *before, noun = front.split(" ")
    if noun.lower() in IRREGULAR:
        noun = IRREGULAR[noun.lower()]
    elif re.search(r"(s|x|z|ch|sh)$", noun):
        noun += "es"
    elif re.search(r"[^aeiou]y$", noun):
        noun = noun[:-1] + "ies"
    else:
        noun += "s"
    return " ".join([*before, noun]) + tail


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
