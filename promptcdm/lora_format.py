"""LoRA tensors in the grammar of this package, and in those that other tools write.

    ours         unet.<P>.lora_A.weight (r, in[, kh, kw])     PEFT inside diffusers; W += B A, no alpha
                 unet.<P>.lora_B.weight (out, r[, 1, 1])
    kohya        lora_unet_<P joined by "_">.lora_down.weight, .lora_up.weight, .alpha; W += alpha / r B A
    diffusers    unet.<P>.lora.down.weight, .lora.up.weight; older: unet.<..>.processor.to_q_lora.down.weight
    PEFT         base_model.model.<P>.lora_A.weight           alpha in adapter_config.json beside the file

<P> is the module's name in diffusers' UNet. A text encoder's layers stand beside the UNet's; `text_names` has their
names. What is read has its strength folded into B. What is written for
kohya's readers has alpha = r, so that every reader, whether it knows alpha or not, applies the same strength.
Every key is accounted for or refused by name: a LoRA of which half the layers load gives wrong pictures.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from promptcdm.errors import AdapterMismatch
from promptcdm.kohya_names import kohya_name, kohya_names
from promptcdm.lora_strength import Strength, strength_of
from promptcdm.tensorfile import one_line, read_tensors
from promptcdm.text_names import TEXT_ENCODERS, is_text_key, kohya_text_name, kohya_text_names, text_name

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_KEY = re.compile(
    r"((?:unet|text_encoder(?:_2)?(?=\.text_(?:model|projection)\.))(?:\.[A-Za-z0-9_]+)+)\.lora_([AB])\.weight"
)
_HALVES = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_down.weight": "A",
    ".lora_up.weight": "B",
    ".lora.down.weight": "A",
    ".lora.up.weight": "B",
    "_lora.down.weight": "A",
    "_lora.up.weight": "B",
    ".lora_linear_layer.down.weight": "A",
    ".lora_linear_layer.up.weight": "B",
    ".alpha": "alpha",
}
# Other ways to adapt a layer, by what their keys hold. Each computes something else than W + B A.
_OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "boft_": "BOFT",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "Tucker-decomposed LoRA",
    "ia3": "IA3",
    ".on_input": "IA3",
    ".diff": "full weight difference",
    "bundle_emb": "bundled embedding",
    ".bias": "LoRA with a bias",
}


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file of any of the grammars."""

    lora: dict[str, Tensor]  # fp32, strength folded in
    left_out: tuple[str, ...]  # keys of a text-encoder LoRA that was not to be read
    metadata: dict[str, str]  # the file's header


def read_lora(
    path: Path, module_names: Collection[str], text_names: Collection[str] = ()
) -> dict[str, Tensor]:
    """The LoRA of a file, in our grammar.

    `module_names` are those of all linear and convolution layers of the UNet, `text_names` (ours, in `text_names`)
    those of the text encoders' linear layers. Raises AdapterMismatch for anything that is not a LoRA of these.
    """
    return open_lora(path, module_names, text_names).lora


def open_lora(
    path: Path, module_names: Collection[str], text_names: Collection[str] = (), *, unet_only: bool = False
) -> LoraFile:
    """Like `read_lora`, with the header; `unet_only` lists a text-encoder LoRA instead of reading it."""
    tensors, metadata = read_tensors(path)
    left_out = tuple(sorted(filter(is_text_key, tensors))) if unet_only else ()
    kept = {key: tensor for key, tensor in sorted(tensors.items()) if not (unet_only and is_text_key(key))}
    layers = _layers(kept, module_names, text_names, path)
    if not layers:
        raise AdapterMismatch(f"{path}: adapts no layer of {'the UNet' if unet_only else 'this backbone'}")
    config = path.with_name(PEFT_CONFIG) if path.name == PEFT_FILE else None
    parts = sorted({module.partition(".")[0] for module in layers})
    strength = {part: strength_of(metadata, config, str(path), part) for part in parts}
    lora: dict[str, Tensor] = {}
    for module, halves in sorted(layers.items()):
        lora |= _folded(module, halves, strength[module.partition(".")[0]], path)
    return LoraFile(lora, left_out, metadata)


