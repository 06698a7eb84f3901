"""Judges that answer from what is known: the oracle is always right, a replay asks no model."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_judgements import CHOICES, FakeJudge, images, questions, run

from promptcdm.answer import CannotAnswer
from promptcdm.asking import ask
from promptcdm.errors import BadInput
from promptcdm.judgements import JudgementLog
from promptcdm.questions import Question
from promptcdm.replay import Oracle, replay


def test_the_oracle_is_right_whatever_the_order_of_the_choices(tmp_path: Path) -> None:
    paths = images(tmp_path, 4)
    rows = [Question(id, "", "how many?", CHOICES, CHOICES[n]) for n, id in enumerate(paths)]
    judged = ask(rows, paths, Oracle(rows, paths), JudgementLog(), seed=5)
    assert [verdict.score for verdict in judged.verdicts] == [1] * 4
    assert [verdict.probability(verdict.question.answer) for verdict in judged.verdicts] == [1.0] * 4


def test_the_oracle_knows_no_other_question(tmp_path: Path) -> None:
    paths = images(tmp_path, 2)
    rows = [Question(id, "", "how many?", CHOICES, "one") for id in paths]
    judged = ask(rows, paths, Oracle(rows[:1], paths), JudgementLog())
    assert (len(judged.verdicts), len(judged.failures)) == (1, 1)
    assert "is not in the question file" in judged.failures[0].reason


def test_a_replay_gives_the_same_verdicts_without_the_judge(tmp_path: Path) -> None:
    log = tmp_path / "judgements.jsonl"
    whole = run(tmp_path, FakeJudge(version="weights 1"), log)
    kept = JudgementLog(log)
    again = ask(questions(4), images(tmp_path, 4), replay(kept, "fake"), kept)
    assert (again.verdicts, again.failures, again.new) == (whole.verdicts, (), 0)


def test_a_replay_has_no_answer_that_the_log_lacks(tmp_path: Path) -> None:
    log = tmp_path / "judgements.jsonl"
    run(tmp_path, FakeJudge(), log, pictures=2)
    kept = JudgementLog(log)
    judged = ask(questions(3), images(tmp_path, 3), replay(kept, "fake"), kept)
    assert (len(judged.verdicts), [failure.id for failure in judged.failures]) == (6, ["p2"] * 3)
    assert "is not in the file of judgements" in judged.failures[0].reason
    with pytest.raises(CannotAnswer):
        replay(kept, "fake").answer(None, "q?", ("a",))  # type: ignore[arg-type]


def test_a_replay_needs_one_version_of_the_judge(tmp_path: Path) -> None:
    log = tmp_path / "judgements.jsonl"
    with pytest.raises(BadInput, match="no answer of judge 'fake'; it holds nothing"):
        replay(JudgementLog(log), "fake")
    for version in ("1", "2"):
        run(tmp_path, FakeJudge(version=version), log, pictures=1)
    with pytest.raises(BadInput, match=r"2 versions of judge 'fake'; it holds fake \(1\), fake \(2\)"):
        replay(JudgementLog(log), "fake")
