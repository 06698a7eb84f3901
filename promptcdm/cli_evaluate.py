"""The commands under `promptcdm evaluate`, and the columns in which results are printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from promptcdm.config import settle
from promptcdm.errors import BadInput
from promptcdm.flags import read_names, with_flags
from promptcdm.settings import BackboneSettings, FidelitySettings, LeakageSettings

FEATURES = (
    "concept-tower or instance-tower, which ship, for 64 px pictures; inception:FILE, dinov2:FOLDER, clip:FOLDER or "
    "sscd:FILE, of local weights"
)

evaluate_app = typer.Typer(help="Score pictures.", rich_markup_mode=None)


@evaluate_app.command("fidelity")
@with_flags(FidelitySettings)
def evaluate_fidelity(
    real: Annotated[Path, typer.Option(help="folder of real pictures", metavar="FOLDER")],
    generated: Annotated[Path, typer.Option(help="folder of generated pictures", metavar="FOLDER")],
    features: Annotated[
        str,
        typer.Option(help=FEATURES, metavar="NAME"),
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


@evaluate_app.command("leakage")
@with_flags(LeakageSettings, BackboneSettings)
def evaluate_leakage(
    sources: Annotated[
        Path, typer.Option(help="folder with a folder of training pictures for each source", metavar="FOLDER")
    ],
    generated: Annotated[
        Path | None, typer.Option(help="generated pictures, with generate's records", metavar="FOLDER")
    ] = None,
    allowed: Annotated[
        str | None,
        typer.Option(help="the sources they were made from, where they have no records", metavar="A,B"),
    ] = None,
    features: Annotated[str, typer.Option(help=FEATURES, metavar="NAME")] = "instance-tower",
    held_out: Annotated[
        Path | None,
        typer.Option(help="folder with a folder of held-out pictures for each source", metavar="FOLDER"),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="adapters whose members are looked for; needs --held-out", metavar="DIR"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON of all figures", metavar="FILE")] = None,
    **flags: Any,
) -> None:
    """Measure what sources give away: copies, pictures near sources that were switched off, membership.

    --generated compares pictures with the training pictures. --store asks whether an adapter betrays what it was
    trained on, beside an adapter that was overfitted on purpose.
    """
    settings, which = settle(LeakageSettings, {}, flags), settle(BackboneSettings, {}, flags)
    if generated is None and store is None:
        raise BadInput("nothing to measure: give --generated, or --store with --held-out, or both")
    if store is not None and held_out is None:
        raise BadInput("--store needs --held-out: pictures of the same sources that were not trained on")

    from promptcdm.backbone import Backbone
    from promptcdm.leakage import check_settings, leakage
    from promptcdm.store import AdapterStore

    check_settings(settings)
    names = None if allowed is None else read_names(allowed)
    given: dict[str, Any] = {"generated": generated, "allowed": names, "features": features}
    if store is not None:
        backbone = Backbone.load(
            which.backbone, device=which.device, dtype=which.dtype, variant=which.variant
        )
        given |= {"store": AdapterStore(store), "backbone": backbone}
    report = leakage(sources, **given, held_out=held_out, device=which.device, out=out, settings=settings)
    for table in report.tables():
        say_table(table)
        typer.echo()
    for line in report.guidance():
        typer.echo(line)


JudgeOption = Annotated[
    str,
    typer.Option(
        help="nano-judge, hf:ID_OR_FOLDER, openai:URL#MODEL, replay:NAME, always-yes, first-choice; "
        "sealed-judge for figures that are published",
        metavar="NAME",
    ),
]
ErrorsOption = Annotated[
    Path | None,
    typer.Option(
        help="what eval/judge_errors.py measured of the judge [of judges that ship, theirs]", metavar="FILE"
    ),
]


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
    judge: JudgeOption = "nano-judge",
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
    errors: ErrorsOption = None,
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
        errors=errors,
    )
    for table in (report.table(), report.score_table(), report.errors_table()):
        if table:
            say_table(table)
    for line in report.left_out():
        typer.echo(f"promptcdm: {line}", err=True)


def say_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in columns, the first left, as wide as they need."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
