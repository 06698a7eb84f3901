"""TIFA's score from judged questions, in TIFA's own result format (Hu et al. 2023, arXiv 2303.11897).

s_q in {0, 1}                               a question's score: 1 where the judge chose the answer
TIFA(caption) = mean of s_q over its questions
tifa_average  = mean of TIFA(caption) over captions; tifa_stdev its sample standard deviation (n - 1)
accuracy_by_type = mean of s_q over all questions of a type
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from promptcdm.questions import Question

ALL = "all"  # the row of the average, beside the types
_DRAWS = 2000


@dataclass(frozen=True)
class Verdict:
    """One judged question."""

    question: Question
    choice: str  # what the judge's answer was taken as
    free_form: str = ""  # what the judge said, where it says something

    @property
    def score(self) -> int:
        """1 where the choice is the answer, else 0."""
        return int(self.choice == self.question.answer)


def tifa_result(verdicts: Sequence[Verdict]) -> dict[str, object]:
    """TIFA's result: exactly its five keys.

    A question that occurs twice for a caption counts twice in the scores and is listed once, as in TIFA. With
    one caption `tifa_stdev` is None: it has no standard deviation.
    """
    details: dict[str, dict[str, dict[str, object]]] = {}
    for verdict in verdicts:
        question = verdict.question
        judged = {
            "free_form_vqa": verdict.free_form or verdict.choice,
            "multiple_choice_vqa": verdict.choice,
            "scores": verdict.score,
        }
        details.setdefault(question.id, {})[question.question] = {**question.record(), **judged}
    caption_scores = scores_by_caption(verdicts)
    means = list(caption_scores.values())
    return {
        "tifa_average": statistics.fmean(means),
        "tifa_stdev": statistics.stdev(means) if len(means) > 1 else None,
        "accuracy_by_type": accuracy_by_type(verdicts),
        "question_details": details,
        "caption_scores": caption_scores,
    }


def scores_by_caption(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """TIFA(caption) of each id, in the order of the questions."""
    grouped: dict[str, list[int]] = defaultdict(list)
    for verdict in verdicts:
        grouped[verdict.question.id].append(verdict.score)
    return {id: statistics.fmean(scores) for id, scores in grouped.items()}


def accuracy_by_type(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Share of right answers of each element type, pooled over all questions."""
    grouped: dict[str, list[int]] = defaultdict(list)
    for verdict in verdicts:
        grouped[verdict.question.element_type].append(verdict.score)
    return {kind: statistics.fmean(scores) for kind, scores in grouped.items()}


def blind_baselines(questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """What judges that see no picture would score: {judge: {"all": average, type: accuracy}}.

    "always yes" says yes to everything, "first choice" takes the first choice as the file lists it, "chance"
    is the expected score of a uniform guess.
    """
    yes = _with_average([Verdict(question, "yes") for question in questions])
    first = _with_average([Verdict(question, question.choices[0]) for question in questions])
    guess: dict[str, list[float]] = defaultdict(list)
    by_caption: dict[str, list[float]] = defaultdict(list)
    for question in questions:
        right = question.choices.count(question.answer) / len(question.choices)
        guess[question.element_type].append(right)
        by_caption[question.id].append(right)
    chance = {ALL: statistics.fmean(statistics.fmean(scores) for scores in by_caption.values())}
    chance.update({kind: statistics.fmean(scores) for kind, scores in guess.items()})
    return {"always yes": yes, "first choice": first, "chance": chance}


def bootstrap_interval(
    caption_scores: Mapping[str, float], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the average, over resampled captions: a caption's questions hang together."""
    scores = np.asarray(list(caption_scores.values()), dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(scores), size=(_DRAWS, len(scores)))
    low, high = np.quantile(scores[drawn].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _with_average(verdicts: Sequence[Verdict]) -> dict[str, float]:
    return {ALL: statistics.fmean(scores_by_caption(verdicts).values()), **accuracy_by_type(verdicts)}
