"""The nearest training picture of each generated one, beside what training pictures are to each other.

    s(x)   largest cosine of x to a training picture          (M,)
    b(z)   the same for a training picture z, itself left out  (N,): the background

A similarity alone says little: pictures of one kind are alike whether or not one was copied. `closer` asks, picture by
picture, whether x is nearer to its training picture than any other training picture is (1 - AuthPct of Alaa et al.
2022, arXiv 2102.08921); real pictures that were never trained on show what it is without memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from promptcdm.errors import BadInput
from promptcdm.exact_share import share_interval
from promptcdm.feature_pair import Rows

QUANTILES = (0.5, 0.75, 0.9, 0.95)
BACKGROUND = 0.95  # quantile of the training pictures' own similarities above which a likeness is unusual
_AT_ONCE = 512


@dataclass(frozen=True)
class Nearest:
    """Of M pictures: the cosine to the nearest training picture, and its number."""

    similarity: NDArray[np.float64]  # (M,)
    index: NDArray[np.intp]  # (M,)


@dataclass(frozen=True)
class Share:
    """A share of pictures with its 95 % interval."""

    value: float
    interval: tuple[float, float]
    pictures: int


@dataclass(frozen=True)
class Likeness:
    """How near some pictures are to training pictures."""

    pictures: int
    mean: float
    quantiles: tuple[float, ...]  # at QUANTILES
    above: Share  # nearer than 95 % of the training pictures are to one another
    closer: (
        Share | None
    )  # nearer to their training picture than any other training picture is; not of training ones


def unit_rows(features: ArrayLike) -> Rows:
    """Rows (N, d) of length one. Raises BadInput where there is none, or one is zero or not finite."""
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or not len(rows):
        raise BadInput(f"the features have shape {rows.shape}; give (N, d) with N of 1 or more")
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(length).all() and (length > 0).all()):
        raise BadInput("a picture's features are zero or not finite; look at the pictures and the model")
    return np.asarray(rows / length)


def nearest(pictures: Rows, training: Rows) -> Nearest:
    """Nearest training picture of each of M pictures; both are unit rows. Of equals, the first."""
    return _nearest(pictures, training, own=False)


def nearest_other(training: Rows) -> Nearest:
    """Nearest other training picture of each training picture. Raises BadInput for fewer than two."""
    if len(training) < 2:
        raise BadInput(f"{len(training)} training picture; the background needs 2 or more")
    return _nearest(training, training, own=True)


def likeness(
    found: Nearest, background: Nearest, clusters: Sequence[str] | None = None, limit: float | None = None
) -> Likeness:
    """Figures of `found` against what the training pictures are to each other; `clusters` names each one's prompt.

    `limit` replaces the background's 95 % quantile. `found` may be the background itself.
    """
    above = usual_limit(background) if limit is None else limit
    quantiles = np.quantile(found.similarity, QUANTILES)
    nearer = found.similarity > background.similarity[found.index]
    return Likeness(
        len(found.similarity),
        float(found.similarity.mean()),
        tuple(float(value) for value in quantiles),
        share(found.similarity > above, clusters),
        None if found is background else share(nearer, clusters),
    )


def usual_limit(background: Nearest) -> float:
    """The similarity that 5 % of the training pictures have to another one."""
    return float(np.quantile(background.similarity, BACKGROUND))


def share(hits: ArrayLike, clusters: Sequence[str] | None = None) -> Share:
    """The share of hits (n,) with its interval."""
    hit = np.asarray(hits, dtype=bool)
    return Share(float(hit.mean()), share_interval(hit, clusters), len(hit))


def _nearest(pictures: Rows, training: Rows, *, own: bool) -> Nearest:
    similarity = np.empty(len(pictures))
    index = np.empty(len(pictures), np.intp)
    for start in range(0, len(pictures), _AT_ONCE):
        cosine = pictures[start : start + _AT_ONCE] @ training.T
        place = np.arange(len(cosine))
        if own:
            cosine[place, start + place] = -np.inf
        best = cosine.argmax(1)
        similarity[start : start + _AT_ONCE], index[start : start + _AT_ONCE] = cosine[place, best], best
    return Nearest(similarity, index)
