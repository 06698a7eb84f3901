"""The experiment of eval/paper with a tiny random Stable Diffusion, and the arithmetic of its figures."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

sys.path.append(str(Path(__file__).resolve().parent.parent / "eval"))  # as for a script that lies there

from paper.adapters import settings_of
from paper.plan import PLANS, Counts, Plan, changed, keep
from paper.run import _order
from paper.sources import Opened
from paper.systems import beside_backbone
from paper.units import done, start
from torch import Tensor

from promptcdm.errors import BadInput
from promptcdm.router import Router
from promptcdm.settings import TrainSettings
from promptcdm.store_lock import locked

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


def draw_backbone(root: Path, known: list[str]) -> None:
    """What the backbone draws, as a folder beside the sources: there it is a source as well."""
    folder = root / "backbone"
    folder.mkdir(exist_ok=True)
    lines = []
    for concept in known:
        colour, shape = concept.split("-")
        _picture(colour, shape, 0).save(folder / f"{concept}.png")
        lines.append(json.dumps({"file_name": f"{concept}.png", "text": f"a {colour} {shape}"}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


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
    draw_backbone(tmp_path / "pictures", known)
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
        options={"continual": True, "slices": True, "ideas": True},
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
    assert (
        "headroom" in report
        and "product top-1" in report
        and "2 of 2 sources as if never there" in "".join(said)
    )
    assert "negative source 0.5" in report and "product, backbone as source" in report
    costs = json.loads((out / "raw" / "cost.json").read_text(encoding="utf-8"))["training"]
    assert costs["monolith"]["seen"] == 2 * costs["filled"]["seen"] == 8
    before = (out / "raw" / "tifa.csv").read_bytes()
    run(plan, out, say=said.append)  # everything is picked up, and comes out the same
    assert (out / "raw" / "tifa.csv").read_bytes() == before


def test_a_run_keeps_its_plan_and_may_be_asked_for_more(tmp_path: Path) -> None:
    plan = PLANS["vendor"]
    keep(plan, tmp_path)
    keep(replace(plan, seeds=9), tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["seeds"] == 9
    with pytest.raises(BadInput, match="another steps"):
        keep(replace(plan, steps=7), tmp_path)
    there = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    (tmp_path / "plan.json").write_text(json.dumps({k: v for k, v in there.items() if k != "source_rank"}))
    with pytest.raises(BadInput, match="another source_rank"):
        keep(replace(plan, source_rank=16), tmp_path)
    keep(plan, tmp_path)  # it is from before the number existed, which was then what is its default now


def test_a_source_of_another_rank_learns_more_slowly_and_the_monoliths_stay() -> None:
    plan = replace(PLANS["topic"], source_rank=32)
    own, monolith = (settings_of(plan, name, 4, 0) for name in ("animals", "monolith"))
    assert (own.rank, own.learning_rate) == (32, pytest.approx(plan.training.learning_rate / 2))
    assert (monolith.rank, monolith.steps) == (plan.training.rank, 4 * plan.training.steps)


def test_numbers_of_a_plan_are_changed_by_words() -> None:
    plan = changed(PLANS["vendor"], ["seeds=3", "splits=2,4", "guidance=2", "training.learning_rate=0.002"])
    assert (plan.seeds, plan.splits, plan.guidance, plan.training.learning_rate) == (3, (2, 4), (2.0,), 0.002)
    assert changed(plan, ["splits="]).splits == ()
    for word in ("seeds", "seeds=many", "name=other", "training.kind=prompt", "nothing=1"):
        with pytest.raises(BadInput, match=f"--set {word}"):
            changed(plan, [word])


def test_all_sources_together_are_one_with_every_picture(tmp_path: Path) -> None:
    from paper.adapters import joined

    draw_collections(tmp_path)
    sources = Opened(tmp_path, ["filled", "outlined"])
    whole, tagged = joined("monolith", sources), joined("monolith tagged", sources)
    assert len(whole) == sources.size("filled") + sources.size("outlined") == len(tagged)
    first = next(n for n, item in enumerate(whole.items) if item.file == "outlined/red-circle.png")
    assert whole.picture(first).getpixel((16, 16)) == (255, 255, 255)  # an outline, and not the filled one
    assert whole.items[first].caption == "a red circle"
    assert tagged.items[first].caption == "style b a red circle"
    assert whole.manifest().merkle_root != tagged.manifest().merkle_root


def test_a_unit_that_another_holds_is_left_to_it_and_waited_for_at_the_end(tmp_path: Path) -> None:
    made: list[str] = []
    units = {tmp_path / f"{name}.json": lambda name=name: made.append(name) for name in "ab"}
    with locked(tmp_path / "a.lock"):
        start(units)
    assert made == ["b"]
    assert list(done(units)) == list(units) and made == ["b", "a"]


def test_every_third_worker_begins_with_what_needs_the_adapters_alone() -> None:
    stages = ("prompts", "adapters", "ruler", "pictures", "picture", "growth", "report")
    assert _order(stages, 0) == list(stages)
    assert _order(stages, 1) == ["prompts", "adapters", "picture", "growth", "ruler", "pictures"]
    assert _order(stages, 2) == list(stages[:-1])


def test_beside_the_backbone_the_sources_share_what_it_leaves_them() -> None:
    w = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    eps = torch.arange(3.0)[:, None, None, None, None].expand(3, 2, 1, 4, 4)
    heard = []

    def route(state: int, x_t: Tensor, alpha_bar: Tensor, eps: Tensor | None) -> tuple[Tensor, int]:
        heard.append(eps)
        return w[..., None, None].expand(2, 2, 4, 4) if state else w, state + 1

    router = beside_backbone(Router(route, 0, needs_eps=True), 0.4)
    assert (router.start, router.needs_eps) == (0, True)
    found, state = router.route(router.start, eps[0], torch.ones(2), eps)
    assert torch.allclose(found, torch.tensor([[0.4, 0.15, 0.45], [0.4, 0.6, 0.0]])) and state == 1
    assert heard[0] is not None and heard[0][:, 0, 0, 0, 0].tolist() == [1.0, 2.0], (
        "the backbone's is not shown"
    )
    by_place, _ = router.route(state, eps[0], torch.ones(2), eps)
    assert by_place.shape == (2, 3, 4, 4) and torch.allclose(by_place[..., 0, 0], found)


def test_the_other_budget_is_another_run() -> None:
    from paper.run import _arguments, plan_of

    plan = plan_of(_arguments(["--plan", "longer", "--budget", "plateau"]))
    assert (plan.name, plan.budget, PLANS["longer"].budget) == ("longer-plateau", "plateau", "images")
    own, monolith = (settings_of(plan, name, 4, 0) for name in ("animals", "monolith"))
    assert own.held_out and own.patience and monolith.steps == 4 * own.steps == 16 * plan.training.steps


def test_of_equal_trials_the_scale_that_suits_the_others_is_chosen() -> None:
    from paper.choose import _first
    from paper.pictures import Drawing
    from paper.systems import system_named

    def trial(name: str, scale: float) -> Drawing:
        return Drawing(system_named(name), scale, "")

    low, high = trial("product", 2.0), trial("product", 4.0)
    tried = [(0.9, low), (0.9, high), (0.5, trial("average", 2.0)), (0.8, trial("average", 4.0))]
    assert _first(tried) is high
    assert _first([(0.91, low), *tried[1:]]) is low
