"""The sealed judge: words to concepts, boxes, crops, statements as probabilities by brute force, folders."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from promptcdm.answer import Asked, CannotAnswer
from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.judge import load_judge
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
from promptcdm.square_picture import image_tensor

NAMES = (("cat",), ("cat face",), ("dog",), ("hot dog",), ("red apple", "apple"))
COLORS = ("red", "blue")


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
