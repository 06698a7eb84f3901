"""What a source's adapter depends on: its own pictures, to the pixel, and nothing of any other source."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from promptcdm.backbone import Backbone
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.train_all import train_into

Draw = Callable[..., Path]


def change_one_pixel(folder: Path) -> None:
    """Change one pixel of one picture by one level of one colour."""
    path = folder / "large-circle.png"
    picture = Image.open(path)
    red, green, blue = picture.getpixel((0, 0))  # type: ignore[misc]
    picture.putpixel((0, 0), (red - 1, green, blue))
    picture.save(path)


@pytest.mark.parametrize("slices", [1, 2])
def test_an_adapter_is_a_function_of_its_own_pictures(
    tmp_path: Path, toy_source: Draw, tiny_sd1: Path, slices: int
) -> None:
    settings = TrainSettings(
        steps=4, batch_size=2, rank=2, mixed_precision="no", kind="lora+prompt", slices=slices
    )
    s, t = toy_source(tmp_path, "birds", "red"), toy_source(tmp_path, "cars", "blue")
    shared = Backbone.load(tiny_sd1, device="cpu")

    def trained(store: str, *folders: Path, backbone: Backbone = shared) -> dict[str, bytes]:
        """Every file of S's adapter, from a store in which these sources were trained in this order."""
        into = AdapterStore(tmp_path / store)
        for folder in folders:
            train_into(into, Source.open(folder), backbone, settings)
        files = (into.root / "birds").rglob("*")
        return {str(p.relative_to(into.root)): p.read_bytes() for p in sorted(files) if p.is_file()}

    alone = trained("alone", s)
    assert trained("after", t, s) == alone
    assert trained("before", s, t) == alone

    failures: list[BaseException] = []
    own = Backbone.load(tiny_sd1, device="cpu")

    def beside() -> None:
        try:
            train_into(AdapterStore(tmp_path / "beside"), Source.open(t), own, settings)
        except BaseException as error:
            failures.append(error)

    other = threading.Thread(target=beside)
    other.start()  # T in another thread, on a backbone of its own, into the same store
    assert trained("beside", s) == alone
    other.join()
    assert failures == []
    assert AdapterStore(tmp_path / "beside").sources() == ["birds", "cars"]

    change_one_pixel(t)
    assert trained("one pixel of T", t, s) == alone
    change_one_pixel(s)
    changed = trained("one pixel of S", s)
    assert changed != alone
    tensors = [name for name in alone if name.endswith("pytorch_lora_weights.safetensors")]
    assert any(changed.get(name) != alone[name] for name in tensors)
