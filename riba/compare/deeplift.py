"""DeepLIFT with the rescale rule, on the explicit form of a network.

Shrikumar, Greenside and Kundaje, "Learning Important Features Through Propagating Activation
Differences", ICML 2017. Image and baseline pass together; multipliers are propagated by the chain
rule, in which every non-linear step has its difference quotient in place of its slope, so that
multiplier times difference of pixels adds up to the difference of the logits. Captum's DeepLIFT
misses that sum on networks with max-pooling behind a ReLU, and sees no functional activations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from riba.method.explicit import Explicit, dtype_of, kind, refusal, varying

Step = Callable[..., Tensor]
Rule = Callable[..., list[Tensor]]
SAME = 1e-6
"""Differences below this are none: the slope takes the place of the quotient."""
INCOMPLETE = 0.01
"""Share of the logits by which contributions may miss their sum before they are refused."""


def deeplift(net: Explicit, images: Tensor, logit: Callable[[Tensor], Tensor]) -> Tensor:
    """Contributions of the pixels, B×3×H×W, to the difference of the logits from mid-grey's (0).

    Parameters
    ----------
    net
        The network; its layers do not matter.
    images
        B×3×H×W.
    logit
        What is explained: B×classes to B values, linear in the logits.

    Raises
    ------
    ValueError
        The network has a step without a rule, as layer norms and attention, and names it; or the
        contributions do not add up to the difference.
    """
    images = images.to(dtype_of(net.plain, images))
    with torch.inference_mode(False), torch.enable_grad():
        both = torch.cat([images, torch.zeros_like(images)]).detach().requires_grad_()
        here, there = map(logit, _Interpreter(net.plain).run(both).chunk(2))
        (multiplier,) = torch.autograd.grad(here.sum(), both)
    contributions = multiplier.chunk(2)[0] * images
    missed = (contributions.sum((1, 2, 3)) - (here - there)).abs()
    if not (missed <= INCOMPLETE * (here.abs() + there.abs()) + SAME).all():
        raise ValueError(
            f"DeepLIFT of {net.network} does not add up to the difference of the logits: it has a "
            "step that works across images or places; use another method"
        )
    return contributions


class _Interpreter(fx.Interpreter):
    """Runs a graph with images and baselines in one batch, under the rules of DeepLIFT."""

    def run_node(self, node: fx.Node) -> object:
        if not node.meta["varies"] or node.op in ("placeholder", "output"):
            return super().run_node(node)
        what = kind(self.module, node)
        if what in (None, "norm") or (what in RULES and node.meta["shape"] is None):
            raise refusal(node, method="DeepLIFT")
        if what not in RULES:
            return super().run_node(node)
        inputs = varying(node)

        def step(*values: Tensor) -> Tensor:
            known = dict(zip(inputs, values, strict=True))
            args, named = fx.node.map_arg(
                (node.args, node.kwargs), lambda n: known.get(n, self.env.get(n))
            )
            return getattr(self, node.op)(node.target, args, named)

        return _Step.apply(RULES[what], step, *(self.env[source] for source in inputs))


class _Step(torch.autograd.Function):
    """A step whose backward pass propagates multipliers by a rule; only the images' half has any.

    A rule takes the step, the images' multiplier of its output, the output and the inputs, and
    returns the images' multiplier of each input.
    """

    @staticmethod
    def forward(ctx: object, rule: Rule, step: Step, *inputs: Tensor) -> Tensor:
        output = step(*inputs)
        ctx.rule, ctx.step = rule, step
        ctx.save_for_backward(output, *inputs)
        return output

    @staticmethod
    def backward(ctx: object, multiplier: Tensor) -> tuple:
        below = ctx.rule(ctx.step, multiplier.chunk(2)[0], *ctx.saved_tensors)
        return None, None, *(torch.cat([half, torch.zeros_like(half)]) for half in below)


def _rescale(step: Step, multiplier: Tensor, output: Tensor, x: Tensor) -> list[Tensor]:
    """Elementwise: (f(x) − f(b)) / (x − b); the slope where x = b."""
    with torch.enable_grad():
        image = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(step(image).sum(), image)
    (here, there), (above, base) = x.chunk(2), output.chunk(2)
    same = (here - there).abs() < SAME
    quotient = (above - base) / (here - there).masked_fill(same, 1)
    return [multiplier * torch.where(same, slope.chunk(2)[0], quotient)]


def _maximum(step: Step, multiplier: Tensor, output: Tensor, x: Tensor) -> list[Tensor]:
    """Max-pooling: what exceeds the baseline is the image's winner's, what falls short the other's.

    With M = max(y_x, y_b): (M − y_b) goes to the winner among the image's values and (y_x − M) to
    that among the baseline's; neither divides by less than it passes on (as in SHAP's DeepLIFT).
    """
    (here, there), (above, base) = x.chunk(2), output.chunk(2)
    largest = torch.maximum(above, base)
    passed = torch.cat([(largest - base) * multiplier, (above - largest) * multiplier])
    with torch.enable_grad():
        both = x.detach().requires_grad_()
        (winners,) = torch.autograd.grad(step(both), both, passed)
    winners = sum(winners.chunk(2))
    return [torch.where(winners == 0, 0.0, winners / (here - there))]


def _product(
    _step: Step, multiplier: Tensor, _output: Tensor, a: Tensor, b: Tensor
) -> list[Tensor]:
    """Of two signals: each by its difference, times the mean of the other."""
    return [
        (multiplier * (y.chunk(2)[0] + y.chunk(2)[1]) / 2).sum_to_size(x.chunk(2)[0].shape)
        for x, y in ((a, b), (b, a))
    ]


RULES = {"activation": _rescale, "max": _maximum, "product": _product}
"""Rules of the steps that are not linear."""
