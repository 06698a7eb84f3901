"""What rounds: the kind of device, and the type of numbers, on which the same work gives the same bits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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


@contextmanager
def deterministic_kernels(device: torch.device, wanted: bool) -> Iterator[None]:
    """Where `wanted`, let a GPU use only kernels whose sums have one order; a CPU's always have.

    cuBLAS reads its variable when it is first used: a program that used it before sets CUBLAS_WORKSPACE_CONFIG=:4096:8
    itself, or torch says so.
    """
    if not wanted or device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False  # with NaN: nothing here reads what it did not write
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled


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
