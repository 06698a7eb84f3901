"""Can members of a source be told from its held-out pictures, through its adapter?

Three scores of the same pictures, higher for what was learned; e_k is the error on fixed noise k (`fixed_noise.py`):

    loss        - mean_k e_k(adapter)                       the plain attack
    calibrated  mean_k log (e_k(backbone) / e_k(adapter))   what the adapter made easier, whatever was hard before
                                                            (Watson et al. 2022, arXiv 2111.08440, with a ratio)
    blind       - mean_k e_k(backbone)                      no attack: the backbone saw neither; away from 0.5, the
                                                            groups differ by more than membership, and `loss` with it

and of the captions the text-conditional noise magnitude, told or not told. The positive control is an adapter that was
overfitted on purpose to a few members: where no score finds those, an AUC of 0.5 elsewhere says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.composed_unet import ComposedUNet
from promptcdm.errors import BadInput
from promptcdm.fixed_noise import clean_latents, denoising_errors, text_noise
from promptcdm.levers import Levers
from promptcdm.separation import Separation, separation
from promptcdm.settings import LeakageSettings, TrainSettings
from promptcdm.source import Source
from promptcdm.train import train_adapter

LEAST = 20  # pictures of each group
CONTROL_RANK = 16
_ENCODED_AT_ONCE = 32


@dataclass(frozen=True)
class Probe:
    """Pictures and captions of one group, as latents and texts."""

    latents: Tensor  # (I, C, h, w), scaled
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Membership:
    """What was found of one adapter."""

    source: str
    adapter: str  # sha256
    scores: dict[str, Separation]  # loss, calibrated, blind, text_noise
    text_noise: tuple[float, float]  # mean over the members' captions, and over the others'
    backbone_text_noise: tuple[float, float]


def membership(
    adapter: Adapter, members: Probe, others: Probe, backbone: Backbone, settings: LeakageSettings
) -> Membership:
    """Measure one adapter on its members and on others of the same source.

    Raises AdapterMismatch for an adapter of another backbone.
    """
    errors = {
        name: [_errors(backbone, adapters, group, settings) for group in (members, others)]
        for name, adapters in (("adapter", [adapter]), ("backbone", []))
    }
    own, bare = errors["adapter"], errors["backbone"]
    moved, plain = (
        [_text_noise(backbone, adapters, group, settings) for group in (members, others)]
        for adapters in ([adapter], [])
    )
    scores = {
        "loss": separation(*(-each.mean(1) for each in own), seed=settings.seed),
        "calibrated": separation(*map(_made_easier, bare, own), seed=settings.seed),
        "blind": separation(*(-each.mean(1) for each in bare), seed=settings.seed),
        "text_noise": separation(moved[0], moved[1], seed=settings.seed),
    }
    means = [(float(pair[0].mean()), float(pair[1].mean())) for pair in (moved, plain)]
    return Membership(adapter.source, adapter.sha256, scores, *means)


def overfitted(source: Source, backbone: Backbone, settings: LeakageSettings) -> tuple[Adapter, Source]:
    """The positive control: an adapter trained for long on a few pictures of the source, and those pictures."""
    few = replace(source, items=drawn(source, settings.control_pictures, settings.seed).items)
    training = TrainSettings(
        steps=settings.control_steps, rank=CONTROL_RANK, targets="wide", seed=settings.seed
    )
    return train_adapter(few, backbone, training), few


def members_of(adapter: Adapter, source: Source) -> Source:
    """The pictures of the folder that the adapter's manifest names; all where it has none (an import).

    Raises BadInput where they are too few.
    """
    if adapter.manifest is None:
        return source
    trained = {item.sha256 for item in adapter.manifest.items}
    found = replace(source, items=tuple(item for item in source.items if item.sha256 in trained))
    if len(found) < LEAST:
        raise BadInput(
            f"{source.name}: {len(found)} of its {len(source)} pictures are in the adapter's manifest of "
            f"{len(trained)}; give the pictures that it was trained on, {LEAST} or more"
        )
    return found


def check_held_out(source: Source, adapter: Adapter, members: Source) -> None:
    """Raise BadInput where a held-out picture was trained on, or they are too few."""
    manifest = adapter.manifest.items if adapter.manifest is not None else ()
    trained = {item.pixels_sha256 for item in (*manifest, *members.items)}
    inside = [item.file for item in source.items if item.pixels_sha256 in trained]
    if inside:
        raise BadInput(
            f"{source.folder}: {len(inside)} pictures were trained on, such as {inside[0]}; hold them out or drop them"
        )
    if len(source) < LEAST:
        raise BadInput(f"{source.folder}: {len(source)} held-out pictures; give {LEAST} or more")


def drawn(source: Source, count: int, seed: int) -> Source:
    """`count` pictures of the source, drawn by the seed; all where there are no more."""
    if count >= len(source):
        return source
    chosen = np.random.default_rng(seed).permutation(len(source))[:count]
    return replace(source, items=tuple(source.items[int(i)] for i in sorted(chosen)))


def probe_of(source: Source, backbone: Backbone) -> Probe:
    """The latents (the VAE's mean) and captions of a source."""
    parts = []
    for start in range(0, len(source), _ENCODED_AT_ONCE):
        numbers = range(start, min(start + _ENCODED_AT_ONCE, len(source)))
        parts.append(clean_latents(backbone, [source.picture(i) for i in numbers]))
    return Probe(torch.cat(parts), tuple(item.caption for item in source.items))


def _made_easier(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """By what power of e the error fell, (I,), of errors (I, K): a ratio, so that no noise level outweighs another."""
    return np.asarray(np.log(before / after).mean(1))


def _errors(
    backbone: Backbone, adapters: Sequence[Adapter], group: Probe, settings: LeakageSettings
) -> NDArray[np.float64]:
    """Each picture's errors (I, K) through the composition of `adapters`."""
    levels = np.linspace(0, len(backbone.alphas_cumprod) - 1, settings.noise_levels + 2)[1:-1]
    with closing(ComposedUNet(backbone, adapters, router="uniform", guidance_scale=1.0)) as composed:
        errors = denoising_errors(
            composed,
            group.latents,
            group.captions,
            [round(float(t)) for t in levels for _ in range(settings.draws)],
            seed=settings.seed,
            batch_size=settings.batch_size,
        )
    return errors.double().numpy()


def _text_noise(
    backbone: Backbone, adapters: Sequence[Adapter], group: Probe, settings: LeakageSettings
) -> NDArray[np.float64]:
    """Each caption's magnitude (I,) through the composition, which draws its own row without text too."""
    levers = Levers(unconditional_from="adapter")
    with closing(
        ComposedUNet(backbone, adapters, router="uniform", levers=levers, guidance_scale=2.0)
    ) as composed:
        moved = text_noise(
            composed,
            group.captions,
            group.latents.shape[1:],
            draws=settings.draws,
            seed=settings.seed,
            batch_size=max(1, settings.batch_size // 2),
        )
    return moved.double().numpy()
