"""Does a ranking on photomontages hang on the seam of what was pasted? EfficientNet-Lite0.

    python -m benchmarks.seams             # needs `make photos`; twenty minutes on two cores

Test montages in three forms: with soft edges, as everywhere else; with *hard edges*, the object
cut along its mask; and *null paste*, where the pixels within the mask are those of another
background and the prediction is explained: a map that still lies there marks the seam. Writes
``benchmarks/seams.csv``, a row per method: allocation area with soft and with hard edges (but of
the slowest), the share of its mass within the null paste, and that paste's share of the picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import riba
from riba import storage
from riba.compare.evaluation import select, summarise
from riba.compare.evaluation.command import applicable
from riba.testbed.photos import Montages, fetched

TABLE = Path(__file__).with_suffix(".csv")
SLOW = {"input-iba", "input-iba-nats", "integrated-gradients", "smoothgrad", "occlusion"}
"""Methods for the null paste alone."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--methods", nargs="+", help="by default all that run")
    parser.add_argument("--device", help="cuda, or cpu")
    parser.add_argument("--out", type=Path, default=TABLE)
    arguments = parser.parse_args()
    wb = riba.load("efficientnet-lite0", data="photos", device=arguments.device)
    soft, _ = select(wb, wb.test, arguments.scenes)
    every = arguments.methods or [name for name in applicable(wb, soft[0])[0] if name != "oracle"]
    quick = arguments.methods or [name for name in every if name not in SLOW]
    numbers = [index for _, index in soft.places]
    collection = fetched(wb.class_names)
    forms = {
        "soft": (quick, {}, "allocation_area", "label"),
        "hard": (quick, {"hard": True}, "allocation_area", "label"),
        "null": (every, {"kind": "null"}, "mass_accuracy", "prediction"),
    }
    columns = {}
    for name, (methods, settings, metric, explain) in forms.items():
        montages = Montages(collection, "test", len(wb.test), **settings)
        table = riba.evaluate(
            wb,
            methods,
            [montages[number] for number in numbers],
            [metric],
            out=storage.DATA / "cache" / f"seams-{name}",
            explain=explain,
        )
        means = summarise(table).set_index(["mask", "method"])
        columns[name] = means["mean"]["banded" if name != "null" else "strict"]
        columns["area of the paste"] = table.groupby("method", observed=True)["area"].mean()
    table = pd.DataFrame(columns).assign(n=len(numbers)).sort_values("soft", ascending=False)
    table.to_csv(arguments.out, index_label="method", float_format="%.4g")
    print(table.round(3).to_string())


if __name__ == "__main__":
    main()
