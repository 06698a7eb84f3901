"""The learning rate of a step, against its closed form and diffusers' schedulers."""

from __future__ import annotations

import math

import pytest
import torch

from promptcdm.learning_rate import rate_share
from promptcdm.settings import RateSchedule, TrainSettings


@pytest.mark.parametrize("steps", [1, 7, 19, 20, 60, 500])
def test_the_default_is_the_formula_that_adapters_were_trained_with(steps: int) -> None:
    for step in range(steps):
        warm_up = max(1, steps // 20)
        formula = min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))
        assert rate_share(step, TrainSettings(steps=steps)) == formula


def test_a_warm_up_of_five_per_cent_is_whole_steps_whatever_their_number() -> None:
    assert all(int(steps * 0.05) == steps // 20 for steps in range(100_000))


@pytest.mark.model  # importing diffusers takes seconds
@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_without_a_warm_up_it_is_diffusers_scheduler(name: RateSchedule) -> None:
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=30)
    settings = TrainSettings(steps=30, lr_scheduler=name, lr_warmup=0.0)
    for step in range(30):
        assert rate_share(step, settings) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_warm_up_rises_by_equal_steps_to_the_whole_rate() -> None:
    settings = TrainSettings(steps=10, lr_scheduler="constant", lr_warmup=0.4)
    assert [rate_share(step, settings) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
