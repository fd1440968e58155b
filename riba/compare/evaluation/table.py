"""Methods × samples × metrics: one tidy table, written as it grows and resumable."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from itertools import chain, groupby
from pathlib import Path

import pandas as pd

from riba import progress, storage
from riba.compare.evaluation.blocks import KEYS, METRICS, Block, Jobs, stacked
from riba.compare.evaluation.samples import read_once, remember, remembered
from riba.compare.evaluation.workers import AHEAD, packed, results, unpacked
from riba.compare.methods import Method, by_name, check_names
from riba.compare.metrics.localisation import BAND
from riba.compare.results import SETTINGS, open_folder, read_parts, write_part
from riba.testbed.datasets import Sample
from riba.workbench import Workbench

HEADLINE = ("allocation_area", "rank_accuracy", "mass_accuracy")
MASKS = ("banded", "none", "strict")
BATCH = 8
EXPLAIN = ("label", "prediction")
MEASURED = ["digest", "method", "metric"]
VERSION = ["seed", "method", "version"]
Bench = tuple[Workbench, Mapping[str, Method]]
"""What a worker needs."""


def evaluate(
    wb: Workbench,
    methods: Sequence[str] | Mapping[str, Method],
    samples: Sequence[Sample],
    metrics: Sequence[str] | Mapping[str, Sequence[str]] = HEADLINE,
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
    methods
        Names out of :data:`riba.METHODS`; or methods by names of your own, such as the same one
        with several settings: ``{"β 1": METHODS["iba"].using(beta=1.0), …}``.
    metrics
        Names out of :data:`METRICS`; or those of each method.
    samples
        With masks; ``two_object_contrast`` also needs ``other``. What cannot be read or judged, or
        is there twice, is left out, with a warning at the end.
    out
        Folder for the results: each (method, few samples) is written as soon as it is measured, so
        that a run that was stopped anywhere goes on where it was. What photos show is noted, too:
        files that have not changed are read again only to be explained. None keeps all in memory.
    executor
        Any ``concurrent.futures.Executor``: a process pool, or Dask's ``Client.get_executor()``;
        threads of one process take turns. None is this process alone. Workers read the network
        from ``out``, and write there, where they can reach it; those of a process pool with
        ``initializer=riba.datasets.begin`` end when this process is killed.
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
    seed, version, metric, mask, value``. ``mask`` is ``strict``, ``banded`` (the border left out)
    or, for faithfulness, ``none``; ``area`` is the object's share of the image. A value is NaN
    where the metric does not apply (a box too large, an object that is all border).

    Raises
    ------
    ValueError
        Unknown method or metric (near matches listed), no sample that can be judged, or an ``out``
        of other settings.
    RuntimeError
        Something went wrong in a worker, or with the files in ``out``; what was measured until
        then is kept there.

    Warns
    -----
    UserWarning
        Of the samples that were left out, and why.
    """
    methods = by_name(methods)
    if not isinstance(metrics, Mapping):
        metrics = dict.fromkeys(methods, metrics)
    check_names("method", methods, metrics, "the metrics that were passed")
    wanted = {name: list(dict.fromkeys(metrics[name])) for name in methods}
    for names in wanted.values():
        check_names("metric", names, METRICS, "riba.evaluation.METRICS")
    metrics = list(dict.fromkeys(chain.from_iterable(wanted.values())))
    if explain not in EXPLAIN:
        raise ValueError(f"explain must be one of {', '.join(EXPLAIN)}, got {explain!r}")
    folder = None if out is None else storage.place(out).resolve()
    seen = remembered(folder)
    chosen, rows, unreadable = read_once(wb, samples, metrics, explain, seen)
    if unreadable:
        reasons = "; ".join(unreadable[:5]) + "; …" * (len(unreadable) > 5)
        warnings.warn(f"{len(unreadable)} samples were left out: {reasons}", stacklevel=2)
    versions = {name: method.version for name, method in methods.items()}
    if folder is not None:
        _open(wb, folder, explain)
        remember(folder, seen)
    frames = _stored(folder, seed, versions)
    digests = [row["digest"] for row in rows]
    jobs = list(_jobs(digests, wanted, frames, batch))
    common = seed, explain, versions, folder
    blocks = (
        Block(*stacked(chosen[places]), [rows[i] for i in places], job, *common)
        for places, job in jobs
    )
    if executor is None or not jobs:
        tables = chain.from_iterable(block.results(wb, methods) for block in blocks)
    else:
        tables = _elsewhere((wb, methods), blocks, folder, executor, ahead)
    with progress.counter("maps", sum(len(places) * len(job) for places, job in jobs)) as bar:
        for frame in tables:
            bar.update(frame["digest"].nunique())
            if folder is None:
                frames.append(frame)
    if folder is not None and jobs:  # read again: many small tables would leave holes in the memory
        frames = _stored(folder, seed, versions)
        if any(_jobs(digests, wanted, frames, batch)):
            raise RuntimeError(f"something else has removed results from {folder}: run it again")
    table = pd.concat(frames, ignore_index=True).drop_duplicates(KEYS)
    order = {"method": methods, "digest": digests, "metric": metrics, "mask": MASKS}
    rows = pd.MultiIndex.from_product(order.values(), names=order).to_frame(index=False)
    return rows.merge(table)[table.columns].infer_objects()  # in the order of the arguments


