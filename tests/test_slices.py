"""A source in slices: where a picture goes, what stands in the sum, and that one picture touches one slice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_adapter import made_adapter, random_statistics
from PIL import Image

from promptcdm.adapter import Adapter, joined, load_adapter, save_adapter
from promptcdm.backbone import Backbone
from promptcdm.caption_words import CaptionWords
from promptcdm.composed_unet import ComposedUNet
from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.export import export_adapter
from promptcdm.generate import generate
from promptcdm.manifest import Manifest, ManifestItem, merkle_root
from promptcdm.picture import pixels_digest
from promptcdm.settings import GenerateSettings, TrainSettings
from promptcdm.slices import slice_number, slices_of
from promptcdm.source import Source
from promptcdm.source_statistics import Statistics, pooled
from promptcdm.store import AdapterStore
from promptcdm.tensorfile import read_json, write_json
from promptcdm.terms import terms_of
from promptcdm.train import train_adapter
from promptcdm.train_all import train_into
from promptcdm.train_slices import steps_of, train_source

FAST = TrainSettings(steps=4, batch_size=4, rank=2, checkpoint_every=2, mixed_precision="no", slices=3)
Draw = Callable[..., Path]


def made_slice(number: int, k: int, count: int = 1, source: str = "birds") -> Adapter:
    """A slice of `count` pictures whose digests fall into slice `number` of k."""
    items = [
        ManifestItem(
            file=f"{number}-{n}.png",
            bytes=n,
            sha256="s",
            pixels_sha256=f"{number + k * (n + 1):064x}",
            caption_sha256="c",
        )
        for n in range(count)
    ]
    whole = made_adapter(source, seed=number)
    assert whole.manifest is not None
    manifest = whole.manifest.model_copy(update={"items": items, "merkle_root": merkle_root(items)})
    record = whole.record.model_copy(update={"items": count, "source_digest": manifest.merkle_root})
    return replace(whole, manifest=manifest, record=record)


def test_a_pictures_slice_is_a_matter_of_its_pixels_alone() -> None:
    assert [slice_number(f"{n:064x}", 3) for n in range(6)] == [0, 1, 2, 0, 1, 2]
    digests = [pixels_digest(Image.new("RGB", (2, 2), (n, 0, 0))) for n in range(200)]
    counts = torch.tensor([slice_number(digest, 4) for digest in digests]).bincount()
    assert len(counts) == 4 and int(counts.min()) > 30  # 50 expected, deviation 6


def test_slices_hold_every_picture_once(birds: Source) -> None:
    parts = slices_of(birds, 3)
    assert sorted(item.file for part in parts.values() for item in part.items) == [
        i.file for i in birds.items
    ]
    for number, part in parts.items():
        assert {slice_number(item.pixels_sha256, 3) for item in part.items} == {number}
        assert part.manifest().merkle_root == merkle_root(part.manifest().items)
    assert slices_of(birds, 1) == {0: birds}
    assert len(slices_of(birds, 1000)) <= 6  # more slices than pictures: most are empty
    with pytest.raises(BadInput, match="slices is 0; it takes 1"):
        slices_of(birds, 0)


def test_pooled_statistics_are_the_moments_of_all_pictures() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 4, 8, 8, generator=generator)
    ends = torch.nn.functional.normalize(torch.randn(2, 3, generator=generator), dim=1)
    share = torch.tensor([0.25, 0.75])

    def of(pictures: torch.Tensor) -> Statistics:
        mean, var = pictures.mean(0), pictures.var(0, unbiased=False)
        words = CaptionWords.of([[4, len(pictures)]] * len(pictures))
        return Statistics(len(pictures), mean, var, ends, share, words)

    parts = [of(x[:3]), of(x[3:5]), of(x[5:])]
    whole = pooled(parts)
    assert whole.count == 12
    assert whole.latent_factor is not None
    torch.testing.assert_close(whole.latent_mean, x.mean(0))
    variance = whole.latent_var + whole.latent_factor.square().sum(0)
    torch.testing.assert_close(variance, x.var(0, unbiased=False))
    between = torch.stack(
        [p.count / 12 * torch.outer(d := (p.latent_mean - x.mean(0)).flatten(), d) for p in parts]
    )
    rows = whole.latent_factor.flatten(1)
    torch.testing.assert_close(rows.T @ rows, between.sum(0))
    assert whole.caption_words.tokens.tolist() == [2, 3, 4, 7]
    assert whole.caption_words.counts.tolist() == [2, 3, 12, 7]
    assert whole.caption_prototypes.shape == (6, 3)
    torch.testing.assert_close(whole.caption_share, torch.cat([share * p.count / 12 for p in parts]))
    assert pooled(parts[:1]) is parts[0]


def test_a_slices_own_factor_stays_in_the_pooled_covariance() -> None:
    plain = random_statistics(seed=1)
    factor = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    whole = pooled([replace(plain, latent_factor=factor), plain])
    assert whole.latent_factor is not None
    rows = whole.latent_factor.flatten(1)
    expected = 0.5 * factor.flatten(1).T @ factor.flatten(1)  # the means agree: nothing between the slices
    torch.testing.assert_close(rows.T @ rows, expected)


def test_terms_are_the_slices_with_their_shares_and_a_zero_lets_nothing_pass() -> None:
    birds = joined([made_slice(0, 3, count=3), made_slice(2, 3)], 3)
    terms = terms_of([made_adapter("cars"), birds])
    assert terms.owner == (0, 1, 1)
    assert terms.share == (1.0, 0.75, 0.25)
    eps = torch.tensor([5.0, 1.0, 2.0]).reshape(3, 1, 1, 1, 1)
    torch.testing.assert_close(terms.within_sources(eps, [0, 1, 2]).flatten(), torch.tensor([5.0, 1.25]))
    assert terms.within_sources(eps[:1], [0]) is not None
    assert terms.within_sources(eps[1:], [1, 2]).flatten().tolist() == [1.25]
    eps[0] = torch.nan
    assert terms.within_sources(eps, [0, 1, 2]).flatten()[1] == 1.25
    assert terms.of_sources(torch.tensor([[True, False]])).tolist() == [[True, False, False]]


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """The folder of a source in three slices, one of which is empty."""
    save_adapter(joined([made_slice(0, 3, count=3), made_slice(2, 3)], 3), tmp_path / "birds")
    return tmp_path / "birds"


def test_a_folder_of_slices_is_read_as_it_was_written(whole: Path, tmp_path: Path) -> None:
    adapter = load_adapter(whole)
    assert adapter.sha256 == adapter.record.sha256
    assert adapter.kind == "lora" and not adapter.lora
    assert (adapter.record.slices, adapter.record.items, len(adapter.slices)) == (3, 4, 2)
    assert isinstance(adapter.manifest, Manifest)
    assert adapter.manifest.merkle_root == merkle_root(adapter.manifest.items)
    assert [item.file for item in adapter.manifest.items] == ["0-0.png", "0-1.png", "0-2.png", "2-0.png"]
    assert sorted(path.name for path in whole.iterdir()) == [
        "README.md",
        "adapter.json",
        "slice-0",
        "slice-2",
    ]
    card = (whole / "README.md").read_text()
    assert "in 3 slices" in card and "load_lora_weights" not in card
    assert load_adapter(whole / "slice-2").sha256 == made_slice(2, 3).sha256  # an adapter like any other
    save_adapter(adapter, tmp_path / "again")
    files = {p.relative_to(whole): p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    again = tmp_path / "again"
    assert files == {p.relative_to(again): p.read_bytes() for p in again.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: shutil.rmtree(root / "slice-2"), "disagree about sha256"),
        (lambda root: (root / "slice-2").rename(root / "slice-1"), "does not have its number"),
        (
            lambda root: shutil.copytree(root / "slice-2", root / "slice-1"),
            "a slice is missing, or there twice",
        ),
        (lambda root: save_adapter(made_slice(1, 3), root / "slice-1"), "disagree about sha256"),
        (
            lambda root: save_adapter(made_slice(1, 3, source="cars"), root / "slice-1"),
            "disagree about source",
        ),
        (
            lambda root: save_adapter(made_adapter(), root / "slice-1"),
            "no pictures, or not those of one slice",
        ),
        (lambda root: _rewrite(root, items=5), "disagree about items"),
        (lambda root: _rewrite(root, settings={"slices": 2}), "not those of one slice of 2"),
        (lambda root: _rewrite(root / "slice-0", license="MIT-0"), "disagree about license"),
        (lambda root: (root / "slice-2/router.safetensors").unlink(), "its tensors have digest"),
    ],
)
def test_a_changed_slice_is_found(whole: Path, change: Callable[[Path], object], words: str) -> None:
    change(whole)
    with pytest.raises(AdapterMismatch, match=words):
        load_adapter(whole)


def _rewrite(folder: Path, **facts: object) -> None:
    write_json(folder / "adapter.json", read_json(folder / "adapter.json") | facts)


def test_a_slice_that_is_a_link_is_refused(whole: Path, tmp_path: Path) -> None:
    (whole / "slice-2").rename(tmp_path / "outside")
    (whole / "slice-2").symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(AdapterMismatch, match="a link"):
        load_adapter(whole)


def test_no_other_tools_file_can_hold_slices(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "adapters")
    store.add(joined([made_slice(0, 3), made_slice(2, 3)], 3))
    with pytest.raises(BadInput, match="birds is in 3 slices"):
        export_adapter("birds", store=store, format="kohya", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_each_slice_is_what_its_pictures_alone_give(
    birds: Source, tiny_sd1: Path, backbone: Backbone
) -> None:
    steps: list[int] = []
    adapter = train_source(birds, backbone, FAST, on_step=lambda step, loss: steps.append(step))
    parts = slices_of(birds, 3)
    assert steps == list(range(1, steps_of(birds, FAST) + 1))
    for slice_adapter, part in zip(adapter.slices, parts.values(), strict=True):
        alone = train_adapter(part, backbone, replace(FAST, slices=1))
        assert slice_adapter.sha256 == alone.sha256
        assert slice_adapter.record == alone.record
    assert adapter.record.source_digest == birds.manifest().merkle_root
    with pytest.raises(BadInput, match="train_source trains slices"):
        train_adapter(birds, backbone, FAST)


def test_one_picture_more_or_less_touches_one_slice(
    birds: Source, backbone: Backbone, tmp_path: Path
) -> None:
    store = AdapterStore(tmp_path / "adapters")
    before = train_into(store, birds, backbone, FAST)
    Image.new("RGB", (64, 64), "green").save(Path(birds.folder) / "a.png")
    rows = Path(birds.folder) / "metadata.jsonl"
    rows.write_text(rows.read_text() + '{"file_name": "a.png", "text": "a new bird"}\n')
    larger = Source.open(birds.folder)
    trained: list[int] = []
    with pytest.raises(BadInput, match="--replace"):
        train_into(store, larger, backbone, FAST)
    after = train_source(
        larger, backbone, FAST, known=before.slices, on_step=lambda step, loss: trained.append(step)
    )
    assert len(trained) == FAST.steps
    kept = {part.sha256 for part in before.slices} & {part.sha256 for part in after.slices}
    assert len(kept) == len(after.slices) - 1
    assert after.sha256 == train_source(larger, backbone, FAST).sha256 != before.sha256
    again: list[int] = []
    train_source(larger, backbone, FAST, known=after.slices, on_step=lambda step, loss: again.append(step))
    assert again == []


def test_slices_of_before_a_setting_existed_stand_beside_new_ones(whole: Path) -> None:
    """Their records do not have it, or say it as it was then; it had its default."""
    settings = read_json(whole / "slice-0" / "adapter.json")["settings"]
    _rewrite(whole / "slice-0", settings=settings | {"alpha": 0.0, "gradient_checkpointing": "on"})
    _rewrite(whole, settings=load_adapter(whole / "slice-0").record.settings | {"slices": 3})
    assert load_adapter(whole).record.slices == 3
    _rewrite(whole / "slice-0", settings=settings | {"alpha": 4.0})
    with pytest.raises(AdapterMismatch, match="disagree about settings"):
        load_adapter(whole)


def test_an_interrupted_training_of_slices_goes_on(birds: Source, backbone: Backbone, tmp_path: Path) -> None:
    wanted = train_source(birds, backbone, FAST).sha256

    def stop(step: int, loss: float) -> None:
        if step == 7:
            raise KeyboardInterrupt

    steps: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train_source(birds, backbone, FAST, checkpoint=tmp_path / "birds.partial", on_step=stop)
    resumed = train_source(
        birds,
        backbone,
        FAST,
        checkpoint=tmp_path / "birds.partial",
        on_step=lambda step, loss: steps.append(step),
    )
    assert resumed.sha256 == wanted
    assert steps == list(range(7, steps_of(birds, FAST) + 1))


def test_a_source_in_slices_is_one_source_in_the_sum(
    birds: Source, backbone: Backbone, tmp_path: Path, toy_source: Draw
) -> None:
    cars = train_adapter(Source.open(toy_source(tmp_path, "cars", "blue")), backbone, replace(FAST, slices=1))
    whole = train_source(birds, backbone, replace(FAST, learning_rate=0.1))
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def eps(*adapters: Adapter) -> torch.Tensor:
        composed = ComposedUNet(backbone, adapters, router="uniform", guidance_scale=1.0)
        try:
            out = composed(x, 500, composed.encode("a bird")["prompt_embeds"]).sample
        finally:
            composed.close()
        assert composed.weights[0].shape == (1, len(adapters))
        return out

    inside = sum(part.record.items / 6 * eps(part) for part in whole.slices)
    torch.testing.assert_close(eps(whole), inside, rtol=0, atol=1e-6)
    torch.testing.assert_close(eps(cars, whole), 0.5 * eps(cars) + 0.5 * inside, rtol=0, atol=1e-6)
    apart = max(float((eps(part) - eps(whole)).abs().max()) for part in whole.slices)
    assert apart > 1e-4, "slices that agree would show nothing"


@pytest.mark.parametrize("router", ["prior", "prompt", "posterior"])
def test_every_router_weighs_it_and_top_1_keeps_it_whole(
    birds: Source, backbone: Backbone, tmp_path: Path, toy_source: Draw, router: str
) -> None:
    store = AdapterStore(tmp_path / "adapters")
    train_into(store, birds, backbone, FAST)
    train_into(store, Source.open(toy_source(tmp_path, "cars", "blue")), backbone, replace(FAST, slices=1))
    settings = GenerateSettings(router=router, num_inference_steps=2, guidance_scale=3.0, top_k=1)  # type: ignore[arg-type]
    made = generate(
        ["a red bird"], allowed=["birds", "cars"], backbone=backbone, store=store, settings=settings
    )
    assert made.weights[0].shape == (2, 2)
    assert set(made.records[0]["weights"]) == {"birds", "cars"}
    assert sorted(made.weights[0][0].tolist()) == [0.0, 1.0]
