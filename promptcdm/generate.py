"""Pictures from the allowed sources, through the stock diffusers pipeline, with a record of what went into each."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.composed_unet import ComposedUNet
from promptcdm.errors import BadInput
from promptcdm.levers import Levers
from promptcdm.settings import GenerateSettings
from promptcdm.store import AdapterStore
from promptcdm.tensorfile import write_bytes, write_json
from promptcdm.versions import source_of

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "lcm": LCMScheduler,
}


@dataclass(frozen=True)
class Generation:
    """Pictures, prompt-major, each with its record, and the weights behind them."""

    images: list[Image.Image]
    records: list[dict[str, Any]]
    weights: list[Tensor]  # one a picture, (T, N): UNet calls x allowed sources

    def save(self, out: Path, *, metadata: bool = True) -> list[Path]:
        """Write NNNN.png and NNNN.json, and grid.png where there are several; returns the pictures' paths."""
        out.mkdir(parents=True, exist_ok=True)
        paths = []
        for n, (image, record) in enumerate(zip(self.images, self.records, strict=True)):
            paths.append(out / f"{n:04d}.png")
            write_bytes(paths[-1], png_bytes(image, record if metadata else None))
            write_json(paths[-1].with_suffix(".json"), record)
        if len(self.images) > 1:
            write_bytes(out / "grid.png", png_bytes(grid(self.images, _columns(self.records))))
        return paths


