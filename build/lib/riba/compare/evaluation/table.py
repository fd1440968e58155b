"""Methods × samples × metrics: one tidy table, written as it grows and resumable."""

from __future__ import annotations

import hashlib
import json
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from riba import progress, storage
from riba.compare import metrics
from riba.compare.evaluation.workers import AHEAD, Packed, packed, results
from riba.compare.methods import METHODS, find_method
from riba.method.bottleneck import in_chunks
from riba.method.network import near_matches
from riba.testbed import datasets
from riba.workbench import Workbench

FRACTIONS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75)
"""Budgets at which the allocation curve is tabulated."""
CURVE = tuple(f"allocation@{fraction:g}" for fraction in FRACTIONS)
CONTRAST = "two_object_contrast"
METRICS = (*metrics.LOCALISATION, *CURVE, CONTRAST, *metrics.FAITHFULNESS)
"""Names of everything that can be measured."""
EXPLAIN = ("label", "prediction")
HEADLINE = ("allocation_area", "rank_accuracy", "mass_accuracy")
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
    explain: str = "label",
    ahead: int = AHEAD,
) -> pd.DataFrame:
    """Explain every sample by every method and measure every map.

    Samples are read when their turn comes, so that memory does not grow with their number.

    Parameters
    ----------
    wb
        Network, layer and statistics.
    methods, metrics
        Names out of :data:`riba.METHODS` and :data:`METRICS`.
    samples
        With masks; ``two_object_contrast`` also needs ``other``. What cannot be read is left out,
        with a warning at the end.
    out
        Folder for the results: each (method, few samples) is written as soon as it is measured, so
        that a run that was stopped anywhere goes on where it was. None keeps all in memory.
    executor
        Any ``concurrent.futures.Executor``: a process pool, or Dask's ``Client.get_executor()``;
        threads of one process take turns. None is this process alone. Workers read the network
        from ``out``, and write there, where they can reach it.
    seed
        Of whatever is random in the methods and metrics.
    batch
        Samples explained together; halved where GPU memory runs out.
    explain
        ``"label"``, the class or set of classes that a sample's label stands for
        (:meth:`Workbench.targets`), or ``"prediction"``, the class that the network sees first.
    ahead
        Blocks of samples at the executor's workers at once: twice the number of workers keeps all
        of them busy.

    Returns
    -------
    One row per sample × method × metric × mask: columns ``sample, label, digest, area, method,
    seed, metric, mask, value``. ``mask`` is ``strict``, ``banded`` (the border left out) or, for
    faithfulness, ``none``; ``area`` is the object's share of the image. A value is NaN where the
    metric does not apply (a box too large, an object that is all border).

    Raises
    ------
    ValueError
        Unknown method or metric (near matches listed), a sample that is there twice, no mask, an
        empty one or one of another size than its image, a label that the network does
        not know, or an ``out`` of other settings.
    RuntimeError
        Something went wrong in a worker; what was measured until then is kept in ``out``.

    Warns
    -----
    UserWarning
        Of the samples that could not be read.
    """
    for method in methods:
        find_method(method)
    for metric in metrics:
        _find_metric(metric)
    for what, names in (("methods", methods), ("metrics", metrics)):
        if not names:
            raise ValueError(f"no {what}: name at least one")
    if explain not in EXPLAIN:
        raise ValueError(f"explain must be one of {', '.join(EXPLAIN)}, got {explain!r}")
    samples, rows, bad = _read_once(wb, samples, metrics, explain)
    folder = None if out is None else _opened(Path(out).resolve(), wb, explain)
    done = _read(folder)
    done = done[done["seed"] == seed]
    blocks = list(_blocks(rows, methods, tuple(metrics), done, batch))
    frames = [done]
    total = sum(len(indices) * len(jobs) for indices, jobs in blocks)
    tasks = (
        _Task(samples[indices], [rows[i] for i in indices], jobs, seed, folder, explain)
        for indices, jobs in blocks
    )
    with progress.counter("maps", total) as bar:
        for frame in _run(wb, tasks, folder, executor, ahead):
            frames.append(frame)
            bar.update(frame["digest"].nunique())
    table = pd.concat([frame for frame in frames if len(frame)], ignore_index=True)
    if bad:
        warnings.warn(f"{len(bad)} samples were left out: {'; '.join(bad)}", stacklevel=2)
    return _asked_for(table, rows, methods, metrics)


def _asked_for(
    table: pd.DataFrame,
    rows: list[dict],
    methods: Sequence[str],
    metrics: Sequence[str],
) -> pd.DataFrame:
    """Rows of this call, in the order of its arguments, whatever order they were measured in."""
    orders = {
        "method": {name: place for place, name in enumerate(methods)},
        "digest": {row["digest"]: place for place, row in enumerate(rows)},
        "metric": {name: place for place, name in enumerate(metrics)},
    }
    kept = [table[column].isin(list(order)) for column, order in orders.items()]
    table = table[np.logical_and.reduce(kept)].drop_duplicates(KEYS)
    places = {column: table[column].map(order) for column, order in orders.items()}
    ranks = np.lexsort([table["mask"], places["metric"], places["digest"], places["method"]])
    return table.iloc[ranks].reset_index(drop=True)


