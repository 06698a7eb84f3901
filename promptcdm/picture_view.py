"""Every picture with every question about it, as a report shows them: one caption, the pictures of all runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from promptcdm.evaluation_run import Run
from promptcdm.page import Band, Share, bands, picture_uri, shares_in_words
from promptcdm.picture import BadPicture, decode_picture
from promptcdm.settings import ReportSettings
from promptcdm.verdict import Verdict

State = Literal["right", "wrong", "unmatched"]


@dataclass(frozen=True)
class Cell:
    """The picture of one run."""

    letter: str
    picture: str  # data URI; empty where it cannot be shown
    problem: str  # why not
    alt: str
    right: int  # of `asked`
    asked: int
    shares: tuple[Share, ...]
    bands: tuple[Band, ...]
    steps: int


@dataclass(frozen=True)
class Mark:
    """What the judge chose for one run's picture."""

    letter: str
    state: State
    choice: str


@dataclass(frozen=True)
class QuestionView:
    """One question, and the choice for each run's picture."""

    question: str
    answer: str
    kind: str
    marks: tuple[Mark, ...]

    @property
    def all_right(self) -> bool:
        """True where every run's picture has the answer."""
        return all(mark.state == "right" for mark in self.marks)

    @property
    def differs(self) -> bool:
        """True where it is right for one run and not for another."""
        return len({mark.state == "right" for mark in self.marks}) > 1


@dataclass(frozen=True)
class CaptionView:
    """One caption."""

    id: str
    caption: str
    score: float  # TIFA, mean over the runs
    cells: tuple[Cell, ...]
    questions: tuple[QuestionView, ...]

    @property
    def all_right(self) -> bool:
        """True where no question is wrong in any run."""
        return all(question.all_right for question in self.questions)

    @property
    def differs(self) -> bool:
        """True where the runs differ in a question."""
        return any(question.differs for question in self.questions)


def caption_views(
    runs: Sequence[Run], letters: Sequence[str], colours: Mapping[str, str], settings: ReportSettings
) -> tuple[list[CaptionView], int]:
    """Captions with their pictures, the lowest scores first, and how many more there are."""
    ids = dict.fromkeys(id for run in runs for id in run.captions)
    scores = {id: statistics.fmean(run.captions[id] for run in runs if id in run.captions) for id in ids}
    ordered = sorted(ids, key=lambda id: scores[id])
    shown = ordered[: settings.pictures or None]
    verdicts = [_by_id(run) for run in runs]
    views = []
    for id in shown:
        having = [
            (letter, run, own[id])
            for letter, run, own in zip(letters, runs, verdicts, strict=True)
            if id in run.captions
        ]
        cells = tuple(_cell(letter, run, id, own, colours, settings) for letter, run, own in having)
        caption = str(having[0][1].facts["prompts"][id])
        questions = _questions([(letter, own) for letter, _, own in having])
        views.append(CaptionView(id, caption, scores[id], cells, questions))
    return views, len(ordered) - len(shown)


def _by_id(run: Run) -> dict[str, list[Verdict]]:
    found: dict[str, list[Verdict]] = {}
    for verdict in run.verdicts:
        found.setdefault(verdict.question.id, []).append(verdict)
    return found


def _cell(
    letter: str,
    run: Run,
    id: str,
    verdicts: Sequence[Verdict],
    colours: Mapping[str, str],
    settings: ReportSettings,
) -> Cell:
    picture, problem = "", run.problem(id)
    if not problem:
        try:
            decoded = decode_picture(run.picture(id).read_bytes())
            picture = picture_uri(decoded, settings.picture_size)
        except BadPicture as error:
            problem = str(error)
    record = run.records.get(id)
    allowed = [] if record is None else list(record["allowed"])
    shares = tuple(
        Share(name, colours[name], record["weights"][name]) for name in allowed if record is not None
    )
    by_step = record["weights_by_step"] if record is not None and len(allowed) > 1 else []
    right = sum(verdict.score for verdict in verdicts)
    made = f", {shares_in_words(shares)}" if shares else ""
    alt = f"{run.facts['prompts'][id]}, {run.name}{made}: {right} of {len(verdicts)} right"
    return Cell(
        *(letter, picture, problem, alt, right, len(verdicts), shares),
        bands=tuple(bands(by_step, {name: colours[name] for name in allowed})) if by_step else (),
        steps=len(by_step),
    )


def _questions(having: Sequence[tuple[str, Sequence[Verdict]]]) -> tuple[QuestionView, ...]:
    """Each question once, in the order of first sight, with the choice of every run that was asked it."""
    asked: dict[str, list[tuple[str, Verdict]]] = {}
    for letter, verdicts in having:
        for verdict in verdicts:
            asked.setdefault(verdict.question.question, []).append((letter, verdict))
    return tuple(
        QuestionView(
            question=text,
            answer=own[0][1].question.answer,
            kind=own[0][1].question.element_type,
            marks=tuple(Mark(letter, _state(verdict), verdict.choice) for letter, verdict in own),
        )
        for text, own in asked.items()
    )


def _state(verdict: Verdict) -> State:
    if not verdict.answered:
        return "unmatched"
    return "right" if verdict.score else "wrong"
