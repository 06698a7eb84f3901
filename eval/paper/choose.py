"""What is chosen on validation prompts, with equally many trials for every kind of system, and then kept.

Every kind (composed, monolith, backbone) is tried with the same guidance scales. The primary composed system and the
primary monolith are those with the highest TIFA by the first judge; their scale is their kind's, and of two that are
equal for one the scale that suits the kind's other systems better. What draws prompts that join two ideas is chosen
apart, on the joined validation prompts alone: the primary system, or the same adapters by region or with the backbone.

    raw/choice.json    every trial with its TIFA, what was chosen, and the best single source
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from paper.pictures import Drawing, draw
from paper.prompts import Prompt
from paper.ruler import best_source
from paper.stage import Stage
from paper.systems import COMPOSED, MONOLITHS, System, systems_of
from paper.tifa_scores import judge_drawings
from promptcdm.tensorfile import write_json

CANDIDATES = {"composed": COMPOSED, "monolith": MONOLITHS, "backbone": ("backbone",)}
# For joined prompts, beside the primary system of the kind.
JOINED = {
    "composed": ("product, backbone", "regional", "phrases", "phrases, layout"),
    "monolith": ("monolith, backbone", "monolith 8r, backbone", "monolith phrases"),
}


@dataclass(frozen=True)
class Choice:
    """What every later stage goes by."""

    composed: str  # the primary systems
    monolith: str
    guidance: dict[str, float]  # by kind
    best: str  # source
    joined: dict[str, str]  # what draws joined prompts, by kind

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
    tried = _tried(stage, trials, prompts, judge)
    first = {kind: _first([t for t in tried if t[1].system.kind == kind]) for kind in CANDIDATES}
    both = [prompt for prompt in prompts if prompt.stratum == "joined"]
    for_joined = {
        kind: [first[kind], *(replace(first[kind], system=there[name]) for name in names if name in there)]
        for kind, names in JOINED.items()
    }
    more = {kind: _tried(stage, own, both, judge) for kind, own in for_joined.items()}
    choice = Choice(
        first["composed"].system.name,
        first["monolith"].system.name,
        {kind: drawing.guidance for kind, drawing in first.items()},
        best,
        {kind: max(own, key=_score)[1].system.name for kind, own in more.items()},
    )
    stage.raw.mkdir(parents=True, exist_ok=True)
    write_json(
        stage.raw / "choice.json",
        {
            **asdict(choice),
            "judge": judge,
            "prompts": len(prompts),
            "trials": _told(tried),
            "joined_prompts": len(both),
            "joined_trials": [row for own in more.values() for row in _told(own)],
        },
    )
    return choice


def _first(tried: Sequence[tuple[float, Drawing]]) -> Drawing:
    """The best of one kind; of equal ones that whose guidance suits the others of its kind better."""

    def mean(scale: float) -> float:
        return float(np.mean([tifa for tifa, trial in tried if trial.guidance == scale]))

    return max(tried, key=lambda pair: (pair[0], mean(pair[1].guidance)))[1]


def _tried(
    stage: Stage, trials: Sequence[Drawing], prompts: Sequence[Prompt], judge: str
) -> list[tuple[float, Drawing]]:
    """Each trial with its TIFA."""
    draw(stage, trials, prompts)
    return [(_tifa(stage, trial, prompts, judge), trial) for trial in trials]


def _told(tried: Sequence[tuple[float, Drawing]]) -> list[dict[str, Any]]:
    return [
        {"system": t.system.name, "kind": t.system.kind, "guidance": t.guidance, "tifa": tifa}
        for tifa, t in tried
    ]


def _score(pair: tuple[float, Drawing]) -> float:
    return pair[0]


def _tifa(stage: Stage, trial: Drawing, prompts: Sequence[Prompt], judge: str) -> float:
    scores = judge_drawings(stage, [trial], prompts, [judge])
    return float(np.mean([row["hard"] for row in scores])) if scores else 0.0
