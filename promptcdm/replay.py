"""Judges that answer from what is known: `replay` from a log of judgements, `Oracle` from the question file.

A replay scores again, by any rule and without the model, what a judge has answered. The oracle gets every question
right, so that what it falls short of 1 is the evaluator's fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from promptcdm.answer import Answer, Asked, CannotAnswer
from promptcdm.errors import BadInput
from promptcdm.judgements import JudgementLog
from promptcdm.picture import decode_picture, pixels_digest
from promptcdm.questions import Question

_BLIND = {"always-yes", "first-choice"}  # they were shown the choices as the file lists them


@dataclass(frozen=True)
class Replay:
    """Stands for a judge whose answers a log holds, under its name and version; asked itself, it has none."""

    name: str
    version: str
    blind: bool = False

    def answers(self, batch: Sequence[Asked]) -> list[Answer]:
        """None: raises CannotAnswer."""
        raise CannotAnswer(f"{batch[0].question!r} with these choices is not in the file of judgements")

    def answer(self, image: Image.Image, question: str, choices: Sequence[str]) -> Answer:
        """None: raises CannotAnswer."""
        return self.answers([Asked(image, question, tuple(choices))])[0]


def replay(log: JudgementLog, name: str) -> Replay:
    """The judge `name` of a log. Raises BadInput where the log has no such judge, or two versions of it."""
    known = log.judges()
    versions = [version for judge, version in known if judge == name]
    if len(versions) != 1:
        held = ", ".join(f"{judge} ({version})" for judge, version in known) or "nothing"
        found = f"{len(versions)} versions" if versions else "no answer"
        raise BadInput(
            f"the file of judgements has {found} of judge {name!r}; it holds {held}; one is needed"
        )
    return Replay(name, versions[0], blind=name in _BLIND)


class Oracle:
    """Gives the answer of the question file to each question about each picture."""

    name = "oracle"
    version = "1"
    blind = False

    def __init__(self, questions: Sequence[Question], images: Mapping[str, Path]) -> None:
        self._answers = {
            (pixels_digest(decode_picture(images[q.id].read_bytes())), q.question): q.answer
            for q in questions
        }

    def answers(self, batch: Sequence[Asked]) -> list[Answer]:
        """The right choice of each, with probability 1."""
        return [self.answer(*asked) for asked in batch]

    def answer(self, image: Image.Image, question: str, choices: Sequence[str]) -> Answer:
        """The right choice. Raises CannotAnswer for a question about another picture."""
        right = self._answers.get((pixels_digest(image), question))
        if right is None or right not in choices:
            raise CannotAnswer(f"{question!r} is not in the question file")
        return Answer(right, tuple(float(choice == right) for choice in choices))
