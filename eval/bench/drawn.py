"""What benchmarks of training train on: drawn pictures with captions, and a Stable Diffusion 1.5 of random weights."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from promptcdm.shipped import shipped

COLOURS = ("red", "green", "blue", "orange", "purple", "black", "brown", "pink")
SHAPES = ("square", "circle")
TOKENS, VOCABULARY = 77, 49408


def draw_sources(folder: Path, count: int, pictures: int, side: int) -> list[Path]:
    """`count` folders s0, s1, ... of so many pictures of `side` px, no two alike, with a `metadata.jsonl` each."""
    places = []
    for n in range(count):
        place = folder / f"s{n}"
        place.mkdir(parents=True)
        rows = []
        for i in range(pictures):
            colour, shape = COLOURS[(n + i) % len(COLOURS)], SHAPES[i % len(SHAPES)]
            _picture(colour, shape, n, i, side).save(place / f"{i:04d}.png")
            rows.append({"file_name": f"{i:04d}.png", "text": f"{i + 1} of {pictures}, a {colour} {shape}"})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (place / "metadata.jsonl").write_text(text, encoding="utf-8")
        places.append(place)
    return places


def _picture(colour: str, shape: str, n: int, i: int, side: int) -> Image.Image:
    """A shape on noise, as hard to decode as a photograph."""
    generator = torch.Generator().manual_seed(1000 * n + i)
    noise = torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy())
    low, high = side // 8 + i % (side // 8), side - side // 8
    draw = ImageDraw.Draw(picture)
    (draw.rectangle if shape == "square" else draw.ellipse)((low, low, high, high), fill=colour)
    return picture


def random_sd15(folder: Path, unet: Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    """Save a pipeline of Stable Diffusion 1.5's shapes (fp32 4.3 GB, bf16 2.1); `unet` is the UNet's config.json.

    The tokenizer is nano's with 77 places, for 1.5's own is not at hand: its tokens are some of the 49408.
    """
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(shipped("nano") / "tokenizer", model_max_length=TOKENS)
    text = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=3072,
        projection_dim=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    shapes = json.loads(unet.read_text(encoding="utf-8"))
    vae = partial(
        AutoencoderKL,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    schedule = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    with torch.device(device):  # where its weights are drawn: of so many a GPU draws faster
        parts = {"vae": vae(), "text_encoder": CLIPTextModel(text), "unet": UNet2DConditionModel(**shapes)}
    pipe = StableDiffusionPipeline(
        **{name: part.to(dtype) for name, part in parts.items()},
        tokenizer=tokenizer,
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
