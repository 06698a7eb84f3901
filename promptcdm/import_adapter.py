"""Take in a LoRA that another tool made: a file, a folder or a repository of the Hugging Face hub.

Nothing in such a file says for certain which model it belongs to, so the caller does, by naming the backbone;
what can be checked, the name and shape of every layer, is. It has no statistics, so that only a router that needs
none can weigh it, until `sample_statistics` gives it some.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import hf_hub_download, list_repo_files
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from torch import Tensor

from promptcdm.adapter import LORA, RECORD, Adapter, adapter_digest
from promptcdm.adapter_record import AdapterRecord, BackboneRecord
from promptcdm.errors import AdapterMismatch, BadInput, RunFailed
from promptcdm.lora_format import PEFT_CONFIG, PEFT_FILE, LoraFile, lora_modules, open_lora
from promptcdm.places import is_one_line
from promptcdm.settings import Unconditional
from promptcdm.source import NO_LICENSE, check_name
from promptcdm.tensorfile import one_line
from promptcdm.text_names import is_text_key

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SUFFIX = ".safetensors"


class BackboneFacts(Protocol):
    """What is asked of a backbone here; `backbone.Backbone` has it."""

    @property
    def name(self) -> str:
        """A hub id, or a folder's own name."""

    @property
    def digest(self) -> str:
        """Of its weights."""

    @property
    def architecture(self) -> str:
        """Which adapters fit at all."""

    @property
    def module_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Weight shapes of the UNet's linear and convolution layers, by name."""

    @property
    def text_module_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Weight shapes of the text encoders' linear layers, by their names in our files."""


def import_adapter(
    lora: str | Path,
    source: str,
    backbone: BackboneFacts,
    *,
    trigger: str = "",
    license: str | None = None,
    author: str | None = None,
    origin: str | None = None,
    attribution: str | None = None,
    unconditional: Unconditional = "adapter",
    unet_only: bool = False,
    weight_name: str | None = None,
) -> Adapter:
    """Read `lora` (file, folder or hub id) as the adapter of `source` for `backbone`.

    Licence and author come from the file's ModelSpec header where they are not given. `unet_only` leaves out
    a text-encoder LoRA in the same file and records how much that was; `weight_name` chooses one of several
    files. Raises AdapterMismatch where it does not fit, BadInput where there is no such file, RunFailed where
    the hub cannot be reached.
    """
    check_name(source)
    path, imported_from = _find(lora, weight_name)
    unet, text = backbone.module_shapes, backbone.text_module_shapes
    file = open_lora(path, unet.keys(), text.keys(), unet_only=unet_only)
    shapes = {**{f"unet.{module}": shape for module, shape in unet.items()}, **text}
    try:
        tensors = _of_one_rank(_fitted(file.lora, shapes))
    except AdapterMismatch as error:
        raise AdapterMismatch(
            f"{path}: made for another architecture than {backbone.name} ({backbone.architecture}): {error}"
        ) from None
    facts: dict[str, Any] = {
        "trigger": trigger,
        "license": license or file.metadata.get("modelspec.license", "") or NO_LICENSE,
        "author": author or file.metadata.get("modelspec.author", ""),
        "origin": origin or "",
        "attribution": attribution or "",
    }
    for key, value in facts.items():
        if not is_one_line(value):
            raise BadInput(f"{key} {ascii(value)[:80]} must be one line of text")
    record = AdapterRecord(
        source=source,
        kind="lora",
        unconditional=unconditional,
        backbone=BackboneRecord(
            name=backbone.name, digest=backbone.digest, architecture=backbone.architecture
        ),
        settings=_settings(tensors, file),
        sha256=adapter_digest(tensors, {}, None),
        source_digest="",
        items=0,
        versions={},
        imported_from=one_line(imported_from),
        **facts,
    )
    return Adapter(source, tensors, {}, None, record)


def _find(lora: str | Path, weight_name: str | None) -> tuple[Path, str]:
    """The file, and what is recorded of where it came from: its name, or the repository's."""
    path = Path(lora)
    if path.is_dir():
        if (path / RECORD).exists():
            raise BadInput(f"{path} is an adapter of promptcdm already: copy the folder into the store")
        name = _choose([file.name for file in path.iterdir()], weight_name, str(path))
        return path / name, name
    if path.exists():
        return path, path.name
    if not _HUB_ID.fullmatch(str(lora)):
        raise BadInput(f"{lora}: no such file or folder; a hub id is written OWNER/NAME")
    return _download(str(lora), weight_name), str(lora)


