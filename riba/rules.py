"""LRP rules and composites that hand nats down without losing any.

A rule is a pure function ``rule(module, x, relevance) -> relevance below``; :class:`Rule` makes a
Zennit hook of it, and a composite says which layer gets which rule. Notation, after Bach et al.
2015: unit i below hands c_ij = x_i w_ij to unit j above, c⁺ and c⁻ are the positive and negative
contributions, z⁺_j = Σ_i c⁺_ij and z⁻_j = Σ_i c⁻_ij, and R_j is the relevance of unit j.

Three things differ from the rules that Zennit 0.5 and 1.0 ship:

- **Exact quotients.** Zennit divides by z + 10⁻⁶, so weak units leak. Here the divisor is z.
- **A unit that nothing feeds.** Capacity is not confined to active units, so relevance may start,
  or arrive, where no contribution exists: after ReLU a whole receptive field can be zero. Such a
  unit (its divisor is 10⁻⁶ or less of the largest in its image) spreads its relevance evenly over
  its receptive field, which is all that is known of where it came from. Zennit loses it.
- **One bias policy.** Biases stay out of every sum unless ``bias=True``: they take relevance that
  no pixel would ever get. (Zennit's γ-rule takes the sign of a unit with its bias and the divisor
  without; where the two disagree the divisor nears zero and relevance explodes.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zennit.composites import SpecialFirstLayerMapComposite
from zennit.core import Composite, Hook
from zennit.layer import Sum
from zennit.rules import Pass
from zennit.torchvision import ResNetCanonizer
from zennit.types import Activation, AvgPool, BatchNorm

FLOOR = 1e-6
"""A unit is fed by nothing when its sum is this share, or less, of the largest in its image."""


# --- contributions -------------------------------------------------------------------------------

Pair = tuple[Tensor, Tensor | None]
"""Inputs and weights whose products are contributions; None for a layer without weights."""


def _apply(module: nn.Module, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """What ``module`` computes with another weight and bias; a pool or a sum just runs."""
    if weight is None:
        return module.forward(x)
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    return module._conv_forward(x, weight, bias)


def _contributions(
    module: nn.Module, pairs: list[Pair], bias: Tensor | None = None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """z_j = Σ_i c_ij, and the function that takes s_j to Σ_j c_ij s_j, of the shape of the input.

    The second is inputs times gradient, as everywhere in LRP: no matrix is ever written down.
    """
    inputs = [x.detach().requires_grad_() for x, _ in pairs]
    with torch.enable_grad():
        z = _apply(module, inputs[0], pairs[0][1], bias)
        for x, (_, weight) in zip(inputs[1:], pairs[1:], strict=True):
            z = z + _apply(module, x, weight, None)

    def hand_down(s: Tensor) -> Tensor:
        gradients = torch.autograd.grad(z, inputs, s)
        return sum(x.detach() * gradient for x, gradient in zip(inputs, gradients, strict=True))

    return z.detach(), hand_down


def _of_one_sign(
    module: nn.Module, x: Tensor, sign: int, bias: bool
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Contributions that are positive (``sign`` 1) or negative (−1), the bias with its own sign."""
    weight, offset = _parameters(module, bias)
    if weight is None:
        return _contributions(module, [(_part(x, sign), None)])
    pairs = [(x.clamp(min=0), _part(weight, sign))]
    if x.min() < 0:  # behind a ReLU there is nothing below zero, and half the work is saved
        pairs.append((x.clamp(max=0), _part(weight, -sign)))
    return _contributions(module, pairs, None if offset is None else _part(offset, sign))


def _parameters(module: nn.Module, bias: bool) -> tuple[Tensor | None, Tensor | None]:
    weight, offset = getattr(module, "weight", None), getattr(module, "bias", None)
    return (
        None if weight is None else weight.detach(),
        offset.detach() if bias and offset is not None else None,
    )


def _part(x: Tensor, sign: int) -> Tensor:
    return x.clamp(min=0) if sign > 0 else x.clamp(max=0)


def _over_image(x: Tensor, statistic: Callable[[Tensor], Tensor]) -> Tensor:
    """One number per image, shaped so that it broadcasts against ``x``."""
    return statistic(x.flatten(1)).reshape(-1, *[1] * (x.ndim - 1))


def _unfed(z: Tensor) -> Tensor:
    """Units of which ``z`` is nothing but rounding, or nothing at all."""
    return z.abs() <= FLOOR * _over_image(z.abs(), partial(torch.amax, dim=1))


def _divide(relevance: Tensor, z: Tensor, unfed: Tensor) -> Tensor:
    """relevance / z, and 0 at ``unfed`` units."""
    return torch.where(unfed, 0.0, relevance / z.masked_fill(unfed, 1.0))


