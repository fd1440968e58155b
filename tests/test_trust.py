"""The instruments that question a map are right themselves."""

import pytest
import torch
from scipy.stats import spearmanr

import riba
from riba.compare import trust
from riba.method import network, relevance
from riba.method.bottleneck import InformationBottleneck, capacity_product, smooth
from riba.method.statistics import FeatureStatistics
from riba.testbed import datasets, networks

pytestmark = pytest.mark.filterwarnings("ignore:feature statistics from")
LAYER = "features.14"


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return networks.scenenet(weights=None)


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_layers_with_weights_from_the_logits_down(net):
    layers = trust.weighted_layers(net)
    assert (layers[0], layers[-1], len(layers)) == ("classifier.2", "features.0", 9)


def test_only_the_named_layers_are_drawn_anew(net):
    copy = trust.randomised(net, ["classifier.2", "features.17"])
    for name, weight in net.named_parameters():
        same = torch.equal(weight, copy.get_parameter(name))
        assert same == (name.rsplit(".", 1)[0] not in ("classifier.2", "features.17")), name
    drawn, old = copy.features[17].weight, net.features[17].weight
    assert drawn.std() == pytest.approx(old.std().item(), rel=0.05)
    again = trust.randomised(net, ["classifier.2", "features.17"])
    assert torch.equal(drawn, again.features[17].weight)
    with pytest.raises(ValueError, match="near matches"):
        trust.randomised(net, ["features.170"])


@pytest.mark.parametrize("composite", ["z+", "gamma", "alpha2-beta1"])
def test_a_descent_does_not_read_what_lies_above_its_layer(net, images, composite):
    above = ["classifier.2", "features.17", "features.15"]
    nats = torch.rand(network.run_until(net, LAYER, images).shape)
    before = relevance.descend(net, LAYER, images, nats, composite)
    after = relevance.descend(trust.randomised(net, above), LAYER, images, nats, composite)
    assert torch.equal(before, after)


def test_rank_correlation_is_spearmans():
    draw = torch.Generator().manual_seed(1)
    one = torch.randint(0, 6, (3, 8, 8), generator=draw).float()  # many ties
    other = torch.randint(0, 6, (3, 8, 8), generator=draw).float()
    expected = [spearmanr(a.flatten(), b.flatten())[0] for a, b in zip(one, other, strict=True)]
    assert trust.rank_correlation(one, other).tolist() == pytest.approx(expected, abs=1e-9)
    assert trust.rank_correlation(one, one.exp()).tolist() == pytest.approx([1, 1, 1])
    assert trust.rank_correlation(one, torch.zeros_like(one)).isnan().all()


def test_a_mosaic_shows_every_scene_in_its_cell():
    split = datasets.Scenes("validation", 40)
    samples = {}
    for sample in split:
        samples.setdefault(sample.label, sample)
    four = list(samples.values())[:4]
    picture, labels, cells = trust.mosaic(four)
    assert picture.shape == (3, 256, 256)
    assert labels.tolist() == [sample.label for sample in four]
    assert torch.equal(cells.sum(0), torch.ones(256, 256, dtype=torch.long))
    for sample, cell in zip(four, cells, strict=True):
        assert torch.equal(picture[:, cell].unflatten(1, (128, 128)), sample.image)
    with pytest.raises(ValueError, match="4 samples of different classes"):
        trust.mosaic([four[0]] * 4)


def bench(model, images, layers=("features.14", "features.6")):
    """A workbench with statistics of ``layers`` over a few images."""
    stats = {layer: FeatureStatistics.fit(model, layer, images) for layer in layers}
    first = layers[0]
    samples, names = [], tuple("0123456789")
    return riba.Workbench(
        *(model, first, stats[first], samples, samples, samples, names, layers, first),
        others=stats,
    )


