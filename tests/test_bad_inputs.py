"""A table of what goes wrong at each entry, and the one sentence that says what to do."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import riba
from riba import metrics
from riba.method import relevance, rules
from riba.testbed import datasets, networks, segmentation
from riba.testbed.datasets import Preparation, Sample

PREPARE = Preparation(32, 32, (0.5,) * 3, (0.25,) * 3)
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(2, 3, 32, 32, generator=DRAW)
MANY = torch.randn(20, 3, 32, 32, generator=DRAW)
MASK = torch.zeros(32, 32, dtype=torch.bool)
MASK[8:24, 8:24] = True
MAPS, MASKS = torch.rand(2, 32, 32, generator=DRAW), MASK.expand(2, -1, -1)


class Wrapped(nn.Module):
    """A network whose output is changed."""

    def __init__(self, change):
        super().__init__()
        self.body, self.change = small(), change

    def forward(self, x):
        return self.change(self.body(x))


def wrapped(change):
    return Wrapped(change).eval()


def small(channels=3, classes=5):
    """A network of a few layers; ``3`` is the bottleneck layer."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(6, classes)).eval()


NET = small()
STATS = riba.FeatureStatistics.fit(NET, "3", MANY, few=True)
WB = riba.Workbench(NET, "3", STATS, [], [], [], tuple("abcde"), ("3",), "3", prepare=PREPARE)
INFORMATION = riba.InformationBottleneck(NET, "3", STATS, steps=1, samples=2)(X, [0, 1])


# --- entries: each takes what is tried, everything else is right ----------------------------------


def by_bottleneck(images=X, targets=(0, 1), model=NET, layer="3", stats=STATS, **settings):
    settings = {"steps": 1, "samples": 2, **settings}
    return riba.InformationBottleneck(model, layer, stats, **settings)(images, targets)


def by_attributor(images=X, targets=(0, 1), model=NET, layer="3", stats=STATS, **settings):
    settings = {"steps": 1, "samples": 2, **settings}
    return riba.RelevanceIBA(model, layer, stats, **settings)(images, targets)


def by_name(images=X, targets=(0, 1), name="gradient", model=None, **settings):
    wb = WB if model is None else riba.Workbench(model, "3", None, [], [], [], *WB_REST)
    return riba.METHODS[name](wb, images, targets, **settings)


WB_REST = (tuple("abcde"), ("3",), "3")


def by_input_iba(images=X, targets=(0, 1), **settings):
    return riba.InputIBA(NET, "3", STATS, **{"steps": 1, **settings})(images, targets)


def by_lrp(images=X, targets=(0, 1), model=NET, **settings):
    return relevance.lrp(model, images, targets, **settings)


def by_descent(images=X, start=None, layer="3", composite=None):
    start = torch.ones(2, 6, 16, 16) if start is None else start
    return relevance.descend(NET, layer, images, start, composite)


def by_statistics(images=MANY, model=NET, layer="3"):
    return riba.FeatureStatistics.fit(model, layer, images, few=True)


def by_prediction(images=X):
    return WB.predict(images)


def evaluated(methods=("random",), samples=None, measures=("mass_accuracy",), **settings):
    good = [Sample(X[0], 1, MASK, name="good")]
    return riba.evaluate(WB, methods, good if samples is None else samples, measures, **settings)


def changed(**fields):
    return [Sample(**{"image": X[0], "label": 1, "mask": MASK, "name": "odd", **fields})]


# --- the table -----------------------------------------------------------------------------------

