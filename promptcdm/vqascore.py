"""VQAScore (Lin et al. 2024, arXiv 2404.01291): P("yes" | picture, 'Does this figure show "TEXT"? ...').

One question a prompt, and no verdict: the score is the probability itself. Over other questions it is the mean
of P(yes) on those whose answer is yes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from promptcdm.questions import Question, Text
from promptcdm.verdict import Scored, Value, Verdict, mean_by_caption

TEMPLATE = 'Does this figure show "{}"? Please answer yes or no.'


def vqascore_questions(texts: Iterable[Text]) -> tuple[Question, ...]:
    """The question of each text."""
    return tuple(
        Question(
            text.id, text.caption, TEMPLATE.format(text.caption), ("yes", "no"), "yes", "other", text.caption
        )
        for text in texts
    )


def yes_probabilities(verdicts: Sequence[Verdict]) -> list[Value]:
    """P(yes) of the questions whose answer is yes and that have probabilities."""
    found = ((v.question, v.probability("yes")) for v in verdicts if v.question.answer == "yes")
    return [Value(question, p) for question, p in found if p is not None]


def vqascore(verdicts: Sequence[Verdict]) -> Scored:
    """The mean of P(yes) of each caption."""
    return mean_by_caption(yes_probabilities(verdicts))
