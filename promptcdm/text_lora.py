"""A source's LoRA in the text encoders, for as long as its own words are encoded and for nobody else.

    layer(x) + strength B A x       A (r, in), B (out, r)

The encoders are shared, so nothing in them is replaced: a hook behind each adapted layer makes the sum. It makes it in
the thread that asked alone; whoever encodes in another thread at the same time gets the plain encoder.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from promptcdm.errors import AdapterMismatch
from promptcdm.lora import plain_layers
from promptcdm.lora_format import lora_modules
from promptcdm.text_names import text_name


@dataclass(frozen=True, eq=False)
class TextLora:
    """The text-encoder part of a source's LoRA."""

    source: str
    tensors: Mapping[str, Tensor]  # the keys of lora_format that begin with text_encoder
    strength: float = 1.0


def text_layers(encoders: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The linear layers that a LoRA may adapt, by their names in our files."""
    return {
        text_name(encoder, module): layer
        for encoder, model in encoders.items()
        for module, layer in plain_layers(model).items()
    }


def fitted(
    encoders: Mapping[str, nn.Module], lora: TextLora
) -> list[tuple[nn.Module, tuple[Tensor, Tensor]]]:
    """Each adapted layer with its A and B. Raises AdapterMismatch where one is missing or of another shape."""
    layers, found = text_layers(encoders), []
    for name, (a, b) in lora_modules(lora.tensors).items():
        if name not in layers:
            raise AdapterMismatch(
                f"{name} is no layer of this backbone's text encoders; {lora.source} is of another architecture"
            )
        weight: Any = layers[name].weight
        if (b.shape[0], *a.shape[1:]) != tuple(weight.shape):
            raise AdapterMismatch(
                f"{name}: lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)} do not fit the weight "
                f"{tuple(weight.shape)}; {lora.source} is of another architecture"
            )
        found.append((layers[name], (a, b)))
    return found


@contextmanager
def acting(encoders: Mapping[str, nn.Module], lora: TextLora | None) -> Iterator[None]:
    """Let `lora` act in the text encoders, for this thread and until the end of the block."""
    handles = []
    try:
        if lora is not None:
            for layer, (a, b) in fitted(encoders, lora):
                handles.append(layer.register_forward_hook(_adding(a, b, lora.strength)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(
    a: Tensor, b: Tensor, strength: float
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    mine = threading.get_ident()

    def add(_layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if threading.get_ident() != mine:
            return output
        return output + strength * F.linear(F.linear(args[0], a.to(output)), b.to(output))

    return add
