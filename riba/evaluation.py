"""Methods × samples × metrics: one tidy table, resumable, and its statistics.

``python -m riba.evaluation`` runs it without a notebook; ``make evaluation`` writes the tables in
``data/``.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import wilcoxon
from torch import Tensor
from tqdm.auto import tqdm

from riba import datasets, metrics
from riba.methods import METHODS, find_method
from riba.models import DATA, fingerprint
from riba.plots import versions
from riba.workbench import Workbench, load

FRACTIONS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75)
"""Budgets at which the allocation curve is tabulated."""
CURVE = tuple(f"allocation@{fraction:g}" for fraction in FRACTIONS)
CONTRAST = "two_object_contrast"
METRICS = (*metrics.LOCALISATION, *CURVE, CONTRAST, *metrics.FAITHFULNESS)
"""Names of everything that can be measured."""
HEADLINE = ("allocation_area", "rank_accuracy", "mass_accuracy")
SMALLEST, LARGEST = 0.01, 0.75
"""Objects outside this share of the image are not judged."""
BATCH = 8
KEYS = ["sample", "label", "digest", "method", "seed", "metric", "mask"]


# --- the table -----------------------------------------------------------------------------------


def evaluate(
    wb: Workbench,
    methods: Sequence[str],
    samples: Sequence[datasets.Sample],
    metrics: Sequence[str] = HEADLINE,
    *,
    out: Path | str | None = None,
    executor: Executor | None = None,
    seed: int = 0,
    batch: int = BATCH,
) -> pd.DataFrame:
    """Explain every sample by every method and measure every map.

    Parameters
    ----------
    wb
        Network, layer and statistics.
    methods, metrics
        Names out of :data:`riba.METHODS` and :data:`METRICS`.
    samples
        With masks; ``two_object_contrast`` also needs ``other``. The class explained is the label.
    out
        Folder for the results: each (method, few samples) is written as soon as it is measured, so
        that a run that was stopped anywhere goes on where it was. None keeps all in memory.
    executor
        Any ``concurrent.futures.Executor``: a process pool, or Dask's ``Client.get_executor()``.
        None is this process alone. Workers write to ``out`` themselves where they can.
    seed
        Of whatever is random in the methods and metrics.
    batch
        Samples explained together.

    Returns
    -------
    One row per sample × method × metric × mask: columns ``sample, label, digest, area, method,
    seed, metric, mask, value``. ``mask`` is ``strict``, ``banded`` (the border left out) or, for
    faithfulness, ``none``; ``area`` is the object's share of the image. A value is NaN where the
    metric does not apply (a box too large, an object that is all border).

    Raises
    ------
    ValueError
        Unknown method or metric (near matches listed), a sample without a name used twice, an
        empty mask or one of another size than its image, or an ``out`` of other settings.
    RuntimeError
        Something went wrong in a worker; what was measured until then is kept in ``out``.
    """
    for method in methods:
        find_method(method)
    for metric in metrics:
        _find_metric(metric)
    rows = [_identified(sample) for sample in samples]
    _check_samples(samples, rows, metrics)
    folder = None if out is None else _opened(Path(out), wb, seed)
    done = _read(folder)
    blocks = list(_blocks(rows, methods, tuple(metrics), done, batch))
    frames = [done]
    total = sum(len(indices) * len(jobs) for indices, jobs in blocks)
    with tqdm(total=total, desc="maps", unit="map", delay=2, leave=False) as bar:
        for frame in _run(wb, samples, rows, blocks, seed, folder, executor):
            frames.append(frame)
            bar.update(frame["digest"].nunique())
    table = pd.concat([frame for frame in frames if len(frame)], ignore_index=True)
    return _asked_for(table, rows, methods, metrics, seed)


def _asked_for(
    table: pd.DataFrame,
    rows: list[dict],
    methods: Sequence[str],
    metrics: Sequence[str],
    seed: int,
) -> pd.DataFrame:
    """Rows of this call, in the order of its arguments, whatever order they were measured in."""
    orders = {
        "method": {name: place for place, name in enumerate(methods)},
        "digest": {row["digest"]: place for place, row in enumerate(rows)},
        "metric": {name: place for place, name in enumerate(metrics)},
    }
    kept = table["seed"] == seed
    for column, order in orders.items():
        kept &= table[column].isin(list(order))
    table = table[kept].drop_duplicates(KEYS)
    places = {column: table[column].map(order) for column, order in orders.items()}
    ranks = np.lexsort([table["mask"], places["metric"], places["digest"], places["method"]])
    return table.iloc[ranks].reset_index(drop=True)


def _find_metric(name: str) -> None:
    if name not in METRICS:
        near = difflib.get_close_matches(str(name), METRICS, n=4, cutoff=0.3) or list(METRICS)
        raise ValueError(
            f"no metric {name!r}; near matches: {', '.join(near)} "
            "(riba.evaluation.METRICS lists all)"
        )


def _identified(sample: datasets.Sample) -> dict[str, object]:
    """What a row of the table says about its sample; the digest tells samples apart."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in (sample.image, sample.mask, sample.other):
        if tensor is not None:
            digest.update(tensor.contiguous().numpy().data)
    digest.update(str(sample.label).encode())
    return {
        "sample": sample.name or digest.hexdigest(),
        "label": sample.label,
        "digest": digest.hexdigest(),
        "area": sample.mask.double().mean().item(),
    }


