"""Who is trained on what: an adapter for each source alone, and monoliths on all pictures together.

    NAME             one source
    backbone         the backbone itself, known by pictures and captions of what it draws: nothing is learned
    monolith         all sources' pictures, the same rank
    monolith fast    the same at the sources' learning rate
    monolith 8r      all, eight times the rank
    monolith tagged  all, with a tag for the source before each caption

With the budget `images` a monolith takes as many steps as all adapters together: every picture is seen as often. With
`plateau` everything stops by its own loss on a tenth of its pictures. A training that was killed goes on from its
checkpoint. What it cost stands beside the store: in pictures seen, which no machine changes, and on a CPU, where a
process has a core of its own, in seconds of that core.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from baselines.soup import soup

from paper.plan import Plan
from paper.sources import BACKBONE
from paper.units import Units
from promptcdm.adapter import Adapter, adapter_digest
from promptcdm.backbone import Backbone
from promptcdm.progress import training_bar
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.train import OnStep
from promptcdm.train_all import train_into

MONOLITH, FAST, TAGGED, LARGE = "monolith", "monolith fast", "monolith tagged", "monolith 8r"
# Of the sources' learning rate: a monolith takes more steps, and updates of a larger rank move it further.
RATE_SHARE = {MONOLITH: 0.5, FAST: 1.0, TAGGED: 0.5, LARGE: 0.25}
RATE_OF_RANK = 0.5  # of a source of another rank: the rate falls with the root of how many times larger it is


def store_of(out: Path, seed: int) -> AdapterStore:
    """The adapters of one training seed."""
    return AdapterStore(out / "work" / f"seed-{seed}" / "adapters")


def file_name(name: str) -> str:
    """A system's name as that of a folder or of an adapter."""
    return name.replace(" ", "-")


def tag(source: str, names: Sequence[str]) -> str:
    """What a tagged caption begins with; it says nothing about the source."""
    return f"style {chr(ord('a') + sorted(names).index(source))}"


def settings_of(plan: Plan, name: str, sources: int, seed: int) -> TrainSettings:
    """How the adapter `name` is trained: a source's name, or a monolith's."""
    settings = replace(plan.training, seed=seed)
    if name == BACKBONE:
        return replace(settings, kind="none")
    if plan.budget == "plateau":
        settings = replace(settings, steps=settings.steps * 4, held_out=0.1, patience=5)
    if name in RATE_SHARE:
        rate = settings.learning_rate * RATE_SHARE[name]
        settings = replace(settings, steps=settings.steps * sources, learning_rate=rate)
    elif plan.source_rank:
        rate = settings.learning_rate * (settings.rank / plan.source_rank) ** RATE_OF_RANK
        return replace(settings, rank=plan.source_rank, learning_rate=rate)
    return replace(settings, rank=settings.rank * 8) if name == LARGE else settings


def training_units(
    plan: Plan, out: Path, backbone: Backbone, sources: Mapping[str, Source], seed: int, names: Sequence[str]
) -> Units:
    """The trainings of one seed, each into its store."""

    def make(name: str) -> Callable[[], object]:
        return lambda: trained(
            store_of(out, seed),
            sources[name] if name in sources else joined(name, sources),
            backbone,
            settings_of(plan, name, len(sources), seed),
        )

    return {_cost_file(out, seed, name): make(name) for name in names}


def training_cost(out: Path, seed: int, name: str) -> dict[str, Any]:
    """What the training took: pictures seen, and seconds of one core, None on a GPU."""
    return dict(json.loads(_cost_file(out, seed, name).read_text(encoding="utf-8")))


def trained(
    store: AdapterStore, source: Source, backbone: Backbone, settings: TrainSettings
) -> dict[str, object]:
    """Train one source into the store; its record of cost.

    Of an interrupted training the seconds before are counted by the steps that are left to it.
    """
    begun = store.checkpoint_folder(source.name)
    start, clock = time.process_time(), time.perf_counter()
    first: list[int] = []

    @contextmanager
    def watch(name: str, steps: int, rows: int) -> Iterator[OnStep]:
        with training_bar(name, steps, rows) as shown:

            def on_step(step: int, loss: float) -> None:
                first.append(step) if not first else None
                shown(step, loss)

            yield on_step

    adapter = train_into(store, source, backbone, settings, replace=True, watch=watch)
    shutil.rmtree(begun, ignore_errors=True)
    steps = len(adapter.train_log) or settings.steps
    share = (steps - first[0] + 1) / steps if first else 1.0
    return {
        "seen": steps * settings.rows,
        "seconds": core_seconds(backbone, start, share),
        "clock": round((time.perf_counter() - clock) / share, 1),  # beside whatever else ran
        "resumed": bool(first and first[0] > 1),
        "steps": steps,
        "pictures": len(source),
        "sha256": adapter.sha256,
        "loss": [row["loss"] for row in adapter.train_log],
    }


def core_seconds(backbone: Backbone, start: float, share: float = 1.0) -> float | None:
    """Seconds of this process since `start`, over the share of the work; None on a GPU, which others use as well."""
    return (time.process_time() - start) / share if backbone.device.type == "cpu" else None


@dataclass(frozen=True)
class _Together:
    """Opens pictures of several sources, as SOURCE/FILE."""

    sources: Mapping[str, Source]

    def open(self, file: str) -> BinaryIO:
        own, _, rest = file.partition("/")
        return self.sources[own].pictures.open(rest)

    def where(self, file: str) -> Path | str:
        own, _, rest = file.partition("/")
        return self.sources[own].pictures.where(rest)


def joined(name: str, sources: Mapping[str, Source]) -> Source:
    """All sources as one; with a tag before each caption for the tagged monolith."""
    tags = {own: f"{tag(own, list(sources))} " if name == TAGGED else "" for own in sources}
    items = [
        replace(item, file=f"{own}/{item.file}", caption=f"{tags[own]}{item.caption}")
        for own, source in sources.items()
        for item in source.items
    ]
    return replace(
        next(iter(sources.values())),
        name=file_name(name),
        folder=name,
        items=tuple(sorted(items, key=lambda item: item.file)),
        license=" AND ".join(sorted({source.license for source in sources.values()})),
        author="",
        origin="",
        attribution="",
        pictures=_Together(sources),
    )


def soup_of(adapters: Sequence[Adapter]) -> Adapter:
    """The equal soup of LoRAs: one adapter, whose rank is the sum of theirs."""
    return made_adapter(
        adapters[0], "soup", soup([a.lora for a in adapters], [1 / len(adapters)] * len(adapters))
    )


def bare_adapter(like: Adapter) -> Adapter:
    """The backbone as a source: what LoRAtorio compares with."""
    return made_adapter(like, "backbone-alone", {})


def made_adapter(like: Adapter, name: str, lora: dict[str, torch.Tensor]) -> Adapter:
    """An adapter of this LoRA alone, for the backbone and the unconditional branch of another one."""
    record = like.record.model_copy(
        update={"source": name, "sha256": adapter_digest(lora, {}, None), "source_digest": "", "items": 0}
    )
    return Adapter(name, lora, {}, None, record)


def _cost_file(out: Path, seed: int, name: str) -> Path:
    return out / "work" / f"seed-{seed}" / f"{file_name(name)}.json"
