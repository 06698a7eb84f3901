"""report.md: what was run, the tables, and each claim beside its goal, all from the files of the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paper.plan import STRATA, recorded
from paper.stage import read_csv
from paper.systems import SYSTEMS
from promptcdm.tensorfile import write_bytes

Table = Sequence[Mapping[str, Any]]


def write_report(out: Path, tables: Mapping[str, Table]) -> Path:
    """Write it; returns its path."""
    plan, told = recorded(out), {row["system"] for row in tables["systems"]}
    choice = json.loads((out / "raw" / "choice.json").read_text(encoding="utf-8"))
    parts = [
        f"# Run `{plan['name']}`",
        _what(plan, choice),
        "## Claims",
        _claims(tables["claims"]),
        "## Systems",
        _systems(tables["systems"]),
        "![TIFA by stratum](figures/tifa.png)",
        "## TIFA by stratum",
        _strata(tables["strata"]),
        "## Denoising error over the monolith's, minus 1",
        _ruler(tables["ruler"]),
        "![Denoising error by noise level](figures/ruler.png)",
        _ideas(out / "raw" / "ideas.csv"),
        "## Forgetting, leakage, storage, cost",
        _others(out),
        "![The same prompts and seeds by every system](figures/sheet.png)",
        "## What each system is",
        "\n".join(f"- **{s.name}**: {s.what}." for s in SYSTEMS if s.name in told),
    ]
    write_bytes(out / "report.md", ("\n\n".join(part for part in parts if part) + "\n").encode())
    return out / "report.md"


def _what(plan: Mapping[str, Any], choice: Mapping[str, Any]) -> str:
    training, names, rank = plan["training"], plan["names"], plan["source_rank"]
    of_source = f" (a source's: {rank})" if rank else ""
    composed, monolith = (
        f"**{choice[k]}** (guidance {choice['guidance'][k]:g})" for k in ("composed", "monolith")
    )
    return (
        f"Backbone {plan['backbone']}. Sources: {', '.join(names) or plan['sources']}. Every adapter: rank "
        f"{training['rank']}{of_source}, {training['targets']}, {training['steps']} steps of "
        f"{training['batch_size']}, unconditional branch of the {training['unconditional']}; a monolith takes as many "
        f"steps as all of them together. {plan['steps']} denoising steps, {plan['counts']['test']} test prompts of "
        f"each of {len(STRATA)} strata, {plan['seeds']} training seed(s) of the primary systems. Chosen on "
        f"{choice['prompts']} validation prompts by {choice['judge']}: {composed} and {monolith}; "
        f"best single source {choice['best']}. "
        "An analogue of the paper's protocol on small pictures, not a reproduction of its figures."
    )


def _claims(rows: Table) -> str:
    head = ("claim", "goal", "found", "95 %", "reached")
    lines = [(r["claim"], r["goal"], _n(r["found"]), _interval(r, "low", "high"), r["reached"]) for r in rows]
    return _markdown(head, lines)


def _systems(rows: Table) -> str:
    towers = list(dict.fromkeys(key.split(" ")[0] for key in rows[0] if key.endswith("kid_minus")))
    head = ["system", "rows", "core s", "TIFA", "withheld", "joined"]
    for tower in towers:
        short = tower.removesuffix("-tower")
        head += [f"KID x 1000, {short}", "minus monolith", "FD ratio", "precision", "recall"]
    head += ["entropy first, last", "router loss"]
    lines = []
    for row in rows:
        line = [row["system"], _n(row["rows"]), _n(row["core_seconds"])]
        line += [_with(row, f"tifa {group}") for group in ("all", "withheld", "joined")]
        for tower in towers:
            thousand = {end: row[f"{tower} kid_minus{end}"] * 1000 for end in ("", "_low", "_high")}
            line += [_n(row[f"{tower} kid"] * 1000), _with({f"k{e}": v for e, v in thousand.items()}, "k")]
            line += [_n(row[f"{tower} {key}"]) for key in ("fd_ratio", "precision", "recall")]
        line += [_pair(row["entropy_first"], row["entropy_last"]), _n(row["router_loss"])]
        lines.append(line)
    return _markdown(head, lines)


def _strata(rows: Table) -> str:
    head = (
        "judge",
        "stratum",
        "system",
        "TIFA",
        "chance",
        "corrected",
        "judge-corrected",
        "minus monolith",
        "relative",
    )
    lines = [
        (
            *(row["judge"], row["stratum"], row["system"], _with(row, "tifa")),
            *(_n(row["chance"]), _n(row["corrected"]), _n(row["judge_corrected"])),
            *(_with(row, name) if name in row else "" for name in ("minus_monolith", "gain")),
        )
        for row in rows
    ]
    return _markdown(head, lines)


def _ruler(rows: Table) -> str:
    levels = list(dict.fromkeys(str(row["level"]) for row in rows))
    snr = {
        str(r["level"]): f"log-SNR {float(r['log_snr']):.1f}" if r["log_snr"] != "" else "all" for r in rows
    }
    names = list(dict.fromkeys(row["system"] for row in rows))
    by = {(row["system"], str(row["level"])): row for row in rows}
    lines = [(name, *(_with(by[name, level], "over_monolith") for level in levels)) for name in names]
    return _markdown(("system", *(snr[level] for level in levels)), lines) if rows else ""


def _ideas(path: Path) -> str:
    """What was tried on guidance, where the run tried it."""
    if not path.is_file():
        return ""
    words = ("kind", "system", "variant")
    lines = []
    for row in read_csv(path):
        figures = {key: float(value) for key, value in row.items() if key not in words}
        lines.append([*(row[key] for key in words), _with(figures, "tifa"), _with(figures, "minus_own")])
    head = ("kind", "system", "guidance", "TIFA, validation", "minus the run's own")
    return f"## Ideas on guidance\n\n{_markdown(head, lines)}"


def _others(out: Path) -> str:
    """The smaller raw files, as lists."""
    lines = []
    for name in ("forget_picture", "membership", "attribution", "storage", "continual", "scale", "cost"):
        path = out / "raw" / f"{name}.json"
        if path.is_file():
            lines += [
                f"**{name}**: `{path.relative_to(out).as_posix()}`",
                "",
                *_listed(json.loads(path.read_text()), ""),
            ]
            lines.append("")
    return "\n".join(lines).strip()


def _listed(value: object, indent: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{indent}- {_n(value)}"]
    lines = []
    for key, own in value.items():
        if isinstance(own, dict):
            lines += [f"{indent}- {key}", *_listed(own, indent + "  ")]
        else:
            lines.append(f"{indent}- {key}: {_n(own)}")
    return lines


def _with(row: Mapping[str, Any], name: str) -> str:
    """A figure and its interval."""
    value = _n(row[name])
    return f"{value} ({_interval(row, f'{name}_low', f'{name}_high')})" if value else ""


def _interval(row: Mapping[str, Any], low: str, high: str) -> str:
    ends = _n(row[low]), _n(row[high])
    return f"{ends[0]} to {ends[1]}" if all(ends) else ""


def _pair(first: object, second: object) -> str:
    return f"{_n(first)}, {_n(second)}" if _n(first) else ""


def _n(value: object) -> str:
    """Three digits; nothing for what was not measured."""
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ", ".join(_n(each) for each in value)
    return "" if value is None else str(value)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
