"""Older versions: kept when a source is replaced, loaded by digest, brought back, and forgotten with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_adapter import made_adapter

from promptcdm.errors import AdapterMismatch, BadInput, UnknownSource
from promptcdm.forget import forget
from promptcdm.store import AdapterStore
from promptcdm.tensorfile import read_json, write_json
from promptcdm.versions import source_of

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

DIGESTS = [made_adapter(seed=seed).sha256 for seed in range(3)]


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    """birds trained three times, and cars once."""
    store = AdapterStore(tmp_path / "adapters")
    for seed in range(3):
        store.add(made_adapter(seed=seed), replace=True)
    store.add(made_adapter("cars", seed=9))
    return store


def _older(store: AdapterStore) -> list[str]:
    return [version.sha256 for version in store.versions("birds")]


def test_what_was_replaced_is_loaded_by_the_first_digits_of_its_digest(store: AdapterStore) -> None:
    assert store.sources() == ["birds", "cars"]
    assert store.load("birds").sha256 == DIGESTS[2]
    assert _older(store) == DIGESTS[:2]
    older = [f"birds@{digest[:12]}" for digest in DIGESTS[:2]]
    assert store.references() == ["birds", *older, "cars"]
    for digest in DIGESTS:  # the current one has a digest too
        for reference in (f"birds@{digest}", f"birds@{digest[:6]}"):
            assert store.load(reference).sha256 == store.record(reference).sha256 == digest
            assert store.load(reference).source == source_of(reference) == "birds"


@pytest.mark.parametrize(
    "reference", ["birds@", "birds@12345", "birds@BEEFBEEF", "birds@../../x", "birds@000000", "@abcdef"]
)
def test_what_is_no_version_has_the_words_of_an_unknown_source(store: AdapterStore, reference: str) -> None:
    for action in (store.load, store.record, store.erase):
        with pytest.raises(UnknownSource, match="that you may use"):
            action(reference)
    with pytest.raises(UnknownSource):
        store.load(f"cars@{DIGESTS[0]}")


def test_digits_of_two_versions_are_not_guessed_between(tmp_path: Path, store: AdapterStore) -> None:
    twin = f"{DIGESTS[0][:6]}{'0' * 58}"
    (store.root / f"birds@7-{twin}").mkdir()
    with pytest.raises(BadInput, match=rf"birds@{twin[:6]} may be .* give more digits"):
        store.load(f"birds@{twin[:6]}")
    assert store.load(f"birds@{DIGESTS[0]}").sha256 == DIGESTS[0]


def test_the_same_adapter_again_leaves_no_version(store: AdapterStore) -> None:
    store.add(made_adapter(seed=2), replace=True)
    assert _older(store) == DIGESTS[:2]
    store.add(
        made_adapter(seed=0), replace=True
    )  # an older one trained again: current, and no version any more
    assert store.load("birds").sha256 == DIGESTS[0]
    assert _older(store) == DIGESTS[1:]


def test_rollback_brings_back_what_was_replaced_last_and_undoes_itself(store: AdapterStore) -> None:
    assert store.rollback("birds") == (DIGESTS[2], DIGESTS[1])
    assert store.load("birds").sha256 == DIGESTS[1]
    assert _older(store) == [DIGESTS[0], DIGESTS[2]]
    assert store.rollback("birds") == (DIGESTS[1], DIGESTS[2])
    assert store.rollback("birds", DIGESTS[0][:8]) == (DIGESTS[2], DIGESTS[0])
    assert store.load(f"birds@{DIGESTS[2]}").sha256 == DIGESTS[2]


def test_rollback_says_what_it_cannot_do(store: AdapterStore) -> None:
    with pytest.raises(BadInput, match="cars has no older version"):
        store.rollback("cars")
    with pytest.raises(BadInput, match=f"its other versions: {DIGESTS[0][:12]}, {DIGESTS[1][:12]}"):
        store.rollback("birds", DIGESTS[2])
    for name, digits in (("birds", "000000"), ("nobody", "")):
        with pytest.raises(UnknownSource):
            store.rollback(name, digits)
    broken = store.root / store.versions("birds")[0].folder
    (broken / "router.safetensors").write_bytes(b"x")
    with pytest.raises(AdapterMismatch):
        store.rollback("birds", DIGESTS[0])
    assert store.load("birds").sha256 == DIGESTS[2]


def test_a_version_under_anothers_digest_is_refused(store: AdapterStore) -> None:
    first, second = (store.root / version.folder for version in store.versions("birds"))
    first.rename(store.root / "aside")
    second.rename(first)
    with pytest.raises(AdapterMismatch, match="a version's folder has its digest"):
        store.load(f"birds@{DIGESTS[0]}")


def test_what_cannot_be_read_is_replaced_and_not_kept(store: AdapterStore) -> None:
    record = store.root / "birds/adapter.json"
    write_json(record, read_json(record) | {"sha256": "../../../x"})
    store.add(made_adapter(seed=5), replace=True)
    assert _older(store) == DIGESTS[:2]


def test_forgetting_takes_every_version(store: AdapterStore) -> None:
    receipt = forget("birds", store=store)
    assert (receipt.sha256, receipt.versions, receipt.files) == (DIGESTS[2], DIGESTS[:2], 21)
    assert all(digest in receipt.text() for digest in DIGESTS)
    assert sorted(path.name for path in store.root.iterdir()) == ["cars", "forgotten.jsonl", "store.lock"]
    for path in store.root.rglob("*"):
        assert "birds" not in path.name
        assert path.is_dir() or b"birds" not in path.read_bytes()


def test_one_older_version_can_be_forgotten_alone(store: AdapterStore) -> None:
    receipt = forget(f"birds@{DIGESTS[0][:9]}", store=store)
    assert (receipt.sha256, receipt.versions, receipt.files) == (DIGESTS[0], [], 7)
    assert _older(store) == [DIGESTS[1]]
    assert json.loads((store.root / "forgotten.jsonl").read_text())["sha256"] == DIGESTS[0]
    with pytest.raises(UnknownSource):
        store.load(f"birds@{DIGESTS[0]}")
    with pytest.raises(BadInput, match="is the current version"):
        forget(f"birds@{DIGESTS[2]}", store=store)


def test_versions_of_a_source_alone_are_forgotten_too(store: AdapterStore) -> None:
    for path in (store.root / "birds").iterdir():
        path.unlink()
    (store.root / "birds").rmdir()
    assert store.sources() == ["cars"]
    assert forget("birds", store=store).versions == DIGESTS[:2]
    assert not list(store.root.glob("birds*"))
