"""KID, Fréchet distance, CMMD, precision, recall, density and coverage, against what is known without the code."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from promptcdm.cmmd import cmmd, cmmd_left_out
from promptcdm.errors import BadInput
from promptcdm.frechet import frechet_distance, frechet_left_out
from promptcdm.jackknife import GROUPS, jackknife_groups, jackknife_interval
from promptcdm.kid import kid_left_out, unbiased_kid
from promptcdm.manifold import manifold, manifold_left_out

Array = NDArray[np.float64]
FIGURES: dict[str, Callable[[Array, Array], object]] = {
    "kid": unbiased_kid,
    "frechet": frechet_distance,
    "cmmd": cmmd,
    "manifold": manifold,
}
each_figure = pytest.mark.parametrize("figure", FIGURES.values(), ids=list(FIGURES))


def normal(n: int, d: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((n, d))


def features(n: int, d: int, seed: int) -> Array:
    """Correlated, of uneven scale, far from 0: what a network's features are like."""
    mix = np.random.default_rng(99).standard_normal((d, d)) / math.sqrt(d)
    return normal(n, d, seed) @ mix * np.linspace(0.1, 2, d) + 3


def exactly(rows: Array, mean: Array, spread: Array) -> Array:
    """The rows moved so that their sample mean and covariance, diag(spread^2), are exact."""
    centred = rows - rows.mean(0)
    factor = np.linalg.cholesky(np.cov(centred, rowvar=False))
    return np.asarray(np.linalg.solve(factor, centred.T).T * spread + mean)


def frechet_by_eigenvalues(x: Array, y: Array) -> float:
    """The textbook algebra: the square roots of the eigenvalues of S_1 S_2.

    At most N - 1 of them are not 0. The others come out as 1e-15 or so, and their roots would add 1e-6 in all.
    """
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    values = np.sort(np.linalg.eigvals(first @ second).real)[::-1][: len(x) - 1]
    roots = np.sqrt(values.clip(0)).sum()
    apart = np.square(x.mean(0) - y.mean(0)).sum()
    return float(apart + np.trace(first) + np.trace(second) - 2 * roots)


@pytest.mark.parametrize("n", [40, 7])
def test_frechet_of_gaussians_is_the_closed_form(n: int) -> None:
    d = 5
    mean, spread = np.arange(d) / 2.0, np.linspace(0.5, 3, d)
    x = exactly(normal(n, d), np.zeros(d), np.ones(d))
    y = exactly(normal(n, d, seed=1), mean, spread)
    expected = np.square(mean).sum() + np.square(spread - 1).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("n", "d"), [(300, 24), (30, 64), (25, 24), (24, 24), (23, 24)])
def test_frechet_agrees_with_eigenvalues(n: int, d: int) -> None:
    x, y = features(n, d, 1), features(n, d, 2) * 1.1
    assert frechet_distance(x, y) == pytest.approx(frechet_by_eigenvalues(x, y), abs=1e-6)


def test_frechet_holds_where_features_are_constant_or_equal() -> None:
    x, y = features(60, 8, 1), features(60, 8, 2)
    x[:, 3], y[:, 3] = 0, 0  # a unit that never fires: both covariances are singular
    assert frechet_distance(x, y) == pytest.approx(frechet_by_eigenvalues(x, y), abs=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), abs=1e-9)


