"""Find the pictures of a folder and the caption of each, and everything that is wrong with them.

Two layouts, both what other trainers read: `metadata.jsonl` with a row a picture (`file_name`, `text`; more
keys are ignored), or a `.txt` or `.caption` file beside each picture. A caption is one line: line breaks and
runs of spaces become one space. Names that begin with a dot are left alone.
"""

from __future__ import annotations

import json
import os
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

METADATA = "metadata.jsonl"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
_OTHER_PICTURES = (".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".svg", ".jp2", ".tga")
_SIDECARS = (".txt", ".caption")


@dataclass
class Captions:
    """What a folder holds; `found` maps a picture's path ("/" between parts) to its caption."""

    found: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_captions(folder: Path) -> Captions:
    """The pictures of `folder`, and of the folders in it, with captions; what is wrong is in `problems`."""
    captions = Captions()
    files = _files(folder, captions)
    pictures = [file for file in files if _suffix(file) in _PICTURES]
    captions.problems += [
        f"{file}: {_suffix(file)} pictures are not read; save it as PNG, JPEG or WebP"
        for file in files
        if _suffix(file) in _OTHER_PICTURES
    ]
    if (folder / METADATA).is_symlink() or METADATA in files:
        _from_metadata(folder, pictures, files, captions)
    else:
        _from_sidecars(folder, pictures, files, captions)
    return captions


def outside(folder: Path, file: str) -> str | None:
    """Why the relative path `file` must not be opened as part of `folder`; None where it may be."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\\" in file or PureWindowsPath(file).drive:
        return "a path must lie inside the folder: relative, with / between its parts, without .. and \\"
    try:
        resolved = (folder / path).resolve()
    except (OSError, RuntimeError):
        return "a link that leads to itself"
    if not resolved.is_relative_to(folder.resolve()):
        return "a link that leads out of the folder"
    return None


def is_one_line(text: str) -> bool:
    """No line breaks, control characters or halves of a character, so that logs and cards stay readable."""
    return not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in text)


def _files(folder: Path, captions: Captions) -> list[str]:
    """Every file below `folder`, sorted, no hidden ones; a linked folder is a problem, never followed."""
    files: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(parent).relative_to(folder)
        for name in folders:
            if (Path(parent) / name).is_symlink():
                captions.problems.append(
                    f"{(here / name).as_posix()}: a link to a folder; copy its files in its place"
                )
        files += [(here / name).as_posix() for name in names if not name.startswith(".")]
    captions.problems += [
        f"{file!a}: the name holds control characters" for file in files if not is_one_line(file)
    ]
    return sorted(filter(is_one_line, files))


def _from_metadata(folder: Path, pictures: list[str], files: list[str], captions: Captions) -> None:
    text = _read_text(folder, METADATA, captions)
    if text is None:
        return
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            _add_row(folder, number, line, lines, captions)
    captions.problems += [f"{file}: not named in {METADATA}" for file in pictures if file not in lines]
    captions.problems += [
        f"{file}: two captions, in {METADATA} and in {sidecar}"
        for file in lines
        for sidecar in _beside(file, set(files))
    ]


def _add_row(folder: Path, number: int, line: str, lines: dict[str, int], captions: Captions) -> None:
    where = f"{METADATA} line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        captions.problems.append(f"{where}: not valid JSON: {' '.join(str(error).split())[:120]}")
        return
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
    elif (reason := outside(folder, named)) is not None:
        captions.problems.append(f"{where}: {shown}: {reason}")
    elif not _is_file(folder / file):
        captions.problems.append(f"{where}: {shown}: no such file")
    elif not isinstance(row.get("text"), str):
        captions.problems.append(f"{where}: {shown}: no caption; it is the key text, here are {sorted(row)}")
    else:
        _add_caption(file, row["text"], where, captions)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system takes
        return False


def _from_sidecars(folder: Path, pictures: list[str], files: list[str], captions: Captions) -> None:
    if "metadata.csv" in files:
        captions.problems.append(f"metadata.csv: not read; write it as {METADATA}")
    present = set(files)
    used: set[str] = set()
    for file in pictures:
        sidecars = _beside(file, present)
        used.update(sidecars)
        if (reason := outside(folder, file)) is not None:
            captions.problems.append(f"{file}: {reason}")
        elif len(sidecars) > 1:
            captions.problems.append(f"{file}: two captions, in {' and '.join(sidecars)}")
        elif not sidecars:
            text_file = Path(file).with_suffix(".txt").name
            captions.problems.append(f"{file}: no caption; write {text_file} or a row of {METADATA}")
        else:
            text = _read_text(folder, sidecars[0], captions)
            if text is not None:
                _add_caption(file, text, sidecars[0], captions)
    for file in sorted(present - used):
        if _suffix(file) == ".caption":
            captions.problems.append(f"{file}: a caption without its picture")
        elif _suffix(file) == ".txt":
            captions.notes.append(f"{file}: no picture of that name, not used")


def _beside(file: str, present: set[str]) -> list[str]:
    stem = PurePosixPath(file).with_suffix("")
    return [f"{stem}{suffix}" for suffix in _SIDECARS if f"{stem}{suffix}" in present]


def _read_text(folder: Path, file: str, captions: Captions) -> str | None:
    reason = outside(folder, file)
    if reason is None:
        try:
            return (folder / file).read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            reason = "not UTF-8; save it as UTF-8"
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
    captions.problems.append(f"{file}: {reason}")
    return None


def _add_caption(file: str, text: str, where: str, captions: Captions) -> None:
    caption = " ".join(text.split())
    if not caption:
        captions.problems.append(f"{file}: its caption is empty ({where})")
    elif not is_one_line(caption):
        captions.problems.append(f"{file}: its caption holds control characters ({where})")
    else:
        captions.found[file] = caption


def _suffix(file: str) -> str:
    return PurePosixPath(file).suffix.lower()
