"""Palettes: counts, shares and likelihoods in closed form, what is no part of one, and attribution by it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_adapter import made_adapter, random_statistics
from PIL import Image
from test_attribution import command

from promptcdm.adapter import Adapter, adapter_digest
from promptcdm.attribute import attribute
from promptcdm.errors import BadInput
from promptcdm.palette import EVEN, LEVELS, SIDE, Palette, drawn_colours, log_likelihood, pixel_shares
from promptcdm.settings import AttributeSettings
from promptcdm.source_statistics import pooled
from promptcdm.store import AdapterStore

V = LEVELS**3
RED, BLUE = (LEVELS - 1) * LEVELS * LEVELS, LEVELS - 1
PALETTE = AttributeSettings(method="palette")


def picture(red: int, blue: int, side: int = SIDE) -> Image.Image:
    """Rows of red, then of blue, in 64ths of the height, then white."""
    drawn = Image.new("RGB", (side, side), "white")
    rows = side // SIDE
    drawn.paste((255, 0, 0), (0, 0, side, red * rows))
    drawn.paste((0, 0, 255), (0, red * rows, side, (red + blue) * rows))
    return drawn


def palette(*pictures: Image.Image) -> Palette:
    made = Palette.of(pictures)
    assert made is not None
    return made


def coloured(name: str, made: Palette | None) -> Adapter:
    """An adapter whose statistics have this palette."""
    adapter = made_adapter(name)
    statistics = replace(random_statistics(), palette=made)
    digest = adapter_digest(adapter.lora, {}, statistics)
    return replace(
        adapter, statistics=statistics, record=adapter.record.model_copy(update={"sha256": digest})
    )


def test_a_palette_counts_drawn_pixels_alike_whatever_the_pictures_size() -> None:
    made = palette(picture(8, 4), picture(0, 16))
    assert made.colours.tolist() == [BLUE, RED]
    assert made.counts.tolist() == [20 * SIDE, 8 * SIDE]
    large = palette(picture(8, 4, side=4 * SIDE), picture(0, 16))
    assert torch.equal(large.counts, made.counts)
    assert made.share().sum() == pytest.approx(1)
    nearly_white = Image.new("RGB", (SIDE, SIDE), (250, 255, 252))
    assert Palette.of([picture(0, 0), nearly_white]) is None
    assert Palette.of([Image.new("RGB", (SIDE, SIDE), (249, 255, 255))]) is not None


def test_shares_and_likelihoods_are_the_stated_ones() -> None:
    only_red, half = palette(picture(8, 0)), palette(picture(8, 8))
    colours = drawn_colours(picture(3, 1))
    e = EVEN / V
    p = torch.tensor([[1 - EVEN, 0.0], [(1 - EVEN) / 2, (1 - EVEN) / 2]], dtype=torch.float64)  # red, blue
    w = p / (p.sum(0) + 2 * e)
    expected = (3 * w[:, 0] + w[:, 1]) / 4
    torch.testing.assert_close(pixel_shares([only_red, half], colours), expected)
    log_p = (p + e).log()
    torch.testing.assert_close(log_likelihood([only_red, half], colours), (3 * log_p[:, 0] + log_p[:, 1]) / 4)


def test_what_no_source_has_the_colours_of_is_left_over(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    store.add(coloured("birds", palette(picture(8, 0))))
    store.add(coloured("cars", palette(picture(0, 8))))
    green, white = Image.new("RGB", (SIDE, SIDE), (0, 255, 0)), picture(0, 0)

    def found(image: Image.Image) -> tuple[dict[str, float], float, str]:
        (each,) = attribute([image], allowed=["birds", "cars"], store=store, settings=PALETTE)
        assert sum(each.amounts.values()) + each.rest == pytest.approx(1)
        assert each.row_forwards == 0
        return dict(each.amounts), each.rest, each.top

    assert found(green) == ({"birds": 0.0, "cars": 0.0}, 1.0, "birds")
    assert found(white) == ({"birds": 0.0, "cars": 0.0}, 1.0, "birds")
    amounts, rest, top = found(picture(1, 3))
    assert top == "cars"
    assert amounts["cars"] == pytest.approx(0.75, abs=1e-4) and 0 < rest < 1e-4


def test_the_palette_of_slices_is_that_of_all_pictures() -> None:
    pictures = [picture(8, 4), picture(0, 16), picture(2, 2)]
    parts = [replace(random_statistics(), palette=palette(*some)) for some in (pictures[:1], pictures[1:])]
    whole = pooled(parts).palette
    assert whole is not None
    assert whole.counts.tolist() == palette(*pictures).counts.tolist()
    assert pooled([parts[0], replace(parts[1], palette=None)]).palette is None


def test_an_adapter_keeps_its_palette_and_its_digest_covers_it(tmp_path: Path) -> None:
    made = coloured("birds", palette(picture(8, 4)))
    store = AdapterStore(tmp_path)
    store.add(made)
    read = store.load("birds").statistics
    assert read is not None and read.palette is not None
    assert read.palette.counts.tolist() == [4 * SIDE, 8 * SIDE]
    assert made.sha256 != coloured("birds", palette(picture(8, 5))).sha256 != coloured("birds", None).sha256


def test_sources_without_a_palette_are_named(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    store.add(coloured("birds", palette(picture(8, 0))))
    store.add(coloured("older", None))
    store.add(made_adapter("imported", trained=False))
    with pytest.raises(BadInput, match=r"which older, imported does not have .* use denoising"):
        attribute([picture(1, 1)], allowed=["birds", "older", "imported"], store=store, settings=PALETTE)
    with pytest.raises(BadInput, match="method denoising needs the backbone"):
        attribute([picture(1, 1)], allowed=["birds"], store=store)


def test_the_commands_take_it_without_a_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = AdapterStore(tmp_path / "adapters")
    store.add(coloured("birds", palette(picture(8, 0))))
    store.add(coloured("cars", palette(picture(0, 8))))
    picture(1, 3).save(tmp_path / "a.png")
    words = ["--store", store.root, "--method", "palette", "--allowed", "birds,cars", "--backbone", "gone"]
    assert command("attribute", tmp_path / "a.png", *words, "--json") == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (row["method"], row["top"]) == ("palette", "cars")
    assert row["scores"]["birds"] == pytest.approx(
        (math.log(1 - EVEN + EVEN / V) + 3 * math.log(EVEN / V)) / 4
    )
    assert command("ledger", tmp_path / "a.png", *words, "--out", tmp_path / "ledger.json") == 0
    made = json.loads((tmp_path / "ledger.json").read_text())
    assert made["totals"]["shares"]["cars"] == pytest.approx(750_000, abs=100)
    assert "drawn pixels" in made["rule"] and "backbone" not in made["settings"]
