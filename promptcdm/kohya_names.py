"""Names of a UNet's layers in kohya's files, which join them with "_" and so cannot be split again.

They are resolved the other way round: from the names that this UNet has. Two spellings occur: diffusers'
(down_blocks_0_attentions_1_proj_in) and the original Stable Diffusion code's (input_blocks_2_1_proj_in),
which sd-scripts uses for SDXL. There layers are counted through, a downsampler being one of its own:

    input_blocks.0.0       conv_in                 middle_block.0, .1, .2       resnet, attention, resnet
    input_blocks.N.0, .1   resnet, attention       output_blocks.N.0, .1        resnet, attention
    input_blocks.N.0.op    downsampler             output_blocks.N.1 or .2      upsampler, after a last layer
"""

from __future__ import annotations

import re
from collections.abc import Collection

from promptcdm.errors import AdapterMismatch

_WHOLE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_IN_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_PART = re.compile(r"((?:(?:down|up)_blocks\.\d+|mid_block)\.(\w+)\.\d+)\.(.+)")


def kohya_name(module: str) -> str:
    """The name to write, without `lora_unet_`: diffusers' spelling where every tool reads it."""
    spelling = _WHOLE[module] if module.startswith("add_embedding.") else module
    return spelling.replace(".", "_")


def kohya_names(module_names: Collection[str]) -> dict[str, str]:
    """Joined name -> module name, in both spellings, for all modules of one UNet.

    Raises AdapterMismatch where two modules would have one joined name.
    """
    found: dict[str, str] = {}
    parts = _original_parts(set(module_names))
    for module in sorted(module_names):
        original = _original(module, parts)
        for spelling in {module, original or module}:
            joined = spelling.replace(".", "_")
            if found.setdefault(joined, module) != module:
                raise AdapterMismatch(f"{joined} could be {found[joined]} or {module} of this UNet")
    return found


def _original(module: str, parts: dict[str, str]) -> str | None:
    if module in _WHOLE:
        return _WHOLE[module]
    match = _PART.fullmatch(module)
    if match is None or match[1] not in parts:
        return None
    part, kind, inner = match.groups()
    if kind == "downsamplers":
        return parts[part]
    return f"{parts[part]}.{_IN_RESNET.get(inner, inner) if kind == 'resnets' else inner}"


def _original_parts(names: set[str]) -> dict[str, str]:
    """Resnets, attentions and samplers by diffusers' name -> the original code's."""
    have = {match[1] for name in names if (match := _PART.fullmatch(name))}
    parts: dict[str, str] = {}
    number = 1
    for block in _counted(have, "down_blocks"):
        for layer in range(_length(have, f"{block}.resnets")):
            parts[f"{block}.resnets.{layer}"] = f"input_blocks.{number}.0"
            parts[f"{block}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        if f"{block}.downsamplers.0" in have:
            parts[f"{block}.downsamplers.0"] = f"input_blocks.{number}.0.op"
            number += 1
    has_attention = "mid_block.attentions.0" in have
    parts["mid_block.resnets.0"] = "middle_block.0"
    parts["mid_block.attentions.0"] = "middle_block.1"
    parts["mid_block.resnets.1"] = f"middle_block.{1 + has_attention}"
    number = 0
    for block in _counted(have, "up_blocks"):
        last = _length(have, f"{block}.resnets") - 1
        for layer in range(last + 1):
            parts[f"{block}.resnets.{layer}"] = f"output_blocks.{number}.0"
            parts[f"{block}.attentions.{layer}"] = f"output_blocks.{number}.1"
            if layer == last:
                place = 1 + (f"{block}.attentions.{layer}" in have)
                parts[f"{block}.upsamplers.0"] = f"output_blocks.{number}.{place}"
            number += 1
    return parts


def _counted(have: set[str], kind: str) -> list[str]:
    blocks: list[str] = []
    while any(part.startswith(f"{kind}.{len(blocks)}.") for part in have):
        blocks.append(f"{kind}.{len(blocks)}")
    return blocks


def _length(have: set[str], prefix: str) -> int:
    count = 0
    while f"{prefix}.{count}" in have:
        count += 1
    return count
