"""Sets at which P `sealed-judge` says yes: on drawings that its training left out, where yes and no err alike.

    python examples/sealed_judge/odds.py --pictures examples/emoji/out --model work/sealed-judge/model

Of each kind of yes/no statement the log-odds of P become a + b log-odds, by logistic regression of what is shown, the
shown and the not shown weighing alike. The model's config.json gets a and b. No held-out picture is read.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from split import drawings, split, sprites

from pictures import scene_nouns  # isort: skip
from scenes import make_scene  # isort: skip

from promptcdm.known_pictures import Known, Thing, checks
from promptcdm.sealed_judge import (
    KINDS,
    SealedConfig,
    SealedJudge,
    load_sealed,
    read,
    read_config,
    save_sealed,
)
from promptcdm.statements import statement

SEED = 31
LEAST = 1e-6
PENALTY = 1e-2  # of b's distance from 1, so that few questions do not turn it
Floats = NDArray[np.float64]


def known(root: Path, pictures: int, scenes: int) -> tuple[list[Known], list[Known], list[str]]:
    """Single drawings and scenes of what was left out, and all labels."""
    every = drawings(root)
    _, left_out = split(every)
    singles = []
    for drawing in left_out[:: max(1, len(left_out) // pictures)]:
        with Image.open(drawing.path) as picture:
            singles.append(Known(picture.convert("RGB"), (Thing(drawing.label),)))
    drawn = sprites(left_out)
    made = []
    for number in range(scenes):
        scene = make_scene(drawn, SEED * 1_000_000 + number)
        counted = scene.kind in ("count", "mixed count")
        things = tuple(Thing(t.label, t.count if counted else 0, t.color) for t in scene.things)
        made.append(Known(scene.picture, things, scene.relation))
    return singles, made, sorted({drawing.label for drawing in every})


def log_odds(judge: SealedJudge, asked: list[Known], nouns: list[str]) -> dict[str, list[tuple[float, bool]]]:
    """Kind of statement -> log-odds of P, and whether it is shown."""
    found: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    seen = {id(each.image): s for each, s in zip(asked, judge.look([k.image for k in asked]), strict=True)}
    for check in checks(asked, nouns, seed=SEED):
        if check.asked.choices == ("yes", "no"):
            said = read(statement(check.asked.question, "yes"))
            chance = min(max(judge.probability(seen[id(check.asked.image)], said), LEAST), 1 - LEAST)
            found[said.kind].append((math.log(chance / (1 - chance)), check.shown))
    return found


def fit(rows: list[tuple[float, bool]]) -> tuple[float, float]:
    """a and b by Newton's method, each step halved until the loss falls."""
    x = np.array([[1.0, odds] for odds, _ in rows])
    shown = np.array([float(each) for _, each in rows])
    weight = np.where(shown == 1, 0.5 / shown.mean(), 0.5 / (1 - shown.mean())) / len(rows)

    def loss(ab: Floats) -> float:
        logits = x @ ab
        each = np.logaddexp(0, logits) - shown * logits
        return float(weight @ each + 0.5 * PENALTY * (ab[1] - 1) ** 2)

    found = np.array([0.0, 1.0])
    for _ in range(50):
        p = 0.5 * (1 + np.tanh(x @ found / 2))
        slope = x.T @ (weight * (p - shown)) + PENALTY * np.array([0.0, found[1] - 1])
        bend = (x.T * (weight * p * (1 - p))) @ x + np.diag([1e-6, PENALTY])
        step = np.linalg.solve(bend, slope)
        while np.abs(step).max() > 1e-9 and loss(found - step) > loss(found):
            step = step / 2
        found = found - step
    return float(found[0]), float(found[1])


def main() -> None:
    """Fit, and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True, help="folder that train.py wrote")
    parser.add_argument("--singles", type=int, default=600)
    parser.add_argument("--scenes", type=int, default=600)
    given = parser.parse_args()
    judge = load_sealed(given.model)
    singles, made, labels = known(given.pictures, given.singles, given.scenes)
    rows = log_odds(judge, singles, labels)
    for kind, more in log_odds(judge, made, scene_nouns()).items():
        rows[kind] += more
    odds = {}
    for kind in KINDS:
        a, b = fit(rows[kind])
        odds[kind] = (round(a, 3), round(b, 3))
        yes = [a + b * each > 0 for each, shown in rows[kind] if shown]
        no = [a + b * each <= 0 for each, shown in rows[kind] if not shown]
        print(f"{kind:9} a {a:+.3f} b {b:.3f}  sensitivity {np.mean(yes):.3f}  specificity {np.mean(no):.3f}")
    config = read_config(given.model / "config.json")
    save_sealed(given.model, judge.model, SealedConfig(config.names, config.colors, odds))


if __name__ == "__main__":
    main()
