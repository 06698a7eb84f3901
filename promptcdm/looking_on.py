"""What is looked at while a source is trained: sample pictures, a grid a time, and a tracker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.errors import BadInput
from promptcdm.generate import draw_pictures, grid, png_bytes
from promptcdm.onlooker import Onlooker
from promptcdm.settings import GenerateSettings, RunSettings, TrainSettings
from promptcdm.source import Source
from promptcdm.tensorfile import write_bytes
from promptcdm.tracker import check_tracker, tracking

CAPTIONS = 4  # of the source, where no prompts are given


def check_run(run: RunSettings) -> None:
    """Raise BadInput for what goes on beside training that cannot."""
    if run.sample_every < 0:
        raise BadInput(f"sample_every is {run.sample_every}; it takes 0 (no samples) or more steps")
    if run.sample_prompts and not run.sample_every:
        raise BadInput(
            "sample_prompts are given and sample_every is 0; say after how many steps they are drawn"
        )
    if run.keep_cache and not run.cache:
        raise BadInput("keep_cache is given without cache; name the folder that is to be kept")
    check_tracker(run.tracker)


def prompts_of(run: RunSettings, source: Source) -> list[str]:
    """What the samples show. A source's trigger is put before each, as in `generate`."""
    given = [text.strip() for text in run.sample_prompts.split("|") if text.strip()]
    return given or list(dict.fromkeys(item.caption for item in source.items))[:CAPTIONS]


def sample_grid(
    adapter: Adapter, prompts: Sequence[str], backbone: Backbone, settings: TrainSettings
) -> Image.Image:
    """A picture of each prompt by this adapter alone, side by side; the same noise for all adapters of a training."""
    drawing = GenerateSettings(
        router="uniform",
        seed=settings.seed,
        height=settings.resolution,
        width=settings.resolution,
    )
    return grid(draw_pictures(prompts, [adapter], backbone=backbone, settings=drawing).images, len(prompts))


@contextmanager
def looking_on(
    source: Source, backbone: Backbone, settings: TrainSettings, run: RunSettings
) -> Iterator[Onlooker | None]:
    """The onlooker that `run` asks for, until the training has ended; None where it asks for none."""
    check_run(run)
    if not (run.sample_every or run.tracker):
        yield None
        return
    folder, prompts = Path(run.samples) / source.name, prompts_of(run, source)
    with tracking(run.tracker, Path(run.tracker_folder), source.name, asdict(settings)) as tracker:

        def on_adapter(step: int, adapter: Adapter) -> None:
            picture = sample_grid(adapter, prompts, backbone, settings)
            folder.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / f"step-{step:06d}.png", png_bytes(picture))
            if tracker:
                tracker.picture("samples", step, picture)

        yield Onlooker(
            on_row=tracker.row if tracker else lambda row: None,
            every=run.sample_every,
            on_adapter=on_adapter,
        )
