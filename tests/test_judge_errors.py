"""A score corrected for its judge's errors: against the formula by hand, in simulation, and where it must refuse."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from promptcdm.answer import Answer, Asked, CannotAnswer
from promptcdm.errors import BadInput
from promptcdm.judge_errors import Errors, Share, corrected, kind_of, read_errors
from promptcdm.known_pictures import Known, Thing, checks, record, tally
from promptcdm.questions import Question
from promptcdm.verdict import Verdict

NOUNS = [f"thing{n}" for n in range(40)]


def question(
    id: str, text: str, answer: str, kind: str, choices: tuple[str, ...] = ("yes", "no")
) -> Question:
    return Question(id, f"caption {id}", text, choices, answer, kind)


def verdicts(shown: list[bool], errors: Errors, rng: random.Random) -> list[Verdict]:
    """One presence question a picture, answered by a judge with these errors."""
    found = []
    for number, there in enumerate(shown):
        right = errors.sensitivity.value if there else 1 - errors.specificity.value
        said = "yes" if rng.random() < right else "no"
        found.append(Verdict(question(str(number), "is there a cat?", "yes", "object"), said))
    return found


def prompts(judged: list[Verdict]) -> dict[str, str]:
    return {v.question.id: v.question.caption for v in judged}


def test_the_estimate_is_rogan_and_gladens() -> None:
    judged = [Verdict(question(str(n), "is there a cat?", "yes", "object"), "yes") for n in range(6)]
    judged += [Verdict(question(str(n), "is there a cat?", "yes", "object"), "no") for n in range(6, 10)]
    found = corrected(judged, {"presence": Errors(Share(80, 100), Share(90, 100), "real")}, prompts(judged))
    assert found is not None
    assert found.raw == pytest.approx(0.6)
    assert found.value == pytest.approx((0.6 + 0.9 - 1) / (0.8 + 0.9 - 1))
    assert found.interval[0] < found.value < found.interval[1] <= 1
    assert found.coverage == pytest.approx(1)


def test_of_questions_answered_no_sensitivity_and_specificity_change_places() -> None:
    judged = [Verdict(question(str(n), "is there a cat?", "no", "object"), "no") for n in range(7)]
    judged += [Verdict(question("7", "is there a cat?", "no", "object"), "yes")]
    errors = {"presence": Errors(Share(70, 100), Share(95, 100), "real")}
    found = corrected(judged, errors, prompts(judged))
    assert found is not None
    assert found.value == pytest.approx((7 / 8 + 0.7 - 1) / (0.95 + 0.7 - 1))
    assert found.kinds[0].name == "presence, answered no"


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """120 experiments, in each of which the judge's errors are measured anew on 60 and 60 labelled pictures."""
    rng, held, share = random.Random(3), 0, 0.7
    true = Errors(Share(85, 100), Share(90, 100), "real")
    for seed in range(120):
        labelled = verdicts([True] * 60 + [False] * 60, true, rng)
        yes = [v.choice == "yes" for v in labelled]
        errors = Errors(Share(sum(yes[:60]), 60), Share(60 - sum(yes[60:]), 60), "generated")
        judged = verdicts([rng.random() < share for _ in range(100)], true, rng)
        found = corrected(judged, {"presence": errors}, prompts(judged), seed=seed)
        assert found is not None
        held += found.interval[0] <= share <= found.interval[1]
    assert 105 <= held <= 120  # 95 % of 120 is 114


