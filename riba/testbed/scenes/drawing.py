"""Composition of a scene: class, place, size, pose, ground, colours; each has a random stream."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from skimage.util import montage

from riba.testbed.scenes import shapes, surfaces
from riba.testbed.scenes.colours import hue_of, lch, object_tones, sway, to_srgb, tones
from riba.testbed.scenes.raster import Sprite, Window, corners, rasterise
from riba.testbed.scenes.shapes import Part
from riba.testbed.scenes.surfaces import NEUTRAL, SIZE

SPLITS = {
    "train": range(0, 1_000_000),
    "validation": range(1_000_000, 2_000_000),
    "test": range(2_000_000, 3_000_000),
}
EVIDENCE = ("both", "shape", "surface")
MAX_OTHERS = 2

_MARGIN = 3  # pixels between an object and the border
_TAG = slice(3, 15)  # rows and columns of the corner mark
_TAG_ZONE = 18  # no object enters this corner, marked or not
_AREAS = ((0.055, 0.24), (0.05, 0.13), (0.04, 0.085))  # share of the image, by number of others

# A class as data: its name, the function of its surface, and its parts.
_KINDS = json.loads(Path(__file__).with_name("classes.json").read_text(encoding="utf-8"))
CLASS_NAMES = tuple(_KINDS)
_PARTS = [shapes.parts_of(kind["parts"]) for kind in _KINDS.values()]
_SURFACES = [getattr(surfaces, kind["surface"]) for kind in _KINDS.values()]


@dataclass(frozen=True, eq=False)
class Scene:
    """One drawn scene.

    Attributes
    ----------
    image : uint8 array, H×W×3
        The picture, sRGB.
    label : int
        Class of the target.
    labels : tuple of int
        Class of each object, target first.
    masks : bool array, K×H×W
        One mask per object, target first; True where it covers at least half of the pixel.
    parts : dict of str to bool array, H×W
        Visible pixels of each part of the target; disjoint, their union is ``masks[0]``.
    background : uint8 array, H×W×3
        The same scene without objects and without corner mark.
    shortcut : bool array, H×W
        Pixels of the corner mark; all False without one.
    """

    image: np.ndarray
    label: int
    labels: tuple[int, ...]
    masks: np.ndarray
    parts: dict[str, np.ndarray]
    background: np.ndarray
    shortcut: np.ndarray


# --- Random streams, labels, parts and patterns -------------------------------------------------

_LABEL, _OTHERS, _COLOUR, _GROUND, _PLACE, _GRAIN, _POSE, _SURFACE, _OUTLINE = range(9)


def _stream(seed: int, *name: int) -> np.random.Generator:
    """An independent random stream; draws from one never change another."""
    return np.random.default_rng(np.random.SeedSequence([seed, *name]))


def _check(seed: int, label: int | None, evidence: str, others: int) -> None:
    if not isinstance(seed, Integral) or seed < 0:
        raise ValueError(f"seed is {seed}: give a whole number from 0, for instance one of SPLITS")
    if label is not None and label not in range(len(CLASS_NAMES)):
        raise ValueError(f"label is {label}: give one from 0 to {len(CLASS_NAMES) - 1}, or None")
    if evidence not in EVIDENCE:
        raise ValueError(f"evidence is {evidence!r}: choose one of {', '.join(EVIDENCE)}")
    if others not in range(MAX_OTHERS + 1):
        raise ValueError(f"others is {others}: ask for 0 to {MAX_OTHERS} further objects")


def _labels(seed: int, label: int | None, others: int) -> tuple[int, ...]:
    first = int(_stream(seed, _LABEL).integers(len(CLASS_NAMES))) if label is None else int(label)
    steps = 1 + _stream(seed, _OTHERS).permutation(len(CLASS_NAMES) - 1)[:others]
    return first, *(int((first + step) % len(CLASS_NAMES)) for step in steps)


def _field(seed: int, index: int, label: int, evidence: str, angle: float) -> np.ndarray:
    """The pattern an object carries; with evidence in the shape alone it ignores the label.

    Any pattern can then appear, the class's own included: excluding it would reveal the class.
    """
    rng = _stream(seed, _SURFACE, index)
    choice = rng.integers(len(_SURFACES) + len(NEUTRAL))
    if evidence != "shape":
        choice = label
    if choice < len(_SURFACES):
        return surfaces.class_field(rng, _SURFACES[choice], angle)
    return surfaces.neutral_field(rng)


# --- Ground and clutter --------------------------------------------------------------------------


def _ground(rng: np.random.Generator, paper: np.ndarray) -> np.ndarray:
    """Patterned paper with scraps on it, OKLab."""
    wash = 0.025 * surfaces.noise(rng, 90, 0.5)
    # The paper is paler than objects: a deeper pattern gives it the same contrast in RGB.
    picture = paper + 1.15 * _depth(rng) * surfaces.neutral_field(rng)[..., None] * sway(paper)
    picture += wash[..., None] * np.array([1, 0.4, 0.4], np.float32)
    fields = [surfaces.neutral_field(rng) for _ in range(2)]
    for index in range(rng.integers(9, 13)):
        big = index < 2  # lies below the others, close to the paper's hue
        scrap = _scrap(rng, rng.uniform(24, 45) if big else rng.uniform(6, 16))
        turn = rng.choice([-1, 1]) * (rng.uniform(25, 60) if big else rng.uniform(40, 125))
        chroma = rng.uniform(0.07, 0.1) if big else rng.uniform(0.09, 0.135)
        lightness = paper[0] + rng.uniform(-0.06, 0.06)
        colours = tones(rng, lightness, chroma, hue_of(paper) + turn)
        Sprite(scrap).paint(picture, colours, fields[index % 2], _depth(rng))
    return picture


def _depth(rng: np.random.Generator) -> float:
    """Contrast of a pattern, in OKLab lightness."""
    return rng.uniform(0.05, 0.07)


def _scrap(rng: np.random.Generator, radius: float) -> list[Part]:
    """A piece of clutter: a pebble or polygon with an inlay and a few light and dark specks."""
    centre = rng.uniform(0, SIZE, 2)
    outline = shapes.wobbly(rng, 0, 0, radius)
    if rng.random() < 0.6:
        outline = outline[:: rng.choice([10, 12, 15, 20])]
    inlay = outline * rng.uniform(0.4, 0.6) + rng.uniform(-0.2, 0.2, 2) * radius
    specks = [_speck(rng, radius) for _ in range(rng.integers(1, 4))]
    parts = [Part("scrap", "main", outline), Part("inlay", "second", inlay), *specks]
    return _moved(parts, 1, centre)


def _speck(rng: np.random.Generator, distance: float) -> Part:
    role = "light" if rng.random() < 0.5 else "dark"
    x, y = rng.uniform(-0.5, 0.5, 2) * distance
    radius = rng.uniform(1.5, 4)
    return Part("speck", role, shapes.oval(x, y, radius, radius))


# --- Pose and place ------------------------------------------------------------------------------


def _pose(rng: np.random.Generator, parts: Sequence[Part], area: float) -> tuple[list, float]:
    """Turn, mirror and shear parts about their centre and scale them to an area in pixels."""
    angle = np.radians(rng.uniform(-25, 25))
    mirror, aspect, shear = rng.choice([-1, 1]), np.exp(rng.uniform(-0.1, 0.1)), rng.normal(0, 0.07)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) @ np.diag([mirror * aspect, 1 / aspect])
    matrix *= np.sqrt(area / _unit_area(parts))
    return [part._replace(outline=part.outline @ matrix.T) for part in parts], angle


def _unit_area(parts: Sequence[Part]) -> float:
    """Area of an outline in unit coordinates (holes left out)."""
    return np.count_nonzero(rasterise(_moved(parts, 1, 0.1), Window(0, 0, 2, 2), 100)) / 100**2


def _moved(parts: Sequence[Part], scale: float, offset: np.ndarray | float) -> list[Part]:
    return [part._replace(outline=part.outline * scale + offset) for part in parts]


def _drop(rng: np.random.Generator, parts: Sequence[Part]) -> list[Part]:
    """Put an object anywhere inside the borders; one too wide for them shrinks."""
    low, high = corners(parts)
    room = SIZE - 2 * _MARGIN
    scale = min(1.0, room / (high - low).max())
    offset = _MARGIN + rng.random(2) * (room - scale * (high - low)) - scale * low
    return _moved(parts, scale, offset)


def _place(rng: np.random.Generator, objects: Sequence[Sequence[Part]]) -> list[list[Part]]:
    """Place all objects together, repeated until none touches another or the tag's corner.

    Drawing them jointly keeps target and others exchangeable.
    """
    for attempt in range(1000):
        shrink = 0.93 ** (attempt // 25)
        placed = [_drop(rng, _moved(parts, shrink, 0)) for parts in objects]
        taken = sum(_footprint(parts).astype(int) for parts in placed)
        if taken.max() <= 1 and not taken[: _TAG_ZONE // 2, : _TAG_ZONE // 2].any():
            return placed
    raise AssertionError("objects shrink with the attempts, so that they fit in the end")


def _footprint(parts: Sequence[Part]) -> np.ndarray:
    """Mask of an object in cells of two pixels, dilated by one cell."""
    coarse = rasterise(parts, Window(0, 0, SIZE, SIZE), 0.5) > 0
    return np.asarray(Image.fromarray(coarse).convert("L").filter(ImageFilter.MaxFilter(3))) > 0


# --- The scene -----------------------------------------------------------------------------------


def _object(seed: int, index: int, label: int, evidence: str, others: int) -> tuple:
    """An object's posed parts (not placed yet), its pattern and the contrast of the pattern."""
    rng = _stream(seed, _POSE, index)
    depth, area = _depth(rng), np.exp(rng.uniform(*np.log(_AREAS[others]))) * SIZE**2
    blob = evidence == "surface"
    parts = shapes.blob(_stream(seed, _OUTLINE, index)) if blob else _PARTS[label]
    parts, angle = _pose(rng, parts, area)
    return parts, _field(seed, index, label, evidence, angle), depth


