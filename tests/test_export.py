"""Exports for other tools: what they read is what we draw, and forgetting names the copies that it cannot reach."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from made_adapter import made_adapter, random_lora, random_prompt
from peft import PeftModel

from promptcdm.adapter import load_adapter
from promptcdm.backbone import Backbone
from promptcdm.cli import _run
from promptcdm.engine import Engine, Rows
from promptcdm.errors import BadInput, UnknownSource
from promptcdm.export import export_adapter
from promptcdm.forget import forget
from promptcdm.import_adapter import import_adapter
from promptcdm.lora import target_modules
from promptcdm.slots import SlotLora
from promptcdm.store import AdapterStore

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")


@pytest.fixture(scope="module")
def backbone(tiny_sd1: Path) -> Backbone:
    return Backbone.load(tiny_sd1, device="cpu")


@pytest.fixture
def store(tmp_path: Path, backbone: Backbone) -> AdapterStore:
    """birds: layers of two ranks, attention and a convolution."""
    shapes = backbone.module_shapes
    attention = {name: shapes[name] for name in target_modules(backbone.unet, "attention")}
    lora = random_lora(attention, rank=3)
    lora |= random_lora({"conv_in": shapes["conv_in"]}, rank=2, seed=1)
    store = AdapterStore(tmp_path / "adapters")
    store.add(made_adapter("birds", lora=lora))
    return store


def predictions(backbone: Backbone, lora: dict[str, torch.Tensor]) -> torch.Tensor:
    engine = Engine(backbone.unet)
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(2, backbone.unet.config.in_channels, 8, 8, generator=generator)
    embeds = torch.randn(2, 7, backbone.unet.config.cross_attention_dim, generator=generator)
    birds = SlotLora("birds", lora)
    eps = engine.predict(Rows(x_t, torch.tensor([10.0, 700.0]), embeds, (birds, birds)))[0]
    engine.slots.close()
    return eps


@pytest.mark.parametrize("format", ["kohya", "diffusers", "peft"])
def test_what_is_exported_comes_back_as_it_was(
    store: AdapterStore, backbone: Backbone, tmp_path: Path, format: str
) -> None:
    out = tmp_path / "copy"
    written = export_adapter("birds", store=store, format=format, out=out)  # type: ignore[arg-type]
    assert sorted(written) == sorted(path for path in out.rglob("*") if path.is_file())
    back = import_adapter(out, "again", backbone)
    wanted = predictions(backbone, store.load("birds").lora)
    assert torch.allclose(predictions(backbone, back.lora), wanted, atol=1e-5)


def test_peft_itself_loads_the_copy_at_the_same_strength(
    store: AdapterStore, tiny_sd1: Path, tmp_path: Path
) -> None:
    fresh = Backbone.load(tiny_sd1, device="cpu")
    wanted = predictions(fresh, store.load("birds").lora)
    bare = predictions(fresh, {name: 0 * tensor for name, tensor in store.load("birds").lora.items()})
    export_adapter("birds", store=store, format="peft", out=tmp_path / "copy")
    unet = PeftModel.from_pretrained(fresh.unet, tmp_path / "copy").eval()
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(2, fresh.unet.config.in_channels, 8, 8, generator=generator)
    embeds = torch.randn(2, 7, fresh.unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        (theirs,) = unet(x_t, torch.tensor([10.0, 700.0]), embeds, return_dict=False)
    assert (wanted - bare).abs().max() > 0.01, "the LoRA shows"
    assert torch.allclose(theirs, wanted, atol=1e-5)


def test_a_soft_prompt_goes_with_it(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "adapters")
    store.add(made_adapter("birds", prompt=random_prompt({"text_encoder": 16})))
    export_adapter("birds", store=store, format="kohya", out=tmp_path / "copy")
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert names == {"birds.safetensors", "learned_embeds.safetensors", "README.md"}
    beside = (store.root / "birds" / "learned_embeds.safetensors").read_bytes()
    assert (tmp_path / "copy" / "learned_embeds.safetensors").read_bytes() == beside


def test_the_receipt_of_forgetting_names_the_copies_and_the_store_forgets_them(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "adapters")
    for name in ("birds", "zebras"):
        store.add(made_adapter(name))
    export_adapter("zebras", store=store, format="kohya", out=tmp_path / "one")
    export_adapter("birds", store=store, format="kohya", out=tmp_path / "two")
    export_adapter("zebras", store=store, format="diffusers", out=tmp_path / "three")
    text = forget("zebras", store=store).text()
    assert f"exported as kohya to {tmp_path / 'one'}" in text
    assert f"exported as diffusers to {tmp_path / 'three'}" in text
    assert str(tmp_path / "two") not in text
    (left,) = (json.loads(line) for line in (store.root / "exports.jsonl").read_text().splitlines())
    assert (left["source"], left["format"]) == ("birds", "kohya")
    forget("birds", store=store)
    assert {path.name for path in store.root.iterdir()} == {"store.lock", "forgotten.jsonl"}


def test_wrong_input_writes_and_notes_nothing(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "adapters")
    store.add(made_adapter("birds"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    with pytest.raises(UnknownSource):
        export_adapter("cats", store=store, format="kohya", out=tmp_path / "new")
    with pytest.raises(BadInput, match="accepted: kohya, diffusers, peft"):
        export_adapter("birds", store=store, format="ckpt", out=tmp_path / "new")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="not an empty folder"):
        export_adapter("birds", store=store, format="kohya", out=full)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters", "full"]
    assert not (store.root / "exports.jsonl").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = AdapterStore(tmp_path / "adapters")
    store.add(made_adapter("birds"))
    words = ["export", "birds", "--store", str(store.root), "--out", str(tmp_path / "copy")]
    assert _run([*words, "--format", "ckpt"]) == 2
    assert "format 'ckpt' is unknown; accepted: kohya, diffusers, peft" in capsys.readouterr().err
    assert _run([*words, "--format", "kohya"]) == 0
    assert str(tmp_path / "copy" / "birds.safetensors") in capsys.readouterr().out
    load_adapter(store.root / "birds")
