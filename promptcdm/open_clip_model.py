"""A CLIP of open_clip with both towers, from local safetensors: unit embeddings of pictures and of texts.

By a name of open_clip's with a file of weights, or a folder as open_clip's hub repositories are. Nothing is
downloaded, so a model whose text tower or tokenizer lies in another repository needs its folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor

from promptcdm.errors import BadInput
from promptcdm.tower import file_digest, safetensors_of

_WANTED = (
    "give a model name of open_clip and --weights FILE.safetensors, or a folder with open_clip_config.json and "
    "safetensors weights"
)
_AT_ONCE = 64


@dataclass(frozen=True)
class OpenClip:
    """Pictures and texts to unit vectors of one space."""

    name: str
    model: Any
    preprocess: Any  # PIL image -> (3, size, size), as the model was trained
    tokenizer: Any  # texts -> token ids (n, context length); a longer text is cut
    device: str
    weights_sha256: str

    def pictures(self, images: Sequence[Image.Image]) -> Tensor:
        """(n, d) of n pictures in RGB."""
        with torch.inference_mode():
            parts = [self._pictures(images[at : at + _AT_ONCE]) for at in range(0, len(images), _AT_ONCE)]
        return torch.cat(parts)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(n, d) of n texts."""
        with torch.inference_mode():
            parts = [self._texts(texts[at : at + _AT_ONCE]) for at in range(0, len(texts), _AT_ONCE)]
        return torch.cat(parts)

    def _pictures(self, images: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([self.preprocess(image) for image in images]).to(self.device)
        return F.normalize(self.model.encode_image(pixels).float(), dim=-1).cpu()

    def _texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(list(texts)).to(self.device)
        return F.normalize(self.model.encode_text(tokens).float(), dim=-1).cpu()


def load_open_clip(model: str, weights: Path | None = None, device: str = "cpu") -> OpenClip:
    """Load a name of open_clip's with its weights, or a folder. Raises BadInput where they are not or do not fit."""
    if weights is None:
        folder = Path(model)
        if not (folder / "open_clip_config.json").is_file():
            raise BadInput(f"model {model!r}: is no folder of open_clip; {_WANTED}")
        name, schema, file = folder.resolve().name, f"local-dir:{folder}", safetensors_of(folder, _WANTED)
    else:
        _check_name(model, weights)
        name, schema, file = model, model, weights
    try:
        made = open_clip.create_model(
            schema,
            pretrained=None if weights is None else str(weights),
            pretrained_text=False,
            device=device,
        )
        tokenizer = open_clip.get_tokenizer(schema)
    except (OSError, ValueError, RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"model {model!r}: cannot be loaded ({reason}); {_WANTED}") from error
    preprocess = image_transform_v2(PreprocessCfg(**made.visual.preprocess_cfg), is_train=False)
    return OpenClip(name, made.eval(), preprocess, tokenizer, device, file_digest(file))


def _check_name(model: str, weights: Path) -> None:
    config = open_clip.get_model_config(model)
    if config is None:
        near = [name for name in open_clip.list_models() if name.lower().startswith(model[:6].lower())]
        like = f"; near it {', '.join(near[:5])}" if near else ""
        raise BadInput(f"model {model!r}: open_clip has no such name{like}; {_WANTED}")
    if not weights.is_file() or weights.suffix != ".safetensors":
        raise BadInput(f"{weights}: is no safetensors file; {_WANTED}")
    elsewhere = {"hf_model_name", "hf_tokenizer_name"} & set(config.get("text_cfg", {}))
    if elsewhere:
        raise BadInput(f"model {model!r}: its text tower has files of its own; give its folder instead")
