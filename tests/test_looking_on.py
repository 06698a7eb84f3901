"""Samples and a tracker beside a training: they show it, and change no byte of what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate.tracking
import pytest
from PIL import Image

from promptcdm import tracker
from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.errors import BadInput
from promptcdm.looking_on import check_run, looking_on, prompts_of, sample_grid
from promptcdm.onlooker import Onlooker
from promptcdm.settings import RunSettings, TrainSettings
from promptcdm.source import Source
from promptcdm.train import train_adapter
from promptcdm.train_slices import train_source

FAST = TrainSettings(steps=4, batch_size=2, rank=2, mixed_precision="no", learning_rate=0.05)


@pytest.mark.parametrize("kind", ["lora", "lora+prompt", "prompt"])
def test_samples_are_of_the_adapter_as_it_is_and_change_nothing(
    birds: Source, backbone: Backbone, tmp_path: Path, kind: str
) -> None:
    settings = replace(FAST, kind=kind, ema_decay=0.9, gradient_checkpointing="on")
    plain = train_adapter(birds, backbone, settings)
    run = RunSettings(sample_every=3, sample_prompts="a red bird| a bird ", samples=str(tmp_path / "samples"))
    with looking_on(birds, backbone, settings, run) as onlooker:
        watched = train_adapter(birds, backbone, settings, onlooker=onlooker)
    assert watched.sha256 == plain.sha256 and watched.record == plain.record
    assert watched.train_log == plain.train_log
    files = sorted((tmp_path / "samples" / "birds").iterdir())
    assert [file.name for file in files] == ["step-000003.png", "step-000004.png"]
    last = sample_grid(plain, ["a red bird", "a bird"], backbone, settings)
    assert Image.open(files[1]).tobytes() == last.tobytes(), "the last sample is what the adapter draws"
    assert Image.open(files[0]).tobytes() != last.tobytes()
    assert last.size == (2 * 32 + 3 * 4, 32 + 2 * 4)


def test_the_captions_of_the_source_are_drawn_where_no_prompts_are_given(birds: Source) -> None:
    captions = [item.caption for item in birds.items]
    assert prompts_of(RunSettings(sample_every=1), birds) == captions[:4]
    twice = replace(birds, items=(birds.items[0], *birds.items))
    assert prompts_of(RunSettings(sample_every=1), twice) == captions[:4]


def test_slices_are_counted_on(birds: Source, backbone: Backbone) -> None:
    seen: list[tuple[str, int]] = []
    onlooker = Onlooker(
        on_row=lambda row: seen.append(("row", int(row["step"]))),
        every=4,
        on_adapter=lambda step, adapter: seen.append((adapter.record.kind, step)),
    )
    adapter = train_source(birds, backbone, replace(FAST, slices=2), onlooker=onlooker)
    assert len(adapter.slices) == 2
    assert [step for what, step in seen if what == "row"] == list(range(1, 9))
    assert [step for what, step in seen if what == "lora"] == [4, 8]


class Noting(accelerate.tracking.GeneralTracker):  # type: ignore[misc]
    """A tracker of accelerate's that keeps what it is told."""

    name = "tensorboard"
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir: Path) -> None:
        super().__init__()
        self.told: list[Any] = [(run_name, logging_dir)]
        RUNS.append(self)

    def start(self) -> None:
        self.told.append("start")

    @property
    def tracker(self) -> object:
        return self

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        self.told.append(values["steps"])

    def log(self, values: Mapping[str, float], step: int | None = None, **kwargs: Any) -> None:
        self.told.append((step, sorted(values)))

    def log_images(self, values: Mapping[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self.told.append((step, {name: picture.shape for name, picture in values.items()}, kwargs))

    def finish(self) -> None:
        self.told.append("finish")


RUNS: list[Noting] = []


def test_a_tracker_is_told_each_row_and_each_grid_and_is_closed(
    birds: Source, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tracker.LOGGER_TYPE_TO_CLASS, "tensorboard", Noting)
    monkeypatch.setitem(tracker._AVAILABLE, "tensorboard", lambda: True)
    settings = replace(FAST, steps=2, held_out=0.4, held_out_every=2)
    folder = tmp_path / "logs"
    run = RunSettings(
        tracker="tensorboard", tracker_folder=str(folder), sample_every=2, samples=str(tmp_path)
    )
    with looking_on(birds, backbone, settings, run) as onlooker:
        train_adapter(birds, backbone, settings, onlooker=onlooker)
    assert RUNS.pop().told == [
        ("birds", folder),
        "start",
        2,
        (1, ["learning_rate", "loss"]),
        (2, ["held_out", "learning_rate", "loss"]),
        (2, {"samples": (1, 40, 148, 3)}, {"dataformats": "NHWC"}),
        "finish",
    ]
    with pytest.raises(RuntimeError), looking_on(birds, backbone, settings, run):
        raise RuntimeError("stopped")
    assert RUNS.pop().told[-1] == "finish"


def test_tensorboards_own_files(
    birds: Source, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    run = RunSettings(tracker="tensorboard", tracker_folder=str(tmp_path / "logs"))
    with looking_on(birds, backbone, FAST, run) as onlooker:
        train_adapter(birds, backbone, FAST, onlooker=onlooker)
    assert any("tfevents" in file.name for file in (tmp_path / "logs" / "birds").iterdir())


def test_what_cannot_be_looked_at_is_told_before_any_work(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]], birds: Source
) -> None:
    monkeypatch.setitem(tracker._AVAILABLE, "wandb", lambda: False)
    with pytest.raises(BadInput, match="pip install wandb"):
        check_run(RunSettings(tracker="wandb"))
    with pytest.raises(BadInput, match="sample_every is -1"):
        check_run(RunSettings(sample_every=-1))
    with pytest.raises(BadInput, match="sample_every is 0"):
        check_run(RunSettings(sample_prompts="a bird"))
    command = ("train-adapter", "--source", birds.folder, "--backbone", "nowhere")
    code, _, err = run(*command, "--tracker", "wandb")
    assert code == 2 and "pip install wandb" in err
    code, _, err = run(*command, "--tracker", "mlflow")
    assert code == 2 and "--tracker is 'mlflow'; it takes" in err


def test_an_onlooker_that_is_after_no_steps_is_itself() -> None:
    onlooker = Onlooker(every=1)
    assert onlooker.after(0) is onlooker
    seen: list[int] = []

    def on_adapter(step: int, adapter: Adapter) -> None:
        seen.append(step)

    Onlooker(every=1, on_adapter=on_adapter).after(5).on_adapter(1, None)  # type: ignore[arg-type]
    assert seen == [6]
