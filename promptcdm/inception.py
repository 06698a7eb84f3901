"""Inception v3 features, the only ones of which a Fréchet distance is called FID.

Two networks go by this name. FID's (Heusel et al. 2017) is TensorFlow's of 2015-12-05, with 1,008 outputs and
with pools of its own; its weights were ported to torchvision's names by pytorch-fid. torchvision's has 1,000
outputs and gives other figures, so that it is not called FID here. The weights tell which it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception_v3

from promptcdm.errors import BadInput
from promptcdm.tensorfile import read_tensors
from promptcdm.tower import Channels, Tower, file_digest, safetensors_of

SIZE = 299
_WANTED = "an Inception v3, such as pytorch-fid's or torchvision's weights,"
_AVERAGED = ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_7b")
# TensorFlow's graph takes (pixel - 128) / 128.
_SCALE: dict[int, tuple[str, float, float]] = {
    1008: ("FID", 128 / 255, 128 / 255),
    1000: ("", 0.5, 0.5),
}


def load_inception(path: Path, device: str = "cpu") -> Tower:
    """Load weights by torchvision's names from a safetensors file, or a folder with one; features are 2,048 wide.

    Raises BadInput where they are missing or of another network.
    """
    file = safetensors_of(path, _WANTED)
    tensors, _ = read_tensors(file)
    head = tensors.get("fc.weight")
    classes = 0 if head is None else len(head)
    if classes not in _SCALE:
        raise BadInput(f"{file}: fc.weight has {classes} rows; give {_WANTED} which have 1008 or 1000")
    network = inception_network(fid=classes == 1008)
    own = {name: tensor.float() for name, tensor in tensors.items() if not name.startswith("AuxLogits.")}
    own = {name: tensor for name, tensor in own.items() if not name.startswith("fc.")}
    try:
        network.load_state_dict(own)
    except RuntimeError as error:
        raise BadInput(f"{file}: its tensors are not those of an Inception v3; give {_WANTED}") from error
    published, mean, std = _SCALE[classes]
    return Tower(
        name="inception-2015" if published else "inception-torchvision",
        network=network.eval().to(device),
        size=SIZE,
        mean=_thrice(mean),
        std=_thrice(std),
        device=device,
        weights_sha256=file_digest(file),
        published=published,
    )


def inception_network(*, fid: bool) -> Any:
    """Inception v3 up to its last pool, (B, 3, 299, 299) -> (B, 2048), with random weights.

    With `fid` its branches pool as TensorFlow's graph does: averages leave the border's padding out, and the
    last block takes the largest instead.
    """
    network = inception_v3(weights=None, aux_logits=False, init_weights=False)
    network.fc = nn.Identity()
    if fid:
        for name in _AVERAGED:
            _pool_with(getattr(network, name), _average)
        _pool_with(network.Mixed_7c, _largest)
    return network


def _pool_with(block: nn.Module, pool: Callable[[Tensor], Tensor]) -> None:
    """Let the block's pooling branch, its last channels, start from another pool."""

    def replaced(block: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        branch = block.branch_pool(pool(inputs[0]))
        return torch.cat([output[:, : -branch.shape[1]], branch], 1)

    block.register_forward_hook(replaced)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _largest(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _thrice(value: float) -> Channels:
    return (value, value, value)
