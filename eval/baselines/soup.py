"""Diffusion Soup (Biggs et al., ECCV 2024) for LoRA. Not a router: one adapter, whose change is the average change.

    sum_i w_i B_i A_i = [w_1 B_1 | w_2 B_2 | ...] [A_1; A_2; ...]

Exact, by joining the ranks. The average of the A times the average of the B is something else and is never taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from promptcdm.errors import BadInput

A, B = ".lora_A.weight", ".lora_B.weight"


def soup(loras: Sequence[Mapping[str, Tensor]], w: Sequence[float]) -> dict[str, Tensor]:
    """The LoRA of the weighted average, keyed as the adapters' are; its rank is the sum of theirs.

    A module that a source does not have counts as unchanged by it. Raises BadInput for another number of weights.
    """
    if not loras or len(loras) != len(w):
        raise BadInput(
            f"{len(loras)} LoRAs and {len(w)} weights; one weight for each of at least one is accepted"
        )
    joined = {}
    for module in sorted({key.removesuffix(A) for lora in loras for key in lora if key.endswith(A)}):
        held = [
            (lora[module + A], weight * lora[module + B])
            for lora, weight in zip(loras, w, strict=True)
            if module + A in lora
        ]
        joined[module + A] = torch.cat([a for a, _ in held], dim=0)
        joined[module + B] = torch.cat([b for _, b in held], dim=1)
    return joined
