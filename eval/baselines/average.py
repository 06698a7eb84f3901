"""The equal average of predictions, the sampler that CP-Delta with KL suggests (Vyas et al., ICML 2023).

At clean latents the average of scores is the score of the normalised geometric mean of the densities. At every other
noise level it is not: the noised geometric mean has another score. So a picture made this way comes with no claim of
near access-freeness; that takes the certificate over the path of a stochastic sampler.
"""

from __future__ import annotations

from promptcdm.router import Router, uniform_router


def average_router(n: int) -> Router:
    """w_i = 1 / N."""
    return uniform_router(n)
