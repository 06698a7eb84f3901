"""What a run of the demo found: every number and line that its report and the README's picture show.

demo/
  demo.json             this
  report.html           the report, one file
  first.png             the first picture, from the shipped adapters
  pictures/ROW/         NNNN.png and NNNN.json of each row
  adapters/             the store that was trained
  questions.json        TIFA's questions; tifa/ROW.json its results
  weights.png           weights over the denoising steps
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from promptcdm.errors import BadInput
from promptcdm.tensorfile import write_json

FILE = "demo.json"


@dataclass(frozen=True)
class SourceFacts:
    """A source as its adapter's record tells it."""

    name: str
    license: str
    author: str
    origin: str
    attribution: str
    pictures: int
    sha256: str  # of the adapter


@dataclass(frozen=True)
class Score:
    """TIFA of one row's pictures."""

    average: float
    low: float  # 95 % interval by bootstrap over captions
    high: float


@dataclass(frozen=True)
class Row:
    """The pictures of all prompts, made with one set of allowed sources."""

    title: str
    note: str
    allowed: tuple[str, ...]
    folder: str  # below the demo's
    records: tuple[dict[str, Any], ...]  # one a prompt
    score: Score | None = None


@dataclass(frozen=True)
class Forgotten:
    """One source forgotten, and the pictures after it compared with those made before it was ever there."""

    source: str
    sha256: str
    files: int  # deleted
    bytes: int  # deleted
    reference: str  # title of the row made before the source was there
    after: str  # title of the row made after it was forgotten
    pixel_bytes: int  # compared
    differing: int  # of them
    pictures: int
    equal_files: int  # pictures and records, of twice as many as there are pictures
    differing_with: int  # pixel bytes that differ when the source is allowed: the comparison can fail
    refusal: str  # what asking for it is answered afterwards


@dataclass(frozen=True)
class Ruler:
    """How the pictures were scored, and what judges that see no picture would score."""

    judge: str
    captions: int
    questions: int
    blind: tuple[tuple[str, float], ...]  # (judge, average)


@dataclass(frozen=True)
class DemoResult:
    """One run of the demo."""

    version: str
    backbone: str
    prompts: tuple[str, ...]
    shown: int  # of them in the report's grid; all are scored
    withheld: tuple[str, ...]  # of them whose concept the backbone never saw
    sources: tuple[SourceFacts, ...]  # in the order of `allowed`: a place is a colour
    rows: tuple[Row, ...]
    forgotten: Forgotten
    ruler: Ruler
    commands: tuple[tuple[str, str], ...]  # (what, command)
    seconds: tuple[tuple[str, float], ...]  # (part, seconds)
    machine: tuple[tuple[str, str], ...]  # (what, value)

    def row(self, title: str) -> Row:
        """The row of that title."""
        return next(row for row in self.rows if row.title == title)

    def save(self, out: Path) -> Path:
        """Write demo.json."""
        write_json(out / FILE, asdict(self))
        return out / FILE


def load_result(out: Path) -> DemoResult:
    """Read the demo.json of a finished demo. Raises BadInput where there is none."""
    path = out / FILE
    if not path.is_file():
        raise BadInput(f"{path}: no such file; run `promptcdm demo --out {out}` first")
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        Row(
            **{
                **row,
                "allowed": tuple(row["allowed"]),
                "records": tuple(row["records"]),
                "score": Score(**row["score"]) if row["score"] else None,
            }
        )
        for row in found["rows"]
    ]
    found |= {
        "prompts": tuple(found["prompts"]),
        "withheld": tuple(found["withheld"]),
        "sources": tuple(SourceFacts(**source) for source in found["sources"]),
        "rows": tuple(rows),
        "forgotten": Forgotten(**found["forgotten"]),
        "ruler": Ruler(**{**found["ruler"], "blind": _pairs(found["ruler"]["blind"])}),
        **{key: _pairs(found[key]) for key in ("commands", "seconds", "machine")},
    }
    return DemoResult(**found)


def _pairs(lists: list[list[Any]]) -> tuple[tuple[Any, Any], ...]:
    return tuple((first, second) for first, second in lists)
