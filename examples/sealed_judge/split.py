"""Which drawings `sealed-judge` learns from: a split of its own, beside the committed one that it keeps to.

Of every concept that three or more collections draw, it leaves out the training drawing of one collection, chosen by
digest; a drawing with a near-duplicate is never chosen. `nano-judge` has learned from these, and `sealed-judge` from
others, so that their errors differ. On them its thresholds are set. No held-out picture of the committed split is read.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

HERE = Path(__file__).parent
EMOJI = HERE.parent / "emoji"
sys.path[:0] = [str(EMOJI), str(HERE.parent / "nano_judge")]  # plain files, not packages

from captions import tidy  # noqa: E402
from pictures import COLOURED, SIDED, SIZE, training_folders  # noqa: E402
from scenes import Sprites  # noqa: E402

from promptcdm.question_words import PLAIN_COLORS  # noqa: E402
from promptcdm.statements import plain  # noqa: E402

MOST = 3  # a concept of fewer drawings keeps all


@dataclass(frozen=True)
class Drawing:
    """One picture of a collection."""

    collection: str
    concept: str
    label: str  # plain words
    path: Path


@dataclass(frozen=True)
class Drawings:
    """Pictures in memory."""

    pixels: Tensor  # (N, 3, 64, 64) uint8
    drawings: tuple[Drawing, ...]
    sided: Tensor  # (N,) bool: never mirrored
    coloured: Tensor  # (N,) bool: hues are never turned
    colors: Tensor  # (N,) place in PLAIN_COLORS that the label begins with, or -1


def drawings(root: Path) -> list[Drawing]:
    """All training drawings below `root`."""
    found = []
    for folder in training_folders(root):
        for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            label = plain(tidy(row["label"]))
            found.append(Drawing(folder.name, row["concept"], label, folder / row["file_name"]))
    return found


def split(every: list[Drawing]) -> tuple[list[Drawing], list[Drawing]]:
    """What is learned from, and what is left out."""
    alike = defaultdict(set)
    with (EMOJI / "lookalikes.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            alike[row["collection"], row["concept"]].add(row["cluster"])
    of_concept = defaultdict(list)
    for drawing in every:
        of_concept[drawing.concept].append(drawing)
    out = set()
    for concept, drawn in of_concept.items():
        free = sorted(d.collection for d in drawn if not alike[d.collection, concept])
        if len(drawn) >= MOST and free:
            number = int.from_bytes(hashlib.sha256(f"sealed {concept}".encode()).digest()[:4], "big")
            out.add((free[number % len(free)], concept))
    learned = [d for d in every if (d.collection, d.concept) not in out]
    return learned, [d for d in every if (d.collection, d.concept) in out]


def read_drawings(chosen: list[Drawing]) -> Drawings:
    """Read the pictures at 64 px."""
    pixels = []
    for drawing in chosen:
        with Image.open(drawing.path) as picture:
            rgb = picture.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        pixels.append(torch.from_numpy(np.array(rgb)).permute(2, 0, 1))
    words = [d.label.split() for d in chosen]
    colors = [PLAIN_COLORS.index(first) if more and first in PLAIN_COLORS else -1 for first, *more in words]
    return Drawings(
        torch.stack(pixels),
        tuple(chosen),
        torch.tensor([bool(SIDED & set(each)) for each in words]),
        torch.tensor([bool(COLOURED & set(each)) for each in words]),
        torch.tensor(colors),
    )


def sprites(chosen: list[Drawing]) -> Sprites:
    """The sprites of these drawings, for scenes."""
    of_folder = defaultdict(set)
    for drawing in chosen:
        of_folder[drawing.path.parent].add(drawing.concept)
    found = []
    for folder, concepts in sorted(of_folder.items()):
        try:
            found.extend(Sprites.open(folder, concepts=concepts).all)
        except ValueError:  # a small folder may have none that scenes take
            continue
    return Sprites(found)
