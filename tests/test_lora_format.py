"""LoRA files of other tools: written by those tools where they are at hand, by their grammar where not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from made_adapter import random_lora
from torch import Tensor, nn

from promptcdm.errors import AdapterMismatch
from promptcdm.kohya_names import kohya_names
from promptcdm.lora_format import lora_modules, open_lora, read_lora, to_kohya
from promptcdm.tensorfile import read_tensors, write_tensors

SHAPES = {
    "conv_in": (8, 4, 3, 3),
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": (6, 4),
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0": (4, 6),
}
Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def _write(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    write_tensors(path, tensors, metadata)
    return path


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-6, msg=key)


def _names(key: str) -> tuple[str, str]:
    module, _, half = key.removeprefix("unet.").removesuffix(".weight").rpartition(".")
    return module, "down" if half == "lora_A" else "up"


def test_our_own_file_and_its_kohya_twin_are_the_same(tmp_path: Path) -> None:
    lora = random_lora(SHAPES)
    _same(read_lora(_write(tmp_path / "a.safetensors", lora), SHAPES), lora)
    _same(read_lora(_write(tmp_path / "b.safetensors", to_kohya(lora)), SHAPES), lora)


@pytest.mark.parametrize(("alpha", "scale"), [(1.0, 0.25), (4.0, 1.0), (8.0, 2.0), (None, 1.0)])
def test_kohya_alpha_is_folded_in(tmp_path: Path, alpha: float | None, scale: float) -> None:
    lora = random_lora(SHAPES, rank=4)
    kohya = {key: tensor.half() for key, tensor in to_kohya(lora).items() if "alpha" not in key}
    if alpha is not None:
        kohya |= {f"lora_unet_{name.replace('.', '_')}.alpha": torch.tensor(alpha) for name in SHAPES}
    read = read_lora(_write(tmp_path / "a.safetensors", kohya, ss_network_dim="4"), SHAPES)
    assert {tensor.dtype for tensor in read.values()} == {torch.float32}
    for key, tensor in lora.items():
        torch.testing.assert_close(read[key], tensor.half().float() * (scale if "lora_B" in key else 1))


def test_diffusers_new_and_old_names(tmp_path: Path) -> None:
    lora = random_lora(SHAPES)
    new = {f"unet.{m}.lora.{h}.weight": t for (m, h), t in ((_names(k), t) for k, t in lora.items())}
    _same(read_lora(_write(tmp_path / "new.safetensors", new), SHAPES), lora)
    attention = {name: shape for name, shape in SHAPES.items() if "attn1" in name}
    lora = random_lora(attention)
    for prefix in ("unet.", ""):
        old = {}
        for key, tensor in lora.items():
            module, half = _names(key)
            module = module.replace("attn1.", "attn1.processor.").replace("to_out.0", "to_out")
            old[f"{prefix}{module}_lora.{half}.weight"] = tensor
        _same(read_lora(_write(tmp_path / f"old{prefix}.safetensors", old), SHAPES), lora)


# Text encoders: names as in a CLIP with one layer, as SDXL has two of.

TEXT = [
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    "text_encoder.text_model.encoder.layers.0.self_attn.out_proj",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1",
    "text_encoder_2.text_model.encoder.layers.0.mlp.fc2",
    "text_encoder_2.text_projection",
]


def _text_lora(names: Sequence[str] = TEXT, rank: int = 2) -> dict[str, Tensor]:
    drawn = random_lora({name: (6, 4) for name in names}, rank=rank)
    return {key.removeprefix("unet."): tensor for key, tensor in drawn.items()}


def _renamed(lora: Mapping[str, Tensor], rename: Callable[[str, str], str]) -> dict[str, Tensor]:
    """The keys that `rename(name of the layer, "down" or "up")` gives."""
    return {rename(*_names(key)): tensor for key, tensor in lora.items()}


def test_a_text_encoders_lora_stands_beside_the_unets(tmp_path: Path) -> None:
    lora = random_lora(SHAPES) | _text_lora()
    _same(read_lora(_write(tmp_path / "a.safetensors", lora), SHAPES, TEXT), lora)
    kohya = to_kohya(lora)
    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in kohya
    assert "lora_te2_text_projection.alpha" in kohya
    _same(read_lora(_write(tmp_path / "b.safetensors", kohya), SHAPES, TEXT), lora)


@pytest.mark.parametrize(("architecture", "prefix"), [("sd1", "lora_te_"), ("sdxl", "lora_te1_")])
def test_kohya_numbers_text_encoders_where_there_are_two(architecture: str, prefix: str) -> None:
    assert all(key.startswith(prefix) for key in to_kohya(_text_lora(TEXT[:2]), architecture))


def test_every_spelling_of_a_text_encoders_layers_is_read(tmp_path: Path) -> None:
    older = {"q_proj_": "to_q_", "out_proj_": "to_out_"}

    def old(name: str, half: str) -> str:
        key = (
            f"{name}_lora.{half}.weight" if "self_attn" in name else f"{name}.lora_linear_layer.{half}.weight"
        )
        for new, before in older.items():
            key = key.replace(new, before)
        return key

    def without_model(name: str, half: str) -> str:
        return f"{name.replace('text_model.', '')}.lora_{'A' if half == 'down' else 'B'}.weight"

    def kohya(name: str, half: str) -> str:
        encoder, _, module = name.partition(".")
        return f"lora_te{2 if encoder.endswith('2') else ''}_{module.replace('.', '_')}.lora_{half}.weight"

    lora = _text_lora()
    spellings: dict[str, Callable[[str, str], str]] = {
        "old": old,
        "linear": lambda name, half: f"{name}.lora_linear_layer.{half}.weight",
        "new": lambda name, half: f"{name}.lora.{half}.weight",
        "without": without_model,
        "kohya": kohya,
    }
    for title, rename in spellings.items():
        file = _write(tmp_path / f"{title}.safetensors", _renamed(lora, rename))
        _same(read_lora(file, SHAPES, TEXT), lora)


def test_alpha_of_a_text_encoder_is_its_own(tmp_path: Path) -> None:
    lora, name = random_lora(SHAPES) | _text_lora(TEXT[:1]), TEXT[0]
    header = {"unet.lora_alpha": 2, "text_encoder.lora_alpha": 6}
    header |= {"text_encoder_2.use_dora": True}  # of a part that is not in the file
    file = _write(tmp_path / "a.safetensors", lora, lora_adapter_metadata=json.dumps(header))
    read = read_lora(file, SHAPES, TEXT)
    torch.testing.assert_close(read[f"{name}.lora_B.weight"], 3 * lora[f"{name}.lora_B.weight"])
    torch.testing.assert_close(read["unet.conv_in.lora_B.weight"], lora["unet.conv_in.lora_B.weight"])
    # PEFT's patterns name the layers of the model at hand, which may have no `text_model`.
    header["text_encoder.alpha_pattern"] = {"^encoder.layers.0.self_attn.q_proj": 4}  # type: ignore[assignment]
    file = _write(tmp_path / "b.safetensors", lora, lora_adapter_metadata=json.dumps(header))
    read = read_lora(file, SHAPES, TEXT)
    torch.testing.assert_close(read[f"{name}.lora_B.weight"], 2 * lora[f"{name}.lora_B.weight"])
    kohya = to_kohya(lora, "sd1")
    kohya["lora_te_text_model_encoder_layers_0_self_attn_q_proj.alpha"] = torch.tensor(1.0)
    read = read_lora(_write(tmp_path / "c.safetensors", kohya), SHAPES, TEXT)
    torch.testing.assert_close(read[f"{name}.lora_B.weight"], lora[f"{name}.lora_B.weight"] / 2)


@pytest.mark.parametrize(
    "key", ["text_encoder.encoder.layers.0.mlp.fc1", "text_encoder_3.text_model.x", "te.x"]
)
def test_our_own_files_have_one_spelling(key: str) -> None:
    with pytest.raises(AdapterMismatch, match=r"is not unet\.<module>.*nor of a text encoder"):
        lora_modules({f"{key}.lora_A.weight": torch.ones(2, 4), f"{key}.lora_B.weight": torch.ones(6, 2)})


# Files that the other tools write themselves.


def _adapted_unet(folder: Path, **config: Any) -> tuple[Any, Any, dict[str, tuple[int, ...]]]:
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    kinds = (nn.Linear, nn.Conv2d)
    shapes = {name: tuple(m.weight.shape) for name, m in unet.named_modules() if isinstance(m, kinds)}
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "conv1", "conv_in"]
    return unet, LoraConfig(target_modules=targets, **config), shapes


def _randomise(unet: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    for name, parameter in unet.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.3, generator=generator)


def _deltas(unet: nn.Module) -> dict[str, Tensor]:
    """What PEFT itself adds to each weight."""
    from peft.tuners.lora import LoraLayer

    layers = {
        n.removeprefix("base_model.model."): m for n, m in unet.named_modules() if isinstance(m, LoraLayer)
    }
    return {n: m.get_delta_weight(m.active_adapters[0]).detach() for n, m in layers.items()}


def _ours(lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    modules = {_names(key)[0] for key in lora}
    parts = {m: (lora[f"unet.{m}.lora_A.weight"], lora[f"unet.{m}.lora_B.weight"]) for m in modules}
    return {m: torch.einsum("or,ri...->oi...", b.flatten(1), a) for m, (a, b) in parts.items()}


@pytest.mark.parametrize(
    "config",
    [
        {"r": 4, "lora_alpha": 4},
        {"r": 4, "lora_alpha": 1},
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {"r": 4, "lora_alpha": 8, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 3, "attn1.to_k": 5}},
    ],
)
@pytest.mark.parametrize("tool", ["diffusers", "peft"])
def test_strength_is_that_of_the_tool_that_wrote_the_file(
    tiny_sd1: Path, tmp_path: Path, tool: str, config: dict[str, Any]
) -> None:
    from diffusers import StableDiffusionPipeline
    from peft import get_peft_model, get_peft_model_state_dict

    unet, lora_config, shapes = _adapted_unet(tiny_sd1, **config)
    if tool == "diffusers":
        unet.add_adapter(lora_config)
        _randomise(unet)
        StableDiffusionPipeline.save_lora_weights(
            tmp_path,
            unet_lora_layers=get_peft_model_state_dict(unet),
            unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        )
        file = tmp_path / "pytorch_lora_weights.safetensors"
    else:
        unet = get_peft_model(unet, lora_config)
        _randomise(unet)
        unet.save_pretrained(tmp_path)
        file = tmp_path / "adapter_model.safetensors"
    expected = _deltas(unet)
    assert len(expected) > 20
    _same(_ours(read_lora(file, shapes)), expected)


def test_diffusers_own_kohya_and_diffusers_converters(tiny_sd1: Path, tmp_path: Path) -> None:
    from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya
    from peft import get_peft_model_state_dict

    unet, config, shapes = _adapted_unet(tiny_sd1, r=4, lora_alpha=4)
    unet.add_adapter(config)
    _randomise(unet)
    state = {f"unet.{key}": tensor for key, tensor in get_peft_model_state_dict(unet).items()}
    for name, tensors in (
        ("kohya", convert_state_dict_to_kohya({f"base_model.model.{k}": t for k, t in state.items()})),
        ("diffusers", convert_state_dict_to_diffusers(state)),
    ):
        if name == "kohya":
            tensors = {f"lora_unet_{k.split('unet_', 1)[-1]}": t for k, t in tensors.items()}
        file = _write(tmp_path / f"{name}.safetensors", {k: t.contiguous() for k, t in tensors.items()})
        _same(_ours(read_lora(file, shapes)), _deltas(unet))


def _sdxl_like() -> nn.Module:
    """A UNet with the blocks of SDXL (and one more transformer block), without weights."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: nn.Module = UNet2DConditionModel(
            block_out_channels=(8, 8, 8),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 3),
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=8,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=32,
        )
    return unet


