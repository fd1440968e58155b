"""Quick pictures for panels: rows of tiles, painted with NumPy and Pillow.

A figure of five maps takes matplotlib a third of a second here; these take a tenth of that. They
look alike: the colours, colour maps and limits are those of :mod:`riba.plots`.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps, get_data_path
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from riba.show import plots

Array = np.ndarray
WIDTH, SHOWN = 1160, 860
"""Pixels of a page at scale 1, and the CSS pixels that it is shown at."""
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MARGIN, TITLE, FOOT, LINE = 8, 26, 24, 24
"""Pixels around a page, above and below a tile for its title and foot, and of a line of notes."""
INK, PALE = "#333333", "#999999"
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377")
"""Paul Tol's "bright", as in ``riba.mplstyle``."""
SHARP = 3
"""Lines of curves are painted so many times larger, then reduced."""


class Box(NamedTuple):
    """Where a tile may paint, in pixels."""

    x: int
    y: int
    width: int
    height: int


# --- tiles ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An H×W×3 picture (0–1).

    Attributes
    ----------
    title, foot
        A line above and one below.
    outline, ink
        H×W bool: its border is drawn, in this colour.
    mark
        Row and column of a cross, as shares (0–1) of height and width.
    width
        Relative width of the tile in its row.
    """

    rgb: Array
    title: str = ""
    foot: str = ""
    outline: Array | None = None
    ink: str = "white"
    mark: tuple[float, float] | None = None
    width: float = 1.0

    def paint(self, page: Page, box: Box) -> None:
        """Paint the tile."""
        page.picture(box, np.asarray(self.rgb), self)


@dataclass(frozen=True, kw_only=True)
class Map:
    """An H×W map with its colour bar; sequential from 0, or diverging about 0.

    Attributes
    ----------
    unit
        What one unit of colour means; no colour bar where it is empty.
    limit
        Top of the scale; by default :func:`riba.plots.upper_limit`.
    over, opacity
        An H×W×3 picture below, and how much of the map lies over it: 0–1, or H×W of that.

    The others are those of :class:`Picture`.
    """

    values: Array
    title: str = ""
    unit: str = ""
    limit: float | None = None
    over: Array | None = None
    opacity: Array | float = 1.0
    foot: str = ""
    outline: Array | None = None
    mark: tuple[float, float] | None = None
    width: float = 1.0

    @property
    def signed(self) -> bool:
        """Whether a value is negative."""
        return bool((np.asarray(self.values) < 0).any())

    @property
    def ink(self) -> str:
        """Colour of an outline that can be seen on this map."""
        return "black" if self.signed else "white"

    def paint(self, page: Page, box: Box) -> None:
        """Paint the tile.

        Raises
        ------
        ValueError
            The map holds NaN or infinite values.
        """
        values = np.asarray(self.values, dtype=float)
        if not np.isfinite(values).all():
            raise ValueError(f"the map {self.title!r} holds NaN or infinite values")
        top = plots.upper_limit(values) if self.limit is None else self.limit
        share = (values / top + 1) / 2 if self.signed else values / top
        rgb = _colours(self.signed)[(share.clip(0, 1) * 255).astype(int)]
        if self.over is not None:
            weight = np.asarray(self.opacity, dtype=float)
            weight = weight[..., None] if weight.ndim else weight
            rgb = weight * rgb + (1 - weight) * np.asarray(self.over)
        shown = page.picture(box, rgb, self, bar=bool(self.unit))
        if self.unit:
            page.colour_bar(shown, top, self.signed, self.unit)


@dataclass(frozen=True)
class Line:
    """A line of :class:`Curves`: points, colour, label, and whether it is dotted."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str = INK
    label: str = ""
    dotted: bool = False


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Lines over a common axis.

    Attributes
    ----------
    lines
        Each :class:`Line`.
    title, x_label
        What the vertical and the horizontal axis show, with units.
    log_x, log_y
        Whether an axis is logarithmic.
    y_range
        Of the vertical axis; by default that of the lines.
    at
        Where a vertical line stands.
    points
        Points in addition: x, y, colour.
    """

    lines: Sequence[Line]
    title: str = ""
    x_label: str = ""
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    at: float | None = None
    points: Sequence[tuple[float, float, str]] = ()
    width: float = 1.0

    def paint(self, page: Page, box: Box) -> None:
        """Paint the tile."""
        page.text(box.x + box.width / 2, box.y - 5, self.title, anchor="md")
        frame = Box(box.x + 52, box.y, box.width - 60, box.height - 22)
        across = _Axis([v for line in self.lines for v in line.x], self.log_x)
        values = self.y_range or [v for line in self.lines for v in line.y]
        upward = _Axis(values, self.log_y)
        page.frame(frame, across, upward, self.x_label)
        page.curves(frame, across, upward, self)
        labelled = [line for line in self.lines if line.label]
        for row, line in enumerate(reversed(labelled)):
            y = frame.y + frame.height - 14 - 17 * row
            words = f"— {line.label}"
            page.clear(frame.x + 10, y, words, size=12)
            page.text(frame.x + 10, y, words, colour=line.colour, size=12, anchor="lm")


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Horizontal bars, one row a label.

    Attributes
    ----------
    rows
        Label to the lengths of its bars, one a series.
    colours
        Of the series.
    limit
        Length of a full bar.
    number
        Format of the number that is written behind every bar; NaN is written as "undefined".
    label
        Pixels for the labels beside the bars; 0: they are written on the bars.
    """

    rows: dict[str, Sequence[float]]
    title: str = ""
    colours: Sequence[str] = COLOURS
    limit: float | None = None
    number: str = "{:.2f}"
    label: int = 82
    width: float = 1.0

    def paint(self, page: Page, box: Box) -> None:
        """Paint the tile."""
        page.text(box.x + box.width / 2, box.y - 5, self.title, anchor="md")
        lengths = [value for values in self.rows.values() for value in values]
        full = self.limit or max(1e-12, *lengths)
        room = box.width - self.label - 62
        step = box.height / len(self.rows)
        for row, (label, values) in enumerate(self.rows.items()):
            middle = box.y + (row + 0.5) * step
            thick = min(0.8 * step / len(values), 20)
            for place, (value, colour) in enumerate(zip(values, self.colours, strict=False)):
                top = middle + (place - len(values) / 2) * thick
                length = max(0.0, value) / full * room if value == value else 0.0
                page.rectangle(box.x + self.label, top, length, thick * 0.92, colour)
                number = self.number.format(value) if value == value else "undefined"
                # numbers of labels that lie on their bars stand in a column of their own
                x = box.x + self.label + (length if self.label else room) + 6
                y = top + thick / 2
                page.text(x, y, number, size=13 if thick > 14 else 11, anchor="lm")
            beside = {"x": box.x + self.label - 6, "anchor": "rm"}
            on_it = {"x": box.x + 5, "anchor": "lm"}
            page.text(y=middle, words=label, size=13, **(beside if self.label else on_it))


