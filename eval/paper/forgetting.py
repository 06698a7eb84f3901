"""Forgetting: a source and a picture, what it costs, what is left, and whether it is as if it had never been there.

source   a folder is deleted. The same prompts are drawn without each source in turn: fidelity to the held-out pictures
         of the others, before and after, and TIFA of the prompts that are about the others. A store that forgot it
         and one that never had it hold the same files, and draw the same bytes.
picture  its source is trained again without it, or with slices one slice of it; the monolith has to be trained again
         from all that is left. What is compared is pictures seen in training, each a forward and a backward pass, and
         on a CPU seconds of one core.

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

from paper.adapters import MONOLITH, core_seconds, settings_of, store_of, trained, training_cost
from paper.choose import Choice
from paper.compare import difference
from paper.fidelity_scores import compared_prompts, drawn_features, figures, real_features
from paper.pictures import Drawing, draw, picture_folder
from paper.prompts import Prompt
from paper.sources import BACKBONE
from paper.stage import Stage, write_csv
from paper.systems import system_named
from paper.tifa_scores import by_prompt, judge_drawings
from paper.units import done
from promptcdm.errors import RunFailed
from promptcdm.forget import forget
from promptcdm.forget_items import check_forgotten, forget_items, plan_items
from promptcdm.store import AdapterStore
from promptcdm.tensorfile import write_json

_EQUAL = 2  # pictures that are drawn from both stores


def forget_sources(stage: Stage, choice: Choice) -> list[dict[str, Any]]:
    """Draw without each source, and compare; raw/forgetting.csv."""
    system, prompts = system_named(choice.composed), stage.part("test")
    whole = choice.drawing(system)
    less = {name: choice.drawing(system, without=name) for name in stage.names}
    draw(stage, list(less.values()), prompts)
    units: dict[Path, Callable[[], Any]] = {}
    for name, drawing in less.items():
        folder = stage.out / "work" / "forgotten" / name
        units[folder / "less.json"] = lambda d=drawing: _without(stage, whole, d, prompts)  # type: ignore[misc]
        units[folder / "equal.json"] = lambda d=drawing, f=folder: _equal(stage, d, f)  # type: ignore[misc]
    found = list(done(units).values())
    rows = [a | b for a, b in zip(found[::2], found[1::2], strict=True)]
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
    judge = stage.plan.judges[-1]
    scores = judge_drawings(stage, [whole, less], prompts, [judge])
    known = {score["prompt"] for score in scores}
    ids = [p.id for p in prompts if less.without not in p.sources and p.id in known]
    told = [{key: str(value) for key, value in score.items()} for score in scores]
    a, b = (by_prompt(told, judge, whole.system.name, ids, without=w) for w in (less.without, ""))
    row |= {f"tifa_minus_{key}": value for key, value in difference(a, b).record().items()} if ids else {}
    return row


def _equal(stage: Stage, less: Drawing, folder: Path) -> dict[str, Any]:
    """A store that forgot a source beside one that never had it: files, and pictures drawn from each."""
    milliseconds = _stores(stage, less.without, folder)
    files = [_files(folder / kind) for kind in ("forgot", "never")]
    prompts = stage.part("test")[:_EQUAL]
    drawn = [_bytes(_at(stage, folder / kind), less, prompts) for kind in ("forgot", "never")]
    with_it = _bytes(_at(stage, folder / "with"), replace(less, without=""), prompts)
    return {
        "forget_milliseconds": milliseconds,
        "files_equal": files[0] == files[1],
        "pictures_equal": drawn[0] == drawn[1],
        "pictures_with_it_equal": drawn[0] == with_it,  # false: the comparison can fail
    }


def _stores(stage: Stage, name: str, folder: Path) -> float:
    """Write the stores that had it, forgot it and never had it; milliseconds of the clock that forgetting took."""
    place = Path("work", "seed-0", "adapters")
    for kind in ("with", "forgot", "never"):
        shutil.rmtree(folder / kind, ignore_errors=True)
        for own in (*stage.names, BACKBONE):
            there = store_of(stage.out, 0).root / own
            if there.is_dir() and (kind != "never" or own != name):
                shutil.copytree(there, folder / kind / place / own)
    start = time.perf_counter()
    forget(name, store=AdapterStore(folder / "forgot" / place))
    return (time.perf_counter() - start) * 1000


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
    """Forget one picture of the smallest source; raw/forget_picture.json."""
    name = min(stage.names, key=stage.sources.size)
    slices = (1, stage.plan.forget_slices) if stage.plan.options["slices"] else (1,)
    units: dict[Path, Callable[[], Any]] = {
        stage.out / "work" / "forgotten" / f"picture-{k}.json": lambda k=k: _forget_one(stage, name, k)  # type: ignore[misc]
        for k in slices
    }
    found = dict(zip(slices, done(units).values(), strict=True))
    monolith = training_cost(stage.out, 0, MONOLITH)
    for row in found.values():
        row["cheaper"] = monolith["seen"] / row["seen"]
        row["cheaper_seconds"] = monolith["seconds"] / row["seconds"] if row["seconds"] else None
    told = {"source": name, "pictures": stage.sources.size(name), "sources": len(stage.names)}
    told |= {"monolith_seen": monolith["seen"], "monolith_seconds": monolith["seconds"]}
    told |= {"by_slices": {str(k): row for k, row in found.items()}}
    write_json(stage.raw / "forget_picture.json", told)
    return told


def _forget_one(stage: Stage, name: str, k: int) -> dict[str, Any]:
    """Of a source in k slices, each with a k-th of the steps; is the outcome what training without it gives?"""
    source = stage.sources[name]
    settings = settings_of(stage.plan, name, len(stage.names), 0)
    settings = replace(settings, slices=k, steps=max(1, settings.steps // k))
    store = AdapterStore(stage.out / "work" / "forgotten" / f"slices-{k}")
    shutil.rmtree(store.root, ignore_errors=True)  # an interrupted run may have got half way
    if k == 1:
        store.add(store_of(stage.out, 0).load(name))
    else:
        trained(store, source, stage.backbone, settings)
    todo = plan_items(name, [source.items[0].file], source, store=store)
    start, clock = time.process_time(), time.perf_counter()
    adapter, receipt = forget_items(todo, stage.backbone, store=store)
    took = core_seconds(stage.backbone, start), time.perf_counter() - clock
    try:
        check_forgotten(
            todo, stage.backbone, adapter
        )  # trains all that is left from nothing, and compares bytes
        equal = True
    except RunFailed:  # on a GPU two trainings may add in another order
        equal = False
    return {
        "seen": settings.steps * settings.rows,
        "seconds": took[0],
        "clock": round(took[1], 1),
        "slices": k,
        "steps": settings.steps,
        "equal_to_never": equal,
        "items": receipt.items,
    }
