"""How strongly a LoRA of another tool's making acts: the factor s of W + s B A.

    kohya         alpha / r, alpha a tensor of each layer; 1 where there is none
    diffusers     alpha / r, alpha in the header's lora_adapter_metadata; 1 where there is none
    PEFT          alpha / r, alpha in adapter_config.json
    rank-stabilised (use_rslora): alpha / sqrt(r)        (Kalajdzievski 2023)

Losing alpha is the commonest way for a LoRA to load and be wrong.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from promptcdm.errors import AdapterMismatch
from promptcdm.tensorfile import one_line, parse_json, read_json

Strength = Callable[[str, int, Tensor | None], float]  # (module, rank, alpha tensor) -> s

HEADER_KEY = "lora_adapter_metadata"
_LITERAL = re.compile(r"\^?[A-Za-z0-9_.]+")


def strength_of(
    metadata: Mapping[str, str], peft_config: Path | None, where: str, part: str = "unet"
) -> Strength:
    """The factor of every layer of one part of a file (`unet`, `text_encoder` or `text_encoder_2`).

    It is stated in the header, or in the adapter_config.json of a PEFT file.

    Raises AdapterMismatch where they state what cannot be followed: DoRA, or patterns that are not names.
    """
    config = _config(metadata, peft_config, where, part)
    if config.get("use_dora"):
        raise AdapterMismatch(f"{where}: a DoRA, which is not supported; only plain LoRA is")
    alphas = config.get("alpha_pattern") or {}
    if not isinstance(alphas, dict) or not all(_LITERAL.fullmatch(str(key)) for key in alphas):
        raise AdapterMismatch(f"{where}: alpha_pattern must map names of layers to numbers")

    def strength(module: str, rank: int, alpha: Tensor | None) -> float:
        if alpha is not None and config:
            raise AdapterMismatch(
                f"{where}: alpha of {module} is given twice, as a tensor and in {HEADER_KEY}"
            )
        if alpha is not None:
            stated: Any = alpha.item() if alpha.numel() == 1 else None
        else:
            stated = next((v for k, v in alphas.items() if _names(k, module)), config.get("lora_alpha", rank))
        if isinstance(stated, bool) or not isinstance(stated, int | float) or not math.isfinite(stated):
            raise AdapterMismatch(f"{where}: alpha of {module} must be one finite number")
        return float(stated) / (math.sqrt(rank) if config.get("use_rslora") else rank)

    return strength


def _config(metadata: Mapping[str, str], peft_config: Path | None, where: str, part: str) -> dict[str, Any]:
    if peft_config is not None:
        config = read_json(peft_config)
        if not isinstance(config, dict) or config.get("peft_type") != "LORA":
            raise AdapterMismatch(f"{peft_config}: peft_type must be LORA")
        if not {"lora_alpha", "r"} <= config.keys():
            raise AdapterMismatch(f"{peft_config}: lora_alpha and r are missing")
        return config
    if HEADER_KEY not in metadata:
        return {}
    header = parse_json(metadata[HEADER_KEY].encode(errors="replace"), f"{where}: {one_line(HEADER_KEY)}")
    if not isinstance(header, dict):
        raise AdapterMismatch(f"{where}: {HEADER_KEY} must be a JSON object")
    prefix = f"{part}."
    own = {key.removeprefix(prefix): value for key, value in header.items() if key.startswith(prefix)}
    if own or part != "unet":
        return own
    return {key: value for key, value in header.items() if not key.startswith("text_encoder")}


def _names(pattern: str, module: str) -> bool:
    """Whether PEFT would apply `pattern` to `module`: its whole name, or the end of it after a dot."""
    name = pattern.removeprefix("^")
    # A text encoder's names begin with `text_model` in some versions of transformers and not in others.
    whole = name.removeprefix("text_model.") == module.removeprefix("text_model.")
    return whole or (name == pattern and module.endswith(f".{name}"))
