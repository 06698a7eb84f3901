"""Two systems on the same prompts: their difference, its interval, and how easily chance gives one as large.

    d_k          sum over the pictures of prompt k of (score of A - score of B)
    difference = sum of d_k / number of pictures
    interval     percentile bootstrap over prompts
    p            share of all ways to flip the signs of the d_k whose |difference| is at least the observed

The prompts are paired, so that a hard prompt, hard for both, adds no noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from promptcdm.errors import BadInput
from promptcdm.intervals import Floats, cluster_interval, cluster_places

_ALL_FLIPS = 14  # up to so many prompts every way to flip is tried, and p is exact
_FLIPS = 10_000
_FLIPS_AT_ONCE = 500


@dataclass(frozen=True)
class Paired:
    """How much higher A scores than B."""

    difference: float
    interval: tuple[float, float]  # 95 %
    p: float  # two-sided, by sign flips of prompts
    pictures: int  # ids that both have a score of
    prompts: int
    left_out: tuple[str, ...]  # ids that only one of them has a score of


def compare(
    a: Mapping[str, float], b: Mapping[str, float], prompts: Mapping[str, str] | None = None, *, seed: int = 0
) -> Paired:
    """Compare scores by id; `prompts` is {id: prompt}, and without it each id is a prompt of its own.

    Raises BadInput where no id is in both, or one of them has no prompt.
    """
    common = [id for id in a if id in b]
    if not common:
        raise BadInput("the two systems have no id in common; compare scores of the same questions")
    lacking = [id for id in common if prompts is not None and id not in prompts]
    if prompts is not None and lacking:
        raise BadInput(f"id {lacking[0]!r} has no prompt; give one for each id, or none at all")
    clusters = [id if prompts is None else prompts[id] for id in common]
    differences = np.asarray([a[id] - b[id] for id in common])
    member, count = cluster_places(clusters)
    return Paired(
        difference=float(differences.mean()),
        interval=cluster_interval(list(differences), clusters, seed=seed),
        p=_flipped(np.bincount(member, differences, count).astype(np.float64), seed),
        pictures=len(common),
        prompts=count,
        left_out=tuple([id for id in a if id not in b] + [id for id in b if id not in a]),
    )


def _flipped(sums: Floats, seed: int) -> float:
    """p of the sum of these values under flips of their signs."""
    # Sums that are equal but for rounding count as equal.
    least = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    exact = len(sums) <= _ALL_FLIPS
    signs = _every_sign(len(sums)) if exact else _drawn_signs(len(sums), seed)
    as_large = sum(int((np.abs(part @ sums) >= least).sum()) for part in signs)
    # A drawn p counts the observed signs too, since a p of 0 would claim more than the draws can show.
    return as_large / 2 ** len(sums) if exact else (as_large + 1) / (_FLIPS + 1)


def _every_sign(count: int) -> Iterator[Floats]:
    numbers = np.arange(2**count)[:, None]
    yield (1 - 2 * ((numbers >> np.arange(count)) & 1)).astype(np.float64)


def _drawn_signs(count: int, seed: int) -> Iterator[Floats]:
    generator = np.random.default_rng(seed)
    for _ in range(_FLIPS // _FLIPS_AT_ONCE):
        yield (1 - 2 * generator.integers(0, 2, size=(_FLIPS_AT_ONCE, count))).astype(np.float64)
