"""Figures show the values they are given, on scales that say what they mean, in stable bytes."""

import json

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from riba.show import plots

GENERATOR = torch.Generator().manual_seed(0)
RGB = torch.rand(8, 8, 3, generator=GENERATOR)
MAP = torch.rand(8, 8, generator=GENERATOR)


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


# --- maps ----------------------------------------------------------------------------------------


def test_to_map_sums_the_colours_and_keeps_the_total():
    relevance = torch.randn(2, 3, 5, 4, generator=GENERATOR)
    values = plots.to_map(relevance)
    np.testing.assert_allclose(values, np.einsum("bchw->bhw", relevance), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(values.sum((1, 2)), relevance.sum((1, 2, 3)))


def test_the_scale_ends_at_the_quantile_and_above_zero():
    ramp = torch.arange(1001.0).reshape(7, 143)
    assert plots.upper_limit(-ramp) == pytest.approx(995)
    spike = torch.zeros(40, 40)
    spike[3, 3] = -2.5  # below the quantile there is nothing
    assert plots.upper_limit(spike) == 2.5
    assert plots.upper_limit(torch.zeros(3, 3)) == 1.0


def test_a_map_starts_at_zero_and_a_signed_one_is_symmetric_about_it(ax):
    plots.show_map(ax, MAP, "title", unit="bits / pixel")
    plots.show_map(ax, MAP - 0.8, signed=True)
    unsigned, signed = ax.images
    assert unsigned.get_clim() == (0, plots.upper_limit(MAP))
    assert signed.get_clim() == (-plots.upper_limit(MAP - 0.8), plots.upper_limit(MAP - 0.8))
    assert (unsigned.get_cmap().name, signed.get_cmap().name) == (plots.UNSIGNED, plots.SIGNED)
    red, _, blue, _ = signed.get_cmap()(signed.norm(0.0))
    assert red == pytest.approx(blue, abs=0.02)  # nothing is neither red nor blue
    np.testing.assert_array_equal(unsigned.get_array(), MAP)


def test_the_colour_bar_says_its_unit(ax):
    plots.show_map(ax, MAP, "what", unit="nats / pixel")
    bar = ax.images[0].colorbar
    assert "nats / pixel" in (bar.ax.get_ylabel(), bar.ax.get_xlabel())
    assert ax.get_title() == "what"
    assert not ax.get_xticks().size
    plots.show_map(ax, MAP, bar=False)
    assert ax.images[1].colorbar is None


def test_a_picture_is_shown_as_it_is(ax):
    plots.show_image(ax, RGB, "fish")
    np.testing.assert_array_equal(ax.images[0].get_array(), RGB)
    assert ax.get_title() == "fish"


def test_the_outline_runs_round_the_mask(ax):
    mask = torch.zeros(10, 12, dtype=torch.bool)
    mask[2:5, 3:9] = True
    plots.show_outline(ax, mask)
    line = np.concatenate([path.vertices for path in ax.collections[0].get_paths()])
    assert (line[:, 0].min(), line[:, 0].max()) == (2.5, 8.5)
    assert (line[:, 1].min(), line[:, 1].max()) == (1.5, 4.5)


def test_the_ledger_has_a_bar_for_every_layer_from_the_top(ax):
    below = {"top": torch.full((2, 1, 2, 2), 1.5), "pixels": torch.full((2, 1, 4, 4), 0.25)}
    below["top"][1] = 99  # only the first image counts
    plots.show_ledger(ax, below, "logits")
    assert [bar.get_width() for bar in ax.patches] == [6, 4]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["top", "pixels"]
    assert [text.get_text().strip() for text in ax.texts] == ["6.0", "4.0"]
    low, high = ax.get_ylim()
    assert low > high  # the first layer is on top
    assert "logits" in ax.get_xlabel()


def test_an_overlay_is_grey_where_the_map_is_zero_and_coloured_where_it_is_high():
    values = torch.zeros(8, 8)
    values[:4] = 3.0
    mixed = plots.overlay(RGB, values, opacity=1.0)
    assert mixed.shape == (8, 8, 3)
    assert 0 <= mixed.min() <= mixed.max() <= 1
    assert np.ptp(mixed[4:], axis=2).max() < 1e-6  # float32 mean of three equal greys
    grey = RGB[4:].mean(2)
    assert np.corrcoef(mixed[4:, :, 0].ravel(), grey.ravel())[0, 1] == pytest.approx(1, abs=1e-5)
    top = plt.get_cmap(plots.UNSIGNED)(1.0)[:3]
    np.testing.assert_allclose(mixed[:4], np.broadcast_to(top, (4, 8, 3)), atol=1e-6)
    faint = plots.overlay(RGB, values, opacity=0.0)
    assert np.ptp(faint, axis=2).max() < 1e-6
    assert plots.overlay(RGB, -values).max() <= 1  # negative relevance is no colour


# --- comparisons ---------------------------------------------------------------------------------


def test_a_comparison_has_a_row_a_scene_and_a_column_a_method():
    maps = {"one": torch.rand(3, 8, 8), "two": torch.randn(3, 8, 8)}
    masks = torch.rand(3, 8, 8) > 0.5
    notes = {"two": ["first", "second", "third"]}
    figure = plots.comparison(
        [RGB] * 3, maps, masks=masks, names=["fish", "tree", "key"], notes=notes
    )
    axes = np.array(figure.axes).reshape(3, 3)  # no colour bars among them
    assert [ax.get_title() for ax in axes[0]] == ["image", "one", "two"]
    assert not any(ax.get_title() for ax in axes[1:].ravel())
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["fish", "tree", "key"]
    assert [ax.get_xlabel() for ax in axes[:, 2]] == notes["two"]
    assert [len(ax.collections) for ax in axes[0]] == [1, 0, 0]
    for row in range(3):
        for column, name in enumerate(maps, start=1):
            image = axes[row, column].images[0]
            np.testing.assert_array_equal(image.get_array(), maps[name][row])
            low, high = image.get_clim()
            assert high == plots.upper_limit(maps[name][row])  # every map on its own scale
            assert low == (0 if name == "one" else -high)
    plt.close(figure)


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "FIGURES", tmp_path / "figures")
    return tmp_path / "figures"


