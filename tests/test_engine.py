"""The row engine against the plain loop over sources, and rows that know nothing of one another."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from promptcdm.backbone import Backbone
from promptcdm.engine import Engine, Rows
from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.feature_cache import FeatureCache
from promptcdm.reference import loop_over_sources
from promptcdm.slots import SlotLora

CONV = "down_blocks.0.resnets.0.conv1"
STRIDED = "down_blocks.0.downsamplers.0.conv"
POINTWISE = "mid_block.attentions.0.proj_in"


@pytest.fixture(scope="module")
def backbone(tiny_sd1: Path) -> Backbone:
    return Backbone.load(tiny_sd1, device="cpu")


def random_lora(backbone: Backbone, source: str, rank: int, seed: int, *, wide: bool = False) -> SlotLora:
    """Random A and B, large enough to show, for attention, or for every linear and convolution layer."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out, *rest) in backbone.module_shapes.items():
        if wide or ".to_" in name:
            ones = (1,) * (len(rest) - 1)
            tensors[f"unet.{name}.lora_A.weight"] = 0.3 * torch.randn(rank, *rest, generator=generator)
            tensors[f"unet.{name}.lora_B.weight"] = 0.2 * torch.randn(out, rank, *ones, generator=generator)
    return SlotLora(source, tensors)


def random_rows(backbone: Backbone, loras: Sequence[SlotLora | None], seed: int = 0) -> Rows:
    """One row for each of `loras`, at timesteps of their own."""
    generator = torch.Generator().manual_seed(seed)
    config, count = backbone.unet.config, len(loras)
    return Rows(
        torch.randn(count, config.in_channels, 8, 8, generator=generator),
        1000 * torch.rand(count, generator=generator),
        torch.randn(count, 24, config.cross_attention_dim, generator=generator),
        tuple(loras),
    )


def test_one_forward_equals_the_loop_over_sources(backbone: Backbone) -> None:
    """Mixed ranks, linear and convolution layers, the bare backbone among them, a timestep for each row."""
    birds = random_lora(backbone, "birds", 2, 0)
    cars = random_lora(backbone, "cars", 5, 1, wide=True)
    assert {f"unet.{name}.lora_A.weight" for name in (CONV, STRIDED, POINTWISE)} <= set(cars.tensors)
    weak = replace(cars, strength=0.5)
    rows = random_rows(backbone, [None, birds, cars, birds, weak, None])
    engine = Engine(backbone.unet)
    fast = engine.predict(rows)[0]
    engine.slots.close()
    slow = loop_over_sources(backbone.unet, rows)
    bare = loop_over_sources(backbone.unet, replace(rows, loras=(None,) * 6))
    assert (fast - slow).abs().max() < 1e-5
    moved = (slow - bare).flatten(1).abs().amax(1)
    assert (moved[[1, 2, 3, 4]] > 0.01).all(), "the LoRAs show"
    assert (moved[[0, 5]] < 1e-5).all()
    assert (slow[2] - slow[4]).abs().max() > 1e-3, "so does the strength"
    assert engine.forwards == 1


def test_more_adapters_than_slots_take_more_forwards_and_give_the_same(backbone: Backbone) -> None:
    loras = [random_lora(backbone, f"s{i}", 2, i) for i in range(5)]
    rows = random_rows(backbone, [*loras, None, loras[0]])
    roomy, tight = Engine(backbone.unet, slots=8), Engine(backbone.unet, slots=3)
    wanted = roomy.predict(rows)[0]
    roomy.slots.close()
    assert torch.allclose(tight.predict(rows)[0], wanted, atol=1e-5)
    assert tight.forwards > roomy.forwards == 1
    tight.slots.close()


def test_the_least_recently_used_leaves_and_its_slot_is_zeroed(backbone: Backbone) -> None:
    a, b, c = (random_lora(backbone, name, 2, seed) for seed, name in enumerate("abc"))
    engine = Engine(backbone.unet, slots=3)
    engine.admit(a)
    engine.admit(b)
    engine.admit(a)
    engine.admit(c)
    assert engine.slots.sources() == ["a", "c"]
    engine.evict([a, c])
    assert engine.slots.sources() == []
    stacks = [t for layer in engine.slots._layers.values() for t in (layer.a, layer.b)]
    assert stacks
    assert all((t == 0).all() for t in stacks)
    engine.slots.close()
    assert not any(m._forward_hooks for m in backbone.unet.modules())


