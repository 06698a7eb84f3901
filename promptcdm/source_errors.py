"""How well each source, the bare backbone, and the composition with and without each source denoise given pictures.

    e_i = || eps_i(x_t, t, c) - n ||^2,    x_t = sqrt(abar) x_0 + sqrt(1 - abar) n

All pictures meet the same noises n, of the seed alone, at log-SNRs evenly apart: differences are the models'. A picture
costs one row of the UNet a source (a slice), and one for the backbone, at each noise. What is composed from these rows
costs none.

    B    pictures       N    allowed sources       L    noise levels       x_0    latents, scaled (B, C, h, w)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.compose import compose_noise
from promptcdm.composed_unet import ComposedUNet
from promptcdm.errors import BadInput
from promptcdm.fixed_noise import noise_of, predicted_noise
from promptcdm.route import Texts, check_router, router_of
from promptcdm.router import Router
from promptcdm.settings import RouterName

LOG_SNR = (4.5, -4.5)  # outside, all predictions are the same, or none is near the noise


@dataclass(frozen=True)
class Errors:
    """Squared errors over the C h w latents, their mean over the draws of each level."""

    source: Tensor  # (B, N, L)
    backbone: Tensor  # (B, L)
    composed: Tensor | None  # (B, L); None: no router was given
    without: Tensor | None  # (B, N, L) of the composition without each source
    log_snr: tuple[float, ...]  # (L,) descending
    row_forwards: Tensor  # (B,)


@dataclass
class _Listener:
    """A router that keeps every source's prediction of the last call; the sum that is made of them is not used."""

    eps: Tensor | None = None  # (N, B, C, h, w)

    def router(self, n: int) -> Router:
        def route(state: Any, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, Any]:
            self.eps = eps
            return x_t.new_full((len(x_t), n), 1.0 / n, dtype=torch.float32), state

        return Router(route, needs_eps=True)


def timesteps_of(backbone: Backbone, levels: int) -> list[int]:
    """Ascending timesteps whose log-SNRs are as even as the schedule allows. Raises BadInput for no level."""
    if levels < 1:
        raise BadInput(f"noise_levels is {levels}; it takes 1 or more")
    table = backbone.alphas_cumprod.double().logit()
    wanted = torch.linspace(*LOG_SNR, levels, dtype=torch.float64) if levels > 1 else torch.zeros(1).double()
    return sorted({int((table - each).abs().argmin()) for each in wanted})


@torch.no_grad()
def source_errors(
    backbone: Backbone,
    adapters: Sequence[Adapter],
    x_0: Tensor,
    prompts: Sequence[str],
    *,
    noise_levels: int,
    draws: int,
    seed: int = 0,
    router: RouterName | None = None,
    allow_backbone_mismatch: bool = False,
) -> Errors:
    """Errors of B pictures with their prompts, all rows of a noise in one forward.

    With `router` the composition and, for each source, the composition of the others are measured too. Raises BadInput
    where there are no sources, no draws, or no statistics that the router needs; AdapterMismatch as `ComposedUNet`.
    """
    if not adapters or draws < 1:
        raise BadInput(f"{len(adapters)} sources and {draws} draws; it takes 1 or more of each")
    if router is not None:
        check_router(router, adapters)
    heard = _Listener()
    options: dict[str, Any] = {"guidance_scale": 1.0, "allow_backbone_mismatch": allow_backbone_mismatch}
    composed = ComposedUNet(backbone, adapters, router=heard.router(len(adapters)), **options)
    bare = ComposedUNet(backbone, [], router="uniform", guidance_scale=1.0)
    try:
        mixtures = _Mixtures(backbone, adapters, prompts, router) if router else None
        return _measure(composed, bare, heard, mixtures, x_0, prompts, noise_levels, draws, seed)
    finally:
        composed.close()


def _measure(
    composed: ComposedUNet,
    bare: ComposedUNet,
    heard: _Listener,
    mixtures: _Mixtures | None,
    x_0: Tensor,
    prompts: Sequence[str],
    noise_levels: int,
    draws: int,
    seed: int,
) -> Errors:
    backbone = composed.backbone
    pictures = x_0.to(backbone.device, torch.float32)
    steps = timesteps_of(backbone, noise_levels)
    texts, bare_texts = composed.encode(prompts), bare.encode(prompts)
    found: list[Tensor] = []  # (B, N + 1), or (B, 2 N + 2), a level; descending as noise falls within a run
    for level, t in reversed(list(enumerate(steps))):
        a = backbone.alpha_bar(torch.tensor([float(t)])).to(pictures)
        total = torch.zeros(len(pictures), 1)
        for draw in range(draws):
            noise = noise_of(pictures.shape[1:], seed, level * draws + draw).to(pictures)
            x_t = a.sqrt() * pictures + (1 - a).sqrt() * noise
            plain = predicted_noise(bare, x_t, t, bare_texts)
            predicted_noise(composed, x_t, t, texts)
            assert heard.eps is not None
            parts = [heard.eps.float(), plain.float()[None]]
            if mixtures is not None:
                parts.append(mixtures.predict(heard.eps.float(), plain.float(), x_t, a.expand(len(x_t))))
            total = total + (torch.cat(parts) - noise).square().sum((2, 3, 4)).T.double().cpu()
        found.append(total / draws)
    errors, n = torch.stack(found[::-1], 2), len(composed.adapters)  # (B, ., L)
    return Errors(
        source=errors[:, :n],
        backbone=errors[:, n],
        composed=errors[:, n + 1] if mixtures is not None else None,
        without=errors[:, n + 2 :] if mixtures is not None else None,
        log_snr=tuple(float(backbone.alphas_cumprod[t].double().logit()) for t in steps),
        row_forwards=composed.row_forwards + bare.row_forwards,
    )


class _Mixtures:
    """Compositions of the sources' predictions by a router: of all of them, and of all but each one."""

    def __init__(
        self, backbone: Backbone, adapters: Sequence[Adapter], prompts: Sequence[str], name: RouterName
    ) -> None:
        texts = Texts(prompts, backbone.prompt_features)
        everyone = list(range(len(adapters)))
        self.kept = [everyone, *([i for i in everyone if i != k] for k in everyone)]
        self.routers = [
            router_of(name, [adapters[i] for i in kept], texts, backbone.device) if kept else None
            for kept in self.kept
        ]

    def predict(self, eps: Tensor, plain: Tensor, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """(1 + N, B, C, h, w) from `eps` (N, B, C, h, w); without the only source it is the backbone's `plain`."""
        made = []
        for kept, router in zip(self.kept, self.routers, strict=True):
            if router is None:
                made.append(plain)
                continue
            w, _ = router.route(router.start, x_t, alpha_bar, None)
            made.append(compose_noise(eps[kept], w))
        return torch.stack(made)
