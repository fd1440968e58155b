"""Surface patterns: one for each class, and class-neutral ones for ground, clutter and disguise.

A pattern is a field over the image. A class's pattern is a function of u and v, counted in periods,
that turns with its object. All have the same contrast and periods from the same range.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

SIZE = 128


def _cell(x: np.ndarray) -> np.ndarray:
    """Position inside the unit cell, from -0.5 to 0.5."""
    return x - np.floor(x) - 0.5


def _ridge(distance: np.ndarray) -> np.ndarray:
    """A soft step (about a pixel wide) from -1 where the distance is negative to 1."""
    return np.clip(distance / 0.09, -1, 1)


def scales(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Overlapping fish scales, lighter in the middle."""
    row = np.floor(2 * v)
    x, y = _cell(u + 0.5 * (row % 2)), v - row / 2
    near, far = np.hypot(x, y), np.hypot(np.abs(x) - 0.5, y - 0.5)
    return 0.35 - np.where(near < 0.5, near, far) ** 3 * 12


def needles(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Herringbone of slanting needles."""
    column = np.floor(1.1 * u)
    slope = np.where(column % 2 == 0, 1, -1)
    return np.sin(2 * np.pi * (1.25 * v + slope * 1.1 * u + 0.25 * slope)) * 1.6


def bricks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A brick wall and its joints."""
    y = 1.35 * v
    x = 0.62 * u + 0.5 * (np.floor(y) % 2)
    joint = np.minimum((0.5 - np.abs(_cell(x))) / 0.62, (0.5 - np.abs(_cell(y))) / 1.35)
    return _ridge(joint - 0.1)


def checks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A checkerboard."""
    return np.clip(3 * np.sin(np.pi * 1.25 * u) * np.sin(np.pi * 1.25 * v), -1, 1)


def dots(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Dots on a triangular grid."""
    y = v / 0.87
    return _ridge(0.3 - np.hypot(_cell(u + 0.5 * (np.floor(y) % 2)), 0.87 * _cell(y)))


def planks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Straight planks, light and dark."""
    return np.clip(2 * np.sin(2 * np.pi * v), -1, 1)


def lattice(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Crossing diagonal bars."""
    a, b = 0.7 * (u + v), 0.7 * (u - v)
    return _ridge(0.15 - np.minimum(np.abs(_cell(a)), np.abs(_cell(b))))


def crosses(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Staggered plus signs."""
    y = 1.1 * v
    x, y = np.abs(_cell(0.9 * u + 0.5 * (np.floor(y) % 2))), np.abs(_cell(y))
    return _ridge(np.maximum(np.minimum(0.14 - x, 0.38 - y), np.minimum(0.38 - x, 0.14 - y)))


def chevrons(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Zigzag bands."""
    return np.clip(2 * np.sin(2 * np.pi * (v + 1.1 * np.abs(_cell(0.62 * u)))), -1, 1)


def rings(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Rings on a square grid."""
    r = np.hypot(_cell(0.8 * u), _cell(0.8 * v)) / 0.8
    return _ridge(0.13 - np.abs(r - 0.38))


@lru_cache(maxsize=1)
def grid() -> tuple[np.ndarray, np.ndarray]:
    """x and y of the pixel centres, each H×W."""
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    return x + 0.5, y + 0.5


@lru_cache(maxsize=1)
def _frequency() -> np.ndarray:
    return np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)).astype(np.float32)


def noise(rng: np.random.Generator, period: float, band: float = 0.25) -> np.ndarray:
    """Band-limited noise of unit variance."""
    spectrum = np.fft.rfft2(rng.standard_normal((SIZE, SIZE), dtype=np.float32))
    ring = np.exp(-(((_frequency() * period - 1) / band) ** 2) / 2)
    return _standard(np.fft.irfft2(spectrum * ring, (SIZE, SIZE)))


def _clouds(rng: np.random.Generator, period: float) -> np.ndarray:
    return np.clip(1.5 * noise(rng, period), -1, 1)


def _labyrinth(rng: np.random.Generator, period: float) -> np.ndarray:
    return np.clip(3 * noise(rng, period, 0.12), -1, 1)


def _spots(rng: np.random.Generator, period: float) -> np.ndarray:
    return np.clip(3 * (noise(rng, period, 0.18) - 0.7), -1, 1)


def _ripples(rng: np.random.Generator, period: float) -> np.ndarray:
    """Waves in a random direction, bent enough to differ from the straight planks."""
    x, y = grid()
    angle = rng.uniform(0, np.pi)
    phase = 2 * np.pi / period * (np.cos(angle) * x + np.sin(angle) * y)
    return np.clip(2 * np.sin(phase + 2.2 * noise(rng, 40, 0.4)), -1, 1)


def _cells(rng: np.random.Generator, period: float) -> np.ndarray:
    """Walls between the cells of a jittered grid (distance to second minus to nearest centre)."""
    x, y = (axis / np.float32(1.35 * period) for axis in grid())
    side = SIZE // 4
    jitter = rng.uniform(0.1, 0.9, (2, side, side)).astype(np.float32) - 1  # -1: one cell to spare
    centres = (jitter + np.mgrid[:side, :side].astype(np.float32)).reshape(2, -1)
    cell = y.astype(int) * side + x.astype(int)
    nearest, second = np.full((2, SIZE, SIZE), 9, np.float32)
    for down, across in np.ndindex(3, 3):
        index = cell + (down * side + across)
        distance = (centres[1].take(index) - x) ** 2 + (centres[0].take(index) - y) ** 2
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    return _ridge((np.sqrt(second) - np.sqrt(nearest) - 0.2) * 0.7)


NEUTRAL = (_clouds, _labyrinth, _spots, _ripples, _cells)


def _standard(field: np.ndarray) -> np.ndarray:
    """Equal contrast for all patterns: mean 0, deviation 1, no lone peaks."""
    return np.clip((field - field.mean()) / field.std(), -1.6, 1.6).astype(np.float32)


def _period(rng: np.random.Generator) -> float:
    """Pixels in a period; the same for classes, ground and clutter."""
    return rng.uniform(7.5, 10)


def neutral_field(rng: np.random.Generator) -> np.ndarray:
    """A random class-neutral pattern, H×W, mean 0 and deviation 1."""
    return _standard(NEUTRAL[rng.integers(len(NEUTRAL))](rng, _period(rng)))


def class_field(rng: np.random.Generator, surface: Callable, angle: float) -> np.ndarray:
    """A class's pattern turned by `angle` radians, H×W, mean 0 and deviation 1."""
    period, shift = _period(rng), rng.uniform(0, 8, 2)
    x, y = grid()
    u = (np.cos(angle) * x + np.sin(angle) * y) / period + shift[0]
    v = (np.cos(angle) * y - np.sin(angle) * x) / period + shift[1]
    return _standard(surface(u, v))