@dataclass(frozen=True)
class Empty:
    """Room that is left free."""

    width: float = 1.0

    def paint(self, page: Page, box: Box) -> None:
        """Paint nothing."""


Tile = Picture | Map | Curves | Bars | Empty


@dataclass(frozen=True)
class View:
    """What a panel shows: rows of tiles, and lines of text below.

    Attributes
    ----------
    rows
        Each a height in pixels and its tiles.
    notes
        Lines of text; what stands between dollar signs is mathtext.
    """

    rows: Sequence[tuple[int, Sequence[Tile]]]
    notes: Sequence[str] = field(default=())


def paint(view: View, scale: float = 1.0, effort: int = 3) -> bytes:
    """The view as PNG, ``WIDTH`` · ``scale`` pixels wide; more ``effort`` (1–9), fewer bytes."""
    rows = sum(TITLE + height + FOOT for height, _ in view.rows)
    page = Page(rows + LINE * len(view.notes) + 2 * MARGIN, scale)
    y = MARGIN
    for height, tiles in view.rows:
        unit = (WIDTH - 2 * MARGIN) / sum(tile.width for tile in tiles)
        x = float(MARGIN)
        for tile in tiles:
            tile.paint(page, Box(round(x), y + TITLE, round(tile.width * unit) - 14, height))
            x += tile.width * unit
        y += TITLE + height + FOOT
    for line in view.notes:
        page.text(MARGIN, y + LINE / 2, line, size=14, anchor="lm")
        y += LINE
    return page.png(effort)


# --- the page ------------------------------------------------------------------------------------


