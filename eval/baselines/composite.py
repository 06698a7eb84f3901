"""LoRA Composite (Zhong et al., arXiv 2402.16843): both guidance branches are the sources' uniform average.

    eps = mean_i eps_i(empty) + g (mean_i eps_i(c) - mean_i eps_i(empty))

The weights are uniform; what makes it LoRA Composite is that each source's own unconditional prediction is averaged,
so run it with the adapters' unconditional branch. It averages scores: not the mixture of equation (1).
"""

from __future__ import annotations

from promptcdm.router import Router, uniform_router


def composite_router(n: int) -> Router:
    """w_i = 1 / N."""
    return uniform_router(n)
