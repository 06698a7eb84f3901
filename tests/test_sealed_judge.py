"""The sealed judge: words to concepts, boxes, crops, statements as probabilities by brute force, folders."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from promptcdm.answer import Asked, CannotAnswer, Judge
from promptcdm.cli import main
from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.judge import load_judge
from promptcdm.judge_errors import read_errors
from promptcdm.sealed_judge import (
    KINDS,
    Phrase,
    Said,
    SealedConfig,
    SealedJudge,
    Seen,
    load_sealed,
    read,
    save_sealed,
)
from promptcdm.sealed_names import Names
from promptcdm.sealed_network import CELLS, Found, boxes_of, crops, ink_boxes
from promptcdm.shipped import shipped
from promptcdm.square_picture import image_tensor
from promptcdm.statements import plain
from promptcdm.tower import file_digest

NAMES = (("cat",), ("cat face",), ("dog",), ("hot dog",), ("red apple", "apple"))
COLORS = ("red", "blue")
WEIGHTS = "09b46554c26b713c0126b4a4b30416a441db53f8feffdc532ece833315b872f8"


@pytest.fixture(scope="module")
def judge() -> SealedJudge:
    torch.manual_seed(0)
    config = SealedConfig(NAMES, COLORS)
    return SealedJudge(config.build(), config)


def seen(sure: list[float], concepts: list[list[float]], middles: list[tuple[float, float]]) -> Seen:
    """Things of these probabilities; the last is the crop of everything."""
    colors = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.5, 0.5]])[: len(sure)]
    return Seen(torch.tensor(sure), torch.tensor(concepts), colors, torch.tensor(middles))


def square(left: int, top: int, right: int, bottom: int, color: str = "black") -> Image.Image:
    picture = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), color)
    return picture


def pixels(picture: Image.Image) -> Tensor:
    return (image_tensor(picture, 64)[None] + 1) / 2


def test_words_cover_concepts_by_name_then_by_the_words_in_a_name() -> None:
    names = Names(NAMES)
    assert names.covered("cat") == (0, 1)  # a cat's face is a cat
    assert names.covered("dog") == (2,)  # and a hot dog no dog
    assert names.covered("apple") == (4,)
    assert names.covered("red") == (4,)  # no concept of this name: those that hold the word
    assert names.covered("zebra") == ()


def test_statements_are_taken_apart() -> None:
    assert read("not red cat") == Said(True, Phrase("cat", None, "red"))
    assert read("three hot dog") == Said(False, Phrase("hot dog", 3))
    assert read("0 cat").first.number == 0
    assert read("cat left red dog") == Said(False, Phrase("cat"), "left", Phrase("dog", None, "red"))
    assert [read(text).kind for text in ("cat", "red cat", "two cat", "cat above dog")] == list(KINDS)


def test_all_that_is_drawn_lies_in_the_box_and_a_crop_shows_nothing_else() -> None:
    picture = pixels(square(16, 8, 48, 24))
    (box,) = ink_boxes(picture)
    assert box.tolist() == [0.25, 0.125, 0.75, 0.375]
    both = torch.minimum(picture, pixels(square(0, 40, 64, 64)))  # something else below it
    (crop,) = crops(both, box[None], 48)
    inked = crop.amin(0) < 0.5
    assert inked.any(0).sum() / 48 == pytest.approx(1 / 1.16, abs=0.05)  # as wide as the crop but the margin
    assert inked.any(1).sum() / 48 == pytest.approx(0.5 / 1.16, abs=0.05)
    assert ink_boxes(torch.ones(1, 3, 64, 64)).tolist() == [[0.0, 0.0, 1.0, 1.0]]


def test_boxes_are_peaks_and_of_two_that_overlap_the_surer_stays() -> None:
    heat = torch.full((1, CELLS, CELLS), -9.0)
    size = torch.full((1, 2, CELLS, CELLS), 0.25)
    heat[0, 4, 4], heat[0, 4, 5], heat[0, 4, 6], heat[0, 12, 12] = 3.0, 2.0, 2.5, 1.0
    size[0, :, 4, 6] = 0.3
    ((boxes, sure),) = boxes_of(Found(heat, size))
    middles = ((boxes[:, :2] + boxes[:, 2:]) / 2 * CELLS - 0.5).round().long().tolist()
    assert middles == [[4, 4], [6, 4], [12, 12]]  # the cell between is no peak
    assert sure.tolist() == pytest.approx(torch.tensor([3.0, 2.5, 1.0]).sigmoid().tolist())
    size[0, :, 4, 4:7] = 0.6
    ((boxes, _),) = boxes_of(Found(heat, size))
    assert len(boxes) == 2


def test_counts_are_over_all_ways_in_which_things_may_be_cats(judge: SealedJudge) -> None:
    concepts = [[0.8, 0, 0.1, 0, 0.1], [0.4, 0.1, 0.5, 0, 0], [0.2, 0, 0.8, 0, 0], [0.5, 0, 0.5, 0, 0]]
    found = seen([0.9, 0.8, 1.0, 0.3], concepts, [(0.2, 0.2), (0.8, 0.2), (0.2, 0.8), (0.5, 0.5)])
    each = [s * (p / 0.8) ** 0.5 for s, p in zip([0.9, 0.8, 1.0], [0.8, 0.5, 0.2], strict=True)]
    for number in range(4):
        expected = 0.0
        for ways in itertools.product((0, 1), repeat=3):
            if sum(ways) == number:
                chance = 1.0
                for way, p in zip(ways, each, strict=True):
                    chance *= p if way else 1 - p
                expected += chance
        said = Said(False, Phrase("cat", number))
        assert judge.probability(found, said) == pytest.approx(expected, abs=1e-6)
    assert judge.probability(found, Said(False, Phrase("cat", 4))) == 0


def test_presence_colour_and_position_by_hand(judge: SealedJudge) -> None:
    concepts = [[0.9, 0, 0.1, 0, 0], [0.1, 0, 0.9, 0, 0], [0.5, 0, 0.5, 0, 0]]
    found = seen([1.0, 0.8, 0.3], concepts, [(0.25, 0.5), (0.75, 0.5), (0.5, 0.5)])
    assert judge.probability(found, read("dog")) == pytest.approx(0.72)
    assert judge.probability(found, read("red cat")) == pytest.approx(0.81)
    assert judge.probability(found, read("blue dog")) == pytest.approx(0.8 * 0.9 * 0.8)
    left = judge.probability(found, read("cat left dog"))
    assert left == pytest.approx((0.9 * 0.72) ** 0.5, abs=0.01)
    assert judge.probability(found, read("cat right dog")) < 0.2  # it would be the other two ways round
    assert judge.probability(found, read("dog right cat")) == pytest.approx(left, abs=1e-6)


def test_answers_are_one_in_a_batch_and_alone(judge: SealedJudge) -> None:
    pictures = [square(8, 8, 40, 40), square(30, 30, 60, 60, "red")]
    batch = [
        Asked(pictures[0], "what is in the picture?", ("cat", "dog", "apple")),
        Asked(pictures[1], "is there a cat?", ("yes", "no")),
        Asked(pictures[1], "what color is the dog?", ("red", "blue")),
        Asked(pictures[0], "how many cats are there?", ("1", "2", "3")),
        Asked(pictures[0], "where is the cat?", ("left of the dog", "right of the dog")),
    ]
    for asked, answer in zip(batch, judge.answers(batch), strict=True):
        alone = judge.answer(*asked)
        assert answer.probabilities is not None
        assert alone.probabilities == pytest.approx(answer.probabilities, abs=1e-4)
        assert sum(answer.probabilities) == pytest.approx(1)


def test_yes_and_no_are_moved_by_the_odds_of_their_kind(judge: SealedJudge) -> None:
    picture = square(8, 8, 40, 40)
    more = SealedConfig(NAMES, COLORS, dict.fromkeys(KINDS, (2.0, 1.0)))
    moved = SealedJudge(judge.model, more)
    before, after = (
        each.answer(picture, "is there a cat?", ("yes", "no")).probabilities for each in (judge, moved)
    )
    assert before is not None
    assert after is not None
    odds = [torch.tensor(p[0] / p[1]).log() for p in (before, after)]
    assert float(odds[1] - odds[0]) == pytest.approx(2, abs=1e-3)
    assert moved.version != judge.version


def test_it_says_what_it_does_not_know(judge: SealedJudge) -> None:
    picture = square(8, 8, 40, 40)
    with pytest.raises(CannotAnswer, match="does not know 'zebra'"):
        judge.answer(picture, "is there a zebra?", ("yes", "no"))
    with pytest.raises(CannotAnswer, match="does not know 'gold cat'"):
        judge.answer(picture, "what color is the cat?", ("gold", "red"))


def test_a_folder_by_name_and_folders_that_do_not_fit(judge: SealedJudge, tmp_path: Path) -> None:
    save_sealed(tmp_path, judge.model, SealedConfig(NAMES, COLORS))
    loaded = load_judge(f"sealed-judge:{tmp_path}", device="cpu")
    assert loaded.name == f"sealed-judge:{tmp_path.name}"
    asked = Asked(square(8, 8, 40, 40), "what is in the picture?", ("cat", "dog"))
    ours, theirs = judge.answers([asked])[0].probabilities, loaded.answers([asked])[0].probabilities
    assert ours is not None
    assert theirs == pytest.approx(ours, abs=5e-3)  # fp16
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"dog"', '"dog"], ["more"'))
    with pytest.raises(BadInput, match="does not fit"):
        load_sealed(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match="is not a sealed-judge config"):
        load_sealed(tmp_path)
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(AdapterMismatch):
        load_sealed(tmp_path)


# The one that ships.


@pytest.fixture(scope="module")
def shipped_judge() -> Judge:
    return load_judge("sealed-judge", device="cpu")


def test_the_shipped_weights_are_those_whose_errors_are_known(shipped_judge: Judge) -> None:
    folder = shipped("sealed-judge")
    assert file_digest(folder / "model.safetensors") == WEIGHTS
    assert (folder / "model.safetensors").stat().st_size < 8_000_000
    assert shipped_judge.name == "sealed-judge"
    assert not shipped_judge.blind
    assert read_errors(folder / "errors.json", shipped_judge.version)


def test_it_names_most_held_out_pictures_and_says_what_is_not_there(shipped_judge: Judge) -> None:
    folder = shipped("emoji") / "heldout" / "twemoji"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    labels = [plain(row["label"]) for row in rows]
    named, denied, asked = 0, 0, 0
    for number, row in enumerate(rows):
        choices = tuple(labels[(number + step) % len(labels)] for step in range(10))
        with Image.open(folder / row["file_name"]) as picture:
            image = picture.convert("RGB")
        try:
            what = shipped_judge.answer(image, "what is in the picture?", choices)
            said = shipped_judge.answer(image, f"is there a {choices[5]}?", ("yes", "no"))
        except CannotAnswer:  # one of ten names is none that it knows
            continue
        named += what.choice == choices[0]
        denied += said.choice == "no"
        asked += 1
    assert asked >= 30
    assert named > 0.5 * asked  # 26 of 40; a guess has 0.1
    assert denied > 0.85 * asked  # specificity 0.95


@pytest.mark.parametrize("name", ["nano-judge", "sealed-judge"])
def test_scores_corrected_for_the_errors_of_either_shipped_judge_appear(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = shipped("emoji") / "heldout" / "fluent-emoji-flat" / "bicycle.png"
    (tmp_path / "map.json").write_text(json.dumps({"p0": str(picture)}))
    asked = {"id": "p0", "caption": "a bicycle", "question": "is there a bicycle?", "element_type": "object"}
    asked |= {"choices": ["yes", "no"], "answer": "yes", "element": "bicycle"}
    (tmp_path / "questions.json").write_text(json.dumps([asked]))
    given = ["--questions", str(tmp_path / "questions.json"), "--images", str(tmp_path / "map.json")]
    out = tmp_path / "result.json"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "tifa", *given, "--judge", name, "--device", "cpu", "--out", str(out)])
    assert ended.value.code == 0
    assert "judge's errors" in capsys.readouterr().out
    extras = json.loads((tmp_path / "result.extras.json").read_text())
    (kind,) = extras["corrected_for_judge"]["kinds"].values()
    known = read_errors(shipped(name) / "errors.json")["presence"]
    assert kind["sensitivity"]["value"] == pytest.approx(known.sensitivity.value)
    assert kind["pictures"] == "generated"
