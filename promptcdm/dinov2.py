"""DINOv2 features from a local folder of transformers or timm: the class token after the last norm, at 224 px.

As in dgm-eval (Stein et al. 2023, arXiv 2306.04675), who take ViT-L/14 and call the figure FD_DINOv2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from transformers import AutoModel

from promptcdm.errors import BadInput
from promptcdm.tensorfile import read_tensors
from promptcdm.tower import Tower, file_digest, from_transformers, read_config_json, safetensors_of

SIZE = 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
_WANTED = "a DINOv2 folder of transformers or timm, with config.json and model.safetensors"
_KINDS = ("dinov2", "dinov2_with_registers")


def load_dinov2(folder: Path, device: str = "cpu") -> Tower:
    """Load a folder that transformers' `save_pretrained`, or timm's for the hub, wrote.

    Raises BadInput where a file is missing, or the model is none.
    """
    config = read_config_json(folder / "config.json", _WANTED)
    weights = safetensors_of(folder, _WANTED)
    if config.get("model_type") in _KINDS:
        network = from_transformers(AutoModel, folder, _WANTED)
    elif "dinov2" in str(config.get("architecture")):
        network = _timm(config, weights)
    else:
        kind = config.get("model_type") or config.get("architecture") or "unknown"
        raise BadInput(f"{folder}: the model is of the kind {kind}; give {_WANTED}")
    return Tower(
        name=f"dinov2:{folder.resolve().name}",
        network=_class_token(network.eval().to(device)),
        size=SIZE,
        mean=_MEAN,
        std=_STD,
        device=device,
        weights_sha256=file_digest(weights),
    )


def _timm(config: dict[str, Any], weights: Path) -> Any:
    arguments = {"num_classes": 0, "dynamic_img_size": True, **config.get("model_args", {})}
    try:
        model = timm.create_model(config["architecture"], pretrained=False, **arguments)
        model.load_state_dict({name: tensor.float() for name, tensor in read_tensors(weights)[0].items()})
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"{weights}: does not fit its config.json ({reason}); give {_WANTED}") from error
    return model


def _class_token(network: Any) -> Any:
    """Both libraries' models as a function (B, 3, h, w) -> (B, d)."""

    def read(pixels: torch.Tensor) -> torch.Tensor:
        found = network(pixels)
        token: torch.Tensor = found if isinstance(found, torch.Tensor) else found.pooler_output
        return token

    return read
