"""A source's LoRA in the text encoders: what stock diffusers makes of the same file, and seen by nobody else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_adapter import made_adapter, random_lora, random_prompt, random_statistics
from torch import Tensor, nn

from promptcdm.adapter import LORA, Adapter, load_adapter, save_adapter
from promptcdm.adapter_record import BackboneRecord
from promptcdm.backbone import Backbone
from promptcdm.composed_unet import ComposedUNet
from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.import_adapter import import_adapter
from promptcdm.levers import Levers
from promptcdm.lora import target_modules
from promptcdm.lora_format import lora_modules, to_kohya
from promptcdm.tensorfile import write_tensors
from promptcdm.text_lora import TextLora, acting

PROMPT, NEGATIVE, GUIDANCE = "a red square", "grey", 3.0
TOLERANCE = 1e-4
SEEN = 1e-2  # a difference that nobody could take for rounding
both_kinds = pytest.mark.parametrize("kind", ["sd1", "sdxl"])


@dataclass(frozen=True)
class Pair:
    """One backbone twice: ours, and a stock pipeline into which the same LoRA file is loaded."""

    backbone: Backbone
    stock: Any
    file: Path  # as kohya's tools write it, alpha 2 and rank 4
    adapter: Adapter  # imported from it; its unconditional branch is its own, as in stock diffusers
    folder: Path


@pytest.fixture(scope="module")
def tiny_pair(
    tiny_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def pair(kind: str) -> Pair:
        if kind not in made:
            folder = tiny_pipeline(kind)
            ours, stock = (Backbone.load(folder, device="cpu", dtype="float32") for _ in range(2))
            file = tmp_path_factory.mktemp(f"text-{kind}") / "theirs.safetensors"
            tensors = to_kohya(random_parts(ours, 0), kind)
            tensors |= {key: torch.tensor(2.0) for key in tensors if key.endswith(".alpha")}
            write_tensors(file, tensors, {"format": "pt"})
            stock.pipe.load_lora_weights(file, adapter_name="birds")
            made[kind] = Pair(ours, stock.pipe, file, import_adapter(file, "birds", ours), folder)
        return made[kind]

    return pair


@pytest.fixture
def sd1(tiny_pair: Callable[[str], Pair]) -> Pair:
    return tiny_pair("sd1")


def random_parts(backbone: Backbone, seed: int, rank: int = 4) -> dict[str, Tensor]:
    """A LoRA of the UNet's attention and of every linear layer of the text encoders, large enough to show."""
    shapes = {name: backbone.module_shapes[name] for name in target_modules(backbone.unet, "attention")}
    text = random_lora(backbone.text_module_shapes, rank=rank, seed=seed + 100)
    return random_lora(shapes, rank=rank, seed=seed) | {
        key.removeprefix("unet."): tensor for key, tensor in text.items()
    }


def source(backbone: Backbone, name: str, lora: Mapping[str, Tensor], **changes: Any) -> Adapter:
    record = BackboneRecord(name=backbone.name, digest=backbone.digest, architecture=backbone.architecture)
    facts = {"lora": dict(lora), "trained": False, "backbone": record, "unconditional": "adapter"}
    return made_adapter(name, **(facts | changes))


def run(pipe: Any, **arguments: Any) -> Tensor:
    """Latents of two steps from one seed."""
    generator = torch.Generator().manual_seed(1)
    pipe.set_progress_bar_config(disable=True)
    latents: Tensor = pipe(
        **arguments, num_inference_steps=2, generator=generator, output_type="latent"
    ).images
    return latents


def ours(backbone: Backbone, *adapters: Adapter, negative: str = "", **settings: Any) -> Tensor:
    pipe = type(backbone.pipe)(**backbone.pipe.components | _checker(backbone))
    pipe.unet = composed = ComposedUNet(
        backbone, adapters, **({"router": "uniform", "guidance_scale": GUIDANCE} | settings)
    )
    try:
        return run(pipe, **composed.encode(PROMPT, negative))
    finally:
        composed.close()


def _checker(backbone: Backbone) -> dict[str, Any]:
    return {"requires_safety_checker": False} if "requires_safety_checker" in backbone.pipe.config else {}


