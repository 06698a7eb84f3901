"""Squared maximum mean discrepancy of two samples from sums of a kernel over groups (Gretton et al. 2012).

    unbiased   1/(n(n-1)) sum_{i != j} k(x_i, x_j) + 1/(n(n-1)) sum_{i != j} k(y_i, y_j) - 2/n^2 sum_{i,j} k(x_i, y_j)
    biased     the same with i = j counted, and 1/n^2 throughout

Every pair counts: nothing is drawn. The sums are kept by pairs of groups, so that the figure without one group
costs no kernel again; memory is one group of rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptcdm.feature_pair import Rows

Kernel = Callable[[Rows, Rows], Rows]  # (n, d), (m, d) -> (n, m)


@dataclass(frozen=True)
class KernelSums:
    """Sums of the kernel over pairs of groups, (G, G), over the pairs of a row with itself, (G,), and sizes."""

    xx: Rows
    yy: Rows
    xy: Rows
    own_x: NDArray[np.float64]
    own_y: NDArray[np.float64]
    sizes: NDArray[np.intp]

    @classmethod
    def of(cls, kernel: Kernel, x: Rows, y: Rows, groups: NDArray[np.intp]) -> KernelSums:
        """Sums over x (N, d) and y (N, d), whose row i lies in group `groups[i]`."""
        sizes = np.bincount(groups)
        own = [[kernel(row[None], row[None]).item() for row in rows] for rows in (x, y)]
        own_x, own_y = (np.bincount(groups, values).astype(np.float64) for values in own)
        xx, yy, xy = (_block_sums(kernel, a, b, groups) for a, b in ((x, x), (y, y), (x, y)))
        return cls(xx, yy, xy, own_x, own_y, sizes)

    def without(self, group: int) -> KernelSums:
        """The sums as if the group were in neither set."""
        keep = np.arange(len(self.sizes)) != group
        xx, yy, xy = (sums[np.ix_(keep, keep)] for sums in (self.xx, self.yy, self.xy))
        return KernelSums(xx, yy, xy, self.own_x[keep], self.own_y[keep], self.sizes[keep])

    def unbiased(self) -> float:
        """The U-statistic; its mean is the population's value, so it may be below 0."""
        n = int(self.sizes.sum())
        within = self.xx.sum() - self.own_x.sum() + self.yy.sum() - self.own_y.sum()
        return float(within / (n * (n - 1)) - 2 * self.xy.sum() / n**2)

    def biased(self) -> float:
        """The V-statistic; never below 0, and above the population's value by a share of 1/n."""
        n = int(self.sizes.sum())
        return float((self.xx.sum() + self.yy.sum() - 2 * self.xy.sum()) / n**2)


def _block_sums(kernel: Kernel, x: Rows, y: Rows, groups: NDArray[np.intp]) -> Rows:
    count = int(groups.max()) + 1
    rows = [np.bincount(groups, kernel(x[groups == g], y).sum(0), count) for g in range(count)]
    return np.stack(rows)
