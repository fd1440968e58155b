"""The readout bottleneck: starts open, learns, and the shipped one is as good as it says."""

import pytest
import torch
import torch.nn.functional as F

import riba
from riba.compare import metrics
from riba.method import readout
from riba.method.bottleneck import MIN_STD, InformationBottleneck, measure, to_bits
from riba.method.explicit import explicit
from riba.method.statistics import FeatureStatistics
from riba.testbed import datasets, networks
from tools.readout import fit_scale, train

pytestmark = pytest.mark.filterwarnings("ignore:feature statistics from")
LAYERS = networks.READOUT_LAYERS


@pytest.fixture(scope="module")
def wb(home):
    return riba.load()


@pytest.fixture(scope="module")
def batch(wb):
    return datasets.stack([wb.validation[index] for index in range(8)])


def test_untrained_it_lets_everything_through(wb, batch):
    images = batch[0]
    r, read = readout.record(wb.model, wb.layer, LAYERS, images)
    fresh = readout.Readout(read.shape[1], r.shape[1])
    fit_scale(fresh, read)
    alpha = fresh(read)
    assert alpha.shape == r.shape
    assert (alpha > 4.5).all()


def test_alpha_stays_within_its_limits():
    torch.manual_seed(0)
    net = readout.Readout(4, 3)
    torch.nn.init.normal_(net.convolutions[-1].weight, std=100)
    alpha = net(torch.randn(2, 4, 5, 5))
    assert (alpha.min(), alpha.max()) == (-5, 5)


def test_what_it_reads_is_what_the_layers_compute(wb, batch):
    images = batch[0][:2]
    r, read = readout.record(wb.model, wb.layer, ["features.6", "features.18"], images)
    with torch.no_grad():
        fine = wb.model.features[:7](images)
        top = wb.model.features(images)
        here = wb.model.features[:15](images)
    assert torch.allclose(r, here)
    assert torch.allclose(read[:, :32], F.avg_pool2d(fine, 4), atol=1e-5)
    assert torch.allclose(read[:, 32:], F.interpolate(top, r.shape[-2:], mode="bilinear"))
    assert not any(module._forward_hooks for module in wb.model.modules())


def test_training_lowers_the_loss_and_repeats_itself(wb):
    drawn = datasets.drawn("train", 48)
    images, targets = torch.from_numpy(drawn.images), torch.from_numpy(drawn.labels[:, 0])
    runs = [
        train(
            wb.model, wb.layer, LAYERS, wb.statistics, images, targets, epochs=2, batch=8, lr=3e-3
        )
        for _ in range(2)
    ]
    (bottleneck, losses), (again, others) = runs
    assert losses[1] < 0.9 * losses[0]
    assert losses == others
    maps = bottleneck(datasets.SCENES.normalise(drawn.images[0])[None])
    assert torch.equal(maps, again(datasets.SCENES.normalise(drawn.images[0])[None]))


def test_the_shipped_one_aims_like_the_optimised_and_costs_less_information(wb, batch):
    images, targets, masks = batch
    nats = networks.scenenet_readout(wb.model, wb.statistics)(images)
    info = InformationBottleneck(wb.model, wb.layer, wb.statistics)(images, targets)
    assert (nats >= 0).all()
    scores = [
        metrics.rank_accuracy(to_bits(values, 128), masks).mean() for values in (nats, info.nats)
    ]
    assert scores[0] > scores[1] - 0.05
    assert metrics.rank_accuracy(to_bits(nats, 128), masks).mean() > 0.55
    assert networks.READOUT_WEIGHTS.stat().st_size < 3e6


def test_the_class_survives_the_shipped_readout(wb, batch):
    """What the published figure of merit says: the prediction holds, for few nats."""
    images, targets, _ = batch
    bottleneck = networks.scenenet_readout(wb.model, wb.statistics)
    with torch.no_grad():
        r, read = readout.record(wb.model, wb.layer, LAYERS, images)
        lambda_, nats = measure(r, bottleneck.readout(read), wb.statistics, bottleneck.sigma)
        std = wb.statistics.std.clamp(min=MIN_STD)
        noise = torch.randn(r.shape, generator=torch.Generator().manual_seed(0))
        stats = wb.statistics
        z = stats.active * (lambda_ * r + (1 - lambda_) * (stats.mean + std * noise))
        _, tail = explicit(wb.model, [wb.layer], images).parts
        kept = tail(z)[0].softmax(1).gather(1, targets[:, None]).mean()
    assert kept > 0.6
    assert nats.sum((1, 2, 3)).mean() < 0.1 * readout_open(bottleneck, r).sum((1, 2, 3)).mean()


def readout_open(bottleneck, r):
    return measure(r, torch.full_like(r, 5.0), bottleneck.stats, bottleneck.sigma)[1]


def test_bad_input_is_told_in_a_sentence(wb, batch, tmp_path):
    other = wb.at("features.11").statistics
    with pytest.raises(ValueError, match=r"trained for layer 'features\.14', not 'features\.11'"):
        networks.scenenet_readout(wb.model, other)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        networks.scenenet_readout(wb.model, wb.statistics, tmp_path / "none.safetensors")
    bottleneck = networks.scenenet_readout(wb.model, wb.statistics)
    with pytest.raises(ValueError, match="channels"):
        bottleneck(batch[0][:, :1])
    with pytest.raises(ValueError, match="wrong size for the statistics"):
        bottleneck(batch[0][:, :, :64, :64])
    stats = FeatureStatistics.fit(networks.scenenet(None), wb.layer, batch[0])
    with pytest.raises(ValueError, match="of another network"):
        networks.scenenet_readout(wb.model, stats)
