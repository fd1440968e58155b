"""Which form of Relevance-IBA puts its nats on the object, and where do the others lose them?

    python -m benchmarks.study        # everything, on validation scenes (half an hour on two cores)

One factor after the other, on validation scenes only: the defaults of riba are chosen from this
table, test scenes never enter it. Writes ``benchmarks/study.csv``, a row per study × setting ×
metric; a study that is in the file already is not done again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

import riba
from riba.compare import metrics
from riba.method import relevance, rules
from riba.method.bottleneck import (
    Depths,
    Information,
    InformationBottleneck,
    capacity_product,
    smooth,
    to_bits,
)
from riba.testbed import datasets

TABLE = Path(__file__).with_suffix(".csv")
SCENES, PAIRS, BATCH = 32, 16, 8
TOP, SHALLOW = "features.14", "features.6"
DEPTHS = (TOP, "features.11", "features.9", SHALLOW)
COMPOSITES = ("z+", "gamma", "alpha2-beta1", "epsilon")
Maps = dict[str, Tensor]


class Scenes:
    """A few validation scenes as one batch, and what bottlenecks find on them, once each."""

    def __init__(self, wb: riba.Workbench, samples: Sequence[datasets.Sample]) -> None:
        self.wb = wb
        self.images, self.labels, self.masks = datasets.stack(samples)
        self.others = [sample.other for sample in samples]
        self.size = tuple(self.images.shape[-2:])
        self._found: dict[tuple, Information | Depths] = {}

    def single(self, layer: str, **settings: float) -> Information:
        """A bottleneck by itself."""
        bench = self.wb.at(layer)
        find = InformationBottleneck(self.wb.model, layer, bench.statistics, **settings)
        return self._once((layer, *settings.items()), find)

    def joint(self, layers: Sequence[str] = DEPTHS, **settings: float) -> Depths:
        """Bottlenecks optimised together, the deepest first."""
        statistics = [self.wb.statistics_at(layer) for layer in layers]
        find = InformationBottleneck(self.wb.model, layers, statistics, **settings)
        return self._once((*layers, *settings.items()), find)

    def _once(self, key: tuple, find: Callable) -> Information | Depths:
        if key not in self._found:
            self._found[key] = find(self.images, self.labels)
        return self._found[key]

    def down(self, layer: str, nats: Tensor, composite: object = None) -> Tensor:
        """Nats at a layer, handed down: B×H×W."""
        return relevance.descend(self.wb.model, layer, self.images, nats, composite).sum(1)

    def logit(self, composite: str = "epsilon-plus") -> Tensor:
        """LRP from the logit: B×H×W."""
        return relevance.lrp(self.wb.model, self.images, self.labels, composite).sum(1)


# --- the studies: a batch of scenes in, maps by setting out --------------------------------------


def layers(s: Scenes) -> Maps:
    """IBA and Relevance-IBA (z⁺) at every depth, with the published β and a smaller one."""
    maps = {}
    for layer in ("features.16", *DEPTHS):
        for beta in (10.0, 3.0):
            nats = s.single(layer, beta=beta).nats
            maps[f"IBA, {layer}, beta {beta:g}"] = to_bits(nats, s.size)
            maps[f"Relevance-IBA, {layer}, beta {beta:g}"] = s.down(layer, nats)
    return maps


def composites(s: Scenes) -> Maps:
    """Rules in the body and at the pixels, from the deepest layer and from the shallowest."""
    box = rules.box(*s.wb.bounds)
    choices = {name: name for name in COMPOSITES}
    choices["z+, biases kept"] = rules.z_plus(bias=True)
    for name, pixels in (("z+", "z+"), ("w-square", "w-square"), ("box", box)):
        choices[f"z+, {name} at the pixels"] = rules.composite("z+", pixels)
    starts = {TOP: s.single(TOP).nats, SHALLOW: s.joint()[SHALLOW].nats}
    return {
        f"{name}, from {layer}": s.down(layer, nats, composite)
        for layer, nats in starts.items()
        for name, composite in choices.items()
    }


def sources(s: Scenes) -> Maps:
    """What starts at the deepest layer."""
    information = s.single(TOP)
    maps = {}
    for source in ("capacity", "active", "spread"):
        maps[source] = s.down(TOP, relevance.start(information, source).relevance)
    location = information.nats.sum(1, keepdim=True).expand_as(information.nats)
    maps["activation"] = s.down(TOP, information.features.clamp(min=0))
    maps["the same everywhere"] = s.down(TOP, torch.ones_like(location))
    maps["capacity of the location, on every channel"] = s.down(TOP, location)
    return maps


def forms(s: Scenes) -> Maps:
    """Information from several depths, found separately or together, and how it is used."""
    maps = {"LRP from the logit": s.logit()}
    separate = Depths(tuple(s.single(layer) for layer in DEPTHS))
    for kind, depths in (("separate", separate), ("joint", s.joint())):
        nats = {depth.layer: depth.nats for depth in depths}
        product = capacity_product(nats.values(), s.size)
        low = s.down(SHALLOW, nats[SHALLOW])
        maps |= {
            f"{kind}: IBA, {SHALLOW}": to_bits(nats[SHALLOW], s.size),
            f"{kind}: product of capacities": product,
            f"{kind}: the same, {SHALLOW} twice": capacity_product(
                (*nats.values(), nats[SHALLOW]), s.size
            ),
            f"{kind}: Relevance-IBA from {TOP}": s.down(TOP, nats[TOP]),
            f"{kind}: Relevance-IBA from {SHALLOW}": low,
            f"{kind}: from {TOP}, times product": s.down(TOP, nats[TOP]) * product,
            f"{kind}: from {SHALLOW}, times product": low * product,
            f"{kind}: the same, smoothed by 1 pixel": smooth(low, 1.0) * product,
            f"{kind}: the same, smoothed by 2 pixels": smooth(low, 2.0) * product,
            f"{kind}: the same, smoothed by 3 pixels": smooth(low, 3.0) * product,
            f"{kind}: inside the descent, by location": inside(s, depths, _by_location),
            f"{kind}: inside the descent, by element": inside(s, depths, _by_element),
            f"{kind}: inside the descent, by lambda": inside(s, depths, _by_lambda),
            f"{kind}: deep product at {SHALLOW}, handed down": deep_product(s, nats),
            f"{kind}: LRP times product": s.logit().clamp(min=0) * product,
            f"{kind}: LRP gated at every depth": gated(s, depths),
        }
    return maps


def inside(s: Scenes, depths: Depths, weight: Callable) -> Tensor:
    """Relevance on its way from the deepest layer, weighed at every depth and rescaled."""
    top, *shallower = depths
    return _weighed_on_the_way(s, top.layer, top.nats, shallower, weight)


def gated(s: Scenes, depths: Depths) -> Tensor:
    """LRP from the logit, weighed by the capacity at every depth on its way."""
    arrived = relevance.lrp(s.wb.model, s.images, s.labels, layer=TOP)
    top, *shallower = depths
    start = arrived * _by_location(top)
    return _weighed_on_the_way(s, top.layer, start, shallower, _by_location)


def _weighed_on_the_way(
    s: Scenes, layer: str, start: Tensor, shallower: list, weight: Callable
) -> Tensor:
    for information in shallower:
        lower = information.layer
        below = relevance.descend_all(s.wb.model, layer, s.images, start, None, [lower])
        start = below[lower] * weight(information)
        layer = lower
    return s.down(layer, start / start.abs().amax((1, 2, 3), keepdim=True))


def _by_location(information: Information) -> Tensor:
    return information.nats.sum(1, keepdim=True)


def _by_element(information: Information) -> Tensor:
    return information.nats


def _by_lambda(information: Information) -> Tensor:
    return information.lambda_


def deep_product(s: Scenes, nats: dict[str, Tensor]) -> Tensor:
    """The deeper capacities multiplied into the shallowest, which is handed down."""
    deeper = [nats[layer] for layer in nats if layer != SHALLOW]
    weight = capacity_product(deeper, tuple(nats[SHALLOW].shape[-2:]))
    return s.down(SHALLOW, nats[SHALLOW] * weight[:, None])


def joint(s: Scenes) -> Maps:
    """The joint bottlenecks' settings: β, smoothing, noisy copies, steps, layers."""
    settings = {f"beta {beta:g}": {"beta": beta} for beta in (1.0, 2.0, 3.0, 5.0, 10.0)}
    settings |= {f"sigma {sigma:g}": {"sigma": sigma} for sigma in (0.0, 2.0)}
    settings |= {f"{n} copies": {"samples": n} for n in (2, 8)}
    settings |= {"20 steps": {"steps": 20}}
    without = {f"without {layer}": [x for x in DEPTHS if x != layer] for layer in DEPTHS}
    found = {name: s.joint(**setting) for name, setting in settings.items()}
    found |= {name: s.joint(depths) for name, depths in without.items()}
    maps = {}
    for name, depths in found.items():
        low = list(depths)[-1]
        maps[f"joint IBA: {name}"] = to_bits(depths[low].nats, s.size)
        maps[f"cascade: {name}"] = relevance.cascade(s.wb.model, s.images, depths).sum(1)
    return maps


