"""Scale: all pictures in 2, 4, 8, 16, 32 sources, by chance, and the same work for all together.

Each picture is in one part, by its digest alone. A part trains for its share of the monolith's steps; the parts are
composed by promptcdm's default router and measured by the fast ruler's error beside the monolith's.

    raw/scale.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paper.adapters import MONOLITH, joined, settings_of, trained
from paper.continual import composition_errors, held_out_probe
from paper.stage import Stage
from paper.units import Units, done
from promptcdm.adapter import Adapter
from promptcdm.settings import TrainSettings
from promptcdm.slices import slices_of
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.tensorfile import write_json


def scale(stage: Stage) -> dict[str, Any]:
    """Train every split and measure it; raw/scale.json."""
    done(split_units(stage))
    folder = stage.out / "work" / "scale"
    units: dict[Path, Callable[[], Any]] = {
        folder / "monolith.json": lambda: _error(stage, [stage.adapter(MONOLITH)]),
        folder / "sources.json": lambda: _error(stage, stage.of_sources()),
    }
    for n in stage.plan.splits:
        units[folder / f"parts-{n}.json"] = lambda n=n: _error(stage, _parts(stage, n))  # type: ignore[misc]
    names = ["monolith", "own sources", *(f"{n} parts" for n in stage.plan.splits)]
    found = {"denoising_error": dict(zip(names, done(units).values(), strict=True))}
    write_json(stage.raw / "scale.json", found)
    return found


def split_units(stage: Stage) -> Units:
    """The trainings of all parts."""
    if not stage.plan.splits:
        return {}
    settings = settings_of(stage.plan, MONOLITH, len(stage.names), 0)

    def make(n: int, k: int) -> Callable[[], Any]:
        return lambda: _train(stage, settings, n, f"part-{k}")

    return {_folder(stage, n) / f"part-{k}.json": make(n, k) for n in stage.plan.splits for k in range(n)}


def parts_of(whole: Source, n: int) -> dict[str, Source]:
    """At most n parts of a source, each a source of its own name."""
    return {f"part-{k}": replace(part, name=f"part-{k}") for k, part in slices_of(whole, n).items()}


def _train(stage: Stage, settings: TrainSettings, n: int, name: str) -> dict[str, object] | None:
    """Train one part; None where chance left it without a picture."""
    part = parts_of(joined(MONOLITH, stage.sources), n).get(name)
    if part is None:
        return None
    own = replace(settings, steps=max(1, settings.steps // n))
    return trained(AdapterStore(_folder(stage, n) / "adapters"), part, stage.backbone, own)


def _parts(stage: Stage, n: int) -> list[Adapter]:
    store = AdapterStore(_folder(stage, n) / "adapters")
    return [store.load(name) for name in store.sources()]


def _error(stage: Stage, adapters: Sequence[Adapter]) -> float:
    """Mean over the sources of the error on their held-out pictures."""
    probes = [held_out_probe(stage, name) for name in stage.held_out]
    return float(np.mean(composition_errors(stage, adapters, probes)))


def _folder(stage: Stage, n: int) -> Path:
    return stage.out / "work" / "scale" / str(n)
