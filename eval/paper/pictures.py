"""Pictures: every system draws the same prompts from the same seeds, a batch at a time through the stock pipeline.

A unit is one batch of one system. Its pictures are written first and its record last, so that a kill loses one batch.

    work/seed-S/pictures/SYSTEM/ID.png
    raw/pictures.csv      system, training seed, prompt, row-forwards, seconds of one core (on a CPU), entropy of the
                          router's weights at the first call, in the middle and at the last, the source of most weight
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from paper.adapters import bare_adapter, core_seconds, file_name, tag
from paper.phrases import PhraseUNet
from paper.prompts import Prompt
from paper.sources import BACKBONE
from paper.stage import Stage, batches, fresh_slots, write_csv
from paper.systems import Asked, System
from paper.units import Units, done
from promptcdm.adapter import Adapter
from promptcdm.composed_unet import ComposedUNet
from promptcdm.levers import Levers
from promptcdm.prompt_prior import prompt_prior
from promptcdm.router import prior_router


@dataclass(frozen=True)
class Drawing:
    """One system with what it is drawn with."""

    system: System
    guidance: float
    best: str  # the source of `best source`
    seed: int = 0  # of the training
    without: str = ""  # a source that is not allowed

    @property
    def folder(self) -> str:
        """Of its pictures, below the seed's."""
        without = f"-without-{self.without}" if self.without else ""
        return f"{file_name(self.system.name)}{without}-g{self.guidance:g}"


