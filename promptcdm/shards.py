"""WebDataset: pictures and captions in tar files, `KEY.jpg` with `KEY.txt`, `KEY.caption` or `KEY.json`.

Members are listed once and read where they lie; nothing is unpacked. The rules of folders hold: no links, no names
outside, no hidden names. Python's tarfile takes a header that it cannot read for the end of the file, so that
everything behind a damaged one would be lost without a word: here the end must be the end.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from promptcdm.places import MAX_BYTES, Place, Unreadable, is_hidden, is_one_line, lexically_outside

SHARD = ".tar"
_BLOCK = 512
_MAX_TAIL = 1 << 20  # writers pad to 10 240 bytes
_ERRORS = (tarfile.TarError, EOFError, OverflowError, ValueError, OSError)


@dataclass(frozen=True)
class Member:
    """Where the bytes of one file lie in its shard."""

    shard: str
    start: int
    size: int


@dataclass
class Shards:
    """The members of tar files as a place: names are `SHARD.tar/MEMBER`."""

    place: Place
    members: dict[str, Member] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def files(self) -> tuple[list[str], list[str]]:
        """Names of all members, sorted, and the problems met."""
        return sorted(self.members), self.problems

    def holds(self, file: str) -> bool:
        """Whether there is a member of that name."""
        return file in self.members

    def outside(self, file: str) -> str | None:
        """Why `file` must not be opened; None where it may be."""
        return lexically_outside(file)

    def open(self, file: str) -> BinaryIO:
        """Open a member. Raises Unreadable or OSError."""
        member = self.members[file]
        with self.place.open(member.shard) as opened:
            opened.seek(member.start)
            data = opened.read(member.size)
        if len(data) < member.size:
            raise Unreadable(f"cut off after {len(data)} of {member.size} bytes")
        return io.BytesIO(data)

    def where(self, file: str) -> Path | str:
        """The path of a member, that of its shard in front."""
        return self.place.where(file)


def list_shards(place: Place, shards: Sequence[str]) -> Shards:
    """The members of all `shards`; what is wrong with them is in `problems`."""
    listed = Shards(place)
    for shard in shards:
        try:
            with place.open(shard) as opened:
                _list(listed, shard, opened)
        except _ERRORS as error:
            listed.problems.append(f"{shard}: cannot be read: {' '.join(str(error).split())[:120]}")
    return listed


def _list(listed: Shards, shard: str, opened: BinaryIO) -> None:
    length = opened.seek(0, io.SEEK_END)
    opened.seek(0)
    with tarfile.open(fileobj=opened, mode="r:") as archive:
        for member in archive:
            if not member.isdir():
                _add(listed, shard, member, length)
        end = archive.offset
    opened.seek(end)
    tail = opened.read(_MAX_TAIL + 1)
    if len(tail) < _BLOCK:
        listed.problems.append(f"{shard}: ends without the mark of its end; it was cut off")
    elif len(tail) > _MAX_TAIL or tail.strip(b"\0"):
        listed.problems.append(f"{shard}: damaged at byte {end}, or a tar file appended to another")


def _add(listed: Shards, shard: str, member: tarfile.TarInfo, length: int) -> None:
    name = member.name.removeprefix("./")
    shown = f"{shard}/{name}" if is_one_line(name) else f"{shard}/{name!a}"
    file = f"{shard}/{PurePosixPath(name)}"
    reason = None
    if not is_one_line(name):
        reason = "the name holds control characters"
    elif (reason := lexically_outside(name)) is not None:
        pass
    elif is_hidden(name):
        return
    elif not member.isreg() or member.issparse():
        reason = "a link or a special file; put the file itself there"
    elif member.size > MAX_BYTES:
        reason = f"more than {MAX_BYTES >> 20} MiB"
    elif member.offset_data + member.size > length:
        reason = "cut off by the end of the shard"
    elif file in listed.members:
        reason = "there twice in its shard"
    if reason is None:
        listed.members[file] = Member(shard, member.offset_data, member.size)
    else:
        listed.problems.append(f"{shown}: {reason}")
