"""How far a training is, by steps or by the clock, and what learning rate that asks for."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field


@dataclass
class Schedule:
    """Full rate after a warm-up, then down to zero, linearly, over the last part of the run.

    By the clock where `minutes` is given (a machine that is lent for so long, shared with others, does an unknown
    number of steps), else by `steps`. What an earlier part of a resumed run took counts: `before`, in seconds.
    """

    steps: int
    minutes: float | None = None
    cooldown: float = 0.4  # last part of the run over which the rate falls
    warmup: int = 200  # steps
    before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Training time so far, of all parts."""
        return self.before + time.monotonic() - self.started

    def share_left(self, step: int) -> float:
        """1 at the start, 0 at the end."""
        done = step / self.steps if self.minutes is None else self.seconds / (60 * self.minutes)
        return max(0.0, 1.0 - done)

    def rate(self, step: int) -> float:
        """What the highest learning rate is multiplied by."""
        falling = min(1.0, self.share_left(step) / self.cooldown) if self.cooldown else 1.0
        return min(1.0, (step + 1) / self.warmup) * falling


def add_options(parser: argparse.ArgumentParser, steps: int, batch: int, cooldown: float) -> None:
    """The options that every training script here has."""
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--minutes", type=float, help="train for so long instead of --steps")
    parser.add_argument("--cooldown", type=float, default=cooldown, help="last share with a falling rate")
    parser.add_argument("--batch", type=int, default=batch, help="pictures a step")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
