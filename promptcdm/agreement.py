"""How far two judges agree, beyond what their habits alone would give (Cohen 1960).

p_o     share of the items on which they say the same
p_e   = sum over labels of the product of the shares in which each judge uses it
kappa = (p_o - p_e) / (1 - p_e)     1 always the same, 0 as by chance
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from promptcdm.errors import BadInput
from promptcdm.questions import Question
from promptcdm.verdict import Verdict


@dataclass(frozen=True)
class Agreement:
    """Two judges on the same questions."""

    questions: int  # that both judged
    left_out: int  # that only one of them judged
    observed: float  # share that both have right or both have wrong
    kappa: float | None  # of right and wrong; None where both use one and the same label only
    differ: tuple[tuple[Question, str, str], ...]  # the question, and the choice of each


def agreement(a: Sequence[Verdict], b: Sequence[Verdict]) -> Agreement:
    """Compare verdicts on the same questions about the same ids, as right or wrong.

    The choices themselves are no common scale: each question has its own. Raises BadInput where no question is
    in both.
    """
    first, second = _by_question(a), _by_question(b)
    common = [key for key in first if key in second]
    if not common:
        raise BadInput("the two judges have no question in common; compare verdicts on the same questions")
    pairs = [(first[key], second[key]) for key in common]
    one, other = [v.score for v, _ in pairs], [v.score for _, v in pairs]
    return Agreement(
        questions=len(common),
        left_out=len(first) + len(second) - 2 * len(common),
        observed=sum(x == y for x, y in zip(one, other, strict=True)) / len(common),
        kappa=cohen_kappa(one, other),
        differ=tuple((v.question, v.choice, w.choice) for v, w in pairs if v.score != w.score),
    )


def cohen_kappa(a: Sequence[Hashable], b: Sequence[Hashable]) -> float | None:
    """kappa of two lists of labels on the same items; None where both hold one and the same label only.

    Raises BadInput for lists of different lengths or none.
    """
    if len(a) != len(b) or not a:
        raise BadInput(
            f"there are {len(a)} and {len(b)} labels; give two lists of one length, one item or more"
        )
    observed = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
    first, second = Counter(a), Counter(b)
    expected = sum(first[label] * second[label] for label in first) / len(a) ** 2
    return (observed - expected) / (1 - expected) if expected < 1 else None


def _by_question(verdicts: Sequence[Verdict]) -> dict[tuple[str, str], Verdict]:
    return {(verdict.question.id, verdict.question.question): verdict for verdict in verdicts}
