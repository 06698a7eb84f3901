"""LoRA inside a frozen UNet: put in, run with exactly one or none, read out, take away.

    base(x) + B A x        A (r, in), B (out, r), the strength alpha / r folded into B

PEFT's layers carry the arithmetic. Which adapter they apply is mutable state of the shared UNet, so it is only ever
changed inside `running`, under the caller's lock, and is none outside it.

    lora       {"unet.<module>.lora_A.weight": (r, in[, kh, kw]), "unet.<module>.lora_B.weight": (out, r[, 1, 1])}
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig
from peft.functional import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from promptcdm.errors import AdapterMismatch, BadInput

PREFIX = "unet."
# Held while modules are made. While diffusers, transformers and accelerate load a model, torch's default type of
# numbers, its initialisations and the registering of parameters are others for the whole process; of two that load at
# once, the later would put back what the earlier had put in.
making_modules = threading.RLock()
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
WIDE = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
# Of the resnets alone: older versions of diffusers do not load a LoRA of conv_in and conv_out, and A1111 counts SDXL's
# first upsampler where there is none.
CONV = (*WIDE, "conv1", "conv2", "conv_shortcut")
_SUFFIXES = {"attention": ATTENTION, "wide": WIDE, "conv": CONV}


def target_modules(unet: nn.Module, targets: str) -> list[str]:
    """Names of the layers that `targets` ("attention", "wide" or "conv") adapts, in the UNet's order."""
    if targets not in _SUFFIXES:
        raise BadInput(f"targets {targets!r} is unknown; accepted: {', '.join(_SUFFIXES)}")
    suffixes = tuple("." + suffix for suffix in _SUFFIXES[targets])
    return [name for name in plain_layers(unet) if name.endswith(suffixes)]


def plain_layers(unet: nn.Module) -> dict[str, nn.Module]:
    """The UNet's own linear and convolution layers by name, whatever adapters are in it."""
    found: dict[str, nn.Module] = {}
    for name, module in unet.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and ".lora_" not in name:
            found[name.removesuffix(".base_layer")] = module
    return found


def fitted(
    layers: Mapping[str, nn.Module], pairs: Mapping[str, tuple[Tensor, Tensor]], source: str, where: str
) -> list[tuple[nn.Module, tuple[Tensor, Tensor]]]:
    """Each adapted layer with its A and B, by the names of both.

    Raises AdapterMismatch where a layer is missing in `where`, of another shape, or takes no LoRA.
    """
    missing = sorted(set(pairs) - set(layers))
    if missing:
        raise AdapterMismatch(
            f"{missing[0]} is no layer of {where} ({len(missing)} such keys); {source} is of another architecture"
        )
    for module, (a, b) in pairs.items():
        weight: Any = layers[module].weight
        if a[0].shape != weight[0].shape or b.shape[:2] != (len(weight), len(a)):
            raise AdapterMismatch(
                f"{module}: lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)} do not fit the weight "
                f"{tuple(weight.shape)}; {source} is of another architecture"
            )
        if getattr(layers[module], "groups", 1) != 1:
            raise AdapterMismatch(f"{module} is a grouped convolution, which takes no LoRA")
    return [(layers[module], pair) for module, pair in pairs.items()]


def insert(unet: nn.Module, name: str, lora: Mapping[str, Tensor]) -> None:
    """Add `lora` to the UNet as adapter `name`, not active and without gradients.

    Raises AdapterMismatch where a key names no layer of this UNet or a shape does not fit.
    """
    ranks = {
        key[len(PREFIX) : -len(".lora_A.weight")]: t.shape[0]
        for key, t in lora.items()
        if key.endswith("lora_A.weight")
    }
    missing = sorted(set(ranks) - set(plain_layers(unet)))
    if missing:
        raise AdapterMismatch(
            f"{missing[0]} is no layer of this UNet ({len(missing)} such keys); the adapter is of another architecture"
        )
    new_layers(unet, name, ranks)
    for module_name, layer in lora_layers(unet):
        if name not in layer.lora_A:
            continue
        for part in ("lora_A", "lora_B"):
            weight = getattr(layer, part)[name].weight
            tensor = lora[f"{PREFIX}{module_name}.{part}.weight"]
            if weight.shape != tensor.shape:
                remove(unet, name)
                raise AdapterMismatch(
                    f"{module_name}.{part} is {tuple(tensor.shape)}, this UNet takes {tuple(weight.shape)}: "
                    "the adapter is of another architecture"
                )
            weight.data.copy_(tensor)
    activate(unet, None)


