"""The explicit form of a network: traced once, cut behind layers, every step with a rule of LRP.

:func:`explicit` traces a network with ``torch.fx`` on a private copy: weights are shared where they
stay as they are, parametrisations are folded, batch norms merge into the convolution that runs
before them, and a module that runs twice becomes two. :attr:`Explicit.parts` are the pieces between
the layers, for bottlenecks; :meth:`Explicit.ruled` is the part below a layer (or all of it) for
relevance: every step is a module that a composite gives a rule to, passes all relevance on to its
one signal, or has a gradient that is its rule. Any other step is refused by its name.
"""

from __future__ import annotations

import operator
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn.utils import fusion, parametrize
from torchvision.ops import FrozenBatchNorm2d
from zennit.core import Composite
from zennit.layer import Sum
from zennit.types import Activation, AvgPool, BatchNorm, Convolution, Linear, MaxPool

from riba.method import rules
from riba.method.network import (
    frozen_copy,
    hooked,
    logits_of,
    run_until,
    shape_or_type,
    state_of,
    tensors_in,
    unwrapped,
)

TOLERANCE = 1e-3
"""Share of the relevance that may be lost or gained before a network is refused."""


# --- steps that have no module of their own ------------------------------------------------------


class _PassOn(torch.autograd.Function):
    """``output``, with a backward pass that gives all of its relevance to ``signal``."""

    @staticmethod
    def forward(ctx: object, signal: Tensor, output: Tensor) -> Tensor:
        ctx.shape = signal.shape
        return output.view_as(output)

    @staticmethod
    def backward(ctx: object, relevance: Tensor) -> tuple[Tensor, None]:
        return relevance.sum_to_size(ctx.shape), None


class DenseMap(nn.Conv2d):
    """A dense layer applied at every place of a map, typed as the convolution that it is."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__(dense.in_features, dense.out_features, 1, device="meta")  # draws nothing
        self.weight, self.bias = dense.weight, dense.bias

    def forward(self, x: Tensor) -> Tensor:
        """…×channels last to …×channels last."""
        return nn.functional.linear(x, self.weight, self.bias)


class Average(nn.AdaptiveAvgPool2d):
    """A weighted sum with weights of one sign (mean, interpolation), typed as an average pool."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The output of ``function``."""
        return self.function(x)


def _terms(x: Tensor, y: Tensor) -> Tensor:
    """The terms of x + y along a new last dimension, as Zennit's ``Sum`` takes them."""
    return torch.stack(torch.broadcast_tensors(x, y), -1)


def _difference_terms(x: Tensor, y: Tensor) -> Tensor:
    """The terms of x − y likewise; −y passes its relevance on to y."""
    return _terms(x, _PassOn.apply(y, -y.detach()))


# --- what a step is ------------------------------------------------------------------------------

MODULES: tuple[tuple[str | None, tuple[type, ...]], ...] = (
    (None, (nn.MultiheadAttention, nn.RReLU)),  # Zennit counts them among the activations
    ("max", (MaxPool,)),
    ("weights", (Linear,)),
    ("average", (AvgPool, nn.Upsample)),
    ("affine", (BatchNorm, FrozenBatchNorm2d)),
    ("norm", (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)),
    ("norm", (nn.modules.instancenorm._InstanceNorm,)),
    ("activation", (Activation, nn.Mish)),
    ("view", (nn.modules.dropout._DropoutNd, nn.Identity, nn.Flatten, nn.Unflatten)),
    ("view", (nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)),
)
"""Kinds of modules; subclasses belong to the kind of their parent."""
LEAVES = tuple(type_ for _, types in MODULES for type_ in types)

FUNCTIONS: dict[str, str] = {
    "max": "max_pool1d max_pool2d boolean_dispatch adaptive_max_pool2d",
    "average": "avg_pool2d adaptive_avg_pool2d mean sum interpolate",
    "norm": "layer_norm group_norm instance_norm",
    "activation": "relu relu6 silu gelu hardswish leaky_relu elu selu celu mish sigmoid "
    "hardsigmoid hardtanh softplus tanh clamp clip prelu softsign logsigmoid hardshrink softshrink",
    "view": "cat concat concatenate stack getitem view reshape flatten unflatten permute "
    "transpose chunk split unbind squeeze unsqueeze contiguous clone dropout dropout1d dropout2d "
    "dropout3d stochastic_depth pixel_shuffle channel_shuffle to float expand expand_as "
    "broadcast_to movedim swapaxes _returned",
    "affine": "neg batch_norm",
    "query": "size dim numel getattr len stride zeros_like ones_like new_zeros new_ones",
}
"""Kinds of functions by name, those of arithmetic aside (:func:`kind`). What a query returns does
not depend on the values of its tensor, unless it is a tensor itself (``x.T``)."""
OUT_OF_PLACE = {
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv")
}
RELUS = {"relu": nn.ReLU, "relu6": nn.ReLU6}
"""Functional activations that become modules, for methods with a rule for them."""


