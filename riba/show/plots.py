"""Figures: one style, maps with units, comparisons, and saving them with their parameters."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from riba.storage import DATA, versions

Array = Tensor | np.ndarray
"""Pictures, maps and masks, as either library has them."""
FIGURES = DATA.parent / "figures"
STYLE = Path(__file__).with_name("riba.mplstyle")
UNSIGNED, SIGNED = "inferno", "RdBu_r"
"""Perceptually uniform from 0, and diverging about 0."""
HIT, MISS = "#4477AA", "#EE6677"
"""Pixels on the object and off it."""
CLIP = 0.995
"""Maps are drawn up to this quantile, so that a few extreme pixels do not hide the rest."""


def use_style() -> None:
    """Make ``riba.mplstyle`` the look of every figure that follows."""
    plt.style.use(STYLE)


def upper_limit(values: Array) -> float:
    """The top of a map's colour scale: the 99.5 % quantile of the absolute values, above 0."""
    magnitude = np.abs(_array(values).astype(np.float64))
    return float(np.quantile(magnitude, CLIP)) or float(magnitude.max()) or 1.0


def show_image(ax: Axes, rgb: Array, title: str = "") -> None:
    """An H×W×3 picture (0–1 or uint8) without axes."""
    ax.imshow(np.asarray(rgb))
    _bare(ax, title)


def show_map(
    ax: Axes,
    values: Array,
    title: str = "",
    *,
    unit: str = "",
    signed: bool = False,
    bar: bool = True,
) -> None:
    """An H×W map: sequential from 0, or diverging about 0 where it is ``signed``.

    Parameters
    ----------
    unit
        What one unit of colour means, written on the colour bar: ``"bits / pixel"``.
    bar
        Whether to draw the colour bar.
    """
    top, colours = upper_limit(values), SIGNED if signed else UNSIGNED
    picture = ax.imshow(_array(values), cmap=colours, vmin=-top * signed, vmax=top)
    if bar:
        scale = ax.figure.colorbar(picture, ax=ax, shrink=0.85, pad=0.02, aspect=18, label=unit)
        scale.outline.set_visible(False)
        scale.formatter.set_powerlimits((-2, 3))
    _bare(ax, title)


def show_outline(ax: Axes, mask: Array, colour: str = "white") -> None:
    """The border of an H×W bool mask as a thin line over whatever ``ax`` shows."""
    ax.contour(np.asarray(mask, dtype=float), levels=[0.5], colors=colour, linewidths=0.8)


def show_ledger(ax: Axes, below: Mapping[str, Tensor], unit: str = "nats") -> None:
    """Total relevance of the first image at every layer on the way down, as bars from the top."""
    import seaborn as sns

    totals = {name: value[0].double().sum().item() for name, value in below.items()}
    sns.barplot(totals, orient="y", color="C0", saturation=1, width=0.7, ax=ax)
    ax.bar_label(ax.containers[0], fmt=" %.1f", fontsize=7)
    ax.tick_params(axis="y", labelsize=7)
    ax.set(xlabel=f"{unit} in the layer", ylabel="", title="the ledger, layer by layer")
    ax.margins(x=0.2)


def overlay(rgb: Array, values: Array, opacity: float = 0.7) -> np.ndarray:
    """A map laid over a picture (H×W×3 in 0–1): colour where it is large, grey elsewhere."""
    grey = np.asarray(rgb).mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.6 + 0.2
    strength = np.clip(np.abs(_array(values)) / upper_limit(values), 0, 1)
    weight = opacity * np.sqrt(strength)[..., None]
    return (1 - weight) * grey + weight * in_colour(values)


def in_colour(values: Array, limit: float | None = None) -> np.ndarray:
    """An H×W map as H×W×3 colours in 0–1: diverging where a value is negative.

    ``limit`` is the top of the scale; by default :func:`upper_limit` of the map itself.
    """
    top = upper_limit(values) if limit is None else limit
    share = np.clip(_array(values) / top, -1, 1)
    colours, share = (SIGNED, (share + 1) / 2) if share.min() < 0 else (UNSIGNED, share)
    return plt.get_cmap(colours)(share)[..., :3]


def show_hits(
    ax: Axes, rgb: Array, values: Array, mask: Array, share: float, title: str = ""
) -> None:
    """The most important pixels of an H×W map over its grey picture: blue on the object, red off.

    Parameters
    ----------
    share
        How many pixels, as a share (0–1) of the image. Where values are equal the first are taken.
    """
    show_image(ax, hits(rgb, values, mask, share), title)
    show_outline(ax, mask, "black")