@pytest.mark.slow
def test_frechet_is_ten_times_as_fast_as_a_square_root_of_matrices() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    x, y = features(800, 2048, 1), features(800, 2048, 2)
    start = time.perf_counter()
    found = frechet_distance(x, y)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    first, second = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.trace(linalg.sqrtm(first @ second)).real
    theirs = time.perf_counter() - start
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * root
    print(
        f"frechet_distance {ours:.2f} s, sqrtm {theirs:.2f} s, {theirs / ours:.0f}x, off {found - expected:.1e}"
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert theirs >= 10 * ours


def kid_by_loops(x: Array, y: Array) -> float:
    def k(a: Array, b: Array) -> float:
        return float((sum(p * q for p, q in zip(a, b, strict=True)) / len(a) + 1) ** 3)

    n = len(x)
    within = sum(k(s[i], s[j]) for s in (x, y) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within - 2 * sum(k(a, b) for a in x for b in y) / n**2


def test_kid_is_the_double_loop() -> None:
    x, y = features(30, 6, 1), features(30, 6, 2) + 0.3
    assert unbiased_kid(x, y) == pytest.approx(kid_by_loops(x, y), abs=1e-6)


def test_kid_of_gaussians_is_the_closed_form_in_the_mean() -> None:
    # In one dimension MMD^2 = sum_j C(3, j) (E x^j - E y^j)^2, here with N(0, 1) and N(1/2, 1).
    moments = (0.0, 0.0, 1.0, 0.0), (0.0, 0.5, 1.25, 0.5**3 + 3 * 0.5)
    expected = sum(math.comb(3, j) * (moments[0][j] - moments[1][j]) ** 2 for j in (1, 2, 3))
    found = [unbiased_kid(normal(50, 1, s), normal(50, 1, 1000 + s) + 0.5) for s in range(400)]
    error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert np.mean(found) == pytest.approx(expected, abs=4 * error)
    assert 4 * error < expected / 2  # the test can fail


def test_kid_of_equal_distributions_is_zero_in_the_mean_at_any_size() -> None:
    for n in (10, 80):
        found = [unbiased_kid(normal(n, 4, s), normal(n, 4, 1000 + s)) for s in range(200)]
        assert np.mean(found) == pytest.approx(0, abs=4 * np.std(found, ddof=1) / math.sqrt(len(found)))


def test_cmmd_of_two_directions_is_the_closed_form() -> None:
    x, y = np.tile([2.0, 0.0], (6, 1)), np.tile([0.0, 5.0], (6, 1))  # lengths do not count
    assert cmmd(x, y) == pytest.approx(1000 * (2 - 2 * math.exp(-2 / 200)), rel=1e-12)


def test_cmmd_counts_a_picture_with_itself() -> None:
    angles = np.array([0.0, 0.4]), np.array([1.0, 1.7])
    x, y = (np.stack([np.cos(a), np.sin(a)], 1) for a in angles)
    k = lambda a, b: math.exp(-np.square(a - b).sum() / 200)  # noqa: E731
    pairs = [np.mean([k(a, b) for a in s for b in t]) for s, t in ((x, x), (y, y), (x, y))]
    assert cmmd(x, y) == pytest.approx(1000 * (pairs[0] + pairs[1] - 2 * pairs[2]), abs=1e-9)
    with pytest.raises(BadInput, match="all 0"):
        cmmd(np.zeros((3, 2)), y[[0, 1, 1]])


def manifold_by_loops(x: Array, y: Array, k: int) -> tuple[float, float, float, float]:
    def radius(rows: Array, i: int) -> float:
        return float(sorted(np.linalg.norm(rows[i] - other) for other in rows)[k])

    far = [[np.linalg.norm(a - b) for b in y] for a in x]
    rx, ry = [radius(x, i) for i in range(len(x))], [radius(y, j) for j in range(len(y))]
    i_all, j_all = range(len(x)), range(len(y))
    return (
        float(np.mean([any(far[i][j] < rx[i] for i in i_all) for j in j_all])),
        float(np.mean([any(far[i][j] < ry[j] for j in j_all) for i in i_all])),
        sum(far[i][j] < rx[i] for i in i_all for j in j_all) / (k * len(y)),
        float(np.mean([any(far[i][j] < rx[i] for j in j_all) for i in i_all])),
    )


def test_precision_recall_density_coverage_are_the_double_loops() -> None:
    x, y = features(40, 6, 1), features(40, 6, 2) * 0.9 + 0.2
    found = manifold(x, y, k=3)
    expected = manifold_by_loops(x, y, 3)
    assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected)
    assert 0 < found.recall < 1  # not one of the ends, where anything would agree


def test_collapse_to_one_mode_shows_in_recall_and_coverage() -> None:
    modes = 20 * normal(8, 16)
    real = np.concatenate([mode + normal(50, 16, i) for i, mode in enumerate(modes)])
    good = np.concatenate([mode + normal(50, 16, 100 + i) for i, mode in enumerate(modes)])
    collapsed = modes[0] + normal(400, 16, 200)
    fine, bad = manifold(real, good), manifold(real, collapsed)
    assert fine.recall > 0.8 and fine.coverage > 0.8
    assert bad.recall < 0.2 and bad.coverage < 0.2
    assert bad.precision > 0.7  # each picture alone looks right
    assert unbiased_kid(real, collapsed) > 100 * abs(unbiased_kid(real, good))
    assert frechet_distance(real, collapsed) > 10 * frechet_distance(real, good)


def test_identical_sets_are_perfect() -> None:
    x = features(50, 8, 1)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)
    assert unbiased_kid(x, x) <= 0  # every picture meets itself across the sets and not within them
    same = manifold(x, x.copy())
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert same.density == pytest.approx(1)


