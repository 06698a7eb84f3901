"""Forget some pictures of a source: train again what saw them, and delete every version that did.

A slice that never held the pictures is kept byte for byte; the others are trained from what is left. Since a slice's
adapter is a function of its own pictures, the outcome is what training the whole source without them would have given.
A source that is one whole is trained again whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.errors import AdapterMismatch, BadInput, RunFailed
from promptcdm.forget import Receipt, receipt_of
from promptcdm.manifest import Manifest, ManifestItem
from promptcdm.retrain import data_differences, recorded_settings
from promptcdm.settings import TrainSettings
from promptcdm.slices import slices_of
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.train import OnStep
from promptcdm.train_slices import checkpoint_name, train_source


@dataclass(frozen=True)
class ItemsPlan:
    """What will be forgotten, checked before any model is loaded."""

    adapter: Adapter  # the current one
    files: tuple[str, ...]  # what goes of it; empty where only older versions hold the pictures
    pixels: frozenset[str]  # digests of the pictures
    versions: tuple[str, ...]  # digests of the older versions that go
    remaining: Source  # what is left

    @property
    def settings(self) -> TrainSettings:
        """What the source was trained with."""
        return recorded_settings(self.adapter.record)

    @property
    def parts(self) -> tuple[Source, ...]:
        """The slices that are left, or the one whole."""
        k = self.settings.slices
        return tuple(slices_of(self.remaining, k).values()) if k > 1 else (self.remaining,)


def plan_items(name: str, wanted: Sequence[str], source: Source, *, store: AdapterStore) -> ItemsPlan:
    """Find the pictures `wanted`, named by file or by sha256, in every version; `source` is the source's folder now.

    A picture goes with all its exact copies. Raises BadInput where one is in no version, where nothing would be left,
    and where the folder does not hold what is left exactly as it was trained on.
    """
    adapter = store.load(name)
    recorded_settings(adapter.record)
    held = {version.sha256: _manifest(store, f"{name}@{version.sha256}") for version in store.versions(name)}
    assert adapter.manifest is not None  # recorded_settings refuses what was imported
    known = [item for manifest in (adapter.manifest, *held.values()) if manifest for item in manifest.items]
    pixels = frozenset(digest for line in wanted for digest in _pixels(line, known, name))
    if not pixels:
        raise BadInput(f"no picture of {name} is named; give a line for each, its file name or sha256")
    files = tuple(item.file for item in adapter.manifest.items if item.pixels_sha256 in pixels)
    left = tuple(item for item in adapter.manifest.items if item.file not in files)
    if not left:
        raise BadInput(f"these are all pictures of {name}; forget it whole: promptcdm forget {name}")
    remaining = replace(
        source, items=tuple(item for item in source.items if item.pixels_sha256 not in pixels)
    )
    if files:
        _check_left(name, adapter.manifest.model_copy(update={"items": list(left)}), remaining.manifest())
    versions = tuple(sha256 for sha256, manifest in held.items() if _holds(manifest, pixels))
    return ItemsPlan(adapter, files, pixels, versions, remaining)


def forget_items(
    plan: ItemsPlan, backbone: Backbone | None, *, store: AdapterStore, on_step: OnStep | None = None
) -> tuple[Adapter, Receipt]:
    """Train what is needed, put it in its place, delete what saw the pictures; the adapter now, and the receipt.

    `backbone` may be None where `plan.files` is empty. Interrupted, it goes on when it is called again; until then the
    old adapter stands. Raises BadInput for another backbone, RunFailed where the source was changed meanwhile.
    """
    record = plan.adapter.record
    name = record.source
    if not plan.files:
        return plan.adapter, _forget_versions(plan, store)
    if backbone is None or backbone.digest != record.backbone.digest:
        given = f"{backbone.name} {backbone.digest[:12]}" if backbone else "none"
        raise BadInput(
            f"{name} was trained on {record.backbone.name} {record.backbone.digest[:12]}, and this is {given}; "
            "name its backbone with --backbone"
        )
    store.check_writable()
    partial = store.checkpoint_folder(name)
    _drop_others(partial, [checkpoint_name(part) for part in plan.parts])
    whole = plan.settings.slices == 1
    adapter = train_source(
        plan.remaining,
        backbone,
        plan.settings,
        checkpoint=partial / checkpoint_name(plan.remaining) if whole else partial,
        on_step=on_step,
        known=plan.adapter.slices,
        keep=lambda kept, part, *_: _of_the_same(kept, part),
    )
    exports = store.exports(name)
    erased = store.supersede(
        adapter,
        of=plan.adapter.sha256,
        drop=lambda version: _holds(_manifest(store, f"{name}@{version.sha256}"), plan.pixels),
    )
    receipt = receipt_of(replace(erased, exports=exports))
    receipt = receipt.model_copy(update={"items": len(plan.files), "successor": adapter.sha256})
    store.append_receipt(receipt.line())
    return adapter, receipt


def check_forgotten(plan: ItemsPlan, backbone: Backbone, adapter: Adapter) -> None:
    """Train everything that is left from nothing. Raises RunFailed unless that gives `adapter`, byte for byte."""
    again = train_source(plan.remaining, backbone, plan.settings)
    if again.sha256 != adapter.sha256:
        raise RunFailed(
            f"{adapter.source}: training without these pictures gives {again.sha256[:12]}, and the store holds "
            f"{adapter.sha256[:12]}: slices that were kept came from other versions or another device. The pictures "
            "are forgotten all the same; train-adapter --replace makes all slices anew"
        )


def kept_slices(before: Adapter, after: Adapter) -> int:
    """How many slices of `after` stood in `before`, byte for byte."""
    return len({part.sha256 for part in before.slices} & {part.sha256 for part in after.slices})


def _forget_versions(plan: ItemsPlan, store: AdapterStore) -> Receipt:
    """The current adapter never held the pictures: older versions did, and go."""
    name = plan.adapter.source
    erased = [store.erase(f"{name}@{sha256}") for sha256 in plan.versions]
    total = replace(
        erased[0],
        sha256="",
        files=sum(each.files for each in erased),
        bytes=sum(each.bytes for each in erased),
        versions=plan.versions,
        exports=store.exports(name),
    )
    receipt = receipt_of(total).model_copy(
        update={"items": len(plan.pixels), "successor": plan.adapter.sha256}
    )
    store.append_receipt(receipt.line())
    return receipt


def _pixels(line: str, known: Sequence[ManifestItem], name: str) -> set[str]:
    found = {i.pixels_sha256 for i in known if line in (i.file, i.sha256, i.pixels_sha256)}
    if not found:
        raise BadInput(f"{line[:200]!a} is no picture that {name} was trained on, by file name or sha256")
    return found


def _manifest(store: AdapterStore, reference: str) -> Manifest | None:
    """What a version was trained on; None where it cannot be told."""
    try:
        return store.load(reference).manifest
    except AdapterMismatch:
        return None


def _holds(manifest: Manifest | None, pixels: frozenset[str]) -> bool:
    """Whether one of the pictures is in it. What cannot be told counts as held."""
    return manifest is None or any(item.pixels_sha256 in pixels for item in manifest.items)


def _check_left(name: str, left: Manifest, now: Manifest) -> None:
    differing = data_differences(left, now)
    if differing:
        raise BadInput(
            f"the folder does not hold what is left of {name} as it was trained on: {'; '.join(differing)}; "
            "put it right, or train the source as it is now with train-adapter --replace and forget its older versions"
        )


def _of_the_same(adapter: Adapter, part: Source) -> bool:
    return adapter.record.source_digest == part.manifest().merkle_root


def _drop_others(partial: Path, folders: Sequence[str]) -> None:
    """Delete what an unfinished training of other pictures left: it may hold some that are to be forgotten."""
    for path in partial.iterdir() if partial.is_dir() else ():
        if path.name not in folders:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