def _array(values: Array) -> np.ndarray:
    """As NumPy has it, which knows no bfloat16."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
    return np.asarray(values)


def hits(rgb: Array, values: Array, mask: Array, share: float) -> np.ndarray:
    """What :func:`show_hits` shows, as an H×W×3 picture (0–1)."""
    values, mask = _array(values), np.asarray(mask)
    grey = np.asarray(rgb).mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.5 + 0.45
    count = max(1, round(share * values.size))
    top = np.zeros(values.shape, dtype=bool)
    top.flat[np.argsort(-values, axis=None, kind="stable")[:count]] = True
    grey[top] = np.where(mask[top][:, None], to_rgb(HIT), to_rgb(MISS))
    return grey


def show_allocation(
    ax: Axes, summary: pd.DataFrame, methods: Mapping[str, str], dashed: Collection[str] = ()
) -> None:
    """Allocation curves with their 95 % bands: precision of the most important pixels by budget.

    One pixel on either side of the masks' borders is left out.

    Parameters
    ----------
    summary
        From :func:`riba.evaluation.summarise`: rows with metric ``allocation@p``.
    methods
        Method to its label.
    dashed
        Methods drawn dashed, so that a curve below theirs shows.
    """
    import seaborn as sns

    rows = summary[summary["metric"].str.startswith("allocation@") & (summary["mask"] == "banded")]
    rows = rows.assign(share=rows["metric"].str.removeprefix("allocation@").astype(float))
    curves = rows.melt(["method", "share"], ["low", "mean", "high"], value_name="precision")
    # of (low, mean, high) the median is the mean, and the band from end to end is the interval
    line = partial(sns.lineplot, x="share", y="precision", estimator="median", ax=ax, legend=False)
    for place, (method, label) in enumerate(methods.items()):
        style = {"ls": "--", "lw": 1.2} if method in dashed else {"lw": 2.2}
        band = {"alpha": 0.15, "linewidth": 0}
        data = curves[curves["method"] == method]
        line(data, errorbar=("pi", 100), err_kws=band, label=label, color=f"C{place}", **style)
    for method, label in (("oracle", "oracle"), ("random", "chance")):
        data = curves[curves["method"] == method]
        line(data, errorbar=None, color="0.3", linestyle=":", linewidth=1)
        _, height = ax.lines[-1].get_xydata()[0]
        ax.text(data["share"].min(), height + 0.015, label, fontsize=7, color="0.3")
    ax.set(xscale="log", ylim=(0, 1.08), xlabel="most important pixels (share of the image)")
    ax.set_ylabel("share of them on the object")
    ax.set_xticks([0.01, 0.1, 0.5], ["1 %", "10 %", "50 %"])


def comparison(
    pictures: Sequence[Array],
    maps: Mapping[str, Tensor],
    *,
    masks: Tensor | None = None,
    names: Sequence[str] = (),
    notes: Mapping[str, Sequence[str]] | None = None,
    size: float = 1.5,
) -> Figure:
    """Scenes down the rows, methods across the columns; every map on its own scale.

    Parameters
    ----------
    pictures
        B pictures, H×W×3 in 0–1.
    maps
        Column title to B×H×W maps. A map with negative values is drawn diverging.
    masks
        B×H×W bool, outlined on the picture.
    names
        One label a row.
    notes
        Column title to one short line under each map of that column (its ledger, say).
    size
        Inches a cell.
    """
    rows, columns = len(pictures), 1 + len(maps)
    inches = columns * size, rows * size * 1.05
    figure, axes = plt.subplots(rows, columns, figsize=inches, squeeze=False)
    for row, (line, picture) in enumerate(zip(axes, pictures, strict=True)):
        show_image(line[0], picture, "image" if row == 0 else "")
        if masks is not None:
            show_outline(line[0], masks[row])
        if names:
            line[0].set_ylabel(names[row])
        for ax, (title, values) in zip(line[1:], maps.items(), strict=True):
            signed = bool((values < 0).any())
            words = textwrap.fill(title, int(13 * size)) if row == 0 else ""
            show_map(ax, values[row], words, signed=signed, bar=False)
            if notes and title in notes:
                ax.set_xlabel(notes[title][row], fontsize=7.5, labelpad=2)
    return figure


def save(figure: Figure, name: str, caption: str, **parameters: object) -> Path:
    """Write ``figures/name.png``, ``.svg`` and ``.json`` and return the PNG's path.

    The JSON holds the caption, the parameters given, and the versions that made the figure.
    Files are free of dates, so that the same run writes the same bytes.
    """
    FIGURES.mkdir(exist_ok=True)
    path = FIGURES / f"{name}.png"
    with plt.style.context(STYLE):  # the salt of the SVG's ids counts while saving
        figure.savefig(path, metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    write_note(path, caption, parameters)
    return path


def write_note(path: Path, caption: str, parameters: Mapping[str, object]) -> None:
    """Beside the picture at ``path``, its caption, parameters and versions as JSON."""
    note = {"caption": caption, "parameters": parameters, "versions": versions()}
    text = json.dumps(note, indent=1, ensure_ascii=False, default=str)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def to_map(relevance: Tensor) -> Tensor:
    """Pixel relevance (B×3×H×W) summed over the colour channels: B×H×W, same unit and total."""
    return relevance.sum(dim=1)


def _bare(ax: Axes, title: str) -> None:
    ax.set(xticks=[], yticks=[], title=title)
    ax.spines[:].set_visible(False)
