"""Takes the committed slice out of built collections: what the demo and the tests use without npm.

python examples/emoji/take_slice.py --built examples/emoji/out
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from folder import Entry, write_folder
from scenes import KINDS, Sprites, hard_negatives, make_scene, nouns
from table import HERE, read_table
from topics import mixed_card

COLLECTIONS = ("fluent-emoji-flat", "twemoji", "openmoji", "fxemoji")
SCENE_COLLECTIONS = ("fluent-emoji-flat", "twemoji", "fxemoji")
SEED = 8
TRAIN, HELD_OUT, SCENES = 240, 50, 60
# The demo has minutes: few ideas, the same for each collection, so that each is learned well.
DEMO_COLLECTIONS, DEMO = ("fluent-emoji-flat", "twemoji", "openmoji"), 60
DEMO_CONCEPTS = ("fox", "pizza", "bus", "robot", "sunflower", "turtle")  # what it asks for


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def _take(built: Path, out: Path, concepts: Sequence[str], limit: int) -> int:
    """Copies the pictures of the first `limit` of the concepts that the folder has, and its source.toml."""
    by_concept = {row["concept"]: row for row in _lines(built)}
    chosen = [by_concept[c] for c in concepts if c in by_concept][:limit]
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    chosen.sort(key=lambda row: row["file_name"])
    for row in chosen:
        shutil.copyfile(built / row["file_name"], out / row["file_name"])
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
    (out / "metadata.jsonl").write_text(text, encoding="utf-8")
    shutil.copyfile(built / "source.toml", out / "source.toml")
    return len(chosen)


def order(known: dict[str, Collection[str]]) -> list[str]:
    """Everyday concepts in a seeded order, those that most collections of `known` have first; then all others."""
    everyday = sorted(set(nouns("countable")) | set(nouns("recolourable")))
    others = sorted({r.concept for r in read_table()} - set(everyday))
    rng = random.Random(SEED)
    rng.shuffle(everyday)
    rng.shuffle(others)
    count = {c: sum(c in have for have in known.values()) for c in (*everyday, *others)}
    return sorted(everyday, key=lambda c: -count[c]) + sorted(others, key=lambda c: -count[c])


def demo_concepts(folders: Sequence[Path], order: Sequence[str]) -> list[str]:
    """What the demo asks for, and the first of the others that all of the folders have."""
    common = set.intersection(*({row["concept"] for row in _lines(folder)} for folder in folders))
    return [*DEMO_CONCEPTS, *(c for c in order if c in common and c not in DEMO_CONCEPTS)][:DEMO]


def write_scenes(heldout: Path, out: Path) -> int:
    """Scenes made of held-out pictures, the kinds in equal parts, with their ground truth and false captions."""
    entries = []
    for number in range(SCENES):
        collection = SCENE_COLLECTIONS[number % len(SCENE_COLLECTIONS)]
        sprites = Sprites.open(heldout / collection)
        kind = KINDS[number // len(SCENE_COLLECTIONS) % len(KINDS)]
        scene = make_scene(sprites, number, kind)
        negatives = hard_negatives(scene, sprites, number)
        more: dict[str, object] = {
            "kind": scene.kind,
            "relation": scene.relation,
            "objects": scene.objects(),
            "false_captions": [{"text": n.caption, "wrong": n.wrong} for n in negatives],
            "collection": collection,
            "seed": number,
        }
        entries.append(Entry(f"scene-{number:02d}.png", scene.picture, scene.caption, more))
    return write_folder(out, entries, mixed_card(SCENE_COLLECTIONS))


def main() -> None:
    """Writes the whole slice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--built", type=Path, required=True, help="what build.py wrote")
    parser.add_argument("--out", type=Path, default=HERE / "slice")
    flags = parser.parse_args()
    train = order({c: {row["concept"] for row in _lines(flags.built / c)} for c in COLLECTIONS})
    held = order({c: {row["concept"] for row in _lines(flags.built / "heldout" / c)} for c in COLLECTIONS})
    for name in COLLECTIONS:
        count = _take(flags.built / name, flags.out / name, train, TRAIN)
        aside = _take(flags.built / "heldout" / name, flags.out / "heldout" / name, held, HELD_OUT)
        print(f"{name}: {count} pictures, {aside} held out")
    demo = demo_concepts([flags.out / name for name in DEMO_COLLECTIONS], train)
    for name in DEMO_COLLECTIONS:
        count = _take(flags.out / name, flags.out / "demo" / name, demo, DEMO)
        print(f"demo/{name}: {count} pictures")
    print(f"scenes: {write_scenes(flags.out / 'heldout', flags.out / 'scenes')}")


if __name__ == "__main__":
    main()