def _check_samples(
    samples: Sequence[datasets.Sample], rows: list[dict], metrics: Sequence[str]
) -> None:
    if not rows:
        raise ValueError("no samples to evaluate: pass at least one")
    seen = set()
    for sample, row in zip(samples, rows, strict=True):
        name = row["sample"]
        if sample.mask.shape != sample.image.shape[1:]:
            raise ValueError(
                f"sample {name}: mask {tuple(sample.mask.shape)} and image "
                f"{tuple(sample.image.shape[1:])} differ in size: resize the mask"
            )
        if not sample.mask.any():
            raise ValueError(f"sample {name}: its mask is empty, drop it first")
        if CONTRAST in metrics and sample.other is None:
            raise ValueError(f"sample {name} has one object only: {CONTRAST} needs two")
        if row["digest"] in seen:
            raise ValueError(f"sample {name} is in the list twice: pass it once")
        seen.add(row["digest"])


def _blocks(
    rows: list[dict],
    methods: Sequence[str],
    metrics: tuple[str, ...],
    done: pd.DataFrame,
    batch: int,
) -> Iterator[tuple[list[int], list[tuple[str, tuple[str, ...]]]]]:
    """Samples to explain together, and by which methods for which metrics: what is missing yet."""
    measured = set(zip(done["digest"], done["method"], done["metric"], strict=True))

    def missing(row: dict) -> list[tuple[str, tuple[str, ...]]]:
        jobs = [
            (method, tuple(m for m in metrics if (row["digest"], method, m) not in measured))
            for method in methods
        ]
        return [job for job in jobs if job[1]]

    for jobs, group in groupby(range(len(rows)), lambda index: missing(rows[index])):
        indices = list(group)
        if jobs:
            for start in range(0, len(indices), batch):
                yield indices[start : start + batch], jobs


def _run(
    wb: Workbench,
    samples: Sequence[datasets.Sample],
    rows: list[dict],
    blocks: list[tuple[list[int], list]],
    seed: int,
    folder: Path | None,
    executor: Executor | None,
) -> Iterator[pd.DataFrame]:
    tasks = [
        ([samples[i] for i in indices], [rows[i] for i in indices], jobs, seed, folder)
        for indices, jobs in blocks
    ]
    if executor is None:
        for task in tasks:
            yield from _explain_block(wb, *task)
        return
    futures = [executor.submit(_explain_all, wb, *task) for task in tasks]
    failures = []
    try:
        for future in as_completed(futures):
            try:
                frames = future.result()
            except Exception as error:  # the other workers' results are kept all the same
                failures.append(error)
                continue
            for frame in frames:
                _write(frame, folder)  # where the worker could not reach the folder
                yield frame
    finally:
        for future in futures:
            future.cancel()
    if failures:
        raise RuntimeError(
            f"{len(failures)} of {len(futures)} blocks failed, the first with: {failures[0]}; the "
            "others' results are kept: mend it and start again"
        ) from failures[0]


