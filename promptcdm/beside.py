"""What lies beside a file: NAME.ending beside a result NAME.json, and the record beside a picture of `generate`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.tensorfile import read_json


def beside(result: Path, ending: str) -> Path:
    """NAME.ending in the folder of NAME.json."""
    return result.with_name(f"{result.stem}.{ending}")


def record_path(picture: Path) -> Path:
    """Where `generate` writes the record of a picture: NNNN.json beside NNNN.png."""
    return picture.with_suffix(".json")


def read_record(picture: Path) -> dict[str, Any] | None:
    """The record beside a picture; None where there is none. Raises BadInput where it cannot be read."""
    path = record_path(picture)
    if not path.is_file():
        return None
    try:
        record = read_json(path)
    except AdapterMismatch as error:
        raise BadInput(str(error)) from error
    if not isinstance(record, dict):
        raise BadInput(f"{path}: is no record of a picture; give one that `promptcdm generate` wrote")
    return record
