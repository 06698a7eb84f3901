"""Generation on tiny random Stable Diffusions: exact against stock diffusers, isolated bit for bit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from promptcdm.adapter import Adapter, Statistics, adapter_digest
from promptcdm.adapter_record import AdapterRecord, BackboneRecord
from promptcdm.backbone import Backbone
from promptcdm.caption_words import CaptionWords
from promptcdm.composed_unet import ComposedUNet
from promptcdm.errors import AdapterMismatch, BadInput, RunFailed, UnknownSource
from promptcdm.generate import Generation, generate
from promptcdm.lora import target_modules
from promptcdm.palette import Palette
from promptcdm.settings import GenerateSettings
from promptcdm.store import AdapterStore

FAST = GenerateSettings(num_inference_steps=3, guidance_scale=3.0, seed=1)


def random_adapter(
    backbone: Backbone, name: str, seed: int, unconditional: str = "backbone", **changes: object
) -> Adapter:
    """An adapter whose LoRA and statistics are random but large enough to show."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    shapes = backbone.module_shapes
    for module in target_modules(backbone.unet, "attention"):
        tensors[f"unet.{module}.lora_A.weight"] = torch.randn(2, shapes[module][1], generator=generator)
        tensors[f"unet.{module}.lora_B.weight"] = 0.3 * torch.randn(shapes[module][0], 2, generator=generator)
    prototypes = torch.nn.functional.normalize(torch.randn(2, 16, generator=generator), dim=1)
    mean = torch.randn(4, 8, 8, generator=generator)
    statistics = Statistics(
        6,
        mean,
        torch.ones(4, 8, 8),
        prototypes,
        torch.tensor([0.5, 0.5]),
        CaptionWords.of([[1], [2]]),
        palette=Palette(torch.arange(seed, 64 + seed), torch.arange(1, 65)),
    )
    record = AdapterRecord(
        source=name,
        kind="lora",
        unconditional=unconditional,  # type: ignore[arg-type]
        trigger="",
        backbone=BackboneRecord(
            name=backbone.name, digest=backbone.digest, architecture=backbone.architecture
        ),
        settings={},
        sha256=adapter_digest(tensors, {}, statistics),
        source_digest="",
        items=6,
        license="CC0-1.0",
        author="nobody",
        origin="drawn by the tests",
        attribution=f"{name}, CC0",
        versions={},
    )
    return replace(Adapter(name, tensors, {}, statistics, record), **changes)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path, backbone: Backbone) -> AdapterStore:
    store = AdapterStore(tmp_path / "adapters")
    for seed, name in enumerate(("birds", "cars")):
        store.add(random_adapter(backbone, name, seed))
    return store


