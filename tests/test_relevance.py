"""The descent: nothing lost, nothing touched, and every number of the ledger by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn
from zennit.attribution import Attributor, Gradient
from zennit.composites import EpsilonPlusFlat
from zennit.torchvision import VGGCanonizer

from riba.method import network, relevance, rules
from riba.method.bottleneck import Depths, InformationBottleneck
from riba.method.explicit import Explicit, explicit, frozen_copy
from riba.method.network import class_logit
from riba.method.relevance import RelevanceIBA
from riba.method.statistics import FeatureStatistics
from riba.testbed import networks

LAYER = "features.14"


def roughened(model, seed=0):
    """Random biases and batch-norm statistics, negative scales included: zeros would flatter."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like, scale):
        return scale * torch.randn(like.shape, generator=generator)

    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = normal(module.weight, 1.0)
            module.running_mean = normal(module.weight, 0.5)
            module.running_var = normal(module.weight, 1.0).square() + 0.1
        if isinstance(getattr(module, "bias", None), torch.Tensor):
            module.bias.data = normal(module.bias, 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return roughened(networks.scenenet(weights=None))


@pytest.fixture(scope="module")
def images():
    return torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def begun(net, images):
    """Relevance on every unit of the layer, active or not."""
    features = network.run_until(net, LAYER, images).detach()
    return torch.rand(features.shape, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def stats(net):
    images = torch.randn(40, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with pytest.warns(UserWarning, match="40 images"):
        return FeatureStatistics.fit(net, LAYER, images)


def total(x):
    return x.double().flatten(1).sum(1)


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]


# --- conservation --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "layer"),
    [
        (lambda: networks.scenenet(weights=None), "features.14"),
        (lambda: networks.scenenet(weights=None, norm=True), "features.19"),
        (lambda: tv.vgg16(weights=None), "features.17"),
        (lambda: tv.vgg16_bn(weights=None), "features.26"),
        (lambda: tv.resnet18(weights=None), "layer3"),
        (lambda: tv.resnet50(weights=None), "layer2"),
        (lambda: tv.resnet50(weights=None), "layer3"),
    ],
)
def test_every_nat_arrives_and_none_is_negative(build, layer):
    torch.manual_seed(0)
    model = roughened(build())
    images = torch.randn(1, 3, 64, 64)
    images[:, :, :16] = 0  # a blank margin
    features = network.run_until(model, layer, images).detach()
    start = torch.rand(features.shape)
    pixels = relevance.descend(model, layer, images, start)
    assert pixels.shape == images.shape
    assert (pixels >= 0).all()
    torch.testing.assert_close(total(pixels), total(start), rtol=1e-5, atol=0)


def test_what_nothing_feeds_is_shared_evenly_and_what_is_lost_is_said(images):
    torch.manual_seed(0)
    model = networks.scenenet(weights=None)
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            module.bias.data.zero_()
    blank = torch.zeros_like(images)  # without biases a blank image leaves every unit at zero
    with pytest.warns(UserWarning, match="4 images"):
        stats = FeatureStatistics.fit(model, LAYER, images)
    attributor = RelevanceIBA(model, LAYER, stats, steps=1)
    attributor(images, [0] * len(images))
    assert attributor.ledger.lost.abs().max() < 1e-3
    attributor(blank, [0] * len(blank))
    assert attributor.ledger.lost.abs().max() < 1e-3
    loses = RelevanceIBA(model, LAYER, stats, composite="epsilon", steps=1)
    loses(blank, [0] * len(blank))
    assert (loses.ledger.lost == 1).all()
    assert "100.0 % lost" in str(loses.ledger)


# --- the same as by hand -------------------------------------------------------------------------


def test_starting_at_a_layer_is_cutting_the_head_off_by_hand(net, images, begun):
    cut = frozen_copy(net.features[:15])
    pixels = images.clone().requires_grad_()
    with rules.z_plus().context(cut):
        (expected,) = torch.autograd.grad(cut(pixels), pixels, begun)
    found = relevance.descend(net, LAYER, images, begun)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_layers_above_the_start_do_not_matter(net, images, begun):
    before = relevance.descend(net, LAYER, images, begun)
    other = frozen_copy(net)
    for parameter in [*other.features[15:].parameters(), *other.classifier.parameters()]:
        parameter.normal_()
    assert not torch.allclose(other(images), net(images))
    assert torch.equal(relevance.descend(other, LAYER, images, begun), before)


def test_any_zennit_composite_will_do(net, images, begun):
    composite = EpsilonPlusFlat(zero_params="bias", canonizers=[VGGCanonizer()])
    theirs = relevance.descend(net, LAYER, images, begun, composite)
    ours = relevance.descend(net, LAYER, images, begun)
    torch.testing.assert_close(theirs, ours, rtol=1e-2, atol=1e-4)
    assert not composite.handles


def test_lrp_from_the_logit_agrees_with_zennit(net, images):
    targets = torch.tensor([0, 3, 5, 9])
    ours = relevance.lrp(net, images, targets)
    composite = EpsilonPlusFlat(zero_params="bias")
    for image, target, one in zip(images, targets, ours, strict=True):
        attributor = Gradient(frozen_copy(net), composite)
        with attributor:
            theirs = attributor(image[None], F.one_hot(target, 10)[None].float())[1]
        assert correlation(one, theirs[0]).abs() > 0.9999  # they differ by a factor per image


def test_lrp_explains_the_logit(net, images):
    unbiased = frozen_copy(net)
    unbiased.classifier[2].bias.zero_()
    targets = [1, 2, 3, 4]
    maps = relevance.lrp(unbiased, images, targets)
    logits = unbiased(images)[range(4), targets]
    torch.testing.assert_close(total(maps), logits.double(), rtol=1e-4, atol=1e-4)


def test_lrp_stops_at_a_layer_on_its_way_to_the_pixels(net, images):
    targets = [1, 2, 3, 4]
    at = relevance.lrp(net, images, targets, "z+", layer=LAYER)
    assert at.shape == network.run_until(net, LAYER, images).shape
    rest = relevance.descend(net, LAYER, images, at, "z+")
    torch.testing.assert_close(rest, relevance.lrp(net, images, targets, "z+"))
    with pytest.raises(ValueError, match="near matches"):
        relevance.lrp(net, images, targets, "z+", layer="features.99")


def test_a_set_of_one_class_is_that_class_and_a_set_explains_its_logsumexp(net, images):
    targets = torch.tensor([1, 2, 3, 4])
    rows = F.one_hot(targets, 10).bool()
    assert torch.equal(relevance.lrp(net, images, rows), relevance.lrp(net, images, targets))
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    both = torch.tensor([[True, False, True]])
    start = relevance.class_shares(logits, both) * class_logit(logits, both)[:, None]
    share = math.e / (math.e + math.e**3)
    expected = torch.tensor([[share, 0.0, 1 - share]]) * math.log(math.e + math.e**3)
    torch.testing.assert_close(start, expected)


# --- at every layer ------------------------------------------------------------------------------


def test_every_stage_on_the_way_holds_the_same_total(net, images, begun):
    stages = relevance.descend_all(net, LAYER, images, begun)
    names = ["features.13", "features.10", "features.7", "features.5", "features.2", "features.0"]
    assert [n for n in stages if n in names] == names
    assert next(iter(stages)) == LAYER
    assert list(stages)[-1] == "pixels"
    assert torch.equal(stages["pixels"], relevance.descend(net, LAYER, images, begun))
    for at in stages.values():
        torch.testing.assert_close(total(at), total(begun), rtol=1e-5, atol=0)


def test_stages_of_a_residual_network_are_its_blocks():
    torch.manual_seed(0)
    model = roughened(tv.resnet18(weights=None))
    images = torch.randn(1, 3, 64, 64)
    start = torch.rand(1, 256, 4, 4)
    stages = relevance.descend_all(model, "layer3", images, start)
    blocks = [f"layer{i}.{j}" for i, j in [(3, 1), (3, 0), (2, 1), (2, 0), (1, 1), (1, 0)]]
    assert list(stages) == ["layer3", *blocks, "maxpool", "conv1", "pixels"]
    for at in stages.values():
        torch.testing.assert_close(total(at), total(start), rtol=1e-5, atol=0)
    inside = relevance.descend_all(model, "layer3", images, start, layers=["layer3.1.conv1"])
    assert 0 < total(inside["layer3.1.conv1"]) < total(start)  # one of two branches


def test_descending_in_stretches_is_descending_at_once(net, images, begun):
    whole = relevance.descend_all(net, LAYER, images, begun)
    lower = relevance.descend(net, "features.7", images, whole["features.7"])
    torch.testing.assert_close(lower, whole["pixels"], rtol=1e-4, atol=1e-6)


def test_an_inplace_relu_does_not_disturb_what_is_watched(net, images, begun):
    inplace = frozen_copy(net)
    for module in inplace.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    expected = relevance.descend_all(net, LAYER, images, begun)
    for name, at in relevance.descend_all(inplace, LAYER, images, begun).items():
        torch.testing.assert_close(at, expected[name])


# --- nothing is touched --------------------------------------------------------------------------


def trace_of(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [parameter.requires_grad for parameter in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        [sorted(vars(m)) for m in model.modules()],
        model.training,
    )


def same(a, b):
    weights = a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])
    return weights and a[1:] == b[1:]


