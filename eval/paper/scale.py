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

from paper.adapters import MONOLITH, joined, settings_of, trained
from paper.continual import composition_error
from paper.stage import Stage
from paper.units import done, once
from promptcdm.adapter import Adapter
from promptcdm.membership import drawn, probe_of
from promptcdm.settings import TrainSettings
from promptcdm.slices import slices_of
from promptcdm.source import Source
from promptcdm.store import AdapterStore


def scale(stage: Stage) -> dict[str, Any]:
    """Train every split and measure it; raw/scale.json."""
    whole = joined(stage.out, MONOLITH, stage.sources)
    settings = settings_of(stage.plan, MONOLITH, len(stage.names), 0)
    units: dict[Path, Callable[[], Any]] = {}
    for n in stage.plan.splits:
        for name, part in parts_of(whole, n).items():
            path = _folder(stage, n) / f"{name}.json"
            units[path] = lambda n=n, part=part: _train(stage, settings, n, part)  # type: ignore[misc]
    done(units)
    return dict(once(stage.raw / "scale.json", lambda: _measured(stage, whole)))


def parts_of(whole: Source, n: int) -> dict[str, Source]:
    """At most n parts of a source, each a source of its own name."""
    return {f"part-{k}": replace(part, name=f"part-{k}") for k, part in slices_of(whole, n).items()}


def _train(stage: Stage, settings: TrainSettings, n: int, part: Source) -> dict[str, object]:
    own = replace(settings, steps=max(1, settings.steps // n))
    return trained(AdapterStore(_folder(stage, n) / "adapters"), part, stage.backbone, own)


def _measured(stage: Stage, whole: Source) -> dict[str, Any]:
    count = max(1, stage.plan.ruler_pictures // len(stage.held_out))
    probes = [probe_of(drawn(s, count, stage.plan.seed), stage.backbone) for s in stage.held_out.values()]

    def error(adapters: Sequence[Adapter]) -> float:
        return sum(composition_error(stage, adapters, probe) for probe in probes) / len(probes)

    found = {"monolith": error([stage.adapter(MONOLITH)]), "own sources": error(stage.of_sources())}
    for n in stage.plan.splits:
        store = AdapterStore(_folder(stage, n) / "adapters")
        found[f"{n} parts"] = error([store.load(name) for name in sorted(parts_of(whole, n))])
    return {"denoising_error": found, "pictures": sum(len(probe.captions) for probe in probes)}


def _folder(stage: Stage, n: int) -> Path:
    return stage.out / "work" / "scale" / str(n)
