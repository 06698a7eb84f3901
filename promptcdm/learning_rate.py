"""The learning rate of a step as a share of the setting: a warm-up, then constant, linear to 0 or a cosine to 0.

A function of the step alone, so that there is nothing to store and nothing to restore. diffusers' schedulers differ in
two places: their first step has a rate of 0, and their cosine begins where the warm-up ends.
"""

from __future__ import annotations

import math

from promptcdm.settings import TrainSettings


def rate_share(step: int, settings: TrainSettings) -> float:
    """In 0 to 1, for steps counted from 0."""
    warm_up = max(1, int(settings.steps * settings.lr_warmup))
    done = step / settings.steps
    after = {
        "cosine": 0.5 * (1 + math.cos(math.pi * step / settings.steps)),
        "linear": 1 - done,
        "constant": 1.0,
    }
    return min((step + 1) / warm_up, after[settings.lr_scheduler])
