"""The bundled network is what its card says, and the testbed is fair."""

import os
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from skimage.color import rgb2gray
from skimage.filters import sobel

from riba.compare.metrics import rank_accuracy
from riba.testbed import datasets, networks
from tools import training

CARD = networks.SCENENET_WEIGHTS.with_suffix(".md").read_text(encoding="utf-8")


def pictures(count, **variant):
    return datasets.drawn("test", count, workers=os.cpu_count() or 1, **variant)


@pytest.fixture(scope="module")
def test_scenes():
    return pictures(1000)


@pytest.fixture(scope="module")
def network():
    return networks.scenenet()


def on_card(row):
    (line,) = (line for line in CARD.splitlines() if line.startswith(f"| {row}"))
    return float(re.search(r"([\d.]+)%", line)[1])


def test_accuracy_is_what_the_card_says(network, test_scenes):
    guesses = training.predictions(network, test_scenes.images).argmax(1).numpy()
    accuracy = 100 * (guesses == test_scenes.labels[:, 0]).mean()
    assert accuracy == pytest.approx(on_card("1,000 default (class"), abs=0.2)
    assert accuracy >= 97


def test_both_classes_of_two_objects_are_on_top(network):
    two = pictures(200, others=1)
    logits = training.predictions(network, two.images)
    tops = logits.topk(2).indices.tolist()
    pairs = zip(tops, two.labels.tolist(), strict=True)
    share = 100 * np.mean([set(top) == set(labels) for top, labels in pairs])
    assert share == pytest.approx(on_card("200 with two"), abs=0.2)
    assert share >= 90


def test_the_background_alone_classifies_at_chance(network):
    empty = pictures(300, picture="background")
    guesses = training.predictions(network, empty.images).argmax(1).numpy()
    assert (guesses == empty.labels[:, 0]).mean() <= 0.15  # 10 % and three standard errors


def test_edges_find_the_object_at_less_than_twice_chance(test_scenes):
    edges = np.stack([sobel(rgb2gray(image)) for image in test_scenes.images[:200]])
    masks = torch.from_numpy(test_scenes.masks[:200])
    score = rank_accuracy(torch.from_numpy(edges), masks).mean()
    assert score < 2 * masks.double().mean()


def test_the_weights_are_small_and_finite():
    assert networks.SCENENET_WEIGHTS.stat().st_size <= 6_000_000
    assert all(torch.isfinite(w).all() for w in load_file(networks.SCENENET_WEIGHTS).values())


# --- how it is made ------------------------------------------------------------------------------


def test_folding_batch_norms_leaves_the_network_what_it_was():
    torch.manual_seed(0)
    model = networks.scenenet(weights=None, norm=True)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.normal_()
            module.bias.data.normal_()
    images = torch.randn(2, 3, 64, 64)
    folded = training.folded(model.eval())
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-4, atol=1e-4)


def test_training_that_was_stopped_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "BATCH", 4)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    targets = torch.eye(10)[:8]

    def trained(checkpoint):
        torch.manual_seed(0)
        model = networks.scenenet(weights=None, norm=True)
        training.train(model, images, targets, checkpoint, epochs=2)
        return model.state_dict()

    undisturbed = trained(tmp_path / "a.pt")
    keep = training.keep

    def keep_and_stop(path, parts, epoch, seconds):
        keep(path, parts, epoch, seconds)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "keep", keep_and_stop)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "b.pt")
    resumed = trained(tmp_path / "b.pt")
    assert all(torch.equal(resumed[name], weight) for name, weight in undisturbed.items())


def test_two_objects_share_the_belief():
    beliefs = training.shared_belief(np.array([[3], [7]]))
    assert np.array_equal(beliefs, np.eye(10, dtype=np.float32)[[3, 7]])
    assert training.shared_belief(np.array([[3, 7]]))[0, [3, 7]].tolist() == [0.5, 0.5]
