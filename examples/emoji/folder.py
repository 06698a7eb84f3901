"""Writing an image folder: PNGs, metadata.jsonl and source.toml, the same bytes on every build."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Entry:
    """One picture with its caption; `more` holds further keys of its line in metadata.jsonl."""

    file: str
    picture: Image.Image
    text: str
    more: dict[str, object]


@dataclass(frozen=True)
class Card:
    """What source.toml says."""

    license: str
    author: str
    origin: str
    attribution: str
    trigger: str = ""

    def toml(self) -> str:
        """The file's text; values are quoted as JSON strings, which are TOML basic strings too."""
        keys = ("license", "author", "origin", "attribution", "trigger")
        return "".join(f"{k} = {json.dumps(getattr(self, k), ensure_ascii=False)}\n" for k in keys)


def write_folder(folder: Path, entries: Iterable[Entry], card: Card) -> int:
    """Writes the folder anew and returns the number of pictures; entries go in the order of their file names."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    lines = []
    for entry in sorted(entries, key=lambda e: e.file):
        entry.picture.save(folder / entry.file, optimize=True)
        line = {"file_name": entry.file, "text": entry.text, **entry.more}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "source.toml").write_text(card.toml(), encoding="utf-8")
    return len(lines)
