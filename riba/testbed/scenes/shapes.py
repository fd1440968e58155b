"""Outlines of objects: lists of named parts, polygons in a unit square."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Part(NamedTuple):
    """A named polygon; its role determines colour and pattern, the role "hole" cuts through."""

    name: str
    role: str
    outline: np.ndarray


def oval(
    cx: float, cy: float, rx: float, ry: float, start: float = 0, stop: float = 360
) -> np.ndarray:
    """Points of an ellipse, or of its sector's rim from `start` to `stop` degrees, clockwise."""
    return np.array([cx, cy]) + np.array([rx, ry]) * _unit_arc(start, stop)


@lru_cache(maxsize=64)
def _unit_arc(start: float, stop: float) -> np.ndarray:
    angle = np.radians(np.linspace(start, stop, 40))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def parts_of(rows: Sequence[tuple[str, str, Sequence[Sequence[float]]]]) -> list[Part]:
    """Parts from their rows in ``classes.json``: name, role and outline.

    An outline is drawn point after point: ``[x, y]`` is a corner, ``[cx, cy, rx, ry]`` an ellipse,
    and ``[cx, cy, rx, ry, start, stop]`` a sector's rim, as :func:`oval` takes them.
    """
    return [Part(name, role, _outline(points)) for name, role, points in rows]


def _outline(points: Sequence[Sequence[float]]) -> np.ndarray:
    return np.concatenate([[row] if len(row) == 2 else oval(*row) for row in points])


def blob(rng: np.random.Generator) -> list[Part]:
    """A smooth random closed curve, with a patch inside."""
    return [
        Part("blob", "main", wobbly(rng, 0.5, 0.5, 0.45)),
        Part("patch", "second", wobbly(rng, *rng.uniform(0.4, 0.6, 2), 0.16)),
    ]


def wobbly(rng: np.random.Generator, cx: float, cy: float, radius: float) -> np.ndarray:
    """A smooth random closed curve around a centre."""
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    waves = np.arange(2, 6)[:, None]
    height = rng.normal(0, 0.22, (4, 1)) / waves**0.7
    r = radius * np.exp((height * np.cos(waves * angle + rng.uniform(0, 6.3, (4, 1)))).sum(0))
    return np.stack([cx + r * np.cos(angle), cy + r * np.sin(angle)], axis=1)
