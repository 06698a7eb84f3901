"""What a training learns beside the attention's LoRA: alpha, convolutions, text encoders; and what it keeps for it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from made_adapter import random_lora
from other_tools import a1111, comfyui
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from promptcdm import activations
from promptcdm.activations import Activations, measure_activations
from promptcdm.adapter import LORA, Adapter, load_adapter, save_adapter
from promptcdm.backbone import Backbone
from promptcdm.batch import OwnWords, draw_batch, weighted_errors
from promptcdm.composed_unet import ComposedUNet
from promptcdm.encoded_source import encode_source
from promptcdm.engine import Engine, Rows
from promptcdm.kohya_names import kohya_names
from promptcdm.learned import LORA_NAME, own_words, read_out, trainable
from promptcdm.lora import plain_layers, target_modules
from promptcdm.lora_format import lora_modules, to_kohya
from promptcdm.retrain import retrain
from promptcdm.settings import TrainSettings
from promptcdm.slots import SlotLora
from promptcdm.source import Source
from promptcdm.tensorfile import read_tensors
from promptcdm.text_lora import text_target_layers
from promptcdm.train import train_adapter
from promptcdm.train_plan import plan_training

FAST = TrainSettings(steps=4, batch_size=4, rank=2, mixed_precision="no")
# Large steps, so that what was learned shows.
SHOWS = replace(FAST, learning_rate=0.1, lr_scheduler="constant", lr_warmup=0.0)
ALL = replace(SHOWS, targets="conv", train_text_encoder=True, alpha=3.0, unconditional="adapter")
SEEN = 1e-2
each_kind = pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])


def bare(kind: str, tiny_pipeline: Callable[[str], Path]) -> Backbone:
    return Backbone.load(tiny_pipeline(kind), device="cpu", dtype="float32")


def forward(unet: Any, kind: str) -> Tensor:
    g = torch.Generator().manual_seed(3)
    x, text = (
        torch.randn(2, 4, 8, 8, generator=g),
        torch.randn(2, 7, unet.config.cross_attention_dim, generator=g),
    )
    added = None
    if kind == "sdxl":
        added = {"text_embeds": torch.randn(2, 16, generator=g), "time_ids": torch.ones(2, 6)}
    with torch.no_grad():
        sample: Tensor = unet(x, torch.tensor([500, 20]), text, added_cond_kwargs=added).sample
    return sample


# Alpha


def test_the_first_step_of_twice_the_alpha_moves_twice_as_far(birds: Source, backbone: Backbone) -> None:
    """AdamW's first step is the rate in the gradient's direction, whatever the strength; A has no gradient yet."""
    one = replace(SHOWS, steps=1, learning_rate=1e-3)
    plain, same, double = (train_adapter(birds, backbone, replace(one, alpha=a)) for a in (0.0, 2.0, 4.0))
    assert same.sha256 == plain.sha256, "alpha is the rank"
    assert double.record.settings["alpha"] == 4.0
    for name, tensor in plain.lora.items():
        factor = 2 if name.endswith("lora_B.weight") else 1
        whole = tensor.abs() > 0.999e-3  # where the gradient is far above AdamW's epsilon
        assert whole.float().mean() > 0.4
        torch.testing.assert_close(double.lora[name][whole], factor * tensor[whole], rtol=1e-2, atol=0)


@pytest.mark.parametrize("targets", ["attention", "wide", "conv"])
def test_what_is_read_out_acts_as_it_did_in_training(birds: Source, backbone: Backbone, targets: str) -> None:
    settings = replace(FAST, targets=targets, alpha=5.0)
    plain = forward(backbone.unet, "sd1")
    with trainable(backbone, settings, "digest") as parameters:
        for n, parameter in enumerate(parameters.values()):
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(n))
        expected, tensors = forward(backbone.unet, "sd1"), read_out(parameters, backbone, settings)
    assert (expected - plain).abs().max() > SEEN
    engine, birds_lora = Engine(backbone.unet), SlotLora("birds", tensors)
    g = torch.Generator().manual_seed(3)
    x, text = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 7, 16, generator=g)
    eps = engine.predict(Rows(x, torch.tensor([500.0, 20.0]), text, (birds_lora, birds_lora)))[0]
    engine.slots.close()
    torch.testing.assert_close(eps, expected, rtol=0, atol=1e-5)


# Convolutions


@each_kind
def test_targets_name_these_layers_and_each_choice_holds_the_one_before(
    tiny_pipeline: Callable[[str], Path], kind: str
) -> None:
    unet = bare(kind, tiny_pipeline).unet
    attention, wide, conv = (set(target_modules(unet, t)) for t in ("attention", "wide", "conv"))
    assert attention < wide < conv
    ends = {name.rpartition(".")[2] for name in conv - wide}
    assert ends == {"conv1", "conv2", "conv_shortcut"}
    assert {name.rpartition(".")[2] for name in wide} == {
        "to_q",
        "to_k",
        "to_v",
        "0",
        "proj",
        "2",
        "proj_in",
        "proj_out",
    }


# Text encoders


@each_kind
@pytest.mark.parametrize("soft", [False, True])
def test_the_gradient_is_that_of_the_merged_weight(
    tiny_pipeline: Callable[[str], Path], birds: Source, kind: str, soft: bool
) -> None:
    """dL/dB = s dL/dW A^T and dL/dA = s B^T dL/dW, with W + s B A in the weight's place."""
    backbone = bare(kind, tiny_pipeline)
    settings = replace(ALL, kind="lora+prompt" if soft else "lora", caption_dropout=0.5)
    data = encode_source(birds, backbone, settings, "")
    assert len(data.embeds) == 1, "no caption is kept"
    batch = draw_batch(data, backbone, settings, 4, torch.Generator().manual_seed(2))
    assert 0 < int(batch.drop.sum()) < 4
    s, layers = 1.5, text_target_layers(backbone.text_encoders, "conv")
    with trainable(backbone, settings, "digest") as parameters:
        for n, parameter in enumerate(p for name, p in parameters.items() if name.startswith("text.")):
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(n))
        words = own_words(parameters, backbone, settings)
        loss = weighted_errors(words, batch, data, backbone, settings).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        pairs = {n: (parameters[f"text.{n}.lora_A"], parameters[f"text.{n}.lora_B"]) for n in layers}
        for name, (a, b) in pairs.items():
            weight = layers[name].get_parameter("weight")
            weight.data += s * b.data @ a.data
            weight.requires_grad_()
        # The empty caption of the dropped rows goes through the same weights.
        with torch.enable_grad():
            empty = backbone.encode_negative("", 1)
            again = replace(data, embeds=empty.embeds, pooled=empty.pooled)
            texts = backbone.encode_prompts([data.captions[int(i)] for i in batch.items], words.soft)
            kept = ~batch.drop
            embeds = torch.where(kept[:, None, None], texts.embeds, empty.embeds)
            pooled = None
            if texts.pooled is not None and empty.pooled is not None:
                pooled = torch.where(kept[:, None], texts.pooled, empty.pooled)
            own = replace(
                again,
                embeds=embeds,
                pooled=pooled,
                caption_of=torch.full_like(data.caption_of, 0),
            )
            rows = [
                weighted_errors(
                    OwnWords(),
                    replace(batch.part(slice(i, i + 1)), drop=torch.zeros(1, dtype=torch.bool)),
                    replace(
                        own, embeds=embeds[i : i + 1], pooled=None if pooled is None else pooled[i : i + 1]
                    ),
                    backbone,
                    settings,
                )
                for i in range(4)
            ]
            merged = torch.cat(rows).mean()
            merged.backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(loss, merged, rtol=1e-5, atol=1e-6)
        for name, (a, b) in pairs.items():
            gradient = layers[name].get_parameter("weight").grad
            assert a.grad is not None and b.grad is not None and gradient is not None
            assert gradient.abs().max() > 0, "every layer that is trained is read"
            torch.testing.assert_close(b.grad, s * gradient @ a.data.T, rtol=1e-3, atol=1e-7)
            torch.testing.assert_close(a.grad, s * b.data.T @ gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_layers_of_the_text_encoders(tiny_pipeline: Callable[[str], Path], kind: str) -> None:
    encoders = bare(kind, tiny_pipeline).text_encoders
    attention, wide = (text_target_layers(encoders, t) for t in ("attention", "wide"))
    blocks = 2 if kind == "sd1" else 3  # of SDXL's first encoder the last block is not read
    assert (len(attention), len(wide)) == (4 * blocks, 6 * blocks)
    assert text_target_layers(encoders, "conv") == wide
    assert ("text_encoder.text_model.encoder.layers.1.self_attn.q_proj" in wide) == (kind == "sd1")


def drawn(pipe: Any, **text: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    g = torch.Generator().manual_seed(1)
    latents: Tensor = pipe(**text, num_inference_steps=2, generator=g, output_type="latent").images
    return latents


def composed(backbone: Backbone, adapter: Adapter) -> Tensor:
    checker = {"requires_safety_checker": False} if "requires_safety_checker" in backbone.pipe.config else {}
    pipe = type(backbone.pipe)(**backbone.pipe.components | checker)
    pipe.unet = unet = ComposedUNet(backbone, [adapter], router="uniform", guidance_scale=3.0)
    try:
        return drawn(pipe, **unet.encode("a red square"))
    finally:
        unet.close()


@each_kind
def test_both_files_of_a_training_are_read_whole_by_stock_diffusers_and_comfyui(
    tiny_pipeline: Callable[[str], Path], birds: Source, tmp_path: Path, kind: str
) -> None:
    backbone = bare(kind, tiny_pipeline)
    save_adapter(train_adapter(birds, backbone, ALL), tmp_path / "store" / "birds")
    adapter = load_adapter(tmp_path / "store" / "birds")
    pairs = lora_modules(adapter.lora)
    assert {"text_encoder", "unet"} <= {name.partition(".")[0] for name in pairs}
    expected = composed(backbone, adapter)
    unet_alone = replace(adapter, lora=adapter.unet_lora)
    assert (expected - drawn(backbone.pipe, prompt="a red square", guidance_scale=3.0)).abs().max() > SEEN, (
        "it shows"
    )
    assert (expected - composed(backbone, unet_alone)).abs().max() > SEEN, "the words show"

    merged = bare(kind, tiny_pipeline)
    wanted = _merged_forward(merged, adapter, pairs, kind)
    for file in (LORA, "birds.safetensors"):
        stock = bare(kind, tiny_pipeline)
        stock.pipe.load_lora_weights(tmp_path / "store" / "birds", weight_name=file)
        loaded = sum(
            isinstance(module, BaseTunerLayer)
            for model in (stock.pipe.unet, *stock.text_encoders.values())
            for module in model.modules()
        )
        assert loaded == len(pairs)
        assert (forward(stock.pipe.unet, kind) - wanted).abs().max() <= 1e-5
        torch.testing.assert_close(
            drawn(stock.pipe, prompt="a red square", guidance_scale=3.0), expected, rtol=0, atol=1e-4
        )

    tensors, _ = read_tensors(tmp_path / "store" / "birds" / "birds.safetensors")
    spellings = kohya_names(backbone.module_shapes)
    originals = {joined: name for joined, name in spellings.items() if joined != name.replace(".", "_")}
    read = _read_by(comfyui(originals, backbone.text_module_shapes), tensors)
    assert read.keys() == pairs.keys()
    for name, (a, b) in read.items():
        torch.testing.assert_close(_product(a, b), _product(*pairs[name]), rtol=0, atol=1e-6)


SD1 = {"block_out_channels": (8, 8, 8, 8), "cross_attention_dim": 8}
SDXL = {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 3),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 32,
}


@pytest.mark.parametrize("tool", [comfyui, a1111])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_every_key_of_these_blocks_is_known_to_the_tool(tool: Any, kind: str) -> None:
    """Blocks of the real models, three layers each, by which A1111 counts."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            norm_num_groups=4, attention_head_dim=4, **(SD1 if kind == "sd1" else SDXL)
        )
    layers = plain_layers(unet)
    text = [
        f"{encoder}.text_model.encoder.layers.{n}.{layer}"
        for encoder in ("text_encoder", "text_encoder_2")[: 1 if kind == "sd1" else 2]
        for n in range(12)
        for layer in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
    ]
    spellings = kohya_names(layers)
    originals = {joined: name for joined, name in spellings.items() if joined != name.replace(".", "_")}
    assert len(originals) == len(layers), "each layer has another name there"
    shapes = {name: (2, 2) for name in target_modules(unet, "conv")}
    keys = random_lora(shapes) | {
        k.removeprefix("unet."): t for k, t in random_lora(dict.fromkeys(text, (2, 2))).items()
    }
    bases = {key.partition(".")[0] for key in to_kohya(keys, kind)}
    found = [tool(originals, text)(base) for base in sorted(bases)]
    assert set(found) == set(lora_modules(keys)) and len(found) == len(set(found)) > 150


def _product(a: Tensor, b: Tensor) -> Tensor:
    return b.flatten(1) @ a.flatten(1)


def _read_by(
    find: Callable[[str], str | None], tensors: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """What a tool applies: alpha / r B A for each layer that it finds; a key that it does not is None's."""
    read: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        base, _, half = key.partition(".")
        read.setdefault(str(find(base)), {})[half] = tensor
    return {
        name: (
            part["lora_down.weight"],
            part["lora_up.weight"] * part["alpha"] / len(part["lora_down.weight"]),
        )
        for name, part in read.items()
    }


def _merged_forward(backbone: Backbone, adapter: Adapter, pairs: dict[str, Any], kind: str) -> Tensor:
    for name, (a, b) in pairs.items():
        part, _, module = name.partition(".")
        if part == "unet":
            weight = backbone.unet.get_submodule(module).weight
            weight.data += _product(a, b).view_as(weight)
    return forward(backbone.unet, kind)


def test_nothing_of_it_stays_in_the_text_encoder(birds: Source, backbone: Backbone) -> None:
    encoder = backbone.pipe.text_encoder
    backbone.encode_prompts(["a bird"])  # transformers puts in hooks of its own
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    hooks = [len(module._forward_hooks) for module in encoder.modules()]
    train_adapter(birds, backbone, ALL)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert [len(module._forward_hooks) for module in encoder.modules()] == hooks
    assert not any(p.requires_grad or p.grad is not None for p in encoder.parameters())


def test_the_router_knows_the_same_of_it_as_without(birds: Source, backbone: Backbone) -> None:
    with_text, without = (
        train_adapter(birds, backbone, replace(FAST, train_text_encoder=t)) for t in (True, False)
    )
    assert with_text.statistics is not None and without.statistics is not None
    for name, tensor in without.statistics.tensors().items():
        assert torch.equal(with_text.statistics.tensors()[name], tensor), name


def test_it_is_trained_again_from_its_record(birds: Source, backbone: Backbone) -> None:
    adapter = train_adapter(birds, backbone, ALL)
    assert retrain(adapter, birds, backbone).same
    older = {**adapter.record.settings, "gradient_checkpointing": True}
    record = adapter.record.model_copy(update={"settings": older})
    assert retrain(replace(adapter, record=record), birds, backbone).same, "how older records say it"


# What is kept for the backward


def test_a_probe_of_two_rows_foretells_what_a_batch_keeps(birds: Source, backbone: Backbone) -> None:
    settings = replace(FAST, kind="lora+prompt", train_text_encoder=True, batch_size=6)
    data = encode_source(birds, backbone, settings, "")
    with trainable(backbone, settings, "digest") as parameters:
        words = own_words(parameters, backbone, settings)
        told = measure_activations(words, data, backbone, settings).needed
        counted = activations._kept(words, data, backbone, settings, 6)
        bound = measure_activations(words, data, backbone, settings, bound=True).needed
    assert told == pytest.approx(counted, rel=0.02)
    assert told > 1e5
    assert told <= bound < 1.5 * told


def test_where_the_bound_does_not_fit_two_rows_are_asked(
    birds: Source, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(FAST, mixed_precision="bf16", batch_size=6)  # turned weights are counted once a batch
    data = encode_source(birds, backbone, settings, "")
    with trainable(backbone, settings, "digest") as parameters:
        words = own_words(parameters, backbone, settings)
        exact, bound = (measure_activations(words, data, backbone, settings, b).needed for b in (False, True))
        assert exact < bound
        monkeypatch.setattr(activations, "free_memory", lambda device: int(1.01 * exact / activations.SHARE))
        found = measure_activations(words, data, backbone, settings, bound=True)
    assert found.needed == exact and found.fit


def test_a_probe_leaves_nothing_in_memory(birds: Source, backbone: Backbone) -> None:
    data = encode_source(birds, backbone, FAST, "")

    def held() -> int:
        gc.collect()
        return sum(type(found) in (torch.Tensor, nn.Parameter) for found in gc.get_objects())

    with trainable(backbone, FAST, "digest") as parameters:
        words = own_words(parameters, backbone, FAST)
        before = held()
        assert measure_activations(words, data, backbone, FAST).needed > 1e5
        assert held() == before


def test_little_memory_turns_checkpointing_on_and_changes_no_byte(
    birds: Source, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    plenty = train_adapter(birds, backbone, FAST)
    assert "gradient_checkpointing" not in plenty.train_log[0]
    assert plan_training(birds, backbone, FAST).checkpointing is False
    monkeypatch.setattr(activations, "free_memory", lambda device: 1000)
    plan = plan_training(birds, backbone, FAST)
    assert plan.checkpointing and "activations are computed again" in plan.text()
    assert "encoded captions" in plan.text()
    little = train_adapter(birds, backbone, FAST)
    assert little.train_log[0]["gradient_checkpointing"] is True
    assert little.sha256 == plenty.sha256 and little.record == plenty.record
    assert retrain(plenty, birds, backbone).same, "the log's other lines are the same"
    assert not train_adapter(birds, backbone, replace(FAST, gradient_checkpointing="off")).train_log[
        0
    ].keys() & {"gradient_checkpointing"}
    text = plan_training(birds, backbone, replace(FAST, train_text_encoder=True)).text()
    assert "captions are encoded anew at each step" in text


def test_what_fits() -> None:
    assert Activations(70, 100).fit and not Activations(71, 100).fit
    assert Activations(10**12, 0).fit, "nothing is known of the memory"
    assert activations.free_memory(torch.device("cpu")) > 1e6 or not activations._MEMINFO.exists()


@pytest.mark.parametrize("first", ["off", "on"])
def test_a_checkpoint_is_gone_on_from_with_checkpointing_or_without(
    birds: Source, backbone: Backbone, tmp_path: Path, first: str
) -> None:
    class Stopped(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 2:
            raise Stopped

    settings = replace(FAST, checkpoint_every=1)
    place = tmp_path / "birds.partial"
    with pytest.raises(Stopped):
        train_adapter(
            birds, backbone, replace(settings, gradient_checkpointing=first), checkpoint=place, on_step=stop
        )
    other = {"off": "on", "on": "off"}[first]
    resumed = train_adapter(
        birds, backbone, replace(settings, gradient_checkpointing=other), checkpoint=place
    )
    assert resumed.sha256 == train_adapter(birds, backbone, settings).sha256
    assert LORA_NAME not in str(list(backbone.unet.state_dict()))
