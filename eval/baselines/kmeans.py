"""k-means prototypes: each source is a mixture of m spherical Gaussians, w_i = p(i | x_t) exactly for such sources.

    p_i(x_t) = sum_k rho_ik N(x_t; sqrt(a) c_ik, (a tau_ik^2 + (1 - a) / p) I)      a = alpha_bar

On the grid that latents are pooled to, where p latents make a cell. A source's prototypes come from its own latents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from promptcdm.router import Router, per_row


@dataclass(frozen=True)
class Prototypes:
    """What one source knows of itself."""

    centre: Tensor  # (m, C, G, G)
    var: Tensor  # (m,) a cell's variance about its centre
    share: Tensor  # (m,) of the latents; sums to one


def prototypes(latents: Tensor, m: int, grid: int, rounds: int = 20) -> Prototypes:
    """k-means of latents (I, C, H, W), pooled to the grid. Starts from a farthest-first walk, so nothing is drawn."""
    points = F.adaptive_avg_pool2d(latents.float(), grid)
    flat = points.flatten(1)
    centre = flat[_far_apart(flat, min(m, len(flat)))]
    for _ in range(rounds):
        own = torch.cdist(flat, centre).argmin(1)
        centre = torch.stack(
            [flat[own == k].mean(0) if (own == k).any() else c for k, c in enumerate(centre)]
        )
    nearest, own = torch.cdist(flat, centre).min(1)
    size = torch.bincount(own, minlength=len(centre)).float()
    var = torch.zeros(len(centre)).index_add_(0, own, nearest.square()) / size.clamp(min=1) / flat.shape[1]
    floor = (
        1e-2 * flat.var(0, unbiased=False).mean() + 1e-8
    )  # a centre of one picture stands for its neighbourhood
    return Prototypes(centre.reshape(-1, *points.shape[1:]), var.clamp(min=floor), size / size.sum())


def kmeans_router(sources: Sequence[Prototypes], prior: Tensor, temperature: float = 1.0) -> Router:
    """w ∝ prior p_i(x_t)^(1 / temperature); `prior` is (N,) or (prompts, N)."""

    def route(state: Any, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, Any]:
        log_density = torch.stack([_log_density(s, x_t, alpha_bar) for s in sources], dim=1)
        return (per_row(prior, len(x_t)).log() + log_density / temperature).softmax(1), state

    return Router(route)


def _log_density(source: Prototypes, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    height, width = source.centre.shape[-2:]
    kind = torch.promote_types(source.centre.dtype, torch.float32)
    pooled = F.adaptive_avg_pool2d(x_t.to(kind), (height, width)).flatten(1).unsqueeze(1)  # (B, 1, d)
    cells = max(x_t.shape[-2] * x_t.shape[-1] / (height * width), 1.0)
    a = alpha_bar.to(kind).reshape(-1, 1)
    var = a * source.var + (1 - a) / cells  # (B, m)
    distance = (pooled - a.sqrt().unsqueeze(2) * source.centre.flatten(1)).square().sum(2)
    terms = distance / var + pooled.shape[2] * (2 * math.pi * var).log()
    return (source.share.log() - 0.5 * terms).logsumexp(1)


def _far_apart(points: Tensor, m: int) -> Tensor:
    chosen = [int((points - points.mean(0)).square().sum(1).argmin())]
    nearest = torch.cdist(points, points[chosen]).squeeze(1)
    while len(chosen) < m:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, torch.cdist(points, points[chosen[-1:]]).squeeze(1))
    return torch.tensor(chosen)
