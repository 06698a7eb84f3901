"""Fidelity of the pictures of one idea to held-out pictures of the sources, in every tower's features.

N generated against N real ones, of the same kinds of ideas; the other real ones give the floor. KID minus the primary
monolith's is paired: the same prompts and the same real pictures leave both figures together.

    raw/fidelity.csv    a row for each tower, system and training seed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from paper.adapters import file_name
from paper.pictures import Drawing, picture_folder
from paper.prompts import Prompt
from paper.ruler import HeldOut
from paper.sources import part_of, read_rows
from paper.stage import Stage, write_csv
from paper.units import done, once
from promptcdm.feature_pair import Rows
from promptcdm.features import Features, load_features
from promptcdm.fidelity_figures import compare_features, floor_size
from promptcdm.frechet import frechet_distance, frechet_left_out
from promptcdm.jackknife import LEAST, jackknife_groups, jackknife_interval
from promptcdm.kid import kid_left_out, unbiased_kid
from promptcdm.picture import decode_picture

_AT_ONCE = 128  # pictures


def compared_prompts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Those of one idea: joined scenes are no pictures of the sources' kind."""
    return [prompt for prompt in prompts if prompt.stratum != "joined"]


def drawn_features(stage: Stage, drawing: Drawing, prompts: Sequence[Prompt], tower: str) -> Rows:
    """Features (N, d) of a drawing's pictures."""
    folder = picture_folder(stage, drawing)
    paths = [folder / f"{prompt.id}.png" for prompt in prompts]
    return np.asarray(once(folder / f"features-{tower}.json", lambda: picture_features(stage, tower, paths)))


def read_all_features(stage: Stage, drawings: Sequence[Drawing], prompts: Sequence[Prompt]) -> None:
    """Make sure of the features of all drawings, some by each process."""
    units: dict[Path, Callable[[], Any]] = {}
    for drawing in drawings:
        folder = picture_folder(stage, drawing)
        paths = [folder / f"{prompt.id}.png" for prompt in prompts]
        for tower in stage.plan.towers:
            units[folder / f"features-{tower}.json"] = (
                lambda t=tower, p=paths: picture_features(stage, t, p)  # type: ignore[misc]
            )
    done(units)


def real_pictures(stage: Stage, without: str = "") -> list[HeldOut]:
    """Held-out pictures of the ideas that are asked for, whose concepts are not for validation, in a drawn order."""
    found = []
    for name in (n for n in stage.held_out if n != without):
        for number, row in enumerate(sorted(read_rows(_folder(stage, name)), key=lambda row: row.file)):
            if row.concept in stage.ideas and part_of(row.concept) == "test":
                found.append(HeldOut(name, number, row.concept, "test", row.text))
    order = np.random.default_rng(stage.plan.seed).permutation(len(found))
    return [found[int(i)] for i in order]


def real_features(stage: Stage, tower: str, without: str = "") -> Rows:
    """Features of `real_pictures`."""
    paths = []
    for picture in real_pictures(stage, without):
        rows = sorted(read_rows(_folder(stage, picture.source)), key=lambda row: row.file)
        paths.append(_folder(stage, picture.source) / rows[picture.number].file)
    name = f"features-{tower}{f'-without-{without}' if without else ''}.json"
    return np.asarray(once(stage.out / "work" / "real" / name, lambda: picture_features(stage, tower, paths)))


def figures(real: Rows, own: Rows, reference: Rows, seed: int = 0) -> dict[str, Any]:
    """All figures of features `own` (N, d), and KID and FD beside those of `reference`, the primary monolith's.

    Of more drawn pictures than real ones as many are taken, by lot, of both alike. {} where there are fewer than 40 of
    either kind, of which no interval can be told.
    """
    if min(len(own), len(real)) < LEAST:
        return {}
    x, own, reference = _as_many(real, own, reference, seed)
    n = len(own)
    found = compare_features(real, own, seed=seed)
    row: dict[str, Any] = {"pictures": n, "floor_pictures": floor_size(n, len(real))}
    for name in ("kid", "fd", "precision", "recall", "density", "coverage"):
        figure = found[name]
        row |= {name: figure.value, f"{name}_low": figure.interval[0], f"{name}_high": figure.interval[1]}
        row[f"{name}_floor"] = figure.floor
    row["fd_excess"] = found["fd"].excess
    return row | _beside(x, own, reference, found["fd"].floor, seed)


def _as_many(real: Rows, own: Rows, reference: Rows, seed: int) -> tuple[Rows, Rows, Rows]:
    n = min(len(own), len(real))
    kept = np.sort(np.random.default_rng(seed).permutation(len(own))[:n])
    return real[:n], own[kept], reference[kept]


