"""LoRA Switch (Zhong et al., arXiv 2402.16843): one source at a time, the next one after every few calls.

Heuristic: no density is in it. The state is the number of calls so far.
"""

from __future__ import annotations

import torch
from torch import Tensor

from promptcdm.errors import BadInput
from promptcdm.router import Router


def switch_router(n: int, every: int = 5) -> Router:
    """One-hot w of source (calls // every) mod N."""
    if n < 1 or every < 1:
        raise BadInput(f"LoRA Switch over {n} sources, every {every} calls; both must be at least 1")

    def route(state: int, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, int]:
        w = torch.zeros(len(x_t), n, device=x_t.device)
        w[:, state // every % n] = 1
        return w, state + 1

    return Router(route, 0)
