"""What turns pictures into features, by name. Only local weights are read; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from promptcdm.clip_tower import load_clip
from promptcdm.dinov2 import load_dinov2
from promptcdm.errors import BadInput
from promptcdm.inception import load_inception

ACCEPTED = "inception:FILE, dinov2:FOLDER, clip:FOLDER"


class Features(Protocol):
    """Any object with a name, which stands in the figures' labels, and this function."""

    @property
    def name(self) -> str:
        """What the figures are of, as in `FD(name)`."""

    def features(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Features (N, d) of N RGB pictures, whatever their sizes."""


def load_features(name: str, device: str = "cpu") -> Features:
    """Load features by name. A tower that ships with promptcdm is one more `if`, by a name without a colon.

    Raises BadInput for a name that is not accepted, and where the weights are missing or of another network.
    """
    kind, _, path = name.partition(":")
    if path and kind == "inception":
        return load_inception(Path(path), device)
    if path and kind == "dinov2":
        return load_dinov2(Path(path), device)
    if path and kind == "clip":
        return load_clip(Path(path), device)
    raise BadInput(f"features {name!r} are not known; accepted are {ACCEPTED}")
