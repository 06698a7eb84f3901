"""Train nano's autoencoder: 64 x 64 x 3 pixels to 8 x 8 x 16 latents, 8 times smaller a side as in Stable Diffusion.

    python examples/nano/vae.py --pictures DIR --run DIR --steps N     (resumes from DIR)
    python examples/nano/vae.py ... --decoder-only                     (latents unchanged, better pictures)

Loss: L1 + L2 of pixels, L1 of pixel differences (edges), and a small KL term. No perceptual network: none ships.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from pictures import Sprite, augment, load_sprites, recolour
from safetensors.torch import load_file, save_file
from torch import Tensor

BATCH = 32
KL_WEIGHT = 1e-4


def new_vae() -> AutoencoderKL:
    """The architecture, 2.8 M parameters."""
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=64,
    )


def batch_at(step: int, sprites: list[Sprite]) -> Tensor:
    """Pictures of one step, the same whenever asked for: whole sprites, recoloured ones, and small ones in pairs."""
    rng = np.random.default_rng([1, step])
    pictures = []
    for _ in range(BATCH):
        pixels = augment(sprites[rng.integers(len(sprites))].pixels, rng, strength=2.0)
        if rng.random() < 0.4:
            pixels = recolour(pixels, rng)
        if rng.random() < 0.25:  # two half-size sprites, as in scenes
            other = sprites[rng.integers(len(sprites))].pixels
            halves = np.full((64, 64, 3), 255, np.uint8)
            y, x = rng.integers(0, 33, 2)
            halves[y : y + 32, x % 8 : x % 8 + 32] = pixels[::2, ::2] // 2 + pixels[1::2, 1::2] // 2
            y = rng.integers(0, 33)
            halves[y : y + 32, 32:64] = np.minimum(
                halves[y : y + 32, 32:64], other[::2, ::2] // 2 + other[1::2, 1::2] // 2
            )
            pixels = halves
        pictures.append(pixels)
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def loss_of(vae: AutoencoderKL, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training loss and reconstruction MSE of pixels x in [-1, 1], (B, 3, 64, 64)."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
    y = y.float()
    mse = (y - x).square().mean()
    edges = (y.diff(dim=-1) - x.diff(dim=-1)).abs().mean() + (y.diff(dim=-2) - x.diff(dim=-2)).abs().mean()
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return mse + 0.5 * (y - x).abs().mean() + 0.5 * edges + KL_WEIGHT * kl, mse


def learning_rate(step: int, steps: int) -> float:
    """Warm-up of 200 steps, then cosine to a hundredth."""
    return (
        1e-3
        * min(1.0, (step + 1) / 200)
        * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1, step / steps))))
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pictures", type=Path, nargs="+", required=True, help="folders made by examples/emoji/build.py"
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--decoder-only", action="store_true")
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    sprites = load_sprites(args.pictures)
    vae, name = new_vae(), "decoder" if args.decoder_only else "vae"
    if args.decoder_only:
        vae.load_state_dict(load_file(args.run / "vae.safetensors"))
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.98), weight_decay=1e-4, fused=True)
    step = 0
    if (args.run / f"{name}.json").exists():
        step = json.loads((args.run / f"{name}.json").read_text())["step"]
        vae.load_state_dict(load_file(args.run / f"{name}.safetensors"))
        moments = load_file(args.run / f"{name}-optimizer.safetensors")
        for i, p in enumerate(trained):
            optimizer.state[p] = {k: moments[f"{i}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")}
    started, mean_mse = time.time(), None
    while step < args.steps:
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps) * (0.5 if args.decoder_only else 1)
        loss, mse = loss_of(vae, batch_at(step, sprites), generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        mean_mse = mse.item() if mean_mse is None else 0.98 * mean_mse + 0.02 * mse.item()
        step += 1
        if step % 100 == 0 or step == args.steps:
            row = {
                "stage": name,
                "step": step,
                "psnr": round(10 * math.log10(4 / mean_mse), 2),
                "seconds": round(time.time() - started),
            }
            print(json.dumps(row), flush=True)
            with (args.run / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        if step % 500 == 0 or step == args.steps:
            save_file(vae.state_dict(), args.run / f"{name}.safetensors")
            state = {
                f"{i}.{k}": optimizer.state[p][k].clone()
                for i, p in enumerate(trained)
                for k in ("step", "exp_avg", "exp_avg_sq")
            }
            save_file(state, args.run / f"{name}-optimizer.safetensors")
            (args.run / f"{name}.json").write_text(json.dumps({"step": step}))


if __name__ == "__main__":
    main()
