"""The evaluation of the bundled scenes from a shell: ``python -m riba.evaluation --help``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context

import pandas as pd

from riba import progress, storage
from riba.compare.evaluation.blocks import CONTRAST, METRICS
from riba.compare.evaluation.samples import select, select_pairs
from riba.compare.evaluation.statistics import summarise
from riba.compare.evaluation.table import evaluate
from riba.compare.methods import METHODS, Method, find_method
from riba.compare.metrics import FAITHFULNESS
from riba.storage import DATA
from riba.testbed.datasets import Sample, begin
from riba.workbench import Workbench, load

SLOW = ("input-iba", "input-iba-nats")
OTHER_CONTRASTS = {"object-and-scene pairs": "object_scene_contrast"}
"""Names of the contrast where it is not one of two objects."""


def run(wb: Workbench, arguments: argparse.Namespace) -> tuple[pd.DataFrame, dict[str, object]]:
    """Evaluate with the arguments of :func:`parser`: the table, and how many scenes it is of.

    Raises
    ------
    ValueError
        An argument does not fit, or nothing is left to measure.
    """
    samples = getattr(wb, arguments.split)
    scenes, left_out = select(wb, samples, arguments.scenes)
    counts, pairs = {"scenes": len(scenes)}, {}
    if CONTRAST in arguments.metrics and arguments.pairs:
        for kind, sides in getattr(samples, "pairs", dict)().items():
            chosen = select_pairs(wb, sides, arguments.pairs, arguments.top)
            pairs[kind], left_out[f"{kind}, not both on top or too small"] = chosen
            counts[kind] = len(pairs[kind]) // 2
    names = arguments.methods
    if names is None and len(scenes):
        names, refusals = applicable(wb, scenes[0])
        left_out |= refusals
    if strays := set(arguments.pair_methods or ()) - set(names or ()):
        raise ValueError(f"--pair-methods: {', '.join(sorted(strays))} not among the methods")
    located = [m for m in arguments.metrics if m != CONTRAST and m not in FAITHFULNESS]
    asked = [m for m in arguments.metrics if m in FAITHFULNESS]
    few, evaluations = arguments.faithful, []
    slow = arguments.slow_methods
    for group, most, most_pairs in (
        ([name for name in names or () if name not in slow], None, None),
        ([name for name in names or () if name in slow], arguments.slow, arguments.slow_pairs),
    ):
        methods = smoothed(group, arguments.blur)
        for part, more in ((scenes[:most][:few], asked), (scenes[:most][few:], [])):
            metrics = {name: located + more * (name in METHODS) for name in methods}
            measured = {name: method for name, method in methods.items() if metrics[name]}
            evaluations.append((measured, part, metrics, ""))
        among = [name for name in group if name in (arguments.pair_methods or group)]
        for kind, both in pairs.items():
            evaluations.append((among, both[: most_pairs and 2 * most_pairs], [CONTRAST], kind))
    folder = arguments.out or DATA / "cache" / f"evaluation-{wb.name}"
    workers = nullcontext()
    if arguments.workers:
        workers = ProcessPoolExecutor(arguments.workers, get_context("spawn"), begin)
    with workers as executor:
        tables = [
            evaluate(wb, *evaluation, out=folder, executor=executor, seed=arguments.seed).replace(
                {"metric": {CONTRAST: OTHER_CONTRASTS.get(kind, CONTRAST)}}
            )
            for *evaluation, kind in evaluations
            if all(evaluation)
        ]
    if not tables:
        raise ValueError("nothing to measure: ask for at least one scene, method and metric")
    return pd.concat(tables, ignore_index=True), counts | {"passed over": left_out}


def applicable(wb: Workbench, sample: Sample) -> tuple[list[str], dict[str, str]]:
    """Methods that this workbench can run, and why others refuse."""
    names, refusals = [], {}
    image, targets, mask = sample.image[None], wb.targets([sample.label]), sample.mask[None]
    for name, method in METHODS.items():
        short = {"steps": 1, "samples": 1} if {"beta", "steps"} <= set(method.takes) else {}
        try:
            method(wb, image, targets, masks=mask, **short)
        except ValueError as error:
            refusals[f"method {name}"] = str(error)
        else:
            names.append(name)
    return names, refusals


def smoothed(names: Sequence[str], widths: Sequence[float]) -> dict[str, Method]:
    """Methods by name, each followed by itself smoothed by so many pixels: a control."""
    by_name = {}
    for name in names:
        by_name[name] = method = find_method(name)
        by_name |= {f"{name}, smoothed {w:g} px": method.using(blur=w) for w in widths}
    return by_name


def workbench(arguments: argparse.Namespace) -> Workbench:
    """The workbench that the arguments of :func:`parser` name."""
    return load(arguments.network, data=arguments.data, device=arguments.device)


def parser(name: str = "python -m riba.evaluation") -> argparse.ArgumentParser:
    """The command line ``name``."""
    arguments = argparse.ArgumentParser(
        prog=name,
        description="Every method against masks: on drawn scenes, or on photomontages by a real "
        "network. Run it again after a stop: it goes on where it was.",
    )
    add = arguments.add_argument
    add("--network", default="scenenet", help="a name out of riba.networks.NETWORKS")
    add("--data", help="photos, for an ImageNet network (first run `make photos`)")
    add("--device", help="cuda, or cpu")
    add("--split", choices=("validation", "test"), default="test")
    add("--scenes", type=int, default=200, help="scenes with one object")
    add("--pairs", type=int, default=200, help="scenes with two objects, of each kind")
    add("--top", type=int, default=2, help="both classes of a pair are among so many")
    add("--faithful", type=int, default=100, help="of these for insertion, deletion, degradation")
    add("--slow", type=int, default=50, help="of these for the slow methods")
    add("--slow-pairs", type=int, default=50, help="of the pairs for the slow methods")
    add("--slow-methods", nargs="+", default=SLOW, help="InputIBA by default")
    add("--methods", nargs="+", help="names out of riba.METHODS; all by default")
    add("--pair-methods", nargs="+", help="of these for the pairs; all by default")
    add(
        "--metrics",
        nargs="+",
        default=[metric for metric in METRICS if metric != "sensitivity_n"],
        help="names out of riba.evaluation.METRICS; by default all but sensitivity_n",
    )
    add("--blur", nargs="+", type=float, default=[], help="smoothed maps, too: widths in pixels")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=0, help="processes; 0 is this one alone")
    add("--out", type=storage.place, help="folder of results; one of the network in data/cache")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``python -m riba.evaluation --help``."""
    progress.printable()
    command = parser()
    arguments = command.parse_args(argv)
    try:
        table, _ = run(workbench(arguments), arguments)
    except (ValueError, OSError, RuntimeError) as error:
        command.error(str(error))
    print(summarise(table).to_string(index=False))
