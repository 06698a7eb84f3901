"""The commands under `promptcdm evaluate`, and the columns in which results are printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from promptcdm.config import settle
from promptcdm.errors import BadInput
from promptcdm.flags import with_flags
from promptcdm.settings import FidelitySettings

evaluate_app = typer.Typer(help="Score pictures.", rich_markup_mode=None)


@evaluate_app.command("fidelity")
@with_flags(FidelitySettings)
def evaluate_fidelity(
    real: Annotated[Path, typer.Option(help="folder of real pictures", metavar="FOLDER")],
    generated: Annotated[Path, typer.Option(help="folder of generated pictures", metavar="FOLDER")],
    features: Annotated[
        str,
        typer.Option(help="inception:FILE, dinov2:FOLDER or clip:FOLDER, of local weights", metavar="NAME"),
    ],
    out: Annotated[Path | None, typer.Option(help="JSON of all figures", metavar="FILE")] = None,
    **flags: Any,
) -> None:
    """Compare generated with real pictures: KID, Fréchet distance, CMMD, precision, recall, density, coverage.

    Beside each figure stand its interval, what real pictures get against real ones, and the excess over that.
    """
    settings = settle(FidelitySettings, {}, flags)
    for folder in (real, generated):
        if not folder.is_dir():
            raise BadInput(f"{folder}: no such folder; give a folder of pictures")

    from promptcdm.fidelity import fidelity

    report = fidelity(real, generated, features, out, settings=settings)
    say_table(report.table())
    for line in report.guidance:
        typer.echo(line)
    if report.in_both:
        typer.echo(f"{report.in_both} generated files are, byte for byte, real files.")


@evaluate_app.command("tifa")
def evaluate_tifa(
    questions: Annotated[
        str,
        typer.Option(
            help="TIFA's .json, DSG's .csv, GenEval's .jsonl, or prompts in a .txt; with --texts rules or llm:MODEL",
            metavar="FILE",
        ),
    ],
    images: Annotated[
        Path, typer.Option(help="JSON of id: picture, beside the pictures", metavar="MAP.json")
    ],
    judge: Annotated[
        str,
        typer.Option(
            help="nano-judge, hf:ID_OR_FOLDER, openai:URL#MODEL, replay:NAME, always-yes, first-choice",
            metavar="NAME",
        ),
    ] = "nano-judge",
    texts: Annotated[
        Path | None,
        typer.Option(
            help="prompts on which questions are made first, kept in OUT.questions.json", metavar="FILE"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="TIFA's result file", metavar="FILE")] = None,
    judgements: Annotated[
        Path | None,
        typer.Option(help="file of all answers; it is added to [OUT.judgements.jsonl]", metavar="FILE"),
    ] = None,
    negatives: Annotated[
        bool,
        typer.Option("--negatives", help="ask each yes/no question's counterpart too, whose answer is no"),
    ] = False,
    seed: Annotated[int, typer.Option(help="seed of the order of choices [0]", metavar="N")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps", metavar="TEXT")] = "auto",
) -> None:
    """Ask a judge TIFA's questions about pictures, beside judges that see none.

    Only what the file of judgements lacks is asked. Where it was stopped, the same command goes on.
    """
    for path in (texts or Path(questions), images):
        if not path.is_file():
            raise BadInput(f"{path}: no such file; give a file of questions, or --texts FILE, and a JSON map")

    from promptcdm.evaluate import run_tifa

    report = run_tifa(
        *(questions, images, judge, out),
        texts=texts,
        seed=seed,
        device=device,
        judgements=judgements,
        negatives=negatives,
    )
    say_table(report.table())
    say_table(report.score_table())
    for line in report.left_out():
        typer.echo(f"promptcdm: {line}", err=True)


def say_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in columns, the first left, as wide as they need."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
