"""Does a generated picture's nearest training picture lie in a source that was switched off?

    off      sources that a picture was not allowed to use     (M, S)
    share    of pictures whose nearest training picture lies in one of its off sources
    chance   the off sources' share of the training pictures: what a blind draw gives
    real     what training pictures of the allowed sources get themselves, each left out in turn

Sources draw the same things in like ways, so `real` is above 0 without any leak, and often far below chance. A share
above `real` says that pictures look more like what they were denied than the allowed sources' own pictures do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptcdm.errors import BadInput
from promptcdm.nearest import Share, share

Bools = NDArray[np.bool_]
Places = NDArray[np.intp]


@dataclass(frozen=True)
class OffShare:
    """The share with what it is read beside."""

    share: Share
    chance: float
    real: float


def off_share(
    nearest_source: Places,
    off: Bools,
    training_source: Places,
    other_source: Places,
    clusters: Sequence[str] | None = None,
) -> OffShare:
    """The figures of M generated and N training pictures in S sources.

    `nearest_source` (M,) is the source of each one's nearest training picture, `off` (M, S), `training_source` (N,) the
    training pictures' sources and `other_source` (N,) that of each one's nearest other. `clusters` names prompts.
    Raises BadInput where a picture has every source, or none, switched off.
    """
    if not (off.any(1) & ~off.all(1)).all():
        raise BadInput("a picture with no source switched off, or with all of them; leave it out")
    sizes = np.bincount(training_source, minlength=off.shape[1]).astype(np.float64)
    toward = neighbour_counts(training_source, other_source, off.shape[1])
    hits = off[np.arange(len(off)), nearest_source]
    chance = (off * sizes).sum(1) / sizes.sum()
    crossing = np.einsum("ms,st,mt->m", ~off, toward, off) / (~off * sizes).sum(1)
    return OffShare(share(hits, clusters), float(chance.mean()), float(crossing.mean()))


def neighbour_counts(training_source: Places, other_source: Places, sources: int) -> NDArray[np.float64]:
    """(S, S): training pictures of the row's source whose nearest other picture lies in the column's."""
    counts = np.zeros((sources, sources))
    np.add.at(counts, (training_source, other_source), 1.0)
    return counts
