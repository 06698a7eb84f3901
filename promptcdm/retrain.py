"""Train an adapter again from what its record says, and compare every byte.

    adapter = f(backbone, pictures and captions, settings, versions, device)

All arguments of f are in the record, so an adapter can be checked by whoever has the pictures: the same bytes come out,
or what differs is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptcdm.adapter import Adapter, tensors_of
from promptcdm.adapter_record import AdapterRecord
from promptcdm.backbone import Backbone
from promptcdm.errors import BadInput
from promptcdm.manifest import Manifest, ManifestItem
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.train import OnStep
from promptcdm.train_slices import train_source

_SHOWN = 5  # files that a message names
_CHECKPOINTING: dict[object, str] = {True: "on", False: "off"}


@dataclass(frozen=True)
class Retrained:
    """What training again gave."""

    sha256: str  # "" where it was not trained: its inputs are not there any more
    differing: tuple[str, ...]  # empty: every byte is the same
    notes: tuple[str, ...] = ()  # what was different and did not matter

    @property
    def same(self) -> bool:
        """Whether every byte of the tensors and the log is the same."""
        return not self.differing


def open_recorded(record: AdapterRecord, data: Path | str) -> Source:
    """The source's pictures, with the name, provenance and trigger that the record states. Raises BadSource."""
    return Source.open(
        data,
        record.source,
        license=record.license,
        author=record.author,
        origin=record.origin,
        attribution=record.attribution,
        trigger=record.trigger,
    )


def recorded_settings(record: AdapterRecord) -> TrainSettings:
    """The settings it was trained with; one that did not exist then has its default.

    Raises BadInput for an imported adapter, and for settings that this version does not know.
    """
    if not record.source_digest or record.imported_from:
        raise BadInput(
            f"{record.source} was imported, not trained here; there is nothing to train it again from"
        )
    known = {field.name for field in fields(TrainSettings)}
    unknown = sorted(set(record.settings) - known)
    if unknown:
        raise BadInput(
            f"{record.source} was trained with the settings {', '.join(unknown)}, which this version does not know; "
            "use the version that trained it"
        )
    kept = dict(record.settings)
    again = kept.get("gradient_checkpointing", "auto")
    kept["gradient_checkpointing"] = _CHECKPOINTING.get(again, again)  # older records have true or false
    return TrainSettings(**kept)  # type: ignore[arg-type]


def data_differences(recorded: Manifest, now: Manifest) -> list[str]:
    """One line for each way in which the items are not the recorded ones; empty where they are."""
    then, there = ({item.file: item for item in manifest.items} for manifest in (recorded, now))
    kinds = {
        "gone": sorted(then.keys() - there.keys()),
        "not there then": sorted(there.keys() - then.keys()),
        "other pixels": [],
        "another caption": [],
        "another file of the same pixels": [],
    }
    for file in sorted(then.keys() & there.keys()):
        if then[file] != there[file]:
            kinds[_change(then[file], there[file])].append(file)
    return [f"data: {kind}: {_listed(files)}" for kind, files in kinds.items() if files]


def retrain(
    adapter: Adapter, source: Source, backbone: Backbone, *, on_step: OnStep | None = None
) -> Retrained:
    """Train `adapter` again, from its recorded settings and `source`, and say what differs.

    Nothing is trained where pictures or backbone are others. Raises BadInput as `recorded_settings` does.
    """
    record, manifest = adapter.record, adapter.manifest
    settings = recorded_settings(record)
    assert manifest is not None  # a trained adapter has one
    differing = data_differences(manifest, source.manifest())
    if backbone.digest != record.backbone.digest:
        then, now = record.backbone, backbone
        differing.append(f"backbone: {then.name} {then.digest[:12]} then, {now.name} {now.digest[:12]} now")
    if differing:
        return Retrained("", tuple(differing))
    again = train_source(source, backbone, settings, on_step=on_step)
    differing, notes = _byte_differences(adapter, again), _circumstances(record, again.record)
    if not differing:
        return Retrained(again.sha256, (), tuple(notes))
    notes = notes or ["nothing that is recorded differs: the training does not repeat itself on this device"]
    return Retrained(again.sha256, (*differing, *notes))


def _byte_differences(then: Adapter, now: Adapter) -> list[str]:
    if then.slices:
        pairs = zip(then.slices, now.slices, strict=True)  # the same pictures fall into the same slices
        return [
            f"a slice of {a.record.items} pictures: {line}"
            for a, b in pairs
            for line in _byte_differences(a, b)
        ]
    before, after = (tensors_of(each.lora, each.prompt, each.statistics) for each in (then, now))
    if before.keys() != after.keys():
        return [f"tensors: {len(before)} then, {len(after)} now, of other names"]
    other = [name for name in before if not _same_bytes(before[name], after[name])]
    if other:
        return [f"tensors: {len(other)} of {len(before)} differ{_by_how_much(before, after, other)}"]
    return [] if _results(then.train_log) == _results(now.train_log) else ["train_log: other losses"]


def _results(log: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A log without how the activations were had, which the free memory may have decided."""
    return [{key: value for key, value in row.items() if key != "gradient_checkpointing"} for row in log]


def _by_how_much(before: Mapping[str, Tensor], after: Mapping[str, Tensor], other: list[str]) -> str:
    if any(before[name].shape != after[name].shape for name in other):
        return ", some in shape"
    most = max(float((before[name].double() - after[name].double()).abs().max()) for name in other)
    return f", by up to {most:.2g}"


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    flat = [t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return torch.equal(*flat)


def _circumstances(then: AdapterRecord, now: AdapterRecord) -> list[str]:
    """Versions, device and settings that are others than the recorded ones."""
    lines = [
        f"versions: {name} {then.versions.get(name, 'unknown')} then, {now.versions.get(name, 'unknown')} now"
        for name in sorted({*then.versions, *now.versions})
        if then.versions.get(name) != now.versions.get(name)
    ]
    if then.device != now.device:
        lines.append(f"device: {then.device or 'not recorded'} then, {now.device} now")
    new = sorted(now.settings.keys() - then.settings.keys())
    lines += [f"config: {name} was not recorded; {now.settings[name]!r} now" for name in new]
    return lines


def _change(then: ManifestItem, now: ManifestItem) -> str:
    if then.pixels_sha256 != now.pixels_sha256:
        return "other pixels"
    return (
        "another caption" if then.caption_sha256 != now.caption_sha256 else "another file of the same pixels"
    )


def _listed(files: list[str]) -> str:
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return ", ".join(files[:_SHOWN]) + more
