"""Precision, recall, density and coverage: do balls around one set's pictures hold the other's?

The ball of a picture reaches to its k-th nearest neighbour in its own set, r_k.

    precision  share of generated pictures inside some real ball           (Kynkäänniemi et al. 2019, 1904.06991)
    recall     share of real pictures inside some generated ball
    density    real balls that a generated picture lies in, over k         (Naeem et al. 2020, arXiv 2002.09797)
    coverage   share of real balls that hold a generated picture

"Inside" is nearer than r_k. Precision and density fall when pictures are bad, recall and coverage when they
are all alike. One real outlier has a large ball, so density and coverage are steadier than the first two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from promptcdm.errors import BadInput
from promptcdm.feature_pair import Rows, feature_pair


@dataclass(frozen=True)
class Manifold:
    """The four figures; density has no upper end, the others are shares."""

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(real: ArrayLike, generated: ArrayLike, k: int = 5) -> Manifold:
    """The figures of features (N, d) and (N, d). Raises BadInput as `feature_pair` does, and unless 1 <= k < N."""
    x, y = feature_pair(real, generated)
    _check_k(k, len(x))
    return _figures(_squared(x, x), _squared(y, y), _squared(x, y), k)


def manifold_left_out(
    real: ArrayLike, generated: ArrayLike, groups: NDArray[np.intp], k: int = 5
) -> list[Manifold]:
    """The figures without each group in turn, out of both sets; `groups` (N,) numbers them from 0."""
    x, y = feature_pair(real, generated)
    _check_k(k, len(x) - int(np.bincount(groups).max()))
    real_real, fake_fake, across = _squared(x, x), _squared(y, y), _squared(x, y)
    found = []
    for group in range(int(groups.max()) + 1):
        keep = np.ix_(groups != group, groups != group)
        found.append(_figures(real_real[keep], fake_fake[keep], across[keep], k))
    return found


def _check_k(k: int, n: int) -> None:
    if not 1 <= k < n:
        raise BadInput(f"{k} neighbours among {n} pictures; give 1 or more, and fewer than the pictures")


def _figures(real: Rows, generated: Rows, across: Rows, k: int) -> Manifold:
    """From squared distances (N, N): among the real, among the generated, and of real (rows) to generated."""
    # A row's smallest is the picture itself.
    r_real = np.partition(real, k, axis=1)[:, k]
    r_generated = np.partition(generated, k, axis=1)[:, k]
    in_real = across < r_real[:, None]
    in_generated = across < r_generated[None, :]
    return Manifold(
        precision=float(in_real.any(0).mean()),
        recall=float(in_generated.any(1).mean()),
        density=float(in_real.sum(0).mean() / k),
        coverage=float((across.min(1) < r_real).mean()),
    )


def _squared(x: Rows, y: Rows) -> Rows:
    """Squared distances (N, M)."""
    centre = x.mean(0)
    x, y = x - centre, y - centre
    lengths = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None, :]
    squared = lengths - 2 * x @ y.T
    # Equal rows must be at 0 and not at their rounding error, in which some are nearer than others.
    return np.where(squared > 1e-12 * lengths, squared, 0.0)
