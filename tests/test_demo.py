"""The demo on a tiny random Stable Diffusion and three drawn sources: its claims, its files, its commands."""

from __future__ import annotations

import csv
import json
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import draw_source

from promptcdm.backbone import Backbone
from promptcdm.cli import main
from promptcdm.demo import run_demo
from promptcdm.demo_plan import DemoPlan
from promptcdm.demo_result import DemoResult, load_result
from promptcdm.errors import BadInput
from promptcdm.settings import GenerateSettings, TrainSettings
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.train import train_adapter

ROOT = Path(__file__).resolve().parent.parent
NAMES, COLOURS = ("reds", "greens", "blues"), ("red", "green", "blue")
LICENCES = ("MIT", "CC-BY-4.0", "CC-BY-SA-4.0")
# A rate at which two steps change every picture.
TRAINING = TrainSettings(steps=2, batch_size=2, rank=2, learning_rate=0.3, mixed_precision="no")


@dataclass(frozen=True)
class Ran:
    """A finished demo."""

    out: Path
    plan: DemoPlan
    result: DemoResult
    lines: list[str]


@pytest.fixture(scope="module")
def tiny_demo(tiny_sd1: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    root = tmp_path_factory.mktemp("demo")
    for name, colour, licence in zip(NAMES, COLOURS, LICENCES, strict=True):
        draw_source(root / "pictures", name, colour, license=licence)
    backbone = Backbone.load(str(tiny_sd1), device="cpu")
    shipped = AdapterStore(root / "shipped")
    shipped.add(train_adapter(Source.open(root / "pictures" / "reds"), backbone, TRAINING))
    plan = DemoPlan(
        backbone=str(tiny_sd1),
        judge="always-yes",
        pictures=root / "pictures",
        adapters=shipped.root,
        sources=NAMES,
        first_prompt="a red square",
        prompts=("a red square", "two large <b>circles</b>"),
        withheld=("a red square",),
        training=TRAINING,
        generation=GenerateSettings(num_inference_steps=2, seed=3),
    )
    lines: list[str] = []
    result = run_demo(root / "demo", plan=plan, on_progress=lines.append)
    return Ran(root / "demo", plan, result, lines)


def files(folder: Path) -> dict[str, bytes]:
    """Pictures and records by name."""
    return {path.name: path.read_bytes() for path in folder.glob("[0-9]*")}


def test_what_was_forgotten_left_no_byte(tiny_demo: Ran) -> None:
    forgotten = tiny_demo.result.forgotten
    assert (forgotten.source, forgotten.differing, forgotten.equal_files) == ("blues", 0, 4)
    assert forgotten.pixel_bytes == 2 * 3 * 32 * 32
    assert forgotten.differing_with > forgotten.pixel_bytes / 10, "the comparison cannot fail"
    pictures = tiny_demo.out / "pictures"
    before, after = files(pictures / "mit+cc-by"), files(pictures / "all-without-blues")
    assert before == after and len(before) == 4
    assert before != files(pictures / "all")
    assert AdapterStore(tiny_demo.out / "adapters").sources() == ["greens", "reds"]
    assert "no source 'blues'" in forgotten.refusal


def test_the_reference_was_made_before_the_source_was_there(tiny_demo: Ran) -> None:
    lines = "\n".join(tiny_demo.lines)
    assert lines.index("mit+cc-by: 2 pictures") < lines.index("adapters/blues: 6 pictures")
    assert lines.index("adapters/blues: 6 pictures") < lines.index("pictures/all: 2 pictures")


def test_every_user_has_the_sources_of_their_rights(tiny_demo: Ran) -> None:
    rights = {row.title: row.allowed for row in tiny_demo.result.rows}
    assert rights == {
        "backbone alone": (),
        "mit": NAMES[:1],
        "mit+cc-by": NAMES[:2],
        "all": NAMES,
        "all, blues forgotten": NAMES[:2],
    }
    for row in tiny_demo.result.rows:
        assert [record["seed"] for record in row.records] == [3, 4]
        assert all(
            sum(record["weights"].values())
            == pytest.approx(float(bool(row.allowed)), abs=1e-5)  # six digits each
            for record in row.records
        )
    assert [source.license for source in tiny_demo.result.sources] == list(LICENCES)


def test_its_files_are_there(tiny_demo: Ran) -> None:
    out = tiny_demo.out
    for name in ("first.png", "weights.png", "questions.json", "tifa/mit.json", "report.html"):
        assert (out / name).is_file(), name
    assert load_result(out) == tiny_demo.result
    score = tiny_demo.result.row("mit").score
    found = json.loads((out / "tifa" / "mit.json").read_text(encoding="utf-8"))
    assert score is not None and score.average == found["tifa_average"]
    assert tiny_demo.lines[0].startswith(f"{out / 'first.png'}: a red square")
    assert tiny_demo.lines[-1].startswith(f"{out / 'report.html'}")
    assert not list(out.glob("*.partial"))


def test_its_commands_make_the_same_bytes(
    tiny_demo: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = dict(tiny_demo.result.commands)
    for what in ("train reds", "draw: mit"):
        words = commands[what].replace("$EMOJI/demo", str(tiny_demo.plan.pictures))
        program, *arguments = shlex.split(words)
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert (program, stop.value.code) == ("promptcdm", 0)
    made = files(tmp_path / "demo" / "pictures" / "mit")
    assert made == files(tiny_demo.out / "pictures" / "mit")


def test_a_second_run_uses_the_adapters_of_the_first(tiny_demo: Ran, tmp_path: Path) -> None:
    lines: list[str] = []
    again = run_demo(tiny_demo.out, plan=tiny_demo.plan, on_progress=lines.append)
    assert sum("trained by an earlier run" in line for line in lines) == 2
    assert replace(again, seconds=(), machine=()) == replace(tiny_demo.result, seconds=(), machine=())


def test_a_folder_of_something_else_is_left_alone(tiny_demo: Ran, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(BadInput, match="holds other files; give --out a new folder"):
        run_demo(tmp_path, plan=tiny_demo.plan)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_a_judge_that_is_missing_is_missed_before_training(tiny_demo: Ran, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="judge"):
        run_demo(tmp_path / "demo", plan=replace(tiny_demo.plan, judge="nobody"))
    assert not (tmp_path / "demo" / "adapters").exists()


def test_the_plan_fits_the_shipped_collections() -> None:
    """Every prompt is of a concept that the three collections have, and the marked ones are withheld from nano."""
    plan = DemoPlan()
    with (ROOT / "examples" / "emoji" / "concepts.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["concept"]: row for row in csv.DictReader(file)}
    held = {
        name: {
            json.loads(line)["concept"]
            for line in (ROOT / "examples/emoji/slice" / name / "metadata.jsonl")
            .read_text(encoding="utf-8")
            .splitlines()
        }
        for name in plan.sources
    }
    for prompt in plan.prompts:
        concept = "-".join(prompt.split()[1:])
        assert all(concept in concepts for concepts in held.values()), prompt
        assert (rows[concept]["nano"] == "withheld") == (prompt in plan.withheld), prompt
