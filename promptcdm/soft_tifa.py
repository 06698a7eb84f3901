"""Soft-TIFA's two scores (of GenEval 2, December 2025): probabilities in the place of 0 and 1.

s_q in [0, 1]       the judge's probability of the answer
AM(caption) = mean of s_q              credit for every part of the prompt
GM(caption) = (product of s_q)^(1/n)   one part that is not there takes nearly all of it
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from promptcdm.verdict import Scored, Value, mean_by_caption, scored_by


def arithmetic(values: Sequence[Value]) -> Scored:
    """AM of each caption."""
    return mean_by_caption(values)


def geometric(values: Sequence[Value]) -> Scored:
    """GM of each caption; 0 where one s_q is 0."""
    return scored_by(values, _geometric_mean)


def _geometric_mean(values: Sequence[float]) -> float:
    if min(values) <= 0:
        return 0.0
    return math.exp(statistics.fmean(map(math.log, values)))
