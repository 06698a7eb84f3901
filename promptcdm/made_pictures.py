"""Generated pictures with what they were made from: `generate`'s records beside them, or what the caller says.

`generate` writes NNNN.json beside NNNN.png, with the prompt and the sources that were allowed. A picture without a
record, such as its grid.png, is left out where others have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from promptcdm.beside import read_record, record_path
from promptcdm.errors import BadInput
from promptcdm.picture import SUFFIXES
from promptcdm.picture_folder import PictureFolder


@dataclass(frozen=True)
class Made:
    """One picture of a folder."""

    index: int  # in the PictureFolder
    file: str
    allowed: tuple[str, ...]
    prompt: str  # or its own file name, where no record says it


def made_pictures(folder: PictureFolder, allowed: Sequence[str] | None = None) -> list[Made]:
    """The generated pictures of a folder; `allowed` is what those without records were made from.

    Raises BadInput where a record cannot be read, and where there is neither a record nor `allowed`.
    """
    found = [_recorded(folder, index) for index in range(len(folder))]
    recorded = [made for made in found if made is not None]
    if recorded:
        if allowed is not None:
            raise BadInput(f"{folder.folder}: its pictures have records of their own; leave --allowed out")
        return recorded
    if allowed is None:
        raise BadInput(
            f"{folder.folder}: no picture has a record of `promptcdm generate` beside it; say with --allowed which "
            "sources they were made from"
        )
    return [Made(index, file, tuple(allowed), file) for index, file in enumerate(folder.files)]


def _recorded(folder: PictureFolder, index: int) -> Made | None:
    picture = folder.folder / folder.files[index]
    record = read_record(picture)
    if record is None:
        return None
    allowed = record.get("allowed")
    if not isinstance(allowed, list) or not all(isinstance(name, str) for name in allowed):
        raise BadInput(
            f"{record_path(picture)}: names no list of allowed sources; give a record of `promptcdm generate`"
        )
    return Made(index, folder.files[index], tuple(allowed), str(record.get("prompt", folder.files[index])))


def picture_sources(folder: Path, names: Sequence[str] | None = None) -> dict[str, PictureFolder]:
    """The folders in `folder` that hold pictures directly, by name; with `names`, only those, and each must be there.

    Raises BadInput where there is none, or one is missing.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; give one that holds a folder of pictures for each source")
    places = {path.name: path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] != "."}
    missing = sorted(set(names or ()) - set(places))
    if missing:
        raise BadInput(f"{folder} holds no folder {missing[0]}; it holds {', '.join(places) or 'none'}")
    opened = {}
    for name, place in places.items():
        if (names is None and _holds_pictures(place)) or name in (names or ()):
            opened[name] = PictureFolder.open(place)
    if not opened:
        raise BadInput(f"{folder} holds no folder of pictures; give one that holds one for each source")
    return opened


def _holds_pictures(place: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in place.iterdir())
