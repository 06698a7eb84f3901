"""Which predictions stand in the sum of equation (1): one a source, and of a source in slices one a slice.

The pictures of source i are those of its slices together, so its own predictor is a sum like equation (1) inside it:

    eps_i = sum_j v_ij eps_ij,     v_ij = n_ij / n_i      n_ij pictures of slice j, n_i of the source
    eps   = sum_i w_i eps_i        w as ever: the router weighs sources and knows of no slice

    T    terms: slices of all sources        acting    the terms that were run, by their numbers
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptcdm.adapter import Adapter


@dataclass(frozen=True)
class Terms:
    """The terms of N sources, source by source."""

    adapters: tuple[Adapter, ...]  # T of them
    owner: tuple[int, ...]  # (T,) the number of each term's source
    share: tuple[float, ...]  # (T,) of its source's pictures

    def of_sources(self, by_source: Tensor) -> Tensor:
        """(n, N) of the sources as (n, T) of the terms."""
        return by_source[:, list(self.owner)]

    def sources(self, acting: Sequence[int]) -> list[int]:
        """The sources of these terms, ascending."""
        return sorted({self.owner[term] for term in acting})

    def within_sources(self, eps: Tensor, acting: Sequence[int]) -> Tensor:
        """eps_i (acting sources, B, C, H, W) from the predictions of their terms (acting terms, B, C, H, W)."""
        owners = [self.owner[term] for term in acting]
        sources = self.sources(acting)
        if len(sources) == len(acting):
            return eps  # no source is in slices
        v = eps.new_zeros(len(sources), len(acting))
        for place, (term, owner) in enumerate(zip(acting, owners, strict=True)):
            v[sources.index(owner), place] = self.share[term]
        # Not one product of v and eps: a zero there would let the NaN of another source's term pass.
        return torch.stack([torch.tensordot(row[row > 0], eps[row > 0], dims=1) for row in v])


def terms_of(adapters: Sequence[Adapter]) -> Terms:
    """The terms of these sources."""
    found = [
        (term, i, term.record.items / adapter.record.items if adapter.slices else 1.0)
        for i, adapter in enumerate(adapters)
        for term in (adapter.slices or (adapter,))
    ]
    return Terms(tuple(f[0] for f in found), tuple(f[1] for f in found), tuple(f[2] for f in found))
