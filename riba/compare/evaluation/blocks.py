"""A block of samples: explained together by each method, and every map measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from riba.compare import metrics
from riba.compare.methods import METHODS, find_method
from riba.compare.results import write_part
from riba.method.bottleneck import in_chunks
from riba.method.network import near_matches
from riba.testbed.datasets import Sample
from riba.workbench import Workbench

FRACTIONS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75)
"""Budgets at which the allocation curve is tabulated."""
CURVE = tuple(f"allocation@{fraction:g}" for fraction in FRACTIONS)
CONTRAST = "two_object_contrast"
METRICS = (*metrics.LOCALISATION, *CURVE, CONTRAST, *metrics.FAITHFULNESS)
"""Names of everything that can be measured."""
KEYS = ["sample", "label", "digest", "method", "seed", "metric", "mask"]
"""Columns that identify a row of the table."""
Jobs = list[tuple[str, list[str]]]
"""Methods, and which metrics of each."""
EXPLAIN = ("label", "prediction")


@dataclass(frozen=True)
class Request:
    """What :func:`riba.evaluate` was called for; ``folder`` is where results are stored, or None.

    Raises
    ------
    ValueError
        Unknown method, metric or way to explain, or none.
    """

    methods: tuple[str, ...]
    metrics: tuple[str, ...]
    seed: int
    explain: str
    folder: Path | None

    def __post_init__(self) -> None:
        for method in self.methods:
            find_method(method)
        for metric in self.metrics:
            if metric not in METRICS:
                near = near_matches(metric, METRICS)
                raise ValueError(
                    f"no metric {metric!r}; {near} (riba.evaluation.METRICS lists all)"
                )
        for kind in ("methods", "metrics"):
            if not getattr(self, kind):
                raise ValueError(f"no {kind}: name at least one")
        if self.explain not in EXPLAIN:
            raise ValueError(f"explain must be one of {', '.join(EXPLAIN)}, got {self.explain!r}")


@dataclass(frozen=True)
class Block:
    """A few samples of one size, to be explained together by one method after the other.

    Attributes
    ----------
    images
        B×3×H×W.
    masks, others, void
        B×H×W bool: the object, objects of other classes, and pixels left out of every measure.
    rows
        Columns of the table that describe each sample.
    jobs
        Methods, and the metrics that are missing of each.
    request
        Holds the seed, what to explain, and the folder, which a worker may not reach.
    """

    images: Tensor
    masks: Tensor
    others: Tensor
    void: Tensor
    rows: list[dict]
    jobs: Jobs
    request: Request

    def results(self, wb: Workbench) -> Iterator[pd.DataFrame]:
        """Rows of the table, method by method; stored as soon as they are measured."""
        block = self.to(wb.device)
        targets, size = block.targets(wb), len(self.rows)
        seed, folder = self.request.seed, self.request.folder
        for method, names in self.jobs:

            def maps_of(part: slice, method: str = method) -> tuple[Tensor]:
                settings = {"masks": block.masks[part], "seed": seed}
                return (METHODS[method](wb, block.images[part], targets[part], **settings),)

            (maps,), size = in_chunks(maps_of, len(self.rows), size)
            rows = []
            for metric, mask, values in block.measure(wb, targets, maps, names):
                key = {"method": method, "seed": seed, "metric": metric, "mask": mask}
                for row, value in zip(self.rows, values.tolist(), strict=True):
                    rows.append({**row, **key, "value": value})
            frame = pd.DataFrame(rows)
            if folder is not None and folder.is_dir():
                write_part(folder, frame, KEYS)
            yield frame

    def to(self, device: torch.device) -> Block:
        """The block with its images and masks on a device."""
        names = ("images", "masks", "others", "void")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def targets(self, wb: Workbench) -> Tensor:
        """What is explained: B class numbers, or B×classes bool."""
        if self.request.explain == "prediction":
            return wb.predict(self.images).argmax(1)
        return wb.targets([row["label"] for row in self.rows]).to(self.images.device)

    def measure(
        self, wb: Workbench, targets: Tensor, maps: Tensor, names: Sequence[str]
    ) -> Iterator[tuple[str, str, Tensor]]:
        """Metric, kind of mask, and B values, NaN where the metric does not apply."""
        for name in names:
            if name in metrics.FAITHFULNESS:
                metric, seed = metrics.FAITHFULNESS[name], self.request.seed
                yield name, "none", metric(wb.model, self.images, targets, maps, seed=seed)
        localisation = [name for name in names if name not in metrics.FAITHFULNESS]
        band = metrics.border_band(self.masks) | metrics.border_band(self.others)
        for mask, void in (("strict", self.void), ("banded", self.void | band)):
            for name, values in self._localise(maps, void, localisation):
                yield name, mask, values

    def _localise(
        self, maps: Tensor, void: Tensor, names: list[str]
    ) -> Iterator[tuple[str, Tensor]]:
        inside, outside, inside_other = (
            (pixels & ~void).any((1, 2)) for pixels in (self.masks, ~self.masks, self.others)
        )
        if not inside.any():
            for name in names:
                yield name, torch.full(inside.shape, torch.nan)
            return
        for name in names:
            if name == CONTRAST:
                rows = inside & inside_other
                masks = self.masks[rows], self.others[rows]
                values = metrics.two_object_contrast(maps[rows], *masks, void[rows])
            elif name in metrics.LOCALISATION:
                rows = inside & outside if name == "auroc" else inside
                values = metrics.LOCALISATION[name](maps[rows], self.masks[rows], void[rows])
            else:
                continue
            yield name, _with_gaps(values, rows)
        curve = [name for name in names if name in CURVE]
        if curve:  # from one ranking
            budgets = [FRACTIONS[CURVE.index(name)] for name in curve]
            masks = self.masks[inside]
            shares = metrics.allocation_curve(maps[inside], masks, budgets, void[inside])
            for name, values in zip(curve, shares.T, strict=True):
                yield name, _with_gaps(values, inside)


def stacked(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Images and masks of samples as the fields of a :class:`Block`; no mask is an empty mask."""
    batches = {"images": [], "masks": [], "others": [], "void": []}
    for sample in samples:
        nothing = torch.zeros_like(sample.mask)
        batches["images"].append(sample.image)
        batches["masks"].append(sample.mask)
        batches["others"].append(nothing if sample.other is None else sample.other)
        batches["void"].append(nothing if sample.void is None else sample.void)
    return {name: torch.stack(batch) for name, batch in batches.items()}


def _with_gaps(values: Tensor, rows: Tensor) -> Tensor:
    """``values`` in the places of ``rows`` (B bool), NaN in the others."""
    filled = torch.full(rows.shape, torch.nan).to(values)
    filled[rows] = values
    return filled
