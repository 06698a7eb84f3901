"""Shares of a picture for its sources: an account by a stated rule, which is no proof of what caused what.

    v(S) = log(p_0(x) + sum over S of p_i(x))       p_i the densities of the sources, p_0 of the bare backbone

Shapley values of this game are the shares. It asks how much better the sources S explain a picture than the backbone
does alone. Adding a source never lowers v, so every value is at least 0, and together they are v(all) - v(none). What
two sources explain equally well is split between them, where a posterior gives it all to the better one, since log
densities differ by hundreds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from promptcdm.errors import BadInput

MAX_PLAYERS = 16  # the values are exact, over all 2^n sets
UNITS = 1_000_000  # a picture


def shapley(log_density: Sequence[float]) -> list[float]:
    """Shapley values, in nats, of N sources' log p_i(x) - log p_0(x).

    Raises BadInput for more than 16 sources.
    """
    n = len(log_density)
    if n > MAX_PLAYERS:
        raise BadInput(
            f"Shapley values of {n} sources; at most {MAX_PLAYERS} are accepted, so allow fewer or use --method weights"
        )
    value = _value_of_sets(log_density)
    sets = np.arange(2**n)
    size = np.array([int(s).bit_count() for s in sets])
    # The share of all orders in which exactly a given set of k stands before a player: k! (n - k - 1)! / n!
    share = np.array([1 / (n * math.comb(n - 1, k)) for k in range(n)])
    values = []
    for i in range(n):
        without = sets[(sets >> i) & 1 == 0]
        gain = value[without | (1 << i)] - value[without]
        values.append(float((share[size[without]] * gain).sum()))
    return values


def explained(log_density: Sequence[float]) -> float:
    """1 - p(0 | x): the posterior that a picture is some source's rather than the bare backbone's."""
    return -math.expm1(-float(_value_of_sets(log_density)[-1]))


def _value_of_sets(log_density: Sequence[float]) -> NDArray[np.float64]:
    """v of all 2^n sets over v(none); bit i of a set's number says whether source i is in it."""
    value = np.zeros(1)
    for each in log_density:
        value = np.concatenate([value, np.logaddexp(value, each)])
    return value


def whole_shares(amounts: Mapping[str, float], units: int = UNITS) -> dict[str, int]:
    """Amounts of at least 0 as whole numbers that sum to `units`, by the method of largest remainders.

    Computed in exact fractions; equal remainders go by name. So the result depends neither on the order nor on the
    machine. Raises BadInput for amounts that are negative, no numbers, or all 0.
    """
    wrong = [name for name, amount in amounts.items() if not (math.isfinite(amount) and amount >= 0)]
    if wrong:
        raise BadInput(f"the amount of {wrong[0]} is {amounts[wrong[0]]}; it takes a number of at least 0")
    if units < 1:
        raise BadInput(f"units is {units}; it takes 1 or more")
    exact = {name: Fraction(amount) for name, amount in amounts.items()}
    total = sum(exact.values())
    if not total:
        raise BadInput("all amounts are 0; a share of nothing is not defined")
    quota = {name: amount * units / total for name, amount in exact.items()}
    shares = {name: math.floor(q) for name, q in quota.items()}
    by_remainder = sorted(quota, key=lambda name: (shares[name] - quota[name], name))
    for name in by_remainder[: units - sum(shares.values())]:
        shares[name] += 1
    return shares
