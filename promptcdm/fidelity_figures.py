"""All figures of fidelity of two sets of features: value, interval, floor and excess.

    value      real against generated, N of each
    interval   95 %, by the delete-group jackknife
    floor      real against other real pictures, n of each: what a perfect generator would get
    excess     generated against the same real pictures, also n of each, minus the floor

n is N where there are 2 N real pictures, else half of the real ones. Floor and excess are means over splits by
chance. Most figures depend on n even for a perfect generator, so that the excess says more than the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from promptcdm.cmmd import cmmd, cmmd_left_out
from promptcdm.errors import BadInput
from promptcdm.feature_pair import Rows, feature_pair
from promptcdm.frechet import frechet_distance, frechet_left_out
from promptcdm.jackknife import LEAST, jackknife_groups, jackknife_interval
from promptcdm.kid import kid_left_out, unbiased_kid
from promptcdm.manifold import manifold, manifold_left_out

SHARES = ("precision", "recall", "coverage")
ENOUGH = 10  # pictures for each feature, from which on the covariance is known well


@dataclass(frozen=True)
class Figure:
    """One figure; for the last four, more is better, and an excess below 0 is what is missing to real pictures."""

    value: float
    interval: tuple[float, float]
    floor: float
    floor_range: tuple[float, float]  # over the splits
    at_floor_size: float  # generated, n of them, whose difference to the floor is the excess

    @property
    def excess(self) -> float:
        """Generated minus floor, both at n pictures."""
        return self.at_floor_size - self.floor


def compare_features(
    real: ArrayLike, generated: ArrayLike, *, neighbours: int = 5, splits: int = 10, seed: int = 0
) -> dict[str, Figure]:
    """{"kid", "fd", "cmmd", "precision", "recall", "density", "coverage": figure} of features (M, d) and (N, d).

    M is N or more; the first N real rows are compared, the others only help the floor. Raises BadInput as
    `feature_pair` does, for fewer than 40 rows, and for neighbours or splits that cannot be.
    """
    pool, fake = np.asarray(real, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    check_counts(len(fake), len(pool), neighbours, splits)
    x, y = feature_pair(pool[: len(fake)] if len(pool) > len(fake) else pool, fake)
    groups = jackknife_groups(len(x), seed)
    values, left_out = _values(x, y, neighbours), _left_out(x, y, groups, neighbours)
    floors, others = _splits(pool, y, neighbours, splits, seed)
    found = {}
    for name, value in values.items():
        low, high = jackknife_interval(value, left_out[name])
        low = low if name == "kid" else max(low, 0.0)  # KID alone may be below 0
        high = min(high, 1.0) if name in SHARES else high
        own = [each[name] for each in floors]
        at_floor_size = float(np.mean([each[name] for each in others]))
        found[name] = Figure(value, (low, high), float(np.mean(own)), (min(own), max(own)), at_floor_size)
    return found


def floor_size(n: int, real: int) -> int:
    """n of the floor: pictures in each of two sets of real ones."""
    return min(n, real // 2)


def check_counts(n: int, real: int, neighbours: int, splits: int) -> None:
    """Raise BadInput where n generated and so many real pictures are too few for the settings."""
    if n < LEAST:
        raise BadInput(f"{n} pictures; fidelity needs {LEAST} or more of each kind")
    most = floor_size(n, real) - 1
    if not 1 <= neighbours <= most:
        raise BadInput(f"neighbours is {neighbours}; {n} pictures allow 1 to {most}")
    if splits < 1:
        raise BadInput(f"splits is {splits}; give 1 or more")


def guidance(n: int, d: int, n_floor: int) -> list[str]:
    """What a reader of the figures must know at this number of pictures and of features."""
    lines = [
        "KID is the figure to read first: it has no bias, so real against real is 0 in the mean at any N.",
        f"The Fréchet distance and CMMD fall as N grows: compare them at N = {n} only, and by their excess.",
    ]
    if n < d:
        lines.append(
            f"N = {n} is below the {d} features: the covariance has rank {n - 1}, and the Fréchet distance of "
            "real to real pictures is far above 0; small-N Fréchet figures mislead."
        )
    elif n < ENOUGH * d:
        lines.append(
            f"N = {n} is below {ENOUGH} times the {d} features: much of the Fréchet distance is N's doing."
        )
    if n_floor < n:
        lines.append(f"Floor and excess are at n = {n_floor}: for N = {n}, give {2 * n} real and draw {n}.")
    return lines


def _values(x: Rows, y: Rows, k: int) -> dict[str, float]:
    shares: dict[str, float] = asdict(manifold(x, y, k))
    return {"kid": unbiased_kid(x, y), "fd": frechet_distance(x, y), "cmmd": cmmd(x, y), **shares}


def _left_out(x: Rows, y: Rows, groups: NDArray[np.intp], k: int) -> Mapping[str, list[float]]:
    """Of each figure, its values without each group."""
    shares = [asdict(each) for each in manifold_left_out(x, y, groups, k)]
    return {
        "kid": kid_left_out(x, y, groups),
        "fd": frechet_left_out(x, y, groups),
        "cmmd": cmmd_left_out(x, y, groups),
        **{name: [each[name] for each in shares] for name in shares[0]},
    }


def _splits(
    pool: Rows, generated: Rows, k: int, splits: int, seed: int
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Figures of real against other real, and of the same real against generated, for each split."""
    draw = np.random.default_rng([seed, 1])  # not the numbers that the groups are drawn by
    n = floor_size(len(generated), len(pool))
    floors, others = [], []
    for _ in range(splits):
        real, fake = draw.permutation(len(pool)), draw.permutation(len(generated))[:n]
        first, second = pool[real[:n]], pool[real[n : 2 * n]]
        floors.append(_values(first, second, k))
        others.append(_values(first, generated[fake], k))
    return floors, others