def theirs(stock: Any, negative: str = "") -> Tensor:
    text = {"prompt": PROMPT, "negative_prompt": negative} if negative else {"prompt": PROMPT}
    return run(stock, **text, guidance_scale=GUIDANCE)


def assert_same(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=TOLERANCE)


def assert_other(left: Tensor, right: Tensor) -> None:
    assert (left - right).abs().max() > SEEN


@pytest.mark.parametrize("negative", ["", NEGATIVE])
@both_kinds
def test_one_source_is_stock_diffusers_with_the_same_file(
    tiny_pair: Callable[[str], Pair], kind: str, negative: str
) -> None:
    pair = tiny_pair(kind)
    mine = ours(pair.backbone, pair.adapter, negative=negative)
    assert_same(mine, theirs(pair.stock, negative))
    unet_alone = import_adapter(pair.file, "birds", pair.backbone, unet_only=True)
    assert_other(mine, ours(pair.backbone, unet_alone, negative=negative))


@both_kinds
def test_both_files_of_the_store_load_in_stock_diffusers(
    tiny_pair: Callable[[str], Pair], tmp_path: Path, kind: str
) -> None:
    pair = tiny_pair(kind)
    save_adapter(pair.adapter, tmp_path / "birds")
    expected = theirs(pair.stock)
    for file in (LORA, "birds.safetensors"):
        fresh = Backbone.load(pair.folder, device="cpu", dtype="float32").pipe
        bare = theirs(fresh)
        fresh.load_lora_weights(tmp_path / "birds", weight_name=file)
        assert_same(theirs(fresh), expected)
        assert_other(bare, expected)
    assert_same(ours(pair.backbone, load_adapter(tmp_path / "birds")), expected)


@both_kinds
def test_strength_scales_both_parts(tiny_pair: Callable[[str], Pair], kind: str) -> None:
    pair = tiny_pair(kind)
    whole = theirs(pair.stock)
    pair.stock.set_adapters("birds", 0.5)
    try:
        half = theirs(pair.stock)
    finally:
        pair.stock.set_adapters("birds", 1.0)
    assert_same(ours(pair.backbone, pair.adapter, strength={"birds": 0.5}), half)
    assert_other(half, whole)


@both_kinds
def test_encoding_is_that_of_an_encoder_with_the_lora_in_its_weights(
    tiny_pair: Callable[[str], Pair], kind: str
) -> None:
    """Closed form: W + s B A, with a soft prompt beside it."""
    pair = tiny_pair(kind)
    lora = TextLora("birds", pair.adapter.text_lora, 0.7)
    encoders = [n for n in ("text_encoder", "text_encoder_2") if getattr(pair.backbone.pipe, n, None)]
    soft = random_prompt({name: 16 for name in encoders})
    merged = Backbone.load(pair.folder, device="cpu", dtype="float32")
    for name, (a, b) in lora_modules(lora.tensors).items():
        encoder, _, module = name.partition(".")
        model = getattr(merged.pipe, encoder)
        inner = module if hasattr(model, "text_model") else module.removeprefix("text_model.")
        model.get_submodule(inner).weight.data += 0.7 * b @ a
    mine, expected = pair.backbone.encode_prompts([PROMPT], soft, lora), merged.encode_prompts([PROMPT], soft)
    torch.testing.assert_close(mine.embeds, expected.embeds, rtol=0, atol=1e-5)
    assert (mine.embeds - pair.backbone.encode_prompts([PROMPT], soft).embeds).abs().max() > SEEN
    if kind == "sdxl":
        assert mine.pooled is not None
        torch.testing.assert_close(mine.pooled, expected.pooled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("unconditional", ["adapter", "backbone"])
def test_the_negative_prompt_is_read_through_it_where_the_branch_is_its_own(
    sd1: Pair, unconditional: str
) -> None:
    """The two rows of one call, each against the UNet that it belongs to."""
    record = sd1.adapter.record.model_copy(update={"unconditional": unconditional})
    x_t, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor(500)
    composed = ComposedUNet(
        sd1.backbone, [replace(sd1.adapter, record=record)], router="uniform", guidance_scale=GUIDANCE
    )
    text = composed.encode(PROMPT, NEGATIVE)
    handed = torch.cat([text["negative_prompt_embeds"], text["prompt_embeds"]])
    eps = composed(torch.cat([x_t, x_t]), t, handed).sample
    composed.close()
    worded, against = sd1.stock.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)
    with torch.no_grad():
        conditional = sd1.stock.unet(x_t, t, worded).sample
        own = sd1.stock.unet(x_t, t, against).sample
        plain = sd1.backbone.unet(x_t, t, text["negative_prompt_embeds"]).sample
    assert_other(own, plain)
    assert_same(eps, torch.cat([own if unconditional == "adapter" else plain, conditional]))


