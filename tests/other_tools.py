"""Which weight ComfyUI and A1111 would change for each key of a LoRA file, by the rules of their loaders.

Both work on a model whose layers have the names of the original Stable Diffusion code. Those names are had from
diffusers, which knows for each layer of a checkpoint of that code what it calls it. Each function returns, for a key
without the half that it is, the layer by the name that this package uses, or None where the tool finds none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

Rule = Callable[[str], str | None]

_IN_RESNET = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
_TEXT = {"lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
_CLIP = (
    "mlp.fc1",
    "mlp.fc2",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
)


def comfyui(originals: dict[str, str], text: Collection[str]) -> Rule:
    """Of the UNet's layers by their original names (joined by "_"), and the text encoders' by ours.

    It knows a layer by its original and by its diffusers name, each with "_" for ".", and those of SDXL's added
    embedding by the original alone.
    """
    table = {f"lora_unet_{original}": f"unet.{module}" for original, module in originals.items()}
    table |= {
        f"lora_unet_{module.replace('.', '_')}": f"unet.{module}"
        for module in originals.values()
        if not module.startswith("add_embedding.")
    }
    two = any(name.startswith("text_encoder_2.") for name in text)
    for name in text:
        encoder, _, module = name.partition(".")
        if not module.endswith(_CLIP):
            continue
        names = {"text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",) if two else ()}
        table |= {f"{prefix}{module.replace('.', '_')}": name for prefix in names[encoder]}
    return table.get


def a1111(originals: dict[str, str], text: Collection[str]) -> Rule:
    """The same; A1111 turns a diffusers name into the original one by counting three layers a block."""
    table = {f"diffusion_model_{original}": f"unet.{module}" for original, module in originals.items()}

    def find(base: str) -> str | None:
        for prefix, encoder in _TEXT.items():
            if base.startswith(prefix):
                joined = {name.replace(".", "_"): name for name in text if name.startswith(f"{encoder}.")}
                return joined.get(f"{encoder}_{base.removeprefix(prefix)}")
        return table.get(_original(base)) or table.get(base.replace("lora_unet", "diffusion_model", 1))

    return find


def _original(base: str) -> str:
    if match := re.fullmatch(r"lora_unet_conv_(in|out)", base):
        return {"in": "diffusion_model_input_blocks_0_0", "out": "diffusion_model_out_2"}[match[1]]
    if match := re.fullmatch(r"lora_unet_time_embedding_linear_(\d)", base):
        return f"diffusion_model_time_embed_{2 * int(match[1]) - 2}"
    if match := re.fullmatch(r"lora_unet_(down|up)_blocks_(\d)_(attentions|resnets)_(\d)_(.+)", base):
        direction, block, kind, layer, inner = match.groups()
        number = 3 * int(block) + int(layer) + (direction == "down")
        where = "input" if direction == "down" else "output"
        return f"diffusion_model_{where}_blocks_{number}_{int(kind == 'attentions')}_{_inner(kind, inner)}"
    if match := re.fullmatch(r"lora_unet_mid_block_(attentions|resnets)_(\d)_(.+)", base):
        number = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"diffusion_model_middle_block_{number}_{_inner(match[1], match[3])}"
    if match := re.fullmatch(r"lora_unet_down_blocks_(\d)_downsamplers_0_conv", base):
        return f"diffusion_model_input_blocks_{3 + 3 * int(match[1])}_0_op"
    if match := re.fullmatch(r"lora_unet_up_blocks_(\d)_upsamplers_0_conv", base):
        block = int(match[1])
        return f"diffusion_model_output_blocks_{2 + 3 * block}_{2 if block else 1}_conv"
    return base


def _inner(kind: str, name: str) -> str:
    return _IN_RESNET.get(name, name) if kind == "resnets" else name
