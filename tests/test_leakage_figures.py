"""The numbers of leakage, without a model: exact intervals, nearest pictures, switched-off sources, separation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from promptcdm.errors import BadInput
from promptcdm.exact_share import beta_quantile, beta_share, effective_size, exact_interval, share_interval
from promptcdm.nearest import Nearest, likeness, nearest, nearest_other, unit_rows
from promptcdm.separation import auc, auc_interval, separation, threshold
from promptcdm.switched_off import neighbour_counts, off_share
from promptcdm.training_neighbours import GeneratedRows, training_neighbours


@pytest.mark.parametrize("x", [0.01, 0.3, 0.5, 0.97])
def test_the_beta_shares_that_have_a_formula_are_met(x: float) -> None:
    assert beta_share(x, 1, 1) == pytest.approx(x)
    assert beta_share(x, 7, 1) == pytest.approx(x**7)
    assert beta_share(x, 1, 7) == pytest.approx(1 - (1 - x) ** 7)
    assert beta_share(x, 2, 2) == pytest.approx(x * x * (3 - 2 * x))
    assert beta_share(x, 0.5, 0.5) == pytest.approx(2 / math.pi * math.asin(x**0.5))
    assert beta_share(x, 3.7, 250.2) == pytest.approx(1 - beta_share(1 - x, 250.2, 3.7))
    assert beta_quantile(beta_share(x, 3, 5), 3, 5) == pytest.approx(x)


def test_a_share_of_none_or_all_has_the_interval_of_the_rule_of_three() -> None:
    assert exact_interval(0, 50) == (0.0, pytest.approx(1 - 0.025 ** (1 / 50)))
    assert exact_interval(50, 50) == (pytest.approx(0.025 ** (1 / 50)), 1.0)
    # Clopper and Pearson's for 4 of 20, from the tail sums of the binomial
    low, high = exact_interval(4, 20)

    def tail(p: float, ks: range) -> float:
        return sum(math.comb(20, k) * p**k * (1 - p) ** (20 - k) for k in ks)

    assert tail(low, range(4, 21)) == pytest.approx(0.025)
    assert tail(high, range(5)) == pytest.approx(0.025)


def test_pictures_of_one_prompt_that_all_agree_count_as_one() -> None:
    hits = np.repeat([True, False, False, True, False, False], 10)
    prompts = [str(i // 10) for i in range(60)]
    # Variance over clusters: 6/5 * sum (10 (h - 1/3))^2 / 60^2; binomial: (2/9) / 60
    deff = (6 / 5 * 100 * (2 * 4 / 9 + 4 / 9) / 3600) / (2 / 9 / 60)
    assert effective_size(hits, prompts) == pytest.approx(60 / deff) == pytest.approx(5.0)
    assert share_interval(hits, prompts) == pytest.approx(exact_interval(5 / 3, 5))
    assert share_interval(hits) == pytest.approx(exact_interval(20, 60))
    none = np.zeros(60, bool)
    assert share_interval(none, prompts) == pytest.approx(exact_interval(0, 6))
    assert share_interval(none) == pytest.approx(exact_interval(0, 60))
    with pytest.raises(BadInput, match="no items"):
        share_interval([])


def test_clusters_that_differ_by_chance_cost_nothing() -> None:
    hits = np.tile([True, False], 30)
    assert effective_size(hits, [str(i // 2) for i in range(60)]) == 60


def test_the_exact_interval_holds_the_share_in_95_of_100_and_more() -> None:
    p, n = 0.07, 60
    chances = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    held = sum(c for k, c in enumerate(chances) if exact_interval(k, n)[0] <= p <= exact_interval(k, n)[1])
    assert 0.95 <= held < 0.995


def circle(*degrees: float) -> np.ndarray:
    """Unit rows at these angles, whose cosines are known."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], 1)


def test_the_nearest_is_found_and_a_training_picture_leaves_itself_out() -> None:
    training = circle(0, 10, 90)
    found = nearest(circle(4, 80, 7), training)
    assert found.index.tolist() == [0, 2, 1]
    np.testing.assert_allclose(found.similarity, np.cos(np.radians([4, 10, 3])))
    other = nearest_other(training)
    assert other.index.tolist() == [1, 0, 1]
    np.testing.assert_allclose(other.similarity, np.cos(np.radians([10, 10, 80])))
    with pytest.raises(BadInput, match="needs 2 or more"):
        nearest_other(training[:1])


