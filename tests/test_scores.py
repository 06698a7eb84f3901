"""Scores as rules over judgements: each by hand, and what judges that see no picture get by the same rule."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from promptcdm.alignment import alignment
from promptcdm.dsg import gated, load_dsg, parents_of, proposition
from promptcdm.errors import BadQuestions
from promptcdm.questions import Question, Text
from promptcdm.soft_tifa import arithmetic, geometric
from promptcdm.verdict import Value, Verdict, answered, chance_corrected, guess, hard, mean_by_caption, soft
from promptcdm.vqascore import vqascore, vqascore_questions

YES_NO = ("yes", "no")


def verdict(id: str, choice: str, yes: float | None = None, answer: str = "yes") -> Verdict:
    question = Question(id, f"caption {id}", f"{id}, {answer}, {yes}?", YES_NO, answer)
    odds = None if yes is None else (1 - yes, yes)
    return Verdict(question, choice, "", ("no", "yes"), odds)


def graph(*parents: str, right: str, id: str = "p") -> list[Value]:
    """Propositions 1, 2, ... standing on `parents`; `right` holds 1 or 0 of each."""
    rows = []
    for number, (above, s) in enumerate(zip(parents, right, strict=True), start=1):
        question = Question(id, f"caption {id}", f"{number}?", YES_NO, "yes")
        rows.append(Value(proposition(question, number, above), float(s)))
    return rows


def test_a_probability_is_that_of_the_choice_not_of_the_place() -> None:
    one = verdict("a", "yes", 0.8)
    assert (one.probability("yes"), one.probability("no")) == (0.8, pytest.approx(0.2))
    assert one.probability("maybe") is None
    assert verdict("a", "yes").probability("yes") is None


def test_an_abstention_scores_0_in_tifa_and_is_left_out_of_the_other() -> None:
    rows = [verdict("a", "yes"), verdict("a", "I cannot tell"), verdict("b", "no sign of it")]
    assert mean_by_caption(hard(rows)).by_caption == {"a": 0.5, "b": 0}
    scored = mean_by_caption(answered(rows))
    assert (scored.by_caption, scored.used, scored.value) == ({"a": 1}, 1, 1)


def test_soft_tifa_by_hand() -> None:
    rows = soft([verdict("a", "yes", 0.9), verdict("a", "no", 0.4), verdict("b", "no", 0.3, answer="no")])
    assert arithmetic(rows).by_caption == {"a": pytest.approx(0.65), "b": pytest.approx(0.7)}
    assert geometric(rows).by_caption == {"a": pytest.approx(0.6), "b": pytest.approx(0.7)}
    assert arithmetic(rows).value == pytest.approx(0.675)


def test_one_impossible_part_takes_the_whole_geometric_score() -> None:
    rows = soft([verdict("a", "yes", 1.0), verdict("a", "no", 0.0), verdict("b", "yes", 1e-300)])
    assert geometric(rows).by_caption == {"a": 0, "b": pytest.approx(1e-300)}
    assert arithmetic(rows).by_caption["a"] == 0.5


def test_questions_without_probabilities_are_in_no_soft_score() -> None:
    rows = [verdict("a", "yes", 0.9), verdict("b", "yes")]
    assert arithmetic(soft(rows)).by_caption == {"a": 0.9}
    assert arithmetic(soft(rows)).used == 1


def test_vqascore_asks_one_question_and_takes_the_probability() -> None:
    (question,) = vqascore_questions([Text("a", "two cats")])
    assert question.question == 'Does this figure show "two cats"? Please answer yes or no.'
    assert (question.choices, question.answer) == (YES_NO, "yes")
    found = vqascore([Verdict(question, "no", "", ("no", "yes"), (0.75, 0.25))])
    assert found.by_caption == {"a": 0.25}
    other = [verdict("a", "no", 0.2), verdict("a", "no", 0.1, answer="no")]
    assert vqascore(other).by_caption == {"a": 0.2}  # a question that is to be denied does not count


def test_dsg_gates_by_the_parents_own_answer() -> None:
    """1 fails; 2 stands on 1; 3 on 2, whose own answer was right."""
    rows = graph("0", "1", "2", right="011")
    assert gated(rows).by_caption == {"p": pytest.approx(1 / 3)}
    assert gated(rows, transitive=True).by_caption == {"p": 0}


def test_dsg_needs_every_parent_and_an_ancestor_counts_once() -> None:
    diamond = graph("0", "1", "1", "2,3", right="1101")
    assert gated(diamond).by_caption == {"p": 0.5}
    half = [Value(value.question, 0.5) for value in diamond]
    assert gated(half).value == pytest.approx((0.5 + 0.25 + 0.25 + 0.125) / 4)
    assert gated(half, transitive=True).value == pytest.approx((0.5 + 0.25 + 0.25 + 0.0625) / 4)


def test_dsg_ends_where_propositions_stand_on_each_other() -> None:
    circle = graph("2", "3", "1", right="110")
    assert gated(circle).by_caption == {"p": pytest.approx(1 / 3)}  # 1 stands on 2, which is right
    assert gated(circle, transitive=True).by_caption == {"p": 0}
    assert gated(graph("1", right="1")).value == 1  # its own number is no parent


def test_a_child_of_an_unjudged_parent_is_left_out_not_failed() -> None:
    rows = graph("0", "0", "1", "2", right="1111")
    scored = gated(rows[1:])
    assert (scored.by_caption, scored.used) == ({"p": 1}, 2)
    assert gated(rows[2:3]).by_caption == {}


def test_without_gates_dsg_is_tifa() -> None:
    rows = hard([verdict("a", "yes"), verdict("a", "no"), verdict("b", "yes")])
    assert gated(rows).by_caption == mean_by_caption(rows).by_caption


def test_a_score_is_corrected_for_chance() -> None:
    assert chance_corrected(0.75, 0.5) == 0.5
    assert chance_corrected(0.5, 0.5) == 0
    assert chance_corrected(0.25, 0.5) == -0.5
    assert chance_corrected(1, 1) is None
    assert guess([Question("a", "", "q?", ("one", "two", "three", "four"), "two")])[0].s == 0.25


def test_all_scores_come_from_one_set_of_verdicts() -> None:
    rows = [verdict("a", "yes", 0.9), verdict("a", "no", 0.4), verdict("b", "unsure", 0.5)]
    found = {score.name: score for score in alignment(rows, asked=4)}
    assert list(found) == ["TIFA", "TIFA, abstentions left out", "Soft-TIFA AM", "Soft-TIFA GM", "VQAScore"]
    assert [score.coverage for score in found.values()] == [0.75, 0.5, 0.75, 0.75, 0.75]
    assert (found["TIFA"].value, found["TIFA, abstentions left out"].value) == (0.25, 0.5)
    assert found["TIFA"].blind == {"always yes": 1, "first choice": 1, "chance": 0.5}
    assert found["TIFA"].corrected == -0.5
    assert found["Soft-TIFA GM"].value == pytest.approx((math.sqrt(0.9 * 0.4) + 0.5) / 2)
    assert found["Soft-TIFA GM"].blind["chance"] == pytest.approx(0.5)


def test_blind_judges_pass_the_same_gate() -> None:
    rows = [Verdict(value.question, "yes") for value in graph("0", "1", "2", right="111")]
    found = {score.name: score for score in alignment(rows, asked=3)}
    assert found["DSG"].blind["always yes"] == found["DSG"].value == 1
    assert found["DSG"].blind["chance"] == pytest.approx((0.5 + 0.25 + 0.25) / 3)
    assert found["DSG, transitive"].blind["chance"] == pytest.approx((0.5 + 0.25 + 0.125) / 3)


def test_pictures_of_one_caption_are_one_cluster() -> None:
    questions = [Question(f"{n}", f"caption {n // 4}", "q?", YES_NO, "yes") for n in range(80)]
    rows = [Verdict(q, "yes" if int(q.id) // 4 % 2 else "no") for q in questions]
    low, high = alignment(rows, asked=80)[0].interval
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(20), rel=0.2)


HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
    "question_natural_language\n"
)
BIKE = (
    'x_1,"a blue bike, old",bike,1,0,entity,whole,entity - whole (bike),Is there a bike?\n'
    'x_1,"a blue bike, old",blue,2,"1, outside",attribute,color,"attribute - color (bike, blue)",Is it blue?\n'
)


def dsg_file(folder: Path, text: str) -> Path:
    path = folder / "dsg.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_dsgs_file_is_read(tmp_path: Path) -> None:
    first, second = load_dsg(dsg_file(tmp_path, HEADER + BIKE))
    assert (first.id, first.caption, first.question) == ("x_1", "a blue bike, old", "Is there a bike?")
    assert (second.choices, second.answer, second.element_type) == (YES_NO, "yes", "attribute")
    assert (parents_of(first), parents_of(second)) == ((), (1,))  # words beside the numbers do no harm


@pytest.mark.parametrize("cell", ["7", "2", "0", '"0,2,7"'])
def test_what_is_no_proposition_is_no_parent(tmp_path: Path, cell: str) -> None:
    text = HEADER + BIKE.replace('"1, outside"', cell)
    assert [parents_of(question) for question in load_dsg(dsg_file(tmp_path, text))] == [(), ()]


def test_a_proposition_without_a_question_is_not_asked(tmp_path: Path) -> None:
    (question,) = load_dsg(dsg_file(tmp_path, HEADER + BIKE.replace("Is there a bike?", " ")))
    assert (question.question, parents_of(question)) == ("Is it blue?", ())


def test_a_number_that_two_questions_have_stands_for_both() -> None:
    twice = [Question("p", "", f"{n}?", YES_NO, "yes") for n in range(3)]
    rows = [proposition(twice[0], 1, "0"), proposition(twice[1], 1, "0"), proposition(twice[2], 2, "1")]
    values = [Value(question, s) for question, s in zip(rows, (1.0, 0.0, 1.0), strict=True)]
    for transitive in (False, True):
        assert gated(values, transitive=transitive).by_caption == {"p": pytest.approx(1 / 3)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("item_id,text\nx,y\n", "has no row with proposition_id"),
        (HEADER, "has no row with"),
        (HEADER + BIKE.replace("bike,1,0", "bike,one,0"), "row 2, column 'proposition_id': holds 'one'"),
        (HEADER + BIKE.replace("x_1,", ","), "row 2: item_id is empty"),
    ],
)
def test_dsg_files_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadQuestions, match=words):
        load_dsg(dsg_file(tmp_path, text))
