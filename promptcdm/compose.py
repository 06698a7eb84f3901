"""The method: compose the predictions of the allowed sources.

Each source i trained its own adapter alone, so it has its own noise predictor eps_i. If the data are a mixture
p(x | c) = sum_i pi_i(c) p_i(x | c), then at every noise level

    eps(x_t, t, c) = sum_i w_i eps_i(x_t, t, c),     w_i = p(i | x_t, c)  ∝  pi_i(c) p_i(x_t | c)        (1)

is the noise predictor of the mixture: nothing is retrained, and a source that is not in the sum has no influence.
The same weights mix x_0- and v-predictions, which are affine in eps at a given x_t. A router supplies w.

    x_t    noisy latents                      (B, C, H, W)
    eps    predictions, one a source          (N, B, C, H, W)
    w      weights, each row sums to one      (B, N), N = number of allowed sources

Source: Golatkar et al., "Training Data Protection with Compositional Diffusion Models", arXiv 2308.01937.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compose_noise(eps: Tensor, w: Tensor) -> Tensor:
    """Equation (1): `eps` (N, B, C, H, W) and `w` (B, N) to (B, C, H, W).

    A weight of zero leaves its source out rather than multiplying by zero, so that nothing of it, not even a NaN,
    can pass.
    """
    terms = w.T.to(eps.dtype).reshape(*eps.shape[:2], 1, 1, 1) * eps
    absent = (w.T == 0).reshape(*eps.shape[:2], 1, 1, 1)
    return torch.where(absent, torch.zeros((), dtype=eps.dtype, device=eps.device), terms).sum(0)


def keep_top_k(w: Tensor, k: int) -> Tensor:
    """Keep each row's k largest weights (B, N) and let them sum to one again; k = 0 keeps all."""
    if k <= 0 or k >= w.shape[1]:
        return w
    kept = torch.zeros_like(w).scatter(1, w.topk(k, dim=1).indices, 1.0) * w
    return kept / kept.sum(1, keepdim=True)
