"""Quick pictures for panels: rows of tiles, painted with NumPy and Pillow.

A figure of five maps takes matplotlib a third of a second here; these take a tenth of that. They
look alike: the colours, colour maps and limits are those of :mod:`riba.plots`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib import get_data_path
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import LogLocator, MaxNLocator
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from riba.show import plots

Array = np.ndarray
WIDTH, SHOWN = 1160, 860
"""Pixels of a page at scale 1, and the CSS pixels that it is shown at."""
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MARGIN, TITLE, FOOT, LINE = 8, 26, 24, 24
"""Pixels around a page, above and below a tile for its title and foot, and of a line of notes."""
INK, PALE = "#333333", "#999999"
COLOURS = ("#4477AA", "#EE6677", "#116622", "#CCBB44", "#66CCEE", "#AA3377")
"""Those of ``riba.mplstyle``."""
LABELS, NUMBERS = 82, 62
"""Pixels to the left of bars for their labels, and to the right for their numbers."""
ENLARGED = 3
"""Curves are painted so many times larger, then reduced, so that they are smooth."""


class Box(NamedTuple):
    """Where a tile may paint, in pixels."""

    x: int
    y: int
    width: int
    height: int


class Scale(NamedTuple):
    """A colour scale: its largest value, whether it is diverging about 0, and its unit."""

    top: float
    signed: bool
    unit: str


# --- tiles ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A part of a row. This one is empty; the others say how they are painted.

    Attributes
    ----------
    title
        A line above.
    width
        Relative width of the tile in its row.
    """

    title: str = ""
    width: float = 1.0

    def paint(self, page: Page, box: Box) -> None:
        """Paint the tile."""


@dataclass(frozen=True, kw_only=True)
class Picture(Tile):
    """An H×W×3 picture (0–1).

    Attributes
    ----------
    foot
        A line below.
    title_colour
        Of the line above.
    outline, ink
        H×W bool: its border is drawn, in this colour.
    mark
        Row and column of a cross, as shares (0–1) of height and width.
    scale
        Colour scale, drawn as a bar to the right where it has a unit.
    """

    rgb: Array
    foot: str = ""
    title_colour: str = INK
    outline: Array | None = None
    ink: str = "white"
    mark: tuple[float, float] | None = None
    scale: Scale | None = None

    def paint(self, page: Page, box: Box) -> None:
        """Paint the pixels, as large as the box allows, and what lies on and around them."""
        bar = self.scale is not None and self.scale.unit != ""
        rgb = (np.asarray(self.rgb).clip(0, 1) * 255 + 0.5).astype(np.uint8)
        rows, columns = rgb.shape[:2]
        enlarge = min(box.height / rows, (box.width - 78 * bar) / columns)
        place = box._replace(width=round(enlarge * columns), height=round(enlarge * rows))
        size = round(place.width * page.scale), round(place.height * page.scale)
        # made smaller, the nearest pixels of a lattice would show seams that are not in the map
        how = Image.Resampling.BILINEAR if size[0] < columns else Image.Resampling.NEAREST
        large = Image.fromarray(rgb).resize(size, how)
        if self.outline is not None:
            large.paste(self.ink, mask=_border(self.outline, size, round(1.4 * page.scale)))
        page.paste(large, box.x, box.y)
        if self.mark is not None:
            row, column = self.mark
            page.cross(place.x + column * place.width, place.y + row * place.height)
        middle = place.x + place.width / 2
        page.text(middle, place.y - 5, self.title, colour=self.title_colour, anchor="md")
        page.text(middle, place.y + place.height + 4, self.foot, size=13, anchor="ma")
        if bar:
            page.colour_bar(place, self.scale)


def map_picture(
    values: Array,
    *,
    unit: str = "",
    limit: float | None = None,
    over: Array | None = None,
    opacity: Array | float = 1.0,
    **labels: object,
) -> Picture:
    """An H×W map as a picture with a colour bar; sequential from 0, or diverging about 0.

    Parameters
    ----------
    unit
        What one unit of colour means; no colour bar where it is empty.
    limit
        Top of the scale; by default :func:`riba.plots.upper_limit`.
    over, opacity
        An H×W×3 picture below, and how much of the map lies over it: 0–1, or H×W of that.
    labels
        Further attributes of :class:`Picture`.

    Raises
    ------
    ValueError
        The map holds NaN or infinite values.
    """
    values = np.asarray(values, dtype=float)
    if not np.isfinite(values).all():
        raise ValueError(f"the map {labels.get('title', '')!r} holds NaN or infinite values")
    top = plots.upper_limit(values) if limit is None else limit
    signed = bool((values < 0).any())
    rgb = plots.in_colour(values, top)
    if over is not None:
        weight = np.broadcast_to(np.asarray(opacity, dtype=float), values.shape)[..., None]
        rgb = weight * rgb + (1 - weight) * np.asarray(over)
    ink = "black" if signed else "white"
    return Picture(rgb=rgb, ink=ink, scale=Scale(top, signed, unit), **labels)


