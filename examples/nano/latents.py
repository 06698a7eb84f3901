"""The training set as VAE moments, made once: sprites, recoloured sprites and scenes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from pictures import augment, load_sprites
from safetensors.torch import load_file, save_file
from scene_set import scenes
from torch import Tensor

COPIES = 6  # shifted and scaled copies of each sprite; the first is the sprite itself, and is drawn half of the time
SHARES = (0.80, 0.06, 0.14)  # of a batch: sprites, recoloured sprites, scenes
# People in every trade and gender, signs and icons are half of the sprites and few shapes: each is drawn less often.
GROUP_WEIGHTS = {"people-body": 0.2, "symbols": 0.2, "own": 0.2}
SCENES = 24_000
COLOURED = 6_000


@dataclass(frozen=True)
class LatentSet:
    """Moments of every training picture and what it shows."""

    mean: Tensor  # (N, 16, 8, 8) float16
    std: Tensor  # (N, 16, 8, 8) float16
    scale: float  # 1 / standard deviation of all latents
    text_of: np.ndarray  # (N,) index into texts
    texts: list[tuple[str, ...]]
    starts: tuple[int, int, int, int]  # first row of sprites, recoloured sprites, scenes, and N
    shares: np.ndarray  # (sprites,) cumulative probability of each sprite, by its group's weight

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Rows of one batch, each kind by its share."""
        kinds = rng.choice(3, count, p=SHARES)
        low, high = np.array(self.starts[:3])[kinds], np.array(self.starts[1:])[kinds]
        rows = low + (rng.random(count) * (high - low)).astype(np.int64)
        sprite = np.searchsorted(self.shares, rng.random(count) * self.shares[-1], side="right")
        copy = rng.integers(0, COPIES, count) * (rng.random(count) < 0.5)
        return np.where(kinds == 0, sprite * COPIES + copy, rows)

    def sample(self, rows: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Scaled latents x_0 (B, 16, 8, 8), drawn from the posterior."""
        index = torch.from_numpy(rows)
        noise = torch.from_numpy(rng.standard_normal((len(rows), *self.mean.shape[1:]), dtype=np.float32))
        return (self.mean[index].float() + self.std[index].float() * noise) * self.scale


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Moments of uint8 pictures, float16."""
    means, stds = [], []
    for start in range(0, len(pictures), 128):
        x = torch.from_numpy(np.stack(pictures[start : start + 128])).permute(0, 3, 1, 2).float() / 127.5 - 1
        posterior = vae.encode(x).latent_dist
        means.append(posterior.mean.half())
        stds.append(posterior.std.half())
    return torch.cat(means), torch.cat(stds)


def latent_set(folders: list[Path], vae: AutoencoderKL, run: Path) -> LatentSet:
    """Encode everything, or read what an earlier start of this run encoded."""
    if not (run / "latents.json").exists():
        _make(folders, vae, run)
    moments = load_file(run / "latents.safetensors")
    index = json.loads((run / "latents.json").read_text(encoding="utf-8"))
    scale = 1.0 / moments["mean"].float().std().item()
    texts = [tuple(text) for text in index["texts"]]
    shares = np.cumsum([GROUP_WEIGHTS.get(group, 1.0) for group in index["groups"]])
    return LatentSet(
        moments["mean"],
        moments["std"],
        scale,
        np.array(index["text_of"]),
        texts,
        tuple(index["starts"]),
        shares,
    )


def _make(folders: list[Path], vae: AutoencoderKL, run: Path) -> None:
    sprites = load_sprites(folders)
    rng = np.random.default_rng(3)
    coloured = scenes(folders, COLOURED, seed=4, kind="colour")
    composed = scenes(folders, SCENES, seed=5)
    pictures = [s.pixels if copy == 0 else augment(s.pixels, rng) for s in sprites for copy in range(COPIES)]
    first = len(pictures)
    pictures += [picture for picture, _ in coloured + composed]
    text_of = [i for i in range(len(sprites)) for _ in range(COPIES)]
    text_of += range(len(sprites), len(sprites) + len(coloured) + len(composed))
    texts = [[s.label, *s.tags] for s in sprites] + [["=" + wording] for _, wording in coloured + composed]
    mean, std = encode(vae, pictures)
    save_file({"mean": mean.contiguous(), "std": std.contiguous()}, run / "latents.safetensors")
    starts = (0, first, first + len(coloured), len(pictures))
    index = {
        "texts": texts,
        "text_of": text_of,
        "starts": starts,
        "groups": [s.group for s in sprites],
        "concepts": sorted({s.concept for s in sprites}),
    }
    (run / "latents.json").write_text(json.dumps(index), encoding="utf-8")
