"""An adapter: everything that one source ever taught, as a value and as a folder.

    C       latent channels           D    width of a text encoder's token embeddings
    M       caption prototypes        n    learned tokens of a soft prompt

A folder is written in one canonical form (same adapter, same bytes) and verified on the bytes that are used. A source
in slices (slices.py) has a folder slice-N for each of them, an adapter like any other, and nothing beside them.
`adapters/README.md` describes its files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptcdm.adapter_record import OF_ALL_SLICES, parse_record, validated
from promptcdm.adapter_record import AdapterRecord as AdapterRecord
from promptcdm.adapter_record import BackboneRecord as BackboneRecord
from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.lora_format import lora_modules, to_kohya
from promptcdm.manifest import Manifest, merkle_root
from promptcdm.model_card import embedding_header, kohya_header, model_card, token
from promptcdm.settings import Kind
from promptcdm.slices import slice_number
from promptcdm.source import check_name
from promptcdm.source_statistics import ROUTER, check_statistics, pooled, read_statistics
from promptcdm.source_statistics import Statistics as Statistics
from promptcdm.tensorfile import (
    decode_tensors,
    parse_json,
    read_bytes,
    tensor_digest,
    write_bytes,
    write_json,
    write_tensors,
)
from promptcdm.text_names import is_text_key

RECORD = "adapter.json"
LORA = "pytorch_lora_weights.safetensors"
PROMPT = "learned_embeds.safetensors"
MANIFEST = "manifest.json"
TRAIN_LOG = "train_log.jsonl"
CARD = "README.md"
_SLICE = re.compile(r"slice-(0|[1-9][0-9]{0,5})")

# Where two text encoders have embeddings, other tools know them by these keys.
_ENCODER_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


@dataclass(frozen=True)
class Adapter:
    """What `train_adapter` returns and `AdapterStore` keeps. Tensors are fp32."""

    source: str
    lora: dict[str, Tensor]  # keys of lora_format, strength folded into B; {} where there is none
    prompt: dict[str, Tensor]  # text encoder -> (n, D) input embeddings after the start token; or {}
    statistics: Statistics | None  # None: imported; only routers that need none can weigh it
    record: AdapterRecord
    manifest: Manifest | None = None
    train_log: tuple[dict[str, Any], ...] = field(default=())
    slices: tuple[
        Adapter, ...
    ] = ()  # of a source in slices, by their numbers; then lora and prompt are empty

    @property
    def kind(self) -> Kind:
        """By what it holds, or its slices hold: lora, prompt, lora+prompt, or none for statistics alone."""
        if self.slices:
            return self.slices[0].kind
        if not self.prompt:
            return "lora" if self.lora else "none"
        return "lora+prompt" if self.lora else "prompt"

    @cached_property
    def unet_lora(self) -> dict[str, Tensor]:
        """The part of the LoRA that acts in the UNet; {} where there is none."""
        if not self.text_lora:  # the very same mapping: the engine's slots know a LoRA by it
            return self.lora
        return {key: tensor for key, tensor in self.lora.items() if not is_text_key(key)}

    @cached_property
    def text_lora(self) -> dict[str, Tensor]:
        """The part of the LoRA that acts in the text encoders; {} where there is none."""
        return {key: tensor for key, tensor in self.lora.items() if is_text_key(key)}

    @cached_property
    def sha256(self) -> str:
        """Identity of the adapter: the digest of its tensors, or of its slices' digests."""
        if self.slices:
            return hashlib.sha256("\n".join(part.sha256 for part in self.slices).encode()).hexdigest()
        return adapter_digest(self.lora, self.prompt, self.statistics)


def adapter_digest(
    lora: Mapping[str, Tensor], prompt: Mapping[str, Tensor], statistics: Statistics | None
) -> str:
    """sha256 (hex) over the tensors of all three; what `AdapterRecord.sha256` must be."""
    return tensor_digest(tensors_of(lora, prompt, statistics))


def tensors_of(
    lora: Mapping[str, Tensor], prompt: Mapping[str, Tensor], statistics: Statistics | None
) -> dict[str, Tensor]:
    """The tensors of all three, by the names that the digest goes over."""
    tensors = dict(lora)
    tensors |= {f"prompt.{name}": tensor for name, tensor in prompt.items()}
    if statistics is not None:
        tensors |= {f"statistics.{name}": tensor for name, tensor in statistics.tensors().items()}
    return tensors