def test_names_of_the_original_sdxl_code() -> None:
    from diffusers import StableDiffusionXLPipeline

    unet = _sdxl_like()
    kinds = (nn.Linear, nn.Conv2d)
    modules = [name for name, module in unet.named_modules() if isinstance(module, kinds)]
    names = kohya_names(modules)
    facts = {
        "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
        "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks_4_1_transformer_blocks_1_attn1_to_q": (
            "down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_q"
        ),
        "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
        "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
        "middle_block_2_emb_layers_1": "mid_block.resnets.1.time_emb_proj",
        "output_blocks_2_1_proj_out": "up_blocks.0.attentions.2.proj_out",
        "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks_5_2_conv": "up_blocks.1.upsamplers.0.conv",
        "output_blocks_8_0_out_layers_3": "up_blocks.2.resnets.2.conv2",
        "label_emb_0_2": "add_embedding.linear_2",
    }
    facts = {key: value for key, value in facts.items() if value in modules}
    assert facts.items() <= names.items()
    assert len(facts) >= 10
    # Every original name, resolved by diffusers: an independent opinion on the whole table.
    originals = {joined: name for joined, name in names.items() if joined != name.replace(".", "_")}
    assert len(originals) > 100
    for joined, name in originals.items():
        key = f"lora_unet_{joined}"
        state = {f"{key}.lora_down.weight": torch.ones(1, 1), f"{key}.lora_up.weight": torch.ones(1, 1)}
        read, _ = StableDiffusionXLPipeline.lora_state_dict(state, unet_config=unet.config)  # type: ignore[attr-defined]
        theirs = {k.replace(".processor", "").replace("_lora.", ".lora.") for k in read}
        expected = name.replace("to_out.0", "to_out")
        assert any(k.startswith(f"unet.{expected}.lora") for k in theirs), (joined, name, theirs)


