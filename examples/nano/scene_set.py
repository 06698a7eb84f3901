"""Scenes with exact captions, of the pictures that nano may see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pictures import concepts_to_learn
from scenes import Sprites, make_scene


def scenes(
    folders: list[Path], count: int, seed: int, kind: str | None = None
) -> list[tuple[np.ndarray, str]]:
    """Pixels (64, 64, 3) and captions; `kind` restricts to one kind of scene."""
    sprites = Sprites.open(*folders, concepts=concepts_to_learn().keys())
    made = (make_scene(sprites, seed * 1_000_000 + n, kind=kind) for n in range(count))
    return [(np.asarray(scene.picture), scene.caption) for scene in made]
