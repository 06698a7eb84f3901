"""A checkpoint in one file, as Stable Diffusion was published, and a hub id: offline, the backbone of the folder.

The original layout is written here by renaming; diffusers reads it back. That the digest is the folder's shows that no
tensor was lost, changed places or changed its shape on the way.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import WIDTH
from made_adapter import made_adapter, random_lora
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from promptcdm.adapter_record import BackboneRecord
from promptcdm.backbone import Backbone
from promptcdm.errors import BadInput
from promptcdm.generate import generate
from promptcdm.lora import target_modules
from promptcdm.settings import GenerateSettings
from promptcdm.store import AdapterStore
from promptcdm.tensorfile import read_tensors, write_tensors

Tensors = dict[str, Tensor]


def original_layout(pipe: Any) -> Tensors:
    """All weights of the pipeline under the names of the original code (ldm, and sgm for XL)."""
    xl = hasattr(pipe, "text_encoder_2")
    tensors = _prefixed("model.diffusion_model.", _original_unet(pipe.unet))
    tensors |= _prefixed("first_stage_model.", _original_vae(pipe.vae))
    text = {n.removeprefix("text_model."): t for n, t in pipe.text_encoder.state_dict().items()}
    if xl:
        tensors |= _prefixed("conditioner.embedders.0.transformer.text_model.", text)
        tensors |= _prefixed("conditioner.embedders.1.model.", _open_clip(pipe.text_encoder_2))
    elif pipe.scheduler.config.prediction_type == "v_prediction":
        tensors |= _prefixed("cond_stage_model.model.", _open_clip(pipe.text_encoder))
    else:
        tensors |= _prefixed("cond_stage_model.transformer.text_model.", text)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _renamed(name: str, rules: list[tuple[str, str | Callable[[re.Match[str]], str]]]) -> str:
    """The first rule that matches from the start renames the part it matches."""
    for pattern, new in rules:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", new, name)
    return name


def _original_unet(unet: Any) -> Tensors:
    """Blocks are numbered through: `input_blocks` down, `output_blocks` up, each with layers 0 (resnet), 1, 2."""
    per_block = unet.config.layers_per_block + 1
    with_attention = {
        i for i, block in enumerate(unet.config.up_block_types) if block.startswith("CrossAttn")
    }

    def down(layer: int, part: str) -> Callable[[re.Match[str]], str]:
        return lambda m: f"input_blocks.{1 + int(m[1]) * per_block + int(m[2])}.{layer}{part}"

    def down_sampler(m: re.Match[str]) -> str:
        return f"input_blocks.{(int(m[1]) + 1) * per_block}.0.op"

    def up(layer: int) -> Callable[[re.Match[str]], str]:
        return lambda m: f"output_blocks.{int(m[1]) * per_block + int(m[2])}.{layer}"

    def up_sampler(m: re.Match[str]) -> str:
        layer = 2 if int(m[1]) in with_attention else 1
        return f"output_blocks.{(int(m[1]) + 1) * per_block - 1}.{layer}.conv"

    rules: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r"time_embedding\.linear_1", "time_embed.0"),
        (r"time_embedding\.linear_2", "time_embed.2"),
        (r"add_embedding\.linear_1", "label_emb.0.0"),
        (r"add_embedding\.linear_2", "label_emb.0.2"),
        (r"conv_in", "input_blocks.0.0"),
        (r"conv_norm_out", "out.0"),
        (r"conv_out", "out.2"),
        (r"down_blocks\.(\d+)\.resnets\.(\d+)", down(0, "")),
        (r"down_blocks\.(\d+)\.attentions\.(\d+)", down(1, "")),
        (r"down_blocks\.(\d+)\.downsamplers\.0\.conv", down_sampler),
        (r"mid_block\.resnets\.(\d+)", lambda m: f"middle_block.{2 * int(m[1])}"),
        (r"mid_block\.attentions\.0", "middle_block.1"),
        (r"up_blocks\.(\d+)\.resnets\.(\d+)", up(0)),
        (r"up_blocks\.(\d+)\.attentions\.(\d+)", up(1)),
        (r"up_blocks\.(\d+)\.upsamplers\.0\.conv", up_sampler),
    ]
    inside = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
    }
    inside |= {"time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
    tensors = {}
    for name, tensor in unet.state_dict().items():
        new = _renamed(name, rules)
        if ".resnets." in name:
            part = name.split(".")[-2]
            new = new.replace(part, inside[part])
        tensors[new] = tensor
    return tensors


def _original_vae(vae: Any) -> Tensors:
    """The decoder's blocks are numbered from the last; attention is a 1x1 convolution."""
    last = len(vae.config.up_block_types) - 1
    rules: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
        (r"(en|de)coder\.conv_norm_out", r"\1coder.norm_out"),
        (r"encoder\.down_blocks\.(\d+)\.resnets", r"encoder.down.\1.block"),
        (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample"),
        (r"decoder\.up_blocks\.(\d+)\.resnets", lambda m: f"decoder.up.{last - int(m[1])}.block"),
        (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"decoder.up.{last - int(m[1])}.upsample"),
        (r"(en|de)coder\.mid_block\.resnets\.0", r"\1coder.mid.block_1"),
        (r"(en|de)coder\.mid_block\.resnets\.1", r"\1coder.mid.block_2"),
        (r"(en|de)coder\.mid_block\.attentions\.0", r"\1coder.mid.attn_1"),
    ]
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    tensors = {}
    for name, tensor in vae.state_dict().items():
        new = _renamed(name, rules).replace("conv_shortcut", "nin_shortcut")
        if ".attentions." in name:
            old = next(part for part in attention if f".{part}." in name)
            new = new.replace(f".{old}.", f".{attention[old]}.")
            if tensor.ndim == 2:
                tensor = tensor[:, :, None, None]
        tensors[new] = tensor
    return tensors


