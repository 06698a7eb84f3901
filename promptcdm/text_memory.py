"""Cross-attention's keys and values: W_k c and W_v c see neither x_t nor t, so a run makes them once.

    R   rows        L   tokens of a text        C   width of a layer's keys

A row's are those of its text under its adapter. They are taken behind the LoRA slots, kept by row and handed out at the
later calls of the run, in which `to_k` and `to_v` are given no token to work on. Nothing is approximated.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

# Of a run. A row's keys and values are 4 MB for Stable Diffusion 1.5 in half precision and 27 MB for XL.
MOST_ROWS = 32

ByLayer = dict[nn.Module, Tensor]  # (R, L, C) of each layer


@dataclass(eq=False)
class TextMemory:
    """What one run keeps. A row is known by a name: its source and its place in the pipeline's call."""

    embeds: Tensor | None = None  # what the rows read, as the pipeline handed it over
    _place: dict[Hashable, int] = field(default_factory=dict)  # row -> its place in the stacks
    _stacks: ByLayer = field(default_factory=dict)
    _last: tuple[tuple[Hashable, ...], ByLayer] | None = None  # most calls have the rows of the one before

    def of(self, embeds: Tensor) -> TextMemory:
        """This memory, emptied if the pipeline's embeddings are no longer those that it was made from."""
        if self.embeds is None or self.embeds.shape != embeds.shape or not torch.equal(self.embeds, embeds):
            self.embeds, self._last = embeds.clone(), None
            self._place.clear()
            self._stacks.clear()
        return self

    def take(self, rows: Sequence[Hashable]) -> ByLayer | None:
        """Keys and values of these rows, or None where one of them is not known."""
        if not all(row in self._place for row in rows):
            return None
        if self._last is None or self._last[0] != tuple(rows):
            self._last = tuple(rows), self._gathered([self._place[row] for row in rows])
        return self._last[1]

    def keep(self, rows: Sequence[Hashable], made: ByLayer) -> None:
        """Keep those of the rows that are new, as long as there is room for all of them."""
        new = [n for n, row in enumerate(rows) if row not in self._place]
        if not made or len(self._place) + len(new) > MOST_ROWS:
            return
        for layer, stack in made.items():
            part = stack[new]
            known = self._stacks.get(layer)
            self._stacks[layer] = part if known is None else torch.cat([known, part])
        self._place.update({rows[n]: len(self._place) + place for place, n in enumerate(new)})

    def _gathered(self, places: list[int]) -> ByLayer:
        if places == list(range(len(self._place))):
            return dict(self._stacks)
        return {layer: stack[places] for layer, stack in self._stacks.items()}


class TextLayers:
    """Hooks on a UNet's `to_k` and `to_v` of cross-attention, idle but in `acting`."""

    def __init__(self, unet: nn.Module) -> None:
        self.layers = text_layers(unet)
        self._given: ByLayer | None = None
        self._made: ByLayer | None = None
        for layer in self.layers:
            layer.register_forward_pre_hook(self._before)
            layer.register_forward_hook(self._behind)  # the slots' hooks come first: they are prepended

    @contextmanager
    def acting(self, rows: Sequence[Hashable], memory: TextMemory) -> Iterator[None]:
        """Hand out what `memory` has of these rows in the forward inside, or keep there what it makes."""
        self._given = memory.take(rows)
        self._made = {} if self._given is None else None
        try:
            yield
            if self._made is not None:
                memory.keep(rows, self._made)
        finally:
            self._given = self._made = None

    def _before(self, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...] | None:
        if self._given is None or layer not in self._given:
            return None
        return args[0][:, :0], *args[1:]

    def _behind(self, layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._given is not None:
            return self._given.get(layer)
        if self._made is not None:
            self._made[layer] = output
        return None


def text_layers(unet: Any) -> list[nn.Module]:
    """The layers that read the text alone, and nothing of x_t; none where the UNet mixes pictures into its text."""
    if unet.config.get("encoder_hid_dim_type") not in (None, "text_proj", "ip_image_proj"):
        return []
    crossed = [m for m in unet.modules() if getattr(m, "is_cross_attention", False)]
    return [layer for m in crossed for layer in (m.to_k, m.to_v) if layer is not None]
