"""What leaving one source out does to the density of a picture, in closed form.

For a mixture p = sum_i lambda_i p_i, the composition without source k is p_-k = sum over i != k of lambda_i p_i / (1 -
lambda_k). With w_k = p(k | x) the sum without k is p (1 - w_k), so at every noise level

    log p(x_t) - log p_-k(x_t) = log(1 - lambda_k) - log(1 - w_k(x_t))                                          (2)

It is above 0 where x_t speaks for k (w_k > lambda_k) and below where it speaks against it. In predictions, the gradient
of (2) times -sqrt(1 - abar):

    eps - eps_-k = w_k (eps_k - eps_-k)                                                                          (3)

For any model p with noise predictor eps, and one noise n a picture, at log-SNR l:

    log p(x) - log q(x) = 1/2 * integral over l of E_n[ ||eps_q - n||^2 - ||eps_p - n||^2 ] dl                   (4)

(Kingma and Gao 2023; Kong, Brekelmans and Ver Steeg 2023). Up to a log-SNR L, (4) is the expectation over the noise of
log p(x_L) - log q(x_L); for exact mixtures hence of (2). Nothing here is exact once w, lambda or eps are a model's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def log_gain(w: Tensor, prior: Tensor) -> Tensor:
    """(2), nats (B, N), from weights (B, N) and priors (N,) or (B, N) that sum to one.

    Infinite where a source alone explains x_t. 1 - w_k is summed over the others, so that nothing is lost near 1.
    """
    return _others(prior.double().expand_as(w)).log() - _others(w.double()).log()


def _others(share: Tensor) -> Tensor:
    """For each source the sum over all others, (B, N)."""
    n = share.shape[1]
    apart = 1 - torch.eye(n, dtype=share.dtype, device=share.device)
    return share @ apart


def log_snr_widths(log_snr: Sequence[float]) -> Tensor:
    """Trapezium weights (L,) of an integral over log-SNR with these knots, ascending or descending; one knot: 1."""
    knots = torch.tensor(log_snr, dtype=torch.float64)
    if len(knots) == 1:
        return torch.ones(1, dtype=torch.float64)
    half = knots.diff().abs() / 2
    widths = torch.zeros_like(knots)
    widths[:-1] += half
    widths[1:] += half
    return widths


def log_density_over(errors: Tensor, base: Tensor, log_snr: Sequence[float]) -> Tensor:
    """(4) between its outer knots: log p - log q, (...), of squared errors (..., L) against those of q, (..., L)."""
    return 0.5 * ((base.double() - errors.double()) * log_snr_widths(log_snr)).sum(-1)
