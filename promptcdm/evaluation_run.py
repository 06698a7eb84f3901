"""A finished evaluation, read back from its files: what reports and comparisons are made of.

A run is a result file of `evaluate tifa`, or of `evaluate clipscore`. Beside a TIFA result NAME.json lie its extras,
and NAME.clipscore.json where there is one; beside each picture that `generate` made lies the record of its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptcdm.beside import beside, read_record
from promptcdm.errors import BadInput
from promptcdm.questions import Question
from promptcdm.verdict import Verdict

TIFA = "TIFA"
_EXTRAS: tuple[str, ...] = (
    *("baselines", "failures", "interval_95", "type_intervals_95", "questions", "scores"),
    *("judge", "judge_version", "seed", "questions_sha256", "pictures", "prompts", "versions"),
)
_BESIDE = (
    ".extras.json",
    ".clipscore.json",
    ".made.json",
    ".questions.json",
)  # files of a result, and no result
_AGAIN = "give the same `promptcdm evaluate` command again: what was judged is not judged again"


@dataclass(frozen=True)
class Scores:
    """What a result file says of each picture, by the name of the score."""

    path: Path
    by_score: Mapping[str, Mapping[str, float]]  # {score: {id: value}}
    prompts: Mapping[str, str]  # {id: caption}; an id without one is a prompt of its own

    def of(self, score: str) -> Mapping[str, float]:
        """{id: value} of one score. Raises BadInput where the file lacks it."""
        if score not in self.by_score:
            raise BadInput(f"{self.path}: has no score {score!r}; it has {', '.join(sorted(self.by_score))}")
        return self.by_score[score]


@dataclass(frozen=True)
class Run:
    """One evaluation: its verdicts, scores, pictures, and the weights that made these."""

    name: str
    path: Path
    verdicts: tuple[Verdict, ...]
    captions: Mapping[str, float]  # TIFA of each id
    types: Mapping[str, float]  # accuracy of each element type
    facts: Mapping[str, Any]  # the extras
    records: Mapping[str, Mapping[str, Any]]  # of the pictures that `generate` made, by id

    @property
    def allowed(self) -> tuple[str, ...] | None:
        """The sources that every picture was made from; None where no record says so, or they differ."""
        found = {tuple(record["allowed"]) for record in self.records.values()}
        return found.pop() if len(found) == 1 and len(self.records) == len(self.captions) else None

    def picture(self, id: str) -> Path:
        """The picture's file, as the result names it."""
        file: str = self.facts["pictures"][id]["file"]
        return self.path.parent / file

    def problem(self, id: str) -> str:
        """Why the picture that was judged cannot be shown; empty where it can."""
        try:
            digest = hashlib.sha256(self.picture(id).read_bytes()).hexdigest()
        except OSError:
            return "no longer there"
        return "" if digest == self.facts["pictures"][id]["sha256"] else "changed since it was judged"


