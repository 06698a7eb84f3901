"""Command line flags made from the fields of the settings dataclasses: the same names, help and defaults.

A flag that is not given is None, so that a `--config` file stands between the default and the flag.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_origin

import typer

from promptcdm.config import setting_types
from promptcdm.errors import BadInput

Command = TypeVar("Command", bound=Callable[..., None])

# Flags of several commands that are no settings.
Store = Annotated[Path, typer.Option("--store", help="folder of adapters", metavar="DIR")]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file of settings; a flag wins over it", metavar="FILE"),
]
Replace = Annotated[
    bool, typer.Option("--replace", help="replace the source's adapter, which stays as NAME@DIGEST")
]
Mismatch = Annotated[
    bool,
    typer.Option(
        "--allow-backbone-mismatch", help="use adapters of another checkpoint of the same architecture"
    ),
]


def with_flags(*kinds: type) -> Callable[[Command], Command]:
    """Give a command one flag for each field of `kinds`, which it receives together as `**flags`."""

    def add(command: Command) -> Command:
        # Not get_type_hints: on Python 3.10 it wraps what has the default None, and the flag's help is lost.
        parameters = inspect.signature(command, eval_str=True).parameters.values()
        own = [parameter for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
        taken = {parameter.name for parameter in own}
        added = [flag for kind in kinds for flag in _flags(kind) if flag.name not in taken]
        vars(command)["__signature__"] = inspect.Signature([*own, *added])
        command.__annotations__ = {p.name: p.annotation for p in [*own, *added]} | {"return": None}
        return command

    return add


def _flags(kind: type) -> list[inspect.Parameter]:
    hints = setting_types(kind)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            # Text, whatever the field: `config.settle` reads it, and refuses a flag as it refuses a file.
            annotation=Annotated[
                (bool if hints[field.name] is bool else str) | None,
                typer.Option(
                    _name(field.name, hints[field.name]),
                    help=field.metadata["help"] + _shown(field.default),
                    metavar=None if hints[field.name] is bool else _metavar(hints[field.name]),
                ),
            ],
        )
        for field in fields(kind)
    ]


def _name(name: str, hint: Any) -> str:
    dashed = name.replace("_", "-")
    return f"--{dashed}/--no-{dashed}" if hint is bool else f"--{dashed}"


def _metavar(hint: Any) -> str:
    return "NAME" if get_origin(hint) is Literal else {int: "N", float: "X"}.get(hint, "TEXT")


def _shown(default: object) -> str:
    """What the help says of a default; off and empty need no words."""
    return "" if default in (None, "") or default is False else f" [{default}]"


def read_names(allowed: str) -> list[str]:
    """Return the names of `--allowed a,b`; none for the empty text. Raises BadInput for an empty name."""
    names = [name.strip() for name in allowed.split(",")] if allowed.strip() else []
    if not all(names):
        raise BadInput(f'--allowed is {allowed!r}; it takes names with commas between them, or "" for none')
    return names


def read_strengths(given: Sequence[str]) -> dict[str, float]:
    """Return the numbers of `--strength a=0.8 --strength b=1` or `--strength a=0.8,b=1`. Raises BadInput."""
    strengths: dict[str, float] = {}
    for part in ",".join(given).split(",") if given else ():
        name, _, value = part.partition("=")
        number = _number(value)
        if not name.strip() or not math.isfinite(number):
            raise BadInput(f"--strength is {part!r}; it takes NAME=NUMBER, such as birds=0.8")
        strengths[name.strip()] = number
    return strengths


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
