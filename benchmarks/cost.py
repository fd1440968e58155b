"""What the forms with several depths cost, against plain IBA and InputIBA, in one run.

    python -m benchmarks.cost          # two minutes on an idle machine

Writes ``benchmarks/cost.csv``: seconds a scene, and how many times plain IBA that is. A batch of
eight scenes; InputIBA, which takes one at a time, two of them. The methods take turns, so that all
meet the same machine.
"""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import torch

import riba
from riba.testbed import datasets

TABLE = Path(__file__).with_suffix(".csv")
ROUNDS = 3
METHODS = {
    "iba": 8,
    "relevance-iba": 8,
    "iba-depth-4": 8,
    "capacity-product-separate": 8,
    "relevance-iba-joint": 8,
    "relevance-iba-cascade": 8,
    "input-iba": 2,
}
"""Methods and the number of scenes they are timed on."""


def main() -> None:
    """Time every method; a seed of its own for every call, so that none finds another's result."""
    wb = riba.load()
    images, labels, _ = datasets.stack([wb.validation[index] for index in range(8)])
    rows = []
    for turn in range(ROUNDS + 1):  # the first warms up
        for place, (method, count) in enumerate(METHODS.items()):
            began = time.perf_counter()
            seed = turn * len(METHODS) + place
            riba.METHODS[method](wb, images[:count], labels[:count], seed=seed)
            if turn:
                rows.append((method, (time.perf_counter() - began) / count))
    table = pd.DataFrame(rows, columns=["method", "seconds"])
    table = table.groupby("method", sort=False)["seconds"].median().reset_index()
    table["times_iba"] = table["seconds"] / table["seconds"][0]
    table["threads"] = torch.get_num_threads()
    table.to_csv(TABLE, index=False, float_format="%.3g")
    print(table.round(2).to_string(index=False))


if __name__ == "__main__":
    main()
