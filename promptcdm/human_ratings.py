"""Human ratings of pictures, out of the files in which they are published or a list of one's own.

    .json    {"id": 4} or {"id": [4, 5]}, or TIFA's {"id": {"human_scores": [4, 5], "text_id": ...}}
    .csv     columns "id" and "rating", a line for each rater

Raters are told apart by their place alone: the first rating of each picture against the second is the ceiling.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path

from promptcdm.errors import BadInput

_WANTED = 'give a .json of {"id": [ratings]} or a .csv with the columns id and rating'


def read_ratings(path: Path) -> dict[str, tuple[float, ...]]:
    """{id: ratings}, in the order of the file. Raises BadInput, naming file and id."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: cannot be read ({error}); {_WANTED}") from error
    pairs = _of_csv(text, path) if path.suffix == ".csv" else _of_json(text, path)
    found: dict[str, list[float]] = {}
    for id, value in pairs:
        number = _number(value)
        if not math.isfinite(number):
            raise BadInput(f"{path}, id {id!r}: the rating {value!r} is no number; {_WANTED}")
        found.setdefault(id, []).append(number)
    if not found:
        raise BadInput(f"{path}: holds no rating; {_WANTED}")
    return {id: tuple(ratings) for id, ratings in found.items()}


def _of_csv(text: str, path: Path) -> Iterable[tuple[str, object]]:
    rows = csv.DictReader(text.splitlines())
    if not {"id", "rating"} <= set(rows.fieldnames or ()):
        raise BadInput(f"{path}: has the columns {', '.join(rows.fieldnames or ()) or 'none'}; {_WANTED}")
    return [(row["id"], row["rating"]) for row in rows]


def _of_json(text: str, path: Path) -> Iterable[tuple[str, object]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{path}: is not JSON ({error}); {_WANTED}") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path}: is no JSON object; {_WANTED}")
    pairs = []
    for id, value in found.items():
        given = value.get("human_scores") if isinstance(value, dict) else value
        pairs += [(id, each) for each in (given if isinstance(given, list) else [given])]
    return pairs


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except ValueError:
        return math.nan
