"""Bottlenecks optimised together: each like one alone, and each told what the others let pass."""

import pytest
import torch
from torch import nn

from riba.method import network
from riba.method.bottleneck import InformationBottleneck, capacity_product, to_bits
from riba.method.explicit import explicit
from riba.method.statistics import FeatureStatistics
from riba.testbed import networks

pytestmark = pytest.mark.filterwarnings("ignore:feature statistics from")

DEEP, MIDDLE, SHALLOW = "features.14", "features.11", "features.6"


def random_images(count, seed=0):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return networks.scenenet(weights=None)


@pytest.fixture(scope="module")
def stats(net):
    images = random_images(20, seed=1)
    return {layer: FeatureStatistics.fit(net, layer, images) for layer in (DEEP, MIDDLE, SHALLOW)}


@pytest.fixture
def images():
    return random_images(3)


def joint(net, stats, **settings):
    return InformationBottleneck(net, list(stats), list(stats.values()), **{"steps": 3, **settings})


# --- agreement with what is known ----------------------------------------------------------------


@pytest.mark.parametrize("layer", [DEEP, SHALLOW])
def test_one_depth_is_the_bottleneck_by_itself(net, stats, images, layer):
    settings = {"beta": 7.0, "steps": 4, "samples": 3, "seed": 5}
    alone = InformationBottleneck(net, layer, stats[layer], **settings)(images, [1, 2, 3])
    (found,) = InformationBottleneck(net, [layer], [stats[layer]], **settings)(images, [1, 2, 3])
    torch.testing.assert_close(found.nats, alone.nats, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.published_nats, alone.published_nats, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.probability, alone.probability, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.open_probability, alone.open_probability)
    for name in ("loss", "cross_entropy", "information"):
        torch.testing.assert_close(
            getattr(found.trace, name), getattr(alone.trace, name), rtol=1e-3, atol=1e-3
        )


def test_the_first_loss_is_what_the_formulae_say(net, stats, images):
    """By hand: noise at the shallow layer, on to the deep one, noise there, and the rest."""
    two = {layer: stats[layer] for layer in (DEEP, SHALLOW)}
    found = joint(net, two, steps=1, samples=2, beta=3.0, initial_alpha=0.5, sigma=0.0)(
        images, [4, 5, 6]
    )
    draw = torch.Generator().manual_seed(0)
    lambda_ = torch.sigmoid(torch.tensor(0.5))
    h, penalty = images, 0.0
    for name, module in net.features.named_children():
        h = module(h)
        layer = f"features.{name}"
        if layer not in two:
            continue
        s, std = two[layer], two[layer].std.clamp(min=0.01)
        clean = found[layer].features
        if layer == SHALLOW:
            h = h.repeat_interleave(2, 0)
        noise = s.mean + std * torch.randn(2, *clean.shape[1:], generator=draw).repeat(3, 1, 1, 1)
        h = s.active * (lambda_ * h + (1 - lambda_) * noise)
        kl = -0.5 * (
            1
            + 2 * torch.log(1 - lambda_)
            - (lambda_ * (clean - s.mean) / std) ** 2
            - (1 - lambda_) ** 2
        )
        penalty = penalty + (s.active * kl).mean((1, 2, 3))
    targets = torch.tensor([4, 5, 6]).repeat_interleave(2)
    ce = nn.functional.cross_entropy(net.classifier(h), targets, reduction="none")
    expected = ce.unflatten(0, (3, 2)).mean(1) + 3.0 * penalty
    torch.testing.assert_close(found[DEEP].trace.loss[0], expected, rtol=1e-4, atol=1e-4)


# --- what comes back -----------------------------------------------------------------------------


def test_the_deepest_comes_first_whatever_the_order_given(net, stats, images):
    shuffled = {layer: stats[layer] for layer in (MIDDLE, SHALLOW, DEEP)}
    found = joint(net, shuffled)(images, [1, 2, 3])
    assert [information.layer for information in found] == [DEEP, MIDDLE, SHALLOW]
    assert found.shallowest is found[SHALLOW]
    for information in found:
        expected = network.run_until(net, information.layer, images)
        torch.testing.assert_close(information.features, expected, rtol=1e-4, atol=1e-5)
        assert information.nats.shape == information.features.shape
        assert (information.nats >= 0).all()
        assert information.trace.information.shape == (4, 3)


