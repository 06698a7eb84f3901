"""How many questions of a reference are asked too: recall, apart from wording.

Two questions on one caption are the same where their content words and the answer agree (yes/no), or where the
answers do (the others).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from promptcdm.caption_chunks import singular
from promptcdm.question_words import word_set
from promptcdm.questions import Question

_SMALL = word_set("is there are a an the in this these picture photo of to or some what who does do it")


@dataclass(frozen=True)
class Recall:
    """Questions of the reference that are asked too."""

    asked: int
    of: int
    yes_no_asked: int
    yes_no_of: int
    captions: int

    @property
    def share(self) -> float:
        """asked / of."""
        return self.asked / self.of

    def __str__(self) -> str:
        yes_no = f"; of {self.yes_no_of:,} yes/no ones {self.yes_no_asked / self.yes_no_of:.1%}"
        return (
            f"{self.asked:,} of the {self.of:,} reference questions on {self.captions:,} captions are asked too "
            f"({self.share:.1%}{yes_no if self.yes_no_of else ''})"
        )


def recall(ours: Sequence[Question], reference: Sequence[Question]) -> Recall:
    """Compare questions by id; `reference` holds one or more."""
    known = {meaning(question) for question in ours}
    found = [meaning(question) in known for question in reference]
    yes_no = [hit for hit, question in zip(found, reference, strict=True) if "no" in question.choices]
    ids = {question.id for question in reference}
    return Recall(sum(found), len(found), sum(yes_no), len(yes_no), len(ids))


def meaning(question: Question) -> tuple[str, ...]:
    """What is asked, apart from wording: the content words of a yes/no question, the answer of another."""
    if question.answer in ("yes", "no"):
        kept = [word for word in question.question.lower().strip("?").split() if word not in _SMALL]
        return (question.id, question.answer, *sorted({singular(word) for word in kept}))
    words = question.answer.lower().split()
    return (question.id, *(singular(word) for word in words if word not in _SMALL))
