"""TIFA over pictures: questions, an image map and a judge in, TIFA's result and its blind baselines out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from promptcdm import tifa
from promptcdm.alignment import Score, alignment, prompts_of
from promptcdm.asking import Failure, Judged, ask
from promptcdm.beside import beside
from promptcdm.counterfactual import balanced
from promptcdm.errors import BadQuestions, RunFailed
from promptcdm.judge import Judge, load_judge
from promptcdm.judge_errors import FILE as ERRORS
from promptcdm.judge_errors import Corrected, Errors, corrected, read_errors
from promptcdm.judgements import JudgementLog
from promptcdm.made_of import MadeOf
from promptcdm.question_files import read_question_file, read_texts
from promptcdm.question_making import make_questions
from promptcdm.questions import Question
from promptcdm.replay import replay
from promptcdm.shipped import shipped
from promptcdm.tensorfile import write_json


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
    unmatched: int  # answers that match no choice; they score 0 in TIFA
    scores: tuple[Score, ...] = ()  # every score that the verdicts allow
    failures: tuple[Failure, ...] = ()  # questions without a verdict; they are in no score
    new: int = 0  # answers that the log lacked
    type_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # 95 %, over captions
    made_of: MadeOf = MadeOf()
    corrected: Corrected | None = None  # for the judge's errors, where these were measured

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

    def score_table(self) -> list[tuple[str, ...]]:
        """Rows of text: a header, then each score, what a uniform guess gets, and the score corrected for it."""
        rows: list[tuple[str, ...]] = [("by rule", self.judge, "95 %", "chance", "corrected", "coverage")]
        for score in self.scores:
            low, high = score.interval
            corrected = "" if score.corrected is None else f"{score.corrected:.3f}"
            interval, chance = f"{low:.3f} to {high:.3f}", f"{score.blind['chance']:.3f}"
            coverage = f"{score.coverage:.3f}"
            rows.append((score.name, f"{score.value:.3f}", interval, chance, corrected, coverage))
        return rows

    def errors_table(self) -> list[tuple[str, ...]]:
        """Rows of text: TIFA and each kind of question, raw and corrected for the judge's errors; none unmeasured."""
        return [] if self.corrected is None else self.corrected.table()

    def left_out(self) -> list[str]:
        """A line for each reason why questions have no verdict."""
        questions: dict[tuple[str, str], int] = {}
        for failure in self.failures:
            key = failure.id, failure.reason
            questions[key] = questions.get(key, 0) + 1
        return [f"{id}: {count} questions left out; {reason}" for (id, reason), count in questions.items()]

    def extras(self, folder: Path | None = None) -> dict[str, object]:
        """What goes beside TIFA's result, in a file of `folder`, to which the pictures' paths are relative."""
        return {
            **self.made_of.record(folder),
            "judge": self.judge,
            "seed": self.seed,
            "captions": self.captions,
            "questions": self.counts,
            "interval_95": list(self.interval),
            "type_intervals_95": {kind: list(ends) for kind, ends in self.type_intervals.items()},
            "baselines": self.baselines,
            "unmatched_answers": self.unmatched,
            "scores": {score.name: score.record() for score in self.scores},
            "failures": [asdict(failure) for failure in self.failures],
            **({} if self.corrected is None else {"corrected_for_judge": self.corrected.record()}),
        }

    def save(self, out: Path) -> tuple[Path, Path]:
        """Write TIFA's result to `out`, and the rest beside it to NAME.extras.json."""
        extras = beside(out, "extras.json")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(extras, self.extras(out.parent))
        write_json(out, self.result)
        return out, extras


