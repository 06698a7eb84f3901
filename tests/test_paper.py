"""The experiment of eval/paper with a tiny random Stable Diffusion, and the arithmetic of its figures."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

sys.path.append(str(Path(__file__).resolve().parent.parent / "eval"))  # as for a script that lies there

from paper.plan import Counts, Plan, keep

from promptcdm.settings import TrainSettings

COLOURS = (
    "red",
    "green",
    "blue",
    "orange",
    "purple",
    "black",
    "gray",
    "brown",
    "pink",
    "cyan",
    "navy",
    "gold",
)
SHAPES = ("circle", "square", "triangle")
SEEN = 3  # of four concepts, the backbone knows so many


def draw_collections(root: Path, count: int = 36) -> list[str]:
    """Two sources of the same concepts in two styles, and their held-out pictures; returns the concepts known."""
    concepts = [(colour, shape) for colour in COLOURS for shape in SHAPES][:count]
    for style, name in enumerate(("filled", "outlined")):
        for number, (colour, shape) in enumerate(concepts):
            # One concept of six is nobody's to train on, and one of six the other source's alone.
            aside = number % 6 == 5 or number % 6 == style
            folder = root / "heldout" / name if aside else root / name
            folder.mkdir(parents=True, exist_ok=True)
            picture = _picture(colour, shape, style)
            picture.save(folder / f"{colour}-{shape}.png")
            row = {"file_name": f"{colour}-{shape}.png", "text": f"a {colour} {shape}"}
            row |= {"concept": f"{colour}-{shape}", "label": f"{colour} {shape}"}
            with (folder / "metadata.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    return [f"{colour}-{shape}" for n, (colour, shape) in enumerate(concepts) if n % 4 < SEEN]


def _picture(colour: str, shape: str, style: int) -> Image.Image:
    picture = Image.new("RGB", (32, 32), "white")
    pen = ImageDraw.Draw(picture)
    fill = colour if style == 0 else None
    if shape == "circle":
        pen.ellipse((4, 4, 27, 27), fill=fill, outline=colour, width=3)
    elif shape == "square":
        pen.rectangle((4, 4, 27, 27), fill=fill, outline=colour, width=3)
    else:
        pen.polygon([(4, 27), (27, 27), (16, 4)], fill=fill, outline=colour)
    return picture


def tiny_plan(tmp_path: Path, backbone: Path, **changed: object) -> Plan:
    """A plan that takes seconds."""
    known = draw_collections(tmp_path / "pictures")
    own = tmp_path / "backbone"
    if not own.exists():
        import shutil

        shutil.copytree(backbone, own)
        (own / "concepts.json").write_text(json.dumps(known), encoding="utf-8")
    plan = Plan(
        name="tiny",
        sources=str(tmp_path / "pictures"),
        backbone=str(own),
        counts=Counts(1, 2),
        training=TrainSettings(steps=2, batch_size=2, rank=1, unconditional="adapter", mixed_precision="no"),
        steps=3,
        guidance=(2.0,),
        chunk=8,
        seeds=2,
        forget_slices=2,
        ruler_pictures=16,
        ruler_levels=2,
        judges=("first-choice",),
        towers=("instance-tower",),
        membership_pictures=20,
        control_steps=2,
        splits=(2, 40),
        options={"continual": True, "slices": True},
    )
    return replace(plan, **changed)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_tiny_stable_diffusion_goes_through_all_of_it(tmp_path: Path, tiny_sd1: Path) -> None:
    from paper.run import run

    plan = tiny_plan(tmp_path, tiny_sd1)
    out = tmp_path / "out"
    keep(plan, out)
    said: list[str] = []
    run(plan, out, say=said.append)
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "headroom" in report and "product top-1" in report
    print(report)
