"""The plain way to run rows, kept to hold the engine against: one forward a source, each LoRA put in by PEFT alone.

This is what composition costs in every project that loops over its adapters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from promptcdm import lora
from promptcdm.engine import Rows, unet_arguments


@torch.no_grad()
def loop_over_sources(unet: Any, rows: Rows) -> Tensor:
    """Predictions (R, C, h, w) of the rows, source after source. The caller holds the UNet's lock."""
    predicted = torch.empty_like(rows.x_t)
    adapters = {None if row is None else row.key: row for row in rows.loras}
    for key, adapter in adapters.items():
        index = [r for r, row in enumerate(rows.loras) if key == (None if row is None else row.key)]
        mine = rows.take(index)
        if adapter is not None:
            scaled = {
                name: tensor * adapter.strength if name.endswith("lora_B.weight") else tensor
                for name, tensor in adapter.tensors.items()
            }
            lora.insert(unet, "reference", scaled)
        try:
            with lora.running(unet, None if adapter is None else "reference"):
                (predicted[index],) = unet(mine.x_t, return_dict=False, **unet_arguments(mine))
        finally:
            lora.remove(unet, "reference")
    return predicted
