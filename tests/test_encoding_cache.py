"""Encodings on disk: the same adapter, nothing encoded twice, nothing of another source, and nothing left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from promptcdm.backbone import Backbone
from promptcdm.encoding_cache import EncodingCache
from promptcdm.errors import BadInput, RunFailed
from promptcdm.settings import TrainSettings
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.train import train_adapter
from promptcdm.train_all import train_into

FAST = TrainSettings(steps=2, batch_size=2, rank=2, mixed_precision="no", buckets=True, flip=True)


@pytest.fixture
def kept(tmp_path: Path) -> EncodingCache:
    return EncodingCache(tmp_path / "cache", keep=True)


@pytest.fixture
def encoded(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures or captions were encoded at once, each time."""
    counts: list[int] = []
    for name in ("encode_images", "encode_prompts"):
        whole = getattr(Backbone, name)

        def counting(
            self: Backbone,
            items: list[object],
            *more: object,
            whole: Callable[..., object] = whole,
            **named: object,
        ) -> object:
            counts.append(len(items))
            return whole(self, items, *more, **named)

        monkeypatch.setattr(Backbone, name, counting)
    return counts


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_the_next_training_encodes_nothing_and_has_the_bytes_of_one_without(
    kind: str,
    tiny_pipeline: Callable[[str], Path],
    birds: Source,
    kept: EncodingCache,
    encoded: list[int],
) -> None:
    backbone = Backbone.load(tiny_pipeline(kind), device="cpu")
    plain = train_adapter(birds, backbone, FAST)
    first = train_adapter(birds, backbone, FAST, cache=kept)
    encoded.clear()
    again = train_adapter(birds, backbone, FAST, cache=kept)
    assert encoded == []
    assert plain.sha256 == first.sha256 == again.sha256
    train_adapter(birds, backbone, replace(FAST, seed=1, steps=1, rank=4), cache=kept)
    assert encoded == [], "what is not about encoding is no part of the key"


def test_another_picture_size_view_caption_or_backbone_is_encoded(
    birds: Source, backbone: Backbone, kept: EncodingCache, encoded: list[int], tiny_sd2: Path, tmp_path: Path
) -> None:
    settings = replace(FAST, flip=False)
    train_adapter(birds, backbone, settings, cache=kept)

    def encodes(source: Source, settings: TrainSettings, backbone: Backbone = backbone) -> int:
        encoded.clear()
        train_adapter(source, backbone, settings, cache=kept)
        return len(encoded)

    assert encodes(birds, settings) == 0
    assert encodes(birds, replace(settings, resolution=16)) == 1
    assert encodes(birds, replace(settings, flip=True)) == 1, "the mirrored view alone"
    assert encodes(birds, replace(settings, trigger="x")) == 1
    other = Backbone.load(tiny_sd2, device="cpu")
    assert encodes(birds, settings, other) == 3, "the pictures, the captions and the empty one"
    folder = tmp_path / "other" / "birds"
    shutil.copytree(birds.folder, folder)
    picture = Image.open(folder / "small-circle.png")
    picture.putpixel((0, 0), (0, 0, 0))
    picture.save(folder / "small-circle.png")
    assert encodes(Source.open(folder), settings) == 1


@pytest.mark.parametrize("damage", ["a byte", "cut", "another's", "no tensors"])
def test_a_file_that_does_not_hold_what_was_written_is_named(
    birds: Source, backbone: Backbone, kept: EncodingCache, damage: str
) -> None:
    train_adapter(birds, backbone, FAST, cache=kept)
    path, other = sorted(kept.folder.glob("pictures-*"))
    data = bytearray(path.read_bytes())
    if damage == "a byte":
        data[-1] ^= 1
    elif damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "another's":
        data = bytearray(other.read_bytes())
    else:
        data = bytearray(b"latents")
    path.write_bytes(data)
    with pytest.raises(BadInput, match=rf"{path.name}.*delete it, and what it held is encoded again"):
        train_adapter(birds, backbone, FAST, cache=kept)
    path.unlink()
    train_adapter(birds, backbone, FAST, cache=kept)


def test_it_is_deleted_once_the_adapter_stands_and_not_before(
    birds: Source, backbone: Backbone, tmp_path: Path, encoded: list[int]
) -> None:
    store, cache = AdapterStore(tmp_path / "adapters"), EncodingCache(tmp_path / "cache")

    class Stopped(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        train_adapter(birds, backbone, FAST, cache=cache, on_step=stop)
    assert len(list(cache.folder.iterdir())) > 2
    encoded.clear()
    train_into(store, birds, backbone, FAST, cache=EncodingCache(cache.folder))
    assert encoded == [] and not cache.folder.exists()
    (tmp_path / "full").write_text("no folder")
    with pytest.raises(RunFailed, match="the cache cannot be written"):
        train_adapter(birds, backbone, FAST, cache=EncodingCache(tmp_path / "full"))


def test_only_files_of_the_training_are_deleted(
    birds: Source, backbone: Backbone, kept: EncodingCache, tmp_path: Path
) -> None:
    train_adapter(birds, backbone, replace(FAST, resolution=16), cache=kept)
    before = sorted(kept.folder.iterdir())
    passing = EncodingCache(kept.folder)
    few = replace(birds, items=birds.items[:4])
    train_into(AdapterStore(tmp_path / "adapters"), few, backbone, FAST, cache=passing)
    left = sorted(kept.folder.iterdir())
    assert set(left) < set(before) and any(path.name.startswith("pictures") for path in left)


def test_the_command_keeps_it_on_request(
    run: Callable[..., tuple[int, str, str]], birds: Source, tiny_sd1: Path, tmp_path: Path
) -> None:
    words = ("--source", birds.folder, "--backbone", tiny_sd1, "--device", "cpu", "--steps", 1, "--rank", 2)
    code, _, err = run("train-adapter", *words, "--keep-cache")
    assert code == 2 and "keep_cache is given without cache" in err
    assert run("train-adapter", *words, "--cache", tmp_path / "cache")[0] == 0
    assert not (tmp_path / "cache").exists()
    assert run("train-adapter", *words, "--cache", tmp_path / "cache", "--keep-cache", "--replace")[0] == 0
    assert (tmp_path / "cache").exists()
