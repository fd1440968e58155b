"""Relevance-IBA: nats measured by a bottleneck at one layer, propagated to the pixels by LRP.

Chen et al., IEEE BigData 2023. The capacity at layer l (nats per feature) is the relevance that
starts there; the rules of :mod:`riba.rules` carry it through the layers below, and the map is in
nats, too. With a rule that conserves, the map's total is the information in the bottleneck, and
the :class:`Ledger` says so for every image.

The publication leaves the layer and the rules open; the defaults here are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from zennit.attribution import Attributor
from zennit.core import Composite
from zennit.types import Activation, BatchNorm

from riba.method import rules
from riba.method.bottleneck import (
    Depths,
    Information,
    InformationBottleneck,
    capacity_product,
    smooth,
)
from riba.method.explicit import TOLERANCE, Explicit, explicit, same
from riba.method.network import (
    as_targets,
    check_images,
    check_logits,
    check_targets,
    class_logit,
    find_layer,
    unwrapped,
)
from riba.method.statistics import FeatureStatistics

PIXELS_AT_ONCE = 2**18
"""Pixels that go through the network together: 16 images of 128², 5 of 224²."""


# --- down to the pixels --------------------------------------------------------------------------

Network = nn.Module | Explicit
"""A network in evaluation mode, or its explicit form where that is at hand (it saves tracing)."""


def descend(
    model: Network,
    layer: str,
    images: Tensor,
    start: Tensor,
    composite: str | Composite | None = None,
    measured: Tensor | None = None,
) -> Tensor:
    """Propagate relevance at ``layer`` to the pixels.

    Parameters
    ----------
    model
        Images to logits, in evaluation mode, or its explicit form. It is not changed.
    layer
        Name of the layer at whose output relevance starts.
    images
        B×3×H×W.
    start
        B×C×h×w relevance at the layer: nats, or logits.
    composite
        A name (:data:`riba.rules.COMPOSITES`), a Zennit composite, or None for ``"z+"``.
    measured
        The features that ``start`` was measured on, where they are known: others are refused.

    Returns
    -------
    B×3×H×W relevance of the pixels, in the unit of ``start``.

    Raises
    ------
    ValueError
        Unknown layer or composite, ``start`` is not finite or does not fit the layer, or the
        network has a step that no rule exists for.
    """
    return descend_all(model, layer, images, start, composite, (), measured)["pixels"]


def descend_all(
    model: Network,
    layer: str,
    images: Tensor,
    start: Tensor,
    composite: str | Composite | None = None,
    layers: Iterable[str] | None = None,
    measured: Tensor | None = None,
) -> dict[str, Tensor]:
    """Relevance at every layer on the way down, from ``layer`` to ``"pixels"``, in that order.

    Parameters
    ----------
    layers
        Names of layers below ``layer``; by default those of :func:`stages` that the pass runs.
        Layers inside a residual block hold only what goes through their branch.

    Returns
    -------
    Layer name to B×C×h×w relevance at its output; the last, ``"pixels"``, is what
    :func:`descend` returns. Other parameters and errors as there.

    Raises
    ------
    ValueError
        Also where a layer of ``layers`` does not run below ``layer``.
    """
    net = form_of(model, [layer], images)
    if len(start) != len(images):
        raise ValueError(
            f"start is for {len(start)} images, there are {len(images)}: pass one an image"
        )

    def begin(part: slice, features: Tensor) -> Tensor:
        if start[part].shape != features.shape:
            expected, actual = ("×".join(map(str, x.shape)) for x in (features, start[part]))
            raise ValueError(f"relevance at layer {layer!r} must be {expected}, got {actual}")
        if not torch.isfinite(start[part]).all():
            raise ValueError("the starting relevance holds NaN or infinite values")
        if measured is not None and not same(measured[part], features):
            raise ValueError(
                "the information was measured on other images or another network: pass those "
                "that it was measured on"
            )
        return start[part]

    names = stages(net.model) if layers is None else list(layers)
    lower = [name for name in names if name != layer]
    below = _in_parts(net, layer, images, begin, composite, lower)
    missing = [name for name in lower if name not in below]
    if layers is not None and missing:
        raise ValueError(f"layer {missing[0]!r} does not run below {layer!r}: name one that does")
    return {layer: start, **below}


def stages(model: nn.Module) -> list[str]:
    """Layers that change relevance, in order of definition: convolutions, pools, residual blocks.

    Modules of ``model`` and of its (nested) sequences, without activations, batch norms and
    dropout, which pass relevance on unchanged.
    """
    passing = (Activation, BatchNorm, nn.Dropout, nn.Identity, nn.Flatten)
    return [name for name, x in _steps(unwrapped(model)) if not isinstance(x, passing)]


def _steps(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential):
            yield from _steps(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def form_of(model: Network, layers: Iterable[str], images: Tensor) -> Explicit:
    """The explicit form of ``model``, if it is not one already.

    Raises
    ------
    ValueError
        The images or layers do not fit (:func:`riba.explicit.explicit`).
    """
    if not isinstance(model, Explicit):
        check_images(model, images)
        return explicit(model, layers, images)
    check_images(model.model, images)
    model.check(images)
    for layer in layers:
        find_layer(model.model, layer)
    return model


def _in_parts(
    net: Explicit,
    layer: str | None,
    images: Tensor,
    begin: Callable[[slice, Tensor], Tensor],
    composite: str | Composite | None,
    names: Iterable[str],
) -> dict[str, Tensor]:
    """:meth:`Explicit.propagate` for as many images at a time as memory allows."""
    composite = rules.composite(composite)
    size = max(1, PIXELS_AT_ONCE // (images.shape[-1] * images.shape[-2]))
    slices = [slice(first, first + size) for first in range(0, len(images), size)]
    parts = [
        net.propagate(layer, images[part], partial(begin, part), composite, names)
        for part in slices
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def cascade(
    model: Network,
    images: Tensor,
    depths: Depths,
    composite: str | Composite | None = None,
    smoothing: float | None = None,
) -> Tensor:
    """Propagate the nats of the shallowest of several depths, weighted by those of every depth.

    Our extension, not in the publication. The capacity of the shallowest layer is propagated; what
    arrives at a pixel is multiplied by the information that each depth holds there
    (:func:`.capacity_product`) and rescaled per image to the total that started, so that the unit
    is nats again.

    Parameters
    ----------
    depths
        Information at several layers, from one :class:`riba.InformationBottleneck`.
    composite
        As :func:`descend`.
    smoothing
        Width in pixels of a Gaussian over what arrives; None is the stride of the shallowest
        layer, the resolution at which its nats were measured. 0: none.

    Returns
    -------
    B×3×H×W relevance of the pixels, in nats.

    Raises
    ------
    ValueError
        As :func:`descend`.
    """
    start = depths.shallowest
    if smoothing is None:
        smoothing = images.shape[-1] / start.nats.shape[-1]
    arrived = descend(model, start.layer, images, start.nats, composite, start.features)
    weights = capacity_product((depth.nats for depth in depths), tuple(images.shape[-2:]))
    return _rescaled(smooth(arrived, smoothing) * weights[:, None], like=start.nats)


def detailed(
    model: Network,
    images: Tensor,
    targets: Tensor | list[int],
    depths: Depths,
    composite: str | Composite | None = None,
    width: float = 4.0,
    strength: float = 1.0,
) -> Tensor:
    """The information of several depths, with the detail of the class's evidence: a score, B×H×W.

    Ours, not in the publication. The capacities of all depths are enlarged and multiplied, the
    shallowest one twice (:func:`.capacity_product`): where the information is. That is multiplied
    by the :func:`detail` of what arrives at the pixels when the nats of the shallowest depth, each
    times the class logit's LRP relevance (γ) at its unit, are propagated: which pixels there the
    class is read from. Nats alone propagated leave a detail that another image's can be exchanged
    for without loss (``benchmarks/detail.csv``); these do not. Not nats: nothing is conserved.

    Parameters
    ----------
    targets
        As :func:`lrp`.
    width
        As :func:`detail`.
    strength
        Power of the detail. The smaller, the more of the ranking is left to the information: 0.5
        keeps nearly all that the own detail is better than another image's.

    Raises
    ------
    ValueError
        As :func:`descend` and :func:`lrp`.
    """
    start = depths.shallowest
    evidence = lrp(model, images, targets, "gamma", start.layer) * start.nats
    arrived = descend(model, start.layer, images, evidence, composite, start.features).sum(1)
    nats = (depth.nats for depth in (*depths, start))
    return capacity_product(nats, tuple(images.shape[-2:])) * detail(arrived, width) ** strength


def detail(maps: Tensor, width: float = 4.0) -> Tensor:
    """Maps (B×H×W) divided by themselves smoothed: what is finer than ``width`` pixels.

    1 where nothing is near. Negative values count as 0.
    """
    positive = maps.clamp(min=0).to("cpu", torch.float64)  # which not every GPU has
    coarse = smooth(positive, width)
    return torch.where(coarse > 0, positive / coarse.clamp(min=1e-300), 1.0).to(maps)


def _rescaled(relevance: Tensor, like: Tensor) -> Tensor:
    """``relevance`` with the total of ``like``; nothing where there is nothing to scale."""
    ratio = (_total(like) / _total(relevance)).to(relevance)[:, None, None, None]
    return relevance * ratio.nan_to_num(0.0, 0.0, 0.0)


# --- down from the logit -------------------------------------------------------------------------


def lrp(
    model: Network,
    images: Tensor,
    targets: Tensor | list[int],
    composite: str | Composite | None = "epsilon-plus",
    layer: str | None = None,
) -> Tensor:
    """Plain LRP from the class logit to the pixels (Bach et al. 2015): B×3×H×W, in logits.

    Parameters
    ----------
    images
        B×3×H×W.
    targets
        B class numbers, or B×classes bool: the logsumexp of a set is explained, shared over its
        classes in proportion to their softmax.
    composite
        As :func:`descend`; ``"epsilon-plus"`` is ε in dense layers, z⁺ in convolutions and Flat
        at the pixels.
    layer
        Where to stop, with B×C×h×w at that layer's output; None for the pixels.

    Raises
    ------
    ValueError
        Images, targets, composite or layer do not fit.
    """
    names = [] if layer is None else [layer]
    net = form_of(model, names, images)
    targets = as_targets(targets, images)

    def begin(part: slice, logits: Tensor) -> Tensor:
        classes = check_targets(targets[part], check_logits(logits, len(targets[part])))
        return class_shares(logits, classes) * class_logit(logits, classes)[:, None]

    below = _in_parts(net, None, images, begin, composite, names)
    if layer not in (None, *below):
        raise ValueError(f"layer {layer!r} does not run below the logits: name one that does")
    return below["pixels" if layer is None else layer]


def class_shares(logits: Tensor, targets: Tensor) -> Tensor:
    """B×classes: softmax over the classes that are explained, 0 for all others."""
    if targets.dtype != torch.bool:
        targets = nn.functional.one_hot(targets, logits.shape[1]).bool()
    return logits.masked_fill(~targets, -torch.inf).softmax(dim=1)


# --- what starts ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """The relevance that starts at the layer.

    Attributes
    ----------
    relevance
        B×C×h×w.
    before
        B: the total that was there to start with; ``relevance`` may hold less.
    unit
        ``"nats"`` or ``"logits"``.
    """

    relevance: Tensor
    before: Tensor
    unit: str


def spread_by_activation(nats: Tensor, features: Tensor) -> Tensor:
    """Nats (B×C×h×w) of each location over its channels in proportion to r⁺; sums are kept."""
    weight = features.clamp(min=0)
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, nats)
    # normalised by the largest first: a weight too small to be divided by would lose its nats
    weight = weight / weight.amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    share = weight / weight.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    return nats.sum(1, keepdim=True) * share


SOURCES = ("capacity", "active", "spread", "gated")
"""What can start at the layer, by name (:func:`start`)."""


def check_source(source: str) -> None:
    """Refuse an unknown source.

    Raises
    ------
    ValueError
        Lists the choices.
    """
    if source not in SOURCES:
        raise ValueError(f"no source {source!r}: choose one of {', '.join(SOURCES)}")


def start(
    information: Information, source: str = "capacity", upper: Callable[[], Tensor] | None = None
) -> Start:
    """The relevance that starts at the layer.

    Parameters
    ----------
    information
        From the bottleneck.
    source
        One of ``SOURCES``. ``"capacity"``, as published: R = capacity, on every unit.
        ``"active"``: that of active units (r > 0) only; that of the others is dropped.
        ``"spread"``: each location's nats over its channels in proportion to r⁺
        (:func:`spread_by_activation`). ``"gated"``: LRP relevance of the class logit at the layer
        times λ, in logits, signed.
    upper
        For ``"gated"``: gives the class logit's relevance at the layer, B×C×h×w.

    Raises
    ------
    ValueError
        Unknown source, or ``"gated"`` without ``upper``.
    """
    check_source(source)
    nats, r = information.nats, information.features
    if source == "gated":
        if upper is None:
            raise ValueError("source 'gated' needs the relevance of the class logit at the layer")
        relevance = upper()
        return Start(relevance * information.lambda_, _total(relevance), "logits")
    if source == "active":
        nats = nats * (r > 0)
    elif source == "spread":
        nats = spread_by_activation(nats, r)
    return Start(nats, _total(information.nats), "nats")


# --- the ledger ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ledger:
    """What became of the relevance of each of B images.

    Attributes
    ----------
    unit
        ``"nats"`` or ``"logits"``.
    before
        B: total at the layer before the source made its choice.
    start
        B: total that started at the layer.
    end
        B: total at the pixels.
    inactive
        B: share (0–1) of the layer's nats on units with r ≤ 0, whatever the source lets start.
    """

    unit: str
    before: Tensor
    start: Tensor
    end: Tensor
    inactive: Tensor

    @classmethod
    def joined(cls, ledgers: Sequence[Ledger]) -> Ledger:
        """One ledger of the images of several."""
        names = ("before", "start", "end", "inactive")
        return cls(ledgers[0].unit, *(torch.cat([getattr(x, n) for x in ledgers]) for n in names))

    @property
    def lost(self) -> Tensor:
        """B: share of what started that reached no pixel (ε and rules with a bias take it)."""
        return _lost(self.start, self.end)

    @property
    def dropped(self) -> Tensor:
        """B: share of what was there that the source did not let start."""
        return _lost(self.before, self.start)

    def line(self, index: int) -> str:
        """One sentence about image ``index``."""
        into, out = self.start[index].item(), self.end[index].item()
        bits = f" ({into / math.log(2):.1f} bits)" if self.unit == "nats" else ""
        notes = [
            f"{_percent(self.lost[index])} lost",
            f"{_percent(self.inactive[index], 0)} had been on inactive units",
        ]
        if self.dropped[index].abs() > TOLERANCE:
            notes.append(f"{_percent(self.dropped[index], 0)} dropped before the start")
        return f"{into:.1f} {self.unit} in{bits}, {out:.1f} {self.unit} out; {', '.join(notes)}"

    def __str__(self) -> str:
        return "\n".join(self.line(index) for index in range(len(self.start)))


def ledger(information: Information, start: Start, pixels: Tensor) -> Ledger:
    """The totals of one descent, from ``start`` at the layer to ``pixels`` (B×3×H×W)."""
    nats = _total(information.nats)
    inactive = _total(information.nats * (information.features <= 0))
    share = torch.where(nats > 0, inactive / nats, 0.0)
    return Ledger(start.unit, start.before, _total(start.relevance), _total(pixels), share)


def _total(relevance: Tensor) -> Tensor:
    """Sum per image, in float64 (on the CPU, as not every GPU has it): no rounding of its own."""
    return relevance.to("cpu", torch.float64).flatten(1).sum(1)


def _lost(before: Tensor, after: Tensor) -> Tensor:
    return torch.where(before == 0, 0.0, 1 - after / before)


def _percent(share: Tensor, digits: int = 1) -> str:
    """Share as per cent, and zero without a minus sign."""
    return f"{round(100 * share.item(), digits) + 0.0:.{digits}f} %"


# --- Relevance-IBA -------------------------------------------------------------------------------


def relevance_iba(
    model: Network,
    images: Tensor,
    targets: Tensor | list[int],
    information: Information,
    *,
    source: str = "capacity",
    composite: str | Composite | None = None,
) -> tuple[Tensor, Ledger]:
    """Relevance-IBA from the result of a bottleneck: relevance of the pixels, and its ledger.

    Parameters
    ----------
    model, images, composite
        As :func:`descend`.
    targets
        As :func:`lrp`; read by source ``"gated"`` only.
    information
        Of these images, from :class:`riba.InformationBottleneck`.
    source
        One of ``SOURCES``.

    Returns
    -------
    B×3×H×W in nats, or in logits with source ``"gated"``; and the ledger.

    Raises
    ------
    ValueError
        As :func:`descend` and :func:`start`.
    """
    layer = information.layer
    net = form_of(model, [layer], images)
    begin = start(information, source, partial(lrp, net, images, targets, composite, layer))
    pixels = descend(net, layer, images, begin.relevance, composite, information.features)
    return pixels, ledger(information, begin, pixels)


class RelevanceIBA(Attributor):
    """Relevance-IBA as a Zennit attributor: images and targets in, logits and nats out.

    Chen et al., IEEE BigData 2023. Works on the network's explicit form, made at the first call.
    Several threads may share it; :attr:`information` and :attr:`ledger` are then those of the call
    that ended last.

    >>> with RelevanceIBA(model, "features.14", stats) as attributor:
    ...     output, relevance = attributor(images, targets)
    >>> print(attributor.ledger)

    Parameters
    ----------
    model
        Images (B×3×H×W) to logits (B×classes), in evaluation mode. It is not changed.
    layer
        Name of the layer of the bottleneck.
    stats
        Feature statistics of that layer.
    composite
        Name (:data:`riba.rules.COMPOSITES`), Zennit composite, or None for ``"z+"``: all nats of
        the layer arrive at the pixels, none of them negative.
    source
        What starts at the layer, one of ``SOURCES``: ``"capacity"`` (as published),
        ``"active"``, ``"spread"`` or ``"gated"``.
    settings
        Of the bottleneck, fields of :class:`riba.method.bottleneck.Settings`: ``beta``, …

    Attributes
    ----------
    information
        :class:`riba.Information` of the last call, None before.
    ledger
        :class:`Ledger` of the last call, None before.

    Raises
    ------
    ValueError
        Unknown layer, composite or source; statistics that do not fit; at a call, a network with
        a step that has no rule (:mod:`riba.explicit`), or with other weights than the statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: str,
        stats: FeatureStatistics,
        composite: str | Composite | None = None,
        source: str = "capacity",
        **settings: object,
    ) -> None:
        check_source(source)
        find_layer(model, layer)
        super().__init__(model, rules.composite(composite))
        self.layer, self.source = layer, source
        self.bottleneck = InformationBottleneck(model, layer, stats, **settings)
        self.information: Information | None = None
        self.ledger: Ledger | None = None

    def __repr__(self) -> str:
        return f"RelevanceIBA({type(self.model).__name__}, {self.layer!r}, {self.source!r})"

    def __enter__(self) -> RelevanceIBA:
        return self  # rules are registered with the explicit form, at each call

    def __exit__(self, *_error: object) -> None:
        pass

    @torch.inference_mode(False)
    def __call__(self, images: Tensor, targets: Tensor | list[int]) -> tuple[Tensor, Tensor]:
        """Explain ``targets``.

        Parameters
        ----------
        images
            B×3×H×W, as the network expects them.
        targets
            B class numbers, or B×classes bool for a set of classes each.

        Returns
        -------
        output, relevance
            Logits (B×classes), and relevance of the pixels (B×3×H×W): nats, or logits with source
            ``"gated"``.
        """
        net = self.bottleneck.explicit(images)
        net.ruled(self.layer, images[:1])  # a step without a rule is refused before all else
        information = self.bottleneck.optimise(net, images, targets)
        relevance, ledger = relevance_iba(
            net, images, targets, information, source=self.source, composite=self.composite
        )
        self.information, self.ledger = information, ledger
        return information.logits.to(images.dtype), relevance

    forward = __call__
