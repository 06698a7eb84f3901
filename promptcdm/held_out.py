"""The loss on pictures that are not trained on, of the same noise and timesteps each time it is measured.

A training batch's loss is mostly about which timesteps it drew. Held fixed, two measurements differ by the adapter
alone, so that it can be seen when it stops to learn and begins to remember.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from promptcdm.backbone import Backbone
from promptcdm.batch import Batch, OwnWords, time_ids, weighted_errors
from promptcdm.encoded_source import Bucket, EncodedSource
from promptcdm.keyed_random import keyed_generator
from promptcdm.settings import TrainSettings

TIMESTEPS = 4  # of each picture, in the middle of equal parts of the schedule


def held_out_batches(
    data: EncodedSource, backbone: Backbone, settings: TrainSettings, source_digest: str
) -> list[Batch]:
    """Every picture held out at every timestep, with its caption, unmirrored, in batches of the settings' size."""
    return [
        batch
        for bucket in data.buckets
        if len(bucket.held_out)
        for batch in _batches(bucket, backbone, settings, source_digest)
    ]


@torch.no_grad()
def held_out_loss(
    words: OwnWords,
    batches: Sequence[Batch],
    data: EncodedSource,
    backbone: Backbone,
    settings: TrainSettings,
) -> float:
    """The mean weighted error over all rows, to 6 digits, as the log holds it."""
    errors = [weighted_errors(words, batch, data, backbone, settings) for batch in batches]
    return round(float(torch.cat(errors).cpu().double().mean()), 6)


def best_so_far(log: Sequence[Mapping[str, float]]) -> tuple[int, int]:
    """Of a log: the step of the lowest held-out loss (0: none yet), and how many measurements came after it."""
    measured = [(row["held_out"], row["step"]) for row in log if "held_out" in row]
    if not measured:
        return 0, 0
    best = min(range(len(measured)), key=lambda i: (measured[i][0], i))
    return int(measured[best][1]), len(measured) - 1 - best


def _batches(
    bucket: Bucket, backbone: Backbone, settings: TrainSettings, source_digest: str
) -> Iterator[Batch]:
    steps = len(backbone.alphas_cumprod)
    times = torch.tensor([int((k + 0.5) * steps / TIMESTEPS) for k in range(TIMESTEPS)])
    rows, t = bucket.held_out.repeat_interleave(TIMESTEPS), times.repeat(len(bucket.held_out))
    x_0 = bucket.mean[0, bucket.held_out] * backbone.pipe.vae.config.scaling_factor
    noise = torch.stack(
        [_noise(bucket, int(i), settings, source_digest) for i in bucket.items[bucket.held_out]]
    )
    whole = Batch(
        bucket.items[rows],
        t,
        x_0.repeat_interleave(TIMESTEPS, 0),
        noise.flatten(0, 1),
        torch.zeros(len(rows), dtype=torch.bool),
        time_ids(bucket),
    )
    for start in range(0, len(rows), settings.batch_size):
        yield whole.part(slice(start, start + settings.batch_size))


def _noise(bucket: Bucket, item: int, settings: TrainSettings, source_digest: str) -> Tensor:
    """(TIMESTEPS, C, h, w) of the seed, the source and the picture's number alone."""
    generator = keyed_generator(f"{settings.seed} {source_digest} held out {item}")
    return torch.randn(TIMESTEPS, *bucket.mean.shape[2:], generator=generator, dtype=torch.float32)
