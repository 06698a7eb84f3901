"""From a router's name and the allowed adapters to the router; what it needs is checked before any picture is begun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from promptcdm import router
from promptcdm.adapter import Adapter, Statistics
from promptcdm.errors import BadInput
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


def router_of(
    name: RouterName, adapters: Sequence[Adapter], prompt: Tensor | None, device: torch.device
) -> Router:
    """The router `name` over these sources, for prompts whose mean embedding is `prompt` (prompts, D)."""
    known = [a.statistics for a in adapters if a.statistics is not None]
    if name == "uniform":
        return router.uniform_router(len(adapters))
    if name == "prior":
        return router.prior_router(router.share_prior(torch.tensor([s.count for s in known], device=device)))
    assert prompt is not None
    prior = prompt_weights(prompt, known)
    if name == "prompt":
        return router.prior_router(prior)
    statistics = router.stack_statistics(known)
    return router.posterior_router(router.on_device(statistics, device), prior)


def prompt_weights(prompt: Tensor, known: Sequence[Statistics]) -> Tensor:
    """pi_i(c) (prompts, N)."""
    return router.prompt_prior(prompt, [s.caption_prototypes.to(prompt.device) for s in known])
