"""The backbone as a source of the sum: no weights, known to the routers by what it draws."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from promptcdm.adapter import Adapter
from promptcdm.backbone import Backbone
from promptcdm.caption_words import CaptionWords
from promptcdm.composed_unet import ComposedUNet
from promptcdm.errors import BadInput
from promptcdm.export import export_adapter
from promptcdm.forget_items import forget_items, plan_items
from promptcdm.generate import generate
from promptcdm.prompt_prior import PromptFeatures, prompt_prior
from promptcdm.settings import GenerateSettings, TrainSettings
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.train import train_adapter
from promptcdm.train_all import train_into
from promptcdm.train_plan import plan_training

NONE = TrainSettings(kind="none")
LORA = TrainSettings(steps=20, batch_size=4, rank=2, learning_rate=0.05, mixed_precision="no")
DRAWN = GenerateSettings(num_inference_steps=2, guidance_scale=3.0)


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters")


@pytest.fixture
def cars(tmp_path: Path, toy_source: Callable[..., Path], backbone: Backbone) -> Adapter:
    return train_adapter(Source.open(toy_source(tmp_path, "cars", "blue")), backbone, LORA)


def test_it_is_the_statistics_of_its_source_and_nothing_else(
    birds: Source, backbone: Backbone, store: AdapterStore
) -> None:
    steps: list[int] = []
    own = train_adapter(birds, backbone, NONE, on_step=lambda step, loss: steps.append(step))
    assert (own.kind, own.lora, own.prompt, own.train_log, steps) == ("none", {}, {}, (), [])
    learned = train_adapter(birds, backbone, replace(LORA, steps=1)).statistics
    assert own.statistics is not None and learned is not None
    wanted = learned.tensors()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in own.statistics.tensors().items())
    store.add(own)
    assert store.load("birds").sha256 == own.sha256
    files = {path.name for path in (store.root / "birds").iterdir()}
    assert files == {"adapter.json", "manifest.json", "router.safetensors", "README.md"}
    assert "without weights" in (store.root / "birds" / "README.md").read_text(encoding="utf-8")


def test_alone_it_draws_what_the_bare_backbone_draws(
    birds: Source, backbone: Backbone, store: AdapterStore
) -> None:
    store.add(train_adapter(birds, backbone, NONE))
    for router in ("uniform", "posterior"):
        settings = replace(DRAWN, router=router)
        ours, bare = (
            generate(["a red square"], allowed=allowed, backbone=backbone, store=store, settings=settings)
            for allowed in (["birds"], [])
        )
        assert ours.images[0].tobytes() == bare.images[0].tobytes()


def test_its_term_of_the_sum_is_the_backbone_s_own_prediction(
    birds: Source, backbone: Backbone, cars: Adapter
) -> None:
    own = train_adapter(birds, backbone, NONE)
    x_t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    eps = {}
    for name, adapters in {"both": [own, cars], "cars": [cars], "bare": []}.items():
        with closing(ComposedUNet(backbone, adapters, router="uniform", guidance_scale=1.0)) as composed:
            embeds = composed.encode(["a car"])["prompt_embeds"]
            eps[name] = composed(x_t, torch.tensor(300), embeds).sample
    assert (eps["cars"] - eps["bare"]).abs().max() > 1e-2, "the LoRA shows"
    torch.testing.assert_close(eps["both"], (eps["cars"] + eps["bare"]) / 2, atol=1e-5, rtol=1e-5)


@dataclass(frozen=True)
class Captions:
    """What one source says of its captions."""

    caption_words: CaptionWords
    caption_prototypes: Tensor


DOG, HAMMER, AND, AXOLOTL, OTHER = range(5)


def test_it_takes_the_prompts_that_join_what_no_source_has_together_and_leaves_the_others_what_they_know() -> (
    None
):
    same = torch.eye(2)[:1]
    animals = Captions(CaptionWords.of([[DOG]] * 300 + [[AXOLOTL]] * 300), same)
    tools = Captions(CaptionWords.of([[HAMMER]] * 300), same)
    backbone = Captions(CaptionWords.of([[DOG, AND, HAMMER]] * 100 + [[OTHER]] * 700), same)
    prompts = [[DOG, AND, HAMMER], [AXOLOTL], [HAMMER], [OTHER]]
    pi = prompt_prior(PromptFeatures(same.expand(4, 2), prompts, 1000), [backbone, animals, tools])
    assert pi.argmax(1).tolist() == [0, 1, 2, 0]
    assert pi[0, 0] > 0.99 and pi[1, 0] < 0.01, "a name that it has never met is the source's"


def test_pictures_of_it_are_forgotten_like_any_others(
    tmp_path: Path, toy_source: Callable[..., Path], backbone: Backbone, store: AdapterStore
) -> None:
    folder = toy_source(tmp_path, "birds", "red")
    train_into(store, Source.open(folder), backbone, NONE)
    plan = plan_items("birds", ["large-circle.png"], Source.open(folder), store=store)
    after, _ = forget_items(plan, backbone, store=store)
    assert after.record.items == len(Source.open(folder)) - 1 and after.kind == "none"


def test_what_needs_weights_is_refused(
    tmp_path: Path, birds: Source, backbone: Backbone, store: AdapterStore
) -> None:
    with pytest.raises(BadInput, match="nothing is learned"):
        plan_training(birds, backbone, NONE)
    with pytest.raises(BadInput, match="kind is none"):
        train_adapter(birds, backbone, replace(NONE, train_text_encoder=True))
    store.add(train_adapter(birds, backbone, NONE))
    with pytest.raises(BadInput, match="without weights"):
        export_adapter("birds", store=store, format="kohya", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
