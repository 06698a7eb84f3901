"""Statistics for an import: a router weighs it by its samples, and the adapter stays what it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from promptcdm.adapter import Adapter, load_adapter, save_adapter
from promptcdm.backbone import Backbone
from promptcdm.composed_unet import ComposedUNet
from promptcdm.errors import BadInput, BadSource
from promptcdm.import_adapter import import_adapter
from promptcdm.sample_statistics import with_captions, with_samples
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.train import train_adapter

FAST = TrainSettings(steps=2, batch_size=2, rank=2, mixed_precision="no")
Draw = Callable[..., Path]


@pytest.fixture
def trained(birds: Source, backbone: Backbone, tmp_path: Path) -> Adapter:
    adapter = train_adapter(birds, backbone, FAST)
    save_adapter(adapter, tmp_path / "trained")
    return adapter


@pytest.fixture
def imported(trained: Adapter, backbone: Backbone, tmp_path: Path) -> Adapter:
    return import_adapter(tmp_path / "trained" / "birds.safetensors", "mine", backbone)


def test_its_own_pictures_give_what_training_would_have(
    trained: Adapter, imported: Adapter, birds: Source, backbone: Backbone, tmp_path: Path
) -> None:
    known = with_samples(imported, birds.folder, backbone)
    assert known.statistics is not None and trained.statistics is not None
    assert known.statistics.count == 6
    for name, tensor in trained.statistics.tensors().items():
        assert torch.equal(known.statistics.tensors()[name], tensor), name
    assert known.record.settings["samples"] == 6
    assert known.record.settings["samples_sha256"] == birds.manifest().merkle_root
    assert known.lora.keys() == imported.lora.keys() and known.sha256 != imported.sha256
    save_adapter(known, tmp_path / "mine")
    assert load_adapter(tmp_path / "mine").sha256 == known.sha256


def test_the_routers_that_refuse_an_import_take_it_with_samples(
    trained: Adapter, imported: Adapter, birds: Source, backbone: Backbone, tmp_path: Path, toy_source: Draw
) -> None:
    with pytest.raises(BadInput, match="statistics"):
        ComposedUNet(backbone, [trained, imported], router="posterior")
    known = with_samples(imported, toy_source(tmp_path, "cars", "blue"), backbone)
    for router in ("posterior", "prompt", "prior"):
        composed = ComposedUNet(backbone, [trained, known], router=router)  # type: ignore[arg-type]
        composed.close()


def test_of_captions_it_draws_the_pictures_itself(
    imported: Adapter, backbone: Backbone, tmp_path: Path
) -> None:
    file = tmp_path / "captions.txt"
    file.write_text("a red bird\n\n  a   blue bird \n", encoding="utf-8")
    known = with_samples(imported, file, backbone)
    again = with_captions(imported, ["a red bird", "a blue bird"], backbone)
    assert known.statistics is not None and known.statistics.count == 2
    assert known.sha256 == again.sha256
    assert known.record.settings["drawn_samples"] == 2
    assert len(known.statistics.caption_prototypes) == 2
    file.write_text("\n \n", encoding="utf-8")
    with pytest.raises(BadInput, match="holds no caption"):
        with_samples(imported, file, backbone)
    with pytest.raises(BadInput, match="cannot be read"):
        with_samples(imported, tmp_path / "nothing.txt", backbone)
    with pytest.raises(BadSource):
        with_samples(imported, tmp_path / "nowhere", backbone)


def test_the_command(
    trained: Adapter,
    birds: Source,
    tiny_sd1: Path,
    tmp_path: Path,
    run: Callable[..., tuple[int, str, str]],
) -> None:
    lora = tmp_path / "trained" / "birds.safetensors"
    words = ("import-adapter", lora, "--source", "mine", "--backbone", tiny_sd1, "--device", "cpu")
    code, _, err = run(*words, "--samples", birds.folder)
    assert code == 0, err
    assert (tmp_path / "adapters" / "mine" / "router.safetensors").is_file()
    assert "statistics" not in err
