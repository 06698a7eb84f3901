"""One source trains its adapter, alone, on the frozen backbone.

    min over the adapter of  E_{x_0, t, noise} weight(t) || prediction(x_t, t, c) - target ||^2

`train_adapter` is handed one source and a backbone: no store and no other source, so it cannot see one. What it returns
is a function of the backbone's digest, the source's digest, the settings and the library versions: every random number
is keyed by (seed, source digest, step), so neither resuming nor anything else in the process changes a bit on a CPU.

    moments         mean and std of the VAE's posterior, (I, C, h, w), computed once
    prompt_embeds   (I, L, D), once a caption; a soft prompt is encoded anew at every step
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from promptcdm import lora
from promptcdm.adapter import Adapter, AdapterRecord, BackboneRecord, Statistics, adapter_digest
from promptcdm.backbone import Backbone
from promptcdm.checkpoint import load_checkpoint, save_checkpoint
from promptcdm.device_class import device_class
from promptcdm.errors import BadInput, RunFailed
from promptcdm.prompt import PromptEmbeds
from promptcdm.settings import Kind, TrainSettings, Unconditional
from promptcdm.source import Source
from promptcdm.statistics import caption_prototypes, latent_covariance

OnStep = Callable[[int, float], None]
LORA_NAME = "adapter_in_training"


@dataclass(frozen=True)
class _Data:
    """The source as numbers."""

    mean: Tensor  # (V, I, C, h, w), V = 1, or 2 with mirrored pictures
    std: Tensor  # (V, I, C, h, w)
    captions: tuple[str, ...]  # with the trigger in front
    turns: Tensor  # (sum of repeats,) items, each as often as its folder asks for
    embeds: Tensor  # (I + 1, L, D); the last is the empty caption
    pooled: Tensor | None  # (I + 1, D2)
    time_ids: Tensor | None  # (6,), SDXL


def train_adapter(
    source: Source,
    backbone: Backbone,
    settings: TrainSettings = TrainSettings(),
    *,
    checkpoint: Path | None = None,
    on_step: OnStep | None = None,
) -> Adapter:
    """Train `source` and return its adapter; `on_step(step, loss)` is called after every step.

    With `checkpoint`, a folder, training goes on from there after an interruption. Raises BadInput for settings out of
    range and RunFailed where the loss is not finite. The backbone is left as it was, bit for bit.
    """
    _check(settings)
    manifest = source.manifest()
    trigger = settings.trigger or source.trigger
    with backbone.lock:
        data = _encode(source, backbone, settings, trigger)
        try:
            parameters = _new_parameters(backbone, settings, manifest.merkle_root)
            log = _optimize(parameters, data, backbone, settings, manifest.merkle_root, checkpoint, on_step)
            weights = lora.read_out(backbone.unet, LORA_NAME)
        finally:
            lora.remove(backbone.unet, LORA_NAME)
    prompt = {n: p.detach().float().cpu() for n, p in _soft_prompt(parameters).items()}
    statistics = _statistics(source, backbone, data)
    record = AdapterRecord(
        source=source.name,
        kind=settings.kind,
        unconditional=settings.unconditional,
        trigger=trigger,
        backbone=BackboneRecord(
            name=backbone.name, digest=backbone.digest, architecture=backbone.architecture
        ),
        settings=asdict(settings),
        sha256=adapter_digest(weights, prompt, statistics),
        source_digest=manifest.merkle_root,
        items=len(source.items),
        license=source.license,
        author=source.author,
        origin=source.origin,
        attribution=source.attribution,
        versions={name: version(name) for name in ("torch", "diffusers", "transformers", "peft")},
        device=device_class(backbone.device, backbone.dtype),
    )
    return Adapter(source.name, weights, prompt, statistics, record, manifest, tuple(log))


def _check(settings: TrainSettings) -> None:
    if settings.slices != 1:
        raise BadInput(f"slices is {settings.slices}; train_source trains slices, train_adapter one whole")
    for name in ("steps", "batch_size", "rank", "prompt_tokens", "checkpoint_every"):
        if getattr(settings, name) < 1:
            raise BadInput(f"{name} is {getattr(settings, name)}; it takes 1 or more")
    if settings.kind not in get_args(Kind):
        raise BadInput(f"kind {settings.kind!r} is unknown; accepted: {', '.join(get_args(Kind))}")
    if settings.targets not in ("attention", "wide"):
        raise BadInput(f"targets {settings.targets!r} is unknown; accepted: attention, wide")
    if settings.unconditional not in get_args(Unconditional):
        accepted = ", ".join(get_args(Unconditional))
        raise BadInput(f"unconditional {settings.unconditional!r} is unknown; accepted: {accepted}")
    if not 0 < settings.learning_rate < 1:
        raise BadInput(f"learning_rate is {settings.learning_rate}; it takes a number between 0 and 1")
    if not 0 <= settings.caption_dropout < 1:
        raise BadInput(f"caption_dropout is {settings.caption_dropout}; it takes 0 up to, not including, 1")


def _encode(source: Source, backbone: Backbone, settings: TrainSettings, trigger: str) -> _Data:
    side = settings.resolution or backbone.resolution
    if side % backbone.pipe.vae_scale_factor:
        raise BadInput(f"resolution is {side}; it takes a multiple of {backbone.pipe.vae_scale_factor}")
    means: list[list[Tensor]] = [[], []]
    stds: list[list[Tensor]] = [[], []]
    views = 2 if settings.flip else 1
    for start in range(0, len(source.items), 32):
        pictures = [_fit(source.picture(i), side) for i in range(start, min(start + 32, len(source.items)))]
        for view in range(views):
            mean, std = backbone.encode_images([ImageOps.mirror(p) for p in pictures] if view else pictures)
            means[view].append(mean)
            stds[view].append(std)
    captions = tuple(f"{trigger} {item.caption}".strip() for item in source.items)
    unique = sorted(set(captions))
    with torch.no_grad():
        parts = [*_encode_captions(unique, backbone), backbone.encode_negative("", 1)]
    place = torch.tensor([*(unique.index(c) for c in captions), len(unique)])
    pooled = (
        torch.cat([p.pooled for p in parts if p.pooled is not None]) if parts[0].pooled is not None else None
    )
    return _Data(
        torch.stack([torch.cat(view) for view in means[:views]]),
        torch.stack([torch.cat(view) for view in stds[:views]]),
        captions,
        turns(source),
        torch.cat([p.embeds for p in parts])[place.to(backbone.device)],
        None if pooled is None else pooled[place.to(backbone.device)],
        None if pooled is None else torch.tensor([side, side, 0, 0, side, side], device=backbone.device),
    )


def turns(source: Source) -> Tensor:
    """Items as training draws them, (sum of repeats,): each as often as kohya's folder name asks for, else once.

    The name is part of the file's, so the manifest's digest knows of it.
    """
    return torch.tensor([i for i, item in enumerate(source.items) for _ in range(item.repeats)])


def _encode_captions(captions: list[str], backbone: Backbone) -> list[PromptEmbeds]:
    """Embeddings of the captions in their order, 64 at a time."""
    return [backbone.encode_prompts(captions[i : i + 64]) for i in range(0, len(captions), 64)]


def _fit(picture: Image.Image, side: int) -> Image.Image:
    return ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)


def _generator(settings: TrainSettings, source_digest: str, step: int) -> torch.Generator:
    """Counter-based randomness: a function of the seed, the source and the step, and of nothing else."""
    key = hashlib.sha256(f"{settings.seed} {source_digest} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))


def _new_parameters(
    backbone: Backbone, settings: TrainSettings, source_digest: str
) -> dict[str, nn.Parameter]:
    """Fresh fp32 parameters by name: `lora.<module>.<part>` in the UNet, `prompt.<text encoder>` beside it."""
    generator = _generator(settings, source_digest, -1)
    parameters: dict[str, nn.Parameter] = {}
    if "prompt" in settings.kind:
        for name in ("text_encoder", "text_encoder_2"):
            encoder = getattr(backbone.pipe, name, None)
            if encoder is not None:
                table = encoder.get_input_embeddings().weight
                start = torch.randn(settings.prompt_tokens, table.shape[1], generator=generator)
                parameters[f"prompt.{name}"] = nn.Parameter(
                    (start * table.float().std().cpu()).to(backbone.device)
                )
    if "lora" in settings.kind:
        names = lora.target_modules(backbone.unet, settings.targets)
        lora.new_layers(backbone.unet, LORA_NAME, dict.fromkeys(names, settings.rank))
        lora.activate(backbone.unet, LORA_NAME, trainable=True)
        for name, layer in lora.lora_layers(backbone.unet):
            a, b = layer.lora_A[LORA_NAME].weight, layer.lora_B[LORA_NAME].weight
            bound = 1 / math.sqrt(a[0].numel())
            a.data.copy_((torch.rand(a.shape, generator=generator) * 2 - 1) * bound)
            b.data.zero_()
            parameters[f"lora.{name}.lora_A"], parameters[f"lora.{name}.lora_B"] = a, b
    return parameters


def _soft_prompt(parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """The learned tokens by text encoder; {} where only a LoRA is trained."""
    return {n.removeprefix("prompt."): p for n, p in parameters.items() if n.startswith("prompt.")}


def _optimize(
    parameters: dict[str, nn.Parameter],
    data: _Data,
    backbone: Backbone,
    settings: TrainSettings,
    source_digest: str,
    checkpoint: Path | None,
    on_step: OnStep | None,
) -> list[dict[str, float]]:
    rates = {
        "lora": settings.learning_rate,
        "prompt": 10 * settings.learning_rate,
    }  # embeddings move in larger steps
    groups = [{"params": [p], "rate": rates[n.partition(".")[0]], "lr": 0.0} for n, p in parameters.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2)
    identity = {"backbone": backbone.digest, "source": source_digest, "settings": asdict(settings)}
    step, log = load_checkpoint(checkpoint, parameters, optimizer, identity) if checkpoint else (0, [])
    while step < settings.steps:
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * _schedule(step, settings.steps)
        loss = _loss(parameters, data, backbone, settings, _generator(settings, source_digest, step))
        if not loss.isfinite():
            raise RunFailed(
                f"the loss at step {step} is {loss.item()}; use a lower learning_rate or dtype float32"
            )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        log.append({"step": step, "loss": round(loss.item(), 6)})
        if checkpoint and (step % settings.checkpoint_every == 0 or step == settings.steps):
            save_checkpoint(checkpoint, step, parameters, optimizer, identity, log)
        if on_step:
            on_step(step, loss.item())
    return log


def _schedule(step: int, steps: int) -> float:
    """Warm-up over 5 % of the steps, then a cosine to zero."""
    warm_up = max(1, steps // 20)
    return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _loss(
    parameters: dict[str, nn.Parameter],
    data: _Data,
    backbone: Backbone,
    settings: TrainSettings,
    generator: torch.Generator,
) -> Tensor:
    """One batch's min-SNR weighted squared error, in eps or v as the backbone predicts."""
    items = data.turns[torch.randint(len(data.turns), (settings.batch_size,), generator=generator)]
    views = torch.randint(data.mean.shape[0], (settings.batch_size,), generator=generator)
    t = torch.randint(len(backbone.alphas_cumprod), (settings.batch_size,), generator=generator)
    mean, std = data.mean[views, items], data.std[views, items]
    x_0 = (
        mean + std * torch.randn(mean.shape, generator=generator)
    ) * backbone.pipe.vae.config.scaling_factor
    noise = torch.randn(x_0.shape, generator=generator)
    drop = torch.rand(settings.batch_size, generator=generator) < settings.caption_dropout
    if settings.unconditional == "backbone":
        drop[:] = False  # the bare backbone answers for the empty caption
    abar = backbone.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * x_0 + (1 - abar).sqrt() * noise
    epsilon = backbone.prediction_type == "epsilon"
    target = noise if epsilon else abar.sqrt() * noise - (1 - abar).sqrt() * x_0
    embeds, added = _conditioning(parameters, data, backbone, items, drop)
    device = backbone.device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.mixed_precision == "bf16")
    with autocast:
        sample = x_t.to(device) if settings.mixed_precision == "bf16" else x_t.to(device, backbone.dtype)
        predicted = backbone.unet(sample, t.to(device), embeds, added_cond_kwargs=added, return_dict=False)[0]
    difference: Tensor = predicted.float().cpu() - target
    error = difference.square().mean((1, 2, 3))
    # Both predictions weigh the error of x_0: eps by SNR, v by SNR + 1. Beyond min_snr that is held, so that the many
    # nearly clean steps do not drown the noisy ones, where the caption decides what is drawn.
    snr = (abar / (1 - abar)).flatten()
    weight_of_x_0 = snr if epsilon else snr + 1
    held = weight_of_x_0.clamp(max=settings.min_snr) if settings.min_snr > 0 else weight_of_x_0
    return (error * held / weight_of_x_0).mean()


