"""A source as numbers: its pictures as VAE moments, each caption's embedding, computed once and kept in memory.

    I     pictures              V     views: 1, or 2 with mirrored pictures
    U     different captions    I_b   pictures of one bucket, that is, of one size

Cropped and mirrored before they are encoded. The moments, not a sample, so that the posterior's noise is drawn anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image, ImageOps
from torch import Tensor

from promptcdm.backbone import Backbone
from promptcdm.buckets import Size, bucket_sizes, grouped
from promptcdm.caption_words import CaptionWords
from promptcdm.encoding_cache import EncodingCache
from promptcdm.errors import BadInput
from promptcdm.palette import Palette
from promptcdm.prompt import PromptEmbeds
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.source_statistics import Statistics
from promptcdm.statistics import caption_prototypes, latent_covariance, on_grid

_BLOCK = 32  # pictures that are encoded at once where they are small
_PIXELS = 2 * 512 * 512  # that are encoded at once: the VAE's first layers take some 500 bytes for each


@dataclass(frozen=True)
class Bucket:
    """Pictures of one size."""

    size: Size
    items: Tensor  # (I_b,) their numbers in the source
    mean: Tensor  # (V, I_b, C, h, w)
    std: Tensor  # (V, I_b, C, h, w)
    turns: Tensor  # rows that training draws from, each as often as its folder asks for
    held_out: Tensor  # rows that it does not


@dataclass(frozen=True)
class EncodedSource:
    """What training reads of a source."""

    buckets: tuple[Bucket, ...]  # in the order of sizes
    captions: tuple[str, ...]  # of each picture, with the trigger in front
    embeds: Tensor  # (U + 1, L, D); the last is the empty caption, and the only one where text encoders learn
    pooled: Tensor | None  # (U + 1, D2), SDXL
    caption_of: Tensor  # (I + 1,) rows of `embeds`; the last is the empty caption
    # (U, D) over each caption's words, fp32 on the CPU; None where text encoders learn.
    caption_means: Tensor | None

    @property
    def device(self) -> torch.device:
        """Where the UNet reads them. Asking the UNet itself costs diffusers a walk over all its modules."""
        return self.caption_of.device


def encode_source(
    source: Source,
    backbone: Backbone,
    settings: TrainSettings,
    trigger: str,
    only: Sequence[int] | None = None,
    cache: EncodingCache | None = None,
) -> EncodedSource:
    """Encode the pictures, or `only` those of these numbers, and every caption; what is in the cache is read instead.

    Raises BadInput for the resolution, and as `EncodingCache.get` does.
    """
    out = held_out_items(source, settings)
    chosen = range(len(source.items)) if only is None else only
    buckets = tuple(
        _bucket(source, backbone, settings, size, [i for i in items if i in chosen], out, cache)
        for size, items in picture_sizes(source, backbone, settings).items()
        if any(i in chosen for i in items)
    )
    captions = tuple(f"{trigger} {item.caption}".strip() for item in source.items)
    # Text encoders that learn read each caption anew at each step: nothing of theirs can be kept.
    unique = [] if settings.train_text_encoder else sorted({captions[i] for i in chosen})
    with torch.no_grad():
        parts = [*encode_captions(unique, backbone, cache), _empty_caption(backbone, cache)]
    row = {caption: n for n, caption in enumerate(unique)}
    pooled = [p.pooled for p in parts if p.pooled is not None]
    return EncodedSource(
        buckets,
        captions,
        torch.cat([p.embeds for p in parts]),
        torch.cat(pooled) if pooled else None,
        torch.tensor([*(row.get(c, -1) for c in captions), len(unique)], device=backbone.device),
        _means(parts[:-1]) if unique else None,
    )


def picture_sizes(source: Source, backbone: Backbone, settings: TrainSettings) -> dict[Size, list[int]]:
    """Numbers of the pictures that are trained in each size; one square without buckets. Raises BadInput."""
    side, factor = settings.resolution or backbone.resolution, int(backbone.pipe.vae_scale_factor)
    if not settings.buckets:
        if side % factor:
            raise BadInput(f"resolution is {side}; it takes a multiple of {factor}")
        return {Size(side, side): list(range(len(source.items)))}
    halvings = len(backbone.unet.config.block_out_channels) - 1
    sizes = bucket_sizes(side, factor * 2**halvings)
    return grouped(((item.width, item.height) for item in source.items), sizes)


def held_out_items(source: Source, settings: TrainSettings) -> frozenset[int]:
    """Numbers of the pictures that are not trained on, drawn by the seed and each one's own pixels.

    Copies go together, or the measurement would be on pictures that were trained on. None where the share is less than
    one picture.
    """

    def key(pixels: str) -> bytes:
        return hashlib.sha256(f"{settings.seed} held out {pixels}".encode()).digest()

    looks = sorted({item.pixels_sha256 for item in source.items}, key=key)
    taken = set(looks[: int(settings.held_out * len(looks))])
    return frozenset(i for i, item in enumerate(source.items) if item.pixels_sha256 in taken)


def turns(source: Source) -> Tensor:
    """Items as training draws them, (sum of repeats,): each as often as kohya's folder name asks for, else once.

    The name is part of the file's, so the manifest's digest knows of it.
    """
    return torch.tensor([i for i, item in enumerate(source.items) for _ in range(item.repeats)])


def encode_captions(
    captions: Sequence[str], backbone: Backbone, cache: EncodingCache | None = None
) -> list[PromptEmbeds]:
    """Embeddings of the captions in their order, 64 at a time."""
    blocks = [captions[i : i + 64] for i in range(0, len(captions), 64)]
    return [
        _embeds(backbone, cache, "captions", block, partial(backbone.encode_prompts, block))
        for block in blocks
    ]


def _means(parts: Sequence[PromptEmbeds]) -> Tensor:
    return torch.cat([part.mean.float().cpu() for part in parts])


def _empty_caption(backbone: Backbone, cache: EncodingCache | None) -> PromptEmbeds:
    return _embeds(backbone, cache, "empty", [], lambda: backbone.encode_negative("", 1))


def _embeds(
    backbone: Backbone,
    cache: EncodingCache | None,
    kind: str,
    captions: Sequence[str],
    encode: Callable[[], PromptEmbeds],
) -> PromptEmbeds:
    """What `encode` returns, through the cache where there is one."""
    if cache is None:
        return encode()

    def make() -> dict[str, Tensor]:
        made = encode()
        parts = {"embeds": made.embeds, "pooled": made.pooled, "mean": made.mean}
        return {name: part.cpu() for name, part in parts.items() if part is not None}

    found = cache.get(backbone, kind, captions, make)
    here = {name: part.to(backbone.device) for name, part in found.items()}
    return PromptEmbeds(here["embeds"], here.get("pooled"), here["mean"])


def _moments(
    source: Source,
    backbone: Backbone,
    size: Size,
    items: Sequence[int],
    mirrored: bool,
    cache: EncodingCache | None,
) -> tuple[Tensor, Tensor]:
    """Mean and std (B, C, h, w) of the VAE's posterior of these pictures, through the cache where there is one."""

    def make() -> dict[str, Tensor]:
        pictures = [_fit(source.picture(i), size) for i in items]
        mean, std = backbone.encode_images([ImageOps.mirror(p) for p in pictures] if mirrored else pictures)
        return {"mean": mean, "std": std}

    if cache is None:
        found = make()
    else:
        what = [size.width, size.height, mirrored, *(source.items[i].pixels_sha256 for i in items)]
        found = cache.get(backbone, "pictures", what, make)
    # The order in memory that the VAE gives on a CPU, and a file does not keep: the UNet's last bits depend on it.
    mean, std = (found[name].contiguous(memory_format=torch.channels_last) for name in ("mean", "std"))
    return mean, std


