"""Fidelity of the pictures of one idea to held-out pictures of the sources, in every tower's features.

N generated against N real ones, of the same kinds of ideas; the other real ones give the floor. KID minus the primary
monolith's is paired: the same prompts and the same real pictures leave both figures together.

    raw/fidelity.csv    a row for each tower, system and training seed
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    n = min(len(own), len(real))
    if n < LEAST:
        return {}
    found = compare_features(real, _by_lot(own, n, seed), seed=seed)
    row: dict[str, Any] = {"pictures": n, "floor_pictures": floor_size(n, len(real))}
    for name in ("kid", "fd", "precision", "recall", "density", "coverage"):
        figure = found[name]
        row |= {name: figure.value, f"{name}_low": figure.interval[0], f"{name}_high": figure.interval[1]}
        row[f"{name}_floor"] = figure.floor
    row["fd_excess"] = found["fd"].excess
    return row | _beside(_distances(real, own, seed), _distances(real, reference, seed), found["fd"].floor)


def _by_lot(rows: Rows, n: int, seed: int) -> Rows:
    """The same n of all systems' pictures."""
    return rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:n])]


@dataclass(frozen=True)
class _Distances:
    """From as many real pictures; beside each its values with every group of pictures left out in turn."""

    kid: float
    kid_left: Rows
    fd: float
    fd_left: Rows


def _distances(real: Rows, drawn: Rows, seed: int) -> _Distances:
    n = min(len(drawn), len(real))
    x, own, groups = real[:n], _by_lot(drawn, n, seed), jackknife_groups(n, seed)
    return _Distances(
        unbiased_kid(x, own),
        np.asarray(kid_left_out(x, own, groups)),
        frechet_distance(x, own),
        np.asarray(frechet_left_out(x, own, groups)),
    )


def _beside(own: _Distances, reference: _Distances, floor: float) -> dict[str, float | None]:
    """KID minus the reference's, and the ratio of the Fréchet distances above the floor, with jackknife intervals.

    Both are paired: the same prompts, seeds and real pictures. The ratio is None where the reference is as good as
    real: there is nothing to be a share of.
    """
    minus = own.kid - reference.kid
    low, high = jackknife_interval(minus, (own.kid_left - reference.kid_left).tolist())
    told: dict[str, float | None] = {"kid_minus": minus, "kid_minus_low": low, "kid_minus_high": high}
    theirs, their_left = reference.fd - floor, reference.fd_left - floor
    if theirs <= 0 or (their_left <= 0).any():
        return told | {"fd_ratio": None, "fd_ratio_low": None, "fd_ratio_high": None}
    ratio = (own.fd - floor) / theirs
    low, high = jackknife_interval(ratio, ((own.fd_left - floor) / their_left).tolist())
    return told | {"fd_ratio": ratio, "fd_ratio_low": low, "fd_ratio_high": high}


def measure(
    stage: Stage, drawings: Sequence[Drawing], prompts: Sequence[Prompt], primary: Drawing
) -> list[dict[str, Any]]:
    """raw/fidelity.csv, and its rows."""
    wanted = compared_prompts(prompts)
    read_all_features(stage, drawings, wanted)
    units: dict[Path, Callable[[], Any]] = {}
    for tower in stage.plan.towers:
        for drawing in drawings:
            # Named by the primary monolith too: a run that is asked for more may choose another one.
            path = picture_folder(stage, drawing) / f"figures-{tower}-{file_name(primary.system.name)}.json"
            units[path] = lambda t=tower, d=drawing: _figures(stage, d, wanted, primary, t)  # type: ignore[misc]
    first = ("tower", "system", "seed")
    rows = [{key: row[key] for key in first} | row for row in done(units).values() if row]
    write_csv(stage.raw / "fidelity.csv", rows)
    return rows


def measure_pairs(
    stage: Stage,
    drawings: Sequence[Drawing],
    prompts: Sequence[Prompt],
    references: Sequence[Drawing],
    measured: Sequence[dict[str, Any]],
) -> None:
    """raw/fidelity_pairs.csv: every drawing beside every reference, all of them in the rows of `measure`."""
    wanted, seed = compared_prompts(prompts), stage.plan.seed
    floor = {(row["tower"], row["system"], row["seed"]): row["fd_floor"] for row in measured}
    rows = []
    for tower in stage.plan.towers if measured else ():
        real = real_features(stage, tower)
        of = {
            drawing: _distances(real, drawn_features(stage, drawing, wanted, tower), seed)
            for drawing in {*drawings, *references}
        }
        for own in drawings:
            facts = {"seed": own.seed, "system": own.system.name, "tower": tower}
            for other in references:
                beside = _beside(of[own], of[other], floor[tower, own.system.name, own.seed])
                rows.append(dict(sorted({**beside, "reference": other.system.name, **facts}.items())))
    write_csv(stage.raw / "fidelity_pairs.csv", rows)


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