IMAGES = {
    "0-255": (X * 100, r"looks like 0–255: normalise"),
    "ints": ((X * 100).int(), "convert to float and normalise"),
    "NaN": (X * torch.nan, "NaN or infinite values: clean them"),
    "infinity": (X / 0, "NaN or infinite values: clean them"),
    "none at all": (X[:0], "pass at least one image"),
    "one without batch": (X[0], r"use image\[None\]"),
    "a sequence": (X[:, :, 0], r"use image\[None\]"),
    "a volume": (X[:, :, None], "only maps are explained"),
    "NumPy": (X.numpy(), r"use torch\.from_numpy"),
    "a list": ([X[0], X[1]], r"use torch\.stack"),
    "PIL": (Image.new("RGB", (32, 32)), r"use wb\.prepare\.image"),
    "nothing": (None, "pass a tensor"),
    "float64": (X.double(), r"use images\.to\(torch\.float32\)"),
    "too few channels": (X[:, :2], "pass images as it was trained on"),
}
TAKE_IMAGES = (by_bottleneck, by_attributor, by_name, by_lrp, by_descent, by_prediction)
TARGETS = {
    "no class": ([0, 5], "knows classes 0 to 4"),
    "negative": ([-1, 0], "knows classes 0 to 4"),
    "too few": ([0], "expected 2 class numbers"),
    "a number": (3, "expected 2 class numbers"),
    "floats": ([0.5, 1.0], r"class numbers \(integers\)"),
    "nothing": (None, r"use model\(images\)\.argmax\(1\)"),
    "ragged": ([[0, 1], [2]], r"use model\(images\)\.argmax\(1\)"),
    "empty set": ([[True] * 5, [False] * 5], "select at least one"),
    "sets of another size": ([[True] * 4] * 2, "must be 2×5"),
}
TAKE_TARGETS = (by_bottleneck, by_attributor, by_name, by_lrp)
NETWORKS = {
    "a tuple": (wrapped(lambda y: (y, y)), "wrap it in a module"),
    "a dictionary": (wrapped(lambda y: {"logits": y}), "wrap it in a module"),
    "one logit": (wrapped(lambda y: y[:, :1]), "one output, which leaves no other class"),
    "maps": (wrapped(lambda y: y[:, :, None, None]), "wrap it in a module"),
    "NaN": (wrapped(lambda y: y * torch.nan), "NaN or infinite logits"),
    "training": (small().train(), r"call model\.eval\(\) first"),
    "a name": ("resnet50", r"pass a torch\.nn\.Module"),
}
OTHERS = {
    "unknown layer": (by_bottleneck, {"layer": "33"}, "no layer '33'|of layer '3', not of '33'"),
    "no statistics": (by_bottleneck, {"stats": None}, "fit them first"),
    "other statistics": (by_bottleneck, {"model": small().requires_grad_(False)[:7]}, "another"),
    "negative β": (by_bottleneck, {"beta": -1.0}, "beta must be 0 or more"),
    "no steps": (by_bottleneck, {"steps": 0}, "steps must be 1 or more"),
    "no copies": (by_bottleneck, {"samples": 0}, "samples must be 1 or more"),
    "NaN α": (by_bottleneck, {"initial_alpha": float("nan")}, "initial_alpha must be finite"),
    "unknown source": (by_attributor, {"source": "lambda"}, "choose one of capacity"),
    "unknown composite": (by_attributor, {"composite": "zplus"}, r"choose one of z\+"),
    "unknown rule": (lambda: rules.z_plus("flatt"), {}, "choose one of flat"),
    "swapped box": (lambda: rules.box(1, -1), {}, "low must be below high"),
    "start of another size": (
        by_descent,
        {"start": torch.ones(2, 6, 8, 8)},
        "must be 6×16×16|must",
    ),
    "start for fewer": (by_descent, {"start": torch.ones(1, 6, 16, 16)}, "pass one an image"),
    "start with NaN": (by_descent, {"start": torch.full((2, 6, 16, 16), torch.nan)}, "NaN"),
    "unknown setting": (by_name, {"name": "iba", "betta": 1.0}, "near matches: beta"),
    "setting where none is": (by_name, {"name": "edges", "beta": 1.0}, "near matches: blur"),
    "a name that is no class": (by_name, {"targets": ["f", "a"]}, "no class 'f'; near matches"),
    "no masks": (by_name, {"name": "oracle"}, "pass masks="),
    "masks for fewer": (by_name, {"name": "oracle", "masks": MASK[None]}, "pass one for each"),
    "unknown prior": (by_input_iba, {"prior": "nothing"}, "choose one of moments"),
    "unused setting": (by_input_iba, {"chunk": 2}, "leave it out"),
    "auto β at the pixels": (by_input_iba, {"beta": "auto"}, "use feature_beta='auto'"),
    "one image": (by_statistics, {"images": MANY[:1]}, "at least two images, got 1"),
    "two sizes": (by_statistics, {"images": [MANY, MANY[..., :16]]}, "resize them to one size"),
    "a layer without maps": (by_statistics, {"layer": "6"}, "choose another layer"),
    "no method": (evaluated, {"methods": ["ibba"]}, "near matches: iba"),
    "no methods": (evaluated, {"methods": []}, "no methods: name at least one"),
    "no metric": (evaluated, {"measures": ["mass"]}, "near matches: .*mass_accuracy"),
    "no samples": (evaluated, {"samples": []}, "pass one that can be read and judged"),
    "no mask": (evaluated, {"samples": changed(mask=None)}, "odd has no mask"),
    "empty mask": (evaluated, {"samples": changed(mask=MASK & False)}, "odd: its mask is empty"),
    "cropped mask": (evaluated, {"samples": changed(mask=MASK[:9])}, "differ in size: resize"),
    "no label": (evaluated, {"samples": changed(label=None)}, "or explain='prediction'"),
    "odd explain": (evaluated, {"explain": "target"}, "must be one of label, prediction"),
    "NaN in a map": (lambda: metrics.mass_accuracy(MAPS * torch.nan, MASKS), {}, "NaN"),
    "maps of another size": (lambda: metrics.rank_accuracy(MAPS[:, :9], MASKS), {}, "must|differ"),
    "no object": (lambda: metrics.rank_accuracy(MAPS, MASKS & False), {}, "a mask is empty"),
    "unknown network": (lambda: riba.load("resnet51"), {}, "near matches: resnet50"),
    "data of scenes": (lambda: riba.load(data="voc"), {}, "knows drawn scenes only"),
    "unknown data": (lambda: riba.load("resnet18", model=networks_resnet(), data="vok"), {}, "voc"),
    "no root": (
        lambda: riba.load("resnet18", model=networks_resnet(), data="voc"),
        {},
        "pass root=",
    ),
    "no device": (lambda: riba.load(device="cudda"), {}, "use 'cpu'"),
}


