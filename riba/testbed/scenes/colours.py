"""Colours in OKLab (lightness 0 to 1, two opponent axes), so that they can be varied in hue."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

_HUE = 4.0  # radians of hue that a pattern turns per unit of lightness


def lch(lightness: float, chroma: float, hue: float) -> np.ndarray:
    """OKLab from lightness, chroma and hue in degrees."""
    angle = np.radians(hue)
    return np.array([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], np.float32)


def hue_of(tone: np.ndarray) -> float:
    """Hue of an OKLab colour in degrees."""
    return float(np.degrees(np.arctan2(tone[2], tone[1])))


@lru_cache(maxsize=1)
def _gamma() -> np.ndarray:
    """The transfer curve of sRGB as a table of bytes over linear light."""
    linear = np.linspace(0, 1, 8192)
    srgb = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).astype(np.uint8)


def to_srgb(lab: np.ndarray) -> np.ndarray:
    """OKLab to sRGB bytes (Ottosson 2020)."""
    to_lms = np.float32(
        [[1, 0.3963378, 0.2158038], [1, -0.1055613, -0.0638542], [1, -0.0894842, -1.2914855]]
    )
    to_rgb = np.float32(
        [
            [4.0767417, -3.3077116, 0.2309699],
            [-1.2684380, 2.6097574, -0.3413194],
            [-0.0041961, -0.7034186, 1.7076147],
        ]
    )
    lms = lab @ to_lms.T
    linear = np.clip(lms * lms * lms @ to_rgb.T, 0, 1)
    return _gamma()[(linear * 8191 + 0.5).astype(np.int16)]


class Tones(NamedTuple):
    """Colours of the roles of one object, one scrap or the ground, OKLab."""

    main: np.ndarray
    second: np.ndarray
    deep: np.ndarray
    light: np.ndarray
    dark: np.ndarray


def tones(rng: np.random.Generator, lightness: float, chroma: float, hue: float) -> Tones:
    """Neighbours of a hue, of similar lightness: parts differ in hue rather than in contrast."""
    turn = rng.choice([-1, 1]) * rng.uniform(35, 70)
    step = rng.uniform(0.03, 0.06) * rng.choice([-1, 1])
    return Tones(
        main=lch(lightness, chroma, hue),
        second=lch(lightness + step, chroma, hue + turn),
        deep=lch(lightness - 0.04, chroma, hue - turn / 3),
        light=lch(min(lightness + 0.14, 0.93), 0.05, hue + turn / 2),
        dark=lch(lightness - 0.16, 0.06, hue - turn / 2),
    )


def object_tones(rng: np.random.Generator, paper: np.ndarray, count: int) -> list[Tones]:
    """Tones of each object: opposite the paper's hue, at about its lightness."""
    hue = hue_of(paper) + 180
    spread = rng.permutation(np.linspace(-60, 60, count)) if count > 1 else [0]
    return [
        tones(
            rng,
            paper[0] + rng.uniform(-0.05, 0.05),
            rng.uniform(0.11, 0.14),
            hue + offset + rng.uniform(-40, 40) / count,
        )
        for offset in spread
    ]


def sway(tone: np.ndarray) -> np.ndarray:
    """Change of a tone per unit of lightness of a pattern: chroma and hue change a little."""
    _, a, b = tone
    return np.array([1, -1.6 * a - _HUE * b, -1.6 * b + _HUE * a], np.float32)
