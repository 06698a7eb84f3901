"""The benchmark's own arithmetic: what it measures of a command, what it calls met, what it refuses."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from promptcdm.errors import RunFailed

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the benchmark needs posix_spawn")
SCRIPT = runpy.run_path(str(Path(__file__).resolve().parent.parent / "eval" / "benchmark.py"))


def test_a_command_is_measured() -> None:
    run = SCRIPT["command"]([sys.executable, "-c", "held = b'x' * (200 << 20)"])
    assert run.cpu_seconds > 0 and run.seconds > 0
    # Its own memory, not that of the process that asked.
    assert 200 < run.peak_mb < 300
    assert SCRIPT["command"]([sys.executable, "-c", "pass"]).peak_mb < 60


def test_a_command_that_fails_is_no_measurement() -> None:
    with pytest.raises(RunFailed, match="what was wrong"):
        SCRIPT["command"]([sys.executable, "-c", "raise SystemExit('what was wrong')"])


def test_a_bar_is_met_or_missed() -> None:
    run = SCRIPT["Run"]
    lines = SCRIPT["table"](
        {"generate": [run(9.0, 5.0, 900.0), run(20.0, 5.5, 800.0)], "help": [run(0.5, 0.1, 20.0)]}
    )
    assert lines[1].split()[:3] == ["generate", "9.00", "14.50"] and lines[1].endswith("met")
    assert lines[2].endswith("missed")
    assert SCRIPT["table"]({"generate": [run(9.0, 5.0, 2100.0)]})[1].endswith("missed")


def test_what_it_does_not_know_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert SCRIPT["main"](["--only", "speed"]) == 2
    assert "it takes picture, generate, train, help" in capsys.readouterr().err
