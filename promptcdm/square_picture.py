"""A picture as a square tensor, for models that read small pictures on white."""

from __future__ import annotations

from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor


def image_tensor(image: Image.Image, size: int) -> Tensor:
    """(3, size, size) in -1..1; white fills what is missing to a square, as it is the training background."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    side = max(rgb.size)
    if rgb.size != (side, side):
        square = Image.new("RGB", (side, side), "white")
        square.paste(rgb, ((side - rgb.width) // 2, (side - rgb.height) // 2))
        rgb = square
    if side != size:
        rgb = rgb.resize((size, size), Image.Resampling.BICUBIC)
    pixels: Tensor = pil_to_tensor(rgb)
    return pixels.float() / 127.5 - 1
