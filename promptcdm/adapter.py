"""An adapter: everything that one source ever taught, as a value and as a folder.

    C       latent channels           D    width of a text encoder's token embeddings
    M       caption prototypes        n    learned tokens of a soft prompt

A folder is written in one canonical form (same adapter, same bytes) and verified on the bytes that are used.
`adapters/README.md` describes its files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptcdm.adapter_record import AdapterRecord as AdapterRecord
from promptcdm.adapter_record import BackboneRecord as BackboneRecord
from promptcdm.adapter_record import parse_record, validated
from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.lora_format import lora_modules, to_kohya
from promptcdm.manifest import Manifest, merkle_root
from promptcdm.model_card import embedding_header, kohya_header, model_card, token
from promptcdm.settings import Kind
from promptcdm.source import check_name
from promptcdm.statistics import GRID
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
ROUTER = "router.safetensors"
MANIFEST = "manifest.json"
TRAIN_LOG = "train_log.jsonl"
CARD = "README.md"

_STATISTICS = ("count", "latent_mean", "latent_var", "caption_prototypes", "caption_share")
_FACTOR = "latent_factor"  # may be absent, as in adapters older than it
# Where two text encoders have embeddings, other tools know them by these keys.
_ENCODER_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


@dataclass(frozen=True)
class Statistics:
    """All that a router may know of a source, computed from that source alone; fp32."""

    count: int  # pictures
    latent_mean: Tensor  # (C, 8, 8) of clean, scaled latents pooled to 8x8
    latent_var: Tensor  # (C, 8, 8)
    caption_prototypes: Tensor  # (M, D) of unit norm
    caption_share: Tensor  # (M,) share of the captions nearest to each prototype; sums to one
    latent_factor: Tensor | None = None  # (k, C, 8, 8): covariance = diag(latent_var) + F^T F; None: diagonal

    def tensors(self) -> dict[str, Tensor]:
        """By name, the count as a 0-d int64; an absent factor is left out."""
        tensors = {
            "count": torch.tensor(self.count),
            **{name: getattr(self, name) for name in _STATISTICS[1:]},
        }
        return tensors if self.latent_factor is None else {**tensors, _FACTOR: self.latent_factor}


@dataclass(frozen=True)
class Adapter:
    """What `train_adapter` returns and `AdapterStore` keeps. Tensors are fp32."""

    source: str
    lora: dict[str, Tensor]  # keys of lora_format, strength folded into B; {} for a soft prompt alone
    prompt: dict[str, Tensor]  # text encoder -> (n, D) input embeddings placed after the start token; or {}
    statistics: Statistics | None  # None: imported; only routers that need none can weigh it
    record: AdapterRecord
    manifest: Manifest | None = None
    train_log: tuple[dict[str, Any], ...] = field(default=())

    @property
    def kind(self) -> Kind:
        """By what it holds: lora, prompt or lora+prompt."""
        if not self.prompt:
            return "lora"
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
        """Identity of the adapter: the digest of its tensors."""
        return adapter_digest(self.lora, self.prompt, self.statistics)


def adapter_digest(
    lora: Mapping[str, Tensor], prompt: Mapping[str, Tensor], statistics: Statistics | None
) -> str:
    """sha256 (hex) over the tensors of all three; what `AdapterRecord.sha256` must be."""
    tensors = dict(lora)
    tensors |= {f"prompt.{name}": tensor for name, tensor in prompt.items()}
    if statistics is not None:
        tensors |= {f"statistics.{name}": tensor for name, tensor in statistics.tensors().items()}
    return tensor_digest(tensors)


def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Write the whole adapter folder.

    Raises BadInput where `folder` holds files already, AdapterMismatch where the adapter's parts disagree.
    """
    _check(adapter, f"adapter {adapter.source}")
    if folder.exists() and any(folder.iterdir()):
        raise BadInput(f"{folder} is not empty; an adapter is written into a folder of its own")
    folder.mkdir(parents=True, exist_ok=True)
    record = adapter.record
    if adapter.lora:
        write_diffusers(adapter, folder)
        write_kohya(adapter, folder)
    if adapter.prompt:
        write_prompt(adapter, folder)
    if adapter.statistics is not None:
        write_tensors(folder / ROUTER, adapter.statistics.tensors(), {"format": "pt"})
    if adapter.manifest is not None:
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
    adapter = Adapter(
        source=record.source,
        lora=_tensors(folder, LORA) if "lora" in record.kind else {},
        prompt=_read_prompt(folder, record) if "prompt" in record.kind else {},
        statistics=_read_statistics(folder),
        record=record,
        manifest=_read_manifest(folder, record),
        train_log=_read_train_log(folder),
    )
    _check(adapter, str(folder))
    _check_kohya(adapter, folder)
    return adapter


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
    try:
        lora_modules(adapter.lora)
    except AdapterMismatch as error:
        raise AdapterMismatch(f"{where}: {error}") from None
    tensors = {**adapter.lora, **adapter.prompt}
    if adapter.statistics is not None:
        _check_statistics(adapter.statistics, where)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise AdapterMismatch(f"{where}: {name} must be float32 without NaN or infinity")
    for name, tensor in adapter.prompt.items():
        if name not in _ENCODER_KEYS or tensor.ndim != 2 or 0 in tensor.shape:
            raise AdapterMismatch(
                f"{where}: soft prompt {name} {tuple(tensor.shape)} must be (tokens, width)"
            )
    if not tensors or list(adapter.prompt) not in ([], list(_ENCODER_KEYS)[:1], list(_ENCODER_KEYS)):
        raise AdapterMismatch(f"{where}: holds neither a LoRA nor a soft prompt for the first text encoder")
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


def _check_statistics(statistics: Statistics, where: str) -> None:
    channels, width = statistics.latent_mean.shape[:1], statistics.caption_prototypes.shape[-1:]
    shapes = {
        "latent_mean": (*channels, GRID, GRID),
        "latent_var": (*channels, GRID, GRID),
        "caption_prototypes": (*statistics.caption_share.shape, *width),
        "caption_share": (statistics.caption_share.numel(),),
    }
    if statistics.latent_factor is not None:
        rank = max([1, *statistics.latent_factor.shape[:1]])
        shapes[_FACTOR] = (rank, *channels, GRID, GRID)
    for name, shape in shapes.items():
        tensor = getattr(statistics, name)
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise AdapterMismatch(
                f"{where}: statistics {name} {tuple(tensor.shape)} must be finite float32 of shape {shape}"
            )
    share, norms = statistics.caption_share, statistics.caption_prototypes.norm(dim=-1)
    if statistics.count < 1 or not (statistics.latent_var > 0).all():
        raise AdapterMismatch(f"{where}: statistics need a count of at least 1 and variances above 0")
    if (
        not len(share)
        or (share < 0).any()
        or abs(float(share.sum()) - 1) > 1e-3
        or ((norms - 1).abs() > 1e-3).any()
    ):
        raise AdapterMismatch(f"{where}: caption shares must sum to 1 and prototypes have norm 1")


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


def _read_statistics(folder: Path) -> Statistics | None:
    if not (folder / ROUTER).exists():
        return None
    tensors = _tensors(folder, ROUTER)
    if set(tensors) - {_FACTOR} != set(_STATISTICS):
        raise AdapterMismatch(
            f"{folder / ROUTER}: must hold {', '.join(_STATISTICS)}, perhaps {_FACTOR}, and nothing else"
        )
    count = tensors.pop("count")
    if count.ndim or count.dtype != torch.int64:
        raise AdapterMismatch(f"{folder / ROUTER}: count must be one int64")
    return Statistics(count=int(count), **tensors)


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
