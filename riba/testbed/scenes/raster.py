"""Rasterisation of polygons: the coverage of every pixel by every part, and painting."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from riba.testbed.scenes.colours import Tones, sway
from riba.testbed.scenes.shapes import Part
from riba.testbed.scenes.surfaces import SIZE, grid

_FINE = 4  # sub-pixels per pixel and axis


class Window(NamedTuple):
    """The rectangle of pixels in which something is drawn."""

    left: int
    top: int
    right: int
    bottom: int

    def of(self, image: np.ndarray) -> np.ndarray:
        """A view of the image (H×W or H×W×3) inside the window."""
        return image[self.top : self.bottom, self.left : self.right]


def corners(parts: Sequence[Part]) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest x, y of any part."""
    points = np.concatenate([part.outline for part in parts])
    return points.min(0), points.max(0)


def rasterise(parts: Sequence[Part], window: Window, scale: float) -> np.ndarray:
    """Paint part i with the value i + 1 (a hole with 0), later parts above earlier ones."""
    width, height = window.right - window.left, window.bottom - window.top
    canvas = Image.new("L", (round(width * scale), round(height * scale)))
    pen = ImageDraw.Draw(canvas)
    for index, part in enumerate(parts, start=1):
        points = (part.outline - window[:2]) * scale - 0.5
        pen.polygon(points.ravel().tolist(), fill=0 if part.role == "hole" else index)
    return np.asarray(canvas)


class Sprite:
    """Parts in image coordinates, with the share of each pixel in which each part is visible."""

    def __init__(self, parts: Sequence[Part]):
        """Rasterise the parts, later ones above earlier ones."""
        low, high = corners(parts)
        left, top = np.clip(np.floor(low), 0, SIZE - 1).astype(int).tolist()
        right, bottom = np.clip(np.ceil(high), 1, SIZE).astype(int).tolist()
        self.window = Window(left, top, right, bottom)
        fine = rasterise(parts, self.window, _FINE)
        solid = [index for index, part in enumerate(parts) if part.role != "hole"]
        self.parts = [parts[index] for index in solid]
        self.coverage = _block_means(fine == np.array(solid)[:, None, None] + 1)  # parts×h×w

    @cached_property
    def mask(self) -> np.ndarray:
        """True where the parts together cover at least half of the pixel, H×W."""
        mask = np.zeros((SIZE, SIZE), bool)
        self.window.of(mask)[:] = self.coverage.sum(0) >= 0.5
        return mask

    def part_masks(self) -> dict[str, np.ndarray]:
        """Mask of each named part, H×W; a pixel belongs to the part that covers most of it."""
        names = sorted({part.name for part in self.parts})
        share = [self.coverage[[part.name == name for part in self.parts]].sum(0) for name in names]
        owner = np.full((SIZE, SIZE), -1)
        self.window.of(owner)[:] = np.argmax(share, axis=0)
        return {name: self.mask & (owner == index) for index, name in enumerate(names)}

    def paint(self, picture: np.ndarray, tones: Tones, field: np.ndarray, depth: float) -> None:
        """Lay the parts over an OKLab picture, in place; `depth` is the pattern's contrast."""
        colours = np.stack([getattr(tones, part.role) for part in self.parts])
        # Small light and dark details stay nearly plain, so that they can be read.
        depths = [depth * (0.25 if part.role in ("light", "dark") else 1) for part in self.parts]
        sways = np.stack([d * sway(colour) for d, colour in zip(depths, colours, strict=True)])
        share = np.moveaxis(self.coverage, 0, -1)
        above = share @ colours + self.window.of(field)[..., None] * (share @ sways)
        total = self.coverage.sum(0)
        above[..., 0] += total * _shade(self.window)
        below = self.window.of(picture)
        below += above - total[..., None] * below


def _block_means(fine: np.ndarray) -> np.ndarray:
    """Means over blocks of sub-pixels, axis after axis: faster than a reshape and two sums."""
    rows = sum(fine[:, i::_FINE].view(np.uint8) for i in range(_FINE))
    return sum(rows[:, :, i::_FINE] for i in range(_FINE)) / np.float32(_FINE**2)


def _shade(window: Window) -> np.ndarray:
    """Light from above left, as an offset of lightness."""
    x, y = grid()
    across = (window.of(x) - window.left) / (window.right - window.left)
    down = (window.of(y) - window.top) / (window.bottom - window.top)
    return np.float32(0.03) * (1 - across - down)
