"""A question and one of its choices, said as a statement: what an image-text model compares with the picture.

is the apple red?  no                ->  not red apple
how many cats are there?  3          ->  three cat
where is the dog?  left of the cat   ->  dog left cat
what is in the picture?  dog         ->  dog
"""

from __future__ import annotations

import re

from promptcdm import question_words as words
from promptcdm.caption_chunks import RELATION_NAMES, singular

_NUMBER_NAMES = {str(value): word for word, value in words.NUMBERS.items()}
_DROPPED = words.word_set(
    """
    a an the is are was were be this that these those there it its of to in on at do does can has have
    picture image photo photograph emoji icon some any
    """
)
_ABOUT = re.compile(
    r"\b(?:an?|the)?\s*(?:emoji|icon|picture|photo|photograph|image|drawing|sticker)\s+(?:of|showing)\s+"
)
_IN_PICTURE = re.compile(
    r"\s+(?:in|on) (?:the|this) (?:picture|image|photo|photograph|painting|drawing|scene)\b"
)
_WITH_OTHER = re.compile(r"\bwith (?:the|an?) .*$")
_YES_NO = re.compile(r"^(?:is|are|was|were|do|does|did|can|has|have)\b")
_COLOR = re.compile(r"^what colou?r (?:is|are) (.*)$")
_COUNT = re.compile(r"^how many (.*?)(?:\s+(?:are|is)\b.*)?$")
_WHERE = re.compile(r"^where (?:is|are) (.*)$")
_SHAPE = re.compile(r"^what shape (?:is|are) (.*)$")
_WHAT = re.compile(r"^(?:what|which|who)(?: (?:type|kind|sort)s? of)?\b(.*)$")


def statement(question: str, choice: str) -> str:
    """What the picture shows if the choice is right, in a few plain words."""
    asked = _IN_PICTURE.sub("", question.lower().strip().rstrip("?").strip())
    choice = choice.lower().strip()
    if _YES_NO.match(asked):
        return _yes_or_no(asked, choice)
    if match := _COLOR.match(asked):
        return plain(f"{choice} {match[1]}")
    if match := _COUNT.match(asked):
        return plain(f"{_NUMBER_NAMES.get(choice, choice)} {match[1]}")
    if match := _SHAPE.match(asked):
        return plain(f"{choice} {match[1]}")
    if match := _WHERE.match(asked):
        return plain(f"{match[1]} {choice}")
    if match := _WHAT.match(asked):
        rest = plain(_WITH_OTHER.sub("", match[1]))
        kinds = {
            "animal",
            "object",
            "thing",
            "food",
            "item",
            "place",
            "furniture",
            "container",
            "toy",
            "else",
        }
        return plain(choice) if set(rest.split()) <= kinds else f"{plain(choice)} {rest}"
    return plain(f"{asked} {choice}")


def plain(text: str) -> str:
    """Lower-case words in the singular, without articles and what is said about the picture as a picture."""
    text = _ABOUT.sub(" ", text.lower().replace("\u2019", "'"))
    found = re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text)
    kept = [singular(word) for word in found if word not in _DROPPED]
    return " ".join(_NUMBER_NAMES.get(word, word) for word in kept)


def _yes_or_no(asked: str, choice: str) -> str:
    body = _YES_NO.sub("", asked).strip()
    if choice not in {"yes", "no"}:
        # "is the cat big or small?": the words before the first choice name the thing.
        thing = body.split(choice)[0] if choice in body else body.split(" or ")[0].rsplit(" ", 1)[0]
        return plain(f"{choice} {_before_choices(thing)}")
    said = _color_first(plain(body))
    return said if choice == "yes" else f"not {said}"


def _before_choices(thing: str) -> str:
    """The subject alone, where the other choice stands between it and this one."""
    return re.sub(r"\s+\S+ or\s*$", "", thing)


def _color_first(said: str) -> str:
    """ "apple red" becomes "red apple", as captions say it; relations are left alone."""
    *thing, last = said.split() or [""]
    relation = any(name.split()[0] in thing for name in RELATION_NAMES)
    return " ".join([last, *thing]) if last in words.COLORS and thing and not relation else said
