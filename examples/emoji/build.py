"""Builds the picture collections into ordinary image folders.

    python examples/emoji/build.py --out examples/emoji/out [--npm node_modules] [--size 64] [--by vendor|topic]

Without --npm the packages are fetched by npm into examples/emoji/node_modules. By vendor: OUT/COLLECTION holds the
training pictures, OUT/heldout/COLLECTION the held-out ones; of noto and flat-color-icons, the backbone's own material,
OUT/withheld/COLLECTION holds the pictures of the concepts that the backbone must never see. By topic:
OUT/topics/TOPIC and OUT/topics/heldout/TOPIC.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from captions import caption
from folder import Card, Entry, write_folder
from icons import IconSet
from render import render
from sets import BACKBONE_SETS, SET_NAMES, picture_set
from table import HERE, Row, read_table
from topics import TOPICS, VENDORS, mixed_card, read_lookalikes, repeated, topic

# The versions that the table was made with: the same pictures on every build.
PACKAGES = (
    "@iconify-json/noto@1.2.9",
    "@iconify-json/noto-v1@1.2.5",
    "@iconify-json/fxemoji@1.2.2",
    "@iconify-json/fluent-emoji@1.2.7",
    "@iconify-json/fluent-emoji-flat@1.2.6",
    "@iconify-json/twemoji@1.2.5",
    "@iconify-json/emojione@1.2.3",
    "@iconify-json/streamline-kameleon-color@1.2.2",
    "@iconify-json/openmoji@1.2.29",
    "@iconify-json/flat-color-icons@1.2.3",
    "@resvg/resvg-js@2.6.2",
    "emojibase-data@17.0.0",
)


@dataclass(frozen=True)
class Drawn:
    """A rendered picture of a collection."""

    collection: str
    row: Row
    entry: Entry

    @property
    def is_aside(self) -> bool:
        """True where it must not be trained on: held out of a source, or withheld from the backbone."""
        if self.collection in BACKBONE_SETS:
            return self.row.nano == "withheld"
        return self.row.is_held_out(self.collection)


def install(folder: Path) -> Path:
    """Fetches the packages by name with npm and returns the node_modules folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm was not found; install Node.js, or pass --npm with a node_modules folder")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([npm, "install", "--no-save", "--prefix", str(folder), *PACKAGES], check=True)
    return folder / "node_modules"


def collection_entries(npm: Path, name: str, rows: Sequence[Row], size: int) -> tuple[list[Drawn], list[str]]:
    """All pictures of one collection, and the names that the renderer could not draw.

    Where a set has a two-tone drawing beside an icon (`NAME-duo`), it is a second picture of the same concept.
    """
    icon_set = IconSet.open(npm, name)
    files = {}
    for row in rows:
        if name in row.icons:
            files[row.concept] = (row, row.icons[name])
            if f"{row.icons[name]}-duo" in icon_set.icons:
                files[f"{row.concept}-duo"] = (row, f"{row.icons[name]}-duo")
    pictures, skipped = render({file: icon_set.svg(icon, size) for file, (_, icon) in files.items()}, npm)
    drawn = []
    for file, picture in pictures.items():
        row = files[file][0]
        more: dict[str, object] = {"concept": row.concept, "label": row.label}
        text = caption(row.label, f"{name}/{file}")
        drawn.append(Drawn(name, row, Entry(f"{file}.png", picture, text, more)))
    return drawn, skipped


def card(collection: str) -> Card:
    """The collection's licence, author, origin and attribution."""
    s = picture_set(collection)
    return Card(s.license, s.author, s.origin, s.attribution)


def build_vendor(npm: Path, out: Path, names: Sequence[str], size: int, distinct: bool = False) -> None:
    """One folder a collection, and one of its held-out (or, for the backbone's sets, withheld) pictures.

    With `distinct`, a picture is left out where a collection named earlier has nearly the same.
    """
    rows = read_table()
    cells = [(name, row.concept) for name in names for row in rows if name in row.icons]
    left_out = repeated(cells, read_lookalikes()) if distinct else set()
    for name in names:
        drawn, skipped = collection_entries(npm, name, rows, size)
        drawn = [d for d in drawn if (name, d.row.concept) not in left_out]
        aside = [d.entry for d in drawn if d.is_aside]
        count = write_folder(out / name, (d.entry for d in drawn if not d.is_aside), card(name))
        kind = "withheld" if name in BACKBONE_SETS else "heldout"
        write_folder(out / kind / name, aside, card(name))
        note = f"; the renderer cannot draw {', '.join(skipped)}" if skipped else ""
        print(f"{name}: {count} pictures, {len(aside)} {kind}{note}", flush=True)


def build_topic(npm: Path, out: Path, size: int) -> None:
    """One folder a topic from all vendors of topics.VENDORS, near-duplicates taken once, and its held-out pictures."""
    rows = [r for r in read_table() if topic(r)]
    cells = [(name, row.concept) for name in VENDORS for row in rows if name in row.icons]
    left_out = repeated(cells, read_lookalikes())
    drawn = [
        d
        for name in VENDORS
        for d in collection_entries(npm, name, rows, size)[0]
        if (name, d.row.concept) not in left_out
    ]
    for name in TOPICS:
        mine = [d for d in drawn if topic(d.row) == name]
        for folder, aside in ((out / "topics" / name, False), (out / "topics" / "heldout" / name, True)):
            chosen = [d for d in mine if d.is_aside == aside]
            entries = [
                replace(
                    d.entry,
                    file=f"{d.collection}-{d.entry.file}",
                    more={**d.entry.more, "collection": d.collection},
                )
                for d in chosen
            ]
            used = {d.collection for d in chosen}
            write_folder(folder, entries, mixed_card([v for v in VENDORS if v in used]))
            print(f"{folder.relative_to(out)}: {len(entries)} pictures", flush=True)


def main() -> None:
    """Parses the flags and builds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where the folders go")
    parser.add_argument("--npm", type=Path, help="a node_modules folder that has the packages")
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--by", choices=("vendor", "topic"), default="vendor")
    parser.add_argument(
        "--only", nargs="+", choices=SET_NAMES, default=SET_NAMES, help="build only these collections"
    )
    parser.add_argument(
        "--distinct", action="store_true", help="leave out what an earlier collection nearly has"
    )
    flags = parser.parse_args()
    npm = flags.npm or install(HERE)
    if flags.by == "topic":
        build_topic(npm, flags.out, flags.size)
    else:
        build_vendor(npm, flags.out, flags.only, flags.size, flags.distinct)


if __name__ == "__main__":
    main()
