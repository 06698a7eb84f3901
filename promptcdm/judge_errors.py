"""A score corrected for its judge's errors, by Rogan and Gladen's estimator of a prevalence (1978).

Of questions of one kind a share pi is shown by the pictures, and the judge affirms a share p:

    p = pi sensitivity + (1 - pi) (1 - specificity)
    pi = (p + specificity - 1) / (sensitivity + specificity - 1)         held within 0 and 1                        (1)

A question whose answer is no has the two the other way round. The corrected score is the mean of pi over the kinds,
each by its weight in TIFA. Its interval knows both uncertainties: prompts are drawn anew, and with each draw
sensitivity and specificity come from their posteriors under Jeffreys' prior, Beta(right + 1/2, wrong + 1/2).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.intervals import DRAWS, drawn_weights, percentile_interval, wilson_interval
from promptcdm.questions import Question
from promptcdm.tensorfile import read_json
from promptcdm.verdict import Verdict

LEAST = 0.2  # sensitivity + specificity - 1; below it a judge tells too little to be corrected
FEWEST = 20  # labelled pictures shown and not shown, below which the real ones speak
FILE = "errors.json"
_TOPICS = {
    **dict.fromkeys(("object", "animal/human", "animal", "human", "food"), "object"),
    **{"color": "color", "counting": "count", "spatial": "position"},
}
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Share:
    """Right of so many."""

    right: int
    of: int

    @property
    def value(self) -> float:
        """The share."""
        return self.right / self.of

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %."""
        return wilson_interval(self.right, self.of)

    def draws(self, generator: np.random.Generator) -> Floats:
        """`DRAWS` of its posterior."""
        return generator.beta(self.right + 0.5, self.of - self.right + 0.5, DRAWS)


@dataclass(frozen=True)
class Errors:
    """How a judge does on one kind of question."""

    sensitivity: Share
    specificity: Share
    pictures: str  # generated, or real

    def turned(self) -> Errors:
        """Of questions whose answer is no."""
        return Errors(self.specificity, self.sensitivity, self.pictures)

    @property
    def tells(self) -> bool:
        """False where the judge is too near to guessing."""
        return self.sensitivity.value + self.specificity.value - 1 >= LEAST


@dataclass(frozen=True)
class Kind:
    """One kind of question in a score."""

    name: str
    questions: int
    weight: float  # in TIFA, of all questions
    raw: float
    corrected: float | None  # None where the judge's errors are not known, or too large
    errors: Errors | None


@dataclass(frozen=True)
class Corrected:
    """TIFA of the questions whose errors are known, as judged and corrected."""

    raw: float
    value: float
    interval: tuple[float, float]  # 95 %
    coverage: float  # their weight in TIFA
    kinds: tuple[Kind, ...]

    def record(self) -> dict[str, object]:
        """As a result file holds it."""
        return {
            "raw": self.raw,
            "value": self.value,
            "interval_95": list(self.interval),
            "coverage": self.coverage,
            "kinds": {kind.name: _kind_record(kind) for kind in self.kinds},
        }

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text: the score, then each kind of question."""
        low, high = self.interval
        rows: list[tuple[str, ...]] = [
            ("judge's errors", "raw", "corrected", "95 %", "sensitivity", "specificity", "on", "weight")
        ]
        whole = (f"{self.raw:.3f}", f"{self.value:.3f}", f"{low:.3f} to {high:.3f}")
        rows.append(("TIFA", *whole, "", "", "", f"{self.coverage:.2f}"))
        for kind in self.kinds:
            rows.append((kind.name, f"{kind.raw:.3f}", *_kind_cells(kind), f"{kind.weight:.2f}"))
        return rows


def kind_of(question: Question) -> str:
    """Which of a judge's errors a question meets; empty where they are not known."""
    topic = _TOPICS.get(question.element_type, "")
    yes_no = set(question.choices) == {"yes", "no"}
    if topic == "object":
        return "presence" if yes_no else "object"
    return f"{topic}, yes or no" if topic and yes_no else topic


def corrected(
    verdicts: Sequence[Verdict], errors: Mapping[str, Errors], prompts: Mapping[str, str], *, seed: int = 0
) -> Corrected | None:
    """Equation (1) by kind; None where no kind's errors are known. `prompts` is {id: prompt}."""
    groups = _groups(verdicts)
    weights = _weights(verdicts)
    known = {
        name: found for name in groups if (found := _errors_of(name, errors)) is not None and found.tells
    }
    if not known:
        return None
    scores = np.array([verdict.score for verdict in verdicts], dtype=np.float64)
    inside = {name: np.array([_group(v) == name for v in verdicts]) for name in groups}
    raw = {name: float(weights[own] @ scores[own] / weights[own].sum()) for name, own in inside.items()}
    share = {name: float(weights[own].sum()) for name, own in inside.items()}
    pi = {
        name: float(_true_share(raw[name], found.sensitivity.value, found.specificity.value))
        for name, found in known.items()
    }
    coverage = sum(share[name] for name in known)
    kinds = tuple(
        Kind(name, count, share[name], raw[name], pi.get(name), _errors_of(name, errors))
        for name, count in sorted(groups.items())
    )
    return Corrected(
        raw=sum(share[name] * raw[name] for name in known) / coverage,
        value=sum(share[name] * pi[name] for name in known) / coverage,
        interval=_interval(known, inside, weights, scores, [prompts[v.question.id] for v in verdicts], seed),
        coverage=coverage,
        kinds=kinds,
    )


