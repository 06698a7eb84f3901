"""Pictures of several sprites on white, with exact ground truth: who, how many, in which colour, and where.

A scene is a pure function of a folder of sprites and a seed:

    sprites = Sprites.open("examples/emoji/slice/twemoji")
    scene = make_scene(sprites, seed=7)            # 64 px; scene.caption, scene.things, scene.relation
    wrong = hard_negatives(scene, sprites, seed=7) # captions that are false of this picture, each with its kind
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from captions import article, plural, tidy
from colours import COLOURS, dominant_share, recolour
from PIL import Image

HERE = Path(__file__).parent
Pixels = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]
Place = tuple[float, float, float, float]
Kind = Literal["pair", "list", "count", "mixed count", "colour", "colour pair"]
KINDS: tuple[Kind, ...] = ("pair", "list", "count", "mixed count", "colour", "colour pair")
SHARES = (6, 2, 4, 2, 3, 4)
NUMBERS = ("no", "one", "two", "three", "four")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PREFIXES = ("", "", "", "", "a picture of ", "a drawing of ", "an image of ")
# Sprites are scaled to a few sizes only, so that each is scaled once and then taken from the cache.
STEPS = 32
# A sprite takes a colour if more than this share of its ink has one hue.
RULED = 0.5


@dataclass(frozen=True)
class Thing:
    """One or more sprites of one concept in a scene. `boxes` are (left, top, right, bottom) in pixels of the ink."""

    concept: str
    label: str
    color: str
    boxes: tuple[Box, ...]

    @property
    def count(self) -> int:
        """How many of them there are."""
        return len(self.boxes)

    @property
    def box(self) -> Box:
        """The hull of all its boxes."""
        left, top, right, bottom = zip(*self.boxes, strict=True)
        return min(left), min(top), max(right), max(bottom)

    def words(self, count: int | None = None) -> str:
        """`a red apple`, `two apples`; a single thing that was counted is `one apple` if `count` is given."""
        name = f"{self.color} {self.label}" if self.color else self.label
        if count is not None:
            return f"{NUMBERS[count]} {name if count == 1 else plural(name)}"
        return f"{article(name)} {name}"


@dataclass(frozen=True)
class Scene:
    """A picture (RGB), a caption that is true of it, its things, and the relation of the first thing to the second."""

    picture: Image.Image
    caption: str
    kind: Kind
    things: tuple[Thing, ...]
    relation: str

    def objects(self) -> list[dict[str, Any]]:
        """The ground truth as plain data: concept, label, color, count, box, boxes of each thing."""
        return [
            {
                "concept": t.concept,
                "label": t.label,
                "color": t.color,
                "count": t.count,
                "box": list(t.box),
                "boxes": [list(b) for b in t.boxes],
            }
            for t in self.things
        ]


@dataclass(frozen=True)
class Sprite:
    """A picture cropped to its ink, and how it is called: `label`, and `noun` beside a colour ('' if it takes none)."""

    concept: str
    label: str
    noun: str
    ink: Pixels


def nouns(name: Literal["countable", "recolourable"]) -> dict[str, str]:
    """Concept -> noun, from the checked-in list of that name."""
    with (HERE / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return {r["concept"]: r["noun"] for r in csv.DictReader(file)}


def crop_to_ink(picture: Image.Image) -> Pixels:
    """RGB pixels of the smallest box that holds everything that is not nearly white."""
    pixels = np.asarray(picture.convert("RGB"))
    ys, xs = np.nonzero(pixels.min(2) < 245)
    if not len(ys):
        return pixels
    return np.ascontiguousarray(pixels[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1])


class Sprites:
    """The sprites of one or several image folders, with a cache of their scaled and recoloured pixels."""

    def __init__(self, sprites: Sequence[Sprite]) -> None:
        names = nouns("countable")
        self.all = tuple(sprites)
        self.countable = tuple(s for s in sprites if s.concept in names)
        self.recolourable = tuple(s for s in sprites if s.noun)
        self.labels = tuple(sorted({s.label for s in self.countable}))
        self._scaled: dict[tuple[int, int, str], Pixels] = {}

    @classmethod
    def open(cls, *folders: str | Path, concepts: Collection[str] | None = None) -> Sprites:
        """Reads image folders whose metadata.jsonl has `concept` and `label`; only `concepts` if given."""
        counted, coloured = nouns("countable"), nouns("recolourable")
        found = []
        for folder in map(Path, folders):
            for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                concept = row["concept"]
                if concept not in counted and concept not in coloured:
                    continue
                if concepts is not None and concept not in concepts:
                    continue
                with Image.open(folder / row["file_name"]) as picture:
                    ink = crop_to_ink(picture)
                noun = coloured.get(concept, "")
                if noun and dominant_share(ink) <= RULED:
                    noun = ""
                found.append(Sprite(concept, counted.get(concept) or tidy(row["label"]), noun, ink))
        if not found:
            raise ValueError(f"no sprite for scenes in {', '.join(map(str, folders))}")
        return cls(found)

    def scaled(self, sprite: Sprite, side: int, color: str = "") -> Pixels:
        """The sprite with its longer side `side` pixels, in the colour if one is named."""
        key = (id(sprite), side, color)
        pixels = self._scaled.get(key)
        if pixels is None:
            ink = recolour(sprite.ink, color) if color else sprite.ink
            height, width = ink.shape[:2]
            scale = side / max(height, width)
            shape = (max(1, round(width * scale)), max(1, round(height * scale)))
            pixels = np.asarray(
                Image.fromarray(ink).resize(shape, Image.Resampling.LANCZOS, reducing_gap=None)
            )
            self._scaled[key] = pixels
        return pixels


def _draw(
    sprites: Sprites, placed: Sequence[tuple[Sprite, str, Sequence[Place]]], size: int, rng: random.Random
) -> tuple[Image.Image, list[Thing]]:
    """Puts each sprite somewhere inside each of its places; all sprites of a thing have the same size."""
    canvas = np.full((size, size, 3), 255, np.uint8)
    things = []
    for sprite, color, places in placed:
        room = min(min(x1 - x0, y1 - y0) for x0, y0, x1, y1 in places)
        side = max(2, int(room * rng.uniform(0.8, 1.0) * STEPS) * size // STEPS)
        pixels = sprites.scaled(sprite, side, color)
        height, width = pixels.shape[:2]
        boxes = []
        for x0, y0, x1, y1 in places:
            left = int(x0 * size) + rng.randint(0, max(0, int(x1 * size) - int(x0 * size) - width))
            top = int(y0 * size) + rng.randint(0, max(0, int(y1 * size) - int(y0 * size) - height))
            canvas[top : top + height, left : left + width] = pixels
            boxes.append((left, top, left + width, top + height))
        things.append(Thing(sprite.concept, sprite.noun if color else sprite.label, color, tuple(boxes)))
    return Image.fromarray(canvas), things


def _two_places(relation: str, rng: random.Random) -> tuple[Place, Place]:
    """Two places, the first `relation` the second, at most a little off one line."""
    middle = rng.uniform(0.26, 0.74)
    low = min(max(middle - 0.27, 0.0), 0.44)
    high = low + 0.56
    first, second = (0.0, 0.5), (0.5, 1.0)
    if relation in ("right of", "below"):
        first, second = second, first
    if relation in ("left of", "right of"):
        return (first[0], low, first[1], high), (second[0], low, second[1], high)
    return (low, first[0], high, first[1]), (low, second[0], high, second[1])


def _grid(count: int, rng: random.Random, box: Place = (0.0, 0.0, 1.0, 1.0)) -> list[Place]:
    """Places for up to four things: one, a row or column, or some quarters of the square."""
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    if count == 1:
        inset = rng.uniform(0.1, 0.25)
        return [(x0 + inset * width, y0 + inset * height, x1 - inset * width, y1 - inset * height)]
    if count in (2, 3) and rng.random() < 0.4:
        cells = [(i / count, 0.5 - 0.6 / count, (i + 1) / count, 0.5 + 0.6 / count) for i in range(count)]
        if rng.random() < 0.3:
            cells = [(b, a, d, c) for a, b, c, d in cells]
    else:
        quarters = [(0.0, 0.0, 0.5, 0.5), (0.5, 0.0, 1.0, 0.5), (0.0, 0.5, 0.5, 1.0), (0.5, 0.5, 1.0, 1.0)]
        cells = sorted(rng.sample(quarters, count))
    return [(x0 + a * width, y0 + b * height, x0 + c * width, y0 + d * height) for a, b, c, d in cells]


def _different(
    pool: Sequence[Sprite], count: int, rng: random.Random, coloured: bool = False
) -> list[Sprite]:
    """Sprites with names of which none is part of another (`cat` and `black cat` never meet)."""
    chosen: list[Sprite] = []
    names: list[str] = []
    for _ in range(1000):
        sprite = pool[int(rng.random() * len(pool))]
        name = sprite.noun if coloured else sprite.label
        if not any(n in name or name in n for n in names):
            chosen.append(sprite)
            names.append(name)
        if len(chosen) == count:
            return chosen
    raise ValueError(f"the sprites have fewer than {count} different labels")


def _relation_words(first: str, relation: str, second: str, rng: random.Random) -> str:
    """A sentence part that says where `first` stands to `second`; half of them name the second first."""
    if rng.random() < 0.4:
        first, relation, second = second, OPPOSITE[relation], first
    ends = {
        "left of": ("on the left", "on the right"),
        "right of": ("on the right", "on the left"),
        "above": ("at the top", "at the bottom"),
        "below": ("at the bottom", "at the top"),
    }[relation]
    joints = {
        "left of": ("to the left of", "left of", "on the left of"),
        "right of": ("to the right of", "right of", "on the right of"),
        "above": ("above", "over"),
        "below": ("below", "under", "beneath"),
    }[relation]
    wordings = [f"{first} {joint} {second}" for joint in joints]
    return rng.choice([*wordings, *wordings, f"{first} {ends[0]} and {second} {ends[1]}"])


def describe(kind: Kind, things: Sequence[Thing], relation: str, seed: int | random.Random) -> str:
    """A caption for this ground truth, its wording chosen by seed."""
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    prefix = rng.choice(PREFIXES)
    if kind in ("pair", "colour pair") and relation:
        return prefix + _relation_words(things[0].words(), relation, things[1].words(), rng)
    if kind == "count":
        count = things[0].count
        words = things[0].words(count)
        return prefix + (words if count > 1 or rng.random() < 0.5 else things[0].words())
    if kind == "mixed count":
        parts = [t.words(t.count) if t.count > 1 else t.words() for t in things]
    else:
        parts = [t.words() for t in things]
    rng.shuffle(parts)
    if len(parts) > 1:
        return prefix + ", ".join(parts[:-1]) + " and " + parts[-1]
    return prefix + parts[0]


def make_scene(sprites: Sprites, seed: int, kind: Kind | None = None, size: int = 64) -> Scene:
    """The scene of this seed; `kind` is drawn if it is not given."""
    rng = random.Random(seed)
    drawn = rng.choices(KINDS, SHARES)[0]
    kind = kind or drawn
    if kind in ("colour", "colour pair") and len({s.noun for s in sprites.recolourable}) < 2:
        raise ValueError(
            f"{len(sprites.recolourable)} recolourable sprites are too few for a scene of kind {kind!r}"
        )
    relation = ""
    if kind in ("pair", "colour pair"):
        relation = rng.choice(tuple(OPPOSITE))
        places = _two_places(relation, rng)
        coloured = kind == "colour pair"
        pair = _different(sprites.recolourable if coloured else sprites.countable, 2, rng, coloured)
        colors = rng.sample(COLOURS, 2) if coloured else ["", ""]
        placed = [(s, c, [p]) for s, c, p in zip(pair, colors, places, strict=True)]
        if coloured and rng.random() < 0.6:
            relation = ""
    elif kind == "list":
        count = rng.choice((2, 2, 3))
        several = _different(sprites.countable, count, rng)
        placed = [(s, "", [p]) for s, p in zip(several, _grid(count, rng), strict=True)]
    elif kind == "count":
        placed = [(rng.choice(sprites.countable), "", _grid(rng.randint(1, 4), rng))]
    elif kind == "mixed count":
        count = rng.choice((2, 3))
        first, second = _different(sprites.countable, 2, rng)
        cells = _grid(4, rng)
        rng.shuffle(cells)
        placed = [(first, "", sorted(cells[:count])), (second, "", [cells[count]])]
    else:
        placed = [(rng.choice(sprites.recolourable), rng.choice(COLOURS), _grid(1, rng))]
    picture, things = _draw(sprites, placed, size, rng)
    return Scene(picture, describe(kind, things, relation, rng), kind, tuple(things), relation)


@dataclass(frozen=True)
class Negative:
    """A caption that is false of a scene, and what is wrong with it: object, count, colour, swap or position."""

    caption: str
    wrong: Literal["object", "count", "colour", "swap", "position"]


def hard_negatives(scene: Scene, sprites: Sprites, seed: int) -> list[Negative]:
    """False captions, each wrong in one thing only: one of every sort that the scene allows."""
    rng = random.Random(f"{seed} negatives")
    things = list(scene.things)
    found: list[tuple[list[Thing], str, Any]] = []
    used = {t.label for t in things}
    pool = sorted({s.noun for s in sprites.recolourable}) if things[0].color else sprites.labels
    others = [n for n in pool if not any(n in u or u in n for u in used)]
    if others:
        at = rng.randrange(len(things))
        found.append(
            (
                [*things[:at], replace(things[at], label=rng.choice(others)), *things[at + 1 :]],
                scene.relation,
                "object",
            )
        )
    if scene.kind in ("count", "mixed count"):
        thing = things[0]
        number = rng.choice([n for n in (1, 2, 3, 4) if n != thing.count])
        found.append(
            ([replace(thing, boxes=(thing.boxes * 4)[:number]), *things[1:]], scene.relation, "count")
        )
    if things[0].color:
        at = rng.randrange(len(things))
        color = rng.choice([c for c in COLOURS if c not in {t.color for t in things}])
        found.append(
            ([*things[:at], replace(things[at], color=color), *things[at + 1 :]], scene.relation, "colour")
        )
    if scene.kind == "colour pair":
        first, second = things
        swapped = [replace(first, color=second.color), replace(second, color=first.color)]
        found.append((swapped, scene.relation, "swap"))
    if scene.kind == "mixed count":
        first, second = things
        found.append(
            ([replace(first, boxes=second.boxes), replace(second, boxes=first.boxes)], scene.relation, "swap")
        )
    if scene.relation:
        found.append((things, OPPOSITE[scene.relation], "position"))
    return [Negative(describe(scene.kind, t, relation, rng), wrong) for t, relation, wrong in found]
