"""Measures nano-judge on what it was not trained on: held-out pictures, and scenes made of held-out sprites.

    python examples/nano_judge/measure.py --pictures examples/emoji/out [--judge FOLDER] [--out figures.json]

A held-out picture counts where its label was trained on in another collection's drawing. Shares come with
Wilson's 95 % interval; sensitivity and specificity are those of yes/no questions.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from pictures import SIZE, held_out_folders, load_pictures, scene_nouns, training_folders
from PIL import Image
from scenes import OPPOSITE, Scene, Sprites, make_scene

from promptcdm.answer import Asked
from promptcdm.caption_chunks import plural
from promptcdm.intervals import wilson_interval
from promptcdm.nano_judge import NanoJudge, load_nano
from promptcdm.question_words import NUMBERS, PLAIN_COLORS
from promptcdm.shipped import shipped
from promptcdm.statements import plain
from promptcdm.tensorfile import write_json

SEED = 5
SCENES = 4000
CHOICES = 20
BARS = {"object": 0.90, "color": 0.85, "count": 0.85, "position": 0.80}
NUMBER_WORDS = {number: word for word, number in NUMBERS.items()}

Row = tuple[str, Asked, str]  # what is measured, the question, the right answer


def picture_questions(root: Path, labels: set[str], rng: random.Random) -> Iterator[Row]:
    """Objects (20 choices) and presence on held-out single pictures."""
    pool = sorted(labels)
    held_out = load_pictures(held_out_folders(root))
    for pixels, label in zip(held_out.pixels, held_out.labels, strict=True):
        if label not in labels:
            continue
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        others = different([label], pool, CHOICES - 1, rng)
        yield "object, pictures", asked(image, "what is in the picture?", [label, *others]), label
        yield "presence, pictures", asked(image, f"is there a {label}?", ["yes", "no"]), "yes"
        yield "presence, pictures", asked(image, f"is there a {others[0]}?", ["yes", "no"]), "no"


def scene_questions(scene: Scene, pool: Sequence[str], rng: random.Random) -> Iterator[Row]:
    """Everything that is asked about one scene."""
    image = scene.picture
    labels = [thing.label for thing in scene.things]
    yes_no = ["yes", "no"]
    for label in labels:
        others = different(labels, pool, CHOICES - 1, rng)
        yield "object, scenes", asked(image, "what is in the picture?", [label, *others]), label
        yield "presence, scenes", asked(image, f"is there a {label}?", yes_no), "yes"
        yield "presence, scenes", asked(image, f"is there a {others[0]}?", yes_no), "no"
    for thing in scene.things:
        if scene.kind in ("count", "mixed count"):
            many, count = plural(thing.label), thing.count
            question = f"how many {many} are there?"
            yield "count, scenes", asked(image, question, ["1", "2", "3", "4"]), str(count)
            wrong = rng.choice([number for number in (2, 3, 4) if number != count])
            if count > 1:
                yield "count yes/no", asked(image, f"are there {NUMBER_WORDS[count]} {many}?", yes_no), "yes"
            yield "count yes/no", asked(image, f"are there {NUMBER_WORDS[wrong]} {many}?", yes_no), "no"
        if thing.color:
            others = [other.color for other in scene.things if other.color != thing.color]
            free = [c for c in PLAIN_COLORS if c not in {thing.color, *others}]
            wrong_colors = (others + rng.sample(free, 3))[:3]
            question = f"what color is the {thing.label}?"
            yield "color, scenes", asked(image, question, [thing.color, *wrong_colors]), thing.color
            yield "color yes/no", asked(image, f"is the {thing.label} {thing.color}?", yes_no), "yes"
            yield "color yes/no", asked(image, f"is the {thing.label} {wrong_colors[0]}?", yes_no), "no"
    if scene.relation:
        first, second = labels
        choices = [f"{relation} the {second}" for relation in OPPOSITE]
        right = f"{scene.relation} the {second}"
        yield "position, scenes", asked(image, f"where is the {first}?", choices), right
        yield "position yes/no", asked(image, f"is the {first} {scene.relation} the {second}?", yes_no), "yes"
        wrong_way = OPPOSITE[scene.relation]
        yield "position yes/no", asked(image, f"is the {first} {wrong_way} the {second}?", yes_no), "no"


def asked(image: Image.Image, question: str, choices: Sequence[str]) -> Asked:
    """A question in sorted order of choices: the model's answer does not depend on the order."""
    return Asked(image, question, tuple(sorted(choices)))


def different(labels: Sequence[str], pool: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Labels of the pool that share no word with these."""
    words = {word for label in labels for word in plain(label).split()}
    return rng.sample([label for label in pool if not words & set(plain(label).split())], count)


def measure(judge: NanoJudge, rows: Sequence[Row], batch: int = 400) -> dict[str, list[tuple[str, bool]]]:
    """What is measured -> (right answer, whether it was given)."""
    found: dict[str, list[tuple[str, bool]]] = defaultdict(list)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        answers = judge.answers([question for _, question, _ in part])
        for (name, _, right), answer in zip(part, answers, strict=True):
            found[name].append((right, answer.choice == right))
    return found


def figures(found: dict[str, list[tuple[str, bool]]]) -> dict[str, dict[str, float]]:
    """Share, interval and number of each measurement; of yes/no questions sensitivity and specificity too."""
    table = {}
    for name, results in sorted(found.items()):
        right = sum(correct for _, correct in results)
        low, high = wilson_interval(right, len(results))
        row = {"share": right / len(results), "low": low, "high": high, "n": len(results)}
        if {answer for answer, _ in results} == {"yes", "no"}:
            for answer, measured in (("yes", "sensitivity"), ("no", "specificity")):
                own = [correct for expected, correct in results if expected == answer]
                row[measured] = sum(own) / len(own)
        table[name] = {key: round(value, 4) for key, value in row.items()}
    return table


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pictures", type=Path, required=True, help="folder that examples/emoji/build.py made"
    )
    parser.add_argument("--judge", type=Path, help="a nano-judge folder (default: the one that ships)")
    parser.add_argument("--scenes", type=int, default=SCENES)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    given = parser.parse_args()
    judge = load_nano(given.judge or shipped("nano-judge"))
    trained = set(load_pictures(training_folders(given.pictures)).labels)
    rng = random.Random(SEED)
    rows = list(picture_questions(given.pictures, trained, rng))
    sprites = Sprites.open(*held_out_folders(given.pictures))
    pool = scene_nouns()
    for index in range(given.scenes):
        rows.extend(scene_questions(make_scene(sprites, SEED * 1_000_000 + index, size=SIZE), pool, rng))
    table = figures(measure(judge, rows))
    for name, row in table.items():
        bar = BARS.get(name.split(",")[0])
        more = f"  bar {bar:.2f} {'reached' if row['share'] >= bar else 'missed'}" if bar is not None else ""
        if "sensitivity" in row:
            more = f"  sensitivity {row['sensitivity']:.3f}  specificity {row['specificity']:.3f}"
        print(f"{name:20} {row['share']:.3f} ({row['low']:.3f} to {row['high']:.3f}) n {row['n']:5.0f}{more}")
    if given.out is not None:
        write_json(given.out, table)
    print(json.dumps({"scenes": given.scenes, "seed": SEED, "distractor labels": len(trained)}))


if __name__ == "__main__":
    main()
