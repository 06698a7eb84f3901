"""Figures from the tables: TIFA by stratum, denoising error by noise level, quality against cost.

figures/tifa.png    figures/ruler.png    figures/cost.png
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from paper.plan import STRATA

Table = Sequence[Mapping[str, Any]]
SHOWN = (
    "backbone",
    "monolith",
    "oracle source",
    "draw prompt",
    "average",
    "product",
    "product top-1",
    "regional",
)


def make_figures(out: Path, tables: Mapping[str, Table]) -> list[Path]:
    """All figures that the tables allow."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    made = [_tifa(tables["strata"], folder / "tifa.png"), _cost(tables["systems"], folder / "cost.png")]
    if tables["ruler"]:
        made.append(_ruler(tables["ruler"], folder / "ruler.png"))
    return made


def _tifa(rows: Table, path: Path) -> Path:
    """Bars of the systems in SHOWN, by stratum, by the last judge."""
    judge = rows[-1]["judge"]
    own = {(r["system"], r["stratum"]): r for r in rows if r["judge"] == judge}
    systems = [name for name in SHOWN if any(key[0] == name for key in own)]
    figure, axes = plt.subplots(figsize=(10, 4))
    width = 0.8 / len(systems)
    for n, name in enumerate(systems):
        there = [(i, own[name, s]) for i, s in enumerate(STRATA) if (name, s) in own]
        heights = [row["tifa"] for _, row in there]
        errors = [
            [max(row["tifa"] - row["tifa_low"], 0) for _, row in there],
            [max(row["tifa_high"] - row["tifa"], 0) for _, row in there],
        ]
        axes.bar(
            [i + n * width for i, _ in there], heights, width, yerr=errors, label=name, error_kw={"lw": 0.7}
        )
    chance = [row["chance"] for (_, s), row in own.items() if s in STRATA]
    axes.axhline(sum(chance) / len(chance), color="gray", lw=0.8, ls=":")
    axes.set_xticks([i + 0.4 - width / 2 for i in range(len(STRATA))], STRATA)
    axes.set_ylabel(f"TIFA, {judge}; dotted: a guess")
    axes.legend(fontsize=7, ncols=4)
    return _save(figure, path)


def _ruler(rows: Table, path: Path) -> Path:
    """Error over the monolith's, by log-SNR."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for name in (*SHOWN, "draw uniform", "soup", "LoRAtorio"):
        own = [r for r in rows if r["system"] == name and r["level"] != "all"]
        if own and name != "monolith":
            axes.plot(
                [float(r["log_snr"]) for r in own], [r["over_monolith"] for r in own], marker=".", label=name
            )
    axes.axhline(0, color="gray", lw=0.8)
    axes.set_xlabel("log-SNR: noise on the left")
    axes.set_ylabel("denoising error over the monolith's, minus 1")
    axes.legend(fontsize=7)
    return _save(figure, path)


def _cost(rows: Table, path: Path) -> Path:
    """TIFA over all strata against the UNet's rows a picture."""
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for row in rows:
        if row["tifa all"] == row["tifa all"]:  # joined prompts alone are no comparison
            axes.plot(row["rows"], row["tifa all"], "k.", ms=4)
            axes.annotate(
                row["system"],
                (row["rows"], row["tifa all"]),
                fontsize=6,
                xytext=(3, 2),
                textcoords="offset points",
            )
    axes.set_xscale("log")
    axes.set_xlabel("rows of the UNet a picture")
    axes.set_ylabel("TIFA, all strata")
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    # Without matplotlib's version in the file, the same run gives the same bytes.
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
    return path
