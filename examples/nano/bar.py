"""Draws the 40 objects, with 19 distractors each, on which the backbone is judged. Run once, before any training.

python examples/nano/bar.py
"""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parent / "emoji" / "concepts.csv"
SEED = 40
# Everyday names by topic, with how many of each are drawn. All are concepts that the backbone is trained on.
EVERYDAY: dict[str, tuple[int, str]] = {
    "animals": (
        11,
        "dog cat horse cow pig sheep:ewe goat elephant giraffe zebra lion tiger bear panda koala fox wolf"
        " mouse rabbit bat deer camel kangaroo monkey gorilla penguin owl duck eagle parrot flamingo"
        " rooster chicken butterfly bee snail ant ladybug spider scorpion unicorn hedgehog",
    ),
    "food": (
        10,
        "banana lemon pear peach cherries strawberry pineapple watermelon grapes tomato coconut bread croissant pretzel"
        " pizza hamburger hot_dog taco egg french_fries cookie doughnut cupcake pie lollipop ice_cream wine_glass"
        " green_apple red_apple sandwich popcorn",
    ),
    "travel": (
        9,
        "car bus taxi tractor bicycle motorcycle truck airplane helicopter rocket castle house tent ferris_wheel"
        " ambulance fire_engine rainbow umbrella snowflake snowman cloud sun volcano mountain hospital skateboard",
    ),
    "objects": (
        10,
        "guitar trumpet violin drum key hammer axe scissors shield magnet ladder chair bed door toilet bathtub"
        " toothbrush candle light_bulb camera television book:open_book crown top_hat shoe dress t-shirt necktie"
        " backpack lipstick ring glasses basketball soccer_ball tennis trophy teddy_bear kite coin gear bomb",
    ),
}


def pools() -> dict[str, dict[str, str]]:
    """Topic -> {name: concept id}, of the names whose concept the backbone learns from noto."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["noto"] and r["nano"] == "train"]
    by_label = {r["label"].lower(): r["concept"] for r in rows}
    found: dict[str, dict[str, str]] = {}
    for topic, (_, names) in EVERYDAY.items():
        found[topic] = {}
        for item in names.split():
            name, _, label = item.replace("_", " ").partition(":")
            concept = by_label.get(label or name)
            if concept is not None:
                found[topic][name] = concept
    return found


def main() -> None:
    """Draws and writes bar.json."""
    by_topic = pools()
    concepts = {name: concept for pool in by_topic.values() for name, concept in pool.items()}
    random_numbers = random.Random(SEED)
    items = []
    for topic, (count, _) in EVERYDAY.items():
        for name in sorted(random_numbers.sample(sorted(by_topic[topic]), count)):
            others = sorted(n for n in concepts if n != name)
            distractors = random_numbers.sample(others, 19)
            items.append(
                {"name": name, "concept": concepts[name], "topic": topic, "distractors": distractors}
            )
    record = {"seed": SEED, "names_in_the_pool": len(concepts), "objects": items}
    (HERE / "bar.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
