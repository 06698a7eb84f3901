"""Finished evaluations for tests: questions, drawn pictures, a judge that is told what to say, result files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from promptcdm.answer import Answer, Asked
from promptcdm.evaluate import evaluate_tifa
from promptcdm.judge_errors import Errors
from promptcdm.questions import Question

CHOICES = ("red", "lime", "blue", "gray")
CAPTIONS = tuple(f"a {color} <b>{thing}</b>" for thing in ("cup", "car", "hat") for color in CHOICES[:3])


def questions() -> list[Question]:
    """Two on each caption: its colour, and a yes/no question."""
    made = []
    for n, caption in enumerate(CAPTIONS):
        color = caption.split()[1]
        made.append(Question(f"p{n}", caption, "what color is it?", CHOICES, color, "color", color))
        made.append(Question(f"p{n}", caption, "is there a thing?", ("yes", "no"), "yes", "object", "thing"))
    return made


class Told:
    """Right about the captions whose numbers it is given, by the pictures' first pixel; else it says gray or no."""

    version = "told 1"
    blind = False

    def __init__(self, right: Sequence[int], name: str = "told") -> None:
        self.name = name
        self._right = set(right)

    def answers(self, batch: Sequence[Asked]) -> list[Answer]:
        return [self.answer(*asked) for asked in batch]

    def answer(self, image: Image.Image, question: str, choices: Sequence[str]) -> Answer:
        pixel = image.getpixel((0, 0))
        assert isinstance(pixel, tuple)
        right = pixel[0] in self._right
        if question.startswith("what"):
            color = CAPTIONS[pixel[0]].split()[1]
            return Answer(color if right else "gray", None, color)
        return Answer("yes" if right else "no")


def evaluated(
    out: Path,
    right: Sequence[int],
    allowed: Mapping[str, float] | None = None,
    *,
    judge: str = "told",
    pictures: str = "",
    size: int = 12,
    errors: Mapping[str, Errors] | None = None,
) -> Path:
    """Judge a picture of each caption, and write result and extras to `out`; returns it.

    With `allowed`, {source: weight}, the pictures have records as `generate` writes them.
    """
    folder = out.parent / (pictures or f"{out.stem}-pictures")
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for n in range(len(CAPTIONS)):
        images[f"p{n}"] = folder / f"{n:04d}.png"
        if not images[f"p{n}"].is_file():
            Image.new("RGB", (size, size), (n, 80, 160)).save(images[f"p{n}"])
        if allowed is not None:
            path = folder / f"{n:04d}.json"
            path.write_text(json.dumps(record(CAPTIONS[n], n, allowed)), encoding="utf-8")
    evaluate_tifa(questions(), images, Told(right, judge), errors=errors).save(out)
    return out


def record(prompt: str, seed: int, allowed: Mapping[str, float]) -> dict[str, Any]:
    """What `generate` writes beside a picture."""
    return {
        "prompt": prompt,
        "seed": seed,
        "allowed": list(allowed),
        "backbone": "b" * 64,
        "adapters": [{"source": name, "sha256": name[0] * 64} for name in allowed],
        "weights": dict(allowed),
        "weights_by_step": [dict(allowed)] * 4 if allowed else [],
        "settings": {"num_inference_steps": 4, "guidance_scale": 2.0, "seed": seed, "num_images": 1},
    }