def networks_resnet():
    from torchvision.models import resnet18

    return resnet18().eval()


def rows():
    """(entry, arguments, message) of every row, with a name."""
    for entry in TAKE_IMAGES:
        for name, (value, message) in IMAGES.items():
            yield pytest.param(entry, {"images": value}, message, id=f"{entry.__name__}-{name}")
    for entry in TAKE_TARGETS:
        for name, (value, message) in TARGETS.items():
            yield pytest.param(entry, {"targets": value}, message, id=f"{entry.__name__}-{name}")
    for name, (model, message) in NETWORKS.items():
        for entry in (by_name, by_lrp):
            yield pytest.param(entry, {"model": model}, message, id=f"{entry.__name__}-{name}")
    for name, row in OTHERS.items():
        yield pytest.param(*row, id=name)


ROWS = list(rows())


@pytest.mark.parametrize(("entry", "arguments", "message"), ROWS)
def test_bad_inputs_get_one_sentence(entry, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        entry(**arguments)
    text = str(error.value)
    assert len(text) <= 300
    assert "\n" not in text


def test_the_table_is_long_enough():
    assert len(ROWS) >= 80
    assert INFORMATION.nats.shape == (2, 6, 16, 16)
    assert np.isfinite(evaluated()["value"]).all()


@pytest.mark.parametrize("entry", TAKE_IMAGES)
def test_what_is_right_passes(entry):
    entry()


# --- files ---------------------------------------------------------------------------------------


def write(path, content):
    path.write_bytes(content) if isinstance(content, bytes) else content.save(path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.jpg", b"no picture", "not a picture"),
        ("empty.png", b"", "not a picture"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\x00\x00", "not a picture|cannot be read"),
        ("dark.tif", Image.fromarray(np.full((4, 4), -1, np.float32)), "scale them to 0–1"),
    ],
)
def test_bad_pictures_get_one_sentence(name, content, message, tmp_path):
    path = write(tmp_path / name, content)
    for read in (datasets.read_photo, lambda p: segmentation.unmasked(p, PREPARE)[0]):
        with pytest.raises(ValueError, match=message) as error:
            read(path)
        assert name in str(error.value)
        assert len(str(error.value)) <= 300


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: datasets.read_photo(p / "gone.png"), "no photo at .*check the path"),
        (lambda p: segmentation.unmasked(p / "gone", PREPARE), "no photo and no folder at"),
        (lambda p: networks.load_weights(small(), p / "gone.pth"), "no weights at .*check"),
        (lambda p: riba.FeatureStatistics.load(p / "gone"), "fit and save them first"),
        (lambda p: riba.load("vgg16", data="voc", root=p, model=small()), "no layer"),
    ],
)
def test_missing_files_get_one_sentence(call, message, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match=message) as error:
        call(tmp_path)
    assert len(str(error.value)) <= 300
