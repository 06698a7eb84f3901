"""The stages in their order. Each is a call of one module here, and leaves files in the folder of the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from paper import (
    adapters,
    attribution,
    choose,
    continual,
    fidelity_scores,
    figures,
    forgetting,
    pictures,
    protection,
    scale,
)
from paper import ruler as fast_ruler
from paper.choose import Choice
from paper.pictures import Drawing
from paper.plan import Plan
from paper.report import write_report
from paper.stage import Stage, read_csv
from paper.storage import storage
from paper.systems import systems_of
from paper.tables import make_tables
from paper.tifa_scores import judge_drawings, judge_real, write_questions, write_scores
from promptcdm.backbone import Backbone
from promptcdm.tensorfile import write_json

Say = Callable[[str], None]


@dataclass
class Experiment:
    """One run: its stage, and what it says on the way."""

    stage: Stage
    say: Say
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, plan: Plan, out: Path, device: str, say: Say) -> Experiment:
        """Load the backbone."""
        return cls(Stage(plan, out, Backbone.load(plan.backbone, device=device)), say)

    def run(self, name: str) -> None:
        """One stage by its name."""
        stages: dict[str, Callable[[], str]] = {
            "prompts": self.prompts,
            "adapters": self.adapters,
            "ruler": self.ruler,
            "choice": self.choice_made,
            "pictures": self.pictures,
            "scores": self.scores,
            "forgetting": self.forgetting,
            "protection": self.protection,
            "growth": self.growth,
            "report": self.report,
        }
        said = stages[name]()
        self.say(f"[{time.monotonic() - self.started:6.0f} s] {name}: {said}")

    def prompts(self) -> str:
        """The prompts, made or read, and the questions on them."""
        write_questions(self.stage)
        return f"{len(self.stage.prompts)} prompts about {len(self.stage.names)} sources"

    def adapters(self) -> str:
        """Every source alone and the monoliths, of the first training seed."""
        stage = self.stage
        names = [*stage.plan.monoliths, *stage.names]  # the longest first, so that no worker waits for long
        seconds = adapters.train(stage.plan, stage.out, stage.backbone, stage.sources, 0, names)
        return ", ".join(f"{name} {own:.0f} s" for name, own in seconds.items())

    def ruler(self) -> str:
        """The fast ruler, and attribution by its rows."""
        rows = fast_ruler.measure(self.stage)
        found = attribution.attributions(self.stage, rows)
        write_json(self.stage.raw / "attribution.json", found.record())
        error = {
            name: np.mean([float(row[f"error {name}"]) for row in rows]) for name in ("monolith", "product")
        }
        return ", ".join(f"{name} {value:.4f}" for name, value in error.items())

    def choice_made(self) -> str:
        """The primary systems and the guidance of each kind; other training seeds of the primaries."""
        stage, choice = self.stage, self.choice
        for seed in range(1, stage.plan.seeds):
            names = [choice.monolith, *stage.names]
            adapters.train(stage.plan, stage.out, stage.backbone, stage.sources, seed, names)
        return f"{choice.composed} and {choice.monolith}, best source {choice.best}"

    @cached_property
    def choice(self) -> Choice:
        """What was chosen on validation."""
        return choose.choose(self.stage, read_csv(self.stage.raw / "ruler.csv"))

    @cached_property
    def drawings(self) -> list[Drawing]:
        """Every system with the first training seed, then the primary ones with the others."""
        own = [self.choice.drawing(system) for system in systems_of(self.stage.plan)]
        primary = [d for d in own if d.system.name in (self.choice.composed, self.choice.monolith)]
        seeds = range(1, self.stage.plan.seeds)
        return own + [self.choice.drawing(d.system, seed) for seed in seeds for d in primary]

    def pictures(self) -> str:
        """The headroom gate first, then everything else."""
        stage, prompts = self.stage, self.stage.part("test")
        gate = [
            d
            for d in self.drawings
            if d.system.name in ("oracle source", self.choice.monolith) and not d.seed
        ]
        withheld = [prompt for prompt in prompts if prompt.stratum == "withheld"]
        pictures.draw(stage, gate, prompts)
        scores = judge_drawings(stage, gate, withheld or prompts, stage.plan.judges[:1])
        tifa = {d.system.name: [r["hard"] for r in scores if r["system"] == d.system.name] for d in gate}
        told = ", ".join(f"{name} {np.mean(own):.3f}" for name, own in tifa.items() if own)
        self.say(f"headroom, TIFA on withheld concepts: {told}")
        records = pictures.draw(stage, self.drawings, prompts)
        pictures.write_records(stage, records)
        return f"{len(records)} of {len(self.drawings)} systems"

    def scores(self) -> str:
        """TIFA by every judge, fidelity in every tower."""
        stage, prompts = self.stage, self.stage.part("test")
        rows = [
            *judge_real(stage, prompts),
            *judge_drawings(stage, self.drawings, prompts, stage.plan.judges),
        ]
        write_scores(stage, rows)
        whole = [drawing for drawing in self.drawings if not drawing.system.phrases]
        primary = next(d for d in whole if d.system.name == self.choice.monolith)
        figures_of = fidelity_scores.measure(stage, whole, prompts, primary)
        return f"{len(rows)} pictures judged, {len(figures_of)} rows of fidelity"

    def forgetting(self) -> str:
        """Each source and one picture."""
        rows = forgetting.forget_sources(self.stage, self.choice)
        found = forgetting.forget_picture(self.stage)
        write_json(self.stage.raw / "forget_picture.json", found)
        equal = sum(bool(row["files_equal"] and row["pictures_equal"]) for row in rows)
        cheaper = found["by_slices"]["1"]["cheaper"]
        return f"{equal} of {len(rows)} sources as if never there; one picture {cheaper:.1f} times cheaper"

    def protection(self) -> str:
        """Membership, near-copies, storage."""
        found = protection.memberships(self.stage)
        protection.copies(self.stage, self.choice)
        storage(self.stage)
        return ", ".join(f"{name} {row['auc']:.2f}" for name, row in found.get("scores", {}).items())

    def growth(self) -> str:
        """Sources one after the other, and many of them, where the plan asks for it."""
        said = []
        if self.stage.plan.options["continual"]:
            found = continual.continual(self.stage)
            said.append(f"lost: composed {found['composed_lost']:.3f}, monolith {found['monolith_lost']:.3f}")
        if self.stage.plan.splits:
            said.append(f"error by parts: {scale.scale(self.stage)['denoising_error']}")
        return "; ".join(said) or "left out by this plan"

    def report(self) -> str:
        """Tables, figures and report.md from the raw files."""
        stage = self.stage
        names = [*stage.names, *stage.plan.monoliths]
        seconds = {name: adapters.training_seconds(stage.out, 0, name) for name in names}
        write_json(stage.raw / "time.json", {"training_core_seconds": seconds})
        tables = make_tables(stage.out)
        figures.make_figures(stage.out, tables, stage, [d for d in self.drawings if not d.seed])
        return str(write_report(stage.out, tables))
