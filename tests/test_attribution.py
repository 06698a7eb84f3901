"""Attribution: closed forms of leaving out, shares that sum exactly, every method, the ledger, commands, the script."""

from __future__ import annotations

import itertools
import json
import math
import runpy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_adapter import made_adapter
from PIL import Image
from test_generate import random_adapter
from torch import Tensor

from promptcdm.adapter import adapter_digest
from promptcdm.attribute import Attribution, attribute, attribute_record
from promptcdm.backbone import Backbone
from promptcdm.cli import main
from promptcdm.engine import Rows
from promptcdm.errors import BadInput, UnknownSource
from promptcdm.fixed_noise import clean_latents, noise_of
from promptcdm.ledger import Entry, ledger
from promptcdm.left_out import log_density_over, log_gain
from promptcdm.router import SourceStatistics, log_densities, posterior_router
from promptcdm.settings import AttributeSettings
from promptcdm.shares import explained, shapley, whole_shares
from promptcdm.slots import SlotLora
from promptcdm.source_errors import source_errors, timesteps_of
from promptcdm.store import AdapterStore
from promptcdm.tensorfile import write_json

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "eval"))

from gaussians import Gaussians  # noqa: E402

SCRIPT = runpy.run_path(str(ROOT / "eval" / "attribution.py"))
PRIOR = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


# Leaving a source out of an exact mixture.


@pytest.fixture
def mixture() -> Gaussians:
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(3, 1, 1, 2, generator=generator, dtype=torch.float64)
    var = torch.rand(3, 1, 1, 2, generator=generator, dtype=torch.float64) + 0.1
    return Gaussians(mean, var, PRIOR)


def without(mixture: Gaussians, k: int) -> Gaussians:
    """The mixture of the others."""
    kept = [i for i in range(len(mixture.share)) if i != k]
    share = mixture.share[kept]
    return Gaussians(mixture.mean[kept], mixture.var[kept], share / share.sum())


def log_p(mixture: Gaussians, x_t: Tensor, a: Tensor) -> Tensor:
    return (mixture.log_densities(x_t, a) + mixture.share.log()).logsumexp(1)


