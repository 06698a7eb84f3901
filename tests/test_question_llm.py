"""Questions that a language model writes: what is asked of it, how its words are read, what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import CAPTIONS, evaluated
from shared_data import shared

from promptcdm.cli import main
from promptcdm.errors import BadInput, RunFailed
from promptcdm.evaluate import run_tifa
from promptcdm.hf_writer import load_writer
from promptcdm.question_llm import TYPES, Draft, checked_questions, prompt_of, read_questions, write_questions
from promptcdm.question_making import make_questions
from promptcdm.question_recall import meaning, recall
from promptcdm.questions import Question, Text, load_questions

APPLES = Text("p1", "Two red apples, left of a dog")
GOOD = """\
About apples (food):
Q: Are there apples?
Choices: yes, no
A: yes
Q: What fruit is in the picture?
Choices: apples, pears, lemons
A: Apples.

About two (counting):
Q: how many apples are there?
Choices: 1; 2; 3
A: 2
"""


@dataclass
class Scripted:
    """Writes what it is told, in order; keeps what it was asked."""

    script: Sequence[str]
    name: str = "llm:scripted"
    version: str = "script 1"
    asked: list[str] = field(default_factory=list)

    def write(self, prompts: Sequence[str]) -> list[str]:
        self.asked += prompts
        return list(self.script[: len(prompts)])


def block(**changed: str) -> str:
    """A good question with some of its parts changed."""
    parts = {"element": "apples", "kind": "food", "q": "are there apples?", "choices": "yes, no", "a": "yes"}
    parts |= changed
    return "About {element} ({kind}):\nQ: {q}\nChoices: {choices}\nA: {a}\n".format(**parts)


def test_good_words_become_questions() -> None:
    questions, refusals = write_questions([APPLES], Scripted([GOOD]))
    assert refusals == ()
    assert [(q.question, q.choices, q.answer, q.element_type, q.element) for q in questions] == [
        ("are there apples?", ("yes", "no"), "yes", "food", "apples"),
        ("what fruit is in the picture?", ("apples", "pears", "lemons"), "apples", "food", "apples"),
        ("how many apples are there?", ("1", "2", "3"), "2", "counting", "two"),
    ]
    assert {(q.id, q.caption) for q in questions} == {("p1", APPLES.caption)}


def test_the_examples_of_the_prompt_pass_their_own_checks() -> None:
    """What the model is shown is what is accepted: every example, with its own caption."""
    _, *shown = prompt_of("nothing").split("Description: ")
    counts = []
    for part in shown[:-1]:
        caption, _, written = part.partition("\n")
        kept, refused = checked_questions(Text("x", caption), written)
        assert refused == []
        counts.append(len(kept))
    assert counts == [7, 3]
    assert all(kind in prompt_of("nothing") for kind in TYPES)


def test_the_prompt_ends_with_the_caption_in_one_line() -> None:
    writer = Scripted(["", ""])
    write_questions([APPLES, Text("p2", "a\ncat")], writer)
    assert writer.asked[0].endswith(f"Description: {APPLES.caption}\n")
    assert writer.asked[1].endswith("Description: a cat\n")


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (block(a="maybe"), "its answer is none of its choices"),
        (block(element="pears"), "what it is about is not in the caption"),
        (block(element="red dog"), "what it is about is not in the caption"),
        (block(element=" , "), "what it is about is not in the caption"),
        (block(choices="yes"), "it has fewer than two choices"),
        (block(choices="yes, no, Yes"), "two of its choices are the same"),
        (block(choices="an apple, apples, yes"), "two of its choices are the same"),
        (block(choices=", ".join(map(str, range(30))), a="3"), "it has more than 20 choices"),
        (block(kind="fruitiness"), "its type 'fruitiness' is none of object, animal/human"),
        (block(q="apples"), "it is no question"),
        (block(q="there are apples."), "it is no question"),
        (block(a=""), "it has no answer"),
        ("About apples (food):\nQ: are there apples?\nChoices: yes, no\n", "it has no answer"),
        ("Q: are there apples?\nChoices: yes, no\nA: yes\n", "its type '' is none of"),
        (block() + block(), "it is asked already"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_reason(written: str, reason: str) -> None:
    kept, refused = checked_questions(APPLES, written)
    assert len(refused) == 1 and refused[0].reason.startswith(reason)
    assert refused[0].id == "p1" and len(refused[0].wrote) <= 200
    assert len(kept) == written.count("About") - 1 if "already" in reason else kept == []


def test_a_caption_without_a_question_is_named() -> None:
    questions, refusals = write_questions(
        [APPLES, Text("p2", "a cat")], Scripted([GOOD, "I would rather not."])
    )
    assert {question.id for question in questions} == {"p1"}
    (refusal,) = refusals
    assert (refusal.id, refusal.wrote) == ("p2", "I would rather not.")
    assert refusal.reason == "no question on this caption is left"


def test_only_the_own_caption_is_read_and_markup_is_passed_over() -> None:
    written = "Sure!\n\n**About apples (food):**\n- Q: Are there apples?\n- Choices: yes, no\n- **A: yes**\n"
    written += (
        "Description: another picture\nAbout dog (animal):\nQ: is there a dog?\nChoices: yes, no\nA: yes\n"
    )
    assert list(read_questions(written)) == [
        Draft("apples", "food", "are there apples?", ("yes", "no"), "yes")
    ]


def test_animals_and_humans_are_one_type_as_in_tifa() -> None:
    for kind in ("animal", "Human", "animal/human"):
        kept, _ = checked_questions(APPLES, block(element="a dog", kind=kind))
        assert kept[0].element_type == "animal/human"


def test_refusals_are_counted_and_written(tmp_path: Path) -> None:
    writer = Scripted([GOOD + block(a="maybe") + block(element="pears", q="are there pears?") + block()])
    made = make_questions([APPLES], writer=writer)
    assert made.lines() == [
        "3 questions on 1 of 1 captions, by llm:scripted",
        "refused: 1, its answer is none of its choices",
        "refused: 1, what it is about is not in the caption",
        "refused: 1, it is asked already",
    ]
    out, record = made.save(tmp_path / "new" / "q.json")
    assert load_questions(out) == made.questions
    found = json.loads(record.read_text(encoding="utf-8"))
    assert (found["by"], found["version"]) == ("llm:scripted", "questions 1, script 1")
    assert (found["questions"], found["refused"], len(found["refusals"])) == (3, 3, 3)


def test_nothing_that_can_be_asked_is_a_failure_and_is_still_written(tmp_path: Path) -> None:
    made = make_questions([APPLES], writer=Scripted(["no"]))
    with pytest.raises(RunFailed, match=r"llm:scripted made no question that can be asked on 1 captions"):
        made.check()
    _, record = made.save(tmp_path / "q.json")
    assert json.loads(record.read_text(encoding="utf-8"))["refused"] == 1


@pytest.mark.parametrize("by", ["llm:", "gpt", "llm:nothing/here"])
def test_a_writer_that_is_not_there_is_refused(by: str) -> None:
    with pytest.raises(BadInput, match=r"accepted are rules or llm:ID_OR_FOLDER|cannot be loaded"):
        make_questions([APPLES], by)


# A tiny random language model, with a tokenizer made here


def make_tiny(folder: Path, *, chat: bool = False, positions: int = 4096) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate(["<end>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    if chat:
        fast.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[writer]"
    fast.save_pretrained(folder)
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(fast), "n_positions": positions}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        GPT2LMHeadModel(GPT2Config(**shape, eos_token_id=0, bos_token_id=0)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("writer"))


def test_a_tiny_model_writes_the_same_alone_and_padded(tiny_writer: Path) -> None:
    writer = load_writer(str(tiny_writer), new_tokens=12)
    prompts = ["one", "a much longer prompt than the first", "two"] * 4
    together = writer.write(prompts)
    assert len(together) == 12 and together[:3] == together[3:6]
    assert together[0] == writer.write(prompts[:1])[0]
    assert all("prompt" not in words for words in together)
    assert writer.version.startswith("files ") and writer.name == f"llm:{tiny_writer}"


def test_a_chat_model_is_asked_in_its_template(tmp_path: Path) -> None:
    writer = load_writer(str(make_tiny(tmp_path, chat=True)), new_tokens=4)
    asked: list[Any] = []
    generate = writer.model.generate
    writer.model.generate = lambda **given: (asked.append(given["input_ids"]), generate(**given))[1]
    writer.write(["hello"])
    assert writer.tokenizer.decode(asked[0][0]) == "[user]hello[writer]"


def test_a_model_of_short_texts_is_told_apart_from_a_bad_one(tmp_path: Path) -> None:
    writer = load_writer(str(make_tiny(tmp_path, positions=64)), new_tokens=60)
    with pytest.raises(RunFailed, match="reads 64 tokens, and a prompt of 5 with 60 to write is longer"):
        writer.write(["hello"])


def test_what_a_random_model_writes_is_refused_and_listed(
    tiny_writer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptcdm.hf_writer.load_writer.__kwdefaults__", {"new_tokens": 16})
    (tmp_path / "prompts.txt").write_text("two cats\na dog\n", encoding="utf-8")
    out = tmp_path / "q.json"
    command = ["evaluate", "questions", tmp_path / "prompts.txt", "--by", f"llm:{tiny_writer}", "--out", out]
    with pytest.raises(SystemExit) as stop:
        main([str(part) for part in command])
    printed = capsys.readouterr()
    assert stop.value.code == 1
    assert printed.out.splitlines()[0].startswith("0 questions on 0 of 2 captions, by llm:")
    assert "no question that can be asked on 2 captions" in printed.err
    found = json.loads((tmp_path / "q.made.json").read_text(encoding="utf-8"))
    assert found["refused"] == len(found["refusals"]) >= 2


# By rule, by command, and recall


def test_rules_by_command_with_recall(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = [
        Question("p1", "two red apples", "how many apples are there?", ("2", "3"), "2"),
        Question("p1", "two red apples", "are there apples?", ("yes", "no"), "yes"),
        Question("p1", "two red apples", "are the apples tasty?", ("yes", "no"), "yes"),
    ]
    path = tmp_path / "reference.json"
    path.write_text(json.dumps([question.record() for question in reference]), encoding="utf-8")
    monkeypatch.setenv("PROMPTCDM_REFERENCE_QUESTIONS", str(path))
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "questions", "--out", str(tmp_path / "q.json")])
    first, second = capsys.readouterr().out.splitlines()
    assert not stop.value.code
    assert first.endswith("questions on 1 of 1 captions, by rules")
    assert second == (
        "2 of the 3 reference questions on 1 captions are asked too (66.7%; of 2 yes/no ones 50.0%)"
    )
    assert len(load_questions(tmp_path / "q.json")) > 3
    monkeypatch.delenv("PROMPTCDM_REFERENCE_QUESTIONS")
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "questions"])
    assert stop.value.code == 2 and "there are no prompts" in capsys.readouterr().err


def test_meaning_passes_over_wording() -> None:
    one = Question("p1", "", "is there a dog?", ("yes", "no"), "yes")
    same = Question("p1", "", "is there any dog in the picture?", ("yes", "no"), "yes")
    assert meaning(one) != meaning(same)  # "any" is a word
    assert meaning(one) == meaning(Question("p1", "", "is the dog in this photo?", ("yes", "no"), "yes"))
    assert meaning(one) != meaning(Question("p2", "", "is there a dog?", ("yes", "no"), "yes"))
    assert recall([one], [one, same]).share == 0.5


def test_recall_of_the_rules_against_tifas_questions() -> None:
    reference = load_questions(shared("derived/tifa160_questions_reconstructed.jsonl"))
    texts = {question.id: Text(question.id, question.caption) for question in reference}
    found = recall(make_questions(list(texts.values())).questions, reference)
    assert (found.of, found.captions) == (1128, 160)
    assert found.share > 0.45


def test_questions_are_made_and_judged_by_one_command(tmp_path: Path) -> None:
    evaluated(tmp_path / "first.json", range(9))
    (tmp_path / "prompts.txt").write_text("two red cats\na blue car\n", encoding="utf-8")
    images = {f"prompts_{n}": f"first-pictures/{n:04d}.png" for n in range(2)}
    (tmp_path / "map.json").write_text(json.dumps(images), encoding="utf-8")
    out = tmp_path / "run.json"
    report = run_tifa("rules", tmp_path / "map.json", "always-yes", out, texts=tmp_path / "prompts.txt")
    asked = load_questions(tmp_path / "run.questions.json")
    assert report.counts["all"] == len(asked) > 5
    assert json.loads((tmp_path / "run.questions.made.json").read_text(encoding="utf-8"))["by"] == "rules"
    assert report.average == pytest.approx(report.baselines["always yes"]["all"])
    assert len(CAPTIONS) == 9
    with pytest.raises(BadInput, match=r"questions by 'file\.json' are not known"):
        run_tifa("file.json", tmp_path / "map.json", "always-yes", texts=tmp_path / "prompts.txt")
