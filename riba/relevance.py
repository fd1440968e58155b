"""Relevance-IBA: nats measured by a bottleneck at one layer, handed down to the pixels by LRP.

Chen et al., IEEE BigData 2023. The capacity at layer l (nats per feature) is the relevance that
starts there; the rules of :mod:`riba.rules` carry it through the layers below, and the map is in
nats, too. With a rule that conserves, the map's total is the information in the bottleneck, and
the :class:`Ledger` says so for every image.

The publication leaves the layer and the rules open; the defaults here are ours.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import VGG, ResNet
from zennit.attribution import Attributor
from zennit.core import Composite
from zennit.types import Activation, BatchNorm

from riba import rules
from riba.bottleneck import Information, InformationBottleneck, capacity_product, smooth
from riba.models import check_images, check_targets, class_logit, find_layer, run_until, watched
from riba.statistics import FeatureStatistics

PIXELS_AT_ONCE = 2**18
"""Pixels that go through the network together: 16 images of 128², 5 of 224²."""

TOLERANCE = 1e-3
"""Share of the relevance that may be lost or gained before an architecture is refused."""


# --- a private copy of the network ---------------------------------------------------------------


@contextmanager
def prepared(model: nn.Module, composite: Composite) -> Iterator[nn.Module]:
    """A copy of ``model`` that hands relevance down by ``composite``, within this context.

    The copy is frozen. The model itself is not touched: Zennit's canonizers write merged weights
    into the network they are given, and leave it broken when they raise.

    Raises
    ------
    ValueError
        The canonizers cannot bring this architecture into the form that LRP needs.
    """
    private = frozen_copy(model)
    _register(private, composite)
    try:
        yield private
    finally:
        composite.remove()


@torch.inference_mode(False)  # tensors made in inference mode could not serve a backward pass
def frozen_copy(model: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode whose weights take no gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.inference_mode(False)
def _register(private: nn.Module, composite: Composite) -> None:
    try:
        composite.register(private)
    except Exception as error:  # canonizers raise whatever a shape or an attribute happens to raise
        raise ValueError(f"{_refusal(private)} (merging its batch norms: {error})") from error


def _release(composite: Composite) -> None:
    """Drop the activations that the rules remember; the rules stay registered."""
    for hook in composite.hook_refs:
        hook.remove()


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
    check_images(model, images)
    with prepared(model, rules.composite(composite)) as private:
        return _descend(private, layer, images, start)


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
    check_images(model, images)
    names = stages(model) if layers is None else list(layers)
    lower = [name for name in names if name != layer]
    with prepared(model, rules.composite(composite)) as private:
        parts = [
            _one_pass(private, layer, images[part], start[part], lower) for part in _parts(images)
        ]
    missing = [name for name in lower if name not in parts[0]]
    if layers is not None and missing:
        raise ValueError(f"layer {missing[0]!r} does not run below {layer!r}: name one that does")
    below = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
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


def _descend(private: nn.Module, layer: str, images: Tensor, start: Tensor) -> Tensor:
    """:func:`descend` on a prepared copy."""
    if len(start) != len(images):
        raise ValueError(f"start is for {len(start)} images, there are {len(images)}")
    parts = [
        _one_pass(private, layer, images[part], start[part], [])["pixels"]
        for part in _parts(images)
    ]
    return torch.cat(parts)


def _one_pass(
    private: nn.Module, layer: str, images: Tensor, start: Tensor, names: list[str]
) -> dict[str, Tensor]:
    """Relevance at the outputs of ``names``, last to first, and at the pixels."""
    # outside no_grad and inference mode, whatever the caller is in: LRP is a modified gradient
    with torch.inference_mode(False), torch.enable_grad():
        pixels = images.detach().clone().requires_grad_()
        with watched(private, names) as outputs:
            features = run_until(private, layer, pixels)
        _check_start(start, features, layer)
        wanted = [*reversed(outputs.values()), pixels]
        below = torch.autograd.grad(features, wanted, start.detach().clone().to(features))
    return dict(zip([*reversed(outputs), "pixels"], below, strict=True))


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
    (:func:`riba.bottleneck.capacity_product`) and rescaled per image to the total that started,
    so that it still ends as nats.

    Parameters
    ----------
    found
        Layer name to what a bottleneck found there (:class:`riba.joint.JointBottlenecks`), the
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
    with prepared(model, rules.composite(composite)) as private:
        return _from_logit(private, images, targets, layer)


def _from_logit(
    private: nn.Module, images: Tensor, targets: Tensor | list[int], layer: str | None
) -> Tensor:
    """LRP relevance of the class logit at ``layer`` (B×C×h×w), or at the pixels (None)."""
    targets = torch.as_tensor(targets)
    parts = []
    for part in _parts(images):
        with torch.inference_mode(False), torch.enable_grad():
            pixels = images[part].detach().clone().requires_grad_()
            with watched(private, [] if layer is None else [layer]) as outputs:
                logits = private(pixels)
            if layer is not None and layer not in outputs:
                raise ValueError(f"the forward pass never runs layer {layer!r}: choose another")
            at = pixels if layer is None else outputs[layer]
            start = _logit_start(logits.detach(), check_targets(targets[part], logits))
            parts.extend(torch.autograd.grad(logits, at, start))
    return torch.cat(parts)


def _logit_start(logits: Tensor, targets: Tensor) -> Tensor:
    """Relevance of the logits, B×classes: the explained logit, shared over its set by softmax."""
    if targets.dtype != torch.bool:
        targets = nn.functional.one_hot(targets, logits.shape[1]).bool()
    shares = logits.masked_fill(~targets, -torch.inf).softmax(dim=1)
    return shares * class_logit(logits, targets)[:, None]


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
        """B: share of what started that reached no pixel (biases and ε take it)."""
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
            f"{_percent(self.absorbed[index])} absorbed by biases",
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


# --- is this architecture safe? ------------------------------------------------------------------


def check_conserves(
    model: nn.Module,
    layer: str,
    images: Tensor,
    composite: str | Composite | None = None,
    tolerance: float = TOLERANCE,
) -> Tensor:
    """Refuse an architecture through which relevance is lost or gained on its way to the pixels.

    Random relevance on every unit of ``layer`` is handed down; and the private copy, with its
    batch norms merged and its residual sums made explicit, must still be the same network.

    Parameters
    ----------
    images
        B×3×H×W, one image is enough.
    composite
        As :func:`descend`; one that conserves by itself, or everything is refused.
    tolerance
        Largest relative error allowed.

    Returns
    -------
    B: the share that reaches the pixels.

    Raises
    ------
    ValueError
        Names the architecture, says what happens to relevance there and what works.
    """
    check_images(model, images)
    find_layer(model, layer)
    with prepared(model, rules.composite(composite)) as private:
        _check_same(model, private, images)
        with torch.no_grad():
            features = run_until(private, layer, images)
        if features.ndim != 4:
            raise ValueError(
                f"{_refusal(model)} (layer {layer!r} returns "
                f"{'×'.join(map(str, features.shape))}, not maps)"
            )
        generator = torch.Generator().manual_seed(0)
        relevance = torch.rand(features.shape, generator=generator).to(features)
        try:
            pixels = _descend(private, layer, images, relevance)
        except RuntimeError as error:
            raise ValueError(f"{_refusal(model)} ({error})") from error
    arrived = _total(pixels) / _total(relevance)
    if not ((arrived - 1).abs() <= tolerance).all():  # so that NaN is refused, too
        worst = arrived[(arrived - 1).abs().nan_to_num(torch.inf).argmax()]
        raise ValueError(
            f"{_refusal(model)} (of 1 nat at layer {layer!r}, {worst:.4g} reach the pixels)"
        )
    return arrived


@torch.no_grad()
def _check_same(model: nn.Module, private: nn.Module, images: Tensor) -> None:
    expected, got = model(images), private(images)
    if not torch.allclose(got, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
        raise ValueError(
            f"{_refusal(model)} (with its batch norms merged it is no longer the same network)"
        )


def _refusal(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} does not hand relevance down without losing or making some: "
        "concatenations, gates, layer norms, attention and sums written as plain `+` have no "
        "rule. Use a VGG or ResNet of torchvision, or a network of Conv2d, BatchNorm2d, ReLU and "
        "pooling modules in sequence"
    )


# --- the attributor ------------------------------------------------------------------------------


class RelevanceIBA(Attributor):
    """Relevance-IBA as a Zennit attributor: images and targets in, logits and nats out.

    Chen et al., IEEE BigData 2023. Works on a private copy of the network, made once; within a
    ``with`` block the rules are registered once, too.

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
        Arguments of :class:`riba.bottleneck.InformationBottleneck`: ``beta``, ``steps``, …

    Attributes
    ----------
    information
        :class:`riba.bottleneck.Information` of the last call, None before.
    ledger
        :class:`Ledger` of the last call, None before.

    Raises
    ------
    ValueError
        Unknown layer, composite or source; statistics that do not fit; at the first call, an
        architecture that does not conserve relevance (:func:`check_conserves`).
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
        super().__init__(frozen_copy(model), rules.composite(composite))
        self.network, self.layer, self.source = model, layer, source
        self.bottleneck = InformationBottleneck(model, layer, stats, **bottleneck)
        self.information: Information | None = None
        self.ledger: Ledger | None = None
        self._checked = isinstance(model, (VGG, ResNet))  # measured: see the tests

    def __enter__(self) -> RelevanceIBA:
        _register(self.model, self.composite)
        return self

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
        check_images(self.network, images)
        if not self._checked:
            check_conserves(self.network, self.layer, images[:1])
            self._checked = True
        if self.composite.handles:
            return self.forward(images, targets)
        with self:
            return self.forward(images, targets)

    def forward(self, images: Tensor, targets: Tensor | list[int]) -> tuple[Tensor, Tensor]:
        """:meth:`__call__` without its checks, while the rules are registered."""
        output = self._logits(images)
        targets = check_targets(targets, output)
        information = self.bottleneck(images, targets)
        upper = partial(_from_logit, self.model, images, targets, self.layer)
        begun = start(information, self.source, upper)
        relevance = _descend(self.model, self.layer, images, begun.relevance)
        _release(self.composite)
        self.information, self.ledger = information, ledger(information, begun, relevance)
        return output, relevance

    @torch.no_grad()
    def _logits(self, images: Tensor) -> Tensor:
        return torch.cat([self.network(images[part]) for part in _parts(images)])
