"""Routers: the weights w_i = p(i | x_t, c) of equation (1), from what each source computed about itself alone.

A router is a pure function and the state before its first call. The allowed set is chosen before any softmax is taken.

    x_t        noisy latents of the conditional rows        (B, C, H, W)
    alpha_bar  share of signal left, continuous in (0, 1]   (B,);  x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps
    eps        each source's conditional, unguided noise    (N, B, C, H, W), or None where `needs_eps` is false
    w          weights, summing to one over N               (B, N), or one for each place (B, N, H, W)

    uniform    1 / N                                                  a fixed mixture
    prior      share of pictures                                      p(i)
    prompt     its captions against the prompt (`prompt_prior`)       pi_i(c)
    posterior  pi_i(c) N(x_t; mean_i, covariance_i)^(1 / T)           p(i | x_t, c) for Gaussian sources

Every one is an approximation of p(i | x_t, c): `posterior` knows p_i(x_t), not p_i(x_t | c), and a Gaussian is not a
source of pictures. The temperature tempers the likelihood alone; other than 1 it is not the mixture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from promptcdm.errors import BadInput

Route = Callable[[Any, Tensor, Tensor, Tensor | None], tuple[Tensor, Any]]
Temperatures = tuple[tuple[float, float], ...]  # (log-SNR, T), ascending

# Fitted on topics of the backbone's own pictures taken as pseudo-sources (examples/nano/temperature.py), then frozen: a
# value tuned on the sources would outlive forgetting them.
# Clean latents are far from independent, so their density is much too sure; noise makes them independent.
POSTERIOR_TEMPERATURES: Temperatures = (
    (-6.0, 3.08),
    (-4.0, 3.29),
    (-2.0, 7.78),
    (0.0, 34.02),
    (2.0, 113.22),
    (4.0, 209.17),
    (6.0, 241.27),
)


@dataclass(frozen=True)
class Router:
    """`route(state, x_t, alpha_bar, eps) -> (w, state)`, and the state before the first call of a run.

    `route` is pure: nothing is kept but what it returns. `needs_eps` asks for every source's prediction at every call.
    """

    route: Route
    start: Any = None
    needs_eps: bool = False


class LatentStatistics(Protocol):
    """What one source says of its latents: `promptcdm.adapter.Statistics` is one."""

    @property
    def latent_mean(self) -> Tensor:
        """(C, G, G) of clean latents, pooled to a G x G grid."""

    @property
    def latent_var(self) -> Tensor:
        """(C, G, G), what the factor leaves."""

    @property
    def latent_factor(self) -> Tensor | None:
        """(k, C, G, G): covariance = diag(latent_var) + F^T F; None for a diagonal one."""


@dataclass(frozen=True)
class SourceStatistics:
    """What `posterior` knows of N sources, stacked in the order of `allowed`. Raises BadInput where shapes disagree."""

    latent_mean: Tensor  # (N, C, G, G) of clean latents, pooled to a G x G grid
    latent_var: Tensor  # (N, C, G, G)
    latent_factor: Tensor | None = None  # (N, k, C, G, G): covariance_i = diag(var_i) + F_i^T F_i

    def __post_init__(self) -> None:
        mean, var, factor = self.latent_mean, self.latent_var, self.latent_factor
        if mean.ndim != 4 or var.shape != mean.shape:
            raise BadInput(
                f"latent_mean {tuple(mean.shape)} and latent_var {tuple(var.shape)} must both be (N, C, G, G)"
            )
        if factor is not None and (factor.ndim != 5 or factor[:, 0].shape != mean.shape):
            raise BadInput(
                f"latent_factor {tuple(factor.shape)} must be (N, k, C, G, G) with k of at least 1, "
                f"for latent_mean {tuple(mean.shape)}"
            )


def stack_statistics(known: Sequence[LatentStatistics]) -> SourceStatistics:
    """Stack N sources' own statistics; a source without a factor has one of zeros where others have one.

    Raises BadInput where two sources' latents differ in shape.
    """
    shapes = {tuple(t.shape) for s in known for t in (s.latent_mean, s.latent_var)}
    if len(shapes) != 1:
        raise BadInput(f"the sources' latent statistics have shapes {sorted(shapes)}; one shape is accepted")
    mean = torch.stack([s.latent_mean for s in known])
    var = torch.stack([s.latent_var for s in known])
    factors = [
        mean.new_zeros(0, *mean.shape[1:]) if s.latent_factor is None else s.latent_factor for s in known
    ]
    rank = max(len(factor) for factor in factors)
    if not rank:
        return SourceStatistics(mean, var)
    for factor in factors:
        if factor.shape[1:] != mean.shape[1:]:
            raise BadInput(f"latent_factor {tuple(factor.shape)} must be (k, *{tuple(mean.shape[1:])})")
    padded = [torch.cat([f, f.new_zeros(rank - len(f), *f.shape[1:])]) for f in factors]
    return SourceStatistics(mean, var, torch.stack(padded))


def on_device(statistics: SourceStatistics, device: torch.device) -> SourceStatistics:
    """The same statistics on another device."""
    factor = statistics.latent_factor
    return SourceStatistics(
        statistics.latent_mean.to(device),
        statistics.latent_var.to(device),
        None if factor is None else factor.to(device),
    )


def uniform_router(n: int) -> Router:
    """w_i = 1 / N."""

    def route(state: Any, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, Any]:
        return x_t.new_full((len(x_t), n), 1.0 / n, dtype=torch.float32), state

    return Router(route)


def prior_router(prior: Tensor) -> Router:
    """w = prior, (N,) or (prompts, N), whatever x_t is."""

    def route(state: Any, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, Any]:
        return per_row(prior, len(x_t)), state

    return Router(route)


def share_prior(count: Tensor) -> Tensor:
    """p(i): each source's share of the pictures, (N,)."""
    return count.float() / count.sum()


