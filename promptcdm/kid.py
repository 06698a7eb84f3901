"""Kernel distance with the kernel of KID (Bińkowski et al. 2018, arXiv 1801.01401), over all pairs.

    k(x, y) = (x.y / d + 1)^3        KID = the unbiased squared MMD of k

Published figures average it over random subsets of a thousand pictures; here every pair counts, so that it has
no seed and no least number of pictures. Tables show it times 1000, as papers do.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from promptcdm.feature_pair import Rows, feature_pair
from promptcdm.mmd import KernelSums


def unbiased_kid(real: ArrayLike, generated: ArrayLike) -> float:
    """KID of features (N, d) and (N, d), unscaled. Raises BadInput as `feature_pair` does."""
    x, y = feature_pair(real, generated)
    return KernelSums.of(_kernel, x, y, np.zeros(len(x), np.intp)).unbiased()


def kid_left_out(real: ArrayLike, generated: ArrayLike, groups: NDArray[np.intp]) -> list[float]:
    """KID without each group in turn, out of both sets; `groups` (N,) numbers them from 0."""
    sums = KernelSums.of(_kernel, *feature_pair(real, generated), groups)
    return [sums.without(group).unbiased() for group in range(len(sums.sizes))]


def _kernel(x: Rows, y: Rows) -> Rows:
    return np.asarray((x @ y.T / x.shape[1] + 1) ** 3)
