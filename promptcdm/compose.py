"""The method: compose the predictions of the allowed sources.

Each source i trained its own adapter alone, so it has its own noise predictor eps_i. If the data are a mixture
p(x | c) = sum_i pi_i(c) p_i(x | c), then at every noise level

    eps(x_t, t, c) = sum_i w_i eps_i(x_t, t, c),     w_i = p(i | x_t, c)  ∝  pi_i(c) p_i(x_t | c)        (1)

is the noise predictor of the mixture: nothing is retrained, and a source that is not in the sum has no influence.
The same weights mix x_0- and v-predictions, which are affine in eps at a given x_t. A router supplies w.

    x_t    noisy latents                      (B, C, H, W)
    eps    predictions, one a source          (N, B, C, H, W)
    w      weights, sum to one over sources   (B, N), or (B, N, H, W) by region;  N = number of allowed sources

Source: Golatkar et al., "Training Data Protection with Compositional Diffusion Models", arXiv 2308.01937.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compose_noise(eps: Tensor, w: Tensor) -> Tensor:
    """Equation (1): `eps` (N, B, C, H, W) and `w` (B, N) or (B, N, H, W) to (B, C, H, W).

    A weight of zero leaves its source out rather than multiplying by zero, so that nothing of it, not even a NaN,
    can pass.
    """
    w = w.transpose(0, 1).to(eps.dtype)
    w = w.reshape(*w.shape[:2], 1, 1, 1) if w.ndim == 2 else w.unsqueeze(2)
    return torch.where(w == 0, torch.zeros((), dtype=eps.dtype, device=eps.device), w * eps).sum(0)


def keep_largest(w: Tensor, top_k: int = 0, min_weight: float = 0.0) -> Tensor:
    """Keep the `top_k` largest weights over the sources (dimension 1) that are at least `min_weight`.

    What is kept sums to one again. The largest is always kept; 0 keeps all.
    """
    kept = torch.ones_like(w, dtype=torch.bool)
    if 0 < top_k < w.shape[1]:
        kept = torch.zeros_like(kept).scatter(1, w.topk(top_k, dim=1).indices, True)
    if min_weight > 0:
        kept &= (w >= min_weight) | (w == w.amax(1, keepdim=True))
    if bool(kept.all()):
        return w
    w = torch.where(kept, w, torch.zeros_like(w))
    return w / w.sum(1, keepdim=True)


def by_source(w: Tensor) -> Tensor:
    """Weights (B, N): those by region as their mean over the places."""
    return w if w.ndim == 2 else w.mean((2, 3))


def spread(eps: Tensor) -> Tensor:
    """Largest distance (B,) of two sources' predictions, root mean square over a picture's latents.

    Leaving out weights that sum to d moves the sum by at most d times this: the full sum is (1 - d) times the mean of
    what is kept plus d times the mean of what is dropped.
    """
    flat = eps.flatten(2).float().transpose(0, 1)  # (B, N, CHW)
    distance: Tensor = torch.cdist(flat, flat).amax((1, 2)) / float(flat.shape[-1]) ** 0.5
    return distance
