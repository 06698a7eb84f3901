"""Routers of the literature against Gaussian mixtures, whose posterior is known at every noise level."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent / "eval"))  # as for a script that lies there

from baselines.average import average_router
from baselines.composite import composite_router
from baselines.ito import check_scheduler, ito_router
from baselines.joint_classifier import joint_classifier_router, train_joint_classifier
from baselines.kmeans import Prototypes, kmeans_router, prototypes
from baselines.loratorio import loratorio_router
from baselines.soup import soup
from baselines.switch import switch_router
from gaussians import Gaussians, ancestral_step, noised
from made_adapter import random_lora

from promptcdm.compose import compose_noise
from promptcdm.draw import drawn
from promptcdm.errors import BadInput
from promptcdm.router import Router, SourceStatistics, posterior_router, prior_router

LEVELS = [0.99, 0.7, 0.3, 0.05]


def weights(router: Router, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None = None) -> Tensor:
    return router.route(router.start, x_t, alpha_bar, eps)[0]


def plane(distance: float = 2.0) -> Gaussians:
    """Two sources in a plane."""
    mean = torch.tensor([[-distance, 0.0], [distance, 1.0]], dtype=torch.float64)
    var = torch.tensor([[0.5, 1.0], [1.0, 0.3]], dtype=torch.float64)
    share = torch.tensor([0.3, 0.7], dtype=torch.float64)
    return Gaussians(mean.reshape(2, 2, 1, 1), var.reshape(2, 2, 1, 1), share)


def levels(count: int, low: float = 0.03, high: float = 40.0) -> Tensor:
    """alpha_bar from almost pure noise to almost none, evenly in log sigma."""
    sigma = torch.linspace(
        torch.tensor(high).log(), torch.tensor(low).log(), count + 1, dtype=torch.float64
    ).exp()
    return 1 / (1 + sigma.square())


@pytest.mark.parametrize("alpha_bar", LEVELS)
def test_the_posterior_router_is_exact_for_gaussian_sources(alpha_bar: float) -> None:
    world, generator = plane(), torch.Generator().manual_seed(0)
    a = torch.full((64,), alpha_bar, dtype=torch.float64)
    x_t = noised(world.sample(64, generator)[0], a, generator)
    w = weights(posterior_router(SourceStatistics(world.mean, world.var), world.share, 1.0), x_t, a)
    assert torch.allclose(w, world.posterior(x_t, a), atol=1e-5)


def test_the_mixture_of_predictions_is_the_prediction_of_the_mixture() -> None:
    world, a = plane(), torch.tensor([0.6], dtype=torch.float64)
    x_t = torch.tensor([0.3, 0.2], dtype=torch.float64).reshape(1, 2, 1, 1).requires_grad_()
    (world.share.log() + world.log_densities(x_t, a)).logsumexp(1).sum().backward()
    exact = -((1 - 0.6) ** 0.5) * x_t.grad
    mixed = compose_noise(world.eps(x_t.detach(), a), world.posterior(x_t.detach(), a))
    averaged = compose_noise(world.eps(x_t.detach(), a), weights(average_router(2), x_t.detach(), a).double())
    assert torch.allclose(mixed, exact, atol=1e-10)
    assert not torch.allclose(averaged, exact, atol=0.05)


def test_the_prior_is_exact_in_pure_noise_and_only_there() -> None:
    world, generator = plane(), torch.Generator().manual_seed(0)
    for alpha_bar, close in ((1e-10, True), (0.9, False)):
        a = torch.full((32,), alpha_bar, dtype=torch.float64)
        x_t = noised(world.sample(32, generator)[0], a, generator)
        w = weights(prior_router(world.share), x_t, a)
        assert torch.allclose(w, world.posterior(x_t, a), atol=1e-4) == close


@pytest.mark.parametrize("alpha_bar", LEVELS)
def test_kmeans_is_exact_for_spherical_mixtures(alpha_bar: float) -> None:
    """Two centres in each of two sources: a Gaussian world of four, summed in pairs."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64)
    var, share = torch.tensor([0.1, 0.4, 0.2, 0.3]).double(), torch.tensor([0.1, 0.3, 0.4, 0.2]).double()
    world = Gaussians(centre, var.reshape(4, 1, 1, 1).expand_as(centre), share)
    a = torch.full((32,), alpha_bar, dtype=torch.float64)
    x_t = noised(world.sample(32, generator)[0], a, generator)
    prior = torch.stack([share[:2].sum(), share[2:].sum()])
    sources = [Prototypes(centre[k], var[k], share[k] / share[k].sum()) for k in (slice(2), slice(2, 4))]
    exact = world.posterior(x_t, a)
    expected = torch.stack([exact[:, :2].sum(1), exact[:, 2:].sum(1)], 1)
    assert torch.allclose(weights(kmeans_router(sources, prior), x_t, a), expected, atol=1e-8)


