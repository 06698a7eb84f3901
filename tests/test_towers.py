"""The towers that ship, and the script that trains them: what it reads, what it leaves out, what comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from promptcdm.embedded_tower import EMBEDDED, FEATURES, EmbeddedNetwork, read_embedded
from promptcdm.errors import BadInput
from promptcdm.features import load_features
from promptcdm.shipped import shipped
from promptcdm.tensorfile import write_tensors
from promptcdm.tower import Tower

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "towers"
MOST_BYTES = 2_000_000


@pytest.fixture
def scripts(import_script: Callable[[Path, str], ModuleType]) -> tuple[Any, Any]:
    """The modules `train` and `shapes` of the example."""
    return import_script(FOLDER, "train"), import_script(FOLDER, "shapes")


def collection(folder: Path, concepts: list[str], colour: str) -> Path:
    folder.mkdir(parents=True)
    rows = []
    for concept in concepts:
        Image.new("RGB", (64, 64), colour).save(folder / f"{concept}.png")
        rows.append(json.dumps({"file_name": f"{concept}.png", "text": concept, "concept": concept}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, colour in (("noto", "red"), ("twemoji", "blue"), ("openmoji", "green")):
        collection(tmp_path / name, ["ant", "bee", "cat"], colour)
    collection(tmp_path / "heldout" / "twemoji", ["bee", "dog"], "black")
    return tmp_path


def test_features_have_length_one_and_their_width() -> None:
    network = EmbeddedNetwork(width=4).eval()
    with torch.no_grad():
        found = network(torch.randn(3, 3, 64, 64))
    assert found.shape == (3, FEATURES)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_shipped_towers_are_small_and_are_read_by_name(name: str) -> None:
    assert (shipped("towers") / f"{name}.safetensors").stat().st_size < MOST_BYTES
    tower = load_features(name)
    assert isinstance(tower, Tower)
    assert (tower.name, tower.size, tower.published) == (name, 64, "")
    images = [Image.new("RGB", (64, 64), colour) for colour in ("white", "red")]
    images.append(images[1].resize((90, 90)))
    found = tower.features(images)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert (
        found[1] @ found[2] > 0.999 > found[0] @ found[1]
    )  # the size of a picture does not matter, its colour does


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "other.safetensors", {"head.weight": torch.zeros(2, 2)}, {})
    for name in ("other.safetensors", "none.safetensors"):
        with pytest.raises(BadInput, match="is no tower of promptcdm"):
            read_embedded(tmp_path / name, "x")


def test_concepts_with_a_held_out_picture_and_share_alike_ones_are_not_learned_from(
    scripts: tuple[Any, Any], pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, _ = scripts
    assert train.held_out_concepts(pictures) == {"bee", "dog"}
    read: list[Any] = []
    whole = train.read_collections
    monkeypatch.setattr(train, "read_collections", lambda *given: read.append(whole(*given)) or read[-1])
    train.train_concepts(pictures, train.Plan(1, batch=4))
    assert set(read[0].concepts) == {"ant", "cat"} and set(read[0].collections) == {"noto", "twemoji"}
    train.train_instances(pictures, train.Plan(1, batch=4), drawn=4)
    assert set(read[1].collections) == {"noto"} and len(read[1].concepts) == 3


def test_the_script_writes_what_is_read_again(
    scripts: tuple[Any, Any], pictures: Path, tmp_path: Path
) -> None:
    train, _ = scripts
    network, steps = train.train_instances(pictures, train.Plan(2, batch=4), drawn=4)
    assert steps == 2
    train.save_tower(network, tmp_path / "out" / "t.safetensors", steps)
    tower = read_embedded(tmp_path / "out" / "t.safetensors", "t")
    image = Image.new("RGB", (64, 64), "red")
    with torch.no_grad():
        expected = network.eval()(torch.tensor([1.0, -1, -1]).reshape(1, 3, 1, 1).expand(1, 3, 64, 64))
    np.testing.assert_allclose(tower.features([image]), expected.numpy(), atol=5e-3)  # fp16


def test_a_plan_ends_by_steps_or_by_time(scripts: tuple[Any, Any]) -> None:
    plan = scripts[0].Plan(10, 100)
    assert plan.done(5, 10) == 0.5 and plan.done(5, 90) == 0.9 and plan.done(10, 0) == 1
    assert scripts[0].Plan(10).done(1, 1e9) == 0.1


def test_drawn_shapes_follow_their_seed_and_views_stay_on_white(scripts: tuple[Any, Any]) -> None:
    _, shapes = scripts
    assert (
        shapes.draw_shapes(3).tobytes() == shapes.draw_shapes(3).tobytes() != shapes.draw_shapes(4).tobytes()
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 64, 64)
    same = shapes.moved(x, generator, turn=0, scale=0, shift=0)
    torch.testing.assert_close(same, x, atol=1e-4, rtol=0)
    gone = shapes.moved(x, generator, turn=0, scale=0, shift=0.9)
    assert gone.amax() == 1 and not torch.allclose(gone, x)
    assert shapes.toned(x, generator, 0.2).amin() >= 0


def test_the_two_styles_of_a_picture_differ(scripts: tuple[Any, Any]) -> None:
    _, shapes = scripts
    x = torch.rand(40, 3, 16, 16)
    first, second = shapes.restyled(x, torch.Generator().manual_seed(0)).chunk(2)
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