def draw(stage: Stage, drawings: Sequence[Drawing], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Draw what is not drawn yet; a record for every picture."""
    return [
        record for records in done(drawing_units(stage, drawings, prompts)).values() for record in records
    ]


def drawing_units(stage: Stage, drawings: Sequence[Drawing], prompts: Sequence[Prompt]) -> Units:
    """Batches of every drawing."""
    units: dict[Path, Callable[[], Any]] = {}
    for drawing in drawings:
        wanted = [p for p in prompts if p.stratum == "joined" or not drawing.system.phrases]
        for batch in batches(wanted, stage.plan.chunk):
            named = hashlib.sha256(" ".join(p.id for p in batch).encode()).hexdigest()[:12]
            path = picture_folder(stage, drawing) / f"batch-{named}.json"
            units[path] = lambda drawing=drawing, batch=batch: _draw(stage, drawing, batch)  # type: ignore[misc]
    return units


def picture_folder(stage: Stage, drawing: Drawing) -> Path:
    """Where its pictures are."""
    return stage.out / "work" / f"seed-{drawing.seed}" / "pictures" / drawing.folder


def write_records(stage: Stage, records: Sequence[dict[str, Any]]) -> None:
    """raw/pictures.csv."""
    write_csv(stage.raw / "pictures.csv", records)


def seed_of(stage: Stage, prompt: Prompt) -> int:
    """The seed of a prompt's picture, the same in every system."""
    return stage.plan.seed * 100_000 + stage.prompts.index(prompt)


def _draw(stage: Stage, drawing: Drawing, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """One batch: its pictures into the folder, its records returned."""
    system, backbone = drawing.system, stage.painter
    texts = [_text(stage, drawing, prompt) for prompt in prompts]
    pipe, start = backbone.pipe, time.process_time()
    fresh_slots(backbone)
    with closing(composed_of(stage, drawing, prompts)) as composed:
        pipe.unet = composed
        try:
            images = pipe(
                **composed.encode(texts),
                height=backbone.resolution,
                width=backbone.resolution,
                num_inference_steps=stage.plan.steps,
                eta=1.0 if system.ancestral else 0.0,
                generator=[torch.Generator().manual_seed(seed_of(stage, prompt)) for prompt in prompts],
            ).images
        finally:
            pipe.unet = backbone.unet
        seconds = core_seconds(backbone, start, len(prompts))
        rows, weights = composed.row_forwards.tolist(), [w.double() for w in composed.weights]
    folder = picture_folder(stage, drawing)
    folder.mkdir(parents=True, exist_ok=True)
    names = _names(stage, drawing)
    return [
        _record(drawing, prompt, image, folder, rows[n], seconds, [w[n] for w in weights], names)
        for n, (prompt, image) in enumerate(zip(prompts, images, strict=True))
    ]


def composed_of(stage: Stage, drawing: Drawing, prompts: Sequence[Prompt]) -> ComposedUNet | PhraseUNet:
    """The view on the backbone that draws these prompts."""
    system, backbone, guidance = drawing.system, stage.painter, drawing.guidance
    adapters = adapters_of(stage, drawing)

    def view(adapters: Sequence[Adapter], router: Any, levers: Levers = system.levers) -> ComposedUNet:
        seed = seed_of(stage, prompts[0])
        return ComposedUNet(
            backbone, adapters, router=router, levers=levers, guidance_scale=guidance, seed=seed
        )

    if not system.phrases:
        names = _names(stage, drawing)
        sources = [stage.adapter(name, drawing.seed) for name in names]
        asked = Asked(prompts, names, sources, backbone, lambda: stage.classifier, drawing.best)
        return view(adapters, system.route(asked))

    def of_nearest(texts: Sequence[str]) -> ComposedUNet:
        if system.kind == "monolith":
            return view(adapters, "uniform")
        known = [a.statistics for a in adapters if a.statistics is not None]
        nearest = prompt_prior(backbone.prompt_features(texts), known).argmax(1)
        return view(adapters, prior_router(torch.eye(len(adapters))[nearest].to(backbone.device)))

    return PhraseUNet(of_nearest, view([], "uniform", Levers()), system.layout_until)


def adapters_of(stage: Stage, drawing: Drawing) -> list[Adapter]:
    """What a system composes."""
    system = drawing.system
    if system.of == "backbone":
        return []
    names = _names(stage, drawing) if system.of == "sources" else [system.of]
    adapters = [stage.adapter(name, drawing.seed) for name in names]
    if system.first == "backbone":
        return [stage.adapter(BACKBONE), *adapters]
    return [bare_adapter(adapters[0]), *adapters] if system.first else adapters


def _names(stage: Stage, drawing: Drawing) -> list[str]:
    return [name for name in stage.names if name != drawing.without]


def _text(stage: Stage, drawing: Drawing, prompt: Prompt) -> str:
    """The prompt; for the tagged monolith with a source's tag, drawn from pi(c)."""
    if not drawing.system.tagged:
        return prompt.text
    known = [a.statistics for a in stage.of_sources(drawing.seed) if a.statistics]
    prior = prompt_prior(stage.backbone.prompt_features([prompt.text]), known)[0].tolist()
    source = random.Random(seed_of(stage, prompt)).choices(stage.names, prior)[0]
    return f"{tag(source, stage.names)} {prompt.text}"


def _record(
    drawing: Drawing,
    prompt: Prompt,
    image: Image.Image,
    folder: Path,
    rows: float,
    seconds: float | None,
    weights: Sequence[torch.Tensor],
    names: Sequence[str],
) -> dict[str, Any]:
    image.save(folder / f"{prompt.id}.png")
    system, routed = drawing.system, drawing.system.of == "sources" and len(weights) > 0
    of_all = torch.stack(list(weights)).mean(0) if weights else None
    mean = of_all[-len(names) :] if routed and of_all is not None else None
    at = [0, len(weights) // 2, len(weights) - 1]
    entropy = [round(_entropy(weights[i]), 5) if routed else None for i in at]
    return {
        "system": system.name,
        "without": drawing.without,
        "seed": drawing.seed,
        "guidance": drawing.guidance,
        "prompt": prompt.id,
        "rows": round(rows, 3),
        "seconds": seconds,
        **dict(zip(("entropy_first", "entropy_middle", "entropy_last"), entropy, strict=True)),
        "most": names[int(mean.argmax())] if mean is not None else "",
        "backbone_weight": round(float(of_all[0]), 5) if system.first and of_all is not None else None,
        "truth_weight": round(_of_truth(mean, names, prompt), 5) if mean is not None else None,
    }


def _of_truth(mean: torch.Tensor, names: Sequence[str], prompt: Prompt) -> float:
    return sum(float(mean[names.index(source)]) for source in prompt.sources if source in names)


def _entropy(w: torch.Tensor) -> float:
    """Of weights (N,), in nats."""
    return -math.fsum(p * math.log(p) for p in w.tolist() if p > 0)
