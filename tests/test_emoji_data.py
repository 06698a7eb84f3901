"""The picture collections that are committed: splits kept, captions and licences present, scenes true."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
EMOJI = EXAMPLES / "emoji"
SLICE = EMOJI / "slice"
COLLECTIONS = ("fluent-emoji-flat", "twemoji", "openmoji", "fxemoji")
LICENSES = {
    "fluent-emoji-flat": "MIT",
    "twemoji": "CC-BY-4.0",
    "openmoji": "CC-BY-SA-4.0",
    "fxemoji": "Apache-2.0",
}

sys.path.insert(0, str(EMOJI))

import backbone_source  # noqa: E402
import captions  # noqa: E402
import colours  # noqa: E402
import scenes  # noqa: E402
import splits  # noqa: E402
import table  # noqa: E402
import topics  # noqa: E402


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def rows() -> dict[str, table.Row]:
    return {r.concept: r for r in table.read_table()}


@pytest.fixture(scope="module")
def sprites() -> scenes.Sprites:
    return scenes.Sprites.open(SLICE / "fluent-emoji-flat")


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_training_pictures_are_not_held_out_and_held_out_ones_are(
    collection: str, rows: dict[str, table.Row]
) -> None:
    train, held = lines(SLICE / collection), lines(SLICE / "heldout" / collection)
    assert len(train) >= 200 and len(held) >= 40
    assert [r["concept"] for r in train if rows[r["concept"]].is_held_out(collection)] == []
    assert [r["concept"] for r in held if not rows[r["concept"]].is_held_out(collection)] == []


def test_no_near_duplicate_of_a_held_out_picture_is_trained_on(rows: dict[str, table.Row]) -> None:
    """Only test concepts, which no source trains on, may have kin among other concepts' pictures."""
    sides: dict[int, set[bool]] = {}
    for (collection, concept), number in topics.read_lookalikes().items():
        row = rows[concept]
        if row.split == "train" and collection != "noto":
            sides.setdefault(number, set()).add(row.is_held_out(collection))
    assert [n for n, side in sides.items() if len(side) > 1] == []


@pytest.mark.parametrize("folder", [*COLLECTIONS, *(f"heldout/{c}" for c in COLLECTIONS), "scenes"])
def test_every_picture_has_a_caption_and_the_right_size(folder: str) -> None:
    found = lines(SLICE / folder)
    assert all(row["text"].strip() and row["text"] == row["text"].strip() for row in found)
    files = {p.name for p in (SLICE / folder).glob("*.png")}
    assert files == {row["file_name"] for row in found} and len(files) == len(found)
    for name in files:
        with Image.open(SLICE / folder / name) as picture:
            assert (picture.size, picture.mode) == ((64, 64), "RGB")


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_licences_are_stated(collection: str) -> None:
    for folder in (SLICE / collection, SLICE / "heldout" / collection):
        text = (folder / "source.toml").read_text(encoding="utf-8")
        assert f'license = "{LICENSES[collection]}"' in text
        for key in ("author", "origin", "attribution"):
            assert f'{key} = ""' not in text and f"{key} = " in text


def test_a_mixed_card_names_every_licence_and_attribution() -> None:
    card = topics.mixed_card(["twemoji", "fxemoji", "fluent-emoji-flat"])
    assert card.license == "Apache-2.0 AND CC-BY-4.0 AND MIT"
    assert all(name in card.attribution for name in ("Twemoji", "Firefox OS Emoji", "Fluent Emoji Flat"))


def test_a_quarter_of_every_main_topic_is_withheld(rows: dict[str, table.Row]) -> None:
    total: Counter[str] = Counter()
    withheld: Counter[str] = Counter()
    for row in rows.values():
        if "noto" in row.icons:
            topic = "symbols" if row.group == "flags" else row.group
            total[topic] += 1
            withheld[topic] += row.nano == "withheld"
    shares = {t: withheld[t] / total[t] for t in total}
    assert len(shares) == 8
    assert all(0.20 <= share <= 0.30 for share in shares.values()), shares


