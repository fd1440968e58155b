"""Does what wins on the bundled network win on others? Two more seeds and a small ResNet.

    python -m benchmarks.networks      # trains what is missing (minutes each), then compares

Weights go to ``data/cache`` and are not shipped. The methods run with the defaults that were
chosen for the bundled network. Writes ``benchmarks/networks.csv``: a row per network × method ×
metric × mask, over 60 test scenes that the network gets right, with the paired difference from
plain IBA.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch

import riba
from riba import storage
from riba.compare import evaluation
from tools import training

TABLE = Path(__file__).with_suffix(".csv")
EPOCHS, SCENES, ACCURACY_SCENES = 3, 60, 300
NETWORKS = {
    "scenenet, seed 1": ("scenenet", 1),
    "scenenet, seed 2": ("scenenet", 2),
    "small ResNet": ("small-resnet", 0),
}
METHODS = (
    *("iba", "lrp-epsilon-plus", "relevance-iba", "iba-joint", "relevance-iba-joint"),
    *("relevance-iba-cascade", "capacity-product", "capacity-product-squared"),
    *("relevance-iba-detail-separate", "capacity-product-squared-separate"),
)


def weights(name: str, seed: int) -> Path:
    """The trained weights; trained now where they are not there."""
    path = storage.DATA / "cache" / f"{name}-{seed}.safetensors"
    if not path.is_file():
        training.train_network(name, path, seed, EPOCHS)
    return path


@torch.no_grad()
def accuracy(wb: riba.Workbench) -> float:
    """Share of test scenes that the network gets right."""
    samples = [wb.test[index] for index in range(ACCURACY_SCENES)]
    right = [wb.predict(s.image[None]).argmax().item() == s.label for s in samples]
    return sum(right) / len(right)


def compare(title: str, name: str, seed: int) -> pd.DataFrame:
    """All methods on one network."""
    wb = riba.load(name, weights=weights(name, seed))
    samples, _ = evaluation.select(wb, wb.test, SCENES)
    out = storage.DATA / "cache" / f"networks-{name}-{seed}"
    table = riba.evaluate(wb, METHODS, samples, out=out)
    paired = evaluation.compare(table, against="iba").drop(columns=["against", "n"])
    paired = paired.rename(columns={"low": "difference_low", "high": "difference_high"})
    summary = evaluation.summarise(table).merge(paired, how="left")
    summary.insert(0, "network", title)
    summary.insert(1, "accuracy", accuracy(wb))
    return summary


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", help=f"by default all: {', '.join(NETWORKS)}")
    arguments = parser.parse_args()
    for unknown in set(arguments.networks) - set(NETWORKS):
        parser.error(f"no network {unknown!r}: choose from {', '.join(NETWORKS)}")
    table = pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame({"network": []})
    for title in arguments.networks or NETWORKS:
        if title not in set(table["network"]):
            table = pd.concat([table, compare(title, *NETWORKS[title])])
            table.to_csv(TABLE, index=False, float_format="%.4g")
    print(table.pivot_table("mean", ["network", "method"], ["metric", "mask"], sort=False).round(3))


if __name__ == "__main__":
    main()
