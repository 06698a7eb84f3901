"""Every answer that a judge gave, in one append-only file: nothing that is judged is judged again.

A line of `judgements.jsonl` is one JSON object:

    image           sha256 (hex) of the picture file's bytes
    question        as the judge read it
    choices         in the order shown
    judge, version  its name, and what else its answers depend on: weights and prompt
    choice          what the answer was taken as
    raw             the judge's own words; "" where it says none
    probabilities   of the choices, in the order shown; null where it has none

The first five are the key: the same question about the same bytes, asked in the same way. A file serves many
evaluations. Of two lines with one key the first counts. A line that a kill left unfinished is passed over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

from promptcdm.answer import Answer
from promptcdm.errors import BadInput

_BEGIN = b'{"image": "'  # of every line, so that an unfinished one is told from another file's


class JudgementKey(NamedTuple):
    """What was asked."""

    image: str  # sha256 (hex) of the picture file's bytes
    question: str
    choices: tuple[str, ...]  # in the order shown
    judge: str
    version: str


class JudgementLog:
    """The answers of a file, and those that are added to it; without a path, in memory alone.

    Raises BadInput for a file that cannot be read or is no log.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.unfinished = 0  # lines that were passed over
        self._answers: dict[JudgementKey, Answer] = {}
        if path is not None and path.exists():
            self._read(path)

    def __len__(self) -> int:
        return len(self._answers)

    def answer(self, key: JudgementKey) -> Answer | None:
        """What the judge answered; None where it was not asked."""
        return self._answers.get(key)

    def judges(self) -> tuple[tuple[str, str], ...]:
        """(name, version) of every judge that has an answer here."""
        return tuple(dict.fromkeys((key.judge, key.version) for key in self._answers))

    def add(self, judged: Iterable[tuple[JudgementKey, Answer]]) -> None:
        """Keep the answers: when this returns they are on disk, whole lines in one write."""
        new = {key: answer for key, answer in judged if key not in self._answers}
        if self.path is not None and new:
            text = b"".join(_line(key, answer) for key, answer in new.items())
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b", buffering=0) as file:
                file.write((b"" if _ends_a_line(file) else b"\n") + text)
                os.fsync(file.fileno())
        self._answers.update(new)

    def _read(self, path: Path) -> None:
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise BadInput(
                f"{path}: cannot be read ({error.strerror}); give a file of judgements, or a new name"
            ) from error
        for number, line in enumerate(lines, start=1):
            line = line.strip(b" \r\0")  # a power cut can leave zeros
            if line:
                self._read_line(line, f"{path}, line {number}")

    def _read_line(self, line: bytes, where: str) -> None:
        if not line.startswith(_BEGIN) and not _BEGIN.startswith(line):
            raise BadInput(
                f"{where}: is no judgement ({line[:40]!r}); give a file of judgements, or a new name"
            )
        try:
            record = json.loads(line)
        except ValueError:
            self.unfinished += 1
            return
        key, answer = _judgement(record, where)
        self._answers.setdefault(key, answer)


def _line(key: JudgementKey, answer: Answer) -> bytes:
    probabilities = None if answer.probabilities is None else list(answer.probabilities)
    said = {"choice": answer.choice, "raw": answer.free_form, "probabilities": probabilities}
    return (json.dumps({**key._asdict(), **said}, allow_nan=False) + "\n").encode("ascii")


def _judgement(record: dict[str, Any], where: str) -> tuple[JudgementKey, Answer]:
    names = ("image", "question", "judge", "version", "choice", "raw")
    wrong = [name for name in names if not isinstance(record.get(name), str)]
    choices, odds = record.get("choices"), record.get("probabilities")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        wrong.append("choices")
    elif odds is not None and not (
        isinstance(odds, list) and len(odds) == len(choices) and all(isinstance(p, float | int) for p in odds)
    ):
        wrong.append("probabilities")
    if wrong:
        raise BadInput(f"{where}: lacks {', '.join(wrong)}, or they are of the wrong kind; delete that line")
    key = JudgementKey(
        record["image"],
        record["question"],
        tuple(cast("list[str]", choices)),
        record["judge"],
        record["version"],
    )
    return key, Answer(record["choice"], None if odds is None else tuple(map(float, odds)), record["raw"])


def _ends_a_line(file: Any) -> bool:
    """True where the file is empty or its last byte ends a line."""
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
