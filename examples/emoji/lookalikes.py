"""Near-duplicate pictures: the same drawing with small changes, found on small thumbnails and joined in clusters.

Two thumbnails are compared by their colours (root mean squared difference over the ink) and by their fine structure
(correlation after the coarse structure is taken away). The limits were set by looking at pairs: pictures of one idea
from two collections count as near sooner than pictures of two ideas, as round yellow faces all look alike from afar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sets import Cell

Floats = npt.NDArray[np.float32]
SIDE = 24
COARSE = 2.5  # pixels of a thumbnail


@dataclass(frozen=True)
class Limits:
    """Near: colours differ by less than `colour` (white = 1), structures correlate by more than `structure`."""

    colour: float
    structure: float


SAME_IDEA = Limits(0.25, 0.80)
WITHIN = Limits(0.10, 0.97)
ACROSS = Limits(0.12, 0.94)


def thumbnails(pictures: Sequence[Image.Image]) -> Floats:
    """(n, 24, 24, 3) ink (white - colour, 0 to 1) of pictures cropped to a square around their ink."""
    rows = []
    for picture in pictures:
        ink = 255 - np.asarray(picture.convert("RGB"), np.int16)
        ys, xs = np.nonzero(ink.max(2) > 8)
        image = Image.fromarray(ink.astype(np.uint8))
        if len(ys):
            left, top, right, bottom = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
            side = max(right - left, bottom - top)
            x, y = (left + right - side) // 2, (top + bottom - side) // 2
            image = image.crop((x, y, x + side, y + side))
        rows.append(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32) / 255)
    return np.stack(rows)


def _structure(thumbs: Floats) -> Floats:
    fine = thumbs - gaussian_filter(thumbs, (0, COARSE, COARSE, 0))
    flat = fine.reshape(len(fine), -1)
    unit: Floats = flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6)
    return unit


def near_pairs(cells: Sequence[Cell], thumbs: Floats) -> npt.NDArray[np.int64]:
    """(m, 2) pairs i < j of near pictures, a mirrored picture counting as the same drawing."""
    sets = np.unique([c for c, _ in cells], return_inverse=True)[1]
    ideas = np.unique([i for _, i in cells], return_inverse=True)[1]
    flat = thumbs.reshape(len(thumbs), -1)
    square = (flat**2).sum(1)
    structure = _structure(thumbs)
    found = []
    for other in (thumbs, np.ascontiguousarray(thumbs[:, :, ::-1])):
        other_flat, other_structure = other.reshape(len(other), -1), _structure(other)
        for start in range(0, len(cells), 512):
            part = slice(start, start + 512)
            scale = 2 * (square[part, None] + square[None] + 1e-6)
            colour = np.sqrt(
                np.maximum(square[part, None] + square[None] - 2 * flat[part] @ other_flat.T, 0) / scale
            )
            alike = structure[part] @ other_structure.T
            one_set = sets[part, None] == sets[None]
            one_idea = ideas[part, None] == ideas[None]
            near = (colour < SAME_IDEA.colour) & (alike > SAME_IDEA.structure) & one_idea & ~one_set
            near |= (colour < WITHIN.colour) & (alike > WITHIN.structure) & one_set
            near |= (colour < ACROSS.colour) & (alike > ACROSS.structure) & ~one_set
            i, j = np.nonzero(near)
            pairs = np.stack([i + start, j], 1)
            found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return np.unique(np.concatenate(found), axis=0).astype(np.int64)


def clusters(pictures: Mapping[Cell, Image.Image]) -> dict[Cell, int]:
    """(collection, concept) -> cluster number; pictures joined by a chain of near pairs share one."""
    cells = list(pictures)
    pairs = near_pairs(cells, thumbnails([pictures[c] for c in cells]))
    ones = np.ones(len(pairs), np.int8)
    graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(len(cells), len(cells)))
    _, numbers = connected_components(graph, directed=False)
    return dict(zip(cells, (int(n) for n in numbers), strict=True))
