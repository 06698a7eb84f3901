"""What rounds: the kind of device, and the type of numbers, on which the same work gives the same bits."""

from __future__ import annotations

import torch


def device_class(device: torch.device, dtype: torch.dtype) -> str:
    """One line such as "cpu AVX2, 2 threads, float32" or "NVIDIA H100 80GB HBM3, bfloat16".

    A CPU's vector instructions and the number of threads decide the order of sums, and so the last bits.
    """
    kind = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {kind}"
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        threads = torch.get_num_threads()
        return f"cpu {capability}, {threads} thread{'s' if threads > 1 else ''}, {kind}"
    return f"{device.type}, {kind}"
