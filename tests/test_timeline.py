"""The figure of the weights: the same bytes each time, the right colours, and pictures that have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from promptcdm.colours import COLOURS, source_colour
from promptcdm.generate import Generation
from promptcdm.timeline import weight_timeline


def made(weights: list[Tensor], names: list[str], prompt: str = "an owl for $5 & a <b>") -> Generation:
    """A generation whose pictures are plain."""
    records: list[dict[str, Any]] = [
        {"prompt": prompt, "allowed": names if w.numel() else [], "settings": {"num_inference_steps": 4}}
        for w in weights
    ]
    return Generation([Image.new("RGB", (64, 64), "teal") for _ in weights], records, weights)


def share_of(path: Path, colour: str) -> float:
    """The share of the coloured pixels of a figure with two sources that have this colour."""
    with Image.open(path) as picture:
        pixels = picture.convert("RGB")
    wanted = [tuple(bytes.fromhex(c[1:])) for c in (colour, *COLOURS[:2])]
    counts = {color: count for count, color in pixels.getcolors(1 << 20) or ()}
    return counts.get(wanted[0], 0) / sum(counts.get(c, 0) for c in wanted[1:])


def test_the_same_generation_gives_the_same_bytes(tmp_path: Path) -> None:
    generation = made([torch.tensor([[0.2, 0.8]] * 4)], ["birds", "cars"])
    weight_timeline(generation, tmp_path / "a.png")
    weight_timeline(generation, tmp_path / "there" / "b.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "there" / "b.png").read_bytes()
    assert b"atplotlib" not in data
    with Image.open(tmp_path / "a.png") as picture:
        assert "Software" not in picture.info and "Creation Time" not in picture.info
    weight_timeline(made([torch.tensor([[0.3, 0.7]] * 4)], ["birds", "cars"]), tmp_path / "c.png")
    assert data != (tmp_path / "c.png").read_bytes()


def test_bands_are_as_high_as_the_weights(tmp_path: Path) -> None:
    for weight in (0.2, 0.7):
        generation = made([torch.tensor([[weight, 1 - weight]] * 4)], ["birds", "cars"])
        weight_timeline(generation, tmp_path / "w.png")
        # The legend's two patches are equal, and small beside the bands.
        assert share_of(tmp_path / "w.png", source_colour(0)) == pytest.approx(weight, abs=0.04)


def test_more_sources_than_colours_and_more_pictures_than_a_figure_shows(tmp_path: Path) -> None:
    names = [f"source{n}" for n in range(len(COLOURS) + 2)]
    assert source_colour(len(COLOURS)) == source_colour(0)
    weight_timeline(made([torch.full((3, len(names)), 1 / len(names))] * 26, names), tmp_path / "many.png")
    with Image.open(tmp_path / "many.png") as picture:
        assert picture.width < 2200 and picture.height < 2200


def test_the_bare_backbone_has_a_panel_without_bands(tmp_path: Path) -> None:
    weight_timeline(made([torch.zeros(0, 0)], []), tmp_path / "bare.png")
    with Image.open(tmp_path / "bare.png") as picture:
        colours = {color for _, color in picture.convert("RGB").getcolors(1 << 20) or ()}
    assert tuple(bytes.fromhex(source_colour(0)[1:])) not in colours
