"""The two networks of `sealed-judge`: a finder that says where things are, a namer that looks at each of them alone.

    finder   (B, 3, 64, 64)  ->  heat (B, 16, 16), is a thing's middle here; size (B, 2, 16, 16), its width and height
    namer    (B, 3, s, s), one thing a crop  ->  concepts (B, C) and colours (B, 11), as logits

The finder is a small CenterNet (Zhou et al. 2019, "Objects as Points") that knows no concept; the namer is a
classifier. Neither has a text tower. Pictures are in 0..1; boxes are (left, top, right, bottom) in 0..1.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 64  # pixels a side of a picture
CELLS = 16  # of the finder's grid, a side
CROP = 64  # pixels a side of what the namer sees
MARGIN = 0.08  # of a thing's sides that a crop shows around it
FEATURES = 256  # of the namer
WIDTHS = (48, 96, 192, 256)  # channels of its stages: 32, 16, 8 and 4 cells a side
INK = 0.95  # a pixel with a channel below it is drawn on


class Found(NamedTuple):
    """What the finder says of each cell."""

    heat: Tensor  # (B, 16, 16) logits
    size: Tensor  # (B, 2, 16, 16) width and height, in 0..1


class Finder(nn.Module):
    """Where things are."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.fine = nn.Sequential(_conv(3, width, 2), _conv(width, 2 * width, 2), Block(2 * width, 2 * width))
        self.coarse = nn.Sequential(_conv(2 * width, 4 * width, 2), Block(4 * width, 4 * width))
        self.coarsest = _conv(4 * width, 4 * width, 2)
        self.joined = _conv(10 * width, 2 * width, 1)
        self.heads = nn.Conv2d(2 * width, 3, 1)
        assert self.heads.bias is not None
        nn.init.constant_(self.heads.bias, -3.0)  # most cells are empty

    def forward(self, pictures: Tensor) -> Found:
        """(B, 3, 64, 64) to what is found."""
        fine = self.fine(2 * pictures - 1)
        coarse = self.coarse(fine)
        coarsest = self.coarsest(coarse)
        grids = [fine, *(F.interpolate(grid, fine.shape[-2:], mode="nearest") for grid in (coarse, coarsest))]
        out = self.heads(self.joined(torch.cat(grids, 1)))
        return Found(out[:, 0], out[:, 1:].sigmoid())


class Namer(nn.Module):
    """What one thing is, and its colour: cosines of learned features with a point for each concept."""

    def __init__(self, concepts: int, colors: int) -> None:
        super().__init__()
        self.stem = _conv(3, WIDTHS[0], 2)
        first, *widths = WIDTHS[:-1]
        stages = [nn.Sequential(Block(first, first), Block(first, first))]
        for before, after in pairwise((first, *widths)):
            stages.append(nn.Sequential(Block(before, after, 2), Block(after, after)))
        self.stages = nn.ModuleList([*stages, Block(widths[-1], WIDTHS[-1], 2)])
        self.head = nn.Linear(WIDTHS[-1], FEATURES)
        self.points = nn.Parameter(torch.randn(concepts, FEATURES))
        self.scale = nn.Parameter(torch.tensor(3.0))  # logarithm
        self.colors = nn.Linear(WIDTHS[1] + WIDTHS[-1], colors)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, s, s) to logits of concepts (n, C) and of colours (n, colours)."""
        grid, pooled = self.stem(2 * crops - 1), []
        for stage in self.stages:
            grid = stage(grid)
            pooled.append(grid.mean((2, 3)))
        features = F.normalize(self.head(pooled[-1]), dim=1)
        concepts = self.scale.exp() * features @ F.normalize(self.points, dim=1).T
        return concepts, self.colors(torch.cat([pooled[1], pooled[-1]], 1))


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.first = _conv(before, after, stride)
        self.second = nn.Sequential(nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after))
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, h, w) to (B, after, h / stride, w / stride)."""
        short = x if self.stride == 1 else F.avg_pool2d(x, self.stride, ceil_mode=True)
        out: Tensor = F.silu(self.second(self.first(x)) + self.shortcut(short))
        return out


def _conv(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.SiLU()
    )


def crops(pictures: Tensor, boxes: Tensor, size: int = CROP) -> Tensor:
    """Each picture's box (B, 4) as a square of `size` pixels, white where the box with its margin ends."""
    left, top, right, bottom = boxes.unbind(1)
    wide, high = (right - left).clamp_min(1 / SIZE), (bottom - top).clamp_min(1 / SIZE)
    half = torch.maximum(wide, high) * (1 + 2 * MARGIN) / 2
    theta = torch.zeros(len(boxes), 2, 3, device=boxes.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 2 * half  # affine_grid counts from -1 to 1
    theta[:, 0, 2], theta[:, 1, 2] = left + right - 1, top + bottom - 1
    grid = F.affine_grid(theta, [len(boxes), 3, size, size], align_corners=False)
    ink = F.grid_sample(1 - pictures, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    middle = torch.stack([left + right - 1, top + bottom - 1], 1)[:, None, None]
    reach = torch.stack([wide, high], 1)[:, None, None] * (1 + 2 * MARGIN)
    inside = ((grid - middle).abs() <= reach).all(-1)
    return 1 - ink * inside[:, None]


def ink_boxes(pictures: Tensor) -> Tensor:
    """(B, 4): the smallest box around all that is drawn; the whole picture where nothing is."""
    drawn = pictures.amin(1) < INK  # (B, H, W)
    boxes = []
    for along in (drawn.any(1), drawn.any(2)):  # columns, rows
        count = along.shape[1]
        first = along.float().argmax(1)
        last = count - along.flip(1).float().argmax(1)
        boxes.append((first / count, last / count))
    (left, right), (top, bottom) = boxes
    return torch.stack([left, top, right, bottom], 1)


def boxes_of(found: Found, least: float = 0.3, most: int = 8) -> list[tuple[Tensor, Tensor]]:
    """Boxes (k, 4) and how sure they are (k,), the surest first, of each picture: peaks of the heat.

    A box that overlaps a surer one by half is left out.
    """
    heat = found.heat.sigmoid()
    peaks = heat * (F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0] == heat)
    results = []
    for peak, size in zip(peaks, found.size, strict=True):
        values, places = peak.flatten().topk(most)
        values, places = values[values >= least], places[values >= least]
        across, down = (places % CELLS + 0.5) / CELLS, (places // CELLS + 0.5) / CELLS
        middle, half = torch.stack([across, down], 1), size.flatten(1)[:, places].T / 2
        kept = _apart(torch.cat([middle - half, middle + half], 1))
        results.append((torch.cat([middle - half, middle + half], 1)[kept], values[kept]))
    return results


def _apart(boxes: Tensor) -> list[int]:
    """Places of the boxes that no earlier kept one overlaps by half of their union."""
    kept: list[int] = []
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(1)
    for place in range(len(boxes)):
        low = torch.maximum(boxes[place, :2], boxes[kept, :2])
        high = torch.minimum(boxes[place, 2:], boxes[kept, 2:])
        both = (high - low).clamp_min(0).prod(1)
        if not (both > 0.5 * (areas[place] + areas[kept] - both)).any():
            kept.append(place)
    return kept
