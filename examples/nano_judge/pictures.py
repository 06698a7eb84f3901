"""The judge's training pictures (never a held-out one) and their augmentation."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from promptcdm.question_words import PLAIN_COLORS, word_set
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
# A picture of these in another hue would be of something else.
COLOURED = word_set(
    " ".join([*PLAIN_COLORS, "skin", "light", "medium", "dark", "flag", "square", "circle", "hair"])
)


@dataclass(frozen=True)
class Pictures:
    """Pictures in memory with the plain statements of their labels."""

    pixels: Tensor  # (N, 3, 64, 64) uint8
    labels: tuple[str, ...]
    sided: Tensor  # (N,) bool: never mirrored
    coloured: Tensor  # (N,) bool: hues are never turned
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
    coloured = torch.tensor([bool(COLOURED & set(label.split())) for label in labels])
    return Pictures(torch.stack(pixels), tuple(labels), sided, coloured, tuple(folders))


def scene_nouns() -> list[str]:
    """Every noun that scenes may name."""
    nouns = set()
    for name in ("countable", "recolourable"):
        with (EMOJI / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            nouns |= {row["noun"] for row in csv.DictReader(file)}
    return sorted(nouns)


def move(pixels: Tensor, sided: Tensor, random: torch.Generator) -> Tensor:
    """Turn, shear, scale, shift and mirror: (B, 3, H, W) uint8 to float, in 0..1, on white."""
    count, device = len(pixels), pixels.device
    uniform = partial(_uniform, random, (count,), device)
    scale = uniform(0.5, 1.1)  # of the picture's size
    slack = (1 - scale).clamp_min(0.0) + 0.06
    mirrored = (uniform(0, 1) < 0.5) & ~sided
    # Most hands draw a thing a little turned: half of the pictures turn by up to 20 degrees.
    angle = uniform(-0.35, 0.35) * (uniform(0, 1) < 0.5)
    shear, ratio = uniform(-0.12, 0.12), uniform(0.85, 1.18)
    across = torch.where(mirrored, -1.0, 1.0) / scale
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0] = across * angle.cos()
    theta[:, 0, 1] = across * (shear - angle.sin())
    theta[:, 1, 0] = angle.sin() / (scale * ratio)
    theta[:, 1, 1] = angle.cos() / (scale * ratio)
    theta[:, 0, 2] = uniform(-1, 1) * slack / scale
    theta[:, 1, 2] = uniform(-1, 1) * slack / scale
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    ink = F.grid_sample(
        1 - pixels.float() / 255, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return 1 - ink


def restyle(images: Tensor, coloured: Tensor, random: torch.Generator) -> Tensor:
    """Other hands, 0..1 in and out: saturation, tint, tone, an outline. Not of the `coloured`, whose label names one.

    A thing of one vendor must be known in the drawing of another, which differs in exactly these.
    """
    device = images.device
    uniform = partial(_uniform, random, (len(images), 1, 1, 1), device)
    free = ~coloured.view(-1, 1, 1, 1)
    gray = images.mean(1, keepdim=True)
    saturation = torch.where((uniform(0, 1) < 0.4) & free, uniform(0.0, 1.5), 1.0)
    styled = gray + (images - gray) * saturation
    # A turn of the hues by up to 30 degrees: the rotation about the gray axis.
    turn = torch.where((uniform(0, 1) < 0.4) & free, uniform(-0.5, 0.5), 0.0).flatten()
    cosine, sine = turn.cos().view(-1, 1, 1), turn.sin().view(-1, 1, 1)
    ones = torch.full((3, 3), 1 / 3, device=device)
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]], device=device) / 3**0.5
    rotation = cosine * torch.eye(3, device=device) + (1 - cosine) * ones + sine * cross
    styled = torch.einsum("bij,bjhw->bihw", rotation, styled).clamp(0, 1)
    tone = torch.where(uniform(0, 1) < 0.4, uniform(-0.5, 0.5).exp(), 1.0)
    styled = styled.clamp_min(1e-4) ** tone
    # Outlines, as some vendors draw them: dark where the ink begins.
    ink = (gray < 0.96).float()
    edge = (F.max_pool2d(ink, 3, 1, 1) - ink) * (uniform(0, 1) < 0.2) * uniform(0.5, 1.0)
    return styled * (1 - edge)


def weather(images: Tensor, random: torch.Generator) -> Tensor:
    """Light, contrast, blur and noise that never change a colour's name; 0..1 in, -1..1 out."""
    device = images.device
    uniform = partial(_uniform, random, (len(images), 1, 1, 1), device)
    images = 1 - (1 - images) * uniform(0.85, 1.1) + uniform(-0.06, 0.06)
    small = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), value=1.0), 3, stride=1)
    images = images.lerp(small, 0.6 * (uniform(0, 1) < 0.3))
    noise = torch.randn(images.shape, generator=random, device=device) * 0.02
    return (images + noise).clamp(0, 1) * 2 - 1


def _uniform(
    random: torch.Generator, shape: tuple[int, ...], device: torch.device, low: float, high: float
) -> Tensor:
    return torch.empty(shape, device=device).uniform_(low, high, generator=random)


def _metadata(folder: Path) -> list[dict[str, str]]:
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
