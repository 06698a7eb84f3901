"""A network that turns pictures into features, and the one way in which pictures come to its size.

A picture is squeezed to a square by Pillow's bicubic filter, each channel in floating point, without rounding to
8 bits after it, as in clean-fid (Parmar et al. 2022, arXiv 2104.11222). Pillow widens the filter when it makes a
picture smaller, so that it is antialiased; without that, a Fréchet distance of the same pictures moves by points.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from promptcdm.errors import BadInput

RESIZING = "bicubic, antialiased, in floating point, to a square (Pillow)"
Channels = tuple[float, float, float]


@dataclass(frozen=True)
class Tower:
    """A network with the size and the scale of what it reads.

    `published` is the figure that papers compute from these features, "FID" or "CMMD", else empty: only then is
    the figure printed under that name alone.
    """

    name: str
    network: Callable[[Tensor], Tensor]  # (B, 3, size, size) -> (B, d)
    size: int
    mean: Channels  # of pixels in 0..1
    std: Channels
    device: str
    weights_sha256: str
    published: str = ""

    def features(self, images: Sequence[Image.Image]) -> NDArray[np.float64]:
        """Features (N, d) of N pictures in RGB, read at once."""
        pixels = torch.stack([resized(image, self.size) for image in images])
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (self.mean, self.std))
        with torch.inference_mode():
            found = self.network(((pixels / 255 - mean) / std).to(self.device))
        return found.double().cpu().numpy()


def resized(image: Image.Image, size: int) -> Tensor:
    """(3, size, size) in 0..255, not rounded."""
    channels = image.convert("RGB").split()
    planes = [
        np.asarray(channel.convert("F").resize((size, size), Image.Resampling.BICUBIC))
        for channel in channels
    ]
    return torch.from_numpy(np.stack(planes)).clamp(0, 255)


def safetensors_of(path: Path, what: str) -> Path:
    """The file itself, or the one safetensors file of a folder. Raises BadInput where there is not one."""
    if path.is_file():
        return path
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        raise BadInput(
            f"{path}: {f'{len(found)} safetensors files' if path.is_dir() else 'no such file or folder'}; "
            f"give {what} with its weights in one safetensors file"
        )
    return found[0]


def from_transformers(kind: Any, folder: Path, what: str) -> Any:
    """`kind`, a class of transformers, with the weights of a local folder. Raises BadInput where one is missing."""
    try:
        model, found = kind.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"{folder}: cannot be loaded ({reason}); give {what}") from error
    if found["missing_keys"]:  # transformers would fill them at random
        raise BadInput(f"{folder}: {len(found['missing_keys'])} tensors are missing; give {what}")
    return model


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_config_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object of a model's config file. Raises BadInput; `what` is the folder that is wanted."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); give {what}") from error
    except ValueError as error:
        raise BadInput(f"{path}: is not JSON ({error}); give {what}") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path}: is not a JSON object; give {what}")
    return config