def joined(slices: Sequence[Adapter], k: int) -> Adapter:
    """The adapter of a source in k slices, from those of its slices in the order of their numbers.

    Everything in it follows from them. Raises AdapterMismatch where they are not slices of one source.
    """
    records = [part.record for part in slices]
    items = sorted((i for p in slices if p.manifest for i in p.manifest.items), key=lambda item: item.file)
    where = f"slices of {records[0].source}" if records else "a source in slices"
    numbers = [slice_number_of(part, k, where) for part in slices]
    if not numbers or numbers != sorted(set(numbers)) or len({item.file for item in items}) < len(items):
        raise AdapterMismatch(f"{where}: a slice is missing, or there twice; train it again")
    shared = {key: getattr(records[0], key) for key in OF_ALL_SLICES}
    for key in OF_ALL_SLICES:
        if any(record.said(key) != records[0].said(key) for record in records):
            raise AdapterMismatch(f"{where}: they disagree about {key}; one was changed")
    versions = {name: {r.versions.get(name, "unknown") for r in records} for name in records[0].versions}
    facts = {key: shared[key] for key in ("source", "license", "author", "origin", "attribution")}
    manifest = Manifest(**facts, items=items, merkle_root=merkle_root(items))
    record = AdapterRecord(
        **shared | {"settings": shared["settings"] | {"slices": k}},
        sha256=hashlib.sha256("\n".join(record.sha256 for record in records).encode()).hexdigest(),
        source_digest=manifest.merkle_root,
        items=len(items),
        versions={name: " and ".join(sorted(found)) for name, found in versions.items()},
        device=" and ".join(sorted({record.device for record in records})),
    )
    statistics = pooled([part.statistics for part in slices if part.statistics])
    return Adapter(record.source, {}, {}, statistics, record, manifest, slices=tuple(slices))


def slice_number_of(part: Adapter, k: int, where: str) -> int:
    """Which of k slices an adapter is, by its pictures. Raises AdapterMismatch where it is none."""
    items = part.manifest.items if part.manifest else []
    try:
        numbers = {slice_number(item.pixels_sha256, k) for item in items}
    except ValueError:  # no digest
        numbers = set()
    if len(numbers) != 1 or part.slices or part.statistics is None:
        raise AdapterMismatch(f"{where}: one has no pictures, or not those of one slice of {k}")
    return numbers.pop()


def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Write the whole adapter folder.

    Raises BadInput where `folder` holds files already, AdapterMismatch where the adapter's parts disagree.
    """
    _check(adapter, f"adapter {adapter.source}")
    if folder.exists() and any(folder.iterdir()):
        raise BadInput(f"{folder} is not empty; an adapter is written into a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    record = adapter.record
    for part in adapter.slices:
        save_adapter(part, folder / f"slice-{slice_number_of(part, record.slices, adapter.source)}")
    if adapter.lora:
        write_diffusers(adapter, folder)
        write_kohya(adapter, folder)
    if adapter.prompt:
        write_prompt(adapter, folder)
    if adapter.statistics is not None and not adapter.slices:
        write_tensors(folder / ROUTER, adapter.statistics.tensors(), {"format": "pt"})
    if adapter.manifest is not None and not adapter.slices:
        write_json(folder / MANIFEST, adapter.manifest.model_dump())
    if adapter.train_log:
        lines = [json.dumps(row, sort_keys=True, allow_nan=False) + "\n" for row in adapter.train_log]
        write_bytes(folder / TRAIN_LOG, "".join(lines).encode())
    write_card(adapter, folder)
    write_json(folder / RECORD, record.model_dump())


def write_diffusers(adapter: Adapter, folder: Path) -> Path:
    """Write the LoRA for diffusers, in our own keys."""
    write_tensors(folder / LORA, adapter.lora, {"format": "pt"})
    return folder / LORA


def write_kohya(adapter: Adapter, folder: Path) -> Path:
    """Write the LoRA for kohya's readers."""
    path = folder / f"{adapter.source}.safetensors"
    write_tensors(path, _as_kohya(adapter), kohya_header(adapter.record, adapter.lora))
    return path


