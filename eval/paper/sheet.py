"""figures/sheet.png: the same prompts and seeds by every system."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw

from paper.pictures import Drawing, picture_folder
from paper.plan import STRATA
from paper.prompts import Prompt
from paper.stage import Stage
from promptcdm.tensorfile import write_bytes

SIDE, GAP, LEFT, HEAD = 72, 4, 170, 38  # pixels


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
        for line, word in enumerate(wrap(drawing.system.name, 14)):
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


def _wrapped(prompt: Prompt) -> list[str]:
    words, half = prompt.text.split(), (len(prompt.text.split()) + 1) // 2
    return [prompt.text] if len(prompt.text) < 26 else [" ".join(words[:half]), " ".join(words[half:])]
