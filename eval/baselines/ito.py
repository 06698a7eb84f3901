"""The Itô density estimator of SuperDiff (Skreta et al., ICLR 2025, Theorem 1): log p_i(x_t) along the sampler's path.

In the variance-exploding form y = x_t / sqrt(a), sigma = sqrt((1 - a) / a), between two calls of the UNet,

    log q_i += -<dy, eps_i> / sigma - (|dsigma| / sigma) |eps_i|^2,      w = softmax(log prior + T log q)

with the dy that the sampler really made and eps_i of the earlier call. The sources start equal, in pure noise. Exact as
steps grow, for exact scores and for an ancestral sampler: it holds for any drift, but the noise must be that of the
reverse process. Not the form +(|dsigma| / sigma) |eps_i|^2 that circulates: it ranks sources wrongly
(tests/test_baselines.py shows both).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from promptcdm.errors import BadInput
from promptcdm.router import Router, per_row

ANCESTRAL = ("DDIMScheduler", "DDPMScheduler", "EulerAncestralDiscreteScheduler")


@dataclass(frozen=True)
class Path:
    """The last call, and the sum so far."""

    x_t: Tensor  # (B, C, H, W)
    alpha_bar: Tensor  # (B,)
    eps: Tensor  # (N, B, C, H, W)
    log_q: Tensor  # (B, N) up to a constant that all sources share


def check_scheduler(scheduler: object, eta: float = 0.0) -> None:
    """Raise BadInput unless the sampler adds the reverse process's noise: DDIM with eta 1, DDPM, Euler ancestral."""
    name = type(scheduler).__name__
    if name not in ANCESTRAL or (name == "DDIMScheduler" and eta != 1):
        raise BadInput(
            f"the Itô router with {name}, eta {eta}: it needs an ancestral sampler; accepted are DDIMScheduler with "
            "eta 1, DDPMScheduler and EulerAncestralDiscreteScheduler"
        )


def ito_router(prior: Tensor, temperature: float = 1.0) -> Router:
    """w = softmax(log prior + temperature log q). SuperDiff's T: 1 is the mixture, 100 nearly a hard choice."""

    def route(state: Path | None, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, Path]:
        if eps is None:
            raise BadInput("the Itô router needs every source's prediction; call it with eps (N, B, C, H, W)")
        x_t, alpha_bar, eps = x_t.float(), alpha_bar.float(), eps.float()
        log_q = x_t.new_zeros(len(x_t), len(eps)) if state is None else _after(state, x_t, alpha_bar)
        w = (per_row(prior, len(x_t)).log() + temperature * log_q).softmax(1)
        return w, Path(x_t, alpha_bar, eps, log_q)

    return Router(route, needs_eps=True)


def _after(last: Path, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """log q (B, N) at this call."""
    before, now = _sigma(last.alpha_bar), _sigma(alpha_bar)
    dy = _exploding(x_t, alpha_bar) - _exploding(last.x_t, last.alpha_bar)
    along = torch.einsum("bchw,nbchw->bn", dy, last.eps)
    square = last.eps.square().sum((2, 3, 4)).T
    return last.log_q - along / before - (before - now) / before * square


def _sigma(alpha_bar: Tensor) -> Tensor:
    return ((1 - alpha_bar) / alpha_bar).sqrt().clamp(min=1e-6).unsqueeze(1)


def _exploding(x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    return x_t / alpha_bar.sqrt().reshape(-1, 1, 1, 1)
