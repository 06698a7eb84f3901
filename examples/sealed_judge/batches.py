"""What one training step looks at: single drawings and scenes, their boxes, and what is true of each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from split import Drawings
from torch import Tensor

from pictures import move, restyle, weather  # isort: skip
from scenes import Sprites, make_scene  # isort: skip

from promptcdm.question_words import PLAIN_COLORS
from promptcdm.sealed_names import Names
from promptcdm.sealed_network import CELLS, ink_boxes
from promptcdm.statements import plain

SEED = 29
SCENES = {"pair": 3, "list": 2, "count": 4, "mixed count": 3, "colour": 3, "colour pair": 4}  # shares
THINGS = 2  # of a scene that the namer sees, at most
JITTER = 0.08  # of a thing's sides, by which the namer's boxes are off


@dataclass(frozen=True)
class Batch:
    """B pictures in 0..1 with the boxes of all that they show, and n crops of them with what these show."""

    pictures: Tensor  # (B, 3, 64, 64)
    boxes: tuple[Tensor, ...]  # of each picture (things, 4)
    coloured: Tensor  # (B,) bool: the hues carry what is asked
    image: Tensor  # (n,) the picture of each crop
    box: Tensor  # (n, 4), a little off
    concepts: Tensor  # (n, C) bool: concepts that the words for it cover
    colors: Tensor  # (n,) or -1


class Batches:
    """Batch number i, a function of i alone, so that resuming changes nothing."""

    def __init__(self, drawn: Drawings, sprites: Sprites, names: Names, singles: int, scenes: int) -> None:
        self.drawn, self.sprites, self.names = drawn, sprites, names
        self.singles, self.scenes = singles, scenes
        self.rows: dict[str, Tensor] = {}

    def batch(self, step: int) -> Batch:
        """The pictures of this step."""
        rng = random.Random(f"{SEED} {step}")
        noise = torch.Generator().manual_seed(SEED * 1_000_003 + step)
        chosen = torch.tensor([rng.randrange(len(self.drawn.drawings)) for _ in range(self.singles)])
        moved = move(self.drawn.pixels[chosen], self.drawn.sided[chosen], noise)
        boxes = list(ink_boxes(moved)[:, None])
        labels = [self.drawn.drawings[place].label for place in chosen.tolist()]
        things = [
            (n, boxes[n][0], label, c)
            for n, (label, c) in enumerate(zip(labels, self.drawn.colors[chosen].tolist(), strict=True))
        ]
        pictures, coloured = [], self.drawn.coloured[chosen].tolist()
        for image in range(self.singles, self.singles + self.scenes):
            (kind,) = rng.choices(list(SCENES), list(SCENES.values()))
            scene = make_scene(self.sprites, rng.getrandbits(48), kind)
            pixels = torch.frombuffer(bytearray(scene.picture.tobytes()), dtype=torch.uint8)
            pictures.append(pixels.view(64, 64, 3))
            coloured.append(any(thing.color for thing in scene.things))
            boxes.append(torch.tensor([b for t in scene.things for b in t.boxes]) / 64)
            shown = [(t, b) for t in scene.things for b in t.boxes]
            for thing, box in rng.sample(shown, min(THINGS, len(shown))):
                color = PLAIN_COLORS.index(thing.color) if thing.color else -1
                things.append((image, torch.tensor(box) / 64, plain(thing.label), color))
        scenes = torch.stack(pictures).permute(0, 3, 1, 2).float() / 255
        box = torch.stack([thing[1] for thing in things])
        sides = (box[:, 2:] - box[:, :2]).repeat(1, 2)
        box = box + sides * torch.empty_like(box).uniform_(-JITTER, JITTER, generator=noise)
        return Batch(
            torch.cat([moved, scenes]),
            tuple(boxes),
            torch.tensor(coloured),
            torch.tensor([thing[0] for thing in things]),
            box,
            torch.stack([self._row(thing[2]) for thing in things]),
            torch.tensor([thing[3] for thing in things]),
        )

    def _row(self, label: str) -> Tensor:
        if label not in self.rows:
            row = torch.zeros(len(self.names.names), dtype=torch.bool)
            row[list(self.names.covered(label))] = True
            if not row.any():
                raise SystemExit(f"no concept is called {label!r}")
            self.rows[label] = row
        return self.rows[label]


def styled(pictures: Tensor, coloured: Tensor, noise: torch.Generator) -> Tensor:
    """By other hands and in other weather, 0..1 in and out."""
    return (weather(restyle(pictures, coloured, noise), noise) + 1) / 2


def heat_of(boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The heat to learn (B, 16, 16), 1 at the cell of a thing's middle and falling around it; those cells and sizes.

    Cells are (n, 3): picture, row, column; sizes (n, 2).
    """
    steps = (torch.arange(CELLS) + 0.5) / CELLS
    heat = torch.zeros(len(boxes), CELLS, CELLS)
    cells, sizes = [], []
    for image, each in enumerate(boxes):
        for left, top, right, bottom in each.tolist():
            across, down = (left + right) / 2, (top + bottom) / 2
            spread = max(min(right - left, bottom - top) / 6, 0.5 / CELLS)
            bump = torch.exp(-((steps[None] - across) ** 2 + (steps[:, None] - down) ** 2) / (2 * spread**2))
            heat[image] = torch.maximum(heat[image], bump)
            column, row = (min(max(int(v * CELLS), 0), CELLS - 1) for v in (across, down))
            heat[image, row, column] = 1.0
            cells.append((image, row, column))
            sizes.append((right - left, bottom - top))
    return heat, torch.tensor(cells), torch.tensor(sizes)


def heat_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """CenterNet's focal loss, over the number of things."""
    share = logits.sigmoid()
    here = heat == 1
    missed = ((1 - share) ** 2 * F.softplus(-logits))[here].sum()
    false = ((1 - heat) ** 4 * share**2 * F.softplus(logits))[~here].sum()
    return (missed + false) / here.sum()
