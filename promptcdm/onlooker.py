"""Who looks on while a source is trained: handed each row of the log, and now and then the adapter as it is.

It is handed copies, while the adapter in training is switched off, and every random number of training has its own
key. So whatever it does changes no byte of what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from promptcdm.adapter import Adapter


@dataclass(frozen=True)
class Onlooker:
    """`on_row` is called after every step, `on_adapter(step, adapter)` after each `every`-th and the last."""

    on_row: Callable[[Mapping[str, float]], None] = lambda row: None
    every: int = 0  # steps; 0: no adapter is handed out
    on_adapter: Callable[[int, Adapter], None] = lambda step, adapter: None

    def wants(self, step: int, steps: int) -> bool:
        """Whether the adapter is to be handed out after this step of so many."""
        return self.every > 0 and (step % self.every == 0 or step == steps)

    def after(self, steps: int) -> Onlooker:
        """The same, for a training that comes after so many steps of another: it is told numbers that go on."""
        if not steps:
            return self
        return replace(
            self,
            on_row=lambda row: self.on_row({**row, "step": row["step"] + steps}),
            on_adapter=lambda step, adapter: self.on_adapter(step + steps, adapter),
        )
