"""Older versions of a source's adapter: how they are called, and which one a name means.

    birds/                    the current adapter
    birds@1-SHA256/           what stood there first
    birds@2-SHA256/           what stood there after it

    birds                     the current one
    birds@DIGEST              the version whose sha256 begins with these digits, the current one among them

"@" is no letter of a source's name, so no version can be taken for a source. Who may use a source may use its versions:
whoever checks rights asks for `source_of`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MIN_DIGITS = 6
_MARK = "@"
_FOLDER = re.compile(r"(?P<source>[^@]+)@(?P<number>[1-9][0-9]*)-(?P<sha256>[0-9a-f]{64})")
_DIGITS = re.compile(rf"[0-9a-f]{{{MIN_DIGITS},64}}")


@dataclass(frozen=True)
class Version:
    """One that stood in its source's place once."""

    source: str
    number: int  # 1 for the oldest
    sha256: str  # of its tensors

    @property
    def folder(self) -> str:
        """Name of its folder in the store."""
        return f"{self.source}{_MARK}{self.number}-{self.sha256}"


def is_digest(text: str) -> bool:
    """Whether `text` is a whole sha256 in hex."""
    return len(text) == 64 and _DIGITS.fullmatch(text) is not None


def source_of(reference: str) -> str:
    """The source's name in `NAME` or `NAME@DIGEST`."""
    return reference.partition(_MARK)[0]


def digits_of(reference: str) -> str | None:
    """The digits after "@", "" where there is no "@"; None for what no digest begins with, or too few digits."""
    _, mark, digits = reference.partition(_MARK)
    if not mark:
        return ""
    return digits if _DIGITS.fullmatch(digits) else None


def versions_in(root: Path, source: str) -> list[Version]:
    """Older versions of `source` in the store's folder, oldest first. Their files are not opened."""
    found = []
    for path in root.glob(f"{source}{_MARK}*"):
        match = _FOLDER.fullmatch(path.name)
        if match and match["source"] == source and path.is_dir() and not path.is_symlink():
            found.append(Version(source, int(match["number"]), match["sha256"]))
    return sorted(found, key=lambda version: version.number)


def next_version(root: Path, source: str, sha256: str) -> Version:
    """What the adapter that is being replaced will be called."""
    older = versions_in(root, source)
    return Version(source, 1 + max((version.number for version in older), default=0), sha256)
