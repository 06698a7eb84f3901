"""The fast ruler: how well each system denoises held-out pictures, noise level by noise level, without any sampling.

    e(x_0, t, system) = mean over the latents of (eps_system(x_t, t, c) - n)^2        c   the picture's own caption

Every source, the bare backbone and the monoliths predict each noised picture once; what a router makes of the sources'
predictions costs no further row. In the same pass each router is asked for the true source: its log-loss,
- log w_true. All systems meet the same noises.

    raw/ruler.csv    a row for each picture and level: error of every system, loss of every router
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from baselines.joint_classifier import joint_classifier_router
from baselines.loratorio import loratorio_router
from torch import Tensor

from paper.adapters import bare_adapter
from paper.sources import BACKBONE, backbone_folder, part_of, read_rows
from paper.stage import Stage, fresh_slots, read_csv, write_csv
from paper.units import done
from promptcdm.adapter import Adapter
from promptcdm.compose import by_source, compose_noise, keep_largest
from promptcdm.composed_unet import ComposedUNet
from promptcdm.fixed_noise import clean_latents, noise_of, predicted_noise
from promptcdm.prompt_prior import prompt_prior
from promptcdm.router import (
    Router,
    posterior_router,
    prior_router,
    share_prior,
    stack_statistics,
    uniform_router,
)
from promptcdm.source_errors import timesteps_of


@dataclass(frozen=True)
class HeldOut:
    """One held-out picture."""

    source: str
    number: int  # in its source
    concept: str
    part: str
    caption: str


@dataclass
class _Heard:
    """A router that keeps every prediction of the last call."""

    eps: Tensor | None = None  # (K, B, C, h, w)

    def router(self, count: int) -> Router:
        def route(state: Any, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, Any]:
            self.eps = eps
            return x_t.new_full((len(x_t), count), 1.0 / count), state

        return Router(route, needs_eps=True)


def held_out_pictures(stage: Stage) -> list[HeldOut]:
    """Equally many of every source where there are so many, drawn by the seed; at most `plan.ruler_pictures`."""
    each = max(1, stage.plan.ruler_pictures // len(stage.held_out))
    found = []
    for name, source in stage.held_out.items():
        concept = {row.file: row.concept for row in read_rows(Path(stage.plan.sources) / "heldout" / name)}
        order = np.random.default_rng(stage.plan.seed).permutation(len(source))[:each]
        for number in sorted(int(i) for i in order):
            item = source.items[number]
            own = concept.get(item.file, item.caption)
            found.append(HeldOut(name, number, own, part_of(own), item.caption))
    return found


def measure(stage: Stage) -> list[dict[str, str]]:
    """Measure every held-out picture; the rows of raw/ruler.csv."""
    pictures = held_out_pictures(stage)
    size = stage.plan.chunk
    parts = [pictures[i : i + size] for i in range(0, len(pictures), size)]
    units: dict[Path, Callable[[], Any]] = {
        stage.out / "work" / "ruler" / f"{n:04d}.json": lambda part=part: _measure(stage, part)  # type: ignore[misc]
        for n, part in enumerate(parts)
    }
    rows = [row for found in done(units).values() for row in found]
    write_csv(stage.raw / "ruler.csv", rows)
    return read_csv(stage.raw / "ruler.csv")


def best_source(stage: Stage, rows: Sequence[dict[str, str]]) -> str:
    """The source that alone has the least error on all sources' validation pictures."""
    own = [row for row in rows if row["part"] == "validation"] or list(rows)
    return min(stage.names, key=lambda name: math.fsum(float(row[f"error {name} alone"]) for row in own))


def routers(stage: Stage, captions: Sequence[str], truth: Sequence[str], seed: int = 0) -> dict[str, Router]:
    """Routers that need no sampler's path, by the names of the systems that they are of."""
    adapters = stage.of_sources(seed)
    known = [a.statistics for a in adapters if a.statistics is not None]
    n, statistics = len(adapters), stack_statistics(known)
    share = share_prior(torch.tensor([s.count for s in known]))
    features = stage.backbone.prompt_features(list(captions))
    prior = prompt_prior(features, known).cpu()
    right = torch.stack([torch.eye(n)[stage.names.index(name)] for name in truth])
    more: dict[str, Router] = {}
    if backbone_folder(stage.plan):
        backbone = stage.adapter(BACKBONE).statistics
        assert backbone is not None
        all_known = [backbone, *known]
        more[WITH_BACKBONE] = posterior_router(
            stack_statistics(all_known), prompt_prior(features, all_known).cpu()
        )
    return {
        "average": uniform_router(n),
        "oracle source": prior_router(right),
        "LoRAtorio": loratorio_router(),
        "classifier": joint_classifier_router(stage.classifier, prior),
        "posterior": posterior_router(statistics, share),
        "prompt": prior_router(prior),
        "product": posterior_router(statistics, prior),
        **more,
    }


WITH_BACKBONE = "product, backbone as source"
_ALSO_TOP = ("classifier", "posterior", "prompt", "product")


