"""Whether a batch's activations fit into the memory, from a probe: what one row and two rows keep for their backward.

    bytes(B) = bytes(1) + (B - 1) (bytes(2) - bytes(1))

The difference is what a row keeps; the rest does not grow with the rows, such as weights turned to bf16. The frozen
weights themselves are not counted. Nothing is learned from the probe, and no random number of training is drawn for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from promptcdm.backbone import Backbone
from promptcdm.batch import OwnWords, draw_batch, weighted_errors
from promptcdm.encoded_source import EncodedSource
from promptcdm.settings import TrainSettings

SHARE = 0.7  # of the free memory that activations may take: the backward's own sums and the optimizer need the rest
_MEMINFO = Path("/proc/meminfo")  # Linux


@dataclass(frozen=True)
class Activations:
    """What a batch keeps for its backward, and what there is for it; 0 bytes: not known."""

    needed: int
    free: int

    @property
    def fit(self) -> bool:
        """Whether they may be kept. Where nothing is known of the memory they are."""
        return not self.free or self.needed <= SHARE * self.free


def measure_activations(
    words: OwnWords, data: EncodedSource, backbone: Backbone, settings: TrainSettings, bound: bool = False
) -> Activations:
    """Of a batch of the largest pictures, with the adapter in training in place. The caller holds the UNet's lock.

    With `bound`, B times what one row keeps, which is never less, is told where that fits: half the work.
    """
    trained = [bucket for bucket in data.buckets if len(bucket.turns)]
    largest = max(trained, key=lambda bucket: bucket.size.width * bucket.size.height)
    probe = replace(data, buckets=(largest,))
    one, free = _kept(words, probe, backbone, settings, 1), free_memory(backbone.device)
    most = Activations(settings.batch_size * one, free)
    if bound and most.fit:
        return most
    two = _kept(words, probe, backbone, settings, 2)
    return Activations(one + (settings.batch_size - 1) * max(0, two - one), free)


def _kept(
    words: OwnWords, data: EncodedSource, backbone: Backbone, settings: TrainSettings, rows: int
) -> int:
    """Bytes that the forward of so many rows keeps, each piece of memory counted once."""
    batch = draw_batch(data, backbone, settings, rows, torch.Generator().manual_seed(0))
    modules: list[nn.Module] = [backbone.unet, *backbone.text_encoders.values()]
    frozen = {_place(p) for module in modules for p in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _place(tensor) not in frozen:
            kept[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself would hold the graph that holds it, for ever

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        errors = weighted_errors(words, batch, data, backbone, settings)
    del errors
    return sum(kept.values())


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def free_memory(device: torch.device) -> int:
    """Bytes that a process can still have on the device; 0 where this system does not say."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type != "cpu" or not _MEMINFO.exists():
        return 0
    found = re.search(r"^MemAvailable: +(\d+) kB$", _MEMINFO.read_text(encoding="ascii"), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0
