"""Forget a source: delete everything that came from it, and say what was deleted and what was not.

All that a source taught is in its own folder, what the router knows of it included, so deleting the folder
leaves the store as if the source had never been there, but for one line of `forgotten.jsonl`. That line names
neither the source nor the time: it holds the digests of adapter and backbone, and how much was deleted.
"""

from __future__ import annotations

import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

from promptcdm.erased import Erased
from promptcdm.store import FORGOTTEN, AdapterStore

_OUT_OF_REACH = (
    "other copies of the adapter outside this store, and copies of the store itself",
    "pictures that were made with it, and their records",
    "the source's own pictures and captions, which are its owner's",
    "a process that has the adapter in memory, until it ends",
    "what the file system and its backups keep of deleted files",
)
_HUB_CACHE = "the copy in the Hugging Face cache that it was imported from"


class Receipt(BaseModel):
    """What `forget` deleted; `sha256` and `backbone` are empty where the adapter could not be read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    sha256: str  # of the adapter's tensors
    backbone: str  # digest
    files: int
    bytes: int
    versions: list[str] = []  # digests of the older versions that went too
    items: int | None = None  # pictures, where not the whole source was forgotten
    successor: str | None = None  # sha256 of the adapter that stands there now, where there is one
    out_of_reach: list[str]

    def line(self) -> str:
        """What is kept in forgotten.jsonl: one line of JSON."""
        return json.dumps(self.model_dump(exclude={"out_of_reach"}, exclude_none=True), sort_keys=True)

    def __str__(self) -> str:
        return self.text()

    def text(self) -> str:
        """The receipt for people, several lines."""
        what = f"adapter {self.sha256}" if self.sha256 else "an adapter that could not be read"
        if self.items is not None:
            count = f"{self.items} picture{'s' if self.items != 1 else ''}"
            what = count + (f" of adapter {self.sha256}" if self.sha256 else "")
        lines = [
            f"forgotten: {what}",
            *([f"now:       adapter {self.successor}"] if self.successor else []),
            *(f"           older version {sha256}" for sha256 in self.versions),
            f"deleted:   {self.files} files, {self.bytes} bytes; {FORGOTTEN} keeps a line without a name",
            "not reached by this:",
            *(f"  - {place}" for place in self.out_of_reach),
        ]
        return "\n".join(lines)


def forget(name: str, *, store: AdapterStore) -> Receipt:
    """Delete source `name` from `store`: its adapter, its statistics, every version, its unfinished training.

    `NAME@DIGEST` deletes that older version alone. The receipt is written after the deletion: none states what has not
    happened. Raises UnknownSource, and BadInput for the current version.
    """
    receipt = receipt_of(store.erase(name))
    store.append_receipt(receipt.line())
    return receipt


def receipt_of(erased: Erased) -> Receipt:
    """The receipt of what the store erased."""
    return Receipt(
        sha256=erased.sha256,
        backbone=erased.backbone,
        files=erased.files,
        bytes=erased.bytes,
        versions=list(erased.versions),
        out_of_reach=[
            *(_export(json.loads(line)) for line in erased.exports),
            *_OUT_OF_REACH,
            *([_HUB_CACHE] if "/" in erased.imported_from else []),
        ],
    )


def _export(note: dict[str, str]) -> str:
    return (
        f"the copy of adapter {note['sha256'][:12]} that was exported as {note['format']} to {note['place']}"
    )
