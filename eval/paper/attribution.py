"""Attribution of held-out real pictures: is the source whose adapter takes most of the backbone's error the true one?

From the rows of the fast ruler: no forward of its own.

    score_i = mean over levels of 1 - e_i / e_backbone        the method `denoising` of promptcdm attribute

    raw/attribution.csv    a row for each picture: its source and the one that it was taken for
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from paper.compare import Estimate, mean
from paper.stage import Stage, write_csv


def attributions(stage: Stage, rows: Sequence[dict[str, str]]) -> Estimate:
    """Top-1 over all pictures of the ruler, with an interval over concepts; raw/attribution.csv."""
    scores: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    concepts = {}
    for row in rows:
        key = row["source"], row["picture"]
        bare = float(row["error backbone"])
        scores[key].append([1 - float(row[f"error {name} alone"]) / bare for name in stage.names])
        concepts[key] = row["concept"]
    found = [
        {
            "source": source,
            "picture": number,
            "concept": concepts[source, number],
            "taken_for": stage.names[int(np.mean(levels, 0).argmax())],
        }
        for (source, number), levels in scores.items()
    ]
    write_csv(stage.raw / "attribution.csv", found)
    by_concept: dict[str, list[float]] = defaultdict(list)
    for row in found:
        by_concept[row["concept"]].append(float(row["source"] == row["taken_for"]))
    estimate = mean(np.asarray([[float(np.mean(own)) for own in by_concept.values()]]))
    right = [row["source"] == row["taken_for"] for row in found]
    # The share is of pictures; its interval's width is that of the mean over concepts, whose pictures hang together.
    shift = float(np.mean(right)) - estimate.value
    return Estimate(float(np.mean(right)), estimate.low + shift, min(1.0, estimate.high + shift))
