"""The kind of device that an adapter's bytes depend on, and the precision that "auto" stands for on it."""

from __future__ import annotations

import pytest
import torch

CPU = torch.device("cpu")


def test_auto_is_bf16_only_where_the_processor_has_instructions_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from promptcdm.device_class import computes_in_bf16, device_class

    for able in ({"avx2": True, "avx512_bf16": False}, {"avx512_bf16": True}, {"amx_bf16": True}):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able, raising=False)
        expected = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
        assert computes_in_bf16("auto", CPU) is expected
        assert ("bf16 autocast" in device_class(CPU, torch.float32, "auto")) is expected


def test_a_stated_precision_holds_on_every_processor() -> None:
    from promptcdm.device_class import computes_in_bf16, device_class

    assert computes_in_bf16("bf16", CPU)
    assert not computes_in_bf16("no", CPU)
    assert device_class(CPU, torch.float32, "bf16") == device_class(CPU, torch.float32) + ", bf16 autocast"
    assert "bf16" not in device_class(CPU, torch.float32, "no")


def test_a_torch_that_does_not_tell_trains_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    from promptcdm.device_class import computes_in_bf16

    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not computes_in_bf16("auto", CPU)


def test_kernels_are_deterministic_on_a_gpu_where_that_is_asked_for_and_as_before_afterwards() -> None:
    from promptcdm.device_class import deterministic_kernels

    for device, wanted in ((CPU, True), (torch.device("cuda"), False), (torch.device("cuda"), True)):
        with deterministic_kernels(device, wanted):
            assert torch.are_deterministic_algorithms_enabled() is (device.type == "cuda" and wanted)
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
