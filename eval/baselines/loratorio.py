"""LoRAtorio (arXiv 2508.11624), from its description: a LoRA that changes the backbone's prediction knows the place.

    s_i = cos(eps_i, eps_backbone) of each patch        w_i = softmax over sources of -s_i / T

The backbone's own prediction is needed: give the bare backbone as the first source (an adapter without LoRA and
without soft prompt). Its weight is 0, so that it only serves to compare with. Heuristic, and not equation (1): no
density is in it. The patch size and T are ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from promptcdm.errors import BadInput
from promptcdm.router import Router


def loratorio_router(patch: int = 2, temperature: float = 0.05) -> Router:
    """w (B, N, H, W) with w_0 = 0; `patch` must divide the latents' height and width."""

    def route(state: Any, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, Any]:
        if eps is None or len(eps) < 2 or eps.shape[-2] % patch or eps.shape[-1] % patch:
            shape = None if eps is None else tuple(eps.shape)
            raise BadInput(
                f"LoRAtorio with eps {shape}: it takes the backbone's prediction first and at least one source's, "
                f"of height and width divisible by {patch}"
            )
        patches = _patches(eps.float(), patch)  # (N, B, C p p, H/p, W/p)
        likeness = F.cosine_similarity(patches[1:], patches[:1], dim=2)
        w = (-likeness / temperature).softmax(0)
        w = torch.cat([torch.zeros_like(w[:1]), w]).movedim(0, 1)  # (B, N, H/p, W/p)
        return w.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3), state

    return Router(route, needs_eps=True)


def _patches(eps: Tensor, patch: int) -> Tensor:
    n, b, c, h, w = eps.shape
    cut = eps.reshape(n, b, c, h // patch, patch, w // patch, patch)
    return cut.permute(0, 1, 2, 4, 6, 3, 5).reshape(n, b, c * patch * patch, h // patch, w // patch)
