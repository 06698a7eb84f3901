"""From a router's name and the allowed adapters to the router; what it needs is checked before any picture is begun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch

from promptcdm import router
from promptcdm.adapter import Adapter
from promptcdm.errors import BadInput
from promptcdm.prompt_prior import PromptFeatures, prompt_prior
from promptcdm.regional import regional_router, regions_of
from promptcdm.router import Router
from promptcdm.settings import RouterName

ROUTERS = get_args(RouterName)
NEED_PROMPT = ("prompt", "posterior", "regional")


def check_router(name: str, adapters: Sequence[Adapter]) -> None:
    """Raise BadInput for an unknown router, and for one that needs statistics which an adapter does not have."""
    if name not in ROUTERS:
        raise BadInput(f"router {name!r} is unknown; accepted: {', '.join(ROUTERS)}")
    without = [a.source for a in adapters if a.statistics is None]
    if name != "uniform" and without:
        raise BadInput(
            f"router {name} needs statistics, which {', '.join(without)} does not have (imported without pictures); "
            "use --router uniform"
        )


@dataclass(frozen=True)
class Texts:
    """The prompts, and how texts become what the sources' captions are compared with."""

    prompts: Sequence[str]
    features: Callable[[Sequence[str]], PromptFeatures]


def router_of(name: RouterName, adapters: Sequence[Adapter], texts: Texts, device: torch.device) -> Router:
    """The router `name` over these sources, for these prompts."""
    known = [a.statistics for a in adapters if a.statistics is not None]
    if name == "uniform":
        return router.uniform_router(len(adapters))
    if name == "prior":
        return router.prior_router(router.share_prior(torch.tensor([s.count for s in known], device=device)))
    if name == "regional":
        regions = [regions_of(prompt) for prompt in texts.prompts]
        phrases = [texts.features([region.phrase for region in own]) for own in regions]
        priors = [prompt_prior(phrase, known) for phrase in phrases]
        return regional_router(priors, [[region.box for region in own] for own in regions])
    prior = prompt_prior(texts.features(texts.prompts), known)
    if name == "prompt":
        return router.prior_router(prior)
    return router.posterior_router(router.on_device(router.stack_statistics(known), device), prior)
