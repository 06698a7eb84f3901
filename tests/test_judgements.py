"""The log of judgements: nothing is judged twice, whatever stops the work, and nothing is scored that was not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from promptcdm.answer import Answer, Asked, CannotAnswer
from promptcdm.asking import Judged, ask
from promptcdm.errors import BadInput
from promptcdm.judgements import JudgementKey, JudgementLog
from promptcdm.questions import Question

ROOT = Path(__file__).resolve().parent.parent
CHOICES = ("one", "two", "three", "four")


@dataclass
class FakeJudge:
    """Answers with the choice whose place is the picture's red value; fails as it is told to."""

    name: str = "fake"
    version: str = "1"
    blind: bool = False
    dies_at: int = 10**9  # the number of the question at which it is stopped
    fails_at: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def answers(self, batch: Sequence[Asked]) -> list[Answer]:
        self.batches.append(len(batch))
        if any(asked.question in self.fails_at for asked in batch):
            raise CannotAnswer("the words ran out")
        self.asked.extend(asked.question for asked in batch)
        if len(self.asked) >= self.dies_at:
            raise KeyboardInterrupt
        return [self._one(asked) for asked in batch]

    def answer(self, image: Image.Image, question: str, choices: Sequence[str]) -> Answer:
        return self.answers([Asked(image, question, tuple(choices))])[0]

    def _one(self, asked: Asked) -> Answer:
        pixel = asked.image.getpixel((0, 0))
        assert isinstance(pixel, tuple)
        choice = CHOICES[int(pixel[0]) % len(CHOICES)]
        odds = tuple(0.7 if each == choice else 0.1 for each in asked.choices)
        return Answer(choice, odds, f"it is {choice}, “certainly”")


def questions(pictures: int, each: int = 3) -> list[Question]:
    return [
        Question(f"p{p}", f"caption {p}", f"question {q} on {p}?", CHOICES, "one", "counting")
        for p in range(pictures)
        for q in range(each)
    ]


def images(folder: Path, count: int) -> dict[str, Path]:
    found = {f"p{p}": folder / f"{p}.png" for p in range(count)}
    for number, path in enumerate(found.values()):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return found


def run(folder: Path, judge: FakeJudge, log: Path | None = None, pictures: int = 4) -> Judged:
    return ask(questions(pictures), images(folder, pictures), judge, JudgementLog(log))


def test_a_second_run_asks_nothing_and_finds_the_same(tmp_path: Path) -> None:
    log, first, second = tmp_path / "judgements.jsonl", FakeJudge(), FakeJudge()
    judged = run(tmp_path, first, log)
    again = run(tmp_path, second, log)
    assert (len(first.asked), judged.new) == (12, 12)
    assert (second.asked, again.new) == ([], 0)
    assert again.verdicts == judged.verdicts
    assert judged.verdicts == run(tmp_path, FakeJudge()).verdicts  # and without a file
    assert len(log.read_text().splitlines()) == 12


