"""Tables for readers: files in a folder, and Markdown in a page."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from riba.compare.evaluation.statistics import compare
from riba.compare.evaluation.table import CONTRAST, KEYS

MARKS = ("<!-- results -->", "<!-- end of results -->")
"""Between these lines of a Markdown page the results table goes."""
AIM = ("allocation_area", "banded")
"""What methods are ordered by."""
AGAINST = ("relevance-iba", "relevance-iba-cascade")
"""What all others are compared with in pairs: the publication's form, and our best."""


def results_table(summary: pd.DataFrame) -> str:
    """The headline numbers of :func:`summarise` as a Markdown table, the best method first."""
    columns = {
        "allocation area": AIM,
        "strict": ("allocation_area", "strict"),
        "rank accuracy": ("rank_accuracy", "banded"),
        "mass accuracy": ("mass_accuracy", "banded"),
        "mass, strict": ("mass_accuracy", "strict"),
        "two-object contrast": (CONTRAST, "banded"),
    }
    rows = {tuple(row[:3]): row for row in summary.itertuples(index=False)}
    order = sorted(
        summary["method"].unique(),
        key=lambda method: -getattr(rows.get((method, *AIM)), "mean", 0.0),
    )
    lines = [
        f"| method | {' | '.join(columns)} | scenes |",
        f"|---|{'---|' * len(columns)}---|",
    ]
    for method in order:
        found = [rows.get((method, *column)) for column in columns.values()]
        cells = [
            "–" if row is None else f"{row.mean:.3f} ± {(row.high - row.low) / 2:.3f}"
            for row in found
        ]
        scenes = max((row.n for row in found if row is not None), default=0)
        lines.append(f"| `{method}` | {' | '.join(cells)} | {scenes} |")
    return "\n".join(lines)


def write_tables(table: pd.DataFrame, summary: pd.DataFrame, note: dict, folder: Path) -> None:
    """Per-sample values, summary, comparisons and settings; numbers with six digits."""
    folder.mkdir(parents=True, exist_ok=True)
    small = table.astype({name: "category" for name in KEYS if name not in ("label", "seed")})
    small = small.astype({"value": "float32", "area": "float32", "label": "int16", "seed": "int32"})
    small.to_parquet(folder / "evaluation.parquet", index=False, compression="zstd")
    masked = summary["mask"] != "none"
    style = {"index": False, "float_format": "%.6g"}
    summary[masked].to_csv(folder / "evaluation.csv", **style)
    summary[~masked].drop(columns="mask").to_csv(folder / "faithfulness.csv", **style)
    located = table[table["mask"] != "none"]
    against = [method for method in AGAINST if method in set(table["method"])]
    if against:
        comparisons = pd.concat([compare(located, method) for method in against])
        comparisons.to_csv(folder / "comparisons.csv", **style)
    text = json.dumps(note, indent=1, ensure_ascii=False) + "\n"
    (folder / "evaluation.json").write_text(text, encoding="utf-8")


def check_page(page: Path) -> None:
    """Refuse a page without a place for the table.

    Raises
    ------
    ValueError
        It is not there, or the two marks are not in it once each.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    if any(text.count(mark) != 1 for mark in MARKS):
        raise ValueError(f"{page} has no place for the table: put the lines {MARKS} into it")


def fill_in(page: Path, table: str) -> None:
    """Put a table between the two ``results`` marks of a Markdown page."""
    check_page(page)
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    page.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}", encoding="utf-8")
