"""The commands under `promptcdm evaluate` that read finished results: report, paired, agreement, calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from promptcdm.cli_evaluate import say_table
from promptcdm.config import settle
from promptcdm.flags import with_flags
from promptcdm.settings import ReportSettings

_SHOWN = 10  # questions on which two judges differ

ScoreName = Annotated[str, typer.Option(help="which score of the files", metavar="NAME")]
Seed = Annotated[int, typer.Option(help="seed of the interval's resamples [0]", metavar="N")]
Out = Annotated[Path | None, typer.Option(help="JSON of all figures", metavar="FILE")]


@with_flags(ReportSettings)
def report(
    runs: Annotated[
        list[str], typer.Argument(help="results of evaluate tifa, each FILE or NAME=FILE", metavar="RUN")
    ],
    out: Annotated[Path, typer.Option(help="the report", metavar="FILE")] = Path("report.html"),
    **flags: Any,
) -> None:
    """Write one HTML file of one or more results, which holds all that it shows.

    Pictures, verdicts, types and sources, weights over the steps, and each run compared with the first.
    """
    settings = settle(ReportSettings, {}, flags)

    from promptcdm.evaluation_report import evaluation_report

    typer.echo(f"{evaluation_report(runs, out, settings=settings)}: open it in a browser")


def paired(
    a: Annotated[Path, typer.Argument(help="a result of evaluate tifa or clipscore", metavar="A")],
    b: Annotated[Path, typer.Argument(help="another system's result on the same questions", metavar="B")],
    score: ScoreName = "TIFA",
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Compare two systems on the same prompts: the difference, its interval, and p by sign flips."""
    from promptcdm.run_comparison import compare_systems

    found = compare_systems(a, b, score, seed=seed)
    say_table(found.table())
    _write(out, found.record())


def agreement(
    results: Annotated[
        list[str],
        typer.Argument(help="several judges' results on the same pictures, FILE or NAME=FILE", metavar="RUN"),
    ],
    out: Out = None,
) -> None:
    """Compare judges: Cohen's kappa of right and wrong, and the questions on which they differ."""
    from promptcdm.run_comparison import agreement_table, compare_judges

    pairs = compare_judges(results)
    say_table(agreement_table(pairs))
    for pair in pairs if len(pairs) == 1 else ():
        for question, one, other in pair.found.differ[:_SHOWN]:
            typer.echo(f"{question.id}: {question.question} {question.answer}; {one} / {other}")
        if len(pair.found.differ) > _SHOWN:
            typer.echo(f"and {len(pair.found.differ) - _SHOWN} more, all of them in --out")
    _write(out, [pair.record() for pair in pairs])


def calibration(
    result: Annotated[Path, typer.Argument(help="a result of evaluate tifa or clipscore", metavar="RUN")],
    ratings: Annotated[
        Path, typer.Option(help="JSON of id: ratings, or CSV with the columns id and rating", metavar="FILE")
    ],
    score: ScoreName = "TIFA",
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """Compare a score with human ratings of the same pictures: Pearson, Spearman, Kendall.

    Where pictures were rated twice, the second row is one rater against another: what a score can reach.
    """
    from promptcdm.run_comparison import calibrate_result

    found = calibrate_result(result, ratings, score, seed=seed)
    say_table(found.table())
    if found.left_out:
        typer.echo(f"{found.left_out} pictures have a score or a rating alone, and are left out", err=True)
    _write(out, found.record())


def _write(out: Path | None, record: object) -> None:
    if out is None:
        return
    from promptcdm.tensorfile import write_json

    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, record)
