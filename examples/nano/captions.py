"""Wordings of what is in a picture, drawn anew each time a picture is seen."""

from __future__ import annotations

import re

import numpy as np

TEMPLATES = ("{a}", "{a}", "{a}", "{label}", "an icon of {a}", "a picture of {a}", "a drawing of {a}", "an emoji of {a}")


def with_article(label: str) -> str:
    """`apple` -> `an apple`; plurals and labels that have an article stay."""
    if re.match(r"(an?|the|two|three|four|one) ", label) or (label.endswith("s") and not label.endswith("ss")):
        return label
    return ("an " if label[:1] in "aeiou" else "a ") + label


def caption(text: tuple[str, ...], rng: np.random.Generator) -> str:
    """One wording. `text` is (whole caption,) for a scene and (label, tag, tag, ...) for a sprite."""
    if text[0].startswith("="):  # a scene's caption is exact already
        return text[0][1:]
    label, *tags = text
    kind = rng.random()
    if tags and kind < 0.1:
        return ", ".join(rng.permutation([label, *tags])[:3])
    wording = TEMPLATES[rng.integers(len(TEMPLATES))].format(a=with_article(label), label=label)
    if tags and kind < 0.25:
        return f"{wording}, {tags[rng.integers(len(tags))]}"
    return wording
