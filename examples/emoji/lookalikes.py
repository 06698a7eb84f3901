"""Near-duplicate pictures: small grey-and-colour thumbnails, compared by mean squared difference, joined in clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Key = TypeVar("Key")
THUMBNAIL = 12
# Root mean squared difference of two thumbnails, white = 1, over the ink of both. Looked over by eye: below it pictures
# are the same drawing with small changes; above it they begin to be different drawings of one thing.
NEAR = 0.16


def thumbnails(pictures: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
    """(n, 12 * 12 * 3) ink (white - colour) of pictures cropped to their ink and fitted in a square."""
    rows = []
    for picture in pictures:
        ink = 255 - np.asarray(picture.convert("RGB"), np.int16)
        ys, xs = np.nonzero(ink.max(2) > 8)
        image = Image.fromarray(ink.astype(np.uint8))
        if len(ys):
            left, top, right, bottom = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
            side = max(right - left, bottom - top)
            middle_x, middle_y = (left + right) // 2, (top + bottom) // 2
            box = (middle_x - side // 2, middle_y - side // 2)
            image = image.crop((*box, box[0] + side, box[1] + side))
        small = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        rows.append(np.asarray(small, np.float32).ravel() / 255)
    return np.stack(rows)


def near_pairs(thumbs: npt.NDArray[np.float32], near: float = NEAR) -> npt.NDArray[np.int64]:
    """(m, 2) pairs i < j of thumbnails nearer than `near`, the difference measured against the mean ink of both."""
    square = (thumbs**2).sum(1)
    found = []
    for start in range(0, len(thumbs), 512):
        block = thumbs[start : start + 512]
        difference = square[start : start + 512, None] + square[None] - 2 * block @ thumbs.T
        scale = square[start : start + 512, None] + square[None] + 1e-6
        i, j = np.nonzero(difference < 2 * near**2 * scale)
        i = i + start
        found.append(np.stack([i, j], 1)[i < j])
    return np.concatenate(found).astype(np.int64)


def clusters(pictures: Mapping[Key, Image.Image], near: float = NEAR) -> dict[Key, int]:
    """Key -> cluster number; pictures joined by a chain of near pairs share one."""
    keys = list(pictures)
    thumbs = thumbnails([pictures[k] for k in keys])
    pairs = near_pairs(thumbs, near)
    ones = np.ones(len(pairs), np.int8)
    graph = coo_matrix((ones, (pairs[:, 0], pairs[:, 1])), shape=(len(keys), len(keys)))
    _, numbers = connected_components(graph, directed=False)
    return dict(zip(keys, (int(n) for n in numbers)))