def evidence(s: Scenes) -> Maps:
    """The same few methods on scenes of each kind."""
    found, top = s.joint(), s.single(TOP).nats
    low = s.down(SHALLOW, found[SHALLOW].nats)
    return {
        "LRP from the logit": s.logit(),
        f"IBA, {TOP}": to_bits(top, s.size),
        f"Relevance-IBA from {TOP}": s.down(TOP, top),
        f"joint: IBA, {SHALLOW}": to_bits(found[SHALLOW].nats, s.size),
        f"joint: Relevance-IBA from {SHALLOW}": low,
        "joint: product of capacities": capacity_product((d.nats for d in found), s.size),
        "cascade": relevance.cascade(s.wb.model, s.images, found).sum(1),
    }


def leaks(s: Scenes) -> Maps:
    """Relevance at every layer on its way down, enlarged: where does it leave the object?"""
    maps = {}
    nats = s.single(TOP).nats
    for composite in ("z+", "alpha2-beta1"):
        below = relevance.descend_all(s.wb.model, TOP, s.images, nats, composite)
        maps |= {f"{composite} at {layer}": enlarged(r, s.size) for layer, r in below.items()}
    return maps


def enlarged(r: Tensor, size: tuple[int, int]) -> Tensor:
    """Relevance of a layer as a map of the image's size."""
    return F.interpolate(r.sum(1, keepdim=True), size, mode="bilinear", align_corners=False)[:, 0]


