"""Continual learning: sources come one after the other.

A composition gains an adapter and a router's statistics; nothing that was there changes. A monolith is trained on: its
one adapter goes on from where it was, on the new source alone, with as many steps as an adapter has. After each
source, both are measured on the held-out pictures of every source so far, by the fast ruler's error.

    raw/continual.json    error of source j after source i, composed and monolithic; what was lost of the earlier ones
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paper.adapters import made_adapter
from paper.stage import Stage, fresh_slots
from paper.units import Units, done, once
from promptcdm import lora
from promptcdm.adapter import Adapter
from promptcdm.batch import draw_batch
from promptcdm.composed_unet import ComposedUNet
from promptcdm.encoded_source import encode_source
from promptcdm.fixed_noise import denoising_errors
from promptcdm.keyed_random import keyed_generator
from promptcdm.learned import LORA_NAME, new_optimizer, trainable
from promptcdm.learning_rate import rate_share
from promptcdm.membership import Probe, drawn, probe_of
from promptcdm.settings import RouterName
from promptcdm.source import Source
from promptcdm.source_errors import timesteps_of
from promptcdm.tensorfile import read_tensors, write_json, write_tensors
from promptcdm.train import add_gradients
from promptcdm.weight_average import put

Learned = dict[str, Tensor]  # the parameters of the monolith so far, by name


def continual(stage: Stage) -> dict[str, Any]:
    """Measure it, source by source; raw/continual.json."""
    folder = stage.out / "work" / "continual"
    units = {
        folder / f"errors-{i}.json": lambda i=i: _errors_after(stage, i) for i in range(len(stage.names))
    }
    done(sequence_units(stage))
    rows = list(done(units).values())
    composed, monolith = ([row[kind] for row in rows] for kind in ("composed", "monolith"))
    found = {
        "sources": list(stage.names),
        "composed": composed,
        "monolith": monolith,
        # By how much the last state denoises the earlier sources worse than the state right after each had come.
        "composed_lost": _lost(composed),
        "monolith_lost": _lost(monolith),
    }
    write_json(stage.raw / "continual.json", found)
    return found


def sequence_units(stage: Stage) -> Units:
    """The monolith's trainings one after the other: one unit, as each needs the one before."""

    def train() -> dict[str, int]:
        learned: Learned = {}
        for i, name in enumerate(stage.names):
            learned, _ = _after(stage, i, stage.sources[name], learned)
        return {"steps": stage.plan.training.steps * len(stage.names)}

    return {stage.out / "work" / "continual" / "sequence.json": train}


def _errors_after(stage: Stage, i: int) -> dict[str, list[float]]:
    """Errors on the held-out pictures of each source so far, after source i."""
    _, changed = _after(stage, i, stage.sources[stage.names[i]], {})
    sequence = made_adapter(stage.of_sources()[0], "sequence", changed)
    so_far = [held_out_probe(stage, name) for name in stage.names[: i + 1]]
    return {
        "composed": composition_errors(stage, stage.of_sources()[: i + 1], so_far),
        "monolith": composition_errors(stage, [sequence], so_far),
    }


def held_out_probe(stage: Stage, name: str) -> Probe:
    """A source's share of the fast ruler's pictures."""
    count = max(1, stage.plan.ruler_pictures // len(stage.held_out))
    return probe_of(drawn(stage.held_out[name], count, stage.plan.seed), stage.backbone)


def _lost(errors: Sequence[Sequence[float]]) -> float:
    """Mean over all sources but the last of (error at the end / error when it had come) - 1."""
    return float(np.mean([errors[-1][j] / errors[j][j] - 1 for j in range(len(errors) - 1)]))


def _after(stage: Stage, i: int, source: Source, before: Learned) -> tuple[Learned, Learned]:
    """Parameters and LoRA of the monolith after source i, trained on from `before`; from files where they are there."""
    folder = stage.out / "work" / "continual"

    def train() -> dict[str, int]:
        learned, changed = train_on(stage, source, before)
        write_tensors(folder / f"{i}.parameters.safetensors", learned, {})
        write_tensors(folder / f"{i}.lora.safetensors", changed, {})
        return {"steps": stage.plan.training.steps}

    once(folder / f"{i}.json", train)
    (learned, _), (changed, _) = (
        read_tensors(Path(folder, f"{i}.{kind}.safetensors")) for kind in ("parameters", "lora")
    )
    return learned, changed


def train_on(stage: Stage, source: Source, before: Learned) -> tuple[Learned, Learned]:
    """Train the adapter on one source from `before` ({}: from nothing): its parameters, and its LoRA."""
    backbone, settings = stage.backbone, replace(stage.plan.training, seed=stage.plan.seed)
    digest = source.manifest().merkle_root
    with backbone.lock, trainable(backbone, settings, digest) as parameters:
        if before:
            put(parameters, before)
        data = encode_source(source, backbone, settings, source.trigger)
        optimizer = new_optimizer(parameters, settings)
        for step in range(settings.steps):
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * rate_share(step, settings)
            generator = keyed_generator(f"{settings.seed} {digest} {step}")
            batch = draw_batch(data, backbone, settings, settings.rows, generator)
            add_gradients(parameters, batch, data, backbone, settings, step)
            nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        learned = {name: parameter.detach().float().cpu().clone() for name, parameter in parameters.items()}
        return learned, lora.read_out(backbone.unet, LORA_NAME)


def composition_errors(stage: Stage, adapters: Sequence[Adapter], probes: Sequence[Probe]) -> list[float]:
    """Mean denoising error of a composition on each group of pictures."""
    router: RouterName = "posterior" if len(adapters) > 1 else "uniform"
    fresh_slots(stage.backbone)
    with closing(ComposedUNet(stage.backbone, adapters, router=router, guidance_scale=1.0)) as composed:
        errors = denoising_errors(
            composed,
            torch.cat([probe.latents for probe in probes]),
            [caption for probe in probes for caption in probe.captions],
            timesteps_of(stage.backbone, stage.plan.ruler_levels),
            seed=stage.plan.seed,
            batch_size=stage.plan.chunk,
        )
    return [
        float(own.double().mean()) for own in torch.split(errors, [len(probe.captions) for probe in probes])
    ]
