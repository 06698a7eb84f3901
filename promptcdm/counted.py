"""Which whole numbers there are, and how often each: two int64 tensors (K,), numbers ascending, counts above 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Counted = tuple[Tensor, Tensor]


def summed(parts: Sequence[Counted]) -> Counted:
    """The counts of all parts together."""
    numbers, place = torch.unique(torch.cat([part[0] for part in parts]), return_inverse=True)
    counts = torch.cat([part[1] for part in parts])
    return numbers, torch.zeros_like(numbers).index_add_(0, place, counts)


def is_counted(numbers: Tensor, counts: Tensor) -> bool:
    """Whether these two are what this file says."""
    return (
        numbers.dtype == counts.dtype == torch.int64
        and numbers.ndim == 1
        and numbers.shape == counts.shape
        and bool((numbers.diff() > 0).all())
        and bool((counts > 0).all())
    )