def _open_clip(encoder: nn.Module) -> Tensors:
    """OpenCLIP's text tower: query, key and value in one matrix, the projection transposed."""
    state = {n.removeprefix("text_model."): t for n, t in encoder.state_dict().items()}
    direct = {
        "embeddings.position_embedding.weight": "positional_embedding",
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    inside = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    inside["self_attn.out_proj"] = "attn.out_proj"
    tensors = {new: state[old] for old, new in direct.items()}
    if "text_projection.weight" in state:
        tensors["text_projection"] = state["text_projection.weight"].T
    for name, tensor in state.items():
        if not name.startswith("encoder.layers."):
            continue
        _, _, layer, *path, kind = name.split(".")
        block, part = f"transformer.resblocks.{layer}", ".".join(path)
        if part in inside:
            tensors[f"{block}.{inside[part]}.{kind}"] = tensor
        elif part == "self_attn.q_proj":
            three = [state[name.replace("q_proj", f"{which}_proj")] for which in "qkv"]
            tensors[f"{block}.attn.in_proj_{kind}"] = torch.cat(three)
    return tensors


def without_weights(folder: Path, target: Path) -> None:
    """Configuration and tokenizers alone: what the folder beside a single file holds."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    assert not list(target.rglob("*.safetensors"))


@pytest.fixture(scope="session")
def tiny_published(
    tiny_pipeline: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """Return a function (kind) -> (diffusers folder, checkpoint in one file with its configuration beside it)."""
    root = tmp_path_factory.mktemp("published")

    def published(kind: str) -> tuple[Path, Path]:
        folder = tiny_pipeline(kind) if kind != "sdxl" else _two_widths(tiny_pipeline(kind), root / "folder")
        file = root / kind / "model-v1.safetensors"
        if not file.exists():
            file.parent.mkdir()
            pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
            write_tensors(file, original_layout(pipe), {"format": "pt"})
            without_weights(folder, file.with_suffix(""))
        return folder, file

    return published


def _two_widths(folder: Path, target: Path) -> Path:
    """SDXL with text encoders of two widths, as the real one has: diffusers tells them apart by the width."""
    if target.exists():
        return target
    pipe = diffusers.StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    config = CLIPTextConfig(**pipe.text_encoder_2.config.to_dict() | {"hidden_size": 2 * WIDTH})
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config.projection_dim = 2 * WIDTH
        encoder = CLIPTextModelWithProjection(config)
        changes = {
            "cross_attention_dim": 3 * WIDTH,
            "projection_class_embeddings_input_dim": 2 * WIDTH + 6 * 4,
        }
        unet = diffusers.UNet2DConditionModel.from_config({**pipe.unet.config, **changes})
    parts = pipe.components | {"text_encoder_2": encoder, "unet": unet}
    diffusers.StableDiffusionXLPipeline(**parts).save_pretrained(target, safe_serialization=True)
    return target


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_single_file_is_the_backbone_of_its_folder(
    tiny_published: Callable[[str], tuple[Path, Path]], kind: str
) -> None:
    folder, file = tiny_published(kind)
    from_folder, from_file = (Backbone.load(path, device="cpu") for path in (folder, file))
    assert from_file.digest == from_folder.digest
    assert from_file.architecture == from_folder.architecture
    assert from_file.prediction_type == from_folder.prediction_type
    assert from_file.resolution == from_folder.resolution
    assert torch.equal(from_file.alphas_cumprod, from_folder.alphas_cumprod)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_an_adapter_of_the_folder_draws_the_same_on_the_single_file(
    tiny_published: Callable[[str], tuple[Path, Path]], tmp_path: Path, kind: str
) -> None:
    backbones = [Backbone.load(path, device="cpu") for path in tiny_published(kind)]
    first = backbones[0]
    shapes = {n: first.module_shapes[n] for n in target_modules(first.unet, "wide")}
    record = BackboneRecord(name=first.name, digest=first.digest, architecture=first.architecture)
    store = AdapterStore(tmp_path / "adapters")
    store.add(made_adapter("birds", lora=random_lora(shapes), trained=False, backbone=record))
    settings = GenerateSettings(num_inference_steps=2, router="uniform", guidance_scale=3.0)

    def picture(backbone: Backbone, *allowed: str) -> bytes:
        made = generate(["a bird"], allowed=allowed, backbone=backbone, store=store, settings=settings)
        return made.images[0].tobytes()

    from_folder, from_file = (picture(backbone, "birds") for backbone in backbones)
    # The same weights at other addresses: kernels may round the last bit otherwise.
    levels = [np.frombuffer(picture, np.uint8).astype(int) for picture in (from_file, from_folder)]
    assert np.abs(levels[0] - levels[1]).max() <= 1
    assert from_file != picture(first), "the adapter shows"


def test_one_changed_number_is_another_digest(
    tiny_published: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    folder, _ = tiny_published("sd1")
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    tensors = original_layout(pipe)
    tensors["first_stage_model.decoder.mid.attn_1.q.bias"] = torch.ones(16)
    write_tensors(tmp_path / "other.safetensors", tensors, {})
    without_weights(folder, tmp_path / "other")
    assert Backbone.load(tmp_path / "other.safetensors", device="cpu").digest != Backbone.load(folder).digest


def test_a_single_file_loads_in_half_precision_with_the_same_digest(
    tiny_published: Callable[[str], tuple[Path, Path]],
) -> None:
    folder, file = tiny_published("sd1")
    half = Backbone.load(file, device="cpu", dtype="bfloat16")
    assert half.dtype == torch.bfloat16
    assert half.digest == Backbone.load(folder, device="cpu").digest


def truncated(file: Path, target: Path) -> None:
    target.write_bytes(file.read_bytes()[:-1000])


def no_text_encoder(file: Path, target: Path) -> None:
    rewritten(file, target, lambda name: not name.startswith("cond_stage_model"))


def half_a_text_encoder(file: Path, target: Path) -> None:
    rewritten(file, target, lambda name: not name.startswith("cond_stage_model") or "layers.1" not in name)


def half_a_vae(file: Path, target: Path) -> None:
    rewritten(file, target, lambda name: not name.startswith("first_stage_model.decoder.mid"))


def half_a_unet(file: Path, target: Path) -> None:
    rewritten(file, target, lambda name: "input_blocks.1" not in name)


def another_model(file: Path, target: Path) -> None:
    write_tensors(target, {"some.weight": torch.ones(2)}, {})


def endless_header(file: Path, target: Path) -> None:
    target.write_bytes(b"\xff" * 8 + b"{}")


def empty(file: Path, target: Path) -> None:
    target.write_bytes(b"")


def pickled(file: Path, target: Path) -> None:
    target.write_bytes(b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94.")


def rewritten(file: Path, target: Path, keep: Callable[[str], bool]) -> None:
    write_tensors(target, {n: t for n, t in read_tensors(file)[0].items() if keep(n)}, {})


DAMAGES = (truncated, no_text_encoder, half_a_text_encoder, half_a_vae, half_a_unet)
NO_CHECKPOINTS = (another_model, endless_header, empty, pickled)


@pytest.mark.parametrize("damage", [*DAMAGES, *NO_CHECKPOINTS])
def test_a_file_that_is_no_whole_checkpoint_is_refused_in_one_line(
    tiny_published: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    damage: Callable[[Path, Path], None],
) -> None:
    folder, file = tiny_published("sd1")
    damage(file, tmp_path / "bad.safetensors")
    without_weights(folder, tmp_path / "bad")
    with pytest.raises(BadInput, match=r"bad\.safetensors") as caught:
        Backbone.load(tmp_path / "bad.safetensors", device="cpu")
    assert "\n" not in str(caught.value)


def test_a_single_file_without_its_configuration_is_refused_offline(
    tiny_published: Callable[[str], tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, file = tiny_published("sd1")
    shutil.copy(file, tmp_path / "alone.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(BadInput, match=r"alone\.safetensors cannot be loaded.*folder .*alone") as caught:
        Backbone.load(tmp_path / "alone.safetensors", device="cpu")
    assert "\n" not in str(caught.value)


def test_a_pruned_file_in_half_precision_and_a_full_one_have_the_folders_digest(
    tiny_published: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """As published: fp16 alone, or fp32 with the training's own tensors and a running average of the UNet."""
    folder, file = tiny_published("sd1")
    tensors = read_tensors(file)[0]
    text = "cond_stage_model.transformer.text_model.embeddings"
    full = tensors | {"alphas_cumprod": torch.ones(1000), f"{text}.position_ids": torch.arange(24)[None]}
    full |= {
        n.replace("model.", "model_ema.", 1): t + 1 for n, t in tensors.items() if n.startswith("model.")
    }
    wanted = Backbone.load(folder, device="cpu").digest
    for name, held in (("pruned", {n: t.half() for n, t in tensors.items()}), ("full", full)):
        write_tensors(tmp_path / f"{name}.safetensors", held, {})
        without_weights(folder, tmp_path / name)
        assert Backbone.load(tmp_path / f"{name}.safetensors", device="cpu").digest == wanted


def test_a_pickled_checkpoint_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"\x80\x04N.")
    with pytest.raises(BadInput, match="pickled checkpoints are never opened"):
        Backbone.load(tmp_path / "model.ckpt", device="cpu")


# A hub id


@pytest.fixture
def tiny_hub(tiny_sd1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The hub's cache with one model, owner/tiny, as `hf download` lays it out."""
    model = tmp_path / "hub" / "models--owner--tiny"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(tiny_sd1, model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield model


def test_a_hub_id_in_the_cache_is_loaded_offline(tiny_hub: Path, tiny_sd1: Path) -> None:
    cached = Backbone.load("owner/tiny", device="cpu")
    assert cached.name == "tiny"
    assert cached.digest == Backbone.load(tiny_sd1, device="cpu").digest


def test_a_hub_id_that_is_not_in_the_cache_is_refused_offline(tiny_hub: Path) -> None:
    with pytest.raises(BadInput, match="backbone owner/other cannot be loaded") as caught:
        Backbone.load("owner/other", device="cpu")
    assert "\n" not in str(caught.value)


def test_a_pickled_model_of_the_hub_is_never_opened(tiny_hub: Path) -> None:
    for weights in tiny_hub.rglob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(BadInput, match="backbone owner/tiny cannot be loaded"):
        Backbone.load("owner/tiny", device="cpu")
