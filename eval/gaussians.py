"""Gaussian sources, whose densities, predictions and posterior are known exactly at every noise level.

    x_0 of source i ~ N(mean_i, var_i), diagonal          mean, var  (N, C, H, W)
    x_t of source i ~ N(sqrt(a) mean_i, a var_i + 1 - a)  a = alpha_bar, (B,)
    eps_i(x_t)      = -sqrt(1 - a) grad log p_i(x_t)      (N, B, C, H, W)

What routers and samplers are measured against where the truth must be known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussians:
    """N sources and the share of each, (N,)."""

    mean: Tensor
    var: Tensor
    share: Tensor

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n clean latents (n, C, H, W) of the mixture and their sources (n,)."""
        source = self.share.multinomial(n, replacement=True, generator=generator)
        noise = torch.randn(n, *self.mean.shape[1:], generator=generator, dtype=self.mean.dtype)
        return self.mean[source] + self.var[source].sqrt() * noise, source

    def log_densities(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """log p_i(x_t), (B, N)."""
        _, spread, off = self._noised(x_t, alpha_bar)
        terms = off.square() / spread + spread.log() + math.log(2 * math.pi)
        return -0.5 * terms.sum((2, 3, 4)).T

    def posterior(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """p(i | x_t), (B, N)."""
        return (self.share.log() + self.log_densities(x_t, alpha_bar)).softmax(1)

    def eps(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """Each source's exact prediction, (N, B, C, H, W)."""
        a, spread, off = self._noised(x_t, alpha_bar)
        return (1 - a).sqrt() * off / spread

    def _noised(self, x_t: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = alpha_bar.to(self.mean.dtype).reshape(1, -1, 1, 1, 1)
        spread = a * self.var.unsqueeze(1) + 1 - a  # (N, B, C, H, W)
        return a, spread, x_t.unsqueeze(0) - a.sqrt() * self.mean.unsqueeze(1)


def noised(x_0: Tensor, alpha_bar: Tensor, generator: torch.Generator) -> Tensor:
    """x_t = sqrt(a) x_0 + sqrt(1 - a) noise."""
    a = alpha_bar.to(x_0.dtype).reshape(-1, 1, 1, 1)
    return a.sqrt() * x_0 + (1 - a).sqrt() * torch.randn(x_0.shape, generator=generator, dtype=x_0.dtype)


def ancestral_step(
    x_t: Tensor, eps: Tensor, alpha_bar: float, next_alpha_bar: float, generator: torch.Generator
) -> Tensor:
    """One step of DDIM with eta = 1 from alpha_bar to the larger next_alpha_bar."""
    a, b = alpha_bar, next_alpha_bar
    x_0 = (x_t - (1 - a) ** 0.5 * eps) / a**0.5
    noise_var = (1 - b) / (1 - a) * (1 - a / b)
    drift = b**0.5 * x_0 + (1 - b - noise_var) ** 0.5 * eps
    return drift + noise_var**0.5 * torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype)