def _choose(names: Sequence[str], weight_name: str | None, where: str) -> str:
    if weight_name is not None:
        if weight_name not in names:
            raise BadInput(f"{where} holds no {weight_name}")
        return weight_name
    found = sorted(name for name in names if name.endswith(_SUFFIX) and "/" not in name)
    for usual in (LORA, PEFT_FILE):
        if usual in found:
            return usual
    if not found:
        raise BadInput(f"{where} holds no {_SUFFIX} file; other formats (.bin, .pt, .ckpt) are never opened")
    if len(found) > 1:
        listed = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
        raise BadInput(f"{where} holds {len(found)} {_SUFFIX} files; choose one with --weight-name: {listed}")
    return found[0]


def _download(repository: str, weight_name: str | None) -> Path:
    try:
        name = _choose(_listed(repository), weight_name, repository)
        if name == PEFT_FILE:
            hf_hub_download(repository, PEFT_CONFIG)
        return Path(hf_hub_download(repository, name))
    except LocalEntryNotFoundError as error:
        raise RunFailed(f"{repository} is not in the cache and the hub cannot be reached") from error
    except (RepositoryNotFoundError, EntryNotFoundError, HFValidationError) as error:
        raise BadInput(f"{repository}: no such file, folder or hub repository: {one_line(error)}") from error
    except (HfHubHTTPError, OSError) as error:
        raise RunFailed(f"{repository} cannot be fetched from the hub: {one_line(error)}") from error


def _listed(repository: str) -> list[str]:
    try:
        return list(list_repo_files(repository))
    except OfflineModeIsEnabled:  # nothing can be listed, but the usual file may be in the cache
        return [LORA]


def _fitted(lora: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The same LoRA with the dimensions of the backbone's layers. Raises AdapterMismatch for other shapes."""
    fitted = {}
    for module, (a, b) in lora_modules(lora).items():
        weight = shapes[module]
        # Some tools write a linear layer as a 1x1 convolution, or the other way round.
        if len(weight) == 2 and a.shape[2:].numel() == 1:
            a, b = a.flatten(1), b.flatten(1)
        elif len(weight) == 4 and a.ndim == 2:
            a, b = a[..., None, None], b[..., None, None]
        if (b.shape[0], *a.shape[1:]) != weight:
            raise AdapterMismatch(
                f"{module} has weights {weight}, the LoRA is for {(b.shape[0], *a.shape[1:])}"
            )
        fitted[f"{module}.lora_A.weight"] = a
        fitted[f"{module}.lora_B.weight"] = b
    return fitted


def _of_one_rank(lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pad with zeros to the largest rank of UNet or text encoder, which changes nothing that the LoRA computes.

    Older versions of diffusers load a LoRA of several ranks at the wrong strength.
    """
    modules = lora_modules(lora)
    rank: dict[str, int] = {}
    for module, (a, _) in modules.items():
        part = module.partition(".")[0]
        rank[part] = max(rank.get(part, 0), a.shape[0])
    padded = {}
    for module, (a, b) in modules.items():
        more = rank[module.partition(".")[0]] - a.shape[0]
        padded[f"{module}.lora_A.weight"] = torch.cat([a, a.new_zeros(more, *a.shape[1:])])
        padded[f"{module}.lora_B.weight"] = torch.cat([b, b.new_zeros(b.shape[0], more, *b.shape[2:])], dim=1)
    return padded


def _settings(tensors: Mapping[str, Tensor], file: LoraFile) -> dict[str, str | int | float | bool]:
    modules = lora_modules(tensors)
    text = sum(map(is_text_key, modules))
    settings: dict[str, str | int | float | bool] = {
        "rank": max(a.shape[0] for a, _ in modules.values()),
        "modules": len(modules),
    }
    if text:
        settings["text_encoder_modules"] = text
    if file.left_out:
        settings["text_encoder_keys_left_out"] = len(file.left_out)
    return settings
