"""A 95 % interval by leaving out one group of pictures at a time: the delete-group jackknife.

    se^2 = (G - 1) / G sum_g (theta_(-g) - mean theta_(-g))^2        theta +- t_(G-1) se,  G = 20

Row i of the real and of the generated pictures are in the same group and leave together: the two samples are
independent, so the spread that each adds is in the sum.

Not the bootstrap: drawing N of N with replacement leaves 63 % distinct pictures. A Fréchet distance grows as
pictures become fewer, so that every draw lies above the figure and the interval may not hold it. Here no picture
counts twice, and the figures without a group all have the same N, whose effect their mean takes away.
A group holds several pictures, which also makes the interval usable for nearest-neighbour figures, where leaving
out one at a time fails (Shao and Wu 1989).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from promptcdm.errors import BadInput

GROUPS = 20
LEAST = 2 * GROUPS  # pictures of which groups are made
_T = 2.0930  # Student's t with 19 degrees of freedom, 97.5 %


def jackknife_groups(n: int, seed: int = 0) -> NDArray[np.intp]:
    """A group for each of n rows, (n,): 20 groups by chance, of sizes that differ by one at most.

    Raises BadInput for fewer than 40 rows.
    """
    if n < LEAST:
        raise BadInput(f"{n} pictures; an interval needs {LEAST} or more of each kind")
    groups = np.arange(n, dtype=np.intp) % GROUPS
    return np.random.default_rng(seed).permutation(groups)


def jackknife_interval(estimate: float, left_out: Sequence[float]) -> tuple[float, float]:
    """The interval of the figure whose values without each group are `left_out`, (20,)."""
    values = np.asarray(left_out, dtype=np.float64)
    if len(values) != GROUPS:
        raise BadInput(f"{len(values)} figures without a group; give {GROUPS}")
    error = _T * float(np.sqrt((GROUPS - 1) / GROUPS * np.square(values - values.mean()).sum()))
    return estimate - error, estimate + error