@dataclass(frozen=True, kw_only=True)
class Curves(Tile):
    """Lines over a common axis; its title says what the vertical axis shows, with units.

    Attributes
    ----------
    x
        Where the points of every line stand.
    lines
        The heights of the points of each line, and its colour; pale ones are thin.
    at
        Where a vertical line stands.
    x_label
        What the horizontal axis shows, with units.
    log_x, log_y
        Whether an axis is logarithmic.
    y_range
        Of the vertical axis; by default that of the lines.
    """

    x: Sequence[float]
    lines: Sequence[tuple[Sequence[float], str]]
    at: float
    x_label: str
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None

    def paint(self, page: Page, box: Box) -> None:
        """Paint the lines, three times as large and then reduced, and the axes with their ticks."""
        frame = Box(box.x + 52, box.y, box.width - 60, box.height - 22)
        across = axis(self.x, self.log_x)
        upward = axis(self.y_range or [y for line, _ in self.lines for y in line], self.log_y)
        size = [round(side * page.scale) * ENLARGED for side in (frame.width, frame.height)]
        large = Image.new("RGB", size, "white")
        for heights, colour in self.lines:
            up = upward(np.clip(heights, upward.vmin, upward.vmax))
            points = np.stack([across(self.x) * size[0], (1 - up) * size[1]], axis=1)
            thick = round((1.1 if colour == PALE else 2.2) * page.scale * ENLARGED)
            ImageDraw.Draw(large).line(points.ravel().tolist(), colour, thick, joint="curve")
        page.paste(large.reduce(ENLARGED), frame.x, frame.y)
        bottom, middle = frame.y + frame.height, frame.x + frame.width / 2
        marker = frame.x + across(self.at) * frame.width
        page.rectangle(marker, frame.y, 1, frame.height, PALE)
        page.rectangle(frame.x, frame.y, 1, frame.height, INK)
        page.rectangle(frame.x, bottom, frame.width, 1, INK)
        for value in ticks(across):
            x = frame.x + across(value) * frame.width
            page.rectangle(x, bottom, 1, 4, INK)
            page.text(x, bottom + 6, f"{value:.6g}", size=12, anchor="ma")
        for value in ticks(upward):
            y = bottom - upward(value) * frame.height
            page.rectangle(frame.x - 4, y, 4, 1, INK)
            page.text(frame.x - 7, y, f"{value:.6g}", size=12, anchor="rm")
        page.text(middle, bottom + 21, self.x_label, size=13, anchor="ma")
        page.text(box.x + box.width / 2, box.y - 5, self.title, anchor="md")


def axis(values: Sequence[float], log: bool) -> Normalize:
    """From values to shares (0–1) of an axis from the lowest to the highest of ``values``."""
    if log:
        return LogNorm(max(min(values), 1e-12), max(*values, 1e-12))
    return Normalize(min(values), max(values))


def ticks(axis: Normalize) -> list[float]:
    """Round values along an axis, within it."""
    low, high = axis.vmin, axis.vmax
    decades = LogLocator(subs=(1,) if high > 100 * low else (1, 2, 5))
    locator = decades if isinstance(axis, LogNorm) else MaxNLocator(5)
    return [value for value in locator.tick_values(low, high) if 0 <= axis(value).round(6) <= 1]


@dataclass(frozen=True, kw_only=True)
class Bars(Tile):
    """Horizontal bars, one row a label, each with its number.

    Attributes
    ----------
    rows
        Label to the lengths of its bars, one a series.
    colours
        Of the series.
    limit
        Length of a full bar; by default that of the longest.
    number
        Format of the numbers.
    """

    rows: dict[str, Sequence[float]]
    colours: Sequence[str] = COLOURS
    limit: float | None = None
    number: str = "{:.2f}"

    def paint(self, page: Page, box: Box) -> None:
        """Paint the tile."""
        page.text(box.x + box.width / 2, box.y - 5, self.title, anchor="md")
        full = self.limit or max(1e-12, *(max(values) for values in self.rows.values()))
        step = box.height / len(self.rows)
        left = box.x + LABELS
        for row, (label, values) in enumerate(self.rows.items()):
            middle = box.y + (row + 0.5) * step
            page.text(left - 6, middle, shortened(label, LABELS - 6), size=13, anchor="rm")
            thick = min(0.8 * step / len(values), 20)
            for place, (value, colour) in enumerate(zip(values, self.colours, strict=False)):
                top = middle + (place - len(values) / 2) * thick
                length = max(0.0, value) / full * (box.width - LABELS - NUMBERS)
                page.rectangle(left, top, length, thick * 0.92, colour)
                number = self.number.format(value)
                size = 13 if thick > 14 else 11
                page.text(left + length + 6, top + thick / 2, number, size=size, anchor="lm")