def test_a_map_does_not_depend_on_the_batch(net, stats, images):
    together = joint(net, stats, chunk=2)(images, [1, 2, 3])
    alone = joint(net, stats)(images[2:], [3])
    for layer in stats:
        torch.testing.assert_close(
            together[layer].nats[2:], alone[layer].nats, rtol=1e-3, atol=1e-4
        )


def test_the_same_seed_gives_the_same_and_another_another(net, stats, images):
    one, again, other = (
        joint(net, stats, beta=0.0, seed=seed)(images, [1, 2, 3])[SHALLOW].nats
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


def test_the_network_is_left_as_it_was(net, stats, images):
    before = network.fingerprint(net)
    joint(net, stats)(images, [1, 2, 3])
    assert network.fingerprint(net) == before
    assert not any(module._forward_hooks for module in net.modules())
    assert all(weight.grad is None for weight in net.parameters())


def test_a_residual_network_is_cut_and_its_blocks_are_still_met(images):
    torch.manual_seed(1)
    net = networks.small_resnet()
    layers = ("features.5", "features.4", "features.3")
    assert not explicit(net, layers, images).reason
    stats = [FeatureStatistics.fit(net, layer, random_images(8, seed=2)) for layer in layers]
    found = InformationBottleneck(net, layers, stats, steps=2)(images, [1, 2, 3])
    assert [information.layer for information in found] == list(layers)
    deep = found["features.5"]
    assert not torch.equal(deep.alpha, torch.full_like(deep.alpha, 5.0))  # it learned: it was met


def test_a_network_that_cannot_be_traced_works_too(net, stats, images):
    class Untraceable(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.features, self.classifier = inner.features, inner.classifier

        def forward(self, x):
            if x.sum() > 1e9:  # data-dependent: torch.fx gives up
                return x
            return self.classifier(self.features(x))

    model = Untraceable(net).eval()
    expected = joint(net, stats)(images, [1, 2, 3])
    found = joint(model, stats)(images, [1, 2, 3])
    for layer in stats:
        torch.testing.assert_close(found[layer].nats, expected[layer].nats, rtol=1e-3, atol=1e-4)


# --- the product of capacities -------------------------------------------------------------------


def test_a_product_of_one_depth_is_its_map_over_its_mean():
    nats = torch.rand(2, 3, 4, 4)
    bits = to_bits(nats, 8)
    expected = bits / bits.mean((1, 2), keepdim=True)
    torch.testing.assert_close(capacity_product([nats], 8), expected)
    torch.testing.assert_close(capacity_product([nats, nats], 8), expected.square())


def test_a_product_with_an_empty_depth_is_empty_and_finite():
    product = capacity_product([torch.rand(1, 2, 4, 4), torch.zeros(1, 2, 2, 2)], 8)
    assert torch.equal(product, torch.zeros(1, 8, 8))


# --- refusals ------------------------------------------------------------------------------------


def test_bad_arguments_are_refused(net, stats, images):
    with pytest.raises(ValueError, match="one or more distinct layers"):
        InformationBottleneck(net, [], [])
    with pytest.raises(ValueError, match="one or more distinct layers"):
        InformationBottleneck(net, [DEEP, DEEP], [stats[DEEP], stats[DEEP]])
    with pytest.raises(ValueError, match="one or more distinct layers"):
        InformationBottleneck(net, [DEEP, SHALLOW], [stats[DEEP]])
    with pytest.raises(ValueError, match=r"noise must be .* of one layer"):
        joint(net, stats)(images, [1, 2, 3], torch.zeros(3, 4, 96, 8, 8))
    with pytest.raises(ValueError, match="beta must be 0 or more"):
        joint(net, stats, beta=-1.0)
    with pytest.raises(ValueError, match="samples must be 1 or more"):
        joint(net, stats, samples=0)
    with pytest.raises(ValueError, match="out of range"):
        joint(net, stats)(images, [1, 2, 10])
    with pytest.raises(ValueError, match="initial_alpha must be finite"):
        joint(net, stats, initial_alpha=float("nan"))
    torch.manual_seed(3)
    with pytest.raises(ValueError, match="another network"):
        joint(networks.scenenet(weights=None), stats)
