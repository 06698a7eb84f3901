"""LoRA tensors in the grammar of this package, and in the one that every other tool reads.

    ours     unet.<P>.lora_A.weight   (r, in[, kh, kw])      PEFT inside diffusers; W += B A, no alpha
             unet.<P>.lora_B.weight   (out, r[, 1, 1])
    kohya    lora_unet_<P with "." as "_">.lora_down.weight, .lora_up.weight, .alpha (0-d)

<P> is the module's name in diffusers' UNet. alpha = r in what is written, so that every reader, whether it
knows alpha or not, applies the same strength.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from promptcdm.errors import AdapterMismatch

PREFIX = "unet."
_KEY = re.compile(r"unet\.([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\.lora_([AB])\.weight")


def lora_modules(lora: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Module name -> (A, B), sorted. Raises AdapterMismatch unless keys, shapes and values are sound."""
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in lora.items():
        match = _KEY.fullmatch(key)
        if match is None:
            raise AdapterMismatch(
                f"LoRA key {key[:200]!a} is not unet.<module>.lora_A.weight or .lora_B.weight"
            )
        halves.setdefault(match[1], {})[match[2]] = tensor
    pairs = {}
    for module, half in sorted(halves.items()):
        if len(half) != 2:
            raise AdapterMismatch(f"LoRA of {module} has lora_{next(iter(half))} without its other half")
        _check_pair(module, half["A"], half["B"])
        pairs[module] = (half["A"], half["B"])
    return pairs


def to_kohya(lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same LoRA under kohya's keys, alpha = r. Raises AdapterMismatch where two modules get one name."""
    tensors: dict[str, Tensor] = {}
    for module, (a, b) in lora_modules(lora).items():
        base = f"lora_unet_{module.replace('.', '_')}"
        if f"{base}.alpha" in tensors:
            raise AdapterMismatch(f"two modules would be {base} in kohya's naming; one is {module}")
        tensors[f"{base}.lora_down.weight"] = a
        tensors[f"{base}.lora_up.weight"] = b
        tensors[f"{base}.alpha"] = torch.tensor(float(a.shape[0]), dtype=a.dtype)
    return tensors


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
