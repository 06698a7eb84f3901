"""Scenes with exact captions, of the pictures that nano may see."""

from __future__ import annotations

from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

import numpy as np
from pictures import concepts_to_learn
from scenes import Sprites, make_scene


def scenes(
    folders: list[Path], count: int, seed: int, kind: str | None = None
) -> list[tuple[np.ndarray, str]]:
    """Pixels (64, 64, 3) and captions, made by all cores; `kind` restricts to one kind of scene."""
    sprites = Sprites.open(*folders, concepts=concepts_to_learn().keys())
    numbers = range(seed * 1_000_000, seed * 1_000_000 + count)
    at_once = -(-count // (2 * (cpu_count() or 1)))
    parts = [(sprites, numbers[start : start + at_once], kind) for start in range(0, count, at_once)]
    with get_context("fork").Pool(cpu_count()) as processes:
        return [scene for part in processes.starmap(_make, parts, chunksize=1) for scene in part]


def _make(sprites: Sprites, numbers: range, kind: str | None) -> list[tuple[np.ndarray, str]]:
    made = (make_scene(sprites, number, kind=kind) for number in numbers)
    return [(np.asarray(scene.picture), scene.caption) for scene in made]
