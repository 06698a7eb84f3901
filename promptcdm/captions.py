"""Find the pictures of a folder and the caption of each, and everything that is wrong with them.

The layouts that other trainers read: `metadata.jsonl` or `metadata.csv` with a row a picture (`file_name`, `text`;
more keys are ignored), a `.txt` or `.caption` file beside each picture, or kohya's folders `10_red bird` whose name
is the caption of all that have none. A caption may stand in two places where both say the same. It is one line:
line breaks and runs of spaces become one space.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from promptcdm.picture import SUFFIXES
from promptcdm.places import Place, Unreadable, is_one_line, read_file

METADATA = "metadata.jsonl"
METADATA_CSV = "metadata.csv"
_OTHER_PICTURES = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".svg", ".jp2", ".tga")
_ARCHIVES = (".zip", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_SIDECARS = (".txt", ".caption")
_JSON = ".json"
_KOHYA = re.compile(r"([1-9][0-9]{0,3})_(.*\S.*)")


@dataclass
class Captions:
    """What a folder holds; `found` maps a picture's name ("/" between parts) to its caption."""

    found: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repeats: dict[str, int] = field(default_factory=dict)  # of kohya's folders, where they are not 1


def read_captions(place: Place, files: Sequence[str], *, shards: bool = False) -> Captions:
    """The pictures among `files` with their captions; what is wrong is in `problems`.

    In shards a `KEY.json` may hold the caption too, and there are no lists of captions and no kohya folders.
    """
    captions = Captions()
    pictures = [file for file in files if suffix(file) in SUFFIXES]
    for file in files:
        if suffix(file) in _OTHER_PICTURES:
            captions.problems.append(
                f"{file}: {suffix(file)} pictures are not read; save it as PNG, JPEG or WebP"
            )
        elif suffix(file) in _ARCHIVES:
            captions.notes.append(f"{file}: archives are not read; unpack it if it holds pictures")
    lists = [] if shards else [name for name in (METADATA, METADATA_CSV) if name in files]
    if len(lists) > 1:
        captions.problems.append(f"two lists of captions, {METADATA} and {METADATA_CSV}; keep one")
    elif lists:
        _from_metadata(place, lists[0], pictures, files, captions)
    else:
        _from_sidecars(place, pictures, files, captions, shards=shards)
    return captions


def suffix(file: str) -> str:
    """The ending of a name in small letters."""
    return PurePosixPath(file).suffix.lower()


def _from_metadata(
    place: Place, name: str, pictures: Sequence[str], files: Sequence[str], captions: Captions
) -> None:
    text = _read_text(place, name, captions)
    if text is None:
        return
    lines: dict[str, int] = {}
    rows = _json_rows if name == METADATA else _csv_rows
    for number, row in rows(text, captions):
        _add_row(place, name, number, row, lines, captions)
    captions.problems += [f"{file}: not named in {name}" for file in pictures if file not in lines]
    present = set(files)
    for file in lines:
        for sidecar in _beside(file, present, _SIDECARS):
            _compare(place, file, name, sidecar, captions)


