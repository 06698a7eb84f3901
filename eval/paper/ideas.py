"""Ideas on guidance, tried alike on the primary composed system and the primary monolith.

The scale, the noise levels that it acts on, and whose unconditional branch is taken; for the composed system also
negative sources: (1 + g) eps_best - g eps_second, of the two sources that expect the prompt most. The adapters are
those of the run and the prompts those of validation, four pictures each: no test prompt chooses anything.

    raw/ideas.csv    TIFA by the first judge, and what it has over the run's own setting, 95 % over prompts
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from paper.choose import Choice
from paper.compare import Scores, difference, mean
from paper.pictures import Drawing, draw
from paper.stage import Stage, write_csv
from paper.systems import Asked, System, systems_of
from paper.tifa_scores import judge_drawings
from promptcdm.router import Router, prior_router

PICTURES = 4  # of each prompt


@dataclass(frozen=True)
class Variant:
    """One way to guide."""

    what: str
    guidance: float
    start: float = 0.0  # of the noise levels that are guided: 0 is all noise
    stop: float = 1.0
    backbone: bool = False  # draws the unconditional branch, instead of the adapter
    negative: float = 0.0  # g

    def of(self, system: System) -> System:
        """The system, guided so."""
        branch = "backbone" if self.backbone else system.levers.unconditional_from
        levers = replace(
            system.levers, guidance_start=self.start, guidance_stop=self.stop, unconditional_from=branch
        )
        if self.negative:  # both sources are run, and neither is drawn by its weight
            return replace(
                system, route=away_from_second(self.negative), levers=replace(levers, top_k=0, draw="")
            )
        return replace(system, levers=levers)


def away_from_second(g: float) -> Callable[[Asked], Router]:
    """Weights 1 + g and -g on the two sources that expect the prompt most."""

    def route(asked: Asked) -> Router:
        first, second = asked.prior.topk(2, dim=1).indices.T
        own = torch.eye(len(asked.names), device=first.device)
        return prior_router((1 + g) * own[first] - g * own[second])

    return route


def at_scale(scale: float) -> Variant:
    """Guided at every noise level, by the branch that the adapters were trained for."""
    return Variant(f"scale {scale:g}", scale)


VARIANTS = (
    *(at_scale(scale) for scale in (1.0, 1.5, 2.0, 3.0, 4.5)),
    Variant("scale 3 below the highest noise", 3.0, start=0.2),
    Variant("scale 3 above the lowest noise", 3.0, stop=0.8),
    Variant("scale 3 between", 3.0, start=0.2, stop=0.8),
    *(Variant(f"scale {scale:g} from the backbone", scale, backbone=True) for scale in (1.5, 2.0, 3.0)),
)
NEGATIVE = tuple(Variant(f"scale 1.5, negative source {g:g}", 1.5, negative=g) for g in (0.25, 0.5))


def ideas(stage: Stage, choice: Choice) -> list[dict[str, Any]]:
    """raw/ideas.csv: a row for each kind and variant; the run's own setting comes first."""
    there = {system.name: system for system in systems_of(stage.plan)}
    # Each with seeds of its own for the pictures; what a stage reads, adapters too, it reads once.
    stages = [replace(stage, plan=replace(stage.plan, seed=stage.plan.seed + 1 + n)) for n in range(PICTURES)]
    rows = []
    for kind, name in (("composed", choice.composed), ("monolith", choice.monolith)):
        own = at_scale(choice.guidance[kind])
        tried = dict.fromkeys((own, *VARIANTS, *(NEGATIVE if kind == "composed" else ())))
        scores = {variant: _scores(stages, there[name], variant, choice.best) for variant in tried}
        rows += [_row(kind, name, variant, scores[variant], scores[own]) for variant in tried]
    write_csv(stage.raw / "ideas.csv", rows)
    return rows


def _scores(stages: Sequence[Stage], system: System, variant: Variant, best: str) -> Scores:
    """(1, P): TIFA of each prompt, the mean over its pictures."""
    by_picture = [_of_picture(stage, system, variant, best) for stage in stages]
    ids = sorted(set.intersection(*(set(own) for own in by_picture)))
    return np.asarray([[np.mean([own[id] for own in by_picture]) for id in ids]])


def _of_picture(stage: Stage, system: System, variant: Variant, best: str) -> dict[str, float]:
    """TIFA by prompt of the pictures of one seed."""
    named = replace(variant.of(system), name=f"{system.name}, {variant.what}, seed {stage.plan.seed}")
    drawings, prompts = [Drawing(named, variant.guidance, best)], stage.part("validation")
    draw(stage, drawings, prompts)
    scores = judge_drawings(stage, drawings, prompts, stage.plan.judges[:1])
    return {row["prompt"]: float(row["hard"]) for row in scores}


def _row(kind: str, name: str, variant: Variant, scores: Scores, reference: Scores) -> dict[str, Any]:
    facts = {"kind": kind, "system": name, "variant": variant.what, "prompts": scores.shape[1]}
    over = difference(scores, reference)
    return {**facts, **mean(scores).columns("tifa"), **over.columns("minus_own")}
