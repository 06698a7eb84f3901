"""What the judge is trained to answer: groups of statements of which one is true of a picture.

The statements are made from questions by the same function that the judge uses, so what is trained is what is
asked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from colours import COLOURS
from scenes import OPPOSITE, Scene, Thing

from promptcdm.caption_chunks import plural
from promptcdm.question_words import NUMBERS
from promptcdm.statements import plain, statement

KINDS = ("count", "color", "position", "yes or no")
_PALE = ("black", "white", "gray")
_NUMBER_WORDS = {number: word for word, number in NUMBERS.items()}


@dataclass(frozen=True)
class Group:
    """Statements about the picture `image` of the batch; `right` is the place of the true one."""

    image: int
    kind: str
    statements: tuple[str, ...]
    right: int


@dataclass
class Asked:
    """All that is asked about one batch."""

    present: dict[int, tuple[str, ...]] = field(default_factory=dict)  # image -> labels that it shows
    groups: list[Group] = field(default_factory=list)

    def choice(self, image: int, kind: str, question: str, choices: Sequence[str], right: str) -> None:
        """A question with several choices."""
        said = tuple(statement(question, choice) for choice in choices)
        self.groups.append(Group(image, kind, said, list(choices).index(right)))

    def yes_no(self, image: int, question: str, right: str) -> None:
        """A yes/no question."""
        self.choice(image, "yes or no", question, ("yes", "no"), right)


def ask_scene(asked: Asked, image: int, scene: Scene, rng: random.Random) -> None:
    """Put questions about one scene: what is there, and how many, which colour or where."""
    asked.present[image] = tuple(plain(thing.label) for thing in scene.things)
    if scene.kind in ("count", "mixed count"):
        _ask_count(asked, image, rng.choice(scene.things), rng)
    if scene.things[0].color:
        _ask_color(asked, image, scene.things, rng)
    if scene.relation:
        _ask_position(asked, image, scene, rng)


def _ask_count(asked: Asked, image: int, thing: Thing, rng: random.Random) -> None:
    many = plural(thing.label)
    asked.choice(image, "count", f"how many {many} are there?", ("1", "2", "3", "4"), str(thing.count))
    if thing.count > 1:
        asked.yes_no(image, f"are there {_NUMBER_WORDS[thing.count]} {many}?", "yes")
    wrong = rng.choice([number for number in (2, 3, 4, 5) if number != thing.count])
    asked.yes_no(image, f"are there {_NUMBER_WORDS[wrong]} {many}?", "no")


def _ask_color(asked: Asked, image: int, things: Sequence[Thing], rng: random.Random) -> None:
    thing = rng.choice(things)
    others = [other.color for other in things if other.color not in ("", thing.color)]
    free = [color for color in (*COLOURS, *_PALE) if color not in (thing.color, *others)]
    wrong = (others + rng.sample(free, 4))[:4]
    asked.choice(image, "color", f"what color is the {thing.label}?", (thing.color, *wrong), thing.color)
    asked.yes_no(image, f"is the {thing.label} {thing.color}?", "yes")
    asked.yes_no(image, f"is the {thing.label} {wrong[0]}?", "no")


def _ask_position(asked: Asked, image: int, scene: Scene, rng: random.Random) -> None:
    first, second, relation = scene.things[0].label, scene.things[1].label, scene.relation
    if rng.random() < 0.5:
        first, second, relation = second, first, OPPOSITE[relation]
    choices = [f"{other} the {second}" for other in OPPOSITE]
    asked.choice(image, "position", f"where is the {first}?", choices, f"{relation} the {second}")
    asked.yes_no(image, f"is the {first} {relation} the {second}?", "yes")
    asked.yes_no(image, f"is the {first} {OPPOSITE[relation]} the {second}?", "no")
