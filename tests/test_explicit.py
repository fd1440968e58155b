"""The explicit form: any CNN, by every door, and nothing without a rule."""

import collections
import copy
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as tv
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torchvision.ops import FrozenBatchNorm2d

import riba
from riba import METHODS
from riba.compare import methods
from riba.method import relevance, rules
from riba.method.bottleneck import InformationBottleneck
from riba.method.explicit import explicit, frozen_copy, full_precision
from riba.method.network import fingerprint, run_until
from riba.show.panels import samples
from riba.testbed import datasets

timm = pytest.importorskip("timm")


def roughened(model, seed=0):
    """Random batch-norm statistics, scales and biases: those of a new network would flatter."""
    draw = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=draw))
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=draw) + 0.5)
            if module.weight is not None:
                scale = 0.5 + torch.rand(module.weight.shape, generator=draw)
                sign = 1 - 2 * (torch.rand(module.weight.shape, generator=draw) < 0.25).float()
                module.weight.data.copy_(sign * scale)  # of either sign: z⁺ and γ depend on it
                module.bias.data.copy_(0.1 * torch.randn(module.bias.shape, generator=draw))
    return model.eval()


def of_torchvision(name, **settings):
    return lambda: getattr(tv, name)(weights=None, num_classes=5, **settings)


def small_vgg():
    """Without the 480 MB of its dense layers."""
    model = tv.vgg11_bn(weights=None, init_weights=False)
    model.classifier = nn.Linear(512 * 49, 5)
    return model


def of_timm(name):
    return lambda: timm.create_model(name, num_classes=5)


class Block(nn.Module):
    """Three convolutions, for networks of our own."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.c(self.body(x)).relu().mean((2, 3)))


class Plus(Block):
    def body(self, x):
        x = F.relu(self.a(x))
        return F.relu(self.b(x) + x)


class PlusInPlace(Block):
    def body(self, x):
        x = F.relu(self.a(x), True)
        y = self.b(x)
        y += x
        return y.relu_()


class Concatenates(Block):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(16, 8, 3, padding=1)

    def body(self, x):
        x = F.relu(self.a(x))
        return torch.cat([x, F.relu(self.b(x))], 1)


class Functional(Block):
    def body(self, x):
        return F.relu(self.b(F.max_pool2d(F.relu(self.a(x)), 2)))


class Twice(Block):
    def body(self, x):
        return F.relu(self.b(F.relu(self.b(F.relu(self.a(x))))))


class WeightNorm(Functional):
    def __init__(self):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.a = weight_norm(self.a)
        self.b = parametrizations.weight_norm(self.b)
        self.c = parametrizations.spectral_norm(self.c)


class OddOrder(Block):
    """Defined in another order than it runs: batch norms first, the pixels' convolution last."""

    def __init__(self):
        super().__init__()
        first = self.a
        del self.a
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.a = first

    def body(self, x):
        x = F.relu(self.norms[1](self.a(x)))
        return F.relu(self.norms[0](self.b(x)))