def _explain_all(wb: Workbench, *task: object) -> list[pd.DataFrame]:
    return list(_explain_block(wb, *task))


def _explain_block(
    wb: Workbench,
    samples: list[datasets.Sample],
    rows: list[dict],
    jobs: list[tuple[str, tuple[str, ...]]],
    seed: int,
    folder: Path | None,
) -> Iterator[pd.DataFrame]:
    """Explain a few samples by one method after the other; every method is written at once."""
    images, labels, masks = datasets.stack(samples)
    device = next(wb.model.parameters()).device
    images, masks = images.to(device), masks.to(device)
    others = None
    if all(sample.other is not None for sample in samples):
        others = torch.stack([sample.other for sample in samples]).to(device)
    for method, wanted in jobs:
        maps = METHODS[method](wb, images, labels, masks=masks, seed=seed)
        frame = pd.DataFrame(
            [
                {**row, "method": method, "seed": seed, "metric": name, "mask": mask, "value": v}
                for (name, mask), values in _measure(
                    wb, wanted, maps, images, labels, masks, others, seed
                ).items()
                for row, v in zip(rows, values.tolist(), strict=True)
            ]
        )
        _write(frame, folder)
        yield frame


def _measure(
    wb: Workbench,
    wanted: Sequence[str],
    maps: Tensor,
    images: Tensor,
    labels: Tensor,
    masks: Tensor,
    others: Tensor | None,
    seed: int,
) -> dict[tuple[str, str], Tensor]:
    """(metric, mask) to B values."""
    band = metrics.border_band(masks)
    if others is not None:
        band |= metrics.border_band(others)
    measured = {}
    for name in wanted:
        if name in metrics.FAITHFULNESS:
            value = metrics.FAITHFULNESS[name](wb.model, images, labels, maps, seed=seed)
            measured[name, "none"] = value
            continue
        for mask, void in (("strict", torch.zeros_like(band)), ("banded", band)):
            measured[name, mask] = _localised(name, maps, masks, others, void)
    return measured


def _localised(
    name: str, maps: Tensor, masks: Tensor, others: Tensor | None, void: Tensor
) -> Tensor:
    """One localisation metric; NaN for an object that vanishes under the void band."""
    there = (masks & ~void).any((1, 2))
    if name == CONTRAST:
        there &= (others & ~void).any((1, 2))
    values = torch.full((len(maps),), torch.nan, dtype=torch.float64, device=maps.device)
    if not there.any():
        return values
    given = maps[there], masks[there]
    if name == CONTRAST:
        values[there] = metrics.two_object_contrast(*given, others[there], void[there])
    elif name in CURVE:
        fraction = FRACTIONS[CURVE.index(name)]
        values[there] = metrics.allocation_curve(*given, [fraction], void[there])[:, 0]
    else:
        values[there] = metrics.LOCALISATION[name](*given, void[there])
    return values


# --- the folder of results -----------------------------------------------------------------------


def _opened(folder: Path, wb: Workbench, seed: int) -> Path:
    """The folder, new or of these very settings."""
    settings = {
        "model": fingerprint(wb.model),
        "layer": wb.layer,
        "depths": list(wb.depths),
        "statistics": [wb.statistics.dataset, wb.statistics.count],
        "band": metrics.localisation.BAND,
    }
    path = folder / "settings.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        wrong = [name for name in settings if found.get(name) != settings[name]]
        if wrong:
            told = "; ".join(f"{n} {found.get(n)!r} there, {settings[n]!r} here" for n in wrong)
            raise ValueError(
                f"{folder} holds results of other settings ({told}): choose another folder"
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty and holds no results of an evaluation: choose another folder"
        )
    _atomically(path, lambda part: part.write_text(json.dumps(settings, indent=1) + "\n"))
    return folder


