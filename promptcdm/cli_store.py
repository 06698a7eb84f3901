"""The commands that look after a store: sources, verify, rollback, forget."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptcdm.cli_evaluate import say_table
from promptcdm.cli_train import load_backbone
from promptcdm.config import settle
from promptcdm.errors import AdapterMismatch, BadInput, RunFailed
from promptcdm.flags import Store, with_flags
from promptcdm.settings import BackboneSettings

if TYPE_CHECKING:
    from promptcdm.adapter_record import AdapterRecord
    from promptcdm.backbone import Backbone
    from promptcdm.store import AdapterStore

SHORT = 12  # digits of a digest that a table shows

Data = Annotated[
    str | None,
    typer.Option(help="the source's folder, tar or parquet as it is now", metavar="PATH_OR_URL"),
]


def sources(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    versions: Annotated[bool, typer.Option("--versions", help="older versions too, as NAME@DIGEST")] = False,
    store: Store = Path("adapters"),
) -> None:
    """List the sources of a store."""
    from promptcdm.store import AdapterStore

    adapters = AdapterStore(store)
    names = adapters.references() if versions else adapters.sources()
    records = {name: adapters.record(name).model_dump(mode="json") for name in names}
    if as_json:
        typer.echo(json.dumps(list(records.values()), indent=2, sort_keys=True, ensure_ascii=False))
        return
    rows = [("source", "kind", "pictures", "license", "author", "backbone", "sha256")]
    for name, r in records.items():
        facts = (str(r[key]) for key in ("kind", "items", "license", "author"))
        rows.append((name, *facts, r["backbone"]["name"], r["sha256"][:SHORT]))
    say_table(rows)


@with_flags(BackboneSettings)
def verify(
    name: Annotated[
        str | None, typer.Argument(help="one source, or NAME@DIGEST; all where left out", metavar="NAME")
    ] = None,
    again: Annotated[
        bool, typer.Option("--retrain", help="train it again from its record and --data, and compare")
    ] = False,
    data: Data = None,
    store: Store = Path("adapters"),
    **flags: Any,
) -> None:
    """Check every file against its digests.

    With --retrain, also train one source again from its recorded settings, and compare every byte. What differs is
    named: data, backbone, versions, device, settings.
    """
    from promptcdm.store import AdapterStore

    adapters = AdapterStore(store)
    if again:
        if name is None or data is None:
            raise BadInput(
                "verify --retrain takes one source and its pictures: verify NAME --retrain --data FOLDER"
            )
        _verify_by_training(name, data, adapters, flags)
        return
    if data is not None or any(value is not None for value in flags.values()):
        raise BadInput("--data and the backbone's flags go with --retrain; digests are checked without them")
    wrong = 0
    names = adapters.references() if name is None else [name]
    for each in names:
        try:
            typer.echo(f"{each}: ok, sha256 {adapters.load(each).sha256}")
        except AdapterMismatch as error:
            wrong += 1
            typer.echo(f"{each}: {error}")
    if wrong:
        raise RunFailed(f"{wrong} of {len(names)} sources do not match their digests")


def rollback(
    name: Annotated[str, typer.Argument(help="the source", metavar="NAME")],
    digest: Annotated[
        str, typer.Argument(help="the version's first digits; what was replaced last where left out")
    ] = "",
    store: Store = Path("adapters"),
) -> None:
    """Make an older version of a source the current one.

    The version that was current stays as an older one: the same command again undoes it.
    """
    from promptcdm.store import AdapterStore

    before, now = AdapterStore(store).rollback(name, digest)
    typer.echo(f"{store / name}: sha256 {now}; the version before is {name}@{before[:SHORT]}")


@with_flags(BackboneSettings)
def forget(
    name: Annotated[
        str, typer.Argument(help="the source; NAME@DIGEST is one older version alone", metavar="NAME")
    ],
    items: Annotated[
        Path | None,
        typer.Option(help="forget these pictures alone: a file name or sha256 a line", metavar="FILE"),
    ] = None,
    data: Data = None,
    check: Annotated[
        bool, typer.Option("--check", help="with --items: train all of it without them, and compare")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    store: Store = Path("adapters"),
    **flags: Any,
) -> None:
    """Remove a source, and print a receipt.

    Its adapter goes, every version of it, and everything derived from it. With --items, some of its pictures go: what
    saw them is trained again from --data without them, and every version that saw them is deleted.
    """
    from promptcdm.forget import forget as remove
    from promptcdm.store import AdapterStore

    adapters = AdapterStore(store)
    if items is not None:
        if data is None:
            raise BadInput(
                "forget --items trains again what saw them: give the source's pictures with --data FOLDER"
            )
        _forget_items(name, items, data, adapters, check=check, yes=yes, flags=flags)
        return
    if data is not None or check or any(value is not None for value in flags.values()):
        raise BadInput(
            "--data, --check and the backbone's flags go with --items; a whole source needs none of them"
        )
    _ask(f"Remove {store / name} and everything derived from it?", name, yes)
    typer.echo(str(remove(name, store=adapters)))


def _ask(question: str, name: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise BadInput(f"forget asks before it removes {name}; add --yes where nobody can answer")
    typer.confirm(question, abort=True)


def _load_recorded(record: AdapterRecord, flags: dict[str, Any]) -> Backbone:
    """The backbone that the flags name, or else the one that the record does, to train on again."""
    from promptcdm.retrain import recorded_settings

    which = settle(BackboneSettings, {"backbone": record.backbone.name}, flags)
    return load_backbone(which, recorded_settings(record).mixed_precision)


def _verify_by_training(name: str, data: str, adapters: AdapterStore, flags: dict[str, Any]) -> None:
    from promptcdm.progress import training_bar
    from promptcdm.retrain import data_differences, open_recorded, recorded_settings, retrain
    from promptcdm.train_slices import steps_of

    adapter = adapters.load(name)
    settings, source = recorded_settings(adapter.record), open_recorded(adapter.record, data)
    assert adapter.manifest is not None  # recorded_settings refuses what has none
    differing = data_differences(adapter.manifest, source.manifest())
    if differing:  # before a backbone is loaded
        raise RunFailed(f"{name} cannot come out again: {'; '.join(differing)}")
    backbone = _load_recorded(adapter.record, flags)
    with training_bar(name, steps_of(source, settings), settings.rows) as on_step:
        result = retrain(adapter, source, backbone, on_step=on_step)
    if not result.same:
        raise RunFailed(f"{name} did not come out again: {'; '.join(result.differing)}")
    typer.echo(f"{name}: trained again, the same bytes, sha256 {result.sha256}")
    for note in result.notes:
        typer.echo(f"{name}: {note}")


def _forget_items(
    name: str,
    items: Path,
    data: str,
    adapters: AdapterStore,
    *,
    check: bool,
    yes: bool,
    flags: dict[str, Any],
) -> None:
    from promptcdm.forget_items import check_forgotten, forget_items, kept_slices, plan_items
    from promptcdm.progress import training_bar
    from promptcdm.retrain import open_recorded
    from promptcdm.train_slices import steps_of

    lines = items.read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line.strip()]
    plan = plan_items(name, wanted, open_recorded(adapters.record(name), data), store=adapters)
    count = len(plan.files) or len(plan.pixels)
    _ask(f"Forget {count} pictures of {name}, and {len(plan.versions)} older versions?", name, yes)
    for file in plan.files:
        typer.echo(f"{name}: forgets {file}", err=True)
    backbone = _load_recorded(plan.adapter.record, flags) if plan.files or check else None
    steps = steps_of(plan.remaining, plan.settings)
    bar = training_bar(name, steps, plan.settings.rows) if plan.files else nullcontext()
    try:
        with bar as on_step:
            adapter, receipt = forget_items(plan, backbone, store=adapters, on_step=on_step)
    except KeyboardInterrupt:
        raise RunFailed("stopped, nothing is forgotten yet; the same command goes on") from None
    if adapter.slices and plan.files:
        kept = kept_slices(plan.adapter, adapter)
        typer.echo(f"{name}: {kept} of {len(adapter.slices)} slices stay byte for byte")
    typer.echo(str(receipt))
    if check and backbone is not None:
        check_forgotten(plan, backbone, adapter)
        typer.echo(
            f"checked: training {name} without these pictures gives the same bytes, sha256 {adapter.sha256}"
        )
