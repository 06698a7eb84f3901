"""A source's LoRA in the text encoders, for as long as its own words are encoded and for nobody else.

    layer(x) + strength B A x       A (r, in), B (out, r)

The encoders are shared, so nothing in them is replaced: a hook behind each adapted layer makes the sum. It makes it in
the thread that asked alone; whoever encodes in another thread at the same time gets the plain encoder.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from promptcdm.lora import fitted, plain_layers
from promptcdm.lora_format import lora_modules
from promptcdm.text_names import TEXT_ENCODERS, text_name

Pairs = Sequence[tuple[nn.Module, tuple[Tensor, Tensor]]]  # layers with their A and B
_ATTENTION = (".q_proj", ".k_proj", ".v_proj", ".out_proj")
_WIDE = (*_ATTENTION, ".fc1", ".fc2")


@dataclass(frozen=True, eq=False)
class TextLora:
    """The text-encoder part of a source's LoRA."""

    source: str
    tensors: Mapping[str, Tensor]  # the keys of lora_format that begin with text_encoder
    strength: float = 1.0

    def pairs(self, encoders: Mapping[str, nn.Module]) -> Pairs:
        """Its layers. Raises AdapterMismatch where one is missing or of another shape."""
        layers, modules = text_layers(encoders), lora_modules(self.tensors)
        return fitted(layers, modules, self.source, "this backbone's text encoders")


@dataclass(frozen=True, eq=False)
class LearningTextLora:
    """One in training: its layers are at hand, and its tensors are parameters."""

    layers: Pairs
    strength: float

    def pairs(self, encoders: Mapping[str, nn.Module]) -> Pairs:
        """Its layers."""
        return self.layers


def text_layers(encoders: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The linear layers that a LoRA may adapt, by their names in our files."""
    return {
        text_name(encoder, module): layer
        for encoder, model in encoders.items()
        for module, layer in plain_layers(model).items()
    }


def text_target_layers(encoders: Mapping[str, nn.Module], targets: str) -> dict[str, nn.Module]:
    """The layers that a training with `targets` adapts: of the attention or, with all others, feed-forward too.

    Where there are two encoders (SDXL) the pipelines read of the first one the last state but one: its last block does
    nothing, and cannot learn.
    """
    layers = text_layers(encoders)
    suffixes = _ATTENTION if targets == "attention" else _WIDE
    chosen = {name: layer for name, layer in layers.items() if name.endswith(suffixes)}
    first, second = TEXT_ENCODERS
    if second in encoders:
        blocks = f"{first}.text_model.encoder.layers."
        last = max(int(name[len(blocks) :].partition(".")[0]) for name in chosen if name.startswith(blocks))
        chosen = {name: layer for name, layer in chosen.items() if not name.startswith(f"{blocks}{last}.")}
    return chosen


@contextmanager
def acting(encoders: Mapping[str, nn.Module], lora: TextLora | LearningTextLora | None) -> Iterator[None]:
    """Let `lora` act in the text encoders, for this thread and until the end of the block."""
    handles = []
    try:
        if lora is not None:
            for layer, (a, b) in lora.pairs(encoders):
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
