"""diffusers' own `train_text_to_image_lora.py`, a copy that the user has, run as it is.

In this process with a stopwatch in the place of its progress bar, so that its steps are timed where ours are, or as a
process of its own, as its users run it. The script is neither changed nor shipped here.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

LORA = "pytorch_lora_weights.safetensors"


def now(device: str) -> float:
    """Seconds of this process's CPU time; on a GPU, of the clock once all its work is done."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def load_script(path: Path) -> ModuleType:
    """The script as a module; its `main` reads `sys.argv`."""
    spec = importlib.util.spec_from_file_location("train_text_to_image_lora", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is no Python file; give diffusers' examples/text_to_image/{path.name}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # what it gives to `datasets` is named by it
    spec.loader.exec_module(module)
    return module


def flags_of(
    backbone: Path, folder: Path, out: Path, *, steps: int, batch: int, resolution: int, precision: str
) -> list[str]:
    """What is the same for both trainers; all else is the script's default."""
    values: Mapping[str, object] = {
        "pretrained_model_name_or_path": backbone,
        "train_data_dir": folder,
        "output_dir": out,
        "cache_dir": out / "cache",
        "max_train_steps": steps,
        "train_batch_size": batch,
        "resolution": resolution,
        "mixed_precision": precision,
        "seed": 0,
    }
    return ["--center_crop", *(f"--{name}={value}" for name, value in values.items())]


def run_script(script: ModuleType, flags: list[str], device: str) -> list[float]:
    """Run its `main`; the time when its first step began and when each step had ended."""
    stamps: list[float] = []

    class Stopwatch:
        """Takes what the script tells its bar."""

        def __init__(self, *args: object, **kwargs: object) -> None:
            stamps.append(now(device))

        def update(self, count: int) -> None:
            stamps.append(now(device))

        def set_postfix(self, **values: object) -> None:
            pass

    with mock.patch.object(script, "tqdm", Stopwatch), mock.patch.object(sys, "argv", ["", *flags]), _quiet():
        script.main()
    return stamps


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notices of the libraries, which the script turns on."""
    libraries: list[Any] = [sys.modules[name] for name in ("datasets",) if name in sys.modules]
    logging.disable(logging.WARNING)
    for library in libraries:
        library.disable_progress_bars()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
