"""Routers against distributions whose posterior is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from made_adapter import made_adapter, random_statistics
from torch import Tensor

from promptcdm.adapter import adapter_digest, load_adapter, save_adapter
from promptcdm.draw import drawn
from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.router import (
    POSTERIOR_TEMPERATURES,
    Router,
    SourceStatistics,
    log_densities,
    posterior_router,
    prior_router,
    share_prior,
    stack_statistics,
    temperature_at,
    uniform_router,
)
from promptcdm.statistics import latent_covariance

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


@pytest.mark.parametrize("alpha_bar", [1.0, 0.6, 0.01])
def test_a_low_rank_source_has_the_density_of_a_low_rank_gaussian(alpha_bar: float) -> None:
    generator = torch.Generator().manual_seed(4)
    mean = torch.randn(N, C, G, G, generator=generator, dtype=torch.float64)
    var = torch.rand(N, C, G, G, generator=generator, dtype=torch.float64) + 0.1
    factor = torch.randn(N, 3, C, G, G, generator=generator, dtype=torch.float64)
    x_t = torch.randn(5, C, G, G, generator=generator, dtype=torch.float64)
    expected = [
        torch.distributions.LowRankMultivariateNormal(
            alpha_bar**0.5 * m.flatten(),
            alpha_bar**0.5 * f.flatten(1).T,
            alpha_bar * v.flatten() + 1 - alpha_bar,
        ).log_prob(x_t.flatten(1))
        for m, v, f in zip(mean, var, factor, strict=True)
    ]
    a = torch.full((5,), alpha_bar, dtype=torch.float64)
    found = log_densities(SourceStatistics(mean, var, factor), x_t, a)
    assert torch.allclose(found, torch.stack(expected, 1), atol=1e-4)
    assert not torch.allclose(found, log_densities(SourceStatistics(mean, var), x_t, a), atol=0.02)


def test_a_factor_of_zeros_is_the_diagonal_posterior(statistics: SourceStatistics) -> None:
    x_t = torch.randn(5, C, G, G, generator=torch.Generator().manual_seed(1))
    prior, a = torch.tensor([0.2, 0.5, 0.3]), torch.full((5,), 0.5)
    flat = SourceStatistics(statistics.latent_mean, statistics.latent_var, torch.zeros(N, 2, C, G, G))
    assert torch.allclose(log_densities(flat, x_t, a), log_densities(statistics, x_t, a))
    noisy = weights(posterior_router(flat, prior), x_t, torch.full((5,), 1e-9))
    assert torch.allclose(noisy, prior.expand(5, -1), atol=1e-3)


def test_sources_with_and_without_a_factor_stand_together() -> None:
    older, newer = random_statistics(seed=1), random_statistics(seed=2)
    factor = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    both = stack_statistics([older, dataclasses.replace(newer, latent_factor=factor)])
    assert both.latent_factor is not None
    assert (both.latent_factor[0] == 0).all()
    assert torch.equal(both.latent_factor[1], factor)
    assert stack_statistics([older, newer]).latent_factor is None
    with pytest.raises(BadInput, match="one shape is accepted"):
        stack_statistics([older, dataclasses.replace(newer, latent_mean=torch.zeros(4, 4, 4))])
    with pytest.raises(BadInput, match=r"latent_factor \(2, 3, 8, 8\)"):
        stack_statistics([older, dataclasses.replace(newer, latent_factor=factor[:, :3])])


def test_latents_of_other_channels_are_refused(statistics: SourceStatistics) -> None:
    with pytest.raises(BadInput, match="16 channels; the statistics are of 4"):
        log_densities(statistics, torch.zeros(1, 16, G, G), torch.tensor([0.5]))


def test_the_covariance_of_many_latents_is_found_and_few_give_none() -> None:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(1, C, G, G, generator=generator)
    latents = torch.randn(400, 1, 1, 1, generator=generator) * direction
    latents = latents + 0.1 * torch.randn(400, C, G, G, generator=generator)
    _, var, factor = latent_covariance(latents, torch.zeros_like(latents), rank=1)
    assert factor is not None
    likeness = torch.cosine_similarity(factor.flatten(), direction.flatten(), dim=0).abs()
    assert likeness > 0.99
    assert float(factor.norm() / direction.norm()) == pytest.approx(1.0, abs=0.1)
    # The floor, a hundredth of the mean variance, lifts what is left no further than this.
    assert float(var.mean()) == pytest.approx(0.01, abs=0.005)
    assert latent_covariance(latents[:7], torch.zeros(7, C, G, G))[2] is None


def test_a_factor_survives_the_folder_and_an_adapter_without_one_keeps_its_digest(tmp_path: Path) -> None:
    plain = random_statistics()
    assert set(plain.tensors()) == {
        "count",
        "latent_mean",
        "latent_var",
        "caption_prototypes",
        "caption_share",
        "caption_tokens",
        "caption_token_counts",
    }
    made = made_adapter()
    statistics = dataclasses.replace(plain, latent_factor=torch.full((2, 4, 8, 8), 0.5))
    digest = adapter_digest(made.lora, made.prompt, statistics)
    assert digest != made.sha256
    record = made.record.model_copy(update={"sha256": digest})
    save_adapter(dataclasses.replace(made, statistics=statistics, record=record), tmp_path / "birds")
    loaded = load_adapter(tmp_path / "birds").statistics
    assert loaded is not None and loaded.latent_factor is not None
    assert torch.equal(loaded.latent_factor, torch.full((2, 4, 8, 8), 0.5))
    for wrong in (torch.zeros(4, 8, 8), torch.zeros(0, 4, 8, 8), torch.full((1, 4, 8, 8), torch.nan)):
        bad = dataclasses.replace(plain, latent_factor=wrong)
        with pytest.raises(AdapterMismatch, match="latent_factor"):
            save_adapter(dataclasses.replace(made, statistics=bad), tmp_path / "bad")


def test_temperatures_are_interpolated_between_knots_and_stay_beyond_them() -> None:
    table = ((-2.0, 1.0), (0.0, 4.0), (2.0, 64.0))
    log_snr = torch.tensor([-9.0, -2.0, -1.0, 0.0, 1.0, 2.0, 9.0])
    expected = torch.tensor([1.0, 1.0, 2.0, 4.0, 16.0, 64.0, 64.0])
    assert torch.allclose(temperature_at(log_snr.sigmoid(), table), expected, rtol=1e-3)
    assert torch.equal(temperature_at(torch.tensor([0.1, 1.0]), 3.0), torch.tensor([3.0, 3.0]))
    ends = temperature_at(torch.tensor([0.0, 1.0]), POSTERIOR_TEMPERATURES)
    assert ends.isfinite().all()
    assert (ends >= 1).all()


def test_a_drawn_source_follows_the_weights_and_the_seed() -> None:
    x_t, a = torch.zeros(20000, 1, 1, 1), torch.full((20000,), 0.5)
    inner = prior_router(torch.tensor([0.2, 0.0, 0.5, 0.3]))
    w = weights(drawn(inner, seed=1), x_t, a)
    assert torch.equal(w.sort(1).values[:, -1], torch.ones(20000))
    assert torch.allclose(w.mean(0), torch.tensor([0.2, 0.0, 0.5, 0.3]), atol=0.015)
    assert (w[:, 1] == 0).all()
    assert torch.equal(w, weights(drawn(inner, seed=1), x_t, a))
    assert not torch.equal(w, weights(drawn(inner, seed=2), x_t, a))


@pytest.mark.parametrize("once", [True, False])
def test_a_choice_is_kept_for_the_run_or_drawn_anew_and_the_state_is_all(once: bool) -> None:
    x_t, a = torch.zeros(64, 1, 1, 1), torch.full((64,), 0.5)
    router = drawn(uniform_router(4), seed=0, once=once)
    first, state = router.route(router.start, x_t, a, None)
    second, _ = router.route(state, x_t, a, None)
    assert torch.equal(first, second) == once
    assert torch.equal(second, router.route(state, x_t, a, None)[0])
    if once:
        with pytest.raises(BadInput, match="keeps its batch"):
            router.route(state, x_t[:3], a[:3], None)


def test_each_prompts_pictures_share_its_prior() -> None:
    prior = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    w = weights(prior_router(prior), torch.zeros(4, C, G, G), torch.full((4,), 0.5))
    assert torch.equal(w, prior[[0, 0, 1, 1]])
    with pytest.raises(BadInput, match="3 rows for the priors of 2 prompts"):
        weights(prior_router(prior), torch.zeros(3, C, G, G), torch.full((3,), 0.5))
