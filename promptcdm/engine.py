"""The row engine: one UNet forward serves rows of many sources, both guidance branches and several pictures.

    row       (latent, timestep, text embedding, LoRA or none); rows know nothing of one another
    predict   rows -> the UNet's prediction of each, whatever else is in the forward

One engine owns a UNet. Views submit rows from any thread. With `bucket` = 0 each submission runs as it is, one after
the other. With a bucket, rows that wait together share a forward, always filled up to exactly `bucket` rows: the shape
never changes, so neither do the bits of a row, whatever the others hold, and nothing is compiled anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from promptcdm.cached_forward import DeepFeatures, shallow_forward, shallow_share
from promptcdm.errors import BadInput, PromptCDMError
from promptcdm.slots import SlotLora, Slots
from promptcdm.text_memory import TextLayers, TextMemory

FIXED_RANK = 16  # of an engine with a bucket, where no other is asked for


@dataclass(frozen=True)
class Rows:
    """R rows of UNet calls."""

    x_t: Tensor  # (R, C, h, w)
    t: Tensor  # (R,) timesteps, which need not be whole or equal
    embeds: Tensor  # (R, L, D)
    loras: tuple[SlotLora | None, ...]  # R of them; None: the bare backbone
    added: Mapping[str, Tensor] = field(default_factory=dict)  # added_cond_kwargs, (R, ...) each
    given: Mapping[str, Any] = field(
        default_factory=dict
    )  # further arguments; a tensor of length R is by row
    deep: Tensor | None = None  # (R, C', h', w') cached deep features: only the shallow layers run
    names: tuple[Hashable, ...] = ()  # R names by which `memory` knows the rows' texts
    memory: TextMemory | None = None  # of their run; not used in a bucket, whose rows are of many runs

    def __len__(self) -> int:
        return len(self.x_t)

    def take(self, index: Sequence[int]) -> Rows:
        """The rows of these numbers."""
        i = torch.as_tensor(index, device=self.x_t.device)
        loras = tuple(self.loras[n] for n in index)
        names = tuple(self.names[n] for n in index) if self.names else ()
        parts = {name: take_rows(getattr(self, name), i, len(self)) for name in _PARTS}
        return Rows(loras=loras, names=names, memory=self.memory, **parts)


_PARTS = ("x_t", "t", "embeds", "added", "given", "deep")  # of Rows, what holds tensors


def take_rows(value: Any, index: Tensor, count: int) -> Any:
    """`value` with every tensor of length `count` in it reduced to the rows `index`."""
    return _by_row(value, count, lambda tensor: tensor[index])


def _by_row(value: Any, count: int, change: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor of length `count` in it changed; what is not by row stays."""
    if isinstance(value, Tensor):
        return change(value) if value.ndim and len(value) == count else value
    if isinstance(value, (list, tuple)):
        return type(value)(_by_row(part, count, change) for part in value)
    if isinstance(value, Mapping):
        return {key: _by_row(part, count, change) for key, part in value.items()}
    return value


@dataclass(eq=False)
class _Job:
    rows: Rows
    keep_deep: bool
    eps: list[Tensor] = field(default_factory=list)
    deep: list[Tensor] = field(default_factory=list)
    done: bool = False


