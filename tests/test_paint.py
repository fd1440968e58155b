"""The quick painter shows what it was given, where it says."""

import io
import math
from itertools import combinations

import numpy as np
import pytest
from colorspacious import cspace_convert, deltaE
from matplotlib import colormaps, rc_context, rcParams
from matplotlib.colors import to_rgb
from PIL import Image

from riba.show import plots
from riba.show.panels import paint as module
from riba.show.panels.paint import (
    FOOT,
    LINE,
    MARGIN,
    TITLE,
    WIDTH,
    Bars,
    Curves,
    Picture,
    Tile,
    View,
    map_picture,
    paint,
)


def pixels(view, scale=1.0):
    """H×W×3, 0–255."""
    return np.array(Image.open(io.BytesIO(paint(view, scale)))).astype(int)


def square(tile, side=128, scale=1.0):
    """The tile's square alone."""
    page = pixels(View([(side, [tile])]), scale)
    left, top, size = (round(v * scale) for v in (MARGIN, MARGIN + TITLE, side))
    return page[top : top + size, left : left + size]


def test_a_page_has_the_size_of_its_rows():
    view = View([(100, [Tile()]), (50, [Tile()])], notes=["one", "two"])
    height = 2 * MARGIN + 150 + 2 * (TITLE + FOOT) + 2 * LINE
    assert pixels(view).shape == (height, WIDTH, 3)
    assert pixels(view, 2).shape == (2 * height, 2 * WIDTH, 3)
    assert paint(view) == paint(view)


def test_a_picture_keeps_its_colours():
    rgb = np.random.default_rng(0).random((32, 32, 3))
    shown = square(Picture(rgb=rgb))
    assert np.abs(shown[2::4, 2::4] - 255 * rgb).max() <= 1
    assert np.abs(square(Picture(rgb=rgb), scale=3)[6::12, 6::12] - 255 * rgb).max() <= 1


def test_a_lattice_made_smaller_has_no_seams():
    dots = np.zeros((224, 224, 3))
    dots[::2, ::2] = 1
    shown = square(Picture(rgb=dots), side=113)[1:-1, 1:-1].mean(axis=2)
    quarters = [
        half.mean() for rows in np.array_split(shown, 2) for half in np.array_split(rows, 2, 1)
    ]
    assert np.ptp(quarters) < 3


@pytest.mark.parametrize("signed", [False, True])
def test_a_map_has_the_colours_of_the_figures(signed):
    values = np.random.default_rng(1).random((16, 16)) - 0.4 * signed
    shown = square(map_picture(values))[4::8, 4::8]
    top = plots.upper_limit(values)
    share = (values / top + 1) / 2 if signed else values / top
    expected = colormaps[plots.SIGNED if signed else plots.UNSIGNED](share.clip(0, 1))[..., :3]
    assert np.abs(shown - 255 * expected).max() <= 5


def test_a_limit_is_the_top_of_the_scale():
    low, high = (square(map_picture(np.ones((4, 4)), limit=top))[9, 9] for top in (10, 1))
    colours = colormaps[plots.UNSIGNED]([0.1, 1.0])[:, :3] * 255
    assert np.abs(np.stack([low, high]) - colours).max() <= 3


def test_what_is_hidden_shows_the_picture_below():
    over = np.full((2, 2, 3), 0.5)
    opacity = np.array([[0.0, 1.0], [0.5, 0.0]])
    shown = square(map_picture(np.ones((2, 2)), limit=1, over=over, opacity=opacity), 64)
    bright = np.array(colormaps[plots.UNSIGNED](1.0)[:3]) * 255
    assert np.abs(shown[10, 10] - 127.5).max() <= 1
    assert np.abs(shown[10, 50] - bright).max() <= 1
    assert np.abs(shown[50, 10] - (bright + 127.5) / 2).max() <= 1
    assert np.abs(shown[50, 50] - 127.5).max() <= 1


def test_the_outline_follows_the_mask_and_nothing_else():
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    plain, lined = (square(Picture(rgb=np.zeros((32, 32, 3)), outline=m)) for m in (None, mask))
    changed = (plain != lined).any(2)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (32, 95, 32, 95)
    assert not changed[40:88, 40:88].any()
    assert (lined[changed] == 255).all()
    dark = square(map_picture(-np.ones((32, 32)), outline=mask))
    assert (dark[32, 32:95] == 0).all()  # black on light


