"""A running average of the parameters, which is steadier than their last values.

    average <- d average + (1 - d) parameters,    d = min(decay, (1 + n) / (10 + n)) after n steps

The start is soon forgotten whatever the decay, as in diffusers' EMAModel, whose n is one less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


def copies(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of now."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def put(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Set the parameters to these values."""
    for name, parameter in parameters.items():
        parameter.data.copy_(values[name])


@torch.no_grad()
def update_average(
    average: Mapping[str, Tensor], parameters: Mapping[str, Tensor], step: int, decay: float
) -> None:
    """Move `average` after the step-th step, counted from 1."""
    d = min(decay, (1 + step) / (10 + step))
    for name, value in average.items():
        value.lerp_(parameters[name].detach(), 1 - d)


@contextmanager
def standing_in(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """The parameters have these values, and their own again afterwards; with no values they keep their own."""
    own = copies(parameters) if values else {}
    if values:
        put(parameters, values)
    try:
        yield
    finally:
        if own:
            put(parameters, own)
