"""A training that is killed at any moment ends, after going on, in the bytes of one that nobody disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("killed_training.py")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def _killed(backbone: Path, source: Path, folder: Path, kills: int, seed: int) -> list[dict[str, Any]]:
    """What became of each training that was killed."""
    arguments = [str(part) for part in (backbone, source, folder, kills, seed)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _check(trials: list[dict[str, Any]], kills: int) -> None:
    assert len(trials) == kills
    assert [trial for trial in trials if not trial["same"]] == []
    assert any(trial["died"] for trial in trials), "nothing was killed: nothing was tested"


def test_killed_three_times(tiny_sd1: Path, tmp_path: Path, toy_source: Callable[..., Path]) -> None:
    source = toy_source(tmp_path, "birds", "red")
    _check(_killed(tiny_sd1, source, tmp_path / "stores", 3, seed=0), 3)


@pytest.mark.slow
def test_killed_fifty_times(tiny_sd1: Path, tmp_path: Path, toy_source: Callable[..., Path]) -> None:
    source = toy_source(tmp_path, "birds", "red")
    trials = _killed(tiny_sd1, source, tmp_path / "stores", 50, seed=1)
    _check(trials, 50)
    assert sum(trial["died"] for trial in trials) >= 25
    assert sum(trial["checkpoint"] for trial in trials) >= 10, "too few had anything to go on from"
