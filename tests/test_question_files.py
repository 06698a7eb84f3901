"""Question files of others, read as they are published: small ones of our own, and the real ones where they lie."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from shared_data import shared

from promptcdm.compbench import blip_vqa, blip_vqa_questions, load_compbench
from promptcdm.dsg import gated, load_dsg, parents_of
from promptcdm.errors import BadQuestions
from promptcdm.geneval import geneval, load_geneval
from promptcdm.question_files import read_question_file
from promptcdm.questions import Question, Text
from promptcdm.verdict import Value, always_yes, guess

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
    {
        "tag": "colors",
        "include": [{"class": "apple", "count": 1, "color": "blue"}],
        "prompt": "a photo of a blue apple",
    },
    {
        "tag": "position",
        "include": [
            {"class": "bench", "count": 1},
            {"class": "dog", "count": 1, "position": ["right of", 0]},
        ],
        "prompt": "a photo of a dog right of a bench",
    },
]


def lines(folder: Path, rows: list[dict[str, object]], name: str = "metadata.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_geneval_becomes_questions(tmp_path: Path) -> None:
    found = load_geneval(lines(tmp_path, GENEVAL))
    assert [(q.id, q.question, q.answer, q.element_type) for q in found] == [
        ("00000", "is there a bench?", "yes", "object"),
        ("00001", "are there clocks?", "yes", "object"),
        ("00001", "how many clocks are there?", "2", "counting"),
        ("00002", "is there an apple?", "yes", "object"),
        ("00002", "what color is the apple?", "blue", "color"),
        ("00003", "is there a bench?", "yes", "object"),
        ("00003", "is there a dog?", "yes", "object"),
        ("00003", "is the dog right of the bench?", "yes", "spatial"),
    ]
    assert [parents_of(q) for q in found] == [(), (), (1,), (), (1,), (), (), (2, 1)]
    assert found[4].choices[:3] == ("red", "orange", "yellow") and len(found[4].choices) == 10


def test_a_picture_of_geneval_is_right_where_every_answer_is(tmp_path: Path) -> None:
    rows = load_geneval(lines(tmp_path, [*GENEVAL, GENEVAL[0]]))
    right = [1, 1, 0, 1, 1, 1, 1, 1, 0]
    found = geneval([Value(q, float(s)) for q, s in zip(rows, right, strict=True)])
    assert found == {"single_object": 0.5, "counting": 0, "colors": 1, "position": 1, "all": 0.625}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tag": "colors", "prompt": "p"}, "line 1: is no metadata of GenEval"),
        ({**GENEVAL[2], "include": [{"class": "a", "count": 1, "color": "beige"}]}, "'beige' is none of red"),
        ({**GENEVAL[1], "include": [{"class": "a", "count": 9}]}, "'9' is none of 1, 2"),
        (
            {**GENEVAL[3], "include": [{"class": "a", "count": 1, "position": ["near", 0]}]},
            "'near' is none of left of",
        ),
    ],
)
def test_metadata_that_cannot_be_used(tmp_path: Path, row: dict[str, object], words: str) -> None:
    with pytest.raises(BadQuestions, match=words):
        load_geneval(lines(tmp_path, [row]))


def test_compbench_prompts_and_noun_phrases(tmp_path: Path) -> None:
    path = tmp_path / "color_val.txt"
    path.write_text("a green bench and a blue bowl\n\ntwo boys\n", encoding="utf-8")
    texts = load_compbench(path)
    assert texts == (Text("color_val_0", "a green bench and a blue bowl"), Text("color_val_1", "two boys"))
    questions = blip_vqa_questions([*texts, Text("x", "Marvelling slowly.")])
    assert [q.question for q in questions] == [
        "a green bench?",
        "a blue bowl?",
        "two boys?",
        "Marvelling slowly?",
    ]
    scored = blip_vqa([Value(q, s) for q, s in zip(questions, (0.9, 0.5, 0.8, 1.0), strict=True)])
    assert scored.by_caption == {"color_val_0": pytest.approx(0.45), "color_val_1": 0.8, "x": 1}


def test_files_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    record = {
        "id": "a",
        "caption": "a dog",
        "question": "is there a dog?",
        "choices": ["yes"],
        "answer": "yes",
    }
    tifa = tmp_path / "questions.json"
    tifa.write_text(json.dumps([record]))
    prompts = tmp_path / "mine.txt"
    prompts.write_text("two red apples left of a dog\n")
    table = tmp_path / "dsg.csv"
    table.write_text("item_id,text,proposition_id,dependency,question_natural_language\nx,t,1,0,Is it?\n")
    assert read_question_file(tifa)[0].question == "is there a dog?"
    assert read_question_file(lines(tmp_path, [record], "tifa.jsonl"))[0].id == "a"
    assert read_question_file(lines(tmp_path, GENEVAL))[0].id == "00000"
    assert read_question_file(table)[0].question == "Is it?"
    made = read_question_file(prompts)
    assert {"two", "red"} <= {word for q in made for word in q.element.split()}
    assert {q.answer for q in made} >= {"yes", "no", "2", "red"}


@pytest.mark.parametrize("name", ["none.csv", "none.txt", "none.json", "none.jsonl"])
def test_files_that_are_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadQuestions, match=r"none\..*cannot be read"):
        read_question_file(tmp_path / name)


def test_dsgs_published_questions() -> None:
    questions = load_dsg(shared("dsg/dsg/data/dsg-1k-anns.csv"))
    assert (len(questions), len({q.id for q in questions})) == (8182, 1060)
    kinds = Counter(q.element_type for q in questions)
    assert kinds == {"entity": 3395, "relation": 2069, "attribute": 1950, "global": 475, "other": 293}
    assert sum(bool(parents_of(q)) for q in questions) > 3000
    assert gated(always_yes(questions)).value == 1
    one, all_above = gated(guess(questions)), gated(guess(questions), transitive=True)
    assert 0.25 < all_above.value < one.value < 0.5
    assert (one.used, all_above.used) == (8182, 8182)
    rated = load_dsg(shared("dsg/dsg/data/tifa160-dev-anns.csv"))  # 920 rows, 78 without a question
    assert len(rated) == 842 and len({q.id for q in rated}) == 160


def test_genevals_published_prompts() -> None:
    questions = read_question_file(shared("geneval/prompts/evaluation_metadata.jsonl"))
    assert len({q.id for q in questions}) == 553
    tags = Counter({q.id: str(q.extra["tag"]) for q in questions}.values())
    assert tags == {
        **{"single_object": 80, "two_object": 99, "counting": 80},
        **{"colors": 94, "position": 100, "color_attr": 100},
    }
    kinds = Counter(q.element_type for q in questions)
    assert (kinds["counting"], kinds["color"], kinds["spatial"]) == (80, 294, 100)
    assert geneval(guess(questions))["all"] <= 0.5


@pytest.mark.parametrize("name", ["color", "shape", "texture", "spatial", "3d_spatial", "non_spatial"])
def test_compbenchs_published_prompts(name: str) -> None:
    texts = load_compbench(shared(f"t2i-compbench/examples/dataset/{name}_val.txt"))
    assert len(texts) == 300
    questions = blip_vqa_questions(texts)
    assert len({q.id for q in questions}) == 300
    if name == "color":  # "a green bench and a blue bowl" has two phrases
        assert len(questions) >= 580


def test_tifas_published_sample() -> None:
    questions = read_question_file(shared("tifa/sample/sample_question_answers.json"))
    assert (len(questions), {q.id for q in questions}) == (19, {"coco_301091", "drawbench_52"})
    assert isinstance(questions[0], Question)
