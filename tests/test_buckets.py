"""Sizes of training pictures: steps, area, nearest aspect."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from promptcdm.buckets import LONGEST, Size, bucket_sizes, grouped, nearest_size, share_cut
from promptcdm.errors import BadInput

SD1 = bucket_sizes(512, 64)


@pytest.mark.parametrize(("side", "step"), [(512, 64), (768, 64), (1024, 64), (64, 8), (64, 32), (32, 8)])
def test_every_size_is_whole_steps_of_at_most_the_squares_area(side: int, step: int) -> None:
    sizes = bucket_sizes(side, step)
    assert Size(side, side) in sizes
    for size in sizes:
        assert size.width % step == size.height % step == 0
        assert size.width * size.height <= side * side
        assert max(size) <= LONGEST * side
        assert Size(size.height, size.width) in sizes, "turned"
        wider, higher = (size.width + step) * size.height, size.width * (size.height + step)
        assert max(wider, higher) > side * side or max(size) == LONGEST * side, "one side could be longer"


def test_the_sizes_of_512_are_those_that_other_trainers_use() -> None:
    portrait = [(256, 1024), (320, 768), (384, 640), (448, 576), (512, 512)]
    assert [size for size in portrait if size in SD1] == portrait


def test_a_picture_goes_to_the_nearest_aspect_by_the_logarithm() -> None:
    generator = random.Random(0)
    for _ in range(200):
        width, height = generator.randint(64, 3000), generator.randint(64, 3000)
        chosen = nearest_size(width, height, SD1)
        apart = [abs(math.log(width * size.height / (height * size.width))) for size in SD1]
        assert abs(math.log(width * chosen.height / (height * chosen.width))) <= min(apart) + 1e-9
        assert nearest_size(height, width, SD1)[::-1] == chosen, "a turned picture gets the turned size"


def test_a_size_does_not_depend_on_the_order_of_sizes_and_of_equally_near_ones_is_the_larger() -> None:
    sizes = [Size(32, 32), Size(64, 64), Size(16, 16)]
    for order in itertools.permutations(sizes):
        assert nearest_size(500, 500, order) == Size(64, 64)


def test_pictures_are_grouped_in_the_order_of_sizes() -> None:
    pictures = [(900, 300), (500, 500), (300, 900), (1024, 1024)]
    groups = grouped(pictures, SD1)
    assert list(groups) == sorted(groups)
    assert groups[Size(512, 512)] == [1, 3]
    assert sorted(i for items in groups.values() for i in items) == [0, 1, 2, 3]
    assert list(grouped([(400, 400)], SD1)) == [Size(512, 512)]


def test_the_share_that_a_crop_takes_away() -> None:
    square = Size(512, 512)
    assert share_cut(512, 512, square) == 0
    assert share_cut(1000, 500, square) == pytest.approx(0.5)
    assert share_cut(500, 1000, square) == pytest.approx(0.5)
    assert share_cut(1000, 500, nearest_size(1000, 500, SD1)) < 0.1


def test_a_resolution_of_no_whole_steps_is_refused() -> None:
    with pytest.raises(BadInput, match="resolution is 500; with buckets it takes a multiple of 64"):
        bucket_sizes(500, 64)
