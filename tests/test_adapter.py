"""The adapter folder: round trip, what stock tools make of it, and every way it can be wrong."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from made_adapter import made_adapter, made_manifest, random_lora, random_prompt, random_statistics
from pydantic import ValidationError
from safetensors import safe_open
from torch import Tensor, nn

from promptcdm.adapter import Adapter, adapter_digest, load_adapter, save_adapter
from promptcdm.adapter_record import BackboneRecord
from promptcdm.errors import AdapterMismatch, BadInput
from promptcdm.tensorfile import read_json, read_tensors, write_json, write_tensors

LORA = "pytorch_lora_weights.safetensors"


def _saved(tmp_path: Path, **keywords: Any) -> Path:
    adapter = made_adapter(**keywords)
    folder = tmp_path / adapter.source
    save_adapter(adapter, folder)
    return folder


def _edit(file: Path, **changes: object) -> None:
    write_json(file, read_json(file) | changes)


def test_round_trip_is_equal(tmp_path: Path) -> None:
    adapter = made_adapter(prompt=random_prompt({"text_encoder": 5}))
    save_adapter(adapter, tmp_path / "birds")
    read = load_adapter(tmp_path / "birds")
    assert (read.source, read.kind, read.record) == ("birds", "lora+prompt", adapter.record)
    assert (read.manifest, read.train_log) == (adapter.manifest, adapter.train_log)
    assert read.sha256 == adapter.sha256 == read.record.sha256
    assert read.lora.keys() == adapter.lora.keys()
    assert all(torch.equal(read.lora[key], adapter.lora[key]) for key in adapter.lora)
    assert torch.equal(read.prompt["text_encoder"], adapter.prompt["text_encoder"])
    assert read.statistics is not None
    assert adapter.statistics is not None
    assert read.statistics.count == 6
    assert torch.equal(read.statistics.latent_var, adapter.statistics.latent_var)


def test_the_folder_holds_exactly_these_files(tmp_path: Path) -> None:
    common = {"adapter.json", "README.md"}
    trained = {"router.safetensors", "manifest.json", "train_log.jsonl"}
    folder = _saved(tmp_path, prompt=random_prompt({"text_encoder": 5}))
    names = common | trained | {LORA, "birds.safetensors", "learned_embeds.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    imported = _saved(tmp_path, source="imported", trained=False)
    assert {path.name for path in imported.iterdir()} == common | {LORA, "imported.safetensors"}
    prompt = _saved(tmp_path, source="words", lora={}, prompt=random_prompt({"text_encoder": 5}))
    assert {path.name for path in prompt.iterdir()} == common | trained | {"learned_embeds.safetensors"}
    for path in (folder, imported, prompt):
        assert load_adapter(path).record.sha256 == load_adapter(path).sha256


def test_same_adapter_same_bytes_and_nothing_of_this_machine(tmp_path: Path) -> None:
    folders = [_saved(tmp_path / place, prompt=random_prompt({"text_encoder": 5})) for place in "ab"]
    for path in folders[0].iterdir():
        data = path.read_bytes()
        assert data == (folders[1] / path.name).read_bytes(), path.name
        for secret in (str(tmp_path), socket.gethostname(), "202"):
            assert secret.encode() not in data or secret == socket.gethostname() == "localhost", path.name


def test_digest_covers_lora_prompt_and_statistics() -> None:
    lora, prompt, statistics = (
        random_lora({"a": (2, 2)}),
        {"text_encoder": torch.ones(1, 2)},
        random_statistics(),
    )
    digests = {
        adapter_digest(lora, prompt, statistics),
        adapter_digest(random_lora({"a": (2, 2)}, seed=1), prompt, statistics),
        adapter_digest(lora, {}, statistics),
        adapter_digest(lora, prompt, None),
        adapter_digest(lora, prompt, replace(statistics, count=7)),
    }
    assert len(digests) == 5


# What stock tools make of it.


def _layers(unet: nn.Module) -> dict[str, tuple[int, ...]]:
    kinds = (nn.Linear, nn.Conv2d)
    return {name: tuple(m.weight.shape) for name, m in unet.named_modules() if isinstance(m, kinds)}


def _forward(unet: Any, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator)
    added = None
    if kind == "sdxl":
        width = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(2, width, generator=generator), "time_ids": torch.ones(2, 6)}
    with torch.no_grad():
        sample: Tensor = unet(x, torch.tensor([500, 20]), text, added_cond_kwargs=added).sample
    return sample


def _merge(unet: nn.Module, lora: dict[str, Tensor]) -> None:
    for name, module in unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            a, b = lora[f"unet.{name}.lora_A.weight"], lora[f"unet.{name}.lora_B.weight"]
            module.weight.data += torch.einsum("or,ri...->oi...", b.flatten(1), a)


@pytest.mark.parametrize("file", [LORA, "birds.safetensors"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_stock_diffusers_loads_every_key_to_the_same_strength(
    tiny_pipeline: Callable[[str], Path], tmp_path: Path, kind: str, file: str
) -> None:
    from diffusers import DiffusionPipeline, UNet2DConditionModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    pipe = DiffusionPipeline.from_pretrained(tiny_pipeline(kind), safety_checker=None, local_files_only=True)
    bare = _forward(pipe.unet, kind)
    lora = random_lora(_layers(pipe.unet))
    folder = _saved(tmp_path, lora=lora)
    pipe.load_lora_weights(folder, **({} if file == LORA else {"weight_name": file}))
    loaded = {n for n, module in pipe.unet.named_modules() if isinstance(module, BaseTunerLayer)}
    assert {f"unet.{name}.lora_A.weight" for name in loaded} == {key for key in lora if "lora_A" in key}
    merged = UNet2DConditionModel.from_pretrained(tiny_pipeline(kind), subfolder="unet")
    _merge(merged, lora)
    expected = _forward(merged, kind)
    assert (expected - bare).abs().max() > 0.05
    assert (_forward(pipe.unet, kind) - expected).abs().max() < 1e-5


def test_stock_diffusers_knows_the_soft_prompt_by_its_token(tiny_sd1: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd1, safety_checker=None, local_files_only=True)
    prompt = random_prompt({"text_encoder": 16})
    pipe.load_textual_inversion(_saved(tmp_path, lora={}, prompt=prompt))
    words = ["<birds>", "<birds>_1", "<birds>_2"]
    assert pipe.maybe_convert_prompt("<birds> tree", pipe.tokenizer) == " ".join([*words, "tree"])
    table = pipe.text_encoder.get_input_embeddings().weight
    assert torch.equal(table[pipe.tokenizer.convert_tokens_to_ids(words)], prompt["text_encoder"])


def test_two_text_encoders_use_the_keys_of_other_tools(tmp_path: Path) -> None:
    prompt = random_prompt({"text_encoder": 5, "text_encoder_2": 7})
    folder = _saved(tmp_path, lora={}, prompt=prompt)
    tensors, _ = read_tensors(folder / "learned_embeds.safetensors")
    assert {key: tuple(t.shape) for key, t in tensors.items()} == {"clip_l": (3, 5), "clip_g": (3, 7)}
    assert load_adapter(folder).prompt.keys() == prompt.keys()
    assert "pipe.text_encoder_2" in (folder / "README.md").read_text()


def test_headers_say_what_other_tools_look_for(tmp_path: Path) -> None:
    backbone = BackboneRecord(name="stabilityai/x", digest="d", architecture="sdxl")
    folder = _saved(tmp_path, trigger="brd", backbone=backbone)
    with safe_open(folder / "birds.safetensors", "pt") as file:
        header = file.metadata()
    expected = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "2",
        "ss_network_args": '{"conv_dim": "2", "conv_alpha": "2"}',
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.resolution": "1024x1024",
        "modelspec.license": "MIT",
        "modelspec.trigger_phrase": "brd",
    }
    assert expected.items() <= header.items()
    assert not [key for key in header if "date" in key or "tag_frequency" in key]
    with safe_open(folder / LORA, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    tensors, _ = read_tensors(folder / "birds.safetensors")
    assert tensors["lora_unet_mid_block_attentions_0_proj_in.alpha"] == 2.0


@pytest.mark.parametrize(
    ("license", "shown"),
    [("CC-BY-4.0", "cc-by-4.0"), ("NOASSERTION", "unknown"), ("LicenseRef-mine: no", "other")],
)
def test_the_card_is_one_that_the_hub_understands(tmp_path: Path, license: str, shown: str) -> None:
    folder = _saved(
        tmp_path, trained=False, license=license, trigger='a "brd"', imported_from="x.safetensors"
    )
    text = (folder / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == shown
    assert front.get("license_name") == (license if shown == "other" else None)
    assert (front["base_model"], front["instance_prompt"]) == ("nano", 'a "brd"')
    assert {"lora", "text-to-image", "diffusers"} <= set(front["tags"])
    assert "| author | Ann \\| &lt;b&gt; |" in text
    assert "| imported from | x.safetensors |" in text


# Every way it can be wrong.


@pytest.mark.parametrize(
    "missing", ["adapter.json", LORA, "birds.safetensors", "learned_embeds.safetensors", "manifest.json"]
)
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    folder = _saved(tmp_path, prompt=random_prompt({"text_encoder": 5}))
    (folder / missing).unlink()
    with pytest.raises(AdapterMismatch, match=f"{missing}: no such file"):
        load_adapter(folder)


def test_missing_statistics_are_named(tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    (folder / "router.safetensors").unlink()
    with pytest.raises(AdapterMismatch, match=r"changed, swapped or removed; router\.safetensors is absent"):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2 is unknown; this version reads format 1"),
        ({"format": None}, "format None is unknown"),
        ({"colour": "red"}, "unknown key colour; known are format, source"),
        ({"backbone": {"name": "n", "digest": "d"}}, r"backbone\.architecture: Field required"),
        ({"kind": "loha"}, "kind: Input should be 'lora', 'prompt', 'lora"),
        ({"items": "6"}, "items: Input should be a valid integer"),
        ({"author": "a\nb"}, "author: String should match"),
        ({"source": "../birds"}, "source name '../birds'"),
        ({"sha256": "0" * 64}, "its tensors have digest"),
        ({"kind": "lora+prompt"}, "learned_embeds.safetensors: no such file"),
        ({"kind": "prompt"}, "learned_embeds.safetensors: no such file"),
        ({"source": "cats"}, "cats.safetensors: no such file|disagree about source"),
        ({"license": "CC0-1.0"}, "manifest.json and adapter.json disagree about license"),
        ({"attribution": ""}, "disagree about attribution"),
        ({"items": 5}, "disagree about items"),
        ({"source_digest": "0" * 64}, "disagree about merkle_root"),
    ],
)
def test_an_edited_record_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    folder = _saved(tmp_path)
    load_adapter(folder)
    _edit(folder / "adapter.json", **change)
    with pytest.raises(AdapterMismatch, match=message) as caught:
        load_adapter(folder)
    assert "\n" not in str(caught.value)


def test_an_edited_manifest_is_refused(tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    items = read_json(folder / "manifest.json")["items"]
    _edit(folder / "manifest.json", items=items[:-1])
    with pytest.raises(AdapterMismatch, match="its merkle_root is not that of its items"):
        load_adapter(folder)
    _edit(folder / "manifest.json", items=items, time="now")
    with pytest.raises(AdapterMismatch, match="unknown key time"):
        load_adapter(folder)


def _tensors_with(folder: Path, file: str, changes: Mapping[str, Tensor | None]) -> None:
    tensors, metadata = read_tensors(folder / file)
    for key, tensor in changes.items():
        name = key if key in tensors else next((name for name in tensors if key in name), key)
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    write_tensors(folder / file, tensors, metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1.lora_A": torch.zeros(2, 4, 3, 3)}, "its tensors have digest"),
        ({"conv1.lora_A": torch.full((2, 4, 3, 3), float("nan"))}, "LoRA of .*conv1 holds NaN or infinity"),
        ({"conv1.lora_B": torch.full((5, 2, 1, 1), float("-inf"))}, "LoRA of .*conv1 holds NaN or infinity"),
        ({"conv1.lora_A": torch.zeros(3, 4, 3, 3)}, r"rank 3 of A is not rank 2 of B"),
        ({"conv1.lora_A": torch.zeros(2, 4)}, r"both need 2 dimensions, or 4"),
        ({"conv1.lora_B": torch.zeros(5, 2, 3, 3)}, r"must be 1x1"),
        ({"conv1.lora_A": torch.zeros(2, 4, 3, 3).half()}, r"must be float32"),
        ({"conv1.lora_B": None}, r"has lora_A without its other half"),
        ({"bundle_emb": torch.zeros(2)}, r"LoRA key 'bundle_emb' is not unet"),
    ],
)
def test_unsound_tensors_are_refused(tmp_path: Path, change: dict[str, Tensor | None], message: str) -> None:
    folder = _saved(tmp_path)
    _tensors_with(folder, LORA, change)
    with pytest.raises(AdapterMismatch, match=message) as caught:
        load_adapter(folder)
    assert "birds" in str(caught.value)


def palette_of(colours: list[int], counts: list[int]) -> dict[str, Tensor]:
    values = {"palette_colours": colours, "palette_counts": counts}
    return {name: torch.tensor(value, dtype=torch.int64) for name, value in values.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": torch.tensor(0)}, "count of at least 1"),
        ({"count": torch.tensor([6])}, "count must be one int64"),
        ({"latent_var": torch.zeros(4, 8, 8)}, "variances above 0"),
        ({"latent_mean": torch.zeros(4, 4, 4)}, r"latent_mean \(4, 4, 4\) must be finite float32"),
        ({"latent_mean": torch.full((4, 8, 8), float("nan"))}, "must be finite"),
        ({"caption_share": torch.tensor([0.5, 0.4])}, "sum to 1"),
        ({"caption_share": torch.tensor([1.5, -0.5])}, "sum to 1"),
        ({"caption_prototypes": torch.ones(2, 3)}, "norm 1"),
        ({"caption_tokens": torch.tensor([1, 1])}, "must be ascending int64"),
        ({"caption_token_counts": torch.tensor([3, 0])}, "each with a count above 0"),
        ({"caption_token_counts": torch.tensor([1.0, 2.0])}, "must be ascending int64"),
        ({"caption_token_counts": None}, "and nothing else"),
        ({"palette_colours": torch.tensor([3])}, "palette_colours with palette_counts, and nothing else"),
        (palette_of([3, 3], [1, 1]), "palette colours must be ascending int64"),
        (palette_of([3, 4096], [1, 1]), "below 4096"),
        (palette_of([-1], [1]), "below 4096"),
        (palette_of([3], [0]), "each with a count above 0"),
        (palette_of([], []), "palette colours must be"),
        ({"other": torch.ones(1)}, "and nothing else"),
    ],
)
def test_unsound_statistics_are_refused(tmp_path: Path, change: dict[str, Tensor], message: str) -> None:
    folder = _saved(tmp_path)
    _tensors_with(folder, "router.safetensors", change)
    with pytest.raises(AdapterMismatch, match=message):
        load_adapter(folder)


def test_the_two_lora_files_must_agree(tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    _tensors_with(folder, "birds.safetensors", {"alpha": torch.tensor(4.0)})
    with pytest.raises(AdapterMismatch, match="are not the same LoRA"):
        load_adapter(folder)


def test_saving_checks_too(tmp_path: Path) -> None:
    good = made_adapter()
    bad: list[tuple[Adapter, str]] = [
        (replace(good, lora={}, statistics=None), "neither a LoRA nor a soft prompt nor statistics"),
        (replace(good, lora={}), "says birds, lora; the files are birds, none"),
        (replace(good, source="cats"), "adapter.json says birds"),
        (replace(good, statistics=None), "router.safetensors is absent"),
        (replace(good, manifest=made_manifest("cats")), "disagree about source"),
        (made_adapter(lora={}, prompt={"text_encoder_2": torch.ones(1, 2)}), "first text encoder"),
        (made_adapter(lora={}, prompt={"text_encoder": torch.ones(2)}), "must be"),
    ]
    for adapter, message in bad:
        with pytest.raises(AdapterMismatch, match=message):
            save_adapter(adapter, tmp_path / "x")
        assert not (tmp_path / "x").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a").touch()
    with pytest.raises(BadInput, match="full is not empty"):
        save_adapter(good, tmp_path / "full")


@pytest.mark.parametrize("name", ["/home/ann/sd15", "..\\sd15", "a/b/c", ""])
def test_the_record_takes_no_path_for_a_backbone(name: str) -> None:
    with pytest.raises(ValidationError):
        BackboneRecord(name=name, digest="d", architecture="sd1")
    assert BackboneRecord(name="org/model", digest="d", architecture="sd1").name == "org/model"


def test_a_log_line_that_is_no_object_is_refused(tmp_path: Path) -> None:
    folder = _saved(tmp_path)
    (folder / "train_log.jsonl").write_text(json.dumps([1]) + "\n")
    with pytest.raises(AdapterMismatch, match="each line must be a JSON object"):
        load_adapter(folder)
