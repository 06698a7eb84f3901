"""Every score of text-image alignment that a set of verdicts gives, each with what it rests on.

One run of a judge gives them all: they are rules over the same verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from promptcdm import dsg, soft_tifa
from promptcdm.intervals import cluster_interval
from promptcdm.questions import Question
from promptcdm.verdict import (
    BLIND,
    Scored,
    Value,
    Verdict,
    answered,
    chance_corrected,
    hard,
    mean_by_caption,
    soft,
)
from promptcdm.vqascore import yes_probabilities

Rule = Callable[[Sequence[Value]], Scored]


@dataclass(frozen=True)
class Score:
    """One score, with an interval, its coverage, and what judges that see no picture get by the same rule."""

    name: str
    value: float
    interval: tuple[float, float]  # 95 %, by bootstrap over prompts
    coverage: float  # share of the questions that are in it
    blind: Mapping[str, float]  # of the questions that are in it
    by_caption: Mapping[str, float]

    @property
    def corrected(self) -> float | None:
        """(value - chance) / (1 - chance)."""
        return chance_corrected(self.value, self.blind["chance"])

    def record(self) -> dict[str, object]:
        """As a result file holds it."""
        return {
            "value": self.value,
            "interval_95": list(self.interval),
            "coverage": self.coverage,
            "blind": dict(self.blind),
            "corrected": {name: chance_corrected(self.value, blind) for name, blind in self.blind.items()},
            "by_caption": dict(self.by_caption),
        }


def alignment(verdicts: Sequence[Verdict], asked: int, *, seed: int = 0) -> tuple[Score, ...]:
    """The scores that these verdicts allow; `asked` questions there were, judged or not.

    Soft scores and VQAScore need probabilities, DSG a question that stands on another.
    """
    rows: list[tuple[str, list[Value], Rule]] = [
        ("TIFA", hard(verdicts), mean_by_caption),
        ("TIFA, abstentions left out", answered(verdicts), mean_by_caption),
        ("Soft-TIFA AM", soft(verdicts), soft_tifa.arithmetic),
        ("Soft-TIFA GM", soft(verdicts), soft_tifa.geometric),
        ("VQAScore", yes_probabilities(verdicts), mean_by_caption),
    ]
    if any(dsg.parents_of(verdict.question) for verdict in verdicts):
        rows.append(("DSG", hard(verdicts), dsg.gated))
        rows.append(("DSG, transitive", hard(verdicts), _transitive))
    found: list[Score] = []
    blind: tuple[Rule, list[Question], dict[str, float]] | None = None
    for name, values, rule in rows:
        scored, questions = rule(values), [value.question for value in values]
        if not scored.used:
            continue
        if blind is None or blind[:2] != (rule, questions):  # several scores ask the same questions
            blind = rule, questions, {judge: rule(of(questions)).value for judge, of in BLIND.items()}
        found.append(_score(name, scored, questions, blind[2], asked, seed))
    return tuple(found)


def prompts_of(questions: Sequence[Question]) -> dict[str, str]:
    """The prompt of each id: what pictures of one caption share. An id without a caption stands alone."""
    return {question.id: question.caption or question.id for question in questions}


def _score(
    name: str,
    scored: Scored,
    questions: Sequence[Question],
    blind: Mapping[str, float],
    asked: int,
    seed: int,
) -> Score:
    prompts = prompts_of(questions)
    return Score(
        name=name,
        value=scored.value,
        interval=cluster_interval(
            list(scored.by_caption.values()), [prompts[id] for id in scored.by_caption], seed=seed
        ),
        coverage=scored.used / asked,
        blind=blind,
        by_caption=scored.by_caption,
    )


def _transitive(values: Sequence[Value]) -> Scored:
    return dsg.gated(values, transitive=True)
