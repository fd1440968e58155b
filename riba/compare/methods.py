"""Every method by name, behind one signature: :data:`METHODS`.

``METHODS[name](wb, images, targets, *, masks=None, seed=0)`` takes

wb
    :class:``riba.workbench.Workbench`: network, bottleneck layer, its statistics.
images
    B×3×H×W, as the network expects them.
targets
    B class numbers, or B×classes bool for a set of classes each.
masks
    B×H×W bool; only ``oracle`` reads them.
seed
    Of whatever is random; a map does not depend on the batch around its image.

and returns B×H×W on the device of the images. How colours are pooled is fixed per method: where a
value has a sign it is summed with its sign, gradients without a product take their largest
magnitude. Signed maps are ranked with their sign: a negative pixel speaks against the class.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import warnings
from collections.abc import Callable, Sequence

import torch
from captum.attr import (
    IntegratedGradients,
    LayerAttribution,
    LayerGradCam,
    Occlusion,
)
from skimage.filters import sobel
from torch import Tensor, nn
from zennit.composites import LayerMapComposite
from zennit.core import Composite
from zennit.rules import ReLUGuidedBackprop

from riba.compare.deeplift import deeplift as deeplift_
from riba.method import bottleneck, relevance, rules
from riba.method.bottleneck import Information, InformationBottleneck, to_bits
from riba.method.explicit import dtype_of, explicit, frozen_copy
from riba.method.input_iba import InputIBA, InputInformation
from riba.method.joint import JointBottlenecks
from riba.method.network import (
    check_images,
    check_targets,
    class_logit,
    errors_in_words,
    find_layer,
    near_matches,
)
from riba.method.readout import scenenet_readout
from riba.method.statistics import FeatureStatistics
from riba.storage import Memory
from riba.workbench import Workbench

Method = Callable[..., Tensor]

METHODS: dict[str, Method] = {}
"""Methods and controls by name."""

UNITS = {"iba": "bits", "readout": "bits", "relevance": "nats", "lrp": "logits"}
"""Unit of a map by the first word of its method; the others have none."""

INCOMPLETE, MOST_STEPS = 0.05, 400
"""By how much Integrated Gradients may miss their sum before more steps are taken, and how many."""

AT_ONCE = 32
"""Images that pass through the network together."""


def find_method(name: str) -> Method:
    """The method called ``name``.

    Raises
    ------
    ValueError
        There is none; the message lists near matches.
    """
    if name not in METHODS:
        near = near_matches(name, METHODS)
        raise ValueError(f"no method {name!r}; {near} (riba.METHODS lists all)")
    return METHODS[name]


def unit(method: str) -> str:
    """Of a method's map; empty where it has none."""
    return UNITS.get(method.split("-")[0], "")


def _method(name: str) -> Callable[[Method], Method]:
    """Enter a function in :data:`METHODS`, with its arguments checked."""

    def enter(function: Method) -> Method:
        reads_masks = "masks" in inspect.signature(function).parameters

        @functools.wraps(function)
        @torch.inference_mode(False)
        def checked(
            wb: Workbench,
            images: Tensor,
            targets: Tensor | Sequence[int],
            *,
            masks: Tensor | None = None,
            seed: int = 0,
            **parameters: object,
        ) -> Tensor:
            given, images = images, images.to(wb.device).clone()  # no inference tensor
            check_images(wb.model, images)
            with torch.no_grad(), errors_in_words(images):  # one image tells how many classes
                logits = wb.model(images[:1]).expand(len(images), -1)
            targets = check_targets(targets, logits)
            if reads_masks:
                return function(wb, given, targets, masks=masks, seed=seed, **parameters)
            rows = zip(images.split(AT_ONCE), targets.split(AT_ONCE), strict=True)
            maps = [function(wb, *row, seed=seed, **parameters).detach() for row in rows]
            return torch.cat(maps).to(given.device)

        METHODS[name] = checked
        return checked

    return enter


