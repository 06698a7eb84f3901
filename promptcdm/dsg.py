"""Davidsonian Scene Graph (Cho et al. 2024, arXiv 2310.18235): its question file, and its gated score.

A proposition stands on others: "the bike is blue" on "there is a bike". Where a parent fails, the child counts
as failed, whatever the judge said:

    g_q = s_q * product over parents p of s_p       as published: a parent's own answer, one level up
    g_q = s_q * product over all ancestors a of s_a   transitive

The paper's score of a picture is the mean of g_q. For s_q in {0, 1} the products are "and"; for the
probability of a blind guess they are what it is expected to get.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from promptcdm.errors import BadQuestions
from promptcdm.questions import Question
from promptcdm.verdict import Scored, Value, mean_by_caption

PROPOSITION, PARENTS = "proposition_id", "dependency"  # keys of Question.extra
QUESTION = "question_natural_language"
COLUMNS = ("item_id", "text", PROPOSITION, PARENTS, QUESTION)


def load_dsg(path: Path) -> tuple[Question, ...]:
    """Read DSG's CSV as yes/no questions whose answer is yes.

    What the published files hold and their paper does not foresee: words beside the numbers of a dependency
    ("5, right"), for which DSG's own loader drops every dependency of the prompt, and here the numbers count;
    propositions that stand on themselves, or on one that the prompt lacks: neither is a parent here, nor is 0;
    propositions without a question, which are not asked and are no parents.
    Raises BadQuestions, naming file, row and column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadQuestions(f"{path}: cannot be read ({error}); give DSG's CSV file") from error
    lacking = [name for name in COLUMNS if not rows or name not in rows[0]]
    if lacking:
        raise BadQuestions(
            f"{path}: has no row with {', '.join(lacking)}; DSG's files have {', '.join(COLUMNS)}"
        )
    asked = [(number, row) for number, row in enumerate(rows, start=2) if (row[QUESTION] or "").strip()]
    return _without_absent([_question(row, f"{path}, row {number}") for number, row in asked])


def gated(values: Sequence[Value], *, transitive: bool = False) -> Scored:
    """The mean of g_q of each caption.

    A question without the keys of DSG has no parents. One whose parent has no value is left out: what it would
    get is not known.
    """
    by_caption: dict[str, list[tuple[object, Value]]] = {}
    for place, value in enumerate(values):
        number = value.question.extra.get(PROPOSITION, f"place {place}")
        by_caption.setdefault(value.question.id, []).append((number, value))
    found = []
    for own in by_caption.values():
        s: dict[object, float] = {}
        parents: dict[object, tuple[int, ...]] = {}
        for number, value in own:  # a number that two questions have stands for both
            s[number] = s.get(number, 1.0) * value.s
            parents[number] = parents.get(number, ()) + parents_of(value.question)
        for number, value in own:
            above = _ancestors(number, parents) if transitive else set(parents_of(value.question))
            if all(each in s for each in above):
                found.append(Value(value.question, value.s * math.prod(s[each] for each in above)))
    return mean_by_caption(found)


def proposition(question: Question, number: int, dependency: str) -> Question:
    """The question as proposition `number` of its caption, standing on the numbers in `dependency`."""
    parents = dict.fromkeys(int(found) for found in re.findall(r"\d+", dependency))
    above = [each for each in parents if each not in (0, number)]
    return replace(question, extra={**question.extra, PROPOSITION: number, PARENTS: above})


def parents_of(question: Question) -> tuple[int, ...]:
    """The propositions that a question stands on directly."""
    parents = question.extra.get(PARENTS, ())
    return tuple(parents) if isinstance(parents, list | tuple) else ()


def _ancestors(number: object, parents: Mapping[object, Sequence[int]]) -> set[object]:
    """Everything above a proposition, once each; its own number is not among them, circles or not."""
    found: set[object] = set()
    waiting: list[object] = list(parents[number])
    while waiting:
        each = waiting.pop()
        if each not in found and each != number:
            found.add(each)
            waiting.extend(parents.get(each, ()))
    return found


def _question(row: Mapping[str, str | None], where: str) -> Question:
    cells = {name: (row.get(name) or "").strip() for name in row if name is not None}
    empty = [name for name in COLUMNS if not cells[name]]
    if empty:
        raise BadQuestions(
            f"{where}: {', '.join(empty)} is empty; give each proposition all of {', '.join(COLUMNS)}"
        )
    if not cells[PROPOSITION].isdigit():
        raise BadQuestions(
            f"{where}, column {PROPOSITION!r}: holds {cells[PROPOSITION]!r}; give a number from 1"
        )
    kind, detail = cells.get("category_broad", ""), cells.get("category_detailed", "")
    return proposition(
        Question(
            id=cells["item_id"],
            caption=cells["text"],
            question=cells[QUESTION],
            choices=("yes", "no"),
            answer="yes",
            element_type=kind or "other",
            element=cells.get("tuple", ""),
            extra={"category_detailed": detail} if detail else {},
        ),
        int(cells[PROPOSITION]),
        cells[PARENTS],
    )


def _without_absent(questions: Sequence[Question]) -> tuple[Question, ...]:
    """The questions, standing only on propositions that their caption has."""
    numbers: dict[str, set[object]] = {}
    for question in questions:
        numbers.setdefault(question.id, set()).add(question.extra[PROPOSITION])
    found = []
    for question in questions:
        there = [each for each in parents_of(question) if each in numbers[question.id]]
        found.append(replace(question, extra={**question.extra, PARENTS: there}))
    return tuple(found)
