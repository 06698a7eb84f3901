"""TIFA's formula and result format, to the last digit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from promptcdm.questions import Question, load_questions
from promptcdm.tifa import Verdict, blind_baselines, bootstrap_interval, tifa_result

KEYS = {"tifa_average", "tifa_stdev", "accuracy_by_type", "question_details", "caption_scores"}

# Two captions with 11 and 8 questions, of which 11 and 5 are judged right, as in TIFA's sample.
KITE = [
    *("animal/human",) * 2,
    *("object",) * 1,
    *("location",) * 2,
    *("activity",) * 2,
    *("color",) * 4,
]
BIRDS = [
    ("animal/human", 1),
    ("animal/human", 0),
    ("object", 1),
    ("object", 1),
    ("activity", 1),
    ("counting", 0),
    ("counting", 1),
    ("counting", 0),
]


def verdict(id: str, number: int, kind: str, right: int) -> Verdict:
    caption = {"kite": "a girl flies a kite", "birds": "three crows and two owls on a roof"}[id]
    question = Question(
        id, caption, f"question {number}?", ("yes", "no"), "yes", kind, "", {"source": "made"}
    )
    return Verdict(question, "yes" if right else "no", "yes, I think" if right else "")


def sample() -> list[Verdict]:
    kite = [verdict("kite", number, kind, 1) for number, kind in enumerate(KITE)]
    return kite + [verdict("birds", number, kind, right) for number, (kind, right) in enumerate(BIRDS)]


def test_the_figures_of_tifas_sample() -> None:
    result = tifa_result(sample())
    assert set(result) == KEYS
    assert result["caption_scores"] == {"kite": 1.0, "birds": 0.625}
    assert result["tifa_average"] == 0.8125
    assert result["tifa_stdev"] == 0.2651650429449553
    assert result["accuracy_by_type"] == {
        "animal/human": 0.75,
        "object": 1,
        "location": 1,
        "activity": 1,
        "color": 1,
        "counting": 1 / 3,
    }


def test_each_question_is_listed_with_its_verdict() -> None:
    details = tifa_result(sample())["question_details"]
    assert isinstance(details, dict)
    assert {id: len(rows) for id, rows in details.items()} == {"kite": 11, "birds": 8}
    assert details["birds"]["question 1?"] == {
        "id": "birds",
        "caption": "three crows and two owls on a roof",
        "question": "question 1?",
        "choices": ["yes", "no"],
        "answer": "yes",
        "element_type": "animal/human",
        "element": "",
        "source": "made",
        "free_form_vqa": "no",
        "multiple_choice_vqa": "no",
        "scores": 0,
    }
    assert details["birds"]["question 0?"]["free_form_vqa"] == "yes, I think"


def test_the_average_is_over_captions_not_over_questions() -> None:
    verdicts = sample()
    assert tifa_result(verdicts)["tifa_average"] != sum(v.score for v in verdicts) / len(verdicts)


def test_a_repeated_question_counts_twice_and_is_listed_once() -> None:
    twice = [
        verdict("kite", 0, "object", 1),
        verdict("kite", 0, "object", 0),
        verdict("kite", 1, "object", 1),
    ]
    result = tifa_result(twice)
    assert result["tifa_average"] == 2 / 3
    details = result["question_details"]
    assert isinstance(details, dict)
    assert len(details["kite"]) == 2


def test_one_caption_has_no_standard_deviation() -> None:
    result = tifa_result(sample()[:11])
    assert result["tifa_average"] == 1.0
    assert result["tifa_stdev"] is None
    json.dumps(result, allow_nan=False)


def test_blind_baselines() -> None:
    questions = [
        Question("a", "", "is there a dog?", ("yes", "no"), "yes", "object"),
        Question("a", "", "is there a cat?", ("yes", "no"), "no", "object"),
        Question("a", "", "what is it?", ("dog", "cat", "cow", "pig"), "dog", "object"),
        Question("b", "", "what color is it?", ("red", "blue"), "blue", "color"),
    ]
    baselines = blind_baselines(questions)
    assert baselines["always yes"] == {
        "all": pytest.approx(1 / 6),
        "object": pytest.approx(1 / 3),
        "color": 0,
    }
    assert baselines["first choice"] == {
        "all": pytest.approx(1 / 3),
        "object": pytest.approx(2 / 3),
        "color": 0,
    }
    guess = (1 / 2 + 1 / 2 + 1 / 4) / 3
    assert baselines["chance"]["all"] == pytest.approx((guess + 1 / 2) / 2)
    assert baselines["chance"]["object"] == pytest.approx(guess)


def test_the_interval_is_over_captions() -> None:
    scores = {str(index): float(index % 2) for index in range(100)}
    low, high = bootstrap_interval(scores)
    # Half of 100 right: the normal interval is 0.5 +- 0.098.
    assert (low, high) == (pytest.approx(0.402, abs=0.02), pytest.approx(0.598, abs=0.02))
    assert bootstrap_interval(scores) == (low, high)
    assert bootstrap_interval({"only": 0.25}) == (0.25, 0.25)


def test_tifas_own_sample() -> None:
    """The sample that TIFA ships: its questions and verdicts give its result, key for key."""
    for parent in Path(__file__).resolve().parents:
        folder = parent / "shared" / "data" / "tifa" / "sample"
        if folder.is_dir():
            break
    else:
        pytest.skip("shared/data/tifa/sample is not beside this checkout")
    expected = json.loads((folder / "sample_evaluation_result.json").read_text(encoding="utf-8"))
    details = expected["question_details"]
    verdicts = []
    for question in load_questions(folder / "sample_question_answers.json"):
        row = details[question.id][question.question]
        verdicts.append(Verdict(question, row["multiple_choice_vqa"], row["free_form_vqa"]))
    assert len(verdicts) == 19
    assert tifa_result(verdicts) == expected
