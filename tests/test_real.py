"""A real network and photographs, offline: what it sees, and that every map keeps its promise."""

import pytest
import torch

import riba
from riba import METHODS, explain
from riba.method import relevance
from riba.testbed import photos

SEEN = {
    "cat": {"tabby", "tiger cat", "Egyptian cat"},
    "espresso": {"espresso"},
    "motorcycle": {"moped"},
    "rocket": {"missile"},
}


@pytest.fixture(scope="module")
def wb(home):
    with pytest.warns(UserWarning, match="40 images"):
        return riba.load("efficientnet-lite0")


@pytest.fixture(scope="module")
def images(wb):
    return torch.stack([wb.test[place].image for place in range(len(SEEN))])


@pytest.fixture(scope="module")
def targets(wb, images):
    return wb.predict(images).argmax(1)


def test_it_names_what_the_photographs_show(wb, targets):
    named = dict(zip(photos.EXAMPLES, (wb.class_names[t] for t in targets), strict=False))
    assert all(named[name] in seen for name, seen in SEEN.items()), named


def test_photographs_come_as_the_network_takes_them(wb):
    assert len(wb.test) == 5
    sample = wb.test[0]
    assert sample.image.shape == (3, 224, 224)
    assert sample.image.abs().max() <= 1
    assert sample.mask is None
    assert sample.label is None


def test_crops_are_the_same_every_time_and_all_different():
    first, again = (torch.cat(list(photos.crops(20))) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (20, 3, 224, 224)
    assert len({tuple(crop.flatten()[::5000].tolist()) for crop in first}) == 20


@pytest.mark.parametrize("layer", ["blocks.4", "blocks.2"])
def test_the_ledger_closes_at_strides_16_and_8(wb, images, targets, layer):
    stats = wb.statistics
    if layer != wb.layer:
        stats = riba.FeatureStatistics.fit(wb.model, layer, photos.crops(48), few=True)
    attributor = riba.RelevanceIBA(wb.model, layer, stats, steps=2, samples=2)
    _, pixels = attributor(images[:2], targets[:2])
    assert (
        images.shape[-1] // attributor.information.nats.shape[-1] == int(layer == wb.layer) * 8 + 8
    )
    assert attributor.ledger.lost.abs().max() < 1e-3
    assert (pixels >= 0).all()


def difference(wb, images, targets):
    with torch.no_grad():
        rise = wb.model(images) - wb.model(torch.zeros_like(images))
    return rise.gather(1, targets[:, None])[:, 0]


def test_deeplift_adds_up(wb, images, targets):
    found = METHODS["deeplift"](wb, images, targets).sum((1, 2))
    torch.testing.assert_close(found, difference(wb, images, targets), rtol=1e-3, atol=0)


def test_integrated_gradients_add_up(wb, images, targets):
    found = METHODS["integrated-gradients"](wb, images[1:2], targets[1:2]).sum((1, 2))
    torch.testing.assert_close(found, difference(wb, images, targets)[1:2], rtol=0.05, atol=0)


def test_guided_backprop_is_not_the_gradient(wb, images, targets):
    guided, plain = (METHODS[name](wb, images, targets) for name in ("guided-backprop", "gradient"))
    both = torch.stack([guided.flatten(), plain.flatten()])
    assert torch.corrcoef(both)[0, 1] < 0.95


def test_lrp_hands_the_logit_down(wb, images, targets):
    found = relevance.lrp(wb.model, images, targets, "z+").double().sum((1, 2, 3))
    logits = wb.model(images).amax(1).double()
    torch.testing.assert_close(found, logits, rtol=1e-2, atol=0)


def test_photographs_are_explained_from_a_shell(wb, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(explain, "load", lambda *_args, **_settings: wb)
    cat = str(photos.FOLDER / photos.EXAMPLES["cat"])
    explain.main([cat, "--model", "efficientnet-lite0", "--method", "iba", "--out", str(tmp_path)])
    assert "cat" in capsys.readouterr().out
    assert (tmp_path / "chelsea.png.png").is_file()
