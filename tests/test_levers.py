"""The levers that leave rows out, each by itself: what it keeps exact, and how many rows it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_generate import FAST, random_adapter

from promptcdm.backbone import Backbone
from promptcdm.errors import BadInput
from promptcdm.generate import Generation, generate
from promptcdm.levers import Levers
from promptcdm.settings import GenerateSettings
from promptcdm.store import AdapterStore

SIX = replace(FAST, num_inference_steps=6, router="uniform")


@pytest.fixture(scope="module")
def backbone(tiny_sd1: Path) -> Backbone:
    return Backbone.load(tiny_sd1, device="cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, backbone: Backbone) -> AdapterStore:
    store = AdapterStore(tmp_path_factory.mktemp("levers") / "adapters")
    for seed, name in enumerate(("birds", "cars", "ships")):
        store.add(random_adapter(backbone, name, seed))
    return store


def made(backbone: Backbone, store: AdapterStore, *allowed: str, **changes: Any) -> Generation:
    settings: GenerateSettings = replace(SIX, **changes)
    return generate(["a bird and a car"], allowed=allowed, backbone=backbone, store=store, settings=settings)


def pixels(generation: Generation) -> np.ndarray:
    return np.asarray(generation.images[0], np.int16)


def rows(generation: Generation) -> float:
    return float(generation.records[0]["row_forwards"])


def test_without_levers_every_source_runs_and_the_unconditional_row_is_shared(
    backbone: Backbone, store: AdapterStore
) -> None:
    before = backbone.engine.forwards
    assert rows(made(backbone, store, "birds", "cars")) == 6 * 3
    assert backbone.engine.forwards == before + 6, "one forward a step"


def test_each_may_draw_its_own_unconditional_row(backbone: Backbone, store: AdapterStore) -> None:
    shared, own = (
        made(backbone, store, "birds", "cars", unconditional_from=b) for b in ("recorded", "adapter")
    )
    assert rows(own) == 6 * 4
    assert (pixels(own) != pixels(shared)).any()


def test_outside_the_interval_there_is_no_guidance(backbone: Backbone, store: AdapterStore) -> None:
    never = made(backbone, store, "birds", "cars", guidance_start=1.0)
    unguided = made(backbone, store, "birds", "cars", guidance_scale=1.0)
    assert np.abs(pixels(never) - pixels(unguided)).max() <= 1
    assert rows(never) == rows(unguided) == 6 * 2
    half = made(backbone, store, "birds", "cars", guidance_start=0.5)
    assert rows(unguided) < rows(half) < 6 * 3


def test_a_threshold_leaves_rows_out_after_the_first_step(backbone: Backbone, store: AdapterStore) -> None:
    few = made(backbone, store, "birds", "cars", "ships", router="prompt", min_weight=0.4)
    kept = [sum(w > 0 for w in step.values()) for step in few.records[0]["weights_by_step"]]
    assert all(1 <= k < 3 for k in kept)
    assert rows(few) == 1 + 3 + sum(1 + k for k in kept[1:])
    first = few.records[0]["dropped"][0]
    assert 0 < first["mass"][0] < 0.8
    assert first["bound"][0] > 0


def test_a_source_drawn_once_draws_alone(backbone: Backbone, store: AdapterStore) -> None:
    drawn = made(backbone, store, "birds", "cars", "ships", draw="once")
    (chosen,) = {n for step in drawn.records[0]["weights_by_step"] for n, w in step.items() if w}
    assert (pixels(drawn) == pixels(made(backbone, store, chosen))).all()
    assert rows(drawn) == 6 * 2
    seeds = [made(backbone, store, "birds", "cars", "ships", draw="once", seed=s) for s in range(8)]
    assert len({max(g.records[0]["weights"], key=lambda n: g.records[0]["weights"][n]) for g in seeds}) > 1


def test_drawn_at_each_step_costs_one_source_and_changes_it(backbone: Backbone, store: AdapterStore) -> None:
    drawn = made(backbone, store, "birds", "cars", "ships", draw="step", num_inference_steps=12)
    steps = drawn.records[0]["weights_by_step"]
    assert all(sorted(step.values()) == [0, 0, 1] for step in steps)
    assert len({max(step, key=lambda n: step[n]) for step in steps}) > 1
    assert rows(drawn) == 12 * 2


def test_cached_features_cost_their_share_and_come_near(backbone: Backbone, store: AdapterStore) -> None:
    full = made(backbone, store, "birds", "cars")
    cached = made(backbone, store, "birds", "cars", cache_interval=2)
    assert 6 * 3 * 0.5 < rows(cached) < 6 * 3 * 0.9
    difference = np.abs(pixels(cached) - pixels(full)).mean()
    other = np.abs(pixels(made(backbone, store, "ships")) - pixels(full)).mean()
    assert 0 < difference < other


def test_regions_weigh_place_by_place(backbone: Backbone, store: AdapterStore) -> None:
    joined = made(backbone, store, "birds", "cars", router="regional")
    assert all(
        sum(step.values()) == pytest.approx(1, abs=1e-4) for step in joined.records[0]["weights_by_step"]
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"top_k": -1}, "top_k is -1"),
        ({"min_weight": 1.0}, "min_weight is 1.0"),
        ({"guidance_start": 0.7, "guidance_stop": 0.3}, "must be in order"),
        ({"cache_interval": 0}, "cache_interval is 0"),
        ({"draw": "twice"}, "draw is 'twice'; accepted"),
        ({"unconditional_from": "none"}, "unconditional_from is 'none'"),
        ({"draw": "once", "top_k": 1}, "does not go with top_k"),
    ],
)
def test_a_value_out_of_range_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        Levers(**wrong).check()