def name_of(node: fx.Node) -> str:
    """The operation of a node: ``add``, ``relu``, …; of a module its name."""
    if isinstance(node.target, str):
        return node.target
    return getattr(node.target, "__name__", type(node.target).__name__)


def _place(node: fx.Node) -> str:
    """The name of the innermost module that a node lies in; empty at the top."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""


def kind(net: fx.GraphModule, node: fx.Node) -> str | None:
    """What a step does, as far as methods that go back through it care; None: nothing known.

    ``"weights"``: a convolution or dense layer; ``"average"``: a weighted sum with weights ≥ 0;
    ``"sum"``: of two signals, or their difference; ``"product"``: of two signals; ``"affine"``: a
    scale or a shift by constants; ``"activation"``: elementwise; ``"norm"``; ``"max"``: a
    max-pooling; ``"view"``: the same values in another arrangement.
    """
    if node.op == "call_module":
        module = net.get_submodule(node.target)
        return next((name for name, types in MODULES if isinstance(module, types)), None)
    name, inputs = name_of(node), varying(node)
    if name in ("add", "sub") and "alpha" not in node.kwargs:
        return "sum" if len(inputs) == 2 else "affine"
    if name == "mul":
        return "product" if len(inputs) == 2 else "affine" if len(set(node.args)) == 2 else None
    if name in ("div", "truediv"):
        return "affine" if len(inputs) == 1 and node.args[0] is inputs[0] else None
    what = next((kind for kind, names in FUNCTIONS.items() if name in names.split()), None)
    return what if what == "view" or len(inputs) == 1 else None


def refusal(node: fx.Node, more: str = "", method: str = "LRP") -> ValueError:
    """The error for a step that ``method`` has no rule for: names the step and its place."""
    where = f"in {_place(node)!r}" if _place(node) else "in the network's own forward"
    return ValueError(
        f"{method} has no rule for `{node.meta['operation']}`{more} {where} (step {node.name!r}): "
        "choose a bottleneck layer below it, or another network"
    )


def varying(node: fx.Node) -> list[fx.Node]:
    """The inputs of a node that depend on the pixels, in the order of its arguments, once each."""
    return [source for source in node.all_input_nodes if source.meta["varies"]]


# --- the private copy ----------------------------------------------------------------------------


def _folded(private: nn.Module) -> nn.Module:
    """``private`` with plain weights in place of parametrisations, and norms without activations.

    Weights of half precision become float32; all are in the memory format channels last.
    """
    for name, module in list(private.named_modules()):
        if hasattr(module, "inplace"):
            module.inplace = False  # features that are kept must not be overwritten
        if parametrize.is_parametrized(module):
            # not by its own remover, which changes the class, and so the network that was copied
            plain = {weight: getattr(module, weight).detach() for weight in module.parametrizations}
            del module.parametrizations
            module.__class__ = type(module).__bases__[0]
            for weight, value in plain.items():
                module.register_parameter(weight, nn.Parameter(value))
        for hook in module._forward_pre_hooks.values():
            if type(hook).__module__.startswith("torch.nn.utils."):  # weight norm, pruning, …
                weight = getattr(hook, "name", None) or hook._tensor_name
                hook(module, ())  # computes the weight as it does before each pass
                module.register_parameter(weight, nn.Parameter(vars(module).pop(weight).detach()))
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            hooks.clear()  # the user's; the check fails if they change anything
        if name and isinstance(module, BatchNorm) and module._modules:
            private.set_submodule(name, _split_norm(module))
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in private.parameters()):
        private.float()
    return private.requires_grad_(False).to(memory_format=torch.channels_last)


def _split_norm(module: nn.Module) -> nn.Module:
    """A batch norm with modules of its own behind it (timm's with activation) as a sequence."""
    norm = nn.BatchNorm2d(module.num_features, module.eps).eval()
    norm._parameters, norm._buffers = module._parameters, module._buffers
    return nn.Sequential(norm, *module.children())


# --- tracing -------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Keeps known layers whole, subclasses included, and leaves other threads alone.

    While ``torch.fx`` traces, calls of modules are rerouted for the whole process.

    Parameters
    ----------
    cuts
        Layers the output of which must be a step of its own.
    """

    def __init__(self, cuts: Sequence[str]) -> None:
        super().__init__()
        self.cuts, self.thread = cuts, threading.get_ident()

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, LEAVES) or super().is_leaf_module(module, name)

    def call_module(
        self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict
    ) -> object:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        if module not in self.submodule_paths:  # made in the forward pass, as a slice of a sequence
            if not self.is_leaf_module(module, ""):
                return forward(*args, **kwargs)
            self.submodule_paths[module] = f"inline_{len(self.submodule_paths)}"
            twin = _folded(frozen_copy(module, share=True))  # it belongs to the user
            self.root.add_module(self.submodule_paths[module], twin)
        result = super().call_module(module, forward, args, kwargs)
        name = self.path_of_module(module)
        if isinstance(result, fx.Proxy):
            if name in self.cuts and not self.is_leaf_module(module, name):
                result = self.create_proxy("call_function", _returned, (result,), {})
            result.node.meta.setdefault("layers", []).append(name)
        return result

    def getattr(self, name: str, value: object, cache: dict) -> object:
        if threading.get_ident() != self.thread:
            return value
        return super().getattr(name, value, cache)


def _returned(x: Tensor) -> Tensor:
    """The output of a container as a step of its own: ``x`` may be used inside it, too."""
    return x


class _Shapes(fx.Interpreter):
    """Notes for every node its operation, its shape or constant, and if it varies with pixels."""

    def run_node(self, node: fx.Node) -> object:
        result = super().run_node(node)
        is_module, is_tensor = node.op == "call_module", isinstance(result, Tensor)
        module = self.fetch_attr(node.target) if is_module else None
        query = not is_module and name_of(node) in FUNCTIONS["query"].split()
        query = query and not (is_tensor and name_of(node) == "getattr")
        node.meta["operation"] = type(module).__name__ if is_module else name_of(node)
        node.meta["shape"] = result.shape if is_tensor else None
        node.meta["constant"] = None if tensors_in(result) else result
        node.meta["varies"] = node.op == "placeholder" or bool(varying(node) and not query)
        return result


def _traced(private: nn.Module, layers: Sequence[str], example: Tensor) -> fx.GraphModule:
    """``private`` as a graph of plain steps, with merged batch norms and nothing done in place."""
    base = type(private)
    forward = {"forward": lambda self, images: base.forward(self, images)}  # options at defaults
    private.__class__ = type(base.__name__, (base,), forward)
    net = fx.GraphModule(private, _Tracer(layers).trace(private))
    _once_each(net)
    for node in net.graph.nodes:
        _out_of_place(net, node)
    cuts = {_end(net.graph, layer) for layer in layers}
    for node in net.graph.nodes:
        _merge_norm(net, node, cuts)
    net.recompile()
    with torch.no_grad():
        _Shapes(net).run(example)
    return net


def _end(graph: fx.Graph, layer: str) -> fx.Node:
    """The step that gives the output of ``layer``."""
    for node in graph.nodes:
        if layer in node.meta.get("layers", ()):
            return node
    raise ValueError(f"the forward pass never runs layer {layer!r}: choose another layer")


def _once_each(net: fx.GraphModule) -> None:
    """Give a module that runs twice a copy for the second run."""
    seen = set()
    for node in net.graph.nodes:
        if node.op == "call_module":
            if node.target in seen:
                twin = frozen_copy(net.get_submodule(node.target), share=True)
                node.target = f"{node.target}_{node.name}"
                net.add_submodule(node.target, twin)
            seen.add(node.target)


def _out_of_place(net: fx.GraphModule, node: fx.Node) -> None:
    """Let a step write to no tensor, with operands in order; functional ReLUs become modules."""
    if not node.op.startswith("call"):
        return
    named = dict(node.kwargs)
    if "out" in named:
        raise ValueError(f"`{name_of(node)}` writes into another tensor")
    first, last = ([named.pop(key)] if key in named else [] for key in ("input", "other"))
    if "inplace" in named:
        named["inplace"] = False
    node.args, node.kwargs = (*first, *node.args, *last), named
    name = name_of(node)
    if node.op == "call_method" and name.endswith("_") and not name.endswith("__"):
        node.target = name.rstrip("_")
    if node.op == "call_function":
        node.target = OUT_OF_PLACE.get(node.target, node.target)
        if name.endswith("_"):
            node.target = getattr(nn.functional, name[:-1], None) or getattr(torch, name[:-1])
    if node.op != "call_module" and name_of(node) in RELUS:
        _call(net, node, RELUS[name_of(node)](), node.args[:1])


def _call(net: fx.GraphModule, node: fx.Node, module: nn.Module, args: tuple) -> None:
    """Make ``node`` a call of ``module``, named by its place so that rules by depth find it."""
    place = _place(node)
    name = f"{place}.{node.name}" if place else node.name
    if name in dict(net.named_modules()):
        name += "_step"
    net.add_submodule(name, module.eval())
    node.op, node.target, node.args, node.kwargs = "call_module", name, args, {}


def _merge_norm(net: fx.GraphModule, node: fx.Node, cuts: set[fx.Node]) -> None:
    """Fold a batch norm into the convolution or dense layer that runs right before it."""
    norm = net.get_submodule(node.target) if node.op == "call_module" else None
    if not isinstance(norm, (BatchNorm, FrozenBatchNorm2d)) or norm.running_mean is None:
        return
    source = node.args[0]
    if source.op != "call_module" or len(source.users) > 1 or source in cuts:
        return
    linear = net.get_submodule(source.target)
    transposed = isinstance(linear, nn.modules.conv._ConvTransposeNd)
    if not isinstance(linear, (Convolution, nn.Linear)) or (transposed and linear.groups > 1):
        return
    moments = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    weights = fusion.fuse_conv_bn_weights(linear.weight, linear.bias, *moments, transposed)
    linear.weight, linear.bias = (nn.Parameter(x.detach(), requires_grad=False) for x in weights)
    net.set_submodule(node.target, nn.Identity())


# --- cutting -------------------------------------------------------------------------------------

Part = Callable[..., tuple[Tensor, ...]]
Nodes = Collection[fx.Node]
RelevanceAt = Callable[[Tensor], Tensor]
"""Maps the features (or logits) at which relevance starts to that relevance."""


class _NotNested(ValueError):
    """Of two layers none is computed from the other."""


def _parts(net: fx.GraphModule, layers: Sequence[str]) -> tuple[Part, ...]:
    """``net`` in pieces: images to the first layer's features, on to the next, to the logits.

    A piece holds the steps that depend on the layer below it. Beside the features it takes and
    returns what else is still needed, such as the skip connection around a layer.
    """
    nodes = list(net.graph.nodes)
    cuts = [_end(net.graph, layer) for layer in layers]
    level: dict[fx.Node, int] = {}
    for node in nodes:
        level[node] = max((level[x] + (x in cuts) for x in varying(node)), default=0)
    for place, (layer, node) in enumerate(zip(layers, cuts, strict=True)):
        if level[node] != place:
            raise _NotNested(f"layer {layer!r} does not run above {layers[place - 1]!r}")
    pieces, inputs = [], []
    for place, end in enumerate([*cuts, nodes[-1].args[0]]):
        below = {node for node in nodes if node.meta["varies"] and level[node] <= place}
        above = [node for node in nodes if node.meta["varies"] and node not in below]
        needed = _ancestors(net, above, below) & below
        outputs = [end, *(node for node in nodes if node in needed and node is not end)]
        pieces.append(_piece(net, inputs, outputs))
        inputs = outputs
    return tuple(pieces)


def rounded(part: Part, precision: torch.dtype | None) -> Part:
    """A part for passes under autocast to ``precision``: its weights are in that type already.

    Autocast would convert them anew at every pass, as it keeps only those that take gradients.
    Weights of PyTorch's own layers only: others may use theirs in what autocast leaves alone, as
    it leaves float64.
    """
    if precision is None or not isinstance(part, nn.Module):
        return part
    part = frozen_copy(part, share=True)
    for module in part.modules():
        own = isinstance(module, Linear) and type(module).__module__.startswith("torch.nn.")
        if own and module.weight.dtype == torch.float32:
            module.to(precision)
    return part


def _ancestors(net: fx.GraphModule, ends: Nodes, known: Nodes) -> set[fx.Node]:
    """``ends`` and all that they are computed from, down to the nodes that are known."""
    needed = set(ends)
    for node in reversed(net.graph.nodes):
        if node in needed and node not in known:
            needed.update(node.all_input_nodes)
    return needed


def _piece(net: fx.GraphModule, inputs: Nodes, outputs: Nodes) -> Part:
    """The steps that compute ``outputs`` from ``inputs``, as a module."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    needed = _ancestors(net, outputs, inputs)
    for node in net.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(net, graph)


def _hooked(model: nn.Module, layers: Sequence[str]) -> tuple[Part, ...]:
    """The same through hooks, for what cannot be traced: each piece starts from the images."""
    lock = threading.RLock()

    def run(place: int, features: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        images, *earlier = others or (features,)
        values = [*earlier, features] if others else []
        # copies, as an in-place ReLU behind the layer would write to our tensors
        hooks = {
            layer: lambda output, value=value: value.to(output.dtype, copy=True)
            for layer, value in zip(layers, values, strict=False)
        }
        with lock, hooked(model, hooks):
            if place == len(layers):
                return (model(images.clone()),)
            features = run_until(model, layers[place], images)
        wide = torch.promote_types(features.dtype, torch.float32)
        return (features.to(wide), images, *values)

    return tuple(partial(run, place) for place in range(len(layers) + 1))


# --- the explicit form ---------------------------------------------------------------------------


class Explicit:
    """A network in explicit form, cut behind ``layers``. :func:`explicit` makes it.

    Attributes
    ----------
    model
        The network that it is the form of.
    layers
        Where it is cut, in the order of running.
    parts
        One more than layers. The first takes images (B×3×H×W), every other the features of a layer
        (B×C×h×w) and what the one before returned beside them; each returns a tuple, of features
        and what else the next needs, the last of logits (B×classes).
    reason
        Why it could not be traced; empty where it was. The parts then run the network itself, with
        the features replaced by hooks.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], example: Tensor) -> None:
        self.model, self.network = model, type(model).__name__
        self._key = _key(model, layers, example)
        # hooks in the model itself would meet other threads
        private = frozen_copy(model, share=True)
        logits, features = outputs_of(private, layers, example)
        self.layers, self.reason, self._net = tuple(features), "", None
        self._ruled: dict[str | None, _Ruled] = {}
        self._lock = threading.RLock()
        try:
            dtype = dtype_of(_folded(private), example)
            self._net = _traced(private, self.layers, example.to(dtype))
            head, *above = _parts(self._net, self.layers)
            self.parts = (lambda images: head(images.to(dtype)), *above)
            self._check(example, logits, features)
        except (_NotNested, torch.OutOfMemoryError):
            raise
        except Exception as error:  # torch.fx raises anything on code that it cannot trace
            first = str(error).strip().split("\n")[0].rstrip(".")
            self.reason, self._net = first or type(error).__name__, None
            self.parts = _hooked(frozen_copy(model, share=True), self.layers)
            self._check(example, logits, features)
            if layers:
                warnings.warn(
                    f"{self.network} cannot be traced ({self.reason}): the bottleneck runs the "
                    "whole network at every step, and relevance is refused",
                    stacklevel=4,
                )

    @torch.no_grad()
    def _check(self, example: Tensor, logits: Tensor, features: dict[str, Tensor]) -> None:
        """The parts must give what the network gives, also of copies of what is between them."""
        copies = 2 if features else 1  # a known form passed with copies when it was made
        values: tuple[Tensor, ...] = (example,)
        for part, layer in zip(self.parts, (*self.layers, None), strict=True):
            values = part(*values)
            expected = logits if layer is None else features.get(layer)
            if expected is not None and not same(values[0], expected):
                raise ValueError("in explicit form it is no longer the same network")
            values = tuple(value.repeat_interleave(copies, 0) for value in values)

    @torch.no_grad()
    def fits(self, model: nn.Module, layers: Iterable[str], example: Tensor) -> bool:
        """Whether this is the form of ``model`` as it is now, cut there, for such images.

        The key does not tell of everything that a network may compute with, so one image is run.
        """
        if self._key == _key(model, layers, example):
            for count in (1, 2):  # of one image, squeeze() would take the batch away
                few = example.repeat(count, 1, 1, 1)
                with suppress(ValueError):
                    self._check(few, logits_of(model, few), {})
                    return True
        return False

    def check(self, images: Tensor) -> None:
        """Refuse images of another kind than the form was made for, and changed weights.

        Raises
        ------
        ValueError
            Says so.
        """
        if self._key != _key(self.model, self.layers, images):
            raise ValueError(
                f"this explicit form of {self.network} is for images of another size, device or "
                "type, or the network has changed since: make it anew"
            )

    @property
    def plain(self) -> fx.GraphModule:
        """The whole network as a graph of plain steps; raises where it could not be traced."""
        if self._net is None:
            raise ValueError(
                f"{self.network} cannot be traced ({self.reason}): choose a method that needs "
                "no relevance, such as IBA"
            )
        return self._net

    def ruled(self, layer: str | None, example: Tensor) -> _Ruled:
        """The part below ``layer``, or the whole network (None), with a rule for every step.

        Raises
        ------
        ValueError
            A step has no rule, or relevance is lost or made: says where.
        """
        with self._lock:
            if layer not in self._ruled:
                with full_precision(example.device):
                    self._ruled[layer] = _ruled(self.plain, layer, example, self.network)
            return self._ruled[layer]

    def propagate(
        self,
        layer: str | None,
        images: Tensor,
        start: RelevanceAt,
        composite: Composite,
        names: Iterable[str] = (),
    ) -> dict[str, Tensor]:
        """Relevance at the outputs of ``names``, the last first, and at ``"pixels"``.

        Parameters
        ----------
        layer
            Where relevance starts; None: at the logits.
        start
            Maps the features (or logits) of the layer to the relevance that starts there.
        names
            Names of layers below; those that do not run there are left out.
        """
        net = self.ruled(layer, images[:1])
        with self._lock:
            return net.propagate(images, start, composite, names)


def _key(model: nn.Module, layers: Iterable[str], example: Tensor) -> tuple:
    """A key of what an explicit form is made for: state of the network, layers, kind of images."""
    return state_of(model), {*layers}, example.shape[1:], example.device, example.dtype


def dtype_of(model: nn.Module, like: Tensor) -> torch.dtype:
    """The type of a network's weights; that of ``like`` for one without weights."""
    return next((p.dtype for p in model.parameters()), like.dtype)


@torch.no_grad()
def outputs_of(
    model: nn.Module, layers: Sequence[str], images: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and features by layer in the order of running; ``model`` is a private copy.

    Raises
    ------
    ValueError
        A layer does not run, runs twice, or returns no maps.
    """
    features: dict[str, Tensor] = {}

    def record(layer: str, output: Tensor) -> None:
        if layer in features:
            raise ValueError(f"layer {layer!r} runs twice in one pass: choose one that runs once")
        if not isinstance(output, Tensor) or output.ndim != 4:
            raise ValueError(
                f"layer {layer!r} returns features of shape {shape_or_type(output)}: choose a "
                "layer with maps (B×C×h×w)"
            )
        features[layer] = output.clone()  # an in-place ReLU behind the layer would overwrite it

    hooks = {layer: partial(record, layer) for layer in layers}
    with hooked(model, hooks):
        logits = logits_of(model, images)
    for layer in layers:
        if layer not in features:
            raise ValueError(f"the forward pass never runs layer {layer!r}: choose another layer")
    return logits, features


_FULL = threading.RLock()


@contextmanager
def full_precision(on: torch.device) -> Iterator[None]:
    """Float32 in full while two forms of a network are compared on a GPU: TF32, its default for
    convolutions, has ten bits of mantissa, and random weights let its rounding grow to the logits.

    The switch is the process's; it is put back. Left alone where it was set in PyTorch's newer
    way, which the older may not be mixed with.
    """
    cudnn = torch.backends.cudnn
    with _FULL, ExitStack() as stack:
        if on.type == "cuda" and _rounds() is not None:
            kept = cudnn.enabled, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic
            stack.enter_context(cudnn.flags(*kept, allow_tf32=False))
        yield


def _rounds() -> bool | None:
    """Whether convolutions of a GPU are computed in TF32; None where PyTorch does not say."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def same(a: Tensor, b: Tensor) -> bool:
    """Whether ``a`` equals ``b``, or ``b`` with every image repeated, within b's precision."""
    rounded = b.is_cuda and _rounds() is not False
    coarse = rounded or b.dtype in (torch.float16, torch.bfloat16)
    b = b.to(a.dtype).repeat_interleave(len(a) // len(b), 0)
    scale = b.abs().max().item() or 1.0
    return a.shape == b.shape and torch.allclose(a, b, atol=(0.05 if coarse else 1e-3) * scale)


# --- the part that relevance goes through --------------------------------------------------------


def _ruled(plain: fx.GraphModule, layer: str | None, example: Tensor, network: str) -> _Ruled:
    """A copy of ``plain`` up to the output of ``layer`` (None: all), with a rule for every step.

    Refused where the copy computes something else, or loses random relevance by z⁺.
    """
    end = list(plain.graph.nodes)[-1].args[0] if layer is None else _end(plain.graph, layer)
    net = frozen_copy(_piece(plain, (), [end]), share=True)
    with torch.no_grad():
        (expected,) = net(example.to(dtype_of(net, example)))
    for node in list(net.graph.nodes):
        if node.op.startswith("call") and node.meta["varies"]:
            _give_rule(net, node)
    net.graph.lint()
    net = _Ruled(net, net.graph)
    relevance = torch.rand(expected.shape, generator=torch.Generator().manual_seed(0))
    relevance = relevance.to(expected)

    def start(output: Tensor) -> Tensor:
        if not same(output, expected):
            raise ValueError(
                f"{network} computes other features when rewritten for LRP, which would be wrong: "
                "use another network, or IBA without LRP"
            )
        return relevance

    pixels = net.propagate(example, start, rules.composite())["pixels"]
    pixels = pixels.to("cpu", torch.float64)
    total = relevance.to("cpu", torch.float64).sum().item()
    arrived, negative = (x.sum().item() / total for x in (pixels, pixels.clamp(max=0)))
    if not abs(arrived - 1) <= TOLERANCE or negative < -TOLERANCE:  # so that NaN is refused, too
        where = "the logits" if layer is None else f"layer {layer!r}"
        raise ValueError(
            f"LRP loses or makes relevance on {network}: of 1 at {where}, {arrived:.4g} arrives at "
            "the pixels; choose a layer below the step where it does, or another network"
        )
    return net


class _Ruled(fx.GraphModule):
    """Shows composites the modules that take a rule, as they run: the first sees the pixels."""

    def named_modules(self, *_args: object, **_named: object) -> Iterator[tuple[str, nn.Module]]:
        yield "", self
        for node in self.graph.nodes:
            if node.op == "call_module" and "signal" not in node.meta:
                yield node.target, self.get_submodule(node.target)

    def propagate(
        self, images: Tensor, start: RelevanceAt, composite: Composite, names: Iterable[str] = ()
    ) -> dict[str, Tensor]:
        """As :meth:`Explicit.propagate`, from the end of this part."""
        # outside no_grad and inference mode, whatever the caller is in: LRP is a modified gradient
        with torch.inference_mode(False), torch.enable_grad(), composite.context(self):
            pixels = images.to(dtype_of(self, images), copy=True).requires_grad_()
            forward = _Pass(self, names)
            (output,) = forward.run(pixels)
            at = {**dict(reversed(forward.outputs.items())), "pixels": pixels}
            relevance = start(output.detach()).detach().to(output).clone()
            below = torch.autograd.grad(
                output, list(at.values()), relevance, allow_unused=True, materialize_grads=True
            )
        return {name: at_layer.contiguous() for name, at_layer in zip(at, below, strict=True)}


def _give_rule(net: fx.GraphModule, node: fx.Node) -> None:
    """Prepare a step for relevance, if its gradient is not rule enough.

    Activations, norms, scales and shifts by constants pass all relevance on to their input; gated
    products to the signal, and the gate gets none: ``node.meta["signal"]``. Sums and averages
    become modules with a type that composites know.
    """
    what, inputs = kind(net, node), varying(node)
    module = net.get_submodule(node.target) if node.op == "call_module" else None
    if what is None:
        raise refusal(node)
    if what == "weights" and not _is_linear(module, node):
        raise refusal(node, ", which changes its weights as it runs,")
    if what in ("activation", "norm", "affine"):
        node.meta["signal"] = inputs[0]
    elif what == "product":
        signals = [source for source in inputs if not _is_gate(source, node)]
        if len(signals) != 1:
            raise refusal(node, " of two signals")
        node.meta["signal"] = signals[0]
    elif what == "sum":
        terms = _difference_terms if name_of(node) == "sub" else _terms
        with node.graph.inserting_before(node):
            both = node.graph.call_function(terms, node.args[:2])
        both.meta = {**node.meta, "layers": []}
        _call(net, node, Sum(-1), (both,))
    elif isinstance(module, nn.Upsample):
        net.set_submodule(node.target, Average(module.forward))
    elif what == "average" and module is None:
        args, named = fx.node.map_arg((node.args[1:], node.kwargs), lambda n: n.meta["constant"])
        function = getattr(Tensor, node.target) if node.op == "call_method" else node.target
        _call(net, node, Average(lambda x: function(x, *args, **named)), node.args[:1])
    elif type(module) is nn.Linear and len(node.meta["shape"]) > 2:
        net.set_submodule(node.target, DenseMap(module))


def _is_linear(module: nn.Module, node: fx.Node) -> bool:
    """Whether a layer, perhaps a subclass, is linear in its weight: what the rules rely on."""
    if type(module).__module__.startswith("torch.nn."):
        return True
    shape = node.all_input_nodes[0].meta["shape"]
    draw = torch.Generator().manual_seed(0)
    x, v = (torch.randn(s, generator=draw).to(module.weight) for s in (shape, module.weight.shape))
    zero = {} if module.bias is None else {"bias": torch.zeros_like(module.bias)}

    def run(weight: Tensor) -> Tensor:
        return functional_call(module, {"weight": weight, **zero}, x)

    with torch.no_grad():
        both, w = run(module.weight - 2 * v), run(module.weight)
        return torch.allclose(both, w - 2 * run(v), rtol=1e-3, atol=1e-4 * w.abs().max().item())


def _is_gate(source: fx.Node, product: fx.Node) -> bool:
    """Of a product: the factor that is spread over the other, or comes from a sigmoid."""
    if source.meta["shape"] != product.meta["shape"]:
        return True
    while name_of(source) in FUNCTIONS["view"].split() and isinstance(source.args[0], fx.Node):
        source = source.args[0]  # as of a gate that is expanded
    return "sigmoid" in source.meta["operation"].lower()


class _Pass(fx.Interpreter):
    """A forward pass of which the backward pass is relevance; records the outputs of layers."""

    def __init__(self, net: fx.GraphModule, names: Iterable[str]) -> None:
        super().__init__(net)
        self.names, self.outputs = set(names), {}

    def run_node(self, node: fx.Node) -> object:
        if "signal" in node.meta:
            with torch.no_grad():
                result = super().run_node(node)
            result = _PassOn.apply(self.env[node.meta["signal"]], result)
        else:
            result = super().run_node(node)
        for name in node.meta.get("layers", ()):
            if name in self.names and isinstance(result, Tensor):
                self.outputs[name] = result
        return result


_building = threading.RLock()


@torch.inference_mode(False)
def explicit(
    model: nn.Module, layers: Iterable[str], example: Tensor, known: Explicit | None = None
) -> Explicit:
    """The explicit form of ``model``, cut behind ``layers``: ``known`` where it fits, or a new one.

    Parameters
    ----------
    model
        Images (B×3×H×W) to logits (B×classes), in evaluation mode. It stays as it is.
    layers
        Names of modules that return maps (B×C×h×w), in any order.
    example
        B×3×H×W, of which one image is run.
    known
        The form that an earlier call returned. It is returned again as long as the network is the
        same, cut behind the same layers, for images of the same size, device and type.

    Raises
    ------
    ValueError
        No such layer; it is not run exactly once or returns no maps; or of two layers none lies
        above the other.

    Warns
    -----
    UserWarning
        The network cannot be traced: once, when it is cut.
    """
    model, layers = unwrapped(model), tuple(layers)
    example = example[:1].detach()
    with _building, full_precision(example.device):
        if known is not None and known.fits(model, layers, example):
            return known
        return Explicit(model, layers, example.repeat(2, 1, 1, 1))
