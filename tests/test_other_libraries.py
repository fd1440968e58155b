"""Maps go into the metrics of other libraries as they are: no ``.contiguous()``, no detour."""

import numpy as np
import pytest
import torch

import riba
from riba import metrics

pytestmark = pytest.mark.filterwarnings("ignore")

QUANTUS = """
import quantus, riba
wb = riba.load()
images, labels, masks = riba.datasets.stack([wb.test[i] for i in range(4)])
maps = riba.METHODS["relevance-iba"](wb, images, labels)
batch = {"x_batch": images.numpy(), "y_batch": labels.numpy(), "a_batch": maps[:, None].numpy()}
inside = quantus.RelevanceMassAccuracy()(wb.model, **batch, s_batch=masks[:, None].numpy())
flipped = quantus.PixelFlipping(features_in_step=1024)(wb.model, **batch)
"""
CAPTUM = """
import captum.metrics, riba, torch
wb = riba.load()
images, labels, _ = riba.datasets.stack([wb.test[i] for i in range(4)])
_, maps = riba.RelevanceIBA(wb.model, wb.layer, wb.statistics)(images, labels)
noisy = lambda x: (noise := 0.1 * torch.randn_like(x), x - noise)
missed = captum.metrics.infidelity(wb.model, noisy, images, maps, target=labels, normalize=True)
explain = lambda x, target: (riba.METHODS["gradient"](wb, *x, target),)  # it deals in tuples
moved = captum.metrics.sensitivity_max(explain, images, target=labels)
"""


def ran(code):
    """The names that lines of code leave behind."""
    assert len(code.strip().splitlines()) <= 8
    names = {}
    exec(code, names)
    return names


def test_quantus_takes_maps(home):
    pytest.importorskip("quantus")
    names = ran(QUANTUS)
    own = metrics.mass_accuracy(names["maps"], names["masks"])
    np.testing.assert_allclose(names["inside"], own, rtol=1e-5)
    for curve, image, label in zip(names["flipped"], names["images"], names["labels"], strict=True):
        assert len(curve) == 3 * 128 * 128 / 1024  # it counts each colour
        assert 0 <= min(curve) <= max(curve) <= 1
        assert curve[-1] < names["wb"].predict(image[None])[0, label]


def test_captum_takes_maps(home):
    names = ran(CAPTUM)
    assert names["missed"].shape == names["moved"].shape == (4,)
    assert torch.isfinite(names["missed"]).all()
    assert (names["moved"] > 0).all()


@pytest.mark.parametrize("name", riba.METHODS)
def test_every_map_is_whole_in_memory(home, name):
    wb = riba.load()
    images, labels, masks = riba.datasets.stack([wb.test[i] for i in range(2)])
    few = {"steps": 1, "samples": 2} if "beta" in riba.METHODS[name].takes else {}
    maps = riba.METHODS[name](
        wb, images.to(memory_format=torch.channels_last), labels, masks=masks, **few
    )
    assert maps.is_contiguous()
    assert not maps.requires_grad
    assert maps.numpy().flags["C_CONTIGUOUS"]