def test_a_mark_lies_where_it_says():
    plain, marked = (square(Picture(rgb=np.zeros((8, 8, 3)), mark=m)) for m in (None, (0.25, 0.5)))
    rows, columns = np.nonzero((plain != marked).any(2))
    assert rows.mean() == pytest.approx(32, abs=1)
    assert columns.mean() == pytest.approx(64, abs=1)


def test_a_colour_bar_runs_from_bottom_to_top():
    page = pixels(View([(128, [map_picture(np.ones((4, 4)), unit="nats / pixel")])]))
    bar = page[MARGIN + TITLE : MARGIN + TITLE + 128, MARGIN + 128 + 10]
    assert bar[2].sum() > 500
    assert bar[-2].sum() < 30
    bare = pixels(View([(128, [map_picture(np.ones((4, 4)))])]))
    assert (bare[MARGIN + TITLE : MARGIN + TITLE + 128, MARGIN + 130 :] == 255).all()


def test_titles_feet_and_notes_leave_ink():
    empty = pixels(View([(64, [Picture(rgb=np.ones((2, 2, 3)))])], notes=[""]))
    for tile in ({"title": "β"}, {"foot": "λ"}):
        page = pixels(View([(64, [Picture(rgb=np.ones((2, 2, 3)), **tile)])], notes=[""]))
        assert (page != empty).any()
    page = pixels(View([(64, [Picture(rgb=np.ones((2, 2, 3)))])], notes=["a note"]))
    assert (page[-LINE - MARGIN :] != 255).any()


def test_bars_are_as_long_as_their_numbers():
    page = pixels(View([(80, [Bars(rows={"a": [1.0], "b": [0.5], "c": [-1.0]}, limit=1.0)])]))
    blue = (np.abs(page - 255 * np.array(to_rgb(module.COLOURS[0]))).max(2) <= 2).sum(1)
    one, half, none = (blue[MARGIN + TITLE + round((k + 0.5) * 80 / 3)] for k in range(3))
    assert one == pytest.approx(2 * half, abs=3)
    assert one > 500
    assert none == 0


def test_a_long_name_of_bars_stays_in_its_tile():
    name = "German short-haired pointer"
    tiles = [Picture(rgb=np.ones((2, 2, 3))), Bars(rows={name: [1.0], "cat": [0.5]})]
    page = pixels(View([(80, tiles)]))
    plain = pixels(View([(80, [tiles[0], Bars(rows={"": [1.0], "cat": [0.5]})])]))
    columns = np.nonzero((page != plain).any((0, 2)))[0]
    assert columns.min() >= WIDTH // 2
    assert module.shortened("cat", 60) == "cat"
    assert module.shortened(name, 76).startswith("German")


def curve(x, lines, at=0.0):
    return pixels(View([(200, [Curves(x=x, lines=lines, at=at, title="y", x_label="x")])]))


def test_a_line_goes_through_its_points():
    page = curve([0, 1, 2], [([0, 4, 0], "#4477AA")])
    blue = np.abs(page - 255 * np.array(to_rgb("#4477AA"))).max(2) <= 6
    rows, columns = np.nonzero(blue)
    peak = columns[rows == rows.min()].mean()
    assert peak == pytest.approx((columns.min() + columns.max()) / 2, abs=3)
    assert rows.min() == pytest.approx(MARGIN + TITLE, abs=3)
    assert rows.max() == pytest.approx(MARGIN + TITLE + 178, abs=3)


def test_a_logarithmic_axis_has_its_decades():
    axis = module.axis([0.1, 1000], log=True)
    assert module.ticks(axis) == pytest.approx([10.0**d for d in range(-1, 4)])
    assert list(axis(module.ticks(axis))) == pytest.approx([(d + 1) / 4 for d in range(-1, 4)])
    assert axis(math.sqrt(0.1 * 1000)) == pytest.approx(0.5)


