"""Every rule against the same rule in plain matrix algebra, and composites as wholes."""

from functools import partial

import pytest
import torch
from torch import nn
from zennit.core import Composite
from zennit.layer import Sum
from zennit.rules import AlphaBeta, Flat, Gamma, WSquare, ZBox, ZPlus

from riba import rules

LAYERS = {
    "convolution": (lambda: nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 7, 7)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 5)),
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
def z_plus(c, relevance, feeds):
    return proportional(c.clamp(min=0), relevance, feeds)


@slow
def alpha_beta(c, relevance, feeds, alpha=2.0, beta=1.0):
    result = torch.zeros(c.shape[0], c.shape[2], dtype=c.dtype)
    for b, j in torch.cartesian_prod(*map(torch.arange, relevance.shape)).tolist():
        positive, negative = c[b, j].clamp(min=0), c[b, j].clamp(max=0)
        if positive.sum() > 0 and negative.sum() < 0:
            share = alpha * positive / positive.sum() - beta * negative / negative.sum()
        elif c[b, j].any():
            share = c[b, j] / c[b, j].sum()
        else:
            share = feeds[j] / feeds[j].sum()
        result[b] += share * relevance[b, j]
    return result


@slow
def gamma(c, relevance, feeds, gamma=0.25):
    favoured = torch.where(c.sum(2, keepdim=True) >= 0, c.clamp(min=0), c.clamp(max=0))
    return proportional(c + gamma * favoured, relevance, feeds)


@slow
def epsilon(c, relevance, feeds, epsilon=0.25):
    z = c.sum(2)
    size = z.square().mean(1, keepdim=True).sqrt()
    divisor = z + epsilon * torch.where(z < 0, -1, 1) * size
    return torch.einsum("bji,bj->bi", c, relevance / divisor)


@slow
def flat(c, relevance, feeds):
    return relevance @ (feeds / feeds.sum(1, keepdim=True))


def proportional(c, relevance, feeds):
    unfed = (c == 0).all(dim=2, keepdim=True)
    c = torch.where(unfed, feeds, c)
    return torch.einsum("bji,bj->bi", c / c.sum(2, keepdim=True), relevance)


def matrix(module, shape, weight=None):
    """The bias-free layer as a matrix of outputs × inputs, one unit vector at a time."""
    linear = [name for name, _ in module.named_parameters()]
    if linear:
        module.weight.data = module.weight.data if weight is None else weight
        module.bias.data = torch.zeros_like(module.bias)
    inputs = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).reshape(-1, *shape)
    with torch.no_grad():
        return module(inputs).flatten(1).T


def case(make, shape, positive=False):
    """A layer with random weights and biases, its matrices, an input and relevance above."""
    torch.manual_seed(1)
    module = make().double()
    x = torch.randn(2, *shape, dtype=torch.float64)
    x = x.clamp(min=0) if positive else x
    relevance = torch.rand_like(module(x))
    copies = make().double(), make().double()
    copies[0].load_state_dict(module.state_dict())
    w = matrix(copies[0], shape)
    ones = torch.ones_like(module.weight) if hasattr(module, "weight") else None
    feeds = (matrix(copies[1], shape, ones) > 0).double()
    return module, x, relevance, w, feeds


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("name", SLOW)
@pytest.mark.parametrize("layer", LAYERS)
def test_rule_is_its_formula_in_matrix_algebra(layer, name, positive):
    module, x, relevance, w, feeds = case(*LAYERS[layer], positive)
    fast = getattr(rules, f"{name}_rule")(module, x, relevance)
    expected = SLOW[name](w * x.flatten(1)[:, None], relevance.flatten(1), feeds)
    torch.testing.assert_close(fast.flatten(1), expected)
    if name != "epsilon":
        torch.testing.assert_close(fast.flatten(1).sum(1), relevance.flatten(1).sum(1))


@pytest.mark.parametrize("name", ["z_plus", "flat"])
@pytest.mark.parametrize("layer", POOLS)
def test_pools_and_sums_share_by_positive_parts(layer, name):
    module, x, relevance, w, feeds = case(*POOLS[layer])
    x[0] = -x[0].abs()  # nothing positive in the first image: shared evenly
    fast = getattr(rules, f"{name}_rule")(module, x, relevance)
    expected = SLOW[name](w * x.flatten(1)[:, None], relevance.flatten(1), feeds)
    torch.testing.assert_close(fast.flatten(1), expected)
    assert (fast >= 0).all()


def test_w_square_is_its_formula_in_matrix_algebra():
    module, x, relevance, w, feeds = case(*LAYERS["convolution"])
    expected = proportional((w**2).expand(2, -1, -1), relevance.flatten(1), feeds)
    fast = rules.w_square_rule(module, x, relevance).flatten(1)
    torch.testing.assert_close(fast, expected)


def test_z_box_is_its_formula_in_matrix_algebra():
    module, x, relevance, w, feeds = case(*LAYERS["convolution"])
    low = torch.tensor([-3.0, -4.0, -5.0]).reshape(3, 1, 1)
    x = x.clamp(-3, 3)
    c = w * x.flatten(1)[:, None] - 3.0 * w.clamp(max=0)
    c = c - w.clamp(min=0) * low.expand(3, 6, 5).reshape(1, 1, -1)
    fast = rules.z_box_rule(module, x, relevance, low=low, high=3.0).flatten(1)
    torch.testing.assert_close(fast, proportional(c, relevance.flatten(1), feeds))
    assert (fast >= 0).all()


