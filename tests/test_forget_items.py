"""Forgetting some pictures: byte for byte what training without them gives, and no version that saw them is left."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from promptcdm.backbone import Backbone
from promptcdm.errors import BadInput, RunFailed, UnknownSource
from promptcdm.export import export_adapter
from promptcdm.forget_items import check_forgotten, forget_items, kept_slices, plan_items
from promptcdm.retrain import open_recorded
from promptcdm.settings import TrainSettings
from promptcdm.slices import slice_number
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.train_all import train_into
from promptcdm.train_slices import train_source

FAST = TrainSettings(steps=4, batch_size=4, rank=2, checkpoint_every=2, mixed_precision="no", slices=3)
WHOLE = replace(FAST, slices=1)
GONE = "large-circle.png"
Draw = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, toy_source: Draw) -> Path:
    return toy_source(tmp_path, "birds", "red")


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


def removed(folder: Path, *files: str) -> Source:
    """The source after its owner deleted these files."""
    rows = folder / "metadata.jsonl"
    kept = [line for line in rows.read_text().splitlines() if json.loads(line)["file_name"] not in files]
    rows.write_text("".join(f"{line}\n" for line in kept))
    for file in files:
        (folder / file).unlink()
    return Source.open(folder)


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("settings", [FAST, WHOLE], ids=["slices", "whole"])
@pytest.mark.parametrize("deleted_before", [True, False], ids=["file gone", "file there"])
def test_the_store_equals_one_that_never_saw_the_picture(
    folder: Path, store: AdapterStore, backbone: Backbone, settings: TrainSettings, deleted_before: bool
) -> None:
    before = train_into(store, Source.open(folder), backbone, settings)
    if deleted_before:
        removed(folder, GONE)
    plan = plan_items("birds", [GONE], Source.open(folder), store=store)
    steps: list[int] = []
    after, receipt = forget_items(plan, backbone, store=store, on_step=lambda step, loss: steps.append(step))
    check_forgotten(plan, backbone, after)
    never = AdapterStore(store.root.with_name("never"))
    without = Source.open(folder) if deleted_before else removed(folder, GONE)
    train_into(never, without, backbone, settings)
    left = tree(store.root)
    assert json.loads(left.pop("forgotten.jsonl"))["sha256"] == before.sha256
    assert left == tree(never.root)
    assert (receipt.items, receipt.sha256, receipt.successor) == (1, before.sha256, after.sha256)
    assert store.load("birds").sha256 == after.sha256 != before.sha256
    with pytest.raises(UnknownSource):
        store.load(f"birds@{before.sha256}")
    assert len(steps) <= settings.steps, "one slice alone is trained, or none where it is empty now"
    if settings.slices > 1:
        assert kept_slices(before, after) == len(before.slices) - 1


def test_every_version_that_saw_it_goes_and_others_stay(
    folder: Path, store: AdapterStore, backbone: Backbone, tmp_path: Path
) -> None:
    whole = Source.open(folder)
    held = [train_into(store, whole, backbone, replace(WHOLE, seed=s), replace=True).sha256 for s in (0, 1)]
    lines = (folder / "metadata.jsonl").read_text()
    picture = (folder / GONE).read_bytes()
    clean = train_into(store, removed(folder, GONE), backbone, WHOLE, replace=True).sha256
    (folder / "metadata.jsonl").write_text(lines)
    (folder / GONE).write_bytes(picture)
    current = train_into(store, Source.open(folder), backbone, replace(WHOLE, seed=2), replace=True).sha256
    export_adapter("birds", store=store, format="kohya", out=tmp_path / "out")
    plan = plan_items("birds", [whole.items[0].sha256], Source.open(folder), store=store)
    assert set(plan.versions) == set(held)
    after, receipt = forget_items(plan, backbone, store=store)
    # Trained with seed 2, so not the version that is kept.
    assert [version.sha256 for version in store.versions("birds")] == [clean]
    assert receipt.sha256 == current and set(receipt.versions) == set(held)
    assert "exported as kohya" in receipt.text() and f"now:       adapter {after.sha256}" in receipt.text()


def test_a_picture_that_only_an_older_version_saw_needs_no_training(
    folder: Path, store: AdapterStore, backbone: Backbone
) -> None:
    old = train_into(store, Source.open(folder), backbone, WHOLE)
    now = train_into(store, removed(folder, GONE), backbone, WHOLE, replace=True)
    plan = plan_items("birds", [GONE], Source.open(folder), store=store)
    assert plan.files == () and plan.versions == (old.sha256,)
    after, receipt = forget_items(plan, backbone, store=store)
    assert after.sha256 == now.sha256 and store.versions("birds") == []
    assert receipt.versions == [old.sha256] and receipt.items == 1
    with pytest.raises(BadInput, match="is no picture that birds was trained on"):
        plan_items("birds", [GONE], Source.open(folder), store=store)


def test_all_exact_copies_go_with_a_picture(folder: Path, store: AdapterStore, backbone: Backbone) -> None:
    Image.open(folder / GONE).save(folder / "copy.png", compress_level=0)
    with (folder / "metadata.jsonl").open("a") as rows:
        rows.write('{"file_name": "copy.png", "text": "the same again"}\n')
    train_into(store, Source.open(folder), backbone, FAST)
    plan = plan_items("birds", [GONE], Source.open(folder), store=store)
    assert plan.files == ("copy.png", GONE)
    copies = [item for item in Source.open(folder).items if item.file in plan.files]
    assert len({slice_number(item.pixels_sha256, 3) for item in copies}) == 1
    after, _ = forget_items(plan, backbone, store=store)
    assert after.record.items == 5


def test_an_interrupted_forgetting_leaves_the_old_adapter_and_goes_on(
    folder: Path, store: AdapterStore, backbone: Backbone
) -> None:
    before = train_into(store, Source.open(folder), backbone, WHOLE)
    partial = store.checkpoint_folder("birds")
    partial.mkdir()
    (partial / "checkpoint.safetensors").write_bytes(b"of the picture that goes")
    plan = plan_items("birds", [GONE], Source.open(folder), store=store)

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forget_items(plan, backbone, store=store, on_step=stop)
    assert store.load("birds").sha256 == before.sha256
    assert not (partial / "checkpoint.safetensors").exists()
    steps: list[int] = []
    after, _ = forget_items(plan, backbone, store=store, on_step=lambda step, loss: steps.append(step))
    assert steps == [3, 4]
    assert after.sha256 == train_source(plan.remaining, backbone, WHOLE).sha256
    assert not partial.exists()


def test_what_cannot_be_forgotten_is_said_before_anything_is_done(
    folder: Path, store: AdapterStore, backbone: Backbone, tiny_sd2: Path
) -> None:
    adapter = train_into(store, Source.open(folder), backbone, WHOLE)
    before = tree(store.root)
    source = Source.open(folder)
    every = [item.file for item in source.items]
    for wanted, words in (
        (["no.png"], "'no.png' is no picture that birds was trained on"),
        ([], "no picture of birds is named"),
        (every, "these are all pictures of birds; forget it whole"),
    ):
        with pytest.raises(BadInput, match=words):
            plan_items("birds", wanted, source, store=store)
    plan = plan_items("birds", [GONE], source, store=store)
    with pytest.raises(BadInput, match=r"birds was trained on sd1 .* and this is sd2"):
        forget_items(plan, Backbone.load(tiny_sd2, device="cpu"), store=store)
    with pytest.raises(UnknownSource):
        plan_items("nobody", [GONE], source, store=store)
    other = removed(folder, "small-circle.png")
    with pytest.raises(BadInput, match=r"what is left of birds .* data: gone: small-circle.png"):
        plan_items("birds", [GONE], other, store=store)
    assert tree(store.root) == before
    assert open_recorded(adapter.record, folder).license == adapter.record.license


def test_a_source_that_was_replaced_meanwhile_is_left_as_it_is(
    folder: Path, store: AdapterStore, backbone: Backbone
) -> None:
    train_into(store, Source.open(folder), backbone, WHOLE)
    plan = plan_items("birds", [GONE], Source.open(folder), store=store)
    newer = train_into(store, Source.open(folder), backbone, replace(WHOLE, seed=5), replace=True)
    with pytest.raises(RunFailed, match="was replaced meanwhile"):
        forget_items(plan, backbone, store=store)
    assert store.load("birds").sha256 == newer.sha256


def test_a_kept_slice_of_another_version_fails_the_check(
    folder: Path, store: AdapterStore, backbone: Backbone
) -> None:
    train_into(store, Source.open(folder), backbone, FAST)
    plan = plan_items("birds", [GONE], Source.open(folder), store=store)
    after, _ = forget_items(plan, backbone, store=store)
    other = train_source(plan.remaining, backbone, replace(FAST, seed=1))
    with pytest.raises(RunFailed, match="The pictures are forgotten all the same"):
        check_forgotten(plan, backbone, other)
    check_forgotten(plan, backbone, after)
