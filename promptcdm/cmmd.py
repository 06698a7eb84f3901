"""CMMD's distance (Jayasumana et al. 2024, arXiv 2401.09603), as its authors' program computes it.

    k(x, y) = exp(-|x - y|^2 / (2 sigma^2)), sigma = 10, on features of length 1
    CMMD = 1000 times the biased squared MMD of k

The published figure takes CLIP ViT-L/14 at 336 px. Since the pairs of a picture with itself are counted, real
against real is not 0 but falls as 1/N.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from promptcdm.errors import BadInput
from promptcdm.feature_pair import Rows, feature_pair
from promptcdm.mmd import KernelSums

SIGMA = 10.0
SCALE = 1000.0


def cmmd(real: ArrayLike, generated: ArrayLike) -> float:
    """CMMD of features (N, d) and (N, d), of any length.

    Raises BadInput as `feature_pair` does, and for a row of zeros.
    """
    x, y = _unit_pair(real, generated)
    return SCALE * KernelSums.of(_kernel, x, y, np.zeros(len(x), np.intp)).biased()


def cmmd_left_out(real: ArrayLike, generated: ArrayLike, groups: NDArray[np.intp]) -> list[float]:
    """CMMD without each group in turn, out of both sets; `groups` (N,) numbers them from 0."""
    sums = KernelSums.of(_kernel, *_unit_pair(real, generated), groups)
    return [SCALE * sums.without(group).biased() for group in range(len(sums.sizes))]


def _kernel(x: Rows, y: Rows) -> Rows:
    # Rows have length 1: |x - y|^2 = 2 - 2 x.y
    return np.asarray(np.exp((x @ y.T - 1) / SIGMA**2))


def _unit_pair(real: ArrayLike, generated: ArrayLike) -> tuple[Rows, Rows]:
    x, y = feature_pair(real, generated)
    lengths = [np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y)]
    if min(length.min() for length in lengths) == 0:
        raise BadInput("a picture has features that are all 0, which have no direction; use another model")
    return x / lengths[0], y / lengths[1]
