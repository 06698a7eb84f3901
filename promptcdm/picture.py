"""Decode one picture of a source: PNG, JPEG or WebP, as upright 8-bit RGB.

What is not plain RGB is converted in one stated way: transparency lies over white, 16-bit grey is rounded to
8 bits, CMYK becomes RGB without its colour profile, EXIF rotation is applied, a palette is looked up.
The content decides what a file is, never its name.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of files that may be pictures
MIN_SIDE = 8
LOOK_SIDE = 8
Look = bytes  # LOOK_SIDE * LOOK_SIDE * 3
# A 20 kB PNG can hold 169 million pixels and take 800 MB to decode.
MAX_PIXELS = 64_000_000

# What Pillow's decoders raise for bytes that are not what they claim to be.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)


class BadPicture(ValueError):
    """Bytes that are no usable picture; the message says why, without naming the file."""


def decode_picture(data: bytes) -> Image.Image:
    """Bytes of a PNG, JPEG or WebP file -> RGB image, every pixel decoded. Raises BadPicture."""
    try:
        with warnings.catch_warnings():
            # Pillow warns at 89 million pixels; the limit here is lower and an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image)
        if image.format == "PNG":
            # Decoding alone accepts a PNG that is cut after its pixels, or whose checksums are wrong.
            Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        image.load()
        return _as_rgb(ImageOps.exif_transpose(image))
    except BadPicture:
        raise
    except Image.DecompressionBombError as error:
        raise BadPicture(f"more than {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        raise BadPicture(f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture") from error
    except _DECODE_ERRORS as error:
        raise BadPicture(f"cannot be decoded: {' '.join(str(error).split())[:120]}") from error


def pixels_digest(image: Image.Image) -> str:
    """sha256 (hex) of "WIDTHxHEIGHT\\n" and the RGB bytes, row by row."""
    return hashlib.sha256(f"{image.width}x{image.height}\n".encode() + image.tobytes()).hexdigest()


def look(image: Image.Image) -> Look:
    """The mean colours of 8x8 fields, row by row, RGB: what stays when a picture is scaled or compressed again."""
    return image.resize((LOOK_SIDE, LOOK_SIDE), Image.Resampling.BOX).tobytes()


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise BadPicture(f"{width}x{height} pixels; each side needs at least {MIN_SIDE}")
    if width * height > MAX_PIXELS:
        raise BadPicture(f"{width}x{height} pixels; at most {MAX_PIXELS} in all are accepted")
    # A JPEG's further frames are depth or brightness maps that phones add; its first is the picture.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format in ("PNG", "WEBP"):
        raise BadPicture(f"an animation of {frames} frames; save the one that is meant")


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65_535)
        image = Image.fromarray(((grey * 255 + 32_767) // 65_535).astype(np.uint8))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")
