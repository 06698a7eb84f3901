"""The commands `promptcdm attribute` and `promptcdm ledger`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from promptcdm.cli_evaluate import say_table
from promptcdm.cli_train import ALL_SETTINGS, load_backbone
from promptcdm.config import read_config, settle
from promptcdm.errors import BadInput
from promptcdm.flags import Config, Mismatch, Store, read_names, with_flags
from promptcdm.settings import AttributeSettings, BackboneSettings

if TYPE_CHECKING:
    from PIL import Image

    from promptcdm.attribute import Attribution

Pictures = Annotated[
    list[Path], typer.Argument(help="pictures, or folders of pictures", metavar="IMAGE_OR_FOLDER")
]
Allowed = Annotated[str, typer.Option(help="sources it may be, with commas", metavar="A,B")]
SETTINGS = (*ALL_SETTINGS, AttributeSettings)
NO_BACKBONE = ("weights", "palette")  # methods that run no network


@with_flags(BackboneSettings, AttributeSettings)
def attribute(
    images: Pictures,
    allowed: Allowed,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, one line a picture")] = False,
    allow_backbone_mismatch: Mismatch = False,
    store: Store = Path("adapters"),
    config: Config = None,
    **flags: Any,
) -> None:
    """Say which of the allowed sources pictures speak for.

    A share is an account by a stated rule, not a proof of influence.
    """
    chosen = read_config(config, SETTINGS) if config else {}
    which, settings = settle(BackboneSettings, chosen, flags), settle(AttributeSettings, chosen, flags)
    files = _pictures(images)
    found = _attribute(files, read_names(allowed), which, settings, store, allow_backbone_mismatch)
    if as_json:
        for file, each in zip(files, found, strict=True):
            typer.echo(json.dumps({"file": str(file), **each.record()}, sort_keys=True, ensure_ascii=False))
        return
    rows: list[tuple[str, ...]] = [("picture", "top source", "shares", "row-forwards")]
    for file, each in zip(files, found, strict=True):
        shares = [f"{name} {amount:.0%}" for name, amount in each.amounts.items()]
        shares += [f"unattributed {each.rest:.0%}"] if each.rest > 0.005 else []
        rows.append((str(file), each.top, ", ".join(shares), f"{each.row_forwards:g}"))
    say_table(rows)


@with_flags(BackboneSettings, AttributeSettings)
def ledger(
    images: Pictures,
    allowed: Allowed,
    out: Annotated[Path, typer.Option(help="the ledger, JSON", metavar="FILE")] = Path("ledger.json"),
    units: Annotated[int, typer.Option(help="what each picture's shares sum to", metavar="N")] = 1_000_000,
    allow_backbone_mismatch: Mismatch = False,
    store: Store = Path("adapters"),
    config: Config = None,
    **flags: Any,
) -> None:
    """Account for many pictures: whole shares of the allowed sources, licences and attributions owed.

    The same pictures, adapters and settings give the same bytes. A share is an accounting rule, not a proof of
    influence.
    """
    chosen = read_config(config, SETTINGS) if config else {}
    which, settings = settle(BackboneSettings, chosen, flags), settle(AttributeSettings, chosen, flags)
    if units < 1:
        raise BadInput(f"--units is {units}; it takes 1 or more")
    names, files = read_names(allowed), _pictures(images)
    found = _attribute(files, names, which, settings, store, allow_backbone_mismatch)

    from promptcdm.ledger import STATEMENT, Entry, check_made_with, table
    from promptcdm.ledger import ledger as account
    from promptcdm.store import AdapterStore
    from promptcdm.tensorfile import write_json

    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    entries = [Entry(file.name, d, a) for file, d, a in zip(files, digests, found, strict=True)]
    adapters = [AdapterStore(store).record(name) for name in names]
    if settings.method == "weights":
        for file in files:
            check_made_with(str(file), _record(file), adapters)
    facts = asdict(settings)
    del facts["batch_size"]  # how fast, not what
    if settings.method not in NO_BACKBONE:
        facts["backbone"] = which.backbone if which.backbone == "nano" else Path(which.backbone).name
    made = account(entries, adapters, facts, units=units)
    write_json(out, made)
    say_table(table(made))
    typer.echo(f"{out}: {len(files)} pictures")
    typer.echo(STATEMENT)


def _attribute(
    files: Sequence[Path],
    names: Sequence[str],
    which: BackboneSettings,
    settings: AttributeSettings,
    store: Path,
    allow_backbone_mismatch: bool,
) -> list[Attribution]:
    if not names:
        raise BadInput("--allowed names no source; give one or more")

    from promptcdm.store import AdapterStore

    adapters = AdapterStore(store)
    for name in names:  # an unknown source is told before a backbone is loaded
        adapters.record(name)

    from promptcdm.attribute import attribute as attribute_pictures
    from promptcdm.attribute import attribute_record

    if settings.method == "weights":
        return [attribute_record(_record(file), names) for file in files]

    return attribute_pictures(
        [_picture(file) for file in files],
        allowed=names,
        backbone=None if settings.method in NO_BACKBONE else load_backbone(which),
        store=adapters,
        settings=settings,
        allow_backbone_mismatch=allow_backbone_mismatch,
    )


def _pictures(given: Sequence[Path]) -> list[Path]:
    """The files, and those of folders by name."""
    from promptcdm.picture_folder import PictureFolder

    found: list[Path] = []
    for path in given:
        if path.is_dir():
            found += [path / file for file in PictureFolder.open(path).without_grids().files]
        elif path.is_file():
            found.append(path)
        else:
            raise BadInput(f"{path}: no such file; give pictures or folders of pictures")
    return found


def _picture(file: Path) -> Image.Image:
    from promptcdm.picture import BadPicture, decode_picture

    try:
        return decode_picture(file.read_bytes())
    except BadPicture as error:
        raise BadInput(f"{file}: is not a picture that can be read ({error})") from error


def _record(file: Path) -> dict[str, Any]:
    """The record that `generate` wrote beside a picture."""
    from promptcdm.beside import read_record, record_path

    record = read_record(file)
    if record is None:
        raise BadInput(
            f"{file}: no record {record_path(file).name} beside it; --method denoising needs none and takes any "
            "picture"
        )
    return record
