"""The same answers on a GPU: skipped where there is none."""

import pytest
import torch

import riba
from riba.compare import calibration, trust
from riba.compare.methods import METHODS
from riba.method.bottleneck import in_chunks
from riba.method.explicit import explicit
from riba.testbed.datasets import Chosen, stack

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
FEW = {"steps": 3, "samples": 2}


@pytest.fixture(scope="module")
def both():
    return riba.load(), riba.load(device="cuda")


@pytest.fixture(scope="module")
def scenes():
    return stack([riba.load().validation[index] for index in range(2)])


@pytest.fixture(autouse=True)
def exact():
    """Convolutions in full float32, as on a CPU."""
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_map_of_the_cpu(both, scenes, name):
    images, labels, masks = scenes
    settings = {}
    if "steps" in METHODS[name].takes and "samples" in METHODS[name].takes:
        settings = FEW
    maps = [
        METHODS[name](wb, images.to(wb.device), labels, masks=masks.to(wb.device), **settings)
        for wb in both
    ]
    assert maps[1].is_cuda
    one, other = (m.cpu().flatten(1).double() for m in maps)
    for a, b in zip(one, other, strict=True):
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.999 or torch.equal(a, b), name


def test_images_of_the_cpu_come_back_to_it(both, scenes):
    images, labels, _ = scenes
    assert METHODS["iba"](both[1], images, labels, **FEW).device.type == "cpu"


def test_rounding_refuses_no_network_with_random_weights():
    torch.backends.cudnn.allow_tf32 = True
    model = riba.load("efficientnet-lite0", device="cuda").model
    model = trust.randomised(model, trust.weighted_layers(model))
    images = torch.rand(2, 3, 224, 224, device="cuda")
    net = explicit(model, ("blocks.4", "blocks.1"), images)
    assert not net.reason
    assert net.ruled("blocks.1", images[:1])


def test_a_bottleneck_runs_in_mixed_precision(both, scenes):
    wb, (images, labels, _) = both[1], scenes
    settings = {"precision": torch.bfloat16, "samples": 6}
    mixed, full = (METHODS["iba"](wb, images.cuda(), labels, **chosen) for chosen in (settings, {}))
    assert torch.isfinite(mixed).all()
    pair = torch.stack([mixed.flatten(), full.flatten()])
    assert torch.corrcoef(pair)[0, 1] > 0.9


def test_too_many_images_are_halved_where_memory_runs_out():
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2**30 / total)  # a gigabyte

    def work(part):
        return (torch.zeros(part.stop - part.start, 2**26, device="cuda")[:, :1].clone(),)

    try:
        (rows,), size = in_chunks(work, 10, 8)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert len(rows) == 10
    assert size < 8


def test_an_evaluation_runs(both, tmp_path):
    wb = both[1]
    metrics = ["allocation_area", "mass_accuracy", "insertion", "deletion", "degradation"]
    scenes = Chosen([(wb.validation, index) for index in range(3)])
    table = riba.evaluate(wb, ["relevance-iba", "grad-cam"], scenes, metrics, out=tmp_path)
    again = riba.evaluate(wb, ["relevance-iba", "grad-cam"], scenes, metrics, out=tmp_path)
    assert table.equals(again)
    slow = riba.evaluate(both[0], ["relevance-iba", "grad-cam"], scenes, metrics)
    assert (table["value"] - slow["value"]).abs().max() < 0.02


def test_beta_is_calibrated(both):
    wb = both[1]
    samples = Chosen([(wb.validation, index) for index in range(2)])
    table = calibration.shares_kept(wb, wb.layer, samples, grid=(0.1, 1.0))
    assert calibration.calibrated(table) >= 0.1


def test_statistics_and_attributor(both, scenes):
    wb, (images, labels, _) = both[1], scenes
    stats = riba.FeatureStatistics.fit(wb.model, wb.layer, [images.cuda()], few=True)
    with riba.RelevanceIBA(wb.model, wb.layer, stats, **FEW) as attributor:
        logits, pixels = attributor(images.cuda(), labels.cuda())
    assert logits.is_cuda
    assert pixels.is_cuda
    ledger = attributor.ledger
    assert torch.allclose(ledger.end, ledger.start, rtol=1e-3)
