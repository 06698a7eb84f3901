"""TIFA over pictures: questions, an image map and a judge in, TIFA's result and its blind baselines out."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from promptcdm import tifa
from promptcdm.errors import BadInput, BadQuestions
from promptcdm.judge import Asked, Judge, load_judge
from promptcdm.picture import BadPicture, decode_picture
from promptcdm.questions import Question, load_questions
from promptcdm.tensorfile import write_json

_PICTURES_AT_ONCE = 64


@dataclass(frozen=True)
class TifaReport:
    """TIFA's result, and beside it an interval, blind baselines and the number of unmatched answers."""

    result: dict[str, object]  # TIFA's own five keys
    judge: str
    seed: int
    interval: tuple[float, float]  # 95 %, of the average, by bootstrap over captions
    baselines: dict[
        str, dict[str, float]
    ]  # {"always yes" | "first choice" | "chance": {"all" | type: score}}
    counts: dict[str, int]  # questions, in all ("all") and by type
    captions: int
    unmatched: int  # answers that match no choice; they score 0

    @property
    def average(self) -> float:
        """`tifa_average`."""
        value = self.result["tifa_average"]
        assert isinstance(value, float)
        return value

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text: a header, then the average over captions, then each element type."""
        by_type = self.result["accuracy_by_type"]
        assert isinstance(by_type, dict)
        low, high = self.interval
        rows = [("", self.judge, "95 %", *self.baselines, "questions")]
        scores = {tifa.ALL: self.average, **dict(sorted(by_type.items()))}
        for kind, score in scores.items():
            name, interval = (f"TIFA, {self.captions} captions", f"{low:.3f} to {high:.3f}")
            if kind != tifa.ALL:
                name, interval = kind, ""
            blind = [f"{scores_of[kind]:.3f}" for scores_of in self.baselines.values()]
            rows.append((name, f"{score:.3f}", interval, *blind, str(self.counts[kind])))
        return rows

    def extras(self) -> dict[str, object]:
        """What goes beside TIFA's result."""
        return {
            "judge": self.judge,
            "seed": self.seed,
            "captions": self.captions,
            "questions": self.counts,
            "interval_95": list(self.interval),
            "baselines": self.baselines,
            "unmatched_answers": self.unmatched,
        }

    def save(self, out: Path) -> tuple[Path, Path]:
        """Write TIFA's result to `out`, and the rest beside it to NAME.extras.json."""
        beside = out.with_name(f"{out.stem}.extras.json")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(beside, self.extras())
        write_json(out, self.result)
        return out, beside


def run_tifa(
    questions: Path, images: Path, judge: str, out: Path | None = None, *, seed: int = 0, device: str = "auto"
) -> TifaReport:
    """Score the pictures of a map file, {id: path}, whose paths resolve against its folder; write to `out`.

    Raises BadQuestions for a file that cannot be used or pictures that are missing (all of them are named,
    before any judging), BadInput for an unknown judge or a picture that cannot be read.
    """
    asked = load_questions(questions)
    report = evaluate_tifa(asked, load_image_map(images), load_judge(judge, device=device), seed=seed)
    if out is not None:
        report.save(out)
    return report


def load_image_map(path: Path) -> dict[str, Path]:
    """Read {id: path} and resolve the paths against the file's folder. Raises BadQuestions."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadQuestions(
            f"{path}: cannot be read ({error.strerror}); give a JSON object of id: picture"
        ) from error
    except ValueError as error:
        raise BadQuestions(f"{path}: is not JSON ({error}); give a JSON object of id: picture") from error
    if not isinstance(raw, dict):
        raise BadQuestions(f"{path}: is a JSON {type(raw).__name__}; give a JSON object of id: picture")
    for id, value in raw.items():
        if not isinstance(value, str) or not value:
            raise BadQuestions(f"{path}, id {id!r}: holds {value!r}; give the path of a picture")
    return {id: path.parent / value for id, value in raw.items()}


def evaluate_tifa(
    questions: Sequence[Question], images: Mapping[str, Path], judge: Judge, *, seed: int = 0
) -> TifaReport:
    """Ask the judge every question about the picture of its id, and score the answers by TIFA's formula.

    The choices are shown in an order drawn from `seed`, the id and the question, since in TIFA's files the
    first one is nearly always right; a blind judge gets them as listed.
    """
    if not questions:
        raise BadQuestions("there are no questions; give one or more")
    _check_pictures(questions, images)
    verdicts: list[tifa.Verdict] = []
    for part in _parts(questions):
        pictures = {id: _picture(images[id]) for id in dict.fromkeys(question.id for question in part)}
        batch = [Asked(pictures[q.id], q.question, _shown(q, judge, seed)) for q in part]
        for question, answer in zip(part, judge.answers(batch), strict=True):
            verdicts.append(tifa.Verdict(question, answer.choice, answer.free_form))
    return _report(questions, verdicts, judge.name, seed)


def _report(
    questions: Sequence[Question], verdicts: Sequence[tifa.Verdict], judge: str, seed: int
) -> TifaReport:
    kinds = [question.element_type for question in questions]
    by_caption = tifa.scores_by_caption(verdicts)
    return TifaReport(
        result=tifa.tifa_result(verdicts),
        judge=judge,
        seed=seed,
        interval=tifa.bootstrap_interval(by_caption, seed=seed),
        baselines=tifa.blind_baselines(questions),
        counts={tifa.ALL: len(questions), **{kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}},
        captions=len(by_caption),
        unmatched=sum(verdict.choice not in verdict.question.choices for verdict in verdicts),
    )


def _check_pictures(questions: Sequence[Question], images: Mapping[str, Path]) -> None:
    ids = list(dict.fromkeys(question.id for question in questions))
    unnamed = [id for id in ids if id not in images]
    absent = [f"{id} ({images[id].name})" for id in ids if id in images and not images[id].is_file()]
    if unnamed or absent:
        parts = [f"not in the image map: {', '.join(unnamed)}"] if unnamed else []
        parts += [f"no such file: {', '.join(absent)}"] if absent else []
        raise BadQuestions(
            f"{len(unnamed) + len(absent)} of {len(ids)} pictures are missing; {'; '.join(parts)}; "
            "every id of the questions needs a picture"
        )


def _parts(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """The questions in order, those of at most `_PICTURES_AT_ONCE` pictures in a part."""
    part: list[Question] = []
    ids: set[str] = set()
    for question in questions:
        if question.id not in ids and len(ids) == _PICTURES_AT_ONCE:
            yield part
            part, ids = [], set()
        part.append(question)
        ids.add(question.id)
    yield part


def _shown(question: Question, judge: Judge, seed: int) -> tuple[str, ...]:
    """The choices in the order that the judge sees."""
    if judge.blind:
        return question.choices
    key = f"{seed}\x1f{question.id}\x1f{question.question}"
    shuffled = list(question.choices)
    random.Random(hashlib.sha256(key.encode()).digest()).shuffle(shuffled)
    return tuple(shuffled)


def _picture(path: Path) -> Image.Image:
    """RGB, transparency over white."""
    try:
        return decode_picture(path.read_bytes())
    except (BadPicture, OSError) as error:
        raise BadInput(
            f"{path}: is not a picture that can be read ({error}); give a PNG, JPEG or WebP file"
        ) from error
