"""Relevance-IBA: nats measured by a bottleneck at one layer, handed down to the pixels by LRP.

Chen et al., IEEE BigData 2023. The capacity at layer l (nats per feature) is the relevance that
starts there; the rules of :mod:`riba.rules` carry it through the layers below, and the map is in
nats, too. With a rule that conserves, the map's total is the information in the bottleneck, and
the :class:`Ledger` says so for every image.

The publication leaves the layer and the rules open; the defaults here are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from zennit.attribution import Attributor
from zennit.core import Composite
from zennit.types import Activation, BatchNorm

from riba.method import rules
from riba.method.bottleneck import Information, InformationBottleneck, capacity_product, smooth
from riba.method.explicit import TOLERANCE, Explicit, explicit
from riba.method.network import (
    check_images,
    check_targets,
    class_logit,
    errors_in_words,
    find_layer,
)
from riba.method.statistics import FeatureStatistics

PIXELS_AT_ONCE = 2**18
"""Pixels that go through the network together: 16 images of 128², 5 of 224²."""


# --- down to the pixels --------------------------------------------------------------------------


def descend(
    model: nn.Module,
    layer: str,
    images: Tensor,
    start: Tensor,
    composite: str | Composite | None = None,
) -> Tensor:
    """Hand relevance at ``layer`` down to the pixels.

    Parameters
    ----------
    model
        Images to logits, in evaluation mode. It stays as it is.
    layer
        Name of the layer at whose output relevance starts.
    images
        B×3×H×W.
    start
        B×C×h×w relevance at the layer: nats, or logits.
    composite
        A name (:data:`riba.rules.COMPOSITES`), a Zennit composite, or None for ``"z+"``.

    Returns
    -------
    B×3×H×W relevance of the pixels, in the unit of ``start``.

    Raises
    ------
    ValueError
        Unknown layer or composite, or ``start`` is not finite or does not fit the layer.
    """
    return _descend(model, layer, images, start, composite)["pixels"]


def descend_all(
    model: nn.Module,
    layer: str,
    images: Tensor,
    start: Tensor,
    composite: str | Composite | None = None,
    layers: Iterable[str] | None = None,
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
    names = stages(model) if layers is None else list(layers)
    lower = [name for name in names if name != layer]
    below = _descend(model, layer, images, start, composite, lower)
    missing = [name for name in lower if name not in below]
    if layers is not None and missing:
        raise ValueError(f"layer {missing[0]!r} does not run below {layer!r}: name one that does")
    return {layer: start, **below}


def stages(model: nn.Module) -> list[str]:
    """Layers that change relevance, in order of definition: convolutions, pools, residual blocks.

    Modules of ``model`` and of its (nested) sequences, without activations, batch norms and
    dropout, which pass relevance through.
    """
    passing = (Activation, BatchNorm, nn.Dropout, nn.Identity, nn.Flatten)
    return [name for name, module in _steps(model) if not isinstance(module, passing)]


def _steps(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential):
            yield from _steps(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _parts(images: Tensor) -> list[slice]:
    """Slices of the batch that bound the memory of one pass."""
    size = max(1, PIXELS_AT_ONCE // (images.shape[-1] * images.shape[-2]))
    return [slice(first, first + size) for first in range(0, len(images), size)]


def _descend(
    model: nn.Module,
    layer: str,
    images: Tensor,
    start: Tensor,
    composite: str | Composite | None = None,
    names: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Relevance at the outputs of ``names``, the last first, and at the pixels."""
    check_images(model, images)
    if len(start) != len(images):
        raise ValueError(f"start is for {len(start)} images, there are {len(images)}")

    def begin(part: slice, features: Tensor) -> Tensor:
        _check_start(start[part], features, layer)
        return start[part]

    net = explicit(model, [layer], images)
    return _in_parts(net, layer, images, begin, composite, names)


