"""What a judge is asked and answers: a multiple-choice question about a picture, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from PIL import Image

from promptcdm.caption_chunks import singular
from promptcdm.errors import RunFailed
from promptcdm.question_words import NUMBERS


class CannotAnswer(RunFailed):
    """What a judge raises that cannot answer a question; of a batch, where it cannot answer one of it.

    The question is counted and named as left out, and the others are asked.
    """


class Asked(NamedTuple):
    """One question as a judge gets it."""

    image: Image.Image  # RGB
    question: str
    choices: tuple[str, ...]  # in the order shown


@dataclass(frozen=True)
class Answer:
    """What a judge answered."""

    choice: str  # one of the choices, or the judge's own words where they match none
    probabilities: tuple[float, ...] | None = (
        None  # of the choices in the order shown; None where it has none
    )
    free_form: str = ""  # the judge's own words, where it says something


class Judge(Protocol):
    """Anything that answers."""

    @property
    def name(self) -> str:
        """How it is named in results."""

    @property
    def version(self) -> str:
        """What its answers depend on beside its name: weights, and the words in which it is asked."""

    @property
    def blind(self) -> bool:
        """True where it does not look at the picture: it is shown the choices as the file lists them."""

    def answers(self, batch: Sequence[Asked]) -> list[Answer]:
        """One answer for each question, in order. Raises CannotAnswer where it has none for one of them."""

    def answer(self, image: Image.Image, question: str, choices: Sequence[str]) -> Answer:
        """The answer to one question."""


def most_likely(choices: Sequence[str], probabilities: Sequence[float]) -> Answer:
    """The choice with the highest probability; of equals the first."""
    best = max(range(len(choices)), key=lambda index: probabilities[index])
    return Answer(choices[best], tuple(probabilities))


def match_choice(said: str, choices: Sequence[str]) -> Answer:
    """The choice that free words mean: the one of the same words, else the only one within them, else none.

    Case, articles, plurals and the spelling of numbers do not matter. Where none is meant, the answer is the
    words themselves, which score 0.
    """
    words = normal_words(said)
    same = [choice for choice in choices if normal_words(choice) == words]
    within = [choice for choice in choices if f" {normal_words(choice)} " in f" {words} "]
    meant = same[:1] or (within if len(within) == 1 else [])
    return Answer(meant[0] if meant else said.strip(), None, said.strip())


def normal_words(text: str) -> str:
    """Lower-case words in the singular, without articles, numbers as digits."""
    found = re.findall(r"[a-z0-9]+", text.lower())
    kept = [singular(word) for word in found if word not in {"a", "an", "the"}]
    return " ".join(str(NUMBERS.get(word, word)) for word in kept)
