"""LoRA slots: the adapters that are at hand, stacked, so that one forward serves rows of different adapters.

    base(x) + B[s] A[s] x       s = slot of the row;  slot 0 is all zero: the bare backbone

    A   (S, r, in)  of a linear layer, (S, r, in * kh * kw) of a convolution        S slots of rank r
    B   (S, out, r)

An adapter of a lower rank is padded with zeros, which is exact. The backbone's own weights are never touched: the sum
is made by a hook behind each adapted layer, and only while `acting` says which row is in which slot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptcdm.errors import BadInput
from promptcdm.lora import PREFIX, fitted, plain_layers

INDICES = 64  # combinations of rows that are remembered


@dataclass(frozen=True, eq=False)
class SlotLora:
    """A source's LoRA as a slot takes it."""

    source: str
    tensors: Mapping[str, Tensor]  # keys of lora.py
    strength: float = 1.0

    @property
    def key(self) -> tuple[int, float]:
        """Equal for the very same tensors at the same strength: never by a name or a digest that somebody wrote."""
        return id(self.tensors), self.strength


class _Layer:
    """The stacks of one layer and the hook that adds them."""

    def __init__(self, layer: Any, slots: Slots, count: int, rank: int) -> None:
        weight: Tensor = layer.weight
        self.layer, self.slots = layer, slots
        self.a = weight.new_zeros(count, rank, weight[0].numel())
        self.b = weight.new_zeros(count, len(weight), rank)
        self.gathered: tuple[Tensor, Tensor, Tensor] | None = None  # slots of the rows, and their A and B
        self.handle = layer.register_forward_hook(self.add, prepend=True)  # before who keeps what it makes

    def add(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """base(x) + B[s] A[s] x, for x (R, T, in), (R, in) or (R, in, h, w)."""
        slot = self.slots.slot_of_row
        if slot is None or not output.numel():
            return None
        x = args[0]
        rows = slot.shape[0]
        if x.shape[0] != rows:
            raise BadInput(
                f"a layer was handed {x.shape[0]} rows where the UNet was handed {rows}; "
                "switch off forward chunking, it splits the rows"
            )
        a, b = self._of_rows(slot, output)
        if isinstance(layer, nn.Conv2d):
            patches = _patches(x, layer)  # (R, in * kh * kw, T)
            return torch.baddbmm(output.flatten(2), b, torch.bmm(a, patches)).view_as(output)
        # (R, r, T): with the few rows of A first, this product takes half the time of x A^T on a CPU.
        h = torch.bmm(a, (x if x.ndim == 3 else x.reshape(rows, -1, x.shape[-1])).mT)
        # In place: the layer has just made its output, and nobody else holds it.
        (output if output.ndim == 3 else output.view(rows, -1, output.shape[-1])).baddbmm_(h.mT, b.mT)
        return output

    def _of_rows(self, slot: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's A and B. The rows of a run are in the same slots for many calls: they are gathered once."""
        if torch.compiler.is_compiling():  # the stacks and the slots are inputs of the graph
            return self.a[slot], self.b[slot]
        held = self.gathered
        if (
            held is None
            or held[0] is not slot
            or held[1].dtype != like.dtype
            or held[1].device != like.device
        ):
            self.to(like)
            held = self.gathered = slot, self.a[slot], self.b[slot]
        return held[1], held[2]

    def to(self, like: Tensor) -> None:
        """Follow the UNet, which the pipeline may have moved."""
        if self.a.device != like.device or self.a.dtype != like.dtype:
            self.a, self.b = self.a.to(like), self.b.to(like)
            self.gathered = None


class Slots:
    """A pool of fixed size, least recently used first out; a slot is zeroed before it is used again.

    The stacks' rank grows with the adapters that come, unless `rank` fixes it; `targets` (names of layers) are stacked
    from the start, as a compiled UNet needs.
    """

    def __init__(self, unet: nn.Module, count: int, rank: int = 0, targets: Sequence[str] = ()) -> None:
        if count < 2:
            raise BadInput(f"slots is {count}; it takes 2 or more: slot 0 is the bare backbone")
        self.unet, self.count, self.rank, self.fixed = unet, count, rank, rank > 0
        self.slot_of_row: Tensor | None = None  # (R,) while rows are being run
        self._layers: dict[str, _Layer] = {}
        self._indices: dict[tuple[object, ...], Tensor] = {}
        self._held: dict[int, SlotLora] = {}  # slot -> adapter, least recently used first
        for name in targets:
            self._layers[name] = _Layer(plain_layers(unet)[name], self, count, max(rank, 1))

    def place(self, loras: Sequence[SlotLora]) -> dict[tuple[int, float], int]:
        """Slot by key, after filling slots where needed. None of `loras` pushes another of them out.

        Raises AdapterMismatch where one does not fit this UNet; the slots are then as they were.
        """
        wanted = {lora.key: lora for lora in loras}
        if len(wanted) >= self.count:
            raise BadInput(
                f"{len(wanted)} adapters at once, {self.count - 1} slots; make the engine with more slots"
            )
        placed = {lora.key: slot for slot, lora in self._held.items()}
        for key, lora in wanted.items():
            if key not in placed:
                self._check(lora)
                slot = self._free_slot(set(wanted))
                self._fill(slot, lora)
                placed[key] = slot
            self._held[placed[key]] = self._held.pop(placed[key])  # most recently used
        return {key: placed[key] for key in wanted}

    def index(self, slots: Sequence[int], device: torch.device) -> Tensor:
        """Slots of the rows as a tensor, (R,): the same one for as long as nothing in the slots changes."""
        key = (*slots, device)
        if key not in self._indices:
            if len(self._indices) >= INDICES:
                self._indices.clear()
            self._indices[key] = torch.tensor(list(slots), device=device)
        return self._indices[key]

    @contextmanager
    def acting(self, slot_of_row: Tensor | None) -> Iterator[None]:
        """Let the rows of the UNet calls inside be in these slots, (R,); None: all rows are the bare backbone."""
        self.slot_of_row = slot_of_row
        try:
            yield
        finally:
            self.slot_of_row = None

    def pin(self) -> None:
        """Keep the stacks where they are in memory, so that a CUDA graph reads them in place."""
        for layer in self._layers.values():
            layer.to(layer.layer.weight)
            torch._dynamo.mark_static_address(layer.a)
            torch._dynamo.mark_static_address(layer.b)

    def sources(self) -> list[str]:
        """Sources that are in a slot, least recently used first."""
        return [lora.source for lora in self._held.values()]

    def evict(self, loras: Sequence[SlotLora]) -> None:
        """Zero the slots of these adapters, if they are in any."""
        keys = {lora.key for lora in loras}
        for slot in [s for s, held in self._held.items() if held.key in keys]:
            self._zero(slot)

    def close(self) -> None:
        """Take the hooks off the UNet and let go of every adapter."""
        for layer in self._layers.values():
            layer.handle.remove()
        self._layers.clear()
        self._held.clear()

    def _free_slot(self, wanted: set[tuple[int, float]]) -> int:
        free = next((s for s in range(1, self.count) if s not in self._held), None)
        if free is None:
            free = next(s for s, lora in self._held.items() if lora.key not in wanted)
            self._zero(free)
        return free

    def _zero(self, slot: int) -> None:
        self._changed()
        del self._held[slot]
        for layer in self._layers.values():
            layer.a[slot].zero_()
            layer.b[slot].zero_()

    def _changed(self) -> None:
        self._indices.clear()
        for layer in self._layers.values():
            layer.gathered = None

    def _fill(self, slot: int, lora: SlotLora) -> None:
        self._changed()
        for module, (a, b) in _pairs(lora).items():
            if len(a) > self.rank:
                self._widen(len(a))
            if module not in self._layers:
                layer = plain_layers(self.unet)[module]
                self._layers[module] = _Layer(layer, self, self.count, self.rank)
            stacks = self._layers[module]
            stacks.a[slot, : len(a)] = a.flatten(1).to(stacks.a)
            stacks.b[slot, :, : len(a)] = (b.flatten(1) * lora.strength).to(stacks.b)
        self._held[slot] = lora

    def _widen(self, rank: int) -> None:
        for layer in self._layers.values():
            layer.a = F.pad(layer.a, (0, 0, 0, rank - layer.a.shape[1]))
            layer.b = F.pad(layer.b, (0, rank - layer.b.shape[2]))
        self.rank = rank

    def _check(self, lora: SlotLora) -> None:
        pairs = _pairs(lora)
        fitted(plain_layers(self.unet), pairs, lora.source, "this UNet")
        rank = max((len(a) for a, _ in pairs.values()), default=0)
        if self.fixed and rank > self.rank:
            raise BadInput(
                f"{lora.source} has rank {rank}, this engine is fixed to rank {self.rank}; give it a larger one"
            )


def _pairs(lora: SlotLora) -> dict[str, tuple[Tensor, Tensor]]:
    suffix = ".lora_A.weight"
    names = [key[len(PREFIX) : -len(suffix)] for key in lora.tensors if key.endswith(suffix)]
    return {
        n: (lora.tensors[f"{PREFIX}{n}.lora_A.weight"], lora.tensors[f"{PREFIX}{n}.lora_B.weight"])
        for n in names
    }


def _patches(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """What each place of the output sees, (R, in * kh * kw, T)."""
    if layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding == (0, 0):
        return x.flatten(2)
    padding: Any = layer.padding
    return F.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)
