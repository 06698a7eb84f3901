"""What the two networks learn by: the name of a thing, and the heat and size at its middle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from promptcdm.sealed_network import CELLS, Found

SMOOTHING = 0.1


def named_loss(logits: Tensor, covered: Tensor) -> Tensor:
    """(n,): -log of the sum of P over the concepts that the name covers, smoothed."""
    total = logits.logsumexp(1)
    own = logits.masked_fill(~covered, -torch.inf).logsumexp(1)
    return (1 - SMOOTHING) * (total - own) + SMOOTHING * (total - logits.mean(1))


def color_loss(logits: Tensor, colors: Tensor) -> Tensor:
    """Cross-entropy over the things whose colour is known, -1 where it is not."""
    return F.cross_entropy(logits, colors, ignore_index=-1, reduction="sum") / (colors >= 0).sum().clamp_min(
        1
    )


def heat_of(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of boxes (B, k, 4), the first of each picture a thing: the heat to learn (B, 16, 16), cells and what counts.

    The heat is 1 at the cell of a thing's middle and falls around it. Cells (B, k) are places in the flat grid, and a
    box of width 0 counts for nothing (B, k) bool.
    """
    sides, middles = boxes[..., 2:] - boxes[..., :2], (boxes[..., 2:] + boxes[..., :2]) / 2
    there = sides[..., 0] > 0
    steps = (torch.arange(CELLS, device=boxes.device) + 0.5) / CELLS
    spread = (sides.amin(-1) / 6).clamp_min(0.5 / CELLS)[..., None, None]
    off = (steps - middles[..., :1]) ** 2, (steps - middles[..., 1:]) ** 2  # (B, k, 16) across, down
    bumps = torch.exp(-(off[0][..., None, :] + off[1][..., None]) / (2 * spread**2)) * there[..., None, None]
    column, row = (middles * CELLS).long().clamp(0, CELLS - 1).unbind(-1)
    cells = row * CELLS + column
    cells = torch.where(there, cells, cells[:, :1])
    heat = bumps.amax(1).flatten(1).scatter(1, cells, 1.0)
    return heat.view(-1, CELLS, CELLS), cells, there


def heat_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """CenterNet's focal loss, over the number of things."""
    share, here = logits.sigmoid(), (heat == 1).float()
    missed = (1 - share) ** 2 * F.softplus(-logits) * here
    false = (1 - heat) ** 4 * share**2 * F.softplus(logits) * (1 - here)
    return (missed + false).sum() / here.sum()


def finder_losses(found: Found, boxes: Tensor) -> dict[str, Tensor]:
    """Of where things are, and how large."""
    heat, cells, there = heat_of(boxes)
    sides = boxes[..., 2:] - boxes[..., :2]  # (B, k, 2)
    told = found.size.float().flatten(2).gather(2, cells[:, None].expand(-1, 2, -1)).transpose(1, 2)
    off = ((told - sides).abs() * there[..., None]).sum() / (2 * there.sum())
    return {"heat": heat_loss(found.heat.float(), heat), "size": 5 * off}