class _Explained(nn.Module):
    """The logit to explain, as Captum wants it: images and targets in, B values out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        return class_logit(self.model(images), targets)


def _explained(wb: Workbench) -> _Explained:
    """On a private copy, because Captum hangs hooks into it, without in-place activations."""
    private = frozen_copy(wb.model)
    for module in private.modules():
        if getattr(module, "inplace", False):
            module.inplace = False
    return _Explained(private)


# --- gradients -----------------------------------------------------------------------------------


def _gradient(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    with torch.enable_grad():
        pixels = images.detach().clone().requires_grad_()
        return torch.autograd.grad(class_logit(model(pixels), targets).sum(), pixels)[0]


@_method("gradient")
def gradient(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """|∂ logit / ∂ x|, the largest over colours. Unsigned.

    Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks", ICLR workshop 2014.
    """
    return _gradient(wb.model, images, targets).abs().amax(1)


@_method("smoothgrad")
def smoothgrad(
    wb: Workbench,
    images: Tensor,
    targets: Tensor,
    *,
    seed: int = 0,
    samples: int = 25,
    noise: float = 0.15,
) -> Tensor:
    """The gradient averaged over noisy copies, then its largest magnitude over colours. Unsigned.

    Smilkov et al., "SmoothGrad", 2017: 25 copies, noise of 15 % of each image's range. Not
    Captum's, whose noise depends on the batch around an image. The copies of one image pass
    together, and no others: near a kink, rounding alone turns a gradient.
    """
    draw = torch.Generator().manual_seed(seed)
    unit = torch.randn(samples, *images.shape[1:], generator=draw).to(images)
    maps = []
    for image, target in zip(images, targets, strict=True):
        copies = image + noise * (image.max() - image.min()) * unit
        slopes = _gradient(wb.model, copies, target.expand(samples, *target.shape))
        maps.append(slopes.mean(0).abs().amax(0))
    return torch.stack(maps)


@_method("input-x-gradient")
def input_x_gradient(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """x · ∂ logit / ∂ x, summed over colours. Signed; x is 0 at mid-grey.

    Shrikumar et al., "Not Just a Black Box", 2016.
    """
    return (images * _gradient(wb.model, images, targets)).sum(1)


@_method("integrated-gradients")
def integrated_gradients(
    wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0, steps: int = 50
) -> Tensor:
    """Captum's Integrated Gradients from mid-grey, summed over colours. Signed.

    Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", ICML 2017: a map adds up
    to the difference of the logits of image and grey. Gauss-Legendre steps, 50 or twice as many
    until that holds within 5 %.

    Warns
    -----
    UserWarning
        It does not hold with 400 steps: says how far off the worst map is.
    """
    explained, maps = _explained(wb), torch.zeros_like(images)
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


@_method("deeplift")
def deeplift(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """DeepLIFT (rescale rule) against mid-grey, summed over colours. Signed; see there.

    Shrikumar, Greenside and Kundaje, "Learning Important Features Through Propagating Activation
    Differences", ICML 2017: a map adds up to the difference of the logits of image and grey. Of a
    set of classes it is the logits' mean by their softmax, held fixed. :mod:`.deeplift`.

    Raises
    ------
    ValueError
        The network has a step that DeepLIFT has no rule for.
    """
    net = explicit(wb.model, [], images)
    with torch.no_grad():
        (logits,) = net.parts[0](images)
        shares = relevance.class_shares(logits, targets)
    return deeplift_(net, images, torch.zeros_like(images), lambda z: (z * shares).sum(1)).sum(1)


@_method("guided-backprop")
def guided_backprop(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """Guided Backpropagation by Zennit's rule, the largest magnitude over colours. Unsigned.

    Springenberg et al., "Striving for Simplicity", ICLR workshop 2015.

    Raises
    ------
    ValueError
        The network has no ReLU: the map would be the plain gradient.
    """
    net = frozen_copy(explicit(wb.model, [], images).plain, share=True)
    relus = (nn.ReLU, nn.ReLU6)
    if not any(isinstance(module, relus) for module in net.modules()):
        raise ValueError(
            f"{type(wb.model).__name__} has no ReLU to guide: its map would be the plain gradient; "
            "use that"
        )
    with LayerMapComposite([(relus, ReLUGuidedBackprop())]).context(net):
        return _gradient(net, images.to(dtype_of(net, images)), targets).abs().amax(1)


@_method("grad-cam")
def grad_cam(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """Captum's Grad-CAM at the last layer with maps (``wb.top``), enlarged bilinearly. Unsigned.

    Selvaraju et al., "Grad-CAM", ICCV 2017; after its ReLU.
    """
    explained = _explained(wb)
    cam = LayerGradCam(explained, find_layer(explained.model, wb.top)).attribute(
        images, additional_forward_args=(targets,), relu_attributions=True
    )
    return LayerAttribution.interpolate(cam, tuple(images.shape[-2:]), "bilinear")[:, 0]


@_method("guided-grad-cam")
def guided_grad_cam(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """Guided-BP times Grad-CAM at ``wb.top``, the largest magnitude over colours. Unsigned.

    Selvaraju et al., "Grad-CAM", ICCV 2017.
    """
    guided = guided_backprop(wb, images, targets, seed=seed)
    return guided * grad_cam(wb, images, targets, seed=seed)


@_method("occlusion")
@torch.no_grad()
def occlusion(
    wb: Workbench,
    images: Tensor,
    targets: Tensor,
    *,
    seed: int = 0,
    window: int = 16,
    stride: int = 8,
) -> Tensor:
    """Captum's occlusion: the drop of the logit under a grey window, averaged per pixel. Signed.

    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014. Windows
    of 16×16 pixels every 8.
    """
    return Occlusion(_Explained(wb.model)).attribute(
        images,
        sliding_window_shapes=(images.shape[1], window, window),
        strides=(images.shape[1], stride, stride),
        additional_forward_args=(targets,),
        perturbations_per_eval=max(1, 2 * AT_ONCE // len(images)),
    )[:, 0]


# --- layer-wise relevance propagation ------------------------------------------------------------


@_method("lrp-epsilon-plus")
def lrp_epsilon_plus(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """LRP from the logit: ε in dense layers, z⁺ in convolutions, Flat at the pixels. Logits.

    Bach et al., PLOS ONE 2015; the composite of Kohlbrenner et al., IJCNN 2020. Of one sign per
    image, that of the logit.
    """
    return relevance.lrp(wb.model, images, targets, "epsilon-plus").sum(1)


@_method("lrp-epsilon-gamma-box")
def lrp_epsilon_gamma_box(
    wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0
) -> Tensor:
    """LRP from the logit: ε in dense layers, γ in convolutions, zᴮ at the pixels. Signed, logits.

    Bach et al., PLOS ONE 2015; Montavon et al. 2019 for γ, 2017 for zᴮ.
    """
    composite = rules.gamma(rules.box(*wb.bounds))
    return relevance.lrp(wb.model, images, targets, composite).sum(1)


# --- bottlenecks ---------------------------------------------------------------------------------

Found = Information | InputInformation | dict[str, Information]

_found: Memory[Found] = Memory(6)
"""What the last few bottlenecks found: several methods start from the same."""


def information(
    wb: Workbench, layer: str, images: Tensor, targets: Tensor, seed: int = 0
) -> Information:
    """What a bottleneck with its default settings finds at ``layer``; the last few are kept."""
    settings = {"seed": seed, "precision": wb.precision}
    single = InformationBottleneck(wb.model, layer, _statistics(wb, layer), **settings)
    return _once((wb, layer, seed), single, images, targets)


def joint_information(
    wb: Workbench, images: Tensor, targets: Tensor, seed: int = 0
) -> dict[str, Information]:
    """What joint bottlenecks at ``wb.depths`` find, the deepest first; the last few are kept."""
    statistics = [_statistics(wb, layer) for layer in wb.depths]
    bottlenecks = JointBottlenecks(wb.model, statistics, seed=seed, precision=wb.precision)
    return _once((wb, wb.depths, seed), bottlenecks, images, targets)


def input_information(
    wb: Workbench, images: Tensor, targets: Tensor, seed: int = 0, prior: str = "moments"
) -> InputInformation:
    """What InputIBA with its default settings finds; the last few are kept."""
    at_input = InputIBA(wb.model, wb.layer, wb.statistics, prior=prior, seed=seed)
    return _once((wb, prior, seed), at_input, images, targets)


def _once(
    settings: tuple,
    find: Callable[[Tensor, Tensor], Found],
    images: Tensor,
    targets: Tensor,
) -> Found:
    digest = hashlib.blake2b()
    for tensor in (images, targets):
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    key = (*settings, digest.digest())
    result = _found.get(key)
    return _found.put(key, find(images, targets)) if result is None else result


def _statistics(wb: Workbench, layer: str) -> FeatureStatistics | None:
    return wb.statistics if layer == wb.layer else _at(wb, layer).statistics


@functools.lru_cache(maxsize=8)
def _at(wb: Workbench, layer: str) -> Workbench:
    return wb.at(layer)


@_method("iba")
def iba(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """Per-sample IBA at ``wb.layer``: bits per pixel, the total preserved. Unsigned.

    Schulz et al., "Restricting the Flow", ICLR 2020: β 10, 10 steps, 10 copies, σ 1.
    """
    return information(wb, wb.layer, images, targets, seed).bits(tuple(images.shape[-2:]))


@_method("iba-joint")
def iba_joint(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """The shallowest of bottlenecks optimised together: bits per pixel, enlarged. Unsigned.

    Ours; see :class:`riba.JointBottlenecks`.
    """
    shallowest = list(joint_information(wb, images, targets, seed).values())[-1]
    return shallowest.bits(tuple(images.shape[-2:]))


def _iba_at(place: int) -> None:
    """Enter IBA at the ``place``-th of ``wb.depths``, 1 being the deepest."""

    @_method(f"iba-depth-{place}")
    def iba_at(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
        if len(wb.depths) < place:
            raise ValueError(f"this workbench has {len(wb.depths)} depths, not {place}")
        layer = wb.depths[place - 1]
        return information(wb, layer, images, targets, seed).bits(tuple(images.shape[-2:]))

    iba_at.__doc__ = f"IBA by itself at depth {place} of ``wb.depths``, 1 the deepest: bits."


for _place in (2, 3, 4):
    _iba_at(_place)


@_method("readout-iba")
def readout_iba(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """Readout IBA: bits per pixel from one forward pass; it does not read the targets. Unsigned.

    Schulz et al., "Restricting the Flow", ICLR 2020, section 3.4; see :mod:`riba.method.readout`.
    """
    nats = scenenet_readout(wb.model, wb.statistics)(images)
    return to_bits(nats, tuple(images.shape[-2:]))


@_method("input-iba")
def input_iba(
    wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0, prior: str = "moments"
) -> Tensor:
    """InputIBA: λ at the pixels averaged over colours, as published. Unsigned, 0–1.

    Zhang et al., NeurIPS 2021: β 20, 60 steps, 10 copies; see :mod:`riba.method.input_iba`.
    """
    return input_information(wb, images, targets, seed, prior).map


@_method("input-iba-nats")
def input_iba_nats(
    wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0, prior: str = "moments"
) -> Tensor:
    """InputIBA's information in place of its λ: nats beyond the prior, over colours. Unsigned.

    Not the published map, but the unit that the other bottlenecks are shown in.
    """
    return input_information(wb, images, targets, seed, prior).nats.sum(1)


@_method("relevance-iba")
def relevance_iba(
    wb: Workbench,
    images: Tensor,
    targets: Tensor,
    *,
    seed: int = 0,
    composite: str | Composite | None = None,
) -> Tensor:
    """Relevance-IBA from ``wb.layer`` by z⁺ with Flat at the pixels: nats per pixel. Unsigned.

    Chen et al., IEEE BigData 2023; see :class:`riba.RelevanceIBA`.
    """
    return _handed_down(wb, images, targets, seed, composite)


def _handed_down(
    wb: Workbench, images: Tensor, targets: Tensor, seed: int, composite: str | Composite | None
) -> Tensor:
    nats = information(wb, wb.layer, images, targets, seed).nats
    return relevance.descend(wb.model, wb.layer, images, nats, composite).sum(1)


@_method("relevance-iba-gamma")
def relevance_iba_gamma(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """Relevance-IBA by the γ rule (0.25) in place of z⁺: nats per pixel. Signed."""
    return _handed_down(wb, images, targets, seed, "gamma")


@_method("relevance-iba-alpha2-beta1")
def relevance_iba_alpha2_beta1(
    wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0
) -> Tensor:
    """Relevance-IBA by the α2β1 rule in place of z⁺: nats per pixel. Signed."""
    return _handed_down(wb, images, targets, seed, "alpha2-beta1")


@_method("relevance-iba-joint")
def relevance_iba_joint(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """Relevance-IBA from the shallowest of joint bottlenecks: nats per pixel. Unsigned.

    Ours: the publication's descent, of nats that every depth of ``wb.depths`` agreed on; see
    :class:`riba.JointBottlenecks`.
    """
    layer, found = list(joint_information(wb, images, targets, seed).items())[-1]
    return relevance.descend(wb.model, layer, images, found.nats).sum(1)


@_method("relevance-iba-cascade")
def relevance_iba_cascade(
    wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0
) -> Tensor:
    """The same, weighed by the information found at every depth: nats per pixel. Unsigned.

    Ours; see :func:`riba.relevance.cascade`.
    """
    found = joint_information(wb, images, targets, seed)
    return relevance.cascade(wb.model, images, found).sum(1)


# --- controls ------------------------------------------------------------------------------------


@_method("capacity-product")
def capacity_product(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """Control without LRP: the enlarged capacities of the joint bottlenecks, multiplied. Unsigned.

    What the cascade knows, without the pixels; no unit.
    """
    found = joint_information(wb, images, targets, seed).values()
    size = tuple(images.shape[-2:])
    return bottleneck.capacity_product((information.nats for information in found), size)


@_method("capacity-product-squared")
def capacity_product_squared(
    wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0
) -> Tensor:
    """Control: the cascade with its shallowest capacity enlarged in the place of LRP. Unsigned.

    The shallowest depth counts twice; as many factors as the cascade has, and none of them saw
    the pixels. No unit.
    """
    found = list(joint_information(wb, images, targets, seed).values())
    size = tuple(images.shape[-2:])
    return bottleneck.capacity_product((depth.nats for depth in (*found, found[-1])), size)


@_method("capacity-product-separate")
def capacity_product_separate(
    wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0
) -> Tensor:
    """Control without LRP: the product of capacities found at each depth by itself. Unsigned."""
    found = [information(wb, layer, images, targets, seed) for layer in wb.depths]
    size = tuple(images.shape[-2:])
    return bottleneck.capacity_product((information.nats for information in found), size)


@_method("random")
def random(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """Control: uniform noise, another for every image. Unsigned."""
    return torch.stack([_noise(image, seed) for image in images])


def _noise(image: Tensor, seed: int) -> Tensor:
    """Noise of the image's size, drawn from its content: the batch around it does not matter."""
    content = hashlib.blake2b(image.cpu().contiguous().numpy().data, digest_size=6)
    draw = torch.Generator().manual_seed(int.from_bytes(content.digest(), "big") + seed)
    return torch.rand(image.shape[-2:], generator=draw).to(image.device)


@_method("centre")
def centre(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """Control: a Gaussian at the image's centre, a quarter of its width and height. Unsigned."""
    rows, columns = (
        torch.linspace(-2, 2, side, device=images.device) for side in images.shape[-2:]
    )
    bell = torch.exp(-(rows[:, None].square() + columns.square()) / 2)
    return bell.expand(len(images), -1, -1).clone()


@_method("edges")
def edges(wb: Workbench, images: Tensor, targets: Tensor, *, seed: int = 0) -> Tensor:
    """Control: scikit-image's Sobel magnitude of the grey image. Unsigned."""
    grey = wb.to_rgb(images).mean(-1).cpu().numpy()
    return torch.stack([torch.from_numpy(sobel(image)) for image in grey]).to(images)


@_method("oracle")
def oracle(
    wb: Workbench,
    images: Tensor,
    targets: Tensor,
    *,
    seed: int = 0,
    masks: Tensor | None = None,
) -> Tensor:
    """Control: the mask itself, the best map there is by any measure against it. Unsigned.

    Raises
    ------
    ValueError
        No masks were given.
    """
    if masks is None:
        raise ValueError("the oracle is the mask itself: pass masks=")
    return masks.to(images)