def drawing():
    figure, (left, right) = plt.subplots(1, 2, figsize=(4, 2))
    plots.show_map(left, MAP, r"$R_i$", unit="nats / pixel")
    plots.show_outline(left, MAP > 0.5)
    right.plot([1, 3, 2], label="line")
    right.legend()
    return figure


def test_saving_writes_png_svg_and_parameters(folder):
    figure = drawing()
    path = plots.save(figure, "one", "a caption: μ", beta=10, layers=["features.6"])
    plt.close(figure)
    assert path == folder / "one.png"
    assert sorted(file.name for file in folder.iterdir()) == ["one.json", "one.png", "one.svg"]
    assert path.read_bytes().startswith(b"\x89PNG")
    svg = path.with_suffix(".svg").read_text(encoding="utf-8")
    assert svg.rstrip().endswith("</svg>")
    assert "nats / pixel" in svg  # text is text, to be found and read aloud
    note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert note["caption"] == "a caption: μ"
    assert note["parameters"] == {"beta": 10, "layers": ["features.6"]}
    assert note["versions"] == plots.versions()
    assert note["versions"]["torch"] == torch.__version__.split("+")[0]
    assert note["versions"]["matplotlib"] == mpl.__version__


def test_the_same_figure_is_saved_as_the_same_bytes(folder, monkeypatch):
    written = []
    for year in (2021, 2033):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str((year - 1970) * 31_557_600))
        figure = drawing()
        plots.save(figure, "one", "caption", beta=1)
        plt.close(figure)
        written.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert len(written[0]) == 3
    assert written[0] == written[1]


def test_the_style_is_that_of_the_workbook():
    with plt.style.context("default"):
        plots.use_style()
        assert mpl.rcParams["image.cmap"] == plots.UNSIGNED
        assert mpl.rcParams["figure.constrained_layout.use"]
        assert mpl.rcParams["svg.hashsalt"] == "riba"


def test_hits_are_as_many_as_the_budget_and_coloured_by_the_mask(ax):
    values = torch.arange(100.0).view(10, 10)
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[9, :5] = True
    plots.show_hits(ax, torch.rand(10, 10, 3), values, mask, share=0.1)
    shown = np.asarray(ax.images[0].get_array())
    hit, miss = (np.array(mpl.colors.to_rgb(colour)) for colour in (plots.HIT, plots.MISS))
    assert (np.isclose(shown, hit).all(2) == mask.numpy()).all()
    assert np.isclose(shown, miss).all(2)[9, 5:].all()
    assert np.isclose(shown, miss).all(2).sum() == 5
    rest = shown[:9]
    assert np.allclose(rest[..., 0], rest[..., 1])  # grey


def test_allocation_curves_are_those_of_the_summary(ax):
    rows = [
        (method, f"allocation@{share:g}", mask, level - share, level - share - 0.1, level, 9)
        for method, level in (("iba", 0.9), ("oracle", 1.0), ("random", 0.2))
        for share in (0.5, 0.05, 0.1)
        for mask in ("strict", "banded")
    ]
    rows.append(("iba", "rank_accuracy", "banded", 0.3, 0.2, 0.4, 9))
    names = ["method", "metric", "mask", "mean", "low", "high", "n"]
    plots.show_allocation(ax, pd.DataFrame(rows, columns=names), {"iba": "IBA"})
    (curve,) = (line for line in ax.lines if line.get_label() == "IBA")
    assert list(curve.get_xdata()) == [0.05, 0.1, 0.5]
    assert np.allclose(curve.get_ydata(), [0.85, 0.8, 0.4])
    assert len(ax.lines) == 3  # with chance and oracle
    assert len(ax.collections) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_maps_of_any_precision_have_colours(dtype):
    values = torch.rand(8, 8)
    found = plots.in_colour(values.to(dtype))
    assert abs(found - plots.in_colour(values)).max() < 0.05
