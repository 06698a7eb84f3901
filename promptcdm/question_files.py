"""Question files of TIFA, DSG, GenEval and T2I-CompBench, as they are published, told apart by what they hold."""

from __future__ import annotations

from pathlib import Path

from promptcdm.compbench import load_compbench
from promptcdm.dsg import load_dsg
from promptcdm.geneval import load_geneval
from promptcdm.question_rules import generate_questions
from promptcdm.questions import Question, Text, load_questions, load_texts


def read_question_file(path: Path, *, seed: int = 0) -> tuple[Question, ...]:
    """Read a file of any of the four kinds.

        .json, .jsonl  TIFA's records
        .jsonl         GenEval's metadata, where the first line has "include"
        .csv           DSG's propositions
        .txt           prompts, one a line, such as T2I-CompBench's: the questions are made by rule

    Raises BadQuestions.
    """
    if path.suffix == ".csv":
        return load_dsg(path)
    if path.suffix == ".txt":
        return generate_questions(load_compbench(path), seed=seed)
    if path.suffix == ".jsonl" and _is_geneval(path):
        return load_geneval(path)
    return load_questions(path)


def read_texts(path: Path) -> tuple[Text, ...]:
    """Read prompts: a list of {"id", "caption"}, a .txt of one a line, or those of any question file.

    Raises BadQuestions.
    """
    if path.suffix == ".txt":
        return load_compbench(path)
    if path.suffix in (".json", ".jsonl") and not _holds(path, b'"question"') and not _is_geneval(path):
        return load_texts(path)
    captions = {question.id: question.caption for question in read_question_file(path)}
    return tuple(Text(id, caption) for id, caption in captions.items())


def _holds(path: Path, key: bytes) -> bool:
    """True where the beginning of the file has the key; a file that cannot be read is left to its reader."""
    try:
        with path.open("rb") as file:
            return key in file.read(1 << 16)
    except OSError:
        return False


def _is_geneval(path: Path) -> bool:
    """True where the first line has GenEval's key; a file that cannot be read is left to TIFA's reader."""
    try:
        with path.open("rb") as file:
            return b'"include"' in file.readline()
    except OSError:
        return False
