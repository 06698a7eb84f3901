"""A running average, against its closed form and diffusers' EMAModel."""

from __future__ import annotations

import math

import pytest
import torch

from promptcdm.weight_average import copies, standing_in, update_average


def test_after_equal_values_it_is_that_value() -> None:
    parameters = {"a": torch.tensor([3.0, -1.0])}
    average = copies(parameters)
    for step in range(1, 50):
        update_average(average, parameters, step, 0.9)
    assert torch.allclose(average["a"], parameters["a"])


def test_the_weights_of_the_steps_are_those_of_the_closed_form() -> None:
    values = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    average = {"a": torch.zeros(1, dtype=torch.float64)}
    for step, value in enumerate(values, 1):
        update_average(average, {"a": value[None]}, step, 0.6)
    decay = [min(0.6, (1 + n) / (10 + n)) for n in range(1, 31)]
    wanted = sum(float(value) * (1 - decay[i]) * math.prod(decay[i + 1 :]) for i, value in enumerate(values))
    assert float(average["a"]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.model  # importing diffusers takes seconds
def test_it_is_what_diffusers_averages() -> None:
    """EMAModel counts its own steps from 0, and leaves out the first."""
    from diffusers.training_utils import EMAModel

    parameter = torch.nn.Parameter(torch.randn(4, generator=torch.Generator().manual_seed(1)))
    theirs, ours = EMAModel([parameter], decay=0.8, use_ema_warmup=False), copies({"a": parameter})
    for step in range(20):
        parameter.data += torch.sin(torch.arange(4.0) + step)
        theirs.step([parameter])
        if step == 0:
            ours = copies({"a": parameter})
        else:
            update_average(ours, {"a": parameter}, step, 0.8)
    assert torch.allclose(ours["a"], theirs.shadow_params[0], atol=1e-6)


def test_other_values_stand_in_for_a_while_and_none_change_nothing() -> None:
    parameters = {"a": torch.nn.Parameter(torch.ones(2))}
    with standing_in(parameters, {"a": torch.zeros(2)}):
        assert parameters["a"].tolist() == [0, 0]
    assert parameters["a"].tolist() == [1, 1]
    with standing_in(parameters, {}):
        assert parameters["a"].tolist() == [1, 1]
