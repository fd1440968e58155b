"""Every method by name, behind one signature: :data:`METHODS`.

``METHODS[name](wb, images, targets, *, masks=None, seed=0, **settings)`` takes

wb
    :class:`riba.Workbench`: network, bottleneck layer, its statistics.
images
    B×3×H×W, as the network expects them.
targets
    B class numbers or names, or B×classes bool for a set of classes each.
masks
    B×H×W bool; only ``oracle`` reads them.
seed
    Of whatever is random; a map does not depend on the batch around its image.
settings
    Of the method, such as ``beta=1.0`` where there is a bottleneck: ``METHODS[name].takes``.

and returns B×H×W on the device of the images; ``METHODS[name].explain(…)`` of the same arguments
returns the map and its ledger (:class:`riba.Ledger`; None for methods that propagate no measured
information). How colours are pooled is fixed per method: signed values are summed over the colours,
gradients without a product take their largest magnitude. Signed maps are ranked with their sign: a
negative pixel speaks against the class.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from types import CodeType, FunctionType

import cloudpickle
import torch
from torch import Tensor, nn
from zennit.composites import LayerMapComposite
from zennit.core import Composite
from zennit.rules import ReLUGuidedBackprop

from riba.compare.deeplift import deeplift as explain_difference
from riba.method import bottleneck, network, relevance, rules
from riba.method.bottleneck import Depths, Information, InformationBottleneck, Settings, smooth
from riba.method.explicit import Explicit, dtype_of
from riba.method.input_iba import InputIBA, InputInformation
from riba.method.relevance import Ledger
from riba.testbed.datasets import files_hash
from riba.testbed.networks import READOUT_WEIGHTS, scenenet_readout
from riba.workbench import Workbench

INCOMPLETE, MOST_STEPS = 0.05, 400
"""By how much Integrated Gradients may miss their sum before more steps are taken, and how many."""

CALIBRATED = "calibrated"
"""In place of a number for β: that of ``wb.betas``."""
AT_ONCE = 32
"""Images that pass through the network together."""


# --- the registry --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Query:
    """Arguments of a method: images and targets, checked, and on the device of the network."""

    wb: Workbench
    images: Tensor
    targets: Tensor
    seed: int = 0
    masks: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return tuple(self.images.shape[-2:])

    def information(
        self, layers: str | tuple[str, ...], **settings: object
    ) -> Information | Depths:
        """What :func:`information` returns for these images and targets."""
        return information(self.wb, layers, self.images, self.targets, self.seed, **settings)

    def at_depths(self, separate: bool = False, **settings: object) -> Depths:
        """Information at ``wb.depths``: of joint bottlenecks, or of one by itself at each."""
        if separate:
            return Depths(tuple(self.information(name, **settings) for name in self.wb.depths))
        return self.information(self.wb.depths, **settings)

    def propagation(
        self, layers: str | tuple[str, ...], **settings: object
    ) -> tuple[Explicit, Information | Depths]:
        """The explicit form that the bottleneck at ``layers`` uses, and its information."""
        found = _bottleneck(self.wb, layers, self.seed, **settings)
        net = _form(self.wb, self.images, found)
        return net, self.information(layers, net=net, **settings)


@dataclass(frozen=True)
class Method:
    """A method or control. ``riba.METHODS["mine"] = riba.Method(function)`` enters one of yours.

    Attributes
    ----------
    function
        Takes a :class:`Query` and settings of its own; returns maps (B×H×W), or maps and a ledger.
    unit
        Of its map; empty where it has none.
    settings
        Those that this method passes to the function.
    """

    function: Callable[..., Tensor | tuple[Tensor, Ledger]]
    unit: str = ""
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def takes(self) -> tuple[str, ...]:
        """Names of the settings that the function takes; of a bottleneck those of its own, too.

        Every method takes ``blur``: the width in pixels of a Gaussian over its map.
        """
        _, *parameters = inspect.signature(self.function).parameters.values()
        names = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        return (*names, *(OF_BOTTLENECKS if len(names) < len(parameters) else ()), "blur")

    def using(self, **settings: object) -> Method:
        """The same method with other settings: ``METHODS["iba"].using(beta=1.0)``.

        Raises
        ------
        ValueError
            The method does not take such a setting: lists near matches; or ``blur`` is no width.
        """
        for name in settings:
            if name not in self.takes:
                near = network.near_matches(name, self.takes)
                function = getattr(self.function, "__name__", "the method")
                raise ValueError(f"{function} has no setting {name!r}; {near}")
        made = replace(self, settings=self.settings | settings)
        if not 0 <= made.blur < math.inf:
            raise ValueError(f"blur must be 0 pixels or more, got {made.blur}")
        return made

    @property
    def blur(self) -> float:
        """Width in pixels of the Gaussian over its map; 0: none."""
        return self.settings.get("blur", 0.0)

    @property
    def plain(self) -> Method:
        """The same method without blur."""
        return replace(self, settings={k: v for k, v in self.settings.items() if k != "blur"})

    @property
    def description(self) -> str:
        """What the method is, and its publication."""
        return self.function.__doc__

    @property
    def version(self) -> str:
        """Hash of function, settings and riba's code: results of other versions are not reused."""
        settings = sorted((name, told(value)) for name, value in self.settings.items())
        text = repr((told(self.function), settings, _code()))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __call__(self, *arguments: object, **settings: object) -> Tensor:
        """Maps, B×H×W, on the device of the images; takes what :meth:`explain` takes."""
        return self.explain(*arguments, **settings)[0]

    @torch.inference_mode(False)
    def explain(
        self,
        wb: Workbench,
        images: Tensor,
        targets: Tensor | Sequence[int],
        *,
        masks: Tensor | None = None,
        seed: int = 0,
        **settings: object,
    ) -> tuple[Tensor, Ledger | None]:
        """Maps, B×H×W, and their ledger, None where the method has none or the map is blurred.

        Raises
        ------
        ValueError
            Images, targets or settings do not fit the network or the method.
        """
        method = self.using(**settings)
        blur, settings = method.blur, method.plain.settings
        device, images = getattr(images, "device", None), wb.batch(images)
        logits = wb.logits(images[:1]).expand(len(images), -1)  # one tells how many classes
        if isinstance(targets, (list, tuple)) and all(isinstance(name, str) for name in targets):
            targets = [wb.class_number(name) for name in targets]
        if masks is not None and len(masks) != len(images):
            raise ValueError(f"{len(masks)} masks for {len(images)} images: pass one for each")
        targets, answers = network.check_targets(targets, logits), []
        for start in range(0, len(images), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            objects = None if masks is None else masks[part]
            query = Query(wb, images[part], targets[part], seed, objects)
            answers.append(_maps(self.function(query, **settings), query))
        if blur:  # what it moves beyond the border is not accounted for
            answers = [(smooth(maps, blur), None) for maps, _ in answers]
        maps, ledgers = zip(*answers, strict=True)
        ledger = None if None in ledgers else Ledger.joined(ledgers)
        return torch.cat(maps).detach().to(device).contiguous(), ledger


def told(value: object) -> object:
    """What a function or setting is, in words that another process would find, too."""
    name, home = getattr(value, "__qualname__", ""), getattr(value, "__module__", None) or ""
    if home.startswith("riba.") and getattr(sys.modules.get(home), name, None) is value:
        return home, name
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, [told(constant) for constant in value.co_consts]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        defaults = value.__defaults__, value.__kwdefaults__
        return told(value.__code__), *defaults, [told(content) for content in cells]
    if isinstance(value, (str, int, float, tuple, type(None), torch.dtype)):
        return repr(value)
    return cloudpickle.dumps(value)


@lru_cache(maxsize=1)
def _code() -> str:
    """Hash of what maps and their measures depend on: code and the readout's weights."""
    here = Path(__file__).parent
    files = [*(here.parent / "method").glob("*.py"), *here.rglob("*.py")]
    return files_hash([*sorted(files), READOUT_WEIGHTS])


def _maps(answer: object, q: Query) -> tuple[Tensor, Ledger | None]:
    """What a function returned, if it is what a method may return."""
    maps, ledger = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    if not isinstance(maps, Tensor) or maps.shape != (len(q.images), *q.size):
        raise ValueError(
            f"the method returned {network.shape_or_type(maps)} and not maps, B×H×W: "
            "let its function return a tensor of that shape"
        )
    return maps, ledger


METHODS: dict[str, Method] = {}
"""Methods and controls by name."""


OF_BOTTLENECKS = tuple(x.name for x in fields(Settings) if x.name != "seed")
"""Settings of methods with a bottleneck, fields of :class:`riba.method.bottleneck.Settings`."""


def method(name: str, unit: str = "", **settings: object) -> Callable[[Callable], Callable]:
    """Enter a function, with settings of its own, in :data:`METHODS`."""

    def enter(function: Callable[..., Tensor | tuple[Tensor, Ledger]]) -> Callable:
        METHODS[name] = Method(function, unit, settings)
        return function

    return enter


def find_method(name: str) -> Method:
    """The method called ``name``.

    Raises
    ------
    ValueError
        There is none; the message lists near matches.
    """
    check_names("method", [name], METHODS, "riba.METHODS")
    return METHODS[name]


def by_name(methods: Sequence[str] | Mapping[str, Method]) -> dict[str, Method]:
    """Methods by name: out of :data:`METHODS`, or those of a mapping as they are.

    Raises
    ------
    ValueError
        None at all, or an unknown name.
    """
    known = methods if isinstance(methods, Mapping) else METHODS
    for name, method in known.items():
        if not isinstance(method, Method):
            raise ValueError(f"{name!r} is no method: wrap your function, riba.Method(function)")
    check_names("method", list(methods), known, "riba.METHODS")
    return {name: known[name] for name in methods}


def check_names(kind: str, names: Sequence[str], known: Collection[str], place: str) -> None:
    """Refuse names that are not ``known``, and none at all.

    Raises
    ------
    ValueError
        Says so, with near matches, and that ``place`` lists all.
    """
    if not names:
        raise ValueError(f"no {kind}s: name at least one")
    for name in names:
        if name not in known:
            near = network.near_matches(name, known)
            raise ValueError(f"no {kind} {name!r}; {near} ({place} lists all)")


def _logit(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """The logit to explain, as Captum wants it: images and targets in, B values out."""
    return lambda images, targets: network.class_logit(model(images), targets)


def _private(model: nn.Module) -> nn.Module:
    """A copy without in-place activations, because Captum registers hooks."""
    private = network.frozen_copy(model)
    for module in private.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return private


# --- gradients -----------------------------------------------------------------------------------


def _gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    with torch.enable_grad():
        pixels = images.detach().clone().requires_grad_()
        return torch.autograd.grad(network.class_logit(model(pixels), targets).sum(), pixels)[0]


@method("gradient")
def gradient(q: Query) -> Tensor:
    """|∂ logit / ∂ x|, the largest over colours. Unsigned.

    Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks", ICLR workshop 2014.
    """
    return _gradient(q.wb.model, q.images, q.targets).abs().amax(1)


@method("smoothgrad")
def smoothgrad(q: Query, samples: int = 25, noise: float = 0.15) -> Tensor:
    """The gradient averaged over noisy copies, then its largest magnitude over colours. Unsigned.

    Smilkov et al., "SmoothGrad", 2017: 25 copies, noise of 15 % of each image's range. Not
    Captum's, whose noise depends on the batch around an image. The copies of one image pass
    together, and no others: near a kink, rounding alone turns a gradient.
    """
    draw = torch.Generator().manual_seed(q.seed)
    unit = torch.randn(samples, *q.images.shape[1:], generator=draw).to(q.images)
    maps = []
    for image, target in zip(q.images, q.targets, strict=True):
        copies = image + noise * (image.max() - image.min()) * unit
        gradients = _gradient(q.wb.model, copies, target.expand(samples, *target.shape))
        maps.append(gradients.mean(0).abs().amax(0))
    return torch.stack(maps)


@method("input-x-gradient")
def input_x_gradient(q: Query) -> Tensor:
    """x · ∂ logit / ∂ x, summed over colours. Signed; x is 0 at mid-grey.

    Shrikumar et al., "Not Just a Black Box", 2016.
    """
    return (q.images * _gradient(q.wb.model, q.images, q.targets)).sum(1)


@method("integrated-gradients")
def integrated_gradients(q: Query, steps: int = 50) -> Tensor:
    """Captum's Integrated Gradients from mid-grey, summed over colours. Signed.

    Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017: a map adds up
    to the difference of the logits of image and grey. Gauss-Legendre steps, 50 or twice as many
    until that holds within 5 %.

    Warns
    -----
    UserWarning
        It does not hold with 400 steps: says how far off the worst map is.
    """
    from captum.attr import IntegratedGradients

    images, targets = q.images, q.targets
    explained, maps = _logit(_private(q.wb.model)), torch.zeros_like(images)
    method, left = IntegratedGradients(explained), torch.arange(len(images), device=images.device)
    with torch.no_grad():
        rise = explained(images, targets) - explained(torch.zeros_like(images), targets)
    while len(left):
        maps[left] = method.attribute(
            images[left],
            additional_forward_args=(targets[left],),
            n_steps=steps,
            internal_batch_size=max(AT_ONCE, len(left)),
        ).to(images.dtype)
        off = ((maps[left].sum((1, 2, 3)) - rise[left]) / rise[left]).abs()
        left, steps = left[off > INCOMPLETE], 2 * steps
        if len(left) and steps > MOST_STEPS:
            warnings.warn(
                f"Integrated Gradients are {off.max():.0%} off their sum with {steps // 2} steps: "
                "read such a map with care",
                stacklevel=2,
            )
            break
    return maps.sum(1)


# --- modified backward passes --------------------------------------------------------------------


@method("deeplift")
def deeplift(q: Query) -> Tensor:
    """DeepLIFT (rescale rule) against mid-grey, summed over colours. Signed.

    Shrikumar, Greenside and Kundaje, "Learning Important Features Through Propagating Activation
    Differences", ICML 2017: a map adds up to the difference of the logits of image and grey. Of a
    set of classes it is the logits' mean by their softmax, held fixed. :mod:`.deeplift`.

    Raises
    ------
    ValueError
        The network has a step that DeepLIFT has no rule for.
    """
    net = q.wb.explicit((), q.images)
    with torch.no_grad():
        (logits,) = net.parts[0](q.images)
        shares = relevance.class_shares(logits, q.targets)
    return explain_difference(net, q.images, lambda z: (z * shares).sum(1)).sum(1)


@method("guided-backprop")
def guided_backprop(q: Query) -> Tensor:
    """Guided Backpropagation by Zennit's rule, the largest magnitude over colours. Unsigned.

    Springenberg et al., "Striving for Simplicity", ICLR workshop 2015.

    Raises
    ------
    ValueError
        The network has no ReLU: the map would be the plain gradient.
    """
    net = network.frozen_copy(q.wb.explicit((), q.images).plain, share=True)
    relus = (nn.ReLU, nn.ReLU6)
    if not any(isinstance(module, relus) for module in net.modules()):
        name = type(q.wb.model).__name__
        raise ValueError(
            f"{name} has no ReLU to guide: its map would be the plain gradient; use that"
        )
    with LayerMapComposite([(relus, ReLUGuidedBackprop())]).context(net):
        images = q.images.to(dtype_of(net, q.images))
        return _gradient(net, images, q.targets).abs().amax(1)


@method("grad-cam")
def grad_cam(q: Query) -> Tensor:
    """Captum's Grad-CAM at the last layer with maps (``wb.top``), enlarged bilinearly. Unsigned.

    Selvaraju et al., "Grad-CAM", ICCV 2017; after its ReLU.
    """
    from captum.attr import LayerAttribution, LayerGradCam

    model = _private(q.wb.model)
    cam = LayerGradCam(_logit(model), network.find_layer(model, q.wb.top)).attribute(
        q.images, additional_forward_args=(q.targets,), relu_attributions=True
    )
    return LayerAttribution.interpolate(cam, q.size, "bilinear")[:, 0]


@method("guided-grad-cam")
def guided_grad_cam(q: Query) -> Tensor:
    """Guided-BP times Grad-CAM at ``wb.top``, the largest magnitude over colours. Unsigned.

    Selvaraju et al., "Grad-CAM", ICCV 2017.
    """
    return guided_backprop(q) * grad_cam(q)


@method("occlusion")
@torch.no_grad()
def occlusion(q: Query, window: int = 16, stride: int = 8) -> Tensor:
    """Captum's occlusion: the drop of the logit under a grey window, averaged per pixel. Signed.

    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014. Windows
    of 16×16 pixels every 8.

    Raises
    ------
    ValueError
        The image is smaller than the window.
    """
    from captum.attr import Occlusion

    if min(q.size) < window:
        raise ValueError(f"images are smaller than the window of {window} pixels: pass window=")
    channels = q.images.shape[1]
    return Occlusion(_logit(q.wb.model)).attribute(
        q.images,
        sliding_window_shapes=(channels, window, window),
        strides=(channels, stride, stride),
        additional_forward_args=(q.targets,),
        perturbations_per_eval=max(1, 2 * AT_ONCE // len(q.images)),
    )[:, 0]


# --- layer-wise relevance propagation ------------------------------------------------------------


@method("lrp-epsilon-plus", unit="logits")
def lrp_epsilon_plus(q: Query) -> Tensor:
    """LRP from the logit: ε in dense layers, z⁺ in convolutions, Flat at pixels. Signed, logits.

    Bach et al., PLOS ONE 2015; the composite of Kohlbrenner et al., IJCNN 2020.
    """
    return _lrp(q, "epsilon-plus")


@method("lrp-epsilon-gamma-box", unit="logits")
def lrp_epsilon_gamma_box(q: Query) -> Tensor:
    """LRP from the logit: ε in dense layers, γ in convolutions, zᴮ at the pixels. Signed, logits.

    Bach et al., PLOS ONE 2015; Montavon et al. 2019 for γ, 2017 for zᴮ.
    """
    return _lrp(q, rules.gamma(rules.box(*q.wb.bounds)))


def _lrp(q: Query, composite: str | Composite) -> Tensor:
    return relevance.lrp(q.wb.explicit((), q.images), q.images, q.targets, composite).sum(1)


# --- bottlenecks ---------------------------------------------------------------------------------


def information(
    wb: Workbench,
    layers: str | tuple[str, ...],
    images: Tensor,
    targets: Tensor,
    seed: int = 0,
    net: Explicit | None = None,
    **settings: object,
) -> Information | Depths:
    """Result of a bottleneck at a layer, or of several optimised together.

    Settings are fields of :class:`riba.method.bottleneck.Settings`. The last result of each layer
    or tuple of layers and settings is kept. ``net`` is the bottleneck's explicit form, where it is
    at hand.
    """
    found = _bottleneck(wb, layers, seed, **settings)

    def compute(images: Tensor, targets: Tensor) -> Information | Depths:
        return found.optimise(net or _form(wb, images, found), images, targets)

    return _last(wb, ("information", layers, seed, *settings.items()), compute, images, targets)


def _form(wb: Workbench, images: Tensor, found: InformationBottleneck) -> Explicit:
    """The explicit form of the network for a bottleneck: one for all of its settings."""
    found.check(images)
    return wb.explicit(tuple(found.statistics), images)


def input_information(
    wb: Workbench, images: Tensor, targets: Tensor, seed: int = 0, **settings: object
) -> InputInformation:
    """Result of InputIBA; settings are those of :class:`riba.InputIBA`. The last one is kept."""
    make = partial(InputIBA, wb.model, wb.layer, wb.statistics, seed=seed, **settings)
    at_input = wb.memory.once(("input bottleneck", seed, *settings.items()), make)
    return _last(wb, ("input", seed, *settings.items()), at_input, images, targets)


def _bottleneck(
    wb: Workbench, layer: str | tuple[str, ...], seed: int, **settings: object
) -> InformationBottleneck:
    """Remembered, because its statistics have been checked."""

    def make() -> InformationBottleneck:
        single = isinstance(layer, str)
        stats = wb.statistics_at(layer) if single else [wb.statistics_at(name) for name in layer]
        chosen = {"precision": wb.precision, **settings}
        if chosen.get("beta") == CALIBRATED:
            names = layer if single else " ".join(layer)
            if names not in wb.betas:
                raise ValueError(
                    f"β is not calibrated for {names} of this network: pass a number, such as that "
                    "of riba.calibration.calibrated"
                )
            chosen["beta"] = wb.betas[names]
        return InformationBottleneck(wb.model, layer, stats, seed=seed, **chosen)

    return wb.memory.once(("bottleneck", layer, seed, *settings.items()), make)


def _last(wb: Workbench, key: tuple, compute: Callable, images: Tensor, targets: Tensor) -> object:
    """The result for these images, targets and weights, computed if it is not the last of ``key``.

    Only the last one is kept, because results of several layers take much memory.
    """
    digest = network.hash_of((images, targets)).digest()
    content = (network.state_of(wb.model), images.shape, targets.dtype, digest)
    last = wb.memory.get(key)
    if last is None or last[0] != content:
        last = wb.memory.put(key, (content, compute(images, targets)))
    return last[1]


@method("iba-calibrated", unit="bits", beta=CALIBRATED)
@method("iba", unit="bits")
def iba(q: Query, layer: str | None = None, **settings: object) -> Tensor:
    """Per-sample IBA at ``layer`` (``wb.layer``): bits per pixel, the total preserved. Unsigned.

    Schulz et al., "Restricting the Flow", ICLR 2020: β 10, 10 steps, σ 1; as published with
    ``samples=10, antithetic=False``. ``iba-calibrated`` takes the network's own β.
    """
    return q.information(layer or q.wb.layer, **settings).bits(q.size)


@method("iba-joint", unit="bits")
def iba_joint(q: Query, **settings: object) -> Tensor:
    """The shallowest of bottlenecks optimised together: bits per pixel, enlarged. Unsigned.

    Ours; see :class:`riba.InformationBottleneck`.
    """
    return q.information(q.wb.depths, **settings).shallowest.bits(q.size)


@method("iba-depth-4", unit="bits", place=4)
@method("iba-depth-3", unit="bits", place=3)
@method("iba-depth-2", unit="bits", place=2)
def iba_at_depth(q: Query, place: int, **settings: object) -> Tensor:
    """IBA by itself at one of ``wb.depths``, 1 being the deepest: bits per pixel. Unsigned."""
    if len(q.wb.depths) < place:
        raise ValueError(f"this workbench has {len(q.wb.depths)} depths, not {place}")
    return q.information(q.wb.depths[place - 1], **settings).bits(q.size)


@method("readout-iba", unit="bits")
def readout_iba(q: Query) -> Tensor:
    """Readout IBA: bits per pixel from one forward pass; it does not read the targets. Unsigned.

    Schulz et al., "Restricting the Flow", ICLR 2020, section 3.4; see :mod:`riba.method.readout`.
    """
    nats = scenenet_readout(q.wb.model, q.wb.statistics)(q.images)
    return bottleneck.to_bits(nats, q.size)


@method("input-iba-nats", unit="nats", nats=True)
@method("input-iba")
def input_iba(
    q: Query,
    prior: str = "moments",
    feature_beta: float = 20.0,
    nats: bool = False,
    **settings: object,
) -> Tensor:
    """InputIBA: λ at the pixels averaged over colours, as published. Unsigned, 0–1.

    Zhang et al., NeurIPS 2021: β 20, 60 steps; see :mod:`riba.method.input_iba`. As published
    with ``samples=10, antithetic=False``. ``input-iba-nats``: its nats beyond the prior, over
    colours, in place of λ: not the published map, but the unit of the other bottlenecks' maps.
    """
    settings |= {"prior": prior, "feature_beta": feature_beta}
    result = input_information(q.wb, q.images, q.targets, q.seed, **settings)
    return result.nats.sum(1) if nats else result.map


@method("relevance-iba-joint", unit="nats", joint=True)
@method("relevance-iba-alpha2-beta1", unit="nats", composite="alpha2-beta1")
@method("relevance-iba-gamma", unit="nats", composite="gamma")
@method("relevance-iba-calibrated", unit="nats", beta=CALIBRATED)
@method("relevance-iba", unit="nats")
def relevance_iba(
    q: Query,
    layer: str | None = None,
    source: str = "capacity",
    composite: str | Composite | None = None,
    joint: bool = False,
    **settings: object,
) -> tuple[Tensor, Ledger]:
    """Relevance-IBA from ``layer`` (``wb.layer``): nats per pixel, z⁺, Flat at pixels. Unsigned.

    Chen et al., IEEE BigData 2023; see :class:`riba.RelevanceIBA`. With the network's own β:
    ``relevance-iba-calibrated``. Signed where the γ rule (0.25) or the α2β1 rule takes the place of
    z⁺: ``relevance-iba-gamma``, ``relevance-iba-alpha2-beta1``. Ours: ``relevance-iba-joint``, from
    the shallowest of bottlenecks at ``wb.depths`` optimised together.
    """
    if joint and layer:
        raise ValueError("joint bottlenecks sit at wb.depths: pass no layer=")
    net, nats = q.propagation(q.wb.depths if joint else layer or q.wb.layer, **settings)
    start = nats.shallowest if joint else nats
    pixels, ledger = relevance.relevance_iba(
        net, q.images, q.targets, start, source=source, composite=composite
    )
    return pixels.sum(1), ledger


@method("relevance-iba-cascade", unit="nats")
def relevance_iba_cascade(
    q: Query,
    composite: str | Composite | None = None,
    smoothing: float | None = None,
    **settings: object,
) -> tuple[Tensor, Ledger]:
    """The same, weighted by the information at every depth: nats per pixel. Unsigned.

    Ours; see :func:`riba.relevance.cascade`.
    """
    net, depths = q.propagation(q.wb.depths, **settings)
    pixels = relevance.cascade(net, q.images, depths, composite, smoothing)
    start = relevance.start(depths.shallowest)
    return pixels.sum(1), relevance.ledger(depths.shallowest, start, pixels)


@method("relevance-iba-detail-separate", separate=True, strength=0.5)
@method("relevance-iba-detail")
def relevance_iba_detail(
    q: Query,
    composite: str | Composite | None = None,
    width: float = 4.0,
    strength: float = 1.0,
    separate: bool = False,
    **settings: object,
) -> Tensor:
    """The information of all depths, with the detail of the class's evidence: a score. Unsigned.

    Ours; see :func:`riba.relevance.detailed`. Without its detail it is
    ``capacity-product-squared``. With a bottleneck by itself at each depth in place of joint ones,
    and half the strength: ``relevance-iba-detail-separate``, *depths × detail* in the texts, chosen
    on validation pictures of both worlds (``benchmarks/detail.csv``);
    ``capacity-product-squared-separate`` is its control.
    """
    net, _ = q.propagation(q.wb.depths[-1] if separate else q.wb.depths, **settings)
    depths = q.at_depths(separate, **settings)
    return relevance.detailed(net, q.images, q.targets, depths, composite, width, strength)


# --- controls ------------------------------------------------------------------------------------


@method("capacity-product-squared-separate", squared=True, separate=True)
@method("capacity-product-squared", squared=True)
@method("capacity-product-separate", separate=True)
@method("capacity-product")
def capacity_product(
    q: Query, separate: bool = False, squared: bool = False, **settings: object
) -> Tensor:
    """Control without LRP: the enlarged capacities of the joint bottlenecks, multiplied. Unsigned.

    The information of the cascade, without the pixels; no unit. ``…-squared``: the shallowest
    counts twice, in the place of LRP, so that there are as many factors as the cascade has.
    ``…-separate``: of a bottleneck by itself at each depth.
    """
    depths = q.at_depths(separate, **settings)
    factors = (*depths, depths.shallowest) if squared else depths
    return bottleneck.capacity_product((depth.nats for depth in factors), q.size)


@method("random")
def random(q: Query) -> Tensor:
    """Control: uniform noise, another for every image. Unsigned."""
    return torch.stack([_noise(image, q.seed) for image in q.images])


def _noise(image: Tensor, seed: int) -> Tensor:
    """Noise of the image's size, drawn from its content: the batch around it does not matter."""
    content = hashlib.blake2b(network.bytes_of(image), digest_size=6)
    draw = torch.Generator().manual_seed(int.from_bytes(content.digest(), "big") + seed)
    return torch.rand(image.shape[-2:], generator=draw).to(image.device)


@method("centre")
def centre(q: Query) -> Tensor:
    """Control: a Gaussian at the image's centre, a quarter of its width and height. Unsigned."""
    rows, columns = (torch.linspace(-2, 2, side, device=q.images.device) for side in q.size)
    bell = torch.exp(-(rows[:, None].square() + columns.square()) / 2)
    return bell.expand(len(q.images), -1, -1).clone()


@method("edges")
def edges(q: Query) -> Tensor:
    """Control: scikit-image's Sobel magnitude of the grey image. Unsigned."""
    from skimage.filters import sobel

    grey = q.wb.to_rgb(q.images).mean(-1).cpu().numpy()
    return torch.stack([torch.from_numpy(sobel(image)) for image in grey]).to(q.images)


@method("oracle")
def oracle(q: Query) -> Tensor:
    """Control: the mask itself, the best map there is by any measure against it. Unsigned.

    Raises
    ------
    ValueError
        No masks were given.
    """
    if q.masks is None:
        raise ValueError("the oracle is the mask itself: pass masks=")
    return q.masks.to(q.images)
