"""Composites that conserve relevance on its way to the pixels, and the rules that Zennit lacks.

A composite assigns a rule to each layer. The rules are Zennit's, with biases left out of every sum:
a bias takes relevance that reaches no pixel (half of it, on the bundled network). Notation, after
Bach et al. 2015: unit i below contributes c_ij = x_i w_ij to unit j above, c⁺ and c⁻ are the
positive and negative contributions, z, z⁺ and z⁻ their sums over i, and R_j is the relevance of
unit j.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import zennit.rules
from torch import Tensor, nn
from zennit.composites import SpecialFirstLayerMapComposite
from zennit.core import BasicHook, Composite, Hook, ParamMod
from zennit.layer import Sum
from zennit.rules import Epsilon, Flat, NoMod, Pass, WSquare, ZBox
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear

SMALLEST = 1e-20
"""Sums of contributions below this count as none."""
STABILISER = 1e-12
"""Keeps quotients of one-signed sums finite. Zennit's default of 1e-6 leaks at small weights."""


# --- rules that Zennit lacks ---------------------------------------------------------------------


Pairs = Sequence[tuple[Tensor, Tensor]]
"""Inputs and weights whose products, added up, are the contributions c_ij."""


def shared(
    module: nn.Module, pairs: Pairs, relevance: Tensor, bias: int = 0
) -> tuple[Tensor, Tensor]:
    """Relevance shared in proportion to contributions ≥ 0: R_i = Σ_j c_ij / Σ_i c_ij · R_j.

    Parameters
    ----------
    module
        A layer with weights; or without, where the weights of a pair are None.
    pairs
        Inputs and weights whose contributions are added.
    relevance
        R_j, of the shape of the layer's output.
    bias
        1: the positive part of the bias takes its share, in the first pair; −1: the negative one.

    Returns
    -------
    R_i, of the shape of the input; and the relevance of units without any contribution.
    """
    inputs = [x.clone().requires_grad_() for x, _ in pairs]
    z = 0
    for place, (x, (_, weight)) in enumerate(zip(inputs, pairs, strict=True)):
        kept = bias if place == 0 else 0

        def changed(parameter: Tensor, name: str, w: Tensor = weight, b: int = kept) -> Tensor:
            return w if name == "weight" else (b * parameter).clamp(min=0)

        with ParamMod(changed)(module) as linear, torch.enable_grad():
            z = z + linear.forward(x)
    fed = z.detach() > SMALLEST
    gradients = torch.autograd.grad(z, inputs, torch.where(fed, relevance / z.detach(), 0.0))
    below = sum(x.detach() * g for x, g in zip(inputs, gradients, strict=True))
    return below, torch.where(fed, 0.0, relevance)


def _signs(x: Tensor, w: Tensor) -> Pairs:
    return (x.clamp(min=0), w.clamp(min=0)), (x.clamp(max=0), w.clamp(max=0))


def _sizes(x: Tensor, w: Tensor) -> Pairs:
    return ((x.abs(), w.abs()),)


def _evenly(x: Tensor, w: Tensor) -> Pairs:
    return ((torch.ones_like(x), torch.ones_like(w)),)


def _in_turn(module: nn.Module, ways: Iterable[Pairs], relevance: Tensor, bias: int = 0) -> Tensor:
    """Relevance :func:`shared` by the first contributions; of units without any by the next."""
    below = 0
    for pairs in ways:
        more, relevance = shared(module, pairs, relevance, bias)
        below, bias = below + more, 0
        if not relevance.any():
            break
    return below


def _by_positive(
    module: nn.Module, x: Tensor, w: Tensor, relevance: Tensor, bias: int = 0
) -> Tensor:
    """Relevance shared by c⁺_ij; where there is none by |c_ij|, and else evenly."""
    ways = (contributions(x, w) for contributions in (_signs, _sizes, _evenly))
    return _in_turn(module, ways, relevance, bias)