def test_more_rows_than_are_compared_at_once_leave_themselves_out_too() -> None:
    rows = unit_rows(np.random.default_rng(0).standard_normal((1100, 8)))
    cosine = rows @ rows.T
    np.fill_diagonal(cosine, -2)
    other = nearest_other(rows)
    assert (other.index == cosine.argmax(1)).all()
    np.testing.assert_allclose(other.similarity, cosine.max(1))


def test_features_are_made_unit_rows_or_refused() -> None:
    np.testing.assert_allclose(unit_rows([[3, 4], [0, 2]]), [[0.6, 0.8], [0, 1]])
    for wrong, words in (([[0, 0]], "zero or not finite"), ([[np.nan, 1]], "not finite"), ([1, 2], "shape")):
        with pytest.raises(BadInput, match=words):
            unit_rows(wrong)


def test_a_copy_is_closer_than_any_other_training_picture_and_a_stranger_is_not() -> None:
    training = circle(0, 10, 90, 120)
    background = nearest_other(training)
    found = likeness(nearest(circle(1, 45), training), background)
    assert found.closer is not None
    assert (found.pictures, found.closer.value) == (2, 0.5)  # 1 is nearer to 0 than 10 is; 45 is far
    assert found.mean == pytest.approx(np.cos(np.radians([1, 35])).mean())
    own = likeness(background, background, limit=0.9)
    assert own.closer is None and own.above.value == 0.5
    assert likeness(nearest(circle(1, 45), training), background, limit=0.5).above.value == 1.0


def test_the_background_and_fresh_pictures_are_above_its_limit_in_one_of_twenty() -> None:
    shares = []
    for seed in range(6):
        random = np.random.default_rng(seed)
        rows, fresh = (unit_rows(random.standard_normal((1000, 6))) for _ in range(2))
        background = nearest_other(rows)
        assert likeness(background, background).above.value == pytest.approx(0.05, abs=2e-3)
        shares.append(likeness(nearest(fresh, rows), background).above.value)
    assert np.mean(shares) == pytest.approx(0.05, abs=0.01)


def test_the_share_of_a_switched_off_source_is_held_against_chance_and_real_pictures() -> None:
    training_source = np.array([0] * 6 + [1] * 3 + [2] * 1)
    other_source = np.array([0, 0, 0, 0, 1, 2, 1, 0, 2, 0])
    assert neighbour_counts(training_source, other_source, 3).tolist() == [[4, 1, 1], [1, 1, 1], [1, 0, 0]]
    off = np.array([[False, True, False], [False, True, True], [True, False, False], [False, True, False]])
    found = off_share(np.array([1, 0, 0, 0]), off, training_source, other_source)
    assert found.share.value == 0.5 and found.share.interval == pytest.approx(exact_interval(2, 4))
    assert found.chance == pytest.approx((0.3 + 0.4 + 0.6 + 0.3) / 4)
    # On {0, 2} toward 1: 1 of 7; on {0} toward {1, 2}: 2 of 6; on {1, 2} toward 0: 2 of 4
    assert found.real == pytest.approx((1 / 7 + 2 / 6 + 2 / 4 + 1 / 7) / 4)
    for wrong in ([[True, True, True]], [[False, False, False]]):
        with pytest.raises(BadInput, match="leave it out"):
            off_share(np.array([0]), np.array(wrong), training_source, other_source)


def test_pictures_of_nobody_fall_to_a_switched_off_source_by_its_size() -> None:
    random = np.random.default_rng(3)
    training = {"a": random.standard_normal((300, 5)), "b": random.standard_normal((100, 5))}
    made = GeneratedRows(
        random.standard_normal((1000, 5)), (("a",),) * 1000, tuple(str(i) for i in range(1000))
    )
    off = training_neighbours(training, made).off
    assert off is not None and off.chance == 0.25
    assert off.share.interval[0] < 0.25 < off.share.interval[1]
    leaking = GeneratedRows(training["b"] + 0.01, (("a",),) * 100, made.prompts[:100])
    found = training_neighbours(training, leaking)
    assert found.off is not None and found.off.share.value == 1.0 > found.off.share.interval[0] > 0.9
    assert found.closest[0].source == "b" and not found.closest[0].allowed
    assert found.sources["b"].switched_off is not None and found.sources["b"].switched_on is None
    assert found.sources["b"].switched_off.closer is not None
    assert found.sources["b"].switched_off.closer.value > 0.95


