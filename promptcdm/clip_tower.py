"""CLIP's image features, the projected ones, from a local folder of transformers or open_clip.

CMMD's authors take ViT-L/14 at 336 px of OpenAI; only for that shape is the figure called CMMD alone. They
squeeze pictures to the square, where CLIP's own preparation would cut out its middle; so do we.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from promptcdm.errors import BadInput
from promptcdm.tower import Channels, Tower, file_digest, from_transformers, read_config_json, safetensors_of

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's
_WANTED = "a CLIP folder of transformers (config.json) or open_clip (open_clip_config.json) with safetensors weights"
_OPEN_CLIP = "open_clip_config.json"


def load_clip(folder: Path, device: str = "cpu") -> Tower:
    """Load a folder that transformers' `save_pretrained` wrote, or one of open_clip's on the hub.

    Raises BadInput where a file is missing, or the model is none.
    """
    if (folder / _OPEN_CLIP).is_file():
        return _open_clip(folder, device)
    config = read_config_json(folder / "config.json", _WANTED)
    weights = safetensors_of(folder, _WANTED)
    if config.get("model_type") not in ("clip", "clip_vision_model"):
        raise BadInput(f"{folder}: the model is of the kind {config.get('model_type')}; give {_WANTED}")
    model = from_transformers(CLIPVisionModelWithProjection, folder, _WANTED)
    model = model.eval().to(device)
    own = model.config
    shape = (own.hidden_size, own.num_hidden_layers, own.patch_size, own.image_size)

    def read(pixels: Tensor) -> Tensor:
        found: Tensor = model(pixel_values=pixels).image_embeds
        return found

    return _tower(folder, read, shape, (_MEAN, _STD), device, weights)


def _open_clip(folder: Path, device: str) -> Tower:
    weights = safetensors_of(folder, _WANTED)
    given = read_config_json(folder / _OPEN_CLIP, _WANTED)
    try:
        model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False, device=device)
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"{folder}: cannot be loaded ({reason}); give {_WANTED}") from error
    vision: dict[str, Any] = given["model_cfg"]["vision_cfg"]
    shape = tuple(vision.get(key) for key in ("width", "layers", "patch_size", "image_size"))
    scale = tuple(model.visual.image_mean), tuple(model.visual.image_std)
    return _tower(folder, model.eval().encode_image, shape, scale, device, weights)


def _tower(
    folder: Path,
    read: Any,
    shape: tuple[Any, ...],
    scale: tuple[Channels, Channels],
    device: str,
    weights: Path,
) -> Tower:
    """`shape` is width, layers, patch and size in pixels."""
    return Tower(
        name=f"clip:{folder.resolve().name}",
        network=read,
        size=int(shape[-1]),
        mean=scale[0],
        std=scale[1],
        device=device,
        weights_sha256=file_digest(weights),
        published="CMMD" if shape == (1024, 24, 14, 336) else "",
    )