def _in_parts(
    net: Explicit,
    layer: str | None,
    images: Tensor,
    begin: Callable[[slice, Tensor], Tensor],
    composite: str | Composite | None,
    names: Iterable[str],
) -> dict[str, Tensor]:
    """:meth:`Explicit.propagate` for as many images at a time as memory bears."""
    composite = rules.composite(composite)
    parts = [
        net.propagate(layer, images[part], partial(begin, part), composite, names)
        for part in _parts(images)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _check_start(start: Tensor, features: Tensor, layer: str) -> None:
    if start.shape != features.shape:
        expected, got = ("×".join(map(str, x.shape)) for x in (features, start))
        raise ValueError(f"relevance at layer {layer!r} must be {expected}, got {got}")
    if not torch.isfinite(start).all():
        raise ValueError("the starting relevance holds NaN or infinite values")


def cascade(
    model: nn.Module,
    images: Tensor,
    found: Mapping[str, Information],
    composite: str | Composite | None = None,
    smoothing: float | None = None,
) -> Tensor:
    """Hand down the nats of the shallowest of several depths, weighed by what every depth found.

    Our extension, not in the publication. The capacity of the shallowest layer starts; what
    arrives at a pixel is multiplied by the information that each depth holds there
    (:func:`.capacity_product`) and rescaled per image to the total that started,
    so that it still ends as nats.

    Parameters
    ----------
    found
        Layer name to what a bottleneck found there (:class:`riba.JointBottlenecks`), the
        deepest first.
    composite
        As :func:`descend`.
    smoothing
        Width in pixels of a Gaussian over what arrives; None is the stride of the shallowest
        layer: its nats were not measured any finer. 0: none.

    Returns
    -------
    B×3×H×W relevance of the pixels, in nats.

    Raises
    ------
    ValueError
        As :func:`descend`.
    """
    layer, start = list(found.items())[-1]
    size = tuple(images.shape[-2:])
    if smoothing is None:
        smoothing = size[-1] / start.nats.shape[-1]
    arrived = smooth(descend(model, layer, images, start.nats, composite), smoothing)
    weights = capacity_product((information.nats for information in found.values()), size)
    return _rescaled(arrived * weights[:, None], like=start.nats)


def _rescaled(relevance: Tensor, like: Tensor) -> Tensor:
    """``relevance`` with the total of ``like``; nothing where there is nothing to scale."""
    ratio = (_total(like) / _total(relevance)).to(relevance)[:, None, None, None]
    return relevance * ratio.nan_to_num(0.0, 0.0, 0.0)


# --- down from the logit -------------------------------------------------------------------------


def lrp(
    model: nn.Module,
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
    check_images(model, images)
    targets = torch.as_tensor(targets)

    def begin(part: slice, logits: Tensor) -> Tensor:
        return _logit_start(logits, check_targets(targets[part], logits))

    names = [] if layer is None else [layer]
    below = _in_parts(explicit(model, names, images), None, images, begin, composite, names)
    return below["pixels" if layer is None else layer]


def _logit_start(logits: Tensor, targets: Tensor) -> Tensor:
    """Relevance of the logits, B×classes: the explained logit, shared over its set."""
    return class_shares(logits, targets) * class_logit(logits, targets)[:, None]


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


Upper = Callable[[], Tensor]
"""Gives the LRP relevance of the class logit at the layer, B×C×h×w, if it is asked for."""


def capacity(information: Information, upper: Upper | None = None) -> Start:
    """As published: R = capacity, in nats, on every unit."""
    return Start(information.nats, _total(information.nats), "nats")


def active(information: Information, upper: Upper | None = None) -> Start:
    """Capacity of active units (r > 0) only; what was on the others is dropped."""
    kept = information.nats * (information.features > 0)
    return Start(kept, _total(information.nats), "nats")


def spread(information: Information, upper: Upper | None = None) -> Start:
    """Each location's nats, over its channels in proportion to r⁺; kept where none is active."""
    weight = information.features.clamp(min=0)
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, information.nats)
    # normalised by the largest first: a weight too small to be divided by would lose its nats
    weight = weight / weight.amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    share = weight / weight.sum(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    nats = information.nats.sum(1, keepdim=True) * share
    return Start(nats, _total(information.nats), "nats")


def gated(information: Information, upper: Upper | None = None) -> Start:
    """LRP relevance of the class logit at the layer, times λ: in logits, signed."""
    if upper is None:
        raise ValueError("source 'gated' needs the relevance of the class logit at the layer")
    relevance = upper()
    return Start(relevance * information.lambda_, _total(relevance), "logits")


SOURCES: dict[str, Callable[[Information, Upper | None], Start]] = {
    "capacity": capacity,
    "active": active,
    "spread": spread,
    "gated": gated,
}
"""What can start at the layer, by name."""


def start(information: Information, source: str = "capacity", upper: Upper | None = None) -> Start:
    """The relevance that starts at the layer.

    Parameters
    ----------
    information
        From the bottleneck.
    source
        A key of ``SOURCES``.
    upper
        For ``"gated"``: a function that gives the class logit's relevance at the layer.

    Raises
    ------
    ValueError
        Unknown source; the message lists the choices.
    """
    _check_source(source)
    return SOURCES[source](information, upper)


def _check_source(source: str) -> None:
    if source not in SOURCES:
        raise ValueError(f"no source {source!r}: choose one of {', '.join(SOURCES)}")


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
        B: share (0–1) of the capacity that was on units with r ≤ 0.
    """

    unit: str
    before: Tensor
    start: Tensor
    end: Tensor
    inactive: Tensor

    @property
    def absorbed(self) -> Tensor:
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
            f"{_percent(self.absorbed[index])} lost",
            f"{_percent(self.inactive[index], 0)} had been on inactive units",
        ]
        if self.dropped[index].abs() > TOLERANCE:
            notes.append(f"{_percent(self.dropped[index], 0)} dropped before the start")
        return f"{into:.1f} {self.unit} in{bits}, {out:.1f} {self.unit} out; {', '.join(notes)}"

    def __str__(self) -> str:
        return "\n".join(self.line(index) for index in range(len(self.start)))


def ledger(information: Information, begun: Start, pixels: Tensor) -> Ledger:
    """The books of one descent: ``begun`` at the layer, ``pixels`` (B×3×H×W) at its end."""
    idle = _total(information.nats * (information.features <= 0))
    nats = _total(information.nats)
    return Ledger(
        unit=begun.unit,
        before=begun.before,
        start=_total(begun.relevance),
        end=_total(pixels),
        inactive=torch.where(nats > 0, idle / nats, 0.0),
    )


def _total(relevance: Tensor) -> Tensor:
    """Sum per image, in float64: the books must not be off by their own rounding."""
    return relevance.double().flatten(1).sum(1)


def _lost(before: Tensor, after: Tensor) -> Tensor:
    return torch.where(before == 0, 0.0, 1 - after / before)


def _percent(share: Tensor, digits: int = 1) -> str:
    """Share as per cent, and zero without a minus sign."""
    return f"{round(100 * share.item(), digits) + 0.0:.{digits}f} %"


# --- the attributor ------------------------------------------------------------------------------


class RelevanceIBA(Attributor):
    """Relevance-IBA as a Zennit attributor: images and targets in, logits and nats out.

    Chen et al., IEEE BigData 2023. Works on the network's explicit form, made at the first call.
    Several threads may share it; :attr:`information` and :attr:`ledger` are then of whichever call
    ended last.

    >>> with RelevanceIBA(model, "features.14", stats) as attributor:
    ...     output, relevance = attributor(images, targets)
    >>> print(attributor.ledger)

    Parameters
    ----------
    model
        Images (B×3×H×W) to logits (B×classes), in evaluation mode. It stays as it is.
    layer
        Name of the layer of the bottleneck.
    stats
        Feature statistics of that layer.
    composite
        Name (:data:`riba.rules.COMPOSITES`), Zennit composite, or None for ``"z+"``: the nats at
        the layer arrive at the pixels, none of them negative.
    source
        What starts at the layer, a key of ``SOURCES``: ``"capacity"`` (as published),
        ``"active"``, ``"spread"`` or ``"gated"``.
    bottleneck
        Arguments of :class:`riba.InformationBottleneck`: ``beta``, ``steps``, …

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
        **bottleneck: float,
    ) -> None:
        _check_source(source)
        find_layer(model, layer)
        super().__init__(model, rules.composite(composite))
        self.layer, self.source = layer, source
        self.bottleneck = InformationBottleneck(model, layer, stats, **bottleneck)
        self.information: Information | None = None
        self.ledger: Ledger | None = None

    def __enter__(self) -> RelevanceIBA:
        return self  # rules are registered with the explicit form, at each call

    def __exit__(self, *_error: object) -> None:
        pass

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
        return self.forward(images, targets)

    @torch.inference_mode(False)
    def forward(self, images: Tensor, targets: Tensor | list[int]) -> tuple[Tensor, Tensor]:
        """As :meth:`__call__`."""
        check_images(self.model, images)
        explicit(self.model, [self.layer], images).ruled(self.layer, images[:1])  # or refuse now
        output = self._logits(images)
        targets = check_targets(targets, output)
        information = self.bottleneck(images, targets)
        upper = partial(lrp, self.model, images, targets, self.composite, self.layer)
        begun = start(information, self.source, upper)
        relevance = descend(self.model, self.layer, images, begun.relevance, self.composite)
        self.information, self.ledger = information, ledger(information, begun, relevance)
        return output, relevance

    @torch.no_grad()
    def _logits(self, images: Tensor) -> Tensor:
        with errors_in_words(images):
            return torch.cat([self.model(images[part]) for part in _parts(images)])