def write_prompt(adapter: Adapter, folder: Path) -> Path:
    """Write the soft prompt as textual inversion."""
    write_tensors(folder / PROMPT, _embeddings(adapter), embedding_header(adapter.record))
    return folder / PROMPT


def write_card(adapter: Adapter, folder: Path) -> Path:
    """Write the model card."""
    write_bytes(folder / CARD, model_card(adapter.record, adapter.prompt.keys()).encode())
    return folder / CARD


def load_adapter(folder: Path) -> Adapter:
    """Read and verify an adapter folder.

    Raises AdapterMismatch where a file is missing, malformed, a link, or not what adapter.json describes.
    """
    record = read_record(folder)
    if record.slices > 1:
        return _load_slices(folder, record)
    adapter = Adapter(
        source=record.source,
        lora=_tensors(folder, LORA) if "lora" in record.kind else {},
        prompt=_read_prompt(folder, record) if "prompt" in record.kind else {},
        statistics=_statistics(folder),
        record=record,
        manifest=_read_manifest(folder, record),
        train_log=_read_train_log(folder),
    )
    _check(adapter, str(folder))
    _check_kohya(adapter, folder)
    return adapter


def _load_slices(folder: Path, record: AdapterRecord) -> Adapter:
    found = sorted((int(m[1]), path) for path in folder.iterdir() if (m := _SLICE.fullmatch(path.name)))
    for _, path in found:
        if path.is_symlink():
            raise AdapterMismatch(f"{path}: a link; an adapter's files must lie in its folder")
    adapter = joined([load_adapter(path) for _, path in found], record.slices)
    numbers = [slice_number_of(part, record.slices, str(folder)) for part in adapter.slices]
    if numbers != [number for number, _ in found]:
        raise AdapterMismatch(f"{folder}: a slice's folder does not have its number")
    _check_record(adapter.record, record, str(folder))
    return adapter


def _check_record(derived: AdapterRecord, stated: AdapterRecord, where: str) -> None:
    """Raise AdapterMismatch unless adapter.json says what follows from the slices."""
    ours, theirs = derived.model_dump(), stated.model_dump()
    differing = [key for key in ours if ours[key] != theirs[key]]
    if differing:
        raise AdapterMismatch(
            f"{where}: {RECORD} and its slices disagree about {' and '.join(differing)}; "
            "a file was changed, swapped or removed: train or copy it again"
        )


def read_record(folder: Path) -> AdapterRecord:
    """The adapter.json of a folder; what it says of the tensors is not verified. Raises AdapterMismatch."""
    where = str(folder / RECORD)
    record = parse_record(parse_json(_bytes(folder, RECORD), where), where)
    try:
        check_name(record.source)
    except BadInput as error:
        raise AdapterMismatch(f"{where}: {error}") from None
    return record


def _check(adapter: Adapter, where: str) -> None:
    """Raise AdapterMismatch unless the tensors are sound and all parts agree with the record."""
    record, manifest = adapter.record, adapter.manifest
    if adapter.slices:
        _check_record(joined(adapter.slices, record.slices).record, record, where)
        return
    try:
        lora_modules(adapter.lora)
    except AdapterMismatch as error:
        raise AdapterMismatch(f"{where}: {error}") from None
    tensors = {**adapter.lora, **adapter.prompt}
    if adapter.statistics is not None:
        check_statistics(adapter.statistics, where)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise AdapterMismatch(f"{where}: {name} must be float32 without NaN or infinity")
    for name, tensor in adapter.prompt.items():
        if name not in _ENCODER_KEYS or tensor.ndim != 2 or 0 in tensor.shape:
            raise AdapterMismatch(
                f"{where}: soft prompt {name} {tuple(tensor.shape)} must be (tokens, width)"
            )
    if not tensors and adapter.statistics is None:
        raise AdapterMismatch(f"{where}: holds neither a LoRA nor a soft prompt nor statistics")
    if list(adapter.prompt) not in ([], list(_ENCODER_KEYS)[:1], list(_ENCODER_KEYS)):
        raise AdapterMismatch(f"{where}: holds no soft prompt for the first text encoder")
    if (record.source, record.kind) != (adapter.source, adapter.kind):
        raise AdapterMismatch(
            f"{where}: {RECORD} says {record.source}, {record.kind}; "
            f"the files are {adapter.source}, {adapter.kind}"
        )
    if record.sha256 != adapter.sha256:
        absent = "" if adapter.statistics is not None else f"; {ROUTER} is absent"
        raise AdapterMismatch(
            f"{where}: its tensors have digest {adapter.sha256[:12]}, {RECORD} says {record.sha256[:12]!a}: "
            f"a file was changed, swapped or removed{absent}; train or copy it again"
        )
    if manifest is not None:
        _check_manifest(manifest, record, where)
    elif record.source_digest:
        raise AdapterMismatch(f"{where}: {MANIFEST} is missing")


