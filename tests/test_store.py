"""The store: names, atomic changes, what it opens, and what it does when something else happens at once."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from made_adapter import made_adapter

from promptcdm import store_lock
from promptcdm.adapter import Adapter, load_adapter, save_adapter
from promptcdm.errors import AdapterMismatch, BadInput, RunFailed, UnknownSource
from promptcdm.store import AdapterStore
from promptcdm.tensorfile import read_json, write_json

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


def _tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_what_is_added_is_listed_and_loaded(store: AdapterStore) -> None:
    assert store.sources() == []
    for name in ("coco", "birds"):
        store.add(made_adapter(name))
    assert store.sources() == ["birds", "coco"]
    assert store.load("coco").sha256 == made_adapter("coco").sha256
    assert store.record("birds").items == 6
    assert sorted(path.name for path in store.root.iterdir()) == ["birds", "coco", "store.lock"]


def test_an_existing_name_is_kept_unless_replaced(store: AdapterStore) -> None:
    store.add(made_adapter(seed=1))
    with pytest.raises(BadInput, match=r"birds exists; --replace writes over it"):
        store.add(made_adapter(seed=2))
    assert store.load("birds").sha256 == made_adapter(seed=1).sha256
    store.add(made_adapter(seed=2), replace=True)
    assert store.load("birds").sha256 == made_adapter(seed=2).sha256
    older = f"birds@1-{made_adapter(seed=1).sha256}"
    assert sorted(path.name for path in store.root.iterdir()) == ["birds", older, "store.lock"]


def test_remove_gives_the_digest_and_leaves_nothing(store: AdapterStore) -> None:
    adapter = made_adapter()
    store.add(adapter)
    store.add(made_adapter("coco"))
    before = _tree(store.root / "coco")
    assert store.remove("birds") == adapter.sha256
    assert store.sources() == ["coco"]
    assert _tree(store.root / "coco") == before
    assert not [path for path in store.root.rglob("*") if "birds" in path.name]
    with pytest.raises(UnknownSource):
        store.remove("birds")


@pytest.mark.parametrize(
    "name", ["nobody", "../birds", "birds/", "birds/.", "", ".", "BIRDS", "router", "a" * 300]
)
def test_unknown_and_impossible_names_get_the_same_words(store: AdapterStore, name: str) -> None:
    store.add(made_adapter())
    for action in (store.load, store.record, store.remove, store.erase):
        with pytest.raises(UnknownSource) as caught:
            action(name)
        words = str(caught.value).replace(ascii(name[:80]), "NAME")
        assert words == "no source NAME that you may use; `promptcdm sources` lists a store's sources"
    assert store.sources() == ["birds"]


def test_nothing_is_written_where_nothing_is_done(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "none")
    assert store.sources() == []
    for action in (store.load, store.remove):
        with pytest.raises(UnknownSource):
            action("birds")
    assert list(tmp_path.iterdir()) == []


def test_only_the_folder_asked_for_is_opened(store: AdapterStore, files_read: list[Path]) -> None:
    for name in ("birds", "coco"):
        store.add(made_adapter(name))
    files_read.clear()
    store.sources()
    assert files_read == []
    store.load("birds")
    assert {path.parent for path in files_read} == {store.root / "birds"}
    assert len(files_read) == 6


def test_a_corrupt_neighbour_disturbs_nobody(store: AdapterStore) -> None:
    for name in ("birds", "coco"):
        store.add(made_adapter(name))
    for path in (store.root / "coco").iterdir():
        path.write_bytes(b"\xff" * 100)
    assert store.load("birds").source == "birds"
    with pytest.raises(AdapterMismatch, match="coco"):
        store.load("coco")
    assert store.remove("coco") == ""


def test_a_folder_under_another_name_is_refused(store: AdapterStore) -> None:
    store.add(made_adapter())
    (store.root / "birds").rename(store.root / "cats")
    with pytest.raises(AdapterMismatch, match=r"cats holds the adapter of birds"):
        store.load("cats")


def test_a_failed_add_leaves_the_old_adapter(store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(made_adapter(seed=1))
    before = _tree(store.root)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunFailed, match="adapters cannot be written: No space left on device"):
            store.add(made_adapter(seed=2), replace=True)
    assert store.load("birds").sha256 == made_adapter(seed=1).sha256
    store.add(made_adapter("coco"))
    store.remove("coco")
    assert _tree(store.root) == before


def _dies_at(step: int, action: Callable[[], object]) -> bool:
    """Do `action` in a child process that is gone at its `step`-th change of the disk; whether it died."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child does nothing that needs other threads
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    calls = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                os._exit(9)
            return function(*arguments, **keywords)

        return wrapper

    for name in ("rename", "replace", "unlink", "mkdir"):
        setattr(Path, name, counted(getattr(Path, name)))
    for name in ("fsync", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))
    try:
        action()
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("action", ["replace", "remove", "rollback", "supersede"])
def test_a_crash_at_any_step_leaves_the_old_adapter_or_the_outcome(store: AdapterStore, action: str) -> None:
    first, second = made_adapter(seed=1), made_adapter(seed=2)
    actions = {
        "replace": lambda: store.add(second, replace=True),
        "remove": lambda: store.remove("birds"),
        "rollback": lambda: store.rollback("birds", second.sha256),
        "supersede": lambda: store.supersede(second, of=first.sha256, drop=lambda version: True),
    }
    step, died, outcomes = 0, True, []
    while died:
        step += 1
        if action in ("rollback", "remove"):
            store.add(second, replace=True)
        store.add(first, replace=True)
        died = _dies_at(step, actions[action])
        outcomes.append(store.load("birds").sha256 if store.sources() == ["birds"] else "none")
        with store._writing():  # the next writer puts everything right
            assert not list(store.root.glob(".*")), step
        if action == "remove" and outcomes[-1] == "none":
            assert list(store.root.iterdir()) == [store.root / "store.lock"]
        if action == "supersede" and outcomes[-1] == second.sha256:
            assert store.versions("birds") == []
        if action == "rollback":  # whichever is current, the other is not lost
            assert {outcomes[-1], *(v.sha256 for v in store.versions("birds"))} == {
                first.sha256,
                second.sha256,
            }
    assert step > {"replace": 30, "remove": 10, "rollback": 5, "supersede": 30}[action]
    outcome = "none" if action == "remove" else second.sha256
    changed = outcomes.index(outcome)
    assert set(outcomes[:changed]) == {first.sha256}
    assert set(outcomes[changed:]) == {outcome}


