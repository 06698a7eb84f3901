"""Draw the README's picture from a finished demo: python docs/picture.py --demo demo [--out docs/images/demo.png]

The same prompts, three users' rights, the weights under every picture, and one source forgotten. The same demo
gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch, Rectangle
from PIL import Image

from promptcdm.colours import source_colour
from promptcdm.demo_result import DemoResult, Row, load_result
from promptcdm.errors import PromptCDMError
from promptcdm.tensorfile import write_bytes

OUT = Path(__file__).parent / "images" / "demo.png"
INK, SOFT, LINE, PAPER, ACCENT = "#1d2125", "#5b636b", "#dcdcd6", "#ffffff", "#0b7a53"
# Lengths in points of a page 1000 wide, y downward from the top.
WIDTH, DPI = 1000.0, 144
LEFT, GRID, CELL, PICTURE, BAR = 28.0, 236.0, 124.0, 108.0, 8.0
TOP, ROW, FOOT = 84.0, 142.0, 48.0


class Page:
    """A figure whose coordinates are points from the upper left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure: Any = Figure(figsize=(WIDTH / 72, height / 72), dpi=DPI, facecolor=PAPER)
        self.canvas: Any = FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(0, WIDTH)
        self.axes.set_ylim(height, 0)
        self.axes.set_axis_off()

    def text(self, x: float, y: float, words: str, size: float = 11, color: str = INK, **style: Any) -> None:
        """Words whose upper left corner is at (x, y)."""
        style = {"va": "top", "parse_math": False, **style}
        self.axes.text(x, y, words, fontsize=size, color=color, **style)

    def box(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """A filled rectangle."""
        self.axes.add_patch(Rectangle((x, y), width, height, facecolor=color, linewidth=0))

    def picture(self, x: float, y: float, size: float, path: Path) -> None:
        """A picture, enlarged smoothly to its place."""
        pixels = round(size / 72 * DPI)
        with Image.open(path) as image:
            large = image.convert("RGB").resize((pixels, pixels), Image.Resampling.BICUBIC)
        self.axes.imshow(
            large, extent=(x, x + size, y + size, y), interpolation="none", aspect="auto", zorder=2
        )
        frame = FancyBboxPatch(
            (x, y), size, size, boxstyle="square,pad=0.5", facecolor="none", edgecolor=LINE, linewidth=0.8
        )
        self.axes.add_patch(frame)
        self.axes.set_xlim(0, WIDTH)
        self.axes.set_ylim(self.height, 0)

    def save(self, path: Path) -> None:
        """Write the PNG, without the version of what drew it."""
        file = io.BytesIO()
        self.canvas.print_png(file, metadata={"Software": None})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, file.getvalue())


def draw(result: DemoResult, demo: Path) -> Page:
    """The page of one demo, whose pictures are in `demo`."""
    page = Page(TOP + ROW * len(result.rows) + FOOT)
    page.text(LEFT, 20, "Same prompts, different rights", 15, weight="bold")
    _legend(page, result)
    for n, prompt in enumerate(result.prompts[: result.shown]):
        star = " *" if prompt in result.withheld else ""
        page.text(GRID + n * CELL, TOP - 6, prompt + star, 10.5, va="bottom")
    for n, row in enumerate(result.rows):
        _row(page, result, row, TOP + n * ROW, demo)
    lines = [
        "* a concept that the backbone never saw. Bar: weight of each source in the picture above it.",
        "Composed from adapters of "
        + "; ".join((s.attribution or s.author).replace(s.origin, "").rstrip(" .,") for s in result.sources)
        + ".",
    ]
    for n, line in enumerate(lines):
        page.text(LEFT, page.height - FOOT + 6 + n * 15, line, 8.5, SOFT)
    return page


def _legend(page: Page, result: DemoResult) -> None:
    """Each source in its colour, flush with the right edge of the grid."""
    patches = [
        Patch(facecolor=source_colour(n), label=f"{source.name} ({source.license})")
        for n, source in enumerate(result.sources)
    ]
    edge = GRID + CELL * result.shown - (CELL - PICTURE)
    page.axes.legend(
        handles=patches,
        loc="upper right",
        bbox_to_anchor=(edge, 22),
        bbox_transform=page.axes.transData,
        ncols=len(patches),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=1,
        handleheight=1,
        handletextpad=0.6,
        columnspacing=1.8,
        borderaxespad=0,
        borderpad=0,
    )


def _row(page: Page, result: DemoResult, row: Row, y: float, demo: Path) -> None:
    page.box(LEFT, y - 1, WIDTH - 2 * LEFT, 0.8, LINE)
    forgotten = result.forgotten
    page.text(LEFT, y + 12, row.title.replace(", ", ",\n"), 12, INK if row.allowed else SOFT, weight="bold")
    down = 32.0 + 16 * row.title.count(", ")
    page.text(LEFT, y + down, "\n".join(row.allowed) or row.note, 9, SOFT, linespacing=1.35)
    if row.title == forgotten.after:
        words = f"forgotten: differing bytes {forgotten.differing:,}"
        style = {"boxstyle": "round,pad=0.45", "facecolor": ACCENT if not forgotten.differing else INK}
        style["linewidth"] = "0"
        page.text(LEFT + 5, y + ROW - 26, words, 9.5, "white", weight="bold", bbox=style | {"linewidth": 0})
    for n, record in enumerate(row.records[: result.shown]):
        x = GRID + n * CELL
        page.picture(x, y + 9, PICTURE, demo / row.folder / f"{n:04d}.png")
        left = x
        for place, source in enumerate(result.sources):
            width = PICTURE * record["weights"].get(source.name, 0.0)
            page.box(left, y + 9 + PICTURE + 5, width, BAR, source_colour(place))
            left += width


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; 0 done, 2 wrong input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="folder of a demo (default: demo)")
    parser.add_argument("--out", type=Path, default=OUT, help="the picture (default: docs/images/demo.png)")
    given = parser.parse_args(arguments)
    try:
        draw(load_result(given.demo), given.demo).save(given.out)
    except PromptCDMError as error:
        print(f"picture.py: {error}", file=sys.stderr)
        return 2
    print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