def _check_manifest(manifest: Manifest, record: AdapterRecord, where: str) -> None:
    if manifest.merkle_root != merkle_root(manifest.items):
        raise AdapterMismatch(f"{where}: {MANIFEST} was changed: its merkle_root is not that of its items")
    stated = {
        "source": (manifest.source, record.source),
        "merkle_root": (manifest.merkle_root, record.source_digest),
        "items": (len(manifest.items), record.items),
        "license": (manifest.license, record.license),
        "author": (manifest.author, record.author),
        "origin": (manifest.origin, record.origin),
        "attribution": (manifest.attribution, record.attribution),
    }
    for key, (in_manifest, in_record) in stated.items():
        if in_manifest != in_record:
            raise AdapterMismatch(f"{where}: {MANIFEST} and {RECORD} disagree about {key}; one was changed")


def _check_kohya(adapter: Adapter, folder: Path) -> None:
    if not adapter.lora:
        return
    name = f"{adapter.source}.safetensors"
    if tensor_digest(_tensors(folder, name)) != tensor_digest(_as_kohya(adapter)):
        raise AdapterMismatch(f"{folder}: {name} and {LORA} are not the same LoRA; one was changed")


def _bytes(folder: Path, name: str) -> bytes:
    if (folder / name).is_symlink():
        raise AdapterMismatch(f"{folder / name}: a link; an adapter's files must lie in its folder")
    return read_bytes(folder / name)


def _tensors(folder: Path, name: str) -> dict[str, Tensor]:
    return decode_tensors(_bytes(folder, name), str(folder / name))[0]


def _statistics(folder: Path) -> Statistics | None:
    return (
        read_statistics(_tensors(folder, ROUTER), str(folder / ROUTER))
        if (folder / ROUTER).exists()
        else None
    )


def _as_kohya(adapter: Adapter) -> dict[str, Tensor]:
    return to_kohya(adapter.lora, adapter.record.backbone.architecture)


def _embeddings(adapter: Adapter) -> dict[str, Tensor]:
    """The soft prompt under other tools' keys: the token for one text encoder, clip_l and clip_g for two."""
    if len(adapter.prompt) == 1:
        return {token(adapter.source): adapter.prompt["text_encoder"]}
    return {_ENCODER_KEYS[encoder]: tensor for encoder, tensor in adapter.prompt.items()}


def _read_prompt(folder: Path, record: AdapterRecord) -> dict[str, Tensor]:
    tensors = _tensors(folder, PROMPT)
    if set(tensors) == {token(record.source)}:
        return {"text_encoder": tensors[token(record.source)]}
    if set(tensors) == set(_ENCODER_KEYS.values()):
        return {encoder: tensors[key] for encoder, key in _ENCODER_KEYS.items()}
    raise AdapterMismatch(
        f"{folder / PROMPT}: must hold {token(record.source)}, or clip_l and clip_g, and nothing else"
    )


def _read_manifest(folder: Path, record: AdapterRecord) -> Manifest | None:
    if not record.source_digest and not (folder / MANIFEST).exists():
        return None
    where = str(folder / MANIFEST)
    return validated(Manifest, parse_json(_bytes(folder, MANIFEST), where), where)


def _read_train_log(folder: Path) -> tuple[dict[str, Any], ...]:
    if not (folder / TRAIN_LOG).exists():
        return ()
    where = str(folder / TRAIN_LOG)
    rows = [parse_json(line, where) for line in _bytes(folder, TRAIN_LOG).splitlines()]
    if not all(isinstance(row, dict) for row in rows):
        raise AdapterMismatch(f"{where}: each line must be a JSON object")
    return tuple(rows)