def test_a_line_holds_what_was_asked_and_answered(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "judgements.jsonl"
    judged = run(tmp_path, FakeJudge(), log)
    record = json.loads(log.read_text().splitlines()[0])
    assert list(record) == [
        *("image", "question", "choices", "judge", "version"),
        *("choice", "raw", "probabilities"),
    ]
    assert len(record["image"]) == 64
    assert (record["question"], record["judge"], record["version"]) == ("question 0 on 0?", "fake", "1")
    assert sorted(record["choices"]) == sorted(CHOICES)
    assert record["raw"] == "it is one, “certainly”"
    assert record["probabilities"][record["choices"].index("one")] == 0.7
    assert judged.verdicts[0].shown == tuple(record["choices"])
    assert judged.verdicts[0].probability("one") == 0.7


@pytest.mark.parametrize(
    "change",
    [
        {"image": "other"},
        {"question": "other?"},
        {"choices": ("no", "yes")},
        {"judge": "other"},
        {"version": "2"},
    ],
)
def test_every_part_of_the_key_counts(change: dict[str, object]) -> None:
    key = JudgementKey("image", "question?", ("yes", "no"), "judge", "1")
    log = JudgementLog()
    log.add([(key, Answer("yes"))])
    assert log.answer(key) == Answer("yes")
    assert log.answer(key._replace(**change)) is None  # type: ignore[arg-type]


def test_another_picture_of_the_same_name_is_judged_anew(tmp_path: Path) -> None:
    log = tmp_path / "judgements.jsonl"
    run(tmp_path, FakeJudge(), log, pictures=2)
    Image.new("RGB", (8, 8), (3, 0, 0)).save(tmp_path / "1.png")
    judge = FakeJudge()
    paths = {"p0": tmp_path / "0.png", "p1": tmp_path / "1.png"}
    judged = ask(questions(2), paths, judge, JudgementLog(log))
    assert judge.asked == [f"question {q} on 1?" for q in range(3)]
    assert judged.verdicts[-1].choice == "four"


def test_what_was_judged_before_a_stop_is_not_judged_again(tmp_path: Path) -> None:
    whole = run(tmp_path, FakeJudge(), pictures=60)
    log, killed, heir = tmp_path / "judgements.jsonl", FakeJudge(dies_at=130), FakeJudge()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, killed, log, pictures=60)
    kept = len(JudgementLog(log))
    assert 0 < kept < 180
    assert run(tmp_path, heir, log, pictures=60).verdicts == whole.verdicts
    assert len(heir.asked) == 180 - kept


def test_a_log_cut_at_any_byte_loses_at_most_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "judgements.jsonl"
    whole = run(tmp_path, FakeJudge(), log, pictures=1)
    data = log.read_bytes()
    last = data[:-1].rindex(b"\n") + 1
    for cut in [*range(last, len(data) - 1, 9), len(data) - 1, len(data)]:
        log.write_bytes(data[:cut])
        lost = int(cut < len(data) - 1)  # only the end of the line may be missing
        assert len(JudgementLog(log)) == 3 - lost
        judge = FakeJudge()
        assert run(tmp_path, judge, log, pictures=1).verdicts == whole.verdicts
        assert len(judge.asked) == lost
        healed = JudgementLog(log)
        assert (len(healed), healed.unfinished) == (3, int(last < cut < len(data) - 1))
        assert run(tmp_path, FakeJudge(dies_at=0), log, pictures=1).new == 0


def test_zeros_that_a_power_cut_left_are_passed_over(tmp_path: Path) -> None:
    log = tmp_path / "judgements.jsonl"
    run(tmp_path, FakeJudge(), log, pictures=1)
    with log.open("ab") as file:
        file.write(b"\0" * 512)
    assert len(JudgementLog(log)) == 3
    run(tmp_path, FakeJudge(), log, pictures=2)
    assert len(JudgementLog(log)) == 6


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_judgements import FakeJudge, run

class Killed(FakeJudge):
    def answers(self, batch):
        if len(self.batches) == 1:
            with open({log!r}, "ab") as file:  # as a write that is cut short
                file.write(b'{{"image": "0a')
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answers(batch)

