"""The tokenizer of a backbone alone, so that captions can be measured before any weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

from promptcdm.errors import BadInput
from promptcdm.shipped import shipped

_LEAST_WORDS = 256  # CLIP's vocabulary begins with the bytes


def load_tokenizer(backbone: str) -> Any:
    """The CLIPTokenizer of nano, a diffusers folder, a hub id, or the folder beside a single file of its name.

    Raises BadInput where there is none.
    """
    path = shipped("nano") if backbone == "nano" else Path(backbone)
    if path.suffix == ".safetensors":
        path = path.with_suffix("")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(path), subfolder="tokenizer")
        if len(tokenizer) < _LEAST_WORDS:  # from a folder without its files transformers makes an empty one
            raise ValueError("no vocabulary")
    except (OSError, ValueError) as error:
        raise BadInput(
            f"backbone {backbone} has no tokenizer that can be loaded: {' '.join(str(error).split())[:120]}; "
            'give another --backbone, or --backbone "" to leave out the lengths of captions'
        ) from error
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return tokenizer