@pytest.mark.parametrize("alpha_bar", [1.0, 0.9, 0.3, 0.01])
def test_the_gain_of_a_source_is_the_log_ratio_of_two_densities(mixture: Gaussians, alpha_bar: float) -> None:
    x_t = torch.randn(40, 1, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2
    a = torch.full((40,), alpha_bar, dtype=torch.float64)
    gain = log_gain(mixture.posterior(x_t, a), PRIOR)
    for k in range(3):
        ratio = log_p(mixture, x_t, a) - log_p(without(mixture, k), x_t, a)
        torch.testing.assert_close(gain[:, k], ratio, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(gain[:, 0], gain[:, 1])


def test_the_gain_is_above_zero_exactly_where_the_weight_is_above_its_prior(mixture: Gaussians) -> None:
    x_t = torch.randn(40, 1, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w = mixture.posterior(x_t, torch.ones(40, dtype=torch.float64))
    assert torch.equal(log_gain(w, PRIOR) > 0, w > PRIOR)


def test_a_source_that_alone_explains_a_picture_has_a_finite_gain_as_long_as_others_have_any_weight() -> None:
    w = torch.tensor([[1 - 1e-30, 1e-30, 0.0]], dtype=torch.float64)  # 1 - w_0 would be 0
    gain = log_gain(w, torch.full((3,), 1 / 3, dtype=torch.float64))
    assert float(gain[0, 0]) == pytest.approx(math.log(2 / 3) + 30 * math.log(10))
    assert math.isinf(float(log_gain(torch.tensor([[1.0, 0.0]]), torch.tensor([0.5, 0.5]))[0, 0]))


def test_the_composition_without_a_source_predicts_the_noise_of_the_mixture_without_it(
    mixture: Gaussians,
) -> None:
    x_t = torch.randn(5, 1, 1, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    a = torch.full((5,), 0.6, dtype=torch.float64)
    w, eps = mixture.posterior(x_t, a), mixture.eps(x_t, a)
    whole = torch.einsum("bn,nbchw->bchw", w, eps)
    for k in range(3):
        rest = without(mixture, k)
        left = torch.einsum("bn,nbchw->bchw", rest.posterior(x_t, a), rest.eps(x_t, a))
        torch.testing.assert_close(whole - left, w[:, k].reshape(-1, 1, 1, 1) * (eps[k] - left))


def test_the_router_without_a_source_has_the_weights_that_the_identity_needs() -> None:
    generator = torch.Generator().manual_seed(4)
    mean, var = torch.randn(3, 2, 4, 4, generator=generator), torch.rand(3, 2, 4, 4, generator=generator) + 1
    x_t, a = torch.randn(6, 2, 4, 4, generator=generator), torch.full((6,), 0.7)
    prior = PRIOR.float()
    w, _ = posterior_router(SourceStatistics(mean, var), prior, 1.0).route(None, x_t, a, None)
    density = log_densities(SourceStatistics(mean, var), x_t, a)
    for k in range(3):
        kept = [i for i in range(3) if i != k]
        share = prior[kept] / prior[kept].sum()
        rest, _ = posterior_router(SourceStatistics(mean[kept], var[kept]), share, 1.0).route(
            None, x_t, a, None
        )
        torch.testing.assert_close(rest, w[:, kept] / w[:, kept].sum(1, keepdim=True))
        ratio = (density + prior.log()).logsumexp(1) - (density[:, kept] + share.log()).logsumexp(1)
        torch.testing.assert_close(log_gain(w, prior)[:, k].float(), ratio, rtol=1e-3, atol=1e-4)


def test_denoising_errors_integrate_to_the_log_ratio_of_the_densities(mixture: Gaussians) -> None:
    """Over all noise by quadrature: no draw, so the identity is met to the error of the grid."""
    line = Gaussians(mixture.mean[..., :1], mixture.var[..., :1], PRIOR)
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    noise = torch.tensor(nodes, dtype=torch.float64).reshape(-1, 1, 1, 1)
    weight = torch.tensor(weights / weights.sum(), dtype=torch.float64)
    log_snr = torch.linspace(-14, 6, 401, dtype=torch.float64)
    x = torch.tensor(0.4, dtype=torch.float64)
    for k in range(3):
        errors: dict[str, list[Tensor]] = {"whole": [], "left": []}
        for each in log_snr:
            a = each.sigmoid().expand(len(noise))
            x_t = each.sigmoid().sqrt() * x + (-each).sigmoid().sqrt() * noise
            for name, part in (("whole", line), ("left", without(line, k))):
                eps = torch.einsum("bn,nbchw->bchw", part.posterior(x_t, a), part.eps(x_t, a))
                errors[name].append(((eps - noise).square().flatten() * weight).sum())
        integral = log_density_over(
            torch.stack(errors["whole"]), torch.stack(errors["left"]), log_snr.tolist()
        )
        a = (
            log_snr[-1].sigmoid().expand(len(noise))
        )  # to here: the mean of (2) over the noise at the last level
        x_t = log_snr[-1].sigmoid().sqrt() * x + (-log_snr[-1]).sigmoid().sqrt() * noise
        expected = (log_gain(line.posterior(x_t, a), PRIOR)[:, k] * weight).sum()
        assert float(integral) == pytest.approx(float(expected), abs=2e-4)


# Shares.


def brute_shapley(values: Callable[[frozenset[int]], float], n: int) -> list[float]:
    """The mean gain over all orders."""
    total = [0.0] * n
    for order in itertools.permutations(range(n)):
        for place, player in enumerate(order):
            before = frozenset(order[:place])
            total[player] += values(before | {player}) - values(before)
    return [each / math.factorial(n) for each in total]


def test_shapley_values_are_the_mean_gain_over_all_orders() -> None:
    densities = [3.0, -2.0, 2.5, 40.0]
    expected = brute_shapley(lambda s: math.log(1 + sum(math.exp(densities[i]) for i in s)), 4)
    assert shapley(densities) == pytest.approx(expected, rel=1e-12)
    assert sum(shapley(densities)) == pytest.approx(math.log(1 + sum(map(math.exp, densities))), rel=1e-12)


def test_what_two_sources_explain_alike_is_split_and_huge_densities_do_not_overflow() -> None:
    values = shapley([900.0, 900.0, -900.0])
    assert values[0] == values[1] == pytest.approx(450, abs=1)
    assert values[2] == pytest.approx(0, abs=1e-9)
    assert min(shapley([-5.0, 2.0, 800.0])) >= 0


def test_a_picture_that_the_backbone_explains_best_is_nobodys() -> None:
    assert explained([-50.0, -60.0]) == pytest.approx(math.exp(-50), rel=1e-6)
    assert explained([0.0]) == pytest.approx(0.5)
    assert explained([900.0, 1.0]) == 1.0


def test_too_many_sources_for_exact_values_are_refused() -> None:
    with pytest.raises(BadInput, match="17 sources; at most 16"):
        shapley([0.0] * 17)


def test_whole_shares_sum_exactly_and_do_not_depend_on_the_order() -> None:
    assert whole_shares({"b": 1.0, "a": 1.0, "c": 1.0}, 100) == {"a": 34, "b": 33, "c": 33}
    assert whole_shares({"a": 0.1 + 0.2, "b": 0.7}, 10) == {"a": 3, "b": 7}
    random = np.random.default_rng(0)
    for _ in range(200):
        amounts = {f"s{i}": float(v) for i, v in enumerate(random.exponential(size=random.integers(1, 9)))}
        units = int(random.integers(1, 10**6))
        shares = whole_shares(amounts, units)
        assert sum(shares.values()) == units
        assert shares == whole_shares(dict(reversed(amounts.items())), units)
        for name, share in shares.items():  # nobody is a whole unit off
            assert abs(share - amounts[name] / sum(amounts.values()) * units) < 1 + 1e-6


@pytest.mark.parametrize("amounts", [{"a": -1.0, "b": 2.0}, {"a": math.nan}, {"a": 0.0}])
def test_shares_of_what_is_no_amount_are_refused(amounts: dict[str, float]) -> None:
    with pytest.raises(BadInput, match="amount"):
        whole_shares(amounts)


# From the record of a generated picture.


def test_weights_come_from_the_record_and_what_is_not_allowed_is_not_named() -> None:
    record = {"weights": {"birds": 0.5, "coco": 0.3, "zebras": 0.2}}
    found = attribute_record(record, ["birds", "coco"])
    assert found.top == "birds"
    assert found.amounts == {"birds": 0.5, "coco": 0.3}
    assert found.rest == pytest.approx(0.2)
    assert "zebras" not in json.dumps(found.record())
    assert attribute_record({"weights": {}}, ["birds"]).rest == 1.0  # the bare backbone's


@pytest.mark.parametrize("record", [{}, {"weights": [1]}, {"weights": {"a": "1"}}, {"weights": {"a": 2.0}}])
def test_a_record_without_weights_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="no weights by source"):
        attribute_record(record, ["birds"])


# The ledger.


def entries() -> list[Entry]:
    third = {"birds": 1 / 3, "coco": 1 / 3, "zebras": 1 / 3}
    return [
        Entry("b.png", "2" * 64, Attribution("weights", third, third, 0.0)),
        Entry(
            "a.png", "1" * 64, Attribution("weights", third, {"birds": 0.7, "coco": 0.0, "zebras": 0.1}, 0.2)
        ),
    ]


def records() -> list[Any]:
    return [made_adapter(name).record for name in ("zebras", "birds", "coco")]


def test_a_ledger_is_the_same_whatever_the_order_and_its_columns_add_up(tmp_path: Path) -> None:
    made = ledger(entries(), records(), {"seed": 0}, units=1000)
    again = ledger(entries()[::-1], records()[::-1], {"seed": 0}, units=1000)
    for name, each in (("one", made), ("two", again)):
        write_json(tmp_path / name, each)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert [p["file"] for p in made["pictures"]] == ["a.png", "b.png"]
    for picture in made["pictures"]:
        assert sum(picture["shares"].values()) + picture["unattributed"] == 1000
    assert made["pictures"][0]["shares"] == {"birds": 700, "coco": 0, "zebras": 100}
    totals = made["totals"]
    assert totals["shares"] == {"birds": 1034, "coco": 333, "zebras": 433}
    assert sum(totals["shares"].values()) + totals["unattributed"] == totals["units"] == 2000


def test_a_ledger_says_what_is_owed_and_that_it_proves_no_influence() -> None:
    made = ledger(entries(), records(), {})
    assert [(o["source"], o["license"], o["attribution"], o["pictures"]) for o in made["owed"]] == [
        ("birds", "MIT", "by Ann", 2),
        ("coco", "MIT", "by Ann", 1),
        ("zebras", "MIT", "by Ann", 2),
    ]
    assert "accounting rule" in made["statement"]
    assert "no proof" in made["statement"]


def test_a_ledger_refuses_mixed_methods_and_sources_that_it_was_not_given() -> None:
    other = Entry("c.png", "3" * 64, Attribution("statistics", {"birds": 1.0}, {"birds": 1.0}, 0.0))
    with pytest.raises(BadInput, match="one method"):
        ledger([*entries(), other], records(), {})
    with pytest.raises(BadInput, match="one method"):
        ledger([], records(), {})
    with pytest.raises(BadInput, match="attributed to zebras"):
        ledger(entries(), records()[1:], {})


# Denoising, on tiny random pipelines.

TINY = AttributeSettings(noise_levels=3, draws=2)


@pytest.fixture
def tiny_backbone(tiny_sd1: Path) -> Backbone:
    return Backbone.load(tiny_sd1, device="cpu")


@pytest.fixture
def tiny_store(tmp_path: Path, tiny_backbone: Backbone) -> AdapterStore:
    store = AdapterStore(tmp_path / "adapters")
    for seed, name in enumerate(("birds", "cars", "drums")):
        store.add(random_adapter(tiny_backbone, name, seed))
    return store


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (40, 32, 3)).astype(np.uint8)) for _ in range(count)]


