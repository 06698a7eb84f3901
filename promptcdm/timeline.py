"""The weights behind pictures, drawn: one panel a picture, each source a band over the denoising steps.

A source has the colour of its place in `allowed`, here and in every report, so that pictures of one command can
be compared.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from promptcdm.colours import COLOURS, source_colour
from promptcdm.generate import Generation
from promptcdm.tensorfile import write_bytes

HATCH = "////"  # over the colours where they start again
PICTURES = 24  # that one figure shows
_INK, _FAINT, _PAPER = "#1f2328", "#6e7781", "#ffffff"
_PANEL_WIDTH, _PANEL_HEIGHT, _MARGIN = 3.9, 1.45, 0.35  # inches
_LEGEND_LINE = 0.24


def weight_timeline(generation: Generation, path: Path) -> None:
    """Draw weights over steps beside each picture into a PNG; the same generation gives the same bytes.

    The first 24 pictures are shown, and the figure says so where there are more. A picture of the bare backbone
    has no weights, and its panel says that.
    """
    shown = min(len(generation.images), PICTURES)
    names = list(dict.fromkeys(n for record in generation.records[:shown] for n in record["allowed"]))
    columns = min(shown, 1 if shown < 3 else 2 if shown < 9 else 3)
    rows = math.ceil(shown / columns)
    legend_columns = max(1, int(columns * _PANEL_WIDTH / 1.7))
    foot = 0.45 + _LEGEND_LINE * math.ceil(len(names) / legend_columns)
    width, height = columns * _PANEL_WIDTH + _MARGIN, rows * _PANEL_HEIGHT + foot
    figure = Figure(figsize=(width, height), dpi=160, facecolor=_PAPER)
    canvas = FigureCanvasAgg(figure)
    for n in range(shown):
        x = _MARGIN / 2 + n % columns * _PANEL_WIDTH
        y = height - (n // columns + 1) * _PANEL_HEIGHT
        box = (x / width, y / height, _PANEL_WIDTH / width, _PANEL_HEIGHT / height)
        _panel(figure, box, generation, n)
    _legend(figure, names, legend_columns, shown, len(generation.images), height)
    file = io.BytesIO()
    canvas.print_png(file, metadata={"Software": None})  # the version would change the bytes
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, file.getvalue())


def _panel(figure: Any, box: tuple[float, float, float, float], generation: Generation, n: int) -> None:
    """One picture at the left of `box` (x, y, width, height in figure shares), its weights at the right."""
    x, y, w, h = box
    image, record = generation.images[n], generation.records[n]
    axes = figure.add_axes((x, y + 0.14 * h, 0.25 * w, 0.72 * h))
    axes.imshow(image, interpolation="lanczos")
    axes.set_anchor("N")
    axes.set_axis_off()
    axes = figure.add_axes((x + 0.38 * w, y + 0.24 * h, 0.57 * w, 0.5 * h))
    title = _shortened(record["prompt"], 38)
    axes.set_title(title, fontsize=8, color=_INK, loc="left", pad=4, parse_math=False)
    if not record["allowed"]:
        axes.set_axis_off()
        axes.text(0, 0.5, "bare backbone: no weights", fontsize=8, color=_FAINT, transform=axes.transAxes)
        return
    _bands(axes, generation.weights[n])
    every_step = len(generation.weights[n]) == record["settings"]["num_inference_steps"]
    axes.set_xlabel("denoising step" if every_step else "UNet call", fontsize=7, color=_FAINT, labelpad=1)


def _bands(axes: Any, weights: Tensor) -> None:
    """Stack the weights (T, N): the band of a source is as high at a step as its weight."""
    steps = len(weights)
    edges = [step + 0.5 for step in range(steps + 1)]
    top = [0.0] * steps
    for i in range(weights.shape[1]):
        bottom, top = top, [t + w for t, w in zip(top, weights[:, i].tolist(), strict=True)]
        axes.stairs(top, edges, baseline=bottom, fill=True, color=source_colour(i), **_hatching(i))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, 1)
    axes.set_xticks(sorted({1, steps}))
    axes.set_yticks([0, 1], ["0 %", "100 %"])
    axes.tick_params(labelsize=7, labelcolor=_FAINT, color=_FAINT, length=2, pad=2)
    axes.spines[:].set_visible(False)


def _hatching(position: int) -> dict[str, Any]:
    again = position >= len(COLOURS)
    return {"hatch": HATCH, "edgecolor": _PAPER, "linewidth": 0} if again else {"linewidth": 0}


def _legend(figure: Any, names: list[str], columns: int, shown: int, pictures: int, height: float) -> None:
    patches = [Patch(facecolor=source_colour(i), label=name, **_hatching(i)) for i, name in enumerate(names)]
    if patches:
        figure.legend(
            handles=patches, loc="lower center", ncols=columns, frameon=False, fontsize=8, labelcolor=_INK
        )
    if shown < pictures:
        words = f"the first {shown} of {pictures} pictures"
        figure.text(0.01, 0.08 / height, words, fontsize=7, color=_FAINT)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"