def pixels(generation: Generation) -> list[bytes]:
    return [image.tobytes() for image in generation.images]


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_one_source_with_its_own_unconditional_branch_is_stock_diffusers(
    tiny_pipeline: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    folder = tiny_pipeline(kind)
    backbone = Backbone.load(folder, device="cpu")
    store = AdapterStore(tmp_path / "adapters")
    store.add(random_adapter(backbone, "birds", 0, unconditional="adapter"))
    ours = generate(["a red square"], allowed=["birds"], backbone=backbone, store=store, settings=FAST)
    stock = Backbone.load(folder, device="cpu").pipe
    bare = np.asarray(_stock_picture(stock), np.int16)
    stock.load_lora_weights(store.root / "birds")
    adapted = np.asarray(_stock_picture(stock), np.int16)
    assert np.abs(adapted - bare).max() > 8, "the LoRA shows"
    assert np.abs(np.asarray(ours.images[0], np.int16) - adapted).max() <= 1


def _stock_picture(pipe: object) -> Image.Image:
    return pipe(  # type: ignore[operator]
        "a red square",
        num_inference_steps=3,
        guidance_scale=3.0,
        height=32,
        width=32,
        generator=torch.Generator().manual_seed(1),
    ).images[0]


def test_the_backbones_own_pipeline_takes_a_composed_unet(backbone: Backbone, store: AdapterStore) -> None:
    """The lines of the README, and what they draw is what `generate` draws, before and after."""
    settings = replace(FAST, router="uniform")

    def ours() -> bytes:
        names = ["birds", "cars"]
        made = generate(["a bird"], allowed=names, backbone=backbone, store=store, settings=settings)
        return made.images[0].tobytes()

    before = ours()
    pipe = backbone.pipe
    adapters = [store.load("birds"), store.load("cars")]
    pipe.unet = composed = ComposedUNet(backbone, adapters, router="uniform", guidance_scale=3.0)
    generator = torch.Generator().manual_seed(1)
    picture = pipe(**composed.encode("a bird"), num_inference_steps=3, generator=generator).images[0]
    assert picture.tobytes() == before
    composed.close()
    assert ours() == before


def test_a_view_that_cannot_be_made_leaves_nothing_in_the_unet(backbone: Backbone) -> None:
    modules = dict(backbone.unet.named_modules())
    good, bad = random_adapter(backbone, "birds", 0), random_adapter(backbone, "cars", 1)
    key = next(iter(bad.lora))
    bad.lora[key] = torch.ones(2, 99)
    with pytest.raises(AdapterMismatch, match="another architecture"):
        ComposedUNet(backbone, [good, bad], router="uniform")
    assert dict(backbone.unet.named_modules()) == modules


def test_no_source_is_the_bare_backbone(backbone: Backbone, store: AdapterStore) -> None:
    ours = generate(["a red square"], allowed=[], backbone=backbone, store=store, settings=FAST)
    assert ours.images[0].tobytes() == _stock_picture(backbone.pipe).tobytes()
    assert ours.records[0]["weights"] == {}


@pytest.mark.parametrize("router", ["uniform", "prior", "prompt", "posterior"])
def test_weights_sum_to_one_at_every_step(backbone: Backbone, store: AdapterStore, router: str) -> None:
    settings = replace(FAST, router=router)
    record = generate(
        ["a bird"], allowed=["birds", "cars"], backbone=backbone, store=store, settings=settings
    ).records[0]
    assert len(record["weights_by_step"]) == 3
    assert all(sum(step.values()) == pytest.approx(1, abs=1e-5) for step in record["weights_by_step"])
    assert record["row_forwards"] == 3 * (2 + 1), "two sources and the shared unconditional row at each step"


def test_equation_1_is_the_weighted_sum_of_the_sources_predictions(
    backbone: Backbone, store: AdapterStore
) -> None:
    adapters = [store.load("birds"), store.load("cars")]
    x_t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    def predict(chosen: list[Adapter], router: str) -> torch.Tensor:
        composed = ComposedUNet(backbone, chosen, router=router, guidance_scale=1.0)  # type: ignore[arg-type]
        embeds = composed.encode("a bird")["prompt_embeds"]
        eps = composed(x_t, torch.tensor(300), embeds).sample
        weights.append(composed.weights[-1][0])
        composed.close()
        return eps

    weights: list[torch.Tensor] = []
    each = [predict([adapter], "uniform") for adapter in adapters]
    mixed = predict(adapters, "posterior")
    expected = weights[-1][0] * each[0] + weights[-1][1] * each[1]
    assert torch.allclose(mixed, expected, atol=1e-5)
    assert not torch.allclose(each[0], each[1], atol=1e-2)


def test_a_source_that_is_not_allowed_changes_no_bit(
    backbone: Backbone, store: AdapterStore, tmp_path: Path
) -> None:
    equal = replace(FAST, router="uniform")  # so that the other source certainly has weight when allowed

    def picture(allowed: list[str]) -> list[bytes]:
        return pixels(generate(["a bird"], allowed=allowed, backbone=backbone, store=store, settings=equal))

    alone = picture(["birds"])
    both = picture(["birds", "cars"])
    assert alone != both, "the test can fail: allowing the other source changes the picture"
    store.remove("cars")
    assert picture(["birds"]) == alone
    store.add(random_adapter(backbone, "cars", 7))
    assert picture(["birds"]) == alone
    for file in (store.root / "cars").iterdir():
        file.write_bytes(b"\xff" * 64)
    assert picture(["birds"]) == alone


def test_a_thousand_adapters_beside_it_change_neither_the_work_nor_the_picture(
    backbone: Backbone, tmp_path: Path, store: AdapterStore, files_read: list[Path]
) -> None:
    """No file of theirs is opened, no row of theirs is run."""
    full = AdapterStore(tmp_path / "full")
    shutil.copytree(store.root, full.root)
    for n in range(1000):
        shutil.copytree(store.root / "birds", full.root / f"s{n}", copy_function=os.link)
    made, work = [], []
    for where in (store, full):
        files_read.clear()
        before = backbone.engine.forwards
        made.append(generate(["x"], allowed=["birds", "cars"], backbone=backbone, store=where, settings=FAST))
        work.append((backbone.engine.forwards - before, len(files_read), made[-1].records[0]["row_forwards"]))
        assert {path.parent for path in files_read} == {where.root / "birds", where.root / "cars"}
    assert len(full.sources()) == 1002
    assert work[0] == work[1] == (3, len(files_read), 9.0)
    assert pixels(made[0]) == pixels(made[1])


def test_a_compiled_backbone_draws_the_same(tiny_sd1: Path, store: AdapterStore) -> None:
    plain = Backbone.load(tiny_sd1, device="cpu")
    wanted = generate(["x"], allowed=["birds", "cars"], backbone=plain, store=store, settings=FAST)
    compiled = plain.compiled(bucket=4, rank=2, backend="eager")
    made = generate(["x"], allowed=["birds", "cars"], backbone=compiled, store=store, settings=FAST)
    torch._dynamo.reset()
    assert compiled.engine.forwards == 3, "three rows a step, in one forward of four"
    difference = np.asarray(made.images[0], np.int16) - np.asarray(wanted.images[0], np.int16)
    assert np.abs(difference).max() <= 1
    with pytest.raises(BadInput, match="fixed shapes"):
        compiled.compiled(bucket=0)


def test_a_prediction_that_is_not_finite_is_an_error_that_names_the_source(
    backbone: Backbone, store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = random_adapter(backbone, "cars", 1)
    broken.lora[next(k for k in broken.lora if k.endswith("lora_B.weight"))].fill_(torch.nan)
    good = store.load("birds")
    monkeypatch.setattr(store, "load", {"birds": good, "cars": broken}.__getitem__)
    with pytest.raises(RunFailed, match="cars is not finite"):
        generate(["a bird"], allowed=["birds", "cars"], backbone=backbone, store=store, settings=FAST)
    after = generate(["a bird"], allowed=["birds"], backbone=backbone, store=store, settings=FAST)
    assert np.isfinite(np.asarray(after.images[0])).all()


def test_the_backbone_is_the_same_after_any_use(backbone: Backbone, store: AdapterStore) -> None:
    before = {n: t.clone() for n, t in backbone.unet.state_dict().items()}
    generate(["a bird"], allowed=["birds", "cars"], backbone=backbone, store=store, settings=FAST)
    after = backbone.unet.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], before[n]) for n in before)


