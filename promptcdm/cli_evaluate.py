"""The commands under `promptcdm evaluate` that compare folders, and the columns in which results are printed."""

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


def say_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of text in columns, the first left, as wide as they need."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
