"""The outlines of the ten classes: lists of named parts, polygons in a unit square."""

from __future__ import annotations

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


def box(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """A rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def polygon(*points: tuple[float, float]) -> np.ndarray:
    """A polygon from its corners."""
    return np.array(points, dtype=float)


def arc(cx: float, cy: float, radius: float, width: float, start: float, stop: float) -> np.ndarray:
    """A bent bar: the band of `width` around an arc."""
    outer = oval(cx, cy, radius + width / 2, radius + width / 2, start, stop)
    inner = oval(cx, cy, radius - width / 2, radius - width / 2, stop, start)
    return np.concatenate([outer, inner])


def fish() -> list[Part]:
    """A fish that swims to the left."""
    head = np.concatenate(
        [oval(0.4, 0.5, 0.4, 0.27, 122, 238), oval(0.13, 0.5, 0.12, 0.229, -90, 90)]
    )
    return [
        Part("tail", "second", polygon((0.68, 0.5), (1.0, 0.2), (0.93, 0.5), (1.0, 0.8))),
        Part("fin", "second", polygon((0.28, 0.3), (0.5, 0.08), (0.68, 0.18), (0.62, 0.34))),
        Part("fin", "second", polygon((0.38, 0.7), (0.56, 0.9), (0.62, 0.68))),
        Part("body", "main", oval(0.4, 0.5, 0.4, 0.27)),
        Part("head", "second", head),
        Part("eye", "light", oval(0.14, 0.43, 0.062, 0.062)),
        Part("eye", "dark", oval(0.13, 0.43, 0.032, 0.032)),
    ]


def tree() -> list[Part]:
    """A fir with baubles."""
    baubles = ((0.48, 0.22), (0.36, 0.49), (0.62, 0.46), (0.26, 0.74), (0.5, 0.7), (0.74, 0.73))
    return [
        Part("trunk", "second", box(0.42, 0.74, 0.58, 1.0)),
        Part("branches", "main", polygon((0.5, 0.38), (0.92, 0.82), (0.08, 0.82))),
        Part("branches", "deep", polygon((0.5, 0.2), (0.83, 0.57), (0.17, 0.57))),
        Part("branches", "main", polygon((0.5, 0.0), (0.73, 0.31), (0.27, 0.31))),
        *(Part("bauble", "light", oval(x, y, 0.042, 0.042)) for x, y in baubles),
    ]


def house() -> list[Part]:
    """A house with a chimney."""
    return [
        Part("chimney", "second", box(0.7, 0.04, 0.84, 0.4)),
        Part("wall", "main", box(0.12, 0.42, 0.88, 0.96)),
        Part("roof", "second", polygon((0.5, 0.02), (1.0, 0.46), (0.0, 0.46))),
        Part("door", "dark", box(0.22, 0.6, 0.42, 0.96)),
        Part("knob", "light", oval(0.375, 0.79, 0.025, 0.025)),
        Part("window", "light", box(0.53, 0.56, 0.79, 0.79)),
        Part("window", "dark", box(0.645, 0.56, 0.675, 0.79)),
        Part("window", "dark", box(0.53, 0.66, 0.79, 0.69)),
        Part("attic", "light", oval(0.5, 0.28, 0.07, 0.07)),
    ]


def car() -> list[Part]:
    """A car that drives to the right."""
    return [
        Part("cabin", "second", polygon((0.2, 0.36), (0.34, 0.08), (0.68, 0.08), (0.84, 0.36))),
        Part(
            "body",
            "main",
            polygon((0.02, 0.36), (0.1, 0.32), (0.86, 0.32), (0.98, 0.4), (1.0, 0.66), (0.0, 0.66)),
        ),
        Part("window", "light", polygon((0.29, 0.32), (0.38, 0.14), (0.49, 0.14), (0.49, 0.32))),
        Part("window", "light", polygon((0.54, 0.32), (0.54, 0.14), (0.64, 0.14), (0.74, 0.32))),
        Part("lamp", "light", oval(0.945, 0.46, 0.04, 0.055)),
        *(
            Part("wheel", role, oval(x, 0.66, r, r))
            for x in (0.24, 0.76)
            for role, r in (("dark", 0.145), ("light", 0.06))
        ),
    ]


def mushroom() -> list[Part]:
    """A toadstool."""
    foot = ((0.62, 0.75), (0.68, 0.96), (0.32, 0.96), (0.38, 0.75))
    cap = np.concatenate([oval(0.5, 0.47, 0.5, 0.45, 180, 360), oval(0.5, 0.47, 0.5, 0.05, 0, 180)])
    spots = ((0.5, 0.17, 0.08), (0.26, 0.32, 0.075), (0.72, 0.3, 0.085), (0.48, 0.39, 0.06))
    return [
        Part("stem", "second", polygon((0.4, 0.45), (0.6, 0.45), *foot)),
        Part("gills", "dark", oval(0.5, 0.47, 0.44, 0.1)),
        Part("cap", "main", cap),
        *(Part("spot", "light", oval(x, y, r, 0.9 * r)) for x, y, r in spots),
        Part("ring", "light", box(0.375, 0.62, 0.625, 0.67)),
    ]


def boat() -> list[Part]:
    """A sailing boat."""
    return [
        Part("mast", "dark", box(0.46, 0.0, 0.51, 0.76)),
        Part("sail", "main", polygon((0.54, 0.05), (0.95, 0.66), (0.54, 0.66))),
        Part("jib", "second", polygon((0.43, 0.14), (0.43, 0.66), (0.1, 0.66))),
        Part("flag", "light", polygon((0.46, 0.0), (0.46, 0.1), (0.28, 0.05))),
        Part("hull", "main", polygon((0.0, 0.71), (1.0, 0.71), (0.82, 0.98), (0.18, 0.98))),
        Part("rail", "second", polygon((0.0, 0.71), (1.0, 0.71), (0.965, 0.77), (0.035, 0.77))),
        *(Part("porthole", "light", oval(x, 0.865, 0.042, 0.042)) for x in (0.32, 0.5, 0.68)),
    ]


def key() -> list[Part]:
    """A key with a ring for a bow."""
    near = ((0.66, 0.36), (0.74, 0.36), (0.74, 0.56), (0.81, 0.56), (0.81, 0.44))
    far = ((0.87, 0.44), (0.87, 0.6), (0.96, 0.6), (0.96, 0.36), (0.96, 0.3), (0.66, 0.3))
    return [
        Part("bit", "second", polygon(*near, *far)),
        Part("shaft", "main", box(0.4, 0.2, 1.0, 0.39)),
        Part("bow", "main", oval(0.25, 0.3, 0.25, 0.28)),
        Part("rim", "deep", oval(0.235, 0.3, 0.155, 0.18)),
        Part("hole", "hole", oval(0.23, 0.3, 0.105, 0.125)),
        Part("collar", "second", box(0.49, 0.15, 0.56, 0.44)),
    ]


def cup() -> list[Part]:
    """A cup with a handle."""
    body = np.concatenate(
        [oval(0.38, 0.14, 0.38, 0.1, 180, 360), oval(0.38, 0.86, 0.31, 0.1, 0, 180)]
    )
    left = ((0.38, 0.71), (0.24, 0.54), (0.25, 0.45), (0.32, 0.43))
    right = ((0.38, 0.49), (0.44, 0.43), (0.51, 0.45), (0.52, 0.54))
    return [
        Part("handle", "second", oval(0.74, 0.5, 0.26, 0.27)),
        Part("hole", "hole", oval(0.74, 0.5, 0.14, 0.15)),
        Part("body", "main", body),
        Part("rim", "second", oval(0.38, 0.14, 0.38, 0.11)),
        Part("drink", "dark", oval(0.38, 0.15, 0.31, 0.075)),
        Part("heart", "light", polygon(*left, *right)),
    ]


def bird() -> list[Part]:
    """A bird that looks to the left."""
    wing = np.concatenate(
        [oval(0.55, 0.54, 0.22, 0.19, 100, 290), polygon((0.88, 0.5), (0.76, 0.68))]
    )
    return [
        Part("leg", "dark", box(0.41, 0.8, 0.465, 1.0)),
        Part("leg", "dark", box(0.53, 0.8, 0.585, 1.0)),
        Part("tail", "second", polygon((0.68, 0.52), (1.0, 0.3), (1.0, 0.52), (0.7, 0.74))),
        Part("beak", "light", polygon((0.1, 0.18), (0.1, 0.33), (-0.07, 0.27))),
        Part("body", "main", oval(0.5, 0.6, 0.33, 0.27)),
        Part("head", "main", oval(0.25, 0.26, 0.19, 0.19)),
        Part(
            "breast",
            "main",
            polygon((0.07, 0.32), (0.42, 0.2), (0.62, 0.36), (0.4, 0.7), (0.18, 0.64)),
        ),
        Part("wing", "second", wing),
        Part("eye", "light", oval(0.2, 0.22, 0.062, 0.062)),
        Part("eye", "dark", oval(0.19, 0.22, 0.034, 0.034)),
    ]


def umbrella() -> list[Part]:
    """An open umbrella."""
    rim = [oval(x, 0.5, 0.125, 0.07, 0, -180) for x in (0.875, 0.625, 0.375, 0.125)]
    left = [oval(0.5, 0.5, 0.28, 0.48, 180, 270), oval(0.5, 0.5, 0.03, 0.48, 270, 180)]
    right = [oval(0.5, 0.5, 0.28, 0.48, 0, -90), oval(0.5, 0.5, 0.5, 0.48, -90, 0), rim[0]]
    return [
        Part("stick", "dark", box(0.465, 0.3, 0.535, 0.86)),
        Part("crook", "dark", arc(0.6, 0.86, 0.1, 0.07, 0, 180)),
        Part("tip", "dark", box(0.46, -0.05, 0.54, 0.1)),
        Part("canopy", "main", np.concatenate([oval(0.5, 0.5, 0.5, 0.48, 180, 360), *rim])),
        Part("panel", "second", np.concatenate(left)),
        Part("panel", "second", np.concatenate(right)),
    ]


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
