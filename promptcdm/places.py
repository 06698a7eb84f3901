"""Where the files of a source lie: a folder of this machine, or a URL. Both list and open files, and none outside.

    birds                     a folder
    birds.tar, part-*.tar     one file of a folder, or those that a pattern names
    s3://bucket/birds         anything that fsspec opens; nothing of it is kept on this machine

A link may lead to another file of the same folder and nowhere else. Names that begin with a dot are left alone.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, Protocol, cast
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from promptcdm.errors import BadSource

MAX_BYTES = 512 << 20  # of one picture or text file
_CHUNK = 1 << 20
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]+://")
# What fsspec's file systems raise where a server, a login or an operation is missing.
_REMOTE_FAILURES = (OSError, ValueError, RuntimeError, NotImplementedError)
_THIS_MACHINE = ("file://", "local://")


class Unreadable(ValueError):
    """A file that cannot be opened; the message says why, without naming the file."""


class Pictures(Protocol):
    """What opens files by name, relative and with "/" between the parts."""

    def open(self, file: str) -> BinaryIO:
        """Open a file. Raises Unreadable, or the OSError of whoever holds it."""

    def where(self, file: str) -> Path | str:
        """The whole path or URL of a file."""


class Place(Protocol):
    """What also lists its files, and knows which names lie outside."""

    def files(self) -> tuple[list[str], list[str]]:
        """Names of all files, sorted, and the problems met."""

    def holds(self, file: str) -> bool:
        """Whether there is something of that name, listed or not."""

    def outside(self, file: str) -> str | None:
        """Why `file` must not be opened as part of this place; None where it may be."""

    def open(self, file: str) -> BinaryIO:
        """Open a file. Raises Unreadable, or the OSError of whoever holds it."""

    def where(self, file: str) -> Path | str:
        """The whole path or URL of a file."""


def read_file(place: Pictures, file: str) -> bytes:
    """All bytes of a file. Raises Unreadable."""
    chunks, size = [], 0
    try:
        with place.open(file) as opened:
            while chunk := opened.read(_CHUNK):
                size += len(chunk)
                if size > MAX_BYTES:
                    raise Unreadable(f"more than {MAX_BYTES >> 20} MiB")
                chunks.append(chunk)
    except OSError as error:
        raise Unreadable(f"cannot be read: {_reason(error)}") from error
    return b"".join(chunks)


def open_place(data: Path | str) -> Place:
    """The place that a path or URL names. Raises BadSource where there is none."""
    if isinstance(data, str) and _URL.match(data):
        if not data.lower().startswith(_THIS_MACHINE):
            return _open_url(data)
        data = url2pathname(unquote(urlsplit(data).path))
    path = Path(data)
    if path.is_dir():
        return LocalFolder(path)
    if path.exists() or ("*" in path.name and path.parent.is_dir()):
        return LocalFolder(path.parent, path.name)
    raise BadSource(f"{path}: no such folder; give a folder of pictures with captions", ["no such folder"])


def place_name(data: Path | str) -> str:
    """What a source is called where nobody names it: its folder, or its file without the ending."""
    if isinstance(data, str) and _URL.match(data):
        last = PurePosixPath(unquote(urlsplit(data).path)).name or urlsplit(data).netloc
        return PurePosixPath(last).stem if PurePosixPath(last).suffix else last
    path = Path(data)
    return path.resolve().name if path.is_dir() else path.stem


def lexically_outside(file: str) -> str | None:
    """Why a name cannot be inside any folder; None where it may be."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or "\\" in file or PureWindowsPath(file).drive:
        return "a path must lie inside the folder: relative, with / between its parts, without .. and \\"
    return None


def is_one_line(text: str) -> bool:
    """No line breaks, control characters or halves of a character, so that logs and cards stay readable."""
    return not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in text)