def lora_modules(lora: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> (A, B), sorted, as `unet.conv_in`. Raises AdapterMismatch unless keys, shapes and values are sound."""
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in lora.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterMismatch(
                f"LoRA key {key[:200]!a} is not unet.<module>.lora_A.weight or .lora_B.weight, nor of a text encoder: "
                "text_encoder.text_model.<module>.lora_A.weight"
            )
        halves.setdefault(match[1], {})[match[2]] = tensor
    pairs = {}
    for module, half in sorted(halves.items()):
        if len(half) != 2:
            raise AdapterMismatch(f"LoRA of {module} has lora_{next(iter(half))} without its other half")
        _check_pair(module, half["A"], half["B"])
        pairs[module] = (half["A"], half["B"])
    return pairs


def to_kohya(lora: Mapping[str, Tensor], architecture: str = "") -> dict[str, Tensor]:
    """The same LoRA under kohya's keys, alpha = r. Raises AdapterMismatch where two modules get one name.

    `architecture` tells how a text encoder is named: by a number where there are two, as in SDXL.
    """
    modules = lora_modules(lora)
    two = architecture == "sdxl" or any(module.startswith("text_encoder_2.") for module in modules)
    tensors: dict[str, Tensor] = {}
    for module, (a, b) in modules.items():
        part, _, name = module.partition(".")
        base = f"lora_unet_{kohya_name(name)}" if part == "unet" else kohya_text_name(module, two=two)
        if f"{base}.alpha" in tensors:
            raise AdapterMismatch(f"two modules would be {base} in kohya's naming; one is {module}")
        tensors[f"{base}.lora_down.weight"] = a
        tensors[f"{base}.lora_up.weight"] = b
        tensors[f"{base}.alpha"] = torch.tensor(float(a.shape[0]), dtype=a.dtype)
    return tensors


def _layers(
    tensors: Mapping[str, Tensor], module_names: Collection[str], text_names: Collection[str], path: Path
) -> dict[str, dict[str, Tensor]]:
    """Every key of a file as a half of a layer's LoRA: {"unet.conv_in": {"A": .., "B": .., "alpha": ..}}."""
    joined = kohya_names(module_names).items()
    names = {
        f"{prefix}{name}": f"unet.{module}"
        for name, module in joined
        for prefix in ("lora_unet_", "lycoris_")
    } | kohya_text_names(text_names)
    known = {f"unet.{module}" for module in module_names} | set(text_names)
    layers: dict[str, dict[str, Tensor]] = {}
    strangers = []
    for key, tensor in tensors.items():
        base, half = _split(key, path)
        module = _module(base, names)
        if module not in known:
            strangers.append(key)
        elif half in layers.setdefault(module, {}):
            raise AdapterMismatch(f"{path}: two keys give {half} of {module}, one is {one_line(key)}")
        else:
            layers[module][half] = tensor
    if strangers:
        text_alone = "; --unet-only imports the rest without them" if all(map(is_text_key, strangers)) else ""
        raise AdapterMismatch(
            f"{path}: {len(strangers)} of {len(tensors)} keys name no layer of this backbone, such as "
            f"{one_line(strangers[0])}: the LoRA is of another architecture, or of an unsupported kind{text_alone}"
        )
    return layers


def _split(key: str, path: Path) -> tuple[str, str]:
    """A key -> the layer as it is written there, and which half of the LoRA it holds."""
    for mark, kind in _OTHER_KINDS.items():
        if mark in key:
            raise AdapterMismatch(
                f"{path}: {one_line(key)} is of a {kind}, which is not supported; only plain LoRA is"
            )
    for suffix, half in _HALVES.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), half
    raise AdapterMismatch(
        f"{path}: {one_line(key)} is no key of a LoRA in kohya's, diffusers' or PEFT's format"
    )


def _module(base: str, names: Mapping[str, str]) -> str:
    """A layer as it is written in a file -> its name in our grammar; a stranger gets one that no layer has."""
    if base in names:
        return names[base]
    base = base.removeprefix("base_model.model.")
    part, _, inner = base.partition(".")
    if part in TEXT_ENCODERS:
        return text_name(part, inner)
    attention, processor, layer = base.removeprefix("unet.").partition(".processor.")
    if processor:
        return f"unet.{attention}.{'to_out.0' if layer == 'to_out' else layer}"
    return f"unet.{attention}"


def _folded(module: str, halves: Mapping[str, Tensor], strength: Strength, path: Path) -> dict[str, Tensor]:
    if {"A", "B"} - halves.keys():
        raise AdapterMismatch(f"{path}: {module} has only {', '.join(sorted(halves))} of its LoRA")
    a, b = halves["A"].float(), halves["B"].float()
    pair = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    try:
        lora_modules(pair)
    except AdapterMismatch as error:
        raise AdapterMismatch(f"{path}: {error}") from None
    scale = strength(module.partition(".")[2], a.shape[0], halves.get("alpha"))
    return pair | {f"{module}.lora_B.weight": b * scale}


def _check_pair(module: str, a: Tensor, b: Tensor) -> None:
    shapes = f"A {tuple(a.shape)}, B {tuple(b.shape)}"
    if a.ndim != b.ndim or a.ndim not in (2, 4) or 0 in (*a.shape, *b.shape):
        raise AdapterMismatch(f"LoRA of {module}: {shapes}; both need 2 dimensions, or 4 for a convolution")
    if a.shape[0] != b.shape[1]:
        raise AdapterMismatch(
            f"LoRA of {module}: {shapes}: rank {a.shape[0]} of A is not rank {b.shape[1]} of B"
        )
    if b.ndim == 4 and tuple(b.shape[2:]) != (1, 1):
        raise AdapterMismatch(f"LoRA of {module}: {shapes}: B of a convolution must be 1x1")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise AdapterMismatch(f"LoRA of {module} holds NaN or infinity")
