"""LoRA in a UNet: exactly one acts, or none, and afterwards it is as if it had never been there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from promptcdm import lora
from promptcdm.backbone import Backbone
from promptcdm.errors import AdapterMismatch


def random_lora(unet: nn.Module, seed: int, rank: int = 2, targets: str = "attention") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in lora.target_modules(unet, targets):
        out_size, in_size, *kernel = lora.plain_layers(unet)[name].weight.shape
        tensors[f"unet.{name}.lora_A.weight"] = torch.randn(rank, in_size, *kernel, generator=generator)
        ones = [1] * len(kernel)
        tensors[f"unet.{name}.lora_B.weight"] = 0.3 * torch.randn(out_size, rank, *ones, generator=generator)
    return tensors


def predict(backbone: Backbone) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x_t = torch.randn(2, 4, 8, 8, generator=generator)
    embeds = torch.randn(2, 7, backbone.unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return backbone.unet(x_t, torch.tensor([10, 700]), embeds).sample


@pytest.mark.parametrize("targets", ["attention", "wide"])
def test_one_adapter_is_the_weight_plus_b_times_a(backbone: Backbone, targets: str) -> None:
    tensors = random_lora(backbone.unet, 0, targets=targets)
    plain = predict(backbone)
    lora.insert(backbone.unet, "a", tensors)
    assert torch.equal(predict(backbone), plain), "an inserted adapter acts only when it runs"
    with lora.running(backbone.unet, "a"):
        adapted = predict(backbone)
    lora.remove(backbone.unet, "a")
    assert (adapted - plain).abs().max() > 1e-3
    for name in lora.target_modules(backbone.unet, targets):
        weight = backbone.unet.get_submodule(name).weight
        a, b = tensors[f"unet.{name}.lora_A.weight"], tensors[f"unet.{name}.lora_B.weight"]
        weight.data += (b.flatten(1) @ a.flatten(1)).reshape(weight.shape)
    assert torch.allclose(predict(backbone), adapted, atol=1e-4)


def test_two_adapters_never_mix_and_removal_leaves_nothing(backbone: Backbone) -> None:
    modules = dict(backbone.unet.named_modules())
    plain = predict(backbone)
    lora.insert(backbone.unet, "a", random_lora(backbone.unet, 0))
    with lora.running(backbone.unet, "a"):
        alone = predict(backbone)
    lora.insert(backbone.unet, "b", random_lora(backbone.unet, 1, rank=3))
    with lora.running(backbone.unet, "b"):
        other = predict(backbone)
    with lora.running(backbone.unet, "a"):
        assert torch.equal(predict(backbone), alone)
    assert not torch.equal(alone, other)
    lora.remove(backbone.unet, "a")
    lora.remove(backbone.unet, "b")
    assert torch.equal(predict(backbone), plain)
    assert dict(backbone.unet.named_modules()) == modules


def test_read_out_is_what_was_put_in(backbone: Backbone) -> None:
    tensors = random_lora(backbone.unet, 0)
    lora.insert(backbone.unet, "a", tensors)
    read = lora.read_out(backbone.unet, "a")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[k], tensors[k]) for k in tensors)
    lora.remove(backbone.unet, "a")


def test_another_architecture_is_refused_and_leaves_nothing(backbone: Backbone) -> None:
    modules = dict(backbone.unet.named_modules())
    tensors = random_lora(backbone.unet, 0)
    with pytest.raises(AdapterMismatch, match="no layer of this UNet"):
        lora.insert(backbone.unet, "a", {"unet.nowhere.to_q.lora_A.weight": torch.ones(2, 8)} | tensors)
    key = next(k for k in tensors if k.endswith("lora_A.weight"))
    with pytest.raises(AdapterMismatch, match="another architecture"):
        lora.insert(backbone.unet, "a", tensors | {key: torch.ones(2, 99)})
    assert dict(backbone.unet.named_modules()) == modules


def test_an_unknown_name_is_an_error(backbone: Backbone) -> None:
    lora.insert(backbone.unet, "a", random_lora(backbone.unet, 0))
    with pytest.raises(AdapterMismatch, match="no adapter 'b'"), lora.running(backbone.unet, "b"):
        predict(backbone)
    lora.remove(backbone.unet, "a")
