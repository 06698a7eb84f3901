"""The lock of a store: one writer at a time, and none that died keeps it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptcdm.errors import RunFailed

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_SECONDS = 60.0


@contextmanager
def locked(path: Path, seconds: float | None = None) -> Iterator[None]:
    """Hold the lock file `path`; the system frees it when the process ends, however it ends.

    Raises RunFailed where another process holds it for so many seconds, LOCK_SECONDS where it is not said.
    """
    patience = LOCK_SECONDS if seconds is None else seconds
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + patience
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise RunFailed(
                    f"{path} is held by another process for {patience:.0f} s; wait until it is done"
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
