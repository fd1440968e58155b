"""Rules and composites against plain matrix algebra, which is slow and cannot be misread."""

import pytest
import torch
import zennit.rules
from torch import nn
from zennit.layer import Sum

from riba.method import rules

LAYERS = {
    "convolution": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 7, 7)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5)),
    "dense": (lambda: nn.Linear(12, 5), (12,)),
}
POOLS = {
    "average": (lambda: nn.AvgPool2d(3, stride=2, padding=1), (2, 6, 6)),
    "adaptive": (lambda: nn.AdaptiveAvgPool2d(2), (2, 5, 5)),
    "sum": (Sum, (2, 4, 4, 2)),
}
SLOW = {}  # rules in plain matrix algebra: (contributions c[b, j, i], R[b, j]) -> R[b, i]


def slow(function):
    SLOW[function.__name__] = function
    return function


@slow
def z_plus(c, relevance):
    """A unit that no positive contribution feeds shares by magnitudes."""
    plus = c.clamp(min=0)
    return proportional(torch.where(plus.sum(2, keepdim=True) == 0, c.abs(), plus), relevance)


@slow
def alpha_beta(c, relevance):
    return 2 * z_plus(c, relevance) - z_plus(-c, relevance)


@slow
def gamma(c, relevance):
    favoured = torch.where(c.sum(2, keepdim=True) >= 0, c.clamp(min=0), c.clamp(max=0))
    return proportional(c + 0.25 * favoured, relevance)


@slow
def epsilon(c, relevance):
    z = c.sum(2)
    return torch.einsum("bji,bj->bi", c, relevance / (z + 0.25 * z.sign()))


def proportional(c, relevance):
    z = c.sum(2, keepdim=True)
    return torch.einsum("bji,bj->bi", torch.where(z == 0, 0, c / z), relevance)


def of(composite):
    """The rule that a composite gives to the second convolution that it meets: its body."""
    context = {}
    composite.module_map(context, "first", nn.Conv2d(1, 1, 1))
    return composite.module_map(context, "second", nn.Conv2d(1, 1, 1))


RULES = {
    "z_plus": of(rules.z_plus()),
    "alpha_beta": of(rules.alpha2_beta1()),
    "gamma": of(rules.gamma()),
    "epsilon": of(rules.epsilon()),
}


def matrix(module, shape):
    """The bias-free layer as a matrix of outputs × inputs, one unit vector at a time."""
    bias = module.bias.data.clone() if getattr(module, "bias", None) is not None else None
    if bias is not None:
        module.bias.data.zero_()
    inputs = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        w = module(inputs).flatten(1).T
    if bias is not None:
        module.bias.data = bias
    return w