class _ByInput(BasicHook):
    """A rule that needs the module's input, which Zennit's hook stores, and no other of its parts.

    ``below`` takes the module, its input and the relevance of its output.
    """

    def backward(
        self, module: nn.Module, grad_input: tuple, grad_output: tuple[Tensor, ...]
    ) -> tuple[Tensor]:
        """Relevance at the module's input, where autograd expects the gradient."""
        return (self.below(module, self.stored_tensors["input"][0].detach(), grad_output[0]),)


class ZPlus(_ByInput):
    """z⁺: R_i = Σ_j c⁺_ij / z⁺_j · R_j, in layers with weights. Never negative; conserves.

    Montavon et al. 2017, as α1β0 for inputs of either sign. Zennit drops the relevance of a unit
    that has no positive contribution, as many have in depthwise and grouped convolutions (80 % of
    all relevance on EfficientNet-Lite). Here such a unit shares what it has by |c_ij|, and where
    even that is nothing evenly over its inputs.
    """

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.bias = bias

    def copy(self) -> ZPlus:
        """A rule for another module."""
        return type(self)(self.bias)

    def below(self, module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
        """Relevance at the module's input ``x``."""
        return _by_positive(module, x, module.weight.detach(), relevance, self.bias)


class AlphaBeta(ZPlus):
    """αβ: R_i = Σ_j ((1 + β) c⁺_ij / z⁺_j − β c⁻_ij / z⁻_j) · R_j. Signed; conserves.

    Bach et al. 2015, eq. 60. Zennit passes on (1 + β) times the relevance of a unit that has no
    negative contribution, and −β times that of one that has no positive one. Here such a unit
    shares the term that it lacks by |c_ij|, as in :class:`ZPlus`.
    """

    def __init__(self, beta: float = 1.0, bias: bool = False) -> None:
        super().__init__(bias)
        self.beta = beta

    def copy(self) -> AlphaBeta:
        """A rule for another module."""
        return type(self)(self.beta, self.bias)

    def below(self, module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
        """Relevance at the module's input ``x``."""
        w = module.weight.detach()
        helped = _by_positive(module, x, w, relevance, self.bias)
        opposed = _by_positive(module, x, -w, relevance, -self.bias)
        return (1 + self.beta) * helped - self.beta * opposed


class Gamma(zennit.rules.Gamma):
    """γ: R_i = Σ_j ((1 + γ) c⁺_ij + c⁻_ij) / ((1 + γ) z⁺_j + z⁻_j) · R_j. Signed; conserves.

    Montavon et al. 2019, section 10.2.1; where z_j < 0 it is the negative contributions that are
    favoured (Andéol et al. 2021). Zennit takes the sign of z_j *with* its bias and the divisor
    without: where the two disagree the divisor nears zero and relevance explodes (10⁴-fold on the
    bundled network). Here both are without, so the divisor is at least γ times its larger part.
    """

    def __init__(self, gamma: float = 0.25, zero_params: str | None = "bias") -> None:
        super().__init__(gamma, STABILISER, zero_params)
        self.param_modifiers[-1] = NoMod(zero_params=zero_params)

    def backward(
        self, module: nn.Module, grad_input: tuple, grad_output: tuple[Tensor, ...]
    ) -> tuple[Tensor]:
        """Relevance at the module's input, where autograd expects the gradient."""
        (below,) = super().backward(module, grad_input, grad_output)
        x, w = self.stored_tensors["input"][0].detach(), module.weight.detach()
        _, left = shared(module, _sizes(x, w), grad_output[0])  # of units without contributions
        return (below + shared(module, _evenly(x, w), left)[0] if left.any() else below,)


class PositivePart(_ByInput):
    """R_i = Σ_j x⁺_i / Σ_i x⁺_i · R_j, in layers without weights. Never negative; conserves.

    For residual sums and average pooling. Zennit's ``Norm`` has x_i in place of x⁺_i, which makes
    negative nats where a branch of a residual sum is negative. What no positive x_i feeds is
    shared evenly.
    """

    def below(self, module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
        """Relevance at the module's input ``x``."""
        ways = (((inputs, None),) for inputs in (x.clamp(min=0), torch.ones_like(x)))
        return _in_turn(module, ways, relevance)


def hand_down(rule: Hook, module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """Relevance at the input ``x`` of one module, from ``relevance`` at its output, by one rule."""
    x = x.detach().clone().requires_grad_()
    with Composite(module_map=lambda *_: rule).context(module), torch.enable_grad():
        return torch.autograd.grad(module(x), x, relevance)[0]


# --- composites ----------------------------------------------------------------------------------


def z_plus(pixels: str | Hook = "flat", *, bias: bool = False) -> Composite:
    """The default: z⁺, R_i = Σ_j c⁺_ij / z⁺_j · R_j. Never negative; conserves every nat.

    Montavon et al. 2017 (deep Taylor decomposition), as α1β0 for inputs of either sign.

    Parameters
    ----------
    pixels
        Rule of the first convolution: ``"flat"``, ``"z+"``, ``"w-square"``, or a Zennit rule, such
        as :func:`box` gives. Flat and w² blur over one kernel but give every pixel a chance; z⁺
        weighs pixels by how far they are from the mean colour, which is zero after normalisation.
    bias
        Let biases take their share, as the rules were first written; what they take is lost.

    Raises
    ------
    ValueError
        Unknown name of a pixel rule.
    """
    return compose(ZPlus(bias), pixels, dense=ZPlus(bias))


def epsilon_plus(
    pixels: str | Hook = "flat", *, epsilon: float = 1e-6, bias: bool = False
) -> Composite:
    """ε in dense layers, z⁺ in convolutions (Kohlbrenner et al. 2020): plain LRP from a logit.

    Below a bottleneck, where layers are convolutions, it is :func:`z_plus`. Above, the ε keeps
    evidence against the class apart from evidence for it, so results are signed; the dense layers
    keep their biases, without which units near z = 0 would explode, and lose some relevance.
    Parameters as :func:`z_plus` and :func:`epsilon`.
    """
    return compose(ZPlus(bias), pixels, dense=Epsilon(epsilon))


def alpha2_beta1(
    pixels: str | Hook = "flat", *, beta: float = 1.0, bias: bool = False
) -> Composite:
    """αβ in convolutions, ε in dense layers: R_i = Σ_j (α c⁺_ij / z⁺_j − β c⁻_ij / z⁻_j) R_j.

    With α = 1 + β (:class:`AlphaBeta`). Signed unless ``beta`` is 0; convolutions conserve.

    Raises
    ------
    ValueError
        β is negative, or the name of the pixel rule is unknown.
    """
    if not beta >= 0:
        raise ValueError(f"beta must be 0 or more, got {beta:g}")
    return compose(AlphaBeta(beta, bias), pixels)


def gamma(pixels: str | Hook = "flat", *, gamma: float = 0.25, bias: bool = False) -> Composite:
    """γ in convolutions (:class:`Gamma`), ε in dense layers. Signed; conserves.

    Raises
    ------
    ValueError
        γ is not above 0, or the name of the pixel rule is unknown.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma:g}: use epsilon with 0 for LRP-0")
    return compose(Gamma(gamma, None if bias else "bias"), pixels)


def epsilon(pixels: str | Hook = "flat", *, epsilon: float = 0.25, bias: bool = False) -> Composite:
    """ε in every layer: R_i = Σ_j c_ij / (z_j + ε sign(z_j)) · R_j. Signed; loses relevance.

    Bach et al. 2015, eq. 58. Units with |z_j| near ε or below lose most of what they have.

    Raises
    ------
    ValueError
        ε is negative, or the name of the pixel rule is unknown.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be 0 or more, got {epsilon:g}")
    return compose(Epsilon(epsilon, zero_params=None if bias else "bias"), pixels)


def flat(pixels: str | Hook = "flat") -> Composite:
    """Flat in convolutions, pools and sums: every input of a kernel gets the same. Conserves.

    Lapuschkin et al. 2019. Relevance spreads over receptive fields as geometry has it, whatever
    the image shows there (only max-pooling still looks): the control that says what the other
    rules add. Never negative.
    """
    return compose(Flat(STABILISER), pixels, sums=Flat(STABILISER))


def box(low: Tensor | float, high: Tensor | float) -> Hook:
    """The zᴮ-rule for ``pixels=``: bounds of the *normalised* image, numbers or 3×1×1.

    Montavon et al. 2017: c_ij = x_i w_ij − l_i w⁺_ij − h_i w⁻_ij, never negative for pixels that
    keep to their bounds; conserves. For the bundled network ``box(-2, 2)``; with torchvision's
    weights (0 − mean) / std and (1 − mean) / std.

    Raises
    ------
    ValueError
        ``low`` is not below ``high``.
    """
    low, high = (torch.as_tensor(bound).reshape(1, -1, 1, 1) for bound in (low, high))
    if not (low < high).all():
        raise ValueError("low must be below high in every channel: bounds of the normalised image")
    return ZBox(low, high, zero_params="bias")


COMPOSITES: dict[str, Callable[..., Composite]] = {
    "z+": z_plus,
    "alpha2-beta1": alpha2_beta1,
    "gamma": gamma,
    "epsilon": epsilon,
    "epsilon-plus": epsilon_plus,
    "flat": flat,
}
"""Composites by name; each takes ``pixels`` and has defaults for its own parameters."""

PIXELS: dict[str, Hook] = {
    "flat": Flat(STABILISER),
    "z+": ZPlus(),
    "w-square": WSquare(STABILISER, zero_params="bias"),
}
"""Rules of the pixel layer by name; zᴮ needs bounds: :func:`box`."""


def composite(name: str | Composite | None = None, pixels: str | Hook = "flat") -> Composite:
    """A composite by name with its defaults, or a fresh one with the rules of ``name``.

    Fresh, because a Zennit composite belongs to one model at a time: registered with a second one
    it would leave the first with plain gradients, without a word. Without canonizers, which the
    explicit form of a network does not need.

    Parameters
    ----------
    name
        A key of ``COMPOSITES``, None for ``"z+"``, or a Zennit composite.
    pixels
        As :func:`z_plus`; not used where ``name`` is a composite.

    Raises
    ------
    ValueError
        Unknown name; the message lists the choices.
    """
    if isinstance(name, Composite):
        return Composite(module_map=name.module_map)
    name = "z+" if name is None else name
    if name not in COMPOSITES:
        raise ValueError(f"no composite {name!r}: choose one of {', '.join(COMPOSITES)}")
    return COMPOSITES[name](pixels)


def compose(
    body: Hook, pixels: str | Hook = "flat", *, dense: Hook | None = None, sums: Hook | None = None
) -> Composite:
    """A composite by type of layer, from any Zennit rules.

    Parameters
    ----------
    body
        Rule of every convolution but the first.
    pixels
        Rule of the first convolution, as :func:`z_plus`.
    dense
        Rule of dense layers; None for ε = 10⁻⁶ with their biases.
    sums
        Rule of average pools and residual sums; None for :class:`PositivePart`.

    Activations and batch norms pass relevance on. Max-pooling needs no rule: its gradient
    passes all relevance to the winner.

    Raises
    ------
    ValueError
        Unknown name of a pixel rule.
    """
    if isinstance(pixels, str):
        if pixels not in PIXELS:
            names = ", ".join(PIXELS)
            raise ValueError(f"no pixel rule {pixels!r}: choose one of {names}, or rules.box(…)")
        pixels = PIXELS[pixels]
    layer_map = [
        ((Activation, BatchNorm), Pass()),
        ((Sum, AvgPool), sums or PositivePart()),
        (Convolution, body),
        (Linear, dense or Epsilon()),
    ]
    return SpecialFirstLayerMapComposite(layer_map, [(Convolution, pixels)])


def by_depth(lower: Composite, upper: Composite, upper_layers: Iterable[str]) -> Composite:
    """A composite with the rules of ``upper`` in ``upper_layers``, of ``lower`` in all others.

    Parameters
    ----------
    upper_layers
        Names of modules; modules inside them count as well. A name that the network does not have
        is ignored.
    """
    names = tuple(upper_layers)

    def module_map(context: dict, name: str, module: nn.Module) -> Hook | None:
        above = any(name == layer or name.startswith(f"{layer}.") for layer in names)
        return (upper if above else lower).module_map(context, name, module)

    return Composite(module_map=module_map)
