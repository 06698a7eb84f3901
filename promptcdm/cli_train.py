"""The command `promptcdm train-adapter`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptcdm.cli_evaluate import say_table
from promptcdm.config import read_config, settle
from promptcdm.errors import BadInput, RunFailed
from promptcdm.flags import Config, Replace, Store, with_flags
from promptcdm.settings import BackboneSettings, GenerateSettings, Provenance, TrainSettings

if TYPE_CHECKING:
    from promptcdm.adapter import Adapter
    from promptcdm.backbone import Backbone
    from promptcdm.source import Source

ALL_SETTINGS = (BackboneSettings, TrainSettings, GenerateSettings)
LARGE_PIXELS = 256  # from here on a picture is not meant for nano


@with_flags(Provenance, BackboneSettings, TrainSettings)
def train_adapter(
    source: Annotated[
        str | None,
        typer.Option(help="the source's name, or its folder where --data is left out", metavar="NAME"),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="folder, tar or parquet of pictures with captions", metavar="PATH_OR_URL"),
    ] = None,
    every: Annotated[
        Path | None,
        typer.Option("--all", help="train each folder in here as a source of its own", metavar="FOLDER"),
    ] = None,
    replace: Replace = False,
    store: Store = Path("adapters"),
    config: Config = None,
    **flags: Any,
) -> None:
    """Train one source's adapter, alone.

    The folder is checked whole before any model is loaded. A run that was interrupted goes on from its last
    checkpoint when the same command is given again.
    """
    chosen = read_config(config, ALL_SETTINGS) if config else {}
    which, settings = settle(BackboneSettings, chosen, flags), settle(TrainSettings, chosen, flags)
    provenance = settle(Provenance, {}, flags)
    if every is not None:
        if source is not None or data is not None or provenance != Provenance():
            raise BadInput(
                "--all takes each source's name, pictures and licence from its own folder; give it alone"
            )
        _train_all(every, which, settings, store, replace)
        return
    if source is None:
        raise BadInput("--source is missing: a source's name, or its folder; --all FOLDER trains many")
    opened = _open_source(source, data, provenance)
    if flags["backbone"] is None and "backbone" not in chosen:
        _refuse_large_pictures(opened)

    from promptcdm.store import AdapterStore

    adapters = AdapterStore(store)
    if opened.name in adapters.sources() and not replace:
        raise BadInput(f"{store / opened.name} exists; --replace trains it again and replaces it")

    from promptcdm.progress import training_bar
    from promptcdm.train_all import train_into

    backbone = load_backbone(which)
    try:
        adapter = train_into(adapters, opened, backbone, settings, replace=replace, watch=training_bar)
    except KeyboardInterrupt:
        raise RunFailed("stopped; the same command goes on from the last checkpoint") from None
    say_adapter(store, adapter)


def _train_all(
    folder: Path, which: BackboneSettings, settings: TrainSettings, store: Path, replace: bool
) -> None:
    from promptcdm.progress import training_bar
    from promptcdm.store import AdapterStore
    from promptcdm.train_all import source_folders, train_all

    source_folders(folder)  # refuses a folder without any before a backbone is loaded
    try:
        outcomes = train_all(
            folder,
            load_backbone(which),
            settings,
            store=AdapterStore(store),
            replace=replace,
            watch=training_bar,
        )
    except KeyboardInterrupt:
        raise RunFailed("stopped; the same command keeps what is done and goes on") from None
    rows = [("source", "", "pictures", "seconds", "sha256, or why not")]
    say_table([*rows, *((o.source, o.state, str(o.items), f"{o.seconds:.0f}", o.what) for o in outcomes)])
    failed = sum(o.state == "failed" for o in outcomes)
    if failed:
        raise RunFailed(f"{failed} of {len(outcomes)} sources failed; the same command tries them again")


def _open_source(source: str, data: str | None, provenance: Provenance) -> Source:
    from promptcdm.source import Source

    facts: dict[str, str | None] = asdict(provenance)

    if data is not None:
        opened = Source.open(data, source, **facts)
    elif Path(source).is_dir():
        opened = Source.open(Path(source), **facts)
    else:
        raise BadInput(f"--source {source} is no folder; give its pictures with --data FOLDER")
    for note in opened.notes:
        typer.echo(f"{opened.name}: {note}", err=True)
    return opened


def _refuse_large_pictures(source: Source) -> None:
    """Refuse to train nano, which draws 64 px, on pictures for a Stable Diffusion, unless asked to."""
    large = sum(min(item.width, item.height) >= LARGE_PIXELS for item in source.items)
    if 2 * large > len(source):
        raise BadInput(
            f"{large} of {len(source)} pictures have {LARGE_PIXELS} px or more, and the default backbone, "
            "nano, draws 64 px for demonstration; name a Stable Diffusion (or nano itself) with --backbone"
        )


def load_backbone(which: BackboneSettings) -> Backbone:
    """Load it, and say so where it is the demonstration."""
    from promptcdm.backbone import Backbone

    if which.backbone == "nano":
        typer.echo("backbone: nano (64 px demonstration)", err=True)
    return Backbone.load(which.backbone, device=which.device, dtype=which.dtype, variant=which.variant)


def say_adapter(store: Path, adapter: Adapter) -> None:
    """One line: where it is, of what kind, from how much, under which licence, its digest."""
    record = adapter.record
    facts = f"{adapter.kind}, {record.items} pictures, {record.license}, sha256 {adapter.sha256}"
    typer.echo(f"{store / adapter.source}: {facts}")
