"""The stages in their order. Each is a call of one module here, and leaves files in the folder of the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paper import (
    adapters,
    attribution,
    choose,
    continual,
    fidelity_scores,
    forgetting,
    ideas,
    pictures,
    protection,
    scale,
)
from paper import ruler as fast_ruler
from paper.choose import Choice
from paper.classifier import classifier_units
from paper.pictures import Drawing
from paper.plan import Plan
from paper.sheet import draw_sheet
from paper.sources import BACKBONE, backbone_folder
from paper.stage import Stage, read_csv
from paper.storage import storage
from paper.systems import MONOLITHS, system_named, systems_of
from paper.tifa_scores import judge_drawings, judge_real, write_questions, write_scores
from paper.units import Units, done, start
from promptcdm.backbone import Backbone
from promptcdm.device_class import device_class
from promptcdm.source import Source
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
        """Load the backbone; its precision is the plan's, the same on every device."""
        if device == "cuda":
            torch.set_float32_matmul_precision("high")
        backbone = Backbone.load(plan.backbone, device=device, dtype="float32")
        painter = backbone
        if plan.drawn_in != "float32":
            painter = Backbone.load(plan.backbone, device=device, dtype=plan.drawn_in)
        return cls(Stage(plan, out, backbone, painter), say)

    def run(self, name: str) -> None:
        """One stage by its name."""
        stages: dict[str, Callable[[], str]] = {
            "prompts": self.prompts,
            "adapters": self.adapters,
            "ruler": self.ruler,
            "choice": self.choice_made,
            "pictures": self.pictures,
            "forgetting": self.forgetting,
            "picture": self.forgetting_one,
            "membership": self.membership,
            "growth": self.growth,
            "leftover": self.leftover,
            "ideas": self.ideas,
            "report": self.report,
        }
        said = stages[name]()
        self.say(f"[{time.monotonic() - self.started:6.0f} s] {name}: {said}")

    def prompts(self) -> str:
        """The prompts, made or read, and the questions on them."""
        write_questions(self.stage)
        return f"{len(self.stage.prompts)} prompts about {len(self.stage.names)} sources"

    def adapters(self) -> str:
        """What the pictures need, the longest first; the seeds of the monolith that will be chosen follow then."""
        stage = self.stage
        units = {**self._trainings(0, stage.plan.monoliths), **self._classifier()}
        units |= {**self._trainings(0, stage.names), **self._backbone()}
        for seed in range(1, stage.plan.seeds):
            units |= self._trainings(seed, stage.names)
        done(units)
        return f"{len(units)} trainings"

    def _classifier(self) -> Units:
        stage = self.stage
        return classifier_units(stage.sources, stage.backbone, stage.out, stage.plan.seed)

    def _backbone(self) -> Units:
        """The backbone as a source, where a folder tells what it draws."""
        stage, folder = self.stage, backbone_folder(self.stage.plan)
        if folder is None:
            return {}
        opened = {BACKBONE: Source.open(folder, BACKBONE)}
        return adapters.training_units(stage.plan, stage.out, stage.backbone, opened, 0, [BACKBONE])

    def _trainings(self, seed: int, names: Sequence[str]) -> Units:
        stage = self.stage
        return adapters.training_units(stage.plan, stage.out, stage.backbone, stage.sources, seed, names)

    def ruler(self) -> str:
        """The fast ruler, and attribution by its rows."""
        rows = fast_ruler.measure(self.stage)
        found = attribution.attributions(self.stage, rows)
        write_json(self.stage.raw / "attribution.json", found.record())
        names = ("monolith", "product", "oracle source")
        error = {name: np.mean([float(row[f"error {name}"]) for row in rows]) for name in names}
        return ", ".join(f"{name} {value:.4f}" for name, value in error.items())

    def choice_made(self) -> str:
        """The primary systems and the guidance of each kind; the chosen monolith's other seeds are begun."""
        start(self._other_monoliths())
        return f"{self.choice.composed} and {self.choice.monolith}, best source {self.choice.best}"

    def _other_monoliths(self) -> Units:
        units: dict[Path, Callable[[], object]] = {}
        chosen = {system_named(name).of for name in (self.choice.monolith, self.choice.joined["monolith"])}
        for seed in range(1, self.stage.plan.seeds):
            units |= self._trainings(seed, sorted(chosen))
        return units

    @cached_property
    def choice(self) -> Choice:
        """What was chosen on validation."""
        return choose.choose(self.stage, read_csv(self.stage.raw / "ruler.csv"))

    def drawings(self, seed: int = 0) -> list[Drawing]:
        """Every system with the first training seed, the headroom gate's first; the primary ones with another."""
        first = ("oracle source", self.choice.monolith)
        own = sorted(systems_of(self.stage.plan), key=lambda system: system.name not in first)
        primary = (self.choice.composed, self.choice.monolith, *self.choice.joined.values())
        return [self.choice.drawing(s, seed) for s in own if not seed or s.name in primary]

    def pictures(self) -> str:
        """Draw, judge and measure: every system, then the primary ones of the other training seeds."""
        stage, prompts = self.stage, self.stage.part("test")
        own = self.drawings()
        records, scores = self._drawn(own)
        self.say(f"headroom, TIFA on withheld concepts: {self._headroom(scores)}")
        done(self._other_monoliths())
        others = [d for seed in range(1, stage.plan.seeds) for d in self.drawings(seed)]
        more = self._drawn(others)
        pictures.write_records(stage, [*records, *more[0]])
        write_scores(stage, [*judge_real(stage, prompts), *scores, *more[1]])
        whole = [drawing for drawing in (*own, *others) if not drawing.system.phrases]
        primary = next(d for d in whole if d.system.name == self.choice.monolith)
        rows = fidelity_scores.measure(stage, whole, prompts, primary)
        composed = [d for d in whole if d.system.kind == "composed"]
        monoliths = [d for d in whole if d.system.name in MONOLITHS and not d.seed and d != primary]
        fidelity_scores.measure_pairs(stage, composed, prompts, monoliths, rows)
        draw_sheet(stage, own)
        return f"{len(records) + len(more[0])} pictures, {len(rows)} rows of fidelity"

    def _drawn(self, own: list[Drawing]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Records and TIFA of these drawings; their features are made sure of."""
        stage, prompts = self.stage, self.stage.part("test")
        records = pictures.draw(stage, own, prompts)
        scores = judge_drawings(stage, own, prompts, stage.plan.judges)
        whole = [drawing for drawing in own if not drawing.system.phrases]
        fidelity_scores.read_all_features(stage, whole, fidelity_scores.compared_prompts(prompts))
        return records, scores

    def _headroom(self, scores: Sequence[dict[str, Any]]) -> str:
        judge, told = self.stage.plan.judges[0], []
        for name in ("oracle source", self.choice.monolith):
            own = [
                r["hard"]
                for r in scores
                if (r["system"], r["judge"], r["stratum"]) == (name, judge, "withheld")
            ]
            told += [f"{name} {np.mean(own):.3f}"] if own else []
        return ", ".join(told)

    def forgetting(self) -> str:
        """Each source in turn."""
        rows = forgetting.forget_sources(self.stage, self.choice)
        equal = sum(bool(row["files_equal"] and row["pictures_equal"]) for row in rows)
        return f"{equal} of {len(rows)} sources as if never there"

    def forgetting_one(self) -> str:
        """One picture."""
        found = forgetting.forget_picture(self.stage)
        return ", ".join(f"{k} slice(s): {row['cheaper']:.1f}" for k, row in found["by_slices"].items())

    def membership(self) -> str:
        """Membership inference."""
        found = protection.memberships(self.stage)
        return ", ".join(f"{name} {row['auc']:.2f}" for name, row in found.get("scores", {}).items())

    def growth(self) -> str:
        """Sources one after the other, and many of them, where the plan asks for it."""
        done(protection.training_features(self.stage))
        said = []
        if self.stage.plan.options["continual"]:
            found = continual.continual(self.stage)
            said.append(f"lost: composed {found['composed_lost']:.3f}, monolith {found['monolith_lost']:.3f}")
        if self.stage.plan.splits:
            said.append(f"error by parts: {scale.scale(self.stage)['denoising_error']}")
        return "; ".join(said) or "left out by this plan"

    def leftover(self) -> str:
        """Near-copies, storage and what the trainings cost."""
        stage = self.stage
        protection.copies(stage, self.choice)
        storage(stage)
        costs = {
            name: adapters.training_cost(stage.out, 0, name) for name in (*stage.names, *stage.plan.monoliths)
        }
        kept = ("seen", "seconds", "steps", "pictures")
        cost = {
            "device": device_class(stage.backbone.device, stage.backbone.dtype),
            "training": {name: {key: own[key] for key in kept} for name, own in costs.items()},
        }
        write_json(stage.raw / "cost.json", cost)
        return "near-copies, storage, cost"

    def ideas(self) -> str:
        """Ways to guide, where the plan asks for it."""
        if not self.stage.plan.options.get("ideas"):
            return "left out by this plan"
        rows = ideas.ideas(self.stage, self.choice)
        best = {row["kind"]: row for row in sorted(rows, key=lambda row: row["tifa"])}
        return ", ".join(f"{kind}: {row['variant']} {row['tifa']:.3f}" for kind, row in best.items())

    def report(self) -> str:
        """Tables, figures and report.md, from the raw files alone."""
        from paper.make_report import make_report  # matplotlib is needed here alone

        return str(make_report(self.stage.out))
