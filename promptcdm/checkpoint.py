"""Where an interrupted training goes on: parameters, optimizer and log, as safetensors and JSON.

The identity (backbone, source, settings) is stored beside them, and another one is refused rather than mixed in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from promptcdm.errors import BadInput, RunFailed
from promptcdm.tensorfile import read_tensors, write_tensors

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def save_checkpoint(
    folder: Path,
    step: int,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.AdamW,
    identity: Mapping[str, Any],
    log: list[dict[str, float]],
    kept: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
) -> None:
    """Write one file, atomically: the old checkpoint stands until the new one is whole.

    `kept` holds further values of the parameters, such as their average, by what they are. Raises RunFailed where it
    cannot be written.
    """
    tensors = {f"parameter/{n}": p.detach().cpu() for n, p in parameters.items()}
    for n, p in parameters.items():
        tensors |= {f"{k}/{n}": optimizer.state[p][k].cpu() for k in MOMENTS}
    for kind, values in kept.items():
        tensors |= {f"{kind}/{n}": value.cpu() for n, value in values.items()}
    metadata = {"step": str(step), "identity": json.dumps(identity, sort_keys=True), "log": json.dumps(log)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / "checkpoint.safetensors", tensors, metadata)
    except OSError as error:
        raise RunFailed(
            f"{folder}: the checkpoint of step {step} cannot be written: {error.strerror}; the one before it stands, "
            "and the same training goes on from there"
        ) from error


def load_checkpoint(
    folder: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.AdamW,
    identity: Mapping[str, Any],
    kept: Mapping[str, Mapping[str, Tensor]] = MappingProxyType({}),
) -> tuple[int, list[dict[str, float]]]:
    """Fill parameters, optimizer and `kept` and return (step, log); (0, []) where there is no checkpoint.

    Raises BadInput where the checkpoint is of another backbone, source or settings.
    """
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return 0, []
    tensors, metadata = read_tensors(path)
    stored = json.loads(metadata["identity"])
    differing = sorted(k for k in identity if stored.get(k) != identity[k])
    if differing:
        raise BadInput(
            f"{folder} holds a checkpoint of another {' and '.join(differing)}; delete that folder to start anew, "
            "or train with what it was started with"
        )
    for n, p in parameters.items():
        p.data.copy_(tensors[f"parameter/{n}"])
        there = p.device if optimizer.defaults["fused"] else torch.device("cpu")  # where it counts its steps
        optimizer.state[p] = {k: tensors[f"{k}/{n}"].to(there if k == "step" else p.device) for k in MOMENTS}
    for kind, values in kept.items():
        for n, value in values.items():
            value.copy_(tensors[f"{kind}/{n}"])
    return int(metadata["step"]), json.loads(metadata["log"])
