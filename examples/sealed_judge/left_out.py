"""How well drawings that the training left out are named, while it trains."""

from __future__ import annotations

import random

import torch
from pack import Pack
from torch import Tensor, nn

from promptcdm.known_pictures import CHOICES
from promptcdm.sealed_network import crops, ink_boxes

SEED = 37


@torch.inference_mode()
def measure(model: nn.ModuleDict, pack: Pack, covered: Tensor) -> dict[str, float]:
    """Shares right: among all concepts, and among 20 labels of which no other shares a word with the right one."""
    drawn, rng = pack.left_out, random.Random(SEED)
    first, of_20 = [], []
    words = [set(label.split()) for label in pack.labels]
    for start in range(0, len(drawn.labels), 256):
        pictures = drawn.pixels[start : start + 256].float() / 255
        shares = model["namer"](crops(pictures, ink_boxes(pictures)))[0].softmax(1)
        labels = drawn.labels[start : start + 256]
        first.append(covered[labels].gather(1, shares.argmax(1, keepdim=True)))
        choices = []
        for own in labels.tolist():
            others = rng.sample(range(len(words)), 4 * CHOICES)
            choices.append([own, *(other for other in others if not words[other] & words[own])][:CHOICES])
        called = (covered[torch.tensor(choices, device=labels.device)].float() @ shares[:, :, None])[..., 0]
        of_20.append(called.argmax(1) == 0)
    return {
        "left out right": round(torch.cat(first).float().mean().item(), 4),
        f"left out right of {CHOICES}": round(torch.cat(of_20).float().mean().item(), 4),
    }