def test_withheld_is_by_concept_and_not_by_spelling(rows: dict[str, table.Row]) -> None:
    record = json.loads((EMOJI / "withheld.json").read_text(encoding="utf-8"))
    for row in rows.values():
        by_rule = row.subgroup in record["subgroups"] or row.concept in record["also_by_label"]
        assert (row.nano == "withheld") == by_rule, row.concept
    assert splits.shows("two mobile phones", {splits.words("mobile phone")})
    assert not splits.shows("scarf", {splits.words("car")})


def test_test_concepts_are_known_to_the_backbone(rows: dict[str, table.Row]) -> None:
    test = [r for r in rows.values() if r.split == "test"]
    assert 0.04 <= len(test) / len(rows) <= 0.08
    assert all("noto" in r.icons and r.nano == "train" for r in test)


def test_the_bar_has_only_objects_that_the_backbone_learns(rows: dict[str, table.Row]) -> None:
    bar = json.loads((EXAMPLES / "nano" / "bar.json").read_text(encoding="utf-8"))["objects"]
    assert len(bar) == 40 and len({o["name"] for o in bar}) == 40
    for item in bar:
        assert rows[item["concept"]].nano == "train" and "noto" in rows[item["concept"]].icons
        assert len(set(item["distractors"])) == 19 and item["name"] not in item["distractors"]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("red apple", "a red apple"),
        ("eagle", "an eagle"),
        ("unicorn", "a unicorn"),
        ("cherries", "cherries"),
        ("bread", "bread"),
        ("person: blond hair", "a person with blond hair"),
        ("family: man, woman, boy", "a family of a man, a woman and a boy"),
        ("eight o\u2019clock", "a clock showing eight o'clock"),
        ("A button (blood type)", "an A button for blood type"),
    ],
)
def test_labels_become_english(label: str, expected: str) -> None:
    assert captions.with_article(label) == expected


@pytest.mark.parametrize(
    ("label", "expected"), [("apple", "apples"), ("cherry", "cherries"), ("mouse", "mice"), ("bus", "buses")]
)
def test_plurals(label: str, expected: str) -> None:
    assert captions.plural(label) == expected


def test_a_caption_is_one_of_the_wordings_and_always_the_same() -> None:
    texts = [captions.caption("apple", f"set/{n}") for n in range(200)]
    assert set(texts) == set(captions.wordings("apple"))
    assert texts == [captions.caption("apple", f"set/{n}") for n in range(200)]


def test_a_scene_is_a_pure_function_of_sprites_and_seed(sprites: scenes.Sprites) -> None:
    again = scenes.Sprites.open(SLICE / "fluent-emoji-flat")
    for seed in range(12):
        one, two = scenes.make_scene(sprites, seed), scenes.make_scene(again, seed)
        assert (one.caption, one.things, one.picture.tobytes()) == (
            two.caption,
            two.things,
            two.picture.tobytes(),
        )
    assert len({scenes.make_scene(sprites, seed).picture.tobytes() for seed in range(12)}) == 12


@pytest.mark.parametrize("kind", scenes.KINDS)
def test_boxes_lie_inside_and_apart(sprites: scenes.Sprites, kind: scenes.Kind) -> None:
    for seed in range(40):
        boxes = [b for t in scenes.make_scene(sprites, seed, kind).things for b in t.boxes]
        for number, (left, top, right, bottom) in enumerate(boxes):
            assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
            for other in boxes[:number]:
                assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


def _holds(first: scenes.Box, relation: str, second: scenes.Box) -> bool:
    return {
        "left of": first[2] <= second[0],
        "right of": first[0] >= second[2],
        "above": first[3] <= second[1],
        "below": first[1] >= second[3],
    }[relation]


def test_relations_hold_on_the_boxes(sprites: scenes.Sprites) -> None:
    seen = set()
    for seed in range(80):
        scene = scenes.make_scene(sprites, seed, "pair")
        first, second = scene.things
        assert _holds(first.box, scene.relation, second.box)
        assert not _holds(first.box, scenes.OPPOSITE[scene.relation], second.box)
        seen.add(scene.relation)
    assert seen == set(scenes.OPPOSITE)


