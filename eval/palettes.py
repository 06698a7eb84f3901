"""Chooses what `promptcdm attribute --method palette` counts: which pixels, how many colours, how much is even.

    python eval/palettes.py --pictures examples/emoji/out --generated drawn

`--pictures` has a folder of pictures for each source of the store, by its name; those that an adapter was trained on
are left out, and the figures of docs/attribution.md are of others again (OUT/heldout). For each variant, printed: top-1
on as many of each source as `--count` allows, on the same as JPEG of quality 75, and on pictures that each source's
adapter drew alone, where `--generated` has a folder of them for each source. The palettes are those of the sources'
training pictures in `--sources`. promptcdm/palette.py holds what was chosen.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from attribution import draw
from numpy.typing import NDArray
from PIL import Image, ImageOps

from promptcdm.errors import PromptCDMError
from promptcdm.palette import SIDE, WHITE
from promptcdm.picture_folder import PictureFolder
from promptcdm.shipped import shipped
from promptcdm.source import Source
from promptcdm.store import AdapterStore

LEVELS = (8, 12, 16, 24, 32, 64)
EVEN = (0.001, 0.01, 0.1)
JPEG = 75
Pixels = NDArray[np.int64]  # (n, 3)
Known = list[tuple[str, Image.Image]]  # a picture and whose it is


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; 0 done, 2 wrong input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, required=True, help="folder of a folder a source")
    parser.add_argument("--generated", type=Path, help="the same of pictures that each adapter drew alone")
    parser.add_argument(
        "--sources", type=Path, help="the training pictures, a folder a source (default: what ships)"
    )
    parser.add_argument("--store", type=Path, help="adapters (default: those that ship)")
    parser.add_argument("--count", type=int, default=960, help="pictures at most (default: 960)")
    parser.add_argument("--seed", type=int, default=0, help="of which pictures are drawn (default: 0)")
    given = parser.parse_args(arguments)
    try:
        store = AdapterStore(given.store or shipped("adapters"))
        names = store.sources()
        training = {name: list(_pictures(given.sources or shipped("emoji"), name)) for name in names}
        drawn = draw(given.pictures, store, names, given.count, given.seed)
        sets = {"real": list(zip(drawn.source, drawn.images, strict=True))}
        sets[f"JPEG {JPEG}"] = [(name, _as_jpeg(image)) for name, image in sets["real"]]
        if given.generated:
            folders = {name: PictureFolder.open(given.generated / name).without_grids() for name in names}
            sets["drawn alone"] = [(n, f.picture(i)) for n, f in folders.items() for i in range(len(f))]
    except PromptCDMError as error:
        print(f"palettes.py: {error}", file=sys.stderr)
        return 2
    print("; ".join(f"{name}: {len(pictures)} pictures" for name, pictures in sets.items()))
    for flat in (False, True):
        of_sources = {n: np.concatenate([_pixels(p, flat) for p in own]) for n, own in training.items()}
        of_sets = {s: [(n, _pixels(p, flat)) for n, p in known] for s, known in sets.items()}
        for levels in LEVELS:
            for even in EVEN:
                found = {s: top1(of_sources, known, levels, even) for s, known in of_sets.items()}
                which = "flat " if flat else "drawn"
                figures = "  ".join(f"{s} {value:.3f}" for s, value in found.items())
                print(f"{which}  {levels:2} levels  {even:5.1%} even  {figures}", flush=True)
    return 0


def top1(
    of_sources: Mapping[str, Pixels], known: Sequence[tuple[str, Pixels]], levels: int, even: float
) -> float:
    """The share of pictures whose pixels' colours are likeliest in their own source's palette."""
    counts = np.stack([np.bincount(_colours(p, levels), minlength=levels**3) for p in of_sources.values()])
    log_p = np.log((1 - even) * counts / counts.sum(1, keepdims=True) + even / levels**3)
    names = list(of_sources)
    right = [names[int(log_p[:, _colours(p, levels)].sum(1).argmax())] == name for name, p in known]
    return sum(right) / len(right)


def _colours(pixels: Pixels, levels: int) -> NDArray[np.int64]:
    return pixels * levels // 256 @ np.array([levels**2, levels, 1])


def _pixels(picture: Image.Image, flat: bool) -> Pixels:
    """The drawn pixels, or of these the ones like their right and lower neighbours; all drawn where none is."""
    fitted = ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.BOX)
    rgb = np.asarray(fitted).astype(np.int64)
    drawn = (rgb < WHITE).any(2)
    alike = np.zeros_like(drawn)
    here = rgb[:-1, :-1]
    alike[:-1, :-1] = (here == rgb[1:, :-1]).all(2) & (here == rgb[:-1, 1:]).all(2)
    chosen = drawn & alike if flat and (drawn & alike).any() else drawn
    return rgb[chosen]


def _pictures(sources: Path, name: str) -> list[Image.Image]:
    source = Source.open(sources / name)
    return [source.picture(i) for i in range(len(source))]


def _as_jpeg(picture: Image.Image) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=JPEG)
    return Image.open(file).convert("RGB")


if __name__ == "__main__":
    sys.exit(main())
