"""Layers, input checks, weights, and cutting networks in two."""

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet18, vgg16

import riba
from riba.method.network import (
    check_images,
    check_targets,
    class_logit,
    find_layer,
    fingerprint,
    hooked,
    layer_names,
    logits_of,
    run_until,
    state_of,
    takes_any_range,
)
from riba.testbed.networks import load_weights, scenenet

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


# --- running a part --------------------------------------------------------------------------


def test_an_interrupted_pass_leaves_no_hook(net):
    def interrupt(_output):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), hooked(net, {"features.3": interrupt}):
        net(IMAGES)
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
        (GOOD[:0], "empty"),
        (GOOD[0], r"image\[None\]"),
        (GOOD.numpy(), "got ndarray"),
    ],
    ids=["ints", "0-255", "nan", "inf", "empty", "3-D", "numpy"],
)
def test_bad_images_are_refused(net, images, message):
    with pytest.raises(ValueError, match=message):
        check_images(net, images)


def test_what_the_network_raises_of_an_image_becomes_a_sentence(net):
    with pytest.raises(ValueError, match=r"does not take images of 1×16×16 \(.*3 channels"):
        run_until(net, "features.3", GOOD[:, :1])


def test_good_images_pass_but_not_in_training_mode(net):
    check_images(net, GOOD)
    with pytest.raises(ValueError, match="training mode"):
        check_images(net.train(), GOOD)


def test_images_on_another_device_than_the_model_are_refused():
    elsewhere = nn.Sequential(nn.Conv2d(3, 2, 1)).eval().to("meta")
    with pytest.raises(ValueError, match=r"images are on cpu, the model on meta: use images\.to"):
        check_images(elsewhere, GOOD)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (Image.new("RGB", (16, 16)), "got Image: use wb.prepare.image"),
        ([GOOD[0], GOOD[1]], r"got list: use torch.stack"),
        (None, "got NoneType: pass a tensor"),
        (GOOD[:, :, 0], "for one image"),
        (GOOD[:, :, None], "only maps are explained"),
    ],
    ids=["PIL", "list", "None", "sequence", "volume"],
)
def test_what_is_no_batch_of_images_is_refused(net, images, message):
    with pytest.raises(ValueError, match=message):
        check_images(net, images)


def test_any_range_is_taken_on_the_callers_word(net):
    with pytest.raises(ValueError, match=r"riba\.network\.takes_any_range\(model\)"):
        check_images(net, GOOD - 120)
    check_images(takes_any_range(net), GOOD - 120)


# --- what networks return and come wrapped in ------------------------------------------------


class Returns(nn.Module):
    """A small network of which ``change`` is what it returns."""

    def __init__(self, change):
        super().__init__()
        self.a, self.head, self.change = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5), change

    def forward(self, x):
        return self.change(self.head(torch.relu(self.a(x)).mean((2, 3))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: (y, y), "not tuple: wrap it"),
        (lambda y: {"logits": y}, "not dict: wrap it"),
        (lambda y: y[:, 0], r"not \(2,\): wrap it"),
        (lambda y: y[:, :, None, None], r"not \(2, 5, 1, 1\): wrap it"),
        (lambda y: y.mean(0, keepdim=True), r"not \(1, 5\): wrap it"),
        (lambda y: y[:, :1], r"one output.*torch\.cat\(\[torch\.zeros_like\(y\), y\], 1\)"),
        (lambda y: y * torch.nan, "returns NaN or infinite logits"),
    ],
    ids=["tuple", "dict", "B", "maps", "one row", "one logit", "NaN"],
)
def test_what_is_no_matrix_of_logits_is_refused_at_every_entry(change, message):
    model = Returns(change).eval()
    stats = riba.FeatureStatistics.fit(model, "a", IMAGES, few=True)
    entries = (
        lambda: logits_of(model, IMAGES),
        lambda: riba.InformationBottleneck(model, "a", stats)(IMAGES, [0, 0]),
        lambda: riba.RelevanceIBA(model, "a", stats)(IMAGES, [0, 0]),
        lambda: riba.relevance.lrp(model, IMAGES, [0, 0]),
    )
    for entry in entries:
        with pytest.raises(ValueError, match=message) as error:
            entry()
        assert len(str(error.value)) <= 300


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid()])
def test_probabilities_are_no_logits_and_a_warning_says_so(last):
    torch.manual_seed(0)
    model = Returns(last).eval()
    stats = riba.FeatureStatistics.fit(model, "a", IMAGES, few=True)
    with pytest.warns(UserWarning, match="look like probabilities: remove its last softmax"):
        riba.InformationBottleneck(model, "a", stats, steps=1)(IMAGES, [0, 0])


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: nn.DataParallel(torch.compile(m))])
def test_wrapped_networks_are_explained_as_themselves(wrap):
    torch.manual_seed(0)
    model = Returns(lambda y: y).eval()
    stats = riba.FeatureStatistics.fit(wrap(model), "a", IMAGES, few=True)
    assert stats.fingerprint == fingerprint(model)
    maps = [
        riba.RelevanceIBA(m, "a", stats, steps=2)(IMAGES, [0, 1])[1] for m in (model, wrap(model))
    ]
    assert torch.equal(*maps)


