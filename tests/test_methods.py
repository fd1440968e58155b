"""Every method answers in one form; a map does not depend on the batch around its image."""

import copy
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from skimage.filters import sobel
from torch import nn

import riba
from riba import METHODS
from riba.compare import methods, metrics
from riba.method import bottleneck, input_iba, relevance
from riba.method.bottleneck import Depths
from riba.method.input_iba import InputIBA
from riba.testbed import datasets

pytestmark = [
    pytest.mark.filterwarnings("ignore:feature statistics from"),
    pytest.mark.filterwarnings("ignore:Setting .*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not:UserWarning"),
]
DESIGNED = {
    *("gradient", "smoothgrad", "input-x-gradient", "integrated-gradients", "deeplift"),
    *("guided-backprop", "grad-cam", "guided-grad-cam", "occlusion", "lrp-epsilon-plus"),
    *("lrp-epsilon-gamma-box", "iba", "readout-iba", "input-iba", "relevance-iba"),
    *("relevance-iba-cascade", "capacity-product", "random", "centre", "edges", "oracle"),
}
OPTIMISED = {"input-iba", "input-iba-nats"} | {
    name for name in METHODS if name.startswith(("iba", "relevance-iba", "capacity-product"))
}
SIGNED = {"input-x-gradient", "integrated-gradients", "deeplift", "occlusion",
          "lrp-epsilon-plus", "lrp-epsilon-gamma-box", "relevance-iba-gamma",
          "relevance-iba-alpha2-beta1"}  # fmt: skip


@pytest.fixture(scope="module")
def wb(home):
    with pytest.MonkeyPatch.context() as patch:  # InputIBA as it is, only shorter
        patch.setattr(input_iba, "GENERATOR_STEPS", 3)
        patch.setattr(methods, "InputIBA", lambda *a, **k: InputIBA(*a, steps=4, **k))
        yield riba.load()


@pytest.fixture(scope="module")
def batch(wb):
    return datasets.stack([wb.validation[index] for index in range(3)])


@pytest.fixture(scope="module")
def maps(wb, batch):
    images, targets, masks = batch
    return {name: METHODS[name](wb, images, targets, masks=masks) for name in METHODS}


def test_all_that_the_design_names_are_there():
    assert set(METHODS) >= DESIGNED
    for name, method in METHODS.items():
        assert len(method.description.split()) > 7, name


