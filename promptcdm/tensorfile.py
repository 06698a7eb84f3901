"""Tensors and JSON on disk: safetensors in one canonical form, every write atomic, every read strict.

The safetensors library writes `__metadata__` in a random order, so equal content gives different files.
Here the header is written by us with its keys sorted: the same tensors and metadata always give the same
bytes, and any safetensors reader loads them.

A file is read once. Its header is checked, then the library decodes those same bytes; pickle is never tried.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as decode_safetensors
from torch import Tensor

from promptcdm.errors import AdapterMismatch, BadInput

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPE_NAMES = frozenset(_DTYPES.values())

# Far above any adapter (SDXL with every layer has about 3,000 tensors and a 1 MB header), and low enough
# that a hostile header cannot exhaust memory: a million tensors in 67 MB of header took 1.4 GB and 11 s.
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 16_384
MAX_FILE_BYTES = 4 << 30


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of the tensors: name, dtype, shape and bytes of each, in the order of the names.

    It depends neither on the file that holds them nor on the device they are on.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(_json([name, _dtype_name(name, tensor), list(tensor.shape)]) + b"\n")
        digest.update(_raw_bytes(tensor))
    return digest.hexdigest()


def encode_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The canonical safetensors file as bytes.

    Header keys are sorted, its JSON compact and padded with spaces to 8 bytes. Data lie by falling item size,
    then by name, so that every tensor is aligned. Raises BadInput for a dtype that no reader would know.
    """
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    chunks: list[bytes] = []
    end = 0
    for name in ordered:
        chunk = _raw_bytes(tensors[name])
        start, end = end, end + len(chunk)
        header[name] = {
            "dtype": _dtype_name(name, tensors[name]),
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
        chunks.append(chunk)
    text = _json(header)
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *chunks])


def decode_tensors(data: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata from the bytes of a safetensors file; `where` names it in AdapterMismatch."""
    header = _checked_header(data, where)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise AdapterMismatch(f"{where}: its header's __metadata__ must map text to text")
    if len(header) > MAX_TENSORS:
        raise AdapterMismatch(f"{where}: {len(header)} tensors; at most {MAX_TENSORS} are accepted")
    for name, entry in header.items():
        _check_entry(name, entry, where)
    try:
        tensors = decode_safetensors(data)
    except (SafetensorError, ValueError, TypeError, OverflowError) as error:
        raise AdapterMismatch(f"{where}: not a valid safetensors file: {one_line(error)}") from error
    return tensors, metadata


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors` in canonical form: equal content, equal bytes. Atomic."""
    write_bytes(path, encode_tensors(tensors, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file. Raises AdapterMismatch for all else, pickle included."""
    return decode_tensors(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file. Raises AdapterMismatch where there is none, or it is too large."""
    if not path.is_file():
        raise AdapterMismatch(f"{path}: no such file")
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise AdapterMismatch(f"{path}: {size} bytes; a file of an adapter has at most {MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise AdapterMismatch(f"{path}: cannot be read: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """The value of a JSON file. Raises AdapterMismatch for bad UTF-8, bad JSON or a key given twice."""
    return parse_json(read_bytes(path), str(path))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old file or the new one, never a part of one."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # there only after a failure
    sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write JSON with sorted keys, one key a line. Atomic. NaN and infinity are refused (ValueError)."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, text.encode() + b"\n")


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut. Windows offers no such call for folders."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_json(data: bytes, where: str) -> Any:
    """JSON from bytes, strictly: UTF-8, no key twice, no NaN. Raises AdapterMismatch."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise AdapterMismatch(f"{where}: not valid JSON: {one_line(error)}") from error


def one_line(text: object) -> str:
    """Text for an error message: one line, at most 200 characters, nothing that moves a terminal's cursor."""
    line = " ".join(str(text).split())
    return "".join(char if char.isprintable() else "?" for char in line)[:200]


def _checked_header(data: bytes, where: str) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or data[8:9] != b"{":
        raise AdapterMismatch(f"{where}: {_what_it_is(data)}; only safetensors files are read")
    if length > MAX_HEADER_BYTES:
        raise AdapterMismatch(f"{where}: a header of {length} bytes; at most {MAX_HEADER_BYTES} are accepted")
    if 8 + length > len(data):
        raise AdapterMismatch(f"{where}: cut short: its header should have {length} bytes")
    header = parse_json(data[8 : 8 + length], f"{where}: header")
    if not isinstance(header, dict):
        raise AdapterMismatch(f"{where}: its header is not a JSON object")
    return header


def _check_entry(name: str, entry: object, where: str) -> None:
    shown = one_line(repr(name))
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise AdapterMismatch(f"{where}: tensor {shown} needs dtype, shape and data_offsets, nothing else")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPE_NAMES:
        raise AdapterMismatch(
            f"{where}: tensor {shown} has dtype {one_line(entry['dtype'])}; "
            f"accepted are {', '.join(sorted(_DTYPE_NAMES))}"
        )


def _what_it_is(data: bytes) -> str:
    if data[:2] == b"PK" or data[:1] == b"\x80":
        return "a pickle (PyTorch) file whatever its name says"
    return "empty" if not data else "not a safetensors file"


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key!r} is given twice")
            seen.add(key)
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _dtype_name(name: str, tensor: Tensor) -> str:
    if tensor.dtype not in _DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise BadInput(f"tensor {name!r} has dtype {tensor.dtype}; accepted are {known}")
    return _DTYPES[tensor.dtype]


def _raw_bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
