"""What the demo does, and the same steps as commands for the shell."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from promptcdm.demo_result import Forgotten, Row
from promptcdm.settings import GenerateSettings, TrainSettings

DEVICE = "cpu"  # where equal commands give equal bytes
_PLACE = "python -c \"from promptcdm.shipped import shipped; print(shipped('{}'))\""


@dataclass(frozen=True)
class DemoPlan:
    """What the demo does; the defaults are the shipped backbone, pictures, adapters and judge."""

    backbone: str = "nano"
    judge: str = "nano-judge"
    pictures: Path | None = None  # folder of source folders; None: the 60 of each collection that ship for it
    adapters: Path | None = None  # store of the first picture; None: what ships
    # User i may use the first i + 1 sources.
    sources: tuple[str, ...] = ("fluent-emoji-flat", "twemoji", "openmoji")
    users: tuple[str, ...] = ("mit", "mit+cc-by", "all")
    first_prompt: str = "a fox"
    prompts: tuple[str, ...] = ("a fox", "a pizza", "a bus", "a robot", "a sunflower", "a turtle")
    withheld: tuple[str, ...] = (
        "a robot",
        "a sunflower",
        "a turtle",
    )  # of concepts that the backbone never saw
    shown: int = 6  # prompts in the report's grid
    # nano knows its own pictures by heart: an adapter needs many layers to teach it another hand, and guidance
    # away from the bare backbone's empty caption would lead away from that hand too, into blobs.
    training: TrainSettings = TrainSettings(
        steps=250, rank=16, targets="wide", loraplus_lr_ratio=10.0, unconditional="adapter"
    )
    generation: GenerateSettings = GenerateSettings()


def plan_commands(
    plan: DemoPlan, place: str, rows: Sequence[Row], forgotten: Forgotten
) -> tuple[tuple[str, str], ...]:
    """(what, command) for each step, to be given in the folder above the demo's, whose name is `place`."""
    return (
        ("where the shipped pictures are", f"EMOJI=$({_PLACE.format('emoji')})"),
        *_train(plan, place),
        *_draw(plan, place, rows, forgotten),
        *_score(plan, place, rows),
    )


def _train(plan: DemoPlan, place: str) -> Iterator[tuple[str, str]]:
    flags = _changed(plan.training) + _backbone(plan) + _store(place)
    for name in plan.sources:
        yield (
            f"train {name}",
            f'promptcdm train-adapter --source {name} --data "$EMOJI/demo/{name}"{flags}',
        )


def _draw(plan: DemoPlan, place: str, rows: Sequence[Row], forgotten: Forgotten) -> Iterator[tuple[str, str]]:
    prompts = " ".join(shlex.quote(prompt) for prompt in plan.prompts)
    flags = _changed(plan.generation) + _backbone(plan) + _store(place)
    for row in rows:
        if row.title == forgotten.after:
            yield (
                f"forget {forgotten.source}",
                f"promptcdm forget {forgotten.source} --yes{_store(place)}",
            )
        allowed, out = shlex.quote(",".join(row.allowed)), shlex.quote(f"{place}/{row.folder}")
        yield (
            f"draw: {row.title}",
            f"promptcdm generate {prompts} --allowed {allowed}{flags} --out {out}",
        )


def _score(plan: DemoPlan, place: str, rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    questions = shlex.quote(f"{place}/questions.json")
    for row in rows:
        images = shlex.quote(f"{place}/{row.folder}/map.json")
        yield (
            f"score: {row.title}",
            f"promptcdm evaluate tifa --questions {questions} --images {images} --judge {plan.judge} --device {DEVICE}",
        )


def _backbone(plan: DemoPlan) -> str:
    named = "" if plan.backbone == DemoPlan.backbone else f" --backbone {shlex.quote(plan.backbone)}"
    return f"{named} --device {DEVICE}"


def _store(place: str) -> str:
    return f" --store {shlex.quote(f'{place}/adapters')}"


def _changed(settings: TrainSettings | GenerateSettings) -> str:
    """Flags of the settings that are not at their defaults, each after a space."""
    words = []
    for setting in fields(settings):
        name, value = setting.name.replace("_", "-"), getattr(settings, setting.name)
        if value == setting.default:
            continue
        words.append(
            f"--{'' if value else 'no-'}{name}"
            if isinstance(value, bool)
            else f"--{name} {shlex.quote(str(value))}"
        )
    return "".join(f" {word}" for word in words)
