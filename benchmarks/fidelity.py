"""How many noisy copies a map needs: cost against fidelity, with and without antithetic pairs.

    python -m benchmarks.fidelity                   # two hours on two idle cores, minutes on a GPU
    python -m benchmarks.fidelity "scenenet"        # one case alone

A map is compared with one of many independent copies and another seed, on 16 pictures × 3 seeds:
correlation and rank correlation of the nats per location (InputIBA: per pixel), and the relative
error of their total. Cost counts passes through the layers above the bottleneck, relative to the
ten independent copies of the publication; ``benchmarks/speed.py`` measures time. Writes
``benchmarks/fidelity.csv`` (a row per case × setting) and ``benchmarks/fidelity.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm.auto import tqdm

import riba
from riba.method.input_iba import InputIBA
from riba.testbed import datasets

TABLE = Path(__file__).with_suffix(".csv")
FIGURE = Path(__file__).with_suffix(".png")
SEEDS = (1, 2, 3)
PUBLISHED = (10, False, None)
"""Copies, antithetic, steps (None: the default) of the publication."""
SETTINGS = (
    PUBLISHED,
    *((n, False, None) for n in (1, 2, 4)),
    *((n, True, None) for n in (2, 4, 6)),
)
MORE = ((8, True, None), (10, True, None))
FEWER_STEPS = ((2, True, 5), (2, True, 7), (10, False, 7))
Maps = Callable[[Tensor, Tensor, dict], Tensor]


# --- the cases -----------------------------------------------------------------------------------


def bottlenecks(wb: riba.Workbench, layers: str | tuple[str, ...]) -> Maps:
    """Nats per location, B×places: of one layer, or of several one after the other."""
    single = isinstance(layers, str)
    stats = wb.statistics_at(layers) if single else [wb.statistics_at(layer) for layer in layers]

    def maps(images: Tensor, targets: Tensor, settings: dict) -> Tensor:
        found = riba.InformationBottleneck(wb.model, layers, stats, **settings)(images, targets)
        depths = [found] if single else found
        return torch.cat([depth.nats.sum(1).flatten(1) for depth in depths], 1).cpu()

    return maps


def at_pixels(wb: riba.Workbench) -> Maps:
    """The published map of InputIBA, B×pixels."""

    def maps(images: Tensor, targets: Tensor, settings: dict) -> Tensor:
        found = InputIBA(wb.model, wb.layer, wb.statistics, **settings)
        return found(images, targets).map.flatten(1).cpu()

    return maps


def scenes(count: int, device: str) -> tuple[riba.Workbench, Tensor, Tensor]:
    """The bundled network and validation scenes."""
    wb = riba.load(device=device)
    images, labels, _ = datasets.stack([wb.validation[index] for index in range(count)])
    return wb, images.to(device), labels.to(device)


def photographs(count: int, device: str) -> tuple[riba.Workbench, Tensor, Tensor]:
    """The real network and crops of photographs; explained is what it predicts."""
    from riba.testbed import photos

    wb = riba.load("efficientnet-lite0", device=device)
    images = torch.cat(list(photos.crops(count, seed=1))).to(device)
    return wb, images, wb.predict(images).argmax(1)


def case(name: str, device: str) -> tuple[Maps, Tensor, Tensor, int, tuple]:
    """Maps of a case, its images and targets, copies of the reference, and the settings tried."""
    network, _, kind = name.partition(" ")
    wb, images, labels = (scenes if network == "scenenet" else photographs)(16, device)
    if kind == "InputIBA":
        return at_pixels(wb), images, labels, 60, (PUBLISHED, (4, True, None), (6, True, None))
    layers = wb.depths if kind == "joint" else wb.layer
    more = MORE if kind == "joint" else ()
    return bottlenecks(wb, layers), images, labels, 200, (*SETTINGS, *more, *FEWER_STEPS)


CASES = ("scenenet", "scenenet joint", "efficientnet-lite0", "efficientnet-lite0 joint",
         "scenenet InputIBA")  # fmt: skip
"""What is measured: network, and joint bottlenecks or InputIBA."""


# --- measuring -----------------------------------------------------------------------------------


def agreement(maps: Tensor, reference: Tensor) -> pd.DataFrame:
    """Of each map (B×places): correlation, rank correlation, relative error of the total."""
    total, true_total = maps.sum(1), reference.sum(1)
    pairs = list(zip(maps.numpy(), reference.numpy(), strict=True))
    return pd.DataFrame(
        {
            "correlation": [np.corrcoef(a, b)[0, 1] for a, b in pairs],
            "rank_correlation": [spearmanr(a, b)[0] for a, b in pairs],
            "total_error": ((total - true_total) / true_total).abs().numpy(),
        }
    )


def measured(name: str, device: str) -> pd.DataFrame:
    """One row per setting of a case."""
    maps, images, targets, many, settings = case(name, device)

    def with_(copies: int, antithetic: bool, steps: int | None, seed: int) -> Tensor:
        chosen = {"samples": copies, "antithetic": antithetic, "seed": seed}
        return maps(images, targets, chosen if steps is None else {**chosen, "steps": steps})

    reference = with_(many, False, None, 0)
    rows = []
    for setting in tqdm(settings, name):
        table = pd.concat([agreement(with_(*setting, seed), reference) for seed in SEEDS])
        copies, antithetic, steps = setting
        worst = {"correlation": "min", "rank_correlation": "min", "total_error": "max"}
        rows.append(
            {
                "case": name,
                "copies": copies,
                "antithetic": antithetic,
                "steps": steps or "default",
                "cost": copies / 10 * (1 if steps is None else (steps + 1) / 11),
                **{f"{column}_mean": table[column].mean() for column in worst},
                **{f"{column}_worst": table[column].agg(how) for column, how in worst.items()},
                "maps": len(table),
                "reference_copies": many,
            }
        )
    return pd.DataFrame(rows)


# --- the figure ----------------------------------------------------------------------------------


def draw(table: pd.DataFrame) -> None:
    """Cost against the mean and worst loss of correlation, a panel per case."""
    import matplotlib.pyplot as plt

    from riba.show import plots

    kinds = table[table["steps"] == "default"]
    cases = list(dict.fromkeys(kinds["case"]))
    plots.use_style()
    figure, axes = plt.subplots(1, len(cases), figsize=(2.6 * len(cases), 2.8), sharey=True)
    for axis, name in zip(np.atleast_1d(axes), cases, strict=True):
        for antithetic, label in ((False, "independent"), (True, "antithetic pairs")):
            rows = kinds[(kinds["case"] == name) & (kinds["antithetic"] == antithetic)]
            rows = rows.sort_values("cost")
            for column, style in (("mean", "-"), ("worst", ":")):
                lost = 1 - rows[f"correlation_{column}"]
                colour = "C1" if antithetic else "C0"
                text = f"{label}, {column}"
                axis.plot(rows["cost"], lost, style, marker="o", color=colour, label=text)
            for row in rows.itertuples():
                where = (row.cost, 1 - row.correlation_mean)
                axis.annotate(row.copies, where, (0, -11), textcoords="offset points")
        axis.set(title=name, xscale="log", yscale="log", xlabel="passes / published")
    np.atleast_1d(axes)[0].set_ylabel("1 − correlation")
    np.atleast_1d(axes)[-1].legend(fontsize=7)
    figure.savefig(FIGURE)


def main() -> None:
    """Measure the cases that are named, by default all; the others stay as they were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="case")
    parser.add_argument("--device", default="cpu", help="cuda or cpu")
    arguments = parser.parse_args()
    for name in arguments.cases or CASES:
        fresh = measured(name, arguments.device)
        old = [pd.read_csv(TABLE)] if TABLE.is_file() else []
        kept = [table[table["case"] != name] for table in old]
        table = pd.concat([*kept, fresh], ignore_index=True)
        table.to_csv(TABLE, index=False, float_format="%.5g")
        print(fresh.round(4).to_string(index=False), flush=True)
    draw(pd.read_csv(TABLE))


if __name__ == "__main__":
    main()
