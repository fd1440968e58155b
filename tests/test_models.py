"""Layers, input checks, weights, and cutting networks in two."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, vgg16

from riba import models
from riba.models import (
    SCENENET_LAYER,
    check_images,
    check_targets,
    class_logit,
    find_layer,
    fingerprint,
    layer_names,
    load_weights,
    run_until,
    scenenet,
    split,
    stopped_at,
)

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    model = vgg16(weights=None)
    model.classifier = nn.Linear(512 * 49, 20)  # not the 480 MB of the original
    return model.eval()


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return resnet18(weights=None).eval()


@pytest.fixture
def net():
    torch.manual_seed(0)
    return scenenet(weights=None)


class Twice(nn.Module):
    """A block that runs two times in one pass."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
        self.unused = nn.Conv2d(3, 3, 1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))

    def forward(self, x):
        return self.head(self.block(self.block(x)))


class Untraceable(nn.Module):
    """Control flow that depends on the values defeats torch.fx."""

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 64, 3))

    def forward(self, x):
        x = self.body(x)
        return self.head(x if x.sum() > 0 else -x)


# --- cutting in two --------------------------------------------------------------------------


def assert_cut(model, layer, images, *, exact):
    """The parts give the network's logits, on images the cut was not checked with, too."""
    cut = split(model, layer, images[:1])
    assert cut.exact is exact
    with torch.no_grad():
        features, *others = cut.head(images)
        torch.testing.assert_close(features, run_until(model, layer, images))
        torch.testing.assert_close(cut.tail(features.clone(), *others), model(images))
        assert not torch.allclose(cut.tail(features + 1, *others), model(images), atol=1e-6)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("layer", ["features.0", "features.16", "features.17", "features"])
def test_vgg_is_cut_exactly(vgg, layer):
    assert_cut(vgg, layer, IMAGES, exact=True)


@pytest.mark.parametrize("layer", ["conv1", "maxpool", "layer2", "layer3.0", "layer4"])
def test_resnet_is_cut_behind_containers(resnet, layer):
    assert_cut(resnet, layer, IMAGES, exact=True)


@pytest.mark.parametrize("layer", ["layer2.0.bn2", "layer3.1.conv1", "layer2.0.downsample"])
def test_inside_a_residual_block_a_hook_does_it(resnet, layer):
    assert_cut(resnet, layer, IMAGES, exact=False)


def test_an_in_place_relu_spares_the_features_of_the_hooked_cut(resnet):
    cut = split(resnet, "layer2.0.bn1", IMAGES[:1])  # a ReLU writes into what it returns
    assert not cut.exact
    with torch.no_grad():
        features, *others = cut.head(IMAGES)
        before = features.clone()
        cut.tail(features, *others)
    assert torch.equal(features, before)


def test_an_untraceable_network_falls_back_to_a_hook():
    torch.manual_seed(0)
    assert_cut(Untraceable().eval(), "body", IMAGES[:, :, :8, :8], exact=False)


def test_the_bundled_network_is_cut_exactly(net):
    assert_cut(net, SCENENET_LAYER, torch.randn(2, 3, 128, 128), exact=True)


def test_the_tail_shares_the_weights(net):
    images = torch.randn(1, 3, 128, 128)
    cut = split(net, SCENENET_LAYER, images)
    with torch.no_grad():
        net.classifier[2].bias += 1
        torch.testing.assert_close(cut.tail(*cut.head(images)), net(images))


@pytest.mark.parametrize("layer", ["block", "block.0"])
def test_a_layer_that_runs_twice_is_refused(layer):
    with pytest.raises(ValueError, match="runs 2 times"):
        split(Twice().eval(), layer, IMAGES[:1, :, :8, :8])


def test_a_layer_that_never_runs_is_refused():
    with pytest.raises(ValueError, match="never runs layer 'unused'"):
        split(Twice().eval(), "unused", IMAGES[:1, :, :8, :8])


def test_a_layer_without_maps_is_refused(net):
    with pytest.raises(ValueError, match="choose a layer with maps"):
        split(net, "classifier.1", torch.randn(1, 3, 128, 128))


