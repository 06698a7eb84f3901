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
from tokenizer import MAX_LENGTH
from torch import Tensor
from transformers import CLIPTokenizer
from wordings import caption

COPIES = 12  # shifted and scaled copies of each sprite; the first is the sprite itself, and is drawn half of the time
SHARES = (0.62, 0.10, 0.28)  # of a batch: sprites, recoloured sprites, scenes
# People in every trade and gender, signs and icons are half of the sprites and few shapes: each is drawn less often.
GROUP_WEIGHTS = {"people-body": 0.2, "symbols": 0.2, "own": 0.2}
SCENES = 90_000
COLOURED = 18_000
WORDINGS = 64  # captions of a sprite, made once
UNCONDITIONAL = 0.1  # share of empty captions


@dataclass(frozen=True)
class LatentSet:
    """Moments of every training picture and the tokens of what may be said of it, on one device."""

    mean: Tensor  # (N, 16, 8, 8) float16
    std: Tensor  # (N, 16, 8, 8) float16
    scale: float  # 1 / standard deviation of all latents
    tokens: Tensor  # (captions, MAX_LENGTH) int16; the first is the empty caption
    said: Tensor  # (N, 2): the first of its captions, and how many they are
    starts: Tensor  # (4,): first row of sprites, recoloured sprites, scenes, and N
    shares: Tensor  # (sprites,) cumulative probability of each sprite, by its group's weight

    def draw(self, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Scaled latents x_0 (B, 16, 8, 8), drawn from the posterior, and their tokens (B, MAX_LENGTH)."""
        device = self.mean.device

        def uniform() -> Tensor:
            return torch.rand(count, generator=random, device=device)

        kinds = torch.bucketize(uniform(), torch.tensor(SHARES, device=device).cumsum(0)[:2])
        low, high = self.starts[kinds], self.starts[kinds + 1]
        rows = low + (uniform() * (high - low)).long()
        sprite = torch.searchsorted(self.shares, uniform() * self.shares[-1]).clamp_max(len(self.shares) - 1)
        copy = (uniform() * COPIES).long() * (uniform() < 0.5)
        rows = torch.where(kinds == 0, sprite * COPIES + copy, rows)
        first, many = self.said[rows].unbind(1)
        captions = torch.where(uniform() < UNCONDITIONAL, 0, first + (uniform() * many).long())
        noise = torch.randn(count, *self.mean.shape[1:], generator=random, device=device)
        x_0 = (self.mean[rows].float() + self.std[rows].float() * noise) * self.scale
        return x_0, self.tokens[captions].long()


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Moments of uint8 pictures, float16."""
    means, stds = [], []
    for start in range(0, len(pictures), 256):
        x = torch.from_numpy(np.stack(pictures[start : start + 256])).to(vae.device)
        posterior = vae.encode(x.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist
        means.append(posterior.mean.half().cpu())
        stds.append(posterior.std.half().cpu())
    return torch.cat(means), torch.cat(stds)


def latent_scale(run: Path) -> float:
    """1 / standard deviation of the latents of a run: the autoencoder's `scaling_factor`."""
    return 1.0 / load_file(run / "latents.safetensors")["mean"].float().std().item()


def latent_set(folders: list[Path], vae: AutoencoderKL, tokenizer: CLIPTokenizer, run: Path) -> LatentSet:
    """Encode everything, or read what an earlier start of this run encoded; on the autoencoder's device."""
    if not (run / "latents.json").exists():
        _make(folders, vae, run)
    moments = load_file(run / "latents.safetensors")
    index = json.loads((run / "latents.json").read_text(encoding="utf-8"))
    tokens, said = _captions(index["texts"], tokenizer)
    shares = np.cumsum([GROUP_WEIGHTS.get(group, 1.0) for group in index["groups"]])
    device = vae.device
    return LatentSet(
        moments["mean"].to(device),
        moments["std"].to(device),
        latent_scale(run),
        tokens.to(device),
        said[torch.tensor(index["text_of"])].to(device),
        torch.tensor(index["starts"], device=device),
        torch.from_numpy(shares).float().to(device),
    )


def _captions(texts: list[list[str]], tokenizer: CLIPTokenizer) -> tuple[Tensor, Tensor]:
    """Tokens of all captions, and (texts, 2) where each text's begin and how many they are."""
    rng = np.random.default_rng(6)
    captions, said = [""], []
    for text in texts:
        many = 1 if text[0].startswith("=") else WORDINGS
        said.append((len(captions), many))
        captions += [caption(tuple(text), rng) for _ in range(many)]
    tokens = tokenizer(
        captions, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    )
    return tokens.input_ids.short(), torch.tensor(said)


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
