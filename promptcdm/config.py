"""Settings from a TOML file and from flags: the default, then the file, then the flag.

Knows no setting: everything is read from the fields of the frozen dataclasses in `settings.py`. A file is
flat and may hold keys of every one of them, so that one file describes a backbone to training and to
generation alike.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from promptcdm.errors import BadInput

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Settings = TypeVar("Settings")
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def read_config(path: Path, kinds: Sequence[type]) -> dict[str, Any]:
    """Read a TOML file whose keys are fields of `kinds`.

    Raises BadInput for any other key and for a value of another type.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"config {path}: {error.strerror}; give a TOML file of settings") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadInput(f"config {path}: not TOML: {error}") from error
    hints = {name: hint for kind in kinds for name, hint in setting_types(kind).items()}
    for key, value in content.items():
        if key not in hints:
            meant = get_close_matches(key, hints, n=1)
            hint = f"did you mean {meant[0]}? " if meant else ""
            raise BadInput(
                f"config {path}: unknown setting {key!r}; {hint}known are {', '.join(sorted(hints))}"
            )
        if not _accepts(hints[key], value):
            raise BadInput(f"config {path}: {key} is {value!r}; it takes {_words(hints[key])}")
    return content


def settle(kind: type[Settings], config: Mapping[str, Any], flags: Mapping[str, Any]) -> Settings:
    """Return the settings of one dataclass. A flag is text, True or False; None is one that was not given.

    Raises BadInput for a flag that its field does not take.
    """
    hints = setting_types(kind)
    given = {name: flags[name] for name in hints if flags.get(name) is not None}
    parsed = {name: _parse(name, hints[name], value) for name, value in given.items()}
    return kind(**{name: value for name, value in {**config, **parsed}.items() if name in hints})


def setting_types(kind: type) -> dict[str, Any]:
    """Return the type of each field of a settings dataclass, in the order of the fields."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _parse(name: str, hint: Any, value: str | bool) -> Any:
    parsed: Any = value
    if hint in (int, float):
        try:
            parsed = hint(value)
        except ValueError:
            parsed = value
    if not _accepts(hint, parsed):
        raise BadInput(f"--{name.replace('_', '-')} is {value!r}; it takes {_words(hint)}")
    return parsed


def _accepts(hint: Any, value: object) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(value, bool) or hint is bool:
        return hint is bool and isinstance(value, bool)
    if hint is float:
        return isinstance(value, (int, float)) and math.isfinite(value)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    return _WORDS[hint]