def test_statistics_are_tiled_and_carried_over(net, images):
    wb = bench(net, images)
    wide, stats = trust.tiled(wb).statistics, wb.statistics
    assert wide.mean.shape[1:] == tuple(2 * side for side in stats.mean.shape[1:])
    assert torch.equal(wide.mean[:, :8, 8:], stats.mean)
    mosaic = torch.randn(1, 3, 128, 128)
    InformationBottleneck(net, LAYER, wide, steps=1, samples=1)(mosaic, [0])
    other = trust.randomised(net, ["classifier.2"])
    with pytest.raises(ValueError, match="another network"):
        InformationBottleneck(other, LAYER, stats)
    InformationBottleneck(other, LAYER, trust.carried_over(stats, other))


def test_statistics_hold_where_nothing_below_has_changed(net, images):
    wb, fits = bench(net, images), []

    def reference():
        fits.append(1)
        return images

    for changed, fitted in {
        ("classifier.2", "features.17"): (),
        ("classifier.2", "features.10"): ("features.14",),
        ("features.3",): wb.depths,
    }.items():
        fits.clear()
        model = trust.randomised(net, changed)
        other = trust.with_network(wb, model, changed, reference)
        assert other.model is model
        assert len(fits) == len(fitted)
        for layer in wb.depths:
            stats = other.statistics_at(layer)
            stats.check(model, layer)
            assert stats.mean.equal(wb.statistics_at(layer).mean) == (layer not in fitted)
            expected = FeatureStatistics.fit(model, layer, images)
            assert stats.mean.allclose(expected.mean, atol=1e-6)


def test_a_block_has_changed_where_a_layer_inside_it_has():
    net = networks.small_resnet()
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    wb = bench(net, images, ("features.5", "features.4"))
    changed = ["features.5.conv2"]
    other = trust.with_network(wb, trust.randomised(net, changed), changed, lambda: images)
    for layer, same in {"features.5": False, "features.4": True}.items():
        assert other.statistics_at(layer).mean.equal(wb.statistics_at(layer).mean) == same


def test_the_maps_under_test_are_those_of_the_methods(net, images):
    wb = bench(net, images)
    maps = trust.explain(wb, images, torch.tensor([1, 2]))
    iba = InformationBottleneck(net, "features.14", wb.statistics)(images, [1, 2])
    stats = [wb.statistics_at(layer) for layer in wb.depths]
    joint = InformationBottleneck(net, wb.depths, stats)(images, [1, 2])
    expected = {
        "IBA": iba.bits(64),
        "LRP": relevance.lrp(net, images, [1, 2]).sum(1),
        "Relevance-IBA": relevance.descend(net, "features.14", images, iba.nats).sum(1),
        "joint": relevance.descend(net, "features.6", images, joint["features.6"].nats).sum(1),
        "cascade": relevance.cascade(net, images, joint).sum(1),
        "joint, no LRP": capacity_product((x.nats for x in (*joint, joint.shallowest)), 64),
        "depths × detail": riba.METHODS["relevance-iba-detail-separate"](wb, images, [1, 2]),
        "no LRP": riba.METHODS["capacity-product-squared-separate"](wb, images, [1, 2]),
    }
    assert list(maps) == list(expected)
    for name, values in maps.items():
        assert values.equal(expected[name]), name


def test_transplanted_detail_is_that_of_another_map():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 16, 16, generator=generator)
    blobs = smooth(torch.rand(3, 16, 16, generator=generator), 4.0)
    own = trust.transplanted(maps, smooth(maps, 4.0))
    assert torch.allclose(own, maps, atol=1e-6)
    other = trust.transplanted(maps, blobs, shift=1)
    assert torch.allclose(other[0], blobs[0] * maps[1] / smooth(maps[1], 4.0), atol=1e-6)
    assert torch.allclose(other[2], blobs[2] * maps[0] / smooth(maps[0], 4.0), atol=1e-6)
    assert torch.equal(trust.transplanted(torch.zeros_like(maps), blobs), blobs)
