"""Figures of systems with their intervals: prompts are drawn with all that hangs on them, training seeds beside them.

    mean            of scores by prompt and seed, (S, P)
    difference      A minus B on the same prompts
    gain            A / B - 1, in which a hard prompt is hard for both

95 % percentile intervals over 2,000 draws. A prompt is drawn as a whole; where there are several training seeds, these
are drawn as well, each system's by themselves: no seed of one system is a partner of another's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptcdm.intervals import DRAWS, percentile_interval

Scores = NDArray[np.float64]  # (S, P): training seeds, prompts


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    def record(self) -> dict[str, float]:
        """As columns."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def columns(self, name: str) -> dict[str, float]:
        """As columns of a wider table: `name`, `name_low`, `name_high`."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def mean(scores: Scores, seed: int = 0) -> Estimate:
    """The mean of (S, P)."""
    return _estimate(float(scores.mean()), _resampled([scores], seed)[:, 0])


def difference(a: Scores, b: Scores, seed: int = 0) -> Estimate:
    """Mean of A minus mean of B, paired by prompt."""
    drawn = _resampled([a, b], seed)
    return _estimate(float(a.mean() - b.mean()), drawn[:, 0] - drawn[:, 1])


def gain(a: Scores, b: Scores, seed: int = 0) -> Estimate:
    """Mean of A over mean of B, minus 1; NaN where B has nothing."""
    drawn = _resampled([a, b], seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = drawn[:, 0] / drawn[:, 1] - 1
    value = float(a.mean() / b.mean() - 1) if b.mean() > 0 else float("nan")
    return _estimate(value, ratios)


def _resampled(scores: list[Scores], seed: int) -> Scores:
    """Means (draws, systems): the same prompts for all, seeds of each by themselves."""
    draw, prompts = np.random.default_rng(seed), scores[0].shape[1]
    chosen = draw.integers(0, prompts, (DRAWS, prompts))
    found = []
    for each in scores:
        seeds = draw.integers(0, len(each), (DRAWS, len(each)))
        times = np.stack([np.bincount(row, minlength=len(each)) for row in seeds]) / len(each)
        by_prompt = times @ each  # (draws, P): the mean over the drawn seeds
        found.append(np.take_along_axis(by_prompt, chosen, 1).mean(1))
    return np.stack(found, 1)


def _estimate(value: float, drawn: Scores) -> Estimate:
    return Estimate(value, *percentile_interval(drawn))
