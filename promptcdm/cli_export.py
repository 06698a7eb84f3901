"""The command `promptcdm export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from promptcdm.flags import Store


def export(
    name: Annotated[str, typer.Argument(help="the source", metavar="NAME")],
    out: Annotated[Path, typer.Option(help="folder of the copy, new or empty", metavar="DIR")],
    format: Annotated[str, typer.Option(help="kohya, diffusers or peft", metavar="NAME")] = "diffusers",
    store: Store = Path("adapters"),
) -> None:
    """Copy an adapter for other tools.

    The store notes where, so that the receipt of forgetting can name the copy, which it cannot reach.
    """
    from promptcdm.export import export_adapter
    from promptcdm.store import AdapterStore

    for path in export_adapter(name, store=AdapterStore(store), format=format, out=out):  # type: ignore[arg-type]
        typer.echo(path)
