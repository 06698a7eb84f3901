"""Forgetting: a source and a picture, what it costs, what is left, and whether it is as if it had never been there.

source   a folder is deleted. The same prompts are drawn without each source in turn: fidelity to the held-out pictures
         of the others, before and after, and TIFA of the prompts that are about the others. A store that forgot it
         and one that never had it hold the same files, and draw the same bytes.
picture  its source is trained again without it, or with slices one slice of it; the monolith has to be trained again
         from all that is left. Seconds are of one core.

    raw/forgetting.csv    a row for each source
    raw/forget_picture.json
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paper.adapters import MONOLITH, settings_of, store_of, trained, training_seconds
from paper.choose import Choice
from paper.compare import difference
from paper.fidelity_scores import compared_prompts, drawn_features, figures, real_features
from paper.pictures import Drawing, draw, picture_folder
from paper.plan import Plan
from paper.prompts import Prompt
from paper.stage import Stage, write_csv
from paper.systems import SYSTEMS, System
from paper.tifa_scores import by_prompt, judge_drawings
from paper.units import done, once
from promptcdm.forget import forget
from promptcdm.forget_items import check_forgotten, forget_items, plan_items
from promptcdm.source import Source
from promptcdm.store import AdapterStore

_EQUAL = 2  # pictures that are drawn from both stores


def system_named(name: str) -> System:
    """The system of that name."""
    return next(system for system in SYSTEMS if system.name == name)


def forget_sources(stage: Stage, choice: Choice) -> list[dict[str, Any]]:
    """Draw without each source, and compare; raw/forgetting.csv."""
    system, prompts = system_named(choice.composed), stage.part("test")
    whole = choice.drawing(system)
    less = {name: choice.drawing(system, without=name) for name in stage.names}
    draw(stage, list(less.values()), prompts)
    rows = [_without(stage, whole, less[name], prompts) | _equal(stage, less[name]) for name in stage.names]
    write_csv(stage.raw / "forgetting.csv", rows)
    return rows


def _without(stage: Stage, whole: Drawing, less: Drawing, prompts: Sequence[Prompt]) -> dict[str, Any]:
    row: dict[str, Any] = {"source": less.without}
    for tower in stage.plan.towers:
        real, own = real_features(stage, tower, less.without), compared_prompts(prompts)
        before, after = (drawn_features(stage, each, own, tower) for each in (whole, less))
        found = figures(real, after, before, stage.plan.seed)
        for key in (
            "kid",
            "kid_minus",
            "kid_minus_low",
            "kid_minus_high",
            "fd_ratio",
            "fd_ratio_low",
            "fd_ratio_high",
        ):
            row[f"{tower} {key}"] = found.get(key, "")
    judge = stage.plan.judges[0]
    scores = judge_drawings(stage, [whole, less], prompts, [judge])
    ids = [p.id for p in prompts if less.without not in p.sources]
    told = [{key: str(value) for key, value in score.items()} for score in scores]
    a, b = (by_prompt(told, judge, whole.system.name, ids, without=w) for w in (less.without, ""))
    row |= {f"tifa_minus_{key}": value for key, value in difference(a, b).record().items()} if ids else {}
    return row


def _equal(stage: Stage, less: Drawing) -> dict[str, Any]:
    """A store that forgot a source beside one that never had it: files, and pictures drawn from each."""
    name = less.without
    folder = stage.out / "work" / "forgotten" / name

    def compare() -> dict[str, Any]:
        seconds = _stores(stage, name, folder)
        files = [_files(folder / kind) for kind in ("forgot", "never")]
        prompts = stage.part("test")[:_EQUAL]
        drawn = [_bytes(_at(stage, folder / kind), less, prompts) for kind in ("forgot", "never")]
        with_it = _bytes(stage, replace(less, without=""), prompts)
        return {
            "forget_seconds": seconds,
            "files_equal": files[0] == files[1],
            "pictures_equal": drawn[0] == drawn[1],
            "pictures_with_it_equal": drawn[0] == with_it,  # false: the comparison can fail
        }

    return dict(once(folder.with_suffix(".json"), compare))


def _stores(stage: Stage, name: str, folder: Path) -> float:
    """Write both stores; the seconds that forgetting took."""
    shutil.rmtree(folder, ignore_errors=True)
    for kind in ("forgot", "never"):
        for own in stage.names:
            if kind == "forgot" or own != name:
                place = Path("work", "seed-0", "adapters", own)
                shutil.copytree(store_of(stage.out, 0).root / own, folder / kind / place)
    start = time.process_time()
    forget(name, store=AdapterStore(folder / "forgot" / "work" / "seed-0" / "adapters"))
    return time.process_time() - start


def _at(stage: Stage, out: Path) -> Stage:
    """The same run with the adapters of another folder."""
    other = replace(stage, out=out)
    other.prompts, other.names = stage.prompts, stage.names
    return other


def _files(folder: Path) -> dict[str, bytes]:
    kept = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.parent.parent.name == "adapters"]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in kept}


def _bytes(stage: Stage, drawing: Drawing, prompts: Sequence[Prompt]) -> list[bytes]:
    draw(stage, [drawing], prompts)
    return [(picture_folder(stage, drawing) / f"{prompt.id}.png").read_bytes() for prompt in prompts]


def forget_picture(stage: Stage) -> dict[str, Any]:
    """Forget one picture of the smallest source, and see that the outcome is what training without it gives."""
    name = min(stage.names, key=lambda n: len(stage.sources[n]))
    source, plan = stage.sources[name], stage.plan
    slices = (1, plan.forget_slices) if plan.options["slices"] else (1,)
    units: dict[Path, Callable[[], Any]] = {
        stage.out / "work" / "forgotten" / f"picture-{k}.json": (
            lambda k=k: _forget_one(stage, plan, source, k)  # type: ignore[misc]
        )
        for k in slices
    }
    found = dict(zip(slices, done(units).values(), strict=True))
    monolith = training_seconds(stage.out, 0, MONOLITH)
    for row in found.values():
        row["monolith_seconds"] = monolith
        row["cheaper"] = monolith / row["seconds"]
    told = {"source": name, "pictures": len(source), "sources": len(stage.names)}
    return {**told, "by_slices": {str(k): row for k, row in found.items()}}


def _forget_one(stage: Stage, plan: Plan, source: Source, k: int) -> dict[str, Any]:
    """Of a source in k slices, each with a k-th of the steps."""
    settings = settings_of(plan, source.name, len(stage.names), 0)
    settings = replace(settings, slices=k, steps=max(1, settings.steps // k))
    store = AdapterStore(stage.out / "work" / "forgotten" / f"slices-{k}")
    if source.name not in store.sources():
        if k == 1:
            store.add(store_of(stage.out, 0).load(source.name))
        else:
            trained(store, source, stage.backbone, settings)
    wanted = source.items[0].file
    if wanted not in _trained_files(store, source.name):  # an interrupted run got as far as this
        return _forget_one_again(stage, plan, source, k, store)
    todo = plan_items(source.name, [wanted], source, store=store)
    start = time.process_time()
    adapter, receipt = forget_items(todo, stage.backbone, store=store)
    seconds = time.process_time() - start
    check_forgotten(todo, stage.backbone, adapter)  # trains all that is left from nothing, and compares bytes
    return {
        "seconds": seconds,
        "slices": k,
        "steps": settings.steps,
        "equal_to_never": True,
        "items": receipt.items,
    }


def _forget_one_again(
    stage: Stage, plan: Plan, source: Source, k: int, store: AdapterStore
) -> dict[str, Any]:
    forget(source.name, store=store)
    return _forget_one(stage, plan, source, k)


def _trained_files(store: AdapterStore, name: str) -> list[str]:
    manifest = store.load(name).manifest
    return [item.file for item in manifest.items] if manifest else []


def largest_change(rows: Sequence[dict[str, Any]], tower: str) -> float:
    """The largest rise of the Fréchet distance over its floor, as a share; NaN where it was not measured."""
    ratios = [
        float(row[f"{tower} fd_ratio"]) - 1 for row in rows if row.get(f"{tower} fd_ratio") not in ("", None)
    ]
    return float(np.max(ratios)) if ratios else float("nan")
