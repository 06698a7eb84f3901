"""Generated pictures against the training pictures of every source: how near, to whose, and whether that was allowed.

For each source: its training pictures to one another (the background), pictures of it that were held out, pictures
generated with it and without it. Real pictures that were never trained on are the measure: what generated ones exceed
them by is memory, or sameness. Over all sources: where the nearest training picture lies (`switched_off.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptcdm.errors import BadInput
from promptcdm.feature_pair import Rows
from promptcdm.nearest import Likeness, Nearest, likeness, nearest, nearest_other, unit_rows
from promptcdm.switched_off import OffShare, off_share

CLOSEST = 10  # pairs that are named, for a person to look at


@dataclass(frozen=True)
class GeneratedRows:
    """Features of M generated pictures, with the sources each was allowed and its prompt."""

    rows: Rows  # (M, d)
    allowed: tuple[tuple[str, ...], ...]
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class SourceLikeness:
    """How near pictures are to one source's training pictures; None where there are no such pictures."""

    training: Likeness
    held_out: Likeness | None
    switched_on: Likeness | None
    switched_off: Likeness | None


@dataclass(frozen=True)
class Pair:
    """A generated picture and its nearest training picture, by number."""

    generated: int
    source: str
    training: int  # in its source
    similarity: float
    allowed: bool


@dataclass(frozen=True)
class TrainingNeighbours:
    """All of it."""

    sources: Mapping[str, SourceLikeness]
    off: OffShare | None  # None where no picture had some sources on and others off
    closest: tuple[Pair, ...]


def training_neighbours(
    training: Mapping[str, Rows],
    generated: GeneratedRows,
    held_out: Mapping[str, Rows] | None = None,
    threshold: float = 0.0,
) -> TrainingNeighbours:
    """Compare features of generated, training and held-out pictures, of each source; 0 is no fixed threshold.

    Raises BadInput for an allowed source without training pictures.
    """
    unknown = sorted({name for allowed in generated.allowed for name in allowed} - set(training))
    if unknown:
        raise BadInput(
            f"pictures were made from {unknown[0]}, whose training pictures are not among {', '.join(training)}"
        )
    known = {name: unit_rows(rows) for name, rows in training.items()}
    rows = unit_rows(generated.rows)
    on = np.array([[name in allowed for name in known] for allowed in generated.allowed])
    limit = threshold or None
    found = {
        name: _of_source(own, rows, on[:, i], generated.prompts, (held_out or {}).get(name), limit)
        for i, (name, own) in enumerate(known.items())
    }
    pool = np.concatenate(list(known.values()))
    source = np.repeat(np.arange(len(known)), [len(own) for own in known.values()])
    near = nearest(rows, pool)
    return TrainingNeighbours(
        found,
        _off(near, nearest_other(pool), source, on, generated.prompts),
        _closest(near, source, on, list(known)),
    )


def _of_source(
    own: Rows,
    rows: Rows,
    on: NDArray[np.bool_],
    prompts: Sequence[str],
    held_out: Rows | None,
    limit: float | None,
) -> SourceLikeness:
    background = nearest_other(own)

    def of(these: NDArray[np.bool_]) -> Likeness | None:
        named = _taken(prompts, these)
        return likeness(nearest(rows[these], own), background, named, limit) if named else None

    real = None
    if held_out is not None:
        real = likeness(nearest(unit_rows(held_out), own), background, limit=limit)
    return SourceLikeness(likeness(background, background, limit=limit), real, of(on), of(~on))


def _off(
    near: Nearest,
    other: Nearest,
    source: NDArray[np.intp],
    on: NDArray[np.bool_],
    prompts: Sequence[str],
) -> OffShare | None:
    mixed = np.asarray(on.any(1) & ~on.all(1))
    if not mixed.any():
        return None
    return off_share(
        source[near.index[mixed]], ~on[mixed], source, source[other.index], _taken(prompts, mixed)
    )


def _taken(prompts: Sequence[str], these: NDArray[np.bool_]) -> list[str]:
    return [prompts[int(m)] for m in np.flatnonzero(these)]


def _closest(
    near: Nearest, source: NDArray[np.intp], on: NDArray[np.bool_], names: Sequence[str]
) -> tuple[Pair, ...]:
    first = np.searchsorted(source, np.arange(len(names)))
    pairs = []
    for m in np.argsort(-near.similarity, kind="stable")[:CLOSEST].tolist():
        index = int(near.index[m])
        i = int(source[index])
        pairs.append(Pair(m, names[i], index - int(first[i]), float(near.similarity[m]), bool(on[m, i])))
    return tuple(pairs)
