"""What every stage works with: the plan, the folder of the run, the loaded backbone, sources and adapters."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from baselines.joint_classifier import JointClassifier

from paper.adapters import soup_of, store_of
from paper.classifier import read_classifier
from paper.plan import Plan
from paper.prompts import Prompt, read_prompts
from paper.sources import Idea, Opened, ideas_of, open_held_out, open_sources, source_names
from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.slots import Slots
from promptcdm.tensorfile import write_bytes


@dataclass
class Stage:
    """One run. What is read from files is read once."""

    plan: Plan
    out: Path
    backbone: Backbone
    painter: Backbone  # the same weights in the precision that pictures are drawn in

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The sources, sorted: the order of all weights."""
        return source_names(self.plan)

    @cached_property
    def sources(self) -> Opened:
        """Their pictures."""
        return open_sources(self.plan)

    @cached_property
    def held_out(self) -> Opened:
        """Their pictures that nobody trains on."""
        return open_held_out(self.plan)

    @cached_property
    def ideas(self) -> dict[str, Idea]:
        """What the sources show."""
        return ideas_of(self.plan)

    @cached_property
    def prompts(self) -> list[Prompt]:
        """All prompts."""
        return read_prompts(self.plan, self.out)

    def part(self, name: str) -> list[Prompt]:
        """The prompts of validation or test."""
        return [prompt for prompt in self.prompts if prompt.part == name]

    @cached_property
    def _loaded(self) -> dict[tuple[int, str], Adapter]:
        return {}

    def adapter(self, name: str, seed: int = 0) -> Adapter:
        """A source's adapter or a monolith's, loaded once: the engine's slots know a LoRA by its tensors."""
        key = seed, name.replace(" ", "-")
        if key not in self._loaded:
            store = store_of(self.out, seed)
            if key[1] == "soup":
                self._loaded[key] = soup_of(self.of_sources(seed))
            else:
                self._loaded[key] = store.load(key[1])
        return self._loaded[key]

    def of_sources(self, seed: int = 0) -> list[Adapter]:
        """The adapters of all sources."""
        return [self.adapter(name, seed) for name in self.names]

    @cached_property
    def classifier(self) -> JointClassifier:
        """The joint classifier on x_t, trained on all sources' latents; on the CPU."""
        return read_classifier(self.sources, self.backbone, self.out, self.plan.seed)

    @property
    def device(self) -> str:
        """cpu, cuda or mps."""
        return self.backbone.device.type

    @property
    def raw(self) -> Path:
        """Where raw results are kept."""
        return self.out / "raw"


def fresh_slots(backbone: Backbone) -> None:
    """Forget the rank that the engine's stacks have grown to: with a soup's, every row would pay for it."""
    backbone.engine.slots.close()
    backbone.engine.slots = Slots(backbone.unet, backbone.engine.slots.count)


def write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write rows, a column for each key that one of them has; numbers to six digits. Atomic."""
    lines = list(rows)
    file = io.StringIO()
    columns = list(dict.fromkeys(key for row in lines for key in row))
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _shown(value) for key, value in row.items()} for row in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, file.getvalue().encode())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def batches(prompts: Sequence[Prompt], size: int) -> list[list[Prompt]]:
    """The prompts in parts of this size, in order."""
    return [list(prompts[start : start + size]) for start in range(0, len(prompts), size)]


def _shown(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
