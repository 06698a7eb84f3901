"""Measures how often a judge errs: sensitivity and specificity of each kind of question, beside which its scores stand.

    python eval/judge_errors.py --judge nano-judge --pictures examples/emoji/out --out errors.json

real        held-out pictures that no judge was trained on, and scenes made of them (examples/emoji/scenes.py)
generated   the pictures of eval/judge_labels, labelled blind by looking at them

`promptcdm evaluate tifa --errors FILE` prints the score corrected for these errors; of judges that ship it has one.
docs/evaluation.md has the formula. Shares come with Wilson's 95 % interval; questions on one picture are no independent
draws, so that the intervals are rather too narrow.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from promptcdm.errors import PromptCDMError
from promptcdm.intervals import wilson_interval
from promptcdm.judge import ACCEPTED, load_judge
from promptcdm.judge_errors import FILE
from promptcdm.known_pictures import Known, Tally, Thing, checks, record, tally
from promptcdm.shipped import shipped
from promptcdm.statements import plain
from promptcdm.tensorfile import write_json

HERE = Path(__file__).parent
LABELS = HERE / "judge_labels"
EXAMPLES = HERE.parent / "examples"
SEED = 5
SIDE, COLUMNS = 64, 20  # of pictures.png


def held_out(root: Path, count: int) -> tuple[list[Known], list[str]]:
    """Held-out pictures of things that other collections draw, and all labels that are trained on."""
    sys.path[:0] = [str(EXAMPLES / "emoji"), str(EXAMPLES / "nano_judge")]  # plain files, not packages
    from captions import tidy
    from pictures import held_out_folders, training_folders

    def rows(folders: Sequence[Path]) -> Iterator[tuple[Path, str]]:
        for folder in folders:
            for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                yield folder / row["file_name"], plain(tidy(row["label"]))

    labels = {label for _, label in rows(training_folders(root))}
    found = [(path, label) for path, label in rows(held_out_folders(root)) if label in labels]
    random.Random(SEED).shuffle(found)
    return [Known(_picture(path), (Thing(label),)) for path, label in found[:count]], sorted(labels)


def scenes(root: Path, count: int) -> tuple[list[Known], list[str]]:
    """Scenes of held-out sprites, and all nouns of scenes."""
    sys.path[:0] = [str(EXAMPLES / "emoji"), str(EXAMPLES / "nano_judge")]
    from pictures import held_out_folders, scene_nouns
    from scenes import Sprites, make_scene

    sprites = Sprites.open(*held_out_folders(root))
    found = []
    for number in range(count):
        scene = make_scene(sprites, SEED * 1_000_000 + number)
        counted = scene.kind in ("count", "mixed count")
        things = tuple(Thing(t.label, t.count if counted else 0, t.color) for t in scene.things)
        found.append(Known(scene.picture, things, scene.relation))
    return found, scene_nouns()


def labelled(folder: Path = LABELS) -> tuple[list[Known], list[str]]:
    """The generated pictures with what was seen in them; those in which nothing could be named are left out."""
    raw = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    found = []
    with Image.open(folder / "pictures.png") as whole:
        for number, row in sorted(((int(number), row) for number, row in raw["pictures"].items())):
            if not row["things"]:
                continue
            left, top = number % COLUMNS * SIDE, number // COLUMNS * SIDE
            image = whole.convert("RGB").crop((left, top, left + SIDE, top + SIDE))
            things = tuple(Thing(t["noun"], t.get("count", 0), t.get("color", "")) for t in row["things"])
            found.append(Known(image, things, row.get("relation", ""), row.get("named", True)))
    return found, list(raw["nouns"])


def _picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def lines(name: str, tallies: Mapping[str, Tally]) -> Iterator[str]:
    """A line for each kind of question."""
    for kind, each in sorted(tallies.items()):
        cells = []
        for what, right, of in (
            ("sensitivity", each.affirmed, each.shown),
            ("specificity", each.denied, each.not_shown),
        ):
            low, high = wilson_interval(right, of)
            share = f"{right / of:.3f} ({low:.3f} to {high:.3f})" if of else "none"
            cells.append(f"{what} {share} of {of}")
        yield f"{name:10} {kind:22} {'   '.join(cells)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script; 0 done, 2 wrong input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--judge", required=True, help=ACCEPTED)
    parser.add_argument("--pictures", type=Path, required=True, help="what examples/emoji/build.py made")
    parser.add_argument("--labels", type=Path, default=LABELS, help="labelled generated pictures")
    parser.add_argument("--count", type=int, default=2000, help="held-out pictures at most")
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--out", type=Path, help=f"JSON, such as {shipped('nano-judge') / FILE}")
    given = parser.parse_args(arguments)
    try:
        judge = load_judge(given.judge, device=given.device)
        parts = {
            "real": [held_out(given.pictures, given.count), scenes(given.pictures, given.scenes)],
            "generated": [labelled(given.labels)] if (given.labels / "labels.json").is_file() else [],
        }
        content: dict[str, object] = {"judge": judge.name, "version": judge.version, "seed": SEED}
        for name, sets in parts.items():
            asked = [check for known, nouns in sets for check in checks(known, nouns, seed=SEED)]
            tallies, left_out = tally(judge, asked)
            content[name] = record(tallies)
            content[f"{name} pictures"] = [len(known) for known, _ in sets]
            content[f"{name} questions left out"] = left_out
            for line in lines(name, tallies):
                print(line, flush=True)
        if given.out:
            write_json(given.out, content)
    except PromptCDMError as error:
        print(f"judge_errors.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