def test_names_of_the_original_sd1_code() -> None:
    """There the deepest blocks have no attention, and the upsampler its place."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(block_out_channels=(8, 8, 8, 8), norm_num_groups=4, cross_attention_dim=8)
    facts = {
        "output_blocks_2_1_conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks_5_2_conv": "up_blocks.1.upsamplers.0.conv",
        "output_blocks_3_1_proj_in": "up_blocks.1.attentions.0.proj_in",
        "input_blocks_9_0_op": "down_blocks.2.downsamplers.0.conv",
        "input_blocks_11_0_in_layers_2": "down_blocks.3.resnets.1.conv1",
        "middle_block_1_proj_out": "mid_block.attentions.0.proj_out",
        "time_embed_2": "time_embedding.linear_2",
        "out_2": "conv_out",
    }
    kinds = (nn.Linear, nn.Conv2d)
    modules = [name for name, module in unet.named_modules() if isinstance(module, kinds)]
    assert facts.items() <= kohya_names(modules).items()


def test_a_lora_with_the_original_names_is_read(tmp_path: Path) -> None:
    unet = _sdxl_like()
    kinds = (nn.Linear, nn.Conv2d)
    shapes = {name: tuple(m.weight.shape) for name, m in unet.named_modules() if isinstance(m, kinds)}
    lora = random_lora(shapes)
    joined = {
        name: text for text, name in sorted(kohya_names(shapes).items(), key=lambda pair: pair[0] < "m")
    }
    original = {}
    for key, tensor in lora.items():
        module, half = _names(key)
        original[f"lora_unet_{joined[module]}.lora_{half}.weight"] = tensor
    assert any("input_blocks_4_1" in key for key in original)
    _same(read_lora(_write(tmp_path / "a.safetensors", original), shapes), lora)


def test_one_joined_name_for_two_layers_is_refused() -> None:
    with pytest.raises(AdapterMismatch, match=r"a_b could be a\.b or a_b of this UNet"):
        kohya_names(["a.b", "a_b"])
    with pytest.raises(AdapterMismatch, match="two modules would be lora_unet_a_b"):
        to_kohya(random_lora({"a.b": (2, 2), "a_b": (2, 2)}))


# What is refused, by name.


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_unet_conv_in.hada_w1_a", "is of a LoHa, which is not supported"),
        ("lora_unet_conv_in.lokr_w1", "is of a LoKr"),
        ("lora_unet_conv_in.dora_scale", "is of a DoRA"),
        ("unet.conv_in.lora_magnitude_vector", "is of a DoRA"),
        ("lora_unet_conv_in.lora_mid.weight", "is of a Tucker-decomposed LoRA"),
        ("lora_unet_conv_in.diff", "is of a full weight difference"),
        ("bundle_emb.x.string_to_param", "is of a bundled embedding"),
        ("unet.conv_in.lora_B.bias", "is of a LoRA with a bias"),
        ("conv_in.weight", "conv_in.weight is no key of a LoRA"),
        ("lora_unet_conv_in.lora_up.weight", "two keys give B of unet.conv_in"),
        (
            "lora_unet_conv_out.lora_up.weight",
            "1 of 7 keys name no layer of this backbone, such as lora_unet_conv_out",
        ),
        ("unet.conv_in\x1b[31m.lora_A.weight", r"such as unet.conv_in\?\[31m.lora_A.weight"),
    ],
)
def test_unknown_kinds_and_keys(tmp_path: Path, key: str, message: str) -> None:
    file = _write(tmp_path / "a.safetensors", random_lora(SHAPES) | {key: torch.ones(2, 2)})
    with pytest.raises(AdapterMismatch, match=message):
        read_lora(file, SHAPES)


def test_text_encoder_keys_that_name_no_layer_are_refused_or_left_out(tmp_path: Path) -> None:
    text = {
        "lora_te_text_model_encoder_layers_0_mlp_fc3.lora_down.weight": torch.ones(2, 2),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 2),
        "text_encoder_2.x.lora_linear_layer.up.weight": torch.ones(2, 2),
    }
    lora = random_lora(SHAPES)
    file = _write(tmp_path / "a.safetensors", lora | text)
    expected = (
        r"2 of 9 keys name no layer of this backbone, such as lora_te_.*fc3.*; --unet-only imports the rest"
    )
    with pytest.raises(AdapterMismatch, match=expected):
        read_lora(file, SHAPES, ["text_encoder.text_model.encoder.layers.0.self_attn.q_proj"])
    other = _write(tmp_path / "b.safetensors", lora | {"lora_te1_x.hada_w1_a": torch.ones(2, 2)})
    with pytest.raises(AdapterMismatch, match="is of a LoHa"):
        read_lora(other, SHAPES)
    for path, keys in ((file, set(text)), (other, {"lora_te1_x.hada_w1_a"})):
        read = open_lora(path, SHAPES, unet_only=True)
        _same(read.lora, lora)
        assert set(read.left_out) == keys


def test_a_half_or_an_alpha_alone_is_refused(tmp_path: Path) -> None:
    for key in ("lora_down.weight", "alpha"):
        tensors = {f"lora_unet_conv_in.{key}": torch.ones(2, 2)}
        with pytest.raises(AdapterMismatch, match=r"unet\.conv_in has only (A|alpha) of its LoRA"):
            read_lora(_write(tmp_path / "a.safetensors", tensors), SHAPES)
    with pytest.raises(AdapterMismatch, match="adapts no layer of this backbone"):
        read_lora(_write(tmp_path / "a.safetensors", {}, format="pt"), SHAPES)


@pytest.mark.parametrize("alpha", [torch.tensor(float("nan")), torch.tensor(float("inf")), torch.ones(2)])
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, alpha: Tensor) -> None:
    kohya = to_kohya(random_lora(SHAPES)) | {"lora_unet_conv_in.alpha": alpha}
    with pytest.raises(AdapterMismatch, match="alpha of conv_in must be one finite number"):
        read_lora(_write(tmp_path / "a.safetensors", kohya), SHAPES)


def test_nan_is_refused(tmp_path: Path) -> None:
    lora = random_lora(SHAPES)
    lora[f"unet.{Q}.lora_A.weight"][0, 0] = math.nan
    with pytest.raises(
        AdapterMismatch, match=r"a\.safetensors: LoRA of unet\.mid_block.*to_q holds NaN or infinity"
    ):
        read_lora(_write(tmp_path / "a.safetensors", lora), SHAPES)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must be a JSON object"),
        ('{"unet.use_dora": true}', "a DoRA, which is not supported"),
        ('{"unet.lora_alpha": "8"}', "must be one finite number"),
        ('{"unet.lora_alpha": true}', "must be one finite number"),
        ('{"unet.alpha_pattern": {"(a+)+$": 1}}', "alpha_pattern must map names of layers"),
    ],
)
def test_a_header_that_cannot_be_followed_is_refused(tmp_path: Path, header: str, message: str) -> None:
    file = _write(tmp_path / "a.safetensors", random_lora(SHAPES), lora_adapter_metadata=header)
    with pytest.raises(AdapterMismatch, match=message):
        read_lora(file, SHAPES)


def test_alpha_given_twice_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"unet.lora_alpha": 8})
    file = _write(tmp_path / "a.safetensors", to_kohya(random_lora(SHAPES)), lora_adapter_metadata=header)
    with pytest.raises(AdapterMismatch, match="is given twice"):
        read_lora(file, SHAPES)


def test_peft_files_need_their_config(tmp_path: Path) -> None:
    file = _write(tmp_path / "adapter_model.safetensors", random_lora(SHAPES))
    with pytest.raises(AdapterMismatch, match=r"adapter_config\.json: no such file"):
        read_lora(file, SHAPES)
    for config, message in (
        ({"peft_type": "LOHA"}, "must be LORA"),
        ({"peft_type": "LORA"}, "r are missing"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(AdapterMismatch, match=message):
            read_lora(file, SHAPES)
    assert read_tensors(file)[0].keys() == random_lora(SHAPES).keys()