@pytest.mark.parametrize("name", METHODS)
def test_one_form_and_its_sign(name, maps, batch):
    values = maps[name]
    assert values.shape == batch[2].shape
    assert torch.isfinite(values).all()
    assert not values.requires_grad
    assert values.std() > 0
    if name not in SIGNED:
        assert (values >= 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_alone_as_in_the_batch(name, wb, maps, batch):
    images, targets, masks = batch
    alone = METHODS[name](wb, images[1:2], targets[1:2], masks=masks[1:2])[0]
    largest = maps[name][1].abs().max()
    if name in OPTIMISED:
        assert np.corrcoef(alone.flatten(), maps[name][1].flatten())[0, 1] > 0.999
    else:
        assert (alone - maps[name][1]).abs().max() <= 1e-4 * largest


@pytest.mark.parametrize("name", ["smoothgrad", "random", "iba"])
def test_seeds_differ_and_repeat(name, wb, maps, batch):
    images, targets, _ = batch
    assert torch.equal(METHODS[name](wb, images, targets), maps[name])
    assert not torch.allclose(METHODS[name](wb, images, targets, seed=1), maps[name])


@pytest.mark.parametrize("name", METHODS)
def test_sets_of_classes_are_explained(name, wb, maps, batch):
    """A set of one class is that class; and the network is left without hooks or gradients."""
    images, targets, masks = batch
    as_set = nn.functional.one_hot(targets, 10).bool()
    values = METHODS[name](wb, images[:1], as_set[:1], masks=masks[:1])
    assert torch.allclose(values[0], maps[name][0], atol=1e-4 * maps[name][0].abs().max().item())
    assert not any(m._forward_hooks or m._backward_hooks for m in wb.model.modules())
    assert all(p.grad is None for p in wb.model.parameters())


@pytest.mark.parametrize("name", ["gradient", "deeplift", "grad-cam", "lrp-epsilon-plus", "iba"])
def test_another_class_is_another_map(name, wb, maps, batch):
    images, targets, _ = batch
    assert not torch.allclose(METHODS[name](wb, images, (targets + 1) % 10), maps[name])


# --- each against what defines it ----------------------------------------------------------------


def logit(wb, images, targets):
    return wb.model(images).gather(1, targets[:, None])[:, 0]


def test_the_gradient_predicts_a_small_step(wb, maps, batch):
    images, targets, _ = batch
    image = images[:1]
    place = maps["gradient"][0].flatten().argmax().item()
    row, column = divmod(place, 128)
    changes = []
    with torch.no_grad():
        for colour in range(3):
            moved = image.clone()
            moved[0, colour, row, column] += 1e-2
            changes.append(logit(wb, moved, targets[:1]) - logit(wb, image, targets[:1]))
    steepest = torch.stack(changes).abs().max() / 1e-2
    assert steepest == pytest.approx(maps["gradient"][0].max().item(), rel=0.05)


@pytest.mark.parametrize(("name", "error"), [("integrated-gradients", 0.03), ("deeplift", 0.05)])
def test_contributions_add_up_to_the_change_of_the_logit(name, error, wb, maps, batch):
    images, targets, _ = batch
    with torch.no_grad():
        change = logit(wb, images, targets) - logit(wb, torch.zeros_like(images), targets)
    assert torch.allclose(maps[name].sum((1, 2)), change, rtol=error, atol=error)


def test_grad_cam_is_its_formula(wb, maps, batch):
    images, targets, _ = batch
    features = wb.model.features(images).detach().requires_grad_()
    score = wb.model.classifier(features).gather(1, targets[:, None]).sum()
    weights = torch.autograd.grad(score, features)[0].mean((2, 3), keepdim=True)
    cam = (weights * features).sum(1, keepdim=True).clamp(min=0)
    large = nn.functional.interpolate(cam, (128, 128), mode="bilinear", align_corners=False)
    assert torch.allclose(large[:, 0], maps["grad-cam"], atol=1e-5)


def test_occlusion_is_the_drop_under_a_grey_window(wb, batch):
    images, targets, _ = batch
    image, target = images[:1], targets[:1]
    values = METHODS["occlusion"](wb, image, target, window=64, stride=64)
    with torch.no_grad():
        whole = logit(wb, image, target)
        for row in (0, 64):
            hidden = image.clone()
            hidden[:, :, row : row + 64, 64:] = 0
            drop = whole - logit(wb, hidden, target)
            assert values[0, row + 10, 100] == pytest.approx(drop.item(), abs=1e-4)


def test_the_bottleneck_family_shares_one_optimisation(wb, batch, maps):
    images, targets, _ = batch
    info = riba.InformationBottleneck(wb.model, wb.layer, wb.statistics)(images, targets)
    assert torch.allclose(maps["iba"], info.bits(128))
    nats = maps["relevance-iba"].sum((1, 2))
    assert torch.allclose(nats, info.nats.sum((1, 2, 3)), rtol=1e-3)
    for name in ("relevance-iba-gamma", "relevance-iba-alpha2-beta1"):
        assert torch.allclose(maps[name].sum((1, 2)), nats, rtol=1e-3), name
    again = methods.information(wb, wb.layer, images, targets)
    assert again is methods.information(wb, wb.layer, images.clone(), targets.clone())
    assert again is not methods.information(wb, wb.layer, images + 1e-3, targets)


def test_the_joint_family_shares_one_optimisation(wb, batch, maps):
    images, targets, _ = batch
    stats = [wb.statistics_at(layer) for layer in wb.depths]
    found = riba.InformationBottleneck(wb.model, wb.depths, stats)(images, targets)
    shallowest = found[wb.depths[-1]]
    nats = shallowest.nats.sum((1, 2, 3))
    assert torch.allclose(maps["iba-joint"], shallowest.bits(128))
    for name in ("relevance-iba-joint", "relevance-iba-cascade"):
        assert torch.allclose(maps[name].sum((1, 2)), nats, rtol=1e-3), name
    squared = maps["capacity-product"] * maps["iba-joint"]
    ratio = maps["capacity-product-squared"] / squared
    assert torch.allclose(ratio, ratio.amax((1, 2), keepdim=True), rtol=1e-3)
    alone = [methods.information(wb, layer, images, targets).bits(128) for layer in wb.depths]
    product = torch.stack(alone).prod(0)
    ratio = maps["capacity-product-separate"] / product
    assert torch.allclose(ratio, ratio.amax((1, 2), keepdim=True), rtol=1e-3)
    ratio = maps["capacity-product-squared-separate"] / (product * alone[-1])
    assert torch.allclose(ratio, ratio.amax((1, 2), keepdim=True), rtol=1e-3)
    separate = Depths(tuple(methods.information(wb, x, images, targets) for x in wb.depths))
    full = relevance.detailed(wb.model, images, targets, separate)
    control = maps["capacity-product-squared-separate"]  # the mean of both, in logarithms
    assert torch.allclose(maps["relevance-iba-detail-separate"], (full * control).sqrt(), rtol=1e-3)
    for place, bits in enumerate(alone[1:], 2):
        assert torch.equal(maps[f"iba-depth-{place}"], bits)


def test_a_depth_that_is_not_there_is_refused(wb, batch):
    images, targets, _ = batch
    with pytest.raises(ValueError, match="has 1 depths, not 2"):
        METHODS["iba-depth-2"](wb.at(wb.depths[-1]), images, targets)


def test_the_last_result_is_kept_until_the_images_or_the_weights_change(wb, batch):
    images, targets, _ = batch
    bench = dataclasses.replace(wb)
    first = methods.information(bench, wb.layer, images[:1], targets[:1])
    other = methods.information(bench, wb.layer, images[:1], targets[:1], seed=1)
    assert other is not first
    assert methods.information(bench, wb.layer, images[:1].clone(), targets[:1]) is first
    methods.information(bench, wb.layer, images[1:2], targets[1:2])
    assert methods.information(bench, wb.layer, images[:1], targets[:1]) is not first
    bench = dataclasses.replace(wb, model=copy.deepcopy(wb.model))
    methods.information(bench, wb.layer, images[:1], targets[:1])
    with torch.no_grad():
        next(bench.model.parameters()).mul_(1.01)
    with pytest.raises(ValueError, match="its weights have changed"):
        methods.information(bench, wb.layer, images[:1], targets[:1])


@pytest.mark.parametrize(
    "name", ["readout-iba", "relevance-iba", "guided-grad-cam", "deeplift", "lrp-epsilon-plus"]
)
def test_threads_may_share_a_workbench(name, wb, batch):
    images, targets, _ = batch
    method = METHODS[name]
    expected = [method(wb, images[k : k + 1], targets[k : k + 1]) for k in range(3)]
    places = [0, 1, 2] * 4
    with ThreadPoolExecutor(4) as pool:
        maps = pool.map(lambda k: method(wb, images[k : k + 1], targets[k : k + 1]), places)
        for place, values in zip(places, maps, strict=True):
            torch.testing.assert_close(values, expected[place], rtol=1e-3, atol=1e-4)


def test_forms_do_not_depend_on_the_number_of_images(wb, batch):
    bench = dataclasses.replace(wb)
    assert bench.explicit((), batch[0]) is bench.explicit((), batch[0][:1])


def test_maps_come_with_their_ledger(wb, batch, maps):
    images, targets, _ = batch
    for name, method in METHODS.items():
        if name.startswith("relevance-iba") and not name.startswith("relevance-iba-detail"):
            values, ledger = method.explain(wb, images, targets)
            assert torch.equal(values, maps[name])
            torch.testing.assert_close(ledger.end, values.double().sum((1, 2)), rtol=1e-5, atol=0)
            torch.testing.assert_close(ledger.end, ledger.start, rtol=1e-3, atol=0)
            assert method.unit == "nats"
    scores = [name for name in METHODS if name.startswith("relevance-iba-detail")]
    for name in ("iba", *scores):  # of a score nothing is conserved
        assert METHODS[name].explain(wb, images, targets)[1] is None
        assert METHODS[name].unit != "nats"


def test_controls_are_what_they_say(maps, batch, wb):
    images, _, masks = batch
    assert torch.equal(maps["oracle"], masks.float())
    assert maps["centre"][0].flatten().argmax() in (64 * 128 + 64, 63 * 128 + 63, 64 * 128 + 63,
                                                    63 * 128 + 64)  # fmt: skip
    grey = wb.to_rgb(images[0]).mean(-1).numpy()
    assert np.allclose(sobel(grey), maps["edges"][0], atol=1e-6)
    assert not torch.equal(maps["random"][0], maps["random"][1])
    assert metrics.rank_accuracy(maps["oracle"], masks).tolist() == [1, 1, 1]


# --- bad input -----------------------------------------------------------------------------------


def test_bad_input_is_told_in_a_sentence(wb, batch):
    images, targets, _ = batch
    with pytest.raises(ValueError, match=r"no method 'relevance_iba'; near matches: relevance-iba"):
        methods.find_method("relevance_iba")
    with pytest.raises(ValueError, match="the oracle is the mask itself: pass masks="):
        METHODS["oracle"](wb, images, targets)
    with pytest.raises(ValueError, match="2 masks for 3 images"):
        METHODS["centre"](wb, images, targets, masks=batch[2][:2])
    for name in ("gradient", "occlusion", "random"):
        with pytest.raises(ValueError, match="class 10 is out of range"):
            METHODS[name](wb, images[:1], [10])
        with pytest.raises(ValueError, match="NaN"):
            METHODS[name](wb, images[:1] * torch.nan, targets[:1])


def test_deeplift_adds_up_on_forty_scenes(wb):
    images, targets, _ = datasets.stack([wb.test[index] for index in range(40)])
    with torch.no_grad():
        rise = wb.model(images) - wb.model(torch.zeros_like(images))
    expected = rise.gather(1, targets[:, None])[:, 0]
    found = METHODS["deeplift"](wb, images, targets).sum((1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("iba", {"beta": 1.0}),
        ("iba", {"layer": "features.11"}),
        ("iba", {"samples": 3}),
        ("relevance-iba", {"source": "active"}),
        ("relevance-iba", {"composite": "gamma"}),
        ("relevance-iba-cascade", {"steps": 3}),
        ("capacity-product", {"beta": 1.0}),
        ("smoothgrad", {"samples": 5}),
    ],
)
def test_settings_are_taken_by_keyword_and_change_the_map(wb, batch, name, settings):
    images, targets = batch[0][:1], batch[1][:1]
    plain, other = (
        METHODS[name](wb, images, targets),
        METHODS[name](wb, images, targets, **settings),
    )
    assert not torch.equal(plain, other)
    assert torch.equal(METHODS[name].using(**settings)(wb, images, targets), other)


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("iba", "betta", "iba has no setting 'betta'; near matches: beta"),
        ("smoothgrad", "beta", "smoothgrad has no setting 'beta'; near matches:"),
        ("edges", "beta", "edges has no setting 'beta'; near matches: blur"),
    ],
)
def test_unknown_settings_are_refused_with_near_matches(wb, batch, name, setting, message):
    with pytest.raises(ValueError, match=message):
        METHODS[name](wb, batch[0][:1], batch[1][:1], **{setting: 1.0})


