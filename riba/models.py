"""Networks: the bundled one, torchvision's or your own; their layers, and cutting one in two.

Everything below takes any ``torch.nn.Module`` that maps images (B×3×H×W) to logits (B×classes).
"""

from __future__ import annotations

import difflib
import hashlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node, Tracer
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
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
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
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is not None and images.shape[1] != first.in_channels:
        raise ValueError(
            f"images have {images.shape[1]} channels, the network takes {first.in_channels}"
        )


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


# --- cutting a network in two ----------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """A network cut behind one layer: ``tail(*head(images))`` is the network.

    ``head`` returns the features and whatever else the tail needs: nothing where the layer is a
    true bottleneck of the graph, the images themselves where it is not (``exact`` is False then
    and the tail runs the whole network with the layer's output replaced).
    """

    head: Callable[[Tensor], tuple[Tensor, ...]]
    tail: Callable[..., Tensor]
    exact: bool


@torch.no_grad()
def split(model: nn.Module, layer: str, example: Tensor, whole: Iterable[str] = ()) -> Cut:
    """Cut ``model`` behind ``layer``, so that what lies below it need run only once an image.

    Traced with ``torch.fx`` where that works and the cut reproduces the network on ``example``
    (B×3×H×W, one image is enough), else done by replacing the layer's output with a hook. Layers
    of ``whole`` run as modules in the tail, whatever they contain: hooks on them fire.

    Raises
    ------
    ValueError
        No such layer, or the layer is not run exactly once, or does not return one B×C×h×w tensor.
    """
    features = run_until(model, layer, example)
    if not isinstance(features, Tensor) or features.ndim != 4:
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"layer {layer!r} returns features of shape {shape}: choose a layer with maps (B×C×h×w)"
        )
    logits = model(example)
    for cut in (_traced(model, layer, whole), _hooked(model, layer)):
        if cut is None:
            continue
        parts = cut.head(example)
        if _same(parts[0], features) and _same(cut.tail(*parts), logits):
            return cut
    raise ValueError(f"the network cannot be cut at {layer!r}: choose another layer")


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5)


class _Tracer(Tracer):
    """Traces into every module of our own, except those of ``whole``."""

    def __init__(self, whole: Iterable[str]) -> None:
        super().__init__()
        self.whole = set(whole)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name in self.whole or super().is_leaf_module(module, name)


def _traced(model: nn.Module, layer: str, whole: Iterable[str] = ()) -> Cut | None:
    try:
        graph = _Tracer(whole).trace(model)
    except Exception:  # torch.fx raises anything on code it cannot trace
        return None
    calls = [node for node in graph.nodes if _belongs(node, layer)]
    if not calls or sum(node.target == layer for node in calls) > 1:
        return None
    last = calls[-1]
    tail = _graph_behind(graph, last)
    if tail is None:
        return None
    head = _graph_until(graph, last)
    above = _module(model, tail)
    below = _module(model, head)
    return Cut(lambda images: (below(images),), above, exact=True)


def _module(model: nn.Module, graph: Graph) -> GraphModule:
    """``graph`` as a module that shares the weights of ``model``, without what it does not use."""
    module = GraphModule(model, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _belongs(node: Node, layer: str) -> bool:
    """Whether ``node`` is a call of ``layer``, or lies inside it where it is a container."""
    stack = node.meta.get("nn_module_stack") or {}
    return (node.op == "call_module" and node.target == layer) or any(
        entry[0] == layer for entry in stack.values()
    )


def _graph_until(graph: Graph, last: Node) -> Graph:
    below, copies = Graph(), {}
    for node in graph.nodes:
        copies[node] = below.node_copy(node, copies.__getitem__)
        if node is last:
            below.output(copies[node])
            return below
    raise AssertionError("the node is not of this graph")


def _graph_behind(graph: Graph, last: Node) -> Graph | None:
    """What follows ``last``; None where it also uses something from before (a skip connection)."""
    above = Graph()
    copies = {last: above.placeholder("features")}
    behind = False
    for node in graph.nodes:
        if behind or node.op == "get_attr":
            if any(source not in copies for source in node.all_input_nodes):
                return None
            copies[node] = above.node_copy(node, copies.__getitem__)
        behind = behind or node is last
    return above


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
        return output.clone()  # an in-place ReLU behind would overwrite what is kept

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
            model(images)
        except _Stop:
            return kept[0]
    raise ValueError(f"the forward pass never runs layer {layer!r}: choose another layer")


def _hooked(model: nn.Module, layer: str) -> Cut:
    module = find_layer(model, layer)

    def head(images: Tensor) -> tuple[Tensor, Tensor]:
        return run_until(model, layer, images), images

    def tail(features: Tensor, images: Tensor) -> Tensor:
        calls = 0

        def replace(_module: nn.Module, _inputs: tuple, _output: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return features.clone()  # an in-place ReLU behind must not write into ours

        handle = module.register_forward_hook(replace)
        try:
            logits = model(images)
        finally:
            handle.remove()
        if calls != 1:
            raise ValueError(
                f"layer {layer!r} runs {calls} times in one pass: choose one that runs once"
            )
        return logits

    return Cut(head, tail, exact=False)
