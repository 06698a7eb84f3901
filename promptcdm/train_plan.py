"""What a training would take, from a few steps of it: nothing is written, and nothing of them is kept.

Time and memory are measured, not computed from tables: two real steps on the very device, of the most frequent size of
picture. Arithmetic is counted by torch's FLOP counter over matrix products, convolutions and attention, forward and
backward, with a multiplication and its addition as two.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from promptcdm.activations import Activations
from promptcdm.backbone import Backbone
from promptcdm.batch import draw_batch, weighted_errors
from promptcdm.buckets import Size, share_cut
from promptcdm.encoded_source import EncodedSource, encode_source, held_out_items, picture_sizes
from promptcdm.errors import BadInput
from promptcdm.held_out import TIMESTEPS
from promptcdm.learned import Parameters, checkpointing, new_optimizer, own_words, trainable
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.train import add_gradients, check_settings, checkpoints, memory_is_told
from promptcdm.train_slices import steps_of

if sys.platform != "win32":
    import resource

_ENCODED = 4  # pictures that are encoded to see how long one takes
_PATIENCE = 30.0  # seconds: a first step that took longer is the measurement
_NEARLY_ALL = 0.9  # of the memory


@dataclass(frozen=True)
class TrainPlan:
    """What was counted and measured. Bytes, seconds, TFLOP = 1e12 operations."""

    source: str
    pictures: int
    held_out: int  # of these
    sizes: tuple[tuple[Size, int], ...]  # pictures of each size
    cut: float  # mean share of a picture that the crop takes away
    enlarged: int  # pictures that are smaller than their size
    steps: int
    rows: int  # of a step
    parameters: int  # numbers that are learned, each in four bytes
    tflop: float  # in all
    seconds: float  # in all
    step_seconds: float
    device: str
    memory: int  # at most, of the device; 0 where this system does not say
    memory_there: int  # 0 where this system does not say
    latents: int  # main memory that all encoded pictures take
    checkpointing: bool  # whether activations are computed again
    activations: Activations  # that decided it; nothing where a setting did
    captions_kept: bool  # encoded once; text encoders that learn read them at each step

    def text(self) -> str:
        """For people, several lines."""
        seen = self.steps * self.rows / max(1, self.pictures - self.held_out)
        sizes = ", ".join(f"{size.width}x{size.height} ({count})" for size, count in self.sizes)
        lines = [
            f"{self.source}: {self.pictures} pictures" + f", {self.held_out} held out" * (self.held_out > 0),
            f"sizes:  {sizes}; {self.cut:.0%} of a picture is cut off, {self.enlarged} are enlarged",
            f"steps:  {self.steps} of {self.rows} pictures, each seen {seen:.{0 if seen >= 10 else 1}f} times",
            f"learns: {self.parameters} numbers, {_bytes(4 * self.parameters)}",
            f"work:   {self.tflop:.3g} TFLOP",
            f"memory: {self._memory()}; {_bytes(self.latents)} of latents in main memory",
            f"keeps:  {self._kept()}",
            f"time:   about {duration(self.seconds)}, {self.step_seconds:.3g} s a step",
        ]
        return "\n".join(lines)

    def _kept(self) -> str:
        found = self.activations
        why = f" ({_bytes(found.needed)} of {_bytes(found.free)} free)" if found.free else ""
        activations = "activations are computed again" if self.checkpointing else "activations"
        captions = "encoded captions" if self.captions_kept else "captions are encoded anew at each step"
        return f"{activations}{why}; {captions}"

    def _memory(self) -> str:
        if not self.memory:
            return f"not known on {self.device}"
        there = f" of {_bytes(self.memory_there)}" if self.memory_there else ""
        close = self.memory_there and self.memory > _NEARLY_ALL * self.memory_there
        advice = ", which is nearly all: consider gradient_checkpointing=on" if close else ""
        return f"{_bytes(self.memory)}{there} on {self.device}{advice}"


def plan_training(source: Source, backbone: Backbone, settings: TrainSettings = TrainSettings()) -> TrainPlan:
    """Count and measure what training `source` would take. The backbone is left as it was, bit for bit.

    Raises BadInput for settings out of range, RunFailed where not even one step fits into the memory.
    """
    own = replace(settings, slices=1)
    check_settings(own)
    if settings.kind == "none":
        raise BadInput("kind is none: nothing is learned, so there is nothing to measure; train it as it is")
    with backbone.lock, memory_is_told(backbone):
        sizes, out = picture_sizes(source, backbone, own), held_out_items(source, own)
        often = max(sizes.values(), key=len)
        rows = [i for i in often if i not in out] or [i for i in range(len(source)) if i not in out]
        if not rows:
            raise BadInput(
                f"held_out is {settings.held_out}: no picture of {source.name} is left to train on"
            )
        probe = _probe(source, backbone, own, rows[:_ENCODED])
    views, steps = 2 if settings.flip else 1, steps_of(source, settings)
    trained = steps * settings.rows
    measured = len(out) * TIMESTEPS * -(-settings.steps // settings.held_out_every)
    work = trained * probe.row_flop + measured * probe.forward_flop
    items = [(source.items[i], size) for size, members in sizes.items() for i in members]
    row_seconds = probe.step_seconds / settings.rows
    return TrainPlan(
        source=source.name,
        pictures=len(source),
        held_out=len(out),
        sizes=tuple((size, len(members)) for size, members in sizes.items()),
        cut=sum(share_cut(item.width, item.height, size) for item, size in items) / len(items),
        enlarged=sum(item.width < size.width or item.height < size.height for item, size in items),
        steps=steps,
        rows=settings.rows,
        parameters=probe.parameters,
        tflop=(work + len(items) * views * probe.view_flop) / 1e12,
        seconds=len(items) * views * probe.view_seconds + work / probe.row_flop * row_seconds,
        step_seconds=probe.step_seconds,
        device=str(backbone.device),
        memory=probe.memory,
        memory_there=_memory_there(backbone.device),
        latents=len(items) * views * probe.view_bytes,
        checkpointing=probe.checkpointing,
        activations=probe.activations,
        captions_kept=not (settings.train_text_encoder or "prompt" in settings.kind),
    )


@dataclass(frozen=True)
class _Probe:
    """A view is a picture, or a picture mirrored; a row is one of a batch."""

    view_seconds: float
    view_flop: float
    view_bytes: int
    row_flop: float
    forward_flop: float
    step_seconds: float
    parameters: int
    memory: int
    checkpointing: bool
    activations: Activations


def _probe(source: Source, backbone: Backbone, settings: TrainSettings, rows: Sequence[int]) -> _Probe:
    """Encode a few pictures, count one row, time steps. The caller holds the UNet's lock."""
    cuda = backbone.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(backbone.device)
    start = time.perf_counter()
    with _counting() as encoding:
        data = encode_source(source, backbone, settings, settings.trigger or source.trigger, only=rows)
    moments = [tensor for bucket in data.buckets for tensor in (bucket.mean, bucket.std)]
    views = sum(bucket.mean.shape[0] * bucket.mean.shape[1] for bucket in data.buckets)
    encoded = time.perf_counter() - start
    digest = source.manifest().merkle_root
    generator = torch.Generator().manual_seed(0)
    one = draw_batch(data, backbone, settings, 1, generator)
    single = replace(settings, batch_size=1)
    with trainable(backbone, settings, digest) as parameters:
        again, activations = checkpoints(parameters, data, backbone, settings)
        with checkpointing(backbone, again):
            with _counting() as forward, torch.no_grad():
                weighted_errors(own_words(parameters, backbone, settings), one, data, backbone, single)
            with _counting() as row:
                add_gradients(parameters, one, data, backbone, single, 0)
            seconds = _steps(parameters, data, backbone, settings, generator)
        return _Probe(
            view_seconds=encoded / views,
            view_flop=encoding.get_total_flops() / views,
            view_bytes=sum(tensor.nbytes for tensor in moments) // views,
            row_flop=row.get_total_flops(),
            forward_flop=forward.get_total_flops(),
            step_seconds=min(seconds),
            parameters=sum(p.numel() for p in parameters.values()),
            memory=torch.cuda.max_memory_allocated(backbone.device) if cuda else _peak(),
            checkpointing=again,
            activations=activations,
        )


def _steps(
    parameters: Parameters,
    data: EncodedSource,
    backbone: Backbone,
    settings: TrainSettings,
    generator: torch.Generator,
) -> list[float]:
    """Seconds of two real steps; of one where it takes long."""
    optimizer = new_optimizer(parameters, settings)
    seconds: list[float] = []
    while not seconds or (len(seconds) < 2 and seconds[0] < _PATIENCE):
        start = time.perf_counter()
        batch = draw_batch(data, backbone, settings, settings.rows, generator)
        add_gradients(parameters, batch, data, backbone, settings, 0)
        optimizer.step()
        optimizer.zero_grad()
        if backbone.device.type == "cuda":
            torch.cuda.synchronize(backbone.device)
        seconds.append(time.perf_counter() - start)
    return seconds


@contextmanager
def _counting() -> Iterator[FlopCounterMode]:
    """Count in the block. Attention as plain matrix products: the counter does not know a CPU's fused one."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter


def _peak() -> int:
    """The most bytes that this process ever had, the loaded backbone among them."""
    if sys.platform == "win32":
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _memory_there(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if sys.platform == "win32":
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def duration(seconds: float) -> str:
    """For people: seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
