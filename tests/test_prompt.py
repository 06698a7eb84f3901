"""Text embeddings equal the stock pipelines', and a soft prompt equals textual inversion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from promptcdm.backbone import Backbone

PROMPTS = ["a red square", "three small blue circles on top of one another, far too long for the encoder"]


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_embeddings_are_the_stock_pipelines(tiny_pipeline: Callable[[str], Path], kind: str) -> None:
    backbone = Backbone.load(tiny_pipeline(kind), device="cpu")
    ours = backbone.encode_prompts(PROMPTS)
    stock = backbone.pipe.encode_prompt(
        PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.equal(ours.embeds, stock[0])
    if kind == "sdxl":
        assert ours.pooled is not None
        assert torch.allclose(ours.pooled, stock[2], atol=1e-6)


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_a_soft_prompt_is_a_textual_inversion(tiny_pipeline: Callable[[str], Path], kind: str) -> None:
    backbone = Backbone.load(tiny_pipeline(kind), device="cpu")
    encoders = [name for name in ("text_encoder", "text_encoder_2") if getattr(backbone.pipe, name, None)]
    soft = {name: torch.randn(3, 16, generator=torch.Generator().manual_seed(1)) for name in encoders}
    plain = backbone.encode_prompts(["a red square"])
    ours = backbone.encode_prompts(["a red square"], soft)
    assert not torch.allclose(ours.embeds, plain.embeds, atol=1e-3)
    assert torch.equal(backbone.encode_prompts(["a red square"]).embeds, plain.embeds), (
        "nothing shared is changed"
    )
    for name in encoders:
        parts = {
            "tokenizer": getattr(backbone.pipe, name.replace("text_encoder", "tokenizer")),
            "text_encoder": getattr(backbone.pipe, name),
        }
        backbone.pipe.load_textual_inversion(soft[name], token="<birds>", **parts)
    prompt = "<birds> a red square"
    stock = backbone.pipe.encode_prompt(
        prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    assert torch.allclose(ours.embeds, stock[0], atol=1e-5)


def test_the_digest_does_not_depend_on_the_dtype(tiny_sd1: Path) -> None:
    digests = {
        Backbone.load(tiny_sd1, device="cpu", dtype=d).digest for d in ("float32", "float16", "bfloat16")
    }
    assert len(digests) == 1


def test_the_digest_and_architecture_tell_backbones_apart(
    tiny_sd1: Path, tiny_sd2: Path, tiny_sdxl: Path
) -> None:
    loaded = [Backbone.load(folder, device="cpu") for folder in (tiny_sd1, tiny_sd2, tiny_sdxl)]
    assert len({b.digest for b in loaded}) == 3
    assert [b.prediction_type for b in loaded] == ["epsilon", "v_prediction", "epsilon"]


def test_alpha_bar_interpolates_between_timesteps(tiny_sd1: Path) -> None:
    backbone = Backbone.load(tiny_sd1, device="cpu")
    whole = backbone.alpha_bar(torch.tensor([0.0, 427.0, 428.0, 999.0]))
    assert torch.allclose(whole.float(), backbone.alphas_cumprod[[0, 427, 428, 999]], atol=1e-6)
    between = backbone.alpha_bar(torch.tensor([427.49]))
    assert whole[1] > between > whole[2]
