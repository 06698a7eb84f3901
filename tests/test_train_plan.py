"""A dry run: its numbers are those of the training, and it leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from promptcdm.backbone import Backbone
from promptcdm.errors import BadInput
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.train import train_adapter
from promptcdm.train_plan import plan_training

FAST = TrainSettings(steps=8, batch_size=4, rank=2, mixed_precision="no")


def test_it_says_pictures_sizes_steps_and_what_is_learned(birds: Source, backbone: Backbone) -> None:
    settings = replace(FAST, held_out=0.4, gradient_accumulation=3, flip=True, kind="lora+prompt")
    plan = plan_training(birds, backbone, settings)
    assert (plan.pictures, plan.held_out, plan.steps, plan.rows) == (6, 2, 8, 12)
    assert plan.sizes == (((32, 32), 6),) and plan.cut == 0 and plan.enlarged == 0
    trained = train_adapter(birds, backbone, settings)
    assert plan.parameters == sum(t.numel() for t in [*trained.lora.values(), *trained.prompt.values()])
    assert plan.latents == 6 * 2 * 2 * 4 * 4 * 8 * 8, "pictures, views, moments, bytes, (4, 8, 8)"
    assert plan.memory > 1e7 and plan.memory_there > plan.memory
    assert plan.seconds >= plan.step_seconds * 8
    text = plan.text()
    for words in (
        "birds: 6 pictures, 2 held out",
        "32x32 (6)",
        "8 of 12 pictures, each seen 24 times",
        "TFLOP",
    ):
        assert words in text, text
    assert plan_training(birds, backbone, replace(FAST, slices=2)).steps == 16, "both slices"


def test_work_is_between_two_and_three_forwards_of_the_layers(birds: Source, backbone: Backbone) -> None:
    """A frozen layer's backward has the gradient of its input and not of its weight; attention has no weights."""
    products = 0.0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal products
        each = layer.get_parameter("weight")[0].numel()
        products += 2 * each * output.numel()

    hooks = [
        layer.register_forward_hook(count)
        for layer in backbone.unet.modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    ]
    with torch.no_grad():
        width = backbone.pipe.text_encoder.config.hidden_size
        backbone.unet(torch.zeros(1, 4, 8, 8), torch.tensor(1), torch.zeros(1, 24, width))
    for hook in hooks:
        hook.remove()
    encoding = plan_training(birds, backbone, replace(FAST, steps=1, batch_size=1)).tflop
    plan = plan_training(birds, backbone, replace(FAST, steps=101, batch_size=4))
    row = (plan.tflop - encoding) * 1e12 / 403
    assert 2 * products < row < 3.2 * products
    again = plan_training(
        birds, backbone, replace(FAST, steps=101, batch_size=4, gradient_checkpointing="on")
    )
    assert again.tflop > 1.2 * plan.tflop, "a forward more"
    measured = plan_training(
        birds, backbone, replace(FAST, steps=101, batch_size=4, held_out=0.4, held_out_every=10)
    )
    assert plan.tflop < measured.tflop < 2 * plan.tflop, "11 measurements of 2 pictures at 4 timesteps"


def test_buckets_and_what_a_square_crop_cuts_off_are_told(birds: Source, backbone: Backbone) -> None:
    narrow = birds.picture(0).resize((20, 40))
    for item in birds.items[:3]:
        narrow.save(item.path)
    source = Source.open(birds.folder)
    square = plan_training(source, backbone, FAST)
    assert square.cut == pytest.approx(0.25) and square.enlarged == 3
    buckets = plan_training(source, backbone, replace(FAST, buckets=True))
    assert dict(buckets.sizes) == {(24, 40): 3, (32, 32): 3}
    assert buckets.cut == pytest.approx(0.5 * (1 - 20 * 40 / (40 * 24)))


def test_nothing_is_left_in_the_backbone_or_on_the_disk_and_the_adapter_is_the_same(
    birds: Source, backbone: Backbone, tmp_path: Path
) -> None:
    wanted = train_adapter(birds, backbone, FAST).sha256
    before = sorted(tmp_path.rglob("*")), {k: t.clone() for k, t in backbone.unet.state_dict().items()}
    plan_training(birds, backbone, replace(FAST, gradient_checkpointing="on", kind="lora+prompt"))
    assert sorted(tmp_path.rglob("*")) == before[0]
    after = backbone.unet.state_dict()
    assert after.keys() == before[1].keys() and all(torch.equal(after[k], t) for k, t in before[1].items())
    assert not backbone.unet.is_gradient_checkpointing
    assert train_adapter(birds, backbone, FAST).sha256 == wanted


def test_wrong_settings_are_refused(birds: Source, backbone: Backbone) -> None:
    with pytest.raises(BadInput, match="rank is 0"):
        plan_training(birds, backbone, replace(FAST, rank=0))