def _beside(x: Rows, own: Rows, reference: Rows, floor: float, seed: int) -> dict[str, float | None]:
    """KID minus the reference's, and the Fréchet ratio, both paired: the same prompts, seeds and real pictures."""
    groups = jackknife_groups(len(own), seed)
    apart = np.subtract(kid_left_out(x, own, groups), kid_left_out(x, reference, groups))
    minus = unbiased_kid(x, own) - unbiased_kid(x, reference)
    low, high = jackknife_interval(minus, apart.tolist())
    told = {"kid_minus": minus, "kid_minus_low": low, "kid_minus_high": high}
    return {**told, **_ratio(x, own, reference, floor, groups)}


def _ratio(x: Rows, own: Rows, reference: Rows, floor: float, groups: Any) -> dict[str, float | None]:
    """The Fréchet distance above the floor, over the reference's, with the jackknife's interval.

    None where the reference is as good as real: there is nothing to be a share of.
    """

    def excess(rows: Rows) -> tuple[float, Any]:
        return frechet_distance(x, rows) - floor, np.asarray(frechet_left_out(x, rows, groups)) - floor

    (mine, left), (theirs, their_left) = excess(own), excess(reference)
    if theirs <= 0 or (their_left <= 0).any():
        return {"fd_ratio": None, "fd_ratio_low": None, "fd_ratio_high": None}
    low, high = jackknife_interval(mine / theirs, (left / their_left).tolist())
    return {"fd_ratio": mine / theirs, "fd_ratio_low": low, "fd_ratio_high": high}


def measure(
    stage: Stage, drawings: Sequence[Drawing], prompts: Sequence[Prompt], primary: Drawing
) -> list[dict[str, Any]]:
    """raw/fidelity.csv, and its rows."""
    wanted = compared_prompts(prompts)
    read_all_features(stage, drawings, wanted)
    units: dict[Path, Callable[[], Any]] = {}
    for tower in stage.plan.towers:
        for drawing in drawings:
            path = picture_folder(stage, drawing) / f"figures-{tower}.json"
            units[path] = lambda t=tower, d=drawing: _figures(stage, d, wanted, primary, t)  # type: ignore[misc]
    first = ("tower", "system", "seed")
    rows = [{key: row[key] for key in first} | row for row in done(units).values() if row]
    write_csv(stage.raw / "fidelity.csv", rows)
    return rows


def measure_pairs(
    stage: Stage, drawings: Sequence[Drawing], prompts: Sequence[Prompt], references: Sequence[Drawing]
) -> None:
    """raw/fidelity_pairs.csv: every drawing, already measured, beside every reference, in KID and as Fréchet ratio."""
    wanted = compared_prompts(prompts)
    units: dict[Path, Callable[[], Any]] = {}
    for tower in stage.plan.towers:
        for drawing in drawings:
            for other in references:
                path = picture_folder(stage, drawing) / f"beside-{file_name(other.system.name)}-{tower}.json"
                units[path] = lambda t=tower, d=drawing, o=other: _pair(stage, d, wanted, o, t)  # type: ignore[misc]
    write_csv(stage.raw / "fidelity_pairs.csv", [row for row in done(units).values() if row])


def _pair(
    stage: Stage, drawing: Drawing, wanted: Sequence[Prompt], other: Drawing, tower: str
) -> dict[str, Any]:
    found = once(picture_folder(stage, drawing) / f"figures-{tower}.json", dict)
    if not found:
        return {}
    named = {key: found[key] for key in ("tower", "system", "seed")}
    own, reference = (drawn_features(stage, each, wanted, tower) for each in (drawing, other))
    x, own, reference = _as_many(real_features(stage, tower), own, reference, stage.plan.seed)
    beside = _beside(x, own, reference, found["fd_floor"], stage.plan.seed)
    return {**named, "reference": other.system.name, **beside}


def _figures(
    stage: Stage, drawing: Drawing, wanted: Sequence[Prompt], primary: Drawing, tower: str
) -> dict[str, Any]:
    """A row of raw/fidelity.csv; {} where the pictures are too few."""
    own, reference = (drawn_features(stage, each, wanted, tower) for each in (drawing, primary))
    found = figures(real_features(stage, tower), own, reference, stage.plan.seed)
    return {"tower": tower, "system": drawing.system.name, "seed": drawing.seed} | found if found else {}


def _folder(stage: Stage, name: str) -> Path:
    return Path(stage.plan.sources) / "heldout" / name


@cache
def _tower(name: str, device: str) -> Features:
    return load_features(name, device)


def picture_features(stage: Stage, tower: str, paths: Sequence[Path]) -> list[list[float]]:
    """Features (N, d) of picture files."""
    rows: list[list[float]] = []
    for start in range(0, len(paths), _AT_ONCE):
        pictures = [decode_picture(path.read_bytes()) for path in paths[start : start + _AT_ONCE]]
        rows += np.asarray(_tower(tower, stage.device).features(pictures), dtype=np.float64).round(7).tolist()
    return rows
