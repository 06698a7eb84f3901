"""Draws the 200 pictures on which the judges' errors are measured, and sheets on which a person labels them blind.

    python eval/judge_labels/draw.py --adapters adapters --work work/judge-labels

Each prompt goes to nano with the adapter of one source. Prompts, sources and order come from one seed. It goes on where
it stopped, and ends with two files beside this script and numbered sheets in the work folder:

    pictures.png    the pictures in shuffled order, row by row
    key.json        picture -> prompt, source, seed; not to be looked at before the pictures are labelled
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from promptcdm.backbone import Backbone
from promptcdm.caption_chunks import plural
from promptcdm.generate import generate
from promptcdm.settings import GenerateSettings
from promptcdm.shipped import shipped
from promptcdm.store import AdapterStore
from promptcdm.tensorfile import write_json

HERE = Path(__file__).parent
SEED = 20
SOURCES = ("fluent-emoji-flat", "fxemoji", "openmoji", "twemoji")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
COLORED = (
    *("apple", "balloon", "bell", "bird", "boat", "book", "butterfly", "car", "chair", "cup"),
    *("fish", "flower", "guitar", "hat", "heart", "house", "key", "shoe", "star", "umbrella"),
)
UNCOUNTED = {"french fries", "popcorn", "mountain", "sun", "gear", "lipstick"}
RELATIONS = ("to the left of", "to the right of", "above", "below")
NUMBERS = {2: "two", 3: "three", 4: "four"}
STEPS = 12  # of DPM-Solver++, about what 25 of the default give
SIDE, COLUMNS, ENLARGED, SHEET = 64, 20, 3, 40  # pixels, pictures a row, times, pictures a sheet


def prompts() -> list[str]:
    """80 of one thing, 40 of a thing in a colour, 40 of some of a thing, 40 of two things and how they stand."""
    rng = random.Random(SEED)
    names = [row["name"] for row in json.loads((shipped("nano") / "bar.json").read_text())["answers"]]
    counted = [name for name in names if name not in UNCOUNTED]
    single = [_a(name) for name in names] * 2
    colored = [_a(f"{rng.choice(COLORS)} {noun}") for noun in COLORED * 2]
    some = [f"{NUMBERS[rng.choice(list(NUMBERS))]} {plural(rng.choice(counted))}" for _ in range(40)]
    pairs = [rng.sample(counted, 2) for _ in range(40)]
    placed = [f"{_a(first)} {rng.choice(RELATIONS)} {_a(second)}" for first, second in pairs]
    return [*single, *colored, *some, *placed]


def orders() -> list[dict[str, object]]:
    """What is drawn, in the order of its numbers."""
    rows: list[dict[str, object]] = [
        {"prompt": prompt, "source": SOURCES[place % len(SOURCES)], "seed": SEED * 1000 + place}
        for place, prompt in enumerate(prompts())
    ]
    random.Random(SEED + 1).shuffle(rows)
    return rows


def draw(rows: Sequence[dict[str, object]], adapters: Path, work: Path) -> Iterator[Image.Image]:
    """The pictures, those that the work folder lacks drawn first."""
    store, backbone = AdapterStore(adapters), None
    for number, row in enumerate(rows):
        path = work / f"{number:03}.png"
        if not path.exists():
            backbone = backbone or Backbone.load("nano")
            seed = row["seed"]
            assert isinstance(seed, int)
            made = generate(
                [str(row["prompt"])],
                allowed=[str(row["source"])],
                backbone=backbone,
                store=store,
                settings=GenerateSettings(seed=seed, scheduler="dpm++", num_inference_steps=STEPS),
            )
            made.images[0].save(path.with_suffix(".partial"), "PNG")
            path.with_suffix(".partial").replace(path)
        with Image.open(path) as picture:
            yield picture.convert("RGB")


def mosaic(pictures: Sequence[Image.Image]) -> Image.Image:
    """All pictures, row by row."""
    rows = -(-len(pictures) // COLUMNS)
    whole = Image.new("RGB", (COLUMNS * SIDE, rows * SIDE), "white")
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number % COLUMNS * SIDE, number // COLUMNS * SIDE))
    return whole


def sheet(pictures: Sequence[Image.Image], first: int) -> Image.Image:
    """Enlarged pictures under their numbers, eight a row."""
    side = SIDE * ENLARGED
    whole = Image.new("RGB", (8 * (side + 8), -(-len(pictures) // 8) * (side + 24)), "lightgray")
    pen = ImageDraw.Draw(whole)
    for place, picture in enumerate(pictures):
        left, top = place % 8 * (side + 8), place // 8 * (side + 24)
        pen.text((left + 4, top + 4), str(first + place), "black", font_size=14)
        whole.paste(picture.resize((side, side), Image.Resampling.BICUBIC), (left, top + 22))
    return whole


def _a(name: str) -> str:
    if name in ("french fries", "popcorn"):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def main() -> None:
    """Draw, and write the two files and the sheets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=Path, default=Path("adapters"))
    parser.add_argument("--work", type=Path, required=True, help="folder of single pictures and sheets")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    rows = orders()
    pictures = list(draw(rows, given.adapters, given.work))
    mosaic(pictures).save(HERE / "pictures.png", optimize=True)
    digests = {name: AdapterStore(given.adapters).record(name).sha256 for name in SOURCES}
    write_json(HERE / "key.json", {"adapters": digests, "pictures": rows})
    for first in range(0, len(pictures), SHEET):
        sheet(pictures[first : first + SHEET], first).save(given.work / f"sheet{first // SHEET}.png")


if __name__ == "__main__":
    main()
