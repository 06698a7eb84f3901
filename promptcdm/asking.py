"""Asks a judge what the log lacks; what cannot be judged is named, and never becomes a 0.

The choices are shown in an order drawn from a seed, the caption's id and the question, since in TIFA's files
the first one is nearly always right; a blind judge gets them as listed.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from promptcdm.answer import Answer, Asked, CannotAnswer, Judge
from promptcdm.judgements import JudgementKey, JudgementLog
from promptcdm.picture import BadPicture, decode_picture
from promptcdm.questions import Question
from promptcdm.verdict import Verdict

# What a kill can lose: the answers of one batch, which are in the log only when the judge gave them all.
_QUESTIONS_AT_ONCE = 64


@dataclass(frozen=True)
class Failure:
    """A question that has no verdict."""

    id: str
    question: str
    reason: str


@dataclass(frozen=True)
class Judged:
    """What came of some questions."""

    verdicts: tuple[Verdict, ...]  # in the order of the questions
    failures: tuple[Failure, ...]
    new: int  # answers that the log lacked
    digests: Mapping[str, str]  # {id: sha256 (hex) of the picture file}, of those that could be read


def ask(
    questions: Sequence[Question],
    images: Mapping[str, Path],
    judge: Judge,
    log: JudgementLog,
    *,
    seed: int = 0,
) -> Judged:
    """Every question about the picture of its id: from the log, else from the judge, whose answer is logged.

    A picture that cannot be read, a question at which the judge raises CannotAnswer, and probabilities that are
    no numbers are failures; the rest goes on. They are not logged, so another run tries them again.
    """
    digests, failed = _digests(questions, images)
    keys = [_key(q, digests[q.id], judge, seed) if q.id in digests else None for q in questions]
    lacking: dict[JudgementKey, Question] = {}
    for key, question in zip(keys, questions, strict=True):
        if key and log.answer(key) is None:
            lacking.setdefault(key, question)
    before = len(log)
    reasons: dict[JudgementKey, str] = {}
    for part in _parts(lacking):
        reasons.update(_ask_part(part, images, judge, log))
    verdicts, failures = [], []
    for question, key in zip(questions, keys, strict=True):
        answer = log.answer(key) if key else None
        if key is None or answer is None:
            reason = failed[question.id] if key is None else reasons[key]
            failures.append(Failure(question.id, question.question, f"{images[question.id]}: {reason}"))
        else:
            said = answer.choice, answer.free_form, key.choices, answer.probabilities
            verdicts.append(Verdict(question, *said))
    return Judged(tuple(verdicts), tuple(failures), len(log) - before, digests)


def _ask_part(
    part: Mapping[JudgementKey, Question], images: Mapping[str, Path], judge: Judge, log: JudgementLog
) -> dict[JudgementKey, str]:
    """Ask one batch and log it; returns why some have no answer."""
    pictures: dict[str, Image.Image | str] = {}
    for key, question in part.items():
        if question.id not in pictures:
            pictures[question.id] = _picture(images[question.id], key.image)
    asked, failed = {}, {}
    for key, question in part.items():
        picture = pictures[question.id]
        if isinstance(picture, str):
            failed[key] = picture
        else:
            asked[key] = Asked(picture, key.question, key.choices)
    answers = _answers(judge, list(asked.values()))
    found: list[tuple[JudgementKey, Answer]] = []
    for (key, one), answer in zip(asked.items(), answers, strict=True):
        reason = answer if isinstance(answer, str) else _problem(one, answer)
        if reason or isinstance(answer, str):
            failed[key] = reason
        else:
            found.append((key, answer))
    log.add(found)
    return failed


def _answers(judge: Judge, batch: Sequence[Asked]) -> list[Answer | str]:
    """An answer, or why there is none, for each; a batch that fails is halved until the culprit is alone."""
    if not batch:
        return []
    try:
        return list(judge.answers(batch))
    except CannotAnswer as error:
        if len(batch) == 1:
            return [f"{judge.name}: {error}"]
    middle = len(batch) // 2
    return [*_answers(judge, batch[:middle]), *_answers(judge, batch[middle:])]


def _problem(asked: Asked, answer: Answer) -> str:
    """What is wrong with an answer's probabilities, or nothing."""
    odds = answer.probabilities
    if odds is None or (len(odds) == len(asked.choices) and all(map(math.isfinite, odds))):
        return ""
    return f"the judge's probabilities are {odds}; one finite number for each of {len(asked.choices)} choices"


def _digests(
    questions: Sequence[Question], images: Mapping[str, Path]
) -> tuple[dict[str, str], dict[str, str]]:
    """sha256 of the picture file of each id, and why some have none."""
    digests, failed = {}, {}
    for id in dict.fromkeys(question.id for question in questions):
        try:
            digests[id] = hashlib.sha256(images[id].read_bytes()).hexdigest()
        except OSError as error:
            failed[id] = f"cannot be read ({error.strerror})"
    return digests, failed


def _picture(path: Path, digest: str) -> Image.Image | str:
    """RGB, transparency over white; or why there is none."""
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            return "was changed while it was judged"
        return decode_picture(data)
    except (BadPicture, OSError) as error:
        return f"is not a picture that can be read ({error})"


def _key(question: Question, digest: str, judge: Judge, seed: int) -> JudgementKey:
    return JudgementKey(digest, question.question, _shown(question, judge, seed), judge.name, judge.version)


def _shown(question: Question, judge: Judge, seed: int) -> tuple[str, ...]:
    """The choices in the order that the judge sees."""
    if judge.blind:
        return question.choices
    key = f"{seed}\x1f{question.id}\x1f{question.question}"
    shuffled = list(question.choices)
    random.Random(hashlib.sha256(key.encode()).digest()).shuffle(shuffled)
    return tuple(shuffled)


def _parts(asked: Mapping[JudgementKey, Question]) -> Iterator[dict[JudgementKey, Question]]:
    """The questions in order, `_QUESTIONS_AT_ONCE` in a part, or a few more: a picture's stay together."""
    part: dict[JudgementKey, Question] = {}
    last = ""
    for key, question in asked.items():
        if len(part) >= _QUESTIONS_AT_ONCE and question.id != last:
            yield part
            part = {}
        part[key] = question
        last = question.id
    if part:
        yield part
