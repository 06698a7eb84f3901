"""How well scores tell members from others: area under the ROC curve, and power at few false alarms, with intervals.

    AUC    P(member's score > other's) + P(equal) / 2                  0.5: not at all
    TPR    share of members above the threshold that at most 1 % of the others are above (Carlini et al. 2022,
           arXiv 2112.03570: an attack that is sure of a few members is an attack, whatever its AUC)

AUC's interval solves |A - found| = z sqrt(V(A)) for A, with Hanley and McNeil's variance at the mean group size
(Newcombe 2006, method 5): it has a width at 0.5 and at 1 too. TPR's is the wider of two: a bootstrap of both groups,
which moves the threshold, and the exact interval at the threshold found, which does not vanish at 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from promptcdm.errors import BadInput
from promptcdm.exact_share import share_interval
from promptcdm.intervals import DRAWS, percentile_interval

FALSE_ALARMS = 0.01
_Z = 1.959964
_HALVINGS = 60


@dataclass(frozen=True)
class Separation:
    """Figures of one score for m members and n others."""

    members: int
    others: int
    auc: float
    auc_interval: tuple[float, float]
    tpr: float  # at FALSE_ALARMS
    tpr_interval: tuple[float, float]
    fpr: float  # that the threshold has among the others: 0 where they are fewer than 100

    @property
    def found(self) -> bool:
        """Whether the interval of AUC lies above 0.5."""
        return self.auc_interval[0] > 0.5


def separation(members: ArrayLike, others: ArrayLike, *, seed: int = 0) -> Separation:
    """Figures of scores (m,) and (n,), higher for members. Raises BadInput for none, or what is not finite."""
    own, other = _scores(members, "members"), _scores(others, "others")
    limit = threshold(other)
    found = auc(own, other)
    hits = own > limit
    exact = share_interval(hits)
    drawn = percentile_interval(_drawn_tprs(own, other, seed))
    return Separation(
        len(own),
        len(other),
        found,
        auc_interval(found, len(own), len(other)),
        float(hits.mean()),
        (min(exact[0], drawn[0]), max(exact[1], drawn[1])),
        float((other > limit).mean()),
    )


def auc(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """The area under the ROC curve; equal scores count half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, members, "left")
    not_above = np.searchsorted(ordered, members, "right")
    return float((below + not_above).mean() / (2 * len(others)))


def auc_interval(found: float, members: int, others: int) -> tuple[float, float]:
    """95 % interval of the area `found` among so many."""

    def inside(area: float) -> bool:
        return abs(area - found) <= _Z * math.sqrt(_variance(area, members, others))

    return _edge(found, 0.0, inside), _edge(found, 1.0, inside)


def threshold(others: NDArray[np.float64], false_alarms: float = FALSE_ALARMS) -> float:
    """The lowest of the others' scores that at most this share of them is above."""
    allowed = int(false_alarms * len(others) + 1e-9)
    return float(np.sort(others)[::-1][allowed])


def _variance(area: float, m: int, n: int) -> float:
    mean = (m + n) / 2
    shape = (2 - area) * (1 + area)
    return area * (1 - area) / (m * n) * (2 * mean - 1 - (3 * mean - 3) / shape)


def _edge(start: float, end: float, inside: Callable[[float], bool]) -> float:
    """The farthest point from `start` towards `end` that is inside, by halving."""
    if inside(end):
        return end
    near, far = start, end
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        near, far = (middle, far) if inside(middle) else (near, middle)
    return near


def _drawn_tprs(members: NDArray[np.float64], others: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    allowed = int(FALSE_ALARMS * len(others) + 1e-9)
    tprs = np.empty(DRAWS)
    for draw in range(DRAWS):
        other = others[generator.integers(0, len(others), len(others))]
        limit = np.partition(other, len(other) - 1 - allowed)[len(other) - 1 - allowed]
        tprs[draw] = (members[generator.integers(0, len(members), len(members))] > limit).mean()
    return tprs


def _scores(values: ArrayLike, name: str) -> NDArray[np.float64]:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not len(scores):
        raise BadInput(f"scores of the {name} have shape {scores.shape}; give one number each, for 1 or more")
    if not np.isfinite(scores).all():
        raise BadInput(f"scores of the {name} are not all finite")
    return scores
