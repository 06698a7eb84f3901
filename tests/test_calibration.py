"""Correlations under their right names, paired comparison, agreement, intervals: by hand, by scipy, by brute force."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections import defaultdict

import numpy as np
import pytest
from scipy import stats
from shared_data import shared

from promptcdm import dsg
from promptcdm.agreement import agreement, cohen_kappa
from promptcdm.calibration import calibrate, correlations, kendall, pearson, spearman
from promptcdm.errors import BadInput
from promptcdm.intervals import cluster_interval, drawn_weights, wilson_interval
from promptcdm.paired import compare
from promptcdm.questions import Question
from promptcdm.verdict import Value, Verdict


def test_the_three_coefficients_by_hand() -> None:
    x, y = [1, 2, 3, 4, 100], [1, 3, 2, 4, 5]
    assert spearman(x, y) == pytest.approx(1 - 6 * 2 / (5 * 24))  # two ranks differ by one
    assert kendall(x, y) == pytest.approx((9 - 1) / 10)  # one pair of ten is the wrong way round
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert len({round(f(x, y), 6) for f in (pearson, spearman, kendall)}) == 3


def test_ties_are_counted_as_scipy_does() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        x, y = generator.integers(0, 4, 30).astype(float), generator.integers(0, 5, 30) / 3
        assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y)[0])
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y)[0])
        assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y)[0])


def test_a_constant_list_has_no_correlation() -> None:
    assert all(math.isnan(f([0.1] * 7, range(7))) for f in (pearson, spearman, kendall))


def test_an_interval_is_that_of_the_resampled_items_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weighted forms against coefficients of the repeated items, by scipy, over the same resamples."""
    monkeypatch.setattr("promptcdm.intervals.DRAWS", 200)
    generator = np.random.default_rng(1)
    x = generator.integers(0, 6, 24).astype(float)
    y = x + generator.integers(0, 5, 24)
    prompts = [f"prompt {number // 3}" for number in range(24)]
    found = correlations(x, y, prompts, seed=3)
    weights = np.concatenate(list(drawn_weights(prompts, seed=3))).astype(int)
    assert (weights.reshape(-1, 8, 3) == weights.reshape(-1, 8, 3)[:, :, :1]).all()  # prompts stay whole
    assert (weights.sum(1) == 24).all()
    repeated = [(np.repeat(x, row), np.repeat(y, row)) for row in weights]
    for ours, theirs in (
        (found.pearson, stats.pearsonr),
        (found.spearman, stats.spearmanr),
        (found.kendall, stats.kendalltau),
    ):
        low, high = np.quantile([theirs(a, b)[0] for a, b in repeated], [0.025, 0.975])
        assert ours.interval == pytest.approx((low, high))


def test_a_score_is_compared_with_the_mean_rating_and_raters_with_each_other() -> None:
    scores = {"a": 0.1, "b": 0.4, "c": 0.9, "unrated": 0.5}
    ratings = {"a": [1, 2], "b": [2, 1], "c": [5, 4], "unscored": [3, 3]}
    found = calibrate(scores, ratings)
    assert found.score.items == 3
    assert found.score.pearson.value == pytest.approx(np.corrcoef([0.1, 0.4, 0.9], [1.5, 1.5, 4.5])[0, 1])
    assert found.ceiling is not None
    assert found.ceiling.pearson.value == pytest.approx(np.corrcoef([1, 2, 5], [2, 1, 4])[0, 1])
    assert calibrate(scores, {id: rates[:1] for id, rates in ratings.items()}).ceiling is None


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1]), ([1], [1]), ([1, math.nan], [1, 2]), ([], [])])
def test_lists_that_cannot_be_correlated(x: list[float], y: list[float]) -> None:
    with pytest.raises(BadInput):
        correlations(x, y)


