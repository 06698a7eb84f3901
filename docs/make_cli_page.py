"""Write docs/cli.md from the command line itself: python docs/make_cli_page.py > docs/cli.md"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from promptcdm.cli import app

START = """\
# The command line

Results go to standard output, progress and errors to standard error. The exit code is 0 when done, 2 for
wrong input, 1 for a failure; an error is one line that says what was wrong and what is accepted.

Flags may be written with underscores, as in diffusers. Settings come from their defaults (in brackets), then
from a `--config` TOML file, then from flags; `configs/` holds files for four backbones. A file is flat, and a
key that no command knows is an error.

This page is made by `docs/make_cli_page.py`; a test holds it to the commands.
"""


def page() -> str:
    """The whole page."""
    parts = [START]
    for path, command in _commands(get_command(app), "promptcdm"):
        parts.append(f"## {path}\n\n{inspect.cleandoc(command.help or '')}\n\n{_table(command)}")
    return "\n".join(parts)


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, child in getattr(command, "commands", {}).items():
        yield from _commands(child, f"{path} {name}")
    if not getattr(command, "commands", None):
        yield path, command


def _table(command: Any) -> str:
    rows = ["| flag | what |", "|---|---|"]
    for parameter in command.params:
        if parameter.name == "help":
            continue
        words = (parameter.help or "").replace("|", "\\|")
        rows.append(f"| `{_written(parameter)}` | {words}{_note(parameter)} |")
    return "\n".join(rows) + "\n"


def _written(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name = f"{parameter.metavar}..." if parameter.nargs == -1 else str(parameter.metavar)
        return name if parameter.required else f"[{name}]"
    if parameter.is_flag:
        return " / ".join([*parameter.opts, *parameter.secondary_opts])
    return f"{parameter.opts[0]} {parameter.metavar or 'TEXT'}"


def _note(parameter: Any) -> str:
    if parameter.required:
        return "; required"
    default = parameter.default
    known = default in (None, "", False, True) or callable(default) or parameter.nargs == -1
    return "" if known or isinstance(default, (list, tuple)) else f" [{default}]"


if __name__ == "__main__":
    print(page(), end="")