# --- the rules -----------------------------------------------------------------------------------


def z_plus_rule(module: nn.Module, x: Tensor, relevance: Tensor, *, bias: bool = False) -> Tensor:
    """z⁺: R_i = Σ_j c⁺_ij / z⁺_j · R_j. Never negative for R ≥ 0; conserves unless ``bias``.

    Montavon et al. 2017 (deep Taylor decomposition), as α1β0 for inputs of either sign.
    In a layer without weights (average pooling, residual sum) it is the positive-part rule
    R_i = Σ_j x⁺_i / Σ_i x⁺_i · R_j: the signed quotient there would make negative nats.

    Parameters
    ----------
    module
        ``nn.Conv2d``, ``nn.Linear``, an average pooling or Zennit's ``Sum``.
    x
        Its input.
    relevance
        R at its output, of the output's shape.
    bias
        Let positive biases take their share; it is lost.
    """
    z, hand_down = _of_one_sign(module, x, 1, bias)
    unfed = _unfed(z)
    return hand_down(_divide(relevance, z, unfed)) + _remainder(module, x, relevance, unfed)


def alpha_beta_rule(
    module: nn.Module,
    x: Tensor,
    relevance: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 1.0,
    bias: bool = False,
) -> Tensor:
    """αβ: R_i = Σ_j (α c⁺_ij / z⁺_j − β c⁻_ij / z⁻_j) R_j. Signed; conserves as α − β = 1.

    Bach et al. 2015, eq. 60. A unit with contributions of one sign only hands everything to
    those: the formula would give it α or −β instead of one. Parameters as :func:`z_plus_rule`.
    """
    positive, up = _of_one_sign(module, x, 1, bias)
    negative, down = _of_one_sign(module, x, -1, bias)
    no_positive, no_negative = _unfed(positive), _unfed(negative)
    excite = torch.where(no_negative, 1.0, alpha) * relevance
    inhibit = torch.where(no_positive, 1.0, -beta) * relevance
    below = up(_divide(excite, positive, no_positive))
    below = below + down(_divide(inhibit, negative, no_negative))
    return below + _remainder(module, x, relevance, no_positive & no_negative)


def gamma_rule(
    module: nn.Module, x: Tensor, relevance: Tensor, *, gamma: float = 0.25, bias: bool = False
) -> Tensor:
    """γ: R_i = Σ_j ((1 + γ) c⁺_ij + c⁻_ij) / ((1 + γ) z⁺_j + z⁻_j) · R_j. Signed; conserves.

    Montavon et al. 2019, section 10.2.1; for units with z⁺ + z⁻ < 0 it is the negative
    contributions that are favoured (Andéol et al. 2021), which keeps the divisor away from zero:
    it is never smaller than γ times the larger part. Parameters as :func:`z_plus_rule`.
    """
    positive, up = _of_one_sign(module, x, 1, bias)
    negative, down = _of_one_sign(module, x, -1, bias)
    excited = positive + negative >= 0
    favour, against = torch.where(excited, 1 + gamma, 1.0), torch.where(excited, 1.0, 1 + gamma)
    z = favour * positive + against * negative
    unfed = _unfed(positive - negative)
    share = _divide(relevance, z, unfed)
    return up(favour * share) + down(against * share) + _remainder(module, x, relevance, unfed)


def epsilon_rule(
    module: nn.Module, x: Tensor, relevance: Tensor, *, epsilon: float = 0.25, bias: bool = False
) -> Tensor:
    """ε: R_i = Σ_j c_ij / (z_j + ε sign(z_j) rms(z)) · R_j. Signed; absorbs a share at every unit.

    Bach et al. 2015, eq. 58, with ε in units of the root mean square of z over the image, as
    in the code that accompanies Montavon et al. 2019: weak units lose most.

    ``epsilon`` is at least 0; 0 is LRP-0. Other parameters as :func:`z_plus_rule`.
    """
    weight, offset = _parameters(module, bias)
    z, hand_down = _contributions(module, [(x, weight)], offset)
    size = _over_image(z.square(), partial(torch.mean, dim=1)).sqrt()
    z = z + epsilon * torch.where(z < 0, -1.0, 1.0) * size
    unfed = z == 0
    return hand_down(_divide(relevance, z, unfed)) + _remainder(module, x, relevance, unfed)


