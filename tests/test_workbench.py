"""The workbench hands out what it promises, and what is cached is what would be computed anew."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import riba
from riba import workbench
from riba.method import network
from riba.testbed import datasets, networks, scenes

pytestmark = pytest.mark.filterwarnings("ignore:feature statistics from")


@pytest.fixture(scope="module")
def wb(home):
    return riba.load()


def never(*_given, **_named):
    raise AssertionError("computed, although it was cached")


# --- what load() returns -------------------------------------------------------------------------


def test_load_gives_everything_a_method_needs(wb):
    assert (wb.layer, wb.statistics.count) == ("features.14", 40)
    wb.statistics.check(wb.model, wb.layer)
    assert not wb.model.training
    assert wb.class_names == scenes.CLASS_NAMES
    assert len(set(wb.class_names)) == 10
    assert (len(wb.train), len(wb.validation), len(wb.test)) == (20_000, 1000, 1000)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_sample_is_an_image_its_class_and_its_mask(wb, split):
    sample = getattr(wb, split)[5]
    scene = scenes.draw(scenes.SPLITS[split][5])
    assert (sample.image.shape, sample.mask.shape) == ((3, 128, 128), (128, 128))
    assert (sample.image.dtype, sample.mask.dtype) == (torch.float32, torch.bool)
    assert type(sample.label) is int
    assert sample.label == scene.label
    assert np.array_equal(sample.mask, scene.masks[0])


def test_to_rgb_undoes_the_normalisation(wb):
    images, labels, masks = datasets.stack([wb.test[0], wb.test[1]])
    pictures = np.stack([wb.test.scene(0).image, wb.test.scene(1).image])
    np.testing.assert_allclose(wb.to_rgb(images), pictures / 255, atol=0.5 / 255)
    np.testing.assert_allclose(wb.to_rgb(images[1]), pictures[1] / 255, atol=0.5 / 255)
    assert labels.tolist() == [wb.test[0].label, wb.test[1].label]
    assert torch.equal(masks[1], wb.test[1].mask)


def test_splits_share_no_scene(wb):
    seeds = [set(split.seeds) for split in (wb.train, wb.validation, wb.test)]
    assert not any(one & other for one, other in combinations(seeds, 2))


def test_variants_reach_the_drawing():
    one = datasets.Scenes("test", 2, others=1, evidence="shape").scene(1)
    other = scenes.draw(scenes.SPLITS["test"][1], others=1, evidence="shape")
    assert len(one.labels) == 2
    assert np.array_equal(one.image, other.image)


def test_predictions_are_probabilities_of_the_network(wb):
    images, labels, _ = datasets.stack([wb.test[i] for i in range(6)])
    given = wb.predict(images)
    with torch.no_grad():
        powers = wb.model(images).double().exp()
    expected = powers / powers.sum(1, keepdim=True)
    torch.testing.assert_close(given.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(given.sum(1), torch.ones(6))
    assert torch.equal(given.argmax(1), labels)
    with pytest.raises(ValueError, match="0–255"):
        wb.predict(255 * images)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda wb: riba.load("scennet"), "no workbench called 'scennet'; near matches: scenenet"),
        (
            lambda wb: riba.load(layer="features.41"),
            "no layer 'features.41'; near matches: features.4,",
        ),
        (lambda wb: wb.at("feature.6"), "'feature.6'; near matches: features.6,"),
        (lambda wb: wb.at(""), "no layer ''.*features"),
        (lambda wb: datasets.Scenes("tets", 3), "no split 'tets': choose one of train, .*test"),
        (lambda wb: datasets.Scenes("test", 0), "count must be 1 to 1000000, got 0"),
        (lambda wb: datasets.Scenes("test", 1_000_001), "got 1000001"),
    ],
)
def test_what_does_not_exist_is_refused_in_words(wb, ask, words):
    with pytest.raises(ValueError, match=words):
        ask(wb)


# --- statistics ----------------------------------------------------------------------------------


def test_statistics_are_of_the_first_training_scenes(wb):
    images = torch.stack([wb.train[i].image for i in range(40)])
    with torch.no_grad():
        features = wb.model.features[:15](images).double()
    torch.testing.assert_close(wb.statistics.mean.double(), features.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(wb.statistics.std.double(), features.std(0), rtol=1e-4, atol=1e-5)


def test_the_bottleneck_moves_to_another_layer_of_the_same_network(wb):
    moved = wb.at("features.6")
    assert moved.model is wb.model
    assert (moved.layer, moved.statistics.layer) == ("features.6", "features.6")
    assert moved.statistics.mean.shape == (32, 64, 64)


def test_statistics_are_fitted_once_for_a_network(wb, monkeypatch):
    monkeypatch.setattr(workbench, "reference_images", never)
    again = riba.load()
    assert all(
        torch.equal(getattr(again.statistics, name), getattr(wb.statistics, name))
        for name in ("mean", "std", "active")
    )
    with pytest.raises(AssertionError, match="computed"):
        riba.load(model=networks.scenenet(weights=None))
    monkeypatch.setattr(datasets, "drawing_code", lambda: "other")
    with pytest.raises(AssertionError, match="computed"):
        riba.load()


def test_statistics_of_other_layers_are_fitted_once_or_known(wb):
    bench = replace(wb)
    assert bench.statistics_at(wb.layer) is wb.statistics
    lower = bench.statistics_at("features.6")
    assert lower.layer == "features.6"
    assert bench.statistics_at("features.6") is lower
    assert bench.at("features.6").statistics is lower
    known = replace(wb, reference=None, others={"features.6": lower})
    assert known.statistics_at("features.6") is lower
    assert known.at("features.6").statistics is lower
    with pytest.raises(ValueError, match=r"no images to take feature statistics of features\.9"):
        known.statistics_at("features.9")


def test_the_explicit_form_computes_the_logits(wb):
    images = torch.stack([wb.test[0].image, wb.test[1].image])
    for _ in range(2):
        head, tail = wb.explicit(["features.14"], images).parts
        features, *others = head(images)
        torch.testing.assert_close(tail(features, *others)[0], wb.model(images))


# --- drawings kept on disk -----------------------------------------------------------------------


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "DATA", tmp_path)
    return tmp_path / "cache"


def same(a, b):
    names = ("images", "labels", "masks")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


def test_drawn_scenes_are_those_of_the_split(empty):
    drawn = datasets.drawn("validation", 3, start=2, others=1)
    split = datasets.Scenes("validation", 5, others=1)
    expected = [split.scene(i) for i in (2, 3, 4)]
    assert np.array_equal(drawn.images, np.stack([scene.image for scene in expected]))
    assert np.array_equal(drawn.masks, np.stack([scene.masks[0] for scene in expected]))
    assert drawn.labels.tolist() == [list(scene.labels) for scene in expected]
    ground = datasets.drawn("validation", 3, start=2, picture="background", others=1)
    assert np.array_equal(ground.images, np.stack([scene.background for scene in expected]))


def test_drawn_scenes_are_drawn_once(empty, monkeypatch):
    first = datasets.drawn("test", 3)
    with monkeypatch.context() as patch:
        patch.setattr(scenes, "draw", never)
        assert same(first, datasets.drawn("test", 3))
        for other in ({"start": 1}, {"evidence": "shape"}, {"picture": "background"}):
            with pytest.raises(AssertionError, match="computed"):
                datasets.drawn("test", 3, **other)
        patch.setattr(datasets, "drawing_code", lambda: "other")
        with pytest.raises(AssertionError, match="computed"):
            datasets.drawn("test", 3)
    assert [file.suffix for file in empty.iterdir()] == [".npz"]  # no part left behind


def test_processes_draw_what_one_draws(empty):
    first = datasets.drawn("test", 3)
    (file,) = empty.iterdir()
    file.unlink()
    assert same(first, datasets.drawn("test", 3, workers=2))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not a picture",
        lambda data: data[: len(data) // 2],
        lambda data: data[:60_000] + b"\0" * 100 + data[60_100:],
    ],
    ids=["empty", "garbage", "truncated", "overwritten"],
)
def test_a_corrupt_drawing_is_drawn_anew(empty, damage):
    first = datasets.drawn("test", 2)
    (file,) = empty.iterdir()
    sound = file.read_bytes()
    file.write_bytes(damage(sound))
    assert file.read_bytes() != sound
    assert same(first, datasets.drawn("test", 2))
    with np.load(file) as kept:
        assert np.array_equal(kept["images"], first.images)


def test_the_drawing_code_is_the_bytes_of_its_files(tmp_path, monkeypatch):
    before = datasets.drawing_code()
    for name in ("__init__.py", "shapes.py", "classes.json"):
        (tmp_path / name).write_text("one")
    monkeypatch.setattr(scenes, "__file__", str(tmp_path / "__init__.py"))
    keys = {before, datasets.drawing_code()}
    for name in ("shapes.py", "classes.json"):
        (tmp_path / name).write_text("two")
        keys.add(datasets.drawing_code())
    assert len(keys) == 4


# --- several objects in a scene ------------------------------------------------------------------


def test_either_object_of_a_scene_can_be_the_samples_own():
    first, second = (datasets.Scenes("test", 3, others=1, target=target)[2] for target in (0, 1))
    scene = datasets.Scenes("test", 3, others=1).scene(2)
    assert torch.equal(first.image, second.image)
    assert (first.label, second.label) == scene.labels
    assert torch.equal(first.mask, second.other)
    assert torch.equal(second.mask, first.other)
    assert not (first.mask & first.other).any()
    assert first.name == second.name == "test-others=1-2"


def test_a_single_object_has_no_other_and_a_name_of_its_own(wb):
    assert wb.test[0].other is None
    assert [wb.test[0].name, wb.test[7].name, wb.validation[7].name] == [
        *("test-0", "test-7"), "validation-7"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="target must be 0 to 1, got 2"):
        datasets.Scenes("test", 3, others=1, target=2)


def test_depths_go_down_from_the_layer(wb):
    assert wb.depths == ("features.14", "features.11", "features.9", "features.6")
    assert wb.at("features.11").depths == ("features.11", "features.9", "features.6")
    assert wb.at("features.6").depths == ("features.6",)
    assert wb.at("features.6").at("features.14").depths == wb.depths  # and up again
    assert network.layer_names(wb.model).index(wb.top) > network.layer_names(wb.model).index(
        wb.layer
    )


def test_bounds_are_black_and_white(wb):
    for value, bound in zip((0, 255), wb.bounds, strict=True):
        picture = np.full((2, 2, 3), value, dtype=np.uint8)
        assert torch.allclose(wb.prepare.normalise(picture), bound)


def test_a_residual_network_can_be_loaded(home, tmp_path):
    torch.manual_seed(0)
    weights = tmp_path / "weights.safetensors"
    save_file(networks.small_resnet().state_dict(), weights)
    bench = riba.load("small-resnet", weights=weights)
    assert bench.depths == ("features.5", "features.4", "features.3")
    assert [bench.at(layer).statistics.mean.shape[-1] for layer in bench.depths] == [16, 32, 64]
    sample = bench.validation[0]
    cascade = riba.METHODS["relevance-iba-cascade"](bench, sample.image[None], [sample.label])
    assert cascade.shape == (1, 128, 128)
    with pytest.raises(ValueError, match="small-resnet is not bundled: train it"):
        riba.load("small-resnet")
    with pytest.raises(ValueError, match=r"no workbench called .*near matches: resnet"):
        riba.load("resnet")
