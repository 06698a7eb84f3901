"""What one training step looks at: single drawings and scenes by other hands, their things, and crops of these."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pack import MOST, Pack
from torch import Tensor

from pictures import move, restyle, weather  # isort: skip

from promptcdm.sealed_names import Names
from promptcdm.sealed_network import ink_boxes

SEED = 29
JITTER = 0.08  # of a thing's sides, by which the namer's boxes are off
LOOKED_AT = 2  # things of a scene that the namer sees, now and then the same one twice
HIDDEN = 0.25  # share of crops a part of which is hidden


@dataclass(frozen=True)
class Batch:
    """B pictures in 0..1 with the boxes of all that they show, and n things of them with what these are."""

    pictures: Tensor  # (B, 3, 64, 64)
    boxes: Tensor  # (B, MOST, 4), of width 0 where there is no further thing
    image: Tensor  # (n,) the picture of each thing
    box: Tensor  # (n, 4), a little off
    concepts: Tensor  # (n, C) bool: concepts that the words for it cover
    colors: Tensor  # (n,) or -1


class Batches:
    """Batch number i, a function of i alone, so that resuming changes nothing. All on the pack's device."""

    def __init__(self, pack: Pack, names: Names, singles: int, scenes: int) -> None:
        self.pack, self.singles, self.scenes = pack, singles, scenes
        self.device = pack.scenes.pixels.device
        self.covered = covered(pack.labels, names).to(self.device)
        self.random = torch.Generator(self.device)

    def batch(self, step: int) -> Batch:
        """The pictures of this step."""
        self.random.manual_seed(SEED * 1_000_003 + step)
        one, many = self.pack.learned, self.pack.scenes
        chosen, made = self._draw(len(one.labels), self.singles), self._draw(len(many.labels), self.scenes)
        moved = move(one.pixels[chosen], one.sided[chosen], self.random)
        boxes = torch.zeros(self.singles, MOST, 4, device=self.device)
        boxes[:, 0] = ink_boxes(moved)
        coloured = torch.cat([one.coloured[chosen], (many.colors[made] >= 0).any(1)])
        pictures = torch.cat([moved, many.pixels[made].float() / 255])
        seen = torch.multinomial(
            (many.labels[made] >= 0).float(), LOOKED_AT, replacement=True, generator=self.random
        )
        things = torch.arange(self.scenes, device=self.device)[:, None].expand_as(seen)
        picked = made[things.flatten()], seen.flatten()
        box = torch.cat([boxes[:, 0], many.boxes[picked]])
        sides = (box[:, 2:] - box[:, :2]).repeat(1, 2)
        off = torch.empty_like(box).uniform_(-JITTER, JITTER, generator=self.random)
        return Batch(
            pictures=(weather(restyle(pictures, coloured, self.random), self.random) + 1) / 2,
            boxes=torch.cat([boxes, many.boxes[made]]),
            image=torch.cat(
                [torch.arange(self.singles, device=self.device), self.singles + things.flatten()]
            ),
            box=box + sides * off,
            concepts=self.covered[torch.cat([one.labels[chosen], many.labels[picked]])],
            colors=torch.cat([one.colors[chosen], many.colors[picked]]),
        )

    def hide(self, seen: Tensor) -> Tensor:
        """White over a rectangle of some crops (n, 3, s, s), so that no one part of a thing is what it is known by."""
        count, size = len(seen), seen.shape[-1]
        steps = (torch.arange(size, device=self.device) + 0.5) / size

        def span() -> Tensor:
            middle = torch.rand(count, 1, generator=self.random, device=self.device)
            reach = 0.05 + 0.2 * torch.rand(count, 1, generator=self.random, device=self.device)
            return (steps - middle).abs() < reach

        some = torch.rand(count, 1, 1, 1, generator=self.random, device=self.device) < HIDDEN
        return seen.masked_fill((span()[:, :, None] & span()[:, None])[:, None] & some, 1.0)

    def mixing(self, count: int, share: float, evenly: float) -> tuple[Tensor, Tensor]:
        """What is laid over each of `count` crops, and with what weight (count,): 0 for all but a share of them."""
        over = torch.randperm(count, generator=self.random, device=self.device)
        shape = torch.full((2, count), evenly, device=self.device)
        a, b = torch._standard_gamma(shape, generator=self.random).unbind()  # a / (a + b) is Beta
        return over, (a / (a + b)) * (torch.arange(count, device=self.device) < share * count)[over]

    def _draw(self, among: int, count: int) -> Tensor:
        return torch.randint(among, (count,), generator=self.random, device=self.device)


def covered(labels: tuple[str, ...], names: Names) -> Tensor:
    """(labels, C) bool: the concepts that each label's words cover. Stops where one covers none."""
    found = torch.zeros(len(labels), len(names.names), dtype=torch.bool)
    for row, label in enumerate(labels):
        found[row, list(names.covered(label))] = True
        if not found[row].any():
            raise SystemExit(f"no concept is called {label!r}")
    return found