def case(make, shape, positive=False):
    """A layer with random weights and biases, its matrix, an input and relevance above."""
    torch.manual_seed(1)
    module = make().double()
    x = torch.randn(2, *shape, dtype=torch.float64)
    x = x.clamp(min=0) if positive else x
    return module, x, torch.rand_like(module(x)), matrix(module, shape)


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("layer", LAYERS)
def test_rule_of_the_body_is_its_formula_in_matrix_algebra(layer, name, positive):
    module, x, relevance, w = case(*LAYERS[layer], positive)
    fast = rules.hand_down(RULES[name], module, x, relevance)
    expected = SLOW[name](w * x.flatten(1)[:, None], relevance.flatten(1))
    torch.testing.assert_close(fast.flatten(1), expected, rtol=1e-3, atol=1e-4)
    if name != "epsilon":
        total = relevance.flatten(1).sum(1)
        torch.testing.assert_close(fast.flatten(1).sum(1), total, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("layer", POOLS)
def test_pools_and_sums_share_by_positive_parts(layer):
    module, x, relevance, w = case(*POOLS[layer])
    x[0] = -x[0].abs()  # nothing positive in the first image: shared evenly
    c = w * x.flatten(1)[:, None].clamp(min=0)
    c = torch.where(c.sum(2, keepdim=True) > 0, c, w)
    fast = rules.hand_down(rules.PositivePart(), module, x, relevance)
    torch.testing.assert_close(fast.flatten(1), proportional(c, relevance.flatten(1)))
    assert (fast >= 0).all()
    torch.testing.assert_close(fast.flatten(1).sum(1), relevance.flatten(1).sum(1))


@pytest.mark.parametrize("pixels", ["flat", "w-square"])
def test_rules_that_ignore_the_picture_share_by_weights_alone(pixels):
    module, x, relevance, w = case(*LAYERS["convolution"])
    ones = nn.Conv2d(3, 4, 3, padding=1).double()
    ones.weight.data.fill_(1.0)
    c = matrix(ones, (3, 6, 5)) if pixels == "flat" else w.square()
    fast = rules.hand_down(rules.PIXELS[pixels], module, x, relevance).flatten(1)
    expected = proportional(c.expand(2, -1, -1), relevance.flatten(1))
    torch.testing.assert_close(fast, expected, rtol=1e-4, atol=1e-5)


def test_z_box_is_its_formula_in_matrix_algebra():
    module, x, relevance, w = case(*LAYERS["convolution"])
    low = torch.tensor([-3.0, -4.0, -5.0], dtype=torch.float64).reshape(3, 1, 1)
    high = torch.tensor(3.0, dtype=torch.float64)
    x = x.clamp(-3, 3)
    c = w * x.flatten(1)[:, None] - 3.0 * w.clamp(max=0)
    c = c - w.clamp(min=0) * low.expand(3, 6, 5).reshape(1, 1, -1)
    fast = rules.hand_down(rules.box(low, high), module, x, relevance).flatten(1)
    torch.testing.assert_close(fast, proportional(c, relevance.flatten(1)), rtol=1e-4, atol=1e-5)
    assert (fast >= 0).all()


def test_bias_takes_its_share_only_when_asked():
    module, x, relevance, w = case(*LAYERS["dense"])
    module.bias.data = torch.tensor([3.0, -3.0, 1.0, 0.0, 2.0], dtype=torch.float64)
    c = (w * x[:, None]).clamp(min=0)
    z = c.sum(2) + module.bias.clamp(min=0)
    expected = torch.einsum("bji,bj->bi", c, relevance / z)
    below = rules.hand_down(of(rules.z_plus(bias=True)), module, x, relevance)
    torch.testing.assert_close(below, expected, rtol=1e-4, atol=1e-5)
    assert (below.sum(1) < relevance.sum(1)).all()


def test_gamma_is_zennits_without_biases_and_stays_bounded_with_them():
    module, x, relevance, _ = case(*LAYERS["convolution"], positive=True)
    module.bias.data.zero_()
    theirs = rules.hand_down(zennit.rules.Gamma(0.25, 1e-12), module, x, relevance)
    torch.testing.assert_close(rules.hand_down(rules.Gamma(0.25), module, x, relevance), theirs)
    # z⁺ = 1.0 and z⁻ = −1.2499 cancel in (1 + γ) z⁺ + z⁻; the bias makes the unit active
    unit = nn.Linear(2, 1)
    unit.weight.data, unit.bias.data = torch.tensor([[1.0, -1.2499]]), torch.tensor([1.0])
    x, relevance = torch.ones(1, 2), torch.ones(1, 1)
    theirs = rules.hand_down(zennit.rules.Gamma(0.25, zero_params="bias"), unit, x, relevance)
    assert theirs.abs().max() > 1000
    ours = rules.hand_down(rules.Gamma(0.25), unit, x, relevance)
    assert ours.abs().max() <= (1 + 0.25) / 0.25 * 1.25
    torch.testing.assert_close(ours.sum(), torch.tensor(1.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_alpha_beta_is_zennits_where_every_unit_has_contributions_of_both_signs(bias):
    module, x, relevance, _ = case(*LAYERS["dense"])
    theirs = zennit.rules.AlphaBeta(2, 1, 1e-9, None if bias else "bias")
    found = (rules.hand_down(r, module, x, relevance) for r in (rules.AlphaBeta(1.0, bias), theirs))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_any_beta_of_the_alpha_beta_rule_is_accepted():
    for beta in torch.logspace(-2, 1, 31).tolist():
        rules.alpha2_beta1(beta=beta)


# --- composites ----------------------------------------------------------------------------------


def test_unknown_names_and_impossible_parameters_are_refused_in_words():
    with pytest.raises(ValueError, match=r"no composite 'zplus'.*z\+, alpha2-beta1, gamma"):
        rules.composite("zplus")
    with pytest.raises(ValueError, match=r"no pixel rule 'zbox'.*flat, z\+, w-square"):
        rules.composite("z+", pixels="zbox")
    with pytest.raises(ValueError, match="beta must be 0 or more"):
        rules.alpha2_beta1(beta=-1)
    with pytest.raises(ValueError, match="gamma must be above 0"):
        rules.gamma(gamma=0)
    with pytest.raises(ValueError, match="epsilon must be 0 or more"):
        rules.epsilon(epsilon=-1)
    with pytest.raises(ValueError, match="low must be below high"):
        rules.box(1, 0)


def test_rules_by_depth_are_each_in_their_place():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), block)
    lower, upper = rules.gamma("w-square", gamma=0.3), rules.epsilon("flat", epsilon=0.4)
    mixed = rules.by_depth(lower, upper, ["4"])
    with mixed.context(net):
        hooks = {name: module for name, module in net.named_modules() if module._forward_hooks}
        found = {h.__class__.__name__ for h in mixed.hook_refs}
    assert {"0", "2", "4.0"} <= set(hooks)
    assert {"WSquare", "Gamma", "Epsilon"} <= found
    assert "Flat" not in found  # the pixels belong to the lower rules
    x = torch.rand(2, 3, 5, 5)
    start = net(x).detach()
    middle = net[:4](x).detach()
    step = rules.hand_down(zennit.rules.Epsilon(0.4, zero_params="bias"), block[0], middle, start)
    with lower.context(net[:4]):
        x.requires_grad_()
        (expected,) = torch.autograd.grad(net[:4](x), x, step)
    with mixed.context(net):
        (got,) = torch.autograd.grad(net(x), x, start)
    torch.testing.assert_close(got, expected)


def test_a_composite_given_by_the_user_is_never_registered_itself():
    given = rules.z_plus()
    fresh = rules.composite(given)
    assert fresh is not given
    with fresh.context(nn.Sequential(nn.Conv2d(3, 2, 1))):
        assert fresh.handles
        assert not given.handles


@pytest.mark.parametrize("pixels", [*rules.PIXELS, rules.box(-5, 5)])
@pytest.mark.parametrize("name", rules.COMPOSITES)
def test_composites_keep_their_promises(name, pixels):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Dropout(),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.ReLU(),
    ).eval()
    net[1].running_mean.normal_()
    net[1].weight.data.normal_()
    net.requires_grad_(False)
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    with rules.composite(name, pixels).context(net):
        top = net(x)
        start = torch.rand_like(top)
        (below,) = torch.autograd.grad(top, x, start)
    arrived = below.sum((1, 2, 3)) / start.sum((1, 2, 3))
    if name in ("z+", "epsilon-plus", "flat"):
        assert (below >= 0).all()
    if name == "epsilon":
        assert (arrived < 0.95).all()
    else:
        torch.testing.assert_close(arrived, torch.ones(2), rtol=0, atol=1e-4)
