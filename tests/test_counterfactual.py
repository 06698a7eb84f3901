"""Counterparts whose answer is no: one word of the question is changed, and always saying yes is right for half."""

from __future__ import annotations

import pytest
from shared_data import shared

from promptcdm.alignment import alignment
from promptcdm.counterfactual import KIND, balanced, counterfactual
from promptcdm.dsg import gated, load_dsg, parents_of, proposition
from promptcdm.questions import Question, load_questions
from promptcdm.verdict import Verdict, always_yes, mean_by_caption

YES_NO = ("yes", "no")


def yes(question: str, caption: str = "", **extra: object) -> Question:
    return Question("p", caption, question, YES_NO, "yes", "other", "", extra)


@pytest.mark.parametrize(
    ("question", "kept"),
    [
        ("Is the dog blue?", ("Is the dog ", "?")),
        ("are there three cats?", ("are there ", " cats?")),
        ("Is the door made of wood?", ("Is the door made of ", "?")),
        ("is the sign round?", ("is the sign ", "?")),
        ("is there a dog?", ("is there a", "?")),
        ("Are there keyboards?", ("Are there ", "s?")),
    ],
)
def test_one_word_is_changed(question: str, kept: tuple[str, str]) -> None:
    other = counterfactual(yes(question))
    assert other is not None
    assert other.question != question
    assert other.question.startswith(kept[0]) and other.question.endswith(kept[1])
    assert (other.answer, other.choices, other.extra[KIND]) == ("no", YES_NO, question)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("is the cat left of the dog?", "is the cat right of the dog?"),
        ("Is the lamp above the blue table?", None),  # the colour goes first
        ("is the box open?", "is the box closed?"),
    ],
)
def test_relations_and_opposites_are_turned_round(question: str, expected: str | None) -> None:
    other = counterfactual(yes(question))
    assert other is not None
    assert other.question == expected or (expected is None and "above" in other.question)


def test_what_the_caption_says_is_no_counterpart() -> None:
    caption = "red, orange, yellow, green, purple, pink, brown and black balls and a white one"
    other = counterfactual(yes("is there a white ball?", caption))
    assert other is not None
    assert other.question == "is there a gray ball?" or other.question == "is there a blue ball?"
    people = [counterfactual(Question(str(n), "", "is there a man?", YES_NO, "yes")) for n in range(20)]
    changed = {other.question for other in people if other}
    assert len(changed) > 5  # the seed and the id choose
    assert not changed & {
        "is there a boy?",
        "is there a guy?",
        "is there a lady?",
    }  # a boy may pass for a man


def test_the_article_fits() -> None:
    changed = [counterfactual(Question(str(n), "", "is there an owl?", YES_NO, "yes")) for n in range(40)]
    for other in changed:
        assert other is not None
        article, noun = other.question.removeprefix("is there ").split(" ", 1)
        assert article == ("an" if noun[0] in "aeiou" else "a"), other.question
    assert {other.question.split()[2] for other in changed if other} == {"a", "an"}


@pytest.mark.parametrize(
    "question",
    [
        yes("is this symmetrical?"),
        Question("p", "", "is there a dog?", YES_NO, "no"),
        Question("p", "", "what color is the dog?", ("red", "blue"), "red"),
    ],
)
def test_some_questions_have_none(question: Question) -> None:
    assert counterfactual(question) is None


def test_always_yes_is_right_for_half_and_what_has_no_counterpart_is_left_out() -> None:
    choice = Question("q", "", "what is it?", ("cat", "dog"), "dog")
    rows = balanced([yes("is the dog blue?"), yes("is this symmetrical?"), yes("is there a cat?"), choice])
    assert [q.answer for q in rows] == ["yes", "no", "yes", "no", "dog"]
    assert mean_by_caption(always_yes(rows)).by_caption == {"p": 0.5, "q": 0}
    score = alignment([Verdict(q, "yes") for q in rows[:4]], asked=4)[0]
    assert (score.value, score.blind["always yes"], score.corrected) == (0.5, 0.5, 0)


def test_a_counterpart_stands_on_what_its_question_stands_on_and_nothing_stands_on_it() -> None:
    first = proposition(yes("is there a dog?"), 1, "0")
    rows = balanced([first, proposition(yes("is the dog blue?"), 2, "1")])
    assert [parents_of(q) for q in rows] == [(), (), (1,), (1,)]
    assert [q.extra.get("proposition_id") for q in rows] == [1, None, 2, None]
    assert gated(always_yes(rows)).by_caption == {"p": 0.5}


def test_how_many_published_questions_have_a_counterpart() -> None:
    questions = load_dsg(shared("dsg/dsg/data/dsg-1k-anns.csv"))
    rows = balanced(questions)
    assert mean_by_caption(always_yes(rows)).value == 0.5
    assert 0.45 < len(rows) / 2 / len(questions) < 0.6
    tifa = load_questions(shared("derived/tifa160_questions_reconstructed.jsonl"))
    true = [q for q in tifa if q.answer == "yes"]
    assert 0.6 < sum(counterfactual(q) is not None for q in true) / len(true) < 0.8
