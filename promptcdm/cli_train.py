"""The command `promptcdm train-adapter`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptcdm.cli_evaluate import say_table
from promptcdm.config import read_config, settle
from promptcdm.errors import BadInput, BadSource, RunFailed
from promptcdm.flags import Config, Replace, Store, with_flags
from promptcdm.settings import BackboneSettings, GenerateSettings, Provenance, TrainSettings

if TYPE_CHECKING:
    from promptcdm.adapter import Adapter
    from promptcdm.backbone import Backbone
    from promptcdm.source import Source

ALL_SETTINGS = (BackboneSettings, TrainSettings, GenerateSettings)
LARGE_PIXELS = 256  # from here on a picture is not meant for nano
CUT_SHOWN = 20  # captions of a source


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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="measure a few steps, say what all would take, write nothing")
    ] = False,
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
        _plan_all(every, which, settings) if dry_run else _train_all(every, which, settings, store, replace)
        return
    if source is None:
        raise BadInput("--source is missing: a source's name, or its folder; --all FOLDER trains many")
    opened = _open_source(source, data, provenance)
    if flags["backbone"] is None and "backbone" not in chosen:
        _refuse_large_pictures(opened)
    if dry_run:
        _plan([opened], which, settings)
    else:
        _train(opened, which, settings, store, replace)


def _train(
    source: Source, which: BackboneSettings, settings: TrainSettings, store: Path, replace: bool
) -> None:
    from promptcdm.store import AdapterStore

    adapters = AdapterStore(store)
    if source.name in adapters.sources() and not replace:
        raise BadInput(f"{store / source.name} exists; --replace trains it again and replaces it")

    from promptcdm.progress import training_bar
    from promptcdm.train_all import train_into

    backbone = _load_after_captions([source], which, settings)
    try:
        adapter = train_into(adapters, source, backbone, settings, replace=replace, watch=training_bar)
    except KeyboardInterrupt:
        raise RunFailed("stopped; the same command goes on from the last checkpoint") from None
    _say_early_stop(adapter, settings)
    say_adapter(store, adapter)


def _train_all(
    folder: Path, which: BackboneSettings, settings: TrainSettings, store: Path, replace: bool
) -> None:
    from promptcdm.progress import training_bar
    from promptcdm.store import AdapterStore
    from promptcdm.train_all import source_folders, train_all

    source_folders(folder)  # refuses a folder without any before a backbone is loaded
    backbone = load_backbone(which)
    try:
        outcomes = train_all(
            folder,
            backbone,
            settings,
            store=AdapterStore(store),
            replace=replace,
            watch=training_bar,
            on_open=lambda source: _say_notes(source, settings, backbone.pipe.tokenizer),
        )
    except KeyboardInterrupt:
        raise RunFailed("stopped; the same command keeps what is done and goes on") from None
    rows = [("source", "", "pictures", "seconds", "sha256, or why not")]
    say_table([*rows, *((o.source, o.state, str(o.items), f"{o.seconds:.0f}", o.what) for o in outcomes)])
    failed = sum(o.state == "failed" for o in outcomes)
    if failed:
        raise RunFailed(f"{failed} of {len(outcomes)} sources failed; the same command tries them again")


def _plan_all(folder: Path, which: BackboneSettings, settings: TrainSettings) -> None:
    """Plan every folder that can be trained on; the others are told, and are an error at last."""
    from promptcdm.source import Source
    from promptcdm.train_all import source_folders

    sources, failed = [], 0
    for place in source_folders(folder):
        try:
            sources.append(Source.open(place))
        except BadSource as error:
            failed += 1
            typer.echo(f"{place.name}: {error}", err=True)
    if sources:
        _plan(sources, which, settings)
    if failed:
        raise BadInput(f"{failed} of {failed + len(sources)} sources cannot be trained on")


def _plan(sources: list[Source], which: BackboneSettings, settings: TrainSettings) -> None:
    backbone = _load_after_captions(sources, which, settings)

    from promptcdm.train_plan import duration, plan_training

    plans = [plan_training(source, backbone, settings) for source in sources]
    for plan in plans:
        typer.echo(plan.text())
    if len(plans) > 1:
        tflop, seconds = sum(plan.tflop for plan in plans), sum(plan.seconds for plan in plans)
        typer.echo(f"all {len(plans)} sources: {tflop:.3g} TFLOP, about {duration(seconds)}")
    typer.echo("nothing was written")


def _load_after_captions(sources: list[Source], which: BackboneSettings, settings: TrainSettings) -> Backbone:
    """Load the backbone, and its tokenizer before it, so that captions that are cut are told first."""
    from promptcdm.clip_tokenizer import load_tokenizer

    backbone = None
    try:
        tokenizer = load_tokenizer(which.backbone)
    except (
        BadInput
    ):  # a single file may have its tokenizer from elsewhere, and a wrong name is told by loading it
        backbone = load_backbone(which)
        tokenizer = backbone.pipe.tokenizer
    for source in sources:
        _say_notes(source, settings, tokenizer)
    return backbone or load_backbone(which)


def _say_notes(source: Source, settings: TrainSettings, tokenizer: Any) -> None:
    """What training does with this source that a person may not mean."""
    from promptcdm.preflight import long_captions

    soft = settings.prompt_tokens if "prompt" in settings.kind else 0
    cut = long_captions(source, tokenizer, settings.trigger or None, soft)
    for line in cut[:CUT_SHOWN]:
        typer.echo(f"warning: {line}", err=True)
    if len(cut) > CUT_SHOWN:
        typer.echo(f"warning: {len(cut) - CUT_SHOWN} more captions of {source.name} are cut", err=True)
    if 0 < settings.held_out * len(source) < 1:
        typer.echo(
            f"warning: --held-out {settings.held_out} of {len(source)} pictures of {source.name} is none",
            err=True,
        )


def _say_early_stop(adapter: Adapter, settings: TrainSettings) -> None:
    from promptcdm.held_out import best_so_far

    taken = len(adapter.train_log)
    if 0 < taken < settings.steps:
        best = best_so_far(adapter.train_log)[0]
        typer.echo(
            f"stopped at step {taken} of {settings.steps}: the held-out loss was lowest at {best}, "
            "whose weights are kept",
            err=True,
        )


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
