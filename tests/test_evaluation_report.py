"""The report of evaluations: its numbers are the results', its text is escaped, it loads nothing and hides nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from evaluated import CAPTIONS, evaluated
from page_reader import Reader
from PIL import Image

from promptcdm.colours import source_colour
from promptcdm.errors import BadInput
from promptcdm.evaluation_report import evaluation_report, render_evaluation, source_colours
from promptcdm.evaluation_run import Run, read_run, read_runs
from promptcdm.judge_errors import Errors, Share
from promptcdm.settings import ReportSettings
from promptcdm.source_view import paired, source_views

MOST = range(8)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """All of two sources, each alone; what lacks one of two is the other alone."""
    return [
        read_run(evaluated(tmp_path / "all.json", MOST, {"birds": 0.75, "cars": 0.25})),
        read_run(evaluated(tmp_path / "birds.json", range(6), {"birds": 1.0})),
        read_run(evaluated(tmp_path / "cars.json", range(4), {"cars": 1.0})),
    ]


def test_scores_intervals_and_blind_judges_stand_side_by_side(runs: list[Run]) -> None:
    words = Reader(render_evaluation(runs)).words
    for run in runs:
        average = sum(run.captions.values()) / len(run.captions)
        low, high = run.facts["interval_95"]
        assert f"{run.name} " in words
        assert f"{average:.2f} {low:.2f} to {high:.2f}" in words
    # Of the colour, "always yes" gets none and "first choice" the red third; of the other question both get all.
    assert words.count("blind: always yes 0.50, chance 0.38, first choice 0.67") >= 3
    assert "corrected for chance 0.82" in words  # (8/9 - 3/8) / (1 - 3/8)


def test_a_run_no_better_than_blind_judges_is_called_that(tmp_path: Path) -> None:
    bad = read_run(evaluated(tmp_path / "bad.json", range(2)))
    assert "No run has its whole interval above" in Reader(render_evaluation([bad])).words
    good = read_run(evaluated(tmp_path / "good.json", range(9)))
    words = Reader(render_evaluation([good, bad])).words
    assert "No run" not in words and "blind" in words and "sees no picture: good ." in words
    assert "With 9 prompts the intervals are rough" in words
    assert "Every run has its whole interval" in Reader(render_evaluation([good, good])).words


def test_runs_are_compared_with_the_first_by_prompt(runs: list[Run]) -> None:
    words = Reader(render_evaluation(runs)).words
    assert "Compared with all" in words
    found = paired(runs[1], runs[0])
    assert found is not None and found.difference == pytest.approx(-2 / 9)
    assert found.interval[1] == 0  # which has no sign
    low, high = f"{found.interval[0]:+.2f}".replace("-", "−"), "0.00"
    assert f"B birds −0.22 {low} to {high} " in words
    assert "9 prompts, 9 pictures" in words
    assert "p 0.500" in words  # two of nine prompts differ: of 2^2 sign flips, two are as large
    assert "Compared" not in Reader(render_evaluation(runs[:1])).words


def test_types_have_bars_with_intervals_and_few_prompts_have_none(runs: list[Run], tmp_path: Path) -> None:
    words = Reader(render_evaluation(runs[:1])).words
    low, high = runs[0].facts["type_intervals_95"]["color"]
    assert f"color 9 questions 0.89 {low:.2f} to {high:.2f} blind: always yes 0.00" in words
    extras = tmp_path / "all.extras.json"
    facts = json.loads(extras.read_text(encoding="utf-8"))
    facts["type_intervals_95"] = {}
    extras.write_text(json.dumps(facts), encoding="utf-8")
    assert (
        "color 9 questions 0.89 blind:" in Reader(render_evaluation([read_run(tmp_path / "all.json")])).words
    )


def test_each_source_alone_without_and_what_it_adds(runs: list[Run]) -> None:
    whole, views = source_views(runs)
    assert whole is runs[0]
    assert [view.source for view in views] == ["birds", "cars"]
    assert views[0].alone is runs[1] and views[0].without is runs[2]
    assert views[0].adds is not None and views[0].adds.difference == pytest.approx(4 / 9)
    words = Reader(render_evaluation(runs)).words
    assert "birds alone 0.67 B all but it 0.44 C it adds +0.44" in words
    assert "cars alone 0.44 C all but it 0.67 B it adds +0.22" in words
    # Two sets of which neither holds the other give no view, nor does a run without records.
    assert source_views(runs[1:]) == (None, ())


def test_a_source_has_one_colour_in_every_run(runs: list[Run]) -> None:
    assert source_colours(runs[::-1]) == {"birds": source_colour(0), "cars": source_colour(1)}
    html = render_evaluation(runs)
    assert f'background:{source_colour(1)}"></span>cars' in html
    assert f'background:{source_colour(0)}"></span>cars' not in html


def test_weights_over_the_steps_are_drawn_where_there_are_several(runs: list[Run]) -> None:
    html = render_evaluation(runs)
    # 4 steps in a box of 4 x 1: birds fill three quarters from below, cars the rest.
    assert html.count('<svg viewBox="0 0 4 1"') == 1 + len(CAPTIONS)
    assert "M0 0.2500L1 0.2500" in html and "M0 0.0000L1 0.0000" in html
    assert "birds 75 % cars 25 %" in Reader(html).words
    assert "Weights while" not in Reader(render_evaluation(runs[1:2])).words


def test_every_question_shows_answer_and_choice(runs: list[Run]) -> None:
    words = Reader(render_evaluation(runs[:1])).words
    assert words.count("what color is it?") == len(CAPTIONS)
    assert "what color is it? blue ✗ wrong gray" in words  # caption 8
    assert "is there a thing? yes ✓ right" in words
    # The lowest score comes first.
    headings = re.findall(r"<h3>a (\w+) &lt;b&gt;(\w+)", render_evaluation(runs[:1]))
    assert headings[0] == ("blue", "hat") and headings[1] == ("red", "cup")


def test_answers_that_match_no_choice_are_told_from_wrong_ones(tmp_path: Path) -> None:
    path = evaluated(tmp_path / "run.json", range(9))
    result = json.loads(path.read_text(encoding="utf-8"))
    row = result["question_details"]["p0"]["what color is it?"]
    row["multiple_choice_vqa"], row["scores"] = "<i>who knows</i>", 0
    path.write_text(json.dumps(result), encoding="utf-8")
    html = render_evaluation([read_run(path)])
    assert "? unmatched <i>who knows</i>" in Reader(html).words
    assert "<i>who" not in html


def test_it_loads_nothing_and_text_is_escaped(runs: list[Run]) -> None:
    html = render_evaluation(runs)
    reader = Reader(html)
    assert "<b>cup" not in html and "a red <b>cup</b>" in reader.words
    for tag, attributes in reader.tags:
        assert tag not in ("link", "script", "iframe", "object", "embed", "base")
        for name in ("src", "srcset", "href", "poster", "data", "action", "xlink:href"):
            value = attributes.get(name) or ""
            assert not value or value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#"))
    assert not re.search(r"url\(|@import|https?:", html)
    ids = [a["id"] for _, a in reader.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for tag, a in reader.tags if tag == "a" and a["href"]} <= set(ids)


def test_every_picture_has_words_and_every_control_a_name(runs: list[Run]) -> None:
    html = render_evaluation(runs)
    tags = Reader(html).tags
    alts = [a["alt"] for tag, a in tags if tag == "img"]
    assert len(alts) == len(runs) * len(CAPTIONS) and all(alts)
    assert "a red <b>cup</b>, all, 75\u202f% birds, 25\u202f% cars: 2 of 2 right" in alts
    assert html.count("<label>") == sum(tag == "input" for tag, _ in tags) == 3
    assert 'name="viewport" content="width=device-width' in html


def test_a_large_picture_is_made_smaller_and_a_small_one_stays(tmp_path: Path) -> None:
    large = read_run(evaluated(tmp_path / "large.json", MOST, size=300))
    small = read_run(evaluated(tmp_path / "small.json", MOST))
    assert "data:image/jpeg" in render_evaluation([large]) and "data:image/png" not in render_evaluation(
        [large]
    )
    assert "data:image/jpeg" not in render_evaluation([small])
    assert "data:image/jpeg" not in render_evaluation([large], ReportSettings(picture_size=300))


def test_a_picture_that_was_changed_or_is_gone_is_not_shown(runs: list[Run]) -> None:
    Image.new("RGB", (12, 12), "white").save(runs[0].picture("p0"))
    runs[0].picture("p1").unlink()
    words = Reader(render_evaluation(runs[:1])).words
    assert "changed since it was judged" in words and "no longer there" in words


def test_only_so_many_captions_are_shown_and_the_rest_is_counted(runs: list[Run]) -> None:
    html = render_evaluation(runs, ReportSettings(pictures=2))
    assert html.count("<article") == 2
    assert "7 captions with higher scores" in Reader(html).words
    assert render_evaluation(runs, ReportSettings(pictures=0)).count("<article") == len(CAPTIONS)
    with pytest.raises(BadInput, match="pictures is -1"):
        render_evaluation(runs, ReportSettings(pictures=-1))


def test_what_it_was_made_of_is_there(runs: list[Run]) -> None:
    words = Reader(render_evaluation(runs)).words
    for value in (
        "told 1",
        "b" * 64,
        "c" * 64,
        runs[0].facts["questions_sha256"],
        "0 to 8",
        "guidance_scale 2.0",
    ):
        assert value in words
    assert runs[0].facts["versions"]["torch"] in words


def test_what_was_left_out_is_named(tmp_path: Path) -> None:
    evaluated(tmp_path / "run.json", MOST)
    (tmp_path / "run-pictures" / "0003.png").write_bytes(b"no picture")
    words = Reader(render_evaluation([read_run(evaluated(tmp_path / "run.json", MOST))])).words
    assert "Left out" in words and "p3 , 2 questions: " in words and "coverage 0.89" in words


def test_other_questions_are_not_compared_in_silence(runs: list[Run], tmp_path: Path) -> None:
    extras = tmp_path / "cars.extras.json"
    facts = json.loads(extras.read_text(encoding="utf-8"))
    extras.write_text(json.dumps(facts | {"questions_sha256": "other"}), encoding="utf-8")
    changed = [*runs[:2], read_run(tmp_path / "cars.json")]
    assert "different questions" in Reader(render_evaluation(changed)).words
    assert "different questions" not in Reader(render_evaluation(runs)).words


def test_the_file_names_no_folder_and_is_the_same_again(tmp_path: Path) -> None:
    paths = [evaluated(tmp_path / f"{name}.json", MOST) for name in ("one", "two")]
    out = evaluation_report([f"first={paths[0]}", paths[1]], tmp_path / "new" / "report.html")
    page = out.read_text(encoding="utf-8")
    assert str(tmp_path) not in page and "first" in Reader(page).words
    again = evaluation_report([f"first={paths[0]}", paths[1]], tmp_path / "again.html")
    assert again.read_bytes() == out.read_bytes()


def test_runs_move_with_their_pictures(tmp_path: Path) -> None:
    evaluated(tmp_path / "here" / "run.json", MOST)
    (tmp_path / "here").rename(tmp_path / "there")
    run = read_run(tmp_path / "there" / "run.json")
    assert not any(run.problem(id) for id in run.captions)


def test_the_files_beside_a_result_are_passed_over(tmp_path: Path) -> None:
    evaluated(tmp_path / "a.json", MOST)
    evaluated(tmp_path / "b.json", MOST)
    everything = sorted(tmp_path.glob("*.json"))
    assert len(everything) == 4
    assert [run.name for run in read_runs(everything)] == ["a", "b"]
    with pytest.raises(BadInput, match="there is no run; give one result file or more"):
        evaluation_report([tmp_path / "a.extras.json"], tmp_path / "report.html")


def test_runs_are_named_by_file_then_folder(tmp_path: Path) -> None:
    paths = [evaluated(tmp_path / name / "result.json", MOST) for name in ("a", "b")]
    assert [run.name for run in read_runs(paths)] == ["a", "b"]
    assert [run.name for run in read_runs([paths[0]])] == ["result"]
    with pytest.raises(BadInput, match="two runs are called 'a'; name them"):
        read_runs([paths[0], f"a={paths[1]}", paths[1]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", r"run\.extras\.json is not beside it; give the same"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "run.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=words):
        read_run(path)


def test_a_result_of_an_older_version_says_what_to_do(tmp_path: Path) -> None:
    path = evaluated(tmp_path / "run.json", MOST)
    extras = tmp_path / "run.extras.json"
    facts = json.loads(extras.read_text(encoding="utf-8"))
    del facts["pictures"], facts["prompts"]
    extras.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(BadInput, match=r"lacks pictures, prompts, as of an older version; give the same"):
        read_run(path)


def test_two_judges_on_the_same_pictures_are_compared_by_kappa(tmp_path: Path) -> None:
    one = read_run(evaluated(tmp_path / "one.json", range(6), judge="one", pictures="same"))
    other = read_run(evaluated(tmp_path / "other.json", range(3, 9), judge="other", pictures="same"))
    words = Reader(render_evaluation([one, other])).words
    # Both are right on 3 captions of 9; where one errs, the other does not. p_o = 1/3, p_e = 4/9 + 1/9.
    assert "A one, B other −0.50 0.33 18 0" in words
    same = read_run(evaluated(tmp_path / "again.json", range(6), judge="one", pictures="same"))
    assert "Two judges" not in Reader(render_evaluation([one, same])).words
    elsewhere = read_run(evaluated(tmp_path / "elsewhere.json", range(6), judge="other", size=16))
    assert "Two judges" not in Reader(render_evaluation([one, elsewhere])).words


def test_the_score_corrected_for_the_judges_errors_stands_beside_the_raw_one(tmp_path: Path) -> None:
    errors = {"color": Errors(Share(90, 100), Share(95, 100), "real")}
    run = read_run(evaluated(tmp_path / "run.json", range(6), errors=errors))
    found = run.facts["corrected_for_judge"]
    assert found["coverage"] == pytest.approx(0.5)  # the yes/no question was not measured
    assert found["value"] == pytest.approx((6 / 9 + 0.95 - 1) / 0.85)
    low, high = found["interval_95"]
    words = Reader(render_evaluation([run])).words
    assert f"corrected for the judge's errors 0.73 ({low:.2f} to {high:.2f}), raw 0.67" in words
    assert "over 50 % of the score" in words
