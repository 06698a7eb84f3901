"""Puts all that `sealed-judge` learns from into one file: its drawings, and scenes made of them by several processes.

    python examples/sealed_judge/pack.py --pictures examples/emoji/out --out work/sealed/pack.safetensors

Scene number i is a function of i alone, so the number of processes changes nothing. Of the drawings that the split
leaves out the file holds the pictures too, to be measured on; no scene is made of them. No held-out picture is read.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from split import Drawings, drawings, read_drawings, split, sprites
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pictures import check_held_out, training_folders  # isort: skip
from scenes import Sprites, make_scene  # isort: skip

from promptcdm.question_words import PLAIN_COLORS
from promptcdm.statements import plain

SEED = 29
SCENES = {"pair": 3, "list": 2, "count": 4, "mixed count": 3, "colour": 3, "colour pair": 4}  # shares
MOST = 4  # things of a scene
AT_ONCE = 250  # scenes


@dataclass(frozen=True)
class Singles:
    """Drawings of one thing."""

    pixels: Tensor  # (N, 3, 64, 64) uint8
    labels: Tensor  # (N,) place in Pack.labels
    sided: Tensor  # (N,) bool: never mirrored
    coloured: Tensor  # (N,) bool: hues are never turned
    colors: Tensor  # (N,) place in PLAIN_COLORS, or -1


@dataclass(frozen=True)
class Scenes:
    """Pictures of up to MOST things."""

    pixels: Tensor  # (S, 3, 64, 64) uint8
    boxes: Tensor  # (S, MOST, 4) in 0..1; a row of zeros where there is no further thing
    labels: Tensor  # (S, MOST), -1 where there is none
    colors: Tensor  # (S, MOST), -1 where it has no named colour


@dataclass(frozen=True)
class Pack:
    """All of it."""

    labels: tuple[str, ...]
    concepts: dict[str, list[str]]  # what each is called by drawings
    learned: Singles
    left_out: Singles
    scenes: Scenes


class MadeScenes(Dataset[dict[str, Tensor]]):
    """AT_ONCE scenes an item."""

    def __init__(self, drawn: Sprites, places: dict[str, int], count: int) -> None:
        self.drawn, self.places, self.count = drawn, places, count

    def __len__(self) -> int:
        return -(-self.count // AT_ONCE)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        made = range(item * AT_ONCE, min((item + 1) * AT_ONCE, self.count))
        pixels = torch.empty(len(made), 3, 64, 64, dtype=torch.uint8)
        boxes = torch.zeros(len(made), MOST, 4)
        labels, colors = torch.full((2, len(made), MOST), -1).unbind()
        for row, number in enumerate(made):
            rng = random.Random(f"{SEED} scene {number}")
            (kind,) = rng.choices(list(SCENES), list(SCENES.values()))
            scene = make_scene(self.drawn, rng.getrandbits(48), kind)
            flat = torch.frombuffer(bytearray(scene.picture.tobytes()), dtype=torch.uint8)
            pixels[row] = flat.view(64, 64, 3).permute(2, 0, 1)
            shown = [(thing, box) for thing in scene.things for box in thing.boxes]
            for place, (thing, box) in enumerate(shown):
                boxes[row, place] = torch.tensor(box) / 64
                labels[row, place] = self.places[plain(thing.label)]
                colors[row, place] = PLAIN_COLORS.index(thing.color) if thing.color else -1
        return {"pixels": pixels, "boxes": boxes, "labels": labels, "colors": colors}


def make_pack(root: Path, count: int, workers: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of the file."""
    every = drawings(root)
    learned, left_out = split(every)
    drawn = sprites(learned)
    said = {drawing.label for drawing in every} | {
        plain(word) for s in drawn.all for word in (s.label, s.noun)
    }
    labels = sorted(said - {""})
    places = {label: place for place, label in enumerate(labels)}
    tensors = {}
    for name, chosen in (("learned", learned), ("left_out", left_out)):
        tensors |= {f"{name}/{key}": t for key, t in _singles(read_drawings(chosen), places).items()}
    made = DataLoader(MadeScenes(drawn, places, count), batch_size=None, num_workers=workers)
    parts = [{key: t.clone() for key, t in part.items()} for part in made]
    tensors |= {f"scenes/{key}": torch.cat([part[key] for part in parts]) for key in parts[0]}
    concepts: dict[str, list[str]] = {}
    for drawing in every:
        concepts.setdefault(drawing.concept, []).append(drawing.label)
    return tensors, {"labels": json.dumps(labels), "concepts": json.dumps(concepts)}


def _singles(drawn: Drawings, places: dict[str, int]) -> dict[str, Tensor]:
    return {
        "pixels": drawn.pixels,
        "labels": torch.tensor([places[drawing.label] for drawing in drawn.drawings]),
        "sided": drawn.sided,
        "coloured": drawn.coloured,
        "colors": drawn.colors,
    }


def read_pack(path: Path, device: str) -> Pack:
    """Read the file onto the device."""
    tensors = load_file(path, device=device)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()

    def below(name: str) -> dict[str, Tensor]:
        prefix = f"{name}/"
        return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}

    return Pack(
        tuple(json.loads(metadata["labels"])),
        json.loads(metadata["concepts"]),
        Singles(**below("learned")),
        Singles(**below("left_out")),
        Scenes(**below("scenes")),
    )


def main() -> None:
    """Make the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pictures", type=Path, required=True, help="folder that examples/emoji/build.py made"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=60000)
    parser.add_argument("--workers", type=int, default=0, help="processes that make scenes; 0: this one")
    given = parser.parse_args()
    check_held_out(training_folders(given.pictures))
    tensors, metadata = make_pack(given.pictures, given.scenes, given.workers)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, given.out, metadata)
    print({name: tuple(tensor.shape) for name, tensor in tensors.items() if name.endswith("pixels")})


if __name__ == "__main__":
    main()
