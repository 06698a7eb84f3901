"""What a composition predicts on fixed noise: the error on noised pictures, and how much a prompt moves it.

    e_k(x_0, c) = mean over the latents of (eps(x_t, t, c) - n_k)^2,    x_t = sqrt(a) x_0 + sqrt(1 - a) n_k
    m(c)        = mean over k of || eps(n_k, T, c) - eps(n_k, T, "") ||             (Wen et al. 2024, "Detecting,
                  explaining, and mitigating memorization in diffusion models", their first step)

n_k depends on k and the seed alone: every picture, prompt and composition meets the same noise, so that differences
are theirs. Both go through `ComposedUNet`, as pictures do.

    x_0   latents, scaled      (I, C, h, w)         K   noise levels times draws
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from promptcdm.backbone import Backbone
from promptcdm.composed_unet import ComposedUNet
from promptcdm.errors import BadInput


def clean_latents(backbone: Backbone, images: Sequence[Image.Image]) -> Tensor:
    """x_0 (I, C, h, w): the VAE's mean of each picture, cropped to a square of the backbone's size, scaled; fp32."""
    side = backbone.resolution
    fitted = [ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS) for image in images]
    mean, _ = backbone.encode_images(fitted)
    return mean * float(backbone.pipe.vae.config.scaling_factor)


@torch.no_grad()
def denoising_errors(
    composed: ComposedUNet,
    x_0: Tensor,
    captions: Sequence[str],
    timesteps: Sequence[int],
    *,
    seed: int = 0,
    batch_size: int = 32,
) -> Tensor:
    """Errors (I, K) of I pictures with their captions at K timesteps, each with a noise of its own.

    `composed` must be without guidance (`guidance_scale=1`). Raises BadInput where it is not, or captions are missing.
    """
    if len(captions) != len(x_0):
        raise BadInput(f"{len(x_0)} pictures and {len(captions)} captions; give one each")
    if composed.guidance_scale > 1:
        raise BadInput(f"guidance_scale is {composed.guidance_scale}; the error is of the unguided noise: 1")
    backbone = composed.backbone
    order = sorted(timesteps, reverse=True)  # noise falls within a run
    parts = []
    for start in range(0, len(x_0), batch_size):
        pictures = x_0[start : start + batch_size].to(backbone.device, backbone.dtype)
        texts = composed.encode(captions[start : start + batch_size])
        errors = []
        for k, t in enumerate(order):
            noise = noise_of(x_0.shape[1:], seed, k).to(pictures)
            a = backbone.alpha_bar(torch.tensor([t])).to(pictures)
            x_t = a.sqrt() * pictures + (1 - a).sqrt() * noise
            eps = predicted_noise(composed, x_t, t, texts)
            errors.append((eps - noise).float().square().mean((1, 2, 3)).cpu())
        parts.append(torch.stack(errors, 1))
    return torch.cat(parts)


@torch.no_grad()
def text_noise(
    composed: ComposedUNet,
    captions: Sequence[str],
    shape: Sequence[int],
    *,
    draws: int = 4,
    seed: int = 0,
    batch_size: int = 16,
) -> Tensor:
    """m(c) (I,) of I captions over pure noise of the shape (C, h, w).

    `composed` must guide (`guidance_scale` above 1), so that it runs the row without text too: with
    `Levers(unconditional_from="adapter")` through the adapter itself, as in the paper. Raises BadInput where not.
    """
    if not composed.guidance_scale > 1:
        raise BadInput(f"guidance_scale is {composed.guidance_scale}; the rows without text need one above 1")
    backbone = composed.backbone
    t = len(backbone.alphas_cumprod) - 1
    parts = []
    for start in range(0, len(captions), batch_size):
        texts = composed.encode(captions[start : start + batch_size])
        count = len(captions[start : start + batch_size])
        total = torch.zeros(count)
        for k in range(draws):
            x_t = noise_of(shape, seed, k).to(backbone.device, backbone.dtype).expand(count, *shape)
            bare, told = predicted_noise(composed, torch.cat([x_t, x_t]), t, texts).chunk(2)
            total += (told - bare).float().flatten(1).norm(dim=1).cpu()
        parts.append(total / draws)
    return torch.cat(parts)


def noise_of(shape: Sequence[int], seed: int, k: int) -> Tensor:
    """Noise k (C, h, w), of nothing but its number and the seed."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + k)
    return torch.randn(tuple(shape), generator=generator)


def predicted_noise(composed: ComposedUNet, x_t: Tensor, t: int, texts: dict[str, Any]) -> Tensor:
    """eps (n or 2n, C, h, w) of the composition; `texts` is what `encode` returned.

    The UNet computes in its own precision; eps is taken from its prediction in that of `x_t`.
    """
    backbone = composed.backbone
    embeds = [texts[name] for name in ("negative_prompt_embeds", "prompt_embeds") if name in texts]
    pooled = [
        texts[name] for name in ("negative_pooled_prompt_embeds", "pooled_prompt_embeds") if name in texts
    ]
    added = {"text_embeds": torch.cat(pooled), "time_ids": _time_ids(backbone, len(x_t))} if pooled else None
    sample = x_t.to(backbone.dtype)
    (predicted,) = composed(sample, t, torch.cat(embeds), added_cond_kwargs=added, return_dict=False)
    alpha_bar = backbone.alpha_bar(torch.tensor([t])).to(x_t)
    return backbone.as_noise(predicted, x_t, alpha_bar)


def _time_ids(backbone: Backbone, rows: int) -> Tensor:
    """SDXL's sizes: a square of the backbone's own, uncropped."""
    side = backbone.resolution
    ids = torch.tensor([side, side, 0, 0, side, side], dtype=backbone.dtype, device=backbone.device)
    return ids.expand(rows, -1)
