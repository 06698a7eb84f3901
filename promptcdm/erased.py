"""What was deleted from a store, counted before it goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promptcdm.adapter import read_record
from promptcdm.errors import AdapterMismatch
from promptcdm.versions import Version


@dataclass(frozen=True)
class Erased:
    """What the store removed. Digests are empty where adapter.json could not be read."""

    exports: tuple[str, ...]  # notes of copies outside, as lines of JSON

    sha256: str
    backbone: str  # digest
    imported_from: str
    files: int
    bytes: int
    versions: tuple[str, ...] = ()  # digests of the older versions that went too, oldest first


def measure(
    folder: Path, folders: Sequence[Path], exports: tuple[str, ...] = (), older: Sequence[Version] = ()
) -> Erased:
    """Count what is in `folders`; `folder` is the adapter among them.

    An adapter.json that cannot be read must not keep its source from being forgotten.
    """
    try:
        record = read_record(folder)
        facts = (record.sha256, record.backbone.digest, record.imported_from)
    except AdapterMismatch:
        facts = ("", "", "")
    files = [path for each in folders for path in each.rglob("*") if path.is_file() or path.is_symlink()]
    return Erased(
        exports,
        *facts,
        files=len(files),
        bytes=sum(path.lstat().st_size for path in files),
        versions=tuple(version.sha256 for version in older),
    )
