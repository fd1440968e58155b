"""β of a network that :func:`riba.load` knows: ``python -m tools.calibration efficientnet-lite0``.

Measures on validation samples at every layer of ``data/networks.csv`` and at all together, and
writes the network's rows of ``data/betas.csv``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from riba import progress
from riba.compare import calibration
from riba.compare.evaluation import select
from riba.storage import DATA
from riba.testbed.networks import NETWORKS
from riba.workbench import load

TABLE = DATA / "betas.csv"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``python -m tools.calibration --help``."""
    progress.printable()
    command = argparse.ArgumentParser(prog="python -m tools.calibration", description=__doc__)
    command.add_argument("network", choices=list(NETWORKS))
    command.add_argument("--data", help="photos, for an ImageNet network")
    command.add_argument("--weights", help="a file of weights in place of the network's own")
    command.add_argument("--scenes", type=int, default=96)
    command.add_argument("--device", help="cuda, or cpu")
    command.add_argument("--table", type=Path, default=TABLE)
    arguments = command.parse_args(argv)
    wb = load(
        arguments.network, data=arguments.data, weights=arguments.weights, device=arguments.device
    )
    samples, _ = select(wb, wb.validation, arguments.scenes)
    rows = []
    for layers in (*wb.depths, wb.depths):
        table = calibration.shares_kept(wb, layers, samples)
        beta = calibration.calibrated(table)
        kept = table.groupby("beta")["kept"].median()
        print(kept.round(3).to_string(), flush=True)
        names = table["layers"].iloc[0]
        rows.append((arguments.network, names, beta, round(kept[beta], 3), len(samples)))
    old = pd.read_csv(arguments.table)
    fresh = pd.DataFrame(rows, columns=old.columns)
    others = old[old["network"] != arguments.network]
    pd.concat([others, fresh] if len(others) else [fresh]).to_csv(arguments.table, index=False)
    print(fresh.to_string(index=False))


if __name__ == "__main__":
    main()
