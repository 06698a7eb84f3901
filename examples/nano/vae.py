"""Train nano's autoencoder: 64 x 64 x 3 pixels to 8 x 8 x 16 latents, 8 times smaller a side as in Stable Diffusion.

    python examples/nano/vae.py --pictures DIR --run DIR --steps N     (resumes from DIR)

Loss: L1 + L2 of pixels, L1 of pixel differences (edges), and a small KL term. No perceptual network: none ships.
"""

from __future__ import annotations

import argparse
import json
import math
from multiprocessing import get_context
from os import cpu_count
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from optimizer import MatrixOptimizer
from pictures import Sprite, augment, load_sprites, recolour
from safetensors.torch import load_file, save_file
from schedule import Schedule, add_options
from torch import Tensor

KL_WEIGHT = 1e-4
LEARNING_RATE = 1e-3
CHUNK = 256  # pictures that one process makes at a time


def new_vae() -> AutoencoderKL:
    """The architecture, 3.9 M parameters."""
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=64,
    )


def chunk(number: int, sprites: list[Sprite]) -> np.ndarray:
    """Pictures (CHUNK, 64, 64, 3), the same whenever asked for: whole sprites, recoloured ones, small ones in pairs."""
    rng = np.random.default_rng([1, number])
    pictures = []
    for _ in range(CHUNK):
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
    return np.stack(pictures)


def pool(sprites: list[Sprite], chunks: int) -> Tensor:
    """The pictures to train on, (N, 3, 64, 64) uint8, made by all cores."""
    with get_context("fork").Pool(cpu_count()) as processes:
        made = processes.starmap(chunk, ((number, sprites) for number in range(chunks)), chunksize=8)
    return torch.from_numpy(np.concatenate(made)).permute(0, 3, 1, 2).contiguous()


def loss_of(vae: AutoencoderKL, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Training loss and reconstruction MSE of pixels x in [-1, 1], (B, 3, 64, 64)."""
    with torch.autocast(x.device.type, torch.bfloat16):
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator, device=x.device)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
    y = y.float()
    mse = (y - x).square().mean()
    edges = (y.diff(dim=-1) - x.diff(dim=-1)).abs().mean() + (y.diff(dim=-2) - x.diff(dim=-2)).abs().mean()
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return mse + 0.5 * (y - x).abs().mean() + 0.5 * edges + KL_WEIGHT * kl, mse


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pictures", type=Path, nargs="+", required=True, help="folders made by examples/emoji/build.py"
    )
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=160, help=f"pictures made beforehand, times {CHUNK}")
    add_options(parser, steps=5000, batch=32, cooldown=0.6)
    args = parser.parse_args()
    args.run.mkdir(parents=True, exist_ok=True)
    pictures = pool(load_sprites(args.pictures), args.chunks).to(args.device)
    vae = new_vae().to(args.device)
    optimizer = MatrixOptimizer(vae, LEARNING_RATE)
    schedule, step = Schedule(args.steps, args.minutes, args.cooldown), 0
    if (args.run / "vae.json").exists():
        kept = json.loads((args.run / "vae.json").read_text())
        step, schedule.before = kept["step"], kept["seconds"]
        vae.load_state_dict(load_file(args.run / "vae.safetensors"))
        optimizer.load(load_file(args.run / "vae-optimizer.safetensors"))
    generator = torch.Generator(args.device)
    mean_mse = None
    while schedule.share_left(step):
        generator.manual_seed(step)
        rows = torch.randint(len(pictures), (args.batch,), generator=generator, device=args.device)
        loss, mse = loss_of(vae, pictures[rows].float() / 127.5 - 1, generator)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step(LEARNING_RATE * schedule.rate(step))
        step += 1
        mse = mse.detach()
        mean_mse = mse if mean_mse is None else mean_mse.lerp(mse, 0.02)
        if step % 100 == 0:
            row = {"stage": "vae", "step": step, "pictures": step * args.batch}
            row |= {
                "psnr": round(10 * math.log10(4 / mean_mse.item()), 2),
                "seconds": round(schedule.seconds),
            }
            print(json.dumps(row), flush=True)
            with (args.run / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        if step % 1000 == 0:
            save(args.run, vae, optimizer, step, schedule)
    save(args.run, vae, optimizer, step, schedule)


def save(run: Path, vae: AutoencoderKL, optimizer: MatrixOptimizer, step: int, schedule: Schedule) -> None:
    """Write weights, the optimizer's state and how far the run is."""
    for name, tensors in (("vae", vae.state_dict()), ("vae-optimizer", optimizer.state())):
        save_file({n: t.contiguous() for n, t in tensors.items()}, run / f"{name}.partial")
        (run / f"{name}.partial").replace(run / f"{name}.safetensors")
    (run / "vae.json").write_text(json.dumps({"step": step, "seconds": schedule.seconds}))


if __name__ == "__main__":
    main()