def test_each_source_of_a_sum_reads_through_its_own(sd1: Pair) -> None:
    backbone = sd1.backbone
    cars = source(backbone, "cars", random_parts(backbone, 5))
    ships = made_ships(backbone)
    x_t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))

    def predict(*adapters: Adapter) -> Tensor:
        composed = ComposedUNet(backbone, adapters, router="uniform", guidance_scale=1.0)
        eps: Tensor = composed(x_t, torch.tensor(500), composed.encode(PROMPT)["prompt_embeds"]).sample
        composed.close()
        return eps

    alone = [predict(adapter) for adapter in (sd1.adapter, cars, ships)]
    assert_same(predict(sd1.adapter, cars, ships), torch.stack(alone).mean(0))
    for left, right in ((0, 1), (0, 2), (1, 2)):
        assert_other(alone[left], alone[right])


def made_ships(backbone: Backbone) -> Adapter:
    """A source that adapts the UNet alone."""
    lora = {k: t for k, t in random_parts(backbone, 9).items() if k.startswith("unet.")}
    return source(backbone, "ships", lora)


def test_a_lora_of_the_text_encoder_alone_takes_no_slot(sd1: Pair, tmp_path: Path) -> None:
    write_tensors(tmp_path / "words.safetensors", to_kohya(sd1.adapter.text_lora, "sd1"), {"format": "pt"})
    words = import_adapter(tmp_path / "words.safetensors", "words", sd1.backbone)
    save_adapter(words, tmp_path / "words")
    stock = Backbone.load(sd1.folder, device="cpu", dtype="float32").pipe
    bare = theirs(stock)
    stock.load_lora_weights(tmp_path / "words", weight_name=LORA)
    composed = ComposedUNet(sd1.backbone, [words], router="uniform")
    assert "words" not in sd1.backbone.engine.slots.sources()
    composed.close()
    mine = ours(sd1.backbone, load_adapter(tmp_path / "words"))
    assert_same(mine, theirs(stock))
    assert_other(mine, bare)


def test_leaving_encode_out_is_refused(sd1: Pair) -> None:
    composed = ComposedUNet(sd1.backbone, [sd1.adapter], router="uniform", guidance_scale=1.0)
    embeds = sd1.backbone.encode_prompts([PROMPT]).embeds
    with pytest.raises(BadInput, match=r"birds needs the prompt itself: call composed\.encode\(prompt\)"):
        composed(torch.zeros(1, 4, 8, 8), torch.tensor(500), embeds)
    composed.close()


def test_the_router_reads_the_plain_encoder(sd1: Pair) -> None:
    def weights(*adapters: Adapter) -> list[Tensor]:
        composed = ComposedUNet(sd1.backbone, adapters, router="prompt", guidance_scale=1.0)
        embeds = composed.encode(PROMPT)["prompt_embeds"]
        composed(torch.zeros(1, 4, 8, 8), torch.tensor(500), embeds)
        composed.close()
        return composed.weights

    plain = [made_ships(sd1.backbone), replace(made_ships(sd1.backbone), source="cars")]
    reading = [replace(plain[0], lora=sd1.adapter.lora), plain[1]]
    known = []
    for seed in (0, 1):
        prototypes = torch.randn(2, 16, generator=torch.Generator().manual_seed(seed))
        prototypes = nn.functional.normalize(prototypes, dim=1)
        known.append(replace(random_statistics(seed=seed), caption_prototypes=prototypes))
    sets = [
        [replace(a, statistics=s) for a, s in zip(adapters, known, strict=True)]
        for adapters in (plain, reading)
    ]
    assert torch.equal(weights(*sets[0])[0], weights(*sets[1])[0])