class Engine:
    """Owns `unet`; `lock` is held by whoever runs it.

    `slots` adapters stay at hand (one slot is the backbone's). `bucket` rows a forward, 0 for as many as are submitted.
    `rank` is the largest LoRA rank that comes, 0 for whatever comes; a bucket fixes it, 16 if not said. `targets` names
    the layers that LoRAs adapt, which a compiled UNet must know beforehand.
    """

    def __init__(
        self, unet: Any, *, slots: int = 33, bucket: int = 0, rank: int = 0, targets: Sequence[str] = ()
    ) -> None:
        if bucket < 0:
            raise BadInput(f"bucket is {bucket}; it takes 0 (rows as they come) or a number of rows")
        self.unet, self.bucket, self.targets = unet, bucket, tuple(targets)
        # The rank is part of the shape: the same adapter in a wider stack has other last bits.
        self.slots = Slots(unet, slots, rank or (FIXED_RANK if bucket else 0), targets)
        self.lock = threading.RLock()
        self.forwards = 0  # UNet forwards so far
        self._waiting: list[_Job] = []
        self._adding = threading.Lock()
        self._shares: dict[tuple[int, ...], float] = {}
        self._deep: DeepFeatures | None = None  # hooks on the UNet, from the first use on
        self._texts: TextLayers | None = None
        self._full: Callable[..., Any] = unet
        self._shallow: Callable[..., Tensor] = partial(shallow_forward, unet)

    def compile(self, **options: Any) -> None:
        """Compile both forwards, full and shallow, with `torch.compile(**options)`: for CUDA graphs, `mode=
        "reduce-overhead"`. Needs a bucket, `rank` and `targets`: nothing that comes later changes a shape, and nothing
        is compiled anew.
        """
        if not self.bucket or not self.targets:
            raise BadInput("a compiled engine needs fixed shapes: give it bucket, rank and targets")
        self._deep = self._deep or DeepFeatures(self.unet)  # a hook that comes later would not be seen
        self.slots.pin()
        self._full = torch.compile(self.unet, **options)
        self._shallow = torch.compile(partial(shallow_forward, self.unet), **options)

    def predict(self, rows: Rows, *, keep_deep: bool = False) -> tuple[Tensor, Tensor | None]:
        """Predictions (R, C, h, w), and with `keep_deep` the deep features that a later shallow pass takes.

        Raises AdapterMismatch where a row's LoRA does not fit the UNet.
        """
        job = _Job(rows, keep_deep)
        if self.bucket:
            with self._adding:
                self._waiting.append(job)
        with self.lock:
            if (
                self.bucket and not job.done
            ):  # the first to come runs what has gathered; the others find theirs done
                with self._adding:
                    gathered, self._waiting = self._waiting, []
                self._run_gathered(gathered)
            if not job.done:  # no bucket, or its group failed for its rows or another's: alone, it tells
                self._run([job])
        return torch.cat(job.eps), torch.cat(job.deep) if keep_deep else None

    def admit(self, lora: SlotLora) -> None:
        """Put an adapter into a slot now. Raises AdapterMismatch where it does not fit the UNet."""
        with self.lock:
            self.slots.place([lora])

    def evict(self, loras: Sequence[SlotLora]) -> None:
        """Zero the slots of these adapters."""
        with self.lock:
            self.slots.evict(loras)

    def shallow_share(self, rows: Rows) -> float:
        """FLOPs of a row with cached features over those of a full row, for the shapes of `rows`; counted once."""
        shape = tuple(rows.x_t.shape[1:])
        if shape not in self._shares:
            one = rows.take([0])
            with self.lock:
                self._shares[shape] = shallow_share(
                    self.unet, {"x_t": one.x_t, "deep": one.deep, **unet_arguments(one)}
                )
        return self._shares[shape]

    def _run_gathered(self, jobs: list[_Job]) -> None:
        """Each group in one forward. A group that fails is left undone: its threads run their own rows alone."""
        for together in self._groups(jobs):
            with suppress(PromptCDMError, RuntimeError, TypeError, ValueError):
                self._run(together)

    def _groups(self, jobs: list[_Job]) -> list[list[_Job]]:
        """Jobs whose rows can stand in one tensor."""
        groups: dict[Any, list[_Job]] = {}
        for job in jobs:
            groups.setdefault((job.keep_deep, _signature(job.rows)), []).append(job)
        return list(groups.values())

    @torch.no_grad()
    def _run(self, jobs: list[_Job]) -> None:
        rows = jobs[0].rows if len(jobs) == 1 else _joined([job.rows for job in jobs])
        owners = [job for job in jobs for _ in range(len(job.rows))]
        for job in jobs:
            job.eps, job.deep = [], []
        for chunk in self._chunks(rows):
            part = rows if len(chunk) == len(rows) else rows.take(chunk)
            eps, deep = self._forward(part, jobs[0].keep_deep)
            start = 0
            while start < len(chunk):  # hand each job the run of rows that is its own
                owner, stop = owners[chunk[start]], start
                while stop < len(chunk) and owners[chunk[stop]] is owner:
                    stop += 1
                owner.eps.append(eps[start:stop])
                if deep is not None:
                    owner.deep.append(deep[start:stop])
                start = stop
        for job in jobs:
            job.done = True

    def _chunks(self, rows: Rows) -> list[list[int]]:
        """Row numbers, in order, a forward at a time: no more rows than the bucket, no more adapters than slots."""
        chunks: list[list[int]] = []
        held: set[tuple[int, float]] = set()
        for n, lora in enumerate(rows.loras):
            new = {lora.key} - held if lora is not None else set()
            full = bool(chunks) and self.bucket and len(chunks[-1]) == self.bucket
            if not chunks or full or len(held) + len(new) >= self.slots.count:
                chunks.append([])
                held = set()
                new = {lora.key} if lora is not None else set()
            chunks[-1].append(n)
            held |= new
        return chunks

    def _forward(self, rows: Rows, keep_deep: bool) -> tuple[Tensor, Tensor | None]:
        count = len(rows)
        placed = self.slots.place([lora for lora in rows.loras if lora is not None])
        slots = [0 if lora is None else placed[lora.key] for lora in rows.loras]
        if self.bucket:
            rows, slots = _padded(rows, self.bucket), slots + [0] * (self.bucket - count)
        self.forwards += 1
        call = unet_arguments(rows)
        # The bare backbone alone is the stock UNet to the bit; a fixed shape runs the slots always.
        slot_of_row = self.slots.index(slots, rows.x_t.device) if any(slots) or self.bucket else None
        with ExitStack() as acting:
            acting.enter_context(self.slots.acting(slot_of_row))
            if rows.memory is not None and not self.bucket:
                self._texts = self._texts or TextLayers(self.unet)
                acting.enter_context(self._texts.acting(rows.names, rows.memory))
            if rows.deep is not None:
                return self._own(self._shallow(rows.x_t, rows.deep, **call)[:count]), None
            if not keep_deep:
                (eps,) = self._full(rows.x_t, return_dict=False, **call)
                return self._own(eps[:count]), None
            self._deep = self._deep or DeepFeatures(self.unet)
            with self._deep.keeping(True):
                (eps,) = self._full(rows.x_t, return_dict=False, **call)
            return self._own(eps[:count]), self._own(self._deep.take()[:count])

    def _own(self, made: Tensor) -> Tensor:
        """A CUDA graph writes its next output over this one: what leaves a compiled forward is copied."""
        return made if self._full is self.unet else made.clone()