@pytest.mark.parametrize("build", [tv.resnet18, tv.vgg11_bn])
def test_the_users_network_stays_as_it_was(build, images):
    model = roughened(build(weights=None))
    layer = "layer2" if build is tv.resnet18 else "features.10"
    before, output = trace_of(model), model(images[:1])
    start = torch.rand_like(network.run_until(model, layer, images[:1]))
    relevance.descend(model, layer, images[:1], start)
    relevance.lrp(model, images[:1], [3])
    with pytest.raises(ValueError, match="must be 1×"):
        relevance.descend(model, layer, images[:1], start[:, :1])
    with pytest.raises(ValueError, match="has no layer"):
        relevance.descend(model, "nowhere", images[:1], start)
    assert same(trace_of(model), before)
    assert torch.equal(model(images[:1]), output)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_switched_off(mode, net, images, begun):
    expected = relevance.descend(net, LAYER, images, begun)
    with mode():
        assert torch.equal(relevance.descend(net, LAYER, images.clone(), begun.clone()), expected)
        assert torch.isfinite(relevance.lrp(net, images.clone(), [0, 1, 2, 3])).all()


# --- batches -------------------------------------------------------------------------------------


def test_a_map_does_not_depend_on_the_batch_around_it(net):
    torch.manual_seed(5)
    images = torch.randn(16, 3, 64, 64)
    start = torch.rand_like(network.run_until(net, LAYER, images)).detach()
    together = relevance.descend(net, LAYER, images, start)
    alone = relevance.descend(net, LAYER, images[7:8], start[7:8])
    assert correlation(alone[0], together[7]) >= 0.999
    torch.testing.assert_close(total(alone), total(together[7:8]), rtol=1e-3, atol=0)
    assert torch.equal(relevance.descend(net, LAYER, images, start), together)