def _conditioning(
    parameters: dict[str, nn.Parameter], data: _Data, backbone: Backbone, items: Tensor, drop: Tensor
) -> tuple[Tensor, dict[str, Tensor] | None]:
    place = torch.where(drop, len(data.captions), items).to(backbone.device)
    embeds, pooled = data.embeds[place], None if data.pooled is None else data.pooled[place]
    soft = _soft_prompt(parameters)
    if soft:
        encoded = backbone.encode_prompts([data.captions[int(i)] for i in items], soft)
        kept = ~drop.to(backbone.device)
        embeds = torch.where(kept[:, None, None], encoded.embeds, embeds)
        pooled = (
            None
            if pooled is None or encoded.pooled is None
            else torch.where(kept[:, None], encoded.pooled, pooled)
        )
    embeds = embeds.to(backbone.dtype)
    if pooled is None or data.time_ids is None:
        return embeds, None
    time_ids = data.time_ids.to(backbone.dtype).expand(len(items), -1)
    return embeds, {"text_embeds": pooled.to(backbone.dtype), "time_ids": time_ids}


@torch.no_grad()
def _statistics(source: Source, backbone: Backbone, data: _Data) -> Statistics:
    """What the router may know of this source, from its own pictures and captions (without the trigger)."""
    captions = sorted({item.caption for item in source.items})
    means = [part.mean.float().cpu() for part in _encode_captions(captions, backbone)]
    prototypes, share = caption_prototypes(torch.cat(means))
    scale = backbone.pipe.vae.config.scaling_factor
    latent_mean, latent_var, factor = latent_covariance(data.mean[0] * scale, data.std[0] * scale)
    return Statistics(len(source.items), latent_mean, latent_var, prototypes, share, factor)