def generate(
    prompts: Sequence[str],
    *,
    allowed: Sequence[str],
    backbone: Backbone,
    store: AdapterStore,
    settings: GenerateSettings = GenerateSettings(),
    strength: Mapping[str, float] | None = None,
    allow_backbone_mismatch: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> Generation:
    """Make `num_images` pictures of each prompt from the allowed sources; none allowed is the bare backbone.

    `NAME@DIGEST` is a version of a source; the right to it is the right to the source. `on_step(picture, step)` is
    called after every denoising step. Raises UnknownSource for a name that the store does not hold, AdapterMismatch for
    an adapter of another backbone, BadInput for a setting out of range.
    """
    _check(prompts, settings, backbone)
    _check_allowed(allowed)
    adapters = [store.load(name) for name in allowed]
    return draw_pictures(
        prompts,
        adapters,
        backbone=backbone,
        settings=settings,
        strength=strength,
        allow_backbone_mismatch=allow_backbone_mismatch,
        on_step=on_step,
    )


def draw_pictures(
    prompts: Sequence[str],
    adapters: Sequence[Adapter],
    *,
    backbone: Backbone,
    settings: GenerateSettings = GenerateSettings(),
    strength: Mapping[str, float] | None = None,
    allow_backbone_mismatch: bool = False,
    on_step: Callable[[int, int], None] | None = None,
) -> Generation:
    """`generate` from adapters at hand, which need not be in a store."""
    _check(prompts, settings, backbone)
    composed = ComposedUNet(
        backbone,
        adapters,
        router=settings.router,
        levers=Levers(**{field.name: getattr(settings, field.name) for field in fields(Levers)}),
        strength=strength,
        guidance_scale=settings.guidance_scale,
        seed=settings.seed,
        allow_backbone_mismatch=allow_backbone_mismatch,
    )
    pipe = _pipeline(backbone, composed, settings.scheduler)
    images, records, weights = [], [], []
    try:
        for number, prompt in enumerate(p for p in prompts for _ in range(settings.num_images)):
            seed = settings.seed + number
            composed.seed = seed
            images.append(_picture(pipe, composed, prompt, seed, settings, number, on_step))
            weights.append(torch.cat(composed.weights) if composed.weights else torch.zeros(0, 0))
            records.append(_record(prompt, seed, adapters, composed, settings, strength or {}, weights[-1]))
    finally:
        composed.close()
    return Generation(images, records, weights)


def _check_allowed(allowed: Sequence[str]) -> None:
    sources = [source_of(name) for name in allowed]
    if isinstance(allowed, str) or len(set(sources)) < len(sources):
        raise BadInput(f"allowed takes a list of different source names, not {allowed!r}")


def _check(prompts: Sequence[str], settings: GenerateSettings, backbone: Backbone) -> None:
    if isinstance(prompts, str) or not prompts:
        raise BadInput("prompts takes a list of one or more texts")
    factor = backbone.pipe.vae_scale_factor
    for name in ("height", "width"):
        if getattr(settings, name) < 0 or getattr(settings, name) % factor:
            raise BadInput(
                f"{name} is {getattr(settings, name)}; it takes a multiple of {factor} pixels, or 0"
            )
    for name in ("num_inference_steps", "num_images"):
        if getattr(settings, name) < 1:
            raise BadInput(f"{name} is {getattr(settings, name)}; it takes 1 or more")
    if settings.guidance_scale != 0 and settings.guidance_scale < 1:
        raise BadInput(
            f"guidance_scale is {settings.guidance_scale}; it takes 1 (off) or more, or 0 for the backbone's own"
        )
    if settings.scheduler != "default" and settings.scheduler not in SCHEDULERS:
        raise BadInput(
            f"scheduler {settings.scheduler!r} is unknown; accepted: default, {', '.join(SCHEDULERS)}"
        )
    if settings.seed < 0:
        raise BadInput(f"seed is {settings.seed}; it takes 0 or more")


def _pipeline(backbone: Backbone, composed: ComposedUNet, scheduler: str) -> Any:
    """The backbone's own pipeline class over the same parts, with the composed UNet and a scheduler of its own."""
    kind = type(backbone.pipe.scheduler) if scheduler == "default" else SCHEDULERS[scheduler]
    scheduler_of_its_own = kind.from_config(backbone.pipe.scheduler.config)
    parts = backbone.pipe.components | {"unet": backbone.unet, "scheduler": scheduler_of_its_own}
    if "requires_safety_checker" in backbone.pipe.config:
        parts["requires_safety_checker"] = parts["safety_checker"] is not None
    pipe = type(backbone.pipe)(**parts)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet = composed
    return pipe


def _picture(
    pipe: Any,
    composed: ComposedUNet,
    prompt: str,
    seed: int,
    settings: GenerateSettings,
    number: int,
    on_step: Callable[[int, int], None] | None,
) -> Image.Image:
    size = composed.backbone.resolution

    def report(_pipe: Any, step: int, _t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if on_step:
            on_step(number, step + 1)
        return kwargs

    return pipe(  # type: ignore[no-any-return]
        **composed.encode(prompt, settings.negative_prompt),
        height=settings.height or size,
        width=settings.width or size,
        num_inference_steps=settings.num_inference_steps,
        generator=torch.Generator().manual_seed(seed),
        callback_on_step_end=report,
    ).images[0]


def _record(
    prompt: str,
    seed: int,
    adapters: Sequence[Adapter],
    composed: ComposedUNet,
    settings: GenerateSettings,
    strength: Mapping[str, float],
    weights: Tensor,
) -> dict[str, Any]:
    names = [adapter.source for adapter in adapters]
    means = weights.mean(0).tolist() if names else []
    return {
        "prompt": prompt,
        "seed": seed,
        "allowed": names,
        "router": settings.router,
        "backbone": composed.backbone.digest,
        "adapters": [{"source": a.source, "sha256": a.sha256} for a in adapters],
        "weights": {name: round(w, 6) for name, w in zip(names, means, strict=True)},
        "weights_by_step": [
            {n: round(w, 6) for n, w in zip(names, step, strict=True)} for step in weights.tolist() if names
        ],
        **({"dropped": composed.dropped} if composed.dropped else {}),
        "row_forwards": round(float(composed.row_forwards[0]), 3),
        "attribution": {a.source: a.record.attribution for a in adapters if a.record.attribution},
        "strength": dict(strength),
        "settings": asdict(settings) | {"seed": seed, "guidance_scale": composed.guidance_scale},
    }


def _columns(records: Sequence[Mapping[str, Any]]) -> int:
    """One row of the grid for each prompt, where they come in equal numbers; else nearly square."""
    prompts = [record["prompt"] for record in records]
    run = next((i for i, p in enumerate(prompts) if p != prompts[0]), len(prompts))
    return run if 1 < run < len(prompts) else math.ceil(math.sqrt(len(prompts)))


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures side by side, row by row, on white with a gap of 4 pixels."""
    width, height = max(i.width for i in images) + 4, max(i.height for i in images) + 4
    sheet = Image.new("RGB", (columns * width + 4, math.ceil(len(images) / columns) * height + 4), "white")
    for n, image in enumerate(images):
        sheet.paste(image, (n % columns * width + 4, n // columns * height + 4))
    return sheet


def png_bytes(image: Image.Image, record: Mapping[str, Any] | None = None) -> bytes:
    """The file's bytes: no time, path or host; with a record, A1111's `parameters` chunk."""
    info = PngInfo()
    if record is not None:
        info.add_text("parameters", _parameters(record, image.size))
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def _parameters(record: Mapping[str, Any], size: tuple[int, int]) -> str:
    settings = record["settings"]
    lines = [record["prompt"]]
    if settings["negative_prompt"]:
        lines.append(f"Negative prompt: {settings['negative_prompt']}")
    lines.append(
        f"Steps: {settings['num_inference_steps']}, Sampler: {settings['scheduler']}, "
        f"CFG scale: {settings['guidance_scale']}, Seed: {record['seed']}, Size: {size[0]}x{size[1]}, "
        f"Model hash: {record['backbone'][:10]}, "
        f"promptcdm weights: {json.dumps(json.dumps(record['weights']))}"
    )
    return "\n".join(lines)