def read_run(path: Path, name: str = "") -> Run:
    """Read a result of `evaluate tifa` and what lies beside it. Raises BadInput, naming the file.

    Where a caption has the same question twice, TIFA's file lists it once.
    """
    result, facts = _object(path), _with_clipscore(path, read_facts(path))
    try:
        details: Mapping[str, Mapping[str, Mapping[str, Any]]] = result["question_details"]
        verdicts = tuple(_verdict(row) for rows in details.values() for row in rows.values())
        captions = {str(id): float(value) for id, value in result["caption_scores"].items()}
        types = {str(kind): float(value) for kind, value in result["accuracy_by_type"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path}: is no result of TIFA ({error!r}); {_AGAIN}") from error
    pictures = {id: path.parent / facts["pictures"][id]["file"] for id in captions}
    records = {id: record for id, file in pictures.items() if (record := _record(file)) is not None}
    return Run(name or path.stem, path, verdicts, captions, types, facts, records)


def read_runs(given: Sequence[str | Path]) -> list[Run]:
    """Read runs, each FILE or NAME=FILE; a run without a name has its file's, or its folder's where files agree.

    What lies beside a result, such as its extras, is passed over, so that `folder/*.json` can be given. Raises
    BadInput for a file that is no result, and for two runs of one name.
    """
    pairs = [_named(str(text)) for text in given if not str(text).endswith(_BESIDE)]
    stems = [path.stem for name, path in pairs if not name]
    names = [name or (path.stem if stems.count(path.stem) == 1 else path.parent.name) for name, path in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadInput(f"two runs are called {twice[0]!r}; name them, such as mine={pairs[0][1]}")
    return [read_run(path, name) for name, (_, path) in zip(names, pairs, strict=True)]


def read_scores(path: Path) -> Scores:
    """Read the scores of each picture out of a result file. Raises BadInput, naming the file.

    Of another tool's scores {"scores": {NAME: {"by_caption": {id: value}}}} is enough; "prompts" {id: caption} says
    which pictures share one.
    """
    facts = read_facts(path)
    try:
        by_score = {
            str(name): {str(id): float(value) for id, value in score["by_caption"].items()}
            for name, score in facts["scores"].items()
        }
        given = facts.get("prompts", {})
        prompts = {id: str(given.get(id) or id) for values in by_score.values() for id in values}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{path}: lacks scores of each picture ({error!r}); {_AGAIN}") from error
    return Scores(path, by_score, prompts)


def same_questions(runs: Sequence[Run]) -> bool:
    """True where all runs were asked the same questions, so that their scores can be compared."""
    return len({run.facts["questions_sha256"] for run in runs}) == 1


def same_pictures(a: Mapping[str, str | None], b: Mapping[str, str | None], what: str) -> None:
    """Raise BadInput where two results that are compared looked at different files under one id."""
    other = [id for id in a if id in b and a[id] != b[id]]
    if other:
        raise BadInput(
            f"{what} have other pictures under {len(other)} of their ids, such as {other[0]!r}; "
            "give results on the same pictures"
        )


def read_facts(path: Path) -> dict[str, Any]:
    """What stands beside a result: the extras of a TIFA result, or the file itself where it has scores.

    Raises BadInput.
    """
    found = _object(path)
    if "scores" in found:
        return found
    file = beside(path, "extras.json")
    if not file.is_file():
        raise BadInput(f"{path}: {file.name} is not beside it; {_AGAIN}")
    extras = _object(file)
    lacking = [key for key in _EXTRAS if key not in extras]
    if lacking:
        raise BadInput(f"{file}: lacks {', '.join(lacking)}, as of an older version; {_AGAIN}")
    return extras


def _with_clipscore(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The extras with the score of NAME.clipscore.json, where that lies beside. Raises BadInput."""
    file = beside(path, "clipscore.json")
    if not file.is_file():
        return facts
    clip = _object(file)
    digests = [{id: picture["sha256"] for id, picture in each["pictures"].items()} for each in (facts, clip)]
    same_pictures(digests[0], digests[1], f"{path} and {file}")
    return {**facts, "scores": {**facts["scores"], **clip["scores"]}}


def _named(text: str) -> tuple[str, Path]:
    if not Path(text).is_file() and "=" in text:
        name, _, file = text.partition("=")
        return name.strip(), Path(file)
    return "", Path(text)


def _verdict(row: Mapping[str, Any]) -> Verdict:
    question = Question(
        row["id"],
        row["caption"],
        row["question"],
        tuple(row["choices"]),
        row["answer"],
        row["element_type"],
        row["element"],
    )
    return Verdict(question, row["multiple_choice_vqa"], row["free_form_vqa"])


def _record(picture: Path) -> Mapping[str, Any] | None:
    """The record of a picture that `generate` made; None beside any other picture, whatever lies there."""
    try:
        record = read_record(picture)
    except BadInput:
        return None
    needed: Iterable[str] = ("allowed", "weights", "weights_by_step", "seed", "settings", "adapters")
    return record if record is not None and all(key in record for key in needed) else None


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror}); give a result of promptcdm evaluate"
        ) from error
    except ValueError as error:
        raise BadInput(f"{path}: is not JSON ({error}); give a result of promptcdm evaluate") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path}: is not a JSON object; give a result of promptcdm evaluate")
    return found
