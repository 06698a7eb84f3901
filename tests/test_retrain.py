"""Training an adapter again from its record: the same bytes, or what differs is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_adapter import made_adapter
from PIL import Image

from promptcdm.adapter import Adapter, adapter_digest
from promptcdm.backbone import Backbone
from promptcdm.errors import BadInput
from promptcdm.retrain import data_differences, open_recorded, recorded_settings, retrain
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.train import train_adapter
from promptcdm.train_slices import train_source

FAST = TrainSettings(steps=4, batch_size=4, rank=2, mixed_precision="no", trigger="in red")
Draw = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path, toy_source: Draw) -> Path:
    return toy_source(tmp_path, "birds", "red")


def altered(adapter: Adapter, **facts: object) -> Adapter:
    """The adapter, with a record that says something else."""
    return replace(adapter, record=adapter.record.model_copy(update=facts))


def nudged(adapter: Adapter, by: float) -> Adapter:
    """The adapter with one number changed, and a record that goes with it."""
    name, tensor = next(iter(adapter.lora.items()))
    other = tensor.clone()
    other.view(-1)[0] += by
    lora = adapter.lora | {name: other}
    digest = adapter_digest(lora, adapter.prompt, adapter.statistics)
    return altered(replace(adapter, lora=lora), sha256=digest)


def test_what_was_trained_here_comes_out_again(folder: Path, backbone: Backbone) -> None:
    adapter = train_adapter(Source.open(folder, license="MIT"), backbone, FAST)
    again = retrain(adapter, open_recorded(adapter.record, folder), backbone)
    assert again.same
    assert (again.sha256, again.notes) == (adapter.sha256, ())
    assert not retrain(nudged(adapter, 1e-3), open_recorded(adapter.record, folder), backbone).same


def test_slices_come_out_again_and_one_that_does_not_is_found(folder: Path, backbone: Backbone) -> None:
    adapter = train_source(Source.open(folder), backbone, replace(FAST, slices=2))
    source = open_recorded(adapter.record, folder)
    assert retrain(adapter, source, backbone).same
    first, *others = adapter.slices
    wrong = replace(adapter, slices=(nudged(first, 0.5), *others))
    (line, _) = retrain(wrong, source, backbone).differing
    assert line.startswith(f"a slice of {first.record.items} pictures: tensors: 1 of ")
    assert line.endswith("differ, by up to 0.5")


def test_other_pictures_captions_and_files_are_named(folder: Path) -> None:
    then = Source.open(folder).manifest()
    assert data_differences(then, Source.open(folder).manifest()) == []
    picture = Image.open(folder / "large-circle.png")
    picture.putpixel((0, 0), (254, 255, 255))
    picture.save(folder / "large-circle.png")
    Image.open(folder / "small-circle.png").save(folder / "small-circle.png", compress_level=0)
    rows = folder / "metadata.jsonl"
    text = rows.read_text().replace("a large red square", "a cube").replace("small-square.png", "new.png")
    rows.write_text(text)
    (folder / "small-square.png").rename(folder / "new.png")
    assert data_differences(then, Source.open(folder).manifest()) == [
        "data: gone: small-square.png",
        "data: not there then: new.png",
        "data: other pixels: large-circle.png",
        "data: another caption: large-square.png",
        "data: another file of the same pixels: small-circle.png",
    ]


def test_where_inputs_differ_nothing_is_trained(
    folder: Path, backbone: Backbone, tiny_sd2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = train_adapter(Source.open(folder), backbone, FAST)
    monkeypatch.setattr("promptcdm.retrain.train_source", None)
    source = open_recorded(adapter.record, folder)
    one_less = retrain(adapter, replace(source, items=source.items[1:]), backbone)
    assert one_less.differing == (f"data: gone: {source.items[0].file}",)
    (line,) = retrain(adapter, source, Backbone.load(tiny_sd2, device="cpu")).differing
    assert line.startswith("backbone: sd1 ") and " then, sd2 " in line


def test_versions_and_device_are_named_where_bytes_differ_and_noted_where_not(
    folder: Path, backbone: Backbone
) -> None:
    adapter = train_adapter(Source.open(folder), backbone, FAST)
    source = open_recorded(adapter.record, folder)
    settings = {key: value for key, value in adapter.record.settings.items() if key != "min_snr"}
    older = {"versions": {**adapter.record.versions, "torch": "1.0"}, "device": "a cpu", "settings": settings}
    lines = (
        f"versions: torch 1.0 then, {adapter.record.versions['torch']} now",
        f"device: a cpu then, {adapter.record.device} now",
        "config: min_snr was not recorded; 5.0 now",
    )
    same = retrain(altered(adapter, **older), source, backbone)
    assert same.same and same.notes == lines
    other = retrain(altered(nudged(adapter, 1e-3), **older), source, backbone)
    assert other.differing[1:] == lines
    unexplained = retrain(nudged(adapter, 1e-3), source, backbone)
    assert "nothing that is recorded differs" in unexplained.differing[1]


def test_settings_that_are_not_known_and_imports_are_refused() -> None:
    assert recorded_settings(made_adapter().record) == TrainSettings(steps=5)
    with pytest.raises(BadInput, match="with the settings gamma, which this version does not know"):
        recorded_settings(made_adapter(settings={"gamma": 1}).record)
    with pytest.raises(BadInput, match="birds was imported, not trained here"):
        recorded_settings(made_adapter(trained=False, imported_from="x.safetensors").record)
