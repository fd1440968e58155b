"""Your own network and your own photos: torchvision's networks, sets of classes, devices, files."""

import dataclasses
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import get_model

import riba
from riba.compare import evaluation
from riba.method import bottleneck, network
from riba.show import panels
from riba.testbed import datasets, networks, segmentation
from riba.testbed.datasets import Preparation
from riba.testbed.segmentation import Entry, Photos
from riba.workbench import Workbench

pytestmark = pytest.mark.filterwarnings("ignore:feature statistics from")

NAMES = ["2007_000001", "2007_000002", "2007_000003", "2007_000004"]
CODES = {"bird": 3, "cat": 8, "person": 15}


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    """Four photos in VOC's layout: noise with a brighter disc, of a bird, two cats and a person."""
    root = tmp_path_factory.mktemp("voc")
    draw = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rows, columns = np.mgrid[:240, :320]
    for place, (name, code) in enumerate(zip(NAMES, (3, 8, 8, 15), strict=True)):
        distance = np.hypot(rows - 120, columns - 140 - 10 * place)
        codes = np.where(distance < 60, code, np.where(distance < 64, 255, 0)).astype(np.uint8)
        noise = draw.integers(0, 120, (240, 320, 3)) + 100 * (codes[..., None] == code)
        Image.fromarray(noise.astype(np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(codes, "P")
        mask.putpalette([value for c in range(256) for value in (c, 255 - c, c // 2)])
        mask.save(root / "SegmentationClass" / f"{name}.png")
    for split in ("train", "val"):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(NAMES))
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of a ResNet-18, as torch.save writes them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(get_model("resnet18").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def wb(home, voc, weights):
    return riba.load("resnet18", weights=weights, data="voc", root=voc)


# --- networks of torchvision ---------------------------------------------------------------------

OF_TORCHVISION = [name for name in networks.NETWORKS if name not in networks.OWN]


@pytest.mark.parametrize("name", [n for n in OF_TORCHVISION if n.startswith("vgg")])
def test_layers_of_every_vgg_are_what_they_are_meant_to_be(name):
    with torch.device("meta"):
        features = get_model(name).features
    pools = [k for k, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    layer, *relus = (int(depth.split(".")[1]) for depth in networks.NETWORKS[name].depths)
    assert layer == pools[2] + (2 if name.endswith("bn") else 1)  # after the fourth block's first
    third = [k for k in range(pools[1], pools[2]) if isinstance(features[k], nn.ReLU)]
    assert relus == [third[-1], third[0], pools[1] - 1]
    assert networks.NETWORKS[name].top == f"features.{pools[4] - 1}"


@pytest.mark.parametrize("name", [n for n in OF_TORCHVISION if not n.startswith("vgg")])
def test_layers_of_every_resnet_exist(name):
    with torch.device("meta"):
        model = get_model(name)
        for layer in (*networks.NETWORKS[name].depths, networks.NETWORKS[name].top):
            network.find_layer(model, layer)
        assert network.run_until(model.eval(), "layer2", torch.zeros(1, 3, 64, 64)).shape[-1] == 8


def test_loading_gives_everything(wb, voc, weights):
    assert (wb.name, wb.layer, wb.depths) == ("resnet18", "layer2", ("layer2", "layer1", "relu"))
    assert torch.equal(wb.model.fc.weight, torch.load(weights)["fc.weight"])
    assert len(wb.class_names) == 1000
    assert wb.label_names == segmentation.VOC_CLASSES
    assert wb.statistics.count == 4
    assert wb.statistics.mean.shape == (128, 28, 28)
    sample = wb.test[0]
    assert sample.image.shape == (3, 224, 224)
    picture = np.asarray(Image.open(voc / "JPEGImages" / f"{NAMES[0]}.jpg"))
    shown = wb.prepare.square(picture) / 255
    np.testing.assert_allclose(wb.to_rgb(sample.image), shown, atol=1e-6)
    assert wb.at("layer3").statistics.mean.shape == (256, 14, 14)
    assert wb.at("layer3").depths == ("layer3", "layer2", "layer1", "relu")


@pytest.fixture(scope="module")
def small(home, voc, weights):
    """The same on small pictures, because some methods take long."""
    prepare = Preparation(72, 64, (0.5,) * 3, (0.25,) * 3)
    return riba.load("resnet18", weights=weights, data=segmentation.voc(voc, prepare))


METHODS = [name for name in riba.METHODS if name not in ("readout-iba", "input-iba-nats")]


@pytest.mark.parametrize("name", METHODS)
def test_methods_explain_a_set_of_classes(small, name):
    wb, sample = small, small.test[0]
    targets = wb.targets([sample.label])
    assert targets.dtype == torch.bool
    assert len(wb.classes(sample.label)) == targets.sum() > 10
    if name == "iba-depth-4":
        with pytest.raises(ValueError, match="this workbench has 3 depths"):
            riba.METHODS[name](wb, sample.image[None], targets)
        return
    if name.endswith("-calibrated"):
        with pytest.raises(ValueError, match="β is not calibrated"):
            riba.METHODS[name](wb, sample.image[None], targets)
        return
    values = riba.METHODS[name](wb, sample.image[None], targets, masks=sample.mask[None])
    assert values.shape == (1, 64, 64)
    assert torch.isfinite(values).all()


def test_the_readout_says_that_it_is_of_another_network(wb):
    image = wb.test[0].image[None]
    with pytest.raises(ValueError, match="readout"):
        riba.METHODS["readout-iba"](wb, image, [0])
    bare = dataclasses.replace(wb, statistics=None, depths=wb.depths[:1])
    for name in ("readout-iba", "iba-joint"):
        with pytest.raises(ValueError, match="no statistics: fit them first"):
            riba.METHODS[name](bare, image, [0])


def test_without_photos_what_needs_statistics_says_so(home, weights):
    bare = riba.load("resnet18", weights=weights)
    assert bare.statistics is None
    assert len(bare.test) == 0
    image = torch.zeros(1, 3, 224, 224)
    assert riba.METHODS["lrp-epsilon-plus"](bare, image, [3]).shape == (1, 224, 224)
    with pytest.raises(ValueError, match="no statistics: fit them first"):
        riba.METHODS["iba"](bare, image, [3])
    with pytest.raises(ValueError, match="no images to take feature statistics of layer1 over"):
        riba.METHODS["relevance-iba-cascade"](bare, image, [3])


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"name": "vgg17"}, r"no workbench called 'vgg17'; near matches: vgg"),
        ({"layer": "layer9"}, r"no layer 'layer9'; near matches: layer"),
        ({"data": "vok"}, r"no data set 'vok'; near matches: voc"),
        ({"data": "voc"}, r"where is voc\? pass root="),
    ],
)
def test_mistakes_are_said_in_words(weights, wanted, words):
    with pytest.raises(ValueError, match=words):
        riba.load(**{"name": "resnet18", "weights": weights} | wanted)


def test_the_bundled_network_knows_no_photos():
    with pytest.raises(ValueError, match="scenenet knows drawn scenes only"):
        riba.load(data="voc")


# --- weights -------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache, and no internet."""

    def unreachable(*_given, **_named):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", unreachable)
    return tmp_path / "checkpoints"


def test_without_weights_and_internet_it_says_what_to_download(hub):
    words = rf"no weights of resnet18 here.*no route.*get https://.*\.pth and put it at {hub}"
    with pytest.raises(FileNotFoundError, match=words):
        riba.load("resnet18")
    with pytest.raises(FileNotFoundError, match="resnet50-11ad3fa6"):
        riba.load("resnet50", weights="IMAGENET1K_V2")


def test_cached_weights_are_taken(hub, weights):
    hub.mkdir(exist_ok=True)
    (hub / "resnet18-f37072fd.pth").write_bytes(weights.read_bytes())
    model = networks.torchvision_network("resnet18")
    assert torch.equal(model.fc.weight, torch.load(weights)["fc.weight"])
    assert not model.training


def test_damaged_cached_weights_are_named(hub):
    hub.mkdir(exist_ok=True)
    for content in (b"", b"<html>not found</html>"):
        (hub / "resnet18-f37072fd.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"resnet18-f37072fd\.pth cannot be read as weights"):
            networks.torchvision_network("resnet18")


def test_pictures_are_prepared_for_the_weights_that_were_asked_for():
    sizes = [networks.torchvision_input("resnet50", f"IMAGENET1K_V{k}")[0].resize for k in (1, 2)]
    assert sizes == [256, 232]
    with pytest.raises(ValueError, match="IMAGENET1K_FEATURES of vgg16 know no classes"):
        riba.load("vgg16", weights="IMAGENET1K_FEATURES")


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_is_never_executed(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    torch.save({"fc.weight": Evil()}, path)
    with pytest.raises(ValueError, match=r"evil\.pth holds more than tensors"):
        riba.load("resnet18", weights=path)
    assert "executed" not in capsys.readouterr().out


def test_files_of_weights_are_refused_in_words(tmp_path, weights):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*gone"):
        riba.load("resnet18", weights=tmp_path / "gone.pth")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut\.pth cannot be read as weights"):
        riba.load("resnet18", weights=cut)
    with pytest.raises(ValueError, match="holds the weights of another network"):
        riba.load("resnet34", weights=weights)


# --- which class ---------------------------------------------------------------------------------


def test_samples_are_chosen_by_their_set_of_classes(wb):
    first = wb.predict(wb.test[0].image[None]).argmax().item()
    sets = [() if name == "person" else (0, 1) for name in wb.label_names]
    sets[segmentation.VOC_CLASSES.index("bird")] = (first, 999)
    kept, passed = evaluation.select(dataclasses.replace(wb, sets=tuple(sets)), wb.test)
    assert [sample.name for sample in kept] == ["2007_000001-bird"]
    assert passed["wrong class"] == 2
    assert passed["no such class in the network"] == 1


def test_labels_become_sets_of_classes(wb):
    index = segmentation.VOC_CLASSES.index
    targets = wb.targets([index("cow"), index("cat")])
    assert targets[0].nonzero().flatten().tolist() == [345]
    assert targets[1].nonzero().flatten().tolist() == [281, 282, 283, 284, 285]
    with pytest.raises(ValueError, match="'person' has no counterpart"):
        wb.targets([index("person")])


def test_the_prediction_can_be_explained_in_place_of_the_label(wb, tmp_path):
    samples = wb.test[:2]
    table = riba.evaluate(wb, ["gradient"], samples, ["mass_accuracy"], explain="prediction")
    images = torch.stack([sample.image for sample in samples])
    maps = riba.METHODS["gradient"](wb, images, wb.predict(images).argmax(1))
    masks, void = (torch.stack([getattr(s, name) for s in samples]) for name in ("mask", "void"))
    expected = riba.metrics.mass_accuracy(maps, masks, void)
    strict = table[table["mask"] == "strict"]["value"]
    np.testing.assert_allclose(strict, expected, rtol=1e-6)
    riba.evaluate(wb, ["random"], samples, out=tmp_path)
    with pytest.raises(ValueError, match="explain 'label' there, 'prediction' here"):
        riba.evaluate(wb, ["random"], samples, out=tmp_path, explain="prediction")
    with pytest.raises(ValueError, match="explain must be one of label, prediction"):
        riba.evaluate(wb, ["random"], samples, explain="target")


def test_a_label_without_counterpart_is_refused(wb):
    person = wb.test[3:]
    with pytest.raises(ValueError, match="2007_000004-person: no class of the network stands for"):
        riba.evaluate(wb, ["random"], person)
    assert len(riba.evaluate(wb, ["random"], person, explain="prediction")) == 6


def test_what_cannot_be_judged_is_left_out_or_refused(wb, voc):
    unmasked = segmentation.unmasked(voc / "JPEGImages", wb.prepare)
    with pytest.raises(ValueError, match=r"2007_000001\.jpg has no mask"):
        riba.evaluate(wb, ["random"], unmasked)
    gone = Photos(
        [*wb.test.entries[:2], Entry("x", voc / "gone.jpg", voc / "gone.png", 0)],
        wb.prepare,
        wb.label_names,
        segmentation.palette,
    )
    with pytest.warns(UserWarning, match=r"1 samples were left out: no photo at .*gone\.jpg"):
        table = riba.evaluate(wb, ["random"], gone)
    assert table["sample"].nunique() == 2


# --- any network ---------------------------------------------------------------------------------


def test_what_has_no_mask_or_no_label_is_passed_over(wb, voc):
    unmasked = segmentation.unmasked(voc / "JPEGImages", wb.prepare)
    kept, passed = evaluation.select(wb, unmasked)
    assert (len(kept), passed["no mask or no label"]) == (0, 4)
    assert len(segmentation.readable(unmasked)[0]) == 4


def test_classes_have_numbers_where_the_photos_do_not_name_them(home, voc):
    model = networks.scenenet()
    photos = segmentation.voc(voc, Preparation(128, 128, (0.5,) * 3, (0.25,) * 3))
    bench = Workbench.of(model, "features.14", photos, sets=[(3,)] * 20)
    assert bench.class_names == tuple(f"class {number}" for number in range(10))
    assert bench.targets([2]).shape == (1, 10)


def test_panels_say_that_there_is_nothing_to_show(home, weights):
    bare = riba.load("resnet18", weights=weights)
    with pytest.raises(ValueError, match="no photos to show"):
        panels.explorer(bare)


def test_a_network_of_ones_own(home, voc):
    model = networks.scenenet()
    prepare = Preparation(128, 128, (0.5,) * 3, (0.25,) * 3)
    photos = segmentation.voc(voc, prepare)
    bench = Workbench.of(model, "features.14", photos, depths=("features.9",), top="features.18")
    assert bench.depths == ("features.14", "features.9")
    assert bench.statistics.count == 4
    sample = bench.test[0]
    assert bench.targets([sample.label]).tolist() == [2]
    maps = riba.METHODS["relevance-iba-cascade"](bench, sample.image[None], [3])
    assert maps.shape == (1, 128, 128)
    with pytest.raises(ValueError, match=r"no layer 'features\.99'"):
        Workbench.of(model, "features.99", photos)


# --- precision -----------------------------------------------------------------------------------


def ranks(values):
    return values.flatten().argsort().argsort().double()


@pytest.mark.parametrize("name", ["iba", "iba-joint"])
def test_half_precision_gives_the_same_map(home, name):
    full = riba.load()
    half = dataclasses.replace(full, precision=torch.bfloat16)
    images, labels, _ = datasets.stack([full.test[i] for i in range(2)])
    maps = [riba.METHODS[name](bench, images, labels) for bench in (full, half)]
    for one, other in zip(*maps, strict=True):
        assert not torch.equal(one, other)
        assert other.dtype == torch.float32
        assert torch.corrcoef(torch.stack([ranks(one), ranks(other)]))[0, 1] >= 0.99


def test_weights_are_rounded_once_and_not_those_of_the_network(home, monkeypatch):
    wb = riba.load()
    before = {name: value.clone() for name, value in wb.model.state_dict().items()}
    images, labels, _ = datasets.stack([wb.test[0]])
    stats = [wb.statistics_at(layer) for layer in wb.depths]

    def nats():
        at = riba.InformationBottleneck(wb.model, wb.depths, stats, precision=torch.bfloat16)
        return at(images, labels).shallowest.nats

    once = nats()
    torch.testing.assert_close(wb.model.state_dict(), before, rtol=0, atol=0)
    monkeypatch.setattr(bottleneck, "rounded", lambda part, _precision: part)
    assert torch.equal(once, nats())  # rounded by autocast, at every pass
