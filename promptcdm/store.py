"""The folder of adapters: one folder a source, and what a process may touch of it.

    adapters/
      birds/  coco/ ...       an adapter each; a folder is opened only when its name is asked for
      birds@1-SHA256/ ...     what stood in birds/ before it was replaced (versions.py)
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
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from promptcdm.adapter import RECORD, Adapter, load_adapter, read_record, save_adapter
from promptcdm.adapter_record import AdapterRecord
from promptcdm.erased import Erased, measure
from promptcdm.errors import AdapterMismatch, BadInput, RunFailed, UnknownSource
from promptcdm.source import check_name
from promptcdm.store_lock import locked
from promptcdm.tensorfile import sync_folder, write_bytes
from promptcdm.versions import Version, digits_of, is_digest, next_version, source_of, versions_in

LOCK = "store.lock"
FORGOTTEN = "forgotten.jsonl"
EXPORTS = "exports.jsonl"
READ_SECONDS = 10.0  # for which a reader whom writers outrun tries again
_UNFINISHED = ".partial"
# Of what is hidden. What is old or dropped comes back where no successor took its place; after that an old one is kept
# as a version and a dropped one is deleted. A file `forgotten` says that all of its source goes: what was begun is
# finished by the next process that looks.
_NEW, _OLD, _DROPPED, _REMOVED, _FORGET = "new", "old", "dropped", "removed", "forgotten"


def unknown_source(name: str) -> UnknownSource:
    """The error for a source that is not there, and for one that may not be used: nobody can tell which."""
    return UnknownSource(
        f"no source {name[:80]!a} that you may use; `promptcdm sources` lists a store's sources"
    )


class AdapterStore:
    """Adapters by name below `root`, which need not exist yet."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def sources(self) -> list[str]:
        """Names of the adapters here, sorted. Their files are not opened."""
        if not self.root.is_dir():
            return []
        half_done = (
            path for state in (_OLD, _DROPPED, _FORGET) for path in self.root.glob(f".*.{state}.partial")
        )
        if any(half_done):  # by a crash
            with self._writing():
                pass
        return sorted(entry.name for entry in self.root.iterdir() if self._holds(entry.name))

    def versions(self, name: str) -> list[Version]:
        """Older versions of a source that `NAME@DIGEST` still loads, oldest first. Raises UnknownSource."""
        current = _sha256_of(self._folder(name))
        return [version for version in versions_in(self.root, name) if version.sha256 != current]

    def references(self) -> list[str]:
        """Every source, and after each its older versions as NAME@DIGEST, oldest first."""
        return [
            each
            for name in self.sources()
            for each in (name, *(f"{name}@{version.sha256[:12]}" for version in self.versions(name)))
        ]

    def record(self, name: str) -> AdapterRecord:
        """The adapter.json of `NAME` or `NAME@DIGEST`, its tensors not verified.

        Raises UnknownSource, AdapterMismatch, or BadInput where several versions begin with these digits.
        """
        return read_record(self._folder(name))

    def load(self, name: str) -> Adapter:
        """Read and verify `NAME` or `NAME@DIGEST`.

        Raises as `record`, AdapterMismatch where it is not sound, RunFailed where it is replaced faster than read.
        """
        deadline = time.monotonic() + READ_SECONDS
        while time.monotonic() < deadline:
            folder = self._folder(name)
            before = _identity(folder)
            try:
                adapter = load_adapter(folder)
            except AdapterMismatch:
                if before is not None and _identity(folder) == before:
                    raise
                continue  # replaced or removed while it was read
            if adapter.source != source_of(name):
                raise AdapterMismatch(
                    f"{folder} holds the adapter of {adapter.source}; a folder has its source's name"
                )
            if not adapter.sha256.startswith(digits_of(name) or ""):
                raise AdapterMismatch(
                    f"{folder} holds the adapter {adapter.sha256[:12]}; a version's folder has its digest"
                )
            return adapter
        raise RunFailed(
            f"{self.root / name} was replaced again and again for {READ_SECONDS:.0f} s while it was read; try again"
        )

    def add(self, adapter: Adapter, replace: bool = False) -> None:
        """Write an adapter under its source's name; one that it replaces stays as an older version.

        Raises BadInput where there is one, unless `replace`.
        """
        check_name(adapter.source)
        folder = self.root / adapter.source
        with self._writing():
            self._refuse_link(folder)
            if folder.exists() and not (replace and folder.is_dir()):
                raise BadInput(f"{folder} exists; --replace writes over it, or choose another --source")
            self._swap(adapter, _OLD)

    def supersede(self, adapter: Adapter, *, of: str, drop: Callable[[Version], bool]) -> Erased:
        """Put an adapter in the place of its source's, `of` this sha256; that one goes, and every version to `drop`.

        `drop` is asked for each older version; unfinished training goes too. An interruption leaves the current adapter
        or its successor. Raises UnknownSource, and RunFailed where the source has another adapter by now.
        """
        name = adapter.source
        with self._writing():
            current = self._folder(name)
            if _sha256_of(current) != of:
                raise RunFailed(f"{current} was replaced meanwhile and is left as it is; do it again")
            older = [version for version in versions_in(self.root, name) if drop(version)]
            gone = [self.root / version.folder for version in older]
            gone += [path for path in [self.checkpoint_folder(name)] if os.path.lexists(path)]
            erased = measure(current, [current, *gone], older=older)
            self._swap(adapter, _DROPPED, gone)
        return erased

    def rollback(self, name: str, digits: str = "") -> tuple[str, str]:
        """Make an older version the current one: the one whose sha256 begins with `digits`, or what was replaced last.

        Returns the digests (before, now). The version that was current stays as an older one. Raises UnknownSource,
        and BadInput where there is no such version or the adapter is that one already.
        """
        with self._writing():
            folder = self._folder(name)
            older = self.versions(name)
            if not older:
                raise BadInput(f"{name} has no older version; --replace leaves one")
            wanted = self.root / older[-1].folder if not digits else self._folder(f"{name}@{digits}")
            if wanted == folder:
                raise BadInput(f"{name} is {digits} already; its other versions: {_listed(older)}")
            load_adapter(wanted)  # what is not sound must not take the place of what is
            before, now = _sha256_of(folder), _sha256_of(wanted)
            try:
                folder.rename(self._hidden(name, _OLD))
                wanted.rename(folder)
                sync_folder(self.root)
            finally:
                self._settle()
        return before, now

    def check_writable(self) -> None:
        """Raise RunFailed where nothing can be written here, before hours of work that would end so."""
        with self._writing():
            pass

    def _swap(self, adapter: Adapter, state: str, gone: Sequence[Path] = ()) -> None:
        """Write `adapter`, hide what is `gone`, and give it its place; what stood there is settled from `state`."""
        folder = self.root / adapter.source
        new = self._hidden(adapter.source, _NEW)
        try:
            save_adapter(adapter, new)
            sync_folder(new)
            self._hide(gone)
            if folder.exists():
                folder.rename(self._hidden(adapter.source, state))
            new.rename(folder)
            sync_folder(self.root)
            again = [v for v in versions_in(self.root, adapter.source) if v.sha256 == adapter.sha256]
            self._hide([self.root / version.folder for version in again])  # current once more
        finally:
            self._settle()

    def _hide(self, folders: Sequence[Path]) -> None:
        """Take folders out of sight at once; `_settle` deletes them."""
        for folder in folders:
            folder.rename(self._hidden(folder.name, _REMOVED))
        sync_folder(self.root)

    def remove(self, name: str) -> str:
        """Delete a source as `erase` does and return its adapter's sha256 ("" where it could not be read)."""
        return self.erase(name).sha256

    def erase(self, name: str) -> Erased:
        """Delete everything here that came from one source: its adapter, every version, its unfinished training.

        `NAME@DIGEST` deletes that older version alone. Raises UnknownSource, and BadInput for the current version.
        """
        if digits_of(name) != "":
            return self._erase_version(name)
        if not _is_name(name) or not self.root.is_dir():
            raise unknown_source(name)
        with self._writing():
            folders = self._all_of(name)
            if not folders:
                raise unknown_source(name)
            for folder in folders:
                self._refuse_link(folder)
            older = versions_in(self.root, name)
            erased = measure(self.root / name, folders, self.exports(name), older)
            self._hidden(name, _FORGET).touch()
            sync_folder(self.root)
            self._settle()
        return erased

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

    def exports(self, name: str) -> tuple[str, ...]:
        """The notes of a source's exports."""
        path = self.root / EXPORTS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return tuple(line for line in lines if f'"source": "{name}"' in line)

    def _append(self, name: str, line: str) -> None:
        with (self.root / name).open("a", encoding="utf-8", newline="\n") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())

    def _all_of(self, name: str) -> list[Path]:
        """Every folder that came from a source: its adapter, its unfinished training, its versions."""
        named = [name, f"{name}{_UNFINISHED}", *(version.folder for version in versions_in(self.root, name))]
        return [path for each in named if os.path.lexists(path := self.root / each)]

    def _erase_version(self, name: str) -> Erased:
        with self._writing():
            folder = self._folder(name)
            if folder.name == source_of(name):
                raise BadInput(
                    f"{name} is the current version: `promptcdm rollback {folder.name}` first, or forget {folder.name}"
                )
            erased = measure(folder, [folder])
            self._hide([folder])
            self._settle()
        return erased

    def _drop_exports(self, name: str) -> None:
        """Take the notes of a source's exports out of the file."""
        path, theirs = self.root / EXPORTS, self.exports(name)
        if not theirs:
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = "".join(f"{line}\n" for line in lines if line not in theirs)
        if kept:
            write_bytes(path, kept.encode())
        else:
            path.unlink()

    def _folder(self, name: str) -> Path:
        source, digits = source_of(name), digits_of(name)
        folder = self.root / source
        if not _is_name(source) or digits is None:
            raise unknown_source(name)
        self._refuse_link(folder)
        half_done = os.path.lexists(self._hidden(source, _FORGET))
        if (half_done or not self._holds(source)) and source not in self.sources():
            raise unknown_source(name)
        return self._version_folder(source, digits) if digits else folder

    def _version_folder(self, source: str, digits: str) -> Path:
        """The current folder or a version's, by the first digits of its sha256."""
        current = _sha256_of(self.root / source)
        folders = {version.sha256: version.folder for version in versions_in(self.root, source)}
        folders |= {current: source} if current else {}
        found = [sha256 for sha256 in folders if sha256.startswith(digits)]
        if not found:
            raise unknown_source(f"{source}@{digits}")
        if len(found) > 1:
            raise BadInput(f"{source}@{digits} may be {' or '.join(sorted(found))}; give more digits")
        return self.root / folders[found[0]]

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
            with locked(self.root / LOCK):
                self._settle()
                yield
        except OSError as error:
            raise RunFailed(f"{self.root} cannot be written: {error.strerror}") from error

    def _settle(self) -> None:
        """Bring back what was being replaced and has no successor; delete every other hidden remainder.

        First all of a source that was being forgotten is hidden, and then its mark goes.
        """
        for mark in self.root.glob(f".*.{_FORGET}.partial"):
            name = mark.name[1:].removesuffix(f".{_FORGET}.partial")
            self._hide([path for path in self._all_of(name) if not path.is_symlink()])
            self._drop_exports(name)
        for path in sorted(self.root.glob(".*.partial")):
            name, _, state = path.name[1:].removesuffix(".partial").rpartition(".")
            if state in (_OLD, _DROPPED) and not os.path.lexists(self.root / name):
                path.rename(self.root / name)
            elif state == _OLD and self._kept_as_version(name, path):
                continue
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        sync_folder(self.root)

    def _kept_as_version(self, name: str, folder: Path) -> bool:
        """Keep what was replaced, unless it cannot be read or is what stands there now."""
        sha256 = _sha256_of(folder)
        if not sha256 or sha256 == _sha256_of(self.root / name):
            return False
        folder.rename(self.root / next_version(self.root, name, sha256).folder)
        return True


def _sha256_of(folder: Path) -> str:
    """The digest that a folder's adapter.json states; "" where it cannot be read or states none."""
    try:
        sha256 = read_record(folder).sha256
    except AdapterMismatch:
        return ""
    return sha256 if is_digest(sha256) else ""


def _listed(versions: list[Version]) -> str:
    return ", ".join(version.sha256[:12] for version in versions)


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