def _json_rows(text: str, captions: Captions) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(re.split("\r\n|\r|\n", text), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = " ".join(str(error).split())[:120]
                captions.problems.append(f"{METADATA} line {number}: not valid JSON: {reason}")


def _csv_rows(text: str, captions: Captions) -> Iterator[tuple[int, object]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = list(reader.fieldnames or ())
        if len(set(names)) < len(names):
            captions.problems.append(f"{METADATA_CSV} line 1: a column has the name of another")
        for row in reader:
            # A comma in a caption without quotes makes one column more, under the key None.
            if None in row or None in row.values():
                captions.problems.append(
                    f"{METADATA_CSV} line {reader.line_num}: not {len(names)} columns; "
                    "a caption with commas needs quotes"
                )
            else:
                yield reader.line_num, dict(row)
    except csv.Error as error:
        captions.problems.append(f"{METADATA_CSV} line {reader.line_num}: not valid CSV: {error}")


def _add_row(
    place: Place, name: str, number: int, row: object, lines: dict[str, int], captions: Captions
) -> None:
    where = f"{name} line {number}"
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str) or not row["file_name"]:
        captions.problems.append(f"{where}: needs the keys file_name and text, both text")
        return
    named = row["file_name"]
    shown = named if is_one_line(named) else ascii(named)
    file = str(PurePosixPath(named))
    if file in lines:
        captions.problems.append(f"{where}: {shown} has a row already, in line {lines[file]}")
        return
    lines[file] = number
    if not is_one_line(named):
        captions.problems.append(f"{where}: file name {shown} holds control characters")
    elif (reason := place.outside(named)) is not None:
        captions.problems.append(f"{where}: {shown}: {reason}")
    elif not place.holds(file):
        captions.problems.append(f"{where}: {shown}: no such file")
    elif not isinstance(row.get("text"), str):
        captions.problems.append(f"{where}: {shown}: no caption; it is the key text, here are {sorted(row)}")
    else:
        add_caption(file, row["text"], where, captions)


def _from_sidecars(
    place: Place, pictures: Sequence[str], files: Sequence[str], captions: Captions, *, shards: bool
) -> None:
    present = set(files)
    named = {} if shards else _from_kohya_folders(pictures, present, captions)
    used: set[str] = set()
    for file in pictures:
        sidecars = _beside(file, present, (*_SIDECARS, _JSON) if shards else _SIDECARS)
        used.update(sidecars)
        if (reason := place.outside(file)) is not None:
            captions.problems.append(f"{file}: {reason}")
        elif file in named:
            add_caption(file, named[file], PurePosixPath(file).parts[0], captions)
        else:
            _from_beside(place, file, sidecars, captions, shards=shards)
    for file in sorted(present - used):
        if suffix(file) == ".caption":
            captions.problems.append(f"{file}: a caption without its picture")
        elif suffix(file) == ".txt":
            captions.notes.append(f"{file}: no picture of that name, not used")


def _from_beside(
    place: Place, file: str, sidecars: Sequence[str], captions: Captions, *, shards: bool
) -> None:
    """Take the caption from the files beside a picture, which must not say different things."""
    texts: dict[str, str | None] = {}
    for sidecar in sidecars:
        text = _read_text(place, sidecar, captions)
        if suffix(sidecar) == _JSON:
            text = None if text is None else _json_caption(sidecar, text, captions)
            if text is None:  # facts of other kinds, or a problem that is listed already
                continue
        texts[sidecar] = text
    if len({text if text is None else " ".join(text.split()) for text in texts.values()}) > 1:
        captions.problems.append(f"{file}: two captions that differ, in {' and '.join(texts)}")
    elif not texts:
        text_file = Path(file).with_suffix(".txt").name
        where = (
            f"or .caption or .json beside it in {file.partition('/')[0]}"
            if shards
            else f"or a row of {METADATA}"
        )
        captions.problems.append(f"{file}: no caption; write {text_file} {where}")
    for sidecar, text in texts.items():
        if text is not None:
            add_caption(file, text, sidecar, captions)
            return


def _json_caption(file: str, text: str, captions: Captions) -> str | None:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:
        captions.problems.append(f"{file}: not valid JSON: {' '.join(str(error).split())[:120]}")
        return None
    found = [read[key] for key in ("caption", "text") if isinstance(read, dict) and key in read]
    if not all(isinstance(each, str) for each in found) or len(set(found)) > 1:
        captions.problems.append(f"{file}: its keys caption and text must be one text")
        return None
    return found[0] if found else None


def _from_kohya_folders(pictures: Sequence[str], present: set[str], captions: Captions) -> dict[str, str]:
    """Read what kohya's trainer reads from `REPEATS_caption`, where every picture lies in such a folder.

    Returns the captions of folders in which no picture has one of its own.
    """
    by_folder: dict[str, list[str]] = {}
    for file in pictures:
        by_folder.setdefault(PurePosixPath(file).parts[0] if "/" in file else "", []).append(file)
    matches = {folder: match for folder in by_folder if (match := _KOHYA.fullmatch(folder))}
    if len(matches) < len(by_folder):
        return {}
    named: dict[str, str] = {}
    for folder, match in matches.items():
        files = by_folder[folder]
        captions.repeats |= dict.fromkeys(files, int(match[1]))
        if not any(_beside(file, present, _SIDECARS) for file in files):
            named |= dict.fromkeys(files, match[2])
            captions.notes.append(
                f'{folder}: {len(files)} pictures without captions take "{match[2]}" from the folder\'s name'
            )
    return named


def _compare(place: Place, file: str, name: str, sidecar: str, captions: Captions) -> None:
    text = _read_text(place, sidecar, captions)
    if text is None or (file in captions.found and " ".join(text.split()) != captions.found[file]):
        captions.problems.append(f"{file}: two captions that differ, in {name} and in {sidecar}")


def _beside(file: str, present: set[str], suffixes: Sequence[str]) -> list[str]:
    stem = PurePosixPath(file).with_suffix("")
    return [f"{stem}{suffix}" for suffix in suffixes if f"{stem}{suffix}" in present]


def _read_text(place: Place, file: str, captions: Captions) -> str | None:
    try:
        return read_file(place, file).decode("utf-8-sig")
    except UnicodeDecodeError:
        reason = "not UTF-8; save it as UTF-8"
    except Unreadable as error:
        reason = str(error)
    captions.problems.append(f"{file}: {reason}")
    return None


def add_caption(file: str, text: str, where: str, captions: Captions) -> None:
    """Take a caption as one line, or say in `problems` why it cannot be one."""
    caption = " ".join(text.split())
    if not caption:
        captions.problems.append(f"{file}: its caption is empty ({where})")
    elif not is_one_line(caption):
        captions.problems.append(f"{file}: its caption holds control characters ({where})")
    else:
        captions.found[file] = caption