def _jobs(
    digests: list[str], wanted: dict[str, list[str]], frames: list[pd.DataFrame], batch: int
) -> Iterator[tuple[list[int], Jobs]]:
    """What no frame holds: up to ``batch`` samples, and methods with the metrics of each."""
    measured = {key for frame in frames for key in frame[MEASURED].itertuples(False, None)}

    def missing(place: int) -> Jobs:
        at = digests[place]
        jobs = {
            name: [m for m in metrics if (at, name, m) not in measured]
            for name, metrics in wanted.items()
        }
        return [(name, lacking) for name, lacking in jobs.items() if lacking]

    for jobs, group in groupby(range(len(digests)), missing):
        places = list(group) if jobs else []
        for start in range(0, len(places), batch):
            yield places[start : start + batch], jobs


def _elsewhere(
    bench: Bench, blocks: Iterator[Block], folder: Path | None, executor: Executor, ahead: int
) -> Iterator[pd.DataFrame]:
    threads = isinstance(executor, ThreadPoolExecutor)
    with nullcontext(bench) if threads else packed(bench, folder) as sent:
        for frames in results(executor, partial(_work, sent), blocks, ahead):
            for frame in frames:
                if folder is not None:  # where the worker could not reach it
                    write_part(folder, frame, KEYS, replace=False)
                yield frame


_ONE_AT_A_TIME = threading.Lock()


def _work(bench: Bench | Path, block: Block) -> list[pd.DataFrame]:
    """A block in a worker. Threads of one process take turns: PyTorch itself uses the other cores,
    and the workbench remembers the last result of each bottleneck only."""
    with _ONE_AT_A_TIME:
        return list(block.results(*(unpacked(bench) if isinstance(bench, Path) else bench)))


def _open(wb: Workbench, folder: Path, explain: str) -> None:
    """Make the folder, or see that what was measured there had the same settings."""
    is_new = not (folder / SETTINGS).is_file()
    if is_new and folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise ValueError(
            f"{folder} is not empty and holds no results of an evaluation: choose another folder"
        )
    settings = {
        **wb.facts,
        "band": BAND,
        "sets": wb.sets and [list(classes) for classes in wb.sets],
        "top": wb.top,
        "explain": explain,
        "precision": wb.precision and str(wb.precision),
    }
    open_folder(folder, settings)


def _stored(folder: Path | None, seed: int, versions: dict[str, str]) -> list[pd.DataFrame]:
    """What was measured with the same seed and code."""
    known = {(seed, *version) for version in versions.items()}
    stored = pd.DataFrame() if folder is None else read_parts(folder)
    if "version" not in stored:
        return []
    return [stored[[row in known for row in stored[VERSION].itertuples(False, None)]]]