def test_rows_of_all_sources_together_have_the_errors_of_each_source_alone(
    tiny_backbone: Backbone, tiny_store: AdapterStore
) -> None:
    names = ["birds", "cars", "drums"]
    adapters = [tiny_store.load(name) for name in names]
    x_0, prompts = clean_latents(tiny_backbone, pictures(2)), ["a bird", "two cars"]
    together = source_errors(tiny_backbone, adapters, x_0, prompts, noise_levels=3, draws=2)
    steps = timesteps_of(tiny_backbone, 3)
    assert together.source.shape == (2, 3, 3)
    assert together.row_forwards.tolist() == [(3 + 1) * len(steps) * 2] * 2
    embeds = tiny_backbone.encode_prompts(prompts).embeds
    for i, adapter in enumerate([*adapters, None]):
        lora = None if adapter is None else SlotLora(adapter.source, adapter.unet_lora)
        for level, t in enumerate(steps):
            a = tiny_backbone.alphas_cumprod[t]
            expected = torch.zeros(2)
            for draw in range(2):
                noise = noise_of(x_0.shape[1:], 0, level * 2 + draw)
                x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
                rows = Rows(x_t, torch.full((2,), float(t)), embeds, (lora, lora))
                expected += (tiny_backbone.engine.predict(rows)[0] - noise).square().sum((1, 2, 3)) / 2
            found = together.backbone[:, level] if adapter is None else together.source[:, i, level]
            torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)
    assert together.log_snr == pytest.approx(
        [float(tiny_backbone.alphas_cumprod[t].logit()) for t in steps], abs=1e-5
    )


