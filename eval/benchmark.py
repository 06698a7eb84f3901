"""Measures what a user waits for, and prints it beside the bar of each number.

    python eval/benchmark.py [--rounds 3] [--out benchmark.json] [--only picture,help]

    picture    one 64 px picture from three sources in 25 steps, after loading              4 s
    generate   the same from the shell: `promptcdm generate`, from start to file            15 s, 2 GB
    train      `promptcdm train-adapter` on 200 pictures for 10 passes, from start to end   120 s
    help       `promptcdm --help`                                                           0.3 s

Rounds are interleaved, so that whatever else the machine does falls on all alike; processor time stands beside
wall time, since a busy machine changes the one more than the other. Memory is the peak resident size of the
command. Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from promptcdm.backbone import Backbone
from promptcdm.errors import BadInput, PromptCDMError, RunFailed
from promptcdm.generate import generate
from promptcdm.settings import GenerateSettings
from promptcdm.shipped import shipped
from promptcdm.source import Source
from promptcdm.store import AdapterStore

PROMPT, PICTURES, PASSES, BATCH, SOURCES = "a fox", 200, 10, 8, 3
DEVICE = "cpu"


# Between this process and the command stands a small one: the peak that Linux reports of a command begins with
# the size of what started it.
_LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
process = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, used = os.wait4(process, 0)
found = (time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss)
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class Run:
    """One measurement."""

    seconds: float  # wall
    cpu_seconds: float
    peak_mb: float  # resident; 0 where the process also does other things


@dataclass(frozen=True)
class Bar:
    """What a number must not exceed."""

    seconds: float
    peak_mb: float = 0.0


BARS = {"picture": Bar(4.0), "generate": Bar(15.0, 2048.0), "train": Bar(120.0), "help": Bar(0.3)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; 0 done, 1 failed, 2 wrong input. A missed bar is shown, and is no failure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--out", type=Path, help="JSON file of every run")
    parser.add_argument("--only", default=",".join(BARS), help="which, with commas (default: all)")
    parser.add_argument("--backbone", default="nano", help="nano or a diffusers folder (default: nano)")
    parser.add_argument("--store", type=Path, help="adapters to compose (default: those that ship)")
    given = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as place:
            runs = measure(given, Path(place))
    except PromptCDMError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
    print("\n".join(table(runs)))
    if given.out:
        machine = {"cores": os.cpu_count(), "architecture": platform.machine(), "torch": version("torch")}
        found = {"machine": machine, "runs": {name: [asdict(run) for run in r] for name, r in runs.items()}}
        given.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


def measure(given: argparse.Namespace, place: Path) -> dict[str, list[Run]]:
    """Run everything asked for `rounds` times, one after the other in each round."""
    chosen = given.only.split(",")
    unknown = sorted(set(chosen) - set(BARS))
    if unknown or given.rounds < 1:
        raise BadInput(
            f"--only {given.only} --rounds {given.rounds}: it takes {', '.join(BARS)}, and 1 or more"
        )
    store = AdapterStore(given.store or shipped("adapters"))
    allowed = store.sources()[:SOURCES]
    if len(allowed) < SOURCES and {"picture", "generate"} & set(chosen):
        raise BadInput(f"{store.root} holds {len(allowed)} adapters; the benchmark composes {SOURCES}")
    program = [sys.executable, "-m", "promptcdm"]
    backbone = ["--backbone", given.backbone, "--device", DEVICE]
    out = ["--out", str(place / "out")]
    make = [*program, "generate", PROMPT, "--allowed", ",".join(allowed), "--store", str(store.root)]
    measured: dict[str, Callable[[], Run]] = {
        "generate": lambda: command([*make, *backbone, *out]),
        "train": lambda: command([*program, *_training(place), *backbone]),
        "help": lambda: command([*program, "--help"]),
    }
    if "picture" in chosen:
        measured["picture"] = _picture(given.backbone, store, allowed)
    runs: dict[str, list[Run]] = {name: [] for name in BARS if name in chosen}
    for number in range(given.rounds):
        for name in runs:
            runs[name].append(measured[name]())
            print(f"round {number + 1}, {name}: {runs[name][-1].seconds:.2f} s", file=sys.stderr)
    return runs


def command(words: Sequence[str]) -> Run:
    """Run a command to its end. Raises RunFailed where it does not end well."""
    with tempfile.NamedTemporaryFile() as file:
        said = subprocess.run(
            [sys.executable, "-c", _LAUNCHER, file.name, *words], capture_output=True, text=True, check=False
        )
        found = file.read()
    if said.returncode or not found:
        raise RunFailed(f"{' '.join(words[2:])}: {said.stderr.strip()[-500:]}")
    seconds, cpu, peak = json.loads(found)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    return Run(seconds, cpu, peak * unit / 2**20)


def _training(place: Path) -> list[str]:
    """Arguments of a training on the first pictures that ship."""
    folder = place / "pictures"
    if not folder.exists():
        folder.mkdir()
        names = [path.name for path in sorted(shipped("emoji").iterdir()) if (path / "source.toml").is_file()]
        items = [item for name in names for item in Source.open(shipped("emoji") / name).items][:PICTURES]
        if len(items) < PICTURES:
            raise BadInput(f"{len(items)} pictures ship; the benchmark trains on {PICTURES}")
        with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
            for number, item in enumerate(items):
                shutil.copy(item.path, folder / f"{number}.png")
                file.write(json.dumps({"file_name": f"{number}.png", "text": item.caption}) + "\n")
    steps = PICTURES * PASSES // BATCH
    flags = {"source": "measured", "data": folder, "steps": steps, "batch-size": BATCH, "store": place / "a"}
    return ["train-adapter", "--replace", *(w for k, v in flags.items() for w in (f"--{k}", str(v)))]


def _picture(model: str, store: AdapterStore, allowed: Sequence[str]) -> Callable[[], Run]:
    """Load once, and return what makes one picture."""
    backbone = Backbone.load(model, device=DEVICE)
    settings = GenerateSettings()

    def run() -> Run:
        start, cpu = time.perf_counter(), time.process_time()
        generate([PROMPT], allowed=allowed, backbone=backbone, store=store, settings=settings)
        return Run(time.perf_counter() - start, time.process_time() - cpu, 0.0)

    return run


def table(runs: dict[str, list[Run]]) -> list[str]:
    """Lines of text: least and median of each, processor time, memory, and whether the bar is met."""
    rows = [("", "min s", "median s", "CPU s", "peak MB", "bar", "")]
    for name, measured in runs.items():
        bar, best = BARS[name], min(run.seconds for run in measured)
        peak = max(run.peak_mb for run in measured)
        met = best <= bar.seconds and (not bar.peak_mb or peak <= bar.peak_mb)
        limit = f"{bar.seconds:g} s" + (f", {bar.peak_mb:.0f} MB" if bar.peak_mb else "")
        median = statistics.median(run.seconds for run in measured)
        cpu = min(run.cpu_seconds for run in measured)
        shown = f"{peak:.0f}" if peak else "-"
        rows.append(
            (name, f"{best:.2f}", f"{median:.2f}", f"{cpu:.2f}", shown, limit, "met" if met else "missed")
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
