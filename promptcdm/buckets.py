"""Sizes of training pictures by aspect, so that little of a picture is cut off and a batch has one size.

Both sides are whole steps, the area is at most that of the square, and the longer side at most twice the square's. A
picture goes to the size whose aspect is nearest to its own, by the logarithm, so that 2:1 and 1:2 are alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from promptcdm.errors import BadInput

LONGEST = 2  # of the square's side


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


def bucket_sizes(side: int, step: int) -> tuple[Size, ...]:
    """All sizes for a square of `side` pixels, in steps of `step`, sorted; for each side the longest other one.

    Raises BadInput where `side` is no whole number of steps.
    """
    if side % step or side < step:
        raise BadInput(f"resolution is {side}; with buckets it takes a multiple of {step}, such as {step}")
    sizes = set()
    for width in range(step, LONGEST * side + 1, step):
        height = side * side // width // step * step
        if step <= height <= LONGEST * side:
            sizes |= {Size(width, height), Size(height, width)}
    return tuple(sorted(sizes))


def nearest_size(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """The size of the nearest aspect; of two equally near ones the larger, then the wider."""
    aspect = math.log(width / height)

    def distance(size: Size) -> tuple[float, int, int]:
        apart = abs(math.log(size.width / size.height) - aspect)
        return round(apart, 9), -size.width * size.height, -size.width

    return min(sizes, key=distance)


def grouped(pictures: Iterable[tuple[int, int]], sizes: Sequence[Size]) -> dict[Size, list[int]]:
    """Indices of the pictures (width, height) of each size that has any, in the order of sizes."""
    groups: dict[Size, list[int]] = {}
    for i, (width, height) in enumerate(pictures):
        groups.setdefault(nearest_size(width, height, sizes), []).append(i)
    return dict(sorted(groups.items()))


def share_cut(width: int, height: int, size: Size) -> float:
    """What share of a picture the crop to a size's aspect takes away."""
    ratio = width * size.height / (height * size.width)
    return 1 - min(ratio, 1 / ratio)
