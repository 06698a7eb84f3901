"""A tracker of experiments, tensorboard or wandb, through accelerate's own classes for them.

What it is handed leaves training's numbers alone, and may leave the machine: wandb sends it to its servers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import is_tensorboard_available, is_wandb_available
from PIL import Image

from promptcdm.errors import BadInput
from promptcdm.settings import TrackerName

_AVAILABLE: dict[str, Callable[[], bool]] = {
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
}


@dataclass(frozen=True)
class Tracker:
    """One run of a tracker of accelerate's."""

    run: Any  # accelerate.tracking.GeneralTracker

    def row(self, row: Mapping[str, float]) -> None:
        """Numbers of a step."""
        values = {name: value for name, value in row.items() if name != "step"}
        self.run.log(values, step=int(row["step"]))

    def picture(self, name: str, step: int, picture: Image.Image) -> None:
        """One picture of a step."""
        self.run.log_images({name: np.asarray(picture)[None]}, step=step, **self._shape())

    def _shape(self) -> dict[str, str]:
        return {"dataformats": "NHWC"} if self.run.name == "tensorboard" else {}


def check_tracker(name: TrackerName) -> None:
    """Raise BadInput where the package of a tracker is not installed."""
    if name and not _AVAILABLE[name]():
        raise BadInput(f"tracker {name} needs a package that is not installed: pip install {name}")


@contextmanager
def tracking(
    name: TrackerName, folder: Path, source: str, settings: Mapping[str, Any]
) -> Iterator[Tracker | None]:
    """A run of the tracker for one source, closed at the end; None without a name. Raises as `check_tracker`."""
    if not name:
        yield None
        return
    check_tracker(name)
    kind = LOGGER_TYPE_TO_CLASS[name]
    run = kind(source, folder) if kind.requires_logging_directory else kind("promptcdm", name=source)
    run.start()
    run.store_init_configuration(dict(settings))
    try:
        yield Tracker(run)
    finally:
        run.finish()
