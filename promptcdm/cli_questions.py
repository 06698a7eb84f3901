"""The command `promptcdm evaluate questions`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from promptcdm.errors import BadInput

REFERENCE = "PROMPTCDM_REFERENCE_QUESTIONS"  # the environment's name for --recall


def questions(
    texts: Annotated[
        Path | None,
        typer.Argument(
            help="prompts: a JSON list of id and caption, a .txt, or any question file [those of --recall]",
            metavar="TEXTS",
        ),
    ] = None,
    by: Annotated[
        str, typer.Option(help="rules, or llm:ID_OR_FOLDER, a causal language model", metavar="NAME")
    ] = "rules",
    out: Annotated[Path | None, typer.Option(help="the question file", metavar="FILE")] = None,
    recall: Annotated[
        Path | None,
        typer.Option(
            help=f"print how many questions of this file are asked too [${REFERENCE}]",
            metavar="FILE",
            envvar=REFERENCE,
            show_envvar=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of wrong choices by rule [0]", metavar="N")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps", metavar="TEXT")] = "auto",
) -> None:
    """Make questions on prompts, by rule or by a language model of your own.

    What a model writes is checked: the answer is one of the choices, what is asked about is in the prompt. What fails
    is counted, and listed with its reason in OUT.made.json.
    """
    prompts = texts or recall
    if prompts is None:
        raise BadInput("there are no prompts; give a file of them, or --recall with a question file")
    for path in (prompts, recall):
        if path is not None and not path.is_file():
            raise BadInput(f"{path}: no such file; give prompts or a question file")

    from promptcdm.question_files import read_question_file, read_texts
    from promptcdm.question_making import make_questions
    from promptcdm.question_recall import recall as recall_of

    made = make_questions(read_texts(prompts), by, seed=seed, device=device)
    if out is not None:
        made.save(out)
    for line in made.lines():
        typer.echo(line)
    if recall is not None and made.questions:
        typer.echo(str(recall_of(made.questions, read_question_file(recall))))
    made.check()