@each_figure
def test_what_cannot_be_compared_is_refused(figure: Callable[[Array, Array], object]) -> None:
    x = normal(30, 4)
    with pytest.raises(BadInput, match="30 real and 29 generated pictures; give equally many"):
        figure(x, x[1:])
    with pytest.raises(BadInput, match="4 wide and the generated ones 3"):
        figure(x, x[:, 1:])
    with pytest.raises(BadInput, match="not all finite"):
        figure(x, np.where(x == x[3, 2], np.nan, x))
    with pytest.raises(BadInput, match="have shape"):
        figure(x[:1], x[:1])


def test_neighbours_must_exist() -> None:
    for k in (0, 30):
        with pytest.raises(BadInput, match=f"{k} neighbours among 30 pictures"):
            manifold(normal(30, 4), normal(30, 4), k=k)


def test_leaving_a_group_out_is_the_figure_of_the_rest() -> None:
    x, y = features(50, 6, 1), features(50, 6, 2)
    groups = jackknife_groups(50, seed=3)
    rest = [(x[groups != g], y[groups != g]) for g in range(GROUPS)]
    assert kid_left_out(x, y, groups) == pytest.approx([unbiased_kid(*pair) for pair in rest])
    assert cmmd_left_out(x, y, groups) == pytest.approx([cmmd(*pair) for pair in rest])
    assert frechet_left_out(x, y, groups) == pytest.approx([frechet_distance(*pair) for pair in rest])
    assert manifold_left_out(x, y, groups) == [manifold(*pair) for pair in rest]


def test_groups_are_even_and_drawn_by_the_seed() -> None:
    groups = jackknife_groups(47, seed=1)
    assert set(np.bincount(groups)) == {2, 3} and len(np.bincount(groups)) == GROUPS
    assert (groups == jackknife_groups(47, seed=1)).all() and (groups != jackknife_groups(47, seed=2)).any()
    with pytest.raises(BadInput, match="39 pictures; an interval needs 40"):
        jackknife_groups(39)


def test_the_interval_of_a_mean_is_that_of_students_t() -> None:
    rows = normal(GROUPS, 1)[:, 0]
    left_out = [float(np.delete(rows, g).mean()) for g in range(GROUPS)]
    error = 2.0930 * rows.std(ddof=1) / math.sqrt(GROUPS)
    assert jackknife_interval(float(rows.mean()), left_out) == pytest.approx(
        (rows.mean() - error, rows.mean() + error)
    )
    with pytest.raises(BadInput, match="19 figures"):
        jackknife_interval(0.0, left_out[1:])


def test_a_bootstrap_of_frechet_misses_the_figure_itself_and_the_jackknife_does_not() -> None:
    n, d = 60, 16
    reference = [frechet_distance(normal(n, d, 10 + s), normal(n, d, 5000 + s)) for s in range(200)]
    x, y = normal(n, d, 1), normal(n, d, 2)
    figure = frechet_distance(x, y)
    draw = np.random.default_rng(0).integers(0, n, (2, 200, n))
    drawn = [frechet_distance(x[i], y[j]) for i, j in zip(*draw, strict=True)]
    assert np.quantile(drawn, 0.025) > max(figure, float(np.mean(reference)))
    groups = jackknife_groups(n)
    low, high = jackknife_interval(figure, frechet_left_out(x, y, groups))
    assert low < np.mean(reference) < high


def test_the_interval_of_kid_holds_the_population_value() -> None:
    found = []
    for seed in range(100):
        x, y = features(100, 16, seed), features(100, 16, 10_000 + seed) + 0.15
        left_out = kid_left_out(x, y, jackknife_groups(100, seed))
        found.append((unbiased_kid(x, y), *jackknife_interval(unbiased_kid(x, y), left_out)))
    figures, low, high = np.array(found).T
    expected = figures.mean()  # the figure has no bias
    held = np.mean((low <= expected) & (expected <= high))
    assert 0.88 <= held <= 0.99
