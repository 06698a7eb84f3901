"""Results of evaluations compared from their files: two systems, two judges, a score and people.

The figures are those of `paired`, `agreement` and `calibration`; here are the files' side of it, and the rows that
are printed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from promptcdm.agreement import Agreement, agreement
from promptcdm.calibration import Calibration, Correlation, Correlations, calibrate
from promptcdm.errors import BadInput
from promptcdm.evaluation_run import Run, Scores, read_runs, read_scores, same_pictures
from promptcdm.human_ratings import read_ratings
from promptcdm.paired import Paired, compare

Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class SystemPair:
    """How much higher A scores than B."""

    a: Path
    b: Path
    score: str
    found: Paired

    def table(self) -> Rows:
        """Rows of text."""
        low, high = self.found.interval
        header = (f"{self.score}, A - B", "95 %", "p", "pictures", "prompts", "in one alone")
        counts = self.found.pictures, self.found.prompts, len(self.found.left_out)
        figures = f"{self.found.difference:+.3f}", f"{low:+.3f} to {high:+.3f}", f"{self.found.p:.4f}"
        return [header, (*figures, *map(str, counts))]

    def record(self) -> dict[str, object]:
        """As a file holds it."""
        found = {key: value for key, value in asdict(self.found).items() if key != "interval"}
        return {
            "a": self.a.name,
            "b": self.b.name,
            "score": self.score,
            "interval_95": self.found.interval,
            **found,
        }


@dataclass(frozen=True)
class JudgePair:
    """How far two judges agree."""

    a: str
    b: str
    found: Agreement

    def record(self) -> dict[str, object]:
        """As a file holds it, with every question on which they differ."""
        return {
            "a": self.a,
            "b": self.b,
            "questions": self.found.questions,
            "left_out": self.found.left_out,
            "observed": self.found.observed,
            "kappa": self.found.kappa,
            "differ": [
                {"id": q.id, "question": q.question, "answer": q.answer, "a": one, "b": other}
                for q, one, other in self.found.differ
            ],
        }


@dataclass(frozen=True)
class Calibrated:
    """A score against people."""

    score: str
    found: Calibration
    left_out: int  # pictures with a score or a rating, not both

    def table(self) -> Rows:
        """Rows of text: the score against people, and one rater against another."""
        rows: Rows = [("against people", "Pearson r", "Spearman rho", "Kendall tau-b", "pictures")]
        rows.append((self.score, *_cells(self.found.score)))
        if self.found.ceiling is not None:
            rows.append(("a second rater", *_cells(self.found.ceiling)))
        return rows

    def record(self) -> dict[str, object]:
        """As a file holds it."""
        ceiling = self.found.ceiling
        return {
            "score": self.score,
            "against_people": _record(self.found.score),
            "second_rater": None if ceiling is None else _record(ceiling),
            "left_out": self.left_out,
        }


def compare_systems(a: Path, b: Path, score: str = "TIFA", *, seed: int = 0) -> SystemPair:
    """Compare one score of two result files over the prompts that both have.

    Raises BadInput for files without that score, and where they share no id or ask it of other captions.
    """
    first, second = read_scores(a), read_scores(b)
    other = [id for id in first.prompts if second.prompts.get(id, first.prompts[id]) != first.prompts[id]]
    if other:
        raise BadInput(
            f"id {other[0]!r} has another caption in {b} than in {a}; give results on one question file"
        )
    found = compare(first.of(score), second.of(score), _clusters(first, second), seed=seed)
    return SystemPair(a, b, score, found)


def compare_judges(results: Sequence[str | Path]) -> list[JudgePair]:
    """Compare each pair of result files, of several judges on the same pictures; FILE or NAME=FILE each.

    Raises BadInput for fewer than two, for other pictures under the same ids, and for no question in common.
    """
    runs = read_runs(results)
    if len(runs) < 2:
        raise BadInput("one judge agrees with itself; give two result files or more")
    for a, b in itertools.pairwise(runs):
        same_pictures(_digests(a), _digests(b), f"{a.path} and {b.path}")
    return [
        JudgePair(a.name, b.name, agreement(a.verdicts, b.verdicts))
        for a, b in itertools.combinations(runs, 2)
    ]


def agreement_table(pairs: Sequence[JudgePair]) -> Rows:
    """Rows of text: a header, then each pair of judges."""
    rows: Rows = [("judges", "kappa", "same", "questions", "in one alone")]
    for pair in pairs:
        kappa = "" if pair.found.kappa is None else f"{pair.found.kappa:.3f}"
        counts = str(pair.found.questions), str(pair.found.left_out)
        rows.append((f"{pair.a}, {pair.b}", kappa, f"{pair.found.observed:.3f}", *counts))
    return rows


def calibrate_result(result: Path, ratings: Path, score: str = "TIFA", *, seed: int = 0) -> Calibrated:
    """Compare one score of a result file with human ratings of the same ids.

    Raises BadInput for files that cannot be used and for fewer than two pictures that have both.
    """
    scores, rated = read_scores(result), read_ratings(ratings)
    values = scores.of(score)
    common = set(values) & set(rated)
    if len(common) < 2:
        raise BadInput(f"{len(common)} ids of {result} are rated in {ratings}; two or more are needed")
    found = calibrate(values, rated, _clusters(scores), seed=seed)
    return Calibrated(score, found, len(set(values) ^ set(rated)))


def _clusters(*scores: Scores) -> dict[str, str]:
    """{id: prompt} of all of them."""
    return {id: prompt for one in scores for id, prompt in one.prompts.items()}


def _digests(run: Run) -> Mapping[str, str | None]:
    return {id: run.facts["pictures"][id]["sha256"] for id in run.captions}


def _cells(found: Correlations) -> tuple[str, ...]:
    return (*map(_cell, (found.pearson, found.spearman, found.kendall)), str(found.items))


def _cell(found: Correlation) -> str:
    ends = "" if found.interval is None else f" ({found.interval[0]:.3f} to {found.interval[1]:.3f})"
    return "undefined" if math.isnan(found.value) else f"{found.value:.3f}{ends}"


def _record(found: Correlations) -> dict[str, object]:
    def one(each: Correlation) -> dict[str, object]:
        ends = None if each.interval is None or math.isnan(each.interval[0]) else list(each.interval)
        return {"value": None if math.isnan(each.value) else each.value, "interval_95": ends}

    return {
        "pearson": one(found.pearson),
        "spearman": one(found.spearman),
        "kendall_tau_b": one(found.kendall),
        "pictures": found.items,
    }
