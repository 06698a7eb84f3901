"""What an adapter was trained on: a digest of every item, the licence, and one digest over all of them.

An item's digest is sha256(0x00 | its JSON with sorted keys), a node of the tree sha256(0x01 | left | right),
and a list of n items is split at the largest power of two below n: the Merkle tree hash of RFC 6962, 2.1.
So one picture can be shown to be in a source, or changed, with log2(n) digests and without the others.
Captions and pictures themselves are not in it, only their digests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict


class ManifestItem(BaseModel):
    """One picture with its caption. Digests are sha256 in hex."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    file: str  # relative to the source's folder, with "/"
    bytes: int  # size of the file
    sha256: str  # of the file
    pixels_sha256: str  # of "WIDTHxHEIGHT\n" and the RGB bytes as training sees them
    caption_sha256: str  # of the caption as training sees it, UTF-8


class Manifest(BaseModel):
    """The items of one source, sorted by file. `merkle_root` is the source's digest."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    source: str
    license: str  # SPDX identifier, or NOASSERTION
    author: str
    origin: str
    attribution: str
    items: list[ManifestItem]
    merkle_root: str


def merkle_root(items: Sequence[ManifestItem]) -> str:
    """The digest (hex) of the items in the given order."""
    return _root([_leaf(item) for item in items]).hex()


def _leaf(item: ManifestItem) -> bytes:
    text = json.dumps(item.model_dump(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(b"\x00" + text.encode()).digest()


def _root(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return hashlib.sha256(b"\x01" + _root(leaves[:split]) + _root(leaves[split:])).digest()