STUDIES: dict[str, tuple[Callable[[Scenes], Maps], dict]] = {
    "layers": (layers, {}),
    "composites": (composites, {}),
    "sources": (sources, {}),
    "forms": (forms, {}),
    "joint": (joint, {}),
    "leaks": (leaks, {}),
    "evidence in the shape": (evidence, {"evidence": "shape"}),
    "evidence in the surface": (evidence, {"evidence": "surface"}),
    "two objects": (evidence, {"others": 1}),
    "two objects, all forms": (forms, {"others": 1}),
}
"""Name of the study to how its maps are made, and on which scenes."""
FAITHFUL = ("forms",)
"""Studies that measure insertion and degradation as well."""


# --- measuring -----------------------------------------------------------------------------------


def measured(s: Scenes, maps: Tensor, faithful: bool) -> Iterator[tuple[str, str, Tensor]]:
    """Metric, mask, and a value per scene."""
    band = metrics.border_band(s.masks)
    others = None if s.others[0] is None else torch.stack(s.others)
    if others is not None:
        band |= metrics.border_band(others)
        contrast = metrics.two_object_contrast(maps, s.masks, others, band)
        yield "two_object_contrast", "banded", contrast
    for mask, void in (("strict", None), ("banded", band)):
        for metric in (metrics.allocation_area, metrics.rank_accuracy, metrics.mass_accuracy):
            yield metric.__name__, mask, metric(maps, s.masks, void)
    if faithful:
        for name in ("insertion", "degradation"):
            measure = metrics.FAITHFULNESS[name]
            yield name, "none", measure(s.wb.model, s.images, s.labels, maps, seed=0)


def samples(variant: dict) -> list[datasets.Sample]:
    """The scenes of a study; of two objects each is explained once."""
    if "others" in variant:
        pairs = [datasets.Scenes("validation", PAIRS, target=t, **variant) for t in (0, 1)]
        return [split[index] for index in range(PAIRS) for split in pairs]
    split = datasets.Scenes("validation", SCENES, **variant)
    return [split[index] for index in range(SCENES)]


def run(wb: riba.Workbench, study: str) -> pd.DataFrame:
    """All rows of one study."""
    make, variant = STUDIES[study]
    scenes = samples(variant)
    values: dict[tuple[str, str, str], list[Tensor]] = {}
    for first in tqdm(range(0, len(scenes), BATCH), study):
        batch = Scenes(wb, scenes[first : first + BATCH])
        for setting, maps in make(batch).items():
            for metric, mask, value in measured(batch, maps, study in FAITHFUL):
                values.setdefault((setting, metric, mask), []).append(value)
    rows = []
    for (setting, metric, mask), parts in values.items():
        value = torch.cat(parts)
        error = (value.std() / len(value) ** 0.5).item()
        rows.append((study, setting, metric, mask, value.mean().item(), error, len(value)))
    names = ["study", "setting", "metric", "mask", "mean", "standard_error", "n"]
    return pd.DataFrame(rows, columns=names)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", choices=[[], *STUDIES], help="by default all")
    arguments = parser.parse_args()
    wb = riba.load()
    table = pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame({"study": []})
    for study in arguments.studies or STUDIES:
        if study not in set(table["study"]):
            table = pd.concat([table, run(wb, study)])
            table.to_csv(TABLE, index=False, float_format="%.4g")
    wide = table.pivot_table("mean", ["study", "setting"], ["metric", "mask"], sort=False)
    print(wide.round(3).to_string())


if __name__ == "__main__":
    main()
