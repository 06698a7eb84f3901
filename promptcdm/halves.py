"""A batch that is too large for the device's memory, done in halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Given = TypeVar("Given")
Found = TypeVar("Found")


def in_halves(
    work: Callable[[Sequence[Given]], list[Found]], batch: Sequence[Given], alone: Exception
) -> list[Found]:
    """What `work` returns for the batch, or for each half of it where all is too much, in order.

    Raises `alone` where one item by itself is too much.
    """
    try:
        return work(batch)
    except torch.cuda.OutOfMemoryError as error:
        if len(batch) == 1:
            raise alone from error
    middle = len(batch) // 2
    return [*in_halves(work, batch[:middle], alone), *in_halves(work, batch[middle:], alone)]
