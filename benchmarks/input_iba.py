"""InputIBA's prior: does the fast fit agree with the published one, and what does it save?

    python -m benchmarks.input_iba            # agreement on 30 validation scenes (about 40 minutes)
    python -m benchmarks.input_iba --speed    # seconds an image, three scenes, on an idle machine

Writes ``benchmarks/input_iba.csv`` (one row per scene and prior, resumed where it was stopped) and
``benchmarks/input_iba_speed.csv``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from scipy.stats import spearmanr
from tqdm.auto import tqdm

import riba
from riba.compare import metrics
from riba.method.input_iba import PRIORS
from riba.testbed import datasets
from tools import wgan  # noqa: F401  (adds the published prior to PRIORS)

HERE = Path(__file__).parent
AGREEMENT, SPEED = HERE / "input_iba.csv", HERE / "input_iba_speed.csv"
YARDSTICK = "wgan"


def explain(
    wb: riba.Workbench, sample: datasets.Sample, prior: str, **settings: object
) -> riba.InputInformation:
    """InputIBA of one sample with its prior fitted in one of the ways."""
    method = riba.InputIBA(wb.model, wb.layer, wb.statistics, prior=prior, **settings)
    return method(sample.image[None], [sample.label])


def compare(wb: riba.Workbench, sample: datasets.Sample) -> list[dict[str, object]]:
    """One row per prior: total nats, localisation, and agreement with the yardstick."""
    found = {prior: explain(wb, sample, prior) for prior in PRIORS}
    published = found[YARDSTICK]
    rows = []
    for prior, information in found.items():
        maps, masks = information.map, sample.mask[None]
        rows.append(
            {
                "scene": sample.name,
                "prior": prior,
                "nats": information.nats.sum().item(),
                "probability": information.probability.item(),
                "rank_correlation": spearmanr(maps.flatten(), published.map.flatten())[0],
                "prior_difference": (information.prior - published.prior).abs().mean().item(),
                "rank_accuracy": metrics.rank_accuracy(maps, masks).item(),
                "mass_accuracy": metrics.mass_accuracy(maps, masks).item(),
            }
        )
    return rows


def agreement(scenes: int) -> pd.DataFrame:
    """The table over the first validation scenes; what is in the file already is not done again."""
    wb = riba.load()
    done = pd.read_csv(AGREEMENT) if AGREEMENT.is_file() else pd.DataFrame(columns=["scene"])
    for index in tqdm(range(scenes), "scenes"):
        sample = wb.validation[index]
        if sample.name not in set(done["scene"]):
            done = pd.concat([done, pd.DataFrame(compare(wb, sample))])
            done.to_csv(AGREEMENT, index=False, float_format="%.6g")
    return done


def speed(scenes: int = 3) -> pd.DataFrame:
    """Seconds an image per prior, the priors in turns so that all meet the same machine.

    ``published`` has the published fit and ten independent copies; the others the defaults.
    """
    wb = riba.load()
    settings = {prior: {"prior": prior} for prior in PRIORS}
    settings["published"] = {"prior": YARDSTICK, "samples": 10, "antithetic": False}
    rows = []
    for index in range(scenes):
        sample = wb.validation[index]
        for name, asked in settings.items():
            began = time.perf_counter()
            explain(wb, sample, **asked)
            rows.append({"prior": name, "seconds": time.perf_counter() - began})
    table = pd.DataFrame(rows).groupby("prior", sort=False)["seconds"].mean().reset_index()
    published = table.loc[table["prior"] == "published", "seconds"].item()
    table["speed_up"] = published / table["seconds"]
    table["threads"] = torch.get_num_threads()
    table.to_csv(SPEED, index=False, float_format="%.3g")
    return table


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=30)
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    if arguments.speed:
        print(speed().to_string(index=False))
    else:
        table = agreement(arguments.scenes)
        print(table.groupby("prior").mean(numeric_only=True).T.to_string())


if __name__ == "__main__":
    main()
