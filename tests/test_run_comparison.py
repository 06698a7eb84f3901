"""Finished results compared from their files and by command: systems, judges, and people."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from evaluated import CAPTIONS, evaluated
from shared_data import shared

from promptcdm.errors import BadInput
from promptcdm.human_ratings import read_ratings
from promptcdm.run_comparison import calibrate_result, compare_judges, compare_systems

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(run: Run) -> Run:
    """`run` of the words after `promptcdm evaluate`."""
    return partial(run, "evaluate")


def test_two_systems_by_command_and_in_a_file(run: Run, tmp_path: Path) -> None:
    evaluated(tmp_path / "ours.json", range(8))
    evaluated(tmp_path / "theirs.json", range(6))
    code, out, err = run("paired", "ours.json", "theirs.json", "--out", "paired.json")
    header, figures = out.splitlines()
    assert (code, err) == (0, "")
    assert header.split("  ")[0] == "TIFA, A - B"
    assert figures.split()[0] == "+0.222" and "0.5000" in figures.split()
    found = json.loads((tmp_path / "paired.json").read_text(encoding="utf-8"))
    assert found["difference"] == pytest.approx(2 / 9) and found["pictures"] == len(CAPTIONS)
    assert (found["a"], found["b"], found["score"]) == ("ours.json", "theirs.json", "TIFA")


def test_a_score_that_a_file_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    paths = [evaluated(tmp_path / f"{name}.json", range(8)) for name in ("a", "b")]
    with pytest.raises(BadInput, match=r"has no score 'CLIPScore'; it has TIFA, TIFA, abstentions left out"):
        compare_systems(*paths, score="CLIPScore")
    assert compare_systems(*paths, score="TIFA, abstentions left out").found.difference == 0


def test_the_same_id_on_other_captions_is_refused(tmp_path: Path) -> None:
    paths = [evaluated(tmp_path / f"{name}.json", range(8)) for name in ("a", "b")]
    extras = tmp_path / "b.extras.json"
    facts = json.loads(extras.read_text(encoding="utf-8"))
    facts["prompts"]["p3"] = "another"
    extras.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(BadInput, match="id 'p3' has another caption"):
        compare_systems(*paths)


def test_judges_agree_beyond_chance_or_not(run: Run, tmp_path: Path) -> None:
    evaluated(tmp_path / "first.json", range(6), judge="first", pictures="same")
    evaluated(tmp_path / "second.json", range(3, 9), judge="second", pictures="same")
    code, out, err = run("agreement", "first.json", "second.json", "--out", "agreement.json")
    _, row, *differ = out.splitlines()
    assert (code, err) == (0, "")
    # Each has 6 of 9 captions right, both 3: p_o = 1/3, p_e = 4/9 + 1/9.
    assert row.split()[:4] == ["first,", "second", "-0.500", "0.333"]
    assert (
        differ[0] == "p0: is there a thing? yes; yes / no"
        and differ[-1] == "and 2 more, all of them in --out"
    )
    (found,) = json.loads((tmp_path / "agreement.json").read_text(encoding="utf-8"))
    assert found["kappa"] == pytest.approx(-0.5) and len(found["differ"]) == 12
    evaluated(tmp_path / "third.json", range(6), judge="third", pictures="same")
    rows = run("agreement", "first.json", "second.json", "x=third.json")[1].splitlines()
    assert [row.split("  ")[0] for row in rows[1:]] == ["first, second", "first, x", "second, x"]
    assert rows[2].split()[2] == "1.000"


def test_judges_of_other_pictures_are_not_compared(tmp_path: Path) -> None:
    paths = [
        evaluated(tmp_path / f"{name}.json", range(6), size=size) for name, size in (("a", 12), ("b", 16))
    ]
    with pytest.raises(BadInput, match=r"other pictures under 9 of their ids, such as 'p0'"):
        compare_judges(paths)
    with pytest.raises(BadInput, match="give two result files or more"):
        compare_judges(paths[:1])


def test_a_score_against_people_and_one_rater_against_another(run: Run, tmp_path: Path) -> None:
    evaluated(tmp_path / "run.json", range(5))
    ratings = {f"p{n}": [5 if n < 5 else 1, 4 if n < 5 else 2] for n in range(8)} | {"other": [3]}
    (tmp_path / "people.json").write_text(json.dumps(ratings), encoding="utf-8")
    code, out, err = run("calibration", "run.json", "--ratings", "people.json", "--out", "found.json")
    header, score, ceiling = out.splitlines()
    assert code == 0 and err == "2 pictures have a score or a rating alone, and are left out\n"
    assert header.split("  ")[0] == "against people"
    assert score.startswith("TIFA ") and score.count("1.000 (1.000 to 1.000)") == 3 and score.endswith(" 8")
    assert ceiling.startswith("a second rater")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["against_people"]["spearman"]["value"] == pytest.approx(1)
    assert found["second_rater"]["pictures"] == 8 and found["left_out"] == 2


def test_a_constant_score_has_no_correlation(tmp_path: Path) -> None:
    path = evaluated(tmp_path / "run.json", range(9))
    (tmp_path / "people.csv").write_text("id,rating\np0,1\np1,2\np2,3\n", encoding="utf-8")
    found = calibrate_result(path, tmp_path / "people.csv")
    assert found.table()[1][1] == "undefined" and len(found.table()) == 2
    json.dumps(found.record(), allow_nan=False)


def test_ratings_of_every_kind_of_file(tmp_path: Path) -> None:
    files = {
        "plain.json": '{"a": 4, "b": [1, 2.5]}',
        "tifa.json": '{"a": {"human_scores": [4], "text_id": "x"}, "b": {"human_scores": [1, 2.5]}}',
        "list.csv": "rater,id,rating\n1,a,4\n1,b,1\n2,b,2.5\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_ratings(tmp_path / name) == {"a": (4.0,), "b": (1.0, 2.5)}, name


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("r.json", None, "cannot be read"),
        ("r.json", "{", "is not JSON"),
        ("r.json", "[1]", "is no JSON object"),
        ("r.json", "{}", "holds no rating"),
        ("r.json", '{"a": "good"}', "id 'a': the rating 'good' is no number"),
        ("r.json", '{"a": [NaN]}', "id 'a': the rating nan is no number"),
        ("r.json", '{"a": true}', "the rating True is no number"),
        ("r.csv", "picture,score\na,1\n", "has the columns picture, score"),
    ],
)
def test_ratings_that_cannot_be_used_are_refused(
    tmp_path: Path, name: str, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=words):
        read_ratings(tmp_path / name)


def test_too_few_rated_pictures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "people.json").write_text('{"p0": 1, "elsewhere": 2}', encoding="utf-8")
    with pytest.raises(BadInput, match=r"1 ids of .*run\.json are rated"):
        calibrate_result(evaluated(tmp_path / "run.json", range(9)), tmp_path / "people.json")


def test_tifas_800_ratings_are_read_as_they_are() -> None:
    found = read_ratings(shared("tifa/human_annotations/human_annotations.json"))
    assert len(found) == 800 and {len(ratings) for ratings in found.values()} == {2}


def test_tifas_table_by_command(run: Run, tmp_path: Path) -> None:
    """Another tool's scores, of 800 pictures of 160 prompts, against the ratings as they are published."""
    ratings = shared("tifa/human_annotations/human_annotations_with_scores.json")
    rows = json.loads(ratings.read_text(encoding="utf-8"))
    scores = {"mplug": {"by_caption": {id: row["tifa_mplug-large"] for id, row in rows.items()}}}
    prompts = {id: row["text_id"] for id, row in rows.items()}
    (tmp_path / "tifa.json").write_text(json.dumps({"scores": scores, "prompts": prompts}), encoding="utf-8")
    code, out, err = run("calibration", "tifa.json", "--ratings", ratings, "--score", "mplug")
    _, score, ceiling = (re.findall(r"(0\.\d+) \(", row) for row in out.splitlines())
    assert (code, err) == (0, "")
    assert score == ["0.597", "0.592", "0.472"] and ceiling == ["0.684", "0.722", "0.639"]


def test_scores_without_prompts_stand_alone(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 0.5)):
        record = {"scores": {"TIFA": {"by_caption": {f"p{n}": value for n in range(3)}}}}
        (tmp_path / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    found = compare_systems(tmp_path / "a.json", tmp_path / "b.json").found
    assert (found.difference, found.prompts, found.p) == (0.5, 3, 0.25)
    (tmp_path / "c.json").write_text('{"scores": {"TIFA": 0.5}}', encoding="utf-8")
    with pytest.raises(BadInput, match=r"c\.json: lacks scores of each picture"):
        compare_systems(tmp_path / "a.json", tmp_path / "c.json")


def test_the_report_by_command(run: Run, tmp_path: Path) -> None:
    evaluated(tmp_path / "ours.json", range(8))
    code, out, err = run("report", "ours.json", "again=ours.json", "--out", "page.html", "--pictures", "1")
    assert (code, out, err) == (0, "page.html: open it in a browser\n", "")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<article") == 1 and "again" in page
    code, _, err = run("report", "missing.json")
    assert code == 2 and err.startswith("promptcdm: missing.json: cannot be read") and err.count("\n") == 1