def test_leaving_a_source_out_is_the_composition_of_the_others(
    tiny_backbone: Backbone, tiny_store: AdapterStore
) -> None:
    adapters = [tiny_store.load(name) for name in ("birds", "cars", "drums")]
    x_0, how = clean_latents(tiny_backbone, pictures(2)), {"noise_levels": 2, "draws": 1}
    prompts = ["a bird", "a car"]
    whole = source_errors(tiny_backbone, adapters, x_0, prompts, router="posterior", **how)  # type: ignore[arg-type]
    assert whole.without is not None and whole.composed is not None
    for k in range(3):
        rest = [adapter for i, adapter in enumerate(adapters) if i != k]
        alone = source_errors(tiny_backbone, rest, x_0, prompts, router="posterior", **how)  # type: ignore[arg-type]
        assert alone.composed is not None
        torch.testing.assert_close(whole.without[:, k], alone.composed, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(whole.without[:, k], whole.composed)
    only = source_errors(tiny_backbone, adapters[:1], x_0, prompts, router="uniform", **how)  # type: ignore[arg-type]
    assert only.without is not None
    torch.testing.assert_close(only.without[:, 0], only.backbone)  # without its only source: the backbone


@pytest.mark.parametrize("method", ["denoising", "leave-one-out", "statistics"])
def test_a_picture_is_attributed_alike_whatever_stands_beside_it(
    tiny_backbone: Backbone, tiny_store: AdapterStore, method: Any
) -> None:
    settings = replace(TINY, method=method, batch_size=2)
    options: dict[str, Any] = {"allowed": ["birds", "cars"], "backbone": tiny_backbone, "store": tiny_store}
    images = pictures(3)
    found = attribute(images, settings=settings, **options)
    (alone,) = attribute(images[2:], settings=settings, **options)
    assert found[2].top == alone.top
    assert found[2].scores == pytest.approx(alone.scores, rel=1e-4, abs=1e-5)
    for each in found:
        assert set(each.scores) == set(each.amounts) == {"birds", "cars"}
        assert sum(each.amounts.values()) + each.rest == pytest.approx(1)
        assert min(*each.amounts.values(), each.rest) >= 0
        assert each.row_forwards == (0 if method == "statistics" else 3 * 3 * 2)
    swapped = attribute(images, settings=settings, **{**options, "allowed": ["cars", "birds"]})
    assert [each.top for each in swapped] == [each.top for each in found]


def test_a_source_is_found_that_denoises_a_picture_best(
    tiny_backbone: Backbone, tiny_store: AdapterStore
) -> None:
    """The adapter whose errors are lowest is named; one of another seed would name another for some noise."""
    names = ["birds", "cars", "drums"]
    adapters = [tiny_store.load(name) for name in names]
    x_0 = clean_latents(tiny_backbone, pictures(4))
    errors = source_errors(tiny_backbone, adapters, x_0, [""] * 4, noise_levels=3, draws=2)
    found = attribute(pictures(4), allowed=names, backbone=tiny_backbone, store=tiny_store, settings=TINY)
    best = (errors.source / errors.backbone[:, None]).mean(2).argmin(1)
    assert [each.top for each in found] == [names[i] for i in best.tolist()]


def test_two_text_encoders_are_told_their_sizes(tiny_sdxl: Path, tmp_path: Path) -> None:
    backbone = Backbone.load(tiny_sdxl, device="cpu")
    store = AdapterStore(tmp_path)
    store.add(random_adapter(backbone, "birds", 0))
    (found,) = attribute(pictures(1), allowed=["birds"], backbone=backbone, store=store, settings=TINY)
    assert math.isfinite(found.scores["birds"])


def test_what_cannot_be_attributed_is_refused(tiny_backbone: Backbone, tiny_store: AdapterStore) -> None:
    def run(allowed: Any = ("birds",), prompts: Any = None, **changes: Any) -> None:
        attribute(
            pictures(1),
            allowed=allowed,
            backbone=tiny_backbone,
            store=tiny_store,
            settings=replace(TINY, **changes),
            prompts=prompts,
        )

    for wrong, match in (
        ({"allowed": []}, "one or more different"),
        ({"allowed": ["birds", "birds"]}, "different source names"),
        ({"method": "weights"}, "weights are in a record"),
        ({"method": "judge"}, "accepted: denoising"),
        ({"noise_levels": 0}, "noise_levels is 0"),
        ({"draws": 0}, "0 draws"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"prompts": ["a", "b"]}, "1 pictures and 2 prompts"),
    ):
        with pytest.raises(BadInput, match=match):
            run(**wrong)
    with pytest.raises(UnknownSource, match="zebras"):
        run(["birds", "zebras"])