@torch.no_grad()
def statistics_of(
    captions: Sequence[str],
    moments: Sequence[tuple[Tensor, Tensor]],
    pictures: Iterable[Image.Image],
    backbone: Backbone,
    cache: EncodingCache | None = None,
    caption_means: Tensor | None = None,
) -> Statistics:
    """What may be known of pictures: of their captions, without a trigger, and moments (I_b, C, h, w) by size.

    `caption_means` (U, D) are those of the unique captions, sorted, where they are known; else they are encoded.
    """
    if caption_means is None:
        caption_means = _means(encode_captions(sorted(set(captions)), backbone, cache))
    prototypes, share = caption_prototypes(caption_means)
    scale = backbone.pipe.vae.config.scaling_factor
    latent_mean, latent_var, factor = latent_covariance(
        *on_grid([(m * scale, s * scale) for m, s in moments])
    )
    words = CaptionWords.of(backbone.token_ids(captions))
    palette = Palette.of(pictures)
    return Statistics(len(captions), latent_mean, latent_var, prototypes, share, words, factor, palette)


def trained_statistics(
    source: Source, data: EncodedSource, backbone: Backbone, cache: EncodingCache | None = None
) -> Statistics:
    """Those of a whole source, from its pictures as training sees them, unmirrored."""
    captions = [item.caption for item in source.items]
    pictures = (source.picture(i) for i in range(len(source)))
    # Captions with a trigger are others.
    known = data.caption_means if set(data.captions) == set(captions) else None
    moments = [(bucket.mean[0], bucket.std[0]) for bucket in data.buckets]
    return statistics_of(captions, moments, pictures, backbone, cache, known)


def _bucket(
    source: Source,
    backbone: Backbone,
    settings: TrainSettings,
    size: Size,
    items: list[int],
    out: frozenset[int],
    cache: EncodingCache | None,
) -> Bucket:
    views = 2 if settings.flip else 1
    means: list[list[Tensor]] = [[] for _ in range(views)]
    stds: list[list[Tensor]] = [[] for _ in range(views)]
    for part in _parts(len(items), _PIXELS // (size.width * size.height)):
        for view in range(views):
            mean, std = _moments(source, backbone, size, items[part], view == 1, cache)
            means[view].append(mean)
            stds[view].append(std)
    row = {item: n for n, item in enumerate(items)}
    drawn = [row[i] for i in turns(source).tolist() if i in row and i not in out]
    return Bucket(
        size,
        torch.tensor(items),
        torch.stack([torch.cat(view) for view in means]),
        torch.stack([torch.cat(view) for view in stds]),
        torch.tensor(drawn, dtype=torch.long),
        torch.tensor([row[i] for i in items if i in out], dtype=torch.long),
    )


def _parts(count: int, at_once: int) -> Iterator[slice]:
    """Parts of every block of 32, each of `at_once` pictures or, where one would be left alone, one more.

    Two or more pictures have on a CPU the bits of the whole block, and one alone has others: so memory does not decide
    what is computed.
    """
    size = max(2, at_once)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        while stop - start > size + 1:
            yield slice(start, start + size)
            start += size
        yield slice(start, stop)


def _fit(picture: Image.Image, size: Size) -> Image.Image:
    return ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