def test_readers_see_one_adapter_or_the_other_while_it_is_replaced(store: AdapterStore) -> None:
    allowed = {made_adapter(seed=seed).sha256 for seed in (1, 2)}
    store.add(made_adapter(seed=1))
    stop = threading.Event()
    seen: list[str] = []
    errors: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                seen.append(store.load("birds").sha256)
            except Exception as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for seed in (2, 1) * 10:
        store.add(made_adapter(seed=seed), replace=True)
    stop.set()
    reader.join()
    assert errors == []
    assert seen
    assert set(seen) <= allowed


def test_a_reader_whom_writers_outrun_tries_again_and_at_last_says_so(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(made_adapter(seed=1))
    attempts: list[Path] = []

    def outrun(folder: Path, until: int) -> Adapter:
        attempts.append(folder)
        if len(attempts) > until:
            return load_adapter(folder)
        store.add(made_adapter(seed=1 + len(attempts) % 2), replace=True)
        raise AdapterMismatch("half of each")

    monkeypatch.setattr("promptcdm.store.load_adapter", partial(outrun, until=7))
    assert store.load("birds").sha256 == made_adapter(seed=2).sha256
    assert len(attempts) == 8
    monkeypatch.setattr("promptcdm.store.load_adapter", partial(outrun, until=10**9))
    monkeypatch.setattr("promptcdm.store.READ_SECONDS", 0.2)
    with pytest.raises(RunFailed, match="was replaced again and again"):
        store.load("birds")


def test_writers_wait_for_each_other(store: AdapterStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(made_adapter())
    with store._writing():
        monkeypatch.setattr(store_lock, "LOCK_SECONDS", 0.05)
        with pytest.raises(RunFailed, match=r"store\.lock is held by another process"):
            store.add(made_adapter("coco"))
        assert store.load("birds").source == "birds"
    store.add(made_adapter("coco"))


def test_unfinished_training_of_others_is_left_alone(store: AdapterStore) -> None:
    store.add(made_adapter())
    for name in ("birds", "coco"):
        store.checkpoint_folder(name).mkdir()
        (store.checkpoint_folder(name) / "checkpoint.safetensors").write_bytes(b"x")
    erased = store.erase("birds")
    assert erased.files == len(list(_tree_names(made_adapter().source))) + 1
    assert sorted(path.name for path in store.root.iterdir()) == ["coco.partial", "store.lock"]
    assert store.erase("coco").files == 1
    with pytest.raises(BadInput, match="source name"):
        store.checkpoint_folder("../x")


def _tree_names(source: str) -> list[str]:
    lora = ["pytorch_lora_weights.safetensors", f"{source}.safetensors"]
    return [*lora, "adapter.json", "router.safetensors", "manifest.json", "train_log.jsonl", "README.md"]


def test_a_linked_folder_is_refused(store: AdapterStore, tmp_path: Path) -> None:
    save_adapter(made_adapter(), tmp_path / "elsewhere/birds")
    store.add(made_adapter("coco"))
    (store.root / "birds").symlink_to(tmp_path / "elsewhere/birds", target_is_directory=True)
    assert store.sources() == ["coco"]
    for action in (store.load, store.remove):
        with pytest.raises(AdapterMismatch, match=r"birds is a link; a store holds its adapters itself"):
            action("birds")
    with pytest.raises(AdapterMismatch, match="is a link"):
        store.add(made_adapter(), replace=True)
    assert _tree(tmp_path / "elsewhere")


def test_a_file_where_a_folder_should_be(store: AdapterStore, tmp_path: Path) -> None:
    store.root.mkdir()
    (store.root / "birds").write_text("x")
    assert store.sources() == []
    with pytest.raises(BadInput, match="birds exists"):
        store.add(made_adapter(), replace=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFailed, match="file cannot be written"):
        AdapterStore(tmp_path / "file").add(made_adapter())


def test_adding_checks_name_and_content(store: AdapterStore) -> None:
    with pytest.raises(BadInput, match="source name"):
        store.add(made_adapter("router"))
    store.add(made_adapter())
    write_json(store.root / "birds/adapter.json", read_json(store.root / "birds/adapter.json") | {"items": 7})
    with pytest.raises(AdapterMismatch, match="disagree about items"):
        store.load("birds")
    with pytest.raises(AdapterMismatch, match="its tensors have digest"):
        store.add(made_adapter("coco", sha256="0" * 64))
    assert store.sources() == ["birds"]
