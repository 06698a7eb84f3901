"""Which colours a source's pictures are drawn in: how often each of V = LEVELS^3 colours stands in them.

    n_i(v), n_i   drawn pixels of source i that have colour v, and their sum over v

    p_i(v) = (1 - e) n_i(v) / n_i + e / V                              e = EVEN: every colour is possible
    w_i(v) = (1 - e) n_i(v) / n_i / (sum_j (1 - e) n_j(v) / n_j + N e / V)

w_i(v) is the share of source i in a pixel of colour v where all N sources are equally likely; what the shares leave of
1 is the even part's. A pixel is drawn unless it is white, as is what nothing is drawn on, or is transparent. Pictures
are fitted to one size before, so that each counts alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from promptcdm.counted import Counted, is_counted, summed

# Both, and what is drawn, chosen on pictures that no source trained on and that no figure is of (eval/palettes.py).
LEVELS = 16
EVEN = 0.01
SIDE = 64
WHITE = 250  # a pixel whose channels all have this or more is white


@dataclass(frozen=True)
class Palette:
    """Colours and how many drawn pixels have each: int64, both (P,), colours ascending, counts above 0."""

    colours: Tensor  # (r LEVELS + g) LEVELS + b of channels in 0 .. LEVELS - 1
    counts: Tensor

    @classmethod
    def of(cls, pictures: Iterable[Image.Image]) -> Palette | None:
        """That of one source's pictures; None where nothing is drawn in any."""
        total = torch.zeros(LEVELS**3, dtype=torch.int64)
        for picture in pictures:
            total += torch.bincount(drawn_colours(picture), minlength=len(total))
        colours = total.nonzero()[:, 0]
        return cls(colours, total[colours]) if len(colours) else None

    def together(self, others: Iterable[Palette]) -> Palette:
        """That of all these pictures."""
        parts: list[Counted] = [(part.colours, part.counts) for part in (self, *others)]
        return Palette(*summed(parts))

    def is_sound(self) -> bool:
        """Whether the tensors are what they should be."""
        counted = is_counted(self.colours, self.counts) and len(self.colours) > 0
        return counted and int(self.colours[0]) >= 0 and int(self.colours[-1]) < LEVELS**3

    def share(self) -> Tensor:
        """n_i(v) / n_i of every colour, (V,) float64."""
        share = torch.zeros(LEVELS**3, dtype=torch.float64)
        share[self.colours] = self.counts / self.counts.sum(dtype=torch.float64)
        return share


def drawn_colours(picture: Image.Image) -> Tensor:
    """The colour of each drawn pixel, (n,) int64, in the order of rows."""
    rgb = ImageOps.fit(picture.convert("RGB"), (SIDE, SIDE), Image.Resampling.BOX)
    pixels = torch.from_numpy(np.array(rgb)).reshape(-1, 3).long()
    levels = pixels[(pixels < WHITE).any(1)] * LEVELS // 256
    return (levels[:, 0] * LEVELS + levels[:, 1]) * LEVELS + levels[:, 2]


def log_likelihood(palettes: Sequence[Palette], colours: Tensor) -> Tensor:
    """Mean of log p_i(v) over drawn pixels (n,), of each source (N,), in nats a pixel; 0 where none is drawn."""
    p = (1 - EVEN) * torch.stack([palette.share() for palette in palettes]) + EVEN / LEVELS**3
    return p.log()[:, colours].sum(1) / max(1, len(colours))


def pixel_shares(palettes: Sequence[Palette], colours: Tensor) -> Tensor:
    """Mean of w_i(v) over drawn pixels (n,), of each source (N,); with the even part's they sum to 1.

    0 where none is drawn.
    """
    p = (1 - EVEN) * torch.stack([palette.share() for palette in palettes])
    w = p / (p.sum(0) + len(palettes) * EVEN / LEVELS**3)
    return w[:, colours].sum(1) / max(1, len(colours))