def test_large_batches_go_through_in_parts(net, images, begun, monkeypatch):
    whole = relevance.descend_all(net, LAYER, images, begun)
    plain = relevance.lrp(net, images, [0, 1, 2, 3])
    sizes = []
    original = Explicit.propagate
    monkeypatch.setattr(relevance, "PIXELS_AT_ONCE", 3 * 64 * 64)
    count = lambda *a: sizes.append(len(a[2])) or original(*a)  # noqa: E731
    monkeypatch.setattr(Explicit, "propagate", count)
    for name, at in relevance.descend_all(net, LAYER, images, begun).items():
        torch.testing.assert_close(at, whole[name])
    assert sizes == [3, 1]
    torch.testing.assert_close(relevance.lrp(net, images, [0, 1, 2, 3]), plain)


# --- what starts, and the ledger -----------------------------------------------------------------


@pytest.fixture
def information():
    """Two images, two channels, one row of two locations, in round numbers."""
    return SimpleNamespace(
        nats=torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]], [[[4.0, 4.0]], [[0.0, 8.0]]]]),
        features=torch.tensor([[[[0.0, 0.0]], [[5.0, 0.0]]], [[[1.0, 3.0]], [[3.0, 1.0]]]]),
        lambda_=torch.full((2, 2, 1, 2), 0.25),
    )


