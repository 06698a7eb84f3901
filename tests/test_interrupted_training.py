"""What goes wrong while a source is trained: a clear message, the last checkpoint whole, nothing half-written."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptcdm.backbone import Backbone
from promptcdm.cli import main
from promptcdm.errors import RunFailed
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.tensorfile import read_tensors
from promptcdm.train import OnStep, train_adapter
from promptcdm.train_all import train_into

FAST = TrainSettings(steps=3, batch_size=2, rank=2, checkpoint_every=1, mixed_precision="no")
Fail = Callable[[], None]


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal: a shell's background job, as CI may be, ignores it from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def failing_from(monkeypatch: pytest.MonkeyPatch, first: int, fail: Fail, *, once: bool) -> Callable[[], int]:
    """Let the `first` wait for the disk, and unless `once` all after it, fail; returns how many there were."""
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == first or (calls > first and not once):
            fail()

    monkeypatch.setattr(os, "fsync", fsync)
    return lambda: calls


@pytest.mark.parametrize(
    ("fail", "once", "error"),
    [(full, False, RunFailed), (interrupt, True, KeyboardInterrupt)],
    ids=["disk full", "Ctrl-C"],
)
def test_wherever_writing_fails_the_same_call_goes_on(
    birds: Source,
    backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fail: Fail,
    once: bool,
    error: type[BaseException],
) -> None:
    """At every wait for the disk of a whole training, from its first checkpoint to the adapter in the store."""
    with monkeypatch.context() as patch:
        count = failing_from(patch, 0, fail, once=True)
        whole = AdapterStore(tmp_path / "whole")
        train_into(whole, birds, backbone, FAST)
    wanted = tree(whole.root / "birds")
    assert count() > 20
    for first in range(1, count() + 1):
        store = AdapterStore(tmp_path / f"failed-{first}")
        with monkeypatch.context() as patch:
            failing_from(patch, first, fail, once=once)
            with pytest.raises(error) as caught:
                train_into(store, birds, backbone, FAST)
        if fail is full:
            assert "cannot be written" in str(caught.value) and "No space left on device" in str(caught.value)
        unfinished = store.checkpoint_folder("birds")
        for path in unfinished.rglob("*"):
            assert path.name == "checkpoint.safetensors", "a part of a file was left"
            read_tensors(path)
        there = store.sources()
        if not there:
            train_into(store, birds, backbone, FAST)
        assert tree(store.root / "birds") == wanted, first
        with store._writing():
            assert not list(store.root.glob(".*"))


def test_a_store_that_cannot_be_written_is_told_before_training(
    birds: Source, backbone: Backbone, store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.root.mkdir()
    opened = os.open

    def read_only(path: str | Path, flags: int, *rest: int) -> int:
        if flags & os.O_CREAT and Path(path).parent == store.root:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *rest)

    steps: list[int] = []

    def watch(name: str, total: int, batch: int) -> nullcontext[OnStep]:
        return nullcontext(lambda step, loss: steps.append(step))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        with pytest.raises(RunFailed, match="adapters cannot be written: Read-only file system"):
            train_into(store, birds, backbone, FAST, watch=watch)
    assert steps == [] and list(store.root.iterdir()) == []
    train_into(store, birds, backbone, FAST, watch=watch)
    assert steps == [1, 2, 3]


def test_a_loss_that_is_not_finite_ends_with_the_checkpoint_before_it(
    birds: Source, backbone: Backbone, tmp_path: Path
) -> None:
    wanted = train_adapter(birds, backbone, replace(FAST, steps=6)).sha256
    partial = tmp_path / "birds.partial"
    weight = backbone.unet.conv_in.weight
    kept = weight.detach().clone()

    def poison(step: int, loss: float) -> None:
        if step == 4:
            weight.data.fill_(torch.nan)

    with pytest.raises(RunFailed, match=r"the loss at step 4 is nan; use a lower learning_rate"):
        train_adapter(birds, backbone, replace(FAST, steps=6), checkpoint=partial, on_step=poison)
    tensors, metadata = read_tensors(partial / "checkpoint.safetensors")
    assert metadata["step"] == "4"
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    weight.data.copy_(kept)
    assert train_adapter(birds, backbone, replace(FAST, steps=6), checkpoint=partial).sha256 == wanted


def test_ctrl_c_in_the_command_is_one_line_and_the_same_command_goes_on(
    birds: Source,
    tiny_sd1: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shape = (
        "--steps",
        "3",
        "--batch-size",
        "2",
        "--rank",
        "2",
        "--mixed-precision",
        "no",
        "--checkpoint-every",
        "1",
    )
    command = ["train-adapter", "--source", str(birds.folder), *shape, "--backbone", str(tiny_sd1)]
    command += ["--device", "cpu", "--license", "CC0-1.0"]
    with monkeypatch.context() as patch:
        failing_from(patch, 5, interrupt, once=True)  # the second checkpoint is being written
        with pytest.raises(SystemExit) as stop:
            main(command)
    assert stop.value.code == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert (
        printed.err.splitlines()[-1]
        == "promptcdm: stopped; the same command goes on from the last checkpoint"
    )
    assert read_tensors(tmp_path / "adapters/birds.partial/checkpoint.safetensors")[1]["step"] in ("1", "2")
    with pytest.raises(SystemExit) as done:
        main(command)
    assert done.value.code == 0
    resumed = AdapterStore(tmp_path / "adapters").load("birds").sha256
    assert resumed == train_adapter(birds, Backbone.load(tiny_sd1, device="cpu"), FAST).sha256
