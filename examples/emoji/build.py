"""Builds the picture collections into ordinary image folders.

    python examples/emoji/build.py --out examples/emoji/out [--npm node_modules] [--size 64] [--by vendor|topic]

Without --npm the packages are fetched by npm into examples/emoji/node_modules. By vendor: OUT/COLLECTION holds the
training pictures, OUT/heldout/COLLECTION the held-out ones; of noto and flat-color-icons, the backbone's own material,
OUT/withheld/COLLECTION holds the pictures of the concepts that the backbone must never see. By topic: OUT/topics/TOPIC and OUT/topics/heldout/TOPIC.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from captions import caption
from folder import Card, Entry, write_folder
from icons import IconSet
from PIL import Image
from render import render
from sets import BACKBONE_SETS, SET_NAMES, SETS, picture_set
from table import HERE, Row, read_table

PACKAGES = (*(s.package for s in SETS), "@resvg/resvg-js")


def install(folder: Path) -> Path:
    """Fetches the packages by name with npm and returns the node_modules folder."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("npm was not found; install Node.js, or pass --npm with a node_modules folder")
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([npm, "install", "--no-save", "--prefix", str(folder), *PACKAGES], check=True)
    return folder / "node_modules"


def collection_pictures(
    npm: Path, name: str, rows: Sequence[Row], size: int
) -> tuple[dict[str, Image.Image], list[str]]:
    """Concept id -> picture of one collection, and the ids that the renderer could not draw."""
    icon_set = IconSet.open(npm, name)
    return render({r.concept: icon_set.svg(r.icons[name], size) for r in rows if name in r.icons}, npm)


def entry(row: Row, collection: str, picture: Image.Image, file: str | None = None) -> Entry:
    """A line of metadata with its caption, chosen by collection and concept."""
    more: dict[str, object] = {"concept": row.concept, "label": row.label}
    text = caption(row.label, f"{collection}/{row.concept}")
    return Entry(file or f"{row.concept}.png", picture, text, more)


def card(collection: str) -> Card:
    """The collection's licence, author, origin and attribution."""
    s = picture_set(collection)
    return Card(s.license, s.author, s.origin, s.attribution)


def build_vendor(npm: Path, out: Path, names: Sequence[str], size: int) -> None:
    """One folder a collection, and one of its held-out pictures."""
    rows = read_table()
    for name in names:
        pictures, skipped = collection_pictures(npm, name, rows, size)
        mine = [r for r in rows if r.concept in pictures]
        if name in BACKBONE_SETS:
            withheld = [r for r in mine if r.nano == "withheld"]
            mine = [r for r in mine if r.nano == "train"]
            write_folder(
                out / "withheld" / name, [entry(r, name, pictures[r.concept]) for r in withheld], card(name)
            )
        train = [entry(r, name, pictures[r.concept]) for r in mine if not r.is_held_out(name)]
        held = [entry(r, name, pictures[r.concept]) for r in mine if r.is_held_out(name)]
        count = write_folder(out / name, train, card(name))
        if held:
            write_folder(out / "heldout" / name, held, card(name))
        note = f"; the renderer cannot draw {', '.join(skipped)}" if skipped else ""
        print(f"{name}: {count} pictures, {len(held)} held out{note}", flush=True)


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
    flags = parser.parse_args()
    npm = flags.npm or install(HERE)
    build_vendor(npm, flags.out, flags.only, flags.size)


if __name__ == "__main__":
    main()