def test_sources_without_statistics_are_attributed_by_denoising_alone(
    tiny_backbone: Backbone, tiny_store: AdapterStore
) -> None:
    adapter = random_adapter(tiny_backbone, "imported", 7)
    digest = adapter_digest(adapter.lora, {}, None)
    record = adapter.record.model_copy(update={"sha256": digest})
    tiny_store.add(replace(adapter, statistics=None, record=record))
    options: dict[str, Any] = {"allowed": ["birds", "imported"], "backbone": tiny_backbone}
    assert attribute(pictures(1), store=tiny_store, settings=TINY, **options)
    for method in ("statistics", "leave-one-out"):
        with pytest.raises(BadInput, match="imported does not have"):
            attribute(pictures(1), store=tiny_store, settings=replace(TINY, method=method), **options)


# Commands and the script.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures with the records of a generation, in a folder."""
    (tmp_path / "out").mkdir()
    for n, image in enumerate(pictures(2)):
        image.save(tmp_path / "out" / f"{n:04d}.png")
        record = {"weights": {"birds": 0.25 + n / 2, "cars": 0.75 - n / 2}, "prompt": "a bird"}
        write_json(tmp_path / "out" / f"{n:04d}.json", record)
    pictures(1)[0].save(tmp_path / "out" / "grid.png")
    return tmp_path / "out"


