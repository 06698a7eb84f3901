"""Makes concepts.csv and withheld.json from the npm packages. Run once; the results are checked in and looked over.

python examples/emoji/concepts.py --npm node_modules
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from icons import IconSet
from lookalikes import clusters
from mapping import Concept, Fix, map_sets
from render import render
from sets import SET_NAMES, Cell
from splits import SEED, choose_held_out, choose_test, choose_withheld
from table import HERE, Row, write_table
from topics import LOOKALIKES

FIXES = HERE / "fixes.csv"
# Labels said the way people say them; the label of emojibase stays in the tags.
EVERYDAY = {
    "automobile": "car",
    "oncoming automobile": "oncoming car",
    "articulated lorry": "truck",
    "locomotive": "steam train",
    "deciduous tree": "tree",
    "hot beverage": "hot drink",
    "lady beetle": "ladybug",
    "honeybee": "bee",
    "wastebasket": "trash can",
    "billed cap": "cap",
    "performing arts": "theater masks",
    "bullseye": "dartboard",
    "game die": "die",
    "sport utility vehicle": "suv",
    "two-hump camel": "two-humped camel",
    "man\u2019s shoe": "shoe",
    "high-heeled shoe": "high heel",
    "woman\u2019s boot": "boot",
    "straight ruler": "ruler",
    "carpentry saw": "saw",
    "hourglass not done": "running hourglass",
    "hourglass done": "hourglass",
    "video game": "game controller",
    "pool 8 ball": "billiard ball",
    "rescue worker\u2019s helmet": "rescue helmet",
    "input latin uppercase": "uppercase letters button",
    "input latin lowercase": "lowercase letters button",
    "input latin letters": "latin letters button",
    "input numbers": "numbers button",
    "input symbols": "symbols button",
    "water closet": "water closet sign",
    "foggy": "foggy city",
    "locked": "lock",
    "unlocked": "open lock",
    "locked with pen": "lock with pen",
    "locked with key": "lock with key",
    "dizzy": "dizzy star",
    "high voltage": "lightning bolt",
    "radioactive": "radioactive sign",
    "biohazard": "biohazard sign",
    "warning": "warning sign",
    "mobile phone off": "switched-off phone",
    "teacup without handle": "tea bowl",
    "seat": "airplane seat",
    "link": "chain link",
    "pick": "pickaxe",
}


def read_fixes(drawn: str) -> dict[tuple[str, str], Fix]:
    """(set, icon) -> what was chosen by hand, `before` or `after` the held-out pictures were drawn."""
    with FIXES.open(encoding="utf-8", newline="") as file:
        found = [r for r in csv.DictReader(file) if r["drawn"] == drawn]
    return {(r["set"], r["icon"]): Fix(r["concept"], r["label"]) for r in found}


def mend(concepts: list[Concept], fixes: Mapping[tuple[str, str], Fix]) -> None:
    """Moves icons to other concepts, or takes them out, without moving any picture between the splits."""
    by_id = {c.id: c for c in concepts}
    for set_name, icon in fixes:
        for concept in concepts:
            if concept.icons.get(set_name) == icon:
                del concept.icons[set_name]
    for (set_name, icon), fix in fixes.items():
        if fix.concept:
            by_id[fix.concept].icons[set_name] = icon


def source_clusters(concepts: list[Concept], npm: Path) -> dict[tuple[str, str], int]:
    """(collection, concept) -> number of its cluster of near-duplicates, over the source collections and noto.

    Icons that the renderer cannot draw are taken out of the concepts.
    """
    pictures = {}
    for name in SET_NAMES:
        icon_set = IconSet.open(npm, name)
        svgs = {c.id: icon_set.svg(c.icons[name], 64) for c in concepts if name in c.icons}
        drawn, skipped = render(svgs, npm)
        for concept_id in skipped:
            next(c for c in concepts if c.id == concept_id).icons.pop(name)
        if skipped:
            print(f"{name}: the renderer cannot draw {', '.join(skipped)}")
        if name != "flat-color-icons":
            pictures.update({(name, concept_id): picture for concept_id, picture in drawn.items()})
    return clusters(pictures)


def write_lookalikes(groups: Mapping[Cell, int]) -> None:
    """lookalikes.csv: the clusters of two and more pictures, numbered in the order of their first cell."""
    members: dict[int, list[Cell]] = defaultdict(list)
    for cell, number in sorted(groups.items()):
        members[number].append(cell)
    shared = sorted(cells for cells in members.values() if len(cells) > 1)
    with LOOKALIKES.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("cluster", "collection", "concept"))
        writer.writerows((number, *cell) for number, cells in enumerate(shared) for cell in cells)


def main() -> None:
    """Draws the splits and writes both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--npm", type=Path, required=True, help="node_modules with the icon sets and emojibase-data"
    )
    npm = parser.parse_args().npm
    concepts = map_sets(npm, read_fixes("before"))
    groups = source_clusters(concepts, npm)
    concepts = [c for c in concepts if c.icons]
    subgroups, withheld = choose_withheld(concepts)
    test = choose_test(concepts, withheld)
    held = choose_held_out(concepts, test, groups)
    write_lookalikes(groups)
    mend(concepts, read_fixes("after"))
    rows = [
        Row(
            concept=c.id,
            codepoints=c.codepoints,
            label=EVERYDAY.get(c.label, c.label),
            tags=(c.label, *c.tags) if c.label in EVERYDAY else c.tags,
            group=c.group,
            subgroup=c.subgroup,
            nano="withheld" if c.id in withheld else "train",
            split="test" if c.id in test else "train",
            heldout=frozenset(held.get(c.id, ())),
            icons=c.icons,
        )
        for c in concepts
    ]
    write_table(rows)
    beyond = sorted(c.id for c in concepts if c.id in withheld and c.subgroup not in subgroups)
    record = {"seed": SEED, "subgroups": subgroups, "also_by_label": beyond}
    (HERE / "withheld.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    cells = sum(len(r.icons) for r in rows)
    print(
        f"{len(rows)} concepts, {cells} pictures, {len(withheld)} withheld, {len(test)} test, {len(held)} with held-out"
    )


if __name__ == "__main__":
    main()
