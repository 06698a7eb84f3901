"""Draw the picture study: python docs/study.py [--store adapters] [--backbone nano] [--out docs/images/study.png]

The same seeds through every router and lever, for prompts of one idea and for joined scenes. A row is a prompt, a
column a way. `--table` prints for each way the rows that it ran, how far its pictures are from the exact sum's (root
mean square over pixel values from 0 to 1), and how far two seeds of the exact sum are apart, to hold that against.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from promptcdm.backbone import Backbone
from promptcdm.generate import Generation, generate
from promptcdm.settings import GenerateSettings
from promptcdm.store import AdapterStore

SINGLE = ("a fox", "a pizza", "a bus", "a turtle", "a robot", "a sunflower")
JOINED = (
    "a fox and a pizza",
    "a red apple to the left of a bus",
    "a turtle above a sunflower",
    "a cat and a car and a tree",
)
PLAIN = GenerateSettings()
FAST = {"top_k": 2, "guidance_start": 0.2, "guidance_stop": 0.8, "cache_interval": 3}
WAYS: dict[str, GenerateSettings] = {
    "uniform": replace(PLAIN, router="uniform"),
    "prompt": replace(PLAIN, router="prompt"),
    "posterior": PLAIN,
    "top-2": replace(PLAIN, top_k=2),
    "top-1": replace(PLAIN, top_k=1),
    "draw once": replace(PLAIN, draw="once"),
    "draw a step": replace(PLAIN, draw="step"),
    "interval": replace(PLAIN, guidance_start=0.2, guidance_stop=0.8),
    "cache 3": replace(PLAIN, cache_interval=3),
    "all fast": replace(PLAIN, **FAST),
    "regional": replace(PLAIN, router="regional"),
}
EXACT = "posterior"
SIDE, GAP, HEAD, LEFT = 96, 6, 20, 150


def sheet(made: dict[str, Generation], prompts: tuple[str, ...]) -> Image.Image:
    """The grid, with the ways above and the prompts beside it."""
    size = (LEFT + len(made) * (SIDE + GAP), HEAD + len(prompts) * (SIDE + GAP))
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    for column, (way, generation) in enumerate(made.items()):
        x = LEFT + column * (SIDE + GAP)
        pen.text((x + 2, 4), way, fill="black")
        for row, image in enumerate(generation.images):
            page.paste(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x, HEAD + row * (SIDE + GAP)))
    for row, prompt in enumerate(prompts):
        words, half = prompt.split(), (len(prompt.split()) + 1) // 2
        lines = [prompt] if len(prompt) < 24 else [" ".join(words[:half]), " ".join(words[half:])]
        for n, line in enumerate(lines):
            pen.text((4, HEAD + row * (SIDE + GAP) + SIDE // 2 - 8 + 14 * n), line, fill="black")
    return page


def distance(one: Image.Image, other: Image.Image) -> float:
    """Root mean square of the difference of two pictures, pixel values from 0 to 1."""
    a, b = (np.asarray(image.convert("RGB"), np.float64) / 255 for image in (one, other))
    return float(np.sqrt(np.square(a - b).mean()))


def table(made: dict[str, Generation], other_seed: Generation) -> list[str]:
    """Rows a step and distance from the exact sum, way by way, and of another seed of the exact sum."""
    exact, steps = made[EXACT], PLAIN.num_inference_steps
    lines = [f"{'way':<14}{'rows a step':>12}{'rms from ' + EXACT:>22}"]
    for way, generation in (made | {"another seed": other_seed}).items():
        rows = statistics.fmean(record["row_forwards"] for record in generation.records) / steps
        far = statistics.fmean(map(distance, generation.images, exact.images))
        lines.append(f"{way:<14}{rows:>12.2f}{far:>22.3f}")
    return lines


def main() -> None:
    """Draw every way and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, default=Path("adapters"))
    parser.add_argument("--backbone", default="nano")
    parser.add_argument("--allowed", default="", help="sources with commas; left out: all of the store")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images" / "study.png")
    parser.add_argument("--table", action="store_true", help="measure, too")
    args = parser.parse_args()
    backbone, store = Backbone.load(args.backbone, device="cpu"), AdapterStore(args.store)
    allowed = args.allowed.split(",") if args.allowed else store.sources()
    prompts = SINGLE + JOINED

    def draw(settings: GenerateSettings) -> Generation:
        return generate(prompts, allowed=allowed, backbone=backbone, store=store, settings=settings)

    made = {way: draw(settings) for way, settings in WAYS.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    sheet(made, prompts).save(args.out)
    print(args.out)
    if args.table:
        print("\n".join(table(made, draw(replace(PLAIN, seed=1000)))))


if __name__ == "__main__":
    main()