def _read(folder: Path | None) -> pd.DataFrame:
    """Everything measured so far."""
    frames = [pd.DataFrame(columns=[*KEYS, "area", "value"])]
    for path in sorted(folder.glob("part-*.parquet")) if folder else ():
        try:
            frames.append(pd.read_parquet(path))
        except (OSError, ValueError) as error:
            warnings.warn(f"{path} is unreadable ({error}); measured again", stacklevel=3)
    return pd.concat(frames[1:] or frames, ignore_index=True)


def _write(frame: pd.DataFrame, folder: Path | None) -> None:
    """One part under a name made of its content's keys: whole or not at all, never twice."""
    if folder is None or not folder.is_dir():
        return
    keys = frame[KEYS].astype(str).agg("|".join, axis=1)
    name = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:20]
    path = folder / f"part-{name}.parquet"
    if not path.is_file():
        _atomically(path, lambda part: frame.to_parquet(part, index=False))


def _atomically(path: Path, write: Callable[[Path], object]) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# --- statistics ----------------------------------------------------------------------------------


def summarise(table: pd.DataFrame, resamples: int = 10_000) -> pd.DataFrame:
    """Mean over scenes with a bootstrapped 95 % interval.

    Objects and seeds of one scene are averaged first: scenes are what is drawn at random.

    Returns
    -------
    One row per method × metric × mask: columns ``method, metric, mask, mean, low, high, n``.
    """
    rows = []
    for (method, metric, mask), values in _per_scene(table):
        low, high = _interval(values, resamples)
        rows.append((method, metric, mask, values.mean(), low, high, len(values)))
    return pd.DataFrame(rows, columns=["method", "metric", "mask", "mean", "low", "high", "n"])


def compare(
    table: pd.DataFrame, against: str = "relevance-iba", resamples: int = 10_000
) -> pd.DataFrame:
    """Every method against one, paired over the scenes that both have.

    ``difference`` is the method's mean less the other's, with a bootstrapped 95 % interval;
    ``p_holm`` is Wilcoxon's signed-rank p, two-sided, after Holm over all methods of one metric
    and mask.

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
        raise ValueError(f"no method {against!r} in this table: {_listed(table['method'])}")
    groups = dict(_per_scene(table))
    rows = []
    for (method, metric, mask), values in groups.items():
        other = groups.get((against, metric, mask))
        if method == against or other is None:
            continue
        difference = (values - other).dropna()
        low, high = _interval(difference, resamples)
        p = wilcoxon(difference).pvalue if difference.any() else 1.0
        rows.append(
            (method, against, metric, mask, difference.mean(), low, high, len(difference), p)
        )
    names = ["method", "against", "metric", "mask", "difference", "low", "high", "n", "p_holm"]
    result = pd.DataFrame(rows, columns=names)
    result["p_holm"] = result.groupby(["metric", "mask"])["p_holm"].transform(holm)
    return result


def holm(p: pd.Series) -> pd.Series:
    """p values corrected for their number by Holm's step-down procedure (1979)."""
    order = p.sort_values()
    steps = order * np.arange(len(order), 0, -1)
    return steps.cummax().clip(upper=1).reindex(p.index)


def by_size(table: pd.DataFrame) -> pd.Series:
    """Tercile of each row's object size among the table's samples: small, medium or large."""
    areas = table.drop_duplicates("digest")["area"]
    edges = [0, *areas.quantile([1 / 3, 2 / 3]), 1]
    return pd.cut(table["area"], edges, labels=["small", "medium", "large"])