run(Path({folder!r}), Killed(), Path({log!r}), pictures=60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_process_goes_on_where_it_was(tmp_path: Path) -> None:
    log = tmp_path / "judgements.jsonl"
    code = KILLED.format(tests=str(ROOT / "tests"), log=str(log), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    kept = len(JudgementLog(log))
    assert 0 < kept < 180
    heir = FakeJudge()
    judged = run(tmp_path, heir, log, pictures=60)
    assert len(heir.asked) == 180 - kept
    assert judged.verdicts == run(tmp_path, FakeJudge(), pictures=60).verdicts
    assert (len(JudgementLog(log)), JudgementLog(log).unfinished) == (180, 1)


def test_two_writers_may_judge_the_same_and_the_first_counts(tmp_path: Path) -> None:
    path = tmp_path / "judgements.jsonl"
    key = JudgementKey("image", "question?", ("yes", "no"), "judge", "1")
    one, other = JudgementLog(path), JudgementLog(path)
    one.add([(key, Answer("yes"))])
    other.add([(key, Answer("no"))])
    assert JudgementLog(path).answer(key) == Answer("yes")


def test_a_broken_picture_is_named_and_the_rest_is_judged(tmp_path: Path) -> None:
    paths = images(tmp_path, 4)
    paths["p2"].write_bytes(paths["p2"].read_bytes()[:40])
    log, judge = tmp_path / "judgements.jsonl", FakeJudge()
    judged = ask(questions(4), paths, judge, JudgementLog(log))
    assert {verdict.question.id for verdict in judged.verdicts} == {"p0", "p1", "p3"}
    assert [failure.id for failure in judged.failures] == ["p2"] * 3
    assert "2.png: is not a picture" in judged.failures[0].reason
    Image.new("RGB", (8, 8), (2, 0, 0)).save(paths["p2"])  # mended, it alone is judged
    heir = FakeJudge()
    mended = ask(questions(4), paths, heir, JudgementLog(log))
    assert (mended.failures, len(heir.asked)) == ((), 3)


def test_equal_files_that_cannot_be_read_are_each_named(tmp_path: Path) -> None:
    paths = images(tmp_path, 2)
    for path in paths.values():
        path.write_bytes(b"no picture")
    rows = [Question(id, "", "yes?", ("yes",), "yes") for id in paths]
    judged = ask(rows, paths, FakeJudge(), JudgementLog())
    assert [failure.reason.split(": ")[0] for failure in judged.failures] == list(map(str, paths.values()))


def test_one_question_that_a_judge_cannot_answer_costs_no_other(tmp_path: Path) -> None:
    bad = "question 1 on 2?"
    log, judge = tmp_path / "judgements.jsonl", FakeJudge(fails_at=(bad,))
    judged = run(tmp_path, judge, log)
    assert len(judged.verdicts) == 11
    assert sorted(judge.asked) == sorted(q.question for q in questions(4) if q.question != bad)
    (failure,) = judged.failures
    assert (failure.id, failure.question) == ("p2", bad)
    assert failure.reason == f"{tmp_path / '2.png'}: fake: the words ran out"
    assert run(tmp_path, FakeJudge(), log).new == 1  # another try


def test_an_error_of_another_kind_is_no_answer_and_is_not_hidden(tmp_path: Path) -> None:
    class Broken(FakeJudge):
        def answers(self, batch: Sequence[Asked]) -> list[Answer]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, Broken())


@pytest.mark.parametrize("odds", [(float("nan"), 0.5, 0.25, 0.25), (0.5, 0.5)])
def test_probabilities_that_are_none_are_a_failure(tmp_path: Path, odds: tuple[float, ...]) -> None:
    class Odd(FakeJudge):
        def _one(self, asked: Asked) -> Answer:
            return Answer("one", odds) if asked.question == "question 0 on 0?" else super()._one(asked)

    judged = run(tmp_path, Odd(), tmp_path / "judgements.jsonl")
    assert len(judged.verdicts) == 11
    assert "one finite number for each of 4 choices" in judged.failures[0].reason


def test_batches_are_bounded_and_keep_a_pictures_questions_together(tmp_path: Path) -> None:
    judge = FakeJudge()
    run(tmp_path, judge, pictures=60)
    assert judge.batches == [66, 66, 48]


@pytest.mark.parametrize(
    "text",
    [
        "[\n",
        '{"id": "p1"}\n',
        '{"image": "ab", "question": "q?"}\n',
        '{"image": "ab", "question": "q?", "choices": ["a"], "judge": "j", "version": "1", "choice": "a", '
        '"raw": "", "probabilities": [0.5, 0.5]}\n',
    ],
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "questions.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"questions\.json, line 1"):
        JudgementLog(path)
    assert path.read_text() == text


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        JudgementLog(tmp_path)


def test_the_log_and_the_scores_need_no_torch() -> None:
    code = (
        "import sys, promptcdm.asking, promptcdm.alignment, promptcdm.tifa\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
