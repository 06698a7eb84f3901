"""A label made into plain English: articles, plurals, and a few wordings to choose from by seed.

The words that rules cannot tell (what is plural, what takes no article) are in english.json.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

ENGLISH = Path(__file__).with_name("english.json")
HAIR = {
    "blond hair": "blond hair",
    "red hair": "red hair",
    "curly hair": "curly hair",
    "white hair": "white hair",
    "bald": "a bald head",
    "beard": "a beard",
}
TEMPLATES = ("{a}", "{bare}", "an icon of {a}", "a picture of {a}", "a drawing of {a}", "an emoji of {a}")
# The plain wording comes up most often, as it is what people type.
SHARES = (5, 3, 2, 2, 1, 1)


@lru_cache(maxsize=1)
def _english() -> dict[str, Any]:
    words: dict[str, Any] = json.loads(ENGLISH.read_text(encoding="utf-8"))
    return words


def tidy(label: str) -> str:
    """The label without colons, brackets and curly quotes: `person: blond hair` -> `person with blond hair`."""
    text = re.sub("[“”]", "", label).replace("\u2019", "'").strip()
    head, _, tail = text.partition(": ")
    if tail and head == "keycap":
        text = f"keycap {dict({'#': 'hash', '*': 'asterisk'}).get(tail, tail)}"
    elif tail in HAIR:
        text = f"{head} with {HAIR[tail]}"
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
    """The noun that decides on the number: the last word before a preposition or a participle."""
    joints = "with|of|in|on|at|behind|for|and|from|to|pointing|showing|facing|without|but|under"
    words = re.split(rf" (?:{joints}) ", text)[0].split()
    for number, word in enumerate(words[1:], 1):
        if word.endswith("ing"):
            return words[number - 1].lower()
    return words[-1].lower()


def is_plural(label: str) -> bool:
    """True for labels that name several things or come in pairs."""
    return _head(tidy(label)) in _english()["plural"]


def with_article(label: str) -> str:
    """`apple` -> `an apple`, `cherries` -> `cherries`, `sun` -> `the sun`."""
    text = tidy(label)
    english = _english()
    if text.lower() in english["the"]:
        return f"the {text}"
    if (
        text in english["no_article"]
        or _head(text) in english["plural"]
        or _head(text) in english["uncounted"]
    ):
        return text
    return f"{article(text)} {text}"


def article(text: str) -> str:
    """`a` or `an` by the sound of the first word, near enough for the labels at hand."""
    word = text.split()[0]
    if re.match(r"(?i)(eu|uni|use|ufo|one|once|u-|ewe)", word):
        return "a"
    if re.match(r"(?i)(hour|honest|eight|8)", word) or re.match(r"(ATM|SOS|NG|OK|UV|[Xx]-|e-)", word):
        return "an"
    return "an" if word[0].lower() in "aeiou" else "a"


def plural(label: str) -> str:
    """`apple` -> `apples`, `slice of bread` -> `slices of bread`, `mouse` -> `mice`."""
    match = re.match(r"(.*?)( (?:with|of|in|on|without) .*)?$", tidy(label))
    assert match is not None
    *before, noun = match[1].split(" ")
    if noun.lower() in _english()["plurals"]:
        noun = _english()["plurals"][noun.lower()]
    elif re.search(r"(s|x|z|ch|sh)$", noun):
        noun += "es"
    elif re.search(r"[^aeiou]y$", noun):
        noun = noun[:-1] + "ies"
    else:
        noun += "s"
    return " ".join([*before, noun]) + (match[2] or "")


def wordings(label: str) -> tuple[str, ...]:
    """All wordings of a label, in the order of TEMPLATES."""
    return tuple(t.format(a=with_article(label), bare=tidy(label)) for t in TEMPLATES)


def caption(label: str, key: str) -> str:
    """One wording, chosen by the sha256 of `key` (such as collection and concept): the same on every machine."""
    number = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % sum(SHARES)
    for text, share in zip(wordings(label), SHARES, strict=True):
        if number < share:
            return text
        number -= share
    raise AssertionError("shares do not add up")