def posterior_router(
    statistics: SourceStatistics, prior: Tensor, temperature: float | Temperatures = POSTERIOR_TEMPERATURES
) -> Router:
    """w ∝ pi_i p_i(x_t)^(1 / T), with `log_densities` for p_i and `temperature_at` for T; equals `prior` in pure noise.

    `prior` is (N,) or (prompts, N). T = 1 is the exact posterior of Gaussian sources.
    """

    def route(state: Any, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, Any]:
        log_density = log_densities(statistics, x_t, alpha_bar)
        tempered = log_density / temperature_at(alpha_bar, temperature)[:, None].to(log_density.dtype)
        return (per_row(prior, len(x_t)).log() + tempered).softmax(1), state

    return Router(route)


def log_densities(statistics: SourceStatistics, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """log N(x_t; sqrt(a) mean_i, a (D_i + F_i^T F_i) + (1 - a) / p) of every source, (B, N); a is alpha_bar.

    The comparison is made on the statistics' grid: averaging p = (H / G)(W / G) latents divides the noise variance by
    p, so sources measured at one resolution serve every other. Computed in the statistics' precision, at least fp32.
    Raises BadInput where the channels differ.
    """
    kind = torch.promote_types(statistics.latent_mean.dtype, torch.float32)
    mean, var = statistics.latent_mean.to(kind), statistics.latent_var.to(kind)
    height, width = mean.shape[-2:]
    if x_t.shape[1] != mean.shape[1]:
        raise BadInput(f"latents of {x_t.shape[1]} channels; the statistics are of {mean.shape[1]}")
    pooled = F.adaptive_avg_pool2d(x_t.to(kind), (height, width)).flatten(1).unsqueeze(1)  # (B, 1, d)
    cells = x_t.shape[-2] * x_t.shape[-1] / (height * width)  # latents averaged into one
    a = alpha_bar.to(kind).reshape(-1, 1, 1)
    spread = a * var.flatten(1) + (1 - a) / max(cells, 1.0)  # (B, N, d)
    off = pooled - a.sqrt() * mean.flatten(1)
    distance, log_volume = (off.square() / spread).sum(2), spread.log().sum(2)
    if statistics.latent_factor is not None:
        nearer, larger = _low_rank_terms(statistics.latent_factor.to(kind).flatten(2), off, spread, a)
        distance, log_volume = distance - nearer, log_volume + larger
    return -0.5 * (distance + log_volume + off.shape[2] * math.log(2 * math.pi))


def _low_rank_terms(factor: Tensor, off: Tensor, spread: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """What a factor (N, k, d) takes from the distance (Woodbury) and adds to the log volume (determinant lemma)."""
    scaled = a.sqrt().unsqueeze(3) * factor / spread.unsqueeze(2)  # sqrt(a) F E^-1, (B, N, k, d)
    inner = scaled @ (a.sqrt().unsqueeze(3) * factor).mT  # a F E^-1 F^T, (B, N, k, k)
    root = torch.linalg.cholesky(inner + torch.eye(factor.shape[1], dtype=inner.dtype, device=inner.device))
    seen = torch.linalg.solve_triangular(root, scaled @ off.unsqueeze(3), upper=False)
    return seen.square().sum((2, 3)), 2 * root.diagonal(dim1=2, dim2=3).log().sum(2)


def temperature_at(alpha_bar: Tensor, temperature: float | Temperatures) -> Tensor:
    """T (B,) at each noise level: a number, or log T interpolated in log(alpha_bar / (1 - alpha_bar)) between knots.

    Beyond the outer knots T stays.
    """
    a = torch.as_tensor(alpha_bar)
    a = a.to(torch.promote_types(a.dtype, torch.float32))
    if isinstance(temperature, (int, float)):
        return torch.full_like(a, temperature)
    log_snr = a.logit(eps=1e-6)
    log_t = torch.full_like(a, math.log(temperature[0][1]))
    for (left, low), (right, high) in pairwise(temperature):
        reached = ((log_snr - left) / (right - left)).clamp(0, 1)
        log_t = log_t + reached * math.log(high / low)
    return log_t.exp()


def per_row(prior: Tensor, rows: int) -> Tensor:
    """A prior (N,) or (prompts, N) for each of the rows, in a pipeline's order: each prompt's pictures together."""
    if prior.ndim == 1:
        return prior.expand(rows, -1)
    if rows % len(prior):
        raise BadInput(f"{rows} rows for the priors of {len(prior)} prompts; a multiple of them is accepted")
    return prior.repeat_interleave(rows // len(prior), dim=0)
