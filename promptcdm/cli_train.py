"""The command `promptcdm train-adapter`."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptcdm.cli_evaluate import say_table
from promptcdm.config import read_config, settle
from promptcdm.errors import BadInput, BadSource, RunFailed
from promptcdm.flags import Config, Replace, Store, with_flags
from promptcdm.settings import (
    BackboneSettings,
    GenerateSettings,
    Precision,
    Provenance,
    RunSettings,
    TrainSettings,
)

if TYPE_CHECKING:
    from promptcdm.adapter import Adapter
    from promptcdm.backbone import Backbone
    from promptcdm.encoding_cache import EncodingCache
    from promptcdm.source import Source

ALL_SETTINGS = (BackboneSettings, TrainSettings, RunSettings, GenerateSettings)
LARGE_PIXELS = 256  # from here on a picture is not meant for nano
CUT_SHOWN = 20  # captions of a source


@with_flags(Provenance, BackboneSettings, TrainSettings, RunSettings)
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
    task = _Task(
        settle(BackboneSettings, chosen, flags),
        settle(TrainSettings, chosen, flags),
        settle(RunSettings, chosen, flags),
        store,
        replace,
        by_omission=flags["backbone"] is None and "backbone" not in chosen,
    )
    provenance = settle(Provenance, {}, flags)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and (every is not None or dry_run):
        raise BadInput("several processes train one source together: start them without --all and --dry-run")
    if every is not None:
        if source is not None or data is not None or provenance != Provenance():
            raise BadInput(
                "--all takes each source's name, pictures and licence from its own folder; give it alone"
            )
        _plan_all(every, task) if dry_run else _train_all(every, task)
        return
    if source is None:
        raise BadInput("--source is missing: a source's name, or its folder; --all FOLDER trains many")
    opened = _open_source(source, data, provenance)
    task.refuse_large_pictures(opened)
    _plan([opened], task) if dry_run else _train(opened, task)


@dataclass(frozen=True)
class _Task:
    """What one command was asked for, whatever the source."""

    which: BackboneSettings
    settings: TrainSettings
    run: RunSettings
    store: Path
    replace: bool
    by_omission: bool  # whether nobody named a backbone

    def refuse_large_pictures(self, source: Source) -> None:
        """Refuse to train nano, which draws 64 px, on pictures for a Stable Diffusion, unless it was named."""
        large = sum(min(item.width, item.height) >= LARGE_PIXELS for item in source.items)
        if self.by_omission and 2 * large > len(source):
            raise BadInput(
                f"{large} of {len(source)} pictures have {LARGE_PIXELS} px or more, and the default backbone, "
                "nano, draws 64 px for demonstration; name a Stable Diffusion (or nano itself) with --backbone"
            )

    def cache(self) -> EncodingCache | None:
        """What the encodings are kept in on disk."""
        from promptcdm.encoding_cache import EncodingCache

        return EncodingCache(Path(self.run.cache), self.run.keep_cache) if self.run.cache else None


def _train(source: Source, task: _Task) -> None:
    from promptcdm.store import AdapterStore

    adapters, settings = AdapterStore(task.store), task.settings
    if source.name in adapters.sources() and not task.replace:
        raise BadInput(f"{task.store / source.name} exists; --replace trains it again and replaces it")

    from promptcdm.looking_on import check_run, looking_on
    from promptcdm.processes import these_processes
    from promptcdm.progress import training_bar
    from promptcdm.train_all import train_into

    check_run(task.run)
    processes = these_processes()
    processes.share(settings.rows)  # refuses more processes than pictures of a step
    backbone = _load_after_captions([source], task)
    shown: dict[str, Any] = {
        "watch": training_bar,
        "look": lambda source: looking_on(source, backbone, settings, task.run),
    }
    try:
        adapter = train_into(
            adapters,
            source,
            backbone,
            settings,
            replace=task.replace,
            cache=task.cache(),
            processes=processes,
            **(shown if processes.main else {}),
        )
    except KeyboardInterrupt:
        raise RunFailed("stopped; the same command goes on from the last checkpoint") from None
    processes.end()
    if processes.main:
        _say_early_stop(adapter, settings)
        say_adapter(task.store, adapter)


def _train_all(folder: Path, task: _Task) -> None:
    from promptcdm.looking_on import check_run, looking_on
    from promptcdm.progress import training_bar
    from promptcdm.store import AdapterStore
    from promptcdm.train_all import source_folders, train_all

    check_run(task.run)
    source_folders(folder)  # refuses a folder without any before a backbone is loaded
    settings = task.settings
    backbone = load_backbone(task.which, settings.mixed_precision)
    held: dict[str, str] = {}  # pixels -> the picture of an earlier source of this run

    def on_open(source: Source) -> None:
        task.refuse_large_pictures(source)
        _say_notes(source, settings, backbone.pipe.tokenizer)
        _say_shared(source, held)

    try:
        outcomes = train_all(
            folder,
            backbone,
            settings,
            store=AdapterStore(task.store),
            replace=task.replace,
            watch=training_bar,
            look=lambda source: looking_on(source, backbone, settings, task.run),
            cache=task.cache(),
            on_open=on_open,
        )
    except KeyboardInterrupt:
        raise RunFailed("stopped; the same command keeps what is done and goes on") from None
    rows = [("source", "", "pictures", "seconds", "sha256, or why not")]
    say_table([*rows, *((o.source, o.state, str(o.items), f"{o.seconds:.0f}", o.what) for o in outcomes)])
    failed = sum(o.state == "failed" for o in outcomes)
    if failed:
        raise RunFailed(f"{failed} of {len(outcomes)} sources failed; the same command tries them again")


def _plan_all(folder: Path, task: _Task) -> None:
    """Plan every folder that can be trained on; the others are told, and are an error at last."""
    from promptcdm.source import Source
    from promptcdm.train_all import source_folders

    sources, failed = [], 0
    for place in source_folders(folder):
        try:
            source = Source.open(place)
            task.refuse_large_pictures(source)
            sources.append(source)
        except (BadSource, BadInput) as error:
            failed += 1
            typer.echo(f"{place.name}: {error}", err=True)
    if sources:
        _plan(sources, task)
    if failed:
        raise BadInput(f"{failed} of {failed + len(sources)} sources cannot be trained on")


def _plan(sources: list[Source], task: _Task) -> None:
    backbone = _load_after_captions(sources, task)

    from promptcdm.train_plan import duration, plan_training

    plans = [plan_training(source, backbone, task.settings) for source in sources]
    for plan in plans:
        typer.echo(plan.text())
    if len(plans) > 1:
        tflop, seconds = sum(plan.tflop for plan in plans), sum(plan.seconds for plan in plans)
        typer.echo(f"all {len(plans)} sources: {tflop:.3g} TFLOP, about {duration(seconds)}")
    typer.echo("nothing was written")


def _load_after_captions(sources: list[Source], task: _Task) -> Backbone:
    """Load the backbone, and its tokenizer before it, so that captions that are cut are told first."""
    from promptcdm.clip_tokenizer import load_tokenizer

    backbone = None
    try:
        tokenizer = load_tokenizer(task.which.backbone)
    except (
        BadInput
    ):  # a single file may have its tokenizer from elsewhere, and a wrong name is told by loading it
        backbone = load_backbone(task.which, task.settings.mixed_precision)
        tokenizer = backbone.pipe.tokenizer
    for source in sources:
        _say_notes(source, task.settings, tokenizer)
    return backbone or load_backbone(task.which, task.settings.mixed_precision)


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


def _say_shared(source: Source, held: dict[str, str]) -> None:
    """Pictures that an earlier source has too, and then those of this one into `held`."""
    own = {item.pixels_sha256: f"{source.name}/{item.file}" for item in source.items}
    shared = [(place, held[pixels]) for pixels, place in own.items() if pixels in held]
    if shared:
        one, other = shared[0]
        typer.echo(
            f"warning: {len(shared)} of {len(source)} pictures of {source.name} are another source's too, first {one}, "
            f"the same pixels as {other}: forgetting one leaves them in the other; promptcdm preflight lists all",
            err=True,
        )
    held.update({pixels: place for pixels, place in own.items() if pixels not in held})


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


def load_backbone(which: BackboneSettings, training: Precision | None = None) -> Backbone:
    """Load it, and say so where it is the demonstration; for `training`, in what a GPU then computes in."""
    from promptcdm.backbone import Backbone

    if which.backbone == "nano":
        typer.echo("backbone: nano (64 px demonstration)", err=True)
    if training and which.dtype == "auto" and _trains_in_bf16_on_gpu(which.device, training):
        which = replace(which, dtype="bfloat16")
    return Backbone.load(which.backbone, device=which.device, dtype=which.dtype, variant=which.variant)


def _trains_in_bf16_on_gpu(device: str, precision: Precision) -> bool:
    """A GPU would cast weights of another type at each step, and keep the copies for the backward."""
    import torch

    from promptcdm.device_class import computes_in_bf16

    on_gpu = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    return on_gpu and computes_in_bf16(precision, torch.device("cuda"))


def say_adapter(store: Path, adapter: Adapter) -> None:
    """One line: where it is, of what kind, from how much, under which licence, its digest."""
    record = adapter.record
    facts = f"{adapter.kind}, {record.items} pictures, {record.license}, sha256 {adapter.sha256}"
    typer.echo(f"{store / adapter.source}: {facts}")
