"""Questions with known answers on pictures of which it is known what they show: how often a judge errs.

Of each kind a judge is asked twice over, once for what a picture shows and once for what it does not:

    kind                 shown                                  not shown
    object, presence     a thing that is there                  one that is not
    color, count         its colour, their number               another
    position             how one thing stands to another        the opposite

sensitivity is the share of the shown that the judge affirms, specificity the share of the not shown that it does not. A
choice among several affirms what it chooses: of a thing that is not shown, the true one is not among the 20 choices, as
a question that was made from a caption would not list it.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from promptcdm.answer import Asked, CannotAnswer, Judge
from promptcdm.caption_chunks import plural
from promptcdm.question_rules import is_there
from promptcdm.question_words import NEAR_COLORS, NUMBERS, OPPOSITE_RELATIONS, PLAIN_COLORS, PLANE_RELATIONS
from promptcdm.statements import plain

CHOICES = 20  # of a question on objects
_COUNTS = ("1", "2", "3", "4")
_YES_NO = ("yes", "no")
_WORDS = {number: word for word, number in NUMBERS.items()}
_AT_ONCE = 200  # questions


@dataclass(frozen=True)
class Thing:
    """What is known of one thing of a picture; `count` 0 and `color` "" are not known."""

    noun: str
    count: int = 0
    color: str = ""


@dataclass(frozen=True)
class Known:
    """A picture and what it shows; `relation` is how the first thing stands to the second, where that is known."""

    image: Image.Image
    things: tuple[Thing, ...]
    relation: str = ""
    named: bool = True  # all things are named, so that another is surely not there


@dataclass(frozen=True)
class Check:
    """One question, what is affirmed by it, and whether that is shown."""

    kind: str
    asked: Asked
    affirms: str  # a choice
    shown: bool


@dataclass
class Tally:
    """How many of the shown were affirmed, and of the not shown were not."""

    affirmed: int = 0
    shown: int = 0
    denied: int = 0
    not_shown: int = 0

    def add(self, check: Check, choice: str) -> None:
        """Count one answer."""
        if check.shown:
            self.shown += 1
            self.affirmed += choice == check.affirms
        else:
            self.not_shown += 1
            self.denied += choice != check.affirms


def checks(known: Iterable[Known], nouns: Sequence[str], *, seed: int = 0) -> Iterator[Check]:
    """All questions on these pictures; `nouns` are what distractors are drawn from."""
    rng = random.Random(seed)
    for picture in known:
        yield from _things(picture, nouns, rng)
        for thing in picture.things:
            if thing.count:
                yield from _counts(picture, thing, rng)
            if thing.color:
                yield from _colors(picture, thing, rng)
        if picture.relation:
            yield from _positions(picture)


def tally(judge: Judge, asked: Iterable[Check]) -> tuple[dict[str, Tally], int]:
    """What the judge's answers come to, by kind, and how many questions it could not answer."""
    rows, tallies, left_out = list(asked), dict[str, Tally](), 0
    for start in range(0, len(rows), _AT_ONCE):
        part = rows[start : start + _AT_ONCE]
        for check, choice in zip(part, _choices(judge, part), strict=True):
            if choice is None:
                left_out += 1
            else:
                tallies.setdefault(check.kind, Tally()).add(check, choice)
    return tallies, left_out


def _choices(judge: Judge, part: Sequence[Check]) -> list[str | None]:
    """The judge's choices; a batch that it cannot answer is halved until the question at fault is alone."""
    try:
        return [answer.choice for answer in judge.answers([check.asked for check in part])]
    except CannotAnswer:
        if len(part) == 1:
            return [None]
        half = len(part) // 2
        return [*_choices(judge, part[:half]), *_choices(judge, part[half:])]


def _things(picture: Known, nouns: Sequence[str], rng: random.Random) -> Iterator[Check]:
    taken = {word for thing in picture.things for word in plain(thing.noun).split()}
    free = [noun for noun in nouns if not taken & set(plain(noun).split())]
    for thing in picture.things:
        others = rng.sample(free, CHOICES)
        question = "what is in the picture?"
        yield _choice("object", picture, question, [thing.noun, *others[1:]], thing.noun, True)
        yield _yes("presence", picture, is_there(thing.noun, False), True)
        if picture.named:
            yield _choice("object", picture, question, others, others[0], False)
            yield _yes("presence", picture, is_there(others[0], False), False)


def _counts(picture: Known, thing: Thing, rng: random.Random) -> Iterator[Check]:
    many = plural(thing.noun)
    question, wrong = f"how many {many} are there?", rng.choice([n for n in range(1, 5) if n != thing.count])
    if str(thing.count) in _COUNTS:
        yield _choice("count", picture, question, _COUNTS, str(thing.count), True)
    yield _choice("count", picture, question, _COUNTS, str(wrong), False)
    if thing.count > 1:
        yield _yes("count, yes or no", picture, f"are there {_WORDS[thing.count]} {many}?", True)
    other = rng.choice([n for n in range(2, 6) if n != thing.count])
    yield _yes("count, yes or no", picture, f"are there {_WORDS[other]} {many}?", False)


def _colors(picture: Known, thing: Thing, rng: random.Random) -> Iterator[Check]:
    near = {thing.color}.union(*(group for group in NEAR_COLORS if thing.color in group))
    others = rng.sample([color for color in PLAIN_COLORS if color not in near], 4)
    question = f"what color is the {thing.noun}?"
    yield _choice("color", picture, question, [thing.color, *others[1:]], thing.color, True)
    # A question that was made from a wrong caption lists the true colour among three others now and then.
    listed = [others[0], *rng.sample([thing.color, *others[1:], *PLAIN_COLORS], 8)]
    yield _choice("color", picture, question, list(dict.fromkeys(listed))[:4], others[0], False)
    yield _yes("color, yes or no", picture, f"is the {thing.noun} {thing.color}?", True)
    yield _yes("color, yes or no", picture, f"is the {thing.noun} {others[0]}?", False)


def _positions(picture: Known) -> Iterator[Check]:
    first, second = (thing.noun for thing in picture.things[:2])
    right, wrong = picture.relation, OPPOSITE_RELATIONS[picture.relation]
    choices = [f"{relation} the {second}" for relation in PLANE_RELATIONS]
    for relation, shown in ((right, True), (wrong, False)):
        said = f"{relation} the {second}"
        yield _choice("position", picture, f"where is the {first}?", choices, said, shown)
        yield _yes("position, yes or no", picture, f"is the {first} {said}?", shown)


def _choice(
    kind: str, picture: Known, question: str, choices: Sequence[str], affirms: str, shown: bool
) -> Check:
    # In one order whatever is shown: a judge's answer should not depend on it.
    return Check(kind, Asked(picture.image, question, tuple(sorted(choices))), affirms, shown)


def _yes(kind: str, picture: Known, question: str, shown: bool) -> Check:
    return Check(kind, Asked(picture.image, question, _YES_NO), "yes", shown)


def record(tallies: Mapping[str, Tally]) -> dict[str, dict[str, list[int]]]:
    """As a file holds them: right and of how many."""
    return {
        kind: {
            "sensitivity": [each.affirmed, each.shown],
            "specificity": [each.denied, each.not_shown],
        }
        for kind, each in sorted(tallies.items())
    }
