"""What nano learned from, as an image folder: for a source without weights, the backbone itself in the sum.

    python examples/emoji/backbone_source.py --built examples/emoji/out --out examples/emoji/out/backbone
    promptcdm train-adapter --source examples/emoji/out/backbone --kind none

It holds the sprites of noto and flat-color-icons, as build.py writes them, and 28 scenes of them for every 62 sprites,
which are the shares of nano's training (examples/nano/latents.py).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from folder import Entry, write_folder
from PIL import Image
from scenes import Sprites, make_scene
from sets import BACKBONE_SETS
from table import HERE
from topics import mixed_card

SCENES_PER_SPRITE = 28 / 62


def backbone_entries(built: Path) -> Iterator[Entry]:
    """The sprites, then the scenes. A concept that is withheld from the backbone is in folders of its own."""
    sprites = 0
    for name in BACKBONE_SETS:
        for line in (built / name / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            with Image.open(built / name / row["file_name"]) as picture:
                pixels = picture.convert("RGB")
            more = {"concept": row["concept"], "label": row["label"]}
            yield Entry(f"{name}-{row['file_name']}", pixels, row["text"], more)
            sprites += 1
    drawn = Sprites.open(*(built / name for name in BACKBONE_SETS))
    for seed in range(round(sprites * SCENES_PER_SPRITE)):
        scene = make_scene(drawn, seed)
        yield Entry(f"scene-{seed:04d}.png", scene.picture, scene.caption, {})


def main() -> None:
    """Parses the flags and writes the folder."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--built", type=Path, default=HERE / "out", help="where build.py wrote, by vendor")
    parser.add_argument("--out", type=Path, help="the folder to write [BUILT/backbone]")
    flags = parser.parse_args()
    out = flags.out or flags.built / "backbone"
    count = write_folder(out, backbone_entries(flags.built), mixed_card(BACKBONE_SETS))
    print(f"{out}: {count} pictures")


if __name__ == "__main__":
    main()
