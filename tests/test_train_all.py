"""Many sources in a row: each as if alone, one failure among them, and the same call again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from promptcdm.backbone import Backbone
from promptcdm.errors import BadInput
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.train import OnStep, train_adapter
from promptcdm.train_all import train_all

FAST = TrainSettings(steps=4, batch_size=4, rank=2, checkpoint_every=2, mixed_precision="no")
Draw = Callable[..., Path]


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


@pytest.fixture
def folder(tmp_path: Path, toy_source: Draw) -> Path:
    """birds, cars, and between them one that holds nothing."""
    folder = tmp_path / "sources"
    folder.mkdir()
    toy_source(folder, "birds", "red")
    toy_source(folder, "cars", "blue")
    (folder / "bogs").mkdir()
    (folder / ".cache").mkdir()
    return folder


def test_one_failure_does_not_stop_the_others_and_each_is_as_if_alone(
    folder: Path, backbone: Backbone, store: AdapterStore
) -> None:
    outcomes = train_all(folder, backbone, FAST, store=store)
    assert [(o.source, o.state) for o in outcomes] == [
        ("birds", "trained"),
        ("bogs", "failed"),
        ("cars", "trained"),
    ]
    assert outcomes[1].items == 0 and "bogs" in outcomes[1].what
    assert store.sources() == ["birds", "cars"]
    for outcome in (outcomes[0], outcomes[2]):
        alone = train_adapter(Source.open(folder / outcome.source), backbone, FAST)
        assert outcome.what == alone.sha256 == store.load(outcome.source).sha256
    assert not any(path.name.endswith(".partial") for path in store.root.iterdir())


def test_given_again_what_stands_is_kept_and_what_changed_is_told_or_replaced(
    folder: Path, backbone: Backbone, store: AdapterStore
) -> None:
    first = train_all(folder, backbone, FAST, store=store)
    again = train_all(folder, backbone, FAST, store=store)
    assert [o.state for o in again] == ["kept", "failed", "kept"]
    assert [o.what for o in again if o.state == "kept"] == [o.what for o in first if o.state == "trained"]
    other = replace(FAST, seed=1)
    told = train_all(folder, backbone, other, store=store)
    assert [o.state for o in told] == ["failed"] * 3
    assert "--replace trains it again" in told[0].what
    assert store.load("birds").sha256 == first[0].what
    assert [o.state for o in train_all(folder, backbone, other, store=store, replace=True)] == [
        "trained",
        "failed",
        "trained",
    ]
    assert store.load("birds").sha256 != first[0].what


def test_another_trigger_is_another_training(folder: Path, backbone: Backbone, store: AdapterStore) -> None:
    train_all(folder, backbone, FAST, store=store)
    facts = folder / "birds" / "source.toml"
    facts.write_text(facts.read_text(encoding="utf-8") + 'trigger = "brd"\n', encoding="utf-8")
    assert [o.state for o in train_all(folder, backbone, FAST, store=store)] == ["failed", "failed", "kept"]
    again = train_all(folder, backbone, FAST, store=store, replace=True)
    assert [o.state for o in again] == ["trained", "failed", "kept"]


def test_an_interrupted_row_goes_on_where_it_stopped(
    folder: Path, backbone: Backbone, store: AdapterStore
) -> None:
    whole = AdapterStore(store.root.with_name("whole"))
    wanted = [o.what for o in train_all(folder, backbone, FAST, store=whole) if o.state == "trained"]
    steps: list[tuple[str, int]] = []

    @contextmanager
    def watched(source: str, total: int, batch_size: int, stop: bool = True) -> Iterator[OnStep]:
        def on_step(step: int, loss: float) -> None:
            steps.append((source, step))
            if stop and (source, step) == ("cars", 3):
                raise KeyboardInterrupt

        yield on_step

    with pytest.raises(KeyboardInterrupt):
        train_all(folder, backbone, FAST, store=store, watch=watched)
    assert store.sources() == ["birds"]
    steps.clear()
    outcomes = train_all(
        folder, backbone, FAST, store=store, watch=lambda *facts: watched(*facts, stop=False)
    )
    assert steps == [("cars", 3), ("cars", 4)]
    assert [o.state for o in outcomes] == ["kept", "failed", "trained"]
    assert [o.what for o in outcomes if o.state != "failed"] == wanted


def test_a_folder_without_sources_is_refused(tmp_path: Path, backbone: Backbone, store: AdapterStore) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        train_all(tmp_path / "nowhere", backbone, FAST, store=store)
    with pytest.raises(BadInput, match="holds no folder"):
        train_all(tmp_path, backbone, FAST, store=store)
