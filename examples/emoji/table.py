"""concepts.csv: reading and writing the table of concepts."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sets import SET_NAMES

HERE = Path(__file__).parent
TABLE = HERE / "concepts.csv"
COLUMNS = (
    "concept",
    "codepoints",
    "label",
    "tags",
    "group",
    "subgroup",
    "nano",
    "split",
    "heldout",
    *SET_NAMES,
)


@dataclass(frozen=True)
class Row:
    """One concept. `nano` is train or withheld, `split` train or test; `icons` collection -> icon name."""

    concept: str
    codepoints: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    nano: str
    split: str
    heldout: frozenset[str]
    icons: dict[str, str]

    def is_held_out(self, collection: str) -> bool:
        """True where this collection's picture is kept from training (never so for the backbone's own sets)."""
        return collection not in ("noto", "flat-color-icons") and (
            self.split == "test" or collection in self.heldout
        )


def read_table(path: Path = TABLE) -> list[Row]:
    """All rows of the table, in its order."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Row(
                concept=r["concept"],
                codepoints=r["codepoints"],
                label=r["label"],
                tags=tuple(t for t in r["tags"].split(";") if t),
                group=r["group"],
                subgroup=r["subgroup"],
                nano=r["nano"],
                split=r["split"],
                heldout=frozenset(n for n in r["heldout"].split(";") if n),
                icons={n: r[n] for n in SET_NAMES if r[n]},
            )
            for r in csv.DictReader(file)
        ]


def write_table(rows: Iterable[Row], path: Path = TABLE) -> None:
    """Writes the rows in the order given, with unix line ends."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for r in rows:
            fixed = [r.concept, r.codepoints, r.label, ";".join(r.tags), r.group, r.subgroup, r.nano, r.split]
            writer.writerow([*fixed, ";".join(sorted(r.heldout)), *(r.icons.get(n, "") for n in SET_NAMES)])
