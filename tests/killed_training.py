"""Train, kill -9 at a random moment, train on, compare; many times, in processes forked from one that has the model.

    python killed_training.py BACKBONE SOURCE FOLDER KILLS SEED

Prints a JSON object for each kill: how many seconds in, whether the process died of it, what it left, and whether the
adapter that came out after going on is, file for file, the one of a training that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from promptcdm.backbone import Backbone
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.train_all import train_into

NAME = "birds"
WITHIN = 60.0  # seconds that a training may take


def settings_of(slices: int) -> TrainSettings:
    """A checkpoint after every step, so that many kills meet one being written; whole, all that a checkpoint keeps."""
    plain = TrainSettings(
        steps=12 // slices, batch_size=2, rank=2, checkpoint_every=1, mixed_precision="no", slices=slices
    )
    if slices > 1:
        return plain
    return replace(
        plain,
        kind="lora+prompt",
        ema_decay=0.9,
        gradient_accumulation=2,
        held_out=0.3,
        held_out_every=3,
        patience=9,
    )


def forked(action: Callable[[], object]) -> int:
    """The process id of a child that does `action` and ends."""
    child = os.fork()
    if child:
        return child
    try:
        action()
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


def ended(child: int) -> int:
    """The exit code of a child that has ended, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def tree(folder: Path) -> dict[str, bytes]:
    """Every file in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def main(backbone_folder: Path, source_folder: Path, root: Path, kills: int, seed: int) -> None:
    """Kill so many trainings, whole ones and ones in two slices in turn."""
    torch.set_num_threads(1)  # a forked child could not use the threads of its parent
    backbone, source = Backbone.load(backbone_folder, device="cpu"), Source.open(source_folder, NAME)

    def training(store: Path, slices: int) -> Callable[[], object]:
        return lambda: train_into(AdapterStore(store), source, backbone, settings_of(slices))

    wanted, seconds = {}, {}
    for slices in (1, 2):
        start = time.monotonic()
        assert ended(forked(training(root / f"whole-{slices}", slices))) == 0
        seconds[slices] = time.monotonic() - start
        wanted[slices] = tree(root / f"whole-{slices}" / NAME)
    generator = random.Random(seed)
    for n in range(kills):
        slices, store = 1 + n % 2, root / f"killed-{n}"
        moment = seconds[slices] * (n + generator.random()) / kills  # one in each part of the time
        child = forked(training(store, slices))
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        died = ended(child) == -signal.SIGKILL
        left = sorted(path.name for path in store.rglob("*") if path.is_file()) if store.is_dir() else []
        if NAME not in AdapterStore(store).sources():
            assert ended(forked(training(store, slices))) == 0
        same = tree(store / NAME) == wanted[slices]
        facts = {"seconds": round(moment, 3), "died": died, "slices": slices, "same": same}
        print(
            json.dumps(facts | {"checkpoint": "checkpoint.safetensors" in left, "files": len(left)}),
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
