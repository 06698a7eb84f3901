"""The canonical safetensors writer and the strict reader."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.tensorfile import (
    decode_tensors,
    encode_tensors,
    parse_json,
    read_json,
    read_tensors,
    tensor_digest,
    write_bytes,
    write_json,
    write_tensors,
)

METADATA = {f"key{n}": str(n) for n in range(12)}


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(3, 5, generator=generator)
    return {
        "b.weight": random,
        "a.half": random.half()[:1],
        "c.bf16": random.bfloat16().t(),
        "d.count": torch.tensor(7),
        "e.state": torch.arange(5, dtype=torch.uint8),
        "f.none": torch.zeros(0, 4),
    }


def test_stock_safetensors_reads_what_we_write(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", _tensors(), METADATA)
    stock = load_file(tmp_path / "a.safetensors")
    assert set(stock) == set(_tensors())
    for name, tensor in _tensors().items():
        assert stock[name].dtype == tensor.dtype and torch.equal(stock[name], tensor)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == METADATA


def test_read_gives_back_what_was_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", _tensors(), METADATA)
    tensors, metadata = read_tensors(tmp_path / "a.safetensors")
    assert metadata == METADATA
    assert tensor_digest(tensors) == tensor_digest(_tensors())
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_same_content_gives_the_same_bytes_in_any_order_process_and_year() -> None:
    tensors = {name: torch.ones(2) for name in "xyz"}
    shuffled = dict(reversed(tensors.items())), dict(reversed(METADATA.items()))
    assert encode_tensors(*shuffled) == encode_tensors(tensors, METADATA)
    digest = hashlib.sha256(encode_tensors(tensors, METADATA)).hexdigest()
    assert digest == "6119be0cf34a988362cdbf37a6ad44a2c4a887a244e636109ecb49eab3e5806b"
    assert tensor_digest(tensors) == "c2215059cb6a6ce4f8b9c278adc3163106478319390585e8e8b0d497e2e51db9"


def test_every_tensor_is_aligned_to_its_item_size() -> None:
    data = encode_tensors({"a": torch.zeros(1).half(), "b": torch.zeros(3, dtype=torch.int64)}, {})
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert header["b"]["data_offsets"][0] % 8 == 0 and header["a"]["data_offsets"] == [24, 26]


@pytest.mark.parametrize("change", ["name", "value", "dtype", "shape"])
def test_digest_sees_every_change(change: str) -> None:
    base = {"a": torch.zeros(2, 2)}
    changed = {
        "name": {"b": torch.zeros(2, 2)},
        "value": {"a": torch.tensor([[0.0, 0.0], [0.0, 1e-30]])},
        "dtype": {"a": torch.zeros(2, 2, dtype=torch.int32)},
        "shape": {"a": torch.zeros(4)},
    }[change]
    assert tensor_digest(changed) != tensor_digest(base)


def test_digest_does_not_depend_on_order_or_memory_layout() -> None:
    a, b = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), torch.ones(2)
    assert tensor_digest({"a": a, "b": b}) == tensor_digest({"b": b, "a": a.t().contiguous().t()})


def test_unknown_dtype_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"'c' has dtype torch\.complex64"):
        write_tensors(tmp_path / "x", {"c": torch.zeros(1, dtype=torch.complex64)}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes(tmp_path / "a", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_json_has_sorted_keys_and_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "ü"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": 1\n}\n'
    assert read_json(tmp_path / "a.json") == {"a": "ü", "b": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": 1, "a": 2}', "key 'a' is given twice"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b"\xff", "utf-8"),
        (b"[" * 100_000, "recursion"),
        (b"1" * 5000, "integer"),
    ],
)
def test_json_that_could_mean_two_things_is_refused(text: bytes, message: str) -> None:
    if message == "integer" and sys.version_info < (3, 11):
        pytest.skip("Python 3.10 before 3.10.7 reads integers of any length")
    with pytest.raises(AdapterMismatch, match=message):
        parse_json(text, "x.json")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterMismatch, match=r"no\.safetensors: no such file"):
        read_tensors(tmp_path / "no.safetensors")


def test_truncation_at_every_length_is_found() -> None:
    data = encode_tensors({"a": torch.ones(2)}, {"format": "pt"})
    for length in range(len(data)):
        with pytest.raises(AdapterMismatch):
            decode_tensors(data[:length], "x")
    assert decode_tensors(data, "x")[1] == {"format": "pt"}
