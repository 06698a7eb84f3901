"""The folder of adapters: one folder a source, and what a process may touch of it.

    adapters/
      birds/  coco/ ...       an adapter each; a folder is opened only when its name is asked for
      birds.partial/          what training of birds left unfinished, to go on from
      exports.jsonl           where copies for other tools were written
      forgotten.jsonl         receipts, without names
      store.lock              held by whoever writes

A writer makes the new folder beside the old under a hidden name, then renames it: a reader sees all of an
adapter or none of it. Hidden folders that a crash left are put right by the next writer.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from promptcdm.adapter import RECORD, Adapter, load_adapter, read_record, save_adapter
from promptcdm.adapter_record import AdapterRecord
from promptcdm.errors import AdapterMismatch, BadInput, RunFailed, UnknownSource
from promptcdm.source import check_name
from promptcdm.tensorfile import sync_folder, write_bytes

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = "store.lock"
FORGOTTEN = "forgotten.jsonl"
EXPORTS = "exports.jsonl"
LOCK_SECONDS = 60.0
_READ_ATTEMPTS = 5
_UNFINISHED = ".partial"
_NEW, _OLD, _REMOVED = "new", "old", "removed"


def unknown_source(name: str) -> UnknownSource:
    """The error for a source that is not there, and for one that may not be used: nobody can tell which."""
    return UnknownSource(
        f"no source {name[:80]!a} that you may use; `promptcdm sources` lists a store's sources"
    )


@dataclass(frozen=True)
class Erased:
    """What `AdapterStore.erase` removed. Digests are empty where adapter.json could not be read."""

    exports: tuple[str, ...]  # notes of copies outside, as lines of JSON

    sha256: str
    backbone: str  # digest
    imported_from: str
    files: int
    bytes: int


class AdapterStore:
    """Adapters by name below `root`, which need not exist yet."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def sources(self) -> list[str]:
        """Names of the adapters here, sorted. Their files are not opened."""
        if not self.root.is_dir():
            return []
        if any(self.root.glob(f".*.{_OLD}.partial")):  # a crash between two renames
            with self._writing():
                pass
        return sorted(entry.name for entry in self.root.iterdir() if self._holds(entry.name))

    def record(self, name: str) -> AdapterRecord:
        """The adapter.json of a source, its tensors not verified. Raises UnknownSource or AdapterMismatch."""
        return read_record(self._folder(name))

    def load(self, name: str) -> Adapter:
        """Read and verify one adapter. Raises UnknownSource, or AdapterMismatch where it is not sound."""
        for _ in range(_READ_ATTEMPTS):
            folder = self._folder(name)
            before = _identity(folder)
            try:
                adapter = load_adapter(folder)
            except AdapterMismatch:
                if _identity(folder) == before:
                    raise
                continue  # replaced or removed while it was read
            if adapter.source != name:
                raise AdapterMismatch(
                    f"{folder} holds the adapter of {adapter.source}; a folder has its source's name"
                )
            return adapter
        raise RunFailed(
            f"{self.root / name} was replaced {_READ_ATTEMPTS} times while it was read; try again"
        )

    def add(self, adapter: Adapter, replace: bool = False) -> None:
        """Write an adapter under its source's name. Raises BadInput where there is one, unless `replace`."""
        check_name(adapter.source)
        folder = self.root / adapter.source
        with self._writing():
            self._refuse_link(folder)
            if folder.exists() and not (replace and folder.is_dir()):
                raise BadInput(f"{folder} exists; --replace writes over it, or choose another --source")
            new, old = self._hidden(adapter.source, _NEW), self._hidden(adapter.source, _OLD)
            try:
                save_adapter(adapter, new)
                sync_folder(new)
                if folder.exists():
                    folder.rename(old)
                new.rename(folder)
                sync_folder(self.root)
            finally:
                self._settle()

    def remove(self, name: str) -> str:
        """Delete one adapter and return its sha256 ("" where it could not be read). Raises UnknownSource."""
        return self._erase(name, [""]).sha256

    def erase(self, name: str) -> Erased:
        """Delete everything here that came from one source: its adapter and its unfinished training."""
        return self._erase(name, ["", _UNFINISHED])

    def checkpoint_folder(self, name: str) -> Path:
        """Where training of `name` keeps what it needs to go on after an interruption."""
        check_name(name)
        return self.root / f"{name}{_UNFINISHED}"

    def append_receipt(self, line: str) -> None:
        """Add one line to forgotten.jsonl."""
        with self._writing():
            self._append(FORGOTTEN, line)

    def append_export(self, line: str) -> None:
        """Add one line to exports.jsonl: a JSON object that names its `source`."""
        with self._writing():
            self._append(EXPORTS, line)

    def _append(self, name: str, line: str) -> None:
        with (self.root / name).open("a", encoding="utf-8", newline="\n") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())

    def _erase(self, name: str, endings: list[str]) -> Erased:
        if not _is_name(name) or not self.root.is_dir():
            raise unknown_source(name)
        with self._writing():
            folders = [path for end in endings if os.path.lexists(path := self.root / f"{name}{end}")]
            if not folders:
                raise unknown_source(name)
            for folder in folders:
                self._refuse_link(folder)
            erased = _measure(self.root / name, folders, self._take_exports(name))
            for folder in folders:
                folder.rename(self._hidden(folder.name, _REMOVED))
            sync_folder(self.root)
            self._settle()
        return erased

    def _take_exports(self, name: str) -> tuple[str, ...]:
        """The notes of a source's exports, which are taken out of the file."""
        path = self.root / EXPORTS
        if not path.is_file():
            return ()
        lines = path.read_text(encoding="utf-8").splitlines()
        theirs = [line for line in lines if f'"source": "{name}"' in line]
        kept = "".join(f"{line}\n" for line in lines if line not in theirs)
        if kept:
            write_bytes(path, kept.encode())
        else:
            path.unlink()
        return tuple(theirs)

    def _folder(self, name: str) -> Path:
        folder = self.root / name
        if not _is_name(name):
            raise unknown_source(name)
        self._refuse_link(folder)
        if not self._holds(name) and name not in self.sources():
            raise unknown_source(name)
        return folder

    def _holds(self, name: str) -> bool:
        folder = self.root / name
        return _is_name(name) and not folder.is_symlink() and (folder / RECORD).is_file()

    def _refuse_link(self, folder: Path) -> None:
        if folder.is_symlink():
            raise AdapterMismatch(
                f"{folder} is a link; a store holds its adapters itself: copy the folder here"
            )

    def _hidden(self, name: str, state: str) -> Path:
        return self.root / f".{name}.{state}.partial"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the store's lock; what a crash left behind is put right first."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with _locked(self.root / LOCK):
                self._settle()
                yield
        except OSError as error:
            raise RunFailed(f"{self.root} cannot be written: {error.strerror}") from error

    def _settle(self) -> None:
        """Bring back what was being replaced and has no successor; delete every other hidden remainder."""
        for path in sorted(self.root.glob(".*.partial")):
            name, _, state = path.name[1:].removesuffix(".partial").rpartition(".")
            if state == _OLD and not os.path.lexists(self.root / name):
                path.rename(self.root / name)
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        sync_folder(self.root)


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except BadInput:
        return False
    return True


def _identity(folder: Path) -> tuple[int, int] | None:
    """What changes when another folder takes this one's place; it may well get the same inode number."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_ctime_ns


def _measure(folder: Path, folders: list[Path], exports: tuple[str, ...]) -> Erased:
    """Count what goes. An adapter.json that cannot be read must not keep its source from being forgotten."""
    try:
        record = read_record(folder)
        facts = (record.sha256, record.backbone.digest, record.imported_from)
    except AdapterMismatch:
        facts = ("", "", "")
    files = [path for each in folders for path in each.rglob("*") if path.is_file() or path.is_symlink()]
    return Erased(exports, *facts, files=len(files), bytes=sum(path.lstat().st_size for path in files))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; the system frees it when the process ends, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"{path} is held by another process for {LOCK_SECONDS:.0f} s; wait until it is done"
                )
            time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
