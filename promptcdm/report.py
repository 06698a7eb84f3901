"""The demo's report: one HTML file that shows what a run found, with everything in it that it shows.

It loads nothing: pictures are inside as data, there is no script and no font. Every number is of the
`DemoResult`, and all text of it is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from promptcdm.demo_result import DemoResult, Row
from promptcdm.tensorfile import write_bytes
from promptcdm.timeline import source_colour

FILE = "report.html"


@dataclass(frozen=True)
class Share:
    """One source's part of a picture's weights."""

    source: str
    colour: str
    weight: float  # mean over the denoising steps


@dataclass(frozen=True)
class Cell:
    """One picture of the grid."""

    picture: str  # data URI
    alt: str
    shares: tuple[Share, ...]  # empty for the bare backbone


@dataclass(frozen=True)
class Band:
    """One source's weights over the steps, as an SVG path in a box of T x 1."""

    colour: str
    path: str


def write_report(result: DemoResult, out: Path) -> Path:
    """Write report.html of the demo in folder `out`, which holds its pictures; returns its path."""
    write_bytes(out / FILE, render_report(result, out).encode())
    return out / FILE


def render_report(result: DemoResult, out: Path) -> str:
    """The report's HTML; pictures are read from `out`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "thousands": _thousands,
        "duration": _duration,
        "word": _word,
        "without": _without,
    }
    user = result.rows[-2]  # the user who may use every source
    return environment.get_template("report.html.j2").render(
        result=result,
        shown=range(min(result.shown, len(result.prompts))),
        colours={source.name: source_colour(i) for i, source in enumerate(result.sources)},
        facts={source.name: source for source in result.sources},
        cells={row.title: cells(result, row, out) for row in result.rows},
        user=user,
        bands=[_bands(record) for record in user.records],
        steps=[len(record["weights_by_step"]) for record in user.records],
        total=sum(seconds for _, seconds in result.seconds),
        clear=_clear(result),
        is_link=_is_link,
    )


def _clear(result: DemoResult) -> list[str]:
    """The rows that score above every blind answer with their whole interval."""
    best = max(average for _, average in result.ruler.blind)
    return [row.title for row in result.rows if row.score and row.score.low > best]


def cells(result: DemoResult, row: Row, out: Path) -> list[Cell]:
    """One cell a prompt of the row."""
    colours = {source.name: source_colour(i) for i, source in enumerate(result.sources)}
    made = []
    for n, record in enumerate(row.records):
        weights = record["weights"]
        shares = tuple(Share(name, colours[name], weights[name]) for name in row.allowed)
        words = ", ".join(f"{_percent(share.weight)} {share.source}" for share in shares)
        data = base64.b64encode((out / row.folder / f"{n:04d}.png").read_bytes()).decode()
        alt = f"{record['prompt']}, {row.title}: {words or 'no adapter'}"
        made.append(Cell(f"data:image/png;base64,{data}", alt, shares))
    return made


def _bands(record: dict[str, Any]) -> list[Band]:
    """Stacked steps: each source's band lies on those before it in `allowed`."""
    by_step: Sequence[dict[str, float]] = record["weights_by_step"]
    bottom = [0.0] * len(by_step)
    bands = []
    for place, name in enumerate(record["allowed"]):
        top = [low + step[name] for low, step in zip(bottom, by_step, strict=True)]
        there = [f"L{x} {1 - y:.4f}L{x + 1} {1 - y:.4f}" for x, y in enumerate(top)]
        back = [f"L{x + 1} {1 - y:.4f}L{x} {1 - y:.4f}" for x, y in reversed(list(enumerate(bottom)))]
        path = "".join([*there, *back])
        bands.append(Band(source_colour(place), f"M{path[1:]}Z"))
        bottom = top
    return bands


def _thousands(number: int) -> str:
    return f"{number:,}"


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", "\u202f%")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def _word(number: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[number] if number < len(words) else str(number)


def _without(line: str, link: str) -> str:
    """The line without the address that it will be a link to."""
    return line.replace(link, "").rstrip(" .,;:")


def _is_link(text: str) -> bool:
    return text.startswith(("https://", "http://"))