def test_an_interrupted_pass_leaves_no_hook(net):
    def interrupt():
        with stopped_at(net.features[3]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert not net.features[3]._forward_hooks


# --- layers ----------------------------------------------------------------------------------


def test_layers_are_found_by_name(net):
    assert find_layer(net, "features.14") is net.features[14]
    assert layer_names(net)[:2] == ["features", "features.0"]


@pytest.mark.parametrize(("wrong", "near"), [("layer5", "layer4"), ("layer2.0.con1", "conv1")])
def test_an_unknown_layer_lists_near_matches(resnet, wrong, near):
    with pytest.raises(ValueError, match=f"no layer '{wrong}'; near matches: .*{near}"):
        find_layer(resnet, wrong)


def test_the_whole_network_is_not_a_layer(net):
    with pytest.raises(ValueError, match="no layer ''"):
        find_layer(net, "")


# --- images and targets ----------------------------------------------------------------------

GOOD = torch.zeros(2, 3, 16, 16)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (GOOD.int(), "convert to float"),
        (GOOD + 255, "looks like 0–255"),
        (GOOD.log() * 0, "NaN or infinite"),
        (GOOD - torch.inf, "NaN or infinite"),
        (GOOD[:, :1], "1 channels, the network takes 3"),
        (GOOD[:0], "empty"),
        (GOOD[0], r"image\[None\]"),
        (GOOD.numpy(), "got ndarray"),
    ],
    ids=["ints", "0-255", "nan", "inf", "grey", "empty", "3-D", "numpy"],
)
def test_bad_images_are_refused(net, images, message):
    with pytest.raises(ValueError, match=message):
        check_images(net, images)


def test_good_images_pass_but_not_in_training_mode(net):
    check_images(net, GOOD)
    with pytest.raises(ValueError, match="training mode"):
        check_images(net.train(), GOOD)


def test_images_on_another_device_than_the_model_are_refused():
    elsewhere = nn.Sequential(nn.Conv2d(3, 2, 1)).eval().to("meta")
    with pytest.raises(ValueError, match=r"images are on cpu, the model on meta: use images\.to"):
        check_images(elsewhere, GOOD)


LOGITS = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0, 5], "class 5 is out of range"),
        ([-1, 0], "class -1 is out of range"),
        ([0], "expected 2 class numbers"),
        (3, "expected 2 class numbers"),
        ([0.0, 1.0], "integers"),
        ([[True] * 5], "must be 2×5"),
        ([[True] * 5, [False] * 5], "selects no class"),
    ],
)
def test_bad_targets_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        check_targets(targets, LOGITS)


def test_class_logit_of_a_class_and_of_a_set():
    single = class_logit(LOGITS, check_targets([1, 4], LOGITS))
    torch.testing.assert_close(single, torch.stack([LOGITS[0, 1], LOGITS[1, 4]]))
    chosen = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    expected = torch.stack([LOGITS[0, 1:3].exp().sum().log(), LOGITS[1].exp().sum().log()])
    torch.testing.assert_close(class_logit(LOGITS, check_targets(chosen, LOGITS)), expected)


# --- weights ---------------------------------------------------------------------------------


@pytest.fixture
def weights(net, tmp_path):
    from safetensors.torch import save_file

    save_file(net.state_dict(), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_weights_come_back_as_saved(net, weights):
    assert fingerprint(scenenet(weights)) == fingerprint(net)


def test_missing_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match="make model"):
        scenenet(tmp_path / "none.safetensors")


def test_truncated_weights(weights):
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        scenenet(weights)


def test_weights_of_another_network(weights):
    with pytest.raises(ValueError, match="another network"):
        load_weights(Twice(), weights)


def test_batch_norm_is_for_training_only(net):
    assert any(isinstance(module, nn.BatchNorm2d) for module in scenenet(None, norm=True).modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def test_fingerprint_changes_with_any_weight_or_name(net):
    before = fingerprint(net)
    assert before == fingerprint(net)
    assert len(before) == 16
    renamed = nn.Sequential()
    renamed.add_module("body", net.features)
    renamed.add_module("classifier", net.classifier)
    assert fingerprint(renamed) != before
    with torch.no_grad():
        net.features[0].weight[0, 0, 0, 0] += 1e-3
    assert fingerprint(net) != before


def test_a_kept_fingerprint_notices_what_was_written(monkeypatch):
    model = scenenet()
    first = fingerprint(model)
    with monkeypatch.context() as patch:
        patch.setattr(models, "_hashed", None)  # not computed again
        assert fingerprint(model) == first
    weight = next(model.parameters())
    with torch.no_grad():
        weight[0, 0] += 1
    second = fingerprint(model)
    weight.data[0, 0] += 1  # PyTorch does not count this
    third = fingerprint(model)
    weight.data = weight.data + 1
    assert len({first, second, third, fingerprint(model)}) == 4
