"""Judges by name: what answers a multiple-choice question about a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from promptcdm.answer import Answer, Asked, CannotAnswer, Judge
from promptcdm.errors import BadInput
from promptcdm.hf_judge import load_hf
from promptcdm.nano_judge import load_nano
from promptcdm.openai_judge import load_openai
from promptcdm.sealed_judge import load_sealed
from promptcdm.shipped import shipped

__all__ = [
    "ACCEPTED",
    "AlwaysYes",
    "Answer",
    "Asked",
    "CannotAnswer",
    "FirstChoice",
    "Judge",
    "load_judge",
    "torch_device",
]

ACCEPTED = (
    "nano-judge, hf:ID_OR_FOLDER, openai:URL#MODEL, replay:NAME, always-yes, first-choice; sealed-judge or "
    "sealed-judge:FOLDER, for figures that are published"
)
_SEALED = "sealed-judge:"


@dataclass(frozen=True)
class AlwaysYes:
    """Says yes, also where that is no choice."""

    name: str = "always-yes"
    version: str = "1"
    blind: bool = True

    def answers(self, batch: Sequence[Asked]) -> list[Answer]:
        """Yes to each."""
        return [Answer("yes") for _ in batch]

    def answer(self, image: Image.Image, question: str, choices: Sequence[str]) -> Answer:
        """Yes."""
        return Answer("yes")


@dataclass(frozen=True)
class FirstChoice:
    """Takes the first choice."""

    name: str = "first-choice"
    version: str = "1"
    blind: bool = True

    def answers(self, batch: Sequence[Asked]) -> list[Answer]:
        """The first choice of each."""
        return [Answer(asked.choices[0]) for asked in batch]

    def answer(self, image: Image.Image, question: str, choices: Sequence[str]) -> Answer:
        """The first choice."""
        return Answer(choices[0])


def load_judge(name: str, *, device: str = "auto") -> Judge:
    """Load a judge by name. `device` is auto, cpu, cuda or mps.

    Raises BadInput for a name that is none of those accepted, and where a judge's files are missing or do not
    fit.
    """
    if name == "always-yes":
        return AlwaysYes()
    if name == "first-choice":
        return FirstChoice()
    if name == "nano-judge":
        return load_nano(shipped("nano-judge"), torch_device(device))
    if name == "sealed-judge" or (name.startswith(_SEALED) and len(name) > len(_SEALED)):
        folder = Path(name.removeprefix(_SEALED)) if name.startswith(_SEALED) else shipped("sealed-judge")
        own = name if name == "sealed-judge" else _SEALED + folder.name
        return load_sealed(folder, torch_device(device), own)
    if name.startswith("hf:") and len(name) > len("hf:"):
        return load_hf(name.removeprefix("hf:"), torch_device(device))
    if name.startswith("openai:"):
        return load_openai(name.removeprefix("openai:"))
    raise BadInput(f"judge {name!r} is not known; accepted are {ACCEPTED}")


def torch_device(device: str) -> str:
    """The device that "auto" stands for: cuda, then mps, then cpu."""
    if device not in {"auto", "cpu", "cuda", "mps"}:
        raise BadInput(f"device {device!r} is not known; accepted are auto, cpu, cuda, mps")
    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
