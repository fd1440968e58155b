"""Where does the descent lose the object, and does its detail belong to the image?

    python -m benchmarks.detail                          # the bundled network, validation scenes
    python -m benchmarks.detail efficientnet-lite0 --scenes 24 --few --batch 12    # photomontages
    python -m benchmarks.detail --strengths --scenes 48 --batch 12
    python -m benchmarks.detail efficientnet-lite0 --strengths --scenes 24 --batch 12

Photomontages need what `make photos` gets. Minutes on a GPU; half an hour and more on two cores.
Many ways of propagating the information of a bottleneck to the pixels, each beside its controls:
the same information enlarged, without LRP (``blob``); the same map smoothed by 4 and by 8 pixels;
and its detail (map ÷ map smoothed by 4 pixels) multiplied to one and the same blob, beside the
detail *of another image* multiplied to that blob. The blob is the product of the capacities of all
depths, found separately, with the shallowest but one counted twice. β is 10, as published.
With ``--strengths``: how much of which detail a score takes (``relevance-iba-detail-separate``),
on validation pictures, and with ``--split test`` that of the method alone, in rows of its own;
each beside another image's detail and that of white noise.
Writes the network's rows of ``benchmarks/detail.csv``: means with intervals over groups of scenes,
and of own less transplanted detail the paired difference with Holm's p.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor
from tqdm.auto import tqdm

import riba
from riba.compare import metrics, trust
from riba.compare.evaluation import compare, select, summarise
from riba.compare.methods import METHODS, information
from riba.method import relevance, rules
from riba.method.bottleneck import Information, capacity_product, smooth, to_bits
from riba.testbed import datasets

TABLE = Path(__file__).with_suffix(".csv")
WIDTHS = (4.0, 8.0)
"""Pixels by which maps are smoothed; the first also separates detail from the rest."""
SHIFTS = (1, 3)
"""How many images further the transplanted detail comes from."""
LOCALISATION = ("allocation_area", "rank_accuracy", "mass_accuracy")
FEW = ("lrp-epsilon-gamma-box", "relevance-iba-cascade", "random")
OTHERS = ("lrp-epsilon-plus", "lrp-epsilon-gamma-box", "input-x-gradient", "guided-backprop",
          "smoothgrad", "relevance-iba-joint", "relevance-iba-cascade", "random")  # fmt: skip
"""Methods that are put to the same test; a few, and all."""


class Batch:
    """A few samples, and what the bottlenecks find on them by themselves."""

    def __init__(self, wb: riba.Workbench, samples: list[datasets.Sample]) -> None:
        self.wb, self.samples = wb, samples
        images, labels, masks = datasets.stack(samples)
        self.images, self.masks = images.to(wb.device), masks.to(wb.device)
        self.targets = wb.targets(labels).to(wb.device)
        self.size = tuple(images.shape[-2:])

    def at(self, layer: str) -> Information:
        """Information at one layer, which the workbench remembers."""
        return information(self.wb, layer, self.images, self.targets)

    def blobs(self) -> Tensor:
        """The product of all depths, the shallowest but one twice: B×H×W."""
        depths = [self.at(layer) for layer in self.wb.depths]
        return capacity_product((x.nats for x in (*depths, depths[-2])), self.size)

    def down(self, layer: str, start: Tensor, composite: object = None) -> Tensor:
        """Relevance at a layer, propagated to the pixels: B×H×W."""
        net = self.wb.explicit((layer,), self.images)
        return relevance.descend(net, layer, self.images, start, composite).sum(1)


# --- candidates: a batch in, maps by name out ----------------------------------------------------


def candidates(b: Batch, few: bool) -> Iterator[tuple[str, Tensor]]:
    """Maps of every way of propagating, B×H×W; of the few that matter most."""
    box = rules.box(*b.wb.bounds)
    of_nats = ("z+",) if few else ("z+", "gamma", "alpha2-beta1", "epsilon")
    of_logits = {"z+": "z+", "gamma": "gamma"}
    if not few:
        of_logits["gamma, box at the pixels"] = rules.gamma(box)
    for layer in b.wb.depths:
        found = b.at(layer)
        yield f"IBA, {layer}", found.bits(b.size)
        for name in of_nats:
            yield f"nats, {name}, from {layer}", b.down(layer, found.nats, name)
        net = b.wb.explicit((layer,), b.images)
        logit = relevance.lrp(net, b.images, b.targets, "gamma", layer=layer)
        gates = {"lambda": found.lambda_, "nats": found.nats}
        for gate in ("nats",) if few else gates:
            weight = gates[gate]
            for name, composite in of_logits.items():
                start = logit * weight
                start = start / start.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-30)
                yield f"logit × {gate}, {name}, from {layer}", b.down(layer, start, composite)
    for layer in () if few else b.wb.depths[-2:]:
        found = b.at(layer)
        rule = {"z+, box": rules.composite("z+", box), "gamma, box": rules.gamma(box)}
        for name, composite in rule.items():
            yield f"nats, {name} at the pixels, from {layer}", b.down(layer, found.nats, composite)
        begun = relevance.start(found, "active").relevance
        yield f"active nats, z+, from {layer}", b.down(layer, begun)
        yield f"nats, z+, smoothed at every stride, from {layer}", _smoothed_on_the_way(b, layer)
        image = b.images - b.images.mean((2, 3), keepdim=True)
        contrast = (image - smooth(image, WIDTHS[0])).abs().sum(1)
        yield f"IBA × local contrast, {layer}", to_bits(found.nats, b.size) * contrast
    yield "blob", b.blobs()
    for name in FEW if few else OTHERS:
        yield name, METHODS[name](b.wb, b.images, b.targets)


def _smoothed_on_the_way(b: Batch, layer: str) -> Tensor:
    """z⁺, smoothed by one element wherever the resolution has changed, and 1 px at the pixels.

    A convolution of stride 2 reads some inputs more often than others, so relevance arrives on a
    lattice; the smoothing shares it among neighbours.
    """
    below = relevance.descend_all(b.wb.model, layer, b.images, b.at(layer).nats)
    steps = [name for name in below if name not in (layer, "pixels")]
    start, sides = below[layer], below[layer].shape[-1]
    for name in steps:
        if below[name].shape[-1] != sides:
            sides = below[name].shape[-1]
            there = relevance.descend_all(b.wb.model, layer, b.images, start, None, [name])[name]
            start, layer = smooth(there, 1.0), name
    return smooth(b.down(layer, start), 1.0)


STRENGTHS = {
    "product × detail": (4.0, 0.0, 1.0),
    "product × √detail": (4.0, 0.0, 0.5),
    "product × √detail of 8 px": (8.0, 0.0, 0.5),
    "product × detail of 2 to 8 px": (8.0, 2.0, 1.0),
    "product × √detail of 2 to 8 px": (8.0, 2.0, 0.5),
}
"""Pixels that the detail is finer than, and coarser than; its power."""
METHOD = "product × √detail"
"""The strength of ``relevance-iba-detail-separate``."""


def strengths(b: Batch, chosen: Sequence[str]) -> Iterator[tuple[str, str, Tensor]]:
    """The product of capacities times some of a detail: own, another image's, white noise's."""
    depths = [b.at(layer) for layer in b.wb.depths]
    start = depths[-1]
    product = capacity_product((depth.nats for depth in (*depths, start)), b.size)
    yield "IBA", "", depths[0].bits(b.size)
    yield "product", "", product
    net = b.wb.explicit((start.layer,), b.images)
    logit = relevance.lrp(net, b.images, b.targets, "gamma", layer=start.layer)
    arrived = b.down(start.layer, logit * start.nats).clamp(min=0)
    forms = {
        "own detail": arrived,
        "transplanted": arrived.roll(-SHIFTS[0], 0),
        "white noise": METHODS["random"](b.wb, b.images, b.targets),
    }
    for name in chosen:
        width, sigma, power = STRENGTHS[name]
        for form, maps in forms.items():
            fine = relevance.detail(smooth(maps, sigma), width) ** power
            yield name, f" | {form}", product * fine


# --- measuring -----------------------------------------------------------------------------------


def with_controls(b: Batch, few: bool) -> Iterator[tuple[str, str, Tensor]]:
    """All candidates and their controls, by name and what is written behind it."""
    for name, maps in candidates(b, few):
        yield name, "", maps
        for width in WIDTHS:
            yield name, f" | smoothed {width:g} px", smooth(maps, width)
        if name != "blob":
            blobs = b.blobs()
            yield name, " | own detail", trust.transplanted(maps, blobs, WIDTHS[0])
            for shift in SHIFTS:
                yield name, " | transplanted", trust.transplanted(maps, blobs, WIDTHS[0], shift)


def measured(b: Batch, maps: Iterable[tuple[str, str, Tensor]]) -> Iterator[pd.DataFrame]:
    """Rows of the tidy table, of maps by name and form."""
    band = metrics.border_band(b.masks)
    samples = [{"sample": s.name, "group": s.group or s.name} for s in b.samples]
    for name, form, variant in maps:
        values = {}
        if "transplanted" not in form:
            for metric in LOCALISATION:
                values[metric] = metrics.LOCALISATION[metric](variant, b.masks, band)
        if "smoothed" not in form:
            for metric in ("insertion", "deletion"):
                measure = metrics.FAITHFULNESS[metric]
                values[metric] = measure(b.wb.model, b.images, b.targets, variant)
        for metric, scores in values.items():
            mask = "banded" if metric in LOCALISATION else "none"
            frame = pd.DataFrame(samples).assign(value=scores.cpu())
            yield frame.assign(method=name + form, metric=metric, mask=mask)


def summarised(table: pd.DataFrame) -> pd.DataFrame:
    """Means, and of every own detail the difference from the transplanted one."""
    rows = summarise(table, resamples=2000)
    differences = []
    for name in table["method"].unique():
        if name.endswith(" | own detail"):
            other = name.replace("own detail", "transplanted")
            both = table[table["method"].isin([name, other])]
            differences.append(compare(both, against=other, resamples=2000))
    found = pd.concat(differences, ignore_index=True)
    names = {"low": "difference_low", "high": "difference_high", "p_holm": "p"}
    found = found.rename(columns=names).drop(columns=["against", "n"])
    found["p"] = found.groupby(["metric", "mask"])["p"].transform(riba.evaluation.holm)
    return rows.merge(found, how="left", on=["method", "metric", "mask"])


def _replaced(old: pd.DataFrame, fresh: pd.DataFrame, strengths_alone: bool) -> pd.Series:
    """Rows of the network; of the two kinds of rows those that were measured."""
    of_strengths = old["method"].str.startswith("product") | (old["method"] == "IBA")
    return (old["network"] == fresh["network"].iloc[0]) & (of_strengths == strengths_alone)


def main() -> None:
    """Measure one network; the rows of others stay as they were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", nargs="?", default="scenenet")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--few", action="store_true", help="the candidates that matter most")
    parser.add_argument("--strengths", action="store_true", help="how much of which detail, alone")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--batch", type=int, default=64, help="detail comes from the same batch")
    parser.add_argument("--weights", help="a file of weights in place of the network's own")
    parser.add_argument("--device", help="cuda, or cpu")
    parser.add_argument("--out", type=Path, default=TABLE)
    arguments = parser.parse_args()
    data = "photos" if arguments.network == "efficientnet-lite0" else None
    wb = riba.load(arguments.network, data=data, weights=arguments.weights, device=arguments.device)
    scenes, _ = select(wb, getattr(wb, arguments.split), arguments.scenes)
    last = arguments.split == "test"
    ways = [METHOD] if last else list(STRENGTHS)
    rows = []
    for start in tqdm(range(0, len(scenes), arguments.batch), "batches"):
        b = Batch(wb, [scenes[i] for i in range(len(scenes))[start : start + arguments.batch]])
        maps = strengths(b, ways) if arguments.strengths else with_controls(b, arguments.few)
        rows += measured(b, maps)
    fresh = summarised(pd.concat(rows, ignore_index=True))
    fresh.insert(0, "network", f"{arguments.network}, test" if last else arguments.network)
    old = pd.read_csv(arguments.out) if arguments.out.is_file() else pd.DataFrame()
    kept = [old[~_replaced(old, fresh, arguments.strengths)]] if len(old) else []
    table = pd.concat([*kept, fresh], ignore_index=True)
    table.to_csv(arguments.out, index=False, float_format="%.5g")
    print(fresh.pivot_table("mean", "method", "metric", sort=False).round(3).to_string())


if __name__ == "__main__":
    main()
