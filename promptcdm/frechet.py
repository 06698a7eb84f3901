"""Fréchet distance of two sets of features, each taken as a Gaussian (Heusel et al. 2017, arXiv 1706.08500).

    FD = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)                     S with N - 1
    tr (S_1 S_2)^(1/2) = || F_1 F_2^T ||_*    for any F_i (r_i, d) with F_i^T F_i = S_i                  (1)

(1) is the nuclear norm, the sum of singular values. It needs no square root of a matrix, and no d x d matrix
where N < d: there F is the centred features themselves, else their triangle R of a QR decomposition. The
singular values of F_1 F_2^T are exact to rounding, where eigenvalues of S_1 S_2 lose half of the digits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from promptcdm.feature_pair import Rows, feature_pair


def frechet_distance(real: ArrayLike, generated: ArrayLike) -> float:
    """FD of features (N, d) and (N, d). Raises BadInput as `feature_pair` does."""
    return _distance(*feature_pair(real, generated))


def frechet_left_out(real: ArrayLike, generated: ArrayLike, groups: NDArray[np.intp]) -> list[float]:
    """FD without each group in turn, out of both sets; `groups` (N,) numbers them from 0."""
    x, y = feature_pair(real, generated)
    return [_distance(x[groups != g], y[groups != g]) for g in range(int(groups.max()) + 1)]


def _distance(x: Rows, y: Rows) -> float:
    means = x.mean(0), y.mean(0)
    first, second = (_factor(rows - mean) for rows, mean in zip((x, y), means, strict=True))
    apart = np.square(means[0] - means[1]).sum()
    spread = np.square(first).sum() + np.square(second).sum()
    shared = np.linalg.svd(first @ second.T, compute_uv=False).sum()
    return max(float(apart + spread - 2 * shared), 0.0)  # rounding may leave -1e-15


def _factor(centred: Rows) -> Rows:
    """F of equation (1), (min(N, d), d)."""
    n, d = centred.shape
    scaled: Rows = centred / np.sqrt(n - 1)
    return scaled if n <= d else np.asarray(np.linalg.qr(scaled, mode="r"))
