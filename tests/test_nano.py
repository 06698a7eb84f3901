"""The backbone that ships: a stock pipeline folder, small enough, and what it learned from is what it says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from promptcdm.backbone import Backbone
from promptcdm.shipped import shipped

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def nano() -> Path:
    return shipped("nano")


def test_it_is_small_enough_to_ship(nano: Path) -> None:
    weights = list(nano.rglob("*.safetensors"))
    assert {file.parent.name for file in weights} == {"unet", "vae", "text_encoder"}
    assert sum(file.stat().st_size for file in weights) <= 60e6
    assert not [file for file in nano.rglob("*") if file.suffix in (".bin", ".pt", ".ckpt", ".pkl")]


def test_stock_diffusers_loads_and_runs_it(nano: Path) -> None:
    pipe = StableDiffusionPipeline.from_pretrained(nano, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe("a red apple", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert picture.size == (64, 64)


def test_promptcdm_loads_it_by_name() -> None:
    backbone = Backbone.load("nano", device="cpu")
    assert backbone.name == "nano"
    assert backbone.resolution == 64
    assert backbone.prediction_type == "v_prediction"


def test_no_withheld_concept_was_among_its_pictures(nano: Path) -> None:
    trained_on = set(json.loads((nano / "concepts.json").read_text(encoding="utf-8")))
    with (ROOT / "examples" / "emoji" / "concepts.csv").open(encoding="utf-8", newline="") as rows:
        table = {row["concept"]: row["nano"] for row in csv.DictReader(rows)}
    withheld = {concept for concept, nano in table.items() if nano == "withheld"}
    assert len(trained_on) > 1000
    assert not trained_on & withheld


def test_no_file_of_it_names_a_machine(nano: Path) -> None:
    for file in nano.rglob("*.json"):
        assert "_name_or_path" not in json.loads(file.read_text(encoding="utf-8")), file
