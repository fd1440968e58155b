"""Statistics of the table: means with intervals, paired comparisons."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon


def summarise(table: pd.DataFrame, resamples: int = 10_000) -> pd.DataFrame:
    """Mean over scenes with a bootstrapped 95 % interval.

    Objects and seeds of one scene are averaged first. What is drawn at random, and so resampled,
    are groups of scenes, such as those with the same cut-out; as a rule each scene is its own.

    Returns
    -------
    One row per method × metric × mask: columns ``method, metric, mask, mean, low, high, n``.
    """
    rows = [
        (*key, values.mean(), *_interval(values, resamples), len(values))
        for key, values in _per_scene(table)
    ]
    return pd.DataFrame(rows, columns=["method", "metric", "mask", "mean", "low", "high", "n"])


def compare(
    table: pd.DataFrame, against: str = "relevance-iba", resamples: int = 10_000
) -> pd.DataFrame:
    """Every method against one, paired over the scenes that both have.

    ``difference`` is the method's mean less the other's, with a bootstrapped 95 % interval;
    ``p_holm`` is Wilcoxon's signed-rank p of the groups' means, two-sided, after Holm over all
    methods of one metric and mask.

    Returns
    -------
    One row per method × metric × mask: columns ``method, against, metric, mask, difference, low,
    high, n, p_holm``.

    Raises
    ------
    ValueError
        ``against`` is not in the table.
    """
    if against not in set(table["method"]):
        raise ValueError(
            f"no method {against!r} in this table: {', '.join(table['method'].unique())}"
        )
    groups = dict(_per_scene(table))
    rows = []
    for (method, metric, mask), values in groups.items():
        other = groups.get((against, metric, mask))
        if method == against or other is None:
            continue
        difference = (values - other).dropna()
        p = wilcoxon(difference.groupby(level=0).mean()).pvalue if difference.any() else 1.0
        numbers = difference.mean(), *_interval(difference, resamples), len(difference), p
        rows.append((method, against, metric, mask, *numbers))
    names = ["method", "against", "metric", "mask", "difference", "low", "high", "n", "p_holm"]
    result = pd.DataFrame(rows, columns=names)
    result["p_holm"] = result.groupby(["metric", "mask"])["p_holm"].transform(holm)
    return result


def holm(p: pd.Series) -> pd.Series:
    """p values corrected for their number by Holm's step-down procedure (1979)."""
    order = p.sort_values()
    steps = order * np.arange(len(order), 0, -1)
    return steps.cummax().clip(upper=1).reindex(p.index)


def _per_scene(table: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], pd.Series]]:
    """Method, metric and mask, with the value of each scene by group and name."""
    if "group" not in table:
        table = table.assign(group=table["sample"])
    keys = ["method", "metric", "mask", "group", "sample"]
    scenes = table.dropna(subset="value").groupby(keys, sort=False, observed=True)["value"]
    for key, values in scenes.mean().groupby(level=[0, 1, 2], sort=False, observed=True):
        yield key, values.droplevel([0, 1, 2])


def _interval(values: pd.Series, resamples: int) -> tuple[float, float]:
    """Percentile bootstrap of the mean over groups, 95 %."""
    groups = values.groupby(level=0, sort=False, observed=True)
    weights = _resampled(groups.ngroups, resamples)
    sums, counts = np.einsum("rg,gk->kr", weights, groups.agg(["sum", "count"]).to_numpy(float))
    return tuple(np.quantile(sums / counts, [0.025, 0.975]))


@lru_cache(maxsize=4)
def _resampled(count: int, resamples: int) -> np.ndarray:
    """How often each of ``count`` groups is in each resample."""
    generator, times = np.random.default_rng(0), np.empty((resamples, count), np.uint16)
    for row in times:  # small numbers, one row at a time: two thousand groups take 40 MB
        row[:] = np.bincount(generator.integers(count, size=count), minlength=count)
    return times
