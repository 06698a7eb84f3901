"""How well a score follows human ratings, under the right names, and how well a second rater would.

    Pearson r      of the values
    Spearman rho   Pearson r of the ranks, ties sharing their mean rank
    Kendall tau-b  sum of sgn(x_i - x_j) sgn(y_i - y_j) over pairs, by sqrt of (pairs untied in x)(in y)

TIFA's paper prints Pearson's r in the column "Spearman" (Hu et al. 2023, Table 2); here all three are printed.
Intervals are a bootstrap over prompts. A resample is a vector of weights, w_i times item i, in which the
coefficients are quadratic forms of (n, n) sign matrices, so that all resamples take a few matrix products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptcdm.errors import BadInput
from promptcdm.intervals import Floats, drawn_weights, percentile_interval

Flags = NDArray[np.bool_]

MAX_ITEMS = 5000  # five (n, n) matrices of 8 bytes: 1 GB


@dataclass(frozen=True)
class Correlation:
    """One coefficient; NaN where one of the two lists is constant."""

    value: float
    interval: tuple[float, float] | None = None  # 95 %, by bootstrap over prompts; None where not asked for


@dataclass(frozen=True)
class Correlations:
    """Two lists of values of the same items."""

    pearson: Correlation
    spearman: Correlation
    kendall: Correlation  # tau-b
    items: int


@dataclass(frozen=True)
class Calibration:
    """A score against the mean human rating, and what raters reach against each other."""

    score: Correlations
    ceiling: Correlations | None  # the first rater against the second; None where nobody was rated twice


def pearson(x: Sequence[float], y: Sequence[float]) -> float:
    """Pearson's r."""
    return correlations(x, y).pearson.value


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rho."""
    return correlations(x, y).spearman.value


def kendall(x: Sequence[float], y: Sequence[float]) -> float:
    """Kendall's tau-b."""
    return correlations(x, y).kendall.value


def correlations(
    x: Sequence[float], y: Sequence[float], prompts: Sequence[str] | None = None, *, seed: int = 0
) -> Correlations:
    """All three; with intervals where the prompt of each item is given.

    Raises BadInput for lists of different lengths, fewer than two items, values that are not finite, or more
    than 5,000 items.
    """
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    _check(a, b, prompts)
    form = _Form(a, b)
    values = form.of(np.ones((1, len(a))))[:, 0]
    if prompts is None:
        found = [Correlation(float(value)) for value in values]
    else:
        drawn = np.concatenate([form.of(w) for w in drawn_weights(prompts, seed=seed)], axis=1)
        found = [
            Correlation(float(value), percentile_interval(row))
            for value, row in zip(values, drawn, strict=True)
        ]
    return Correlations(found[0], found[1], found[2], len(a))


def calibrate(
    scores: Mapping[str, float],
    ratings: Mapping[str, Sequence[float]],
    prompts: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
) -> Calibration:
    """Compare the score of each picture with the mean of its human ratings, {picture: ratings}.

    Only pictures with a score and a rating count. `prompts` is {picture: prompt}, for the intervals. The
    ceiling is the first rating of each picture against its second. Raises BadInput as `correlations` does.
    """
    common = [id for id in scores if ratings.get(id)]
    names = None if prompts is None else [prompts[id] for id in common]
    means = [float(np.mean(ratings[id])) for id in common]
    twice = [id for id in common if len(ratings[id]) > 1]
    ceiling = None
    if len(twice) > 1:
        whose = None if prompts is None else [prompts[id] for id in twice]
        ceiling = correlations(
            [ratings[id][0] for id in twice], [ratings[id][1] for id in twice], whose, seed=seed
        )
    return Calibration(correlations([scores[id] for id in common], means, names, seed=seed), ceiling)


class _Form:
    """The three coefficients of two lists as functions of the weights of their items, W (draws, n)."""

    def __init__(self, x: Floats, y: Floats) -> None:
        self._x, self._y = x, y
        self._sign_x = np.sign(x[:, None] - x)  # (n, n), 1 where row i is above column j
        self._sign_y = np.sign(y[:, None] - y)
        self._both = self._sign_x * self._sign_y
        self._untied_x, self._untied_y = np.abs(self._sign_x), np.abs(self._sign_y)

    def of(self, weights: Floats) -> Floats:
        """(3, draws): Pearson, Spearman, Kendall."""
        concordant, untied_x, untied_y = (
            ((weights @ signs) * weights).sum(1) for signs in (self._both, self._untied_x, self._untied_y)
        )
        varied = (untied_x > 0) & (untied_y > 0)
        rows = np.tile(self._x, (len(weights), 1)), np.tile(self._y, (len(weights), 1))
        # A mean rank is half of (items below - items above), but for a constant: ranks are sums of signs.
        ranks = weights @ self._sign_x.T, weights @ self._sign_y.T
        pearson, spearman = _weighted_r(*rows, weights, varied), _weighted_r(*ranks, weights, varied)
        return np.stack([pearson, spearman, _divided(concordant, np.sqrt(untied_x * untied_y), varied)])


def _weighted_r(x: Floats, y: Floats, weights: Floats, varied: Flags) -> Floats:
    """Pearson's r of each row, (draws, n) each."""
    total = weights.sum(1, keepdims=True)
    x = x - (weights * x).sum(1, keepdims=True) / total
    y = y - (weights * y).sum(1, keepdims=True) / total
    spread = np.sqrt((weights * x * x).sum(1) * (weights * y * y).sum(1))
    return _divided((weights * x * y).sum(1), spread, varied)


def _divided(above: Floats, below: Floats, varied: Flags) -> Floats:
    """above / below; NaN where a list is constant."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=varied)


def _check(x: Floats, y: Floats, prompts: Sequence[str] | None) -> None:
    if len(x) != len(y) or (prompts is not None and len(prompts) != len(x)):
        raise BadInput(
            f"there are {len(x)} and {len(y)} values; give as many of each, and a prompt for each or none"
        )
    if not 2 <= len(x) <= MAX_ITEMS:
        raise BadInput(f"there are {len(x)} items; a correlation needs 2 to {MAX_ITEMS}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise BadInput("a value is not finite; leave out the items that have no score")