def test_classes_by_name(wb, batch):
    images, labels = batch[0][:2], batch[1][:2]
    names = [wb.class_names[label] for label in labels]
    assert torch.equal(
        METHODS["gradient"](wb, images, names), METHODS["gradient"](wb, images, labels)
    )
    with pytest.raises(ValueError, match="no class 'fsih'; near matches: fish"):
        METHODS["gradient"](wb, images, ["fsih", "car"])


@pytest.mark.parametrize("images", [None, [torch.zeros(3, 128, 128)], np.zeros((1, 3, 128, 128))])
def test_images_that_are_no_tensor_are_refused_by_every_method(wb, images):
    for entry in (lambda: METHODS["gradient"](wb, images, [0]), lambda: wb.predict(images)):
        with pytest.raises(ValueError, match="images must be a B×C×H×W tensor"):
            entry()


def test_deeplift_adds_up_where_an_activation_runs_twice(wb, batch):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 10, 3)
            self.relu = nn.ReLU()

        def forward(self, x):
            return self.relu(self.second(self.relu(self.first(x)))).mean((2, 3))

    names = tuple("abcdefghij")
    bench = riba.Workbench(Twice().eval(), *(None,) * 5, names, *(None,) * 2)
    image = batch[0][:1]
    with torch.no_grad():
        difference = (bench.model(image) - bench.model(torch.zeros_like(image)))[0, 3]
    torch.testing.assert_close(METHODS["deeplift"](bench, image, [3]).sum(), difference)


def test_every_map_can_be_smoothed(wb, batch, maps):
    images, targets, _ = batch
    blurred, ledger = METHODS["relevance-iba"].explain(wb, images, targets, blur=4.0)
    assert torch.allclose(blurred, bottleneck.smooth(maps["relevance-iba"], 4.0))
    assert ledger is None
    for width in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="blur must be 0 pixels or more"):
            METHODS["edges"](wb, images, targets, blur=width)
    assert METHODS["edges"].using(blur=4.0).version != METHODS["edges"].version
