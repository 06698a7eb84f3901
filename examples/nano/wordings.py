"""Wordings of what is in a picture, drawn anew each time a picture is seen."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).resolve().parent.parent / "emoji"))

from captions import with_article as with_article
from captions import wordings


@cache
def _wordings(label: str) -> tuple[str, ...]:
    return tuple(wordings(label))


def caption(text: tuple[str, ...], rng: np.random.Generator) -> str:
    """One wording. `text` is (caption,) for a scene, with "=" in front, and (label, tag, tag, ...) for a sprite."""
    if text[0].startswith("="):
        return text[0][1:]
    label, *tags = text
    kind = rng.random()
    if tags and kind < 0.1:
        return ", ".join(rng.permutation([label, *tags])[:3])
    options = _wordings(label)
    wording = options[rng.integers(len(options))]
    if tags and kind < 0.2:
        return f"{wording}, {tags[rng.integers(len(tags))]}"
    return wording
