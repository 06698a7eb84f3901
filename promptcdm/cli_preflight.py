"""The command `promptcdm preflight`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from promptcdm.errors import BadInput


def preflight(
    data: Annotated[list[str], typer.Argument(help="sources: folders, files or URLs", metavar="PATH_OR_URL")],
    backbone: Annotated[
        str, typer.Option(help='whose tokenizer measures captions; "" measures none', metavar="TEXT")
    ] = "nano",
    against: Annotated[
        Path | None, typer.Option(help="store: no picture may be one that another adapter has", metavar="DIR")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="warnings are errors")] = False,
) -> None:
    """List what is wrong with sources, and what they share, before anything is trained.

    A picture that two sources hold would stay in one when the other is forgotten: that is an error.
    """
    if against is not None and not against.is_dir():
        raise BadInput(f"--against {against}: no such folder; give a store of adapters")

    from promptcdm.preflight import preflight as check
    from promptcdm.store import AdapterStore

    trained = {}
    if against is not None:
        adapters = AdapterStore(against)
        loaded = {name: adapters.load(name).manifest for name in adapters.references()}
        trained = {name: manifest for name, manifest in loaded.items() if manifest is not None}
        for name in loaded.keys() - trained.keys():
            typer.echo(f"{name}: an imported adapter, whose pictures nobody knows", err=True)
    tokenizer = None
    if backbone:
        from promptcdm.clip_tokenizer import load_tokenizer

        tokenizer = load_tokenizer(backbone)
    findings = check(data, tokenizer=tokenizer, trained=trained)
    for name, count in findings.pictures.items():
        typer.echo(f"{name}: {count} pictures")
    for line in findings.errors:
        typer.echo(f"error: {line}")
    for line in findings.warnings:
        typer.echo(f"warning: {line}")
    wrong = len(findings.errors) + (len(findings.warnings) if strict else 0)
    if wrong:
        raise BadInput(f"preflight found {wrong} problems; correct them, or leave the files out")