def unet_arguments(rows: Rows) -> dict[str, Any]:
    """The UNet's arguments behind the latents."""
    return {
        "timestep": rows.t,
        "encoder_hidden_states": rows.embeds,
        "added_cond_kwargs": dict(rows.added) or None,
        **rows.given,
    }


def _signature(rows: Rows) -> Any:
    """What must be equal for rows to stand in one tensor."""

    def of(value: Any) -> Any:
        if isinstance(value, Tensor):
            by_row = value.ndim and len(value) == len(rows)
            return (tuple(value.shape[1:]), value.dtype) if by_row else ("shared", id(value))
        if isinstance(value, (list, tuple)):
            return tuple(map(of, value))
        if isinstance(value, Mapping):
            return tuple((key, of(part)) for key, part in sorted(value.items()))
        return value if value is None or isinstance(value, (bool, int, float, str)) else id(value)

    return of([rows.x_t, rows.embeds, rows.added, rows.given, rows.deep])


def _joined(parts: list[Rows]) -> Rows:
    def join(values: list[Any], counts: list[int]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            by_row = first.ndim and len(first) == counts[0]
            return torch.cat(values) if by_row else first
        if isinstance(first, (list, tuple)):
            return type(first)(join(list(column), counts) for column in zip(*values, strict=True))
        if isinstance(first, Mapping):
            return {key: join([value[key] for value in values], counts) for key in first}
        return first

    counts = [len(part) for part in parts]
    joined = {name: join([getattr(part, name) for part in parts], counts) for name in _PARTS}
    return Rows(loras=tuple(lora for part in parts for lora in part.loras), **joined)


def _padded(rows: Rows, count: int) -> Rows:
    """Rows of zeros at the end, in slot 0, up to `count`."""
    more = count - len(rows)

    def pad(tensor: Tensor) -> Tensor:
        return torch.cat([tensor, tensor.new_zeros(more, *tensor.shape[1:])])

    padded = {name: _by_row(getattr(rows, name), len(rows), pad) for name in _PARTS}
    return Rows(loras=rows.loras + (None,) * more, **padded)