def test_a_smaller_rank_leaves_nothing_of_a_larger_one_behind(backbone: Backbone) -> None:
    engine = Engine(backbone.unet, slots=2)
    small = random_lora(backbone, "small", 2, 1)
    fresh = Engine(backbone.unet, slots=2)
    rows = random_rows(backbone, [small, None])
    wanted = fresh.predict(rows)[0]
    fresh.slots.close()
    engine.predict(random_rows(backbone, [random_lora(backbone, "large", 6, 2, wide=True)]))
    assert torch.allclose(engine.predict(rows)[0], wanted, atol=1e-5)
    engine.slots.close()


def test_an_adapter_of_another_shape_is_refused_before_anything_changes(backbone: Backbone) -> None:
    engine = Engine(backbone.unet)
    broken = random_lora(backbone, "broken", 2, 0)
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight"
    assert key in broken.tensors
    with pytest.raises(AdapterMismatch, match="broken is of another architecture"):
        engine.admit(SlotLora("broken", {**broken.tensors, key: torch.ones(2, 99)}))
    with pytest.raises(AdapterMismatch, match="no layer of this UNet"):
        engine.admit(
            SlotLora(
                "broken",
                {"unet.nowhere.lora_A.weight": torch.ones(2, 9)}
                | {"unet.nowhere.lora_B.weight": torch.ones(9, 2)},
            )
        )
    assert engine.slots.sources() == []
    with pytest.raises(BadInput, match="2 or more"):
        Engine(backbone.unet, slots=1)


def hostile(rows: Rows, keep: int, seed: int) -> Rows:
    """The same row at place `keep`; NaN, infinities and noise in every other."""
    generator = torch.Generator().manual_seed(seed)
    x_t, embeds = rows.x_t.clone(), rows.embeds.clone()
    for r in range(len(rows)):
        if r != keep:
            x_t[r] = torch.randn(x_t[r].shape, generator=generator) * 10.0 ** float(seed % 7 - 3)
            embeds[r] = torch.randn(embeds[r].shape, generator=generator)
            if (seed + r) % 3 == 0:
                x_t[r, 0, 0, 0] = (torch.nan, torch.inf, -torch.inf)[seed % 3]
    return replace(
        rows, x_t=x_t, embeds=embeds, t=torch.where(torch.arange(len(rows)) == keep, rows.t, rows.t / 2)
    )


def isolated_bits(backbone: Backbone, trials: int) -> None:
    birds, cars = random_lora(backbone, "birds", 2, 0), random_lora(backbone, "cars", 4, 1, wide=True)
    engine = Engine(backbone.unet, bucket=8)
    alone = engine.predict(random_rows(backbone, [birds]))[0][0]
    one = random_rows(backbone, [birds])
    for seed in range(trials):
        count, keep = 2 + seed % 7, seed % (2 + seed % 7)
        loras = [(None, birds, cars)[(seed + r) % 3] for r in range(count)]
        loras[keep] = birds
        rows = random_rows(backbone, loras, seed=seed + 1)
        for name in ("x_t", "t", "embeds"):
            getattr(rows, name)[keep] = getattr(one, name)[0]
        assert torch.equal(engine.predict(hostile(rows, keep, seed))[0][keep], alone), f"trial {seed}"
    other = engine.predict(random_rows(backbone, [cars]))[0][0]
    assert not torch.equal(other, alone), "another adapter shows"
    engine.slots.close()


def test_in_a_bucket_a_rows_bits_depend_on_no_other_row(backbone: Backbone) -> None:
    isolated_bits(backbone, 60)


@pytest.mark.slow
def test_in_a_bucket_a_rows_bits_depend_on_no_other_row_in_a_thousand_trials(backbone: Backbone) -> None:
    isolated_bits(backbone, 1000)


def test_threads_share_forwards_and_get_the_bytes_of_one_after_the_other(backbone: Backbone) -> None:
    loras = [random_lora(backbone, f"s{i}", 2, i) for i in range(4)]
    work = [random_rows(backbone, [lora, None], seed=i) for i, lora in enumerate(loras)]
    engine = Engine(backbone.unet, bucket=8)
    wanted = [engine.predict(rows)[0] for rows in work]
    before, got = engine.forwards, dict[int, Tensor]()
    gate = threading.Barrier(len(work))

    def ask(i: int) -> None:
        gate.wait()
        got[i] = engine.predict(work[i])[0]

    with engine.lock:  # nobody runs until all have asked
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(work))]
        for thread in threads:
            thread.start()
        while len(engine._waiting) < len(work):
            pass
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[i], wanted[i]) for i in range(len(work)))
    assert engine.forwards == before + 1
    engine.slots.close()


