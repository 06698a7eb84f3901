"""Which of the allowed sources a picture speaks for, by five methods.

    weights         the mean weight over the steps, from the record beside a generated picture      no row
    statistics      the posterior of the sources' Gaussians at the clean latent                      no row
    palette         how often each source's training pictures have the picture's colours             no row
    denoising       how much of the backbone's error on fixed noise each source's adapter takes away
    leave-one-out   how much worse the composition denoises without each source                      the same rows

Every method gives scores, of which the largest is the top source, and amounts that the picture is shared out by.
What no allowed source accounts for is `rest`. A share is an account by a rule, not a proof that a source influenced a
picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import torch
from PIL import Image
from torch import Tensor

from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.errors import BadInput
from promptcdm.fixed_noise import clean_latents
from promptcdm.left_out import log_density_over
from promptcdm.palette import drawn_colours, log_likelihood, pixel_shares
from promptcdm.route import check_router
from promptcdm.router import on_device, posterior_router, stack_statistics
from promptcdm.settings import AttributeMethod, AttributeSettings
from promptcdm.shares import explained, shapley
from promptcdm.source_errors import Errors, source_errors
from promptcdm.store import AdapterStore
from promptcdm.versions import source_of

METHODS = get_args(AttributeMethod)


@dataclass(frozen=True)
class Attribution:
    """One picture's account over the allowed sources."""

    method: AttributeMethod
    scores: Mapping[str, float]  # what the sources are ranked by
    amounts: Mapping[str, float]  # of at least 0; with `rest` they sum to 1
    rest: float  # accounted for by no allowed source
    nats: Mapping[str, float] = field(
        default_factory=dict
    )  # log densities behind the amounts, where there are any
    row_forwards: float = 0.0

    @property
    def top(self) -> str:
        """The source of the largest score; of equal ones the first by name."""
        return min(self.scores, key=lambda name: (-self.scores[name], name))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"top": self.top, **asdict(self)}


def attribute(
    images: Sequence[Image.Image],
    *,
    allowed: Sequence[str],
    backbone: Backbone | None = None,
    store: AdapterStore,
    settings: AttributeSettings = AttributeSettings(),
    prompts: Sequence[str] | None = None,
    allow_backbone_mismatch: bool = False,
) -> list[Attribution]:
    """Attribute pictures to the allowed sources, by every method but `weights` (`attribute_record`).

    `prompts` has one text a picture, else all are told `settings.prompt`. Only what is allowed is loaded or told.
    `palette` needs no backbone, and ignores one. Raises UnknownSource, AdapterMismatch as `generate`, and BadInput for
    a setting out of range or a source without what the method needs.
    """
    check_allowed(allowed)
    if settings.method not in METHODS or settings.method == "weights":
        accepted = ", ".join(name for name in METHODS if name != "weights")
        raise BadInput(
            f"method {settings.method!r} of pictures; accepted: {accepted}; weights are in a record: attribute_record"
        )
    if settings.batch_size < 1 or settings.seed < 0:
        raise BadInput(
            f"batch_size is {settings.batch_size} and seed {settings.seed}; they take 1 and 0 or more"
        )
    texts = [settings.prompt] * len(images) if prompts is None else list(prompts)
    if len(texts) != len(images):
        raise BadInput(f"{len(images)} pictures and {len(texts)} prompts; give one each, or none")
    adapters = [store.load(name) for name in allowed]
    if settings.method == "palette":
        return by_palette(adapters, images)
    if backbone is None:
        raise BadInput(f"method {settings.method} needs the backbone of the adapters")
    for adapter in adapters:
        backbone.check_made_for(adapter.record, allow_mismatch=allow_backbone_mismatch)
    if settings.method == "statistics":
        check_router("posterior", adapters)
    found: list[Attribution] = []
    for start in range(0, len(images), settings.batch_size):
        part = slice(start, start + settings.batch_size)
        x_0 = clean_latents(backbone, images[part])
        if settings.method == "statistics":
            found += by_statistics(adapters, x_0)
            continue
        errors = source_errors(
            *(backbone, adapters, x_0, texts[part]),
            noise_levels=settings.noise_levels,
            draws=settings.draws,
            seed=settings.seed,
            router=settings.router if settings.method == "leave-one-out" else None,
            allow_backbone_mismatch=allow_backbone_mismatch,
        )
        names = [adapter.source for adapter in adapters]
        found += (
            by_denoising(names, errors) if settings.method == "denoising" else by_leaving_out(names, errors)
        )
    return found


def check_allowed(allowed: Sequence[str]) -> None:
    """Raise BadInput unless these are one or more different sources."""
    sources = [source_of(name) for name in allowed]
    if isinstance(allowed, str) or not sources or len(set(sources)) < len(sources):
        raise BadInput(f"allowed takes a list of one or more different source names, not {allowed!r}")


