"""Questions on prompts, by rule or by a language model, with a record of how they were made.

questions.json           the questions, as TIFA writes them
questions.made.json      by whom, of which texts, and what was refused and why
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from promptcdm.beside import beside
from promptcdm.errors import BadInput, RunFailed
from promptcdm.hf_writer import load_writer
from promptcdm.judge import torch_device
from promptcdm.question_llm import PROMPT_VERSION, Refusal, Writes, write_questions
from promptcdm.question_rules import generate_questions
from promptcdm.questions import Question, Text, questions_json
from promptcdm.tensorfile import write_bytes, write_json

RULES = "rules"
ACCEPTED = "rules or llm:ID_OR_FOLDER"
_RULES_VERSION = "rules 1"  # a new number with every change of what the rules ask
_LLM = "llm:"


@dataclass(frozen=True)
class Made:
    """Questions, and how they were made."""

    questions: tuple[Question, ...]
    refusals: tuple[Refusal, ...]  # what a model wrote and that is not asked; none by rule
    by: str
    version: str
    seed: int
    texts: int

    def lines(self) -> list[str]:
        """What was made, and each reason for which something was refused, with its count."""
        asked = len({question.id for question in self.questions})
        first = f"{len(self.questions)} questions on {asked} of {self.texts} captions, by {self.by}"
        counts = Counter(refusal.reason for refusal in self.refusals)
        return [first, *(f"refused: {count}, {reason}" for reason, count in counts.most_common())]

    def check(self) -> None:
        """Raise RunFailed where there is no question."""
        if not self.questions:
            first = self.refusals[0] if self.refusals else Refusal("", "", "", "no caption says anything")
            raise RunFailed(
                f"{self.by} made no question that can be asked on {self.texts} captions; the first reason: "
                f"{first.reason} ({first.wrote[:80]!r}); a larger model may"
            )

    def save(self, out: Path) -> tuple[Path, Path]:
        """Write the questions to `out` and the record beside it, NAME.made.json, also where there is no question."""
        record = beside(out, "made.json")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            record,
            {
                "by": self.by,
                "version": self.version,
                "seed": self.seed,
                "texts": self.texts,
                "questions": len(self.questions),
                "refused": len(self.refusals),
                "refusals": [asdict(refusal) for refusal in self.refusals],
            },
        )
        write_bytes(out, questions_json(self.questions).encode())
        return out, record


def make_questions(
    texts: Sequence[Text],
    by: str = RULES,
    *,
    seed: int = 0,
    device: str = "auto",
    writer: Writes | None = None,
) -> Made:
    """Make questions on texts by "rules", by "llm:ID_OR_FOLDER", or by a writer of your own.

    Raises BadInput for another name or a model that cannot be loaded. `Made.check` says whether there is a question.
    """
    if writer is None and by == RULES:
        made = generate_questions(texts, seed=seed)
        return Made(made, (), RULES, _RULES_VERSION, seed, len(texts))
    if writer is None:
        if not by.startswith(_LLM) or by == _LLM:
            raise BadInput(f"questions by {by!r} are not known; accepted are {ACCEPTED}")
        writer = load_writer(by.removeprefix(_LLM), torch_device(device))
    questions, refusals = write_questions(texts, writer)
    return Made(questions, refusals, writer.name, f"{PROMPT_VERSION}, {writer.version}", seed, len(texts))
