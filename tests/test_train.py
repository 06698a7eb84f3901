"""Training one source: it learns its own pictures, in isolation, and an interruption changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.errors import BadInput
from promptcdm.palette import Palette
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.train import train_adapter

FAST = TrainSettings(steps=8, batch_size=4, rank=2, checkpoint_every=2, mixed_precision="no")
Draw = Callable[..., Path]


class Stopped(Exception):
    """What the tests interrupt a training with."""


def train_until(
    stop: int, source: Source, backbone: Backbone, settings: TrainSettings, checkpoint: Path
) -> None:
    def on_step(step: int, loss: float) -> None:
        if step == stop:
            raise Stopped

    with pytest.raises(Stopped):
        train_adapter(source, backbone, settings, checkpoint=checkpoint, on_step=on_step)


@pytest.mark.parametrize("kind", ["lora", "prompt", "lora+prompt"])
def test_the_loss_on_its_own_pictures_falls(birds: Source, backbone: Backbone, kind: str) -> None:
    settings = replace(FAST, kind=kind, steps=60, learning_rate=5e-3)
    log = train_adapter(birds, backbone, settings).train_log
    first, last = (sum(row["loss"] for row in part) / 15 for part in (log[:15], log[-15:]))
    assert last < 0.97 * first


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_every_architecture_trains_and_its_adapter_is_not_zero(
    tiny_pipeline: Callable[[str], Path], birds: Source, kind: str
) -> None:
    adapter = train_adapter(
        birds, Backbone.load(tiny_pipeline(kind), device="cpu"), replace(FAST, kind="lora+prompt")
    )
    assert max(t.abs().max() for k, t in adapter.lora.items() if k.endswith("lora_B.weight")) > 1e-6
    assert set(adapter.prompt) == ({"text_encoder", "text_encoder_2"} if kind == "sdxl" else {"text_encoder"})
    assert adapter.statistics is not None
    assert adapter.statistics.latent_mean.shape == (4, 8, 8)
    palette = Palette.of(birds.picture(i) for i in range(len(birds)))
    assert palette is not None and adapter.statistics.palette is not None
    assert torch.equal(adapter.statistics.palette.counts, palette.counts)


def test_the_backbone_is_left_as_it_was(birds: Source, backbone: Backbone) -> None:
    parts = {n: getattr(backbone.pipe, n) for n in ("unet", "vae", "text_encoder")}
    before = {n: {k: t.clone() for k, t in m.state_dict().items()} for n, m in parts.items()}
    train_adapter(birds, backbone, replace(FAST, kind="lora+prompt"))
    for name, module in parts.items():
        after = module.state_dict()
        assert after.keys() == before[name].keys()
        assert all(torch.equal(after[k], t) for k, t in before[name].items())
        assert not any(p.requires_grad or p.grad is not None for p in module.parameters())


def test_same_inputs_and_seed_give_the_same_digest_and_another_seed_another(
    birds: Source, backbone: Backbone
) -> None:
    def digest(settings: TrainSettings) -> str:
        torch.manual_seed(int(torch.randint(1000, ())))  # the global generator must not matter
        return train_adapter(birds, backbone, settings).sha256

    assert digest(FAST) == digest(FAST)
    assert digest(FAST) != digest(replace(FAST, seed=1))


def test_one_pixel_of_the_source_matters_and_another_source_does_not(
    birds: Source, backbone: Backbone, tmp_path: Path, toy_source: Draw
) -> None:
    alone = train_adapter(birds, backbone, FAST).sha256
    cars = Source.open(toy_source(tmp_path, "cars", "blue"))
    train_adapter(cars, backbone, FAST)
    assert train_adapter(birds, backbone, FAST).sha256 == alone
    file = birds.items[0].path
    picture = birds.picture(0)
    picture.putpixel((0, 0), (254, 255, 255))
    picture.save(file)
    assert train_adapter(Source.open(birds.folder), backbone, FAST).sha256 != alone


@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_an_interrupted_training_ends_in_the_same_bytes(
    birds: Source, backbone: Backbone, tmp_path: Path, stop: int
) -> None:
    whole = train_adapter(birds, backbone, FAST)
    train_until(stop, birds, backbone, FAST, tmp_path / "birds.partial")
    resumed = train_adapter(birds, backbone, FAST, checkpoint=tmp_path / "birds.partial")
    assert resumed.sha256 == whole.sha256
    assert resumed.train_log == whole.train_log


def test_a_checkpoint_of_other_settings_is_refused(birds: Source, backbone: Backbone, tmp_path: Path) -> None:
    train_until(3, birds, backbone, FAST, tmp_path / "birds.partial")
    with pytest.raises(BadInput, match="checkpoint of another settings"):
        train_adapter(birds, backbone, replace(FAST, seed=9), checkpoint=tmp_path / "birds.partial")


def test_an_adapters_record_says_what_it_is(birds: Source, backbone: Backbone) -> None:
    adapter: Adapter = train_adapter(
        birds, backbone, replace(FAST, trigger="in birds style", unconditional="adapter")
    )
    assert adapter.record.trigger == "in birds style"
    assert adapter.record.unconditional == "adapter"
    assert adapter.record.items == 6
    assert adapter.record.license == "CC0-1.0"
    assert adapter.record.backbone.digest == backbone.digest
    assert adapter.record.sha256 == adapter.sha256


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"kind": "loha"}, "kind 'loha' is unknown; accepted: lora"),
        ({"targets": "all"}, "targets 'all' is unknown"),
        ({"resolution": 30}, "resolution is 30"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"caption_dropout": 1.0}, "caption_dropout is 1.0"),
    ],
)
def test_wrong_settings_are_refused(
    birds: Source, backbone: Backbone, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        train_adapter(birds, backbone, replace(FAST, **changes))  # type: ignore[arg-type]
