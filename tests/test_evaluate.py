"""TIFA over pictures: library, script, files, and what a judge is shown."""

from __future__ import annotations

import gc
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from promptcdm.answer import Answer, Asked
from promptcdm.errors import BadInput, BadQuestions, RunFailed
from promptcdm.evaluate import evaluate_tifa, load_image_map, run_tifa
from promptcdm.judgements import JudgementLog
from promptcdm.questions import Question

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "eval" / "tifa.py"
COLORS = {"r": "red", "g": "lime", "b": "blue"}
CHOICES = ("red", "lime", "blue", "gray")


@dataclass
class ColorJudge:
    """Names the colour of the first pixel; keeps what it was shown."""

    name: str = "color"
    version: str = "1"
    blind: bool = False
    shown: list[Asked] = field(default_factory=list)

    def answers(self, batch: Sequence[Asked]) -> list[Answer]:
        self.shown.extend(batch)
        names = {(255, 0, 0): "red", (0, 255, 0): "lime", (0, 0, 255): "blue"}
        found = []
        for asked in batch:
            pixel = asked.image.getpixel((0, 0))
            assert isinstance(pixel, tuple)
            found.append(Answer(names[pixel[0], pixel[1], pixel[2]]))
        return found

    def answer(self, image: Image.Image, question: str, choices: Sequence[str]) -> Answer:
        return self.answers([Asked(image, question, tuple(choices))])[0]


def questions() -> list[Question]:
    """Two on each picture, the second's answer wrong of the blue one."""
    found = []
    for id, color in COLORS.items():
        found.append(Question(id, f"all {color}", "what color is it?", CHOICES, color, "color", color))
        other = "red" if id == "b" else color
        found.append(Question(id, f"all {color}", "and at the left?", CHOICES, other, "spatial", color))
    return found


def pictures(folder: Path, colors: dict[str, str] = COLORS) -> Path:
    """Pictures below `folder`/pictures and their map; returns the map."""
    (folder / "pictures").mkdir(parents=True)
    for id, color in colors.items():
        Image.new("RGB", (8, 8), color).save(folder / "pictures" / f"{id}.png")
    path = folder / "map.json"
    path.write_text(json.dumps({id: f"pictures/{id}.png" for id in colors}), encoding="utf-8")
    return path


def question_file(folder: Path) -> Path:
    path = folder / "questions.json"
    path.write_text(json.dumps([question.record() for question in questions()]), encoding="utf-8")
    return path


def test_scores_table_and_extras(tmp_path: Path) -> None:
    report = evaluate_tifa(questions(), load_image_map(pictures(tmp_path)), ColorJudge())
    assert report.result["caption_scores"] == {"r": 1.0, "g": 1.0, "b": 0.5}
    assert report.average == pytest.approx(5 / 6)
    assert report.result["accuracy_by_type"] == {"color": 1.0, "spatial": pytest.approx(2 / 3)}
    assert report.table() == [
        ("", "color", "95 %", "always yes", "first choice", "chance", "questions"),
        ("TIFA, 3 captions", "0.833", "0.500 to 1.000", "0.000", "0.500", "0.250", "6"),
        ("color", "1.000", "", "0.000", "0.333", "0.250", "3"),
        ("spatial", "0.667", "", "0.000", "0.667", "0.250", "3"),
    ]
    assert report.extras()["questions"] == {"all": 6, "color": 3, "spatial": 3}


def test_choices_are_shuffled_by_id_and_question_alone(tmp_path: Path) -> None:
    images = load_image_map(pictures(tmp_path))
    shown = {}
    for run, rows in (("whole", questions()), ("part", questions()[2:4]), ("other seed", questions())):
        judge = ColorJudge()
        evaluate_tifa(rows, images, judge, seed=int(run == "other seed"))
        keys = [(question.id, question.question) for question in rows]
        shown[run] = {key: asked.choices for key, asked in zip(keys, judge.shown, strict=True)}
    assert all(sorted(choices) == sorted(CHOICES) for choices in shown["whole"].values())
    assert len(set(shown["whole"].values())) > 1
    assert shown["part"] == {key: shown["whole"][key] for key in shown["part"]}
    assert shown["other seed"] != shown["whole"]


def test_blind_judges_are_shown_the_order_of_the_file(tmp_path: Path) -> None:
    files = question_file(tmp_path), pictures(tmp_path)
    for judge, baseline in (("first-choice", "first choice"), ("always-yes", "always yes")):
        report = run_tifa(*files, judge)
        assert report.average == pytest.approx(report.baselines[baseline]["all"])
    assert report.unmatched == 6  # "yes" is no choice here


