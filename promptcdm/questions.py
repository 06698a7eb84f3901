"""TIFA's question records: read, check, write.

A question file is a flat JSON list (or JSON Lines, by the suffix `.jsonl`), one record a question, in the
format of TIFA v1.0 (Hu et al. 2023, arXiv 2303.11897):

    {"id", "caption", "question", "choices": [...], "answer", "element_type", "element"}

`answer_type`, the name of an early version, is read as `element_type`. Other keys are kept and change
nothing. A text file is a JSON list of {"id", "caption"}.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from promptcdm.errors import BadQuestions

_TEXT_KEYS = ("id", "caption", "question", "answer")


@dataclass(frozen=True)
class Text:
    """A prompt that pictures are made from."""

    id: str
    caption: str


@dataclass(frozen=True)
class Question:
    """One multiple-choice question on the picture of one caption."""

    id: str  # of the caption, and so of its picture
    caption: str
    question: str
    choices: tuple[str, ...]  # in the order of the file
    answer: str  # one of the choices
    element_type: str = ""  # such as object, color, counting, spatial
    element: str = ""  # the words of the caption that the question is about
    extra: Mapping[str, object] = field(default_factory=dict)  # the record's other keys

    def record(self) -> dict[str, object]:
        """The record as TIFA writes it."""
        named: dict[str, object] = {
            "id": self.id,
            "caption": self.caption,
            "question": self.question,
            "choices": list(self.choices),
            "answer": self.answer,
            "element_type": self.element_type,
            "element": self.element,
        }
        return {**named, **self.extra}


def load_questions(path: Path) -> tuple[Question, ...]:
    """Read a question file.

    Raises BadQuestions, naming file, row and key, where a record lacks a key, holds a value of the wrong
    kind, an answer that is not among its choices, or a caption that differs from an earlier one of the same
    id.
    """
    questions = tuple(_question(row, f"{path}, row {number}") for number, row in _rows(path))
    captions: dict[str, str] = {}
    for number, question in enumerate(questions, start=1):
        if captions.setdefault(question.id, question.caption) != question.caption:
            raise BadQuestions(
                f"{path}, row {number}: id {question.id!r} has another caption in an earlier row; "
                "one id is one caption and one picture"
            )
    return questions


def load_texts(path: Path) -> tuple[Text, ...]:
    """Read a text file. Raises BadQuestions, naming file, row and key."""
    texts = []
    seen: set[str] = set()
    for number, row in _rows(path):
        where = f"{path}, row {number}"
        text = Text(_string(row, "id", where), _string(row, "caption", where))
        if text.id in seen:
            raise BadQuestions(f"{where}: id {text.id!r} is there twice; give each caption its own id")
        seen.add(text.id)
        texts.append(text)
    return tuple(texts)


def questions_json(questions: Iterable[Question]) -> str:
    """The text of a question file that `load_questions` and TIFA read."""
    return json.dumps([question.record() for question in questions], indent=1, ensure_ascii=False) + "\n"


def _rows(path: Path) -> Sequence[tuple[int, Mapping[str, object]]]:
    """The records of a file with their numbers, from 1."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadQuestions(f"{path}: cannot be read ({error.strerror}); give a JSON file") from error
    except UnicodeDecodeError as error:
        raise BadQuestions(f"{path}: is not UTF-8 text; give a JSON file") from error
    rows = _json_lines(text, path) if path.suffix == ".jsonl" else _json(text, str(path))
    if not isinstance(rows, list) or not rows:
        raise BadQuestions(
            f"{path}: holds {_kind(rows)}; TIFA's format is a JSON list of records, one or more"
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise BadQuestions(f"{path}, row {number}: is {_kind(row)}; a record is a JSON object")
    return list(enumerate(cast("list[Mapping[str, object]]", rows), start=1))


def _json_lines(text: str, path: Path) -> list[object]:
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    return [_json(line, f"{path}, line {number}") for number, line in lines]


def _json(text: str, where: str) -> object:
    try:
        return cast(object, json.loads(text))
    except json.JSONDecodeError as error:
        raise BadQuestions(f"{where}: is not JSON (line {error.lineno}: {error.msg})") from error


def _question(row: Mapping[str, object], where: str) -> Question:
    values = {key: _string(row, key, where) for key in _TEXT_KEYS}
    choices = row.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise BadQuestions(f"{where}, key 'choices': holds {choices!r}; give a list of words, one or more")
    if values["answer"] not in choices:
        raise BadQuestions(
            f"{where}, key 'answer': {values['answer']!r} is not among the choices {choices!r}; "
            "no judge could be right"
        )
    type_key = "element_type" if "element_type" in row else "answer_type"
    known = {*_TEXT_KEYS, "choices", type_key, "element"}
    return Question(
        **values,
        choices=tuple(choices),
        element_type=_string(row, type_key, where, default="other"),
        element=_string(row, "element", where, default=""),
        extra={key: value for key, value in row.items() if key not in known},
    )


def _string(row: Mapping[str, object], key: str, where: str, default: str | None = None) -> str:
    if key not in row and default is not None:
        return default
    if key not in row:
        raise BadQuestions(f"{where}: has no key {key!r}; it has {sorted(row)}")
    value = row[key]
    if not isinstance(value, str) or (not value.strip() and default is None):
        raise BadQuestions(f"{where}, key {key!r}: holds {value!r}; give text")
    return value


def _kind(value: object) -> str:
    return "nothing" if value in ([], {}, "") else f"a JSON {type(value).__name__}"
