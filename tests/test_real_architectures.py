"""Stable Diffusion 1.5's true configuration with random weights: slow, and the same code as everything else.

pytest -m slow tests/test_real_architectures.py        (about 10 GB of memory, some minutes on two cores)
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from promptcdm.backbone import Backbone
from promptcdm.generate import generate
from promptcdm.settings import GenerateSettings, TrainSettings
from promptcdm.source import Source
from promptcdm.store import AdapterStore
from promptcdm.train import train_adapter

SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def save_sd15(folder: Path, tokenizer: Path) -> None:
    """The published configuration of Stable Diffusion 1.5; random weights, a byte-level vocabulary padded to CLIP's."""
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        cross_attention_dim=768,
        attention_head_dim=8,
        layers_per_block=2,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    )
    diffusers.StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer.from_pretrained(tokenizer),
        scheduler=diffusers.PNDMScheduler(skip_prk_steps=True, **SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(torch.float16).save_pretrained(folder)


@pytest.mark.slow
def test_sd15_trains_and_generates(
    tmp_path: Path, tiny_sd1: Path, toy_source: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    save_sd15(tmp_path / "sd15", tiny_sd1 / "tokenizer")
    backbone = Backbone.load(tmp_path / "sd15", device="cpu")
    assert backbone.architecture == "sd1"
    assert backbone.resolution == 512
    source = Source.open(toy_source(tmp_path, "birds", "red"))
    settings = TrainSettings(steps=2, batch_size=1, resolution=128, rank=4)
    adapter = train_adapter(source, backbone, settings)
    assert len(adapter.lora) == 2 * 128, "128 attention layers, as in every SD 1.x LoRA"
    store = AdapterStore(tmp_path / "adapters")
    store.add(adapter)
    small = GenerateSettings(num_inference_steps=2, height=128, width=128)
    made = generate(["a red square"], allowed=["birds"], backbone=backbone, store=store, settings=small)
    assert made.images[0].size == (128, 128)
    assert json.dumps(made.records[0])