def flat_rule(module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """Flat: R_i = Σ_j [i feeds j] / |{i feeds j}| · R_j. Never negative for R ≥ 0; conserves.

    Lapuschkin et al. 2019: every input of the receptive field gets the same. All outputs of a
    group share it, so their relevance is added up first and one channel does the work.
    """
    weight = getattr(module, "weight", None)
    if weight is not None:
        groups = getattr(module, "groups", 1)
        weight = torch.ones_like(weight[:groups])
        axis = -1 if isinstance(module, nn.Linear) else -3
        relevance = relevance.unflatten(axis, (groups, -1)).sum(axis)
    z, hand_down = _contributions(module, [(torch.ones_like(x), weight)])
    return hand_down(_divide(relevance, z, z == 0))


def w_square_rule(module: nn.Module, x: Tensor, relevance: Tensor) -> Tensor:
    """w²: R_i = Σ_j w²_ij / Σ_i w²_ij · R_j. Never negative for R ≥ 0; conserves.

    Montavon et al. 2017, for inputs without bounds; the image itself plays no part.
    """
    pairs = [(torch.ones_like(x), module.weight.detach().square())]
    z, hand_down = _contributions(module, pairs)
    unfed = _unfed(z)
    return hand_down(_divide(relevance, z, unfed)) + _remainder(module, x, relevance, unfed)


def z_box_rule(
    module: nn.Module,
    x: Tensor,
    relevance: Tensor,
    *,
    low: Tensor | float,
    high: Tensor | float,
) -> Tensor:
    """zᴮ: c_ij = x_i w_ij − l_i w⁺_ij − h_i w⁻_ij, R_i = Σ_j c_ij / Σ_i c_ij · R_j. Conserves.

    Montavon et al. 2017, for pixels between ``low`` and ``high``, the values of black
    and white after normalisation (numbers, or 3×1×1). Never negative for R ≥ 0 and pixels that
    keep to their bounds.
    """
    weight = module.weight.detach()
    low, high = (torch.as_tensor(bound).to(x).expand_as(x) for bound in (low, high))
    pairs = [(x, weight), (-low, weight.clamp(min=0)), (-high, weight.clamp(max=0))]
    z, hand_down = _contributions(module, pairs)
    unfed = _unfed(z)
    return hand_down(_divide(relevance, z, unfed)) + _remainder(module, x, relevance, unfed)


def _remainder(module: nn.Module, x: Tensor, relevance: Tensor, unfed: Tensor) -> Tensor | float:
    """Relevance of the units that nothing feeds, spread evenly; no work where there are none."""
    return flat_rule(module, x, relevance * unfed) if unfed.any() else 0.0


class Rule(Hook):
    """A pure function ``rule(module, x, relevance)`` as a Zennit hook, for use in a composite."""

    def __init__(self, rule: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.rule = rule

    def copy(self) -> Rule:
        """A fresh hook of the same rule: Zennit registers a copy with every module."""
        return type(self)(self.rule)

    def forward(self, module: nn.Module, input: tuple[Tensor, ...], output: Tensor) -> None:
        """Remember what the module was given."""
        self.stored_tensors["input"] = input[0]

    def backward(
        self, module: nn.Module, grad_input: tuple, grad_output: tuple[Tensor, ...]
    ) -> tuple[Tensor]:
        """Relevance below in place of the gradient."""
        return (self.rule(module, self.stored_tensors["input"], grad_output[0]),)


# --- composites ----------------------------------------------------------------------------------


def z_plus(pixels: str | Hook = "flat", *, bias: bool = False) -> Composite:
    """The default: z⁺ everywhere. Never negative; conserves every nat.

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
    rule = partial(z_plus_rule, bias=bias)
    return _compose(rule, pixels, dense=rule)


def epsilon_plus(
    pixels: str | Hook = "flat", *, epsilon: float = 1e-6, bias: bool = False
) -> Composite:
    """ε in dense layers, z⁺ in convolutions (Kohlbrenner et al. 2020): plain LRP from a logit.

    Below a bottleneck, where layers are convolutions, it is :func:`z_plus`. Above, the ε keeps
    evidence against the class apart from evidence for it, so results are signed; the dense layers
    keep their biases, without which units near z = 0 would explode, and absorb some relevance.
    Parameters as :func:`z_plus` and :func:`epsilon_rule`.
    """
    return _compose(partial(z_plus_rule, bias=bias), pixels, dense=_dense(epsilon))


def alpha2_beta1(
    pixels: str | Hook = "flat", *, alpha: float = 2.0, beta: float = 1.0, bias: bool = False
) -> Composite:
    """αβ in convolutions (:func:`alpha_beta_rule`), ε in dense layers. Signed; conserves.

    Raises
    ------
    ValueError
        α − β is not 1, β is negative, or the name of the pixel rule is unknown.
    """
    if beta < 0 or abs(alpha - beta - 1) > 1e-6:
        raise ValueError(f"alpha − beta must be 1 with beta ≥ 0, got {alpha:g} and {beta:g}")
    return _compose(partial(alpha_beta_rule, alpha=alpha, beta=beta, bias=bias), pixels)


def gamma(pixels: str | Hook = "flat", *, gamma: float = 0.25, bias: bool = False) -> Composite:
    """γ in convolutions (:func:`gamma_rule`), ε in dense layers. Signed; conserves.

    Raises
    ------
    ValueError
        γ is not above 0, or the name of the pixel rule is unknown.
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, got {gamma:g}: use epsilon with 0 for LRP-0")
    return _compose(partial(gamma_rule, gamma=gamma, bias=bias), pixels)


def epsilon(pixels: str | Hook = "flat", *, epsilon: float = 0.25, bias: bool = False) -> Composite:
    """ε in every layer (:func:`epsilon_rule`). Signed; does not conserve: it absorbs.

    Raises
    ------
    ValueError
        ε is negative, or the name of the pixel rule is unknown.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be 0 or more, got {epsilon:g}")
    return _compose(partial(epsilon_rule, epsilon=epsilon, bias=bias), pixels)


def flat(pixels: str | Hook = "flat") -> Composite:
    """Flat in convolutions, pools and sums (:func:`flat_rule`). Never negative; conserves.

    Relevance spreads over receptive fields as geometry has it, whatever the image shows there
    (only max-pooling still looks): the control that says what the other rules add.
    """
    return _compose(flat_rule, pixels, sums=flat_rule)


def box(low: Tensor | float, high: Tensor | float) -> Rule:
    """The zᴮ-rule (:func:`z_box_rule`) for ``pixels=``: bounds of the *normalised* image.

    For the bundled network ``box(-2, 2)``; with torchvision's weights (0 − mean) / std and
    (1 − mean) / std, each 3×1×1.

    Raises
    ------
    ValueError
        ``low`` is not below ``high``.
    """
    if not (torch.as_tensor(low) < torch.as_tensor(high)).all():
        raise ValueError("low must be below high in every channel: bounds of the normalised image")
    return Rule(partial(z_box_rule, low=low, high=high))


COMPOSITES: dict[str, Callable[..., Composite]] = {
    "z+": z_plus,
    "alpha2-beta1": alpha2_beta1,
    "gamma": gamma,
    "epsilon": epsilon,
    "epsilon-plus": epsilon_plus,
    "flat": flat,
}
"""Composites by name; each takes ``pixels`` and has defaults for its own parameters."""

PIXELS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "flat": flat_rule,
    "z+": z_plus_rule,
    "w-square": w_square_rule,
}
"""Rules of the pixel layer by name; zᴮ needs bounds: :func:`box`."""


def composite(name: str | Composite | None = None, pixels: str | Hook = "flat") -> Composite:
    """A composite by name with its defaults, or a fresh one with the rules of ``name``.

    Fresh, because a Zennit composite belongs to one model at a time: registered with a second one
    it would leave the first with plain gradients, without a word.

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
        return Composite(module_map=name.module_map, canonizers=name.canonizers)
    name = "z+" if name is None else name
    if name not in COMPOSITES:
        raise ValueError(f"no composite {name!r}: choose one of {', '.join(COMPOSITES)}")
    return COMPOSITES[name](pixels)


def _compose(
    body: Callable[[nn.Module, Tensor, Tensor], Tensor],
    pixels: str | Hook,
    *,
    dense: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
    sums: Callable[[nn.Module, Tensor, Tensor], Tensor] = z_plus_rule,
) -> Composite:
    """Rules by type of layer. Max-pooling has none: its gradient hands all to the winner."""
    if isinstance(pixels, str):
        if pixels not in PIXELS:
            names = ", ".join(PIXELS)
            raise ValueError(f"no pixel rule {pixels!r}: choose one of {names}, or rules.box(…)")
        pixels = Rule(PIXELS[pixels])
    layer_map = [
        (Activation, Pass()),
        (BatchNorm, Pass()),  # merged into the convolution below it by the canonizer
        (Sum, Rule(sums)),
        (AvgPool, Rule(sums)),
        (nn.Conv2d, Rule(body)),
        (nn.Linear, Rule(dense or _dense(1e-6))),
    ]
    first_map = [(nn.Conv2d, pixels)]
    return SpecialFirstLayerMapComposite(layer_map, first_map, canonizers=[ResNetCanonizer()])


def _dense(epsilon: float) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """ε as published, bias included: R_j is near a multiple of z + b, and so is the divisor."""
    return partial(epsilon_rule, epsilon=epsilon, bias=True)