def test_sources_in_round_numbers(information):
    published = relevance.start(information)
    assert torch.equal(published.relevance, information.nats)
    kept = relevance.start(information, "active")
    expected = torch.tensor([[[[0.0, 0.0]], [[3.0, 0.0]]], [[[4.0, 4.0]], [[0.0, 8.0]]]])
    assert torch.equal(kept.relevance, expected)
    assert kept.before.tolist() == [6, 16]
    spread = relevance.start(information, "spread")
    expected = torch.tensor([[[[0.0, 2.0]], [[4.0, 0.0]]], [[[1.0, 9.0]], [[3.0, 3.0]]]])
    torch.testing.assert_close(spread.relevance, expected)
    gated = relevance.start(information, "gated", lambda: -information.nats)
    assert torch.equal(gated.relevance, -information.nats / 4)
    assert gated.unit == "logits"
    with pytest.raises(ValueError, match="choose one of capacity, active, spread, gated"):
        relevance.start(information, "lambda")
    with pytest.raises(ValueError, match="needs the relevance of the class logit"):
        relevance.start(information, "gated")


def test_spread_keeps_nats_on_the_faintest_activation(information):
    information.features *= 1e-42
    spread = relevance.start(information, "spread")
    torch.testing.assert_close(total(spread.relevance), total(information.nats))


def test_the_ledger_reads_like_a_sentence(information):
    begun = relevance.start(information, "active")
    pixels = torch.tensor([3.0, 12.0]).reshape(2, 1, 1, 1)
    books = relevance.ledger(information, begun, pixels)
    assert books.before.tolist() == [6, 16]
    assert books.start.tolist() == [3, 16]
    assert books.end.tolist() == [3, 12]
    assert books.lost.tolist() == [0, 0.25]
    assert books.dropped.tolist() == [0.5, 0]
    assert books.inactive.tolist() == [0.5, 0]
    first, second = str(books).splitlines()
    assert first == (
        "3.0 nats in (4.3 bits), 3.0 nats out; 0.0 % lost, "
        "50 % had been on inactive units, 50 % dropped before the start"
    )
    assert second == (
        "16.0 nats in (23.1 bits), 12.0 nats out; 25.0 % lost, 0 % had been on inactive units"
    )
    logits = relevance.start(information, "gated", lambda: information.nats)
    line = relevance.ledger(information, logits, pixels).line(0)
    assert line.startswith("1.5 logits in, 3.0 logits out; -100.0 % lost")


def test_an_image_without_information_has_an_empty_ledger(information):
    information.nats.zero_()
    begun = relevance.start(information)
    books = relevance.ledger(information, begun, torch.zeros(2, 3, 4, 4))
    assert "0.0 nats in (0.0 bits), 0.0 nats out; 0.0 % lost" in books.line(1)


# --- what does not fit --------------------------------------------------------------------------


def test_bad_starts_are_refused_in_words(net, images, begun):
    with pytest.raises(ValueError, match=r"must be 4×96×8×8, got 4×3×8×8"):
        relevance.descend(net, LAYER, images, begun[:, :3])
    with pytest.raises(ValueError, match="start is for 3 images"):
        relevance.descend(net, LAYER, images, begun[:3])
    with pytest.raises(ValueError, match="NaN or infinite"):
        relevance.descend(net, LAYER, images, begun * torch.nan)
    with pytest.raises(ValueError, match="no composite 'lrp'"):
        relevance.descend(net, LAYER, images, begun, "lrp")
    with pytest.raises(ValueError, match="does not run below"):
        relevance.descend_all(net, LAYER, images, begun, layers=["features.18"])