def is_hidden(file: str) -> bool:
    """Whether a part of the name begins with a dot."""
    return any(part.startswith(".") for part in PurePosixPath(file).parts)


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine, or those files directly in it whose names match `pattern`."""

    folder: Path
    pattern: str | None = None

    def files(self) -> tuple[list[str], list[str]]:
        """Names of all files, sorted, and the problems met: a linked folder is one, and never followed."""
        files: list[str] = []
        problems: list[str] = []
        for parent, folders, names in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            here = Path(parent).relative_to(self.folder)
            if self.pattern is not None:
                folders.clear()
            for name in folders:
                if (Path(parent) / name).is_symlink():
                    problems.append(
                        f"{(here / name).as_posix()}: a link to a folder; copy its files in its place"
                    )
            files += [(here / name).as_posix() for name in names if not name.startswith(".")]
        kept, more = _keep(files, self.pattern)
        return kept, problems + more

    def holds(self, file: str) -> bool:
        """Whether there is something of that name, listed or not."""
        try:
            (self.folder / file).lstat()
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            return False
        return True

    def outside(self, file: str) -> str | None:
        """Why `file` must not be opened as part of this folder; None where it may be."""
        if (reason := lexically_outside(file)) is not None:
            return reason
        try:
            resolved = (self.folder / file).resolve()
        except (OSError, RuntimeError):
            return "a link that leads to itself"
        return (
            None if resolved.is_relative_to(self.folder.resolve()) else "a link that leads out of the folder"
        )

    def open(self, file: str) -> BinaryIO:
        """Open a file. Raises Unreadable or OSError."""
        if (reason := self.outside(file)) is not None:
            raise Unreadable(reason)
        path = self.folder / file
        if path.exists() and not path.is_file():  # a pipe would wait for a writer for ever
            raise Unreadable("not a file")
        return path.open("rb")

    def where(self, file: str) -> Path:
        """The path of a file."""
        return self.folder / file


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind a URL, read through fsspec, or those files in it whose names match `pattern`."""

    url: str  # without the pattern or file
    root: str  # as the file system calls it
    pattern: str | None
    system: Any = field(compare=False, repr=False)  # fsspec's AbstractFileSystem

    def files(self) -> tuple[list[str], list[str]]:
        """Names of all files, sorted, and the problems met."""
        try:
            depth = None if self.pattern is None else 1
            found = cast("list[str]", self.system.find(self.root, maxdepth=depth))
        except _REMOTE_FAILURES as error:
            raise BadSource(
                f"{self.url}: cannot be listed: {_reason(error)}", ["cannot be listed"]
            ) from error
        root = self.root.rstrip("/") + "/"
        names = [path[len(root) :] if path.startswith(root) else path for path in found]
        names = [name for name in names if not is_hidden(name.removeprefix("/"))]
        problems = [
            f"{name!a}: {reason}" for name in names if (reason := lexically_outside(name)) is not None
        ]
        kept, more = _keep([name for name in names if lexically_outside(name) is None], self.pattern)
        return kept, problems + more

    def holds(self, file: str) -> bool:
        """Whether there is a file of that name."""
        return lexically_outside(file) is None and bool(self.system.isfile(self._path(file)))

    def outside(self, file: str) -> str | None:
        """Why `file` must not be opened as part of this folder; None where it may be."""
        return lexically_outside(file)

    def open(self, file: str) -> BinaryIO:
        """Open a file. Raises Unreadable or OSError."""
        if (reason := self.outside(file)) is not None:
            raise Unreadable(reason)
        return cast("BinaryIO", self.system.open(self._path(file), "rb"))

    def where(self, file: str) -> str:
        """The URL of a file."""
        return f"{self.url.rstrip('/')}/{file}"

    def _path(self, file: str) -> str:
        return f"{self.root.rstrip('/')}/{file}"


def _keep(files: list[str], pattern: str | None) -> tuple[list[str], list[str]]:
    """The files that the pattern names and whose names can be shown, sorted, and the problems."""
    if pattern is not None:
        files = [
            file for file in files if file == pattern or ("/" not in file and fnmatchcase(file, pattern))
        ]
    problems = [f"{file!a}: the name holds control characters" for file in files if not is_one_line(file)]
    return sorted(filter(is_one_line, files)), problems


def _open_url(url: str) -> RemoteFolder:
    shown = re.sub(r"//[^/@]*@", "//", url)  # no passwords in messages

    def refuse(reason: str) -> BadSource:
        return BadSource(f"{shown}: {reason}", [reason])

    if "::" in url:
        raise refuse("chained URLs are not read; give the URL of the folder or file itself")
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise refuse("URLs need fsspec: pip install 'promptcdm[remote]'") from error
    folder, pattern = url.rstrip("/"), None
    head, _, last = folder.rpartition("/")
    if "*" in last:
        folder, pattern = head, last
    try:
        system, root = url_to_fs(folder)
        if pattern is None and system.isfile(root):
            folder, pattern = head, last
            root = url_to_fs(folder)[1]
        there = system.exists(root)
    except ImportError as error:  # fsspec says which package opens this kind
        raise refuse(f"{_reason(error)} (promptcdm[remote] opens http and https)") from error
    except _REMOTE_FAILURES as error:
        raise refuse(_reason(error)) from error
    if not there:
        raise refuse("nothing is there; give the URL of a folder or file")
    return RemoteFolder(re.sub(r"//[^/@]*@", "//", folder), root, pattern, system)


def _reason(error: Exception) -> str:
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(text.split())[:160]
