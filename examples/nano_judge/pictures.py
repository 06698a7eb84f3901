"""The judge's training pictures (never a held-out one) and their augmentation."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from promptcdm.question_words import word_set
from promptcdm.statements import plain

EMOJI = Path(__file__).parents[1] / "emoji"
sys.path.insert(0, str(EMOJI))  # its scripts are plain files, not a package

from captions import tidy  # noqa: E402
from table import read_table  # noqa: E402

SIZE = 64
# A mirrored picture of these would no longer show what its name says.
SIDED = word_set(
    """
    left right button keycap letter number clock arrow back soon sign clockwise east west
    """
)


@dataclass(frozen=True)
class Pictures:
    """Pictures in memory with the plain statements of their labels."""

    pixels: Tensor  # (N, 3, 64, 64) uint8
    labels: tuple[str, ...]
    sided: Tensor  # (N,) bool: never mirrored
    folders: tuple[Path, ...]  # where they come from

    def __len__(self) -> int:
        return len(self.labels)


def training_folders(root: Path) -> list[Path]:
    """The folders below `root` (made by examples/emoji/build.py) that may be trained on."""
    found = sorted(path.parent for path in root.glob("*/metadata.jsonl"))
    # Concepts withheld from the backbone are not withheld from the judge.
    return found + sorted(path.parent for path in (root / "withheld").glob("*/metadata.jsonl"))


def held_out_folders(root: Path) -> list[Path]:
    """The folders of the pictures that nothing is trained on."""
    return sorted(path.parent for path in (root / "heldout").glob("*/metadata.jsonl"))


def check_held_out(folders: Sequence[Path]) -> None:
    """Stop where a folder holds a picture that the committed split keeps from training."""
    rows = {row.concept: row for row in read_table()}
    for folder in folders:
        for row in _metadata(folder):
            concept = rows.get(row["concept"])
            if concept is not None and concept.is_held_out(folder.name):
                raise SystemExit(
                    f"{folder}/{row['file_name']} is held out by concepts.csv; it must not be trained on"
                )


def load_pictures(folders: Sequence[Path]) -> Pictures:
    """Read the folders' pictures at 64 px."""
    pixels, labels = [], []
    for folder in folders:
        for row in _metadata(folder):
            with Image.open(folder / row["file_name"]) as picture:
                rgb = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            pixels.append(torch.from_numpy(np.array(rgb)).permute(2, 0, 1))
            labels.append(plain(tidy(row["label"])))
    sided = torch.tensor([bool(SIDED & set(label.split())) for label in labels])
    return Pictures(torch.stack(pixels), tuple(labels), sided, tuple(folders))


def scene_nouns() -> list[str]:
    """Every noun that scenes may name."""
    nouns = set()
    for name in ("countable", "recolourable"):
        with (EMOJI / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            nouns |= {row["noun"] for row in csv.DictReader(file)}
    return sorted(nouns)


def move(pixels: Tensor, sided: Tensor, random: torch.Generator) -> Tensor:
    """Scale, shift and mirror: (B, 3, H, W) uint8 to float, in 0..1, on white."""
    count = len(pixels)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(count).uniform_(low, high, generator=random)

    scale = uniform(0.6, 1.1)  # of the picture's size
    slack = (1 - scale).clamp_min(0.0) + 0.06
    mirrored = (torch.rand(count, generator=random) < 0.5) & ~sided
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = torch.where(mirrored, -1.0, 1.0) / scale
    theta[:, 1, 1] = 1 / (scale * uniform(0.92, 1.08))
    theta[:, 0, 2] = uniform(-1, 1) * slack / scale
    theta[:, 1, 2] = uniform(-1, 1) * slack / scale
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    ink = F.grid_sample(
        1 - pixels.float() / 255, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return 1 - ink


def weather(images: Tensor, random: torch.Generator) -> Tensor:
    """Light, contrast, blur and noise that never change a colour's name; 0..1 in, -1..1 out."""
    count = len(images)
    light = torch.empty(count, 1, 1, 1).uniform_(-0.06, 0.06, generator=random)
    contrast = torch.empty(count, 1, 1, 1).uniform_(0.85, 1.1, generator=random)
    images = 1 - (1 - images) * contrast + light
    blurred = torch.rand(count, generator=random) < 0.3
    small = F.avg_pool2d(F.pad(images[blurred], (1, 1, 1, 1), value=1.0), 3, stride=1)
    images[blurred] = 0.6 * small + 0.4 * images[blurred]
    noise = torch.randn(images.shape, generator=random) * 0.02
    return (images + noise).clamp(0, 1) * 2 - 1


def _metadata(folder: Path) -> list[dict[str, str]]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
