"""Sources by topic: the same hands, disjoint ideas."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from folder import Card
from sets import Cell, picture_set
from table import Row

LOOKALIKES = Path(__file__).with_name("lookalikes.csv")
# The order says which of several near-duplicate pictures stays. openmoji is left out: its licence is share-alike.
VENDORS = (
    "fluent-emoji-flat",
    "twemoji",
    "noto-v1",
    "fxemoji",
    "emojione",
    "fluent-emoji",
    "streamline-kameleon-color",
)
GROUPS = {
    "smileys-emotion": "smileys",
    "people-body": "people",
    "animals-nature": "animals",
    "food-drink": "food",
    "travel-places": "travel",
    "activities": "activities",
    "objects": "objects",
    "symbols": "symbols",
    "flags": "symbols",
}
NATURE = ("plant-flower", "plant-other", "sky-weather", "place-geographic")
TOPICS = (*dict.fromkeys(GROUPS.values()), "nature")


def topic(row: Row) -> str:
    """The topic of a concept; '' for concepts that only one icon set has."""
    return "nature" if row.subgroup in NATURE else GROUPS.get(row.group, "")


def read_lookalikes() -> dict[Cell, int]:
    """(collection, concept) -> number of its cluster, for all pictures that have near-duplicates."""
    with LOOKALIKES.open(encoding="utf-8", newline="") as file:
        return {(r["collection"], r["concept"]): int(r["cluster"]) for r in csv.DictReader(file)}


def repeated(cells: Sequence[Cell], clusters: Mapping[Cell, int]) -> set[Cell]:
    """The cells whose near-duplicate comes earlier in `cells` from another collection."""
    first: dict[int, str] = {}
    again = set()
    for cell in cells:
        number = clusters.get(cell)
        if number is not None and first.setdefault(number, cell[0]) != cell[0]:
            again.add(cell)
    return again


def mixed_card(collections: Sequence[str]) -> Card:
    """One card for pictures of several collections: a compound SPDX expression and every attribution."""
    sets = [picture_set(c) for c in collections]
    return Card(
        license=" AND ".join(sorted({s.license for s in sets})),
        author=", ".join(dict.fromkeys(s.author for s in sets)),
        origin=", ".join(dict.fromkeys(s.origin for s in sets)),
        attribution=" ".join(s.attribution for s in sets),
    )
