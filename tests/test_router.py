"""Routers against distributions whose posterior is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from promptcdm.router import (
    Router,
    SourceStatistics,
    posterior_router,
    prior_router,
    prompt_prior,
    share_prior,
    uniform_router,
)

N, C, G = 3, 4, 8


def weights(router: Router, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
    """w of the first call of a run."""
    return router.route(router.start, x_t, alpha_bar, None)[0]


@pytest.fixture
def statistics() -> SourceStatistics:
    generator = torch.Generator().manual_seed(0)
    return SourceStatistics(
        torch.randn(N, C, G, G, generator=generator),
        torch.rand(N, C, G, G, generator=generator) + 0.2,
    )


def test_uniform_and_prior() -> None:
    x_t, alpha_bar = torch.zeros(2, C, G, G), torch.tensor([0.5, 0.5])
    assert torch.equal(weights(uniform_router(4), x_t, alpha_bar), torch.full((2, 4), 0.25))
    share = share_prior(torch.tensor([1, 3]))
    assert torch.equal(weights(prior_router(share), x_t, alpha_bar), torch.tensor([[0.25, 0.75]] * 2))


@pytest.mark.parametrize("alpha_bar", [0.99, 0.5, 0.05])
def test_posterior_is_the_bayes_rule_of_diagonal_gaussians(
    statistics: SourceStatistics, alpha_bar: float
) -> None:
    x_t = torch.randn(5, C, G, G, generator=torch.Generator().manual_seed(1))
    prior = torch.tensor([0.2, 0.5, 0.3])
    densities = []
    for mean, var in zip(statistics.latent_mean, statistics.latent_var, strict=True):
        normal = torch.distributions.Normal(alpha_bar**0.5 * mean, (alpha_bar * var + 1 - alpha_bar).sqrt())
        densities.append(normal.log_prob(x_t).sum((1, 2, 3)))
    expected = (prior.log() + torch.stack(densities, 1)).softmax(1)
    w = weights(posterior_router(statistics, prior, 1.0), x_t, torch.full((5,), alpha_bar))
    assert torch.allclose(w, expected, atol=1e-4)


def test_posterior_tends_to_the_prior_in_pure_noise(statistics: SourceStatistics) -> None:
    x_t = torch.randn(8, C, G, G, generator=torch.Generator().manual_seed(2))
    prior = torch.tensor([0.2, 0.5, 0.3])
    noisy = weights(posterior_router(statistics, prior, 1.0), x_t, torch.full((8,), 1e-9))
    assert torch.allclose(noisy, prior.expand(8, -1), atol=1e-3)
    clean = weights(posterior_router(statistics, prior, 1.0), statistics.latent_mean, torch.full((N,), 0.999))
    assert torch.equal(clean.argmax(1), torch.arange(N))


def test_posterior_on_larger_latents_allows_for_averaged_noise(statistics: SourceStatistics) -> None:
    """Latents drawn at twice the grid: cell means of pure noise have a quarter of its variance."""
    prior = torch.full((N,), 1 / N)
    wide = SourceStatistics(
        torch.zeros(N, C, G, G), torch.stack([torch.full((C, G, G), v) for v in (1e-6, 4.0, 9.0)])
    )
    noise = torch.randn(16, C, 2 * G, 2 * G, generator=torch.Generator().manual_seed(3))
    w = weights(posterior_router(wide, prior, 1.0), noise * 0.5**0.5, torch.full((16,), 0.5))
    assert (w.argmax(1) == 0).all()


def test_the_temperature_tempers_the_likelihood_alone(statistics: SourceStatistics) -> None:
    x_t, prior = torch.zeros(1, C, G, G), torch.tensor([0.7, 0.2, 0.1])
    w = weights(posterior_router(statistics, prior, 1e9), x_t, torch.tensor([0.9]))
    assert torch.allclose(w[0], prior, atol=1e-5)


def test_prompt_prior_prefers_the_nearest_prototype() -> None:
    animals, food = torch.eye(4)[:2], torch.eye(4)[2:]
    prior = prompt_prior(torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.0, 0.0, 0.2, 2.0]]), [animals, food])
    assert prior[0].argmax() == 0
    assert prior[1].argmax() == 1
    assert torch.allclose(prior.sum(1), torch.ones(2))
    equal = prompt_prior(torch.ones(1, 4), [animals, food])
    assert torch.allclose(equal, torch.tensor([[0.5, 0.5]]))
