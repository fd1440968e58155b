"""Rare inputs that once gave a wrong map, or an error without a sentence."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import riba
from riba import metrics
from riba.compare import trust
from riba.compare.methods import METHODS, Method
from riba.method import network, relevance
from riba.method.explicit import explicit
from riba.method.readout import ReadoutBottleneck, new_readout
from riba.testbed import datasets, segmentation
from riba.testbed.datasets import Preparation, Sample
from riba.testbed.segmentation import Entry, Photos

pytestmark = pytest.mark.filterwarnings("ignore:feature statistics from")
PREPARE = Preparation(32, 32, (0.5,) * 3, (0.25,) * 3)
DRAW = torch.Generator().manual_seed(0)
X, OTHERS = torch.randn(2, 2, 3, 32, 32, generator=DRAW)
MANY = torch.randn(20, 3, 32, 32, generator=DRAW)


class Net(nn.Module):
    """Two convolutions, ``a`` and ``b``, and a dense layer."""

    def __init__(self, flatten=nn.Flatten()):  # noqa: B008
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.head, self.flatten, self.unused = nn.Linear(6, 5), flatten, nn.Identity()

    def forward(self, x):
        x = nn.functional.max_pool2d(self.a(x).relu(), 2)
        return self.head(self.flatten(self.b(x).relu().mean((2, 3), keepdim=True)))


def made(flatten=None, dtype=torch.float32):
    torch.manual_seed(0)
    net = Net() if flatten is None else Net(flatten)
    return net.eval().to(dtype)


def bench(model, **more):
    dtype = next(model.parameters()).dtype
    stats = riba.FeatureStatistics.fit(model, "b", MANY.to(dtype), few=True)
    return riba.Workbench(
        *(model, "b", stats, [], [], [], tuple("abcde"), ("b",), "b"), prepare=PREPARE, **more
    )


# --- half precision ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_input_iba_of_a_network_in_half_precision_is_that_of_the_same_weights(dtype):
    found, expected = (
        riba.InputIBA(wb.model, "b", wb.statistics, beta=0.02)(X.to(dtype).to(kind), [0, 1])
        for wb, kind in (
            (bench(made(dtype=dtype)), dtype),
            (bench(made(dtype=dtype).float()), torch.float32),
        )
    )
    found, expected = found.nats.sum(1), expected.nats.sum(1)
    assert found.sum() > 0.5 * expected.sum() > 0
    assert trust.rank_correlation(found, expected).min() > 0.9


@pytest.mark.parametrize("name", ["iba", "relevance-iba", "input-iba", "random", "edges"])
def test_methods_take_networks_in_bfloat16(name):
    model = made(dtype=torch.bfloat16)
    maps = METHODS[name](bench(model), X.bfloat16(), [0, 1])
    assert maps.shape == (2, 32, 32)
    assert torch.isfinite(maps).all()


def test_maps_in_bfloat16_can_be_ranked():
    maps = torch.rand(2, 9, 9, generator=DRAW).bfloat16()
    torch.testing.assert_close(trust.rank_correlation(maps, maps), torch.ones(2).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_bytes_are_those_of_the_values(dtype):
    x = torch.rand(3, 4, generator=DRAW).mul(9).to(dtype)
    content = bytes(network.bytes_of(x.T))
    assert len(content) == x.numel() * x.element_size()
    assert content == bytes(network.bytes_of(x.T.clone()))
    assert content != bytes(network.bytes_of((x + 1).T))
    assert len(network.bytes_of(torch.tensor(1.0))) == 4


# --- information of something else ---------------------------------------------------------------


@pytest.mark.parametrize("form", ["cascade", "detailed"])
def test_information_of_other_images_is_refused(form):
    model = made()
    stats = [riba.FeatureStatistics.fit(model, layer, MANY, few=True) for layer in "ba"]
    depths = riba.InformationBottleneck(model, ["b", "a"], stats, steps=1)(OTHERS, [0, 1])
    take = {
        "cascade": lambda x: relevance.cascade(model, x, depths),
        "detailed": lambda x: relevance.detailed(model, x, [0, 1], depths),
    }[form]
    assert torch.isfinite(take(OTHERS)).all()
    with pytest.raises(ValueError, match="measured on other images"):
        take(X)


def test_a_readout_refuses_a_network_that_has_changed():
    wb = bench(made())
    readout = new_readout(wb.model, "b", ["a", "b"], wb.statistics)
    readout = ReadoutBottleneck(wb.model, "b", wb.statistics, readout, ["a", "b"])
    assert readout(X).shape == wb.model.b(torch.zeros(2, 4, 16, 16)).shape
    with torch.no_grad():
        wb.model.a.weight.mul_(3)
    with pytest.raises(ValueError, match="its weights have changed"):
        readout(X)
    with pytest.raises(ValueError, match="fit them first"):
        ReadoutBottleneck(wb.model, "b", None, readout.readout, ["a", "b"])


def test_the_version_of_a_method_tells_of_keyword_defaults():
    def one(q, *, width=4):
        return q.images.sum(1)

    first = Method(one).version
    one.__kwdefaults__["width"] = 8
    assert Method(one).version != first


# --- classes and labels --------------------------------------------------------------------------


def test_a_class_that_is_named_like_a_number():
    wb = bench(made())
    assert wb.class_number("3") == 3
    named = riba.Workbench(
        *(wb.model, "b", wb.statistics, [], [], [], ("1", "2", "3", "0", "x"), ("b",), "b"),
        prepare=PREPARE,
    )
    assert [named.class_number(name) for name in ("1", "0", "4")] == [0, 3, 4]


@pytest.mark.parametrize("sets", [None, ((0, 1), (2,))])
@pytest.mark.parametrize("label", [None, -1])
def test_a_missing_label_is_no_target(sets, label):
    wb = bench(made(), sets=sets, label_names=("one", "two"))
    with pytest.raises(ValueError, match="a sample has no label"):
        wb.targets([0, label])


def test_a_photo_with_a_mask_needs_no_label(tmp_path):
    files = [tmp_path / name for name in ("photo.png", "mask.png")]
    for file in files:
        Image.fromarray(np.full((32, 32), 255, np.uint8)).convert("RGB").save(file)
    entry = Entry("mine", *files)
    sample = Photos([entry], PREPARE, (), segmentation.silhouette)[0]
    assert sample.name == "mine"
    assert sample.mask.all()


# --- networks ------------------------------------------------------------------------------------


def test_a_list_called_hooks_and_extra_state_are_no_matter():
    model = made()
    model.my_hooks = []
    model.__class__ = type("WithState", (Net,), {"get_extra_state": lambda self: {"step": 1}})
    before = network.fingerprint(model)
    assert network.state_of(model) == network.state_of(model)
    assert isinstance(METHODS["iba"](bench(model), X, [0, 1]), torch.Tensor)
    model.__class__ = type("WithState", (Net,), {"get_extra_state": lambda self: {"step": 2}})
    assert network.fingerprint(model) != before


def test_a_network_that_drops_a_batch_of_one():
    wb = bench(made(torch.squeeze))
    batch = X.repeat(2, 1, 1, 1)
    whole = riba.InformationBottleneck(wb.model, "b", wb.statistics, steps=1, chunk=4)
    assert whole(batch, [0, 1, 2, 3]).nats.shape[0] == 4
    with pytest.raises(ValueError, match=r"images × classes.*flatten\(1\) in place of squeeze"):
        riba.InformationBottleneck(wb.model, "b", wb.statistics, steps=1, chunk=3)(batch, [0] * 4)
    for explain in (
        lambda: riba.InformationBottleneck(wb.model, "b", wb.statistics, steps=1)(X[:1], [0]),
        lambda: relevance.lrp(wb.model, X[:1], [0]),
    ):
        with pytest.raises(ValueError, match="images × classes"):
            explain()


def test_lrp_stops_at_layers_that_run_only():
    model = made()
    form = explicit(model, ["b"], X)
    for given in (model, form):
        with pytest.raises(ValueError, match="'unused'"):
            relevance.lrp(given, X, [0, 1], layer="unused")
    with pytest.raises(ValueError, match="no layer 'nope'"):
        network.names_through(model, "nope")


def test_joint_bottlenecks_take_no_layer():
    with pytest.raises(ValueError, match=r"pass no layer="):
        METHODS["relevance-iba-joint"](bench(made()), X, [0, 1], layer="a")


# --- settings, images, masks ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"beta": float("inf")}, "beta must be 0 or more"),
        ({"beta": None}, "beta must be 0 or more"),
        ({"beta": "atuo"}, "or 'auto', got 'atuo'"),
        ({"steps": 2.5}, "steps must be 1 or more"),
        ({"samples": "6"}, "samples must be 1 or more"),
        ({"chunk": 0.5}, "chunk must be 1 or more"),
        ({"lr": None}, "lr must be above 0"),
    ],
)
def test_settings_of_another_type_are_refused(setting, said):
    wb = bench(made())
    with pytest.raises(ValueError, match=said):
        riba.InformationBottleneck(wb.model, "b", wb.statistics, **setting)


def test_numbers_of_numpy_are_numbers():
    wb = bench(made())
    settings = {"beta": np.float32(3), "steps": np.int64(1), "samples": np.int32(2)}
    found = riba.InformationBottleneck(wb.model, "b", wb.statistics, **settings)(X, [0, 1])
    assert torch.isfinite(found.nats).all()


def test_images_without_pixels():
    with pytest.raises(ValueError, match=r"\(2, 3, 0, 32\) are empty"):
        network.check_images(made(), X[:, :, :0])


def test_occlusion_of_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="smaller than the window of 40 pixels"):
        METHODS["occlusion"](bench(made()), X, [0, 1], window=40)


def test_the_border_of_a_mask_of_numbers():
    masks = torch.zeros(1, 20, 20, dtype=torch.uint8)
    masks[0, 4:16, 4:16] = 1
    assert torch.equal(metrics.border_band(masks), metrics.border_band(masks.bool()))


def test_a_mosaic_of_grey_scenes():
    mask = torch.ones(8, 8, dtype=torch.bool)
    grey = [Sample(torch.full((1, 8, 8), float(k)), k, mask) for k in range(4)]
    picture, _, cells = trust.mosaic(grey)
    assert picture.shape == (1, 16, 16)
    assert [picture[0][cell].unique().item() for cell in cells] == [0, 1, 2, 3]


def test_scenes_can_be_sliced():
    scenes = datasets.Scenes("test", 6)
    some = scenes[1:5:2]
    assert len(some) == 2
    assert [sample.name for sample in some] == [scenes[1].name, scenes[3].name]


def test_a_method_without_a_name_says_so():
    with pytest.raises(ValueError, match="the method has no setting 'nope'"):
        Method(partial(lambda q: q.images.sum(1))).using(nope=1)


def test_metrics_for_other_methods_are_refused():
    wb = bench(made())
    mask = torch.ones(32, 32, dtype=torch.bool)
    with pytest.raises(ValueError, match="iba"):
        riba.evaluate(wb, ["iba"], [Sample(X[0], 0, mask)], {"edges": ["rank_accuracy"]})
