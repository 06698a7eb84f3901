"""Eight colour names, and giving a sprite one of them: the ruling hue is turned, light and shade are kept.

Colours are handled in OKLab (Björn Ottosson, 2020, "A perceptual color space for image processing").
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

# Name -> sRGB that people call so.
TARGETS: dict[str, tuple[int, int, int]] = {
    "red": (220, 38, 38),
    "orange": (250, 135, 20),
    "yellow": (250, 215, 40),
    "green": (50, 165, 60),
    "blue": (45, 110, 230),
    "purple": (140, 60, 190),
    "pink": (250, 140, 190),
    "brown": (125, 75, 40),
}
COLOURS: tuple[str, ...] = tuple(TARGETS)
CHROMA = 0.045  # below it a pixel counts as grey and keeps its colour
HUE_WIDTH = 0.7  # radians each side of the ruling hue

_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ],
    np.float32,
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ],
    np.float32,
)


def pixel(rgb: tuple[int, int, int]) -> Pixels:
    """One colour as an array of bytes."""
    return np.array(rgb, np.uint8)


def to_oklab(pixels: Pixels) -> Floats:
    """(..., 3) sRGB bytes to OKLab."""
    srgb = pixels.astype(np.float32) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    lab: Floats = np.cbrt(linear @ _TO_LMS.T) @ _TO_LAB.T
    return lab


def from_oklab(lab: Floats) -> Pixels:
    """OKLab to sRGB bytes; what lies outside sRGB is cut off."""
    linear = (lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_LMS).T
    linear = np.clip(linear, 0, 1)
    srgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(srgb * 255).astype(np.uint8)


def _ruling(lab: Floats) -> tuple[npt.NDArray[np.bool_], float]:
    """Which pixels have the ruling hue, and their share of the ink."""
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    hue = np.arctan2(lab[..., 2], lab[..., 1])
    ink = (lab[..., 0] < 0.96) | (chroma > CHROMA)
    coloured = chroma > CHROMA
    if not coloured.any():
        return coloured, 0.0
    counts, edges = np.histogram(hue[coloured], bins=36, range=(-np.pi, np.pi), weights=chroma[coloured])
    smooth = counts + np.roll(counts, 1) + np.roll(counts, -1)
    centre = edges[int(smooth.argmax())] + np.pi / 36
    distance = np.abs((hue - centre + np.pi) % (2 * np.pi) - np.pi)
    ruled = coloured & (distance < HUE_WIDTH)
    return ruled, float(ruled.sum() / max(1, ink.sum()))


def dominant_share(pixels: Pixels) -> float:
    """The share of a sprite's ink that has its ruling hue."""
    return _ruling(to_oklab(pixels))[1]


def recolour(pixels: Pixels, name: str) -> Pixels:
    """The sprite with its ruling hue made `name`; differences of lightness within that hue stay."""
    lab = to_oklab(pixels)
    ruled, _ = _ruling(lab)
    target = to_oklab(pixel(TARGETS[name]))
    light = lab[..., 0][ruled]
    chroma = np.hypot(lab[..., 1], lab[..., 2])[ruled]
    strength = np.clip(chroma / np.median(chroma), 0.3, 1.15)
    out = lab.copy()
    out[ruled, 0] = np.clip(target[0] + 0.7 * (light - np.median(light)), 0.05, 0.99)
    out[ruled, 1] = target[1] * strength
    out[ruled, 2] = target[2] * strength
    return from_oklab(out)
