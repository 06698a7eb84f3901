"""What an adapter gives away: membership before and after forgetting, and pictures that copy what was trained on.

raw/membership.json    AUC and TPR at 1 % FPR: the adapter, the composition with the source, without it, the backbone,
                       and the positive control, which was overfitted on purpose
raw/copies.csv         of the primary systems: the share of pictures nearer to a training picture than 95 % of the
                       training pictures are to each other, beside that of held-out real pictures
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from paper.choose import Choice
from paper.fidelity_scores import compared_prompts, drawn_features, picture_features, real_features
from paper.sources import read_rows
from paper.stage import Stage, fresh_slots, write_csv
from paper.systems import system_named
from paper.units import Units, done
from promptcdm.composed_unet import ComposedUNet
from promptcdm.fixed_noise import denoising_errors
from promptcdm.membership import LEAST, Probe, drawn, membership, overfitted, probe_of
from promptcdm.nearest import likeness, nearest, nearest_other, unit_rows
from promptcdm.separation import separation
from promptcdm.settings import LeakageSettings
from promptcdm.tensorfile import write_json


def memberships(stage: Stage) -> dict[str, Any]:
    """Of the source with the most held-out pictures; raw/membership.json. {} where none has enough."""
    name = max(stage.held_out, key=stage.held_out.size)
    if min(stage.held_out.size(name), stage.sources.size(name)) < LEAST:
        return {}
    folder, rest = stage.out / "work" / "membership", [own for own in stage.names if own != name]
    units: dict[Path, Callable[[], Any]] = {
        folder / "adapter.json": lambda: _of_adapter(stage, name),
        folder / "with.json": lambda: {"composition with it": _of_composition(stage, name, [name, *rest])},
        folder / "without.json": lambda: {"composition without it": _of_composition(stage, name, rest)},
    }
    if stage.plan.control_steps:
        units = {folder / "control.json": lambda: _control(stage, name), **units}  # the longest first
    scores = {row: score for found in done(units).values() for row, score in found.items()}
    write_json(stage.raw / "membership.json", {"source": name, "scores": scores})
    return {"source": name, "scores": scores}


def _settings(stage: Stage) -> LeakageSettings:
    plan = stage.plan
    return LeakageSettings(
        noise_levels=6,
        max_pictures=plan.membership_pictures,
        control_steps=plan.control_steps,
        batch_size=plan.chunk,
        seed=plan.seed,
    )


def _groups(stage: Stage, name: str) -> tuple[Probe, Probe]:
    """Pictures that were trained on, and others of the same source."""
    members, others = (
        probe_of(drawn(source[name], stage.plan.membership_pictures, stage.plan.seed), stage.backbone)
        for source in (stage.sources, stage.held_out)
    )
    return members, others


def _of_adapter(stage: Stage, name: str) -> dict[str, Any]:
    found = membership(stage.adapter(name), *_groups(stage, name), stage.backbone, _settings(stage))
    return {
        "adapter, loss": asdict(found.scores["loss"]),
        "adapter, calibrated": asdict(found.scores["calibrated"]),
        "backbone": asdict(found.scores["blind"]),
    }


def _control(stage: Stage, name: str) -> dict[str, Any]:
    """The positive control: what is seen of an adapter that was overfitted to a few pictures."""
    told, few = overfitted(stage.sources[name], stage.backbone, _settings(stage))
    others = _groups(stage, name)[1]
    fresh_slots(stage.backbone)
    found = membership(told, probe_of(few, stage.backbone), others, stage.backbone, _settings(stage))
    return {
        "positive control, loss": asdict(found.scores["loss"]),
        "positive control, calibrated": asdict(found.scores["calibrated"]),
    }


def _of_composition(stage: Stage, name: str, of: Sequence[str]) -> dict[str, Any]:
    """Loss-based separation through the default router's composition."""
    settings, adapters = _settings(stage), [stage.adapter(own) for own in of]
    levels = len(stage.backbone.alphas_cumprod) - 1
    steps = [round(float(t)) for t in np.linspace(0, levels, settings.noise_levels + 2)[1:-1]]
    fresh_slots(stage.backbone)
    with closing(ComposedUNet(stage.backbone, adapters, router="posterior", guidance_scale=1.0)) as composed:
        errors = [
            denoising_errors(
                composed, g.latents, g.captions, steps, seed=settings.seed, batch_size=settings.batch_size
            )
            for g in _groups(stage, name)
        ]
    return asdict(separation(*(-e.double().mean(1).numpy() for e in errors), seed=settings.seed))


def training_features(stage: Stage) -> Units:
    """Features of all pictures that were trained on, a unit each source."""
    tower, root = stage.plan.towers[0], Path(stage.plan.sources)

    def make(name: str) -> Callable[[], Any]:
        return lambda: picture_features(stage, tower, [root / name / r.file for r in read_rows(root / name)])

    return {stage.out / "work" / "real" / f"training-{tower}-{name}.json": make(name) for name in stage.names}


def copies(stage: Stage, choice: Choice) -> list[dict[str, Any]]:
    """Near-copies of training pictures by the primary systems and, as background, among held-out real pictures."""
    tower = stage.plan.towers[0]
    training = unit_rows([row for rows in done(training_features(stage)).values() for row in rows])
    background, prompts = nearest_other(training), compared_prompts(stage.part("test"))
    rows = []
    for system in (choice.composed, choice.monolith, "held-out pictures"):
        if system == "held-out pictures":
            own, clusters = real_features(stage, tower), None
        else:
            drawing = choice.drawing(system_named(system))
            own, clusters = drawn_features(stage, drawing, prompts, tower), [p.text for p in prompts]
        found = likeness(nearest(unit_rows(own), training), background, clusters)
        row: dict[str, Any] = {"tower": tower, "system": system, "pictures": found.pictures}
        row |= {
            "near": found.above.value,
            "near_low": found.above.interval[0],
            "near_high": found.above.interval[1],
        }
        assert found.closer is not None
        row |= {"closer": found.closer.value, "similarity": found.mean}
        rows.append(row)
    write_csv(stage.raw / "copies.csv", rows)
    return rows
