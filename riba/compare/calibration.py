"""β by rule: the largest at which the class still is predicted through the bottleneck.

A map of what a failing classifier needs says little about the classifier. So β is chosen for each
network, layer and set of layers on validation pictures: the largest on a grid at which half of the
pictures keep nine tenths of their class probability or more.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from riba import progress
from riba.compare.methods import AT_ONCE, information
from riba.method.bottleneck import KEPT
from riba.testbed import datasets
from riba.workbench import Workbench

GRID = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


def shares_kept(
    wb: Workbench,
    layers: str | tuple[str, ...],
    samples: Sequence[datasets.Sample],
    grid: Sequence[float] = GRID,
) -> pd.DataFrame:
    """What is kept of the class probability: a row per sample × β.

    Parameters
    ----------
    layers
        A layer, or several whose bottlenecks are optimised together.
    samples
        With labels, named right by the network.

    Returns
    -------
    Columns ``layers`` (names, spaces between them), ``beta``, ``sample``, ``kept`` (p with the
    bottleneck ÷ p without).
    """
    tables = []
    for start in progress.track(range(0, len(samples), AT_ONCE), "calibrating β"):
        part = [samples[i] for i in range(start, min(start + AT_ONCE, len(samples)))]
        images, labels, _ = datasets.stack(part)
        images, targets = images.to(wb.device), wb.targets(labels).to(wb.device)
        for beta in grid:
            found = information(wb, layers, images, targets, beta=beta)
            one = found if isinstance(layers, str) else found.shallowest
            kept = (one.probability / one.open_probability).tolist()
            columns = {"beta": beta, "sample": [sample.name for sample in part], "kept": kept}
            tables.append(pd.DataFrame(columns))
    names = layers if isinstance(layers, str) else " ".join(layers)
    return pd.concat(tables, ignore_index=True).assign(layers=names)


def calibrated(table: pd.DataFrame) -> float:
    """The β that :func:`shares_kept` speaks for.

    Raises
    ------
    ValueError
        At no β of the table do half of the samples keep enough.
    """
    median = table.groupby("beta")["kept"].median()
    enough = median[median >= KEPT]
    if enough.empty:
        raise ValueError(
            f"at β {median.index.min():g} half of the samples keep {median.iloc[0]:.0%} of their "
            f"class probability, {KEPT:.0%} are asked for: try smaller ones"
        )
    return float(enough.index.max())