def _per_scene(table: pd.DataFrame) -> Iterator[tuple[tuple[str, str, str], pd.Series]]:
    scenes = table.dropna(subset="value").groupby(
        ["method", "metric", "mask", "sample"], sort=False, observed=True
    )["value"]
    for key, values in scenes.mean().groupby(level=[0, 1, 2], sort=False, observed=True):
        yield key, values.droplevel([0, 1, 2])


def _interval(values: pd.Series, resamples: int) -> tuple[float, float]:
    """Percentile bootstrap of the mean, 95 %."""
    draw = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    means = values.to_numpy()[draw].mean(axis=1)
    return tuple(np.quantile(means, [0.025, 0.975]))


def _listed(names: pd.Series) -> str:
    return ", ".join(names.unique())


def results_table(summary: pd.DataFrame) -> str:
    """The headline numbers of :func:`summarise` as a Markdown table, the best method first."""
    columns = {
        "allocation area": ("allocation_area", "banded"),
        "strict": ("allocation_area", "strict"),
        "rank accuracy": ("rank_accuracy", "banded"),
        "mass accuracy": ("mass_accuracy", "banded"),
        "mass, strict": ("mass_accuracy", "strict"),
        "two-object contrast": (CONTRAST, "banded"),
    }
    by_method = summary.set_index(["metric", "mask", "method"])
    first = by_method.loc[("allocation_area", "banded")].sort_values("mean", ascending=False)
    lines = [
        f"| method | {' | '.join(columns)} | scenes |",
        f"|---|{'---|' * len(columns)}---|",
    ]
    for method in first.index:
        cells = []
        for metric, mask in columns.values():
            row = by_method.loc[(metric, mask, method)]
            half = (row["high"] - row["low"]) / 2
            cells.append(f"{row['mean']:.3f} ± {half:.3f}")
        lines.append(f"| `{method}` | {' | '.join(cells)} | {first.loc[method, 'n']} |")
    return "\n".join(lines)


# --- command line --------------------------------------------------------------------------------


def select(
    wb: Workbench, samples: Sequence[datasets.Sample], count: int
) -> tuple[list[datasets.Sample], dict[str, int]]:
    """The first ``count`` samples that can be judged, and how many were passed over and why.

    The network gets the class right (with a second object: both classes are its top two), and the
    object covers 1–75 % of the image.
    """
    kept, passed = [], {"wrong class": 0, "object too small or large": 0}
    for index in range(len(samples)):
        if len(kept) == count:
            break
        sample = samples[index]
        best = wb.predict(sample.image[None])[0].topk(1 if sample.other is None else 2).indices
        if not SMALLEST <= sample.mask.double().mean() <= LARGEST:
            passed["object too small or large"] += 1
        elif sample.label not in best:
            passed["wrong class"] += 1
        else:
            kept.append(sample)
    return kept, passed


def select_pairs(
    wb: Workbench, split: str, count: int
) -> tuple[list[datasets.Sample], dict[str, int]]:
    """Both objects of the first two-object scenes whose classes are the network's top two."""
    sides = [datasets.Scenes(split, 2 * count, others=1, target=target) for target in (0, 1)]
    kept, passed = [], 0
    for index in range(2 * count):
        pair, _ = select(wb, [side[index] for side in sides], 2)
        passed += len(pair) < 2
        kept += pair if len(pair) == 2 else []
        if len(kept) == 2 * count:
            break
    return kept, {"two objects, not both on top or too small": passed}


SLOW = ("input-iba", "input-iba-nats")