def test_one_threads_bad_rows_do_not_fail_the_others(backbone: Backbone) -> None:
    engine = Engine(backbone.unet, bucket=4)
    good = random_rows(backbone, [random_lora(backbone, "good", 2, 0)])
    lame = random_lora(backbone, "lame", 2, 1)
    key = next(iter(lame.tensors))
    bad = random_rows(backbone, [SlotLora("lame", {**lame.tensors, key: torch.ones(2, 99)})])
    wanted = engine.predict(good)[0]
    outcome: dict[str, object] = {}

    def ask(name: str, rows: Rows) -> None:
        try:
            outcome[name] = engine.predict(rows)[0]
        except AdapterMismatch as error:
            outcome[name] = error

    with engine.lock:
        threads = [threading.Thread(target=ask, args=pair) for pair in (("good", good), ("bad", bad))]
        for thread in threads:
            thread.start()
        while len(engine._waiting) < 2:
            pass
    for thread in threads:
        thread.join()
    assert isinstance(outcome["bad"], AdapterMismatch)
    good_now = outcome["good"]
    assert isinstance(good_now, Tensor)
    assert torch.equal(good_now, wanted)
    engine.slots.close()


def test_a_shallow_pass_on_fresh_features_is_the_full_pass(backbone: Backbone) -> None:
    birds = random_lora(backbone, "birds", 2, 0, wide=True)
    rows = random_rows(backbone, [None, birds])
    engine = Engine(backbone.unet)
    full, deep = engine.predict(rows, keep_deep=True)
    assert torch.allclose(engine.predict(replace(rows, deep=deep))[0], full, atol=1e-6)
    swapped = replace(rows, deep=deep.flip(0))  # type: ignore[union-attr]
    assert not torch.allclose(engine.predict(swapped)[0], full, atol=1e-3), "features of another source show"
    assert 0 < engine.shallow_share(replace(rows, deep=deep)) < 0.7
    engine.slots.close()


def test_rows_without_a_valid_cache_run_in_full(backbone: Backbone) -> None:
    birds, cars = random_lora(backbone, "birds", 2, 0), random_lora(backbone, "cars", 2, 1)
    engine = Engine(backbone.unet)
    cache = FeatureCache(engine, interval=3)
    rows = random_rows(backbone, [birds, cars])
    first, cost = cache.predict(rows.take([0]), ["birds"], 0)
    assert cost.tolist() == [1]
    both, cost = cache.predict(rows, ["birds", "cars"], 1)
    assert cost[1] == 1
    assert cost[0] < 1
    assert torch.allclose(both, engine.predict(rows)[0], atol=1e-6), (
        "in order, and each with its own features"
    )
    assert torch.allclose(both[:1], first, atol=1e-6)
    assert cache.predict(rows, ["birds", "cars"], 3)[1].tolist() == [1, 1]
    engine.slots.close()


def test_nothing_that_comes_later_is_compiled_anew(tiny_sd1: Path) -> None:
    """Adapters, their ranks and strengths, allowed sets, timesteps and counts of rows: three graphs serve them all."""
    backbone = Backbone.load(tiny_sd1, device="cpu")  # its own: what is compiled stays with the UNet
    targets = [name for name in backbone.module_shapes if ".to_" in name]
    compiled = Engine(backbone.unet, slots=4, bucket=4, rank=4, targets=targets)
    compiled.compile(backend=(counter := CompileCounter()))
    loras = [random_lora(backbone, f"s{i}", rank, i) for i, rank in enumerate((2, 3, 4, 1, 2))]
    some = [None, loras[0], loras[1]]
    made, known = [], []
    for allowed in (
        some,
        [loras[2], None],
        [loras[3], loras[4], loras[0]],
        [replace(loras[1], strength=0.3)],
    ):
        rows = random_rows(backbone, allowed, seed=len(made))
        eps = compiled.predict(rows)[0]
        kept, deep = compiled.predict(rows, keep_deep=True)
        assert deep is not None
        shallow = compiled.predict(replace(rows, deep=deep))[0]
        assert torch.allclose(kept, eps, atol=1e-5)
        assert torch.allclose(shallow, eps, atol=1e-5), (
            "with features of the same step it is the same function"
        )
        made.append((rows, eps))
        known.append(counter.frame_count)
    assert known[0] == 3, "full, full with its deep features kept, shallow"
    assert known == known[:1] * 4
    compiled.slots.close()
    torch._dynamo.reset()
    for rows, eps in made:
        assert torch.allclose(loop_over_sources(backbone.unet, rows), eps, atol=1e-5)
