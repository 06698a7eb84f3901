"""Joined scenes: each phrase of a prompt has a region, and each region has the source that knows its phrase best.

    "a red apple and a blue car"    a red apple on the left half, a blue car on the right half
    "a cat above a dog"             a cat on the upper half, a dog on the lower half

A heuristic, and not equation (1): that says OR (a picture comes from one source), this says AND. Nobody's density is
sampled, and the text that a source sees is still the whole prompt.

The split goes by words alone. It cannot tell a join from one idea of two words: "salt and pepper", "a man with a hat"
and "a small, round table" are split too. Regions are halves or equal columns, never the size of the thing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from promptcdm.errors import BadInput
from promptcdm.router import Router

Box = tuple[float, float, float, float]  # left, top, right, bottom in [0, 1]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
SEAM = 0.125  # of the picture's side: where one region fades into the next

_PLACED = re.compile(
    r"\s+(?:(?:is|are)\s+)?(?:(?:to|on) the )?"
    r"(?P<side>left of|right of|above|on top of|over|below|under|beneath|underneath)\s+",
    re.IGNORECASE,
)
_JOIN = re.compile(r"\s*,\s*(?:and\s+|with\s+)?|\s+(?:and|with|next to|beside)\s+", re.IGNORECASE)
_FIRST_IS = {"left of": "left", "right of": "right", "above": "top", "on top of": "top", "over": "top"}


@dataclass(frozen=True)
class Region:
    """A phrase and the part of the picture that it is about."""

    phrase: str
    box: Box


def regions_of(prompt: str) -> list[Region]:
    """The phrases of a prompt and their boxes, which tile the picture; a prompt without a join is one phrase.

    "left of", "right of", "above", "below" and kin halve the picture, the first of them in the prompt first; "and",
    "with", "next to" and commas make equal columns of what is left.
    """
    return _regions(prompt.strip().rstrip(".,"), WHOLE)


def _regions(text: str, box: Box) -> list[Region]:
    placed = _PLACED.search(text)
    if placed and (first := text[: placed.start()].strip()) and (second := text[placed.end() :].strip()):
        one, other = _halves(box, _FIRST_IS.get(placed["side"].lower(), "bottom"))
        return [*_regions(first, one), *_regions(second, other)]
    phrases = [part.strip() for part in _JOIN.split(text) if part.strip()] or [text]
    left, top, right, bottom = box
    edges = [left + (right - left) * i / len(phrases) for i in range(len(phrases))] + [right]
    return [Region(p, (edges[i], top, edges[i + 1], bottom)) for i, p in enumerate(phrases)]


def _halves(box: Box, first: str) -> tuple[Box, Box]:
    """The half on the side `first`, and the other."""
    left, top, right, bottom = box
    x, y = (left + right) / 2, (top + bottom) / 2
    if first in ("left", "right"):
        halves: tuple[Box, Box] = (left, top, x, bottom), (x, top, right, bottom)
    else:
        halves = (left, top, right, y), (left, y, right, bottom)
    return halves if first in ("left", "top") else halves[::-1]


def regional_router(priors: Sequence[Tensor], boxes: Sequence[Sequence[Box]], seam: float = SEAM) -> Router:
    """w (B, N, H, W): in each box the source that its phrase's prior prefers, with a linear seam between boxes.

    `priors` holds for each prompt pi_i(phrase), (phrases, N), over the allowed sources; `boxes` as many boxes, which
    cover the picture. Rows are a multiple of the prompts, each prompt's pictures together. Raises BadInput where the
    numbers disagree, and, when it is called, where no box covers a part of the picture.
    """
    if not len(priors) or [len(p) for p in priors] != [len(b) for b in boxes]:
        raise BadInput(
            f"priors of {[len(p) for p in priors]} phrases and {[len(b) for b in boxes]} boxes; "
            "a box for each phrase of at least one prompt is accepted"
        )
    chosen = [F.one_hot(prior.argmax(1), prior.shape[1]).float() for prior in priors]  # (phrases, N) each

    def route(state: Any, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, Any]:
        if len(x_t) % len(priors):
            raise BadInput(f"{len(x_t)} rows for {len(priors)} prompts; a multiple of them is accepted")
        size = (x_t.shape[-2], x_t.shape[-1])
        w = [
            torch.einsum("rn,rhw->nhw", one.to(x_t.device), _shares(held, size, seam).to(x_t.device))
            for one, held in zip(chosen, boxes, strict=True)
        ]
        return torch.stack(w).repeat_interleave(len(x_t) // len(priors), dim=0), state

    return Router(route)


def _shares(boxes: Sequence[Box], size: tuple[int, int], seam: float) -> Tensor:
    """How much of each place belongs to each box, (boxes, H, W); sums to one."""
    height, width = size
    share = torch.stack(
        [_ramp(t, b, height, seam)[:, None] * _ramp(le, r, width, seam)[None, :] for le, t, r, b in boxes]
    )
    total = share.sum(0)
    if (total <= 0).any():
        raise BadInput(f"the boxes {list(boxes)} leave a part of the picture uncovered")
    return share / total


def _ramp(low: float, high: float, places: int, seam: float) -> Tensor:
    """1 within [low, high] of the side, 0 outside, linear over the seam; full at the picture's own border."""
    u = (torch.arange(places) + 0.5) / places
    band = max(seam, 1e-6)
    rise = ((u - low) / band + 0.5).clamp(0, 1) if low > 0 else torch.ones(places)
    fall = ((high - u) / band + 0.5).clamp(0, 1) if high < 1 else torch.ones(places)
    return rise * fall
