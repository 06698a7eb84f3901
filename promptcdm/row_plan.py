"""Which rows of the UNet a step needs: rows are the cost, so what is not needed is left out by index.

    n       pictures;  the pipeline's call has rows 0..n-1 unconditional and n..2n-1 conditional, or n conditional ones
    N       allowed sources
    row     (source, origin): `origin` is the row of the pipeline's call whose latent and timestep it takes

A source whose unconditional branch is the backbone's shares one unconditional row a picture with all such sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

BACKBONE = -1  # in the place of a source: the bare backbone


@dataclass(frozen=True)
class RowPlan:
    """Rows in the order they run: the backbone's, then source by source."""

    source: tuple[int, ...]
    origin: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.source)


def bare_rows(count: int) -> RowPlan:
    """Every row of the pipeline's call, on the bare backbone."""
    return RowPlan((BACKBONE,) * count, tuple(range(count)))


def plan_rows(active: Tensor, guided: Sequence[bool] | None, own_unconditional: Sequence[bool]) -> RowPlan:
    """Rows for `active` (n, N) sources of each picture.

    `guided` says for each picture whether it wants unconditional rows now; None: the call has none.
    `own_unconditional` says for each source whether its adapter draws its unconditional row.
    """
    wanted = active.tolist()
    first = len(wanted) if guided is not None else 0  # origin of the first conditional row
    pictures = range(len(wanted))
    rows = []
    if guided is not None:
        shares = [i for i, own in enumerate(own_unconditional) if not own]
        rows = [(BACKBONE, b) for b in pictures if guided[b] and any(wanted[b][i] for i in shares)]
    for i, own in enumerate(own_unconditional):
        of_source = [b for b in pictures if wanted[b][i]]
        if guided is not None and own:
            rows += [(i, b) for b in of_source if guided[b]]
        rows += [(i, first + b) for b in of_source]
    return RowPlan(tuple(i for i, _ in rows), tuple(o for _, o in rows))