class Page:
    """White paper; coordinates are in pixels at scale 1."""

    def __init__(self, height: float, scale: float) -> None:
        self.scale = scale
        self.image = Image.new("RGB", (round(WIDTH * scale), round(height * scale)), "white")
        self.draw = ImageDraw.Draw(self.image)

    def png(self, effort: int) -> bytes:
        """The page as PNG, compressed with an effort of 1–9."""
        buffer = io.BytesIO()
        self.image.save(buffer, "png", compress_level=effort)
        return buffer.getvalue()

    def text(
        self, x: float, y: float, words: str, *, size: int = 15, colour: str = INK, anchor: str
    ) -> None:
        """Words at a place; ``anchor`` as Pillow has it."""
        font = _font(round(size * self.scale))
        x, y = x * self.scale, y * self.scale
        for place, part in enumerate(words.split("$")):
            if place % 2 == 0:
                self.draw.text((x, y), part, colour, font, anchor=anchor)
                x += font.getlength(part)
            elif part:  # mathtext, which stands to the left and in the middle only
                formula = _formula(part, round(size * self.scale))
                self.image.paste(INK, (round(x), round(y - formula.height / 2)), formula)
                x += formula.width

    def clear(self, x: float, y: float, words: str, *, size: int) -> None:
        """Make room for words that begin at ``x`` and have their middle at ``y``."""
        width = _font(round(size * self.scale)).getlength(words) / self.scale
        self.rectangle(x - 2, y - size * 0.6, width + 4, size * 1.2, "white")

    def rectangle(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A filled rectangle; nothing where it is empty."""
        if width > 0 and height > 0:
            corners = (x, y, x + width, y + height)
            self.draw.rectangle([corner * self.scale for corner in corners], colour)

    def picture(self, box: Box, rgb: Array, tile: Picture | Map, *, bar: bool = False) -> Box:
        """A picture, as large as the box allows, with what its tile says about it; where it is."""
        if rgb.dtype != np.uint8:
            rgb = (rgb.clip(0, 1) * 255 + 0.5).astype(np.uint8)
        rows, columns = rgb.shape[:2]
        enlarge = min(box.height / rows, (box.width - 74 * bar) / columns)
        place = Box(box.x, box.y, round(enlarge * columns), round(enlarge * rows))
        size = round(place.width * self.scale), round(place.height * self.scale)
        large = np.array(Image.fromarray(rgb).resize(size, Image.Resampling.NEAREST))
        if tile.outline is not None:
            border = _border(np.asarray(tile.outline), size, round(1.4 * self.scale))
            large[border] = np.array(to_rgb(tile.ink)) * 255
        corner = round(box.x * self.scale), round(box.y * self.scale)
        self.image.paste(Image.fromarray(large), corner)
        if tile.mark is not None:
            self.cross(box.x + tile.mark[1] * place.width, box.y + tile.mark[0] * place.height)
        middle = box.x + place.width / 2
        self.text(middle, box.y - 5, tile.title, anchor="md")
        self.text(middle, box.y + place.height + 4, tile.foot, size=13, anchor="ma")
        return place

    def cross(self, x: float, y: float) -> None:
        """A cross that can be seen on any ground."""
        for colour, thick in (("white", 5), ("#228833", 2)):
            self.rectangle(x - 8, y - thick / 2, 16, thick, colour)
            self.rectangle(x - thick / 2, y - 8, thick, 16, colour)

    def colour_bar(self, beside: Box, top: float, signed: bool, unit: str) -> None:
        """A scale to the right of a map, as high as the map."""
        x, y, height = beside.x + beside.width + 6, beside.y, beside.height
        shades = _colours(signed)[::-1, None]
        size = round(9 * self.scale), round(height * self.scale)
        bar = Image.fromarray((shades * 255).astype(np.uint8)).resize(size)
        self.image.paste(bar, (round(x * self.scale), round(y * self.scale)))
        power = 0 if 1e-2 <= top < 1e4 else math.floor(math.log10(top))
        for share in (0.0, 0.5, 1.0):
            value = top * (2 * share - 1 if signed else share) / 10**power
            number = f"{value:.3g}".replace("-", "−")
            self.text(x + 13, y + (1 - share) * (height - 12) + 6, number, size=12, anchor="lm")
        if power:
            unit = f"{unit}, in 10{str(power).translate(RAISED)}"
        font = _font(round(13 * self.scale))
        words = Image.new("L", (size[1], round(18 * self.scale)))
        middle = words.width / 2, words.height / 2
        ImageDraw.Draw(words).text(middle, unit, 255, font, anchor="mm")
        words = words.rotate(90, expand=True)
        self.image.paste(INK, (round((x + 50) * self.scale), round(y * self.scale)), words)

    def frame(self, box: Box, across: _Axis, upward: _Axis, x_label: str) -> None:
        """Axes with their ticks."""
        self.rectangle(box.x, box.y, 1, box.height, INK)
        self.rectangle(box.x, box.y + box.height, box.width, 1, INK)
        for value, share in across.ticks():
            x = box.x + share * box.width
            self.rectangle(x, box.y + box.height, 1, 4, INK)
            self.text(x, box.y + box.height + 6, value, size=12, anchor="ma")
        for value, share in upward.ticks():
            y = box.y + (1 - share) * box.height
            self.rectangle(box.x - 4, y, 4, 1, INK)
            self.text(box.x - 7, y, value, size=12, anchor="rm")
        below = box.y + box.height + 21
        self.text(box.x + box.width / 2, below, x_label, size=13, anchor="ma")

    def curves(self, box: Box, across: _Axis, upward: _Axis, tile: Curves) -> None:
        """The lines and points of a tile, painted large and reduced so that they are smooth."""
        size = round(box.width * self.scale), round(box.height * self.scale)
        large = Image.new("RGB", (size[0] * SHARP, size[1] * SHARP), "white")
        draw, thick = ImageDraw.Draw(large), round(2.2 * self.scale * SHARP)

        def place(x: float, y: float) -> tuple[float, float]:
            return across.share(x) * large.width, (1 - upward.share(y)) * large.height

        if tile.at is not None:
            x, _ = place(tile.at, 1.0)
            draw.line([(x, 0), (x, large.height)], PALE, thick // 2)
        for line in tile.lines:
            points = [place(x, y) for x, y in zip(line.x, line.y, strict=True)]
            if not line.dotted:
                draw.line(points, line.colour, thick, joint="curve")
                continue
            for (a, b), (c, d) in itertools.pairwise(points):
                for dot in np.arange(0, 1, 6 * thick / max(math.hypot(c - a, d - b), 1)):
                    x, y = a + dot * (c - a), b + dot * (d - b)
                    corners = [x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2]
                    draw.ellipse(corners, line.colour)
        for x, y, colour in tile.points:
            x, y = place(x, y)
            draw.ellipse([x - 2 * thick, y - 2 * thick, x + 2 * thick, y + 2 * thick], colour)
        small = large.reduce(SHARP)
        self.image.paste(small, (round(box.x * self.scale) + 1, round(box.y * self.scale)))


class _Axis:
    """From values to shares (0–1) of an axis."""

    def __init__(self, values: Sequence[float], log: bool) -> None:
        self.log = log
        low, high = float(min(values)), float(max(values))
        self.low, self.high = (self._place(low), self._place(high))
        if self.high - self.low < 1e-9:
            self.high = self.low + 1

    def _place(self, value: float) -> float:
        return math.log10(max(float(value), 1e-12)) if self.log else float(value)

    def share(self, value: float) -> float:
        """Where a value lies; it may lie outside."""
        return (self._place(value) - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[str, float]]:
        """Labels and their shares."""
        if self.log:
            steps = (1,) if self.high - self.low > 2 else (1, 2, 5)
            decades = range(math.floor(self.low), math.ceil(self.high) + 1)
            values = [step * 10.0**decade for decade in decades for step in steps]
        else:
            values = _nice(self.low, self.high)
        found = [(f"{value:.6g}", self.share(value)) for value in values]
        return [(label, share) for label, share in found if -1e-6 <= share <= 1 + 1e-6]


@lru_cache(maxsize=64)
def _nice(low: float, high: float) -> list[float]:
    return MaxNLocator(5).tick_values(low, high).tolist()


@lru_cache(maxsize=32)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font of matplotlib's figures, which knows Greek."""
    path = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=256)
def _formula(words: str, size: int) -> Image.Image:
    """Mathtext as a grey image: how much ink there is."""
    parsed = MathTextParser("agg").parse(f"${words}$", 72, FontProperties(size=1.15 * size))
    return Image.fromarray(np.asarray(parsed.image).astype(np.uint8))


@lru_cache(maxsize=2)
def _colours(signed: bool) -> Array:
    """256×3 colours of a map, 0–1."""
    return colormaps[plots.SIGNED if signed else plots.UNSIGNED](np.arange(256))[:, :3]


def _border(mask: Array, size: tuple[int, int], thick: int) -> Array:
    """The border of a mask enlarged to ``size`` (width, height), as bool."""
    large = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    inner = large.copy()
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        for distance in range(1, max(1, thick) + 1):
            inner &= np.roll(large, step * distance, axis)
    return large & ~inner
