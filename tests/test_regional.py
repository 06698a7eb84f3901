"""Prompts that join ideas, and weights that differ from place to place."""

from __future__ import annotations

import pytest
import torch

from promptcdm.draw import drawn
from promptcdm.errors import BadInput
from promptcdm.regional import WHOLE, Box, Region, regional_router, regions_of

LEFT: Box = (0.0, 0.0, 0.5, 1.0)
RIGHT: Box = (0.5, 0.0, 1.0, 1.0)
TOP: Box = (0.0, 0.0, 1.0, 0.5)
BOTTOM: Box = (0.0, 0.5, 1.0, 1.0)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a red apple and a blue car", [("a red apple", LEFT), ("a blue car", RIGHT)]),
        ("a cat with a hat.", [("a cat", LEFT), ("a hat", RIGHT)]),
        ("a cat next to a dog", [("a cat", LEFT), ("a dog", RIGHT)]),
        ("a cat left of a dog", [("a cat", LEFT), ("a dog", RIGHT)]),
        ("a cat to the right of a dog", [("a cat", RIGHT), ("a dog", LEFT)]),
        ("a cat is above a dog", [("a cat", TOP), ("a dog", BOTTOM)]),
        ("A cat below a dog", [("A cat", BOTTOM), ("a dog", TOP)]),
        ("a cat on top of a dog", [("a cat", TOP), ("a dog", BOTTOM)]),
    ],
)
def test_a_join_gives_each_phrase_its_half(prompt: str, expected: list[tuple[str, Box]]) -> None:
    assert regions_of(prompt) == [Region(*pair) for pair in expected]


@pytest.mark.parametrize("prompt", ["a red apple", "a sandwich", "an android without hands", ""])
def test_a_prompt_without_a_join_is_one_phrase(prompt: str) -> None:
    assert regions_of(prompt) == [Region(prompt, WHOLE)]


def test_three_phrases_are_three_columns() -> None:
    for prompt in ("an apple, a car and a dog", "an apple, a car, and a dog"):
        regions = regions_of(prompt)
        assert [r.phrase for r in regions] == ["an apple", "a car", "a dog"]
        assert [r.box[0] for r in regions] == pytest.approx([0, 1 / 3, 2 / 3])
        assert [r.box[2] for r in regions] == pytest.approx([1 / 3, 2 / 3, 1])


def test_a_join_beside_a_relation_divides_its_half() -> None:
    regions = regions_of("a cat and a dog above a tree")
    assert [(r.phrase, r.box) for r in regions] == [
        ("a cat", (0.0, 0.0, 0.5, 0.5)),
        ("a dog", (0.5, 0.0, 1.0, 0.5)),
        ("a tree", BOTTOM),
    ]


def test_each_region_takes_its_best_source_with_a_soft_seam() -> None:
    prior = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.1, 0.4]])
    router = regional_router([prior], [[LEFT, RIGHT]], seam=0.25)
    w, _ = router.route(router.start, torch.zeros(2, 4, 16, 16), torch.tensor([0.5, 0.5]), None)
    assert w.shape == (2, 3, 16, 16)
    assert torch.allclose(w.sum(1), torch.ones(2, 16, 16))
    assert (w[:, 1, :, :6] == 1).all()
    assert (w[:, 0, :, 10:] == 1).all()
    assert (w[:, 2] == 0).all()
    seam = w[0, 1, 0, 5:11]
    assert (seam.diff() < 0).all()
    assert torch.allclose(seam + seam.flip(0), torch.ones(6))


def test_two_phrases_of_one_source_are_that_source_everywhere() -> None:
    router = regional_router([torch.tensor([[0.9, 0.1], [0.6, 0.4]])], [[TOP, BOTTOM]])
    w, _ = router.route(None, torch.zeros(1, 4, 8, 8), torch.tensor([0.5]), None)
    assert torch.allclose(w[:, 0], torch.ones(1, 8, 8))


def test_each_prompt_of_a_batch_has_its_own_regions() -> None:
    first, second = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    router = regional_router([first, second], [[WHOLE], [TOP, BOTTOM]], seam=0.0)
    w, _ = router.route(None, torch.zeros(4, 4, 8, 8), torch.full((4,), 0.5), None)
    assert (w[:2, 0] == 1).all()
    assert (w[2:, 0, :4] == 1).all()
    assert (w[2:, 1, 4:] == 1).all()
    with pytest.raises(BadInput, match="3 rows for 2 prompts"):
        router.route(None, torch.zeros(3, 4, 8, 8), torch.full((3,), 0.5), None)


def test_boxes_must_agree_with_the_phrases_and_cover_the_picture() -> None:
    prior = torch.tensor([[0.5, 0.5]])
    with pytest.raises(BadInput, match="a box for each phrase"):
        regional_router([prior], [[LEFT, RIGHT]])
    router = regional_router([prior], [[LEFT]])
    with pytest.raises(BadInput, match="uncovered"):
        router.route(None, torch.zeros(1, 4, 8, 8), torch.tensor([0.5]), None)


def test_regional_weights_cannot_be_drawn_from() -> None:
    router = drawn(regional_router([torch.tensor([[0.9, 0.1]])], [[WHOLE]]), seed=0)
    with pytest.raises(BadInput, match="differ by place"):
        router.route(router.start, torch.zeros(1, 4, 8, 8), torch.tensor([0.5]), None)