def run_tifa(
    questions: Path | str,
    images: Path,
    judge: str,
    out: Path | None = None,
    *,
    texts: Path | None = None,
    seed: int = 0,
    device: str = "auto",
    judgements: Path | None = None,
    negatives: bool = False,
    errors: Path | None = None,
) -> TifaReport:
    """Score the pictures of a map file, {id: path}, whose paths resolve against its folder; write to `out`.

    With `texts`, a file of prompts, questions on these are made first by `questions`, "rules" or
    "llm:ID_OR_FOLDER", and kept beside `out`. Answers are kept in `judgements`, beside `out` where it is left out,
    and only what that file lacks is asked. The judge `replay:NAME` has the answers that judge NAME gave there, and
    no others. With `negatives` the counterpart of each yes/no question is asked too, and a question that has none
    is left out, so that always saying yes is right for half. `errors` is what was measured of a judge, for the score
    corrected for it; of judges that ship it is known.

    Raises BadQuestions for a file that cannot be used or pictures that are missing (all of them are named,
    before any judging), BadInput for an unknown judge or a file that holds no judgements, RunFailed where
    nothing could be judged.
    """
    asked = _questions(questions, texts, out, seed, device)
    if negatives:
        asked = balanced(asked, seed=seed)
    log = JudgementLog(judgements or (out and beside(out, "judgements.jsonl")))
    recorded = judge.removeprefix("replay:")
    answering = load_judge(judge, device=device) if recorded == judge else replay(log, recorded)
    known = errors_of(answering, errors)
    report = evaluate_tifa(asked, load_image_map(images), answering, seed=seed, log=log, errors=known)
    if out is not None:
        report.save(out)
    return report


def _questions(
    questions: Path | str, texts: Path | None, out: Path | None, seed: int, device: str
) -> tuple[Question, ...]:
    """Read them, or make them on the texts and keep them beside `out`."""
    if texts is None:
        return read_question_file(Path(questions), seed=seed)
    made = make_questions(read_texts(texts), str(questions), seed=seed, device=device)
    if out is not None:
        made.save(beside(out, "questions.json"))
    made.check()
    return made.questions


def errors_of(judge: Judge, path: Path | None = None) -> Mapping[str, Errors]:
    """What was measured of a judge, in a file or in the folder of a judge that ships; nothing of another judge.

    Raises BadInput for a file that is none, or of another version of the judge.
    """
    if path is None:
        if judge.name not in ("nano-judge", "sealed-judge"):
            return {}
        path = shipped("nano-judge" if judge.name == "nano-judge" else "sealed-judge") / ERRORS
    return read_errors(path, judge.version)


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
    questions: Sequence[Question],
    images: Mapping[str, Path],
    judge: Judge,
    *,
    seed: int = 0,
    log: JudgementLog | None = None,
    errors: Mapping[str, Errors] | None = None,
) -> TifaReport:
    """Ask the judge every question about the picture of its id that `log` lacks, and score all answers.

    A picture that cannot be read and a question that the judge cannot answer are failures: named in the report
    and left out of every score. Raises BadQuestions where there is no question or a picture is missing (all of
    them are named, before any judging), RunFailed where nothing could be judged.
    """
    if not questions:
        raise BadQuestions("there are no questions; give one or more")
    _check_pictures(questions, images)
    log = JudgementLog() if log is None else log
    judged = ask(questions, images, judge, log, seed=seed)
    if not judged.verdicts:
        first = judged.failures[0]
        raise RunFailed(f"none of {len(questions)} questions could be judged; {first.id}: {first.reason}")
    made_of = MadeOf.of(questions, images, judged.digests, judge.version)
    return _report(judged, judge.name, seed, made_of, errors or {})


def _report(
    judged: Judged, judge: str, seed: int, made_of: MadeOf, errors: Mapping[str, Errors]
) -> TifaReport:
    questions = [verdict.question for verdict in judged.verdicts]
    kinds = [question.element_type for question in questions]
    scores = alignment(judged.verdicts, len(questions) + len(judged.failures), seed=seed)
    return TifaReport(
        result=tifa.tifa_result(judged.verdicts),
        judge=judge,
        seed=seed,
        interval=scores[0].interval,
        baselines=tifa.blind_baselines(questions),
        counts={tifa.ALL: len(questions), **{kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}},
        captions=len(scores[0].by_caption),
        unmatched=sum(not verdict.answered for verdict in judged.verdicts),
        scores=scores,
        failures=judged.failures,
        new=judged.new,
        type_intervals=tifa.type_intervals(judged.verdicts, prompts_of(questions), seed=seed),
        made_of=made_of,
        corrected=corrected(judged.verdicts, errors, prompts_of(questions), seed=seed),
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
