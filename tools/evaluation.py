"""The evaluation that is committed: ``python -m tools.evaluation --tables data``.

On photomontages: ``--network efficientnet-lite0 --data photos`` (``data/photos_*``); the settings
of what is committed are those of ``make photos-evaluation``.

Takes the arguments of ``python -m riba.evaluation``, and writes the tables in ``data/``; what is
quoted of them is written by ``python -m tools.pages``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from riba.compare.evaluation import CONTRAST, HEADLINE, compare, summarise
from riba.compare.evaluation.blocks import KEYS
from riba.compare.evaluation.command import parser, run, workbench
from riba.method.network import fingerprint
from riba.storage import versions
from riba.testbed import datasets

REFERENCES = ("relevance-iba", "relevance-iba-cascade", "relevance-iba-detail",
              "relevance-iba-detail-separate")  # fmt: skip
"""Methods that all others are compared with in pairs: the publication's form, and ours."""


def rounded(summary: pd.DataFrame) -> pd.DataFrame:
    """A summary with six significant digits, as in the files."""
    numbers = ["mean", "low", "high"]
    values = summary[numbers].map(lambda value: float(f"{value:.6g}"))
    return summary.assign(**values)


def write_tables(
    table: pd.DataFrame,
    summary: pd.DataFrame,
    settings: dict[str, object],
    folder: Path,
    prefix: str = "",
) -> None:
    """Per-sample values, summary, comparisons and settings; numbers with six digits.

    ``prefix`` is put in front of the names of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = [name for name in KEYS if name in table and name not in ("label", "seed")]
    small = table.astype(dict.fromkeys(texts, "category"))
    small = small.astype({"value": "float32", "area": "float32", "label": "int16", "seed": "int32"})
    small.to_parquet(folder / f"{prefix}evaluation.parquet", index=False, compression="zstd")
    masked = summary["mask"] != "none"
    style = {"index": False, "float_format": "%.6g"}
    summary[masked].to_csv(folder / f"{prefix}evaluation.csv", **style)
    summary[~masked].drop(columns="mask").to_csv(folder / f"{prefix}faithfulness.csv", **style)
    located = table[table["metric"].isin([*HEADLINE, CONTRAST])]
    references = [method for method in REFERENCES if method in set(table["method"])]
    if references:
        comparisons = pd.concat([compare(located, method) for method in references])
        comparisons.to_csv(folder / f"{prefix}comparisons.csv", **style)
    text = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
    (folder / f"{prefix}evaluation.json").write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: ``python -m tools.evaluation --help``."""
    command = parser("python -m tools.evaluation")
    command.add_argument("--tables", type=Path, help="folder for the summary tables")
    arguments = command.parse_args(argv)
    try:
        wb = workbench(arguments)
        table, counts = run(wb, arguments)
    except (ValueError, OSError, RuntimeError) as error:
        command.error(str(error))
    summary = rounded(summarise(table))
    if arguments.tables:
        settings = {
            "split": arguments.split,
            **counts,
            "seed": arguments.seed,
            "model": fingerprint(wb.model),
            "layer": wb.layer,
            "depths": wb.depths,
            "betas": dict(wb.betas),
            "device": torch.cuda.get_device_name() if wb.device.type == "cuda" else "cpu",
            "drawing code": datasets.drawing_code(),
            "versions": versions(),
        }
        prefix = f"{arguments.data}_" if arguments.data else ""
        write_tables(table, summary, settings, arguments.tables, prefix)
    print(summary.to_string(index=False))


if __name__ == "__main__":
    main()
