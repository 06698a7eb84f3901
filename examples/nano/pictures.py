"""The pictures that nano learns from: noto and flat-color-icons sprites, and scenes made of them.

Only concepts with `nano = train` in `examples/emoji/concepts.csv` enter, in sprites, scenes and captions alike.
"""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

EMOJI = Path(__file__).resolve().parent.parent / "emoji"
sys.path.append(str(EMOJI))


@dataclass(frozen=True)
class Sprite:
    """One picture with every wording of its caption."""

    pixels: np.ndarray  # (64, 64, 3) uint8 on white
    label: str
    tags: tuple[str, ...]
    concept: str
    group: str  # emojibase's main topic; "own" for an icon that is not an emoji


def concepts_to_learn() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Concepts that the backbone may see, with group and tags; one that is not in the table is not seen either."""
    with (EMOJI / "concepts.csv").open(encoding="utf-8", newline="") as rows:
        table = [row for row in csv.DictReader(rows) if row["nano"] == "train"]
    return {row["concept"]: (row["group"], tuple(filter(None, row["tags"].split(";")))) for row in table}


def load_sprites(folders: list[Path]) -> list[Sprite]:
    """Read image folders as `examples/emoji/build.py` writes them, without the withheld concepts."""
    learned = concepts_to_learn()
    sprites = []
    for folder in folders:
        for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["concept"] not in learned:
                continue
            with Image.open(folder / row["file_name"]) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            group, tags = learned[row["concept"]]
            sprites.append(Sprite(pixels, row["label"], tags, row["concept"], group))
    return sprites


def augment(pixels: np.ndarray, rng: np.random.Generator, *, strength: float = 1.0) -> np.ndarray:
    """Scale and shift on white. Never mirrored: captions of scenes say left and right."""
    picture = Image.fromarray(pixels)
    side = round(64 * (1 - strength * rng.uniform(0, 0.15)))
    canvas = Image.new("RGB", (64, 64), "white")
    room = 64 - side
    canvas.paste(picture.resize((side, side), Image.Resampling.LANCZOS), tuple(rng.integers(0, room + 1, 2)))
    return np.asarray(canvas)


def recolour(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Any hue, saturation and brightness: what the autoencoder must be able to carry for other hands."""
    hsv = np.asarray(Image.fromarray(pixels).convert("HSV")).astype(np.int16)
    hsv[..., 0] = (hsv[..., 0] + rng.integers(0, 256)) % 256
    hsv[..., 1] = np.clip(hsv[..., 1] * rng.uniform(0.3, 1.4), 0, 255)
    hsv[..., 2] = np.clip(255 - (255 - hsv[..., 2]) * rng.uniform(0.6, 1.4), 0, 255)
    return np.asarray(Image.fromarray(hsv.astype(np.uint8), "HSV").convert("RGB"))