class View(NamedTuple):
    """What a panel shows: rows of tiles, each with its height in pixels, and lines of text."""

    rows: Sequence[tuple[int, Sequence[Tile]]]
    notes: Sequence[str] = ()


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
    buffer = io.BytesIO()
    page.image.save(buffer, "png", compress_level=effort)
    return buffer.getvalue()


# --- the page ------------------------------------------------------------------------------------


class Page:
    """White paper; coordinates are in pixels at scale 1."""

    def __init__(self, height: float, scale: float) -> None:
        self.scale = scale
        self.image = Image.new("RGB", (round(WIDTH * scale), round(height * scale)), "white")
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self, x: float, y: float, words: str, *, size: int = 15, colour: str = INK, anchor: str
    ) -> None:
        """Words at a place; ``anchor`` as Pillow has it."""
        place = x * self.scale, y * self.scale
        self.draw.text(place, words, colour, _font(size * self.scale), anchor=anchor)

    def rectangle(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A filled rectangle; nothing where it is empty."""
        if width > 0 and height > 0:
            corners = (x, y, x + width, y + height)
            self.draw.rectangle([corner * self.scale for corner in corners], colour)

    def paste(self, image: Image.Image, x: float, y: float) -> None:
        """An image at its own size, by its upper left corner."""
        self.image.paste(image, (round(x * self.scale), round(y * self.scale)))

    def cross(self, x: float, y: float) -> None:
        """A cross that can be seen on any ground."""
        for colour, thick in (("white", 5), (COLOURS[2], 2)):
            self.rectangle(x - 8, y - thick / 2, 16, thick, colour)
            self.rectangle(x - thick / 2, y - 8, thick, 16, colour)

    def colour_bar(self, beside: Box, scale: Scale) -> None:
        """A colour scale to the right of a map, as high as the map."""
        x, y, height = beside.x + beside.width + 6, beside.y, beside.height
        low = -1 if scale.signed else 0
        colours = plots.in_colour(np.linspace(1, low, 256)[:, None], limit=1)
        shades = Image.fromarray((colours * 255).astype(np.uint8))
        size = round(9 * self.scale), round(height * self.scale)
        self.paste(shades.resize(size), x, y)
        power = 0 if 1e-2 <= scale.top < 1e4 else math.floor(math.log10(scale.top))
        # fewer digits in the middle, where the unit stands beside
        for place, (share, digits) in enumerate(((1, 3), ((1 + low) / 2, 2), (low, 3))):
            number = f"{scale.top * share / 10**power:.{digits}g}".replace("-", "−")
            self.text(x + 13, y + place * (height - 12) / 2 + 6, number, size=12, anchor="lm")
        exponent = str(power).translate(SUPERSCRIPTS)
        unit = f"{scale.unit}, in 10{exponent}" if power else scale.unit
        words = Image.new("RGB", (size[1], round(18 * self.scale)), "white")
        middle = words.width / 2, words.height / 2
        ImageDraw.Draw(words).text(middle, unit, INK, _font(13 * self.scale), anchor="mm")
        self.paste(words.rotate(90, expand=True), x + 54, y)


def shortened(words: str, width: float, size: int = 13) -> str:
    """Words that fit into ``width`` pixels, the end replaced by … where they are too long."""
    font = _font(size)
    while font.getlength(words) > width:
        words = f"{words.rstrip('…')[:-1].rstrip()}…"
    return words


def _font(size: float) -> ImageFont.FreeTypeFont:
    """The font of matplotlib's figures, which has Greek letters."""
    path = f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"
    return ImageFont.truetype(path, round(size), layout_engine=ImageFont.Layout.BASIC)


def _border(mask: Array, size: tuple[int, int], thick: int) -> Image.Image:
    """The border of a mask enlarged to ``size`` (width, height): white on black."""
    large = Image.fromarray(np.asarray(mask)).convert("L").resize(size, Image.Resampling.NEAREST)
    return ImageChops.subtract(large, large.filter(ImageFilter.MinFilter(2 * max(1, thick) + 1)))
