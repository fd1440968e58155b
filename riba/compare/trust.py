"""Can a map be trusted? Randomised weights, transplanted detail, mosaics of several scenes.

None of these ranks methods; each is a way to catch a map that does not depend on what it claims to
explain (Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018; Sixt et al., "When
Explanations Lie", ICML 2020; Binder et al., "Shortcomings of Top-Down Randomization-Based Sanity
Checks", CVPR 2023).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from riba.compare.methods import METHODS
from riba.method.network import find_layer, fingerprint, frozen_copy, names_through, unwrapped
from riba.method.relevance import detail
from riba.method.statistics import FeatureStatistics
from riba.testbed import datasets
from riba.workbench import Workbench

UNDER_TEST = {
    "IBA": "iba",
    "LRP": "lrp-epsilon-plus",
    "Relevance-IBA": "relevance-iba",
    "joint": "relevance-iba-joint",
    "cascade": "relevance-iba-cascade",
    "joint, no LRP": "capacity-product-squared",
    "depths × detail": "relevance-iba-detail-separate",
    "no LRP": "capacity-product-squared-separate",
}
"""Methods that are put to the test, by their label; each without LRP follows what it controls."""


def explain(wb: Workbench, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The maps that are put to the test, B×H×W, by their label in :data:`UNDER_TEST`.

    ``IBA`` at ``wb.layer`` (bits), ``LRP`` (logits), ``Relevance-IBA`` as published from
    ``wb.layer``, ``joint`` and ``cascade`` from all of ``wb.depths`` (nats) and ``depths × detail``
    (a score). The controls are the product of what the same bottlenecks found, optimised together
    for the cascade (``joint, no LRP``) and by themselves for the last (``no LRP``).
    """
    return {label: METHODS[name](wb, images, targets) for label, name in UNDER_TEST.items()}


def weighted_layers(model: nn.Module) -> list[str]:
    """Names of the layers that hold weights, from the logits down."""
    modules = unwrapped(model).named_modules()
    return [name for name, module in modules if hasattr(module, "reset_parameters")][::-1]


def randomised(model: nn.Module, layers: Iterable[str], seed: int = 0) -> nn.Module:
    """A copy of ``model`` whose ``layers`` hold freshly drawn weights, as before any training.

    Each tensor keeps its mean and its spread, so that the signal stays in range (a fresh
    initialisation would let it die away, and every method would notice that).

    Raises
    ------
    ValueError
        A layer that does not exist; the message lists near matches.
    """
    copy = frozen_copy(model)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers:
            for weight in find_layer(copy, layer).parameters():
                noise = torch.randn(weight.shape, generator=draw).to(weight)
                spread = weight.std() if weight.numel() > 1 else 0.0
                weight.copy_(weight.mean() + spread * noise)
    return copy


def rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's correlation of two maps (B×H×W each) over their pixels: B values.

    Ties share their mean rank; NaN where a map is constant.
    """
    flat = (
        torch.from_numpy(rankdata(m.detach().flatten(1).cpu().double(), axis=1))
        for m in (maps, others)
    )
    ranks, other = (r - r.mean(1, keepdim=True) for r in flat)
    correlation = (ranks * other).sum(1) / (ranks.norm(dim=1) * other.norm(dim=1))
    return correlation.to(maps.device)


def transplanted(maps: Tensor, blobs: Tensor, width: float = 4.0, shift: int = 0) -> Tensor:
    """Blobs with the fine detail of other maps: blob × map ÷ smoothed map, B×H×W each.

    Does the detail of a map belong to its image? With ``shift`` 0 each blob has the detail of its
    own map; else that of the map ``shift`` places further on. Where the second is as good, the
    detail is the network's grain and says nothing about the image.

    Parameters
    ----------
    maps, width
        As :func:`riba.relevance.detail`.
    blobs
        Not negative; equal for all that is to be compared.
    """
    return blobs * detail(maps, width).roll(-shift, 0)


def mosaic(samples: Sequence[datasets.Sample], across: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """``across``² scenes of different classes as one picture, for the grid pointing game.

    Böhle, Fritz and Schiele, "Convolutional Dynamic Alignment Networks for Interpretable
    Classifications", CVPR 2021.

    Returns
    -------
    Picture (3×across·H×across·W), labels (across²), and the masks of the cells
    (across²×across·H×across·W bool).

    Raises
    ------
    ValueError
        Not that many samples, or two of the same class.
    """
    if len(samples) != across**2 or len({sample.label for sample in samples}) < across**2:
        raise ValueError(f"a mosaic takes {across**2} samples of different classes")
    images, labels, masks = datasets.stack(samples)
    height, width = masks.shape[1:]
    picture = images.unflatten(0, (across, across)).permute(2, 0, 3, 1, 4)
    places = torch.eye(across**2, dtype=torch.bool).unflatten(1, (across, across))
    cells = places.repeat_interleave(height, 1).repeat_interleave(width, 2)
    return picture.reshape(-1, across * height, across * width), labels, cells


def tiled(wb: Workbench, across: int = 2) -> Workbench:
    """The workbench for mosaics: statistics of one picture repeated ``across`` times each way."""

    def repeated(stats: FeatureStatistics) -> FeatureStatistics:
        fields = ("mean", "std", "active")
        tiles = {name: getattr(stats, name).tile(1, across, across) for name in fields}
        size = (across * stats.size[0], across * stats.size[1])
        return replace(stats, size=size, **tiles)

    stats = {layer: repeated(wb.statistics_at(layer)) for layer in {wb.layer, *wb.depths}}
    return replace(wb, statistics=stats[wb.layer], others=stats)


def with_network(
    wb: Workbench, model: nn.Module, changed: Iterable[str], images: Callable[[], Iterable[Tensor]]
) -> Workbench:
    """The workbench with a network that differs from its own in the ``changed`` layers.

    Statistics of layers below all of them are carried over; the others are fitted to ``images()``,
    which may be few.
    """
    changed, stats = set(changed), {}
    for layer in {wb.layer, *wb.depths}:
        if changed.isdisjoint(names_through(model, layer)):
            stats[layer] = carried_over(wb.statistics_at(layer), model)
        else:
            stats[layer] = FeatureStatistics.fit(model, layer, images(), few=True)
    known = {"statistics": stats[wb.layer], "others": stats, "betas": {}}
    return replace(wb, model=model, reference=None, **known)


def carried_over(stats: FeatureStatistics, model: nn.Module) -> FeatureStatistics:
    """Statistics for another network that is the same up to their layer, as the caller ensures."""
    return replace(stats, fingerprint=fingerprint(model))
