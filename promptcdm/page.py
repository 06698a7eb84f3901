"""Pages that are one HTML file: the template's place, pictures as data, weights as shapes, words for numbers.

A page loads nothing: no script, no font, no picture from elsewhere. All text that is put into it is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

_QUALITY = 88  # of a JPEG that stands for a picture larger than it is shown


@dataclass(frozen=True)
class Share:
    """One source's part of a picture's weights."""

    source: str
    colour: str
    weight: float  # mean over the denoising steps


@dataclass(frozen=True)
class Band:
    """One source's weights over the steps, as an SVG path in a box of T x 1."""

    colour: str
    path: str


def render(template: str, **values: Any) -> str:
    """The HTML of a template of promptcdm/templates; a name that it lacks a value for is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "thousands": thousands,
        "duration": duration,
        "word": word,
        "without": _without,
        "percent": percent,
    }
    return environment.get_template(template).render(is_link=_is_link, **values)


def bands(by_step: Sequence[Mapping[str, float]], colours: Mapping[str, str]) -> list[Band]:
    """Stacked steps: each source's band lies on those before it in `colours`, {source: colour}."""
    bottom = [0.0] * len(by_step)
    made = []
    for name, colour in colours.items():
        top = [low + step[name] for low, step in zip(bottom, by_step, strict=True)]
        there = [f"L{x} {1 - y:.4f}L{x + 1} {1 - y:.4f}" for x, y in enumerate(top)]
        back = [f"L{x + 1} {1 - y:.4f}L{x} {1 - y:.4f}" for x, y in reversed(list(enumerate(bottom)))]
        path = "".join([*there, *back])
        made.append(Band(colour, f"M{path[1:]}Z"))
        bottom = top
    return made


def png_uri(data: bytes) -> str:
    """The bytes of a PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def picture_uri(picture: Image.Image, size: int) -> str:
    """A picture as a data URI: as it is up to `size` pixels a side, else a JPEG of that size."""
    file = io.BytesIO()
    if max(picture.size) <= size:
        picture.save(file, "PNG", optimize=True)
        return png_uri(file.getvalue())
    small = picture.copy()
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    small.save(file, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def shares_in_words(shares: Sequence[Share]) -> str:
    """Such as "75 % birds, 25 % cars"."""
    return ", ".join(f"{percent(share.weight)} {share.source}" for share in shares)


def thousands(number: int) -> str:
    """1234567 as 1,234,567."""
    return f"{number:,}"


def percent(share: float) -> str:
    """0.25 as 25 %, with a narrow space that does not break."""
    return f"{share:.0%}".replace("%", "\u202f%")


def duration(seconds: float) -> str:
    """Seconds below a minute, else minutes and seconds."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def word(number: int) -> str:
    """A number below ten as a word."""
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[number] if number < len(words) else str(number)


def _without(line: str, link: str) -> str:
    """The line without the address that it will be a link to."""
    return line.replace(link, "").rstrip(" .,;:")


def _is_link(text: str) -> bool:
    return text.startswith(("https://", "http://"))
