"""Units of work, each kept in a file when it is done: a rerun picks up the file, a kill loses one unit.

Several processes may be given the same units: each takes those that nobody has taken. A lock belongs to its process,
so that what a killed one had taken is free again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from promptcdm.errors import RunFailed
from promptcdm.store_lock import locked
from promptcdm.tensorfile import write_json

Units = Mapping[Path, Callable[[], Any]]  # the file of each, and what makes its value
_DAYS = 7 * 86400.0


def once(path: Path, make: Callable[[], Any]) -> Any:
    """The value of one unit, from its file or made now: whatever JSON holds."""
    return done({path: make})[path]


def start(units: Units) -> None:
    """Make those that nobody has made and nobody is at, and wait for nothing."""
    for path, make in units.items():
        if not path.is_file():
            _take(path, make, 0.0)


def done(units: Units) -> dict[Path, Any]:
    """The values of all, by file. What another process is at is left to it, and waited for at the end."""
    start(units)
    for path, make in units.items():
        if not path.is_file():
            _take(path, make, _DAYS)
    return {path: json.loads(path.read_text(encoding="utf-8")) for path in units}


def _take(path: Path, make: Callable[[], Any], patience: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(path.with_suffix(".lock"), patience))
        except RunFailed:
            return  # another process is at it
        if not path.is_file():  # it may have been done while the lock was waited for
            write_json(path, make())
