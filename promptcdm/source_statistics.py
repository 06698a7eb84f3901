"""What a router may know of one source, as a value: what is in `router.safetensors`, checked.

    C    latent channels        k    directions of the factor
    M    caption prototypes     D    width of a caption's embedding
    W    different tokens of its captions
    P    different colours of its drawn pixels
    n_j  pictures of slice j    n    their sum

`pooled` makes one source's statistics from those of its slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptcdm.caption_words import CaptionWords
from promptcdm.counted import is_counted
from promptcdm.errors import AdapterMismatch
from promptcdm.palette import LEVELS, Palette
from promptcdm.statistics import GRID

ROUTER = "router.safetensors"
_STATISTICS = ("count", "latent_mean", "latent_var", "caption_prototypes", "caption_share")
_WORDS = ("caption_tokens", "caption_token_counts")
# May be absent: the factor for few pictures, the palette where none was seen, both in adapters older than they are.
_FACTOR = "latent_factor"
_PALETTE = ("palette_colours", "palette_counts")


@dataclass(frozen=True)
class Statistics:
    """All that may be known of a source, computed from that source alone; fp32 where nothing else is said."""

    count: int  # pictures
    latent_mean: Tensor  # (C, 8, 8) of clean, scaled latents pooled to 8x8
    latent_var: Tensor  # (C, 8, 8)
    caption_prototypes: Tensor  # (M, D) of unit norm
    caption_share: Tensor  # (M,) share of the captions nearest to each prototype; sums to one
    caption_words: CaptionWords  # (W,) tokens and how often each stands in the captions; int64
    latent_factor: Tensor | None = None  # (k, C, 8, 8): covariance = diag(latent_var) + F^T F; None: diagonal
    palette: Palette | None = (
        None  # (P,) colours and how many drawn pixels have each; int64. No router reads it
    )

    def tensors(self) -> dict[str, Tensor]:
        """By name, the count as a 0-d int64; what is absent is left out."""
        tensors = {
            "count": torch.tensor(self.count),
            **{name: getattr(self, name) for name in _STATISTICS[1:]},
            **dict(zip(_WORDS, (self.caption_words.tokens, self.caption_words.counts), strict=True)),
        }
        if self.latent_factor is not None:
            tensors[_FACTOR] = self.latent_factor
        if self.palette is not None:
            tensors |= dict(zip(_PALETTE, (self.palette.colours, self.palette.counts), strict=True))
        return tensors


def check_statistics(statistics: Statistics, where: str) -> None:
    """Raise AdapterMismatch, which names `where`, unless shapes and values are sound."""
    channels, width = statistics.latent_mean.shape[:1], statistics.caption_prototypes.shape[-1:]
    shapes = {
        "latent_mean": (*channels, GRID, GRID),
        "latent_var": (*channels, GRID, GRID),
        "caption_prototypes": (*statistics.caption_share.shape, *width),
        "caption_share": (statistics.caption_share.numel(),),
    }
    if statistics.latent_factor is not None:
        rank = max([1, *statistics.latent_factor.shape[:1]])
        shapes[_FACTOR] = (rank, *channels, GRID, GRID)
    for name, shape in shapes.items():
        tensor = getattr(statistics, name)
        if tuple(tensor.shape) != shape or tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise AdapterMismatch(
                f"{where}: statistics {name} {tuple(tensor.shape)} must be finite float32 of shape {shape}"
            )
    share, norms = statistics.caption_share, statistics.caption_prototypes.norm(dim=-1)
    if statistics.count < 1 or not (statistics.latent_var > 0).all():
        raise AdapterMismatch(f"{where}: statistics need a count of at least 1 and variances above 0")
    if (
        not len(share)
        or (share < 0).any()
        or abs(float(share.sum()) - 1) > 1e-3
        or ((norms - 1).abs() > 1e-3).any()
    ):
        raise AdapterMismatch(f"{where}: caption shares must sum to 1 and prototypes have norm 1")
    if not is_counted(statistics.caption_words.tokens, statistics.caption_words.counts):
        raise AdapterMismatch(f"{where}: caption tokens must be ascending int64, each with a count above 0")
    if statistics.palette is not None and not statistics.palette.is_sound():
        raise AdapterMismatch(
            f"{where}: palette colours must be ascending int64 below {LEVELS**3}, each with a count above 0"
        )


def read_statistics(tensors: dict[str, Tensor], where: str) -> Statistics:
    """Statistics from the tensors of `router.safetensors`. Raises AdapterMismatch, which names `where`."""
    needed, has_palette = {*_STATISTICS, *_WORDS}, not tensors.keys().isdisjoint(_PALETTE)
    if set(tensors) - {_FACTOR} != needed | (set(_PALETTE) if has_palette else set()):
        raise AdapterMismatch(
            f"{where}: must hold {', '.join((*_STATISTICS, *_WORDS))}, perhaps {_FACTOR}, perhaps "
            f"{' with '.join(_PALETTE)}, and nothing else"
        )
    count = tensors.pop("count")
    if count.ndim or count.dtype != torch.int64:
        raise AdapterMismatch(f"{where}: count must be one int64")
    words = CaptionWords(*(tensors.pop(name) for name in _WORDS))
    palette = Palette(*(tensors.pop(name) for name in _PALETTE)) if has_palette else None
    return Statistics(count=int(count), caption_words=words, palette=palette, **tensors)


def pooled(slices: Sequence[Statistics]) -> Statistics:
    """Statistics of the source whose pictures are those of all `slices` together.

    Slice j has share v_j = n_j / n, mean m_j and covariance diag(var_j) + F_j^T F_j. Their mixture has, exactly,

        mean        m = sum_j v_j m_j
        covariance  sum_j v_j (diag(var_j) + F_j^T F_j + (m_j - m)(m_j - m)^T)

    so the rows sqrt(v_j) F_j and sqrt(v_j) (m_j - m) of all slices are its factor. The prototypes are those of all
    slices, each with its slice's share, and the words' and colours' counts are their sums; there is a palette where
    every slice has one. One slice alone is itself.
    """
    if len(slices) == 1:
        return slices[0]
    count = sum(part.count for part in slices)
    share = [part.count / count for part in slices]
    weighed = list(zip(share, slices, strict=True))
    mean = torch.stack([v * part.latent_mean for v, part in weighed]).sum(0)
    rows = [v**0.5 * (part.latent_mean - mean)[None] for v, part in weighed]
    rows += [v**0.5 * part.latent_factor for v, part in weighed if part.latent_factor is not None]
    return Statistics(
        count,
        mean,
        torch.stack([v * part.latent_var for v, part in weighed]).sum(0),
        torch.cat([part.caption_prototypes for part in slices]),
        torch.cat([v * part.caption_share for v, part in weighed]),
        slices[0].caption_words.together(part.caption_words for part in slices[1:]),
        torch.cat(rows),
        _together([part.palette for part in slices]),
    )


def _together(palettes: Sequence[Palette | None]) -> Palette | None:
    known = [palette for palette in palettes if palette is not None]
    return known[0].together(known[1:]) if len(known) == len(palettes) else None
