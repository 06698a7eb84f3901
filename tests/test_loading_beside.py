"""Loading a model changes torch for the whole process while it lasts; a training beside it is not to see that."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from promptcdm import lora
from promptcdm.backbone import Backbone
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.train import train_adapter

FAST = TrainSettings(steps=6, batch_size=2, rank=2, mixed_precision="no", held_out=0.4, held_out_every=2)


def test_another_default_type_of_numbers_changes_no_byte(birds: Source, backbone: Backbone) -> None:
    plain = train_adapter(birds, backbone, FAST)

    def during(step: int, loss: float) -> None:
        torch.set_default_dtype(torch.float16 if step < 4 else torch.float32)

    try:
        disturbed = train_adapter(birds, backbone, FAST, on_step=during)
    finally:
        torch.set_default_dtype(torch.float32)
    assert disturbed.train_log == plain.train_log and disturbed.sha256 == plain.sha256


def test_layers_are_made_only_while_nothing_loads(backbone: Backbone) -> None:
    made = threading.Event()

    def make() -> None:
        lora.new_layers(backbone.unet, "new", {lora.target_modules(backbone.unet, "attention")[0]: 2})
        made.set()

    with lora.making_modules:
        thread = threading.Thread(target=make)
        thread.start()
        assert not made.wait(0.2), "a layer was made while a model was being loaded"
    thread.join()
    lora.remove(backbone.unet, "new")
    assert made.is_set()


@pytest.mark.slow
def test_trainings_and_loads_at_once(birds: Source, tiny_sd1: Path) -> None:
    init = torch.nn.init.kaiming_uniform_
    wanted = train_adapter(birds, Backbone.load(tiny_sd1, device="cpu"), FAST).sha256
    found: list[str] = []

    def work() -> None:
        for dtype in ("float32", "float16"):
            Backbone.load(tiny_sd1, device="cpu", dtype=dtype)
            found.append(train_adapter(birds, Backbone.load(tiny_sd1, device="cpu"), FAST).sha256)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 8
    assert torch.nn.init.kaiming_uniform_ is init and torch.get_default_dtype() == torch.float32
