"""Several processes that train one source: the same adapter as one, to the order of sums."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from promptcdm.errors import BadInput
from promptcdm.processes import ALONE, Processes, these_processes
from promptcdm.source import Source
from promptcdm.store import AdapterStore

FLAGS = ("--steps", "4", "--batch-size", "3", "--rank", "2", "--device", "cpu", "--mixed-precision", "no")
MORE = ("--kind", "lora+prompt", "--held-out", "0.4", "--held-out-every", "2", "--gradient-accumulation", "2")


def test_the_rows_of_a_step_are_dealt_out_whole() -> None:
    for count in (1, 2, 3, 5):
        shares = [Processes(i, count).share(7) for i in range(count)]
        assert [row for share in shares for row in range(7)[share]] == list(range(7))
        assert max(s.stop - s.start for s in shares) - min(s.stop - s.start for s in shares) <= 1
    with pytest.raises(BadInput, match="a step has 2 pictures for 3 processes"):
        Processes(0, 3).share(2)


def test_one_process_alone_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert these_processes() is ALONE and ALONE.main and not Processes(1, 2).main
    tensor = torch.ones(3)
    ALONE.add_up([tensor])
    assert tensor.tolist() == [1, 1, 1]
    assert ALONE.of_main(0.5, torch.device("cpu")) == 0.5
    ALONE.end()


def test_what_several_processes_do_not_do_is_told(
    run: Callable[..., tuple[int, str, str]], birds: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for words in (("--all", birds.folder), ("--source", birds.folder, "--dry-run")):
        code, _, err = run("train-adapter", *words)
        assert code == 2 and "several processes train one source together" in err


def trained(store: Path, birds: Source, backbone: Path, count: int) -> AdapterStore:
    """A store with the adapter of so many processes, with the environment that launchers give them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, "-m", "promptcdm", "train-adapter", "--source", str(birds.folder)]
    words += ["--backbone", str(backbone), "--store", str(store), *FLAGS, *MORE]
    shared = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    if count > 1:
        shared |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            words,
            env={**os.environ, **shared, **({"RANK": str(i), "LOCAL_RANK": str(i)} if count > 1 else {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    said = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0] * count, said
    assert [bool(out) for out, _ in said] == [True] + [False] * (count - 1), "the main one alone speaks"
    return AdapterStore(store)


@pytest.mark.slow
def test_two_processes_train_what_one_does(birds: Source, tiny_sd1: Path, tmp_path: Path) -> None:
    one = trained(tmp_path / "one", birds, tiny_sd1, 1).load("birds")
    two = trained(tmp_path / "two", birds, tiny_sd1, 2).load("birds")
    assert one.lora.keys() == two.lora.keys() and one.prompt.keys() == two.prompt.keys()
    for name, tensor in {**one.lora, **one.prompt}.items():
        other = {**two.lora, **two.prompt}[name]
        torch.testing.assert_close(other, tensor, rtol=1e-3, atol=1e-5)
    for before, after in zip(one.train_log, two.train_log, strict=True):
        assert after == pytest.approx(before, abs=2e-6)
    assert two.record.device == f"{one.record.device}, 2 processes"
    assert one.record.settings == two.record.settings
