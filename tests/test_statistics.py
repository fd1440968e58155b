"""Feature statistics against NumPy, and their cache."""

import numpy as np
import pytest
import torch
from torch import nn

from riba.method.network import fingerprint, run_until
from riba.method.statistics import FeatureStatistics

pytestmark = pytest.mark.filterwarnings("ignore:feature statistics from")
LAYER = "1"


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 4)
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(150, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def cached(model, images, folder, **changed):
    asked = {"layer": LAYER, "dataset": "toy/train", "count": 150, "size": 8} | changed
    return FeatureStatistics.cached(model, images=images, folder=folder, **asked)


def never():
    raise AssertionError("the images were touched")


def same(a, b):
    return all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("mean", "std", "active")
    )


# --- fitting ---------------------------------------------------------------------------------


def test_equals_numpy_in_batches_of_any_length(model, images):
    stats = FeatureStatistics.fit(model, LAYER, iter(images.split([1, 70, 2, 77])))
    with torch.no_grad():
        features = run_until(model, LAYER, images).double().numpy()
    np.testing.assert_allclose(stats.mean, features.mean(0), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(stats.std, features.std(0, ddof=1), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(stats.active, (features != 0).mean(0) > 0.01)
    assert stats.mean.dtype == stats.std.dtype == torch.float32
    assert (stats.count, stats.size, stats.layer) == (150, (8, 8), LAYER)


def test_large_means_do_not_drown_the_spread():
    model = nn.Sequential(nn.Identity()).eval()
    small = torch.randn(400, 1, 2, 2, generator=torch.Generator().manual_seed(2)) * 1e-3
    stats = FeatureStatistics.fit(model, "0", (small + 20).split(7))
    expected = (small + 20).double().std(0)
    torch.testing.assert_close(stats.std.double(), expected, rtol=1e-5, atol=0)


def test_active_means_more_than_one_percent():
    model = nn.Sequential(nn.Identity()).eval()
    images = torch.zeros(200, 1, 1, 3)
    images[:2, ..., 1] = 1  # exactly 1 %
    images[:3, ..., 2] = 1
    stats = FeatureStatistics.fit(model, "0", images)
    assert stats.active.flatten().tolist() == [False, False, True]


def test_takes_tensors_batches_and_labelled_batches(model, images):
    whole = FeatureStatistics.fit(model, LAYER, images)
    labelled = [(batch, torch.zeros(len(batch))) for batch in images.split(32)]
    assert same(whole, FeatureStatistics.fit(model, LAYER, labelled))


def test_warns_below_a_thousand_images(model, images):
    with pytest.warns(UserWarning, match="150 images only"):
        FeatureStatistics.fit(model, LAYER, images)


def test_a_thousand_images_are_enough(model, images, recwarn):
    FeatureStatistics.fit(model, LAYER, images.repeat(7, 1, 1, 1))
    assert not [w for w in recwarn if "images only" in str(w.message)]


@pytest.mark.parametrize("few", [[], [torch.zeros(1, 3, 8, 8)]])
def test_refuses_fewer_than_two_images(model, few):
    with pytest.raises(ValueError, match="at least two"):
        FeatureStatistics.fit(model, LAYER, few)


def test_refuses_images_of_different_sizes(model):
    with pytest.raises(ValueError, match="different sizes"):
        FeatureStatistics.fit(model, LAYER, [torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 6, 8)])


def test_refuses_a_layer_without_maps_and_bad_images(model, images):
    with pytest.raises(ValueError, match="does not return maps"):
        FeatureStatistics.fit(model, "2", images)
    with pytest.raises(ValueError, match="0–255"):
        FeatureStatistics.fit(model, LAYER, images * 255)
    with pytest.raises(ValueError, match="no layer"):
        FeatureStatistics.fit(model, "7", images)


def test_fitting_leaves_the_network_alone(model, images):
    before = fingerprint(model)
    FeatureStatistics.fit(model, LAYER, images)
    assert fingerprint(model) == before
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


# --- checks ----------------------------------------------------------------------------------


def test_check_knows_layer_network_and_size(model, images):
    stats = FeatureStatistics.fit(model, LAYER, images)
    stats.check(model, LAYER)
    stats.check_features(torch.zeros(5, 6, 8, 8))
    with pytest.raises(ValueError, match="of layer '1', not of '0'"):
        stats.check(model, "0")
    with pytest.raises(ValueError, match=r"wrong size for the statistics.*8×8 pixels"):
        stats.check_features(torch.zeros(5, 6, 4, 4))
    torch.manual_seed(9)
    other = nn.Sequential(*[nn.Conv2d(3, 6, 3), *list(model)[1:]]).eval()
    with pytest.raises(ValueError, match="another network"):
        stats.check(other, LAYER)


# --- files -----------------------------------------------------------------------------------


def test_save_and_load_give_the_same(model, images, tmp_path):
    stats = FeatureStatistics.fit(model, LAYER, images)
    stats.save(tmp_path / "deep" / "stats.safetensors")
    loaded = FeatureStatistics.load(tmp_path / "deep" / "stats.safetensors")
    assert same(stats, loaded)
    for name in ("layer", "fingerprint", "count", "size", "dataset"):
        assert getattr(stats, name) == getattr(loaded, name)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["stats.safetensors"]


def test_an_interrupted_save_keeps_the_old_file(model, images, tmp_path, monkeypatch):
    path = tmp_path / "stats.safetensors"
    FeatureStatistics.fit(model, LAYER, images).save(path)
    before = path.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        FeatureStatistics.fit(model, LAYER, images[:50]).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no feature statistics"):
        FeatureStatistics.load(tmp_path / "none.safetensors")


def test_cache_hit_touches_no_image(model, images, tmp_path):
    first = cached(model, lambda: images.split(32), tmp_path)
    again = cached(model, never, tmp_path)
    assert same(first, again)
    assert again.dataset == "toy/train"


def test_cache_hit_does_not_run_the_model(model, images, tmp_path):
    cached(model, images, tmp_path)
    runs = []
    handle = model.register_forward_pre_hook(lambda *_: runs.append(1))
    cached(model, images, tmp_path)
    handle.remove()
    assert not runs


@pytest.mark.parametrize(
    "changed", [{"layer": "0"}, {"dataset": "toy/test"}, {"count": 149}, {"size": (6, 8)}]
)
def test_each_part_of_the_key_counts(model, images, tmp_path, changed):
    cached(model, images, tmp_path)
    with pytest.raises(AssertionError, match="touched"):
        cached(model, never, tmp_path, **changed)


def test_changed_weights_are_another_key(model, images, tmp_path):
    cached(model, images, tmp_path)
    changed = nn.Sequential(*model).eval()
    changed[0] = nn.Conv2d(3, 6, 3, padding=1)
    with pytest.raises(AssertionError, match="touched"):
        cached(changed, never, tmp_path)


def truncated(data):
    return data[: len(data) // 2]


def bit_flipped(data):
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


def nothing(_data):
    return b""


@pytest.mark.parametrize("damage", [truncated, bit_flipped, nothing])
def test_corrupt_cache_is_rebuilt_with_a_warning(model, images, tmp_path, damage):
    stats = cached(model, images, tmp_path)
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()
    path.write_bytes(damage(sound))
    with pytest.raises(ValueError, match="sound feature statistics"):
        FeatureStatistics.load(path)
    with pytest.warns(UserWarning, match="computed again"):
        rebuilt = cached(model, images, tmp_path)
    assert same(stats, rebuilt)
    assert same(stats, FeatureStatistics.load(path))


def test_a_cache_that_cannot_be_written_costs_nothing_but_a_warning(model, images, tmp_path):
    folder = tmp_path / "cache"
    folder.write_text("a file in the way of the folder")
    with pytest.warns(UserWarning, match="statistics could not be stored"):
        stats = cached(model, images, folder)
    assert same(stats, cached(model, images, tmp_path / "other"))


def test_foreign_safetensors_are_not_statistics(tmp_path):
    from safetensors.torch import save_file

    save_file({"mean": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="sound feature statistics"):
        FeatureStatistics.load(tmp_path / "x.safetensors")


def test_mismatched_cache_is_refused(model, images, tmp_path):
    cached(model, images, tmp_path)
    (path,) = tmp_path.iterdir()
    path.rename(path.with_name(path.name.replace("toy_train", "toy_test")))
    with pytest.raises(ValueError, match="dataset 'toy/train', expected dataset 'toy/test'"):
        cached(model, never, tmp_path, dataset="toy/test")


def test_images_must_be_what_was_announced(model, images, tmp_path):
    with pytest.raises(ValueError, match="count 150, expected count 1000"):
        cached(model, images, tmp_path, count=1000)
    with pytest.raises(ValueError, match="size"):
        cached(model, images, tmp_path, size=16)
    assert not list(tmp_path.iterdir())
