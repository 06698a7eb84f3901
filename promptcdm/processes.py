"""Several processes that train one source together, as `accelerate launch` and torchrun start them.

Each draws the same random numbers of a step, for they have keys, and runs its own part of the step's rows; the
gradients are summed over the processes. So they compute what one process does, but for the order of sums.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from torch import Tensor, distributed

from promptcdm.errors import BadInput


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; one alone is the default."""

    index: int = 0
    count: int = 1

    @property
    def main(self) -> bool:
        """Whether it is the one that writes and shows."""
        return self.index == 0

    def share(self, rows: int) -> slice:
        """Which of so many rows are this process's. Raises BadInput where one would have none."""
        if rows < self.count:
            raise BadInput(
                f"a step has {rows} pictures for {self.count} processes; give a larger batch_size, or fewer processes"
            )
        return slice(rows * self.index // self.count, rows * (self.index + 1) // self.count)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over the processes into each tensor, in one exchange."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def of_main(self, value: float, device: torch.device) -> float:
        """The main process's value, so that all decide alike."""
        if self.count == 1:
            return value
        held = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.broadcast(held, 0)
        return float(held)

    def end(self) -> None:
        """Let go of the others."""
        if self.count > 1:
            distributed.destroy_process_group()


ALONE = Processes()


def these_processes() -> Processes:
    """The processes that the launcher's environment names, connected; one alone where there is no launcher.

    Each gets a GPU of its own where there are any.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return ALONE
    state = PartialState()
    return Processes(state.process_index, state.num_processes)
