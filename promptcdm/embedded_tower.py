"""The towers that ship: small residual networks for 64 px pictures, whose features have length one.

    concept-tower    learned to name concept and source of emoji pictures, of concepts that no held-out picture shows
    instance-tower   learned to know pictures again after changes, from noto, icons and drawn shapes; saw no source

`examples/towers/train.py` trains both. They see what emoji-like pictures on white differ in and nothing else, and their
figures are for this kind of pictures only.

    x   (B, 3, 64, 64)  ->  32 x 32 x c  ->  16 x 16 x 2c  ->  8 x 8 x 4c  ->  4 x 4 x 6c  ->  mean  ->  (B, 128)
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.shipped import shipped
from promptcdm.tensorfile import read_tensors
from promptcdm.tower import Tower, file_digest

EMBEDDED = ("concept-tower", "instance-tower")
SIZE, WIDTH, FEATURES = 64, 24, 128
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
_TIMES = (1, 2, 4, 6)  # channels of the four stages over the width


class EmbeddedNetwork(nn.Module):
    """(B, 3, 64, 64) to features (B, 128) of length one."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        channels = [width * times for times in _TIMES]
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        stages = [_Block(channels[0], channels[0], 1)]
        for before, after in pairwise(channels):
            stages.append(_Block(before, after, 2))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels[-1], FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """The features."""
        pooled = self.stages(self.stem(x)).mean((2, 3))
        return F.normalize(self.head(pooled), dim=1)


class _Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(after)
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, h, w) to (B, after, h / stride, w / stride)."""
        inner = torch.relu(self.first_norm(self.first(x)))
        inner = self.second_norm(self.second(inner))
        short = x if self.stride == 1 else F.avg_pool2d(x, self.stride)
        out: Tensor = torch.relu(inner + self.shortcut(short))
        return out


def load_embedded(name: str, device: str = "cpu") -> Tower:
    """Load a tower that ships, by its name in EMBEDDED. Raises RunFailed where the installation lacks it."""
    return read_embedded(shipped("towers") / f"{name}.safetensors", name, device)


def read_embedded(path: Path, name: str, device: str = "cpu") -> Tower:
    """Load a tower's file, fp16 or fp32. Raises BadInput where its tensors are not those of the network."""
    network = EmbeddedNetwork()
    try:
        tensors, _ = read_tensors(path)
        network.load_state_dict(
            {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
        )
    except (AdapterMismatch, RuntimeError) as error:
        raise BadInput(
            f"{path}: is no tower of promptcdm; give one that examples/towers/train.py made"
        ) from error
    return Tower(
        name=name,
        network=network.eval().to(device),
        size=SIZE,
        mean=MEAN,
        std=STD,
        device=device,
        weights_sha256=file_digest(path),
    )