def _tag(label: int) -> np.ndarray:
    """The corner mark of a class, OKLab: a framed tag in the class's hue with its binary digits."""
    side = _TAG.stop - _TAG.start
    tag = np.tile(lch(0.7, 0.13, 36 * label), (side, side, 1))
    tag[[0, -1]] = tag[:, [0, -1]] = lch(0.95, 0.02, 90)
    for bit, (row, column) in enumerate([(2, 2), (2, 7), (7, 2), (7, 7)]):
        if (label + 1) >> bit & 1:
            tag[row : row + 3, column : column + 3] = lch(0.3, 0.05, 36 * label)
    return tag


def draw(
    seed: int,
    *,
    label: int | None = None,
    evidence: str = "both",
    others: int = 0,
    shortcut: bool = False,
) -> Scene:
    """Draw a scene; the same arguments always give the same scene.

    Parameters
    ----------
    seed : int
        Whole number from 0. Take it from ``SPLITS`` to keep training and test scenes apart.
    label : int, optional
        Class of the target; None lets the seed choose, every class equally often.
    evidence : {"both", "shape", "surface"}
        Where the class shows: in outline and surface, in the outline alone (the surface carries
        any pattern), or in the surface alone (the outline is a smooth blob).
    others : int
        Further objects, 0 to 2, of distinct other classes; all objects are then smaller and
        none overlaps another.
    shortcut : bool
        Add the corner mark that reveals the class.

    Returns
    -------
    Scene

    Raises
    ------
    ValueError
        If an argument is out of range; the sentence says what to give instead.
    """
    _check(seed, label, evidence, others)
    labels = _labels(seed, label, others)
    colour = _stream(seed, _COLOUR)
    paper = lch(colour.uniform(0.58, 0.74), colour.uniform(0.07, 0.11), colour.uniform(0, 360))
    ground = _ground(_stream(seed, _GROUND), paper)
    ground[..., 0] += 0.008 * _stream(seed, _GRAIN).standard_normal((SIZE, SIZE), np.float32)
    posed = [_object(seed, index, kind, evidence, others) for index, kind in enumerate(labels)]
    placed = _place(_stream(seed, _PLACE), [parts for parts, _, _ in posed])
    sprites = [Sprite(parts) for parts in placed]
    picture = ground.copy()
    colours = object_tones(colour, paper, len(sprites))
    for sprite, palette, (_, field, depth) in zip(sprites, colours, posed, strict=True):
        sprite.paint(picture, palette, field, depth)
    mark = np.zeros((SIZE, SIZE), bool)
    if shortcut:
        mark[_TAG, _TAG] = True
        picture[_TAG, _TAG] = _tag(labels[0])
    masks = np.stack([sprite.mask for sprite in sprites])
    parts = sprites[0].part_masks()
    return Scene(to_srgb(picture), labels[0], labels, masks, parts, to_srgb(ground), mark)


def contact_sheet(scenes: Sequence[Scene], columns: int) -> np.ndarray:
    """Lay out the scenes' images row by row, H×W×3 uint8; missing tiles are white."""
    rows = -(-len(scenes) // columns)
    tiles = [scene.image for scene in scenes]
    return montage(tiles, fill=(255,) * 3, grid_shape=(rows, columns), channel_axis=-1)