def _measure(stage: Stage, part: Sequence[HeldOut]) -> list[dict[str, Any]]:
    """Rows of some pictures, all noise levels."""
    images = [stage.held_out[p.source].picture(p.number) for p in part]
    captions, truth = [p.caption for p in part], [p.source for p in part]
    x_0, own = clean_latents(stage.backbone, images), routers(stage, captions, truth)
    rows = []
    for k, (t, eps, x_t, noise) in enumerate(_predictions(stage, x_0, captions)):
        a = stage.backbone.alpha_bar(torch.tensor([float(t)]))
        errors, losses = _of_level(stage, own, eps, x_t, a.float().expand(len(part)), noise, truth)
        for b, picture in enumerate(part):
            rows.append(
                {
                    "source": picture.source,
                    "picture": picture.number,
                    "concept": picture.concept,
                    "part": picture.part,
                    "level": k,
                    "log_snr": round(float(a.logit()), 4),
                    **{f"error {name}": float(error[b]) for name, error in errors.items()},
                    **{f"loss {name}": float(loss[b]) for name, loss in losses.items()},
                }
            )
    return rows


def _predictions(
    stage: Stage, x_0: Tensor, captions: Sequence[str]
) -> list[tuple[int, dict[str, Tensor], Tensor, Tensor]]:
    """Of each level, noise falling: timestep, eps (B, C, h, w) by adapter, x_t and the noise in it; on the CPU."""
    steps = list(reversed(timesteps_of(stage.backbone, stage.plan.ruler_levels)))
    alpha = [stage.backbone.alpha_bar(torch.tensor([float(t)])).to(x_0) for t in steps]
    noises = [noise_of(x_0.shape[1:], stage.plan.seed, k).to(x_0) for k in range(len(steps))]
    x_t = [a.sqrt() * x_0 + (1 - a).sqrt() * noise for a, noise in zip(alpha, noises, strict=True)]
    heard: list[dict[str, Tensor]] = [{} for _ in steps]
    for group in everyone(stage):
        for k, eps in enumerate(_heard(stage, list(group.values()), steps, x_t, captions)):
            heard[k] |= dict(zip(group, eps, strict=True))
    return list(zip(steps, heard, x_t, noises, strict=True))


def _heard(
    stage: Stage,
    adapters: Sequence[Adapter],
    steps: Sequence[int],
    x_t: Sequence[Tensor],
    captions: Sequence[str],
) -> Iterator[Tensor]:
    """eps (K, B, C, h, w) of K adapters at each step, on the CPU."""
    heard = _Heard()
    fresh_slots(stage.backbone)
    view = ComposedUNet(stage.backbone, adapters, router=heard.router(len(adapters)), guidance_scale=1.0)
    with closing(view) as composed:
        texts = composed.encode(list(captions))
        for t, noised in zip(steps, x_t, strict=True):
            predicted_noise(composed, noised.to(stage.backbone.device), t, texts)
            assert heard.eps is not None
            yield heard.eps.float().cpu()


def everyone(stage: Stage, seed: int = 0) -> list[dict[str, Adapter]]:
    """The sources with the bare backbone as one of them; then the soup and each monolith, whose ranks are others.

    A tagged monolith is left out: it needs its tag.
    """
    sources = dict(zip(stage.names, stage.of_sources(seed), strict=True))
    bare = bare_adapter(next(iter(sources.values())))
    monoliths = [name for name in stage.plan.monoliths if name != "monolith tagged"]
    return [{**sources, "backbone": bare}, *({n: stage.adapter(n, seed)} for n in ("soup", *monoliths))]


def _of_level(
    stage: Stage,
    own: dict[str, Router],
    eps: dict[str, Tensor],
    x_t: Tensor,
    alpha_bar: Tensor,
    noise: Tensor,
    truth: Sequence[str],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Errors (B,) of every system and log-losses (B,) of every router."""
    by = torch.stack([eps[name] for name in stage.names])  # (N, B, C, h, w)
    right = torch.tensor([stage.names.index(name) for name in truth])
    made = {f"{name} alone" if name in stage.names else name: each for name, each in eps.items()}
    losses = {}
    for name, router in own.items():
        of_all = torch.cat([eps["backbone"][None], by]) if name in ("LoRAtorio", WITH_BACKBONE) else by
        w, _ = router.route(router.start, x_t, alpha_bar, of_all)
        made[name] = compose_noise(of_all, w)
        w = w[:, -len(by) :]
        for k in (1, 2) if name in _ALSO_TOP else ():
            made[f"{name} top-{k}"] = compose_noise(by, keep_largest(w, k))
        chance = by_source(w).gather(1, right[:, None])[:, 0]
        losses[name] = -chance.double().clamp(min=1e-12).log()
    errors = {name: (each - noise).square().mean((1, 2, 3)) for name, each in made.items()}
    for name in ("prompt", "average"):  # a source is drawn: its expected error
        w, _ = own[name].route(own[name].start, x_t, alpha_bar, None)
        drawn = (by - noise).square().mean((2, 3, 4)).T
        errors["draw prompt" if name == "prompt" else "draw uniform"] = (w * drawn).sum(1)
    losses.pop("oracle source")
    return errors, losses