def read_errors(path: Path, version: str = "") -> dict[str, Errors]:
    """What was measured of a judge: of labelled generated pictures where there are enough, else of real ones.

    Raises BadInput for a file that is none, and for one of another version of the judge.
    """
    try:
        raw = read_json(path)
        kinds: dict[str, Errors] = {}
        for pictures in ("real", "generated"):
            for kind, found in raw[pictures].items():
                pair = [Share(*map(int, found[name])) for name in ("sensitivity", "specificity")]
                if pictures == "real" or min(share.of for share in pair) >= FEWEST:
                    kinds[kind] = Errors(pair[0], pair[1], pictures)
        measured = str(raw["version"])
    except (AdapterMismatch, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadInput(
            f"{path}: holds no errors of a judge ({error}); eval/judge_errors.py makes it"
        ) from error
    if version and measured != version:
        raise BadInput(f"{path}: measured of another version of the judge; run eval/judge_errors.py again")
    return {kind: each for kind, each in kinds.items() if each.sensitivity.of and each.specificity.of}


def _interval(
    known: Mapping[str, Errors],
    inside: Mapping[str, NDArray[np.bool_]],
    weights: Floats,
    scores: Floats,
    clusters: Sequence[str],
    seed: int,
) -> tuple[float, float]:
    generator = np.random.default_rng([seed, 1])
    drawn = {
        name: (f.sensitivity.draws(generator), f.specificity.draws(generator)) for name, f in known.items()
    }
    values, start = [], 0
    for times in drawn_weights(clusters, seed=seed):
        weighed = times * weights
        part = slice(start, start + len(times))
        start = part.stop
        top, below = np.zeros(len(times)), np.zeros(len(times))
        for name, (sensitivity, specificity) in drawn.items():
            size = weighed[:, inside[name]].sum(1)
            share = weighed[:, inside[name]] @ scores[inside[name]] / np.where(size > 0, size, 1)
            top += size * _true_share(share, sensitivity[part], specificity[part])
            below += size
        values.append(top / np.where(below > 0, below, np.nan))
    return percentile_interval(np.concatenate(values))


def _true_share(p: Floats | float, sensitivity: Floats | float, specificity: Floats | float) -> Floats:
    """Equation (1); a draw in which a judge tells nothing says nothing."""
    tells = np.asarray(sensitivity) + specificity - 1
    found: Floats = np.clip((np.asarray(p) + specificity - 1) / np.where(tells > 0, tells, np.nan), 0.0, 1.0)
    return found


def _group(verdict: Verdict) -> str:
    """The kind; of yes/no questions whose answer is no, apart."""
    kind = kind_of(verdict.question) or "other"
    return f"{kind}, answered no" if kind != "other" and verdict.question.answer == "no" else kind


def _groups(verdicts: Sequence[Verdict]) -> dict[str, int]:
    return dict(Counter(map(_group, verdicts)))


def _errors_of(name: str, errors: Mapping[str, Errors]) -> Errors | None:
    kind = name.removesuffix(", answered no")
    found = errors.get(kind)
    return found.turned() if found is not None and kind != name else found


def _weights(verdicts: Sequence[Verdict]) -> Floats:
    """Each question's part in the mean over captions of the mean over questions."""
    of_caption: dict[str, int] = defaultdict(int)
    for verdict in verdicts:
        of_caption[verdict.question.id] += 1
    return np.array([1 / (len(of_caption) * of_caption[v.question.id]) for v in verdicts])


def _kind_cells(kind: Kind) -> tuple[str, ...]:
    if kind.errors is None:
        return ("", "", "", "", "not measured")
    value = "tells too little" if kind.corrected is None else f"{kind.corrected:.3f}"
    shares = (
        f"{share.value:.2f} of {share.of}" for share in (kind.errors.sensitivity, kind.errors.specificity)
    )
    return (value, "", *shares, kind.errors.pictures)


def _kind_record(kind: Kind) -> dict[str, object]:
    found: dict[str, object] = {
        "questions": kind.questions,
        "weight": kind.weight,
        "raw": kind.raw,
        "corrected": kind.corrected,
    }
    if kind.errors is not None:
        found |= {
            name: {"value": share.value, "interval_95": list(share.interval), "of": share.of}
            for name, share in (
                ("sensitivity", kind.errors.sensitivity),
                ("specificity", kind.errors.specificity),
            )
        }
        found["pictures"] = kind.errors.pictures
    return found
