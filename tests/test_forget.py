"""Forgetting: nothing is left, the rest is untouched, and the receipt says no more than it may."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_adapter import made_adapter

from promptcdm.errors import UnknownSource
from promptcdm.forget import forget
from promptcdm.store import AdapterStore

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


def _tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_a_store_that_forgot_equals_one_that_never_knew(tmp_path: Path) -> None:
    knew, never = AdapterStore(tmp_path / "knew"), AdapterStore(tmp_path / "never")
    knew.add(made_adapter("zebras", seed=1))
    for store in (knew, never):
        store.add(made_adapter("birds"))
    assert _tree(knew.root) != _tree(never.root)
    knew.checkpoint_folder("zebras").mkdir()
    (knew.checkpoint_folder("zebras") / "checkpoint.safetensors").write_bytes(b"unfinished")
    forget("zebras", store=knew)
    left = _tree(knew.root)
    assert left.pop("forgotten.jsonl")
    assert left == _tree(never.root)
    assert knew.sources() == never.sources() == ["birds"]


def test_the_kept_line_has_digests_and_neither_name_nor_time(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    adapter = made_adapter("zebras", imported_from="org/zebra-lora")
    store.add(adapter)
    size = sum(path.stat().st_size for path in (tmp_path / "zebras").iterdir())
    receipt = forget("zebras", store=store)
    line = json.loads((tmp_path / "forgotten.jsonl").read_text())
    digests = {"sha256": adapter.sha256, "backbone": "b" * 64, "versions": []}
    assert line == {"format": 1, **digests, "files": 7, "bytes": size}
    assert (receipt.files, receipt.bytes, receipt.sha256) == (7, size, adapter.sha256)
    for path in tmp_path.rglob("*"):
        assert "zebra" not in path.name
        assert b"zebra" not in path.read_bytes()


def test_the_receipt_for_people_says_what_was_not_reached(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    store.add(made_adapter("birds"))
    receipt = forget("birds", store=store)
    text = receipt.text()
    assert text == str(receipt)
    assert "7 files" in text
    for place in ("copies of the adapter outside this store", "pictures that were made with it", "in memory"):
        assert place in text
    assert "Hugging Face cache" not in text


def test_the_hub_cache_is_named_where_it_matters(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    store.add(made_adapter("hub", trained=False, imported_from="org/lora"))
    assert "Hugging Face cache" in str(forget("hub", store=store))


def test_receipts_are_appended(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    for seed in (1, 2):
        store.add(made_adapter(seed=seed))
        forget("birds", store=store)
    lines = (tmp_path / "forgotten.jsonl").read_text().splitlines()
    assert [json.loads(line)["sha256"] for line in lines] == [made_adapter(seed=s).sha256 for s in (1, 2)]


def test_an_unreadable_adapter_can_be_forgotten(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    store.add(made_adapter())
    (tmp_path / "birds/adapter.json").write_text("{")
    receipt = forget("birds", store=store)
    assert (receipt.sha256, receipt.files) == ("", 7)
    assert "could not be read" in receipt.text()
    assert not (tmp_path / "birds").exists()


def test_unfinished_training_alone_can_be_forgotten(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    store.checkpoint_folder("birds").mkdir()
    assert forget("birds", store=store).files == 0
    assert not store.checkpoint_folder("birds").exists()


def test_an_unknown_source_leaves_no_receipt(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    store.add(made_adapter())
    before = _tree(tmp_path)
    with pytest.raises(UnknownSource):
        forget("zebras", store=store)
    assert _tree(tmp_path) == before
