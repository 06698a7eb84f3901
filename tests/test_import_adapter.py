"""LoRAs that people already have: found, fitted to the backbone, and recorded for what they are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import errors as hub_errors
from made_adapter import made_adapter, random_lora
from torch import Tensor, nn

from promptcdm.adapter import load_adapter, save_adapter
from promptcdm.errors import AdapterMismatch, BadInput, RunFailed
from promptcdm.import_adapter import import_adapter
from promptcdm.lora_format import to_kohya
from promptcdm.tensorfile import read_tensors, write_tensors

SHAPES = {
    "conv_in": (8, 4, 3, 3),
    "mid_block.attentions.0.proj_in": (6, 6, 1, 1),
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (6, 5),
}
TEXT_SHAPES = {
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (6, 3),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (3, 3),
}
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"
TEXT = {
    f"{FC1}.lora_down.weight": torch.ones(4, 3),
    f"{FC1}.lora_up.weight": torch.ones(6, 4),
    f"{FC1}.alpha": torch.tensor(2.0),
}


@dataclass(frozen=True)
class Facts:
    name: str = "org/model"
    digest: str = "d" * 64
    architecture: str = "sd1"
    module_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: SHAPES)
    text_module_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: TEXT_SHAPES)


def _file(path: Path, tensors: Mapping[str, Tensor] | None = None, **metadata: str) -> Path:
    write_tensors(path, to_kohya(random_lora(SHAPES)) if tensors is None else tensors, metadata)
    return path


def test_a_kohya_file_becomes_an_adapter(tmp_path: Path) -> None:
    path = _file(tmp_path / "My LoRA v1.safetensors")
    adapter = import_adapter(path, "mine", Facts(), trigger="brd", license="MIT", author="Ann")
    record = adapter.record
    assert adapter.statistics is None
    assert (adapter.kind, record.unconditional, record.trigger, record.items) == ("lora", "adapter", "brd", 0)
    assert (record.license, record.author, record.imported_from) == ("MIT", "Ann", "My LoRA v1.safetensors")
    assert (record.backbone.name, record.backbone.digest) == ("org/model", "d" * 64)
    assert record.settings == {"rank": 2, "modules": 3}
    assert adapter.lora.keys() == random_lora(SHAPES).keys()
    save_adapter(adapter, tmp_path / "mine")
    assert load_adapter(tmp_path / "mine").sha256 == adapter.sha256
    for file in (tmp_path / "mine").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()


def test_facts_of_the_header_are_used_where_none_are_given(tmp_path: Path) -> None:
    header = {"modelspec.license": "CC-BY-4.0", "modelspec.author": "Bob"}
    path = _file(tmp_path / "a.safetensors", **header)
    record = import_adapter(path, "mine", Facts()).record
    assert (record.license, record.author) == ("CC-BY-4.0", "Bob")
    assert import_adapter(path, "mine", Facts(), license="MIT").record.license == "MIT"
    plain = _file(tmp_path / "b.safetensors")
    assert import_adapter(plain, "mine", Facts()).record.license == "NOASSERTION"
    forged = _file(tmp_path / "c.safetensors", **{"modelspec.author": "Bob\nlicense: MIT"})
    with pytest.raises(BadInput, match=r"author .* must be one line"):
        import_adapter(forged, "mine", Facts())


def test_linear_layers_and_1x1_convolutions_are_told_apart_by_the_backbone(tmp_path: Path) -> None:
    swapped = {"mid_block.attentions.0.proj_in": (6, 6), SHAPES_LINEAR: (6, 5, 1, 1)}
    path = _file(tmp_path / "a.safetensors", random_lora(swapped))
    lora = import_adapter(path, "mine", Facts()).lora
    assert lora["unet.mid_block.attentions.0.proj_in.lora_A.weight"].shape == (2, 6, 1, 1)
    assert lora["unet.mid_block.attentions.0.proj_in.lora_B.weight"].shape == (6, 2, 1, 1)
    assert lora[f"unet.{SHAPES_LINEAR}.lora_A.weight"].shape == (2, 5)


SHAPES_LINEAR = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"


def test_several_ranks_become_one_and_compute_the_same(tmp_path: Path) -> None:
    mixed = random_lora({"conv_in": SHAPES["conv_in"]}, rank=1)
    mixed |= random_lora({SHAPES_LINEAR: SHAPES[SHAPES_LINEAR]}, rank=4)
    adapter = import_adapter(_file(tmp_path / "a.safetensors", mixed), "mine", Facts())
    assert {t.shape[0 if "lora_A" in key else 1] for key, t in adapter.lora.items()} == {4}
    for name in ("conv_in", SHAPES_LINEAR):
        keys = [f"unet.{name}.lora_{half}.weight" for half in "BA"]
        ours, theirs = ([tensors[key] for key in keys] for tensors in (adapter.lora, mixed))
        product = [torch.einsum("or,ri...->oi...", b.flatten(1), a) for b, a in (ours, theirs)]
        torch.testing.assert_close(*product)


def test_another_architecture_is_refused_in_one_line(tmp_path: Path) -> None:
    shapes = SHAPES | {SHAPES_LINEAR: (6, 2048)}
    path = _file(tmp_path / "xl.safetensors", random_lora(shapes))
    expected = (
        r"xl\.safetensors: made for another architecture than org/model \(sd1\): "
        r".*to_k has weights \(6, 5\), the LoRA is for \(6, 2048\)"
    )
    with pytest.raises(AdapterMismatch, match=expected) as caught:
        import_adapter(path, "mine", Facts())
    assert "\n" not in str(caught.value)
    more = random_lora(SHAPES | {"down_blocks.1.attentions.0.transformer_blocks.9.ff.net.2": (2, 2)})
    with pytest.raises(
        AdapterMismatch, match=r"2 of 8 keys name no layer of this backbone, such as unet\.down_blocks"
    ):
        import_adapter(_file(tmp_path / "deep.safetensors", more), "mine", Facts())


def test_a_text_encoder_lora_is_taken_in_or_left_out_and_recorded(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.safetensors", to_kohya(random_lora(SHAPES)) | TEXT)
    both = import_adapter(path, "mine", Facts())
    assert both.record.settings == {"rank": 4, "modules": 4, "text_encoder_modules": 1}
    name = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    assert both.text_lora.keys() == {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}
    torch.testing.assert_close(both.text_lora[f"{name}.lora_B.weight"], torch.full((6, 4), 0.5))
    assert both.unet_lora.keys() == random_lora(SHAPES).keys()
    save_adapter(both, tmp_path / "mine")
    assert load_adapter(tmp_path / "mine").sha256 == both.sha256
    assert set(TEXT) <= read_tensors(tmp_path / "mine" / "mine.safetensors")[0].keys()
    adapter = import_adapter(path, "mine", Facts(), unet_only=True)
    assert adapter.record.settings["text_encoder_keys_left_out"] == 3
    assert not adapter.text_lora and adapter.unet_lora is adapter.lora
    alone = _file(tmp_path / "b.safetensors", TEXT)
    with pytest.raises(AdapterMismatch, match="adapts no layer of the UNet"):
        import_adapter(alone, "mine", Facts(), unet_only=True)
    assert not import_adapter(alone, "mine", Facts()).unet_lora


def test_a_text_encoder_lora_of_another_width_is_refused(tmp_path: Path) -> None:
    wide = TEXT | {f"{FC1}.lora_down.weight": torch.ones(4, 9)}
    path = _file(tmp_path / "a.safetensors", to_kohya(random_lora(SHAPES)) | wide)
    with pytest.raises(AdapterMismatch, match=r"fc1 has weights \(6, 3\), the LoRA is for \(6, 9\)"):
        import_adapter(path, "mine", Facts())


def test_each_part_has_one_rank_of_its_own(tmp_path: Path) -> None:
    q = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    text = TEXT | {f"{q}.lora_down.weight": torch.ones(1, 3), f"{q}.lora_up.weight": torch.ones(3, 1)}
    lora = import_adapter(_file(tmp_path / "a.safetensors", text | random_lora(SHAPES)), "mine", Facts()).lora
    ranks = {(key.split(".")[0], t.shape[0]) for key, t in lora.items() if "lora_A" in key}
    assert ranks == {("unet", 2), ("text_encoder", 4)}


def test_the_file_of_a_folder_is_found(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no \.safetensors file; other formats"):
        import_adapter(tmp_path, "mine", Facts())
    (tmp_path / "x.ckpt").touch()
    _file(tmp_path / "one.safetensors")
    assert import_adapter(tmp_path, "mine", Facts()).record.imported_from == "one.safetensors"
    _file(tmp_path / "two.safetensors")
    with pytest.raises(
        BadInput, match=r"2 \.safetensors files; choose one with --weight-name: one\.saf.*, two"
    ):
        import_adapter(tmp_path, "mine", Facts())
    chosen = import_adapter(tmp_path, "mine", Facts(), weight_name="two.safetensors")
    assert chosen.record.imported_from == "two.safetensors"
    with pytest.raises(BadInput, match=r"holds no three\.safetensors"):
        import_adapter(tmp_path, "mine", Facts(), weight_name="three.safetensors")
    _file(tmp_path / "pytorch_lora_weights.safetensors")
    assert (
        import_adapter(tmp_path, "mine", Facts()).record.imported_from == "pytorch_lora_weights.safetensors"
    )


def test_what_cannot_be_imported_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="source name"):
        import_adapter(tmp_path, "../mine", Facts())
    for missing in (tmp_path / "no.safetensors", "./no", "no.safetensors", "a/b/c"):
        with pytest.raises(BadInput, match=r"no such file or folder; a hub id is written OWNER/NAME"):
            import_adapter(missing, "mine", Facts())
    save_adapter(made_adapter(), tmp_path / "birds")
    with pytest.raises(BadInput, match="is an adapter of promptcdm already"):
        import_adapter(tmp_path / "birds", "mine", Facts())
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00}\x94.")
    with pytest.raises(AdapterMismatch, match="a pickle"):
        import_adapter(tmp_path / "x.safetensors", "mine", Facts())


def _hub(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    listed: list[str] | Exception,
    download: Exception | None = None,
) -> list[str]:
    asked: list[str] = []

    def list_repo_files(repository: str) -> list[str]:
        if isinstance(listed, Exception):
            raise listed
        return listed

    def hf_hub_download(repository: str, name: str) -> str:
        asked.append(f"{repository} {name}")
        if download is not None:
            raise download
        return str(folder / name)

    module = sys.modules["promptcdm.import_adapter"]
    monkeypatch.setattr(module, "list_repo_files", list_repo_files)
    monkeypatch.setattr(module, "hf_hub_download", hf_hub_download)
    return asked


def test_a_hub_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _file(tmp_path / "lora.safetensors")
    asked = _hub(monkeypatch, tmp_path, ["README.md", "lora.safetensors", "unet/model.safetensors"])
    assert import_adapter("org/lora", "mine", Facts()).record.imported_from == "org/lora"
    assert asked == ["org/lora lora.safetensors"]


def test_a_peft_repository_needs_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = {key.replace("unet.", "base_model.model."): t for key, t in random_lora(SHAPES).items()}
    _file(tmp_path / "adapter_model.safetensors", lora)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    asked = _hub(monkeypatch, tmp_path, ["adapter_model.safetensors", "adapter_config.json"])
    adapter = import_adapter("org/lora", "mine", Facts())
    assert asked == ["org/lora adapter_config.json", "org/lora adapter_model.safetensors"]
    key = "unet.conv_in.lora_B.weight"
    torch.testing.assert_close(adapter.lora[key], 2 * random_lora(SHAPES)[key])


def test_troubles_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offline = hub_errors.OfflineModeIsEnabled("offline")
    _file(tmp_path / "pytorch_lora_weights.safetensors")
    asked = _hub(monkeypatch, tmp_path, offline)
    import_adapter("org/lora", "mine", Facts())
    assert asked == ["org/lora pytorch_lora_weights.safetensors"]
    _hub(monkeypatch, tmp_path, offline, hub_errors.LocalEntryNotFoundError("not cached"))
    with pytest.raises(RunFailed, match="org/lora is not in the cache and the hub cannot be reached"):
        import_adapter("org/lora", "mine", Facts())
    _hub(monkeypatch, tmp_path, hub_errors.EntryNotFoundError("none"))
    with pytest.raises(BadInput, match="org/lora: no such file, folder or hub repository"):
        import_adapter("org/lora", "mine", Facts())
    _hub(monkeypatch, tmp_path, ConnectionError("no route"))
    with pytest.raises(RunFailed, match="org/lora cannot be fetched from the hub: no route"):
        import_adapter("org/lora", "mine", Facts())


@pytest.mark.parametrize("original_names", [False, True])
def test_a_file_of_another_tool_gives_what_stock_diffusers_makes_of_it(
    tiny_pipeline: Callable[[str], Path], tmp_path: Path, original_names: bool
) -> None:
    """A kohya file with alpha 1 and rank 4, in either spelling, for a tiny SDXL: one and the same UNet."""
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

    from promptcdm.kohya_names import kohya_names

    folder = tiny_pipeline("sdxl")
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    kinds = (nn.Linear, nn.Conv2d)
    layers = {name: layer for name, layer in pipe.unet.named_modules() if isinstance(layer, kinds)}
    # diffusers misreads the first in its own spelling, the second in the other if its block has no attention.
    shapes = {
        n: tuple(m.weight.shape) for n, m in layers.items() if "add_emb" not in n and "upsampl" not in n
    }
    names = kohya_names(shapes)
    spellings = {name: joined for joined, name in names.items() if joined != name.replace(".", "_")}
    assert spellings.keys() == shapes.keys()
    tensors: dict[str, Tensor] = {}
    for key, tensor in random_lora(shapes, rank=4).items():
        name, _, half = key.removeprefix("unet.").removesuffix(".weight").rpartition(".")
        joined = spellings[name] if original_names else name.replace(".", "_")
        tensors[f"lora_unet_{joined}.lora_{'down' if half == 'lora_A' else 'up'}.weight"] = tensor
        tensors[f"lora_unet_{joined}.alpha"] = torch.tensor(1.0)
    path = _file(tmp_path / "theirs.safetensors", tensors)
    adapter = import_adapter(path, "mine", Facts(module_shapes=shapes))
    merged: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    for name, layer in merged.named_modules():
        if name in shapes:
            a, b = (adapter.lora[f"unet.{name}.lora_{half}.weight"] for half in "AB")
            layer.weight.data += torch.einsum("or,ri...->oi...", b.flatten(1), a)
    bare = _predict(pipe.unet)
    pipe.load_lora_weights(path)
    assert (_predict(pipe.unet) - _predict(merged)).abs().max() < 1e-5
    assert (_predict(merged) - bare).abs().max() > 1e-2


def _predict(unet: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    text = torch.randn(1, 7, unet.config.cross_attention_dim, generator=generator)
    width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
    added = {"text_embeds": torch.randn(1, width, generator=generator), "time_ids": torch.ones(1, 6)}
    with torch.no_grad():
        sample: Tensor = unet(x, torch.tensor([500]), text, added_cond_kwargs=added).sample
    return sample