def test_clusters_widen_an_interval_by_the_root_of_their_size() -> None:
    """Items of one prompt that are all equal are one observation, however many they are."""
    values = [float(number // 5 % 2) for number in range(500)]
    alone = cluster_interval(values, [str(number) for number in range(500)])
    together = cluster_interval(values, [str(number // 5) for number in range(500)])
    assert alone[1] - alone[0] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(500), rel=0.15)
    assert together[1] - together[0] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(100), rel=0.15)


def test_a_paired_difference_is_sharper_than_its_parts() -> None:
    generator = np.random.default_rng(2)
    hard = generator.random(100)
    a = {str(n): float(h + 0.05) for n, h in enumerate(hard)}
    b = {str(n): float(h + 0.01 * generator.standard_normal()) for n, h in enumerate(hard)}
    found = compare(a, b)
    assert found.difference == pytest.approx(0.05, abs=0.005)
    assert found.interval[0] > 0.04 and found.interval[1] < 0.06
    assert found.p == pytest.approx(1 / 10_001)
    spread = cluster_interval(list(a.values()), list(a))
    assert spread[1] - spread[0] > 10 * (found.interval[1] - found.interval[0])


def test_sign_flips_of_few_prompts_are_counted_exactly() -> None:
    a, b = {"a": 0.9, "b": 0.8, "c": 0.5, "d": 0.6}, {"a": 0.5, "b": 0.7, "c": 0.7, "d": 0.3}
    d = [a[id] - b[id] for id in a]
    flips = [
        sum(s * x for s, x in zip(signs, d, strict=True)) for signs in itertools.product((1, -1), repeat=4)
    ]
    expected = sum(abs(flip) >= abs(sum(d)) - 1e-12 for flip in flips) / 16
    assert compare(a, b).p == expected == 6 / 16
    assert compare(a, a).p == 1
    assert compare(a, b).difference == -compare(b, a).difference


def test_pictures_of_one_prompt_flip_together_and_what_only_one_has_is_named() -> None:
    a = {"a1": 1.0, "a2": 1.0, "b1": 1.0, "b2": 1.0, "more": 0.0}
    b = dict.fromkeys(["a1", "a2", "b1", "b2", "other"], 0.0)
    found = compare(a, b, {id: id[0] for id in a})
    assert (found.pictures, found.prompts, found.left_out) == (4, 2, ("more", "other"))
    assert found.p == 0.5  # 2 of 4 flips; of four lone pictures it would be 2 of 16
    assert compare(a, b).p == 2 / 16
    with pytest.raises(BadInput, match="no id in common"):
        compare({"a": 1.0}, {"b": 1.0})
    with pytest.raises(BadInput, match="'a2' has no prompt"):
        compare(a, b, {"a1": "a"})


def test_kappa_of_cohens_kind_of_table() -> None:
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: p_o 0.7, p_e 0.5, kappa 0.4."""
    a = ["yes"] * 25 + ["no"] * 25
    b = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(a, b) == pytest.approx(0.4)
    assert cohen_kappa(a, a) == 1
    assert cohen_kappa(["yes"] * 3, ["yes"] * 3) is None
    with pytest.raises(BadInput, match="2 and 1 labels"):
        cohen_kappa(["a", "b"], ["a"])


def test_judges_are_compared_on_what_both_judged() -> None:
    rows = [Question("p", "", f"{number}?", ("red", "blue", "lime"), "red") for number in range(4)]
    one = [Verdict(q, choice) for q, choice in zip(rows, ["red", "red", "blue", "red"], strict=True)]
    other = [Verdict(q, choice) for q, choice in zip(rows[:3], ["red", "lime", "lime"], strict=True)]
    found = agreement(one, other)
    assert (found.questions, found.left_out) == (3, 1)
    assert found.observed == pytest.approx(2 / 3)  # both wrong in other words is both wrong
    assert found.kappa == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    assert found.differ == ((rows[1], "red", "lime"),)
    with pytest.raises(BadInput, match="no question in common"):
        agreement(one[:1], other[1:])


# TIFA's human ratings: (Pearson, Spearman, Kendall). Its Table 2 prints the first as "Spearman".
TIFA_TABLE = {
    "bleu": (0.1833, 0.2590, 0.1879),
    "rouge": (0.3289, 0.3360, 0.2449),
    "meteor": (0.3397, 0.3723, 0.2741),
    "spice": (0.3281, 0.3073, 0.2318),
    "clipscore_vitb32": (0.3318, 0.3198, 0.2314),
    "tifa_vilt": (0.4932, 0.5000, 0.3824),
    "tifa_ofa-large": (0.4961, 0.4866, 0.3725),
    "tifa_git-large": (0.5445, 0.5451, 0.4255),
    "tifa_blip2-flant5xl": (0.5590, 0.5581, 0.4360),
    "tifa_mplug-large": (0.5967, 0.5922, 0.4717),
}


def test_tifas_table_from_its_human_ratings() -> None:
    path = shared("tifa/human_annotations/human_annotations_with_scores.json")
    rows = json.loads(path.read_text(encoding="utf-8"))
    ratings = {id: row["human_scores"] for id, row in rows.items()}
    for name, expected in TIFA_TABLE.items():
        found = calibrate({id: row[name] for id, row in rows.items()}, ratings).score
        values = found.pearson.value, found.spearman.value, found.kendall.value
        assert values == pytest.approx(expected, abs=6e-5), name
        assert found.items == 800


def test_tifas_interval_and_rater_ceiling() -> None:
    path = shared("tifa/human_annotations/human_annotations_with_scores.json")
    rows = json.loads(path.read_text(encoding="utf-8"))
    found = calibrate(
        {id: row["tifa_mplug-large"] for id, row in rows.items()},
        {id: row["human_scores"] for id, row in rows.items()},
        {id: row["text_id"] for id, row in rows.items()},
    )
    assert found.score.spearman.interval == pytest.approx((0.519, 0.657), abs=0.01)
    assert found.ceiling is not None
    ceiling = found.ceiling.pearson.value, found.ceiling.spearman.value, found.ceiling.kendall.value
    assert ceiling == pytest.approx((0.684, 0.722, 0.639), abs=6e-4)


def dsg_scores(judge: str) -> dict[tuple[str, str], dict[bool, float]]:
    """DSG of each (model, item) of TIFA's 160 prompts, one-level and transitive, from the published answers."""
    values = []
    with shared(f"dsg/vqa_answers_release/{judge}_dsg.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["dsg_prompt_split"] == "tifa160":
                id = f"{row['t2i_model']} {row['item_id']}"
                question = Question(id, "", row["question"], ("yes", "no"), "yes")
                question = dsg.proposition(question, int(row["question_id"]), row["dependency_id"])
                values.append(Value(question, float(row["answer"] == "yes")))
    found: dict[tuple[str, str], dict[bool, float]] = defaultdict(dict)
    for transitive in (False, True):
        for id, score in dsg.gated(values, transitive=transitive).by_caption.items():
            model, item = id.split(" ")
            found[model, item][transitive] = score
    return found


@pytest.mark.parametrize(
    ("judge", "rho", "tau"),
    [("mplug", 0.463, 0.380), ("instructblip", 0.442, 0.364), ("pali17b", 0.570, 0.458)],
)
def test_dsgs_published_correlations(judge: str, rho: float, tau: float) -> None:
    """Over 800 pictures: an item without answers counts as 0 there. Without its 5 pictures rho is lower.

    PaLI is .571 there, since one cell with words drops all dependencies of its item.
    """
    scores = dsg_scores(judge)
    ratings: dict[tuple[str, str], list[float]] = defaultdict(list)
    with shared("dsg/dsg/data/tifa160-likert-anns.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            ratings[row["t2i_model"], row["item_id"]].append(float(row["answer"]))
    means = [float(np.mean(ratings[key])) for key in ratings]
    published = [scores[key][False] if key in scores else 0.0 for key in ratings]
    assert (len(ratings), len(scores)) == (800, 795)
    assert spearman(published, means) == pytest.approx(rho, abs=6e-4)
    assert kendall(published, means) == pytest.approx(tau, abs=6e-4)
    answered = [key for key in ratings if key in scores]
    alone = spearman([scores[key][False] for key in answered], [float(np.mean(ratings[k])) for k in answered])
    assert alone < rho - 0.003
    assert all(found[True] <= found[False] for found in scores.values())


def test_wilsons_interval_is_the_published_one() -> None:
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(20, 20)[1] == pytest.approx(1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)