# --- the attributor ------------------------------------------------------------------------------


def test_the_attributor_hands_all_nats_to_the_pixels(net, stats, images):
    targets = [0, 3, 5, 9]
    before = trace_of(net)
    with RelevanceIBA(net, LAYER, stats, steps=3, samples=2) as attributor:
        output, pixels = attributor(images, targets)
        again = attributor(images, targets)[1]
    assert isinstance(attributor, Attributor)
    torch.testing.assert_close(output, net(images))
    expected = InformationBottleneck(net, LAYER, stats, steps=3, samples=2)(images, targets)
    assert torch.equal(attributor.information.nats, expected.nats)
    torch.testing.assert_close(total(pixels), total(expected.nats), rtol=1e-4, atol=0)
    torch.testing.assert_close(attributor.ledger.start, total(expected.nats))
    torch.testing.assert_close(attributor.ledger.end, total(pixels))
    assert torch.equal(pixels, again)
    assert not attributor.composite.handles
    assert torch.equal(attributor(images, targets)[1], pixels)  # outside the block, too
    assert same(trace_of(net), before)


def test_two_attributors_may_share_a_composite(net, stats, images):
    composite = rules.z_plus()
    settings = {"composite": composite, "steps": 1, "samples": 1}
    with RelevanceIBA(net, LAYER, stats, **settings) as first:
        expected = first(images, [0, 1, 2, 3])[1]
        with RelevanceIBA(net, LAYER, stats, **settings):
            assert torch.equal(first(images, [0, 1, 2, 3])[1], expected)


def test_the_rules_remember_no_activations_between_calls(net, stats, images):
    with RelevanceIBA(net, LAYER, stats, steps=1, samples=1) as attributor:
        attributor(images, [0, 1, 2, 3])
    assert not attributor.composite.hook_refs
    ruled = explicit(net, [LAYER], images).ruled(LAYER, images)
    assert not any(module._forward_hooks for module in ruled.modules())