def test_kinds_are_weighed_as_in_tifa_and_the_unmeasured_left_out() -> None:
    judged = [
        Verdict(question("a", "is there a cat?", "yes", "animal/human"), "yes"),
        Verdict(
            question("a", "what is the cat doing?", "sitting", "activity", ("sitting", "lying")), "lying"
        ),
        Verdict(question("b", "how many cats are there?", "2", "counting", ("1", "2")), "2"),
        Verdict(
            question("c", "where is the cat?", "left of the dog", "spatial", ("left of the dog", "x")), "x"
        ),
    ]
    good, bad = Errors(Share(9, 10), Share(9, 10), "real"), Errors(Share(6, 10), Share(5, 10), "real")
    found = corrected(judged, {"presence": good, "count": good, "position": bad}, prompts(judged))
    assert found is not None
    assert found.coverage == pytest.approx(
        (0.5 + 1) / 3
    )  # half of a, all of b; the judge of positions tells nothing
    assert {kind.name: kind.corrected for kind in found.kinds} == {
        "presence": pytest.approx(1),
        "count": pytest.approx(1),
        "position": None,
        "other": None,
    }
    assert corrected(judged, {}, prompts(judged)) is None
    assert [row[0] for row in found.table()] == [
        "judge's errors",
        "TIFA",
        "count",
        "other",
        "position",
        "presence",
    ]


def test_kinds() -> None:
    assert kind_of(question("a", "?", "red", "color", ("red", "blue"))) == "color"
    assert kind_of(question("a", "?", "yes", "color")) == "color, yes or no"
    assert kind_of(question("a", "?", "yes", "food")) == "presence"
    assert kind_of(question("a", "?", "yes", "activity")) == ""


class Tells:
    """A judge that sees one thing in every picture, and does not know thing0."""

    name, version, blind = "tells", "1", False

    def answers(self, batch: Sequence[Asked]) -> list[Answer]:
        return [self.answer(*asked) for asked in batch]

    def answer(self, image: Image.Image, question: str, choices: Sequence[str]) -> Answer:
        if "thing0?" in question:
            raise CannotAnswer("thing0")
        if tuple(choices) == ("yes", "no"):
            return Answer("yes" if "cat" in question or "two" in question else "no")
        return Answer(next((choice for choice in ("cat", "2", "red") if choice in choices), choices[0]))


def test_a_judge_is_tallied_by_kind_against_what_is_known() -> None:
    image = Image.new("RGB", (8, 8))
    known = [Known(image, (Thing("cat", 2, "red"),)), Known(image, (Thing("cat", 3),))]
    asked = list(checks(known, NOUNS, seed=1))
    tallies, left_out = tally(Tells(), asked)
    assert left_out == sum("thing0?" in check.asked.question for check in asked)
    counts = tallies["count"]
    assert (counts.affirmed, counts.shown) == (1, 2)  # it says two of both
    assert record(tallies)["object"]["sensitivity"] == [2, 2]
    for check in asked:
        assert check.affirms in check.asked.choices
        if check.kind == "object":
            assert len(set(check.asked.choices)) == 20
            assert ("cat" in check.asked.choices) == check.shown


def test_positions_are_asked_the_right_way_and_the_wrong_way() -> None:
    known = [Known(Image.new("RGB", (8, 8)), (Thing("cat"), Thing("dog")), "left of")]
    said = {(c.affirms, c.shown) for c in checks(known, NOUNS) if c.kind == "position"}
    assert said == {("left of the dog", True), ("right of the dog", False)}


def test_the_file_prefers_labelled_generated_pictures_where_there_are_enough(tmp_path: Path) -> None:
    def shares(right: int, of: int) -> dict[str, list[int]]:
        return {"sensitivity": [right, of], "specificity": [right, of]}

    file = tmp_path / "errors.json"
    content = {
        "version": "1",
        "real": {"object": shares(90, 100), "count": shares(80, 100)},
        "generated": {"object": shares(30, 40), "count": shares(5, 6)},
    }
    file.write_text(json.dumps(content))
    found = read_errors(file, "1")
    assert (found["object"].pictures, found["object"].sensitivity) == ("generated", Share(30, 40))
    assert (found["count"].pictures, found["count"].sensitivity) == ("real", Share(80, 100))
    with pytest.raises(BadInput, match="another version"):
        read_errors(file, "2")
    file.write_text("{}")
    with pytest.raises(BadInput, match="holds no errors of a judge"):
        read_errors(file)
