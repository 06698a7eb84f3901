"""Progress bars on standard error; where it is no terminal, a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINES = 10  # that a run writes where there is no bar


@contextmanager
def training_bar(title: str, steps: int, batch_size: int) -> Iterator[Callable[[int, float], None]]:
    """Yield `on_step(step, loss)`, which shows the step, the loss, pictures a second and the time left."""
    start: list[float] = []  # time and step of the first call: a resumed run does not start at 0

    with _bar(title, steps) as advance:

        def on_step(step: int, loss: float) -> None:
            if not start:
                start.extend((time.perf_counter(), step))
            seconds = time.perf_counter() - start[0]
            speed = f"{(step - start[1]) * batch_size / seconds:.1f}" if step > start[1] and seconds else "-"
            advance(step, f"loss {loss:.4f}, {speed} images/s")

        yield on_step


@contextmanager
def generation_bar(title: str, pictures: int, steps: int) -> Iterator[Callable[[int, int], None]]:
    """Yield `on_step(picture, step)`, which shows how many of all denoising steps are done."""
    with _bar(title, pictures * steps) as advance:
        yield lambda picture, step: advance(picture * steps + step, f"picture {picture + 1} of {pictures}")


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, words: _line(title, done, total, words)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[words]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total, words="")
        yield lambda done, words: progress.update(task, completed=done, words=words)


def _line(title: str, done: int, total: int, words: str) -> None:
    if done == total or done % max(1, total // LINES) == 0:
        sys.stderr.write(f"{title}: {done} of {total}, {words}\n")