def run(arguments: argparse.Namespace, executor: Executor | None) -> tuple[pd.DataFrame, dict]:
    """The whole evaluation of the command line: the table, and what it was made with."""
    wb = load()
    singles, passed = select(wb, datasets.Scenes(arguments.split, 1000), arguments.scenes)
    pairs, passed_pairs = select_pairs(wb, arguments.split, arguments.pairs)
    wanted = arguments.methods or list(METHODS)
    tables = []
    for methods, share in (
        ([m for m in wanted if m not in SLOW], 1.0),
        ([m for m in wanted if m in SLOW], arguments.slow / arguments.scenes),
    ):
        alone = [m for m in arguments.metrics if m != CONTRAST]
        for samples, measures in ((singles, alone), (pairs, [CONTRAST])):
            some = samples[: max(2, 2 * round(share * len(samples) / 2))]
            measures = [m for m in measures if m in arguments.metrics]
            if methods and measures and some:
                settings = {"out": arguments.out, "executor": executor, "seed": arguments.seed}
                tables.append(evaluate(wb, methods, some, measures, **settings))
    note = {
        "split": arguments.split,
        "scenes": len(singles),
        "two-object scenes": len(pairs) // 2,
        "passed over": {
            **passed,
            "two-object: " + next(iter(passed_pairs)): sum(passed_pairs.values()),
        },
        "seed": arguments.seed,
        "model": fingerprint(wb.model),
        "layer": wb.layer,
        "depths": wb.depths,
        "drawing code": datasets.drawing_code(),
        "versions": versions(),
    }
    return pd.concat(tables, ignore_index=True), note


def write_tables(table: pd.DataFrame, summary: pd.DataFrame, note: dict, folder: Path) -> None:
    """Per-sample values, summary, comparisons and settings."""
    folder.mkdir(parents=True, exist_ok=True)
    small = table.astype({name: "category" for name in KEYS if name not in ("label", "seed")})
    small = small.astype({"value": "float32", "area": "float32", "label": "int16", "seed": "int32"})
    small.to_parquet(folder / "evaluation.parquet", index=False, compression="zstd")
    masked = summary["mask"] != "none"
    style = {"index": False, "float_format": "%.6g"}
    summary[masked].to_csv(folder / "evaluation.csv", **style)
    summary[~masked].drop(columns="mask").to_csv(folder / "faithfulness.csv", **style)
    if "relevance-iba" in set(table["method"]):
        located = table[table["mask"] != "none"]
        compare(located).to_csv(folder / "comparisons.csv", **style)
    text = json.dumps(note, indent=1, ensure_ascii=False) + "\n"
    (folder / "evaluation.json").write_text(text, encoding="utf-8")


def fill_in(page: Path, table: str) -> None:
    """Put a table between the two ``results`` marks of a Markdown page."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}", encoding="utf-8")


MARKS = ("<!-- results -->", "<!-- end of results -->")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``python -m riba.evaluation --help``."""
    parser = argparse.ArgumentParser(
        prog="python -m riba.evaluation",
        description="Every method against the masks of the bundled scenes. Run it again after a "
        "stop: it goes on where it was.",
    )
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--scenes", type=int, default=200, help="scenes with one object")
    parser.add_argument("--pairs", type=int, default=200, help="scenes with two objects")
    parser.add_argument("--slow", type=int, default=50, help="of each for InputIBA")
    parser.add_argument("--methods", nargs="+", help="names out of riba.METHODS; all by default")
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=[m for m in METRICS if m != "sensitivity_n"],
        help="names out of riba.evaluation.METRICS; by default all but sensitivity_n",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 is this one alone")
    parser.add_argument("--out", type=Path, default=DATA / "cache" / "evaluation")
    parser.add_argument("--tables", type=Path, help="folder for the summary tables")
    parser.add_argument("--page", type=Path, help="Markdown page to put the results table into")
    arguments = parser.parse_args(argv)
    try:
        if arguments.workers:
            with ProcessPoolExecutor(
                arguments.workers, get_context("spawn"), torch.set_num_threads, (1,)
            ) as pool:
                table, note = run(arguments, pool)
        else:
            table, note = run(arguments, None)
    except ValueError as error:
        parser.error(str(error))
    summary = summarise(table)
    if arguments.tables:
        write_tables(table, summary, note, arguments.tables)
    if arguments.page:
        fill_in(arguments.page, results_table(summary))
    print(summary.to_string(index=False))


if __name__ == "__main__":
    main()