def test_prototypes_find_the_centres() -> None:
    generator = torch.Generator().manual_seed(0)
    centre = torch.tensor([[-5.0, 0.0], [5.0, 0.0], [0.0, 5.0]]).reshape(3, 2, 1, 1)
    latents = centre.repeat_interleave(200, 0) + 0.5 * torch.randn(600, 2, 1, 1, generator=generator)
    found = prototypes(latents, 3, 1)
    assert torch.cdist(centre.flatten(1), found.centre.flatten(1)).amin(1).max() < 0.15
    assert torch.allclose(found.var, torch.full((3,), 0.25), atol=0.04)
    assert torch.allclose(found.share, torch.full((3,), 1 / 3))


def apart() -> Gaussians:
    """Two sources in 16 dimensions."""
    mean = torch.randn(2, 16, 1, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    var = torch.full_like(mean, 0.25)
    return Gaussians(mean, var, torch.tensor([0.5, 0.5], dtype=torch.float64))


def ito_errors(steps: int, chains: int = 100) -> tuple[float, float, float]:
    """Mean error of log q_1 - log q_0; how often the right source is first, so and with the sign flipped."""
    world, generator = apart(), torch.Generator().manual_seed(steps)
    router, a = ito_router(world.share), levels(steps)
    x_t = torch.randn(chains, 16, 1, 1, generator=generator, dtype=torch.float64)
    state, flipped = router.start, torch.zeros(chains, 2, dtype=torch.float64)
    for k in range(steps + 1):
        at = a[k].expand(chains)
        eps = world.eps(x_t, at)
        before = state
        _, state = router.route(state, x_t, at, eps)
        if before is not None:
            sigma, now = ((1 - a[k - 1 : k + 1]) / a[k - 1 : k + 1]).sqrt()
            dy = x_t / a[k].sqrt() - before.x_t / a[k - 1].sqrt()
            along = torch.einsum("bchw,nbchw->bn", dy, before.eps.double())
            flipped += -along / sigma + (sigma - now) / sigma * before.eps.double().square().sum((2, 3, 4)).T
        if k < steps:
            mixed = compose_noise(eps, world.posterior(x_t, at))
            x_t = ancestral_step(x_t, mixed, float(a[k]), float(a[k + 1]), generator)
    exact = world.log_densities(x_t, a[-1:].expand(chains)).diff(dim=1).squeeze(1)
    found = state.log_q.double().diff(dim=1).squeeze(1)
    right = (found.sign() == exact.sign()).double().mean()
    wrong = (flipped.diff(dim=1).squeeze(1).sign() == exact.sign()).double().mean()
    return float((found - exact).abs().mean()), float(right), float(wrong)


def test_the_ito_density_comes_nearer_with_the_steps_and_the_flipped_sign_does_not_rank() -> None:
    errors, right, wrong = zip(*(ito_errors(steps) for steps in (50, 200, 800)), strict=True)
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]
    assert min(right[1:]) >= 0.99
    assert max(wrong) < 0.1


class DDIMScheduler:
    """By name alone."""


class DPMSolverMultistepScheduler:
    """By name alone."""


class DDPMScheduler:
    """By name alone."""


def test_ito_refuses_deterministic_samplers_and_a_call_without_predictions() -> None:
    check_scheduler(DDIMScheduler(), eta=1.0)
    check_scheduler(DDPMScheduler())
    with pytest.raises(BadInput, match=r"DDIMScheduler, eta 0\.0"):
        check_scheduler(DDIMScheduler())
    with pytest.raises(BadInput, match="DPMSolver"):
        check_scheduler(DPMSolverMultistepScheduler(), eta=1.0)
    with pytest.raises(BadInput, match="needs every source's prediction"):
        weights(ito_router(torch.ones(2) / 2), torch.zeros(1, 4, 2, 2), torch.tensor([0.5]))