# Nobody else sees it.


@both_kinds
def test_the_text_encoders_are_the_same_after_any_use(tiny_pair: Callable[[str], Pair], kind: str) -> None:
    pair = tiny_pair(kind)
    encoders = [n for n in ("text_encoder", "text_encoder_2") if getattr(pair.backbone.pipe, n, None)]
    models = [getattr(pair.backbone.pipe, name) for name in encoders]
    before = [{n: t.clone() for n, t in model.state_dict().items()} for model in models]
    plain = pair.backbone.encode_prompts([PROMPT]).embeds
    hooks = [len(module._forward_hooks) for model in models for module in model.modules()]
    ours(pair.backbone, pair.adapter)
    assert torch.equal(pair.backbone.encode_prompts([PROMPT]).embeds, plain)
    for model, tensors in zip(models, before, strict=True):
        after = model.state_dict()
        assert after.keys() == tensors.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in tensors.items())
    assert [len(module._forward_hooks) for model in models for module in model.modules()] == hooks


def test_another_thread_encodes_plainly_meanwhile(sd1: Pair) -> None:
    """Even through the stock pipeline's own method, which knows no lock of ours."""
    pipe, found = sd1.backbone.pipe, []

    def encode() -> None:
        found.append(pipe.encode_prompt(PROMPT, "cpu", 1, False)[0])

    encode()
    with acting({"text_encoder": pipe.text_encoder}, TextLora("birds", sd1.adapter.text_lora)):
        other = threading.Thread(target=encode)
        other.start()
        other.join()
        encode()
    plain, in_the_other_thread, here = found
    assert torch.equal(in_the_other_thread, plain)
    assert_other(here, plain)


def test_threads_that_encode_for_several_sources_do_not_meet(sd1: Pair) -> None:
    backbone = sd1.backbone
    cars = source(backbone, "cars", random_parts(backbone, 5))
    jobs: list[tuple[dict[str, Tensor] | None, TextLora | None]] = [
        (None, None),
        (None, TextLora("birds", sd1.adapter.text_lora)),
        (random_prompt({"text_encoder": 16}), TextLora("cars", cars.text_lora)),
        (random_prompt({"text_encoder": 16}, tokens=2), None),
    ]
    expected = [backbone.encode_prompts([PROMPT], *job).embeds for job in jobs]
    wrong: list[int] = []

    def linger(*_: object) -> None:  # so that without a lock they would meet for certain
        time.sleep(0.01)

    def work(number: int) -> None:
        for _ in range(3):
            if not torch.equal(backbone.encode_prompts([PROMPT], *jobs[number]).embeds, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    slowed = backbone.pipe.text_encoder.register_forward_pre_hook(linger)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slowed.remove()
    assert not wrong
    assert torch.equal(backbone.encode_prompts([PROMPT]).embeds, expected[0])


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("text_encoder.text_model.encoder.layers.7.mlp.fc1", (32, 16), "is no layer of this backbone's text"),
        ("text_encoder_2.text_projection", (16, 16), "is no layer of this backbone's text encoders"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", (32, 9), "do not fit the weight"),
    ],
)
def test_one_that_does_not_fit_is_refused_and_leaves_nothing(
    sd1: Pair, name: str, shape: tuple[int, int], message: str
) -> None:
    lora = {key.removeprefix("unet."): tensor for key, tensor in random_lora({name: shape}).items()}
    other = source(sd1.backbone, "other", made_ships(sd1.backbone).lora | lora)
    with pytest.raises(AdapterMismatch, match=f"{message}.*other is of another architecture"):
        ComposedUNet(sd1.backbone, [other], router="uniform")
    assert not sd1.backbone.engine.slots.sources()


def test_top_k_is_given_once(sd1: Pair) -> None:
    with pytest.raises(BadInput, match="top_k is 2 beside levers"):
        ComposedUNet(sd1.backbone, [sd1.adapter], router="uniform", top_k=2, levers=Levers(cache_interval=2))