@pytest.mark.parametrize("rule", ["z_plus", "alpha_beta", "gamma", "flat"])
def test_relevance_of_units_that_nothing_feeds_is_spread_evenly(rule):
    module, x, relevance, _w, feeds = case(*LAYERS["convolution"], positive=True)
    x[:, :, :4] = 0
    rule = getattr(rules, f"{rule}_rule")
    below = rule(module, x, relevance)
    torch.testing.assert_close(below.sum((1, 2, 3)), relevance.sum((1, 2, 3)))
    start = torch.zeros_like(relevance)
    start[:, :, 1] = relevance[:, :, 1]  # looks at rows 0 to 2: all zero
    expected = flat(None, start.flatten(1), feeds)
    torch.testing.assert_close(rule(module, x, start).flatten(1), expected)


def test_bias_takes_its_share_only_when_asked():
    module, x, relevance, w, _feeds = case(*LAYERS["dense"])
    module.bias.data = torch.tensor([3.0, -3.0, 1.0, 0.0, 2.0], dtype=torch.float64)
    c = (w * x[:, None]).clamp(min=0)
    z = c.sum(2) + module.bias.clamp(min=0)
    expected = torch.einsum("bji,bj->bi", c, relevance / z)
    below = rules.z_plus_rule(module, x, relevance, bias=True)
    torch.testing.assert_close(below, expected)
    assert (below.sum(1) < relevance.sum(1)).all()
    below = rules.z_plus_rule(module, x, relevance)
    torch.testing.assert_close(below.sum(1), relevance.sum(1))


def test_unfed_is_judged_per_image_so_a_map_does_not_depend_on_its_batch():
    module, x, relevance, _w, _feeds = case(*LAYERS["convolution"])
    x = torch.cat([x[:1], 1e9 * x[1:]])
    together = rules.z_plus_rule(module, x, relevance)
    torch.testing.assert_close(together[:1], rules.z_plus_rule(module, x[:1], relevance[:1]))


def through(hook, module, x, relevance):
    """One layer's rule, run by Zennit's machinery."""
    composite = Composite(module_map=lambda ctx, name, layer: hook)
    x = x.clone().requires_grad_()
    with composite.context(module):
        return torch.autograd.grad(module(x), x, relevance)[0]


@pytest.mark.parametrize(
    ("ours", "zennit"),
    [
        (rules.z_plus_rule, ZPlus(1e-12, zero_params="bias")),
        (rules.alpha_beta_rule, AlphaBeta(2, 1, 1e-12, zero_params="bias")),
        (rules.flat_rule, Flat(1e-12)),
        (rules.w_square_rule, WSquare(1e-12, zero_params="bias")),
        (
            partial(rules.z_box_rule, low=-5.0, high=5.0),
            ZBox(torch.tensor(-5.0), torch.tensor(5.0), 1e-12, zero_params="bias"),
        ),
    ],
)
def test_agrees_with_zennit_where_every_unit_is_fed(ours, zennit):
    module, x, relevance, _w, _feeds = case(*LAYERS["convolution"])
    expected = through(zennit, module, x, relevance)
    torch.testing.assert_close(through(rules.Rule(ours), module, x, relevance), expected)
    torch.testing.assert_close(ours(module, x, relevance), expected)


def test_gamma_agrees_with_zennit_without_biases_and_stays_bounded_with_them():
    module, x, relevance, _w, _feeds = case(*LAYERS["convolution"], positive=True)
    module.bias.data.zero_()
    zennit = Gamma(0.25, 1e-12)
    expected = through(zennit, module, x, relevance)
    torch.testing.assert_close(rules.gamma_rule(module, x, relevance), expected)
    # z⁺ = 1.0 and z⁻ = −1.25 cancel in (1 + γ) z⁺ + z⁻; the bias makes the unit active
    unit = nn.Linear(2, 1)
    unit.weight.data, unit.bias.data = torch.tensor([[1.0, -1.2499]]), torch.tensor([1.0])
    x, relevance = torch.ones(1, 2), torch.ones(1, 1)
    assert through(Gamma(0.25, zero_params="bias"), unit, x, relevance).abs().max() > 1000
    ours = rules.gamma_rule(unit, x, relevance)
    assert ours.abs().max() <= (1 + 0.25) / 0.25
    torch.testing.assert_close(ours.sum(), torch.tensor(1.0))


# --- composites ----------------------------------------------------------------------------------


def test_unknown_names_and_impossible_parameters_are_refused_in_words():
    with pytest.raises(ValueError, match=r"no composite 'zplus'.*z\+, alpha2-beta1, gamma"):
        rules.composite("zplus")
    with pytest.raises(ValueError, match=r"no pixel rule 'zbox'.*flat, z\+, w-square"):
        rules.composite("z+", pixels="zbox")
    with pytest.raises(ValueError, match="alpha − beta must be 1"):
        rules.alpha2_beta1(alpha=3)
    with pytest.raises(ValueError, match="gamma must be above 0"):
        rules.gamma(gamma=0)
    with pytest.raises(ValueError, match="epsilon must be 0 or more"):
        rules.epsilon(epsilon=-1)
    with pytest.raises(ValueError, match="low must be below high"):
        rules.box(1, 0)


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
