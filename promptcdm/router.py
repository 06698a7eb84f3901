"""Routers: the weights w_i = p(i | x_t, c) of equation (1), from what each source computed about itself alone.

A router is a pure function `(x_t, alpha_bar) -> w`. The allowed set is chosen before any softmax is taken.

    x_t        noisy latents of the conditional rows        (B, C, H, W)
    alpha_bar  share of signal left, continuous in (0, 1]   (B,);  x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps
    w          weights, each row sums to one                (B, N)

    uniform    1 / N                                                  a fixed mixture
    prior      share of pictures                                      p(i)
    prompt     caption prototypes against the prompt                  pi_i(c)
    posterior  pi_i(c) N(x_t; mean_i, var_i)^(1 / T)                  p(i | x_t, c) for diagonal Gaussian sources

Every one is an approximation of p(i | x_t, c): `posterior` knows p_i(x_t), not p_i(x_t | c), and a diagonal Gaussian is
not a source of pictures. The temperature tempers the likelihood alone; other than 1 it is not the mixture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Router = Callable[[Tensor, Tensor], Tensor]

# Fitted on topics of the backbone's own pictures taken as pseudo-sources (docs/method.md), then frozen: a value tuned
# on the sources would outlive forgetting them.
PROMPT_TEMPERATURE = 0.02
POSTERIOR_TEMPERATURE = 128.0


@dataclass(frozen=True)
class SourceStatistics:
    """What `posterior` knows of N sources, stacked in the order of `allowed`."""

    latent_mean: Tensor  # (N, C, G, G) of clean latents, pooled to a G x G grid
    latent_var: Tensor  # (N, C, G, G)


def uniform_router(n: int) -> Router:
    """w_i = 1 / N."""
    return lambda x_t, alpha_bar: x_t.new_full((len(x_t), n), 1.0 / n, dtype=torch.float32)


def prior_router(prior: Tensor) -> Router:
    """w = prior, (N,) or (B, N), whatever x_t is."""
    return lambda x_t, alpha_bar: prior.expand(len(x_t), -1)


def share_prior(count: Tensor) -> Tensor:
    """p(i): each source's share of the pictures, (N,)."""
    return count.float() / count.sum()


def prompt_prior(prompt: Tensor, prototypes: list[Tensor], temperature: float = PROMPT_TEMPERATURE) -> Tensor:
    """pi_i(c) (B, N) from the cosine of the prompt (B, D) to each source's nearest caption prototype (M_i, D)."""
    prompt = F.normalize(prompt.float(), dim=1)
    nearest = torch.stack([(prompt @ F.normalize(p.float(), dim=1).T).amax(1) for p in prototypes], dim=1)
    return (nearest / temperature).softmax(1)


def posterior_router(
    statistics: SourceStatistics, prior: Tensor, temperature: float = POSTERIOR_TEMPERATURE
) -> Router:
    """w ∝ pi_i p_i(x_t)^(1 / T) with p_i(x_t) = N(sqrt(a) mean_i, a var_i + (1 - a) / p).

    a is alpha_bar, and T = 1 + (temperature - 1) a: `temperature` without noise, 1 in pure noise.

    The comparison is made on the statistics' grid: averaging p = (H / G)(W / G) latents divides the noise variance by
    p, so sources measured at one resolution serve every other. Equals `prior` as alpha_bar goes to 0.
    """
    mean, var = statistics.latent_mean.float(), statistics.latent_var.float()
    grid = mean.shape[-2:]

    def router(x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(x_t.float(), (grid[0], grid[1])).unsqueeze(1)  # (B, 1, C, G, G)
        cells = x_t.shape[-2] * x_t.shape[-1] / (grid[0] * grid[1])  # latents averaged into one
        a = alpha_bar.float().reshape(-1, 1, 1, 1, 1)
        spread = a * var + (1 - a) / max(cells, 1.0)  # (B, N, C, G, G)
        log_density = -0.5 * ((pooled - a.sqrt() * mean).square() / spread + spread.log()).sum((2, 3, 4))
        # Clean latents are far from independent, so their density is much too sure; noise makes them independent.
        tempered = log_density / (1 + (temperature - 1) * alpha_bar.float()[:, None])
        return (prior.log() + tempered).softmax(1)

    return router
