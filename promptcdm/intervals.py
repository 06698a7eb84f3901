"""Percentile intervals by bootstrap over clusters: what hangs together is drawn together.

The questions, and the pictures, of one prompt are not independent, so prompts are resampled, not their items:

    mean* = sum over drawn clusters of the sum of their items / the sum of their sizes
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
_DRAWS_AT_ONCE = 100

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def cluster_interval(
    values: Sequence[float], clusters: Sequence[str], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean of `values`, each in the cluster of the same place."""
    member, count = cluster_places(clusters)
    sums = np.bincount(member, np.asarray(values, dtype=np.float64), count)
    sizes = np.bincount(member, minlength=count)
    means = [sums[drawn].sum(1) / sizes[drawn].sum(1) for drawn in _drawn(count, seed)]
    return percentile_interval(np.concatenate(means), level)


def wilson_interval(right: int, of: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share; 95 % by default. Of nothing it is 0 to 1."""
    if not of:
        return 0.0, 1.0
    share = right / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return middle - half, middle + half


def cluster_places(clusters: Sequence[str]) -> tuple[Integers, int]:
    """The number of each item's cluster, counted in the order of first sight, and how many there are."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    return np.asarray([numbers[name] for name in clusters], dtype=np.int64), len(numbers)


def drawn_weights(clusters: Sequence[str], *, seed: int = 0) -> Iterator[Floats]:
    """How often each item is in a resample: parts of (draws, items), `DRAWS` rows in all."""
    member, count = cluster_places(clusters)
    for drawn in _drawn(count, seed):
        times = np.stack([np.bincount(row, minlength=count) for row in drawn])
        yield times[:, member].astype(np.float64)


def percentile_interval(statistics: Floats, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of resampled figures; those that are not finite are left out."""
    finite = statistics[np.isfinite(statistics)]
    if not finite.size:
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _drawn(count: int, seed: int) -> Iterator[Integers]:
    """Numbers of the clusters in each resample, (draws, count), in parts."""
    generator = np.random.default_rng(seed)
    for _ in range(DRAWS // _DRAWS_AT_ONCE):
        yield generator.integers(0, count, size=(_DRAWS_AT_ONCE, count))
