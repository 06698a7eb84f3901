"""The levers that save work, each by itself: what a step leaves out, and what that costs in exactness.

unconditional_from the bare backbone's row is shared by all sources that were trained for it   exact where recorded
top_k, min_weight  only the largest weights are run                        error bounded by mass times spread
draw               one source is drawn by its weight, once or at each call                     exact in distribution
guidance_start/stop  guidance only in a part of the noise levels                               another guidance
cache_interval     deep features every few steps (feature_cache.py)                            an approximation
reuse_text         keys and values of a text once a run (text_memory.py); on unless switched off          exact
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from promptcdm.errors import BadInput
from promptcdm.settings import BranchName, DrawName


@dataclass(frozen=True)
class Levers:
    """The defaults leave nothing out but what is computed already."""

    top_k: int = 0
    min_weight: float = 0.0
    draw: DrawName = ""
    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    unconditional_from: BranchName = "recorded"
    cache_interval: int = 1
    reuse_text: bool = True

    @property
    def drops(self) -> bool:
        """Whether rows are left out for their weight."""
        return self.top_k > 0 or self.min_weight > 0

    def own_unconditional(self, recorded: str) -> bool:
        """Whether a source whose adapter was trained for the branch `recorded` draws its own unconditional row."""
        return (recorded if self.unconditional_from == "recorded" else self.unconditional_from) == "adapter"

    def check(self) -> None:
        """Raise BadInput for a value out of range."""
        if self.top_k < 0:
            raise BadInput(f"top_k is {self.top_k}; it takes 0 (all) or more")
        if not 0 <= self.min_weight < 1:
            raise BadInput(f"min_weight is {self.min_weight}; it takes 0 (all) to below 1")
        if not 0 <= self.guidance_start <= self.guidance_stop <= 1:
            raise BadInput(
                f"guidance_start {self.guidance_start} and guidance_stop {self.guidance_stop} must be in order "
                "within 0 (all noise) to 1 (the picture)"
            )
        if self.cache_interval < 1:
            raise BadInput(f"cache_interval is {self.cache_interval}; it takes 1 (no cache) or more")
        for name, accepted in (("draw", get_args(DrawName)), ("unconditional_from", get_args(BranchName))):
            if getattr(self, name) not in accepted:
                words = ", ".join(word or '""' for word in accepted)
                raise BadInput(f"{name} is {getattr(self, name)!r}; accepted: {words}")
        if self.draw and self.drops:
            raise BadInput("draw leaves one source already: it does not go with top_k or min_weight")
