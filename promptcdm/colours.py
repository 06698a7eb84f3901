"""The colours of sources, by place: Okabe and Ito's, which people with any colour vision can tell apart."""

from __future__ import annotations

COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#D55E00", "#009E73", "#F0E442", "#8C8C8C")


def source_colour(position: int) -> str:
    """The colour of the source at a place in `allowed`, as #RRGGBB; after eight they start again."""
    return COLOURS[position % len(COLOURS)]