def test_captions_say_what_is_there(sprites: scenes.Sprites) -> None:
    for seed in range(40):
        counted = scenes.make_scene(sprites, seed, "count")
        thing = counted.things[0]
        name = thing.label if thing.count == 1 else captions.plural(thing.label)
        assert counted.caption.endswith(name)
        assert thing.count == 1 or f"{scenes.NUMBERS[thing.count]} " in counted.caption
        coloured = scenes.make_scene(sprites, seed, "colour pair")
        for one in coloured.things:
            assert f"{one.color} {one.label}" in coloured.caption


def test_false_captions_differ_in_the_thing_they_name(sprites: scenes.Sprites) -> None:
    expected = {
        "pair": {"object", "position"},
        "list": {"object"},
        "count": {"object", "count"},
        "mixed count": {"object", "count", "swap"},
        "colour": {"object", "colour"},
    }
    for kind, wrong in expected.items():
        scene = scenes.make_scene(sprites, 3, kind)  # type: ignore[arg-type]
        negatives = scenes.hard_negatives(scene, sprites, 3)
        assert {n.wrong for n in negatives} == wrong
        assert scene.caption not in {n.caption for n in negatives}
    pair = scenes.make_scene(sprites, 3, "colour pair")
    swapped = next(n for n in scenes.hard_negatives(pair, sprites, 3) if n.wrong == "swap")
    first, second = pair.things
    assert (
        f"{second.color} {first.label}" in swapped.caption
        and f"{first.color} {second.label}" in swapped.caption
    )


@pytest.mark.parametrize("name", colours.COLOURS)
def test_a_recoloured_sprite_is_nearest_to_its_own_colour(sprites: scenes.Sprites, name: str) -> None:
    apple = next(s for s in sprites.recolourable if s.concept == "red-apple")
    lab = colours.to_oklab(colours.recolour(apple.ink, name)).reshape(-1, 3)
    chroma = (lab[:, 1] ** 2 + lab[:, 2] ** 2) ** 0.5
    colour = sorted(map(tuple, lab[chroma > colours.CHROMA].round(2).tolist()))
    middle = Counter(colour).most_common(1)[0][0]
    distance = {}
    for other, rgb in colours.TARGETS.items():
        target = colours.to_oklab(colours.pixel(rgb))
        distance[other] = float(((target - middle) ** 2).sum())
    assert min(distance, key=lambda n: distance[n]) == name


def test_committed_scenes_are_what_the_seeds_give_and_use_held_out_pictures() -> None:
    opened = {
        c: scenes.Sprites.open(SLICE / "heldout" / c) for c in ("fluent-emoji-flat", "twemoji", "fxemoji")
    }
    for row in lines(SLICE / "scenes")[:12]:
        scene = scenes.make_scene(opened[row["collection"]], row["seed"], row["kind"])
        assert (scene.caption, scene.relation, scene.objects()) == (
            row["text"],
            row["relation"],
            row["objects"],
        )
        with Image.open(SLICE / "scenes" / row["file_name"]) as picture:
            difference = np.abs(np.asarray(picture, np.int16) - np.asarray(scene.picture, np.int16))
        assert difference.mean() < 0.5  # rounding may differ between machines


def test_the_backbone_s_own_pictures_are_its_sprites_with_scenes_of_them(tmp_path: Path) -> None:
    for name, other in (("noto", "fluent-emoji-flat"), ("flat-color-icons", "twemoji")):
        (tmp_path / name).symlink_to(SLICE / other)  # the slice has none of the backbone's own sets
    entries = list(backbone_source.backbone_entries(tmp_path))
    drawn = [entry for entry in entries if not entry.file.startswith("scene-")]
    scenes_of_them = [entry for entry in entries if entry.file.startswith("scene-")]
    assert len(drawn) == len(lines(tmp_path / "noto")) + len(lines(tmp_path / "flat-color-icons"))
    assert len(scenes_of_them) == round(len(drawn) * 28 / 62) > 0
    assert len({entry.file for entry in entries}) == len(entries)
    assert any(" and " in entry.text for entry in scenes_of_them)
    assert {entry.picture.mode for entry in entries} == {"RGB"}


def test_the_slice_is_small() -> None:
    assert sum(p.stat().st_size for p in SLICE.rglob("*") if p.is_file()) < 8e6
