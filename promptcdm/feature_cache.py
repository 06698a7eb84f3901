"""Feature caching: the deep part of the UNet every few steps, the shallow part at every step.

One cache a row, never shared between sources: a row is known by its source and its place in the pipeline's call. A row
whose features are not of the last full step runs in full.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from promptcdm.engine import Engine, Rows


@dataclass
class FeatureCache:
    """Runs rows on `engine`, all in full at every `interval`-th step; `interval` 1 caches nothing."""

    engine: Engine
    interval: int = 1
    _deep: dict[Hashable, Tensor] = field(default_factory=dict)

    def predict(self, rows: Rows, keys: Sequence[Hashable], step: int) -> tuple[Tensor, Tensor]:
        """Predictions (R, C, h, w), and what each row cost (R,): 1, or a shallow pass's share of the FLOPs."""
        if self.interval <= 1:
            return self.engine.predict(rows)[0], torch.ones(len(rows))
        if step % self.interval == 0:
            self._deep = {}
        old = [r for r, key in enumerate(keys) if key in self._deep]
        new = [r for r, key in enumerate(keys) if key not in self._deep]
        parts, cost = [], torch.ones(len(rows))
        if new:
            eps, deep = self.engine.predict(rows.take(new), keep_deep=True)
            assert deep is not None
            self._deep |= {keys[r]: deep[place : place + 1] for place, r in enumerate(new)}
            parts.append(eps)
        if old:
            cached = replace(rows.take(old), deep=torch.cat([self._deep[keys[r]] for r in old]))
            parts.append(self.engine.predict(cached)[0])
            cost[old] = self.engine.shallow_share(cached)
        order = torch.tensor(new + old).argsort()
        return torch.cat(parts)[order.to(rows.x_t.device)], cost
