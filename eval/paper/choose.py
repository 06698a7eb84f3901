"""What is chosen on validation prompts, with equally many trials for every kind of system, and then kept.

Every kind (composed, monolith, backbone) is tried with the same guidance scales. The primary composed system and the
primary monolith are those with the highest TIFA by the first judge; their scale is their kind's.

    raw/choice.json    every trial with its TIFA, what was chosen, and the best single source
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from paper.pictures import Drawing, draw
from paper.prompts import Prompt
from paper.ruler import best_source
from paper.stage import Stage
from paper.systems import COMPOSED, MONOLITHS, System, systems_of
from paper.tifa_scores import judge_drawings
from promptcdm.tensorfile import write_json

CANDIDATES = {"composed": COMPOSED, "monolith": MONOLITHS, "backbone": ("backbone",)}


@dataclass(frozen=True)
class Choice:
    """What every later stage goes by."""

    composed: str  # the primary systems
    monolith: str
    guidance: dict[str, float]  # by kind
    best: str  # source

    def drawing(self, system: System, seed: int = 0, without: str = "") -> Drawing:
        """A system with its kind's guidance."""
        return Drawing(system, self.guidance[system.kind], self.best, seed, without)


def choose(stage: Stage, ruler: Sequence[dict[str, str]]) -> Choice:
    """Draw and judge the trials, and choose."""
    best, prompts, judge = best_source(stage, ruler), stage.part("validation"), stage.plan.judges[0]
    there = {system.name: system for system in systems_of(stage.plan)}
    trials = [
        Drawing(there[name], scale, best)
        for names in CANDIDATES.values()
        for name in names
        if name in there
        for scale in stage.plan.guidance
    ]
    draw(stage, trials, prompts)
    tifa = [_tifa(stage, trial, prompts, judge) for trial in trials]
    first = {
        kind: max(
            (pair for pair in zip(tifa, trials, strict=True) if pair[1].system.kind == kind), key=_score
        )[1]
        for kind in CANDIDATES
    }
    choice = Choice(
        first["composed"].system.name,
        first["monolith"].system.name,
        {kind: drawing.guidance for kind, drawing in first.items()},
        best,
    )
    told = [
        {"system": t.system.name, "kind": t.system.kind, "guidance": t.guidance, "tifa": score}
        for score, t in zip(tifa, trials, strict=True)
    ]
    stage.raw.mkdir(parents=True, exist_ok=True)
    write_json(
        stage.raw / "choice.json",
        {**asdict(choice), "judge": judge, "prompts": len(prompts), "trials": told},
    )
    return choice


def _score(pair: tuple[float, Drawing]) -> float:
    return pair[0]


def _tifa(stage: Stage, trial: Drawing, prompts: Sequence[Prompt], judge: str) -> float:
    scores = judge_drawings(stage, [trial], prompts, [judge])
    return float(np.mean([row["hard"] for row in scores])) if scores else 0.0
