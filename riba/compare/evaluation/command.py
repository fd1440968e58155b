"""The evaluation of the bundled scenes from a shell: ``python -m riba.evaluation --help``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from riba.compare.evaluation.report import check_page, fill_in, results_table, write_tables
from riba.compare.evaluation.samples import select, select_pairs
from riba.compare.evaluation.statistics import summarise
from riba.compare.evaluation.table import CONTRAST, METRICS, evaluate
from riba.compare.methods import METHODS
from riba.method.network import fingerprint
from riba.show.plots import versions
from riba.storage import DATA
from riba.testbed import datasets
from riba.workbench import load

SLOW = ("input-iba", "input-iba-nats")


def run(arguments: argparse.Namespace, executor: Executor | None) -> tuple[pd.DataFrame, dict]:
    """The whole evaluation of the command line: the table, and what it was made with."""
    wb = load()
    singles, passed = select(wb, datasets.Scenes(arguments.split, 1000), arguments.scenes)
    pairs, passed_pairs = [], {}
    if CONTRAST in arguments.metrics and arguments.pairs:
        pairs, passed_pairs = select_pairs(wb, arguments.split, arguments.pairs)
    wanted = arguments.methods or list(METHODS)
    tables = []
    for methods, scenes, two in (
        ([m for m in wanted if m not in SLOW], len(singles), len(pairs) // 2),
        ([m for m in wanted if m in SLOW], arguments.slow, arguments.slow),
    ):
        alone = [m for m in arguments.metrics if m != CONTRAST]
        together = [m for m in arguments.metrics if m == CONTRAST]
        for samples, measures in ((singles[:scenes], alone), (pairs[: 2 * two], together)):
            if methods and measures and samples:
                settings = {"out": arguments.out, "executor": executor, "seed": arguments.seed}
                tables.append(evaluate(wb, methods, samples, measures, **settings))
    if not tables:
        raise ValueError("nothing to measure: ask for at least one scene, method and metric")
    note = {
        "split": arguments.split,
        "scenes": len(singles),
        "two-object scenes": len(pairs) // 2,
        "passed over": passed | passed_pairs,
        "seed": arguments.seed,
        "model": fingerprint(wb.model),
        "layer": wb.layer,
        "depths": wb.depths,
        "drawing code": datasets.drawing_code(),
        "versions": versions(),
    }
    return pd.concat(tables, ignore_index=True), note


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
        if arguments.page:
            check_page(arguments.page)
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
    numbers = summary.columns[3:6]
    summary[numbers] = summary[numbers].map(lambda value: float(f"{value:.6g}"))  # as in the files
    if arguments.tables:
        write_tables(table, summary, note, arguments.tables)
    if arguments.page:
        fill_in(arguments.page, results_table(summary))
    print(summary.to_string(index=False))
