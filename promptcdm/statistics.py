"""What a router knows of a source, computed by that source alone.

latents      (I, C, h, w) of its pictures, scaled
latent_mean  (C, G, G)    on one fixed grid, so that sources measured at different resolutions agree
latent_var   (C, G, G)    of each cell; beside a factor, what the factor leaves of it
factor       (k, C, G, G) covariance of the cells = diag(latent_var) + F^T F
prototypes   (M, D)       unit-norm centres of its captions' embeddings
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

GRID = 8
PROTOTYPES = 32
RANK = 8
# A direction takes this many pictures, or the factor would describe the few pictures rather than their source.
PICTURES_PER_DIRECTION = 8
# A source of a few pictures would have no variance where they agree: one picture stands for its neighbourhood.
VARIANCE_FLOOR = 1e-2


def latent_statistics(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C, G, G) over pictures and posterior noise; a floor keeps the variance from 0."""
    cells = max(1.0, mean.shape[-1] * mean.shape[-2] / GRID**2)
    pooled = F.adaptive_avg_pool2d(mean.float(), GRID)
    noise = F.adaptive_avg_pool2d(std.float().square(), GRID).mean(0) / cells
    variance = pooled.var(0, unbiased=False) + noise
    return pooled.mean(0), variance.clamp(min=VARIANCE_FLOOR * float(variance.mean()) + 1e-8)


def on_grid(sizes: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Latents (I_b, C, h_b, w_b), mean and std, of several sizes as ones of (I, C, G, G) with the same statistics.

    One size alone is itself.
    """
    if len(sizes) == 1:
        return sizes[0]
    means, stds = [], []
    for mean, std in sizes:
        cells = max(1.0, mean.shape[-1] * mean.shape[-2] / GRID**2)
        means.append(F.adaptive_avg_pool2d(mean.float(), GRID))
        stds.append((F.adaptive_avg_pool2d(std.float().square(), GRID) / cells).sqrt())
    return torch.cat(means), torch.cat(stds)


def latent_covariance(mean: Tensor, std: Tensor, rank: int = RANK) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mean (C, G, G), residual variance (C, G, G) and factor (k, C, G, G) of at most this rank.

    The factor is the centred, pooled latents' leading directions, by their deviation. The rows' signs are fixed, so
    that the same pictures give the same factor. None where the pictures are too few for one direction.
    """
    centre, variance = latent_statistics(mean, std)
    kept = min(rank, len(mean) // PICTURES_PER_DIRECTION, centre.numel())
    if kept < 1:
        return centre, variance, None
    pooled = F.adaptive_avg_pool2d(mean.float(), GRID)
    _, deviation, directions = torch.linalg.svd((pooled - centre).flatten(1), full_matrices=False)
    factor = deviation[:kept, None] / len(mean) ** 0.5 * directions[:kept]
    peak = factor.gather(1, factor.abs().argmax(1, keepdim=True))
    factor = torch.where(peak < 0, -factor, factor).reshape(kept, *centre.shape).contiguous()
    floor = VARIANCE_FLOOR * float(variance.mean()) + 1e-8
    return centre, (variance - factor.square().sum(0)).clamp(min=floor), factor


def caption_prototypes(embeddings: Tensor, count: int = PROTOTYPES) -> tuple[Tensor, Tensor]:
    """Spherical k-means of caption embeddings (I, D): centres (M, D) and the share of captions of each (M,).

    Deterministic: centres start from the farthest-first traversal of the captions in the order given.
    """
    points = F.normalize(embeddings.float(), dim=1)
    chosen = [0]
    nearest = points @ points[0]
    while len(chosen) < min(count, len(points)):
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, points @ points[chosen[-1]])
    centres = points[chosen]
    for _ in range(10):
        own = (points @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, own, points)
        empty = sums.norm(dim=1, keepdim=True) == 0
        centres = torch.where(empty, centres, F.normalize(sums, dim=1))
    share = torch.bincount((points @ centres.T).argmax(1), minlength=len(centres)).float()
    return centres, share / share.sum()