def new_layers(unet: nn.Module, name: str, ranks: Mapping[str, int], scale: float = 1.0) -> None:
    """Wrap the named layers with a fresh LoRA of each one's rank (A random, B zero), in fp32, of strength `scale`."""
    any_rank = next(iter(ranks.values()))
    config = LoraConfig(
        r=any_rank,
        lora_alpha=any_rank,
        target_modules=sorted(ranks),
        rank_pattern=dict(ranks),
        alpha_pattern=dict(ranks),
        bias="none",
    )
    with making_modules:
        inject_adapter_in_model(config, unet, adapter_name=name)
    del unet.peft_config  # PEFT's own note on the model; what is in the UNet is read from its layers
    for _, layer in lora_layers(unet):
        if name in layer.lora_A:
            layer.lora_A[name].float()
            layer.lora_B[name].float()
            layer.scaling[name] = scale


def lora_layers(unet: nn.Module) -> list[tuple[str, BaseTunerLayer]]:
    """Every wrapped layer with its module name."""
    return [(n, m) for n, m in unet.named_modules() if isinstance(m, BaseTunerLayer)]


def activate(unet: nn.Module, name: str | None, *, trainable: bool = False) -> None:
    """Let exactly adapter `name`, or none, act. Unlike PEFT's, an unknown name is an error, not the bare backbone."""
    layers = [layer for _, layer in lora_layers(unet)]
    if name is not None and not any(name in layer.lora_A for layer in layers):
        raise AdapterMismatch(f"no adapter {name!r} is in this UNet; insert it first")
    for layer in layers:
        layer.set_adapter([] if name is None else [name], inference_mode=not trainable)


def compute_in_bf16(unet: nn.Module, name: str) -> None:
    """Let adapter `name`, fp32 in a UNet of bf16, compute in bf16; its parameters and their gradients stay fp32.

    PEFT would turn each layer's input to fp32 and keep that for the backward: the most of a training's memory.
    """
    for _, layer in lora_layers(unet):
        if name in layer.lora_A:
            device = layer.lora_A[name].weight.device.type
            in_bf16 = torch.autocast(device, torch.bfloat16, cache_enabled=False)
            layer.cast_input_dtype_enabled = False
            layer.forward = in_bf16(layer.forward)


@contextmanager
def running(unet: nn.Module, name: str | None) -> Iterator[None]:
    """Run with adapter `name` alone (None: the bare backbone), then with none. The caller holds the UNet's lock."""
    activate(unet, name)
    try:
        yield
    finally:
        if name is not None:
            activate(unet, None)


def read_out(unet: nn.Module, name: str) -> dict[str, Tensor]:
    """The tensors of adapter `name` as fp32 copies on the CPU, in the grammar of the module docstring.

    Its strength is folded into B.
    """
    tensors = {}
    for module_name, layer in lora_layers(unet):
        if name in layer.lora_A:
            for part, scale in (("lora_A", 1.0), ("lora_B", layer.scaling[name])):
                weight = getattr(layer, part)[name].weight
                tensors[f"{PREFIX}{module_name}.{part}.weight"] = folded(weight, scale)
    return tensors


def folded(weight: Tensor, scale: float) -> Tensor:
    """A copy of a weight times `scale`, fp32 on the CPU."""
    return weight.detach().to("cpu", torch.float32, copy=True) * scale


def remove(unet: nn.Module, name: str) -> None:
    """Take adapter `name` out; a layer that holds no other gets its plain module back, as before any adapter."""
    for module_name, layer in lora_layers(unet):
        if name in layer.lora_A:
            for part in (layer.lora_A, layer.lora_B, layer.lora_dropout):
                del part[name]
            for settings in (layer.r, layer.lora_alpha, layer.scaling):
                settings.pop(name, None)
            vars(layer).pop("forward", None)  # `compute_in_bf16`
            layer.cast_input_dtype_enabled = True
        if not layer.lora_A:
            parent, _, child = module_name.rpartition(".")
            setattr(unet.get_submodule(parent), child, layer.base_layer)
