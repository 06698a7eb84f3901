"""The demo's report: its numbers are the result's, its text is escaped, and it loads nothing."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from page_reader import Reader
from PIL import Image

from promptcdm.colours import source_colour
from promptcdm.demo_result import (
    DemoResult,
    Forgotten,
    Row,
    Ruler,
    Score,
    SourceFacts,
    load_result,
)
from promptcdm.errors import BadInput
from promptcdm.report import render_report, write_report

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("flat", "round", "lines")
PROMPTS = ("a fox", 'a "<script>alert(1)</script>" & cat')


def record(prompt: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    """What the report reads of a picture's record."""
    steps = [{name: 1 / len(allowed) for name in allowed} for _ in range(3)] if allowed else []
    return {
        "prompt": prompt,
        "allowed": list(allowed),
        "weights": {name: 1 / len(allowed) for name in allowed},
        "weights_by_step": steps,
    }


def row(out: Path, title: str, allowed: tuple[str, ...], score: Score) -> Row:
    folder = f"pictures/{len(title)}-{len(allowed)}"
    (out / folder).mkdir(parents=True, exist_ok=True)
    for n in range(len(PROMPTS)):
        Image.new("RGB", (64, 64), "olive").save(out / folder / f"{n:04d}.png")
    return Row(title, "no adapter", allowed, folder, tuple(record(p, allowed) for p in PROMPTS), score)


@pytest.fixture
def result(tmp_path: Path) -> DemoResult:
    titles = ("backbone alone", "mit", "mit+cc-by", "all", "all, lines forgotten")
    rights = ((), SOURCES[:1], SOURCES[:2], SOURCES, SOURCES[:2])
    rows = [
        row(tmp_path, title, allowed, Score(0.41 + n / 10, 0.313, 0.977))
        for n, (title, allowed) in enumerate(zip(titles, rights, strict=True))
    ]
    return DemoResult(
        version="0.9.8",
        backbone="nano",
        prompts=PROMPTS,
        shown=2,
        withheld=PROMPTS[:1],
        sources=tuple(
            SourceFacts(
                name, f"LICENCE-{n}", "people", "https://example.org/x", f"{name} <by> people", 217, "ab"
            )
            for n, name in enumerate(SOURCES)
        ),
        rows=tuple(rows),
        forgotten=Forgotten(
            "lines", "ab", 7, 123456, "mit+cc-by", "all, lines forgotten", 24576, 0, 2, 4, 13579, "no source"
        ),
        ruler=Ruler("nano-judge", 2, 18, (("always yes", 0.33), ("chance", 0.27))),
        commands=(("train flat", 'promptcdm train-adapter --data "$EMOJI/flat"'),),
        seconds=(("training flat", 61.4), ("scoring", 5.5)),
        machine=(("processor cores", "2"),),
    )


def test_it_shows_the_numbers_of_the_result(result: DemoResult, tmp_path: Path) -> None:
    words = Reader(render_report(result, tmp_path)).words
    for number in (
        "24,576",
        "13,579",
        "4 of 4",
        "7 files",
        "123,456",
        "0.41",
        "0.81",
        "0.31 to 0.98",
        "0.33",
    ):
        assert number in words
    for number in ("18 multiple-choice", "1 min 1 s", "5.5 s", "1 min 6 s", "217 pictures", "0.9.8"):
        assert number in words
    assert "forgotten: differing bytes 0" in words
    changed = replace(result, forgotten=replace(result.forgotten, differing=31))
    assert "forgotten: differing bytes 31" in Reader(render_report(changed, tmp_path)).words


def test_a_score_that_says_nothing_is_called_that(result: DemoResult, tmp_path: Path) -> None:
    # Every interval of the fixture begins at 0.313, below the best blind answer, 0.33.
    assert "No row has its whole interval above" in Reader(render_report(result, tmp_path)).words
    rows = (*result.rows[:3], replace(result.rows[3], score=Score(0.8, 0.6, 0.9)), result.rows[4])
    words = Reader(render_report(replace(result, rows=rows), tmp_path)).words
    assert "above the best blind answer: all ." in words and "No row" not in words


def test_every_user_sees_what_is_owed(result: DemoResult, tmp_path: Path) -> None:
    words = Reader(render_report(result, tmp_path)).words
    for n, name in enumerate(SOURCES):
        assert f"{name} <by> people" in words and f"LICENCE-{n}" in words


def test_text_is_escaped(result: DemoResult, tmp_path: Path) -> None:
    html = render_report(result, tmp_path)
    reader = Reader(html)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert "<script" not in html and "<by>" not in html
    assert PROMPTS[1] in reader.words


def test_it_loads_nothing(result: DemoResult, tmp_path: Path) -> None:
    html = render_report(result, tmp_path)
    reader = Reader(html)
    for tag, attributes in reader.tags:
        assert tag not in ("link", "script", "iframe", "object", "embed", "base")
        for name in ("src", "srcset", "href", "poster", "data", "action", "xlink:href"):
            value = attributes.get(name) or ""
            assert not value or value.startswith("data:image/png;base64,") or (tag, name) == ("a", "href")
    assert not re.search(r"url\(|@import", html)
    links = {a["href"] for tag, a in reader.tags if tag == "a"}
    assert links == {"https://example.org/x"}


def test_a_source_that_is_no_address_is_no_link(result: DemoResult, tmp_path: Path) -> None:
    sources = tuple(replace(source, origin="javascript:alert(1)") for source in result.sources)
    html = render_report(replace(result, sources=sources), tmp_path)
    assert "a" not in {tag for tag, _ in Reader(html).tags}


def test_every_picture_has_words(result: DemoResult, tmp_path: Path) -> None:
    tags = Reader(render_report(result, tmp_path)).tags
    grid = [a["alt"] for tag, a in tags if tag == "img" and a["alt"]]
    assert len(grid) == len(PROMPTS) * len(result.rows)
    assert "a fox, mit+cc-by: 50\u202f% flat, 50\u202f% round" in grid
    assert "a fox, backbone alone: no adapter" in grid


def test_a_source_has_one_colour(result: DemoResult, tmp_path: Path) -> None:
    html = render_report(result, tmp_path)
    for n, name in enumerate(SOURCES):
        assert f'background:{source_colour(n)}"></span>{name}' in html
    # A bar of mit+cc-by: two sources, in their order.
    bars = re.findall(r"flex:0\.5000;background:(#\w+)", html)
    assert bars[:2] == [source_colour(0), source_colour(1)]


def test_the_result_is_read_as_it_was_written(result: DemoResult, tmp_path: Path) -> None:
    result.save(tmp_path)
    assert load_result(tmp_path) == result
    path = write_report(result, tmp_path)
    assert path.read_text(encoding="utf-8") == render_report(load_result(tmp_path), tmp_path)
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    json.loads((tmp_path / "demo.json").read_text(encoding="utf-8"))


def test_a_folder_without_a_demo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"demo\.json: no such file; run `promptcdm demo"):
        load_result(tmp_path)


def test_the_readme_picture_is_drawn_from_a_demo(result: DemoResult, tmp_path: Path) -> None:
    draw = runpy.run_path(str(ROOT / "docs" / "picture.py"))["main"]
    assert draw(["--demo", str(tmp_path), "--out", str(tmp_path / "a.png")]) == 2  # no demo.json yet
    result.save(tmp_path)
    for name in ("a.png", "b.png"):
        assert draw(["--demo", str(tmp_path), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == 2000