def command(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def test_the_command_reads_weights_from_records(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = AdapterStore(tmp_path / "adapters")
    for name in ("birds", "cars"):
        store.add(made_adapter(name))
    options = ["--store", tmp_path / "adapters", "--method", "weights", "--allowed", "birds,cars"]
    assert command("attribute", folder, *options, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(Path(row["file"]).name, row["top"]) for row in rows] == [
        ("0000.png", "cars"),
        ("0001.png", "birds"),
    ]
    assert command("attribute", folder, *options) == 0
    assert "birds 25%, cars 75%" in capsys.readouterr().out
    (folder / "0001.json").unlink()
    assert command("attribute", folder / "0001.png", *options) == 2
    assert "no record 0001.json beside it" in capsys.readouterr().err


def test_the_ledger_command_writes_the_same_bytes_and_says_what_a_share_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = AdapterStore(tmp_path / "adapters")
    for name in ("birds", "cars"):
        store.add(made_adapter(name))
    options = ["--store", tmp_path / "adapters", "--method", "weights", "--allowed"]
    assert command("ledger", folder, *options, "birds,cars", "--out", tmp_path / "1.json") == 0
    said = capsys.readouterr().out
    assert "accounting rule" in said and "by Ann" in said and "50.0 %" in said
    files = sorted(folder.glob("00*.png"), reverse=True)
    assert command("ledger", *files, *options, "cars,birds", "--out", tmp_path / "2.json") == 0
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    made = json.loads((tmp_path / "1.json").read_text())
    assert made["totals"]["shares"] == {"birds": 1_000_000, "cars": 1_000_000}
    assert str(tmp_path) not in (tmp_path / "1.json").read_text()
    record = json.loads((folder / "0000.json").read_text())
    made_with = {"source": "birds", "sha256": store.record("birds").sha256}
    write_json(folder / "0000.json", record | {"adapters": [made_with]})
    assert command("ledger", folder, *options, "birds,cars", "--out", tmp_path / "3.json") == 0
    write_json(folder / "0000.json", record | {"adapters": [made_with | {"sha256": "f" * 64}]})
    assert command("ledger", folder, *options, "birds,cars", "--out", tmp_path / "4.json") == 2
    assert f"made with birds {'f' * 12}, the store has" in capsys.readouterr().err
    assert not (tmp_path / "4.json").exists()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["gone.png", "--allowed", "birds"], "no such file"),
        (["OUT", "--allowed", ""], "names no source"),
        (["OUT", "--allowed", "zebras"], "no source 'zebras'"),
        (["OUT", "--allowed", "birds", "--method", "judge"], "it takes denoising or"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], match: str
) -> None:
    AdapterStore(tmp_path / "adapters").add(made_adapter("birds"))
    words = [str(folder) if word == "OUT" else word for word in words]
    assert command("attribute", *words, "--store", tmp_path / "adapters") == 2
    assert match in capsys.readouterr().err


def test_the_script_measures_top_1_on_pictures_that_no_source_trained_on(
    tiny_sd1: Path, tiny_store: AdapterStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, image in zip(("birds", "cars"), pictures(2), strict=True):
        (tmp_path / "heldout" / name).mkdir(parents=True)
        for n in range(3):
            image.rotate(90 * n).save(tmp_path / "heldout" / name / f"{n}.png")
    words = ["--heldout", tmp_path / "heldout", "--store", tiny_store.root, "--backbone", tiny_sd1]
    words += ["--count", 4, "--noise-levels", 2, "--draws", 1, "--out", tmp_path / "result.json"]
    assert SCRIPT["main"]([str(word) for word in words]) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["pictures"] == 4
    assert {m: r["row_forwards"] for m, r in result["methods"].items()} == {
        "palette": 0,
        "statistics": 0,
        "denoising": 6,
        "leave-one-out": 6,
    }
    for each in result["methods"].values():
        right = sum(each["taken_for"][name][name] for name in ("birds", "cars"))
        assert each["top1"] == right / 4
    assert "top-1" in capsys.readouterr().out
    for method in ("denoising", "leave-one-out"):  # together they were taken from the same rows
        assert SCRIPT["main"]([*map(str, words), "--methods", method]) == 0
        alone = json.loads((tmp_path / "result.json").read_text())["methods"][method]
        assert alone["taken_for"] == result["methods"][method]["taken_for"]
    assert SCRIPT["main"]([*map(str, words), "--methods", "judge"]) == 2
    assert "accepted: palette" in capsys.readouterr().err