def test_answers_that_match_no_choice_score_nothing_and_are_counted(tmp_path: Path) -> None:
    images = load_image_map(pictures(tmp_path))
    free = [Question("r", "all red", "what is it?", ("square", "circle"), "square", "shape")]
    report = evaluate_tifa(free, images, ColorJudge())
    assert (report.average, report.unmatched) == (0.0, 1)


def test_every_missing_picture_is_named_before_any_judging(tmp_path: Path) -> None:
    images = load_image_map(pictures(tmp_path, {"g": "lime"}))
    images["b"] = tmp_path / "gone.png"
    judge = ColorJudge()
    with pytest.raises(
        BadQuestions, match=r"2 of 3 pictures are missing.*map: r.*no such file: b \(gone\.png\)"
    ):
        evaluate_tifa(questions(), images, judge)
    assert judge.shown == []


def test_a_picture_that_cannot_be_read_is_named_and_in_no_score(tmp_path: Path) -> None:
    files = question_file(tmp_path), pictures(tmp_path)
    (tmp_path / "pictures" / "r.png").write_bytes(b"no picture")
    report = evaluate_tifa(questions(), load_image_map(files[1]), ColorJudge())
    assert report.result["caption_scores"] == {"g": 1.0, "b": 0.5}
    assert report.average == 0.75
    assert (report.captions, report.counts["all"], len(report.failures)) == (2, 4, 2)
    assert {score.name: score.coverage for score in report.scores}["TIFA"] == pytest.approx(4 / 6)
    (line,) = report.left_out()
    assert line.startswith("r: 2 questions left out; ") and "r.png: is not a picture" in line
    assert report.extras()["failures"] == [
        {"id": "r", "question": question.question, "reason": report.failures[0].reason}
        for question in questions()[:2]
    ]
    json.dumps(report.extras(), allow_nan=False)


def test_nothing_judged_is_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    files = question_file(tmp_path), pictures(tmp_path)
    for path in (tmp_path / "pictures").iterdir():
        path.write_bytes(b"no picture")
    out = tmp_path / "out" / "result.json"
    with pytest.raises(RunFailed, match=r"none of 6 questions could be judged; r: .*r\.png"):
        run_tifa(*files, "first-choice", out)
    assert not out.parent.exists()


def test_scores_by_every_rule_stand_beside_what_a_guess_gets(tmp_path: Path) -> None:
    report = evaluate_tifa(questions(), load_image_map(pictures(tmp_path)), ColorJudge())
    assert report.score_table() == [
        ("by rule", "color", "95 %", "chance", "corrected", "coverage"),
        ("TIFA", "0.833", "0.500 to 1.000", "0.250", "0.778", "1.000"),
        ("TIFA, abstentions left out", "0.833", "0.500 to 1.000", "0.250", "0.778", "1.000"),
    ]
    scores = report.extras()["scores"]
    assert isinstance(scores, dict)
    assert scores["TIFA"]["corrected"] == {
        "always yes": pytest.approx(5 / 6),
        "first choice": pytest.approx(2 / 3),
        "chance": pytest.approx(7 / 9),
    }


def test_a_log_makes_the_second_run_free_and_the_same(tmp_path: Path) -> None:
    images, path = load_image_map(pictures(tmp_path)), tmp_path / "judgements.jsonl"
    first, second = ColorJudge(), ColorJudge()
    whole = evaluate_tifa(questions(), images, first, log=JudgementLog(path))
    again = evaluate_tifa(questions(), images, second, log=JudgementLog(path))
    assert (len(first.shown), whole.new) == (6, 6)
    assert (second.shown, again.new) == ([], 0)
    assert (again.result, again.extras()) == (whole.result, whole.extras())