def test_a_linear_axis_has_round_ticks_within_it():
    axis = module.axis([0.13, 0.91], log=False)
    assert module.ticks(axis) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert all(0 <= axis(tick) <= 1 for tick in module.ticks(axis))
    assert module.axis([2, 2], log=False)(2) == 0  # nothing to divide by
    assert np.isfinite(curve([0, 1], [([2, 2], "#4477AA")])).all()
    silent = Curves(x=[0, 1], lines=[([0, 0], "#4477AA")], at=0, x_label="x", log_y=True)
    assert pixels(View([(60, [silent])])).shape


INK = np.round(255 * np.array(to_rgb(module.INK)))
PALE = [0x99] * 3


def test_the_marker_and_thin_lines_are_drawn():
    lines = [([0, 1], "#4477AA")]
    columns = []
    for at in (0.25, 0.75):
        page = curve([0, 1], lines, at)[MARGIN + TITLE + 20 : MARGIN + TITLE + 40, 70:]
        columns.append(np.nonzero((page == PALE).all((0, 2)))[0].mean())
    assert columns[1] - columns[0] == pytest.approx(0.5 * (WIDTH - 2 * MARGIN - 14 - 60), abs=2)
    thin = curve([0, 1], [*lines, ([0.5, 0.5], module.PALE)])
    thick = curve([0, 1], [*lines, ([0.5, 0.5], module.COLOURS[2])])
    plain = curve([0, 1], lines)
    assert 0 < (thin != plain).any(2).sum() < (thick != plain).any(2).sum()


def test_tiles_share_a_row_by_their_widths():
    tiles = [Picture(rgb=np.zeros((2, 2, 3)), width=3), Picture(rgb=np.zeros((2, 2, 3)))]
    page = pixels(View([(60, tiles)]))
    dark = np.nonzero((page[MARGIN + TITLE + 30] == 0).all(1))[0]
    assert dark[0] == MARGIN
    assert dark[60] == MARGIN + round(0.75 * (WIDTH - 2 * MARGIN))


def test_many_fonts_know_greek():
    drawn, unknown = (bytes(module._font(15).getmask(letter)) for letter in ("β", "\u0378"))
    assert drawn != unknown


def test_a_picture_keeps_its_shape():
    page = pixels(View([(60, [Picture(rgb=np.zeros((10, 20, 3)))])]))
    rows, columns = np.nonzero((page == 0).all(2))
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (60, 120)


def test_each_bar_has_its_own_number():
    both = pixels(View([(80, [Bars(rows={"a": [1.0, 0.2]}, limit=1.0)])]))
    other = pixels(View([(80, [Bars(rows={"a": [1.0, 0.21]}, limit=1.0)])]))
    _, columns = np.nonzero((both != other).any(2))
    assert columns.max() < WIDTH / 2  # behind the short bar, not behind the long one


def test_a_logarithmic_axis_within_a_decade_has_ticks():
    assert module.ticks(module.axis([1600, 9000], log=True)) == pytest.approx([2000, 5000])


def test_a_map_with_nan_is_refused():
    values = np.ones((4, 4))
    values[1, 1] = math.nan
    with pytest.raises(ValueError, match="the map 'iba' holds NaN"):
        paint(View([(60, [map_picture(values, title="iba")])]))


@pytest.fixture
def cycle():
    with rc_context(fname=plots.STYLE):
        return [f"#{colour.strip('#')}" for colour in rcParams["axes.prop_cycle"].by_key()["color"]]


@pytest.mark.parametrize("kind", [None, "protanomaly", "deuteranomaly", "tritanomaly"])
def test_lines_are_told_apart_with_any_colour_vision(kind, cycle):
    assert len(cycle) == 8
    seen = [to_rgb(colour) for colour in cycle]
    if kind:
        space = {"name": "sRGB1+CVD", "cvd_type": kind, "severity": 100}
        seen = np.clip(cspace_convert(seen, space, "sRGB1"), 0, 1)
    assert min(deltaE(*pair, input_space="sRGB1") for pair in combinations(seen, 2)) > 14


def test_figures_and_panels_have_the_same_colours(cycle):
    assert cycle[: len(module.COLOURS)] == [*module.COLOURS]
