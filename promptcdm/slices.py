"""A source in k slices: each picture belongs to one, by its content alone.

    slice of an item = sha256 of its pixels, as a number, mod k

Which slice a picture is in depends on no other picture, so adding or removing one touches one slice. All exact copies
of a picture are in the same slice, whatever their files and captions: to forget it is to train one slice again.
"""

from __future__ import annotations

from dataclasses import replace

from promptcdm.errors import BadInput
from promptcdm.source import Source


def slice_number(pixels_sha256: str, k: int) -> int:
    """0 to k - 1, from the digest (hex) of a picture's pixels."""
    return int(pixels_sha256, 16) % k


def slices_of(source: Source, k: int) -> dict[int, Source]:
    """The slices of `source` by number, ascending; a slice that no picture falls into is left out.

    Raises BadInput unless k is 1 or more.
    """
    if k < 1:
        raise BadInput(f"slices is {k}; it takes 1 (one whole) or more")
    found: dict[int, Source] = {}
    numbers = [slice_number(item.pixels_sha256, k) for item in source.items]
    for number in sorted(set(numbers)):
        items = tuple(item for item, own in zip(source.items, numbers, strict=True) if own == number)
        found[number] = replace(source, items=items)
    return found