def _find_metric(name: str) -> None:
    if name not in METRICS:
        near = near_matches(name, METRICS)
        raise ValueError(f"no metric {name!r}; {near} (riba.evaluation.METRICS lists all)")


def _read_once(
    wb: Workbench, samples: Sequence[datasets.Sample], metrics: Sequence[str], explain: str
) -> tuple[datasets.Chosen, list[dict], list[str]]:
    """The samples that can be read, what a row says about each, and why others cannot."""
    places, rows, bad, seen = [], [], [], set()
    for place in progress.track(range(len(samples)), "reading samples"):
        try:
            sample = samples[place]
        except (OSError, ValueError) as error:
            bad.append(str(error))
            continue
        row = _identified(sample)
        _check_sample(wb, sample, row["sample"], metrics, explain)
        if row["digest"] in seen:
            raise ValueError(f"sample {row['sample']} is in the list twice: pass it once")
        seen.add(row["digest"])
        places.append((samples, place))
        rows.append(row)
    if not rows:
        reasons = f" ({'; '.join(bad)})" if bad else ""
        raise ValueError(f"no samples to evaluate: pass at least one that can be read{reasons}")
    return datasets.Chosen(places), rows, bad


def _identified(sample: datasets.Sample) -> dict[str, object]:
    """What a row of the table says about its sample; the digest tells samples apart."""
    digest = hashlib.blake2b(digest_size=8)
    for tensor in (sample.image, sample.mask, sample.other, sample.void):
        if tensor is not None:
            digest.update(tensor.contiguous().numpy().data)
    digest.update(str(sample.label).encode())
    return {
        "sample": sample.name or digest.hexdigest(),
        "label": sample.label,
        "digest": digest.hexdigest(),
        "area": 0.0 if sample.mask is None else sample.mask.double().mean().item(),
    }


def _check_sample(
    wb: Workbench, sample: datasets.Sample, name: str, metrics: Sequence[str], explain: str
) -> None:
    if sample.mask is None:
        raise ValueError(f"sample {name} has no mask: it can be explained, but not judged")
    if sample.mask.shape != sample.image.shape[1:]:
        raise ValueError(
            f"sample {name}: mask {tuple(sample.mask.shape)} and image "
            f"{tuple(sample.image.shape[1:])} differ in size: resize the mask"
        )
    if not sample.mask.any():
        raise ValueError(f"sample {name}: its mask is empty, drop it first")
    if CONTRAST in metrics and sample.other is None:
        raise ValueError(f"sample {name} has one object only: {CONTRAST} needs two")
    if explain == "label" and (sample.label is None or not wb.classes(sample.label)):
        raise ValueError(
            f"sample {name}: no class of the network stands for its label: take the samples that "
            "riba.evaluation.select keeps, or explain='prediction'"
        )


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


@dataclass(frozen=True)
class _Task:
    """A few samples, to be explained by one method after the other."""

    samples: Sequence[datasets.Sample]
    rows: list[dict]
    jobs: list[tuple[str, tuple[str, ...]]]
    seed: int
    folder: Path | None
    explain: str

    def read(self) -> _Task:
        """With its samples in memory, for a worker who may not have the files."""
        return replace(self, samples=list(self.samples))


def _run(
    wb: Workbench,
    tasks: Iterator[_Task],
    folder: Path | None,
    executor: Executor | None,
    ahead: int,
) -> Iterator[pd.DataFrame]:
    if executor is None:
        for task in tasks:
            yield from _explain_block(wb, task)
        return
    with ExitStack() as stack:
        known = wb
        if not isinstance(executor, ThreadPoolExecutor):
            known = stack.enter_context(packed(wb, folder))
        work = partial(_explain_all, known)
        for frames in results(executor, work, (task.read() for task in tasks), ahead):
            for frame in frames:
                if folder and not _part(frame, folder).is_file():  # the worker could not reach it
                    _write(frame, folder)
                yield frame


_ONE_AT_A_TIME = threading.Lock()


def _explain_all(wb: Workbench | Packed, task: _Task) -> list[pd.DataFrame]:
    """A block in a worker. Threads of one process take turns: they would meet each other's hooks,
    and tracing a network changes the calls of all; PyTorch itself uses the other cores."""
    with _ONE_AT_A_TIME:
        return list(_explain_block(wb.workbench() if isinstance(wb, Packed) else wb, task))