def test_the_closest_pairs_name_the_training_picture_in_its_source() -> None:
    training = {"a": circle(0, 30), "b": circle(60, 90, 120)}
    made = GeneratedRows(circle(93, 29), (("a", "b"), ("b",)), ("x", "y"))
    pairs = training_neighbours(training, made, {"a": circle(15)}).closest
    assert [(p.generated, p.source, p.training, p.allowed) for p in pairs] == [
        (1, "a", 1, False),
        (0, "b", 1, True),
    ]
    with pytest.raises(BadInput, match="made from c, whose"):
        training_neighbours(training, GeneratedRows(circle(0), (("c",),), ("x",)))


def test_the_area_counts_pairs_and_equal_scores_half() -> None:
    members, others = np.array([3.0, 1.0, 2.0]), np.array([0.0, 2.0])
    pairs = [1.0 if m > o else 0.5 if m == o else 0.0 for m in members for o in others]
    assert auc(members, others) == pytest.approx(np.mean(pairs))
    assert auc(others, members) == pytest.approx(1 - np.mean(pairs))


def test_the_areas_interval_is_hanley_and_mcneils_inverted() -> None:
    def variance(a: float, m: int, n: int) -> float:
        q1, q2, middle = a / (2 - a), 2 * a * a / (1 + a), (m + n) / 2 - 1
        return (a * (1 - a) + middle * (q1 - a * a) + middle * (q2 - a * a)) / (m * n)

    low, high = auc_interval(0.7, 60, 40)
    assert (0.7 - low) ** 2 == pytest.approx(1.959964**2 * variance(low, 60, 40))
    assert (high - 0.7) ** 2 == pytest.approx(1.959964**2 * variance(high, 60, 40))
    assert auc_interval(1.0, 30, 30)[1] == 1.0 and 0.8 < auc_interval(1.0, 30, 30)[0] < 1.0
    assert auc_interval(0.0, 30, 30) == pytest.approx(tuple(1 - e for e in auc_interval(1.0, 30, 30)[::-1]))


def test_the_areas_interval_holds_it_in_about_95_of_100() -> None:
    random = np.random.default_rng(4)
    true = 0.5 * (1 + math.erf(0.8 / 2))  # of two normals 0.8 apart
    held = 0
    for _ in range(400):
        found = auc(random.standard_normal(80) + 0.8, random.standard_normal(50))
        low, high = auc_interval(found, 80, 50)
        held += low <= true <= high
    assert 0.92 <= held / 400 <= 0.99


def test_the_threshold_lets_one_of_a_hundred_through() -> None:
    others = np.arange(200.0)
    assert threshold(others) == 197.0 and (others > threshold(others)).mean() == 0.01
    assert threshold(others[:99]) == 98.0  # one of 99 would be too many
    assert threshold(others[:100]) == 98.0


def test_scores_that_tell_members_do_and_those_that_do_not_are_not_found_to() -> None:
    random = np.random.default_rng(5)
    others = random.standard_normal(300)
    clear = separation(random.standard_normal(200) + 6, others)
    assert clear.auc > 0.999 and clear.tpr > 0.95 and clear.found
    assert clear.tpr_interval[0] < clear.tpr <= clear.tpr_interval[1]
    assert clear.fpr <= 0.01
    blind = separation(random.standard_normal(200), others)
    assert not blind.found and blind.auc_interval[0] < 0.5 < blind.auc_interval[1]
    assert blind.tpr_interval[0] <= 0.01 <= blind.tpr_interval[1]
    assert separation(others[:9], others, seed=3) == separation(others[:9], others, seed=3)


def test_the_power_of_a_normal_shift_is_in_its_interval() -> None:
    random = np.random.default_rng(6)
    true = 0.5 * (1 + math.erf((2.5 - 2.326348) / 2**0.5))  # P(N(2.5, 1) > 99th percentile of N(0, 1))
    found = separation(random.standard_normal(1000) + 2.5, random.standard_normal(2000))
    assert found.tpr_interval[0] < true < found.tpr_interval[1]
    assert found.tpr_interval[1] - found.tpr_interval[0] < 0.3


def test_scores_that_cannot_be_compared_are_refused() -> None:
    for members, others, words in (
        ([], [1.0], "of the members have shape"),
        ([1.0], [[1.0]], "of the others"),
        ([np.inf], [1.0], "not all finite"),
    ):
        with pytest.raises(BadInput, match=words):
            separation(members, others)


def test_a_nearest_is_what_it_says() -> None:
    found = Nearest(np.array([0.9, 0.2]), np.array([1, 0]))
    background = Nearest(np.array([0.5, 0.95]), np.array([1, 0]))
    closer = likeness(found, background, ["p", "p"]).closer
    assert closer is not None and closer.value == 0.0 and closer.interval == pytest.approx((0, 0.975))
