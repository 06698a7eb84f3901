"""An interval of a share that holds at 0 and 1 too, and where pictures of one prompt hang together.

    Clopper and Pearson 1934      k of n:  quantiles of Beta(k, n - k + 1) and of Beta(k + 1, n - k)
    Korn and Graubard 1998        the same with n / deff and k / deff, where items come in clusters

deff is the variance of the share over clusters divided by the one of independent items, and never taken below 1. At a
share of 0 or 1 no variance is seen: every cluster then counts as one item, which is the careful end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from promptcdm.errors import BadInput
from promptcdm.intervals import cluster_places

_HALVINGS = 60
_TINY = 1e-300


def share_interval(
    hits: ArrayLike, clusters: Sequence[str] | None = None, *, level: float = 0.95
) -> tuple[float, float]:
    """The interval of the share of `hits` (n,), true or false; `clusters` names each item's, else each is its own.

    Raises BadInput where there is no item.
    """
    hit = np.asarray(hits, dtype=bool)
    if not len(hit):
        raise BadInput("a share of no items; give one or more")
    share = float(hit.mean())
    n = float(len(hit)) if clusters is None else effective_size(hit, clusters)
    return exact_interval(share * n, n, level=level)


def effective_size(hits: ArrayLike, clusters: Sequence[str]) -> float:
    """n / deff: how many independent items would say as much about the share."""
    hit = np.asarray(hits, dtype=np.float64)
    member, count = cluster_places(clusters)
    if count == len(hit):
        return float(count)
    share, n = float(hit.mean()), len(hit)
    if share in (0.0, 1.0) or count < 2:
        return float(count)
    off = np.bincount(member, hit - share, count)
    variance = float(np.square(off).sum()) * count / (count - 1) / n**2
    deff = max(variance / (share * (1 - share) / n), 1.0)
    return n / deff


def exact_interval(k: float, n: float, *, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of k of n, neither of which need be whole."""
    tail = (1 - level) / 2
    low = 0.0 if k <= 0 else beta_quantile(tail, k, n - k + 1)
    high = 1.0 if k >= n else beta_quantile(1 - tail, k + 1, n - k)
    return low, high


def beta_quantile(q: float, a: float, b: float) -> float:
    """The x at which a share q of Beta(a, b) lies below, by halving."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_share(middle, a, b) < q else (low, middle)
    return (low + high) / 2


def beta_share(x: float, a: float, b: float) -> float:
    """The share of Beta(a, b) below x: the regularised incomplete beta function, by its continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1 - beta_share(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / (a * _fraction(x, a, b))


def _fraction(x: float, a: float, b: float) -> float:
    """1 + d_1 / (1 + d_2 / (1 + ...)) of Abramowitz and Stegun 26.5.8, by Lentz's method."""
    c, d = 1.0, 0.0
    value = 1.0
    for m in range(1, 1000):
        half = m // 2
        if m % 2:
            term = -(a + half) * (a + b + half) * x / ((a + m - 1) * (a + m))
        else:
            term = half * (b - half) * x / ((a + m - 1) * (a + m))
        d = 1 / ((1 + term * d) or _TINY)
        c = (1 + term / c) or _TINY
        value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value