def test_one_source_drawn_once_and_sampled_exactly_gives_the_shares_of_the_mixture() -> None:
    world, generator, chains = plane(6.0), torch.Generator().manual_seed(0), 2000
    router, a = drawn(prior_router(world.share), seed=5), levels(50)
    x_t = torch.randn(chains, 2, 1, 1, generator=generator, dtype=torch.float64)
    state = router.start
    for k in range(50):
        at = a[k].expand(chains)
        w, state = router.route(state, x_t, at, None)
        x_t = ancestral_step(
            x_t, compose_noise(world.eps(x_t, at), w), float(a[k]), float(a[k + 1]), generator
        )
    right = x_t[:, 0].flatten() > 0
    assert abs(float(right.double().mean()) - 0.7) < 0.03
    assert torch.equal(right, w[:, 1] == 1)
    assert torch.allclose(x_t[right].mean(0).flatten(), world.mean[1].flatten(), atol=0.1)


def test_the_joint_classifier_comes_near_the_exact_posterior() -> None:
    world, generator = plane(1.0), torch.Generator().manual_seed(0)
    noise = torch.randn(2, 2000, 2, 1, 1, generator=generator)
    latents = [(m + v.sqrt() * e).float() for m, v, e in zip(world.mean, world.var, noise, strict=True)]
    router = joint_classifier_router(
        train_joint_classifier(latents, 1, steps=200, batch=128), world.share.float()
    )
    for alpha_bar in LEVELS:
        a = torch.full((500,), alpha_bar, dtype=torch.float64)
        x_t = noised(world.sample(500, generator)[0], a, generator)
        error = (weights(router, x_t, a) - world.posterior(x_t, a)).abs().mean()
        prior_error = (world.share - world.posterior(x_t, a)).abs().mean()
        assert error < 0.04 and (error < 0.5 * prior_error or alpha_bar < 0.1)


def test_loratorio_prefers_the_source_that_differs_from_the_backbone_patch_by_patch() -> None:
    backbone = torch.randn(1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    changes = backbone.clone()
    changes[..., :2] = -changes[..., :2]  # on the left half alone
    w = weights(
        loratorio_router(), backbone[0], torch.tensor([0.5]), torch.cat([backbone, changes, backbone])
    )
    assert torch.allclose(w.sum(1), torch.ones(1, 4, 4))
    assert (w[:, 0] == 0).all()
    assert (w[:, 1, :, :2] > 0.99).all()
    assert torch.allclose(w[:, 1, :, 2:], torch.tensor(0.5))
    with pytest.raises(BadInput, match="divisible by 3"):
        weights(loratorio_router(3), backbone[0], torch.tensor([0.5]), torch.cat([backbone, changes]))


def test_switch_goes_round() -> None:
    router, x_t, a = switch_router(3, every=2), torch.zeros(1, 4, 2, 2), torch.tensor([0.5])
    state, seen = router.start, []
    for _ in range(8):
        w, state = router.route(state, x_t, a, None)
        seen.append(int(w.argmax()))
    assert seen == [0, 0, 1, 1, 2, 2, 0, 0]


def test_composite_and_average_weigh_all_alike() -> None:
    x_t, a = torch.zeros(2, 4, 2, 2), torch.tensor([0.5, 0.5])
    for router in (composite_router(4), average_router(4)):
        assert torch.equal(weights(router, x_t, a), torch.full((2, 4), 0.25))


def test_the_soup_is_the_average_of_the_changes_and_not_of_the_factors() -> None:
    shapes = {"mid.proj": (6, 4), "down.conv": (5, 4, 3, 3)}
    one, two = random_lora(shapes, seed=1), random_lora(shapes, rank=3, seed=2)
    del two["unet.down.conv.lora_A.weight"], two["unet.down.conv.lora_B.weight"]
    joined = soup([one, two], [0.25, 0.75])

    def change(lora: dict[str, Tensor], module: str) -> Tensor:
        return lora[f"{module}.lora_B.weight"].flatten(1) @ lora[f"{module}.lora_A.weight"].flatten(1)

    proj, conv = "unet.mid.proj", "unet.down.conv"
    assert torch.allclose(
        change(joined, proj), 0.25 * change(one, proj) + 0.75 * change(two, proj), atol=1e-6
    )
    assert torch.allclose(change(joined, conv), 0.25 * change(one, conv), atol=1e-6)
    same_rank = random_lora(shapes, seed=2)
    factors = {key: (one[key] + same_rank[key]) / 2 for key in one}
    assert not torch.allclose(
        change(factors, proj), change(soup([one, same_rank], [0.5, 0.5]), proj), atol=1e-2
    )
    with pytest.raises(BadInput, match="1 LoRAs and 2 weights"):
        soup([one], [0.5, 0.5])
