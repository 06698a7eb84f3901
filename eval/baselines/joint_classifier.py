"""The classifier p(i | x_t, alpha_bar) of the paper, trained on all sources' latents together.

For comparison only. One network has seen every source, so it outlives forgetting: deleting a source's adapter leaves
what the classifier learnt from that source, and leaving its class out of the softmax hides it without removing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from promptcdm.router import Router, per_row

LEVELS = (-6.0, 6.0)  # log-SNR, drawn evenly in training


class JointClassifier(nn.Module):
    """Logits (B, N) from latents pooled to a grid and the noise level."""

    def __init__(self, channels: int, grid: int, n: int, width: int = 64) -> None:
        super().__init__()
        self.grid = grid
        self.layers = nn.Sequential(
            nn.Linear(channels * grid * grid + 3, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, n),
        )

    def forward(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """x_t (B, C, H, W), alpha_bar (B,)."""
        a = alpha_bar.float()
        level = torch.stack([a.sqrt(), (1 - a).sqrt(), a.logit(eps=1e-6) / 6], dim=1)
        pooled = F.adaptive_avg_pool2d(x_t.float(), self.grid).flatten(1)
        logits: Tensor = self.layers(torch.cat([pooled, level], dim=1))
        return logits


def train_joint_classifier(
    latents: Sequence[Tensor], grid: int, *, steps: int = 1000, batch: int = 256, seed: int = 0
) -> JointClassifier:
    """Cross-entropy on noised latents of the N sources, (I_i, C, H, W) each; every source is drawn equally often."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = JointClassifier(latents[0].shape[1], grid, len(latents))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=5e-3)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        source = torch.arange(batch) % len(latents)
        drawn = [
            torch.randint(len(x), (int((source == i).sum()),), generator=generator)
            for i, x in enumerate(latents)
        ]
        x_0 = torch.cat([x[d].float() for x, d in zip(latents, drawn, strict=True)])
        low, high = LEVELS
        a = (low + (high - low) * torch.rand(batch, generator=generator)).sigmoid()
        signal, noise = a.sqrt().reshape(-1, 1, 1, 1), (1 - a).sqrt().reshape(-1, 1, 1, 1)
        x_t = signal * x_0 + noise * torch.randn(x_0.shape, generator=generator)
        loss = F.cross_entropy(classifier(x_t, a), source.sort().values)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        slower.step()
    return classifier.eval()


def joint_classifier_router(classifier: JointClassifier, prior: Tensor) -> Router:
    """w ∝ prior softmax(classifier): its training gave every source the same share."""

    @torch.no_grad()
    def route(state: Any, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, Any]:
        return (per_row(prior, len(x_t)).log() + classifier(x_t, alpha_bar)).softmax(1), state

    return Router(route)