def test_torchscript_is_refused_in_a_sentence():
    model = torch.jit.trace(Returns(nn.Identity()).eval(), IMAGES)
    with pytest.raises(ValueError, match="TorchScript cannot be explained: pass the network"):
        riba.FeatureStatistics.fit(model, "a", IMAGES, few=True)
    with pytest.raises(ValueError, match=r"the network is a str: pass a torch\.nn\.Module"):
        riba.FeatureStatistics.fit("resnet50", "a", IMAGES, few=True)


LOGITS = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0, 5], "class 5 is out of range"),
        ([-1, 0], "class -1 is out of range"),
        ([0], "expected 2 class numbers"),
        (3, "expected 2 class numbers"),
        ([0.0, 1.0], "integers"),
        (None, "one class number an image, got 'None'"),
        ("cat", "one class number an image, got 'cat'"),
        ([[0, 1], [2]], "one class number an image"),
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
        load_weights(nn.Conv2d(3, 3, 3), weights)


def test_batch_norm_is_for_training_only(net):
    assert any(isinstance(module, nn.BatchNorm2d) for module in scenenet(None, norm=True).modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def test_fingerprint_changes_with_what_has_no_weights():
    def same_weights(*after):
        torch.manual_seed(0)
        return fingerprint(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), *after))

    relu = same_weights(torch.nn.ReLU())
    assert same_weights(torch.nn.Tanh()) != relu
    assert same_weights(torch.nn.ReLU(), torch.nn.MaxPool2d(2)) != relu
    assert same_weights(torch.nn.ReLU(inplace=True)) == relu


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


def test_the_state_changes_with_everything_that_is_written():
    model = scenenet()
    states = [state_of(model)]
    assert state_of(model) == states[0]
    hash(states[0])
    weight = next(model.parameters())
    with torch.no_grad():
        weight[0, 0] += 1
    states.append(state_of(model))
    weight.data[0, 0] += 1  # PyTorch does not count this
    states.append(state_of(model))
    weight.data = weight.data + 1
    states.append(state_of(model))
    assert len(set(states)) == 4


def test_a_counter_of_a_half_precision_network_hides_no_write():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).half().eval()
    model[1].num_batches_tracked.fill_(70_000)  # too much for 16 bits
    before = state_of(model)
    model[0].weight.data.mul_(2)
    assert state_of(model) != before


@pytest.mark.parametrize(
    "stored",
    [
        lambda state: {"epoch": 3, "state_dict": state},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {f"module.{name}": x for name, x in state.items()},
        lambda state: {f"_orig_mod.module.{name}": x for name, x in state.items()},
    ],
    ids=["state_dict", "model", "DataParallel", "both wrappers"],
)
def test_checkpoints_as_people_have_them(net, stored, tmp_path):
    torch.save(stored(scenenet().state_dict()), tmp_path / "checkpoint.pth")
    load_weights(net, tmp_path / "checkpoint.pth")
    assert fingerprint(net) == fingerprint(scenenet())


def test_checkpoints_that_do_not_fit_are_refused_in_a_sentence(net, tmp_path):
    path = tmp_path / "checkpoint.pth"
    state = scenenet().state_dict()
    head = {name: x[:5] if name.startswith("classifier") else x for name, x in state.items()}
    for content, message in (
        (head, r"2 entries differ, it has classifier.2.weight of 5×96, not 10×96"),
        ({**state, "more": torch.zeros(1)}, "1 entries differ, it has more, which it lacks"),
        ({"lr": 0.1}, r"holds no weights by name: save model\.state_dict\(\)"),
        (net, r"more than tensors, such as a whole network.*save model\.state_dict\(\)"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message) as error:
            load_weights(net, path)
        assert len(str(error.value)) <= 300
