"""One judged question, and the figures that scores are made of.

A score is a mean, over captions, of what a rule makes of a caption's values s_q, one a question:

    s_q in {0, 1}    the choice is the answer (`hard`); without abstentions (`answered`)
    s_q in [0, 1]    the judge's probability of the answer (`soft`)

What a judge that sees no picture would get is the same rule over `guess`, `always_yes` or `first_choice`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from promptcdm.questions import Question


@dataclass(frozen=True)
class Verdict:
    """One judged question."""

    question: Question
    choice: str  # what the judge's answer was taken as
    free_form: str = ""  # what the judge said, where it says something
    shown: tuple[str, ...] = ()  # the choices in the order that the judge saw
    probabilities: tuple[float, ...] | None = None  # of `shown`; None where the judge gave none

    @property
    def score(self) -> int:
        """1 where the choice is the answer, else 0."""
        return int(self.choice == self.question.answer)

    @property
    def answered(self) -> bool:
        """False where the judge abstained: what it said is none of the choices."""
        return self.choice in self.question.choices

    def probability(self, choice: str) -> float | None:
        """The judge's probability of a choice; None where it gave none or was not shown that choice."""
        if self.probabilities is None or choice not in self.shown:
            return None
        pairs = zip(self.shown, self.probabilities, strict=True)
        return sum(p for each, p in pairs if each == choice)


class Value(NamedTuple):
    """s_q of one question."""

    question: Question
    s: float


@dataclass(frozen=True)
class Scored:
    """A score of each caption, and the number of questions in them."""

    by_caption: Mapping[str, float]  # {id: score}, in the order of the questions
    used: int

    @property
    def value(self) -> float:
        """The mean over captions; NaN where nothing could be scored."""
        return statistics.fmean(self.by_caption.values()) if self.by_caption else float("nan")


def hard(verdicts: Sequence[Verdict]) -> list[Value]:
    """1 for a right choice, else 0, an answer that matches no choice among them."""
    return [Value(v.question, v.score) for v in verdicts]


def answered(verdicts: Sequence[Verdict]) -> list[Value]:
    """As `hard`, without the questions on which the judge abstained."""
    return [Value(v.question, v.score) for v in verdicts if v.answered]


def soft(verdicts: Sequence[Verdict]) -> list[Value]:
    """The probability of the answer, of the questions that have one."""
    found = ((v.question, v.probability(v.question.answer)) for v in verdicts)
    return [Value(question, s) for question, s in found if s is not None]


def guess(questions: Sequence[Question]) -> list[Value]:
    """What a uniform guess is expected to get."""
    return [Value(q, q.choices.count(q.answer) / len(q.choices)) for q in questions]


def always_yes(questions: Sequence[Question]) -> list[Value]:
    """What "yes" to everything gets."""
    return [Value(q, float(q.answer == "yes")) for q in questions]


def first_choice(questions: Sequence[Question]) -> list[Value]:
    """What the first choice of the file gets."""
    return [Value(q, float(q.answer == q.choices[0])) for q in questions]


# What judges that see no picture get, by name.
BLIND = {"always yes": always_yes, "first choice": first_choice, "chance": guess}


def mean_by_caption(values: Sequence[Value]) -> Scored:
    """The mean of s_q over the questions of each caption."""
    return scored_by(values, statistics.fmean)


def scored_by(values: Sequence[Value], rule: Callable[[Sequence[float]], float]) -> Scored:
    """What a rule makes of the values of each caption."""
    grouped: dict[str, list[float]] = {}
    for question, s in values:
        grouped.setdefault(question.id, []).append(s)
    return Scored({id: rule(own) for id, own in grouped.items()}, len(values))


def chance_corrected(score: float, blind: float) -> float | None:
    """(score - blind) / (1 - blind): 0 what a blind judge gets, 1 all right; None where blind gets all."""
    return (score - blind) / (1 - blind) if blind < 1 else None