class Epsilon(Block):
    """Batch norms with a large eps, one without affine parameters, one behind an activation."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.BatchNorm2d(8, eps=1e-3), nn.BatchNorm2d(8, affine=False)
        self.three = nn.BatchNorm2d(8)

    def body(self, x):
        return self.three(F.relu(self.two(self.b(F.relu(self.one(self.a(x)))))))


class UpAndDown(Block):
    def __init__(self):
        super().__init__()
        self.b = nn.ConvTranspose2d(8, 8, 4, 2, 1)
        self.norm = nn.BatchNorm2d(8)

    def body(self, x):
        x = F.avg_pool2d(F.silu(self.a(x)), 2)
        x = F.gelu(self.norm(self.b(x)))
        x = x - 0.5 * F.interpolate(x, size=x.shape[-2:], mode="nearest")
        return F.interpolate(F.relu6(x), scale_factor=0.5, mode="bilinear")


class Gates(Block):
    def body(self, x):
        x = F.hardswish(self.a(x)) * 0.5 + 0.1
        x = x * torch.sigmoid(self.b(x))
        return nn.ReLU()(x * x.mean((2, 3), keepdim=True).sigmoid())


OURS = {
    kind.__name__: (kind, "b", "c")
    for kind in (Plus, PlusInPlace, Concatenates, Functional, WeightNorm, OddOrder, Epsilon)
} | {"Twice": (Twice, "a", "c"), "UpAndDown": (UpAndDown, "b", "c"), "Gates": (Gates, "a", "c")}

NETWORKS = {
    "vgg11_bn": (small_vgg, "features.14", "features.25"),
    "resnet18": (of_torchvision("resnet18"), "layer2", "layer4"),
    "resnext50_32x4d": (of_torchvision("resnext50_32x4d"), "layer2", "layer4"),
    "mobilenet_v2": (of_torchvision("mobilenet_v2"), "features.6", "features.18"),
    "mobilenet_v3_small": (of_torchvision("mobilenet_v3_small"), "features.4", "features.12"),
    "mnasnet1_0": (of_torchvision("mnasnet1_0"), "layers.9", "layers.16"),
    "regnet_x_400mf": (of_torchvision("regnet_x_400mf"), "trunk_output.block2", "trunk_output"),
    "regnet_y_400mf": (of_torchvision("regnet_y_400mf"), "trunk_output.block2", "trunk_output"),
    "densenet121": (of_torchvision("densenet121"), "features.denseblock2", "features"),
    "googlenet": (
        of_torchvision("googlenet", init_weights=False, aux_logits=False),
        "inception3b",
        "inception5b",
    ),
    "inception_v3": (of_torchvision("inception_v3", init_weights=False), "Mixed_5d", "Mixed_7c"),
    "squeezenet1_1": (of_torchvision("squeezenet1_1"), "features.7", "features.12"),
    "shufflenet_v2_x1_0": (of_torchvision("shufflenet_v2_x1_0"), "stage2", "conv5"),
    "efficientnet_b0": (of_torchvision("efficientnet_b0"), "features.3", "features.8"),
    "convnext_tiny": (of_torchvision("convnext_tiny"), "features.3", "features.7"),
    "resnet18 with frozen norms": (
        of_torchvision("resnet18", norm_layer=FrozenBatchNorm2d),
        "layer2",
        "layer4",
    ),
    "resnet18 with group norms": (
        of_torchvision("resnet18", norm_layer=lambda channels: nn.GroupNorm(8, channels)),
        "layer2",
        "layer4",
    ),
    "tf_efficientnet_lite0": (of_timm("tf_efficientnet_lite0"), "blocks.2", "conv_head"),
    "resnet10t": (of_timm("resnet10t"), "layer2", "layer4"),
    "repvgg_a0": (of_timm("repvgg_a0"), "stages.1", "stages.3"),
} | OURS
SIZES = {"inception_v3": 75}


@pytest.fixture(scope="module")
def built():
    """Networks by name, built once."""
    made = {}

    def build(name):
        if name not in made:
            made.clear()
            torch.manual_seed(0)
            made[name] = roughened(NETWORKS[name][0]())
        return made[name]

    return build


def bench(model, layer, images, labels):
    """A workbench on a few images, the masks of which are their upper halves."""
    stats = riba.FeatureStatistics.fit(model, layer, torch.cat([images, -images]), few=True)
    mask = torch.zeros(images.shape[-2:], dtype=torch.bool)
    mask[: len(mask) // 2] = True
    samples = [
        datasets.Sample(image=image, label=int(label), mask=mask, name=f"sample {place}")
        for place, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    names = tuple("abcde")
    side = images.shape[-1]
    prepare = datasets.Preparation(side, side, (0.5,) * 3, (0.5,) * 3)
    layers = (model, layer, stats, [], [], samples, names, (layer,), layer)
    return riba.Workbench(*layers, name="x", prepare=prepare, label_names=names)


@pytest.mark.parametrize("place", ["middle", "last"])
@pytest.mark.parametrize("name", NETWORKS)
def test_nats_arrive_whole_by_every_door(name, place, built, tmp_path, monkeypatch):
    def short(*settings, **others):  # conservation does not depend on what the bottleneck finds
        return InformationBottleneck(*settings, **{"steps": 1, "samples": 1, **others})

    monkeypatch.setattr(methods, "InformationBottleneck", short)
    model, size = built(name), SIZES.get(name, 32)
    layer = NETWORKS[name][1 if place == "middle" else 2]
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, size, size, generator=draw)
    with torch.no_grad():
        logits = model(images)
    targets = logits.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing falls back to hooks
        net = explicit(model, [layer], images)
    features, *others = net.parts[0](images)
    close = {"rtol": 1e-3, "atol": 1e-3 * logits.abs().max().item()}
    torch.testing.assert_close(net.parts[1](features, *others)[0], logits, **close)
    torch.testing.assert_close(features, run_until(model, layer, images), rtol=1e-3, atol=1e-3)

    wb = bench(model, layer, images, targets)
    maps = METHODS["relevance-iba"](wb, images, targets)
    nats = methods.information(wb, layer, images, targets).nats
    total = nats.double().sum((1, 2, 3))
    pixels = relevance.descend(model, layer, images, nats)
    with riba.RelevanceIBA(model, layer, wb.statistics, steps=1, samples=1) as attributor:
        relevance_ = attributor(images, targets)[1]
    for found, expected in ((maps, total), (pixels, total), (relevance_, attributor.ledger.start)):
        assert (found >= -1e-6 * found.max()).all()
        arrived = found.double().flatten(1).sum(1)
        torch.testing.assert_close(arrived, expected, rtol=1e-3, atol=1e-9)
    if place == "middle":  # from the logits, which is the same for both layers
        whole = relevance.lrp(model, images, targets, "z+").double().sum((1, 2, 3))
        torch.testing.assert_close(whole, logits.amax(1).double(), rtol=1e-2, atol=1e-6)
    table = riba.evaluate(wb, ["relevance-iba"], wb.test, ["mass_accuracy"], out=tmp_path)
    mass = riba.metrics.mass_accuracy(maps, torch.stack([s.mask for s in wb.test]))
    strict = table[table["mask"] == "strict"].sort_values("sample")["value"].to_numpy()
    torch.testing.assert_close(torch.from_numpy(strict), mass.double(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("composite", ["gamma", "alpha2-beta1", "flat", "epsilon"])
@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "convnext_tiny", "Gates"])
def test_every_composite_can_be_used(name, composite, built):
    model, layer = built(name), NETWORKS[name][1]
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    start = torch.rand_like(run_until(model, layer, images))
    pixels = relevance.descend(model, layer, images, start, composite)
    assert torch.isfinite(pixels).all()
    if composite != "epsilon":
        torch.testing.assert_close(pixels.sum(), start.sum(), rtol=1e-3, atol=0)


# --- correct, not only conserving ----------------------------------------------------------------


def twin_of(name, model):
    """The same function as a plain sequence of modules up to its middle, by hand."""
    model = frozen_copy(model)
    a, b, c = model.a, model.b, model.c
    if name == "Twice":
        return nn.Sequential(a, nn.ReLU(), b, nn.ReLU(), copy.deepcopy(b), nn.ReLU(), c)
    if name == "Functional":
        return nn.Sequential(a, nn.ReLU(), nn.MaxPool2d(2), b, nn.ReLU(), c)
    if name == "WeightNorm":
        plain = []
        for layer in (a, b, c):
            layer(torch.zeros(1, layer.in_channels, 8, 8))
            twin = nn.Conv2d(layer.in_channels, 8, 3, padding=1)
            twin.weight.data, twin.bias.data = layer.weight.detach(), layer.bias.detach()
            plain.append(twin)
        a, b, c = plain
        return nn.Sequential(a, nn.ReLU(), nn.MaxPool2d(2), b, nn.ReLU(), c)
    norms = {"OddOrder": lambda: model.norms[::-1], "Epsilon": lambda: (model.one, model.two)}
    for layer, norm in zip((a, b), norms[name](), strict=True):
        weight = torch.ones(8) if norm.weight is None else norm.weight.detach()
        bias = torch.zeros(8) if norm.bias is None else norm.bias.detach()
        scale = weight / (norm.running_var + norm.eps).sqrt()
        layer.weight.data *= scale[:, None, None, None]
        layer.bias.data = (layer.bias.data - norm.running_mean) * scale + bias
    steps = [a, nn.ReLU(), b, nn.ReLU(), c]
    return nn.Sequential(*steps) if name == "OddOrder" else nn.Sequential(*steps[:-1])


@pytest.mark.parametrize("composite", ["z+", "gamma", "epsilon"])
@pytest.mark.parametrize("name", ["Twice", "Functional", "WeightNorm", "OddOrder", "Epsilon"])
def test_the_map_is_that_of_a_plain_twin(name, composite, built):
    model, layer = built(name), "two" if name == "Epsilon" else "c"
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    twin = twin_of(name, model).eval().requires_grad_(False)
    if name == "Epsilon":
        twin = twin[:-1]
    torch.testing.assert_close(twin(images), run_until(model, layer, images), rtol=1e-4, atol=1e-4)
    start = torch.rand(twin(images).shape, generator=torch.Generator().manual_seed(2))
    found = relevance.descend(model, layer, images, start, composite)
    pixels = images.clone().requires_grad_()
    with rules.composite(composite).context(twin):
        (expected,) = torch.autograd.grad(twin(pixels), pixels, start)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def as_matrix(layer, size):
    """A convolution without its bias as a matrix, outputs × inputs, and the size of its output."""
    inputs = torch.eye(layer.in_channels * size * size, dtype=torch.float64)
    plain = copy.deepcopy(layer).double()
    plain.bias = None
    out = plain(inputs.reshape(-1, layer.in_channels, size, size))
    return out.flatten(1).T, out.shape[-1]


@torch.no_grad()
def test_a_residual_sum_by_slow_matrix_algebra(built):
    """z⁺, positive part and flat, unit by unit, for Plus: also no doubling in Zennit 1.0 (#236)."""
    model, size = built("Plus"), 6
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    start = torch.rand(1, 8, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        x = F.relu(model.a(image)).double()
        y = model.b(x.float()).double()
        s = F.relu(x + y)
    wc, wb, wa = (as_matrix(layer, size)[0] for layer in (model.c, model.b, model.a))

    def z_plus(w, x, above):
        c = (w * x).clamp(min=0)
        return (c / c.sum(1, keepdim=True) * above[:, None]).sum(0)

    at_sum = z_plus(wc, s.flatten(), start.double().flatten())
    both = torch.stack([y.flatten(), x.flatten()]).clamp(min=0)
    fed = both.sum(0) > 0
    share = torch.where(fed, both / both.sum(0), 0.5)
    to_y, to_x = share * at_sum
    at_x = to_x + z_plus(wb, x.flatten(), to_y)
    kernel = (wa != 0).double()
    expected = (kernel / kernel.sum(1, keepdim=True) * at_x[:, None]).sum(0)
    found = relevance.descend(model, "c", image, start).double().flatten()
    assert (found - expected).abs().max() <= 1e-5 * expected.max()


def test_units_without_positive_contributions_keep_what_they_have():
    """A depthwise unit that only negative contributions feed; and one that nothing feeds."""
    layer = nn.Conv2d(2, 2, 1, groups=2, bias=False)
    layer.weight.data = torch.tensor([-2.0, 3.0]).reshape(2, 1, 1, 1)
    x = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    above = torch.tensor([5.0, 7.0]).reshape(1, 2, 1, 1)
    for rule in (rules.ZPlus(), rules.Gamma(0.25)):
        assert rules.hand_down(rule, layer, x, above).flatten().tolist() == [5.0, 7.0]


def test_the_composites_first_layer_is_the_one_that_runs_first(built):
    model = built("OddOrder")
    images = torch.randn(1, 3, 16, 16)
    start = torch.rand_like(run_until(model, "c", images))
    box = rules.z_plus(rules.box(-3.0, 3.0))  # three channels: raises on another convolution
    assert torch.isfinite(relevance.descend(model, "c", images, start, box)).all()


# --- cutting -------------------------------------------------------------------------------------

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "layer", ["conv1", "maxpool", "layer2", "layer3.0", "layer2.0.bn2", "layer3.1.conv1"]
)
def test_a_cut_gives_the_network_and_lets_what_replaces_the_features_through(layer, built):
    model = built("resnet18")
    head, tail = explicit(model, [layer], IMAGES).parts
    with torch.no_grad():
        features, *others = head(IMAGES)
        expected = model(IMAGES)
        torch.testing.assert_close(features, run_until(model, layer, IMAGES), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(tail(features, *others)[0], expected, rtol=1e-4, atol=1e-4)
        before = features.clone()
        assert not torch.allclose(tail(features + 1, *others)[0], expected, atol=1e-4)
        assert torch.equal(features, before)
    assert not any(module._forward_hooks for module in model.modules())


def test_several_cuts_with_a_skip_around_one(built):
    model, layers = built("resnet18"), ("layer3", "layer2.0.conv2", "layer1")
    net = explicit(model, layers, IMAGES)
    assert net.layers == ("layer1", "layer2.0.conv2", "layer3")
    values = (IMAGES,)
    with torch.no_grad():
        for part, layer in zip(net.parts, [*net.layers, None], strict=True):
            values = part(*values)
            expected = model(IMAGES) if layer is None else run_until(model, layer, IMAGES)
            torch.testing.assert_close(values[0], expected, rtol=1e-4, atol=1e-4)


def test_weights_are_shared_where_they_stay_and_followed_where_they_change(built):
    model = copy.deepcopy(built("Functional"))
    net = explicit(model, ["b"], IMAGES)
    shared = {weight.data_ptr() for weight in model.parameters()}
    assert net.plain.head.weight.data_ptr() in shared
    assert explicit(model, ["b"], IMAGES[:1], net) is net
    with torch.no_grad():
        model.a.weight += 1
        again = explicit(model, ["b"], IMAGES, net)
        assert again is not net
        features, *others = again.parts[0](IMAGES)
        torch.testing.assert_close(again.parts[1](features, *others)[0], model(IMAGES))


class Untraceable(Block):
    """Control flow that depends on the values defeats torch.fx."""

    def body(self, x):
        x = self.a(x)
        return F.relu(self.b(x if x.sum() > -1e9 else -x))


def test_an_untraceable_network_gets_iba_and_says_so_once():
    model = roughened(Untraceable())
    stats = [riba.FeatureStatistics.fit(model, layer, IMAGES, few=True) for layer in ("c", "b")]
    iba = riba.InformationBottleneck(model, "b", stats[1], steps=2)
    with pytest.warns(UserWarning, match="Untraceable cannot be traced") as seen:
        first, _ = (iba(IMAGES, [0, 1]) for _ in range(2))
    assert len(seen) == 1
    with pytest.warns(UserWarning, match="cannot be traced"):
        found = riba.InformationBottleneck(model, ["c", "b"], stats, steps=2)(IMAGES, [0, 1])
    assert [information.layer for information in found] == ["c", "b"]
    assert (first.nats > 0).any()
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="cannot be traced"):
        relevance.descend(model, "b", IMAGES, first.nats)
    with pytest.raises(ValueError, match="cannot be traced"):
        METHODS["deeplift"](bench(model, "b", IMAGES, [0, 1]), IMAGES, [0, 1])


class Einsum(Block):
    def body(self, x):
        x = self.b(F.relu(self.a(x)))
        return torch.einsum("bchw,bdhw->bchw", x, x)


class Normalises(Block):
    def body(self, x):
        x = self.b(F.relu(self.a(x)))
        return x / x.norm(dim=1, keepdim=True)


class TwoSignals(Block):
    def body(self, x):
        x = self.a(x)
        return x * self.b(F.relu(x))


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return F.conv2d(x, weight, self.bias, padding=1)


class ChangesWeights(Functional):
    def __init__(self):
        super().__init__()
        self.b = Standardised(8, 8, 3, padding=1)


REFUSED = {Einsum: "einsum", Normalises: "norm", TwoSignals: "mul", ChangesWeights: "Standardised"}


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_what_has_no_rule_is_refused_by_its_name_at_every_door(kind, tmp_path):
    torch.manual_seed(0)
    model = roughened(kind())
    wb = bench(model, "c", IMAGES, [0, 1])
    start = torch.rand_like(run_until(model, "c", IMAGES))
    doors = (
        lambda: relevance.descend(model, "c", IMAGES, start),
        lambda: relevance.lrp(model, IMAGES, [0, 1]),
        lambda: riba.RelevanceIBA(model, "c", wb.statistics)(IMAGES, [0, 1]),
        lambda: METHODS["relevance-iba"](wb, IMAGES, [0, 1]),
        lambda: METHODS["relevance-iba-cascade"](wb, IMAGES, [0, 1]),
        lambda: riba.evaluate(wb, ["lrp-epsilon-plus"], wb.test, ["mass_accuracy"], out=tmp_path),
    )
    said = set()
    for door in doors:
        with pytest.raises(ValueError, match=f"LRP has no rule for .*{REFUSED[kind]}") as error:
            door()
        said.add(str(error.value))
    assert len(said) == 1
    assert len(said.pop()) < 300
    iba = riba.InformationBottleneck(model, "c", wb.statistics, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (iba(IMAGES, [0, 1]).nats >= 0).all()
    if kind is not ChangesWeights:  # below the step all is well
        assert torch.isfinite(relevance.descend(model, "a", IMAGES, start)).all()


# --- state ---------------------------------------------------------------------------------------


class Keeps(Functional):
    """As many Grad-CAM recipes have it: the features of the last pass stay in the network."""

    def body(self, x):
        self.features = [super().body(x)]
        return self.features[0]


def test_a_network_that_keeps_its_activations():
    torch.manual_seed(0)
    model = roughened(Keeps())
    stats = riba.FeatureStatistics.fit(model, "b", IMAGES, few=True)
    wb = bench(model, "b", IMAGES, [0, 1])
    for work in (
        lambda: riba.RelevanceIBA(model, "b", stats, steps=1)(IMAGES, [0, 1]),
        lambda: METHODS["grad-cam"](wb, IMAGES, [0, 1]),
        lambda: samples.private_copy(wb),
    ):
        model(IMAGES)
        kept = model.features[0]
        work()
        assert isinstance(kept, torch.Tensor)
        assert isinstance(model.features[0], torch.Tensor)  # and no proxy of the tracer


def test_other_weights_under_an_attributor_are_refused(built):
    model = copy.deepcopy(built("Functional"))
    stats = riba.FeatureStatistics.fit(model, "b", IMAGES, few=True)
    attributor = riba.RelevanceIBA(model, "b", stats, steps=1)
    joint = riba.InformationBottleneck(model, [stats.layer], [stats], steps=1)
    attributor(IMAGES, [0, 1])
    joint(IMAGES, [0, 1])
    model.load_state_dict(roughened(Functional(), seed=9).state_dict())
    for call in (attributor, joint):
        with pytest.raises(ValueError, match="weights have changed"):
            call(IMAGES, [0, 1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_networks_of_other_precisions(dtype, built):
    plain, model = built("Epsilon"), copy.deepcopy(built("Epsilon")).to(dtype)
    with pytest.raises(ValueError, match=r"use images\.to\(torch\."):
        relevance.lrp(model, IMAGES, [0, 1])
    images = IMAGES.to(dtype)
    stats = riba.FeatureStatistics.fit(model, "c", images, few=True)
    attributor = riba.RelevanceIBA(model, "c", stats, steps=2)
    maps = attributor(images, [0, 1])[1]
    assert attributor.ledger.lost.abs().max() < 1e-3
    own = riba.FeatureStatistics.fit(plain, "c", IMAGES, few=True)
    expected = riba.RelevanceIBA(plain, "c", own, steps=2)(IMAGES, [0, 1])[1]
    both = torch.stack([maps.double().flatten(), expected.double().flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.99


@pytest.mark.parametrize(
    "name", ["iba", "relevance-iba", "deeplift", "grad-cam", "lrp-epsilon-plus"]
)
def test_methods_in_inference_mode(name, built):
    model = built("Functional")
    wb = bench(model, "b", IMAGES, [0, 1])
    expected = METHODS[name](wb, IMAGES, [0, 1])
    again = bench(model, "b", IMAGES, [0, 1])  # the last bottlenecks are remembered by workbench
    with torch.inference_mode():
        torch.testing.assert_close(METHODS[name](again, IMAGES.clone(), [0, 1]), expected)


def test_a_panel_and_a_cell_at_once():
    """Each on a network of its own; tracing anew every time, which reroutes calls everywhere."""
    wb = bench(roughened(Functional()), "b", IMAGES, [0, 1])
    panel, log, stop = samples.private_copy(wb), collections.Counter(), threading.Event()
    expected = {sign: relevance.lrp(wb.model, sign * IMAGES, [0, 1]) for sign in (1, -1)}

    def run(who, model, sign):
        try:
            found = relevance.lrp(model, sign * IMAGES, [0, 1])
            log[who, torch.equal(found, expected[sign])] += 1
        except Exception as error:
            log[who, repr(error)] += 1

    def background():
        while not stop.is_set():
            run("panel", panel.model, 1)

    thread = threading.Thread(target=background)
    thread.start()
    for _ in range(15):
        run("cell", wb.model, -1)
    stop.set()
    thread.join()
    assert set(log) == {("panel", True), ("cell", True)}


def test_one_attributor_in_four_threads(built):
    model = built("Functional")
    stats = riba.FeatureStatistics.fit(model, "b", IMAGES, few=True)
    attributor = riba.RelevanceIBA(model, "b", stats, steps=2)
    batches = [
        torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(k)) for k in range(16)
    ]
    expected = [attributor(batch, [1, 2])[1] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda batch: attributor(batch, [1, 2])[1], batches))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_the_network_stays_as_it_was(built):
    for name in ("resnet18", "WeightNorm", "PlusInPlace"):
        model = built(name)
        before, logits, mode = fingerprint(model), model(IMAGES), model.training
        types = [type(module) for module in model.modules()]
        relevance.lrp(model, IMAGES, [0, 1])
        assert fingerprint(model) == before
        assert [type(module) for module in model.modules()] == types
        assert torch.equal(model(IMAGES), logits)
        assert model.training is mode
        assert all(weight.requires_grad for weight in model.parameters())


# --- what a user's network may do besides --------------------------------------------------------

GLOBAL = roughened(OddOrder())


class Wraps(nn.Module):
    """Calls a network that it does not own."""

    def forward(self, x):
        return GLOBAL(x)


def test_a_network_that_is_only_called_keeps_its_weights():
    before, logits = fingerprint(GLOBAL), GLOBAL(IMAGES)
    maps = relevance.lrp(Wraps().eval(), IMAGES, [0, 1])
    assert fingerprint(GLOBAL) == before
    assert torch.equal(GLOBAL(IMAGES), logits)
    assert all(weight.requires_grad for weight in GLOBAL.parameters())
    torch.testing.assert_close(maps, relevance.lrp(GLOBAL, IMAGES, [0, 1]))


class Settings(Block):
    """What it computes hangs on more than weights."""

    def __init__(self):
        super().__init__()
        self.act, self.scale = nn.ReLU(), 1.0

    def body(self, x):
        return self.act(self.b(self.act(self.a(x * self.scale))))


def exchange(model):
    model.act = nn.Sigmoid().eval()


def rescale(model):
    model.scale = -2.0


def hook(model):
    model.a.register_forward_hook(lambda _module, _inputs, output: output * (output > 0.2))


@pytest.mark.parametrize("change", [exchange, rescale, hook], ids=lambda f: f.__name__)
def test_a_network_that_changes_is_looked_at_again(change):
    torch.manual_seed(0)
    model = roughened(Settings())
    known = explicit(model, [], IMAGES)
    assert explicit(model, [], IMAGES, known) is known
    change(model)
    with pytest.raises(ValueError, match="the network has changed since: make it anew"):
        relevance.lrp(known, IMAGES, [0, 1])
    assert explicit(model, [], IMAGES, known) is not known
    if change is hook:  # relevance cannot follow a hook that changes features
        with pytest.raises(ValueError, match="no longer the same network"):
            relevance.lrp(model, IMAGES, [0, 1])
        return
    found = relevance.lrp(model, IMAGES, [0, 1])
    torch.testing.assert_close(found, relevance.lrp(copy.deepcopy(model), IMAGES, [0, 1]))


class Keywords(Block):
    """As Plus, with operands by keyword and steps that write in place."""

    def body(self, x):
        x = F.leaky_relu_(self.a(input=x), 0.0)
        x = torch.add(self.b(x), other=x)
        return nn.ReLU(inplace=True)(input=F.leaky_relu_(x, 0.0))


class Dim(Plus):
    """As Plus, with a layer by the name of a method of tensors."""

    def __init__(self):
        super().__init__()
        self.dim = self.b
        del self.b

    def body(self, x):
        x = F.relu(self.a(x))
        return F.relu(self.dim(x) + x)


@pytest.mark.parametrize("kind", [Keywords, Dim], ids=lambda kind: kind.__name__)
def test_the_same_network_written_otherwise_has_the_same_map(kind):
    torch.manual_seed(0)
    plain, other = roughened(Plus()), roughened(kind())
    state = plain.state_dict()
    other.load_state_dict({name: state[name.replace("dim", "b")] for name in other.state_dict()})
    start = torch.rand_like(run_until(plain, "c", IMAGES))
    expected = relevance.descend(plain, "c", IMAGES, start)
    torch.testing.assert_close(relevance.descend(other, "c", IMAGES, start), expected)
    stats = riba.FeatureStatistics.fit(other, "a", IMAGES, few=True)
    info = riba.InformationBottleneck(other, "a", stats, steps=1)(IMAGES, [0, 1])
    torch.testing.assert_close(info.features, run_until(other, "a", IMAGES), rtol=1e-4, atol=1e-5)
    assert (info.features < 0).any()


class Interleaved(Block):
    """A container whose modules do not run in one go."""

    def __init__(self):
        super().__init__()
        self.late = nn.ModuleDict({"pre": nn.Identity(), "conv": self.b})
        del self.b

    def body(self, x):
        return F.relu(self.late["conv"](F.relu(self.a(self.late["pre"](x)))))


def test_the_pixel_rule_goes_to_the_convolution_that_sees_the_pixels():
    torch.manual_seed(0)
    model = roughened(Interleaved())
    twin = nn.Sequential(model.a, nn.ReLU(), model.late["conv"], nn.ReLU(), model.c)
    start = torch.rand_like(run_until(model, "c", IMAGES))
    found = relevance.descend(model, "c", IMAGES, start)
    expected = relevance.descend(nn.Sequential(*twin, nn.Flatten()).eval(), "4", IMAGES, start)
    torch.testing.assert_close(found, expected)


class Absolute(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight.abs(), self.bias, padding=1)


class Activated(nn.Conv2d):
    def forward(self, x):
        return F.relu(super().forward(x))


@pytest.mark.parametrize("kind", [Absolute, Activated], ids=lambda kind: kind.__name__)
def test_layers_that_are_not_linear_in_their_weights_are_refused(kind):
    torch.manual_seed(0)
    model = Functional()
    model.b = kind(8, 8, 3, padding=1)
    model = roughened(model)
    start = torch.rand_like(run_until(model, "c", IMAGES))
    with pytest.raises(ValueError, match=f"no rule for `{kind.__name__}`"):
        relevance.descend(model, "c", IMAGES, start)


class Stage(nn.Module):
    """Its last step is not what it returns."""

    def forward(self, x):
        self.saved = x + 1
        return x


class Saves(Block):
    def __init__(self):
        super().__init__()
        self.stage = nn.Sequential(self.b, Stage())
        del self.b

    def body(self, x):
        x = self.stage(F.relu(self.a(x)))
        return F.relu(x) + self.stage[1].saved


def test_a_layers_end_is_what_it_returns():
    torch.manual_seed(0)
    model = roughened(Saves())
    head, tail = explicit(model, ["stage"], IMAGES).parts
    features, *others = head(IMAGES)
    torch.testing.assert_close(features, run_until(model, "stage", IMAGES))
    zeros = torch.zeros_like(features)
    handle = model.stage.register_forward_hook(lambda *_: zeros)
    with torch.no_grad():
        expected = model(IMAGES)
    handle.remove()
    torch.testing.assert_close(tail(zeros, *others)[0], expected)


class Pair(Functional):
    def forward(self, x):
        return super().forward(x), x


def test_outputs_that_are_no_logits_are_said():
    with pytest.raises(ValueError, match="must return logits, images × classes, and not tuple"):
        relevance.lrp(roughened(Pair()), IMAGES, [0, 1])


def test_a_part_in_training_mode_is_named():
    model = roughened(OddOrder())
    model.norms[0].train()
    with pytest.raises(ValueError, match=r"the part 'norms\.0' of the model is in training mode"):
        relevance.lrp(model, IMAGES, [0, 1])


class Squeezes(Block):
    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        return self.head(F.adaptive_avg_pool2d(self.c(x), 1).squeeze())


def test_squeeze_may_take_the_batch_of_one_away():
    torch.manual_seed(0)
    model = roughened(Squeezes())
    start = torch.rand_like(run_until(model, "c", IMAGES))
    pixels = relevance.descend(model, "c", IMAGES, start)
    torch.testing.assert_close(pixels.sum(), start.sum(), rtol=1e-3, atol=0)
    form = explicit(model, ["c"], IMAGES)
    assert explicit(model, ["c"], IMAGES, form) is form


class WritesFirst(Plus):
    def body(self, x):
        x.sub_(0.3)  # to what it was given
        return super().body(x)


class WritesFirstUntraced(WritesFirst):
    def body(self, x):
        return super().body(x if x.sum() > -torch.inf else -x)


@pytest.mark.parametrize("kind", [WritesFirst, WritesFirstUntraced])
@pytest.mark.filterwarnings("ignore:WritesFirst.* cannot be traced")
def test_images_stay_as_they_are_where_the_network_writes_to_them(kind):
    torch.manual_seed(0)
    model, images = roughened(kind()), IMAGES.clone()
    expected = model(images.clone())
    known = None
    for _ in range(2):
        known = explicit(model, ["b"], images, known)
        head, tail = known.parts
        torch.testing.assert_close(tail(*head(images))[0], expected)
        assert torch.equal(images, IMAGES)


class ByTensordot(nn.Linear):
    def forward(self, x):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return torch.tensordot(x, self.weight.T, 1) + self.bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_only_what_autocast_rounds_is_rounded(dtype):
    torch.manual_seed(0)
    model = Plus()
    model.head = ByTensordot(8, 5)
    model, images = roughened(model).to(dtype), IMAGES.to(dtype)
    stats = riba.FeatureStatistics.fit(model, "a", images, few=True)
    full, half = (
        InformationBottleneck(model, "a", stats, precision=precision)(images, [0, 1]).nats
        for precision in (None, torch.bfloat16)
    )
    assert torch.corrcoef(torch.stack([full.flatten(), half.flatten()]))[0, 1] > 0.9


class Expands(Block):
    def body(self, x):
        x = F.relu(self.a(x))
        return x * self.b(x).mean((2, 3), keepdim=True).sigmoid().expand_as(x)


def test_a_gate_that_is_expanded_is_a_gate():
    torch.manual_seed(0)
    model = roughened(Expands())
    maps = relevance.lrp(model, IMAGES, [0, 1], "z+").double().sum((1, 2, 3))
    logits = model(IMAGES)[range(2), [0, 1]].double()
    torch.testing.assert_close(maps, logits, rtol=1e-2, atol=1e-6)


def test_forms_are_compared_in_full_precision_and_the_switch_is_put_back():
    cudnn = torch.backends.cudnn
    assert cudnn.allow_tf32
    with full_precision(torch.device("cuda")):
        assert not cudnn.allow_tf32
        with full_precision(torch.device("cuda")):
            assert not cudnn.allow_tf32
    assert cudnn.allow_tf32
    with full_precision(torch.device("cpu")):
        assert cudnn.allow_tf32


def test_a_switch_set_in_pytorchs_newer_way_is_left_alone():
    if not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("of newer PyTorch")
    conv = torch.backends.cudnn.conv
    before, conv.fp32_precision = conv.fp32_precision, "ieee"
    try:
        with full_precision(torch.device("cuda")):
            assert conv.fp32_precision == "ieee"
        assert conv.fp32_precision == "ieee"
    finally:
        conv.fp32_precision = before
