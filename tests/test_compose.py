"""Equation (1) in closed form: a mixture of Gaussians has an exact noise prediction at every noise level."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from promptcdm.compose import compose_noise, keep_largest, spread

ALPHA_BAR = (0.999, 0.7, 0.2, 0.0047)
N, D = 3, 6


@pytest.fixture
def mixture() -> tuple[Tensor, Tensor, Tensor]:
    """Means (N, D), standard deviations (N,) and shares (N,) of three Gaussian sources."""
    generator = torch.Generator().manual_seed(0)
    mean = 2 * torch.randn(N, D, generator=generator, dtype=torch.float64)
    return mean, torch.tensor([0.3, 1.0, 2.0]).double(), torch.tensor([0.2, 0.5, 0.3]).double()


def log_density(x_t: Tensor, mean: Tensor, std: Tensor, alpha_bar: float) -> Tensor:
    """log p_i(x_t), (B, N): each Gaussian after the forward process."""
    variance = alpha_bar * std**2 + 1 - alpha_bar
    distance = (x_t[:, None] - alpha_bar**0.5 * mean).square().sum(-1)
    return -0.5 * distance / variance - 0.5 * D * variance.log()


def exact_noise(x_t: Tensor, mean: Tensor, std: Tensor, share: Tensor, alpha_bar: float) -> Tensor:
    """The noise prediction of the whole mixture, from the gradient of its log density."""
    x_t = x_t.clone().requires_grad_()
    total = (share.log() + log_density(x_t, mean, std, alpha_bar)).logsumexp(1).sum()
    return -((1 - alpha_bar) ** 0.5) * torch.autograd.grad(total, x_t)[0]


def source_noise(x_t: Tensor, mean: Tensor, std: Tensor, alpha_bar: float) -> Tensor:
    """Each source's own noise prediction, (N, B, D)."""
    variance = alpha_bar * std**2 + 1 - alpha_bar
    score = -(x_t[:, None] - alpha_bar**0.5 * mean) / variance[None, :, None]
    return -((1 - alpha_bar) ** 0.5) * score.transpose(0, 1)


@pytest.mark.parametrize("alpha_bar", ALPHA_BAR)
def test_posterior_weights_give_the_exact_noise_of_the_mixture(
    mixture: tuple[Tensor, Tensor, Tensor], alpha_bar: float
) -> None:
    mean, std, share = mixture
    x_t = 2 * torch.randn(64, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eps = source_noise(x_t, mean, std, alpha_bar).reshape(N, 64, D, 1, 1)
    w = (share.log() + log_density(x_t, mean, std, alpha_bar)).softmax(1)
    exact = exact_noise(x_t, mean, std, share, alpha_bar)
    assert torch.allclose(compose_noise(eps, w).reshape(64, D), exact, atol=1e-10)


def test_plain_averaging_is_not_the_mixture(mixture: tuple[Tensor, Tensor, Tensor]) -> None:
    mean, std, share = mixture
    x_t = 2 * torch.randn(64, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eps = source_noise(x_t, mean, std, 0.7).reshape(N, 64, D, 1, 1)
    average = compose_noise(eps, torch.full((64, N), 1 / N, dtype=torch.float64)).reshape(64, D)
    assert (average - exact_noise(x_t, mean, std, share, 0.7)).abs().max() > 0.5


def test_the_same_weights_mix_v_predictions(mixture: tuple[Tensor, Tensor, Tensor]) -> None:
    mean, std, share = mixture
    alpha_bar, x_t = 0.4, torch.ones(1, D, dtype=torch.float64)
    eps = source_noise(x_t, mean, std, alpha_bar).reshape(N, 1, D, 1, 1)
    w = (share.log() + log_density(x_t, mean, std, alpha_bar)).softmax(1)
    # v = sqrt(a) eps - sqrt(1 - a) x_0 with x_0 = (x_t - sqrt(1 - a) eps) / sqrt(a), affine in eps
    a, s = alpha_bar**0.5, (1 - alpha_bar) ** 0.5

    def v_of(eps: Tensor) -> Tensor:
        return a * eps - s * (x_t.reshape(1, D, 1, 1) - s * eps) / a

    assert torch.allclose(compose_noise(v_of(eps), w), v_of(compose_noise(eps, w)))


def test_a_weight_of_zero_leaves_the_source_out_even_where_it_is_nan() -> None:
    eps = torch.ones(2, 1, 4, 2, 2)
    eps[1] = torch.nan
    assert torch.equal(compose_noise(eps, torch.tensor([[1.0, 0.0]])), torch.ones(1, 4, 2, 2))
    assert compose_noise(eps, torch.tensor([[0.5, 0.5]])).isnan().all()


def test_top_k_keeps_the_largest_and_renormalises() -> None:
    w = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    assert torch.allclose(keep_largest(w, 2)[0], torch.tensor([0.625, 0.375, 0.0]))
    assert torch.equal(keep_largest(w, 1)[1], torch.tensor([0.0, 0.0, 1.0]))
    assert keep_largest(w, 0) is w
    assert keep_largest(w, 3) is w


def test_a_threshold_leaves_out_small_weights_but_never_the_largest() -> None:
    w = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.3, 0.3]])
    assert torch.allclose(keep_largest(w, 0, 0.25)[0], torch.tensor([0.625, 0.375, 0.0]))
    assert torch.equal(keep_largest(w, 0, 0.45)[1], torch.tensor([1.0, 0.0, 0.0]))


def test_regions_are_composed_place_by_place() -> None:
    eps = torch.stack([torch.zeros(1, 4, 2, 2), torch.ones(1, 4, 2, 2)])
    w = torch.zeros(1, 2, 2, 2)
    w[:, 0, :, 0], w[:, 1, :, 1] = 1.0, 1.0
    composed = compose_noise(eps, w)
    assert (composed[..., 0] == 0).all()
    assert (composed[..., 1] == 1).all()


def test_the_error_of_leaving_sources_out_is_within_mass_times_spread() -> None:
    generator = torch.Generator().manual_seed(3)
    eps = torch.randn(4, 8, 2, 3, 3, generator=generator)
    w = torch.randn(8, 4, generator=generator).softmax(1)
    kept = keep_largest(w, 2)
    mass = torch.where(kept == 0, w, torch.zeros_like(w)).sum(1)
    error = (compose_noise(eps, w) - compose_noise(eps, kept)).flatten(1).square().mean(1).sqrt()
    assert (error > 0).all()
    assert (error <= mass * spread(eps)).all()
