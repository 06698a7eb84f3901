"""Drawn shapes on white, and changes of a picture's style: what `instance-tower` learns from beside noto and icons."""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

SIDE, DRAWN = 64, 128  # drawn large and made smaller, so that edges are smooth


def draw_shapes(seed: int) -> Image.Image:
    """One to six polygons, ellipses, stars and strokes in up to four colours, some with an outline."""
    rng = random.Random(seed)
    picture = Image.new("RGB", (DRAWN, DRAWN), "white")
    draw = ImageDraw.Draw(picture)
    palette = [tuple(rng.randrange(256) for _ in range(3)) for _ in range(rng.randint(1, 4))]
    outline = rng.choice([None, (0, 0, 0), rng.choice(palette)])
    for _ in range(rng.randint(1, 6)):
        x, y, r = rng.uniform(30, 98), rng.uniform(30, 98), rng.uniform(8, 44)
        colour = rng.choice(palette)
        kind = rng.choice(["ellipse", "polygon", "star", "stroke", "box"])
        if kind == "ellipse":
            high = r * rng.uniform(0.4, 1)
            draw.ellipse((x - r, y - high, x + r, y + high), fill=colour, outline=outline, width=3)
        elif kind == "box":
            high = r * rng.uniform(0.4, 1)
            box = (x - r, y - high, x + r, y + high)
            draw.rounded_rectangle(box, rng.uniform(0, high), fill=colour, outline=outline, width=3)
        elif kind == "stroke":
            points = [(rng.uniform(16, 112), rng.uniform(16, 112)) for _ in range(rng.randint(2, 4))]
            draw.line(points, fill=colour, width=rng.randint(3, 14), joint="curve")
        else:
            draw.polygon(_corners(rng, x, y, r, star=kind == "star"), fill=colour, outline=outline, width=3)
    return picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _corners(rng: random.Random, x: float, y: float, r: float, *, star: bool) -> list[tuple[float, float]]:
    count = rng.randint(3, 7)
    turn = rng.uniform(0, 2 * math.pi)
    radii = [r, r * rng.uniform(0.3, 0.7)] if star else [r]
    total = count * len(radii)
    angles = [turn + 2 * math.pi * i / total for i in range(total)]
    return [
        (x + radii[i % len(radii)] * math.cos(a), y + radii[i % len(radii)] * math.sin(a))
        for i, a in enumerate(angles)
    ]


def moved(x: Tensor, generator: torch.Generator, *, turn: float, scale: float, shift: float) -> Tensor:
    """Pictures (B, 3, h, w) in 0..1 turned by up to `turn` radians, scaled and shifted by such shares, on white."""
    b = len(x)

    def between(limit: float) -> Tensor:
        return (torch.rand(b, generator=generator, device=x.device) * 2 - 1) * limit

    angle, size = between(turn), (between(scale)).exp()
    theta = torch.zeros(b, 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() / size, -angle.sin() / size
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() / size, angle.cos() / size
    theta[:, :, 2] = torch.stack([between(shift), between(shift)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return 1 - F.grid_sample(1 - x, grid, align_corners=False)


def toned(x: Tensor, generator: torch.Generator, amount: float) -> Tensor:
    """Each picture's channels raised to powers near one, and a little noise."""
    power = ((torch.rand(len(x), 3, 1, 1, generator=generator, device=x.device) * 2 - 1) * amount).exp()
    noise = torch.randn(x.shape, generator=generator, device=x.device)
    return (x.clamp(1e-3, 1) ** power + 0.02 * noise).clamp(0, 1)


def restyled(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture (B, 3, h, w) in two of six styles, (2 B, 3, h, w).

    They are: as it is, few levels, outlined, soft, faded, another hue.
    """
    edges = (F.max_pool2d(x, 3, 1, 1) + F.max_pool2d(-x, 3, 1, 1)).amax(1, keepdim=True)
    grey = x.mean(1, keepdim=True)
    order = [[1, 2, 0], [2, 0, 1], [1, 0, 2]][int(torch.randint(3, (), generator=generator, device=x.device))]
    styles = [
        x,
        (x * 3).round() / 3,
        x * (1 - edges.clamp(0, 1)),
        F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1),
        0.65 * grey + 0.35 * x,
        x[:, order],
    ]
    first = torch.randint(len(styles), (len(x),), generator=generator, device=x.device)
    more = torch.randint(1, len(styles), (len(x),), generator=generator, device=x.device)
    second = (first + more) % len(styles)
    place = torch.arange(len(x), device=x.device)
    return torch.cat([torch.stack(styles)[chosen, place] for chosen in (first, second)])
