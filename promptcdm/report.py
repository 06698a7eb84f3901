"""The demo's report: one HTML file that shows what a run found, with everything in it that it shows.

Every number is of the `DemoResult`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from promptcdm.colours import source_colour
from promptcdm.demo_result import DemoResult, Row
from promptcdm.page import Share, bands, png_uri, render, shares_in_words
from promptcdm.tensorfile import write_bytes

FILE = "report.html"


@dataclass(frozen=True)
class Cell:
    """One picture of the grid."""

    picture: str  # data URI
    alt: str
    shares: tuple[Share, ...]  # empty for the bare backbone


def write_report(result: DemoResult, out: Path) -> Path:
    """Write report.html of the demo in folder `out`, which holds its pictures; returns its path."""
    write_bytes(out / FILE, render_report(result, out).encode())
    return out / FILE


def render_report(result: DemoResult, out: Path) -> str:
    """The report's HTML; pictures are read from `out`."""
    user = result.rows[-2]  # the user who may use every source
    colours = _colours(result)
    return render(
        "report.html.j2",
        result=result,
        shown=range(min(result.shown, len(result.prompts))),
        colours=colours,
        facts={source.name: source for source in result.sources},
        cells={row.title: cells(result, row, out) for row in result.rows},
        user=user,
        bands=[
            bands(record["weights_by_step"], {name: colours[name] for name in record["allowed"]})
            for record in user.records
        ],
        steps=[len(record["weights_by_step"]) for record in user.records],
        total=sum(seconds for _, seconds in result.seconds),
        clear=_clear(result),
    )


def _clear(result: DemoResult) -> list[str]:
    """The rows that score above every blind answer with their whole interval."""
    best = max(average for _, average in result.ruler.blind)
    return [row.title for row in result.rows if row.score and row.score.low > best]


def cells(result: DemoResult, row: Row, out: Path) -> list[Cell]:
    """One cell a prompt of the row."""
    colours = _colours(result)
    made = []
    for n, record in enumerate(row.records):
        weights = record["weights"]
        shares = tuple(Share(name, colours[name], weights[name]) for name in row.allowed)
        alt = f"{record['prompt']}, {row.title}: {shares_in_words(shares) or 'no adapter'}"
        made.append(Cell(png_uri((out / row.folder / f"{n:04d}.png").read_bytes()), alt, shares))
    return made


def _colours(result: DemoResult) -> dict[str, str]:
    return {source.name: source_colour(place) for place, source in enumerate(result.sources)}