def by_statistics(adapters: Sequence[Adapter], x_0: Tensor) -> list[Attribution]:
    """Method `statistics`: the router `posterior` at no noise, all sources equally likely before."""
    known = [adapter.statistics for adapter in adapters if adapter.statistics is not None]
    prior = torch.full((len(known),), 1 / len(known))
    router = posterior_router(on_device(stack_statistics(known), x_0.device), prior)
    w, _ = router.route(None, x_0, torch.ones(len(x_0)), None)
    names = [adapter.source for adapter in adapters]
    return [Attribution("statistics", shares, shares, 0.0) for shares in (_named(names, row) for row in w)]


def by_palette(adapters: Sequence[Adapter], images: Sequence[Image.Image]) -> list[Attribution]:
    """Method `palette`. Scores: the mean log likelihood of the drawn pixels' colours, in nats a pixel.

    Amounts: each source's share in a pixel of this colour, mean over the drawn pixels. Raises BadInput for a source
    that has no palette.
    """
    names = [adapter.source for adapter in adapters]
    found = {a.source: a.statistics.palette if a.statistics else None for a in adapters}
    without = [name for name, palette in found.items() if palette is None]
    if without:
        raise BadInput(
            f"method palette needs the colours of the training pictures, which {', '.join(without)} does not have "
            "(imported without pictures, or older than this method); use denoising, or train it again"
        )
    palettes = [palette for palette in found.values() if palette is not None]
    attributions = []
    for image in images:
        colours = drawn_colours(image)
        shares = pixel_shares(palettes, colours)
        scores, amounts = _named(names, log_likelihood(palettes, colours)), _named(names, shares)
        attributions.append(Attribution("palette", scores, amounts, 1 - float(shares.sum())))
    return attributions


def by_denoising(names: Sequence[str], errors: Errors) -> list[Attribution]:
    """Method `denoising`. Scores: the share of the backbone's error that a source's adapter takes away, over levels.

    Amounts: Shapley values of the log densities over the backbone's, times the posterior that it is any source's.
    """
    scores = (1 - errors.source / errors.backbone[:, None]).mean(2)
    nats = log_density_over(errors.source, errors.backbone[:, None], errors.log_snr)
    found = []
    for b in range(len(scores)):
        densities = nats[b].tolist()
        values, whole = shapley(densities), explained(densities)
        amounts = {name: whole * v / (sum(values) or 1) for name, v in zip(names, values, strict=True)}
        cost = float(errors.row_forwards[b])
        found.append(
            Attribution(
                "denoising", _named(names, scores[b]), amounts, 1 - whole, _named(names, nats[b]), cost
            )
        )
    return found


def by_leaving_out(names: Sequence[str], errors: Errors) -> list[Attribution]:
    """Method `leave-one-out`. Scores: by what share the composition's error grows without a source, mean over levels.

    Amounts: log p - log p_-k, in nats, of the sources that have it above 0.
    """
    assert errors.composed is not None and errors.without is not None
    scores = (errors.without / errors.composed[:, None] - 1).mean(2)
    nats = log_density_over(errors.composed[:, None], errors.without, errors.log_snr)
    found = []
    for b in range(len(scores)):
        gains = nats[b].clamp(min=0)
        total = float(gains.sum())
        amounts = _named(names, gains / total if total else gains)
        found.append(
            Attribution(
                "leave-one-out",
                _named(names, scores[b]),
                amounts,
                0.0 if total else 1.0,
                _named(names, nats[b]),
                float(errors.row_forwards[b]),
            )
        )
    return found


def attribute_record(record: Mapping[str, Any], allowed: Sequence[str]) -> Attribution:
    """Method `weights`, from the record of a generated picture; sources that are not allowed are in `rest`, unnamed.

    Raises BadInput where the record has no weights.
    """
    check_allowed(allowed)
    weights = record.get("weights")
    right = isinstance(weights, Mapping) and all(
        isinstance(name, str) and isinstance(w, (int, float)) and 0 <= w <= 1 for name, w in weights.items()
    )
    if not right or not isinstance(weights, Mapping):
        raise BadInput("the record has no weights by source; give a record that generate wrote")
    given = {source_of(name) for name in allowed}
    amounts = {name: float(weights.get(name, 0.0)) for name in sorted(given)}
    others = sum(float(w) for name, w in weights.items() if name not in given)
    total = sum(amounts.values()) + others
    if not total:  # a picture of the bare backbone
        return Attribution("weights", amounts, amounts, 1.0)
    shares = {name: w / total for name, w in amounts.items()}
    return Attribution("weights", amounts, shares, others / total)


def _named(names: Sequence[str], values: Tensor) -> dict[str, float]:
    return dict(zip(names, values.tolist(), strict=True))
