"""One batch: which pictures, how much of which noise, and the error of what the UNet predicts of it.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise
    error of a row = weight(t) || prediction(x_t, t, c) - target ||^2,   target = noise, or v

All random numbers of a batch are drawn from one generator before anything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from promptcdm.backbone import Backbone
from promptcdm.device_class import computes_in_bf16
from promptcdm.encoded_source import Bucket, EncodedSource
from promptcdm.settings import TrainSettings
from promptcdm.text_lora import LearningTextLora


@dataclass(frozen=True)
class Batch:
    """Rows of one size, on the CPU."""

    items: Tensor  # (B,) numbers of the pictures in the source
    t: Tensor  # (B,)
    x_0: Tensor  # (B, C, h, w), scaled
    noise: Tensor  # (B, C, h, w)
    drop: Tensor  # (B,) whose caption is the empty one
    time_ids: Tensor  # (6,) SDXL's: height and width before, corner of the crop, height and width after

    def part(self, rows: slice) -> Batch:
        """Some of its rows."""
        own = {name: getattr(self, name)[rows] for name in ("items", "t", "x_0", "noise", "drop")}
        return replace(self, **own)


@dataclass(frozen=True)
class OwnWords:
    """How an adapter in training reads captions otherwise than the backbone does: nothing, where it learns no words."""

    soft: Mapping[str, Tensor] = field(default_factory=dict)  # soft prompt by text encoder
    lora: LearningTextLora | None = None


PLAIN = OwnWords()


def draw_batch(
    data: EncodedSource, backbone: Backbone, settings: TrainSettings, size: int, generator: torch.Generator
) -> Batch:
    """`size` rows of one bucket. A bucket is drawn by how many turns it has, so each turn is drawn as often."""
    bucket = _draw_bucket([b for b in data.buckets if len(b.turns)], generator)
    rows = bucket.turns[torch.randint(len(bucket.turns), (size,), generator=generator)]
    views = torch.randint(bucket.mean.shape[0], (size,), generator=generator)
    t = torch.randint(len(backbone.alphas_cumprod), (size,), generator=generator)
    mean, std = bucket.mean[views, rows], bucket.std[views, rows]
    x_0 = mean + std * _normal(mean.shape, generator)
    noise = _normal(x_0.shape, generator)
    drop = torch.rand(size, generator=generator, dtype=torch.float32) < settings.caption_dropout
    if settings.unconditional == "backbone":
        drop[:] = False  # the bare backbone answers for the empty caption
    if settings.noise_offset:
        noise = noise + settings.noise_offset * _normal((*noise.shape[:2], 1, 1), generator)
    return Batch(
        bucket.items[rows], t, x_0 * backbone.pipe.vae.config.scaling_factor, noise, drop, time_ids(bucket)
    )


def time_ids(bucket: Bucket) -> Tensor:
    """What SDXL is told of a picture's size: that it was made in the bucket's, uncropped."""
    width, height = bucket.size
    return torch.tensor([height, width, 0, 0, height, width])


def weighted_errors(
    words: OwnWords, batch: Batch, data: EncodedSource, backbone: Backbone, settings: TrainSettings
) -> Tensor:
    """Min-SNR weighted squared errors (B,) of the UNet as it is now, in eps or v as the backbone predicts."""
    device = data.device
    # A UNet that is bf16 already needs no autocast, which would run and keep every normalisation in fp32.
    half = computes_in_bf16(settings.mixed_precision, device) and backbone.dtype != torch.bfloat16
    abar = backbone.alphas_cumprod[batch.t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * batch.x_0 + (1 - abar).sqrt() * batch.noise
    epsilon = backbone.prediction_type == "epsilon"
    target = batch.noise if epsilon else abar.sqrt() * batch.noise - (1 - abar).sqrt() * batch.x_0
    embeds, added = _conditioning(words, batch, data, backbone)
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        sample = x_t.to(device) if half else x_t.to(device, backbone.dtype)
        t = batch.t.to(device)
        predicted = backbone.unet(sample, t, embeds, added_cond_kwargs=added, return_dict=False)[0]
    difference: Tensor = predicted.float() - target.to(device)
    error = difference.square().mean((1, 2, 3))
    # Both predictions weigh the error of x_0: eps by SNR, v by SNR + 1. Beyond min_snr that is held, so that the many
    # nearly clean steps do not drown the noisy ones, where the caption decides what is drawn.
    snr = (abar / (1 - abar)).flatten()
    weight_of_x_0 = snr if epsilon else snr + 1
    held = weight_of_x_0.clamp(max=settings.min_snr) if settings.min_snr > 0 else weight_of_x_0
    return error * held.to(device) / weight_of_x_0.to(device)


def _normal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """fp32 whatever torch's default is: a model that loads in another thread sets that for all."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def _draw_bucket(buckets: Sequence[Bucket], generator: torch.Generator) -> Bucket:
    if len(buckets) == 1:  # nothing is drawn, so that square pictures train alike with buckets and without
        return buckets[0]
    ends = torch.tensor([len(bucket.turns) for bucket in buckets]).cumsum(0)
    place = torch.randint(int(ends[-1]), (1,), generator=generator)
    return buckets[int(torch.searchsorted(ends, place, right=True))]


def _conditioning(
    words: OwnWords, batch: Batch, data: EncodedSource, backbone: Backbone
) -> tuple[Tensor, dict[str, Tensor] | None]:
    place = data.caption_of[torch.where(batch.drop, len(data.captions), batch.items).to(data.device)]
    embeds, pooled = data.embeds[place], None if data.pooled is None else data.pooled[place]
    if words.soft or words.lora:
        encoded = backbone.encode_prompts(
            [data.captions[int(i)] for i in batch.items], words.soft, words.lora
        )
        if words.lora and batch.drop.any():  # the pipeline's empty caption goes through it too
            empty = backbone.encode_negative("", 1, words.lora)
            embeds, pooled = empty.embeds, empty.pooled
        kept = ~batch.drop.to(data.device)
        embeds = torch.where(kept[:, None, None], encoded.embeds, embeds)
        pooled = (
            None
            if pooled is None or encoded.pooled is None
            else torch.where(kept[:, None], encoded.pooled, pooled)
        )
    embeds = embeds.to(backbone.dtype)
    if pooled is None:
        return embeds, None
    ids = batch.time_ids.to(data.device, backbone.dtype).expand(len(batch.items), -1)
    return embeds, {"text_embeds": pooled.to(backbone.dtype), "time_ids": ids}