def test_top_1_runs_one_source_a_step(backbone: Backbone, store: AdapterStore) -> None:
    settings = replace(FAST, top_k=1)
    record = generate(
        ["a bird"], allowed=["birds", "cars"], backbone=backbone, store=store, settings=settings
    ).records[0]
    assert all(sorted(step.values()) == [0.0, 1.0] for step in record["weights_by_step"])
    assert record["row_forwards"] == 3 * 2 + 1, "the first step runs all"
    assert [step["spread_of_step"] for step in record["dropped"]] == [0, 0, 0]
    assert ["bound" in step for step in record["dropped"]] == [True, False, False]


def test_same_command_same_bytes_in_any_folder(
    backbone: Backbone, store: AdapterStore, tmp_path: Path
) -> None:
    settings = replace(FAST, num_images=2)
    for folder in ("one", "two"):
        made = generate(
            ["a bird", "a car"], allowed=["birds"], backbone=backbone, store=store, settings=settings
        )
        made.save(tmp_path / folder)
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == [f"{n:04d}.{kind}" for n in range(4) for kind in ("json", "png")] + ["grid.png"]
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    records = [json.loads((tmp_path / "one" / f"{n:04d}.json").read_text()) for n in range(4)]
    assert [r["seed"] for r in records] == [1, 2, 3, 4]
    with Image.open(tmp_path / "one" / "0000.png") as picture:
        assert picture.info["parameters"].startswith("a bird\nSteps: 3")
    made.save(tmp_path / "bare", metadata=False)
    with Image.open(tmp_path / "bare" / "0000.png") as picture:
        assert "parameters" not in picture.info


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpm++", "unipc", "euler"])
def test_schedulers_compose(backbone: Backbone, store: AdapterStore, scheduler: str) -> None:
    settings = replace(FAST, scheduler=scheduler)
    made = generate(["a bird"], allowed=["birds", "cars"], backbone=backbone, store=store, settings=settings)
    assert np.asarray(made.images[0]).std() > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"height": 30}, "height is 30"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5"),
        ({"router": "best"}, "router 'best' is unknown; accepted: uniform"),
        ({"scheduler": "x"}, "scheduler 'x' is unknown"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_settings_are_refused(
    backbone: Backbone, store: AdapterStore, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        generate(["x"], allowed=["birds"], backbone=backbone, store=store, settings=replace(FAST, **changes))  # type: ignore[arg-type]


def test_an_older_version_draws_what_it_drew(backbone: Backbone, store: AdapterStore) -> None:
    def picture(*allowed: str) -> Generation:
        return generate(["a bird"], allowed=allowed, backbone=backbone, store=store, settings=FAST)

    before = picture("birds", "cars")
    digest = store.load("birds").sha256
    store.add(random_adapter(backbone, "birds", 7), replace=True)
    after, replayed = picture("birds", "cars"), picture(f"birds@{digest[:12]}", "cars")
    assert replayed.images[0].tobytes() == before.images[0].tobytes() != after.images[0].tobytes()
    assert replayed.records == before.records
    with pytest.raises(BadInput, match="different source names"):
        picture("birds", f"birds@{digest}")


def test_unknown_sources_and_other_backbones_are_refused(
    backbone: Backbone, store: AdapterStore, tiny_sd2: Path, tmp_path: Path
) -> None:
    with pytest.raises(UnknownSource):
        generate(["x"], allowed=["nobody"], backbone=backbone, store=store, settings=FAST)
    other = Backbone.load(tiny_sd2, device="cpu")
    with pytest.raises(AdapterMismatch, match="birds was trained on"):
        generate(["x"], allowed=["birds"], backbone=other, store=store, settings=FAST)
    allowed = generate(
        ["x"], allowed=["birds"], backbone=other, store=store, settings=FAST, allow_backbone_mismatch=True
    )
    assert len(allowed.images) == 1


def test_a_router_that_needs_statistics_refuses_a_source_without_by_name(
    backbone: Backbone, store: AdapterStore
) -> None:
    bare = random_adapter(backbone, "found", 3)
    record = bare.record.model_copy(update={"sha256": adapter_digest(bare.lora, {}, None), "items": 0})
    store.add(replace(bare, statistics=None, record=record))
    with pytest.raises(BadInput, match=r"router posterior needs statistics, which found .*--router uniform"):
        generate(["x"], allowed=["birds", "found"], backbone=backbone, store=store, settings=FAST)
    settings = replace(FAST, router="uniform")
    made = generate(["x"], allowed=["birds", "found"], backbone=backbone, store=store, settings=settings)
    assert made.records[0]["weights"] == {"birds": 0.5, "found": 0.5}
