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
from promptcdm.embedded_tower import EMBEDDED, load_embedded
from promptcdm.errors import BadInput
from promptcdm.inception import load_inception
from promptcdm.picture_folder import PictureFolder
from promptcdm.sscd import load_sscd
from promptcdm.tower import RESIZING, Tower

ACCEPTED = f"{', '.join(EMBEDDED)}, inception:FILE, dinov2:FOLDER, clip:FOLDER, sscd:FILE"


class Features(Protocol):
    """Any object with a name, which stands in the figures' labels, and this function."""

    @property
    def name(self) -> str:
        """What the figures are of, as in `FD(name)`."""

    def features(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Features (N, d) of N RGB pictures, whatever their sizes."""


def load_features(name: str, device: str = "cpu") -> Features:
    """Load features by name: a tower that ships with promptcdm, or local weights after a colon.

    Raises BadInput for a name that is not accepted, and where the weights are missing or of another network.
    """
    kind, _, path = name.partition(":")
    if path and kind == "inception":
        return load_inception(Path(path), device)
    if path and kind == "dinov2":
        return load_dinov2(Path(path), device)
    if path and kind == "clip":
        return load_clip(Path(path), device)
    if path and kind == "sscd":
        return load_sscd(Path(path), device)
    if name in EMBEDDED:
        return load_embedded(name, device)
    raise BadInput(f"features {name!r} are not known; accepted are {ACCEPTED}")


def read_features(
    model: Features, folder: PictureFolder, used: Sequence[int], batch_size: int
) -> NDArray[np.float64]:
    """Features (N, d) of the pictures of these numbers. Raises BadInput where one cannot be read."""
    parts = []
    for start in range(0, len(used), batch_size):
        pictures = [folder.picture(int(index)) for index in used[start : start + batch_size]]
        parts.append(np.asarray(model.features(pictures), dtype=np.float64).reshape(len(pictures), -1))
    return np.concatenate(parts)


def feature_facts(model: Features, width: int) -> dict[str, object]:
    """Name and width, and of a tower its weights and resizing: what figures depend on."""
    facts: dict[str, object] = {"name": model.name, "width": width}
    if isinstance(model, Tower):
        facts |= {"weights_sha256": model.weights_sha256, "pixels": model.size, "resizing": RESIZING}
    return facts