def _explain_block(wb: Workbench, task: _Task) -> Iterator[pd.DataFrame]:
    """Explain a few samples by one method after the other; every method is written at once."""
    samples, seed = list(task.samples), task.seed
    images, masks = (
        torch.stack([getattr(sample, name) for sample in samples]).to(wb.device)
        for name in ("image", "mask")
    )
    if task.explain == "label":
        targets = wb.targets([sample.label for sample in samples]).to(wb.device)
    else:
        targets = wb.predict(images).argmax(1)
    others = _filled([sample.other for sample in samples], masks)
    void = _filled([sample.void for sample in samples], masks)
    band = metrics.border_band(masks) | metrics.border_band(others)
    voids = {"strict": void, "banded": void | band}
    size = len(samples)
    for method, wanted in task.jobs:

        def maps_of(part: slice, method: str = method) -> tuple[Tensor]:
            inputs = {"masks": masks[part], "seed": seed}
            return (METHODS[method](wb, images[part], targets[part], **inputs),)

        (maps,), size = in_chunks(maps_of, len(samples), size)
        frame = pd.DataFrame(
            [
                {**row, "method": method, "seed": seed, "metric": name, "mask": mask, "value": v}
                for (name, mask), values in _measure(
                    wb, wanted, maps, images, targets, masks, others, voids, seed
                ).items()
                for row, v in zip(task.rows, values.tolist(), strict=True)
            ]
        )
        _write(frame, task.folder)
        yield frame


def _filled(some: list[Tensor | None], like: Tensor) -> Tensor:
    """Masks as one batch; False everywhere in the place of None."""
    filled = torch.zeros_like(like)
    for row, mask in zip(filled, some, strict=True):
        if mask is not None:
            row |= mask.to(like.device)
    return filled


def _measure(
    wb: Workbench,
    wanted: Sequence[str],
    maps: Tensor,
    images: Tensor,
    targets: Tensor,
    masks: Tensor,
    others: Tensor,
    voids: dict[str, Tensor],
    seed: int,
) -> dict[tuple[str, str], Tensor]:
    """(metric, mask) to B values."""
    measured = {}
    for name in wanted:
        if name in metrics.FAITHFULNESS:
            value = metrics.FAITHFULNESS[name](wb.model, images, targets, maps, seed=seed)
            measured[name, "none"] = value
    localised = [name for name in wanted if name not in metrics.FAITHFULNESS]
    for mask, void in voids.items():
        for name, value in _localised(localised, maps, masks, others, void).items():
            measured[name, mask] = value
    return measured


def _localised(
    names: Sequence[str], maps: Tensor, masks: Tensor, others: Tensor, void: Tensor
) -> dict[str, Tensor]:
    """Localisation metrics by name; NaN where the void band leaves nothing to measure."""
    inside, outside, inside_other = (
        (pixels & ~void).any((1, 2)) for pixels in (masks, ~masks, others)
    )
    if not inside.any():
        nothing = torch.full((len(maps),), torch.nan, dtype=torch.float64, device=maps.device)
        return dict.fromkeys(names, nothing)
    values = {}
    for name in names:
        if name == CONTRAST:
            rows = inside & inside_other
            found = metrics.two_object_contrast(maps[rows], masks[rows], others[rows], void[rows])
        elif name in metrics.LOCALISATION:
            rows = inside & outside if name == "auroc" else inside
            found = metrics.LOCALISATION[name](maps[rows], masks[rows], void[rows])
        else:
            continue
        values[name] = _with_gaps(found, rows)
    curve = [name for name in names if name in CURVE]
    if curve:  # of one ranking
        budgets = [FRACTIONS[CURVE.index(name)] for name in curve]
        found = metrics.allocation_curve(maps[inside], masks[inside], budgets, void[inside])
        values |= {n: _with_gaps(v, inside) for n, v in zip(curve, found.T, strict=True)}
    return values


def _with_gaps(values: Tensor, rows: Tensor) -> Tensor:
    """``values`` in the places of ``rows`` (B bool), NaN in the others."""
    return torch.full(rows.shape, torch.nan).to(values).index_put((rows,), values)


# --- the folder of results -----------------------------------------------------------------------


def _opened(folder: Path, wb: Workbench, explain: str) -> Path:
    """The folder, new or of these very settings."""
    settings = {
        **wb.facts,
        "band": metrics.localisation.BAND,
        "sets": wb.sets and [list(classes) for classes in wb.sets],
        "top": wb.top,
        "explain": explain,
        "precision": wb.precision and str(wb.precision),
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
    if any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty and holds no results of an evaluation: choose another folder"
        )
    with storage.whole(path) as part:
        part.write_text(json.dumps(settings, indent=1) + "\n")
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
    """One part, whole or not at all."""
    if folder is not None and folder.is_dir():
        with storage.whole(_part(frame, folder)) as part:
            frame.to_parquet(part, index=False)


def _part(frame: pd.DataFrame, folder: Path) -> Path:
    """Where a part lies: its name is made of the keys of its rows."""
    keys = frame[KEYS].astype(str).agg("|".join, axis=1)
    return folder / f"part-{hashlib.sha256(chr(10).join(keys).encode()).hexdigest()[:20]}.parquet"
