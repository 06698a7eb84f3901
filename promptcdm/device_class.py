"""What rounds: the kind of device, and the type of numbers, on which the same work gives the same bits."""

from __future__ import annotations

import torch

from promptcdm.settings import Precision


def device_class(
    device: torch.device, dtype: torch.dtype, mixed_precision: Precision = "no", processes: int = 1
) -> str:
    """One line such as "cpu AVX2, 2 threads, float32" or "NVIDIA H100 80GB HBM3, float32, bf16 autocast".

    A CPU's vector instructions, the number of threads and that of processes decide the order of sums, and so the last
    bits.
    """
    kind = str(dtype).removeprefix("torch.")
    if computes_in_bf16(mixed_precision, device):
        kind += ", bf16 autocast"
    if processes > 1:
        kind += f", {processes} processes"
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {kind}"
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        threads = torch.get_num_threads()
        return f"cpu {capability}, {threads} thread{'s' if threads > 1 else ''}, {kind}"
    return f"{device.type}, {kind}"


def computes_in_bf16(mixed_precision: Precision, device: torch.device) -> bool:
    """Whether training runs the frozen UNet in bf16: as told, or with "auto" where the device has instructions for it.

    A CPU without them computes in bf16 too, some seventy times slower than in fp32.
    """
    return mixed_precision == "bf16" or (mixed_precision == "auto" and _has_bf16(device))


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # not in older versions of torch
        able = torch.cpu.get_capabilities()
        return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False
