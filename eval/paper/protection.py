"""What an adapter gives away: membership before and after forgetting, and pictures that copy what was trained on.

raw/membership.json    AUC and TPR at 1 % FPR: the adapter, the composition with the source, without it, the backbone,
                       and the positive control, which was overfitted on purpose
raw/copies.csv         of the primary systems: the share of pictures nearer to a training picture than 95 % of the
                       training pictures are to each other, beside that of held-out real pictures
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from paper.choose import Choice
from paper.fidelity_scores import compared_prompts, drawn_features, picture_features, real_features
from paper.forgetting import system_named
from paper.stage import Stage, write_csv
from paper.units import once
from promptcdm.adapter import Adapter
from promptcdm.composed_unet import ComposedUNet
from promptcdm.fixed_noise import denoising_errors
from promptcdm.membership import LEAST, Probe, drawn, membership, overfitted, probe_of
from promptcdm.nearest import likeness, nearest, nearest_other, unit_rows
from promptcdm.separation import separation
from promptcdm.settings import LeakageSettings


def memberships(stage: Stage) -> dict[str, Any]:
    """Of the source with the most held-out pictures. {} where none has enough."""
    name = max(stage.held_out, key=lambda n: len(stage.held_out[n]))
    if len(stage.held_out[name]) < LEAST or len(stage.sources[name]) < LEAST:
        return {}
    return dict(once(stage.raw / "membership.json", lambda: _membership(stage, name)))


def _membership(stage: Stage, name: str) -> dict[str, Any]:
    plan = stage.plan
    settings = LeakageSettings(
        noise_levels=6,
        max_pictures=plan.membership_pictures,
        control_steps=plan.control_steps,
        seed=plan.seed,
    )
    groups = [
        probe_of(drawn(source[name], plan.membership_pictures, plan.seed), stage.backbone)
        for source in (stage.sources, stage.held_out)
    ]
    found = membership(stage.adapter(name), groups[0], groups[1], stage.backbone, settings)
    rest = [stage.adapter(own) for own in stage.names if own != name]
    rows = {
        "adapter, loss": asdict(found.scores["loss"]),
        "adapter, calibrated": asdict(found.scores["calibrated"]),
        "composition with it": _of_composition(stage, [stage.adapter(name), *rest], groups, settings),
        "composition without it": _of_composition(stage, rest, groups, settings),
        "backbone": asdict(found.scores["blind"]),
    }
    if plan.control_steps:
        told, few = overfitted(stage.sources[name], stage.backbone, settings)
        control = membership(told, probe_of(few, stage.backbone), groups[1], stage.backbone, settings)
        rows["positive control, loss"] = asdict(control.scores["loss"])
        rows["positive control, calibrated"] = asdict(control.scores["calibrated"])
    return {"source": name, "pictures": [len(g.captions) for g in groups], "scores": rows}


def _of_composition(
    stage: Stage, adapters: Sequence[Adapter], groups: Sequence[Probe], settings: LeakageSettings
) -> dict[str, Any]:
    """Loss-based separation through the default router's composition."""
    steps = np.linspace(0, len(stage.backbone.alphas_cumprod) - 1, settings.noise_levels + 2)[1:-1]
    with closing(ComposedUNet(stage.backbone, adapters, router="posterior", guidance_scale=1.0)) as composed:
        errors = [
            denoising_errors(
                composed, g.latents, g.captions, [round(float(t)) for t in steps], seed=settings.seed
            )
            for g in groups
        ]
    return asdict(separation(*(-e.double().mean(1).numpy() for e in errors), seed=settings.seed))


def copies(stage: Stage, choice: Choice) -> list[dict[str, Any]]:
    """Near-copies of training pictures by the primary systems and, as background, among held-out real pictures."""
    tower = stage.plan.towers[0]
    paths = [Path(item.path) for source in stage.sources.values() for item in source.items]
    if not all(path.is_file() for path in paths):
        return []  # the pictures are in shards or behind URLs
    training = unit_rows(
        once(stage.out / "work" / "real" / f"training-{tower}.json", lambda: picture_features(tower, paths))
    )
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
