"""TIFA's question records, and the questions made from captions by rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shared_data import shared

from promptcdm.caption_chunks import Chunker, plural, singular
from promptcdm.errors import BadQuestions
from promptcdm.question_recall import recall
from promptcdm.question_rules import generate_questions
from promptcdm.questions import Question, Text, load_questions, load_texts, questions_json

RECORD: dict[str, Any] = {
    "id": "p1",
    "caption": "two red apples left of a dog",
    "question": "how many apples are there?",
    "choices": ["1", "2", "3", "4"],
    "answer": "2",
    "element_type": "counting",
    "element": "two",
    "coco_val_id": "77",
}
NOUNS = ("apple", "dog", "cat", "car", "ball", "owl", "rose", "boat", "cake", "drum", "kite", "lamp", "bell")
NOUNS += (
    "crab",
    "frog",
    "whale",
    "pear",
    "lemon",
    "tent",
    "rocket",
    "anchor",
    "guitar",
    "violin",
    "fire truck",
)


def write(folder: Path, rows: object, name: str = "questions.json") -> Path:
    path = folder / name
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return path


def test_a_record_is_read_and_written_whole(tmp_path: Path) -> None:
    (question,) = load_questions(write(tmp_path, [RECORD]))
    assert (question.id, question.answer, question.choices) == ("p1", "2", ("1", "2", "3", "4"))
    assert question.record() == RECORD
    assert load_questions(write(tmp_path, questions_json([question]))) == (question,)


def test_the_old_name_of_the_type_and_missing_types(tmp_path: Path) -> None:
    old = {key: value for key, value in RECORD.items() if key != "element_type"} | {"answer_type": "counting"}
    bare = {key: RECORD[key] for key in ("id", "caption", "question", "choices", "answer")}
    first, second = load_questions(write(tmp_path, [old, bare]))
    assert first.element_type == "counting"
    assert "answer_type" not in first.extra
    assert second.element_type == "other"


def test_json_lines(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(RECORD) + "\n\n" + json.dumps(RECORD) + "\n", "questions.jsonl")
    assert len(load_questions(path)) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"caption": None}, ["row 2", "'caption'", "None"]),
        ({"question": "  "}, ["row 2", "'question'"]),
        ({"choices": []}, ["row 2", "'choices'"]),
        ({"choices": ["1", 2]}, ["row 2", "'choices'"]),
        ({"answer": "9"}, ["row 2", "'answer'", "'9'"]),
        ({"element_type": 3}, ["row 2", "'element_type'"]),
        ({"caption": "another one"}, ["row 2", "another caption"]),
    ],
)
def test_errors_name_file_row_and_key(tmp_path: Path, change: dict[str, object], words: list[str]) -> None:
    path = write(tmp_path, [RECORD, RECORD | change])
    with pytest.raises(BadQuestions) as caught:
        load_questions(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    without = {key: value for key, value in RECORD.items() if key != "choices"}
    with pytest.raises(BadQuestions, match=r"row 1, key 'choices'"):
        load_questions(write(tmp_path, [without]))
    without = {key: value for key, value in RECORD.items() if key != "answer"}
    with pytest.raises(BadQuestions, match=r"row 1: has no key 'answer'"):
        load_questions(write(tmp_path, [without]))


@pytest.mark.parametrize("text", ["{", "{}", "[]", "[3]", "null"])
def test_what_is_no_list_of_records(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadQuestions):
        load_questions(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadQuestions, match="cannot be read"):
        load_questions(tmp_path / "none.json")


def test_texts(tmp_path: Path) -> None:
    rows = [{"id": "a", "caption": "a dog"}, {"id": "b", "caption": "a cat", "coco_val_id": "1"}]
    assert load_texts(write(tmp_path, rows)) == (Text("a", "a dog"), Text("b", "a cat"))
    with pytest.raises(BadQuestions, match=r"row 2.*'a'.*twice"):
        load_texts(write(tmp_path, [rows[0], rows[0]]))
    with pytest.raises(BadQuestions, match="row 1: has no key 'caption'"):
        load_texts(write(tmp_path, [{"id": "a"}]))


def made(caption: str, nouns: tuple[str, ...] = NOUNS, *, seed: int = 0) -> dict[str, Question]:
    return {q.question: q for q in generate_questions([Text("t", caption)], nouns, seed=seed)}


def test_every_rule_on_one_caption() -> None:
    found = made("two red apples left of a blue dog")
    right = {question: q.answer for question, q in found.items()}
    assert right["are there apples?"] == "yes"
    assert right["is there a dog?"] == "yes"
    assert right["how many apples are there?"] == "2"
    assert right["are there two apples?"] == "yes"
    assert right["what color are the apples?"] == "red"
    assert right["are the apples red?"] == "yes"
    assert right["is the dog blue?"] == "yes"
    assert right["where are the apples?"] == "left of the dog"
    assert right["are the apples left of the dog?"] == "yes"
    assert right["are the apples right of the dog?"] == "no"
    assert right["what is in the picture with the dog?"] == "apple"
    types = {q.element_type for q in found.values()}
    assert types == {"food", "animal/human", "counting", "color", "spatial"}


def test_an_orange_is_a_color_before_a_noun_and_a_fruit_alone() -> None:
    found = made("an orange kite above an orange", (*NOUNS, "orange"))
    assert found["what color is the kite?"].answer == "orange"
    assert found["where is the kite?"].answer == "above the orange"
    assert "what color is the orange?" not in found


def test_object_questions_have_twenty_choices_that_share_no_word_with_the_caption() -> None:
    question = made("a picture of a fire truck", (*NOUNS, "fire", "truck"))["what is in the picture?"]
    assert question.answer == "fire truck"
    assert len(question.choices) == len(set(question.choices)) == 20
    assert not {"fire", "truck"} & set(question.choices)


def test_yes_and_no_are_balanced_and_can_be_left_positive() -> None:
    yes_no = [q for q in made("a red ball above a cat").values() if q.choices == ("yes", "no")]
    assert sum(q.answer == "no" for q in yes_no) == len(yes_no) / 2
    positive = generate_questions([Text("t", "a red ball above a cat")], NOUNS, negatives=False)
    assert all(q.answer != "no" for q in positive)


def test_the_seed_and_nothing_else_draws_the_distractors() -> None:
    caption = "a red ball above a cat"
    assert made(caption) == made(caption)
    assert made(caption) != made(caption, seed=1)
    alone = made(caption)
    both = generate_questions([Text("x", "three dogs"), Text("t", caption)], NOUNS)
    assert {q.question: q for q in both if q.id == "t"} == alone


def test_a_color_that_could_be_either_things_is_not_asked() -> None:
    assert not [question for question in made("a red ball and a blue ball") if "color" in question]


@pytest.mark.parametrize(
    ("caption", "relation"),
    [
        ("a cat to the left of a dog", "left of"),
        ("a cat under a dog", "below"),
        ("a cat is sitting on top of a dog", "on top of"),
        ("a red cat on the left and a dog on the right", "left of"),
        ("a cat at the bottom and a dog at the top", "below"),
        ("a cat and a dog", None),
        ("a cat on the left and a dog", None),
    ],
)
def test_relations(caption: str, relation: str | None) -> None:
    _, relations = Chunker(NOUNS).read(caption)
    assert [(r.first.noun, r.name, r.second.noun) for r in relations] == (
        [("cat", relation, "dog")] if relation else []
    )


def test_chunks_of_what_no_list_knows() -> None:
    chunks, relations = Chunker().read("a photo of a wooden zither next to the tiny quokka, smiling")
    assert [(chunk.noun, chunk.modifiers) for chunk in chunks] == [
        ("zither", ("wooden",)),
        ("quokka", ("tiny",)),
    ]
    assert [relation.name for relation in relations] == ["next to"]


@pytest.mark.parametrize(
    "noun", ["cat", "cherry", "box", "bus", "scarf", "volcano", "fire truck", "tomato", "wolf"]
)
def test_plural_and_singular_are_inverse(noun: str) -> None:
    *before, last = plural(noun).split()
    assert " ".join([*before, singular(last)]) == noun
    assert plural(noun) != noun


def test_recall_of_tifas_questions(capsys: pytest.CaptureFixture[str]) -> None:
    """How many of TIFA's questions (GPT-3 made them) the rules ask too; the figure is printed."""
    theirs = load_questions(shared("derived/tifa160_questions_reconstructed.jsonl"))
    texts = {question.id: Text(question.id, question.caption) for question in theirs}
    found = recall(generate_questions(texts.values()), theirs)
    with capsys.disabled():
        print(f"\nrules: {found}")
    assert found.share > 0.45