def test_ten_thousand_judgements_of_the_log_take_less_than_two_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processor time, so that a busy machine does not fail it: log, digests, scores, intervals, table."""
    rows, paths, path = [], {}, tmp_path / "judgements.jsonl"
    for number in range(1000):
        id, kind = f"p{number}", ("object", "color", "spatial")[number % 3]
        picture = Image.new("RGB", (8, 8), "red")
        picture.putpixel((7, 7), (number % 256, number // 256, 0))
        paths[id] = tmp_path / f"{id}.png"
        picture.save(paths[id])
        rows += [Question(id, f"caption {number}", f"question {q}?", CHOICES, "red", kind) for q in range(10)]

    class Sure(ColorJudge):
        def answers(self, batch: Sequence[Asked]) -> list[Answer]:
            return [Answer("red", (0.25,) * 4, "red, I think") for _ in super().answers(batch)]

    monkeypatch.setattr("promptcdm.asking._QUESTIONS_AT_ONCE", len(rows))  # written at once
    evaluate_tifa(rows, paths, Sure(), log=JudgementLog(path))
    gc.collect()
    gc.freeze()  # or the collector walks all that the other tests have left, again and again
    times = []
    for _ in range(
        3
    ):  # the fastest of three: a busy machine makes processor time grow, nothing makes it shrink
        judge, before = Sure(), time.process_time()
        report = evaluate_tifa(rows, paths, judge, log=JudgementLog(path))
        assert len(report.table()) + len(report.score_table()) == 5 + 5
        times.append(time.process_time() - before)
        assert (judge.shown, report.new, report.average) == ([], 0, 1.0)
    gc.unfreeze()
    print(f"{min(times):.2f} s of processor time")
    assert min(times) < 2, times


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    path = tmp_path / "clear.png"
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(path)
    seen: list[Any] = []

    @dataclass
    class Looking(ColorJudge):
        def answers(self, batch: Sequence[Asked]) -> list[Answer]:
            seen.extend(asked.image.getpixel((0, 0)) for asked in batch)
            return [Answer("yes") for _ in batch]

    evaluate_tifa([Question("a", "", "white?", ("yes", "no"), "yes")], {"a": path}, Looking())
    assert seen == [(255, 255, 255)]


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 3}', '{"a": ""}'])
def test_image_maps_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadQuestions, match=r"map\.json"):
        load_image_map(path)


def test_no_questions_is_an_error() -> None:
    with pytest.raises(BadQuestions):
        evaluate_tifa([], {}, ColorJudge())


def test_script_writes_tifas_result_and_the_rest_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The paths of the map are relative to its folder, wherever the script is run."""
    out = tmp_path / "deep" / "result.json"
    question_path, map_path = question_file(tmp_path), pictures(tmp_path)
    monkeypatch.chdir("/")
    main = runpy.run_path(str(SCRIPT))["main"]
    flags = ["--questions", str(question_path), "--images", str(map_path), "--judge", "first-choice"]
    assert main([*flags, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "always yes  first choice  chance" in printed
    result = json.loads(out.read_text(encoding="utf-8"))
    keys = {"tifa_average", "tifa_stdev", "accuracy_by_type", "question_details", "caption_scores"}
    assert set(result) == keys
    extras = json.loads((out.parent / "result.extras.json").read_text(encoding="utf-8"))
    assert extras["judge"] == "first-choice"
    assert set(extras["baselines"]) == {"always yes", "first choice", "chance"}
    names = ["result.extras.json", "result.json", "result.judgements.jsonl"]
    assert sorted(path.name for path in out.parent.iterdir()) == names
    assert len(JudgementLog(out.parent / names[2])) == 6
    first = out.read_bytes()
    assert main([*flags, "--out", str(out)]) == 0
    assert out.read_bytes() == first


def test_script_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--questions", "none.json", "--images", "none.json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [*command, "--judge", "oracle"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1
    assert "none.json" in run.stderr


def test_negatives_and_replay_by_name(tmp_path: Path) -> None:
    rows = [
        Question(id, f"all {c}", f"is it {c}?", ("yes", "no"), "yes", "color") for id, c in COLORS.items()
    ]
    path = tmp_path / "yes.json"
    path.write_text(json.dumps([question.record() for question in rows]), encoding="utf-8")
    log = tmp_path / "log.jsonl"
    report = run_tifa(path, pictures(tmp_path), "always-yes", judgements=log, negatives=True)
    assert (report.average, report.counts["all"]) == (0.5, 4)  # "lime" is no colour that can be changed
    assert report.baselines["always yes"]["all"] == 0.5
    again = run_tifa(path, tmp_path / "map.json", "replay:always-yes", judgements=log, negatives=True)
    assert (again.average, again.new) == (report.average, 0)
    with pytest.raises(BadInput, match="no answer of judge 'sphinx'"):
        run_tifa(path, tmp_path / "map.json", "replay:sphinx", judgements=log)
