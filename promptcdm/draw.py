"""One source a picture, drawn by its weight, in the place of the weighted sum.

Drawing i ~ pi(c) once and following that source alone samples the mixture of equation (1) exactly, for one row a step.
Drawing i ~ w(x_t) at every step of an ancestral sampler is exact in the limit of small steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from promptcdm.errors import BadInput
from promptcdm.router import Router


@dataclass(frozen=True)
class Drawn:
    """The state of a drawn router."""

    inner: Any  # the state of the router that is drawn from
    generator: Tensor  # state of the random generator
    choice: Tensor | None = (
        None  # (B, N) one-hot, drawn at the first call and kept; None where each call draws
    )


def drawn(router: Router, seed: int, once: bool = True) -> Router:
    """One-hot w of a source i ~ w of `router`, for each sample: at the first call, or with `once=False` at every call.

    The draws follow from `seed` and the place in the batch alone. Raises BadInput, when it is called, for a router
    whose weights differ from place to place, and where the batch changes its size during a run.
    """

    def route(state: Drawn, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, Drawn]:
        if state.choice is not None:
            if len(state.choice) != len(x_t):
                raise BadInput(f"{len(x_t)} samples after {len(state.choice)}; a drawn run keeps its batch")
            return state.choice, state
        w, inner = router.route(state.inner, x_t, alpha_bar, eps)
        if w.ndim != 2:
            raise BadInput(
                f"weights {tuple(w.shape)} differ by place; only one source for the whole can be drawn"
            )
        choice, after = _draw(w, state.generator)
        return choice, Drawn(inner, after, choice if once else None)

    return Router(
        route, Drawn(router.start, torch.Generator().manual_seed(seed).get_state()), router.needs_eps
    )


def _draw(w: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """One-hot choices for w (B, N), and the generator's state after them; a weight of zero is never drawn."""
    generator = torch.Generator()
    generator.set_state(before)
    reached = w.detach().cpu().double().cumsum(1)
    point = torch.rand(len(w), 1, generator=generator, dtype=torch.float64) * reached[:, -1:]
    chosen = torch.searchsorted(reached, point, right=True).squeeze(1)
    return F.one_hot(chosen, w.shape[1]).to(w.device, w.dtype), generator.get_state()