def test_gated_starts_from_the_logit(net, stats, images):
    targets = torch.tensor([0, 3, 5, 9])
    settings = {"composite": "epsilon-plus", "steps": 1, "samples": 1}
    gated = RelevanceIBA(net, LAYER, stats, source="gated", **settings)
    _, pixels = gated(images, targets)
    books = gated.ledger
    assert books.unit == "logits"
    weights = net.classifier[2].weight[targets, :, None, None]
    with torch.no_grad():
        top = net.features(images)
    at_top = (
        weights * top / top.shape[-1] ** 2
    ).detach()  # ε in the dense layer, by hand: x w (z + b) / (z + b)
    upper = nn.Sequential(*net.features[15:])
    features = network.run_until(net, LAYER, images).detach().requires_grad_()
    copy = frozen_copy(upper)
    with rules.z_plus(pixels="z+").context(copy):
        (expected,) = torch.autograd.grad(copy(features), features, at_top)
    torch.testing.assert_close(books.before, total(expected), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        books.start, total(expected * gated.information.lambda_), rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(total(pixels), books.start, rtol=1e-3, atol=1e-4)


def test_the_attributor_refuses_in_words(net, stats, images):
    with pytest.raises(ValueError, match="no source 'everything'"):
        RelevanceIBA(net, LAYER, stats, source="everything")
    with pytest.raises(ValueError, match="no composite"):
        RelevanceIBA(net, LAYER, stats, composite="everything")
    with pytest.raises(ValueError, match="has no layer"):
        RelevanceIBA(net, "features.99", stats)
    with pytest.raises(ValueError, match="expected 4 class numbers"):
        RelevanceIBA(net, LAYER, stats)(images, [0])


def test_a_form_passed_by_hand_is_checked(net, stats, images):
    form = explicit(net, [LAYER], images)
    targets = [0, 3, 5, 9]
    information = InformationBottleneck(net, LAYER, stats, steps=1, samples=1)(images, targets)
    pixels, ledger = relevance.relevance_iba(form, images, targets, information)
    torch.testing.assert_close(ledger.end, total(pixels))
    with pytest.raises(ValueError, match="images reach 255"):
        relevance.lrp(form, images.clone().fill_(255.0), targets)
    with pytest.raises(ValueError, match="images of another size"):
        relevance.lrp(form, images.repeat(1, 1, 2, 2), targets)
    with pytest.raises(ValueError, match=r"has no layer 'features\.66'"):
        relevance.lrp(form, images, targets, layer="features.66")
    with pytest.raises(ValueError, match="measured on other images or another network"):
        relevance.relevance_iba(form, images.flip(0), targets, information)
    torch.manual_seed(7)
    other = explicit(networks.scenenet(weights=None), [LAYER], images)
    with pytest.raises(ValueError, match="measured on other images or another network"):
        relevance.relevance_iba(other, images, targets, information)
    assert relevance.descend_all(form, LAYER, images, information.nats).keys() == (
        relevance.descend_all(net, LAYER, images, information.nats).keys()
    )


# --- the cascade ---------------------------------------------------------------------------------

BELOW = "features.6"


@pytest.fixture
def found(net, images, begun):
    """Information at two depths, as a bottleneck would hand it over: relevance and a spotlight."""
    features = network.run_until(net, BELOW, images)
    nats = torch.rand(features.shape, generator=torch.Generator().manual_seed(4))
    shallow = SimpleNamespace(layer=BELOW, nats=nats, features=features)
    return Depths((SimpleNamespace(layer=LAYER, nats=begun), shallow))


def test_a_cascade_is_a_descent_times_the_enlarged_capacities(net, images, found):
    """By hand: the shallowest nats handed down, times each depth's enlarged map, rescaled."""
    begun = found[BELOW].nats
    arrived = relevance.descend(net, BELOW, images, begun)
    weight = torch.ones(len(images), 1, *images.shape[-2:])
    for information in found:
        weight *= torch.nn.functional.interpolate(
            information.nats.sum(1, keepdim=True), images.shape[-2:], mode="bilinear"
        )
    expected = arrived * weight
    expected *= (total(begun) / total(expected)).float()[:, None, None, None]
    pixels = relevance.cascade(net, images, found, smoothing=0)
    torch.testing.assert_close(pixels, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("composite", ["z+", "gamma", "alpha2-beta1"])
@pytest.mark.parametrize("smoothing", [None, 0, 3.0])
def test_a_cascade_ends_with_the_nats_it_began_with(net, images, found, composite, smoothing):
    pixels = relevance.cascade(net, images, found, composite, smoothing)
    assert torch.allclose(total(pixels), total(found[BELOW].nats), rtol=1e-3)
    if composite == "z+":
        assert (pixels >= 0).all()


def test_it_is_smoothed_by_as_many_pixels_as_its_layer_strides(net, images, found):
    stride = images.shape[-1] // found[BELOW].nats.shape[-1]
    assert stride == 2
    by_default = relevance.cascade(net, images, found)
    assert torch.equal(by_default, relevance.cascade(net, images, found, smoothing=stride))
    assert not torch.allclose(by_default, relevance.cascade(net, images, found, smoothing=0))


def test_equal_information_everywhere_is_the_plain_descent(net, images, found):
    for information in found:
        information.nats[:] = 3.0
    plain = relevance.descend(net, BELOW, images, found[BELOW].nats)
    cascade = relevance.cascade(net, images, found, smoothing=0)
    torch.testing.assert_close(cascade, plain, rtol=1e-3, atol=1e-4)


def test_where_nothing_was_found_there_is_no_relevance(net, images, found):
    found[LAYER].nats[:] = 0.0
    assert torch.equal(relevance.cascade(net, images, found), torch.zeros_like(images))
