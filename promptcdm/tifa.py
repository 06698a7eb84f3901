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

from promptcdm.intervals import cluster_interval
from promptcdm.questions import Question
from promptcdm.verdict import BLIND, Value, Verdict, hard, mean_by_caption

__all__ = [
    "ALL",
    "FEWEST_PROMPTS",
    "Verdict",
    "accuracy_by_type",
    "blind_baselines",
    "bootstrap_interval",
    "scores_by_caption",
    "tifa_result",
    "type_intervals",
]

ALL = "all"  # the row of the average, beside the types
FEWEST_PROMPTS = 8  # of a type that has an interval


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
    return dict(mean_by_caption(hard(verdicts)).by_caption)


def accuracy_by_type(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Share of right answers of each element type, pooled over all questions."""
    return _by_type(hard(verdicts))


def type_intervals(
    verdicts: Sequence[Verdict], prompts: Mapping[str, str], *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % interval of each type's accuracy, by bootstrap over prompts, {id: prompt}.

    A type of fewer than `FEWEST_PROMPTS` has none: where all three prompts agree, say, it would have no width.
    """
    grouped: dict[str, list[Value]] = defaultdict(list)
    for value in hard(verdicts):
        grouped[value.question.element_type].append(value)
    found = {}
    for kind, own in grouped.items():
        clusters = [prompts[value.question.id] for value in own]
        if len(set(clusters)) >= FEWEST_PROMPTS:
            found[kind] = cluster_interval([value.s for value in own], clusters, seed=seed)
    return found


def blind_baselines(questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """What judges that see no picture would score: {judge: {"all": average, type: accuracy}}.

    "always yes" says yes to everything, "first choice" takes the first choice as the file lists it, "chance"
    is the expected score of a uniform guess.
    """
    found = {}
    for name, of in BLIND.items():
        values = of(questions)
        found[name] = {ALL: mean_by_caption(values).value, **_by_type(values)}
    return found


def bootstrap_interval(
    caption_scores: Mapping[str, float],
    prompts: Mapping[str, str] | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the average, over resampled prompts: {id: prompt}, else each id is its own."""
    clusters = [id if prompts is None else prompts[id] for id in caption_scores]
    return cluster_interval(list(caption_scores.values()), clusters, level=level, seed=seed)


def _by_type(values: Sequence[Value]) -> dict[str, float]:
    grouped: dict[str, list[float]] = defaultdict(list)
    for question, s in values:
        grouped[question.element_type].append(s)
    return {kind: statistics.fmean(scores) for kind, scores in grouped.items()}
