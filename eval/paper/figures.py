"""Figures from the tables and pictures: TIFA by stratum, denoising error by noise level, quality against cost, a sheet.

figures/tifa.png    figures/ruler.png    figures/cost.png    figures/sheet.png
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image, ImageDraw

from paper.pictures import Drawing, picture_folder
from paper.plan import STRATA
from paper.prompts import Prompt
from paper.stage import Stage
from promptcdm.tensorfile import write_bytes

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
SIDE, GAP, LEFT, HEAD = 72, 4, 170, 34


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


def draw_sheet(stage: Stage, drawings: Sequence[Drawing]) -> Path:
    """Two prompts of each stratum by every system, from the run's pictures: the same seeds."""
    path = stage.out / "figures" / "sheet.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    prompts = [p for s in STRATA for p in [p for p in stage.part("test") if p.stratum == s][:2]]
    page = Image.new(
        "RGB", (LEFT + len(drawings) * (SIDE + GAP), HEAD + len(prompts) * (SIDE + GAP)), "white"
    )
    pen = ImageDraw.Draw(page)
    for column, drawing in enumerate(drawings):
        x = LEFT + column * (SIDE + GAP)
        for line, word in enumerate(_lines(drawing.system.name)):
            pen.text((x + 1, 2 + 11 * line), word, fill="black")
        for row, prompt in enumerate(prompts):
            own = picture_folder(stage, drawing) / f"{prompt.id}.png"
            if own.is_file():
                with Image.open(own) as picture:
                    page.paste(picture.resize((SIDE, SIDE)), (x, HEAD + row * (SIDE + GAP)))
    for row, prompt in enumerate(prompts):
        y = HEAD + row * (SIDE + GAP) + 12
        for line, words in enumerate((prompt.stratum, *_wrapped(prompt))):
            pen.text((3, y + 13 * line), words, fill="gray" if line == 0 else "black")
    file = BytesIO()
    page.save(file, "PNG")
    write_bytes(path, file.getvalue())  # whole, whichever worker is the last
    return path


def _lines(name: str) -> list[str]:
    return name.split(maxsplit=1)


def _wrapped(prompt: Prompt) -> list[str]:
    words, half = prompt.text.split(), (len(prompt.text.split()) + 1) // 2
    return [prompt.text] if len(prompt.text) < 26 else [" ".join(words[:half]), " ".join(words[half:])]


def _save(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    # Without matplotlib's version in the file, the same run gives the same bytes.
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
    return path
